// Documents in JSON lines: one object on each line, with the text in a field.
import { isUtf8 } from "node:buffer";
import { UserError } from "../../base/errors.ts";
import { isObject } from "../../base/json.ts";
import { type Block, BlockBuilder, DOCUMENT_BYTES } from "./block.ts";
import type { TextInput } from "./text.ts";
import { behindMark, firstInvalid, type Marked, notUtf8, type ReportBad } from "./utf8.ts";

const NEWLINE = 0x0a;
const RUN_BYTES = 1 << 18; // of lines parsed at once; the strings of more would only lie about longer

/** Lines one behind the other, each of which ends in a newline. */
type Lines = {
  bytes: Uint8Array<ArrayBuffer>;
  /** Where they begin in the text. */
  start: number;
};

/**
 * The texts of a field, in the order of the lines. Null is an empty document; a blank line is none. Without a field, whole lines
 * and behind a newline the place of each.
 */
export async function* readJsonLines(
  { name, chunks, takeRead }: TextInput,
  field: string | null,
  reportBad: ReportBad,
): AsyncGenerator<Block> {
  const text = await behindMark(name, chunks, reportBad);
  if (text === undefined) return;
  const builder = new BlockBuilder(), utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  let number = 0; // of the line
  for await (const { bytes, start } of wholeLines(text, reportLongLine)) {
    const lines = utf8.decode(bytes).split("\n"), places = isUtf8(bytes) ? undefined : wrongBytes(bytes);
    lines.pop(); // after the last newline
    for (const [i, line] of lines.entries()) {
      number++;
      const place = `${name}:${number}`, wrong = places?.get(i);
      if (wrong !== undefined) {
        reportBad(notUtf8(place, start + wrong, bytes[wrong]!), 1);
        continue;
      }
      if (line.trim() === "") continue;
      const document = field === null ? `${line.trim()}\n${place}` : parseLine(line, field, place, reportBad);
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

/** Runs of lines. One that is longer than a document may be is reported and becomes empty. */
async function* wholeLines({ mark, chunks }: Marked, reportLongLine: () => void): AsyncGenerator<Lines> {
  const runs = new BlockBuilder(2 * RUN_BYTES); // a document of it is a run of lines
  let start = mark, at = mark; // in the text: where the run and where the chunk begins
  let dropping = false; // the open line
  for await (const chunk of chunks) {
    const end = chunk.lastIndexOf(NEWLINE) + 1;
    if (end > 0) {
      const begin = dropping ? chunk.indexOf(NEWLINE) : 0;
      if (dropping) start = at + begin;
      runs.append(chunk.subarray(begin, end));
      runs.end();
      dropping = false;
      if (runs.bytes >= RUN_BYTES) yield take();
    }
    at += chunk.length;
    if (!dropping) runs.append(chunk.subarray(end));
    if (runs.open <= DOCUMENT_BYTES) continue;
    runs.cut(0);
    yield take();
    reportLongLine();
    dropping = true;
  }
  if (runs.open > 0 || dropping) {
    runs.append(Uint8Array.of(NEWLINE));
    runs.end();
  }
  yield take();

  function take(): Lines {
    const bytes = runs.take().text, lines = { bytes, start };
    start += bytes.length;
    return lines;
  }
}

/** Where the first byte is that is not UTF-8 in each line that has one. */
function wrongBytes(bytes: Uint8Array): Map<number, number> {
  const found = new Map<number, number>();
  for (let line = 0, from = 0; from < bytes.length; line++) {
    const end = bytes.indexOf(NEWLINE, from), at = firstInvalid(bytes.subarray(from, end));
    if (at >= 0) found.set(line, from + at);
    from = end + 1;
  }
  return found;
}

/** Like JSON.parse(), but also reads what Python's json writes for numbers that are not finite. */
function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch (error) {
    if (!/NaN|Infinity/.test(line)) throw error;
    return JSON.parse(withoutNaN(line));
  }
}

/** A line with 1e999, which JSON.parse() takes for Infinity, in the place of each NaN and Infinity outside of strings. */
function withoutNaN(line: string): string {
  const parts: string[] = [];
  for (let at = 0; at < line.length;) {
    const quote = line.indexOf('"', at), start = quote < 0 ? line.length : quote;
    parts.push(line.slice(at, start).replace(/(?<![\w.+-])(NaN|-?Infinity)(?![\w.])/g, "1e999"));
    let end = line.indexOf('"', start + 1);
    while (end >= 0 && isEscaped(line, end)) end = line.indexOf('"', end + 1);
    at = end < 0 ? line.length : end + 1;
    parts.push(line.slice(start, at));
  }
  return parts.join("");
}

/** Whether an odd number of backslashes stands before a character. */
function isEscaped(line: string, at: number): boolean {
  let from = at;
  while (line[from - 1] === "\\") from--;
  return (at - from) % 2 === 1;
}

/** The object in a line. Throws UserError that names the place where there is none. */
export function parseObject(line: string, place: string): Record<string, unknown> {
  let row: unknown;
  try {
    row = parse(line);
  } catch (error) {
    const zero = line.indexOf("\0");
    const reason = zero < 0
      ? (error as Error).message.replace(/ \(line .*/, "") // it counts lines within this one
      : `its character ${zero} is U+0000, as in UTF-16`;
    throw new UserError(`Cannot read ${place}: ${reason}; each line should be one JSON object`);
  }
  if (isObject(row)) return row;
  const what = `it is ${Array.isArray(row) ? "a list" : line.trim().slice(0, 40)}`;
  throw new UserError(`Cannot read ${place}: ${what}; each line should be one JSON object`);
}

/** The text in a line, undefined if there is none. */
function parseLine(
  line: string,
  field: string,
  place: string,
  reportBad: ReportBad,
): string | null | undefined {
  let row: Record<string, unknown>;
  try {
    row = parseObject(line, place);
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    return void reportBad(error.message, 1);
  }
  if (!Object.hasOwn(row, field)) {
    const fields = Object.keys(row).join(", ") || "none";
    return void reportBad(
      `Cannot read ${place}: it has no field "${field}" but ${fields}; choose one with --column`,
      1,
    );
  }
  const text: unknown = row[field];
  if (text === null || typeof text === "string" && text.isWellFormed()) return text;
  if (typeof text === "string") {
    const what = `field "${field}" has \\u${
      /\p{Surrogate}/u.exec(text)![0].charCodeAt(0).toString(16)
    } alone`;
    return void reportBad(
      `Cannot read ${place}: ${what}, which is half of a character; write the whole one`,
      1,
    );
  }
  return void reportBad(
    `Cannot read ${place}: field "${field}" is ${
      text === Infinity ? "NaN or Infinity" : JSON.stringify(text).slice(0, 40)
    }, should be a text; choose another with --column`,
    1,
  );
}
