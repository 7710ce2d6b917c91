// meta.json, which describes a dataset: what it holds, and whether what stands in the file can be used.
import { hash } from "node:crypto";
import { join } from "node:path";
import { UserError } from "../base/errors.ts";
import { isObject, show } from "../base/json.ts";
import { isFile } from "../base/files.ts";
import type { Input } from "./read/inputs.ts";
import { VOCABULARIES } from "./tokenizer.ts";

/** Which part of the inputs a dataset holds that was prepared with --shard. */
export type Part = {
  /** From 1 to count. */
  index: number;
  /** How many parts there are. */
  count: number;
  /** Number of the input files of all parts. */
  files: number;
  /** Their size, as they are stored. */
  bytes: number;
  /** SHA-256 of the list of their names and sizes. */
  sha256: string;
};

/** What determines the tokens of a dataset. */
export type Recipe = {
  /** A name that openTokenizer() knows, or "." for the tokenizer.json beside meta.json. */
  tokenizer: string;
  /** Of the tokenizer's files for ".", otherwise "". */
  tokenizer_sha256: string;
  /** Ids that the tokenizer may give: 0 to one less. */
  vocab_size: number;
  /** Id that each document begins with. Earlier datasets do not say it, and begin each document with eot. */
  bos: number;
  /** Id of the end-of-text token, which each document ends with, unless it is bos too. */
  eot: number;
  /** Bytes of one token in the shards. */
  token_bytes: 2 | 4;
  /** Every file, in the order of reading. */
  inputs: Input[];
  /** The files in groups: so many of inputs after those of the group before. Without weights it is one group. */
  sources: { weight: number | null; files: number }[];
  /** What else the dataset depends on, by the names of the flags. */
  options: Record<string, string | number | boolean | null>;
  /** null for a dataset that holds all inputs. */
  part: Part | null;
  /** Of a dataset of conversations, the chat template that made text of them. */
  template?: string;
};

/** Size of one split. bytes counts the UTF-8 text, so that loss in nats * tokens / bytes / ln 2 is bits per byte. */
export type SplitSize = {
  /** How many it has. */
  documents: number;
  /** With those that begin and end documents. */
  tokens: number;
  /** UTF-8 text in the documents. */
  bytes: number;
  /** Of conversations, the tokens that are trained on. */
  trained?: number;
};

/** The contents of meta.json. */
export type Meta = Recipe & {
  /** Says what kind of file it is. */
  format: "loam-bins";
  /** Of this format. */
  version: 1;
  /** What is trained on. */
  train: SplitSize;
  /** What is held out. */
  val: SplitSize;
  /** Documents that were read and are not in it. */
  left_out: {
    empty: number;
    duplicates: number;
    bad: number;
    /** Conversations of which not even the first answer fits. */
    too_long?: number;
  };
  /** Conversations that lost their end, because they were too long. */
  cut?: number;
  /**
   * In their order. The files of a dataset that was merged are in the directories of its parts. A shard of conversations has a
   * mask beside it, NAME.mask, with a byte for each token: 1 where it is trained on, and 2 more where a conversation begins.
   */
  shards: { file: string; tokens: number; sha256: string; mask_sha256?: string }[];
};

const OWN_SUM = "meta_sha256"; // the last field of the file, which metaSum() gives

/** meta.json as it is written. */
export function metaText(meta: Meta): string {
  return `${JSON.stringify({ ...meta, [OWN_SUM]: metaSum({ ...meta }) }, null, 2)}\n`;
}

/** The checksum of all other fields, without those of the shards: they are compared with the shards themselves. */
function metaSum(meta: Record<string, unknown>): string {
  const blank = (shard: Meta["shards"][number]) => ({
    ...shard,
    sha256: "",
    ...shard.mask_sha256 !== undefined && { mask_sha256: "" },
  });
  const shards = Array.isArray(meta.shards) ? meta.shards.map(blank) : null;
  return sha256Of({ ...meta, shards });
}

/** SHA-256 of a value as JSON without spaces. */
export function sha256Of(value: object): string {
  return hash("sha256", JSON.stringify(value));
}

/**
 * Compares meta.json of a directory with its own checksum, which it has unless it was written by hand or by an
 * earlier version, and the files of a tokenizer beside it with theirs. Throws UserError if it is not as prepare wrote
 * it.
 */
export function verifyMeta(dir: string): void {
  const path = join(dir, "meta.json"), { [OWN_SUM]: sum, ...meta } = readJson(path);
  const actual = metaSum(meta), unknown = Object.keys(meta).find((key) => !Object.hasOwn(FIELDS, key));
  if (unknown !== undefined) throw damaged(path, `it has an unknown field ${show(unknown)}`);
  if (sum !== undefined && sum !== actual) {
    throw damaged(path, `the SHA-256 of its fields is ${actual}, should be its ${OWN_SUM}, ${sum}`);
  }
  if (meta.tokenizer === "." && meta.tokenizer_sha256 !== undefined) {
    verifyTokenizer(dir, meta.tokenizer_sha256);
  }
}

