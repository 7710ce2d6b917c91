// The texts that came before, to find those that come again.
import { mix } from "../hash.ts";

/**
 * A set of texts that keeps 64 bits of hash for each, in 16 to 32 bytes of memory. That a text among n is taken for another
 * one has a probability of n * n / 2^65: 3 in a million for ten million documents.
 */
export class TextSet {
  #size = 0;
  #words = new Uint32Array(1 << 12); // two for each slot, both 0 where it is free
  readonly #hash = new Uint32Array(2);

  /** Adds a text and returns whether it is new. */
  add(text: Uint8Array): boolean {
    if (4 * this.#size >= this.#words.length) this.#grow(); // it is half full
    hash64(text, this.#hash);
    return this.#insert(this.#hash[0]!, this.#hash[1]!);
  }

  #insert(low: number, high: number): boolean {
    const words = this.#words, last = words.length - 1;
    for (let i = 2 * low & last;; i = i + 2 & last) {
      if (words[i] === low && words[i + 1] === high) return false;
      if (words[i] !== 0 || words[i + 1] !== 0) continue;
      words[i] = low;
      words[i + 1] = high;
      this.#size++;
      return true;
    }
  }

  #grow(): void {
    const old = this.#words;
    this.#words = new Uint32Array(2 * old.length);
    this.#size = 0;
    for (let i = 0; i < old.length; i += 2) {
      if (old[i] !== 0 || old[i + 1] !== 0) this.#insert(old[i]!, old[i + 1]!);
    }
  }
}

/**
 * Two hashes of a text as MurmurHash3 makes one, each with multipliers of its own: with the same ones and another seed, texts
 * that have one hash in common often have both.
 */
function hash64(text: Uint8Array, hash: Uint32Array): void {
  const n = text.length, wordsEnd = n - n % 4;
  let low = 0, high = 0;
  for (let i = 0; i < wordsEnd; i += 4) {
    const word = text[i]! | text[i + 1]! << 8 | text[i + 2]! << 16 | text[i + 3]! << 24;
    low = step(low, word, 0x239b961b, 0xab0e9789);
    high = step(high, word, 0x38b34ae5, 0xa1e38b93);
  }
  let rest = 0;
  for (let i = n - 1; i >= wordsEnd; i--) rest = rest << 8 | text[i]!;
  hash[0] = mix(step(low, rest, 0x239b961b, 0xab0e9789) ^ n) || 1; // 0 and 0 stand for a free slot
  hash[1] = mix(step(high, rest, 0x38b34ae5, 0xa1e38b93) ^ n);
}

/** Takes one more word into a hash. */
function step(hash: number, word: number, a: number, b: number): number {
  return Math.imul(rotate(hash ^ Math.imul(rotate(Math.imul(word, a), 15), b), 13), 5) + 0xe6546b64 | 0;
}

function rotate(x: number, bits: number): number {
  return x << bits | x >>> 32 - bits;
}
