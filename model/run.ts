// The parts of a training run, made in the order in which they may fail, and what a run says as it begins.
import type { Values } from "../base/flags.ts";
import { UserError } from "../base/errors.ts";
import type { Dataset } from "../data/bins.ts";
import { Loader } from "../data/loader.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import type { Ranks } from "../dist/ranks.ts";
import { tokenSource } from "../ffi/library.ts";
import { settle } from "../runtime/checkpoint.ts";
import { type DebugMode, setDebug } from "../runtime/debug.ts";
import { Inputs } from "../runtime/inputs.ts";
import { type Log, logOfRank, requireIdle } from "../runtime/metrics.ts";
import { AdamW, type LoadValues, Parameters } from "../runtime/optim.ts";
import type { Saver } from "../runtime/saver.ts";
import type { Schedule } from "../runtime/schedule.ts";
import { readTrainerState, type TrainerState } from "../runtime/trainer_state.ts";
import { openModel, resumeFrom, type RunToSave, trainsOnHalf, weightsFor } from "./checkpoint.ts";
import { keepsApart } from "./documents.ts";
import { init, type Llama, type LlamaConfig } from "./llama.ts";
import { cutsOf, type PreparedTask, tasksOf } from "./tasks.ts";
import { type Base, baseOf } from "./lora.ts";
import type { StepSettings } from "./plan.ts";
import { Progress } from "./progress.ts";
import { banner, dataLines, peakOfAll, runFacts, VERSIONS } from "./report.ts";
import { type DirectoryConfig, openRun, requireSameData } from "./run_directory.ts";
import type { Stop } from "./stop.ts";
import { describeTrained, trainsOf } from "./trained.ts";

/** What is read here of the variables of train.ts. */
export type RunConfig = RunToSave["config"] & DirectoryConfig & StepSettings & Schedule & {
  init_from: string;
  preset: string;
  train: string;
  document_mask: string;
  zero_stage: number;
  overlap: boolean;
  eval_batches: number;
  eval_tasks: string;
  sample_tokens: number;
  sample_temperature: number;
  serve_port: number;
};

/** What a run needs before its directory is open. */
export type Parts = {
  config: RunConfig;
  c: LlamaConfig;
  base: Base | undefined; // that adapters are for; the first rank writes it down
  dataset: Dataset;
  tokenizer: Tokenizer | undefined;
  data: Loader;
  val: Loader | undefined; // undefined where nothing is to be evaluated, or nothing there to do it on
  tasks: PreparedTask[]; // that the model is scored on where it is evaluated
  inputs: Inputs;
  model: Llama;
  optimizer: AdamW;
  ranks: Ranks;
  checkpoint: string | undefined; // what the run goes on from
  saved: TrainerState | undefined; // its trainer_state.json
};

/** All that the loop of train.ts works with. */
export type Run = Parts & { stop: Stop; log: Log; progress: Progress; saver: Saver };

/**
 * Takes memory for the model, and reads weights and optimizer from a checkpoint if the run goes on from one,
 * weights alone if it begins with those of a model.
 * Throws UserError where the run directory is in use, and for a checkpoint that is not of this model and data.
 */
