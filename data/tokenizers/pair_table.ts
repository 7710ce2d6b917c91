// Which neighbours a byte-pair encoding joins: a hash table from pairs of ids to the rank of their join and the id it makes.

/** The rank of a pair that does not join, above all others. */
export const NEVER = 0x7fffffff;

/** Pairs of ids with their ranks, which count from 1. Pairs of lower rank join first. */
export class PairTable {
  /** Pairs that are in the table. */
  size = 0;
  /** Pairs that may be in the table. */
  readonly capacity: number;
  readonly #slots: Int32Array; // of four numbers: left id, right id, rank or 0 for a free slot, id of the join

  /** Makes room for so many pairs, no more. */
  constructor(capacity: number) {
    this.capacity = capacity;
    this.#slots = new Int32Array(4 * powerOfTwo(Math.ceil(1.6 * capacity)));
  }

  /** Puts a pair in, or gives one that is there another rank and join. */
  set(left: number, right: number, rank: number, id: number): void {
    const slots = this.#slots, mask = slots.length - 1;
    let slot = hashOf(left, right) << 2 & mask;
    while (slots[slot + 2] !== 0 && (slots[slot] !== left || slots[slot + 1] !== right)) {
      slot = slot + 4 & mask;
    }
    if (slots[slot + 2] === 0) this.size++;
    slots[slot] = left;
    slots[slot + 1] = right;
    slots[slot + 2] = rank;
    slots[slot + 3] = id;
  }

  /** The place of a pair, -1 if it is not in the table. */
  find(left: number, right: number): number {
    const slots = this.#slots, mask = slots.length - 1;
    for (let slot = hashOf(left, right) << 2 & mask;; slot = slot + 4 & mask) {
      if (slots[slot + 2] === 0) return -1;
      if (slots[slot] === left && slots[slot + 1] === right) return slot;
    }
  }

  /** The rank of the pair at a place. */
  rank(place: number): number {
    return this.#slots[place + 2]!;
  }

  /** The id that the pair at a place makes. */
  join(place: number): number {
    return this.#slots[place + 3]!;
  }
}

/** The smallest power of two that is not smaller than n. */
export function powerOfTwo(n: number): number {
  return n <= 1 ? 1 : 1 << 32 - Math.clz32(n - 1);
}

function hashOf(left: number, right: number): number {
  const hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return hash ^ hash >>> 15;
}
