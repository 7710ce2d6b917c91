// From the variables of train.ts and the command line to a configuration that holds together.
import { basename } from "node:path";
import { UserError } from "../base/errors.ts";
import { meant } from "../base/suggest.ts";
import { holdsRun, listCheckpoints, resolveCheckpoint, runOfCheckpoint } from "../runtime/checkpoint.ts";
import { chooseDevice } from "../ffi/library.ts";
import { type Ranges, readFlags, requireRanges, type Values } from "../base/flags.ts";
import { readTrainerState } from "../runtime/trainer_state.ts";
import { requireIdle } from "../runtime/metrics.ts";
import { cooldownOf, learningRate, type Schedule } from "../runtime/schedule.ts";
import type { World } from "../dist/world.ts";
import { requireDevice } from "./device.ts";
import { directoryOf } from "./download.ts";
import { shapeOf } from "./init_from.ts";
import type { LlamaConfig } from "./llama.ts";
import { loraOf } from "./lora.ts";
import { type Larger, largerBatches, type PresetName, presets } from "./presets.ts";

/** The variables that configure() itself reads; train.ts has more. */
export type RunVariables = Values & Schedule & {
  preset: string;
  resume: string;
  init_from: string;
  train: string;
  lora_rank: number;
  lora_alpha: number;
  lora_targets: string;
  optimizer: string;
  eval_only: boolean;
  dry_run: boolean;
  ranks: number;
  device: string;
  debug: string;
  recompute: string;
  out_dir: string;
  data_dir: string;
  n_layer: number;
  n_embd: number;
  n_head: number;
  n_kv_head: number;
  head_dim: number;
  n_inner: number;
  block_size: number;
  rope_theta: number;
  norm_eps: number;
  eval_interval: number;
  sample_interval: number;
  save_interval: number;
};

/**
 * A configuration and where it comes from: checkpoint is set when a run goes on. larger: what may take its place, the first that
 * suits, where a GPU has so many bytes free; undefined where the batch does not follow the memory. isChunkGiven: head_chunk is
 * that of the command line or of the run that goes on.
 */
export type Configured<T> = {
  config: T;
  checkpoint: string | undefined;
  isChunkGiven: boolean;
  larger?: Larger<T>[];
};

const BARE = { debug: "check", bf16_gemm: "true", document_mask: "true" }; // what each means without a value
// Always, by a run that goes on.
const KEPT = [
  "preset",
  "out_dir",
  "init_from",
  "train",
  "lora_rank",
  "lora_alpha",
  "lora_targets",
  "optimizer",
] as const;
const NOT_KEPT = { eval_only: false, dry_run: false, ranks: 0, debug: "" }; // by a run that goes on

/**
 * defaults, then what the run to resume was trained with or else the preset, then the command line. The preset where none is
 * named is finetune with --init_from, whose model has its own shape, else gpt-270m on a GPU and tiny on a CPU. Throws UserError
 * for unknown names and values that make no sense.
 */
