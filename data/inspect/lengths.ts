// The distribution of many lengths in little memory: counted one by one below 1024, and above that in bins of a thousandth.

const EXACT = 1024; // lengths below have a bin each, and so many bins share each octave above
const BINS = 33 * EXACT; // up to 2^42

/** Lengths that were counted. */
export class Lengths {
  /** How many there are. */
  count = 0;
  /** Of all of them. */
  sum = 0;
  /** The shortest; Infinity if there are none. */
  least: number = Infinity;
  /** The longest. */
  most = 0;
  readonly #bins = new Float64Array(BINS);

  /** Counts a length. */
  add(length: number): void {
    this.count++;
    this.sum += length;
    if (length < this.least) this.least = length;
    if (length > this.most) this.most = length;
    this.#bins[binOf(length)]!++;
  }

  /** The length that a share of all lengths does not exceed, from 0 to 1; above 1024 up to a thousandth too low. */
  quantile(share: number): number {
    const rank = Math.max(1, Math.ceil(share * this.count));
    let seen = 0;
    const bin = this.#bins.findIndex((count) => (seen += count) >= rank);
    return Math.min(this.most, Math.max(this.least, lowestOf(bin)));
  }

  /** Counts of the lengths 0, 1, 2 to 3, 4 to 7, ...: octaves[0] is of length 0, octaves[k] of 2^(k-1) and up. */
  octaves(): number[] {
    const octaves: number[] = [];
    this.#bins.forEach((count, bin) => {
      if (count === 0) return;
      const octave = bin === 0 ? 0 : 1 + Math.floor(Math.log2(lowestOf(bin)));
      while (octaves.length <= octave) octaves.push(0);
      octaves[octave]! += count;
    });
    return octaves;
  }
}

function binOf(length: number): number {
  if (length < EXACT) return length;
  const octave = Math.floor(Math.log2(length)) - 10; // from 0
  return octave * EXACT + Math.floor(length / 2 ** octave); // the quotient is 1024 to 2047
}

/** The smallest length of a bin. */
function lowestOf(bin: number): number {
  if (bin < EXACT) return bin;
  const octave = Math.floor(bin / EXACT) - 1;
  return (bin - octave * EXACT) * 2 ** octave;
}
