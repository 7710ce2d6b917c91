// Stop strings: a text that ends before the first of some strings, though it comes in pieces.

/** Passes text on, except for what may be the beginning of a stop string. */
export class StopStrings {
  /** Whether a stop string came. */
  stopped = false;
  #held = "";

  /** strings: any of them ends the text; none is empty. */
  constructor(readonly strings: readonly string[]) {}

  /** The text that is certain to stand before any stop string, now that more has come. */
  write(text: string): string {
    if (this.stopped) return "";
    this.#held += text;
    const found = this.strings.map((stop) => this.#held.indexOf(stop)).filter((at) => at >= 0);
    this.stopped = found.length > 0;
    return this.#release(this.stopped ? Math.min(...found) : this.#held.length - this.#beginning());
  }

  /** What is left when no more text comes. */
  end(): string {
    return this.stopped ? "" : this.#release(this.#held.length);
  }

  #release(length: number): string {
    const text = this.#held.slice(0, length);
    this.#held = this.stopped ? "" : this.#held.slice(length);
    return text;
  }

  /** Length of the longest end of the text that begins a stop string. */
  #beginning(): number {
    const longest = Math.max(0, ...this.strings.map((stop) => stop.length - 1));
    for (let n = Math.min(longest, this.#held.length); n > 0; n--) {
      if (this.strings.some((stop) => stop.startsWith(this.#held.slice(-n)))) return n;
    }
    return 0;
  }
}
