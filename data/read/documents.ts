// The documents of all inputs in the order in which they are encoded, as blocks of UTF-8.
import { UserError } from "../../base/errors.ts";
import type { Block } from "./block.ts";
import { refuseBad, type ReportBad } from "./utf8.ts";
import { concatenate } from "./bytes.ts";
import { decompress } from "./compression.ts";
import { type Format, formatOf, type Input, openInput, type Source } from "./inputs.ts";
import { interleave, type Stream } from "./interleave.ts";
import { readJsonLines } from "./json_lines.ts";
import { readParquet, type Skip } from "./parquet.ts";
import { shuffled, shuffleDocuments } from "./shuffle.ts";
import { readText, type TextInput } from "./text.ts";

const NEWLINE = 0x0a;

/** What to read and in which order. */
export type ReadOptions = {
  /** Name of the parquet column or JSON field with the text. */
  column: string;
  /** What separates the documents of plain text: "" nothing, "line", "blank_line", or any text. */
  split_on: string;
  /** Read so many documents at most; null for all. */
  limit: number | null;
  /** Seed to shuffle documents with; null for the order of the inputs. */
  shuffle_docs: number | null;
  /** "exact" leaves out documents whose text came before. */
  dedup: "" | "exact";
  /** Leave out what cannot be read, and count it. */
  skip_bad: boolean;
  /** Documents are conversations: lines with their places (conversations.ts). */
  chat?: boolean;
};

/** Everything, in the order of the inputs. */
export const READ_ALL: ReadOptions = {
  column: "text",
  split_on: "",
  limit: null,
  shuffle_docs: null,
  dedup: "",
  skip_bad: false,
};

/** Counted while reading. */
export type ReadCounts = {
  /** Documents left out because they cannot be read. */
  bad: number;
  /** What was said of the first of them. */
  first_bad?: string | undefined;
  /** Documents left out because their text came before. */
  duplicates: number;
};

/**
 * Reads the documents of all sources: mixed if they have weights, one source behind the other if they have none. Null
 * and empty ones are among them, with no bytes. The sequence of documents depends on sources and options only; where
 * a block ends may differ. Throws UserError for what cannot be read.
 *
 * @param counts Counted up while reading, for documents that are skipped too.
 * @param skip Leave out the first so many documents of the sequence.
 */
export async function* readBlocks(
  sources: Source[],
  options: ReadOptions,
  counts: ReadCounts,
  skip = 0,
): AsyncGenerator<Block> {
  const reportBad: ReportBad = (message, documents) => {
    if (!options.skip_bad) refuseBad(message);
    counts.bad += documents;
    counts.first_bad ??= message;
  };
  const { limit, dedup, shuffle_docs, skip_bad } = options,
    weighted = sources.some((source) => source.weight !== null);
  const left: Skip = { left: skip };
  if (!weighted && dedup === "" && shuffle_docs === null && !skip_bad) { // what is skipped need not be looked at
    yield* take(drop(readSources(sources, options, reportBad, left), left), (limit ?? Infinity) - skip);
    return;
  }
  const streams: Stream[] = (weighted ? sources.map((source) => [source]) : [sources]).map((part) => ({
    blocks: readSources(part, options, reportBad, { left: 0 }),
    weight: part[0]?.weight ?? 1,
  }));
  const documents = interleave(streams, options, () => counts.duplicates++);
  yield* drop(shuffle_docs === null ? documents : shuffleDocuments(documents, shuffle_docs), left);
}

/** The documents of sources one behind the other. */
async function* readSources(
  sources: Source[],
  options: ReadOptions,
  reportBad: ReportBad,
  passOver: Skip,
): AsyncGenerator<Block> {
  const { shuffle_docs } = options;
  for (const { inputs } of sources) {
    for (const input of shuffle_docs === null ? inputs : shuffled(inputs, shuffle_docs)) {
      yield* readInput(input, options, reportBad, passOver);
    }
  }
}

