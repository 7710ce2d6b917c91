// How often each word occurs: a hash table of byte strings, which makes no object for a word.
import { ByteStrings } from "../tokenizers/byte_strings.ts";

const FIRST_WORDS = 1 << 12; // room at the start, which doubles as needed
const FIRST_BYTES = 1 << 16;

/** How much a WordCounts holds. */
export type WordLimits = {
  /** Different words. */
  words: number;
  /** Bytes of all different words together. */
  bytes: number;
};

/** Room for the words of some 10 GB of English. Learning from that many takes 2 GB of memory, 4 GB from the longest words. */
export const WORD_LIMITS: WordLimits = { words: 1 << 23, bytes: 1 << 27 };

/** Counts words, which are strings of bytes. */
export class WordCounts {
  readonly #limits: WordLimits;
  readonly #words = new ByteStrings(FIRST_WORDS, FIRST_BYTES);
  #counts = new Uint32Array(FIRST_WORDS);
  #hashes = new Int32Array(FIRST_WORDS);
  #slots = new Int32Array(2 * FIRST_WORDS); // by hash, half full at most: word + 1, or 0

  /** limits: what it has room for. */
  constructor(limits: WordLimits = WORD_LIMITS) {
    this.#limits = limits;
  }

  /** Different words. They are numbered from 0 as they come. */
  get size(): number {
    return this.#words.length;
  }

  /** Bytes of all different words together. */
  get bytes(): number {
    return this.#words.start(this.size);
  }

  /** Counts the word bytes[from, to) once more. False if it is new and there is no room for it. */
  add(bytes: Uint8Array, from: number, to: number): boolean {
    let hash = to - from;
    for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193); // FNV-1a
    hash ^= hash >>> 15;
    const slots = this.#slots, mask = slots.length - 1;
    for (let slot = hash & mask;; slot = (slot + 1) & mask) {
      const word = slots[slot]! - 1;
      if (word < 0) return this.#insert(bytes, from, to, hash);
      if (this.#hashes[word] !== hash || !this.#equals(word, bytes, from, to)) continue;
      if (this.#counts[word]! < 0xffffffff) this.#counts[word]!++;
      return true;
    }
  }

  /** The bytes of a word; a view, not a copy. */
  bytesOf(word: number): Uint8Array {
    return this.#words.at(word);
  }

  /** How often a word was added, counted up to 2^32 - 1. */
  countOf(word: number): number {
    return this.#counts[word]!;
  }

  #equals(word: number, bytes: Uint8Array, from: number, to: number): boolean {
    const words = this.#words, own = words.bytes, start = words.start(word);
    if (words.start(word + 1) - start !== to - from) return false;
    for (let i = from, j = start; i < to; i++, j++) if (own[j] !== bytes[i]) return false;
    return true;
  }

  #insert(bytes: Uint8Array, from: number, to: number, hash: number): boolean {
    const word = this.size;
    if (word === this.#limits.words || this.bytes + to - from > this.#limits.bytes) return false;
    if (word === this.#counts.length) this.#grow();
    this.#words.push(bytes, from, to);
    this.#counts[word] = 1;
    this.#hashes[word] = hash;
    this.#occupy(word);
    return true;
  }

  #grow(): void {
    const counts = new Uint32Array(2 * this.size), hashes = new Int32Array(2 * this.size);
    counts.set(this.#counts);
    hashes.set(this.#hashes);
    this.#counts = counts;
    this.#hashes = hashes;
    this.#slots = new Int32Array(2 * this.#slots.length);
    for (let word = 0; word < this.size; word++) this.#occupy(word);
  }

  #occupy(word: number): void {
    const slots = this.#slots, mask = slots.length - 1;
    let slot = this.#hashes[word]! & mask;
    while (slots[slot] !== 0) slot = (slot + 1) & mask;
    slots[slot] = word + 1;
  }
}
