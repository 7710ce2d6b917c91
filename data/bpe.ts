// Byte-pair encoding of one piece of text: merge the pair of neighbours with the lowest rank until no pair is a token.
// The same result as OpenAI's tiktoken, in O(n log n), so that a piece of a million letters does no harm. Pieces met
// before are looked up instead, which is what makes ordinary text fast.

const SLOTS = 1 << 20; // of the hash table, at most a quarter full
const MAX_ENTRIES = SLOTS / 4;
const CACHED_BYTES = 32; // longer pieces seldom come again
const CACHED_IDS = 8 * MAX_ENTRIES; // of all cached pieces together

/** Encodes pieces with a fixed vocabulary. The rank of a token is its id: lower ids merge first. */
export class Bpe {
  /** Number of tokens; their ids are 0 .. n_tokens - 1. */
  readonly n_tokens: number;

  // Entry e is the byte string pool[starts[e] .. starts[e + 1]). Entries below n_tokens are the tokens themselves, the
  // others are cached pieces with the ids cached[idStarts[e] .. idStarts[e + 1]). A slot of the open-addressing table
  // holds e + 1, or 0.
  readonly #slots = new Int32Array(SLOTS);
  readonly #hashes = new Int32Array(MAX_ENTRIES);
  readonly #starts = new Int32Array(MAX_ENTRIES + 1);
  readonly #pool = new Uint8Array(MAX_ENTRIES * CACHED_BYTES);
  readonly #cached = new Uint32Array(CACHED_IDS);
  readonly #idStarts = new Int32Array(MAX_ENTRIES + 1);
  #entries = 0;
  #longest = 0; // bytes of the longest token
  #missedSlot = 0; // where the last unsuccessful #find() would have stood, and its hash
  #missedHash = 0;

  // One piece being merged is a linked list over its bytes: the part that begins at byte i ends where #next[i] begins.
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  #rank = new Int32Array(256); // of the part at i joined with the one behind it, -1 if that is no token
  readonly #heap: number[] = []; // candidates as rank * 2^32 + i, the smallest first

  /** Takes the byte strings of all tokens in the order of their ids. Every single byte must be among them. */
  constructor(tokens: Iterable<Uint8Array>) {
    for (const token of tokens) {
      if (this.#find(token, 0, token.length) >= 0) throw new Error("internal: token listed twice");
      this.#insert(token, 0, token.length);
      this.#longest = Math.max(this.#longest, token.length);
    }
    this.n_tokens = this.#entries;
  }

  /** Writes the ids of the piece bytes[from, to) to ids at n, where there must be room for to - from; returns the new n. */
  encode(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number): number {
    const entry = this.#find(bytes, from, to);
    if (entry >= 0) {
      if (entry < this.n_tokens) {
        ids[n] = entry;
        return n + 1;
      }
      const start = this.#idStarts[entry]!, count = this.#idStarts[entry + 1]! - start;
      for (let i = 0; i < count; i++) ids[n + i] = this.#cached[start + i]!;
      return n + count;
    }
    const slot = this.#missedSlot, hash = this.#missedHash;
    const end = this.#merge(bytes, from, to, ids, n, this.n_tokens);
    this.#missedSlot = slot;
    this.#missedHash = hash;
    this.#remember(bytes, from, to, ids.subarray(n, end));
    return end;
  }

  /** The bytes of a token; a view, not a copy. */
  bytesOf(id: number): Uint8Array {
    return this.#pool.subarray(this.#starts[id]!, this.#starts[id + 1]!);
  }

  /** The two tokens that each token of more than one byte was merged from, in the order of the merged ids. */
  merges(): [number, number][] {
    const merges: [number, number][] = [];
    const parts = new Uint32Array(this.#longest);
    for (let id = 0; id < this.n_tokens; id++) {
      const bytes = this.bytesOf(id);
      if (bytes.length < 2) continue;
      const n = this.#merge(bytes, 0, bytes.length, parts, 0, id);
      if (n !== 2) throw new Error(`internal: token ${id} is made of ${n} earlier tokens, should be 2`);
      merges.push([parts[0]!, parts[1]!]);
    }
    return merges;
  }

  /** The entry that holds bytes[from, to), or -1. */
  #find(bytes: Uint8Array, from: number, to: number): number {
    let hash = to - from;
    for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193); // FNV-1a
    hash ^= hash >>> 15;
    const slots = this.#slots, hashes = this.#hashes;
    for (let slot = hash & (SLOTS - 1);; slot = (slot + 1) & (SLOTS - 1)) {
      const entry = slots[slot]! - 1;
      if (entry < 0) {
        this.#missedSlot = slot;
        this.#missedHash = hash;
        return -1;
      }
      if (hashes[entry] === hash && this.#holds(entry, bytes, from, to)) return entry;
    }
  }

  #holds(entry: number, bytes: Uint8Array, from: number, to: number): boolean {
    const start = this.#starts[entry]!;
    if (this.#starts[entry + 1]! - start !== to - from) return false;
    const pool = this.#pool;
    for (let i = from, j = start; i < to; i++, j++) if (pool[j] !== bytes[i]) return false;
    return true;
  }

  /** Adds the byte string that the last #find() missed. */
  #insert(bytes: Uint8Array, from: number, to: number): void {
    const entry = this.#entries++, start = this.#starts[entry]!;
    this.#pool.set(bytes.subarray(from, to), start);
    this.#starts[entry + 1] = start + to - from;
    this.#hashes[entry] = this.#missedHash;
    this.#slots[this.#missedSlot] = entry + 1;
  }

