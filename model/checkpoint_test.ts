import { assertEquals } from "@std/assert";
import { open } from "../ffi/library.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { optimizerTensors } from "./checkpoint.ts";
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
