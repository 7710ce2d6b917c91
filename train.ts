// Trains a Llama. Edit the variables below or set them on the command line: deno task train --preset=small --max_iters=200
import { runMain, UserError } from "./base/errors.ts";
import { between, each, help, type Ranges, whole } from "./base/flags.ts";
import { openDataset, templateIn, tokenizerOf } from "./data/bins.ts";
import { openData, verifyShards } from "./data/mix.ts";
import { joinRanks, Ranks } from "./dist/ranks.ts";
import { findWorld } from "./dist/world.ts";
import { prepareToSave, saveRun, storedConfig } from "./model/checkpoint.ts";
import { takeChoices } from "./model/choices.ts";
import { chunkOf, configure, llamaConfig, presetOf } from "./model/configure.ts";
import { openAndDescribe } from "./model/device.ts";
import { chooseMask } from "./model/documents.ts";
import { dryRun } from "./model/dry_run.ts";
import { evaluate, evaluateAll, sample } from "./model/evaluate.ts";
import { isGood, requireGoodEnd } from "./model/guard.ts";
import { tokenizerOfModel } from "./model/init_from.ts";
import { chooseDevice, device } from "./ffi/library.ts";
import { loss, RECOMPUTE, type Recompute } from "./model/llama.ts";
import { chooseBatch, orDoesNotFit } from "./model/plan.ts";
import { usage } from "./model/presets.ts";
import { due } from "./model/progress.ts";
import { begin, makeParts, openLog, type Parts, type Run } from "./model/run.ts";
import { howToGoOn } from "./model/run_directory.ts";
import { Stop } from "./model/stop.ts";
import { resolveCheckpoint } from "./runtime/checkpoint.ts";
import { tapeListing } from "./runtime/debug.ts";
import { Saver } from "./runtime/saver.ts";
import { learningRate, SCHEDULES } from "./runtime/schedule.ts";
import { backward, beginMasks, endStep } from "./runtime/tape.ts";
import { ServerBeside } from "./serve/beside.ts";

