// The steps of a run as they end: reads what came of each, writes it down, and stops where numbers are not finite.
import { asTyped } from "../base/command.ts";
import { formatBytes, formatSeconds } from "../base/format.ts";
import type { Loader, Position } from "../data/loader.ts";
import { device, mark, markMs } from "../ffi/library.ts";
import { listCheckpoints } from "../runtime/checkpoint.ts";
import { debug, profileAfter, writeTrace } from "../runtime/debug.ts";
import type { Ranks } from "../dist/ranks.ts";
import { memoryByKind } from "../runtime/memory.ts";
import type { Log, RunFacts, StepMetrics } from "../runtime/metrics.ts";
import type { AdamW, OfRank, StepResult } from "../runtime/optim.ts";
import type { Peak } from "../runtime/peak.ts";
import type { Stop } from "./stop.ts";
import type { Saver } from "../runtime/saver.ts";
import type { TrainerState } from "../runtime/trainer_state.ts";
import { type BatchConfig, consume, type Consumed, consumedBefore } from "./consumed.ts";
import { keepChoices } from "./choices.ts";
import { guard, type GuardConfig, ofStep, type Outcome, placesOf } from "./guard.ts";
import type { LlamaConfig } from "./llama.ts";
import { measureModel } from "./plan.ts";
import { StepLines, stepMetrics } from "./report.ts";

/** What is read here of the variables of train.ts. */
export type ProgressConfig = BatchConfig & GuardConfig & {
  out_dir: string;
  max_iters: number;
  log_interval: number;
  eval_interval: number;
  save_interval: number;
  sample_interval: number;
  debug: string;
};

/** What came of a step, and its line of metrics.jsonl, which has no val_loss yet. */
export type Read = Outcome & { metrics: StepMetrics };

/** What the steps of a run have in common. */
export type ProgressParts = {
  config: ProgressConfig;
  c: LlamaConfig;
  data: Loader;
  val: Loader | undefined;
  optimizer: AdamW;
  ranks: Ranks;
  stop: Stop;
  log: Log;
  saver: Saver;
  peak: Peak | undefined;
  facts: RunFacts;
  saved: TrainerState | undefined; // what the run goes on from
};

/** How far a run has come. */
export class Progress {
  /** Steps that earlier processes did. */
  readonly before: number;
  /** Best val_loss of the checkpoints up to now, and its step. */
  readonly best: { val_loss: number | null; step: number | null };
  /** All ranks end after the last step that was read. */
  stopping = false;
  /** Steps that are done. */
  done: number;
  /** What came after those was left out: a rank was asked to stop amid it. What it read is read again when the run goes on. */
  isLeftOut = false;
  /** The last step that was read, of those that count. */
  last: Read | undefined;
  readonly #parts: ProgressParts;
  readonly #past: Consumed;
  readonly #lines: StepLines;
  readonly #readsLate: boolean;
  #isUnread = false; // the result of the last step
  #queueing: Disposable | undefined; // behind it
  #read_step: number; // the last one whose result was read
  #memory_bytes = 0; // most of all steps
  #hasWarned = false; // of a step without a trained token
  #waited_ms = 0; // for the weights of the last step
  #own = { step_ms: 0, memory_bytes: 0 }; // of the last step that was read
  readonly #begun_ms = performance.now();
  #read_ms = performance.now(); // when the last result was read, or when its saving and so on was done

