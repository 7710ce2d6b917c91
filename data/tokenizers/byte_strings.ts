// Byte strings numbered from 0, one behind the other in one array: the tokens of a vocabulary.

/** A list of byte strings. */
export class ByteStrings {
  /** Strings in the list. */
  length = 0;

  #bytes: Uint8Array<ArrayBuffer>;
  #starts: Int32Array<ArrayBuffer>;

  /** Makes room for so many strings of so many bytes together; it grows when that is not enough. */
  constructor(strings: number, bytes: number) {
    this.#bytes = new Uint8Array(bytes);
    this.#starts = new Int32Array(strings + 1);
  }

  /** Appends the string bytes[from, to). */
  push(bytes: Uint8Array, from = 0, to = bytes.length): void {
    const start = this.#starts[this.length]!, end = start + to - from;
    if (end > this.#bytes.length) this.#bytes = grown(this.#bytes, new Uint8Array(2 * end));
    if (this.length + 2 > this.#starts.length) {
      this.#starts = grown(this.#starts, new Int32Array(2 * this.length + 2));
    }
    for (let i = from; i < to; i++) this.#bytes[start + i - from] = bytes[i]!;
    this.#starts[++this.length] = end;
  }

  /** All strings one behind the other, for reading only. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /** Where string i begins in bytes; it ends where string i + 1 begins. */
  start(i: number): number {
    return this.#starts[i]!;
  }

  /** The number of the first string that is equal to this one, which is not empty; undefined if there is none. */
  indexOf(bytes: Uint8Array): number | undefined {
    for (let i = 0; i < this.length; i++) {
      const string = this.at(i);
      if (string.length === bytes.length && string.every((byte, k) => byte === bytes[k])) return i;
    }
    return undefined;
  }

  /** A list in which the strings of these numbers are empty. */
  without(numbers: number[]): ByteStrings {
    const left = new ByteStrings(this.length, this.#bytes.length), gone = new Set(numbers);
    for (let i = 0; i < this.length; i++) {
      left.push(this.#bytes, this.start(i), this.start(gone.has(i) ? i : i + 1));
    }
    return left;
  }

  /** String i; a view, not a copy. */
  at(i: number): Uint8Array {
    return this.#bytes.subarray(this.#starts[i], this.#starts[i + 1]);
  }
}

function grown<T extends Uint8Array | Int32Array>(array: T, larger: T): T {
  larger.set(array);
  return larger;
}