export function configure<T extends RunVariables>(
  defaults: T,
  ranges: Ranges<T>,
  args: string[],
  { world_size, local_rank }: Pick<World, "world_size" | "local_rank"> = { world_size: 1, local_rank: 0 },
): Configured<T> {
  const overrides = readFlags(args, defaults, { ranges, bare: BARE });
  if (overrides.out_dir) overrides.out_dir = overrides.out_dir.replace(/(?<=.)\/+$/, ""); // as the checkpoints of a run have it
  if (overrides.init_from?.startsWith("hf://")) overrides.init_from = directoryOf(overrides.init_from);
  const resume = overrides.resume === "auto" ? newestOf(overrides.out_dir) : overrides.resume;
  const planned = overrides.ranks || world_size; // ranks
  const check = (config: T) => checkConfig(config, ranges, planned);
  if (overrides.resume === "") {
    throw new UserError("Cannot resume: --resume needs a run directory, such as --resume=runs/c4");
  }
  if (resume) {
    const checkpoint = findCheckpoint(resume);
    const saved = savedConfig(checkpoint, defaults, overrides);
    for (const name of KEPT) {
      const isItself = name === "out_dir" && overrides.out_dir === runOfCheckpoint(resume);
      if (
        Object.hasOwn(saved, name) && overrides[name] !== undefined && overrides[name] !== saved[name] &&
        !isItself
      ) {
        throw new UserError(
          `Cannot set ${name} with --resume: the run in ${resume} keeps its own; leave --${name} out`,
        );
      }
    }
    const config = { ...defaults, ...saved, ...NOT_KEPT, ...overrides };
    if (!config.eval_only && !config.dry_run) requireNewest(checkpoint, resume);
    requireSameCooldown(checkpoint, saved, config);
    return { config: check({ ...config, out_dir: runOfCheckpoint(resume) }), checkpoint, isChunkGiven: true };
  }
  if (overrides.eval_only && !overrides.init_from) {
    throw new UserError(
      "Cannot evaluate without a model: name one with --resume=runs/... or --init_from=DIRECTORY",
    );
  }
  const preset = withPreset(defaults, overrides, local_rank), { init_from, block_size } = preset;
  const config = init_from ? { ...preset, ...shapeOf(init_from, overrides, block_size) } : preset;
  const out_dir = config.out_dir || freshRunDirectory(config.preset);
  const isGiven = (["batch_size", "gradient_accumulation_steps"] as const).some((name) =>
    Object.hasOwn(overrides, name)
  );
  const isChunkGiven = Object.hasOwn(overrides, "head_chunk");
  const made = { config: check({ ...config, out_dir }), checkpoint: undefined, isChunkGiven };
  if (config.preset !== "gpt-270m" || isGiven) return made;
  const suiting = largerBatches.filter((batch) => batch.gradient_accumulation_steps % planned === 0); // as much for each rank
  const larger = suiting.map(({ from_bytes, ...batch }) => (
    { from_bytes, config: check({ ...config, ...batch, ...overrides, out_dir }) }
  ));
  return { ...made, larger };
}

/**
 * How many rows of logits a new run on a CPU has in memory at a time where none are given: fewer of a large vocabulary, of
 * which 2048 rows take much memory for little time (docs/speed.md).
 */
export function chunkOf(head_chunk: number, vocab_size: number): number {
  return vocab_size > 8192 ? Math.min(head_chunk, 512) : head_chunk;
}

/** The values of the variables that a new run with these arguments has, for --help. Throws UserError as configure(). */
export function presetOf<T extends RunVariables>(defaults: T, args: string[]): T {
  return withPreset(defaults, readFlags(args, defaults, { bare: BARE }), 0);
}

/** defaults, the preset, then overrides. */
function withPreset<T extends RunVariables>(defaults: T, overrides: Partial<T>, local_rank: number): T {
  const device = (overrides.device ?? defaults.device) || chooseDevice(local_rank).name;
  const usual = overrides.lora_rank
    ? "lora"
    : overrides.init_from
    ? "finetune"
    : device === "cpu"
    ? "tiny"
    : "gpt-270m";
  const preset = overrides.preset || usual;
  if (!Object.hasOwn(presets, preset)) {
    throw new UserError(
      `Cannot use preset ${preset}: there is none of that name; ${meant(preset, Object.keys(presets))}`,
    );
  }
  return { ...defaults, ...presets[preset as PresetName], ...overrides, preset };
}

/** What the run was trained with. Every variable is there with its type and no other is, but for those that are given anew. */
function savedConfig<T extends Values>(checkpoint: string, defaults: T, overrides: Partial<T>): T {
  const { config } = readTrainerState(checkpoint);
  if (typeof config.bf16_gemm === "boolean") config.bf16_gemm = `${config.bf16_gemm}`; // as it was before there was auto
  const fits = (value: unknown, like: unknown) =>
    typeof value === typeof like && (typeof value !== "number" || Number.isFinite(value));
  const wrong = (what: string) =>
    new UserError(`Cannot resume ${checkpoint}: in its trainer_state.json ${what}`);
  for (const name of Object.keys(config)) {
    if (Object.hasOwn(defaults, name)) continue;
    throw wrong(
      `config has ${
        name.slice(0, 40)
      }, which is no variable of train.ts; go on with the train.ts that wrote it`,
    );
  }
  const odd = Object.entries(defaults).filter(([name, like]) =>
    !Object.hasOwn(overrides, name) && !Object.hasOwn(NOT_KEPT, name) && !fits(config[name], like)
  );
  const flags = odd.map(([name, like]) => `--${name}=${like}`).join(" ");
  if (odd.length > 1 && odd.every(([name]) => !Object.hasOwn(config, name))) { // of a version that had fewer variables
    throw wrong(`config lacks ${odd.map(([name]) => name).join(", ")}; set them: ${flags}`);
  }
  for (const [name, like] of odd) {
    const value = JSON.stringify(config[name])?.slice(0, 40) ?? "missing";
    throw wrong(`config.${name} is ${value}, should be a ${typeof like}; set it: --${name}=${like}`);
  }
  return config as T;
}

