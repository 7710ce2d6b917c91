// Pairs of tokens with how often they occur and where, the most frequent first.

const FIRST_SLOTS = 1 << 12;
const NOWHERE = new Int32Array(0);

/** Two tokens that stand side by side in a corpus. */
export class Pair {
  /** Id of the first token. */
  readonly left: number;
  /** Id of the second token. */
  readonly right: number;
  /** How often they do. */
  count = 0;
  /** The count by which the pair is queued; count may have fallen since. */
  queued = 0;
  /** Places where they do, each counting as often as its word occurs. */
  n_places = 0;
  /** Where the left token begins, in rising order. The pair may have left some of these places. */
  places: Int32Array = NOWHERE;
  #known = 0; // places written so far

  /** A pair that has not been counted yet. */
  constructor(left: number, right: number) {
    this.left = left;
    this.right = right;
  }

  /** Counts one place. */
  tally(weight: number): void {
    this.count += weight;
    this.n_places++;
  }

  /** Notes a place that was counted, unless the pair is too rare for a queue. */
  addPlace(i: number): void {
    if (this.places !== NOWHERE) this.places[this.#known++] = i;
  }
}

/** The pairs that may still merge. */
export class PairQueue {
  /** Pairs that occur less often are left out. A count only falls, so that they stay out. */
  readonly least: number;
  #slots: (Pair | undefined)[] = new Array(FIRST_SLOTS); // by hash, half full at most
  #size = 0;
  readonly #heap: Pair[] = []; // pair i comes before pairs 2i + 1 and 2i + 2

  /** least: how often a pair must occur. */
  constructor(least: number) {
    this.least = least;
  }

  /** Adds pairs that have been counted and makes room for their places. */
  add(pairs: Iterable<Pair | undefined>): void {
    const frequent: Pair[] = [];
    let n = 0;
    for (const pair of pairs) {
      if (pair === undefined || pair.count < this.least) continue;
      frequent.push(pair);
      n += pair.n_places;
    }
    const places = new Int32Array(n); // one array for all: thousands of small ones would cost more than what is in them
    n = 0;
    for (const pair of frequent) {
      pair.places = places.subarray(n, n += pair.n_places);
      this.#insert(pair);
      this.#push(pair);
    }
  }

  /** Takes from the count of a pair. */
  lower(left: number, right: number, by: number): void {
    const slots = this.#slots, mask = slots.length - 1;
    for (let slot = hash(left, right) & mask;; slot = (slot + 1) & mask) {
      const pair = slots[slot];
      if (pair === undefined) return; // it is a rare one
      if (pair.left !== left || pair.right !== right) continue;
      pair.count -= by;
      return;
    }
  }

  /** Takes the pair with the highest count out; undefined when there is none. */
  pop(): Pair | undefined {
    while (this.#heap.length > 0) {
      const pair = this.#takeFirst();
      if (pair.count === pair.queued) return pair;
      if (pair.count >= this.least) this.#push(pair); // it has fallen behind others
    }
    return undefined;
  }

  #insert(pair: Pair): void {
    if (2 * ++this.#size > this.#slots.length) this.#grow();
    occupy(this.#slots, pair);
  }

  #grow(): void {
    const slots = new Array(2 * this.#slots.length);
    for (const pair of this.#slots) if (pair !== undefined) occupy(slots, pair);
    this.#slots = slots;
  }

  #push(pair: Pair): void {
    pair.queued = pair.count;
    const heap = this.#heap;
    let i = heap.push(pair) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!precedes(pair, heap[parent]!)) break;
      heap[i] = heap[parent]!;
      i = parent;
    }
    heap[i] = pair;
  }

  #takeFirst(): Pair {
    const heap = this.#heap, first = heap[0]!, last = heap.pop()!;
    if (heap.length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && precedes(heap[child + 1]!, heap[child]!)) child++;
      if (!precedes(heap[child]!, last)) break;
      heap[i] = heap[child]!;
      i = child;
    }
    heap[i] = last;
    return first;
  }
}

function occupy(slots: (Pair | undefined)[], pair: Pair): void {
  const mask = slots.length - 1;
  let slot = hash(pair.left, pair.right) & mask;
  while (slots[slot] !== undefined) slot = (slot + 1) & mask;
  slots[slot] = pair;
}

/** The higher count first, then the smaller left token, then the smaller right one. */
function precedes(a: Pair, b: Pair): boolean {
  if (a.queued !== b.queued) return a.queued > b.queued;
  return a.left < b.left || a.left === b.left && a.right < b.right;
}

function hash(left: number, right: number): number {
  const x = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return x ^ x >>> 15;
}
