// Reads the tokens of a split from front to back, in memory that does not grow with them.
//
// One token stands between documents: our own bins and llm.c's begin each document with it, nanoGPT's end each document with
// it. Either way the documents of a split are the pieces between these tokens, across shards, where an empty piece before the
// first or after the last of them is none. If the end of text is another token, ours end each document with that. Conversations
// have no such tokens: their masks say where each begins.
import { BEGINS, type Dataset, readTokens, type Shard, TRAINED } from "../bins.ts";
import { Lengths } from "./lengths.ts";
import { damaged } from "../meta.ts";
import { orMistake } from "../../base/system_error.ts";

const CHUNK_BYTES = 1 << 22;

/** The tokens that documents begin and end with. */
export type Ends = Pick<Dataset, "bos" | "eot">;

/** Tokens as they are in a file. */
export type Ids = Uint16Array | Uint32Array;

/**
 * The tokens of a shard, some millions at a time, in an array that the next ones overwrite. Throws UserError if the
 * file ends before its last token.
 *
 * @param onBytes Is shown every byte of the file, in order.
 */
export function* chunksOf(shard: Shard, onBytes: (bytes: Uint8Array) => void = () => {}): Generator<Ids> {
  const { path, tokens, header_bytes, token_bytes } = shard;
  const buffer = new ArrayBuffer(CHUNK_BYTES);
  using file = orMistake(`Cannot read "${path}"`, () => Deno.openSync(path));
  const read = (length: number) => {
    const bytes = new Uint8Array(buffer, 0, length);
    fill(bytes, file, path, `${tokens} tokens`);
    onBytes(bytes);
  };
  read(header_bytes);
  for (let left = tokens; left > 0;) {
    const n = Math.min(left, CHUNK_BYTES / token_bytes);
    read(n * token_bytes);
    yield token_bytes === 2 ? new Uint16Array(buffer, 0, n) : new Uint32Array(buffer, 0, n);
    left -= n;
  }
}

/**
 * The mask of a shard of conversations, in pieces as long as those of chunksOf(); of other shards none. Throws UserError as
 * that does.
 *
 * @param onBytes As of chunksOf().
 */
export function* masksOf(
  shard: Shard,
  onBytes: (bytes: Uint8Array) => void = () => {},
): Generator<Uint8Array> {
  const { mask, tokens, token_bytes } = shard;
  if (mask === undefined) return;
  const buffer = new Uint8Array(CHUNK_BYTES / token_bytes);
  using file = orMistake(`Cannot read "${mask}"`, () => Deno.openSync(mask));
  for (let left = tokens; left > 0;) {
    const bytes = buffer.subarray(0, Math.min(left, buffer.length));
    fill(bytes, file, mask, `${tokens} bytes`);
    onBytes(bytes);
    yield bytes;
    left -= bytes.length;
  }
}

/** Fills bytes from a file, which should hold `all`. Throws UserError if it ends before. */
function fill(bytes: Uint8Array, file: Deno.FsFile, path: string, all: string): void {
  for (let done = 0; done < bytes.length;) {
    const n = orMistake(`Cannot read "${path}"`, () => file.readSync(bytes.subarray(done)));
    if (n === null) throw damaged(path, `it ended before its ${all}, while they were read`);
    done += n;
  }
}

/** What is counted of the tokens of a dataset. */
export class Tally {
  /** How often each id of the vocabulary occurs. */
  readonly counts: Float64Array;
  /** Tokens whose id is not of the vocabulary. */
  outside = 0;
  /** Tokens that are trained on, of conversations. */
  trained = 0;
  /** Tokens of each document, without those that begin and end it. */
  readonly lengths = new Lengths();
  readonly #ends: Ends;
  #length = 0; // of the document that is being read
  #first = true; // no document has begun or ended in the split

  /** ends: the tokens that begin and end a document. */
  constructor(vocab_size: number, ends: Ends) {
    this.counts = new Float64Array(vocab_size);
    this.#ends = ends;
  }

