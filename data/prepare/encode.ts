// From a block of documents to token ids: what an encoder does, on the main thread or in a worker.
import { UserError } from "../../base/errors.ts";
import { BEGINS } from "../bins.ts";
import type { Block } from "../read/block.ts";
import { endOfLine } from "../read/conversations.ts";
import { refuseBad } from "../read/utf8.ts";
import { bytesFraction } from "../hash.ts";
import { type ChatOptions, ConversationEncoder, type Encoded as Conversation } from "./conversations.ts";
import { grown, TokenBuffer } from "../tokenizers/token_buffer.ts";
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
  /** How conversations are encoded, where documents are such; null where they are text. */
  conversations?: ChatOptions | null;
};

/** The documents of a block that belong to one split. */
export type EncodedSplit = {
  /** Each document as bos, its own tokens, and eot where that is another token; a conversation as its template has it. */
  ids: Ids;
  /** Of conversations, a byte for each id: TRAINED, and BEGINS for the first of each; of text empty. */
  mask: Uint8Array<ArrayBuffer>;
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
  /** Conversations that cannot be read, which are left out. */
  bad: number;
  /** What was said of the first of them. */
  first_bad?: string | undefined;
  /** Conversations that lost their end, because they were too long. */
  cut: number;
  /** Those that were left out, since their first answer is too long already. */
  too_long: number;
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
  readonly #conversations: ConversationEncoder | undefined;
  #train = new SplitBuffer();
  #val = new SplitBuffer();

  /** options: decide which documents go to val. */
  constructor(tokenizer: Tokenizer, options: SplitOptions) {
    this.#tokenizer = tokenizer;
    this.#options = options;
    if (options.conversations) {
      this.#conversations = new ConversationEncoder(tokenizer, options.conversations);
    }
  }

  /** The arrays of the result belong to it alone. */
  encode({ text, ends }: Pick<Block, "text" | "ends">): Encoded {
    const { val_fraction, seed, by_position, conversations } = this.#options, chat = this.#conversations;
    const bad = { bad: 0, first_bad: undefined as string | undefined };
    let empty = 0, smallest = 1, largest = 0;
    for (let d = 0, from = 0; d < ends.length; d++) {
      const to = ends[d]!;
      if (to === from) {
        empty++;
        continue;
      }
      const fraction = bytesFraction(text, from, chat ? endOfLine(text, from) : to, seed);
      smallest = Math.min(smallest, fraction);
      largest = Math.max(largest, fraction);
      if (chat) {
        const conversation = orBad(() => chat.encode(text, from, to), conversations!.skip_bad, bad);
        const split = fraction < val_fraction ? this.#val : this.#train;
        if (conversation) split.addConversation(conversation);
        from = to;
        continue;
      }
      const cut = by_position ? cutAt(text, from, to, val_fraction) : fraction < val_fraction ? from : to;
      if (cut > from) this.#train.add(this.#tokenizer, text, from, cut);
      if (to > cut) this.#val.add(this.#tokenizer, text, cut, to);
      from = to;
    }
    const train = this.#take(this.#train), val = this.#take(this.#val);
    const { cut = 0, too_long = 0 } = chat?.takeCounts() ?? {};
    return { documents: ends.length, empty, ...bad, cut, too_long, train, val, smallest, largest };
  }

  #take(buffer: SplitBuffer): EncodedSplit {
    return buffer.take(this.#tokenizer.vocab_size > 65_535 ? Uint32Array : Uint16Array);
  }
}

/** What encode() gives; undefined where it refuses a conversation that may be left out, which is counted. */
function orBad<T>(
  encode: () => T,
  skip_bad: boolean,
  counts: { bad: number; first_bad?: string | undefined },
): T | undefined {
  try {
    return encode();
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    if (!skip_bad) refuseBad(error.message);
    counts.bad++;
    counts.first_bad ??= error.message;
    return undefined;
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
  #mask = new Uint8Array();
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

  addConversation({ ids, mask, bytes }: Conversation): void {
    const at = this.#ids.length;
    this.#ids.reserve(ids.length);
    this.#ids.ids.set(ids, at);
    this.#ids.length += ids.length;
    if (this.#mask.length < this.#ids.length) this.#mask = grown(this.#mask, this.#ids.ids.length);
    this.#mask.set(mask, at);
    this.#mask[at]! |= BEGINS;
    this.#ends.push(this.#ids.length);
    this.#bytes += bytes;
  }

  /** Hands out what was added and starts again. */
  take(Kind: Uint16ArrayConstructor | Uint32ArrayConstructor): EncodedSplit {
    const ids = new Kind(this.#ids.ids.subarray(0, this.#ids.length));
    const mask = this.#mask.slice(0, this.#ids.length); // none of text
    const taken = { ids, mask, ends: Uint32Array.from(this.#ends), bytes: this.#bytes };
    if (this.#ids.ids.length > LARGEST_ROOM) {
      this.#ids = new TokenBuffer();
      this.#mask = new Uint8Array();
    }
    this.#ids.length = 0;
    this.#ends.length = 0;
    this.#bytes = 0;
    return taken;
  }
}
