/** A progress bar on a terminal; part of our subset of `@std/cli`, see parse_args.ts. @module */

/** What a formatter may show. */
export interface ProgressBarFormatter {
  /** Time since the start, "mm:ss". */
  styledTime: string;
  /** The bar itself: "###-------". */
  progressBar: string;
}

/** Settings of a {@linkcode ProgressBar}. */
export interface ProgressBarOptions {
  /** Where to draw; default Deno.stderr.writable. It stays open when the bar stops. */
  writable?: WritableStream<Uint8Array>;
  /** The value at the end. */
  max: number;
  /** Characters in the bar; default 50. */
  barLength?: number;
  /** Remove the bar when it stops; default false. */
  clear?: boolean;
  /** The text of one line. */
  formatter: (formatter: ProgressBarFormatter) => string;
  /** Milliseconds between two drawings; default 1000. */
  interval?: number;
}

const lineClear = "\r\x1b[K";

/** Draws `value` of `max` once per interval until stop(). Draws on any writable: ask isTerminal() before making one. */
export class ProgressBar {
  /** Progress so far, from 0; set it as work gets done. */
  value = 0;

  readonly #options: Required<Omit<ProgressBarOptions, "writable">>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #start = Date.now();
  readonly #timer: ReturnType<typeof setInterval>;

  /** Draws the bar for the first time. */
  constructor({ writable = Deno.stderr.writable, ...options }: ProgressBarOptions) {
    this.#options = { barLength: 50, clear: false, interval: 1000, ...options };
    this.#writer = writable.getWriter();
    this.#timer = setInterval(() => this.#draw(), this.#options.interval);
    this.#draw();
  }

  /** Draws a last time, or removes the bar, and gives the writable back. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    if (this.#options.clear) await this.#write(lineClear);
    else {
      await this.#draw();
      await this.#write("\n");
    }
    this.#writer.releaseLock();
  }

  async #draw(): Promise<void> {
    const { max, barLength, formatter } = this.#options;
    const filled = Math.trunc(Math.min(Math.max(this.value / max, 0), 1) * barLength);
    const progressBar = "#".repeat(filled) + "-".repeat(barLength - filled);
    const styledTime = minutesAndSeconds(Date.now() - this.#start);
    await this.#write(lineClear + formatter({ styledTime, progressBar }));
  }

  /** A terminal that has gone away must not end the work it reports on. */
  async #write(text: string): Promise<void> {
    await this.#writer.write(new TextEncoder().encode(text)).catch(() => clearInterval(this.#timer));
  }
}

function minutesAndSeconds(ms: number): string {
  const two = (n: number) => String(Math.trunc(n)).padStart(2, "0");
  return `${two(ms / 60_000)}:${two(ms / 1000 % 60)}`;
}
