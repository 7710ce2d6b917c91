// Trains a Llama. Edit the variables below or set them on the command line: deno task train --preset=small --max_iters=200
import { type Dataset, openDataset, verifyDataset } from "./data/bins.ts";
import { Loader } from "./data/loader.ts";
import { openData } from "./data/mix.ts";
import { openTokenizer, type Tokenizer } from "./data/tokenizer.ts";
import { runMain } from "./ffi/errors.ts";
import { device, tokenSource } from "./ffi/library.ts";
import { modelFiles, modelTensors, optimizerTensors, resumeFrom } from "./model/checkpoint.ts";
import { consume, type Consumed, consumedBefore } from "./model/consumed.ts";
import { configure, llamaConfig, presetOf } from "./model/configure.ts";
import { openAndDescribe } from "./model/device.ts";
import { dryRun } from "./model/dry_run.ts";
import { evaluate, evaluateAll, sampleText } from "./model/evaluate.ts";
import { flopsPerToken, init, type Llama, type LlamaConfig, loss, type Recompute } from "./model/llama.ts";
import { guard, isGood, type Outcome, placesOf, requireGoodEnd } from "./model/guard.ts";
import { orDoesNotFit } from "./model/plan.ts";
import { presets } from "./model/presets.ts";
import { banner, dataLines, peakOfAll, runFacts, stepMetrics, VERSIONS } from "./model/report.ts";
import { howToGoOn, openRun, requireSameData } from "./model/run_directory.ts";
import { saveCheckpoint, settle } from "./runtime/checkpoint.ts";
import {
  debug,
  type DebugMode,
  profileReport,
  setDebug,
  skipTime,
  startTiming,
  tapeListing,
} from "./runtime/debug.ts";
import { help, requireRange, requireWhole } from "./runtime/config.ts";
import { joinRanks, type Ranks } from "./runtime/dist.ts";
import { Inputs } from "./runtime/inputs.ts";
import { memoryByKind } from "./runtime/memory.ts";
import { type Log, logOfRank, requireIdle, StepLines, type StepMetrics } from "./runtime/metrics.ts";
import { AdamW, cosineSchedule, Parameters, type StepResult } from "./runtime/optim.ts";
import type { Peak } from "./runtime/peak.ts";
import { Stop } from "./runtime/stop.ts";
import { backward, endStep } from "./runtime/tape.ts";
import { readTrainerState, type TrainerState } from "./runtime/trainer_state.ts";
import { findWorld } from "./runtime/world.ts";
import { ServerBeside } from "./serve/beside.ts";

/** Every variable of a run. --name=value overrides one; --preset=tiny|small|gpt-270m overrides several. */
export const variables = {
  preset: "", // "" = gpt-270m on a GPU, tiny on a CPU
  device: "", // cuda or cpu; "" = cuda if its library is built and a GPU answers, else cpu
  data_dir: "data/demo", // made by deno task prepare; a mix: data/fineweb:0.8,data/code:0.2
  verify_data: true, // compare the sha256 of each shard with meta.json at start, about a second a GB
  out_dir: "", // "" = runs/<date>-<preset>
  resume: "", // a run directory to go on with; auto = the one in out_dir if it holds a checkpoint, else start there
  seed: 1337, // of the first weights and of the order of the data

  // model
  n_layer: 24, // blocks of attention and feed-forward
  n_embd: 1024, // channels of a token between blocks: C
  n_head: 16, // query heads: H
  n_kv_head: 4, // key and value heads, shared by n_head / n_kv_head query heads each
  head_dim: 0, // 0 = n_embd / n_head
  n_inner: 0, // 0 = 8/3 n_embd rounded up to 256
  block_size: 2048, // tokens of context: T
  rope_theta: 10000, // base of the rotary positions
  norm_eps: 1e-6, // added to the mean square in RMSNorm

  // batch: batch_size * gradient_accumulation_steps * block_size = 262,144 tokens a step
  batch_size: 4, // windows of block_size tokens in one micro-step
  gradient_accumulation_steps: 32, // micro-steps of a step, shared by all ranks

  // optimizer
  learning_rate: 3e-4, // highest, after the warm-up
  min_lr: 3e-5, // where the cosine ends
  warmup_iters: 2000, // steps in which it rises from 0
  max_iters: 100_000, // steps in all
  beta1: 0.9, // decay of Adam's mean of gradients
  beta2: 0.95, // and of their squares
  eps: 1e-8, // added to the root of Adam's mean square
  weight_decay: 0.1, // on matrices, never on norms
  grad_clip: 1.0, // 0 = off
  max_skipped: 10, // stop after so many non-finite steps in a row

  // what happens how often, in steps; 0 = never
  log_interval: 1, // lines on the screen and in log.txt, means since the last one; metrics.jsonl has every step
  eval_interval: 250, // loss on the val split
  eval_batches: 20, // the same windows of the val split every time
  sample_interval: 1000, // text written by the model
  sample_tokens: 200, // of each such text
  sample_temperature: 0.8, // 0 = the likeliest token always
  save_interval: 1000, // checkpoints
  keep_checkpoints: 3, // the newest so many, two at least, and the best
  tensorboard: false, // write TensorBoard event files too

  // machine
  threads: 0, // CPU threads, 0 = one for each CPU that this process may use
  bf16_gemm: false, // CPU: round GEMM inputs to bfloat16 where the BLAS can
  blas: "", // CPU: "" = the first of onednn, mkl, openblas, blis, accelerate that is found, else builtin
  head_chunk: 2048, // rows whose logits are in memory at a time
  recompute: "norm_swiglu", // what backward computes again to save memory: none, norm_swiglu, gate_up, block

  // several processes, started by torchrun, mpirun or srun
  zero_stage: 1, // 1: each rank keeps optimizer state of a part of the weights; 0: of all
  dist_timeout_s: 600, // a rank that the others wait for so long ends the run; 0 = never

  // a dashboard, /stats and /metrics at http://127.0.0.1:<serve_port>/ while it trains; see docs/serve.md
  serve_port: 0, // 0 = off

  // instead of training
  eval_only: false, // mean loss over the whole val split of the model to --resume
  dry_run: false, // model size, memory, FLOPs, speed and the first batch, then stop
  debug: "", // --debug: stop at the first non-finite value; --debug=tape|profile: list or time the ops
};

