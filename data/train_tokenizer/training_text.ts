// The documents that a tokenizer is trained on: their words are counted, and some are held out to measure it by.
import type { Block } from "../read/block.ts";
import { type Scanner, scannerOf } from "../tokenizers/scanners.ts";
import { WORD_LIMITS, WordCounts, type WordLimits } from "./word_counts.ts";

const HOLD_OUT = 100; // of so many documents the last
const SAMPLE_BYTES = 1_000_000;

/** Text that is read once and not kept, but for a sample. */
export class TrainingText {
  /** Of the documents that are not held out. */
  readonly words: WordCounts;
  /** Documents so far, without empty ones. */
  documents = 0;
  /** Bytes of text in them. */
  bytes = 0;
  readonly #scanner: Scanner;
  readonly #first = new Sample();
  readonly #heldOut = new Sample();

  /** pattern: one of PATTERNS, by which the text is cut into words. */
  constructor(pattern: string, limits: WordLimits = WORD_LIMITS) {
    this.#scanner = scannerOf(pattern)!;
    this.words = new WordCounts(limits);
  }

  /** Adds the documents of a block. False if there is no room for all their words: the text ends within this block then. */
  add({ text, ends }: Pick<Block, "text" | "ends">): boolean {
    for (let d = 0, from = 0; d < ends.length; from = ends[d++]!) {
      if (ends[d]! > from && !this.#addDocument(text.subarray(from, ends[d]))) return false;
    }
    return true;
  }

  /** Whether there were enough documents to hold some out. */
  get heldOut(): boolean {
    return this.#heldOut.texts.length > 0;
  }

  /** Text to measure the tokenizer by: what was held out, else the beginning. */
  get sample(): Uint8Array[] {
    return this.heldOut ? this.#heldOut.texts : this.#first.texts;
  }

  #addDocument(text: Uint8Array): boolean {
    const isHeldOut = this.documents % HOLD_OUT === HOLD_OUT - 1 && !this.#heldOut.full;
    if (isHeldOut) this.#heldOut.add(text);
    else if (!this.#countWords(text)) return false;
    if (!this.#first.full) this.#first.add(text);
    this.documents++;
    this.bytes += text.length;
    return true;
  }

  #countWords(text: Uint8Array): boolean {
    const scan = this.#scanner, words = this.words;
    for (let i = 0; i < text.length;) {
      const end = scan(text, i, text.length);
      if (!words.add(text, i, end)) return false;
      i = end;
    }
    return true;
  }
}

/** About a megabyte of text. */
class Sample {
  readonly texts: Uint8Array[] = [];
  #left = SAMPLE_BYTES;

  get full(): boolean {
    return this.#left === 0;
  }

  /** Copies a document, or its beginning if it is more than there is room for. */
  add(text: Uint8Array): void {
    let end = Math.min(this.#left, text.length);
    this.#left -= end;
    while (end < text.length && (text[end]! & 0xc0) === 0x80) end++; // to the end of a character
    this.texts.push(text.slice(0, end));
  }
}
