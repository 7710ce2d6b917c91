// What --input names: files, globs, directories and URLs, each perhaps with a weight.
import { dirname, join } from "node:path";
import { UserError } from "../ffi/errors.ts";
import { type ByteSource, FileBytes } from "./bytes.ts";
import type { Compression } from "./compression.ts";
import { isUrl, noRanges, probeUrl, resolveUrl, UrlBytes } from "./http.ts";
import { openTextColumn } from "./parquet_footer.ts";

/** A file or URL to read documents from. */
export interface Input {
  /** The path or URL as it is opened. */
  name: string;
  /** Bytes in it, as they are stored; 0 if a server does not say. */
  bytes: number;
  /** What changes when the content does: when a file was modified, the ETag or Last-Modified of a URL, or "". */
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

/** How documents are stored. */
export interface Format {
  kind: "parquet" | "jsonl" | "txt";
  compression: Compression;
}

/** The format that the end of a file's or URL's name tells; undefined for any other name. */
export function formatOf(name: string): Format | undefined {
  const path = isUrl(name) ? new URL(name).pathname : name;
  const [, kind, compression = ""] = /[^/]\.(parquet|jsonl?|txt)(?:\.(gz|zst))?$/.exec(path) ?? [];
  if (kind === undefined || kind === "parquet" && compression !== "") return undefined;
  return {
    kind: kind === "json" ? "jsonl" : kind as Format["kind"],
    compression: compression as Compression,
  };
}

const ENDINGS = ".parquet, .jsonl, .json or .txt, the last three perhaps with .gz or .zst";

/** Opens an input to read from it. */
export function openInput(input: Input): ByteSource {
  return isUrl(input.name) ? new UrlBytes(input.name, input) : new FileBytes(input.name, input.bytes);
}

/**
 * Finds the inputs that each pattern names.
 *
 * @param patterns Files, directories (whatever can be read in them, by name), URLs, and globs: * and ? stand for characters of
 * a name, ** for any directories. NAME:0.8 gives a weight; all have one or none has.
 * @throws {UserError} for what cannot be read: missing, empty, an unknown format, no such parquet column, named twice.
 */
export async function findSources(patterns: string[], { column }: { column: string }): Promise<Source[]> {
  const found = patterns.map((pattern) => {
    const { name, weight } = splitWeight(pattern);
    return { pattern, weight, names: expand(name) };
  });
  requireWeightsOfAll(found);
  refuseDuplicates(found);
  const inputs = await inParallel(found.flatMap(({ names }) => names), (name) => checkInput(name, column));
  return found.map(({ pattern, weight, names }) => ({
    pattern,
    weight,
    inputs: inputs.splice(0, names.length),
  }));
}

// ---- weights and duplicates

function splitWeight(pattern: string): { name: string; weight: number | null } {
  const match = /^(.+):(\d*\.?\d+)$/.exec(pattern);
  if (match === null) return { name: pattern, weight: null };
  const weight = Number(match[2]);
  if (weight > 0) return { name: match[1]!, weight };
  throw new UserError(`Cannot use --input ${pattern}: its weight is ${match[2]}, should be above 0`);
}

function requireWeightsOfAll(sources: Pick<Source, "pattern" | "weight">[]): void {
  const without = sources.find(({ weight }) => weight === null),
    first = sources.find(({ weight }) => weight !== null);
  if (without === undefined || first === undefined) return;
  throw new UserError(
    `Cannot mix --input ${first.pattern} with --input ${without.pattern}: one has a weight and the other has none; ` +
      `give every --input one, such as ${without.pattern}:1`,
  );
}

function refuseDuplicates(sources: { pattern: string; names: string[] }[]): void {
  const patterns = new Map<string, string>(); // by file
  for (const { pattern, names } of sources) {
    for (const name of names) {
      const file = isUrl(name) ? name : realPath(name), other = patterns.get(file);
      if (other !== undefined) {
        throw new UserError(
          `Cannot read "${name}" twice: --input ${other} and --input ${pattern} both name it; leave one of them out`,
        );
      }
      patterns.set(file, pattern);
    }
  }
}

/** The path without links, so that every way to name a file gives the same; unchanged where there is no file. */
function realPath(path: string): string {
  try {
    return Deno.realPathSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return path;
  }
}

// ---- files, directories and globs

/** The files or URLs that the name in a pattern stands for. */
function expand(name: string): string[] {
  if (isUrl(name)) return [resolveUrl(name)];
  if (/[*?]/.test(name)) return expandGlob(name);
  return isDirectory(name) ? filesBelow(name) : [name];
}

function filesBelow(directory: string): string[] {
  const paths = Array.from(walk(directory, Infinity)).filter((path) => formatOf(path) !== undefined).sort();
  if (paths.length === 0) {
    throw new UserError(
      `Cannot find input: directory "${directory}" has no file whose name ends in ${ENDINGS}`,
    );
  }
  return paths;
}

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

function globMatcher(pattern: string): RegExp {
  const source = join(pattern).replace(/\*\*\/|\*\*|\*|\?|[^\w/]/g, (part) => {
    if (part === "**/") return "(?:[^/]+/)*";
    if (part === "**") return ".*";
    if (part === "*") return "[^/]*";
    return part === "?" ? "[^/]" : `\\${part}`;
  });
  return new RegExp(`^${source}$`);
}

/** Files below a directory, at most `depth` levels down, without the hidden ones. */
function* walk(directory: string, depth: number): Generator<string> {
  if (depth === 0) return;
  for (const { name, isDirectory } of entriesOf(directory)) {
    if (name.startsWith(".")) continue;
    const path = join(directory, name);
    if (isDirectory) yield* walk(path, depth - 1);
    else yield path;
  }
}

function entriesOf(directory: string): Deno.DirEntry[] {
  try {
    return Array.from(Deno.readDirSync(directory));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(`Cannot read directory "${directory}": ${(error as Error).message}`);
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

// ---- checks

const REQUESTS = 8; // to servers at the same time

/** The results in the order of the items, a few of which are waited for at a time. */
async function inParallel<T, R>(items: T[], run: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const runSome = async () => {
    for (let i = next++; i < items.length; i = next++) results[i] = await run(items[i]!);
  };
  await Promise.all(Array.from({ length: REQUESTS }, runSome));
  return results;
}

async function checkInput(name: string, column: string): Promise<Input> {
  const { ranges, ...input } = isUrl(name)
    ? { name, ...await probeUrl(name) }
    : { ...checkFile(name), ranges: true };
  const format = formatOf(name);
  if (format === undefined) throw new UserError(`Cannot read "${name}": its name should end in ${ENDINGS}`);
  if (format.kind === "parquet") {
    if (!ranges) throw noRanges(name);
    await openTextColumn(openInput(input), column);
  }
  return input;
}

function checkFile(path: string): Input {
  const info = stat(path);
  if (info.size === 0) throw new UserError(`Cannot read "${path}": it is empty`);
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