/** What --resume=auto means: the run in out_dir if it has saved a checkpoint, else none. */
function newestOf(out_dir: string | undefined): string | undefined {
  if (!out_dir) {
    throw new UserError(
      "Cannot resume: --resume=auto needs to know the run, name it with --out_dir=runs/...",
    );
  }
  return listCheckpoints(out_dir).length > 0 ? out_dir : undefined;
}

/** runs/2026-11-22-tiny, or -2, -3, ... where that is taken. */
function freshRunDirectory(preset: string): string {
  const base = `runs/${new Date().toISOString().slice(0, 10)}-${preset}`;
  for (let n = 1;; n++) {
    const path = n === 1 ? base : `${base}-${n}`;
    if (!holdsRun(path)) return path;
  }
}

function findCheckpoint(path: string): string {
  const checkpoint = resolveCheckpoint(path);
  const run = runOfCheckpoint(path);
  if (!listCheckpoints(run).length) {
    throw new UserError(
      `Cannot resume ${path}: it is a model, not a run; it has no checkpoints/ with optimizer state`,
    );
  }
  return checkpoint;
}

/** Steps after an older checkpoint would be mixed with those that led to newer ones. */
function requireNewest(checkpoint: string, resume: string): void {
  const run = runOfCheckpoint(resume), newest = `${run}/checkpoints/${listCheckpoints(run).at(-1)}`;
  if (basename(checkpoint) === basename(newest)) return;
  requireIdle(run); // the newer one may be of a process that trains there
  throw new UserError(
    `Cannot go on from ${checkpoint}: the run holds newer checkpoints, up to ${newest}; remove them first`,
  );
}

/**
 * A wsd schedule is made longer before its cooldown, never amid it: its rate would jump. The rate of the last step done is to be
 * the same with the number of steps that the run had and with that which it gets.
 */
function requireSameCooldown(checkpoint: string, saved: Schedule, config: Schedule): void {
  if (saved.schedule !== "wsd" || config.schedule !== "wsd") return;
  const { step } = readTrainerState(checkpoint), { max_iters, cooldown_iters } = saved;
  const before = { ...config, max_iters, cooldown_iters };
  const rate = (s: Schedule) => Number(learningRate(step - 1, s).toPrecision(3));
  if (rate(before) === rate(config)) return;
  const begins = (s: Schedule) => `at step ${s.max_iters - cooldownOf(s)} of ${s.max_iters}`;
  throw new UserError(
    `Cannot resume ${checkpoint}: its cooldown begins ${begins(before)}, now ${begins(config)}, and after ` +
      `step ${step} the learning rate would jump from ${rate(before)} to ${
        rate(config)
      }; leave max_iters and ` +
      `cooldown_iters as they were, or begin a run with --init_from=${checkpoint}`,
  );
}