/** Compares the files of a tokenizer beside meta.json with their checksum there. */
function verifyTokenizer(dir: string, expected: unknown): void {
  const texts = ["tokenizer.json", "tokenizer_config.json"].map((name) => {
    const path = join(dir, name);
    if (!isFile(path)) throw damaged(path, "there is no such file");
    return [name, Deno.readTextFileSync(path)];
  });
  const actual = sha256Of(Object.fromEntries(texts));
  if (actual === expected) return;
  throw damaged(
    join(dir, "tokenizer.json"),
    `with tokenizer_config.json its SHA-256 is ${actual}, should be ${expected}, as meta.json has it`,
  );
}

const FIELDS: Record<keyof Meta, true> = {
  ...{ format: true, version: true, train: true, val: true, left_out: true, shards: true },
  ...{ tokenizer: true, tokenizer_sha256: true, vocab_size: true, bos: true, eot: true, token_bytes: true },
  ...{ inputs: true, sources: true, options: true, part: true, template: true, cut: true },
};

/**
 * Reads meta.json of a directory and checks the fields that opening a dataset depends on. Throws UserError naming the
 * file and the field that is missing or wrong.
 */
export function readMeta(dir: string): Meta {
  const path = join(dir, "meta.json"), { [OWN_SUM]: _, ...meta } = readJson(path);
  checkFields(path, meta);
  return { ...meta, bos: meta.bos ?? meta.eot } as unknown as Meta;
}

function readJson(path: string): Record<string, unknown> {
  let meta: unknown;
  try {
    meta = JSON.parse(Deno.readTextFileSync(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw damaged(path, (error as Error).message);
  }
  if (!isObject(meta)) throw damaged(path, `it is ${show(meta)}, should be an object`);
  return meta;
}

/**
 * Reads meta.json of a directory and checks the sizes too, which people and prepare read. Throws UserError naming the
 * file and the field that is missing or wrong.
 */
export function readWholeMeta(dir: string): Meta {
  const meta = readMeta(dir), split = ["documents", "tokens", "bytes"];
  const sizes = { train: split, val: split, left_out: ["empty", "duplicates", "bad"] };
  for (const [field, names] of Object.entries(sizes)) {
    const value: unknown = meta[field as keyof typeof sizes];
    if (isObject(value) && names.every((name) => isCount(value[name]))) continue;
    throw damaged(
      join(dir, "meta.json"),
      `${field} is ${show(value)}, should be an object with the numbers ${names.join(", ")}`,
    );
  }
  return meta;
}

/** What to say of a file of a dataset that is not as prepare wrote it. */
export function damaged(path: string, what: string): UserError {
  return new UserError(
    `Cannot use "${path}": ${what}; write the dataset again: deno task prepare --overwrite ...`,
  );
}

function checkFields(path: string, meta: Record<string, unknown>): void {
  const { format, version, tokenizer, vocab_size, bos, eot, shards, template } = meta;
  if (format !== "loam-bins" || version !== 1) {
    throw damaged(path, `its format is ${format} ${version}, should be loam-bins 1`);
  }
  const wrong = (field: string, value: unknown, should: string) =>
    damaged(path, `${field} is ${show(value)}, should be ${should}`);
  if (typeof tokenizer !== "string") throw wrong("tokenizer", tokenizer, 'gpt2, cl100k, o200k, bytes or "."');
  if (!isCount(vocab_size) || vocab_size === 0) {
    throw wrong("vocab_size", vocab_size, "a whole number above 0");
  }
  if ((VOCABULARIES[tokenizer] ?? vocab_size) !== vocab_size) {
    throw wrong(
      "vocab_size",
      vocab_size,
      `${VOCABULARIES[tokenizer]}, which is that of tokenizer ${tokenizer}`,
    );
  }
  for (const [field, id] of Object.entries({ eot, bos })) {
    if (isCount(id) && id < vocab_size || field === "bos" && id === undefined) continue;
    throw wrong(field, id, `an id below vocab_size ${vocab_size}`);
  }
  if (!Array.isArray(shards)) throw wrong("shards", shards, "a list");
  for (const [i, shard] of shards.entries()) {
    if (!isShard(shard)) throw wrong(`shards[${i}]`, shard, "an object with file, tokens and sha256");
    if (template !== undefined && typeof shard.mask_sha256 !== "string") {
      throw wrong(`the mask_sha256 of shards[${i}]`, shard.mask_sha256, "that of its mask");
    }
  }
  if (template !== undefined && typeof template !== "string") throw wrong("template", template, "a text");
}

const IN_DATASET = /^(part_\d+_of_\d+\/)?[^/\\]+$/; // not elsewhere

function isShard(value: unknown): value is Meta["shards"][number] {
  return isObject(value) && typeof value.file === "string" && IN_DATASET.test(value.file) &&
    isCount(value.tokens) && typeof value.sha256 === "string";
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
