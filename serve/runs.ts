// A run as its directory shows it. Nothing here needs the trainer: it reads the files that runtime/metrics.ts writes.
import { isObject } from "../base/json.ts";
import { lastLines, openRegular, readSmall, Tail } from "./tail.ts";
import { type Line, Table } from "./table.ts";
import type { RunState, Sample } from "./types.ts";

/** What happened to a run since it was looked at last. */
export type Change =
  | { kind: "steps"; lines: Line[] }
  | { kind: "reset"; after: number } // a resumed run goes on after this step; what was known of later ones is void
  | { kind: "resync" } // there is more that is new than can be told: read the history
  | { kind: "sample"; sample: Sample }
  | { kind: "state"; state: RunState };

const STALLED_STEPS = 10; // times the median step
const STALLED_LEAST_S = 30; // evaluation, samples and checkpoints lie between steps too
const STALLED_FIRST_S = 600; // before the first step
const MEDIAN_OF = 101; // steps
const MOST_SAMPLES = 1000;
const KILLED = "its process ended without a word, as one that is killed does";

/** One watched run directory. refresh() brings it up to date and tells the listeners what is new. */
export class Run {
  /** Who is told what is new. */
  readonly listeners: Set<(change: Change) => void> = new Set();
  /** The lines of metrics.jsonl. */
  table: Table = new Table();
  /** config.json; empty while there is none. */
  config: Record<string, unknown> = {};
  /** run.json, see RunFacts in runtime/metrics.ts; empty while there is none. */
  facts: Record<string, unknown> = {};
  /** The last one. */
  sample: Sample | null = null;
  /** What its trainer did at the last refresh(). */
  state: RunState = "stopped";
  /** Why it failed. */
  error: string | null = null;
  /** Seconds since the last step was written, or the configuration before the first; 0 without either. */
  age_s = 0;
  /** Whether there is a config.json or a metrics.jsonl. */
  exists = false;
  #reading: Promise<void> | undefined;
  readonly #metrics: Tail;
  readonly #samples: Tail;

  /**
   * dir: absolute and without symbolic links, for those that lie inside are not followed. isFound: nobody named it, it lay in a
   * directory of runs.
   */
  constructor(readonly name: string, readonly dir: string, readonly isFound: boolean = false) {
    this.#metrics = new Tail(`${dir}/metrics.jsonl`);
    this.#samples = new Tail(`${dir}/samples.jsonl`);
  }

  /** Reads what is new. Another call while it reads waits for the same end. */
  async refresh(): Promise<void> {
    this.#reading ??= this.#read().finally(() => this.#reading = undefined);
    await this.#reading;
  }

  /** The last lines of log.txt. */
  logLines(count: number): string[] {
    return lastLines(`${this.dir}/log.txt`, count);
  }

  /** The samples in the last 64 kB of samples.jsonl, the oldest first. */
  samples(): Sample[] {
    return lastLines(`${this.dir}/samples.jsonl`, MOST_SAMPLES).map(parseSample).filter((sample) =>
      sample !== undefined
    );
  }

  /** Milliseconds of a step, the median of the last ones; NaN before the first. */
  medianStep_ms(): number {
    const recent = this.table.column("step_ms").slice(-MEDIAN_OF).filter(Number.isFinite).sort();
    return recent[recent.length >> 1] ?? NaN;
  }

