// Several datasets as one to train on: "data/fineweb:0.8,data/code:0.2" takes 80% of the windows from the first and 20% from
// the second. Each is gone through by itself, without replacement, however often its share takes it round.
import { join, resolve } from "node:path";
import { UserError } from "../base/errors.ts";
import { isDirectory, isFile, sha256OfFile } from "../base/files.ts";
import { beginSums } from "../base/sha256.ts";
import { type Dataset, requireShard } from "./bins.ts";
import { verifyMeta } from "./meta.ts";
import { CYCLE, slotsOf } from "./order.ts";
import { decode, parseJson, readBytes } from "./tokenizers/tokenizer_file.ts";

/** A dataset made of others. Its shards are those of its parts, one part behind the other. */
export type Mix = Dataset & {
  /** What it is made of, in the order of its name. */
  parts: Part[];
};

/** A dataset of a mix. */
export type Part = {
  /** Its shards, tokenizer and so on. */
  dataset: Dataset;
  /** How many of CYCLE training windows come from it. */
  slots: number;
};

/**
 * Opens what a data_dir names: the directory of a dataset, or several as "DIR:WEIGHT,DIR:WEIGHT". Shares are the
 * weights over their sum, rounded to ten-thousandths. Throws UserError as open(), for weights that are missing or too
 * small, and for datasets that differ in tokenizer, vocabulary, end-of-text token or, of conversations, chat template.
 *
 * @param open How to open one directory: openDataset or verifyDataset.
 */
export function openData(data_dir: string, open: (dir: string) => Dataset): Dataset | Mix {
  if (!data_dir.includes(",") || isDirectory(data_dir)) return open(data_dir);
  const named = data_dir.split(",").map(parsePart);
  refuseTwice(named.map(({ dir }) => dir));
  const slots = slotsOf(named.map(({ weight }) => weight));
  const tiny = slots.indexOf(0);
  if (tiny >= 0) {
    const { dir, weight } = named[tiny]!;
    throw new UserError(
      `Cannot mix in "${dir}" with weight ${weight}: that is less than one of ${CYCLE} windows; use a larger weight`,
    );
  }
  const parts = named.map(({ dir }, i) => ({ dataset: open(dir), slots: slots[i]! }));
  return mixOf(data_dir, parts);
}

/** The datasets that a dataset consists of: those of a mix, or itself. */
export function partsOf(dataset: Dataset | Mix): Part[] {
  return "parts" in dataset ? dataset.parts : [{ dataset, slots: CYCLE }];
}

/** verifyDataset() of what is open, with several shards at a time. Throws UserError as that does. */
export async function verifyShards(dataset: Dataset | Mix): Promise<void> {
  for (const { dataset: { dir, format, sha256 } } of partsOf(dataset)) {
    if (format === "loam") verifyMeta(dir);
    const files = Object.keys(sha256), actual = await beginSums(files.map((file) => join(dir, file)))();
    files.forEach((file, i) => requireShard(dir, file, actual[i]!, sha256[file]!));
  }
}

/** A directory and the weight behind its last colon, which belongs to the name if there is a directory of the whole. */
function parsePart(text: string): { dir: string; weight: number } {
  const [, dir, weight] = isDirectory(text) ? [] : /^(.+):(\d+\.?\d*|\.\d+)$/.exec(text) ?? [];
  if (dir !== undefined && Number(weight) > 0) return { dir, weight: Number(weight) };
  throw new UserError(
    `Cannot mix in "${text}": it should be a directory and a weight above 0, such as data/fineweb:0.8,data/code:0.2`,
  );
}

function refuseTwice(dirs: string[]): void {
  const paths = dirs.map((dir) => resolve(dir));
  const again = paths.findIndex((path, i) => paths.indexOf(path) < i);
  if (again < 0) return;
  throw new UserError(`Cannot mix in "${dirs[again]}" twice: name it once, with the sum of the weights`);
}

function mixOf(data_dir: string, parts: Part[]): Mix {
  const datasets = parts.map(({ dataset }) => dataset), first = datasets[0]!;
  for (const dataset of datasets) refuseDifferent(first, dataset);
  const { tokenizer, vocab_size, bos, eot } = first;
  const chats = datasets.filter(({ template }) => template !== undefined), template = chats[0]?.template;
  const other = chats.find((chat) => chat.template !== template);
  if (other) {
    throw new UserError(
      `Cannot mix "${
        chats[0]!.dir
      }" and "${other.dir}": their conversations have different chat templates; ` +
        "prepare both with one: --chat_template",
    );
  }
  return {
    dir: data_dir,
    format: "mix",
    assumed: [...new Set(datasets.flatMap(({ assumed }) => assumed))],
    tokenizer,
    vocab_size,
    bos,
    eot,
    train: datasets.flatMap(({ train }) => train),
    val: datasets.flatMap(({ val }) => val),
    val_bytes: sumOfAll(datasets.filter(({ val }) => val.length > 0).map(({ val_bytes }) => val_bytes)),
    ...template !== undefined && { template },
    sha256: Object.fromEntries(
      datasets.flatMap(({ dir, sha256 }) =>
        Object.entries(sha256).map(([file, hash]) => [`${dir}/${file}`, hash])
      ),
    ),
    parts,
  };
}

/** The sum, undefined where one of them is. */
function sumOfAll(values: (number | undefined)[]): number | undefined {
  return values.reduce<number | undefined>(
    (sum, value) => sum === undefined || value === undefined ? undefined : sum + value,
    0,
  );
}

/** Ids of both datasets have to mean the same. */
function refuseDifferent(a: Dataset, b: Dataset): void {
  const differ = (what: string, ofA: unknown, ofB: unknown) =>
    new UserError(
      `Cannot mix "${a.dir}" and "${b.dir}": ${what} is ${ofA} and ${ofB}; prepare both with the same --tokenizer`,
    );
  if (!sameTokenizer(a.tokenizer, b.tokenizer)) throw differ("tokenizer", a.tokenizer, b.tokenizer);
  if (a.vocab_size !== b.vocab_size) throw differ("vocab_size", a.vocab_size, b.vocab_size);
  if (a.bos !== b.bos) throw differ("the token that documents begin with", a.bos, b.bos);
  if (a.eot !== b.eot) throw differ("eot", a.eot, b.eot);
}

/**
 * Tokenizers have the same name, or the same file: tokenizer.json in a directory, or meta.pkl. What tokenizer.json begins texts
 * with is left aside: datasets of earlier versions have it as it was, and their bos says how their documents begin.
 */
function sameTokenizer(a: string | null, b: string | null): boolean {
  if (a === b) return true;
  const contents = contentsOf(a);
  return contents !== undefined && contents === contentsOf(b);
}

function contentsOf(tokenizer: string | null): string | undefined {
  const path = tokenizer?.endsWith(".pkl") ? tokenizer : `${tokenizer}/tokenizer.json`;
  if (!isFile(path)) return undefined;
  if (path === tokenizer) return sha256OfFile(path);
  const json = parseJson(path, decode(readBytes(path)));
  return JSON.stringify({ ...json, post_processor: null, truncation: null, padding: null });
}
