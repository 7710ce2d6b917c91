// From a block of documents to token ids: what an encoder does, on the main thread or in a worker.
import type { Block } from "../read/block.ts";
import { bytesFraction } from "../hash.ts";
import { TokenBuffer } from "../tokenizers/token_buffer.ts";
import type { Tokenizer } from "../tokenizer.ts";
import type { Ids } from "./writer.ts";

/** What decides where a document goes. */
export type SplitOptions = {
  /** Share of the documents that goes to val. */
  val_fraction: number;
  /** Chooses which documents go to val. */
  seed: number;
  /** Each document is cut in two instead: its end goes to val. */
  by_position?: boolean;
};

/** The documents of a block that belong to one split. */
export type EncodedSplit = {
  /** Each document as bos, its own tokens, and eot where that is another token. */
  ids: Ids;
  /** Where each document ends in ids. */
  ends: Uint32Array<ArrayBuffer>;
  /** Bytes of text in the documents. */
  bytes: number;
};

/** A block as token ids. */
export type Encoded = {
  /** Documents in the block. */
  documents: number;
  /** Those without text, which are left out. */
  empty: number;
  /** What is trained on. */
  train: EncodedSplit;
  /** What is held out. */
  val: EncodedSplit;
  /** Smallest of the fractions by which documents go to train or val; 1 without documents. */
  smallest: number;
  /** Largest of them; 0 without documents. */
  largest: number;
};

const LARGEST_ROOM = 1 << 24; // ids: room that a huge document made is given back

/** Encodes blocks with one tokenizer. The document's text and the seed decide its split, so order and place do not matter. */
export class BlockEncoder {
  readonly #tokenizer: Tokenizer;
  readonly #options: SplitOptions;
  #train = new SplitBuffer();
  #val = new SplitBuffer();

  /** options: decide which documents go to val. */
  constructor(tokenizer: Tokenizer, options: SplitOptions) {
    this.#tokenizer = tokenizer;
    this.#options = options;
  }

  /** The arrays of the result belong to it alone. */
  encode({ text, ends }: Pick<Block, "text" | "ends">): Encoded {
    const { val_fraction, seed, by_position } = this.#options;
    let empty = 0, smallest = 1, largest = 0;
    for (let d = 0, from = 0; d < ends.length; d++) {
      const to = ends[d]!;
      if (to === from) {
        empty++;
        continue;
      }
      const fraction = bytesFraction(text, from, to, seed);
      smallest = Math.min(smallest, fraction);
      largest = Math.max(largest, fraction);
      const cut = by_position ? cutAt(text, from, to, val_fraction) : fraction < val_fraction ? from : to;
      if (cut > from) this.#train.add(this.#tokenizer, text, from, cut);
      if (to > cut) this.#val.add(this.#tokenizer, text, cut, to);
      from = to;
    }
    const train = this.#take(this.#train), val = this.#take(this.#val);
    return { documents: ends.length, empty, train, val, smallest, largest };
  }

  #take(buffer: SplitBuffer): EncodedSplit {
    return buffer.take(this.#tokenizer.vocab_size > 65_535 ? Uint32Array : Uint16Array);
  }
}

/** Where the end of a text begins that is so much of its bytes, or the character there. */
function cutAt(text: Uint8Array, from: number, to: number, fraction: number): number {
  let at = from + Math.floor((to - from) * (1 - fraction));
  while (at > from && at < to && (text[at]! & 0xc0) === 0x80) at--;
  return at;
}

/** The documents of one split while a block is encoded. */
class SplitBuffer {
  #ids = new TokenBuffer();
  #ends: number[] = [];
  #bytes = 0;

  add(tokenizer: Tokenizer, text: Uint8Array, from: number, to: number): void {
    const { bos, eot } = tokenizer;
    this.#ids.push(bos);
    tokenizer.encodeUtf8(text, from, to, this.#ids);
    if (eot !== bos) this.#ids.push(eot);
    this.#ends.push(this.#ids.length);
    this.#bytes += to - from;
  }

  /** Hands out what was added and starts again. */
  take(Kind: Uint16ArrayConstructor | Uint32ArrayConstructor): EncodedSplit {
    const ids = new Kind(this.#ids.ids.subarray(0, this.#ids.length));
    const taken = { ids, ends: Uint32Array.from(this.#ends), bytes: this.#bytes };
    if (this.#ids.ids.length > LARGEST_ROOM) this.#ids = new TokenBuffer();
    this.#ids.length = 0;
    this.#ends.length = 0;
    this.#bytes = 0;
    return taken;
  }
}
