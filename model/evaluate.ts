// How good a model is: its loss on the validation split, and a text that it writes.
import type { Dataset } from "../data/bins.ts";
import { Loader } from "../data/loader.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { tokenSource } from "../ffi/library.ts";
import type { Ranks } from "../dist/ranks.ts";
import type { Inputs } from "../runtime/inputs.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { rows } from "../runtime/tensor.ts";
import { generate } from "./generate.ts";
import { type Llama, type LlamaConfig, loss } from "./llama.ts";

/**
 * Mean loss over the first `batches` batches of the val split, in file order: the same windows every time. Ranks share them.
 * Undefined when isAsked(), which all ranks call after each of their batches, tells them to stop.
 */
export async function evaluate(
  model: Llama,
  c: LlamaConfig,
  head_chunk: number,
  val: Loader,
  inputs: Inputs,
  batches: number,
  ranks: Ranks,
  isAsked: () => Promise<boolean> = () => Promise.resolve(false),
): Promise<number | undefined> {
  let sum = 0, windows = 0;
  const { rank, world_size } = ranks, all = Math.min(batches, val.n_evalBatches);
  for (let first = 0; first < all; first += world_size) {
    const i = first + rank;
    if (i < all) {
      let n = 0;
      inputs.fill(0, (x, y) => n = val.evalBatch(x, y, i));
      const idx = rows(inputs.idx, 0, n), targets = rows(inputs.targets, 0, n); // the last batch may be smaller
      sum += n * noGrad(() => loss(model, idx, targets, c, { head_chunk }).toArray()[0]!);
      windows += n;
      endStep();
    }
    if (await isAsked()) return undefined;
  }
  const [total, count] = await ranks.sum(sum, windows) as [number, number];
  return total / count;
}

/** --eval_only: the mean loss over all windows of the val split. */
export async function evaluateAll(
  model: Llama,
  c: LlamaConfig,
  settings: { head_chunk: number; batch_size: number; block_size: number },
  dataset: Dataset,
  inputs: Inputs,
  ranks: Ranks,
): Promise<void> {
  const val = new Loader(tokenSource, dataset, { ...settings, vocab_size: c.vocab_size, split: "val" });
  const mean = await evaluate(model, c, settings.head_chunk, val, inputs, Infinity, ranks);
  if (mean === undefined || ranks.rank > 0) return;
  console.log(`val loss ${mean.toFixed(6)} over ${val.n_windows} windows of ${c.block_size} tokens`);
}

/**
 * A document that the model writes from nothing, the same every time for the same weights. Undefined when isAsked(), which is
 * called after each token, tells it to stop.
 */
export async function sampleText(
  model: Llama,
  c: LlamaConfig,
  s: { sample_temperature: number; sample_tokens: number; seed: number },
  { bos, eot }: Pick<Dataset, "bos" | "eot">,
  tokenizer: Tokenizer,
  isAsked: () => Promise<boolean>,
): Promise<string | undefined> {
  const options = {
    temperature: s.sample_temperature,
    top_k: 0,
    top_p: 1,
    seed: s.seed,
    stop: [eot],
  };
  // The tokenizer may begin texts otherwise than a dataset of an earlier version, which is what the model knows.
  const start = bos === tokenizer.bos ? tokenizer.prompt("") : [bos];
  const tokens: number[] = [];
  for (
    const token of generate(model, c, start, { ...options, max_new_tokens: s.sample_tokens })
  ) {
    tokens.push(token);
    if (await isAsked()) return undefined;
  }
  return tokenizer.decode(tokens);
}
