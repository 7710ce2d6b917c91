// What --input names: files, globs and directories, each perhaps with a weight.
import { basename, dirname, join } from "node:path";
import { UserError } from "../ffi/errors.ts";
import { FileBytes } from "./bytes.ts";
import { checkParquet } from "./parquet.ts";

/** A file or URL to read documents from. */
export interface Input {
  /** The path or URL as it is opened. */
  name: string;
  /** Bytes in it, as they are stored. */
  bytes: number;
  /** What changes when the content does: when a file was modified. */
  version: string;
}

/** What one --input names. */
export interface Source {
  /** The value of --input. */
  pattern: string;
  /** Share of the text, in proportion to those of the other sources; null if none was given. */
  weight: number | null;
  /** What it names, in order. */
  inputs: Input[];
}

/** How the documents of an input are stored. */
export type Format = "parquet" | "jsonl" | "txt";

const FORMATS: Record<string, Format> = { ".parquet": "parquet", ".jsonl": "jsonl", ".txt": "txt" };

/** The format that the end of a name tells, undefined for any other name. */
export function formatOf(name: string): Format | undefined {
  const extension = Object.keys(FORMATS).find((extension) => basename(name).endsWith(extension));
  return extension === undefined ? undefined : FORMATS[extension];
}

/**
 * Finds the inputs that each pattern names, in the order of a glob's or directory's names.
 *
 * @param patterns Files and globs: * and ? stand for characters of a name, ** for any directories. NAME:0.8 gives a weight.
 * @throws {UserError} for what cannot be read: missing, empty, an unknown format, no such parquet column.
 */
export async function findSources(patterns: string[], { column }: { column: string }): Promise<Source[]> {
  const sources: Source[] = [];
  for (const pattern of patterns) {
    const inputs: Input[] = [];
    for (const path of /[*?]/.test(pattern) ? expandGlob(pattern) : [pattern]) {
      inputs.push(await openInput(path, column));
    }
    sources.push({ pattern, weight: null, inputs });
  }
  return sources;
}

async function openInput(path: string, column: string): Promise<Input> {
  const info = stat(path);
  if (info.isDirectory) {
    throw new UserError(
      `Cannot read "${path}": it is a directory; name its files, such as "${join(path, "*.parquet")}"`,
    );
  }
  const format = formatOf(path);
  if (format === undefined) {
    throw new UserError(`Cannot read "${path}": its name should end in ${Object.keys(FORMATS).join(", ")}`);
  }
  if (info.size === 0) throw new UserError(`Cannot read "${path}": it is empty`);
  if (format === "parquet") await checkParquet(new FileBytes(path, info.size), column);
  return { name: path, bytes: info.size, version: info.mtime?.toISOString() ?? "" };
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
