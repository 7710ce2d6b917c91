// What a run leaves behind beside its checkpoints: config.json, run.json (what trains it on what), metrics.jsonl (one object a
// step), samples.jsonl (one object a sample text) and log.txt.
import { explain, UserError } from "../base/errors.ts";
import { isFile, makeDirectory, OutFile, remove, syncDirectory, writeAtomic } from "../base/files.ts";
import { asMistake } from "../base/system_error.ts";
import { device, memoryUse } from "../ffi/library.ts";
import { oneLine, visible } from "../base/visible.ts";
import { claimRun, ownerOf, releaseRun } from "./owner.ts";
import { EventFile } from "./tensorboard.ts";

/** One line of metrics.jsonl. */
export type StepMetrics = {
  step: number; // from 1: optimizer steps done
  loss: number; // mean training cross entropy of the step, nats a token
  lr: number; // learning rate of the step
  grad_norm: number; // L2 norm of the whole gradient before clipping
  tokens: number; // trained on so far
  tokens_per_sec: number; // of this step, without evaluation and checkpoints
  step_ms: number; // likewise
  mfu: number | null; // model FLOPs / peak FLOPs, 0 to 1; attention counts whatever document_mask leaves out; null where the peak is unknown
  memory_bytes: number; // CPU: resident set of the process; GPU: peak allocated
  skipped: number; // updates skipped so far because loss or norm was not finite
  val_loss?: number; // mean over the evaluation windows, where evaluated
  val_bpb?: number; // the same in bits per byte of text, where the dataset says its bytes
  tasks?: Record<string, Record<string, number>>; // of eval_tasks by name: acc and acc_norm, or perplexities and bits_per_byte
  task_acc_norm?: number; // its mean over those of questions
  ranks?: { step_ms: number[]; memory_bytes: number[] }; // of several, in steps that have a line of log.txt: of the step before, or of the one before that
};

/** run.json: what trains the run now, or trained it last. */
export type RunFacts = {
  started: string; // ISO 8601
  after: number; // the step that it went on after; 0 for a new run
  device: string; // its name, as printed
  gpu: string | null; // its UUID
  model: string; // its size, as printed
  parameters: number; // all of them
  tokens_per_step: number;
  tokens_per_epoch: number; // of the training split
  flops_per_token: number; // forward and backward
  peak_flops: number | null; // FLOP/s that mfu is measured against
  memory: Record<string, number>; // bytes by kind; complete after the first step
  versions: Record<string, string>; // of loam and Deno
};

/** What run.json says beside the facts: how the run ended, or that it has not. A killed process leaves "running" there. */
type RunEnd = {
  state: "running" | "finished" | "stopped" | "failed"; // finished: max_iters reached; stopped: by a signal, say
  ended_at: string | null; // ISO 8601
  error: string | null; // one line, of a run that failed
};

const RUNNING: RunEnd = { state: "running", ended_at: null, error: null };

/**
 * The files of a run directory beside its checkpoints. Lines go to the terminal too. When it is disposed of before the first
 * step of a new run, because something failed, it takes its files away again, so that the same command can be repeated.
 */
export class RunLog {
  /** The step of the last sample that earlier processes wrote; 0 if there is none. */
  readonly sampled: number;
  readonly #metrics: OutFile;
  readonly #log: OutFile;
  readonly #onStep: ((metrics: StepMetrics) => void) | undefined;
  readonly #recordUncaught = ({ error, reason }: { error?: unknown; reason?: unknown }) =>
    this.fail(error ?? reason);
  #events: EventFile | undefined;
  #isEmpty: boolean;
  readonly #isFull = new Set<(text: string) => void>(); // of console.log and console.error, what cannot be written any more
  readonly #isQuiet: boolean;
  #isLive = false; // the last line of the terminal is one that the next replaces
  #live_ms = -Infinity; // when it was written