  /** Begins where the saved state ends. */
  constructor(parts: ProgressParts) {
    const { config, c, data, val, saved } = this.#parts = parts;
    this.before = this.done = this.#read_step = saved?.step ?? 0;
    this.best = { val_loss: saved?.best_val_loss ?? null, step: saved?.best_step ?? null };
    this.#past = consumedBefore(saved, data.order(config.seed));
    this.#lines = new StepLines({
      ...config,
      flops_per_token: measureModel(c).flops_per_token,
      before: this.before,
      evaluates: val !== undefined,
    });
    // A GPU works on the next step while the result of this one is read, unless something is to be done between the two.
    this.#readsLate = device.library !== "cpu" && config.debug === "";
  }

  /** Throws what has ended the run, with the step that it came in where the library refused something. */
  fail(error: unknown): never {
    const first = this.#read_step + 1; // of those that may still have been at work
    throw ofStep(error, this.#parts.config, Math.min(first, debug.step), debug.step);
  }

  /** What the steps up to and with `step` have read of the data. */
  consumed(step: number): Consumed {
    return consume(this.#past, step - this.before, this.#parts.config);
  }

  /** Which windows a micro-step, numbered among those of all ranks, of the step after `step` reads. */
  position(step: number, micro: number): Position {
    return { seed: this.#parts.config.seed, sample: this.consumed(step).samples, micro };
  }

  /** Says that a step begins, for messages and for its time. */
  begin(step: number): void {
    debug.step = step;
    const { ranks } = this.#parts;
    if (this.#isUnread && !ranks.isAlone) this.#queueing = ranks.queueing(); // a rank that does not come may fill the queue
    ranks.beat(step);
    ranks.takeWaited(); // an evaluation's
    if (!ranks.isAlone) mark(marksOf(step)[0]);
  }

  /** Says that this rank has done its own part of a step. Returns what it says of itself to the others: of an earlier step. */
  arrive(step: number): OfRank {
    const { ranks, saver } = this.#parts;
    if (!ranks.isAlone) mark(marksOf(step)[1]);
    this.#waited_ms = ranks.takeWaited();
    return { ...this.#own, written: Number(saver.hasWritten) };
  }

  /**
   * Waits for the result of a step whose update is queued. Undefined where it is left for the next step to read, which is then
   * queued first, or the step was left out; else what came of it, for the caller to report().
   */
  async after(step: number): Promise<Read | undefined> {
    const { config, optimizer, log, facts } = this.#parts;
    optimizer.keepResult();
    this.#queueing?.[Symbol.dispose]();
    this.#queueing = undefined;
    if (this.#isUnread) {
      const earlier = await this.#read(step - 1);
      if (earlier.result.stopping === Infinity) return this.#leaveOut(step - 2); // as this one is
      this.report(this.last = earlier, false);
    }
    this.done = step;
    if (step === this.before + 1) log.describe({ ...facts, memory: memoryByKind() }); // now of a whole step
    this.#isUnread = this.#readsLate && !this.stopping && !isEventful(config, step);
    if (this.#isUnread) return undefined;
    const read = await this.#read(step);
    return read.result.stopping === Infinity ? this.#leaveOut(step - 1) : this.last = read;
  }

  #leaveOut(done: number): undefined {
    this.isLeftOut = true;
    this.done = done;
  }

  async #read(step: number): Promise<Read> {
    const { config, c, optimizer, ranks, stop, peak } = this.#parts;
    const result = await ranks.meet("result", () => optimizer.nextResult()); // signals and timers are served here
    this.#read_step = step;
    this.stopping = stop.isAgreed(result);
    const step_ms = performance.now() - this.#read_ms;
    this.#read_ms = performance.now();
    const { tokens } = this.consumed(step);
    const metrics = stepMetrics(config, c, peak, step, tokens, step_ms, result);
    if (!ranks.isAlone) {
      const own_ms = markMs(...marksOf(step)) - this.#waited_ms;
      this.#own = { step_ms: own_ms, memory_bytes: metrics.memory_bytes };
    }
    return { step, result, metrics };
  }

  /** Writes a step down, in a line of the log too where one is due. Throws UserError after too many that are not finite. */
  report(read: Read, always: boolean): void {
    const { config, c, data, log, ranks } = this.#parts, { step, metrics } = read;
    const isFirst = step === this.before + 1;
    const isLine = always || step % config.log_interval === 0;
    if (isLine) Object.assign(metrics, ranksOf(read.result));
    if (ranks.rank === 0 && (always || isFirst)) keepChoices(config.out_dir, c.head_dim); // an evaluation may have met new shapes
    log.step(metrics);
    this.#lines.add(metrics);
    this.#memory_bytes = Math.max(this.#memory_bytes, metrics.memory_bytes);
    if (isLine) log.line(this.#lines.line(metrics));
    else log.live(() => this.#lines.text(metrics));
    guard(config, read, () => placesOf(data, config, this.consumed(step - 1).samples), log);
    const { loss, grad_norm } = read.result;
    if (loss !== 0 || grad_norm !== 0 || this.#hasWarned) return;
    this.#hasWarned = true;
    log.warn(
      `no token of step ${step} is trained on: its loss is 0, which is no merit of the model, and only moments and weight decay ` +
        `move the weights; a larger --block_size than ${config.block_size}, or more windows a step, would reach some`,
    );
  }

  /** Prints the profile and writes profile.json where --debug=profile has all steps it wants. Returns whether: the run ends then. */
  reportProfile(step: number): boolean {
    const { config, log, ranks } = this.#parts, profile = profileAfter(step - this.before);
    if (profile === undefined) return false;
    log.lines(profile);
    if (ranks.rank === 0) log.line(`every op in ${writeTrace(config.out_dir)}: open it in ui.perfetto.dev`);
    return true;
  }

  /** The last line of a run that has come to its end. */
  summary(): string {
    const { config: { out_dir } } = this.#parts, { val_loss, step } = this.best;
    const best = val_loss === null ? "" : `, best val ${val_loss.toFixed(4)} after step ${step}`;
    const next = listCheckpoints(out_dir).length === 0
      ? "no checkpoint was saved"
      : `write text: ${asTyped(`deno task sample --checkpoint=${out_dir}`)}`;
    const took = formatSeconds((performance.now() - this.#begun_ms) / 1000);
    return `finished in ${took}${best}, at most ${formatBytes(this.#memory_bytes)} of memory; ${next}`;
  }

  /** Time from the last result to here is not counted to the next step. */
  skipTime(): void {
    this.#read_ms = performance.now();
  }
}

/** Marks before and behind this rank's own part of a step; those of four steps are kept apart. */
function marksOf(step: number): [number, number] {
  return [1 + 2 * (step % 4), 2 + 2 * (step % 4)];
}

/** What the ranks said of themselves, for a line of metrics.jsonl; nothing before they have, or where there is one. */
function ranksOf({ ranks }: StepResult): Pick<StepMetrics, "ranks"> {
  if (!ranks || ranks.step_ms.includes(0)) return {};
  const { step_ms, memory_bytes } = ranks;
  return { ranks: { step_ms: step_ms.map((ms) => Number(ms.toPrecision(4))), memory_bytes } };
}

/** Whether something that happens every `interval` steps (0 = never) happens after this one. */
export function due(step: number, interval: number, always: boolean): boolean {
  return interval > 0 && (always || step % interval === 0);
}

/** Whether the model is evaluated, saved or sampled after a step, or the run ends with it. */
function isEventful(config: ProgressConfig, step: number): boolean {
  const { eval_interval, save_interval, sample_interval, max_iters } = config;
  return step === max_iters ||
    [eval_interval, save_interval, sample_interval].some((n) => due(step, n, false));
}
