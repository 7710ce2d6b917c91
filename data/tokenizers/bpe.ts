// Byte-pair encoding of one piece of text: join the two neighbours of the lowest rank, the leftmost of equals, until no
// neighbours join. The same result as OpenAI's tiktoken and Hugging Face's tokenizers, in O(n log n), so that a piece of a
// million letters does no harm. Pieces met before are looked up instead.
import { UserError } from "../../base/errors.ts";
import { ByteStrings } from "./byte_strings.ts";
import { Heap } from "./heap.ts";
import { NEVER, type PairTable } from "./pair_table.ts";
import { PieceTable } from "./piece_table.ts";

const FEW = 32; // parts of a piece up to which looking at all of them is faster than a heap
const CACHED_BYTES = 32; // longer pieces seldom come again
const BLANK = 0x20, DELETE = 0x7f;
const MAX_PARTS = 1 << 26; // a gigabyte and a half of memory

/** What makes a byte-pair encoding. */
export type BpeOptions = {
  /** The byte string of each id; "" for ids that text never becomes. */
  tokens: ByteStrings;
  /** The pairs that join. null is OpenAI's rule: neighbours join if their bytes together are a token, its id is their rank. */
  merges: PairTable | null;
  /** A piece that is a token becomes that token, whether or not its bytes would be joined to it. */
  wholePieces: boolean;
  /**
   * Pairs of lower ranks never join a blank to a printable ASCII character before it, nor can they join what pairs of this
   * rank or a higher one have made. NEVER if there are no such superwords.
   */
  superwords?: number;
  /**
   * Where a piece does not begin as its bytes: writes the ids that bytes[from, to) begin as to parts, at most one a byte, and
   * returns how many. Needs merges.
   */
  begin?: (bytes: Uint8Array, from: number, to: number, parts: Int32Array) => number;
};

/** Encodes pieces with a fixed vocabulary. */
export class Bpe {
  readonly #pieces: PieceTable;
  readonly #pairs: PairTable | null;
  readonly #superwords: number;
  readonly #begin: BpeOptions["begin"];
  readonly #longest: number; // bytes of the longest token
  readonly #idOfByte = new Int32Array(256).fill(-1); // -1: no token, left out of the text as tokenizers does

  // The parts of the piece that is being encoded: id, where it begins, and of the pair of it and the part behind it the
  // rank and the id. With #pairs it does not matter where they begin.
  #part = new Int32Array(256);
  #start = new Int32Array(256);
  #rank = new Int32Array(256);
  #join = new Int32Array(256);
  // With many parts they are a linked list, and the pairs that may join are on a heap, as rank * 2^32 + part.
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  readonly #heap = new Heap();
  #limit = NEVER; // pairs of this rank or a higher one do not join

  /** Copies what it needs to look up pieces. */
  constructor({ tokens, merges, wholePieces, superwords = NEVER, begin }: BpeOptions) {
    this.#pairs = merges;
    this.#begin = begin;
    this.#superwords = wholePieces ? NEVER : superwords;
    this.#pieces = new PieceTable(wholePieces || merges === null ? tokens : new ByteStrings(0, 0));
    let longest = 0;
    for (let id = 0; id < tokens.length; id++) {
      const start = tokens.start(id), length = tokens.start(id + 1) - start;
      if (length === 1) this.#idOfByte[tokens.bytes[start]!] = id;
      if (length > longest) longest = length;
    }
    this.#longest = longest;
  }

  /** Writes the ids of the piece bytes[from, to) to ids at n, where there must be room for to - from; returns the new n. */
  encode(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number): number {
    return this.#superwords === NEVER
      ? this.#encodeWord(bytes, from, to, ids, n)
      : this.#encodeSuperwords(bytes, from, to, ids, n);
  }

  /**
   * Words first, each for itself and mostly known already, then what joins words. The same as joining by rank at once: the
   * pairs that words are made of come first, and none of them reaches over the end of a word.
   */
  #encodeSuperwords(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number): number {
    let end = n;
    this.#limit = this.#superwords;
    while (from < to) {
      const wordEnd = endOfWord(bytes, from, to);
      end = this.#encodeWord(bytes, from, wordEnd, ids, end);
      from = wordEnd;
    }
    this.#limit = NEVER;
    if (end - n > this.#part.length) this.#makeRoom(end - n);
    for (let i = n; i < end; i++) this.#part[i - n] = ids[i]!;
    return n + this.#joinAll(bytes, end - n, ids, n);
  }