export type TrainConfig = typeof variables;

/** One training run, from command-line arguments to the last checkpoint. */
export async function train(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./train.ts", { with: { type: "text" } });
    const values = presetOf(variables, args.filter((arg) => arg !== "--help"));
    const what = `Train a Llama. Presets: ${Object.keys(presets).join(", ")}. Defaults of ${values.preset}:`;
    return console.log(help(what, values, source));
  }
  const world = findWorld((name) => Deno.env.get(name));
  const { config, checkpoint } = configure(variables, args, world);
  requireWhole(config, ["serve_port"], 0);
  requireRange(config, ["serve_port"], 0, 65535);
  const dataset = openData(config.data_dir, config.verify_data ? verifyDataset : openDataset);
  const tokenizer = dataset.tokenizer === null ? undefined : await openTokenizer(dataset.tokenizer);
  const c = llamaConfig(config, dataset.vocab_size);
  if (config.dry_run) return dryRun(config, c, dataset, tokenizer);
  const description = openAndDescribe(config.device, { ...config, index: world.local_rank });
  const ranks = world.world_size > 1 ? await joinRanks(world, config.dist_timeout_s) : undefined;
  try {
    if (ranks) config.out_dir = await ranks.enter(config.out_dir);
    await run(config, c, dataset, tokenizer, checkpoint, description, ranks);
    await ranks?.finalize();
  } catch (error) {
    const cause = orDoesNotFit(error, c, config);
    if (!ranks) throw cause;
    ranks.fail(cause);
  }
}

/** Makes all that a run needs, opens its directory, and trains; or evaluates the model to resume. */
async function run(
  config: TrainConfig,
  c: LlamaConfig,
  dataset: Dataset,
  tokenizer: Tokenizer | undefined,
  checkpoint: string | undefined,
  description: string,
  ranks: Ranks | undefined,
): Promise<void> {
  const { batch_size: B, block_size: T, seed, zero_stage } = config;
  const { rank, world_size } = ranks ?? ALONE, isFirst = rank === 0;
  setDebug(config.debug as DebugMode);
  const shape = { batch_size: B, block_size: T, vocab_size: c.vocab_size };
  const data = new Loader(tokenSource, dataset, { ...shape, split: "train" });
  const val = config.eval_interval > 0 && dataset.val.length > 0
    ? new Loader(tokenSource, dataset, { ...shape, split: "val" })
    : undefined;
  const inputs = new Inputs(B, T, config.gradient_accumulation_steps / world_size);
  const model = init(c);
  const parameters = new Parameters(model, { seed, train: true, rank, world_size, zero_stage });
  const optimizer = new AdamW(parameters, config);
  if (isFirst && !config.eval_only) requireIdle(config.out_dir);
  const saved = checkpoint ? readTrainerState(checkpoint) : undefined;
  if (checkpoint && saved) {
    requireSameData(config, dataset, saved);
    resumeFrom(checkpoint, c, optimizer);
  }
  if (config.eval_only) return await evaluateAll(model, c, config, dataset, inputs, ranks);
  await ranks?.requireSame({
    config,
    data: dataset.sha256,
    versions: VERSIONS,
    weights: parameters.sha256(),
  });

  const peak = peakOfAll(world_size);
  const facts = runFacts(config, c, description, parameters, data, peak, saved?.step ?? 0);
  await using server = isFirst && config.serve_port > 0 ? new ServerBeside() : undefined;
  using log = isFirst ? await openRun(config, saved) : logOfRank(rank, config.out_dir);
  try {
    if (isFirst) settle(config.out_dir, saved, config.keep_checkpoints);
    log.describe(facts);
    server?.serve(config.out_dir, config.serve_port, (line) => log.line(line));
    if (ranks) ranks.onFailure = (error) => log.fail(error);
    banner(log, config, c, description, peak, saved, data.order(seed));
    for (const line of dataLines(config, dataset, val)) log.line(line);
    const parts = { config, c, dataset, tokenizer, data, val, inputs, model, optimizer, ranks, log, peak };
    log.end(await steps(parts, saved, () => log.describe({ ...facts, memory: memoryByKind() })));
  } catch (error) {
    const cause = orDoesNotFit(error, c, config);
    log.fail(cause);
    throw cause;
  }
}