export async function makeParts(
  config: RunConfig,
  c: LlamaConfig,
  dataset: Dataset,
  tokenizer: Tokenizer | undefined,
  checkpoint: string | undefined,
  ranks: Ranks,
): Promise<Parts> {
  const { batch_size, block_size, seed, zero_stage, eval_only } = config, { rank, world_size } = ranks;
  setDebug(config.debug as DebugMode);
  const shape = { batch_size, block_size, vocab_size: c.vocab_size };
  const evaluates = eval_only || config.eval_interval > 0 && dataset.val.length > 0;
  const data = new Loader(tokenSource, dataset, { ...shape, split: "train" });
  const val = evaluates ? new Loader(tokenSource, dataset, { ...shape, split: "val" }) : undefined;
  if (val) requireTrained(config, val);
  const tasks = tasksOf(config, tokenizer, c);
  const micro_steps = ranks.share(config.gradient_accumulation_steps).length;
  const inputs = new Inputs(batch_size, block_size, micro_steps, keepsApart(config));
  const model = init(c), from = checkpoint === undefined ? config.init_from : c.lora && checkpoint;
  const readsAll = rank === 0 || eval_only; // else openLog() compares what the others have
  const stored = from ? openModel(from, readsAll) : undefined; // of LoRA that goes on: its base too
  const load = stored ? weightsFor(model, c, stored) : checkpoint === undefined ? undefined : loadLater;
  const isNew = c.lora && stored && rank === 0 && !stored.base;
  const base = isNew ? baseOf(stored.directory, stored.weights, stored.sums) : stored?.base;
  const trains = trainsOf(model, config.train);
  const ofRank = { rank, world_size, zero_stage }, half = stored && trainsOnHalf(c, stored);
  const parameters = new Parameters(model, { seed, train: true, trains, load, half, ...ofRank });
  const optimizer = new AdamW(parameters, config);
  if (rank === 0 && !eval_only) requireIdle(config.out_dir);
  const saved = checkpoint ? readTrainerState(checkpoint) : undefined;
  if (checkpoint && saved) {
    requireSameData(config, dataset, saved);
    await resumeFrom(checkpoint, c, optimizer);
  }
  return {
    config,
    c,
    base,
    dataset,
    tokenizer,
    data,
    val,
    tasks,
    inputs,
    model,
    optimizer,
    ranks,
    checkpoint,
    saved,
  };
}

/** Of a run that goes on resumeFrom() brings all values: making others by chance first took as long as that. */
const loadLater: LoadValues = () => undefined;

/** A val_loss over no token would be 0, and the best one. */
function requireTrained({ data_dir, block_size, eval_batches, eval_only }: RunConfig, val: Loader): void {
  const batches = Math.min(eval_only ? Infinity : eval_batches, val.n_evalBatches);
  for (let i = 0; i < batches; i++) {
    if (val.evalWeight(i) > 0) return;
  }
  throw new UserError(
    `Cannot evaluate on ${data_dir}: no token in the first ${batches} batches of its val split is trained on; ` +
      `use a larger --block_size than ${block_size} or more --eval_batches, or --eval_interval=0 for no val_loss`,
  );
}

/** The log of the first rank in the run directory, which it opens; that of another one. All must begin alike. */
export async function openLog({ config, c, dataset, optimizer, ranks, saved }: Parts): Promise<Log> {
  if (!ranks.isAlone) { // else nobody compares them, and a sum of the weights takes about a second a GB
    const weights = optimizer.parameters.sha256();
    await ranks.requireSame({ config, model: c, data: dataset.sha256, versions: VERSIONS, weights });
  }
  return ranks.rank === 0 ? await openRun(config, saved) : logOfRank(ranks.rank, config.out_dir);
}

/** Says what will be trained, on what, and what differs from the defaults. From here on a signal ends the run in good order. */
export function begin(
  parts: Parts,
  stop: Stop,
  log: Log,
  saver: Saver,
  description: string,
  defaults: Values,
): Run {
  stop.listen();
  const { config, c, dataset, data, val, optimizer, ranks, saved } = parts;
  if (ranks.rank === 0) settle(config.out_dir, saved, config.keep_checkpoints);
  const peak = peakOfAll(ranks.world_size);
  const facts = runFacts(config, c, description, optimizer.parameters, data, peak, saved?.step ?? 0);
  log.describe(facts);
  banner(log, config, defaults, c, description, peak, saved, data.order(config.seed));
  if (config.train || c.lora) log.line(`training ${describeTrained(parts.model, config.train)}`);
  for (const line of dataLines(config, dataset, val)) log.line(line);
  for (const text of cutsOf(parts.tasks, c)) log.warn(text);
  return { ...parts, stop, log, saver, progress: new Progress({ ...parts, stop, log, saver, peak, facts }) };
}
