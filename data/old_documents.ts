// The documents in the files that prepare is given: .parquet (a text column), .jsonl (a field), .txt (the whole file, or
// the parts between separators). Everything is read in pieces of about a megabyte.
import { dirname, join } from "node:path";
import { UserError } from "../ffi/errors.ts";
import { type Batch, checkParquet, readParquet } from "./old_parquet.ts";

export type { Batch };

/** A file to read documents from. */
export interface Input {
  path: string;
  bytes: number;
}

const FORMATS = [".parquet", ".jsonl", ".txt"];
const LONGEST_TEXT = 0x1fffffe8; // UTF-16 units in a JavaScript string
const LONGEST_PART = 1 << 26; // of a file that is split: UTF-16 units in one document

/**
 * The files that paths and globs name, in their order and those of a glob by name, each once. In a glob, * and ? stand for
 * characters of a name, ** for any directories.
 *
 * @throws {UserError} for what cannot be read: missing, empty, a directory, an unknown format, no such parquet column.
 */
export function findInputs(patterns: string[], column: string): Input[] {
  const paths = new Set(
    patterns.flatMap((pattern) => /[*?]/.test(pattern) ? expandGlob(pattern) : [pattern]),
  );
  return Array.from(paths, (path) => checkInput(path, column));
}

/**
 * The documents of a file, null where a row or line has none.
 *
 * @param options.column Name of the parquet column or jsonl field.
 * @param options.separator Text between the documents of a .txt file; "" means that the file is one document.
 * @throws {UserError} if the file is corrupt.
 */
export function readDocuments(
  input: Input,
  { column, separator }: { column: string; separator: string },
): Iterable<Batch> {
  if (input.path.endsWith(".parquet")) return readParquet(input.path, column);
  if (input.path.endsWith(".jsonl")) return readJsonLines(input.path, column);
  return separator === "" ? [readWhole(input)] : splitFile(input.path, separator);
}

function checkInput(path: string, column: string): Input {
  const info = stat(path);
  if (info.isDirectory) {
    throw new UserError(
      `Cannot read "${path}": it is a directory; name its files, such as "${join(path, "*.parquet")}"`,
    );
  }
  if (!FORMATS.some((format) => path.endsWith(format))) {
    throw new UserError(`Cannot read "${path}": its name should end in ${FORMATS.join(", ")}`);
  }
  if (info.size === 0) throw new UserError(`Cannot read "${path}": it is empty`);
  if (path.endsWith(".parquet")) checkParquet(path, column);
  return { path, bytes: info.size };
}

function stat(path: string): Deno.FileInfo {
  try {
    using file = Deno.openSync(path); // a file that may not be read should fail here
    return file.statSync();
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const missing = error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory;
    throw new UserError(
      `Cannot read "${path}": ${missing ? "there is no such file" : (error as Error).message}`,
    );
  }
}

function isDirectory(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return false;
  }
}

// ---- globs

function expandGlob(pattern: string): string[] {
  let root = dirname(pattern); // the part before the first name with a wildcard
  while (/[*?]/.test(root)) root = dirname(root);
  const matcher = globMatcher(pattern);
  const depth = pattern.includes("**") ? Infinity : pattern.split("/").length;
  const paths = Array.from(isDirectory(root) ? walk(root, depth) : [])
    .filter((path) => matcher.test(path))
    .sort();
  if (paths.length === 0) throw new UserError(`Cannot find input: no file matches "${pattern}"`);
  return paths;
}

/** Files below a directory, at most `depth` levels down. */
function* walk(directory: string, depth: number): Generator<string> {
  if (depth === 0) return;
  for (const entry of Deno.readDirSync(directory)) {
    const path = join(directory, entry.name);
    if (entry.isDirectory) yield* walk(path, depth - 1);
    else yield path;
  }
}

function globMatcher(pattern: string): RegExp {
  const source = join(pattern).replace(/\*\*\/|\*\*|\*|\?|[^\w/]/g, (part) => {
    if (part === "**/") return "(?:[^/]+/)*";
    if (part === "**") return ".*";
    if (part === "*") return "[^/]*";
    return part === "?" ? "[^/]" : `\\${part}`;
  });
  return new RegExp(`^${source}$`);
}

// ---- text

function* readJsonLines(path: string, field: string): Generator<Batch> {
  let number = 0;
  for (const { texts, bytes } of splitFile(path, "\n")) {
    const documents: (string | null)[] = [];
    for (const line of texts) {
      number++;
      if (line.trim() !== "") documents.push(parseLine(line, field, `${path}:${number}`));
    }
    yield { texts: documents, bytes };
  }
}

function parseLine(line: string, field: string, place: string): string | null {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch (error) {
    const reason = (error as Error).message.replace(/ \(line .*/, ""); // it counts lines within this one
    throw new UserError(`Cannot read ${place}: ${reason}; each line should be one JSON object`);
  }
  if (typeof row !== "object" || row === null || !(field in row)) {
    const fields = typeof row === "object" && row !== null ? Object.keys(row).join(", ") : "";
    throw new UserError(
      `Cannot read ${place}: it has no field "${field}"; choose one with --column, it has: ${
        fields || "none"
      }`,
    );
  }
  const text: unknown = (row as Record<string, unknown>)[field];
  if (typeof text === "string") return text.toWellFormed(); // JSON can spell half a character
  if (text === null) return null;
  throw new UserError(
    `Cannot read ${place}: field "${field}" is ${JSON.stringify(text).slice(0, 40)}, should be a text`,
  );
}

/** A whole file as one document. */
function readWhole({ path, bytes }: Input): Batch {
  if (bytes > LONGEST_TEXT) {
    throw new UserError(
      `Cannot read "${path}" as one document: it has ${bytes} bytes, the limit is ${LONGEST_TEXT}; ` +
        `say what separates its documents, such as --separator='\\n\\n'`,
    );
  }
  return { texts: [new TextDecoder().decode(Deno.readFileSync(path))], bytes };
}

/** The parts of a UTF-8 file between separators. A byte-order mark at its start is dropped. */
function* splitFile(path: string, separator: string): Generator<{ texts: string[]; bytes: number }> {
  using file = Deno.openSync(path);
  const utf8 = new TextDecoder();
  const chunk = new Uint8Array(1 << 20);
  let rest = "";
  for (;;) {
    const n = file.readSync(chunk);
    rest += utf8.decode(chunk.subarray(0, n ?? 0), { stream: n !== null });
    if (n === null) break;
    const texts = rest.split(separator);
    rest = texts.pop()!;
    yield { texts, bytes: n };
    if (rest.length > LONGEST_PART) {
      throw new UserError(
        `Cannot read "${path}": no ${JSON.stringify(separator)} in ${rest.length} characters, ` +
          `the limit for one document is ${LONGEST_PART}`,
      );
    }
  }
  if (rest !== "") yield { texts: [rest], bytes: 0 };
}
