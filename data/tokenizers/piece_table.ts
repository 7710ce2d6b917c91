// Finds pieces of text: the tokens of a vocabulary, and pieces that were encoded before, which is what makes ordinary text
// fast. When the room for pieces is used up it forgets them, so that its memory is bounded and it follows the text.
import type { ByteStrings } from "./byte_strings.ts";
import { powerOfTwo } from "./pair_table.ts";

const FILTER_BITS = 1 << 21;
const BYTES_PER_PIECE = 12, IDS_PER_PIECE = 4; // room for so many on average

/** A hash table from byte strings to ids. */
export class PieceTable {
  /** Hash of the string that was last looked for. */
  hash = 0;

  // A slot is four numbers: hash, where the string begins in #bytes, its length << 16 | number of ids (0 for a free slot),
  // and where the ids begin in #ids or, if it is one id only, the id.
  readonly #slots: Int32Array;
  readonly #tokenSlots: Int32Array; // as long as there are no pieces
  readonly #bytes: Uint8Array; // of the tokens, then of the pieces
  readonly #ids: Uint32Array;
  readonly #maxPieces: number;
  readonly #tokens: ByteStrings;
  // A bit for each hash of a token, in less memory than a cache has: most neighbours do not join, and need no look at a slot.
  readonly #filter = new Int32Array(FILTER_BITS / 32);
  #pieces = 0;
  #bytesEnd = 0;
  #idsEnd = 0;

  /**
   * Holds the tokens with their numbers as ids, and so many pieces. Of equal tokens the first counts; empty ones are left
   * out.
   */
  constructor(tokens: ByteStrings, maxPieces = 120_000) {
    const tokenBytes = tokens.start(tokens.length);
    this.#tokens = tokens;
    this.#maxPieces = maxPieces;
    this.#slots = new Int32Array(4 * powerOfTwo(1.5 * (tokens.length + maxPieces) + 1));
    this.#bytes = new Uint8Array(tokenBytes + BYTES_PER_PIECE * maxPieces);
    this.#ids = new Uint32Array(IDS_PER_PIECE * maxPieces);
    this.#bytes.set(tokens.bytes.subarray(0, tokenBytes));
    this.#addTokens();
    this.#bytesEnd = tokenBytes;
    this.#tokenSlots = this.#slots.slice();
  }

  /** The slot of the string bytes[from, to), -1 if it is not known. */
  find(bytes: Uint8Array, from: number, to: number): number {
    this.hash = hashOf(bytes, from, to);
    return this.#find(this.hash, bytes, from, to);
  }

  /** The token bytes[from, to), -1 if it is none. Faster than find() where it mostly is none. */
  findToken(bytes: Uint8Array, from: number, to: number): number {
    const hash = hashOf(bytes, from, to), bit = hash >>> 8 & FILTER_BITS - 1;
    return (this.#filter[bit >> 5]! >> (bit & 31) & 1) === 0
      ? -1
      : this.token(this.#find(hash, bytes, from, to));
  }

  #find(hash: number, bytes: Uint8Array, from: number, to: number): number {
    const slots = this.#slots, mask = slots.length - 1;
    for (let slot = hash << 2 & mask;; slot = slot + 4 & mask) {
      const lengths = slots[slot + 2]!;
      if (lengths === 0) return -1;
      if (
        slots[slot] === hash && lengths >>> 16 === to - from &&
        this.#equals(slots[slot + 1]!, bytes, from, to)
      ) {
        return slot;
      }
    }
  }

  /** The token at a slot that find() returned; -1 if it found nothing, or a piece of several tokens. */
  token(slot: number): number {
    return slot >= 0 && (this.#slots[slot + 2]! & 0xffff) === 1 ? this.#slots[slot + 3]! : -1;
  }

  /** Writes the ids of a slot to ids at n and returns the new n. */
  read(slot: number, ids: Uint32Array, n: number): number {
    const count = this.#slots[slot + 2]! & 0xffff, start = this.#slots[slot + 3]!;
    if (count === 1) {
      ids[n] = start;
      return n + 1;
    }
    for (let i = 0; i < count; i++) ids[n + i] = this.#ids[start + i]!;
    return n + count;
  }

  /** Remembers that the piece bytes[from, to) of this hash, which is not known yet, has the ids ids[start, end). */
  add(
    hash: number,
    bytes: Uint8Array,
    from: number,
    to: number,
    ids: Uint32Array,
    start: number,
    end: number,
  ): void {
    const idsEnd = this.#idsEnd + end - start, bytesEnd = this.#bytesEnd + to - from;
    if (++this.#pieces > this.#maxPieces || idsEnd > this.#ids.length || bytesEnd > this.#bytes.length) {
      return this.#forget();
    }
    this.#occupy(
      hash,
      this.#bytesEnd,
      to - from,
      end - start,
      end - start === 1 ? ids[start]! : this.#idsEnd,
    );
    while (from < to) this.#bytes[this.#bytesEnd++] = bytes[from++]!;
    while (start < end) this.#ids[this.#idsEnd++] = ids[start++]!;
  }

  #forget(): void {
    this.#slots.set(this.#tokenSlots);
    this.#pieces = this.#idsEnd = 0;
    this.#bytesEnd = this.#tokens.start(this.#tokens.length);
  }

  #addTokens(): void {
    const tokens = this.#tokens;
    for (let id = 0; id < tokens.length; id++) {
      const from = tokens.start(id), to = tokens.start(id + 1);
      if (from === to || this.find(tokens.bytes, from, to) >= 0) continue;
      this.#occupy(this.hash, from, to - from, 1, id);
      const bit = this.hash >>> 8 & FILTER_BITS - 1;
      this.#filter[bit >> 5]! |= 1 << (bit & 31);
    }
  }

  #occupy(hash: number, start: number, length: number, count: number, ids: number): void {
    const slots = this.#slots, mask = slots.length - 1;
    let slot = hash << 2 & mask;
    while (slots[slot + 2] !== 0) slot = slot + 4 & mask;
    slots[slot] = hash;
    slots[slot + 1] = start;
    slots[slot + 2] = length << 16 | count;
    slots[slot + 3] = ids;
  }

  #equals(start: number, bytes: Uint8Array, from: number, to: number): boolean {
    const own = this.#bytes;
    for (let i = from, j = start; i < to; i++, j++) if (own[j] !== bytes[i]) return false;
    return true;
  }
}

/** FNV-1a over bytes[from, to), folded so that its low bits depend on all of it. */
function hashOf(bytes: Uint8Array, from: number, to: number): number {
  let hash = to - from;
  for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return hash ^ hash >>> 15;
}
