// Documents in JSON lines: one object on each line, with the text in a field.
import { type Block, BlockBuilder, DOCUMENT_BYTES, type ReportBad } from "./block.ts";
import { withoutMark } from "./bytes.ts";
import type { TextInput } from "./text.ts";

const NEWLINE = 0x0a;
const RUN_BYTES = 1 << 18; // of lines parsed at once; the strings of more would only lie about longer

/** The texts of a field, in the order of the lines. Null is an empty document; a blank line is none. */
export async function* readJsonLines(
  { name, chunks, takeRead }: TextInput,
  field: string,
  reportBad: ReportBad,
): AsyncGenerator<Block> {
  const builder = new BlockBuilder(), utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  let number = 0; // of the line
  for await (const text of wholeLines(withoutMark(chunks), reportLongLine)) {
    const lines = utf8.decode(text).split("\n");
    lines.pop(); // after the last newline
    for (const line of lines) {
      number++;
      if (line.trim() === "") continue;
      const document = parseLine(line, field, `${name}:${number}`, reportBad);
      if (document === undefined) continue;
      if (document !== null) builder.appendString(document);
      builder.end();
    }
    builder.read += takeRead();
    if (builder.full) yield builder.take();
  }
  yield builder.take();

  function reportLongLine(): void {
    reportBad(
      `Cannot read ${name}:${
        number + 1
      }: it has more than ${DOCUMENT_BYTES} bytes, the limit for one document; split it`,
      1,
    );
  }
}

/** Runs of lines, each of which ends in a newline. One that is longer than a document may be is reported and becomes empty. */
async function* wholeLines(
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  reportLongLine: () => void,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const runs = new BlockBuilder(2 * RUN_BYTES); // a document of it is a run of lines
  let dropping = false; // the open line
  for await (const chunk of chunks) {
    const end = chunk.lastIndexOf(NEWLINE) + 1;
    if (end > 0) {
      runs.append(chunk.subarray(dropping ? chunk.indexOf(NEWLINE) : 0, end));
      runs.end();
      dropping = false;
      if (runs.bytes >= RUN_BYTES) yield runs.take().text;
    }
    if (!dropping) runs.append(chunk.subarray(end));
    if (runs.open <= DOCUMENT_BYTES) continue;
    runs.cut(0);
    yield runs.take().text;
    reportLongLine();
    dropping = true;
  }
  if (runs.open > 0 || dropping) {
    runs.append(Uint8Array.of(NEWLINE));
    runs.end();
  }
  yield runs.take().text;
}

/** The text in a line, undefined if there is none. */
function parseLine(
  line: string,
  field: string,
  place: string,
  reportBad: ReportBad,
): string | null | undefined {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch (error) {
    const reason = (error as Error).message.replace(/ \(line .*/, ""); // it counts lines within this one
    return void reportBad(`Cannot read ${place}: ${reason}; each line should be one JSON object`, 1);
  }
  if (typeof row !== "object" || row === null || Array.isArray(row)) {
    const what = `it is ${Array.isArray(row) ? "a list" : line.trim().slice(0, 40)}`;
    return void reportBad(`Cannot read ${place}: ${what}; each line should be one JSON object`, 1);
  }
  if (!Object.hasOwn(row, field)) {
    const fields = Object.keys(row).join(", ") || "none";
    return void reportBad(
      `Cannot read ${place}: it has no field "${field}" but ${fields}; choose one with --column`,
      1,
    );
  }
  const text: unknown = (row as Record<string, unknown>)[field];
  if (typeof text === "string" || text === null) return text;
  return void reportBad(
    `Cannot read ${place}: field "${field}" is ${
      JSON.stringify(text).slice(0, 40)
    }, should be a text; choose another with --column`,
    1,
  );
}
