// One sequence of documents from several: mixed by weight, each text once.
import { type Block, BlockBuilder, documentOf } from "./block.ts";
import { endOfLine } from "./conversations.ts";
import { TextSet } from "./text_set.ts";

/** A sequence of documents to take from. */
export type Stream = {
  /** Its documents. */
  blocks: AsyncIterable<Block>;
  /** Its share of the text, in proportion to those of the others. */
  weight: number;
};

/** What to leave out. */
export type InterleaveOptions = {
  /** Take so many documents at most, duplicates included; null for all. */
  limit: number | null;
  /** "exact" leaves out documents whose text came before; an empty one is no duplicate. */
  dedup: "" | "exact";
  /** Documents are conversations, whose text ends with their line. */
  chat?: boolean;
};

/**
 * Takes documents from several streams so that the bytes taken are in proportion to the weights: the next one is always of the
 * stream that has given the fewest for its weight, and the first of those if there are several. When that stream has none left,
 * the sequence ends.
 *
 * @param onDuplicate Called for each document that is left out because its text came before.
 */
export async function* interleave(
  streams: Stream[],
  { limit, dedup, chat }: InterleaveOptions,
  onDuplicate: () => void,
): AsyncGenerator<Block> {
  const cursors = streams.map((stream) => new Cursor(stream)), builder = new BlockBuilder();
  const seen = dedup === "exact" ? new TextSet() : undefined;
  try {
    for (let taken = 0; limit === null || taken < limit; taken++) {
      const cursor = cursors.reduce((a, b) => b.share < a.share ? b : a);
      if (!cursor.ready && !await cursor.fetch(builder)) break;
      const text = cursor.next();
      const content = chat ? text.subarray(0, endOfLine(text, 0)) : text;
      if (seen !== undefined && content.length > 0 && !seen.add(content)) {
        onDuplicate();
        continue;
      }
      cursor.share += text.length / cursor.weight;
      builder.append(text);
      builder.end();
      if (builder.full) yield builder.take();
    }
    yield builder.take();
  } finally {
    for (const cursor of cursors) await cursor.close();
  }
}

/** A place in a stream. */
class Cursor {
  /** Bytes taken from the stream for its weight. */
  share = 0;
  readonly weight: number;
  readonly #blocks: AsyncIterator<Block>;
  #block: Block = { text: new Uint8Array(), ends: new Uint32Array(), read: 0 };
  #document = 0; // of the block: the next one

  constructor({ blocks, weight }: Stream) {
    this.weight = weight;
    this.#blocks = blocks[Symbol.asyncIterator]();
  }

  /** Whether the next document is in memory. */
  get ready(): boolean {
    return this.#document < this.#block.ends.length;
  }

  /** Fetches documents, and counts for the builder what was read for them. Returns false at the end of the stream. */
  async fetch(builder: BlockBuilder): Promise<boolean> {
    while (!this.ready) {
      const { done, value } = await this.#blocks.next();
      if (done) return false;
      this.#block = value;
      this.#document = 0;
      builder.read += value.read;
    }
    return true;
  }

  /** The next document, which must be in memory. */
  next(): Uint8Array {
    return documentOf(this.#block, this.#document++);
  }

  /** Lets go of the stream. */
  async close(): Promise<void> {
    await this.#blocks.return?.();
  }
}