function readInput(
  input: Input,
  options: ReadOptions,
  reportBad: ReportBad,
  passOver: Skip,
): AsyncGenerator<Block> {
  const format = formatOf(input.name)!; // findSources() has checked it
  return format.kind === "parquet"
    ? readParquet(openInput(input), options.column, reportBad, passOver)
    : readDocuments(openText(input, format), format, options, reportBad);
}

function readDocuments(
  text: TextInput,
  { kind }: Format,
  { column, split_on, chat }: Pick<ReadOptions, "column" | "split_on" | "chat">,
  reportBad: ReportBad,
): AsyncGenerator<Block> {
  return kind === "jsonl"
    ? readJsonLines(text, chat ? null : column, reportBad)
    : readText(text, split_on, reportBad);
}

const START_BYTES = 1 << 14;

/**
 * Reads the first lines of each text file, so that most mistakes show before there is work to lose. Of parquet files
 * findSources() has read the metadata. Throws UserError as readBlocks(), and for conversations that are none in .jsonl.
 *
 * @param look Called with what the first lines hold.
 */
export async function checkStarts(
  sources: Source[],
  options: Pick<ReadOptions, "column" | "split_on" | "skip_bad" | "chat">,
  look: (block: Block) => void = () => {},
): Promise<void> {
  if (options.chat) refuseOthers(sources);
  for (const input of options.skip_bad ? [] : sources.flatMap(({ inputs }) => inputs)) {
    const format = formatOf(input.name)!;
    if (format.kind === "parquet") continue;
    let start = new Uint8Array(), end = 0;
    for await (const chunk of openText(input, format).chunks) {
      start = concatenate(start, chunk.subarray(0, START_BYTES));
      end = start.length;
      if (start.length < START_BYTES) continue;
      end = start.lastIndexOf(NEWLINE) + 1; // the last line goes on behind it
      break;
    }
    const text = { name: input.name, chunks: [start.subarray(0, end)], takeRead: () => 0 };
    for await (const block of readDocuments(text, format, options, refuseBad)) look(block);
  }
}

/** Conversations are read from lines of JSON alone. */
function refuseOthers(sources: Source[]): void {
  const other = sources.flatMap(({ inputs }) => inputs).find(({ name }) => formatOf(name)!.kind !== "jsonl");
  if (other === undefined) return;
  throw new UserError(
    `Cannot read conversations from "${other.name}": it is .${
      formatOf(other.name)!.kind
    }, should be .jsonl with ` +
      "messages in each line; convert it, or leave --chat out",
  );
}

/** A file of text, decompressed while it is read. */
function openText(input: Input, { compression }: Format): TextInput {
  const source = openInput(input);
  let read = 0; // bytes as stored since takeRead()
  async function* counted() {
    for await (const chunk of source.read(0, source.size)) {
      read += chunk.length;
      yield chunk;
    }
  }
  const takeRead = () => {
    const bytes = read;
    read = 0;
    return bytes;
  };
  return { name: input.name, chunks: decompress(counted(), compression, input.name), takeRead };
}

// ---- parts of a sequence

/** The documents without the first skip.left, and without blocks that have none. */
async function* drop(blocks: AsyncIterable<Block>, skip: Skip): AsyncGenerator<Block> {
  let read = 0; // for the documents dropped
  for await (const block of blocks) {
    read += block.read;
    const { length } = block.ends, dropped = Math.min(skip.left, length);
    skip.left -= dropped;
    if (dropped === length) continue;
    yield { ...part(block, dropped, length), read };
    read = 0;
  }
}

/** The first n documents. */
async function* take(blocks: AsyncIterable<Block>, n: number): AsyncGenerator<Block> {
  if (n <= 0) return;
  for await (const block of blocks) {
    const { length } = block.ends; // its buffers are gone once it is handed out
    yield part(block, 0, Math.min(n, length));
    n -= length;
    if (n <= 0) return;
  }
}

/** Documents [from, to) of a block. */
function part(block: Block, from: number, to: number): Block {
  if (from === 0 && to === block.ends.length) return block;
  const start = from === 0 ? 0 : block.ends[from - 1]!;
  const ends = block.ends.slice(from, to).map((end) => end - start);
  return { text: block.text.subarray(start, start + (ends.at(-1) ?? 0)), ends, read: block.read };
}
