// What travels from the reader of prepare to its encoders: about a megabyte of documents as bytes, so that no string is made
// for a document on the way and the memory can be handed from thread to thread.
import { isUtf8 } from "node:buffer";
import { firstInvalid } from "./utf8.ts";

/** Whole documents, one behind the other. The UTF-8 text of document d is text[ends[d - 1] .. ends[d]), from 0 for the first. */
export type Block = {
  /** Valid UTF-8 in a buffer that belongs to this block alone. */
  text: Uint8Array<ArrayBuffer>;
  /** Where each document ends in text, in bytes. A document that is null or "" ends where the one before it does. */
  ends: Uint32Array<ArrayBuffer>;
  /** Bytes of input, as they are stored, that were read for this block. */
  read: number;
};

/** The text of document d of a block: a view. */
export function documentOf({ text, ends }: Block, d: number): Uint8Array<ArrayBuffer> {
  return text.subarray(d === 0 ? 0 : ends[d - 1], ends[d]);
}

/** Bytes that a document may have. */
export const DOCUMENT_BYTES = 256 << 20;

const BLOCK_BYTES = 1 << 20; // a block is full with the document that reaches this many bytes,
const BLOCK_DOCUMENTS = 1 << 16; // or with so many documents, since those may all be empty

/** Collects documents into blocks. */
export class BlockBuilder {
  /** Bytes of input for the next block; whoever reads adds to it. */
  read = 0;
  readonly #capacity: number;
  #text: Uint8Array<ArrayBuffer>;
  #length = 0; // bytes in it
  #ends: number[] = [];
  #places: number[] = []; // of the documents that have ended

  /** Takes the bytes to make room for at first. */
  constructor(capacity = BLOCK_BYTES + BLOCK_BYTES / 4) {
    this.#capacity = capacity;
    this.#text = new Uint8Array(capacity);
  }

  /** Whether it is time to take the block. */
  get full(): boolean {
    return this.bytes >= BLOCK_BYTES || this.#ends.length >= BLOCK_DOCUMENTS;
  }

  /** Bytes in the block, without those of the open document. */
  get bytes(): number {
    return this.#ends.at(-1) ?? 0;
  }

  /** Documents in the block, without the open one. */
  get documents(): number {
    return this.#ends.length;
  }

  /** Bytes in the open document. */
  get open(): number {
    return this.#length - this.bytes;
  }

  /** Byte i of the open document, undefined outside of it. */
  openAt(i: number): number | undefined {
    return i < 0 || i >= this.open ? undefined : this.#text[this.bytes + i];
  }

  /** Adds bytes to the open document; they need not be valid UTF-8. */
  append(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#text.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Adds a string to the open document. */
  appendString(text: string): void {
    this.#reserve(text.length);
    const { read, written } = utf8.encodeInto(text, this.#text.subarray(this.#length));
    this.#length += written;
    if (read === text.length) return;
    this.#reserve(3 * (text.length - read)); // a UTF-16 unit takes at most 3 bytes
    this.#length += utf8.encodeInto(text.slice(read), this.#text.subarray(this.#length)).written;
  }

  /** Ends the open document; the next begins. place: what takeValid() is to call it if it is no text. */
  end(place = 0): void {
    this.#ends.push(this.#length);
    this.#places.push(place);
  }

  /** Keeps the first n bytes of the open document. */
  cut(n: number): void {
    this.#length = this.bytes + n;
  }

  /** The documents collected, which are valid UTF-8. The open one goes to the next block. */
  take(): Block {
    const end = this.bytes, read = this.read;
    const text = this.#text.subarray(0, end), ends = Uint32Array.from(this.#ends);
    const open = this.#text.subarray(end, this.#length);
    this.#text = new Uint8Array(this.#capacity);
    this.#length = 0;
    this.#ends = [];
    this.#places = [];
    this.read = 0;
    this.append(open);
    return { text, ends, read };
  }

  /**
   * The documents collected, without those that are not UTF-8: they were written in another encoding, and no repair brings
   * their text back.
   *
   * @param report Called for each that is left out with its place, where the first wrong byte is in it, and that byte.
   * @param zeros Whether a document may have bytes that are 0. Text files have none, unless they are of UTF-16.
   */
  takeValid(report: (place: number, at: number, byte: number) => void, { zeros } = { zeros: true }): Block {
    const places = this.#places, block = this.take();
    if (isValid(block) && (zeros || !block.text.includes(0))) return block;
    const valid = new BlockBuilder(block.text.length);
    for (const [d, place] of places.entries()) {
      const document = documentOf(block, d), zero = zeros ? -1 : document.indexOf(0);
      const at = zero < 0 ? firstInvalid(document) : zero;
      if (at >= 0) {
        report(place, at, document[at]!);
        continue;
      }
      valid.append(document);
      valid.end();
    }
    return { ...valid.take(), read: block.read };
  }

  #reserve(bytes: number): void {
    if (this.#length + bytes <= this.#text.length) return;
    const larger = new Uint8Array(Math.max(this.#length + bytes, 2 * this.#text.length));
    larger.set(this.#text.subarray(0, this.#length));
    this.#text = larger;
  }
}

const utf8 = new TextEncoder();

/** Whether each document by itself is valid UTF-8: together they are, and none begins in the middle of a character. */
function isValid({ text, ends }: Block): boolean {
  if (!isUtf8(text)) return false;
  for (const end of ends) if ((text[end]! & 0xc0) === 0x80) return false; // past the last one, undefined gives 0
  return true;
}
