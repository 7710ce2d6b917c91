// Which window each sample of training is: arithmetic on numbers, so that the order is a pure function of seed and sample and
// nothing has to be saved to go on with it. Samples are numbered 0, 1, 2, ... over the whole run and all processes.
import { mix } from "./hash.ts";

/** Samples after which a mix of datasets has its exact proportions: weights count in ten-thousandths. */
export const CYCLE = 10_000;

/**
 * Place i of a shuffled 0 .. n - 1. Every (seed, epoch) has its own order, in which each number comes once.
 *
 * A Feistel network is a bijection on pairs of half-words whatever its round function is; results of n or more are put in
 * again until one is below n, which keeps it a bijection on 0 .. n - 1. n must be below 2^40.
 */
export function permute(i: number, n: number, seed: number, epoch: number): number {
  const half = 2 ** Math.ceil(Math.log2(n) / 2); // half * half >= n
  const key = mix(mix(seed | 0) ^ mix(Math.floor(seed / 2 ** 32) + 0x5bd1e995) ^ mix(epoch + 0x27d4eb2f));
  let result = i;
  do {
    let left = Math.floor(result / half), right = result % half;
    for (let round = 0; round < 6; round++) {
      const next = (left + (mix(right ^ mix(key + round)) >>> 0)) % half;
      left = right;
      right = next;
    }
    result = left * half + right;
  } while (result >= n);
  return result;
}

/** How many of a cycle's samples each weight gets: CYCLE shared by largest remainder, ties to the first. */
export function slotsOf(weights: readonly number[]): number[] {
  const sum = weights.reduce((a, b) => a + b, 0);
  const exact = weights.map((weight) => weight / sum * CYCLE);
  const slots = exact.map(Math.floor);
  const byRemainder = exact.map((_, part) => part).sort((a, b) =>
    (exact[b]! - slots[b]!) - (exact[a]! - slots[a]!) || a - b
  );
  const left = CYCLE - slots.reduce((a, b) => a + b, 0);
  for (const part of byRemainder.slice(0, left)) slots[part]!++;
  return slots;
}

/** One sample: which part of a mix it comes from, and which of that part's samples it is, from 0. */
export type Deal = {
  /** Index of the part. */
  part: number;
  /** The sample among those of its part, from 0. */
  index: number;
};

/**
 * Deals samples to the parts of a mix. Every cycle of CYCLE samples gives each part its slots, in an order of its own; the
 * samples of a part are numbered in the order in which they come, so it can go through its windows epoch by epoch.
 */
export class Dealer {
  readonly #slots: readonly number[];
  readonly #part = new Uint16Array(CYCLE); // of each sample of the cycle
  readonly #index = new Uint16Array(CYCLE); // samples of the same part before it in the cycle
  #cycle = -1; // that the arrays hold, of this seed
  #seed = NaN;

  /** slots: samples of each part in a cycle; they add up to CYCLE. */
  constructor(slots: readonly number[]) {
    this.#slots = slots;
  }

  /** Where a sample comes from. The answer depends on slots, sample and seed alone. */
  deal(sample: number, seed: number): Deal {
    if (this.#slots.length === 1) return { part: 0, index: sample };
    const cycle = Math.floor(sample / CYCLE), place = sample % CYCLE;
    if (cycle !== this.#cycle || seed !== this.#seed) this.#shuffle(cycle, seed);
    const part = this.#part[place]!;
    return { part, index: cycle * this.#slots[part]! + this.#index[place]! };
  }

  #shuffle(cycle: number, seed: number): void {
    let slot = 0;
    this.#slots.forEach((slots, part) => {
      for (const end = slot + slots; slot < end; slot++) this.#part[permute(slot, CYCLE, seed, cycle)] = part;
    });
    const seen = this.#slots.map(() => 0);
    this.#part.forEach((part, place) => this.#index[place] = seen[part]!++);
    this.#cycle = cycle;
    this.#seed = seed;
  }
}

/**
 * Place i when lists of these sizes take turns: the first of each, the second of each, and so on; a list that has none left
 * is passed over. i must be below the sum of the sizes.
 */
export function inTurn(i: number, sizes: readonly number[]): Deal {
  let round = 0;
  while (true) {
    const playing = sizes.flatMap((size, part) => size > round ? [part] : []);
    const next = Math.min(...playing.map((part) => sizes[part]!)); // rounds until one of them has none left
    const dealt = (next - round) * playing.length;
    if (i < dealt) {
      return { part: playing[i % playing.length]!, index: round + Math.floor(i / playing.length) };
    }
    i -= dealt;
    round = next;
  }
}
