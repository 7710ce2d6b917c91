// The command line of prepare: flags, defaults and what is wrong with a value.
import { UserError } from "../../base/errors.ts";
import { between, each, help, type Ranges, readFlags, unescape, whole } from "../../base/flags.ts";
import { formatOf, type Source } from "../read/inputs.ts";
import type { ChatOptions } from "./conversations.ts";

/** The flags of prepare; null is what is not set. */
export const defaults = {
  // input
  input: [] as string[], // files, globs and directories, here or as hf://datasets/OWNER/NAME@REVISION/PATH,
  // and URLs, of .parquet, .jsonl and .txt (.gz, .zst); again or as plain words for more,
  // which are read in this order. With a weight behind each, as in 'web/*:0.8', they are
  // mixed by bytes of text until one of them has no more
  split: "", // which files of directories and patterns to read, by their names, such as validation;
  // "" = all but validation and test
  column: "text", // parquet column or jsonl field with the text
  split_on: "", // where documents of .txt files end: blank_line, line, or a text such as '\n---\n';
  // "" = each file is one document
  limit: null as number | null, // read this many documents at most, all unless set
  dedup: "" as "" | "exact", // exact: leave out documents whose text came before
  shuffle_docs: null as number | null, // a seed: take files in shuffled order and documents from a window of 64 MB.
  // Only local, but training shuffles windows over the whole dataset
  skip_bad: false, // leave out and count what cannot be read, in place of stopping there

  // conversations
  chat: false, // each line of .jsonl is one: messages (role, content), conversations (from, value), or prompt
  // and completion, as text or messages. Only what the assistant says is trained on
  chat_template: "", // file of a chat template, in place of the tokenizer's own or, where it has none, loam's
  block_size: null as number | null, // that of training: a longer one is cut behind its last answer that fits
  no_cut: false, // stop at a longer one instead
  date: "", // what a template that asks for the day takes for today, as in 2026-11-30; "" = today

  // output
  out: "", // where the dataset goes
  tokenizer: "gpt2", // gpt2, cl100k, o200k, bytes, or a tokenizer.json
  val_fraction: null as number | null, // share of the documents that goes to val, 0.005 unless set, 0 for none; of one
  // .txt file that is one document, the share at its end, 0.1 unless set
  seed: 1337, // chooses which documents go to val, by their text
  shard_tokens: 100_000_000, // a shard ends with the document that reaches this many
  overwrite: false, // replace the dataset in --out, once the new one is done

  // work
  workers: navigator.hardwareConcurrency, // threads that encode, one per core unless set; the dataset is the same for any
  shard: "", // I/N: prepare part I of N, from 1, of the input files; --limit and --dedup see it alone
  merge: false, // make one dataset of the N parts in --out
};

const ranges: Ranges<typeof defaults> = {
  ...each(whole(0, 2 ** 31 - 1), "shuffle_docs", "seed"),
  limit: whole(1),
  block_size: whole(1),
  val_fraction: between(0, 1, 1), // without 1
  shard_tokens: whole(1, 1e9),
  workers: whole(1, 256),
  dedup: ["", "exact"],
};

/** Text of --help. */
export async function helpText(): Promise<string> {
  const { default: source } = await import("./options.ts", { with: { type: "text" } });
  return help(USAGE, defaults, source);
}

const USAGE = `Turn text into a dataset of token bins

  deno task prepare                                         the demo: data/demo.txt into data/demo, as bytes
  deno task prepare --input 'c4/*.parquet' --out data/c4    files, globs, directories
  deno task prepare:web --input hf://... --out data/c4      and URLs, for which the task may use the network
  deno task prepare --input 'web/*.parquet:0.8' 'code/*.jsonl.zst:0.2' --out data/mix
  deno task prepare --chat --input chats.jsonl --tokenizer models/qwen --out data/chats     conversations
  deno task prepare --input ... --out data/c4 --shard 2/8   one of eight parts, on one of eight machines
  deno task prepare --merge --out data/c4                   the eight parts as one dataset

The same command again goes on where it was interrupted, and leaves a finished dataset as it is.
docs/prepare.md has more on resuming, several machines and mixing.`;

/** One of the parts that several machines prepare. */
export type PartNumber = {
  /** From 1 to count. */
  index: number;
  /** How many parts there are. */
  count: number;
};