  /** Caches a piece that the last #find() missed, while there is room. */
  #remember(bytes: Uint8Array, from: number, to: number, ids: Uint32Array): void {
    const start = this.#idStarts[this.#entries]!, end = start + ids.length;
    if (to - from > CACHED_BYTES || this.#entries === MAX_ENTRIES || end > CACHED_IDS) return;
    this.#cached.set(ids, start);
    this.#insert(bytes, from, to);
    this.#idStarts[this.#entries] = end;
  }

  /** Like encode(), without the cache and with the tokens below `limit` only. */
  #merge(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number, limit: number): number {
    const length = to - from;
    if (length > this.#next.length) {
      this.#next = new Int32Array(2 * length);
      this.#previous = new Int32Array(2 * length);
      this.#rank = new Int32Array(2 * length);
    }
    const next = this.#next, previous = this.#previous;
    for (let i = 0; i < length; i++) {
      next[i] = i + 1;
      previous[i] = i - 1;
    }
    for (let i = 0; i < length; i++) this.#rankPair(bytes, from, i, length, limit);
    while (this.#heap.length > 0) {
      const candidate = pop(this.#heap);
      const rank = Math.floor(candidate / 2 ** 32), i = candidate - rank * 2 ** 32;
      if (this.#rank[i] !== rank) continue; // one of its two parts has been merged since
      const gone = next[i]!, after = next[gone]!;
      next[i] = after;
      if (after < length) previous[after] = i;
      this.#rank[gone] = -1;
      this.#rankPair(bytes, from, i, length, limit);
      if (previous[i]! >= 0) this.#rankPair(bytes, from, previous[i]!, length, limit);
    }
    for (let i = 0; i < length; i = next[i]!) ids[n++] = this.#find(bytes, from + i, from + next[i]!);
    return n;
  }

  /** Ranks the part at byte i of the piece joined with the part behind it, and puts it on the heap if it is a token. */
  #rankPair(bytes: Uint8Array, from: number, i: number, length: number, limit: number): void {
    const middle = this.#next[i]!, end = middle < length ? this.#next[middle]! : 0;
    const possible = middle < length && end - i <= this.#longest;
    const entry = possible ? this.#find(bytes, from + i, from + end) : -1;
    this.#rank[i] = entry < limit ? entry : -1;
    if (this.#rank[i]! >= 0) push(this.#heap, entry * 2 ** 32 + i);
  }
}

/** Adds a value to a binary heap with the smallest value at 0. */
function push(heap: number[], value: number): void {
  let i = heap.push(value) - 1;
  while (i > 0) {
    const parent = (i - 1) >> 1;
    if (heap[parent]! <= value) break;
    heap[i] = heap[parent]!;
    i = parent;
  }
  heap[i] = value;
}

/** Removes the smallest value. The heap must not be empty. */
function pop(heap: number[]): number {
  const smallest = heap[0]!, last = heap.pop()!;
  if (heap.length === 0) return smallest;
  let i = 0;
  for (;;) {
    let child = 2 * i + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= last) break;
    heap[i] = heap[child]!;
    i = child;
  }
  heap[i] = last;
  return smallest;
}
