// A local shuffle of documents in bounded memory.
import { type Block, BlockBuilder, documentOf } from "./block.ts";
import { mix } from "../hash.ts";

const POOL_BYTES = 64 << 20;
const DOCUMENT_COST = 16; // counted for each document, so that empty ones are bounded too

/** Whole numbers at random, the same for the same seed everywhere. */
export class Random {
  readonly #key: number;
  #n = 0;

  /** seed: a whole number; each gives other numbers. */
  constructor(seed: number) {
    this.#key = mix(seed + 1);
  }

  /** A number from 0 to n - 1; n is at most 2^32. */
  below(n: number): number {
    return Math.floor((mix(this.#key ^ mix(++this.#n)) >>> 0) / 2 ** 32 * n);
  }
}

/** The items in an order that depends on the seed. */
export function shuffled<T>(items: readonly T[], seed: number): T[] {
  const random = new Random(seed), left = [...items];
  return items.map(() => takeAny(left, random));
}

/**
 * Shuffles documents through a pool: whenever it has filled up to 64 MB of text, random ones leave until half of that is left.
 *
 * @param pool_bytes Size of the pool.
 */
export async function* shuffleDocuments(
  blocks: AsyncIterable<Block>,
  seed: number,
  pool_bytes = POOL_BYTES,
): AsyncGenerator<Block> {
  const random = new Random(seed), pool = new BlockBuilder(pool_bytes * 1.25), out = new BlockBuilder();
  for await (const block of blocks) {
    out.read += block.read;
    for (let d = 0; d < block.ends.length; d++) {
      pool.append(documentOf(block, d));
      pool.end();
      if (pool.bytes + DOCUMENT_COST * pool.documents >= pool_bytes) yield* leave(pool_bytes / 2);
    }
  }
  yield* leave(0);
  yield out.take();

  /** Moves random documents on until the pool is no larger than that. */
  function* leave(kept_bytes: number): Generator<Block> {
    const block = pool.take(), left = Array.from(block.ends.keys());
    let bytes = block.text.length + DOCUMENT_COST * left.length;
    while (bytes > kept_bytes) {
      const document = documentOf(block, takeAny(left, random));
      bytes -= document.length + DOCUMENT_COST;
      out.append(document);
      out.end();
      if (out.full) yield out.take();
    }
    for (const d of left) {
      pool.append(documentOf(block, d));
      pool.end();
    }
  }
}

/** Takes a random item out of a list, whose last one gets its place. */
function takeAny<T>(items: T[], random: Random): T {
  const i = random.below(items.length), item = items[i]!;
  items[i] = items.at(-1)!;
  items.pop();
  return item;
}