  /** Counts the tokens that follow those before. mask: theirs, of conversations. */
  add(ids: Ids, mask?: Uint8Array): void {
    if (mask) return this.#addConversations(ids, mask);
    const counts = this.counts, { bos, eot } = this.#ends;
    let length = this.#length;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i]!;
      if (id < counts.length) counts[id]!++;
      else this.outside++;
      if (id !== bos) {
        if (id !== eot) length++;
        continue;
      }
      if (length > 0 || !this.#first) this.lengths.add(length);
      this.#first = false;
      length = 0;
    }
    this.#length = length;
  }

  #addConversations(ids: Ids, mask: Uint8Array): void {
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i]!, byte = mask[i]!;
      if (id < this.counts.length) this.counts[id]!++;
      else this.outside++;
      if (byte & TRAINED) this.trained++;
      if (byte & BEGINS && this.#length > 0) {
        this.lengths.add(this.#length);
        this.#length = 0;
      }
      this.#length++;
    }
  }

  /** Says that the split ends here. */
  endSplit(): void {
    if (this.#length > 0) this.lengths.add(this.#length);
    this.#length = 0;
    this.#first = true;
  }
}

/** Tokens [start, end) of a split, counted over its shards. */
export type Range = {
  /** The first token, from 0. */
  start: number;
  /** Behind the last token. */
  end: number;
};

/**
 * Finds a document by its number, from 0. Returns its tokens, without those that begin and end it, or how many documents
 * there are.
 */
export function findDocument(
  shards: Shard[],
  { bos, eot }: Ends,
  number: number,
): Range | { documents: number } {
  if (shards[0]?.mask !== undefined) return findConversation(shards, number);
  let documents = 0, start = 0, position = 0; // of the piece, and of the chunk
  let last = bos; // token of the chunk before
  const textOf = (end: number, last: number) => ({ start, end: last === eot && eot !== bos ? end - 1 : end });
  for (const shard of shards) {
    for (const ids of chunksOf(shard)) {
      for (let i = ids.indexOf(bos); i >= 0; i = ids.indexOf(bos, i + 1)) {
        const end = position + i;
        if (end > 0 && documents++ === number) return textOf(end, i > 0 ? ids[i - 1]! : last);
        start = end + 1;
      }
      position += ids.length;
      last = ids.at(-1)!;
    }
  }
  if (position > start && documents++ === number) return textOf(position, last);
  return { documents };
}

function findConversation(shards: Shard[], number: number): Range | { documents: number } {
  let documents = 0, start = 0, position = 0;
  for (const shard of shards) {
    for (const mask of masksOf(shard)) {
      for (let i = 0; i < mask.length; i++) {
        if (!(mask[i]! & BEGINS)) continue;
        if (documents > number) return { start, end: position + i };
        start = position + i;
        documents++;
      }
      position += mask.length;
    }
  }
  return documents === number + 1 ? { start, end: position } : { documents };
}

/** Tokens [start, end) of a split. */
export function readRange(shards: Shard[], { start, end }: Range): Uint32Array {
  const ids = new Uint32Array(end - start);
  let first = 0; // token of the split that the shard begins with
  for (const shard of shards) {
    const from = Math.max(start, first), to = Math.min(end, first + shard.tokens);
    if (from < to) ids.set(readTokens(shard, from - first, to - from), from - start);
    first += shard.tokens;
  }
  return ids;
}

/** The shard that holds a token of a split, and which token of that shard it is. */
export function locate(shards: Shard[], position: number): { shard: Shard; token: number } {
  let token = position;
  for (const shard of shards) {
    if (token < shard.tokens) return { shard, token };
    token -= shard.tokens;
  }
  throw new RangeError(`Cannot find token ${position}: the split ends ${token} tokens before it`);
}

/** The first token whose id is not below vocab_size: its place in the split and its id. */
export function findOutside(
  shards: Shard[],
  vocab_size: number,
): { position: number; id: number } | undefined {
  let position = 0;
  for (const shard of shards) {
    for (const ids of chunksOf(shard)) {
      const i = ids.findIndex((id: number) => id >= vocab_size);
      if (i >= 0) return { position: position + i, id: ids[i]! };
      position += ids.length;
    }
  }
  return undefined;
}
