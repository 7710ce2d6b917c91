// What a training run says of itself: at its start, in run.json, and with each step.
import { formatCount, formatFlops } from "../base/format.ts";
import loam from "../deno.json" with { type: "json" };
import type { Assumed, Dataset } from "../data/bins.ts";
import type { Loader } from "../data/loader.ts";
import { device } from "../ffi/library.ts";
import type { TrainerState } from "../runtime/trainer_state.ts";
import { memoryByKind } from "../runtime/memory.ts";
import { type Log, memoryBytes, type RunFacts, type StepMetrics } from "../runtime/metrics.ts";
import type { Parameters, StepResult } from "../runtime/optim.ts";
import { type Peak, peakFlops, utilization } from "../runtime/peak.ts";
import { tokensPerStep } from "./consumed.ts";
import type { LlamaConfig } from "./llama.ts";
import { measureModel, modelSize } from "./plan.ts";

/** What is read here of the variables of train.ts. */
export type RunConfig = {
  batch_size: number;
  gradient_accumulation_steps: number;
  block_size: number;
  out_dir: string;
};

/** Of what a run depends on. */
export const VERSIONS: Record<string, string> = { loam: loam.version, deno: Deno.version.deno };

/** The peak of the devices of all ranks, which are taken to be alike. */
export function peakOfAll(world_size: number): Peak | undefined {
  const peak = peakFlops();
  if (peak === undefined || world_size === 1) return peak;
  return { ...peak, flops: world_size * peak.flops, how: `${world_size} x ${peak.how}` };
}

/** A line of metrics.jsonl. step: from 1; trained: tokens up to and with it; step_ms: what it took. */
export function stepMetrics(
  config: RunConfig,
  c: LlamaConfig,
  peak: Peak | undefined,
  step: number,
  trained: number,
  step_ms: number,
  result: StepResult,
): StepMetrics {
  const tokens = tokensPerStep(config), seconds = step_ms / 1000;
  return {
    step,
    loss: result.loss,
    lr: Number(result.learning_rate.toPrecision(7)), // all digits that float32 has
    grad_norm: result.grad_norm,
    tokens: trained,
    tokens_per_sec: tokens / seconds,
    step_ms,
    mfu: utilization(peak, measureModel(c).flops_per_token * tokens / seconds),
    memory_bytes: memoryBytes(),
    skipped: result.skipped,
  };
}

/** What run.json says before the first step. */
export function runFacts(
  config: RunConfig,
  c: LlamaConfig,
  description: string,
  parameters: Parameters,
  data: Loader,
  peak: Peak | undefined,
  after: number,
): RunFacts {
  return {
    started: new Date().toISOString(),
    after,
    device: description,
    gpu: device.uuid ?? null,
    model: modelSize(c),
    parameters: parameters.count(),
    tokens_per_step: tokensPerStep(config),
    tokens_per_epoch: data.n_windows * c.block_size,
    flops_per_token: measureModel(c).flops_per_token,
    peak_flops: peak?.flops ?? null,
    memory: memoryByKind(),
    versions: VERSIONS,
  };
}

/** What will be trained, on what, before the first step. order: of the data, as Loader.order() has it. */
export function banner(
  log: Log,
  config: RunConfig & { init_from: string },
  c: LlamaConfig,
  device: string,
  peak: Peak | undefined,
  saved: TrainerState | undefined,
  order: string,
): void {
  log.line(Object.entries(config).map(([name, value]) => `${name}=${value}`).join(" "));
  log.line(`device ${device}`);
  log.line(
    `model ${modelSize(c)}; ${(measureModel(c).flops_per_token / 1e9).toFixed(4)} GFLOP a token, ${
      tokensPerStep(config)
    } tokens a step`,
  );
  log.line(
    peak
      ? `MFU against ${formatFlops(peak.flops)}, ${peak.how}`
      : "MFU n/a: no peak is known for this device",
  );
  if (!saved && config.init_from) log.line(`beginning with the weights in ${config.init_from}`);
  if (!saved) return log.line(`writing to ${config.out_dir}`);
  const changed = changes(config, saved.config);
  if (changed.length > 0) log.line(`changed since the checkpoint: ${changed.join(", ")}`);
  if (order !== saved.order) {
    log.line("the windows come in another order than before: it begins with its first one");
  }
  log.line(`going on in ${config.out_dir} after step ${saved.step}`);
}

/** What the data is, in one line, with what of it is only assumed. */
export function dataFacts(dataset: Dataset): string {
  const { dir, format, tokenizer, vocab_size, bos, eot, assumed } = dataset;
  const mark = (what: Assumed) => assumed.includes(what) ? " (assumed)" : "";
  const tokens = (split: "train" | "val") =>
    formatCount(dataset[split].reduce((sum, { tokens }) => sum + tokens, 0));
  const name = tokenizer === null ? "not known" : tokenizer + mark("tokenizer");
  return `${dir}: ${format} bins${
    assumed.includes("dtype") ? " of uint16 (assumed)" : ""
  }, tokenizer ${name}, ` +
    `vocab_size ${vocab_size}${mark("vocab_size")}, ${bos === eot ? "" : `bos ${bos}, `}eot ${eot}${
      mark("eot")
    }; ` +
    `${tokens("train")} train and ${tokens("val")} val tokens`;
}

/** What is known of the data, what is taken for granted, and whether there is enough of it to evaluate on. */
export function dataLines(
  config: RunConfig & { eval_batches: number; eval_interval: number },
  dataset: Dataset,
  val: Loader | undefined,
): string[] {
  const lines = [`data ${dataFacts(dataset)}`];
  if (config.eval_interval === 0) return lines;
  if (val === undefined) return [...lines, "no val split: val_loss is not computed"];
  const { eval_batches, batch_size, block_size } = config, wanted = eval_batches * batch_size;
  if (val.n_windows < wanted) {
    lines.push(
      `warning: the val split has ${val.n_windows} windows of ${block_size} tokens, eval_batches x batch_size are ` +
        `${wanted}; val_loss is the mean of ${val.n_windows}: prepare with a larger --val_fraction`,
    );
  }
  return lines;
}

/** What differs from the configuration that the checkpoint was trained with: "batch_size 8 -> 4". */
function changes(config: RunConfig, before: Record<string, unknown>): string[] {
  const transient = ["resume", "eval_only", "dry_run", "debug", "serve_port"];
  return Object.entries(config).filter(([name, value]) => !transient.includes(name) && before[name] !== value)
    .map(([name, value]) => `${name} ${before[name]} -> ${value}`);
}
