// What a training run says of itself: at its start, in run.json, and with each step.
import { formatCount, formatFlops, formatSeconds } from "../base/format.ts";
import loam from "../deno.json" with { type: "json" };
import type { Values } from "../base/flags.ts";
import { type Assumed, bitsPerByte, type Dataset, tokensIn } from "../data/bins.ts";
import type { Loader } from "../data/loader.ts";
import { device } from "../ffi/library.ts";
import type { TrainerState } from "../runtime/trainer_state.ts";
import { memoryByKind } from "../runtime/memory.ts";
import { type Log, memoryBytes, type RunFacts, type StepMetrics } from "../runtime/metrics.ts";
import type { Parameters, StepResult } from "../runtime/optim.ts";
import { type Peak, peakFlops, utilization } from "../runtime/peak.ts";
import { type BatchConfig, tokensPerStep } from "./consumed.ts";
import { keepsApart } from "./documents.ts";
import type { LlamaConfig } from "./llama.ts";
import { measureModel, modelSize } from "./plan.ts";
import { type PresetName, presets } from "./presets.ts";

/** What is read here of the variables of train.ts. */
export type RunConfig = BatchConfig & { out_dir: string };

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

/**
 * What will be trained, on what, before the first step. defaults: of the variables, as train.ts has them. order: of the data, as
 * Loader.order() has it.
 */
export function banner(
  log: Log,
  config: RunConfig & { preset: string; init_from: string },
  defaults: Values,
  c: LlamaConfig,
  device: string,
  peak: Peak | undefined,
  saved: TrainerState | undefined,
  order: string,
): void {
  const preset: Values = { ...defaults, ...presets[config.preset as PresetName] };
  const own = Object.entries(config).filter(([name, value]) => !SAID.includes(name) && value !== preset[name])
    .map(([name, value]) => ` ${name}=${value}`);
  log.line(`preset ${config.preset}${own.length > 0 ? ` with${own.join("")}` : ""}`);
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

const SAID = ["preset", "out_dir", "resume", "document_mask"]; // in a line of its own

/** What the data is, in one line, with what of it is only assumed. */
export function dataFacts(dataset: Dataset): string {
  const { dir, format, tokenizer, vocab_size, bos, eot, assumed } = dataset;
  const mark = (what: Assumed) => assumed.includes(what) ? " (assumed)" : "";
  const tokens = (split: "train" | "val") => formatCount(tokensIn(dataset[split]));
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
  config: RunConfig & { eval_batches: number; eval_interval: number; document_mask: string },
  dataset: Dataset,
  val: Loader | undefined,
): string[] {
  const lines = [`data ${dataFacts(dataset)}`], isChat = dataset.template !== undefined;
  if (keepsApart(config)) {
    const where = isChat ? "in each conversation" : `at each token ${dataset.bos}`;
    lines.push(`documents are kept apart: attention and positions begin anew ${where}`);
  }
  if (isChat) lines.push("conversations: the loss is that of what the assistant says");
  if (config.eval_interval === 0) return lines;
  if (val === undefined) return [...lines, "no val split: val_loss is not computed"];
  if (bitsPerByte(0, dataset) === undefined) {
    const why = dataset.val_bytes
      ? "only some tokens of the val split count"
      : "the bytes of text in the val split are not known";
    lines.push(`val_bpb is not computed: ${why}`);
  }
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

/** The lines of the steps, each with the means since the one before. */
export class StepLines {
  readonly #begun_ms: number;
  readonly #widths: number[] = []; // of the columns, so far
  #steps = 0;
  #seconds = 0;
  #tokens = 0;
  #peak = 0; // time times mfu
  #finite = { steps: 0, loss: 0, grad_norm: 0 };

  /**
   * before: the step that the run goes on after. evaluates: whether some steps have a val_loss. flops_per_token: as MFU counts
   * them. now: the time in ms.
   */
  constructor(
    readonly run: { max_iters: number; before: number; evaluates: boolean; flops_per_token: number },
    readonly now: () => number = () => performance.now(),
  ) {
    this.#begun_ms = now();
  }

  /** Takes a step into the next line. */
  add(m: StepMetrics): void {
    const seconds = m.step_ms / 1000;
    this.#steps++;
    this.#seconds += seconds;
    this.#tokens += m.tokens_per_sec * seconds;
    this.#peak += (m.mfu ?? 0) * seconds;
    if (!Number.isFinite(m.loss) || !Number.isFinite(m.grad_norm)) return;
    this.#finite.steps++;
    this.#finite.loss += m.loss;
    this.#finite.grad_norm += m.grad_norm;
  }

  /**
   * "step  220/3000 | loss 1.5562 | val 1.6102, 0.9843 bpb | norm 0.48 | 28,731 tok/s | 38% MFU, 89 GFLOP/s | 58 min left" after a step
   * that was added: loss, norm, speed and MFU of all steps since the line before. A step whose loss or norm is not finite counts as
   * skipped, and in the means only where there is no other.
   */
  line(last: StepMetrics): string {
    const line = this.text(last);
    [this.#steps, this.#seconds, this.#tokens, this.#peak] = [0, 0, 0, 0];
    this.#finite = { steps: 0, loss: 0, grad_norm: 0 };
    return line;
  }

  /** The same in between: the next line still has these steps. */
  text({ step, loss, grad_norm, val_loss, val_bpb, mfu, skipped }: StepMetrics): string {
    const { max_iters, before, evaluates, flops_per_token } = this.run, { steps, ...sums } = this.#finite;
    const tokens_per_sec = this.#tokens / this.#seconds, rate = formatFlops(flops_per_token * tokens_per_sec);
    const bpb = val_bpb === undefined ? "" : `, ${val_bpb.toFixed(4)} bpb`;
    const seconds = (this.now() - this.#begun_ms) / 1000,
      left = seconds * (max_iters - step) / (step - before);
    const cells = [
      `step ${String(step).padStart(String(max_iters).length)}/${max_iters}`,
      `loss ${(steps > 0 ? sums.loss / steps : loss).toFixed(4)}`,
      ...(evaluates ? [val_loss === undefined ? "".padEnd(10) : `val ${val_loss.toFixed(4)}${bpb}`] : []),
      `norm ${(steps > 0 ? sums.grad_norm / steps : grad_norm).toFixed(2)}`,
      `${formatCount(tokens_per_sec)} tok/s`,
      `${mfu === null ? "MFU n/a" : `${(100 * this.#peak / this.#seconds).toFixed(0)}% MFU`}, ${rate}`,
      ...(step < max_iters ? [`${formatSeconds(left)} left`] : [formatSeconds(seconds)]),
      ...(skipped > 0 ? [`${skipped} skipped`] : []),
    ];
    const last = cells.length - 1;
    return cells.map((cell, i) => {
      this.#widths[i] = Math.max(this.#widths[i] ?? 0, cell.length);
      return i === last ? cell : cell.padEnd(this.#widths[i]);
    }).join(" | ");
  }
}
