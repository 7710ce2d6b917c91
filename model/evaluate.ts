// How good a model is: its loss on the validation split, and a text that it writes.
import { bitsPerByte } from "../data/bins.ts";
import type { Loader } from "../data/loader.ts";
import { oneLine } from "../base/visible.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { rows } from "../runtime/tensor.ts";
import { takeChoices } from "./choices.ts";
import { keepsApart } from "./documents.ts";
import { generate } from "./generate.ts";
import { loss } from "./llama.ts";
import type { Read } from "./progress.ts";
import type { Parts, Run } from "./run.ts";
import { scoresInWords, scoreTasks, taskMetrics } from "./tasks.ts";

/**
 * Measures the val_loss and val_bpb of a step, over eval_batches batches of the val split, and scores the model on eval_tasks.
 * Where a rank is asked to stop meanwhile there is less of it, and the run ends.
 */
export async function evaluate(run: Run, done: Read): Promise<void> {
  const { config: { eval_batches }, c, dataset, val, tasks, model, ranks, log, stop, progress } = run;
  const isAsked = () => stop.agree();
  if (val) {
    const val_loss = await meanLoss(run, val, eval_batches, isAsked);
    if (val_loss === undefined) {
      progress.stopping = true;
      return;
    }
    const val_bpb = bitsPerByte(val_loss, dataset);
    done.val_loss = val_loss;
    Object.assign(done.metrics, { val_loss, ...val_bpb !== undefined && { val_bpb } });
  }
  if (tasks.length === 0) return;
  const scores = await scoreTasks(model, c, tasks, ranks, isAsked);
  if (scores === undefined) {
    progress.stopping = true;
    return;
  }
  Object.assign(done.metrics, taskMetrics(scores));
  log.line(`tasks after step ${done.step}: ${scoresInWords(scores)}`);
}

/**
 * Mean loss over the first `batches` batches of the val split, in file order: the same windows every time. Ranks share them.
 * Undefined when isAsked(), which all ranks call after each of their batches, tells them to stop.
 */
async function meanLoss(
  { config: { head_chunk }, c, model, inputs, ranks }: Parts,
  val: Loader,
  batches: number,
  isAsked: () => Promise<boolean> = () => Promise.resolve(false),
): Promise<number | undefined> {
  let sum = 0, windows = 0;
  const { rank, world_size } = ranks, all = Math.min(batches, val.n_evalBatches);
  for (let first = 0; first < all; first += world_size) {
    const i = first + rank;
    if (i < all) {
      let n = 0;
      inputs.fill((x, y, starts) => n = val.evalBatch(x, y, i, starts));
      const idx = rows(inputs.idx, 0, n), targets = rows(inputs.targets, 0, n); // the last batch may be smaller
      const starts = inputs.starts && rows(inputs.starts, 0, n);
      sum += n * noGrad(() => loss(model, idx, targets, c, { head_chunk, starts }).toArray()[0]!);
      windows += val.evalWeight(i);
      endStep();
    }
    if (await isAsked()) return undefined;
  }
  const [total, count] = await ranks.sum(sum, windows) as [number, number];
  return total / count; // of which there are some: makeParts() has looked
}

/** --eval_only: prints the mean loss over all windows of the val split. */
export async function evaluateAll(parts: Parts): Promise<void> {
  for (const text of await takeChoices(parts)) console.error(`warning: ${oneLine(text)}`);
  const val = parts.val!, mean = await meanLoss(parts, val, Infinity);
  const scores = await scoreTasks(parts.model, parts.c, parts.tasks, parts.ranks);
  if (mean === undefined || parts.ranks.rank > 0) return;
  const bpb = bitsPerByte(mean, parts.dataset),
    bits = bpb === undefined ? "" : `, ${bpb.toFixed(6)} bits per byte,`,
    apart = keepsApart(parts.config) ? ", each document by itself" : "";
  console.log(
    `val loss ${
      mean.toFixed(6)
    }${bits} over ${val.n_windows} windows of ${parts.c.block_size} tokens${apart}`,
  );
  if (parts.tasks.length > 0) console.log(oneLine(`tasks ${scoresInWords(scores!)}`));
}

/** Has the model write a text, on the first rank. The others go on: of a signal that comes meanwhile they hear in the next step. */
export async function sample(run: Run, step: number): Promise<void> {
  const { ranks, stop, log, progress } = run;
  if (!run.tokenizer || ranks.rank > 0) return;
  const text = await sampleText(run, run.tokenizer, () => stop.look());
  if (text !== undefined) log.sample(step, text);
  progress.stopping = ranks.isAlone && stop.asked !== "";
}

/**
 * A document that the model writes from nothing, the same every time for the same weights. Undefined when isAsked(), which is
 * called after each token, tells it to stop.
 */
async function sampleText(
  { config, c, model, dataset: { bos, eot } }: Parts,
  tokenizer: Tokenizer,
  isAsked: () => Promise<boolean>,
): Promise<string | undefined> {
  const { sample_temperature: temperature, sample_tokens: max_new_tokens, seed } = config;
  // The tokenizer may begin texts otherwise than a dataset of an earlier version, which is what the model knows.
  const start = bos === tokenizer.bos ? tokenizer.prompt("") : [bos];
  const options = { temperature, top_k: 0, top_p: 1, seed, stop: [eot], max_new_tokens };
  const tokens: number[] = [];
  for (const token of generate(model, c, start, options)) {
    tokens.push(token);
    if (await isAsked()) return undefined;
  }
  return tokenizer.decode(tokens);
}
