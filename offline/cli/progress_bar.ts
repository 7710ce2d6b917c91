/** A progress bar on a terminal; part of our subset of `@std/cli`, see parse_args.ts. @module */

/** What a formatter may show. */
export interface ProgressBarFormatter {
  /** Time since the start, "mm:ss". */
  styledTime: string;
  /** Value and maximum in a binary unit: "0.24/97.60 KiB". */
  styledData: string;
  /** The bar itself: "###-------". */
  progressBar: string;
  /** Milliseconds since the start. */
  time: number;
  /** The time shown before. */
  previousTime: number;
  /** Progress so far. */
  value: number;
  /** The value shown before. */
  previousValue: number;
  /** The value at the end. */
  max: number;
}

/** Settings of a {@linkcode ProgressBar}. */
export interface ProgressBarOptions {
  /** Where to draw; default Deno.stderr.writable. */
  writable?: WritableStream<Uint8Array>;
  /** Where progress starts; default 0. */
  value?: number;
  /** The value at the end. */
  max: number;
  /** Characters in the bar; default 50. */
  barLength?: number;
  /** Character for what is done; default "#". */
  fillChar?: string;
  /** Character for what is left; default "-". */
  emptyChar?: string;
  /** Remove the bar when it stops; default false. */
  clear?: boolean;
  /** The text of one line; default "[mm:ss] [###---] [0.24/97.60 KiB]". */
  formatter?: (formatter: ProgressBarFormatter) => string;
  /** Leave the writable open when the bar stops; default true. */
  keepOpen?: boolean;
  /** Milliseconds between two drawings; default 1000. */
  interval?: number;
}

const lineClear = "\r\x1b[K";
const units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/** Draws `value` of `max` once per interval until stop(). Draws on any writable: ask isTerminal() before making one. */
export class ProgressBar {
  /** Progress so far; set it as work gets done. */
  value: number;
  /** The value at the end. */
  max: number;

  readonly #options: Required<Omit<ProgressBarOptions, "writable" | "value" | "max">>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #start = Date.now();
  readonly #timer: ReturnType<typeof setInterval>;
  #previousTime = 0;
  #previousValue: number;

  /** Draws the bar for the first time. */
  constructor(options: ProgressBarOptions) {
    const { writable = Deno.stderr.writable, value = 0, max, ...look } = options;
    this.value = this.#previousValue = value;
    this.max = max;
    this.#options = {
      barLength: 50,
      fillChar: "#",
      emptyChar: "-",
      clear: false,
      keepOpen: true,
      interval: 1000,
      formatter: (f) => `[${f.styledTime}] [${f.progressBar}] [${f.styledData}]`,
      ...look,
    };
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
    if (this.#options.keepOpen) this.#writer.releaseLock();
    else await this.#writer.close().catch(() => {});
  }

  async #draw(): Promise<void> {
    const { value, max } = this;
    const { barLength, fillChar, emptyChar, formatter } = this.#options;
    const time = Date.now() - this.#start;
    const filled = Math.trunc(Math.min(Math.max(value / max, 0), 1) * barLength);
    const line = formatter({
      styledTime: minutesAndSeconds(time),
      styledData: fraction(value, max),
      progressBar: fillChar.repeat(filled) + emptyChar.repeat(barLength - filled),
      time,
      previousTime: this.#previousTime,
      value,
      previousValue: this.#previousValue,
      max,
    });
    this.#previousTime = time;
    this.#previousValue = value;
    await this.#write(lineClear + line);
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

function fraction(value: number, max: number): string {
  const power = Math.min(Math.max(Math.floor(Math.log2(max) / 10), 1), units.length);
  const unit = 1024 ** power;
  return `${(value / unit).toFixed(2)}/${(max / unit).toFixed(2)} ${units[power - 1]}`;
}
