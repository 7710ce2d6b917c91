// Which files of a directory are read: those in a known format, of one split of the data; and what is said of the others.
import { formatCount } from "../../base/format.ts";
import { resolve } from "node:path";
import { UserError } from "../../base/errors.ts";

/** What to take from directories and patterns, and whom to tell. */
export type Choice = {
  /** A split of the data, such as train; "" for all files but those of validation and test. */
  split?: string;
  /** Where the dataset goes: what prepare writes there is no input. */
  out?: string;
  /** Told in one line each what a directory gave and what was left out. */
  report?: (line: string) => void;
};

/** The words for each split, as the datasets library has them. */
const SPLITS = new Map([
  ...["train", "training"].map((word) => [word, "train"] as const),
  ...["validation", "valid", "val", "dev"].map((word) => [word, "validation"] as const),
  ...["test", "testing", "eval", "evaluation"].map((word) => [word, "test"] as const),
]);

/** Files that describe data or belong to a model or a dataset, though they end in .json. */
const DESCRIPTIONS =
  /^(dataset_infos?|state|meta|config|generation_config|tokenizer|tokenizer_config)\.json$/;

/** What prepare writes in the directory of a dataset. */
const WRITTEN =
  /^(unfinished|part_\d+_of_\d+)\/|^prepare\.lock$|^(meta|tokenizer|tokenizer_config)\.json$|^(train|val)_\d{6}\.bin$/;

/**
 * The split that a path names: a word in the name of its file, else its nearest directory that is called so. undefined if it
 * names none.
 */
export function splitOf(path: string): string | undefined {
  const [file = "", ...directories] = path.toLowerCase().split("/").reverse();
  const word = [...file.split(/[^a-z]+/), ...directories].find((word) => SPLITS.has(word));
  return word === undefined ? undefined : SPLITS.get(word);
}

/**
 * The files of a directory to read. Throws UserError if all that can be read is of another split.
 *
 * @param name How the user named it.
 * @param paths All files below it, relative to it.
 * @param endingOf What a file's name ends in if it can be read, such as .jsonl.gz; undefined for any other.
 */
export function filesToRead(
  name: string,
  paths: string[],
  endingOf: (path: string) => string | undefined,
  { split, report = () => {} }: Choice,
): string[] {
  const described: string[] = [], unknown: string[] = [], chosen: string[] = [], others: string[] = [];
  for (const path of paths) {
    if (DESCRIPTIONS.test(baseName(path))) described.push(path);
    else if (endingOf(path) === undefined) unknown.push(path);
    else (isOfSplit(path, split) ? chosen : others).push(path);
  }
  if (chosen.length === 0 && others.length > 0) throw noSplit(name, others, split);
  if (chosen.length === 0) return [];
  const left_out = [
    ...(others.length > 0 ? [`${counts(others.map(nameOfSplit))} (--split reads them)`] : []),
    ...(described.length > 0 ? [counts(described.map(baseName))] : []),
    ...(unknown.length > 0 ? [`${counts(unknown.map(lastEnding))}, which cannot be read`] : []),
  ];
  report(`${name}: ${files(chosen.length)} (${counts(chosen.map((path) => endingOf(path)!))})`);
  for (const what of left_out) report(`${name}: left out ${what}`);
  return chosen;
}

/** Those of the files that a pattern matches which are of the split, if one is asked for; reports if there are several. */
export function filesOfSplit(
  pattern: string,
  paths: string[],
  { split = "", report = () => {} }: Choice,
): string[] {
  if (split !== "") {
    const chosen = paths.filter((path) => isOfSplit(path, split));
    if (chosen.length === 0 && paths.length > 0) throw noSplit(pattern, paths, split);
    return chosen;
  }
  const named = paths.map(splitOf).filter((split) => split !== undefined);
  if (new Set(named).size > 1) {
    report(`${pattern}: reads all its splits, ${counts(named)}; --split train reads one`);
  }
  return paths;
}

/** The paths without those that prepare writes to the directory of the dataset. */
export function withoutOutput(paths: string[], { out }: Choice): string[] {
  if (out === undefined) return paths;
  const prefix = `${resolve(out)}/`;
  return paths.filter((path) => {
    const whole = resolve(path);
    return !whole.startsWith(prefix) || !WRITTEN.test(whole.slice(prefix.length));
  });
}

function isOfSplit(path: string, split = ""): boolean {
  const named = splitOf(path);
  if (split === "") return named === undefined || named === "train";
  const known = SPLITS.get(split);
  if (known !== undefined) return named === known;
  return path.split("/").some((part) =>
    part === split || part.startsWith(`${split}-`) || part.startsWith(`${split}.`)
  );
}

function noSplit(name: string, others: string[], split = ""): UserError {
  return new UserError(
    `Cannot find input: "${name}" has no file of split ${split || "train"}, it has ${
      counts(others.map(nameOfSplit))
    }; ` +
      `choose one, such as --split ${splitOf(others[0]!) ?? "train"}`,
  );
}

function nameOfSplit(path: string): string {
  const split = splitOf(path);
  return split === undefined ? "of no split" : `of split ${split}`;
}

function baseName(path: string): string {
  return path.split("/").at(-1)!;
}

/** ".md", or "without ending". */
function lastEnding(path: string): string {
  return /.(\.[^./]{1,10})$/.exec(path)?.[1] ?? "without ending";
}

function files(n: number): string {
  return `${formatCount(n)} file${n === 1 ? "" : "s"}`;
}

const LISTED = 6; // kinds that are named

/** "2 .parquet, 1 .txt", the most frequent first. */
function counts(kinds: string[]): string {
  const found = new Map<string, number>();
  for (const kind of kinds) found.set(kind, (found.get(kind) ?? 0) + 1);
  const sorted = [...found].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  const shown = sorted.slice(0, LISTED).map(([kind, n]) => `${formatCount(n)} ${kind}`);
  const more = sorted.slice(LISTED).reduce((sum, [, n]) => sum + n, 0);
  return [...shown, ...(more > 0 ? [`${formatCount(more)} others`] : [])].join(", ");
}