/** What to prepare: the flags of the same names. */
export type PrepareOptions = Omit<typeof defaults, "merge" | "shard"> & {
  /** null for all of the inputs. */
  shard: PartNumber | null;
};

/** The same once the inputs are known. */
export type SettledOptions = PrepareOptions & {
  /** Share that goes to val, from 0 to 1. */
  val_fraction: number;
  /** The only document is cut in two; others go to train or val whole. */
  by_position: boolean;
  /** How conversations are encoded; null for text. */
  conversations: ChatOptions | null;
};

/** Which parts to make one dataset of. */
export type MergeOptions = {
  /** Directory of the parts, which the dataset is written to. */
  out: string;
  /** Replace the dataset in out. */
  overwrite: boolean;
};

/** What a command line asks for. */
export type Command = { merge: MergeOptions } | { prepare: PrepareOptions };

/** What is prepared when no input is named. */
export const DEMO = {
  input: ["data/demo.txt"],
  out: "data/demo",
  split_on: "blank_line", // between chapters
  tokenizer: "bytes",
  val_fraction: 0.1,
};

const WITH_MERGE = ["out", "overwrite", "merge"]; // the rest is in the parts

/** What a command line asks for. Throws UserError for unknown flags, missing values and values out of range. */
export function parseCommand(args: string[]): Command {
  const given = readFlags(args, defaults, { ranges, words: "input" }), { input, out } = given;
  if (given.merge) return { merge: mergeOptions(given) };
  if (!input && out !== undefined) {
    throw new UserError(`Cannot prepare "${out}": --input is missing, such as --input corpus.parquet`);
  }
  if (input && !out) {
    throw new UserError(`Cannot prepare "${input[0]}": --out is missing, such as --out data/c4`);
  }
  for (const name of ["chat_template", "block_size", "no_cut", "date"] as const) {
    if (given[name] === undefined || given.chat) continue;
    throw new UserError(
      `Cannot use --${name} without --chat: it is for conversations; add --chat, or leave it out`,
    );
  }
  requireDate(given.date);
  if (given.no_cut && !given.block_size) {
    throw new UserError(
      "Cannot use --no_cut without --block_size: give the one of training, such as --block_size=1024",
    );
  }
  const { merge: _, ...options } = { ...defaults, ...input ? {} : DEMO, ...given };
  return {
    prepare: { ...options, split_on: unescape(options.split_on), shard: partNumber(options.shard) },
  };
}

/**
 * What the inputs decide: a plain text that is the only document is cut in two, as nanoGPT does it, since documents are not.
 */
export function settle(
  options: PrepareOptions,
  sources: Source[],
  conversations: ChatOptions | null = null,
): SettledOptions {
  const inputs = sources.flatMap(({ inputs }) => inputs), { split_on, shard } = options;
  const by_position = inputs.length === 1 && formatOf(inputs[0]!.name)!.kind === "txt" && split_on === "" &&
    shard === null;
  const val_fraction = options.val_fraction ?? (by_position ? 0.1 : 0.005);
  return { ...options, by_position, val_fraction, conversations };
}

function requireDate(date = ""): void {
  if (date === "" || /^\d{4}-\d\d-\d\d$/.test(date) && new Date(date).toJSON()?.startsWith(date)) return;
  throw new UserError(`Cannot use --date=${date}: it should be a day, such as 2026-11-30`);
}

function mergeOptions(given: Partial<typeof defaults>): MergeOptions {
  const other = Object.keys(given).find((name) => !WITH_MERGE.includes(name));
  if (other !== undefined) {
    throw new UserError(`Cannot use --${other} with --merge: the parts have it already; leave it out`);
  }
  const { out, overwrite = false } = given;
  if (!out) throw new UserError("Cannot merge: --out is missing, such as --out data/c4");
  return { out, overwrite };
}

function partNumber(text: string): PartNumber | null {
  if (text === "") return null;
  const [index, count] = /^\d+\/\d+$/.test(text) ? text.split("/").map(Number) : [];
  if (index !== undefined && count !== undefined && index >= 1 && index <= count) return { index, count };
  throw new UserError(`Cannot use --shard=${text}: it should be I/N with I from 1 to N, such as 1/8`);
}
