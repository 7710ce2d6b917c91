// The documents of all inputs in the order in which they are encoded, as blocks of UTF-8.
import { UserError } from "../ffi/errors.ts";
import type { Block, ReportBad } from "./block.ts";
import { FileBytes } from "./bytes.ts";
import { formatOf, type Input, type Source } from "./inputs.ts";
import { readJsonLines } from "./json_lines.ts";
import { readParquet, type Skip } from "./parquet.ts";
import { readText, type TextInput } from "./text.ts";

// Until prepare.ts reads blocks.
export { type Batch, findInputs, type Input, readDocuments } from "./old_documents.ts";

/** What to read and in which order. */
export interface ReadOptions {
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
}

/** Counted while reading. */
export interface ReadCounts {
  /** Documents left out because they cannot be read. */
  bad: number;
  /** Documents left out because their text came before. */
  duplicates: number;
}

/**
 * Reads the documents of all sources, one source behind the other. Null and empty ones are among them, with no bytes. The
 * sequence of documents depends on sources and options only; where a block ends may differ.
 *
 * @param skip Leave out the first so many documents of the sequence.
 * @throws {UserError} for what cannot be read.
 */
export async function* readBlocks(
  sources: Source[],
  options: ReadOptions,
  counts: ReadCounts,
  skip = 0,
): AsyncGenerator<Block> {
  const reportBad: ReportBad = (message, documents) => {
    if (!options.skip_bad) throw new UserError(`${message}, or leave it out with --skip_bad`);
    counts.bad += documents;
  };
  const left: Skip = { left: skip };
  let limit = options.limit === null ? Infinity : Math.max(0, options.limit - skip);
  for (const { inputs } of sources) {
    for (const input of inputs) {
      for await (const block of readInput(input, options, reportBad, left)) {
        const dropped = Math.min(left.left, block.ends.length);
        left.left -= dropped;
        const part = slice(block, dropped, Math.min(block.ends.length, dropped + limit));
        if (part.ends.length > 0) yield part;
        limit -= part.ends.length;
        if (limit === 0) return;
      }
    }
  }
}

/** Documents [from, to) of a block. */
function slice({ text, ends, read }: Block, from: number, to: number): Block {
  if (from === 0 && to === ends.length) return { text, ends, read };
  const start = from === 0 ? 0 : ends[from - 1]!;
  const kept = ends.slice(from, to).map((end) => end - start);
  return { text: text.slice(start, start + (kept.at(-1) ?? 0)), ends: kept, read };
}

function readInput(
  input: Input,
  options: ReadOptions,
  reportBad: ReportBad,
  skip: Skip,
): AsyncGenerator<Block> {
  const source = new FileBytes(input.name, input.bytes), format = formatOf(input.name);
  if (format === "parquet") return readParquet(source, options.column, reportBad, skip);
  const text = textInput(source);
  return format === "jsonl"
    ? readJsonLines(text, options.column, reportBad)
    : readText(text, options.split_on, reportBad);
}

function textInput(source: FileBytes): TextInput {
  let read = 0;
  function* chunks() {
    for (const chunk of source.read(0, source.size)) {
      read += chunk.length;
      yield chunk;
    }
  }
  return {
    name: source.name,
    chunks: chunks(),
    takeRead: () => {
      const bytes = read;
      read = 0;
      return bytes;
    },
  };
}