/** What run() made for the steps of training. */
type Parts = {
  config: TrainConfig;
  c: LlamaConfig;
  dataset: Dataset;
  tokenizer: Tokenizer | undefined;
  data: Loader;
  val: Loader | undefined;
  inputs: Inputs;
  model: Llama;
  optimizer: AdamW;
  ranks: Ranks | undefined;
  log: Log;
  peak: Peak | undefined;
};

/** Trains from the step that is saved to max_iters, or to a signal. firstDone is called when memory is as large as it gets. */
async function steps(
  parts: Parts,
  saved: TrainerState | undefined,
  firstDone: () => void,
): Promise<"finished" | "stopped"> {
  const { config, c, dataset, tokenizer, data, val, inputs, model, optimizer, ranks, log, peak } = parts;
  const { seed, head_chunk, max_iters } = config, { rank, world_size } = ranks ?? ALONE, isFirst = rank === 0;
  const micro_steps = config.gradient_accumulation_steps / world_size; // of this rank
  const before = saved?.step ?? 0; // what earlier processes did
  const lines = new StepLines(flopsPerToken(c, c.block_size));
  const past = consumedBefore(saved, data.order(seed)),
    readUpTo = (step: number) => consume(past, step - before, config);
  const best = { val_loss: saved?.best_val_loss ?? null, step: saved?.best_step ?? null };
  if (before >= max_iters) log.line(`nothing to do: step ${before} of max_iters ${max_iters} is done`);
  // A GPU works on the next step while the result of this one is read, unless something is to be done between the two.
  // In company it does not: kernels queued behind a rank that does not come would fill the queue, and stop this thread.
  const readsLate = device.library !== "cpu" && config.debug === "" && !ranks;
  let unread = false; // the result of step `step`
  let read_ms = performance.now(); // when the last result was read, or when its saving and so on was done
  const stop = new Stop();
  let stopping = false; // in company the ranks agree on it
  let step = before, saved_step = before, last: Outcome | undefined;
  startTiming();

  async function isAsked(): Promise<boolean> {
    const asked = await stop.look();
    return ranks ? (await ranks.sum(Number(asked)))[0]! > 0 : asked;
  }

  async function readResult(step: number): Promise<[StepResult, StepMetrics]> {
    const result = await (ranks ?? ALONE).meet("result", optimizer.nextResult()); // signals and timers are served here
    stopping = ranks ? result.stopping > 0 : stop.asked !== "";
    const step_ms = performance.now() - read_ms;
    read_ms = performance.now();
    const { tokens } = readUpTo(step);
    return [result, stepMetrics(config, c, peak, step, tokens, step_ms, result)];
  }

  function report(outcome: Outcome, metrics: StepMetrics, always: boolean): void {
    log.step(metrics);
    lines.add(metrics);
    if (always || outcome.step % config.log_interval === 0) log.line(lines.line(metrics));
    guard(config, outcome, () => placesOf(data, config, readUpTo(outcome.step - 1).samples), log);
  }

  async function sample(): Promise<void> {
    if (!tokenizer || !isFirst) return;
    const text = await sampleText(model, c, config, dataset, tokenizer, () => stop.look());
    if (text !== undefined) log.sample(step, text);
    stopping = !ranks && stop.asked !== ""; // in company the others are in the next step already
  }

  const samples = due(before, config.sample_interval, before >= max_iters);
  if (before > 0 && samples && log.sampled < before) await sample(); // it was stopped or killed before
  while (step < max_iters && !stopping) {
    debug.step = step + 1;
    ranks?.beat(step + 1);
    for (let micro = 0; micro < micro_steps; micro++) {
      const at = { seed, sample: readUpTo(step).samples, micro, rank, world_size };
      inputs.fill(step * micro_steps + micro, (x, y) => data.trainBatch(x, y, at));
      skipTime();
      const l = loss(model, inputs.idx, inputs.targets, c, {
        grad_scale: 1 / config.gradient_accumulation_steps,
        head_chunk,
        recompute: config.recompute as Recompute,
      });
      optimizer.addLoss(l, 1 / config.gradient_accumulation_steps, micro === 0);
      backward(l);
      endStep();
      if (config.debug === "tape") {
        log.lines(tapeListing());
        return "stopped";
      }
      await stop.look();
    }
    const lr = cosineSchedule(step, config);
    if (ranks) await optimizer.stepTogether(lr, ranks, stop.asked !== "");
    else optimizer.step(lr);
    optimizer.keepResult();
    if (unread) {
      const [result, metrics] = await readResult(step);
      report({ step, result }, metrics, false);
    }
    step++;
    if (step === before + 1) firstDone();
    unread = readsLate && !stopping && !isEventful(config, step);
    if (unread) continue;
    const [result, metrics] = await readResult(step);
    last = { step, result };

    const isLast = step === max_iters;
    const saves = due(step, config.save_interval, isLast) && isGood(last);
    const evaluates = val && !stopping && due(step, config.eval_interval, isLast || saves);
    if (evaluates) {
      const val_loss = await evaluate(model, c, head_chunk, val, inputs, config.eval_batches, ranks, isAsked);
      if (val_loss === undefined) stopping = true;
      else last.val_loss = metrics.val_loss = val_loss;
    }
    report(last, metrics, evaluates || isLast || stopping);
    if (saves && isGood(last) && !stopping) {
      await save(parts, last, best, readUpTo(step));
      saved_step = step;
    }
    if (due(step, config.sample_interval, isLast) && !stopping) await sample();
    if (config.debug === "profile" && step === before + 1) startTiming(); // the first step warms up
    if (config.debug === "profile" && step === before + 1 + PROFILE_STEPS) {
      log.lines(profileReport(PROFILE_STEPS));
      return "stopped";
    }
    read_ms = performance.now();
  }
  if (last) requireGoodEnd(config, last);
  if (!stopping) return "finished";
  if (last && config.save_interval > 0 && saved_step < step) await save(parts, last, best, readUpTo(step));
  const who = stop.asked || "a signal to another rank";
  log.line(`stopped by ${who} after step ${step}; ${howToGoOn(config, step)}`);
  return step < max_iters ? "stopped" : "finished";
}

