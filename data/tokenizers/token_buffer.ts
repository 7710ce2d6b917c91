// Token ids in the order in which they are encoded, in one array that grows: encoding makes no array per document.

/** A list of token ids that grows. */
export class TokenBuffer {
  /** The ids are ids[0 .. length); the rest is room. Reserving may replace the array. */
  ids: Uint32Array<ArrayBuffer> = new Uint32Array(1 << 16);
  /** Ids in the list. */
  length = 0;

  /** Makes room for n more ids. */
  reserve(n: number): void {
    if (this.length + n <= this.ids.length) return;
    const larger = new Uint32Array(Math.max(this.length + n, 2 * this.ids.length));
    larger.set(this.ids.subarray(0, this.length));
    this.ids = larger;
  }

  /** Appends one id. */
  push(id: number): void {
    this.reserve(1);
    this.ids[this.length++] = id;
  }
}

/** A new array of n bytes that begins with those of another and is 0 behind them. */
export function grown(bytes: Uint8Array, n: number): Uint8Array<ArrayBuffer> {
  const larger = new Uint8Array(n);
  larger.set(bytes);
  return larger;
}
