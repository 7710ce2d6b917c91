// Learns byte-pair encoding: of all pairs of neighbouring tokens the one that occurs most often becomes a token, again and
// again. It counts pairs in words, each weighted by how often the word occurs, and knows where each pair stands, so that a
// merge visits only the places that it changes.
//
// Gives the merges of BpeTrainer in Hugging Face's tokenizers, as long as no pair occurs 2^31 times, where its counts overflow.
import { Pair, PairQueue } from "./pair_queue.ts";
import type { WordCounts } from "./word_counts.ts";

/**
 * The pairs of tokens to merge, best first. Tokens 0 to 255 are the single bytes; merge n, counted from 0, makes token
 * 256 + n. Of pairs that occur equally often the one with the smaller left token comes first, then the one with the smaller
 * right token.
 *
 * @param tokenOf The token of each byte.
 * @param min_frequency Pairs that occur less often do not merge; at least 1.
 * @param max_token_length Bytes that no merged token reaches, but for those of two bytes, which are made if it is 2; so does
 * BpeTrainer.
 */
export function* bpeMerges(
  words: WordCounts,
  tokenOf: Uint8Array,
  min_frequency: number,
  max_token_length: number,
): Generator<[left: number, right: number]> {
  const corpus = new Corpus(words, tokenOf, max_token_length), queue = corpus.pairs(min_frequency);
  for (let pair = queue.pop(); pair !== undefined; pair = queue.pop()) {
    corpus.merge(pair, queue);
    yield [pair.left, pair.right];
  }
}

const NONE = -1; // where no token begins or ends

/** All words, cut into tokens. */
class Corpus {
  // Each byte of each word has an index; one more, without a token, is before, between and behind the words. A token is
  // written at the indices of its first and last byte, so that it can be seen from both of its neighbours.
  readonly #tokens: Int32Array;
  readonly #weights: Uint32Array; // by index: how often the word occurs
  readonly #lengths: number[] = new Array(256).fill(1); // by token: its bytes
  readonly #max: number;

  constructor(words: WordCounts, tokenOf: Uint8Array, max_token_length: number) {
    const n = words.bytes + words.size + 1;
    const tokens = new Int32Array(n).fill(NONE), weights = new Uint32Array(n);
    for (let word = 0, i = 1; word < words.size; word++, i++) {
      const bytes = words.bytesOf(word);
      weights.fill(words.countOf(word), i, i + bytes.length);
      for (const byte of bytes) tokens[i++] = tokenOf[byte]!;
    }
    this.#tokens = tokens;
    this.#weights = weights;
    this.#max = max_token_length;
  }

  /** The pairs of single bytes that occur `least` times or more. */
  pairs(least: number): PairQueue {
    const tokens = this.#tokens, weights = this.#weights;
    const pairs: Pair[] = new Array(256 * 256); // by left * 256 + right, with holes
    for (let i = 1; i < tokens.length; i++) {
      const left = tokens[i - 1]!, right = tokens[i]!;
      if (left === NONE || right === NONE) continue;
      (pairs[left << 8 | right] ??= new Pair(left, right)).tally(weights[i]!);
    }
    const queue = new PairQueue(least);
    queue.add(pairs);
    for (let i = 1; i < tokens.length; i++) {
      const left = tokens[i - 1]!, right = tokens[i]!;
      if (left !== NONE && right !== NONE) pairs[left << 8 | right]!.addPlace(i - 1);
    }
    return queue;
  }

  /** Makes a pair one token wherever it stands. Brings the counts in the queue up to date and adds the new pairs to it. */
  merge(pair: Pair, queue: PairQueue): void {
    const token = this.#lengths.push(this.#lengths[pair.left]! + this.#lengths[pair.right]!) - 1;
    this.#addPairsOf(token, this.#join(pair, token, queue), queue);
  }

  /** Writes a token over its pair and takes the pairs that vanish off their counts; returns where the token stands now. */
  #join({ left, right, places }: Pair, token: number, queue: PairQueue): Int32Array {
    const tokens = this.#tokens, weights = this.#weights;
    const leftLength = this.#lengths[left]!, length = this.#lengths[token]!;
    let n = 0;
    for (const i of places) {
      const middle = i + leftLength, end = i + length;
      if (tokens[i] !== left || tokens[middle] !== right) continue; // one of them is part of another token by now
      const before = tokens[i - 1]!, after = tokens[end]!;
      // Behind the same token, which was (left, right) until now, the pair (right, left) was taken off with that one.
      if (before !== NONE && before !== token) queue.lower(before, left, weights[i]!);
      if (after !== NONE) queue.lower(right, after, weights[i]!);
      tokens[i] = token;
      tokens[middle] = NONE;
      tokens[end - 1] = token;
      places[n++] = i; // the array is not needed any more
    }
    return places.subarray(0, n);
  }

  /** Adds the pairs of a new token and its neighbours to the queue. */
  #addPairsOf(token: number, places: Int32Array, queue: PairQueue): void {
    const tokens = this.#tokens, weights = this.#weights, lengths = this.#lengths, length = lengths[token]!;
    const behind = new Map<number, Pair>(), ahead = new Map<number, Pair>(); // by left and by right neighbour
    const fits = (other: number) => length + lengths[other]! < this.#max;
    for (const i of places) {
      const left = tokens[i - 1]!, right = tokens[i + length]!;
      if (left !== NONE && left !== token && fits(left)) pairIn(behind, left, left, token).tally(weights[i]!);
      if (right !== NONE && fits(right)) pairIn(ahead, right, token, right).tally(weights[i]!); // the token beside itself, too
    }
    queue.add(behind.values());
    queue.add(ahead.values());
    for (const i of places) {
      const left = tokens[i - 1]!, right = tokens[i + length]!;
      if (left !== NONE && left !== token) behind.get(left)?.addPlace(i - lengths[left]!);
      if (right !== NONE) ahead.get(right)?.addPlace(i);
    }
  }
}

function pairIn(pairs: Map<number, Pair>, neighbour: number, left: number, right: number): Pair {
  let pair = pairs.get(neighbour);
  if (pair === undefined) pairs.set(neighbour, pair = new Pair(left, right));
  return pair;
}