/** Every variable of a run. --name=value overrides one; --preset=NAME overrides several (model/presets.ts). */
export const variables = {
  preset: "", // "" = gpt-270m on a GPU, tiny on a CPU; with --init_from finetune, with --lora_rank lora
  device: "", // cuda or cpu; "" = cuda if its library is built and a GPU answers, else cpu
  data_dir: "data/demo", // made by deno task prepare; a mix: data/fineweb:0.8,data/code:0.2
  verify_data: true, // compare the sha256 of each shard with meta.json at start, once a machine, at 1 to 2 GB/s a core
  out_dir: "", // "" = runs/<date>-<preset>
  resume: "", // a run directory to go on with; auto = the one in out_dir if it holds a checkpoint, else start there
  init_from: "", // begin with these weights: a model directory of Hugging Face's, or a run or checkpoint of loam's
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
  batch_size: 4, // windows of block_size tokens in one micro-step; more where a GPU has the memory free
  gradient_accumulation_steps: 32, // micro-steps of a step, shared by all ranks
  document_mask: "auto", // documents in a window do not see each other: true, false, or auto = where they are conversations

  // optimizer
  optimizer: "adamw", // adamw, or muon for the matrices in layers and AdamW for all else
  learning_rate: 3e-4, // highest, after the warm-up
  schedule: "cosine", // how it falls after that: cosine, wsd (stable, then a line in the last cooldown_iters), linear, constant
  min_lr: 3e-5, // where it ends
  warmup_iters: 2000, // steps in which it rises from 0
  cooldown_iters: 0, // of wsd; 0 = a fifth of max_iters
  max_iters: 100_000, // steps in all
  beta1: 0.9, // decay of Adam's mean of gradients
  beta2: 0.95, // and of their squares
  eps: 1e-8, // added to the root of Adam's mean square
  muon_momentum: 0.95, // decay of Muon's mean of gradients
  weight_decay: 0.1, // on matrices, never on norms
  grad_clip: 1.0, // 0 = off
  train: "", // weights to train, such as layers.*.qkv_proj,layers.*.o_proj; the others are frozen; "" = all
  lora_rank: 0, // LoRA: rank of the adapters that are trained beside the weights of --init_from, which are frozen; 0 = off
  lora_alpha: 32, // what an adapter adds is multiplied by lora_alpha / lora_rank
  lora_targets: "qkv_proj,o_proj,gate_up_proj,down_proj", // matrices that get one
  max_skipped: 10, // stop after so many non-finite steps in a row

  // what happens how often, in steps; 0 = never
  log_interval: 1, // lines on the screen and in log.txt, means since the last one; metrics.jsonl has every step
  eval_interval: 250, // loss on the val split
  eval_batches: 20, // the same windows of the val split every time
  eval_tasks: "", // files of tasks, with commas between them, that are scored then too: docs/evaluation.md
  sample_interval: 1000, // text written by the model
  sample_tokens: 200, // of each such text
  sample_temperature: 0.8, // 0 = the likeliest token always
  save_interval: 1000, // checkpoints
  keep_checkpoints: 3, // the newest so many, two at least, and the best
  quiet: false, // only warnings on the screen; log.txt has every line
  tensorboard: false, // write TensorBoard event files too

  // machine
  threads: 0, // CPU threads, 0 = one for each CPU that this process may use
  bf16_gemm: "auto", // CPU: round the inputs of matrix products to bfloat16: true, false, or auto = where it has a unit for it
  blas: "auto", // CPU: builtin, onednn, mkl, openblas, blis, accelerate; auto = builtin with AVX512-BF16, else the first found
  attention: "", // GPU: portable or hopper kernels; "" = hopper on H100 and H200 where it agrees with portable at start
  self_check: true, // GPU: compare every kernel of a step with the CPU's at start, in about a second
  head_chunk: 2048, // rows whose logits are in memory at a time; 512 on a CPU for more than 8192 tokens, where none is given
  recompute: "norm_swiglu", // what backward computes again to save memory: none, norm_swiglu, gate_up, block

  // several processes, started by torchrun, mpirun or srun
  zero_stage: 1, // 1: each rank keeps optimizer state of a part of the weights; 0: of all
  overlap: true, // exchange gradients and weights of the ranks beside the passes that make and read them; false: between, to the same bits
  dist_timeout_s: 600, // a rank that the others wait for so long ends the run; 0 = never

  // a dashboard, /stats and /metrics at http://127.0.0.1:<serve_port>/ while it trains; see docs/serve.md
  serve_port: 0, // 0 = off

  // instead of training
  eval_only: false, // mean loss over the whole val split of the model to --resume
  dry_run: false, // model size, memory, FLOPs, speed and the first batch, then stop
  ranks: 0, // with --dry_run: plan for one of so many; 0 = of those that the launcher started
  debug: "", // --debug: stop at the first non-finite value; --debug=tape|profile: list or time the ops
};

/** The variables above, as the command line sets them. */
export type TrainConfig = typeof variables;

/** What the numbers may be, and texts that are one of a few. Sizes end far beyond any model. */
const ranges: Ranges<TrainConfig> = {
  ...each(whole(1), "block_size", "batch_size", "max_iters"),
  ...each(whole(1), "head_chunk", "eval_batches", "keep_checkpoints"),
  ...each(whole(0), "seed", "max_skipped", "sample_tokens", "dist_timeout_s"),
  ...each(whole(0), "warmup_iters", "cooldown_iters"),
  ...each(whole(0), "log_interval", "eval_interval", "sample_interval", "save_interval"),
  ...each(whole(1, 2 ** 20), "n_embd", "n_head", "n_kv_head", "gradient_accumulation_steps"),
  ...each(whole(0, 2 ** 20), "head_dim", "n_inner", "ranks", "lora_rank"),
  ...each(between(0), "learning_rate", "min_lr", "weight_decay", "grad_clip", "sample_temperature"),
  ...each(between(0, 0.999999), "beta1", "beta2", "muon_momentum"),
  lora_alpha: between(0, 1e6, 0),
  n_layer: whole(1, 10_000),
  rope_theta: between(1),
  norm_eps: between(1e-12),
  eps: between(1e-30), // not 0 in float32: a value without a gradient would become 0 / 0
  threads: whole(0, 1024),
  zero_stage: whole(0, 1),
  serve_port: whole(0, 65535),
  optimizer: ["adamw", "muon"],
  schedule: SCHEDULES,
  attention: ["", "auto", "portable", "hopper"],
  recompute: RECOMPUTE,
  bf16_gemm: ["auto", "true", "false"],
  document_mask: ["auto", "true", "false"],
  debug: ["", "check", "tape", "profile"],
};

