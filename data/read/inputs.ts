// What --input names: files, globs, directories, URLs and datasets on the Hugging Face hub, each perhaps with a weight.
import { relative } from "node:path";
import { UserError } from "../../base/errors.ts";
import { isDirectory, isFile, lookedIn } from "../../base/files.ts";
import { type ByteSource, FileBytes } from "./bytes.ts";
import type { Compression } from "./compression.ts";
import { type Choice, filesOfSplit, filesToRead, withoutOutput } from "./contents.ts";
import { filesBelow, globFiles, globMatcher, globRoot, isGlob } from "./globs.ts";
import { fetchJson, isUrl, type JsonPage, noRanges, probeUrl, UrlBytes } from "./http.ts";
import { hubFileUrl, hubListUrl, parseHubUrl } from "./hub.ts";
import { openTextColumn } from "./parquet_footer.ts";

/** A file or URL to read documents from. */
export type Input = {
  /** The path or URL as it is opened. */
  name: string;
  /** Bytes in it, as they are stored; 0 if a server does not say. */
  bytes: number;
  /** What changes when the content does: when a file was modified, the ETag or Last-Modified of a URL, or "". */
  version: string;
};

/** What one --input names. */
export type Source = {
  /** The value of --input. */
  pattern: string;
  /** Share of the text, in proportion to those of the other sources; null if none was given. */
  weight: number | null;
  /** What it names, in order. */
  inputs: Input[];
};

/** How documents are stored. */
export type Format = {
  /** What the file holds once it is unpacked. */
  kind: "parquet" | "jsonl" | "txt";
  /** How the file is packed; "" if it is not. */
  compression: Compression;
};

/** The format that the end of a file's or URL's name tells; undefined for any other name. */
export function formatOf(name: string): Format | undefined {
  const path = isUrl(name) ? new URL(name).pathname : name;
  const [kind, compression = ""] = ending(path)?.slice(1).split(".") ?? [];
  if (kind === undefined || kind === "parquet" && compression !== "") return undefined;
  return {
    kind: kind === "parquet" || kind === "txt" ? kind : "jsonl",
    compression: compression as Compression,
  };
}

/** What a path ends in, if it may be a format that can be read, in small letters: .jsonl.gz for A.JSONL.GZ. */
function ending(path: string): string | undefined {
  return /[^/](\.(parquet|jsonl?|ndjson|txt)(\.(gz|zst))?)$/i.exec(path)?.[1]?.toLowerCase();
}

const ENDINGS = ".parquet, .jsonl, .ndjson, .json or .txt, all but the first perhaps with .gz or .zst";

/** Opens an input to read from it. */
export function openInput(input: Input): ByteSource {
  return isUrl(input.name) ? new UrlBytes(input.name, input) : new FileBytes(input.name, input.bytes);
}

/** Which inputs to find. */
export type FindOptions = Choice & {
  /** Column of parquet files that must be there. */
  column: string;
};

/**
 * Finds the inputs that each pattern names. Throws UserError for what cannot be read: missing, empty, an unknown
 * format, no such parquet column, named twice.
 *
 * @param patterns Files, directories (for whatever in them can be read, but validation and test data), globs, URLs, and each of these on the hub as
 * hf://datasets/OWNER/NAME@REVISION/PATH. NAME:0.8 gives a weight; all have one or none has.
 */
export async function findSources(patterns: string[], options: FindOptions): Promise<Source[]> {
  const { column } = options;
  const found = await inParallel(patterns, async (pattern) => {
    const { name, weight } = splitWeight(pattern);
    return { pattern, weight, names: await expand(name, options) };
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

/** A weight is what stands behind the last colon, unless there is a file or directory of the whole name. */
function splitWeight(pattern: string): { name: string; weight: number | null } {
  const match = /^(.+):(\d*\.?\d+)$/.exec(pattern);
  if (match === null || isFile(pattern) || isDirectory(pattern)) return { name: pattern, weight: null };
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

// ---- what names stand for

/** The files or URLs that the name in a pattern stands for. */
async function expand(name: string, choice: Choice): Promise<string[]> {
  if (name.startsWith("hf://")) return await expandHubUrl(name, choice);
  if (isUrl(name)) return [name];
  if (!isGlob(name) && !isDirectory(name)) return [name];
  const [root, paths] = isGlob(name) ? [globRoot(name), globFiles(name)] : [name, filesBelow(name)];
  return chosen(name, choose(name, root, withoutOutput(paths, choice), choice));
}

/** Those of the paths that a pattern matches, or that are below a directory, which are to be read. */
function choose(name: string, root: string, paths: string[], choice: Choice): string[] {
  const below = new Map(paths.map((path) => [relative(root, path), path])), names = [...below.keys()];
  const endingOf = (path: string) => formatOf(path) && ending(path);
  const wanted = isGlob(name)
    ? filesOfSplit(name, names, choice)
    : filesToRead(name, names, endingOf, choice);
  return wanted.map((path) => below.get(path)!);
}

/** The addresses of files on the hub, which tells what is in a directory. */
async function expandHubUrl(url: string, choice: Choice): Promise<string[]> {
  const place = parseHubUrl(url), pattern = place.path;
  if (!isGlob(pattern) && formatOf(pattern) !== undefined) return [hubFileUrl(place)];
  const root = isGlob(pattern) ? globRoot(pattern) : pattern.replace(/\/+$/, ""), paths: string[] = [];
  for (let list: string | undefined = hubListUrl({ ...place, path: root }); list !== undefined;) {
    const page: JsonPage = await fetchJson(list);
    paths.push(...hubPaths(list, page.value));
    list = page.next;
  }
  const matcher = globMatcher(pattern);
  const found = paths.filter((path) => isGlob(pattern) ? matcher.test(path) : !/(^|\/)\./.test(path));
  const wanted = choose(url, root, found, choice);
  return chosen(url, wanted).map((path) => hubFileUrl({ ...place, path }));
}

/** The files in a list of the hub: [{type: "file", path: "dir/a.parquet", ...}, ...]. */
function hubPaths(url: string, list: unknown): string[] {
  if (!Array.isArray(list)) throw new UserError(`Cannot read "${url}": it should be a list of files`);
  return list.filter(({ type }) => type === "file").map(({ path }) => path);
}

/** The paths in the order of their names, of which there must be one. */
function chosen(name: string, paths: string[]): string[] {
  if (paths.length > 0) return paths.sort();
  throw new UserError(
    isGlob(name)
      ? `Cannot find input: no file matches "${name}"${isUrl(name) ? "" : lookedIn(name)}`
      : `Cannot find input: directory "${name}" has no file whose name ends in ${ENDINGS}`,
  );
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
    if (!ranges || input.bytes === 0) throw noRanges(name);
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
      `Cannot read "${path}": ${
        missing ? `there is no such file${lookedIn(path)}` : (error as Error).message
      }`,
    );
  }
}