  #encodeWord(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number): number {
    const slot = this.#pieces.find(bytes, from, to), hash = this.#pieces.hash;
    if (slot >= 0) return this.#pieces.read(slot, ids, n);
    const end = this.#merge(bytes, from, to, ids, n);
    if (to - from <= CACHED_BYTES) this.#pieces.add(hash, bytes, from, to, ids, n, end);
    return end;
  }

  #merge(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number): number {
    if (to - from > this.#part.length) this.#makeRoom(to - from);
    if (this.#begin) return n + this.#joinAll(bytes, this.#begin(bytes, from, to, this.#part), ids, n);
    let count = 0;
    for (let i = from; i < to; i++) {
      const id = this.#idOfByte[bytes[i]!]!;
      if (id < 0) continue;
      this.#start[count] = i;
      this.#part[count++] = id;
    }
    this.#start[count] = to;
    return n + this.#joinAll(bytes, count, ids, n);
  }

  /** Joins parts, writes what is left of them to ids at n, and returns how many that are. */
  #joinAll(bytes: Uint8Array, count: number, ids: Uint32Array, n: number): number {
    count = count <= FEW ? this.#joinFew(bytes, count) : this.#joinMany(bytes, count);
    for (let i = 0; i < count; i++) ids[n + i] = this.#part[i]!;
    return count;
  }

  #makeRoom(atLeast: number): void {
    if (atLeast > MAX_PARTS) {
      throw new UserError(
        `Cannot encode a text of ${atLeast} bytes that the tokenizer cuts nowhere: it may have ${MAX_PARTS} at most; ` +
          `give shorter documents, as with --split_on`,
      );
    }
    const parts = Math.min(2 * atLeast, MAX_PARTS);
    this.#part = new Int32Array(parts);
    this.#start = new Int32Array(parts + 1);
    this.#rank = new Int32Array(parts);
    this.#join = new Int32Array(parts);
    this.#next = new Int32Array(parts);
    this.#previous = new Int32Array(parts);
  }

  /** Joins parts until no neighbours join; returns how many are left. */
  #joinFew(bytes: Uint8Array, count: number): number {
    const part = this.#part, start = this.#start, rank = this.#rank, join = this.#join;
    for (let i = 0; i + 1 < count; i++) this.#look(bytes, i, i + 1, start[i + 2]!);
    for (;;) {
      let least = NEVER, at = 0;
      for (let i = 0; i + 1 < count; i++) {
        if (rank[i]! < least) {
          least = rank[i]!;
          at = i;
        }
      }
      if (least === NEVER) return count;
      part[at] = join[at]!;
      count--;
      for (let i = at + 1; i < count; i++) {
        part[i] = part[i + 1]!;
        rank[i] = rank[i + 1]!;
        join[i] = join[i + 1]!;
        start[i] = start[i + 1]!;
      }
      start[count] = start[count + 1]!;
      if (at + 1 < count) this.#look(bytes, at, at + 1, start[at + 2]!);
      if (at > 0) this.#look(bytes, at - 1, at, start[at + 1]!);
    }
  }

  /** The same with a heap, for pieces of many parts. */
  #joinMany(bytes: Uint8Array, count: number): number {
    const part = this.#part,
      rank = this.#rank,
      next = this.#next,
      previous = this.#previous,
      heap = this.#heap;
    for (let i = 0; i < count; i++) {
      next[i] = i + 1;
      previous[i] = i - 1;
      rank[i] = NEVER;
    }
    for (let i = 0; i + 1 < count; i++) this.#offer(bytes, i, i + 1);
    while (heap.length > 0) {
      const candidate = heap.pop(), least = Math.floor(candidate / 2 ** 32), at = candidate - least * 2 ** 32;
      if (rank[at] !== least) continue; // one of its two parts has been joined since
      const gone = next[at]!, after = next[gone]!;
      part[at] = this.#join[at]!;
      rank[at] = rank[gone] = NEVER;
      next[at] = after;
      if (after < count) {
        previous[after] = at;
        this.#offer(bytes, at, after);
      }
      if (previous[at]! >= 0) this.#offer(bytes, previous[at]!, at);
    }
    let left = 0;
    for (let i = 0; i < count; i = next[i]!) part[left++] = part[i]!;
    return left;
  }

  /** Looks up the pair of two neighbours and puts it on the heap if it joins. */
  #offer(bytes: Uint8Array, left: number, right: number): void {
    this.#look(bytes, left, right, this.#start[this.#next[right]!]!);
    if (this.#rank[left] !== NEVER) this.#heap.push(this.#rank[left]! * 2 ** 32 + left);
  }

  /** Looks up the pair of two neighbours, which ends before byte `end`. */
  #look(bytes: Uint8Array, left: number, right: number, end: number): void {
    if (this.#pairs === null) {
      const start = this.#start[left]!;
      const id = end - start > this.#longest ? -1 : this.#pieces.findToken(bytes, start, end);
      this.#rank[left] = id < 0 ? NEVER : id;
      this.#join[left] = id;
    } else {
      const place = this.#pairs.find(this.#part[left]!, this.#part[right]!);
      const rank = place < 0 ? NEVER : this.#pairs.rank(place);
      this.#rank[left] = rank < this.#limit ? rank : NEVER;
      this.#join[left] = place < 0 ? -1 : this.#pairs.join(place);
    }
  }
}

/** Where the word ends that begins at byte i: before the first blank that follows a printable ASCII character. */
function endOfWord(bytes: Uint8Array, i: number, to: number): number {
  for (i++; i < to; i++) if (bytes[i] === BLANK && bytes[i - 1]! > BLANK && bytes[i - 1]! < DELETE) break;
  return i;
}

/** Whether a token goes beyond the end of a word, as endOfWord() has it. */
export function isSuperword(token: Uint8Array): boolean {
  return token.length > 0 && endOfWord(token, 0, token.length) < token.length;
}