/** Trains up to max_iters, or to a signal. */
async function loop(run: Run): Promise<"finished" | "stopped"> {
  const { config, c, data, val, tasks, inputs, model, optimizer, ranks, stop, log, progress, saver } = run;
  const { head_chunk, max_iters } = config, recompute = config.recompute as Recompute, { starts } = inputs;
  const micro_steps = ranks.share(config.gradient_accumulation_steps); // this rank's of those of a step
  const reduces = config.overlap && !ranks.isAlone;
  let step = progress.before, saved_step = step;
  if (step >= max_iters) log.line(`nothing to do: step ${step} of max_iters ${max_iters} is done`);
  if (step > log.sampled && due(step, config.sample_interval, step >= max_iters)) await sample(run, step); // it was stopped
  if (config.save_interval > 0 && step < max_iters) await prepareToSave(run);
  progress.skipTime();

  while (step < max_iters && !progress.stopping) {
    progress.begin(step + 1);
    const grad_scale = data.lossScale(progress.position(step, 0), config.gradient_accumulation_steps);
    let left = micro_steps.length;
    for (const micro of micro_steps) {
      if (stop.asked) break;
      const position = progress.position(step, micro);
      inputs.fill((x, y, starts) => data.trainBatch(x, y, position, starts));
      beginMasks(position); // of dropout()
      const l = loss(model, inputs.idx, inputs.targets, c, { grad_scale, head_chunk, starts, recompute });
      optimizer.addLoss(l, grad_scale, micro === micro_steps[0]);
      left--;
      backward(l, left === 0 && reduces ? optimizer.reducing(ranks) : undefined);
      endStep();
      await stop.look();
    }
    if (config.debug === "tape") {
      log.lines(tapeListing());
      return "stopped";
    }
    const own = progress.arrive(step + 1);
    await optimizer.stepTogether(learningRate(step, config), ranks, stop.wish(left === 0), own);
    const done = await progress.after(step + 1);
    step = progress.done;
    if (progress.isLeftOut) break;
    await saver.look(progress.last?.result.written ?? 0);
    if (!done) continue; // a GPU is given the next step before this one is looked at

    const isLast = step === max_iters;
    const saves = due(step, config.save_interval, isLast) && isGood(done);
    const evaluates = (val || tasks.length > 0) && !progress.stopping &&
      due(step, config.eval_interval, isLast || saves);
    if (evaluates) await evaluate(run, done);
    progress.report(done, evaluates || isLast || progress.stopping);
    if (saves && isGood(done) && !progress.stopping) {
      await saveRun(run, done);
      saved_step = step;
    }
    if (due(step, config.sample_interval, isLast) && !progress.stopping) await sample(run, step);
    if (progress.reportProfile(step)) return "stopped";
    progress.skipTime();
  }

  const { last } = progress;
  if (last) requireGoodEnd(config, last);
  if (progress.stopping && last && config.save_interval > 0 && saved_step < step) await saveRun(run, last);
  await saver.finish();
  if (!progress.stopping) {
    if (last) log.line(progress.summary());
    return "finished";
  }
  log.line(
    `stopped by ${stop.asked || "a signal to another rank"} after step ${step}; ${howToGoOn(config, step)}`,
  );
  return step < max_iters ? "stopped" : "finished";
}

