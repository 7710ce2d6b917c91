// How far prepare is: a bar when stderr is a terminal, a line every few seconds when it is a file or a pipe.
import { formatSeconds } from "../../base/format.ts";
import { ProgressBar } from "@std/cli/unstable-progress-bar";

const LINE_MS = 5_000;
const YIELD_MS = 200; // timers and signals get their turn this often, also while everything runs on one thread

/** An amount of work. */
export type Work = {
  /** Bytes of input, as they are stored. */
  read: number;
  /** Documents read. */
  documents: number;
  /** Bytes of text. */
  text: number;
  /** Tokens that they became. */
  tokens: number;
};

/** What there is to do, and what was done before. */
export type Task = {
  /** Bytes of all inputs. */
  bytes: number;
  /** Documents after which it ends, if the bytes do not end before. */
  limit: number | null;
  /** What an interrupted run has done. */
  before: Work;
};

/** Told about work as it gets done. */
export type Progress = {
  /** Adds work. */
  advance(work: Work): Promise<void>;
  /** Takes the display away. */
  stop(): Promise<void>;
};

/** Shows progress on stderr until stop(). */
export function showProgress(task: Task): Progress {
  const meter = new Meter(task);
  return Deno.stderr.isTerminal() ? bar(meter) : lines(meter);
}

function bar(meter: Meter): Progress {
  const progressBar = new ProgressBar({
    max: 1,
    barLength: 30,
    clear: true,
    formatter: ({ styledTime, progressBar }) => `[${styledTime}] [${progressBar}] ${meter.text()}`,
  });
  return {
    advance(work) {
      meter.add(work);
      progressBar.value = meter.share();
      return meter.yield();
    },
    stop: () => progressBar.stop(),
  };
}

function lines(meter: Meter): Progress {
  let shown = performance.now();
  return {
    advance(work) {
      meter.add(work);
      if (performance.now() - shown > LINE_MS) {
        shown = performance.now();
        console.error(meter.text());
      }
      return meter.yield();
    },
    stop: () => Promise.resolve(),
  };
}

/** Adds up work and puts it into words. */
export class Meter {
  readonly #task: Task;
  readonly #now: () => number;
  readonly #start: number;
  readonly #shareBefore: number;
  readonly #done: Work; // in all
  #yielded: number;

  /** now: the time in ms. */
  constructor(task: Task, now: () => number = () => performance.now()) {
    this.#task = task;
    this.#now = now;
    this.#start = this.#yielded = now();
    this.#done = { ...task.before };
    this.#shareBefore = this.share();
  }

  /** Adds work that was done. */
  add({ read, documents, text, tokens }: Work): void {
    this.#done.read += read;
    this.#done.documents += documents;
    this.#done.text += text;
    this.#done.tokens += tokens;
  }

  /** How much of the task is done, from 0 to 1. */
  share(): number {
    const { bytes, limit } = this.#task, { read, documents } = this.#done;
    return Math.min(1, Math.max(bytes > 0 ? read / bytes : 0, limit === null ? 0 : documents / limit));
  }

  /** One line: "37% of 5200 MB, 12.3 MB/s, 2.8M tokens/s, 4 min left". The rates are those of this run. */
  text(): string {
    const seconds = Math.max(1e-3, (this.#now() - this.#start) / 1000), share = this.share();
    const { text, tokens } = this.#task.before;
    const parts = [
      `${Math.floor(share * 100)}% of ${(this.#task.bytes / 1e6).toFixed(1)} MB`,
      `${((this.#done.text - text) / seconds / 1e6).toFixed(1)} MB/s`,
      `${((this.#done.tokens - tokens) / seconds / 1e6).toFixed(2)}M tokens/s`,
    ];
    const gained = share - this.#shareBefore;
    if (gained > 0) parts.push(`${formatSeconds(seconds * (1 - share) / gained)} left`);
    return parts.join(", ");
  }

  /** Lets timers and signals have their turn, now and then. */
  async yield(): Promise<void> {
    if (this.#now() - this.#yielded < YIELD_MS) return;
    await new Promise((resolve) => setTimeout(resolve));
    this.#yielded = this.#now();
  }
}
