import { assert, assertAlmostEquals, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { openTokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { copyToDevice, open } from "../ffi/library.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { modelDirectory } from "../tests/testing.ts";
import { tokens } from "../runtime/testing.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "../runtime/safetensors.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { param } from "../runtime/tensor.ts";
import { endsOf, loadModel, optimizerTensors, saveModel } from "./checkpoint.ts";
import { forward, init, type Llama, type LlamaConfig, logits } from "./llama.ts";
import { allLogits } from "./testing.ts";

open("cpu");

const c: LlamaConfig = {
  ...{ vocab_size: 65, n_layer: 1, n_embd: 16, n_head: 2, n_kv_head: 1, head_dim: 8, n_inner: 24 },
  ...{ block_size: 8, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: true },
};
const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };

Deno.test("optimizerTensors() gives each value to one rank to save, with either zero_stage", () => {
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

Deno.test("saveModel() writes what a model has beside Llama's weights too, and loadModel() of a plain Llama names it", async () => {
  const tokenizer = await openTokenizer("bytes"), config = { ...c, vocab_size: tokenizer.vocab_size };
  const directory = Deno.makeTempDirSync(), model = { ...init(config), gate: param([3, 5], { value: 2 }) };
  saveModel(directory, new Parameters(model, { seed: 1, train: false }), config, tokenizer);
  const { tensors, read } = readSafetensors(`${directory}/model.safetensors`);
  assertEquals(tensors.get("gate")!.shape, [3, 5]);
  assertEquals(toFloat32(read("gate"), "F32"), new Float32Array(15).fill(2));
  const { model_type, architectures, note } = JSON.parse(Deno.readTextFileSync(`${directory}/config.json`));
  assertEquals([model_type, architectures], ["loam", undefined]);
  assertStringIncludes(note, "not a Llama as in transformers: gate");
  assertThrows(() => loadModel(directory), UserError, "it has gate (3,5), which loam does not compute with");
  Deno.removeSync(directory, { recursive: true });
});

Deno.test("saveModel() writes nothing that is not finite", async () => {
  const tokenizer = await openTokenizer("bytes"), config = { ...c, vocab_size: tokenizer.vocab_size };
  const directory = `${Deno.makeTempDirSync()}/model`, model = init(config);
  const parameters = new Parameters(model, { seed: 1, train: false });
  copyToDevice(model.norm.address + 8n, Float32Array.of(Infinity));
  const message = `Cannot save ${directory}: element 2 of model.norm.weight (16) is Infinity; `;
  assertThrows(() => saveModel(directory, parameters, config, tokenizer), UserError, message);
  assertThrows(() => Deno.statSync(directory), Deno.errors.NotFound);
});

Deno.test("a model that was loaded is trained on from its weights", async () => {
  const tokenizer = await openTokenizer("bytes"), config = { ...c, vocab_size: tokenizer.vocab_size };
  const directory = Deno.makeTempDirSync(), model = init(config);
  saveModel(directory, new Parameters(model, { seed: 5, train: false }), config, tokenizer);
  const idx = tokens([1, 8], tokenizer.encode("Loom, be"));
  const answer = (model: Llama) => {
    const values = noGrad(() => logits(model, forward(model, idx, config)).toArray());
    endStep();
    return values;
  };
  const loaded = loadModel(directory).model;
  new Parameters(loaded, { seed: 0, train: true });
  assertEquals(answer(loaded), answer(model));
  const ready = loadModel(directory, { train: true });
  assertEquals(answer(ready.model), answer(model));
  assertEquals([ready.parameters.grads!.bytes, loadModel(directory).parameters.grads], [
    4 * ready.parameters.total,
    undefined,
  ]);
  Deno.removeSync(directory, { recursive: true });
});

const GOLDEN = new URL("../tests/golden/", import.meta.url).pathname;

Deno.test("loadModel() reads float16 in several files, and computes what transformers does", () => {
  const { model, config } = loadModel(`${GOLDEN}sharded`);
  const { tensors, read } = readSafetensors(`${GOLDEN}sharded.safetensors`);
  const idx = tokens(tensors.get("idx")!.shape, new Int32Array(read("idx").buffer));
  const all = allLogits(model, config, idx);
  toFloat32(read("logits"), "F32").forEach((expected, i) => assertAlmostEquals(all[i]!, expected, 1e-5));
});

Deno.test("loadModel() refuses weights that it would not compute with, and takes both ends of a tie that are the same", async () => {
  /** A copy of a small model with a tensor more, of a name and values. */
  async function withTensor(
    name: string,
    values: Float32Array<ArrayBuffer>,
    shape: number[],
  ): Promise<string> {
    const directory = await modelDirectory({ tie_word_embeddings: true }),
      path = `${directory}/model.safetensors`;
    const { tensors, read } = readSafetensors(path);
    const entries = Array.from(tensors, ([name, { shape }]) => {
      const bytes = read(name);
      return { name, dtype: "F32" as const, shape, bytes: () => bytes };
    });
    writeSafetensors(path, [...entries, {
      name,
      dtype: "F32",
      shape,
      bytes: () => new Uint8Array(values.buffer),
    }]);
    return directory;
  }
  const plain = await modelDirectory({ tie_word_embeddings: true }),
    same = readSafetensors(`${plain}/model.safetensors`);
  const embedding = toFloat32(same.read("model.embed_tokens.weight"), "F32"), shape = [257, 32];
  const values = (path: string) => loadModel(path).model.embed_tokens.toArray();
  assertEquals(values(await withTensor("lm_head.weight", embedding, shape)), values(plain));
  const frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq";
  assertEquals(values(await withTensor(frequencies, new Float32Array(8), [8])), values(plain));

  const refused = async (model: Promise<string>) => {
    const directory = await model;
    return assertThrows(() => loadModel(directory), UserError).message;
  };
  const other = embedding.map((x, i) => i === embedding.length - 1 ? x + 1 : x);
  assertStringIncludes(
    await refused(withTensor("lm_head.weight", other, shape)),
    "/model.safetensors: lm_head.weight is not model.embed_tokens.weight, but tie_word_embeddings is true in config.json; " +
      "set it to false there, if the two are meant to differ",
  );
  assertStringIncludes(
    await refused(withTensor("model.layers.0.self_attn.q_norm.weight", new Float32Array(16), [16])),
    "/model.safetensors: it has model.layers.0.self_attn.q_norm.weight (16), which loam does not compute with",
  );
});

Deno.test("loadModel() names what shards, their index and config.json do not agree on", () => {
  const cases: [string, (text: string) => string, string][] = [
    [
      "index",
      (text) => text.replace('"lm_head.weight": "model-00004', '"lm_head.weight": "model-00009'),
      "Cannot read DIR/model-00009-of-00004.safetensors: there is no such file, model.safetensors.index.json names it; put it there",
    ],
    [
      "index",
      (text) => text.replace('"lm_head.weight": "model-00004', '"lm_head.weight": "model-00001'),
      "Cannot read DIR/model-00001-of-00004.safetensors: it has no lm_head.weight, which model.safetensors.index.json expects there",
    ],
    [
      "index",
      (text) => text.replace(/"model.norm.weight": "[^"]*",?/, "").replace(/,(\s*})/, "$1"),
      "it has model.norm.weight, which model.safetensors.index.json does not expect there",
    ],
    [
      "index",
      (text) => text.replace('"model-00004-of', '"../model-00004-of'),
      'its weight_map has "../model-00004-of-00004.safetensors", should have names of files beside it',
    ],
    ["index", () => "{}", "Cannot read DIR/model.safetensors.index.json: it has no weight_map"],
    [
      "config",
      (text) => text.replace('"vocab_size": 40', '"vocab_size": 50'),
      "model.embed_tokens.weight is (40,16), the model wants (50,16)",
    ],
    [
      "config",
      (text) => text.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'),
      "Cannot load DIR: it has no tensor model.layers.1.input_layernorm.weight of shape (16)",
    ],
  ];
  for (const [file, change, message] of cases) {
    const directory = Deno.makeTempDirSync();
    for (const { name } of Deno.readDirSync(`${GOLDEN}sharded`)) {
      Deno.copyFileSync(`${GOLDEN}sharded/${name}`, `${directory}/${name}`);
    }
    const path = `${directory}/${file === "index" ? "model.safetensors.index" : file}.json`;
    const before = Deno.readTextFileSync(path), after = change(before);
    assert(after !== before, message);
    Deno.writeTextFileSync(path, after);
    const error = assertThrows(() => loadModel(directory), UserError);
    assertStringIncludes(error.message.replaceAll(directory, "DIR"), message);
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("endsOf() takes what transformers stops at: of generation_config.json, of config.json, of the tokenizer", () => {
  const directory = Deno.makeTempDirSync(), ends = () => endsOf(directory, { eot: 9 });
  const write = (name: string, eos_token_id: unknown) =>
    Deno.writeTextFileSync(`${directory}/${name}.json`, JSON.stringify({ eos_token_id }));
  assertEquals(ends(), [9]);
  write("config", 7);
  assertEquals(ends(), [7]);
  write("generation_config", null);
  assertEquals(ends(), [7]);
  write("generation_config", [5, 6]);
  assertEquals(ends(), [5, 6]);
  for (const wrong of ["</s>", [1, -1], 1.5, {}]) {
    write("generation_config", wrong);
    const message =
      `Cannot use ${directory}/generation_config.json: eos_token_id is ${JSON.stringify(wrong)}, ` +
      "and should be an id or a list of them";
    assertEquals(assertThrows(ends, UserError).message, message);
  }
  Deno.removeSync(directory, { recursive: true });
});

Deno.test("saveModel() says where it cannot write", () => {
  const parameters = new Parameters(init(c), { seed: 1, train: false });
  const file = Deno.makeTempFileSync(), tokenizer = { bos: 0, eot: 0, files: () => ({}) };
  assertThrows(
    () => saveModel(`${file}/model`, parameters, c, tokenizer),
    UserError,
    `Cannot write ${file}/model: `,
  );
  Deno.removeSync(file);
});