/** One training run, from command-line arguments to the last checkpoint. */
export async function train(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./train.ts", { with: { type: "text" } });
    const values = presetOf(variables, args.filter((arg) => arg !== "--help"));
    return console.log(help(usage(values.preset), values, source));
  }
  const world = findWorld((name) => Deno.env.get(name));
  const { checkpoint, larger, isChunkGiven, ...configured } = configure(variables, ranges, args, world);
  let { config } = configured;
  if (config.dry_run && world.rank > 0) return; // one says it for all
  const dataset = openData(config.data_dir, openDataset);
  if (config.verify_data && world.local_rank === 0) await verifyShards(dataset);
  for (const one of [config, ...larger?.map(({ config }) => config) ?? []]) chooseMask(one, dataset);
  const from = checkpoint ?? (config.init_from && resolveCheckpoint(config.init_from));
  const base = from ? storedConfig(from) : undefined;
  const c = llamaConfig(config, dataset.vocab_size, base);
  if (!isChunkGiven && (config.device || chooseDevice(world.local_rank).name) === "cpu") {
    config.head_chunk = chunkOf(config.head_chunk, c.vocab_size);
  }
  const known = await tokenizerOf(dataset, checkpoint && templateIn(checkpoint));
  const tokenizer = config.init_from ? await tokenizerOfModel(from, c, dataset, known) : known;
  if (config.dry_run) {
    if (config.init_from) config.init_from = from; // of a run that goes on: where it began may be gone
    return await dryRun(config, config.ranks || world.world_size, larger, c, dataset, tokenizer);
  }
  const description = openAndDescribe(config.device, { ...config, index: world.local_rank });
  config.bf16_gemm = `${device.bf16_gemm ?? config.bf16_gemm}`; // what a resumed run has to keep
  if (device.library === "cpu") config.blas = device.blas!.split(" ")[0]!;
  const ranks = world.world_size > 1 ? await joinRanks(world, config.dist_timeout_s) : Ranks.alone();
  using stop = new Stop(ranks); // until all ranks have left: a late signal must not fail one of them
  try {
    const { problem, ...chosen } = await chooseBatch(config, larger, c, ranks);
    if (problem) throw new UserError(problem);
    config = chosen.config;
    config.out_dir = await ranks.enter(config.out_dir);
    const parts = await makeParts(config, c, dataset, tokenizer, checkpoint, ranks);
    if (config.eval_only) await evaluateAll(parts);
    else await trainIn(parts, stop, description, chosen.reason);
    await ranks.finalize();
    if (!ranks.isAlone) Deno.exit(); // at once: Deno's threads would end in code that MPI_Finalize has unloaded
  } catch (error) {
    ranks.fail(orDoesNotFit(error, c, { ...config, ...world }));
  }
}

/** Opens the run directory, and the dashboard where it is wanted, and trains. */
async function trainIn(parts: Parts, stop: Stop, description: string, reason: string): Promise<void> {
  const { config, c, ranks } = parts;
  await using server = ranks.rank === 0 && config.serve_port > 0 ? new ServerBeside() : undefined;
  using log = await openLog(parts);
  ranks.onFailure = (error) => log.fail(error);
  try {
    await using saver = new Saver(ranks, (path) => log.line(`saved ${path}`));
    const run = begin(parts, stop, log, saver, description, variables);
    if (reason) log.line(reason);
    for (const text of await takeChoices(run)) log.warn(text);
    server?.serve(config.out_dir, config.serve_port, (line) => log.line(line));
    log.end(await loop(run).catch((error) => run.progress.fail(error)));
  } catch (error) {
    const cause = orDoesNotFit(error, c, { ...config, world_size: ranks.world_size });
    log.fail(cause);
    throw cause;
  }
}

if (import.meta.main) await runMain(train);