function checkConfig<T extends RunVariables>(config: T, ranges: Ranges<T>, world_size: number): T {
  requireRanges(config, ranges);
  if (config.head_dim === 0 && config.n_embd % config.n_head !== 0) {
    throw new UserError(
      `Cannot build the model: n_embd ${config.n_embd} is not divisible by n_head ${config.n_head}; set head_dim or change one of them`,
    );
  }
  const rows = (config.batch_size as number) * config.block_size;
  if (rows > 2 ** 24) {
    throw new UserError(
      `Cannot use batch_size ${config.batch_size} with block_size ${config.block_size}: a micro-step of ${rows} tokens is more ` +
        `than ${2 ** 24}; use --gradient_accumulation_steps for larger batches`,
    );
  }
  const { schedule, warmup_iters, cooldown_iters, max_iters } = config, cooldown = cooldownOf(config);
  if (cooldown_iters > 0 && schedule !== "wsd") {
    throw new UserError(
      `Cannot use cooldown_iters ${cooldown_iters} with schedule ${schedule}: only wsd has a cooldown; set --schedule=wsd or --cooldown_iters=0`,
    );
  }
  if (schedule === "wsd" && warmup_iters + cooldown > max_iters) {
    throw new UserError(
      `Cannot use cooldown_iters ${cooldown}: with warmup_iters ${warmup_iters} that is more than max_iters ${max_iters}; set ` +
        "--warmup_iters or --cooldown_iters lower",
    );
  }
  if (config.min_lr > config.learning_rate && schedule !== "constant") {
    throw new UserError(
      `Cannot use min_lr ${config.min_lr}: it is above learning_rate ${config.learning_rate}, which falls to it; set --min_lr too`,
    );
  }
  if (config.lora_rank > 0 && config.train) {
    throw new UserError(
      `Cannot train ${config.train} with LoRA: its adapters alone are trained; leave --train or --lora_rank out`,
    );
  }
  if (config.lora_rank > 0 && !config.init_from) {
    throw new UserError(
      "Cannot train adapters without a base: LoRA is for a model that has learned something; name it with --init_from=DIRECTORY",
    );
  }
  if (config.ranks > 0 && !config.dry_run) {
    throw new UserError(
      `Cannot start ${config.ranks} ranks: --ranks plans for them, with --dry_run; start them with torchrun, mpirun or srun, see ` +
        "docs/distributed.md",
    );
  }
  const micro_steps = config.gradient_accumulation_steps as number;
  if (micro_steps < world_size) throw fewMicroSteps(config, micro_steps, world_size);
  requireDevice(config.device);
  if (config.debug !== "tape" && config.debug !== "profile") return config;
  const accumulation = config.debug === "tape" ? { gradient_accumulation_steps: world_size } : {}; // one micro-step
  return { ...config, ...accumulation, eval_interval: 0, sample_interval: 0, save_interval: 0 }; // training steps alone
}

/** Ranks without a micro-step would only cost time. Says what gives each one, and the same windows in a step where that is possible. */
function fewMicroSteps({ batch_size }: Values, micro_steps: number, world_size: number): UserError {
  const B = batch_size as number, rows = B * micro_steps;
  const fitting = Array.from({ length: B }, (_, i) => B - i).find((b) =>
    B % b === 0 && rows / b >= world_size
  );
  const flags = fitting === undefined
    ? `--gradient_accumulation_steps=${world_size} at least`
    : `--batch_size=${fitting} --gradient_accumulation_steps=${
      rows / fitting
    }, which is as many windows a step`;
  return new UserError(
    `Cannot share a step among ${world_size} ranks: gradient_accumulation_steps is ${micro_steps}, should be ${world_size} or ` +
      `more; start fewer ranks, or set ${flags}`,
  );
}

/**
 * The model that a configuration describes, for data with this vocabulary. base: the one that it began with or goes on with, for
 * what no variable says; a model that came with --init_from keeps its vocabulary and its longest sequence.
 */
export function llamaConfig(c: RunVariables, vocab_size: number, base?: LlamaConfig): LlamaConfig {
  const longest = base?.max_position_embeddings ?? base?.block_size ?? 0, lora = loraOf(c);
  return {
    ...base,
    ...(lora ? { lora } : {}),
    vocab_size: c.init_from && base ? base.vocab_size : vocab_size,
    n_layer: c.n_layer,
    n_embd: c.n_embd,
    n_head: c.n_head,
    n_kv_head: c.n_kv_head,
    head_dim: c.head_dim || c.n_embd / c.n_head,
    n_inner: c.n_inner || Math.ceil(8 * c.n_embd / 3 / 256) * 256, // 8/3 C keeps three matrices as large as GPT's two
    block_size: c.block_size,
    ...(c.init_from && longest > c.block_size ? { max_position_embeddings: longest } : {}),
    rope_theta: c.rope_theta,
    norm_eps: c.norm_eps,
    tie_word_embeddings: base?.tie_word_embeddings ?? true,
  };
}