  /**
   * Opens or makes the directory and writes config.json. after: the step that a resumed run goes on after; later lines of
   * metrics.jsonl are dropped. more.tensorboard: write an event file too; more.quiet: print warnings alone; more.onStep: call
   * this with each step. Throws UserError when another process trains there, or the directory cannot be written.
   */
  constructor(
    readonly dir: string,
    config: string,
    after?: number,
    more: {
      tensorboard?: boolean;
      quiet?: boolean;
      onStep?: ((metrics: StepMetrics) => void) | undefined;
    } = {},
  ) {
    try {
      makeDirectory(dir);
      this.#log = new OutFile(`${dir}/log.txt`, "append");
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      const what = error instanceof UserError ? error : asMistake(`Cannot write to ${dir}`, error);
      throw new UserError(`${(what as Error).message}; choose another --out_dir`);
    }
    this.#onStep = more.onStep;
    this.#isQuiet = more.quiet ?? false;
    this.#isEmpty = after === undefined;
    try {
      if (!lock(this.#log.file)) throw isBusy(dir);
      claimRun(dir);
    } catch (error) {
      this.#log[Symbol.dispose]();
      throw error;
    }
    try {
      const { last, sampled } = after === undefined ? NO_LINES : truncateMetrics(dir, after);
      this.sampled = sampled;
      this.#metrics = new OutFile(`${dir}/metrics.jsonl`, "append");
      writeAtomic(`${dir}/config.json`, config);
      if (more.tensorboard) this.#events = new EventFile(dir, after);
      if (!endsWithLine(`${dir}/log.txt`)) this.#log.write("\n"); // a kill cut the last one short
      if (after !== undefined && last < after) this.line(`metrics.jsonl has no ${stepsOf(last + 1, after)}`);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    for (const event of UNCAUGHT) addEventListener(event, this.#recordUncaught);
  }

  /** Appends a line to log.txt and prints it. */
  line(text: string): void {
    this.lines(oneLine(text));
  }

  /** The same for several lines. Of what comes from outside none may begin a line, or it could forge one of the log. */
  lines(text: string): void {
    this.#write(visible(text), console.log);
  }

  /** Appends a line to log.txt and prints it to stderr. */
  warn(text: string): void {
    this.#write(`warning: ${visible(oneLine(text))}`, console.error);
  }

  /** Shows a line on a terminal, until the next one takes its place; it is not kept. Fast steps are not all shown. */
  live(text: () => string): void {
    if (!IS_TERMINAL || performance.now() - this.#live_ms < LIVE_MS) return;
    this.#live_ms = performance.now();
    this.#print(console.log, () => {
      const width = Deno.consoleSize().columns || 80; // 0 where the terminal does not say
      writeStdout(`\r${visible(text()).slice(0, width - 1)}${CLEAR}`);
      this.#isLive = true;
    });
  }

  #write(text: string, print: (text: string) => void): void {
    this.#log.write(text + "\n");
    if (this.#isLive) {
      this.#isLive = false;
      this.#print(console.log, () => writeStdout(`\r${CLEAR}`));
    }
    this.#print(print, () => print(IS_TERMINAL && !Deno.noColor ? painted(text) : text));
  }

  /** A run goes on where there is nowhere to print to any more, such as a terminal that is closed. */
  #print(print: (text: string) => void, action: () => void): void {
    if (this.#isFull.has(print) || this.#isQuiet && print === console.log) return;
    try {
      action();
    } catch (error) {
      this.#isFull.add(print);
      const what = print === console.error ? "no warning" : "nothing";
      this.warn(`from here on ${what} is printed: ${(error as Error).message}`);
    }
  }

  /** Appends a step to metrics.jsonl. */
  step(metrics: StepMetrics): void {
    this.#isEmpty = false;
    this.#metrics.write(JSON.stringify(metrics) + "\n");
    this.#events?.scalars(metrics.step, scalars(metrics));
    this.#onStep?.(metrics);
  }

  /** Waits until all steps and lines are on the disk, where a checkpoint of the last step may be next. */
  sync(): void {
    this.#metrics.sync();
    this.#log.sync();
  }

  /** Writes run.json: the run is running. */
  describe(facts: RunFacts): void {
    writeAtomic(runJson(this.dir), JSON.stringify({ ...facts, ...RUNNING }, null, 2) + "\n");
  }

  /** Writes into run.json that the run has ended as it should. */
  end(state: "finished" | "stopped"): void {
    writeEnd(this.dir, { state, ended_at: new Date().toISOString(), error: null });
  }

  /** Writes into run.json and log.txt why the run has failed. The first reason counts. */
  fail(error: unknown): void {
    recordFailure(this.dir, explain(error));
  }

  /** Appends a text that the model wrote to samples.jsonl and to the log. */
  sample(step: number, text: string): void {
    this.lines(`--- sample after step ${step}\n| ${text.replaceAll("\n", "\n| ")}\n---`);
    const path = `${this.dir}/samples.jsonl`, isNew = !isFile(path);
    using file = new OutFile(path, "append");
    file.write(JSON.stringify({ step, text }) + "\n");
    file.sync();
    if (isNew) syncDirectory(this.dir);
  }

  /** Closes the files, and removes them where nothing came of a new run. */
  [Symbol.dispose](): void {
    for (const event of UNCAUGHT) removeEventListener(event, this.#recordUncaught);
    this.#metrics?.[Symbol.dispose](); // not there where the constructor failed
    this.#events?.[Symbol.dispose]();
    releaseRun(this.dir); // before the lock: who takes it next writes a file of its own
    this.#log[Symbol.dispose]();
    if (!this.#isEmpty) return;
    const events = this.#events ? [this.#events.name] : [];
    const files = ["config.json", "log.txt", "run.json", ...events, "metrics.jsonl"];
    for (const file of [...files, ""]) {
      try {
        remove(`${this.dir}/${file}`); // the last one is the directory: it goes only if it is empty
      } catch {
        // not there, or not ours alone
      }
    }
  }
}

const IS_TERMINAL = Deno.stdout.isTerminal();
const LIVE_MS = 100; // from one such line to the next
const CLEAR = "\x1b[K"; // from here to the end of the line

function writeStdout(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

/** A line for a terminal with colours: what separates is dim, val is bold, warnings are yellow. */
function painted(text: string): string {
  if (text.startsWith("warning: ")) return `\x1b[33m${text}\x1b[0m`;
  if (!text.startsWith("step ")) return text;
  return text.replace(/\bval [^\s,]+/, "\x1b[1m$&\x1b[0m").replaceAll(" | ", "\x1b[2m | \x1b[0m");
}

const UNCAUGHT = ["error", "unhandledrejection"] as const; // what ends a process beside what its main function throws

function runJson(dir: string): string {
  return `${dir}/run.json`;
}

/** Replaces what run.json says of the end of a run that is running. */
function writeEnd(dir: string, end: RunEnd): void {
  const facts = JSON.parse(Deno.readTextFileSync(runJson(dir)));
  if (facts.state !== "running") return;
  writeAtomic(runJson(dir), JSON.stringify({ ...facts, ...end }, null, 2) + "\n");
}

/**
 * Writes why a run has failed into its run.json, if that says that it is running, and into its log.txt. Silent where that does
 * not succeed, on a full disk for example: what matters then is the error that has been there before.
 */
function recordFailure(dir: string, text: string): void {
  const error = text.split("\n")[0]!.replace(/^error: /, "");
  const parts = [
    () => writeEnd(dir, { state: "failed", ended_at: new Date().toISOString(), error }),
    () => {
      using log = new OutFile(`${dir}/log.txt`, "append");
      log.write(text + "\n");
    },
  ];
  for (const part of parts) {
    try {
      part();
    } catch {
      // see above
    }
  }
}

/** Throws UserError when another process trains in a directory, before anything there is read that it may change. */
export function requireIdle(dir: string): void {
  if (!isFile(`${dir}/log.txt`)) return;
  using log = Deno.openSync(`${dir}/log.txt`, { append: true });
  if (!lock(log)) throw isBusy(dir);
}

function isBusy(dir: string): UserError {
  return new UserError(`Cannot train in ${dir}: ${ownerOf(dir)} is training there; choose another --out_dir`);
}

/**
 * Takes the lock of a run; the system holds it as long as the file is open. A server that looks whether a run is being
 * trained holds it for microseconds: hence a few attempts.
 */
function lock(file: Deno.FsFile): boolean {
  for (let attempt = 0; attempt < 5; attempt++) {
    if (file.tryLockSync(true)) return true;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20); // ms
  }
  return false;
}

/** A step under the names that group its charts in TensorBoard. */
function scalars(m: StepMetrics): Record<string, number> {
  return {
    "loss/train": m.loss,
    ...(m.val_loss === undefined ? {} : { "loss/val": m.val_loss }),
    ...(m.val_bpb === undefined ? {} : { "loss/val_bpb": m.val_bpb }),
    ...Object.fromEntries(
      Object.entries(m.tasks ?? {}).flatMap(([task, score]) =>
        Object.entries(score).map(([metric, value]) => [`tasks/${task}/${metric}`, value])
      ),
    ),
    "optimizer/lr": m.lr,
    "optimizer/grad_norm": m.grad_norm,
    "optimizer/skipped": m.skipped,
    "speed/tokens_per_sec": m.tokens_per_sec,
    ...(m.mfu === null ? {} : { "speed/mfu": m.mfu }),
    "memory/bytes": m.memory_bytes,
  };
}

/** What a run writes to: a RunLog, or on a rank other than the first nothing. */
export type Log =
  & Pick<
    RunLog,
    "line" | "warn" | "lines" | "live" | "step" | "sample" | "sampled" | "sync" | "describe" | "end" | "fail"
  >
  & Disposable;

/** The log of a rank other than the first, which writes only why it failed, into the directory of the run that all share. */
export function logOfRank(rank: number, dir: string): Log {
  return {
    line() {},
    lines() {},
    live() {},
    warn() {},
    step() {},
    sample() {},
    sampled: 0,
    sync() {},
    describe() {},
    end() {},
    fail: (error) => recordFailure(dir, `error: rank ${rank}: ${explain(error).replace(/^error: /, "")}`),
    [Symbol.dispose]() {},
  };
}

/**
 * Drops the steps and samples after a step, and half-written lines behind them: a resumed run writes them again. Reads the ends of
 * the files. Returns the last step that stays in metrics.jsonl, and the last that stays sampled; 0 for none.
 */
export function truncateMetrics(dir: string, step: number): { last: number; sampled: number } {
  return {
    last: truncateLines(`${dir}/metrics.jsonl`, step),
    sampled: truncateLines(`${dir}/samples.jsonl`, step),
  };
}

const NO_LINES = { last: 0, sampled: 0 };

function truncateLines(path: string, step: number): number {
  if (!isFile(path)) return 0;
  const kept = lastLineUpTo(path, step), end = kept?.end ?? 0;
  if (end < Deno.statSync(path).size) {
    using file = new OutFile(path, "change");
    file.truncate(end);
    file.sync();
  }
  return kept?.step ?? 0;
}

/** The last whole line that is of a step up to `step`, and the byte at which it ends. */
function lastLineUpTo(path: string, step: number): { step: number; end: number } | undefined {
  for (const { text, end } of linesFromEnd(path)) {
    try {
      const found: unknown = JSON.parse(text).step;
      if (isStep(found) && found <= step) return { step: found, end };
    } catch {
      // cut short, or never written: the zeros of a file whose size alone had got to the disk
    }
  }
  return undefined;
}

function isStep(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 1;
}

/** The lines of a file that end with a line feed, the last one first. end: the byte behind that. */
export function* linesFromEnd(path: string, chunk_bytes = 1 << 20): Generator<{ text: string; end: number }> {
  const decoder = new TextDecoder("latin1"); // one character a byte: only numbers are read here
  using file = Deno.openSync(path);
  let begin = file.statSync().size, text = ""; // what stands from `begin` on and has not been given out
  while (begin > 0) {
    const bytes = new Uint8Array(Math.min(chunk_bytes, begin));
    begin -= bytes.length;
    file.seekSync(begin, Deno.SeekMode.Start);
    for (let done = 0, n: number | null = 0; done < bytes.length && n !== null; done += n ?? 0) {
      n = file.readSync(bytes.subarray(done));
    }
    text = decoder.decode(bytes) + text;
    for (let last = text.lastIndexOf("\n"); last >= 0;) {
      const before = last === 0 ? -1 : text.lastIndexOf("\n", last - 1);
      if (before < 0 && begin > 0) break; // the line begins in an earlier chunk
      yield { text: text.slice(before + 1, last), end: begin + last + 1 };
      text = text.slice(0, before + 1);
      last = before;
    }
  }
}

/** Whether a file is empty or its last line is whole. */
function endsWithLine(path: string): boolean {
  using file = Deno.openSync(path);
  const last = new Uint8Array(1), { size } = file.statSync();
  if (size === 0) return true;
  file.seekSync(size - 1, Deno.SeekMode.Start);
  file.readSync(last);
  return last[0] === "\n".charCodeAt(0);
}

/** "steps 3 to 5", "step 5" */
function stepsOf(first: number, last: number): string {
  return first === last ? `step ${last}` : `steps ${first} to ${last}`;
}

/** Memory in use, as memory_bytes in metrics.jsonl. */
export function memoryBytes(): number {
  return device.library === "cuda" ? memoryUse().peak : Deno.memoryUsage().rss;
}
