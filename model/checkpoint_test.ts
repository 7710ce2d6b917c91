import { assertEquals, assertThrows } from "@std/assert";
import { openTokenizer } from "../data/tokenizer.ts";
import { UserError } from "../ffi/errors.ts";
import { open } from "../ffi/library.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { loadModel, optimizerTensors, saveModel } from "./checkpoint.ts";
import { init, type LlamaConfig } from "./llama.ts";

const c: LlamaConfig = {
  ...{ vocab_size: 65, n_layer: 1, n_embd: 16, n_head: 2, n_kv_head: 1, head_dim: 8, n_inner: 24 },
  ...{ block_size: 8, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: true },
};
const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };

Deno.test("optimizerTensors() gives each value to one rank to save, with either zero_stage", () => {
  open("cpu");
  for (const zero_stage of [0, 1]) {
    const ranks = [0, 1, 2].map((rank) => {
      const parameters = new Parameters(init(c), { seed: 1, train: true, rank, world_size: 3, zero_stage });
      return optimizerTensors(new AdamW(parameters, options));
    });
    ranks[0]!.forEach(({ name, shape }, i) => {
      const ranges = ranks.map((tensors) => tensors[i]!.range!).filter(({ from, to }) => to > from);
      assertEquals(ranges[0]?.from, 0, name);
      ranges.forEach(({ from }, n) => assertEquals(from, ranges[n - 1]?.to ?? 0, name));
      assertEquals(ranges.at(-1)?.to, shape.reduce((a, b) => a * b), name);
    });
  }
});

Deno.test("saveModel() writes a directory that loadModel() and openTokenizer() read, also over an earlier one", async () => {
  open("cpu");
  const tokenizer = await openTokenizer("bytes"), config = { ...c, vocab_size: tokenizer.vocab_size };
  const directory = `${Deno.makeTempDirSync()}/models/a`;
  for (const seed of [1, 2]) {
    const model = init(config), parameters = new Parameters(model, { seed, train: false });
    saveModel(directory, parameters, config, tokenizer);
    const loaded = loadModel(directory);
    assertEquals(loaded.config, config);
    assertEquals(loaded.model.layers[0]!.qkv_proj.toArray(), model.layers[0]!.qkv_proj.toArray());
    assertEquals((await openTokenizer(directory)).encode("Loom"), tokenizer.encode("Loom"));
    assertEquals(
      Array.from(Deno.readDirSync(directory), ({ name }) => name).filter((name) => name.endsWith("tmp")),
      [],
    );
  }
  Deno.removeSync(directory, { recursive: true });
});

Deno.test("saveModel() says where it cannot write", () => {
  open("cpu");
  const parameters = new Parameters(init(c), { seed: 1, train: false });
  const file = Deno.makeTempFileSync(), tokenizer = { eot: 0, files: () => ({}) };
  assertThrows(
    () => saveModel(`${file}/model`, parameters, c, tokenizer),
    UserError,
    `Cannot write ${file}/model: `,
  );
  Deno.removeSync(file);
});