  async #read(): Promise<void> {
    const hasTrainer = this.#hasTrainer(); // before run.json, which says how the run ended before the lock is free
    this.config = readObject(`${this.dir}/config.json`) ?? {};
    this.facts = readObject(`${this.dir}/run.json`) ?? {};
    await this.#readMetrics();
    this.#readSamples();
    this.#readState(hasTrainer);
  }

  async #readMetrics(): Promise<void> {
    let before: Table | undefined; // what was known before the file was cut
    while (true) {
      const { restarted, lines, more } = this.#metrics.next();
      if (restarted) {
        before ??= this.table;
        this.table = new Table();
      }
      const added = lines.map((text) => this.table.append(text)).filter((line) => line !== undefined);
      if (!before) this.#tellSteps(added);
      if (!more) break;
      await new Promise((resolve) => setTimeout(resolve, 0)); // answers others meanwhile
    }
    if (before) this.#tellReset(before);
  }

  #tellReset(before: Table): void {
    const after = lastCommonStep(before, this.table);
    this.#tell({ kind: "reset", after });
    const lines = this.table.linesAfter(after);
    if (lines) this.#tellSteps(lines);
    else this.#tell({ kind: "resync" });
  }

  #tellSteps(lines: Line[]): void {
    if (lines.length > 0) this.#tell({ kind: "steps", lines });
  }

  #readSamples(): void {
    const { restarted, lines } = this.#samples.next();
    if (restarted) this.sample = null;
    const sample = lines.map(parseSample).findLast((sample) => sample !== undefined);
    if (!sample) return;
    this.sample = sample;
    this.#tell({ kind: "sample", sample });
  }

  #readState(hasTrainer: boolean): void {
    const metrics = modified(`${this.dir}/metrics.jsonl`), config = modified(`${this.dir}/config.json`);
    const last = metrics ?? config;
    this.exists = last !== undefined;
    this.age_s = last === undefined ? 0 : Math.max(0, (Date.now() - last) / 1000);
    const before = this.state;
    [this.state, this.error] = hasTrainer ? [this.#stateAtWork(), null] : this.#howItEnded();
    if (this.state !== before) this.#tell({ kind: "state", state: this.state });
  }

  #stateAtWork(): RunState {
    const median_s = this.medianStep_ms() / 1000;
    const limit_s = Number.isNaN(median_s)
      ? STALLED_FIRST_S
      : Math.max(STALLED_LEAST_S, STALLED_STEPS * median_s);
    return this.age_s > limit_s ? "stalled" : "running";
  }

  #howItEnded(): [RunState, string | null] {
    const { state, error } = this.facts;
    if (state === "finished" || state === "stopped") return [state, null];
    if (state === "failed") return [state, typeof error === "string" ? error : "the reason is not known"];
    if (state === "running") return this.#hasTrainer() ? [this.#stateAtWork(), null] : ["failed", KILLED];
    const max_iters = Number(this.config.max_iters ?? NaN); // an older trainer did not say
    return [this.table.last("step") >= max_iters ? "finished" : "stopped", null];
  }

  #hasTrainer(): boolean {
    return isLocked(`${this.dir}/log.txt`);
  }

  #tell(change: Change): void {
    for (const listener of this.listeners) listener(change);
  }
}

/** The last step up to which two tables hold the same rows. Times are never equal by chance. */
function lastCommonStep(a: Table, b: Table): number {
  const [stepsA, stepsB] = [a.column("step"), b.column("step")];
  const [timesA, timesB] = [a.column("step_ms"), b.column("step_ms")];
  let n = 0;
  while (n < Math.min(a.length, b.length) && stepsA[n] === stepsB[n] && Object.is(timesA[n], timesB[n])) n++;
  return n === 0 ? 0 : stepsA[n - 1]!;
}

function readObject(path: string): Record<string, unknown> | undefined {
  return parseObject(readSmall(path) ?? "");
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined; // half-written, or not ours
  }
}

function parseSample(line: string): Sample | undefined {
  const { step, text } = parseObject(line) ?? {};
  return typeof step === "number" && typeof text === "string" ? { step, text } : undefined;
}

/** When a file was written last, in milliseconds since 1970; undefined where there is none. */
function modified(path: string): number | undefined {
  using file = openRegular(path);
  return file?.statSync().mtime?.getTime();
}

/** Whether a trainer holds the lock of a run's log.txt. The attempt lasts microseconds; a trainer that starts tries again. */
function isLocked(path: string): boolean {
  using file = openRegular(path);
  return file !== undefined && !file.tryLockSync(false);
}