/** Saves what a step led to. best: of the checkpoints before it, and then of all. */
async function save(
  { config, c, dataset, tokenizer, optimizer, ranks, log }: Parts,
  { step, result: { updates, skipped, skipped_row }, val_loss }: Outcome,
  best: { val_loss: number | null; step: number | null },
  consumed: Consumed,
): Promise<void> {
  if (val_loss !== undefined && val_loss < (best.val_loss ?? Infinity)) {
    [best.val_loss, best.step] = [val_loss, step];
  }
  const content = {
    model: modelTensors(optimizer.parameters, c),
    optimizer: optimizerTensors(optimizer),
    files: modelFiles(c, dataset, tokenizer),
    state: {
      step,
      updates,
      skipped,
      skipped_row,
      ...consumed,
      val_loss: val_loss ?? null,
      best_val_loss: best.val_loss,
      best_step: best.step,
      tokenizer: dataset.tokenizer,
      data: dataset.sha256,
      config,
      versions: VERSIONS,
    },
  };
  log.sync();
  log.line(`saved ${await saveCheckpoint(config.out_dir, content, config.keep_checkpoints, ranks)}`);
}

/** The only rank of a process on its own. */
const ALONE = { rank: 0, world_size: 1, meet: <T>(_what: string, work: Promise<T>) => work };
const PROFILE_STEPS = 4;

/** Whether something that happens every `interval` steps (0 = never) happens after this one. */
function due(step: number, interval: number, always: boolean): boolean {
  return interval > 0 && (always || step % interval === 0);
}

/** Whether the model is evaluated, saved or sampled after a step, or the run ends with it. */
function isEventful(config: TrainConfig, step: number): boolean {
  const { eval_interval, save_interval, sample_interval, max_iters } = config;
  return step === max_iters ||
    [eval_interval, save_interval, sample_interval].some((n) => due(step, n, false));
}

if (import.meta.main) await runMain(train);
