// The command line of prepare: flags, defaults and what is wrong with a value.
import { UserError } from "../../base/errors.ts";
import { READ_ALL } from "../read/documents.ts";
import { formatOf, type Source } from "../read/inputs.ts";
import { type Flags, parseFlags, unescape, wholeNumber } from "../../base/flags.ts";

/** Text of --help. */
export const HELP = `Turn text into a dataset of token bins

  deno task prepare                                         the demo: data/demo.txt into data/demo, as bytes
  deno task prepare --input 'c4/*.parquet' --out data/c4    files, globs, directories
  deno task prepare:web --input hf://... --out data/c4      and URLs, for which the task may use the network
  deno task prepare --input 'web/*.parquet:0.8' 'code/*.jsonl.zst:0.2' --out data/mix
  deno task prepare --input ... --out data/c4 --shard 2/8   one of eight parts, on one of eight machines
  deno task prepare --merge --out data/c4                   the eight parts as one dataset

The same command again goes on where it was interrupted, and leaves a finished dataset as it is.

input
  --input PATTERN        files, globs and directories, here or as hf://datasets/OWNER/NAME@REVISION/PATH, and
                         URLs, of .parquet, .jsonl and .txt (.gz, .zst); more may follow, and are read in this
                         order. With a weight behind each, as in 'web/*:0.8', they are mixed by bytes of text
                         until one of them has no more
  --split NAME           which files of directories and patterns to read, by their names, such as validation
                                                                               (all but validation and test)
  --column NAME          parquet column or jsonl field with the text           (text)
  --split_on WHERE       where documents of .txt files end: blank_line, line, or a text such as '\\n---\\n'
                                                                               (each file is one document)
  --limit NUMBER         read this many documents at most                      (all)
  --dedup exact          leave out documents whose text came before            (keep them)
  --shuffle_docs SEED    take files in shuffled order and documents from a window of 64 MB. Only local, but
                         training shuffles windows over the whole dataset      (as they come)
  --skip_bad             leave out and count what cannot be read               (stop there)

output
  --out DIR              where the dataset goes
  --tokenizer NAME       gpt2, cl100k, o200k, bytes, or a tokenizer.json       (gpt2)
  --val_fraction NUMBER  share of the documents that goes to val, 0 for none; of one .txt file that is one
                         document, the share at its end                        (0.005; 0.1 of one document)
  --seed NUMBER          chooses which documents go to val, by their text      (1337)
  --shard_tokens NUMBER  a shard ends with the document that reaches this many (100000000)
  --overwrite            replace the dataset in --out, once the new one is done

work
  --workers NUMBER       threads that encode; the dataset is the same for any  (one per core)
  --shard I/N            prepare part I of N, from 1, of the input files; --limit and --dedup see it alone
  --merge                make one dataset of the N parts in --out

docs/prepare.md has more on resuming, several machines and mixing.`;

/** One of the parts that several machines prepare. */
export type PartNumber = {
  /** From 1 to count. */
  index: number;
  /** How many parts there are. */
  count: number;
};

/** What to prepare. */
export type PrepareOptions = {
  /** Files, globs, directories and URLs, with weights or without. */
  inputs: string[];
  /** Which files of directories to read; null for all that name neither validation nor test. */
  split: string | null;
  /** Directory of the dataset. */
  out: string;
  /** Parquet column or JSON field with the text. */
  column: string;
  /** Where documents of .txt files end: "blank_line", "line" or a text; "" if each file is one document. */
  split_on: string;
  /** Documents to read at most; null for all. */
  limit: number | null;
  /** "exact" leaves out documents whose text came before. */
  dedup: "" | "exact";
  /** Seed; null for the order of the inputs. */
  shuffle_docs: number | null;
  /** Leave out and count what cannot be read, instead of stopping there. */
  skip_bad: boolean;
  /** What openTokenizer() takes. */
  tokenizer: string;
  /** Share of the documents, or of a text that is the only one, which goes to val; null for what is usual. */
  val_fraction: number | null;
  /** Chooses which documents go to val. */
  seed: number;
  /** A shard ends with the document that reaches so many tokens. */
  shard_tokens: number;
  /** Replace the dataset in out, once the new one is done. */
  overwrite: boolean;
  /** Threads that encode. */
  workers: number;
  /** null for all of the inputs. */
  shard: PartNumber | null;
};

/** The same once the inputs are known. */
export type SettledOptions = PrepareOptions & {
  /** Share that goes to val, from 0 to 1. */
  val_fraction: number;
  /** The only document is cut in two; others go to train or val whole. */
  by_position: boolean;
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

const DEFAULTS: PrepareOptions = {
  ...READ_ALL,
  inputs: [],
  split: null,
  out: "",
  tokenizer: "gpt2",
  val_fraction: null,
  seed: 1337,
  shard_tokens: 100_000_000, // as llm.c's
  overwrite: false,
  workers: navigator.hardwareConcurrency,
  shard: null,
};

/** What is prepared when no input is named. */
export const DEMO: PrepareOptions = {
  ...DEFAULTS,
  inputs: ["data/demo.txt"],
  out: "data/demo",
  split_on: "blank_line", // between declarations with their comments
  tokenizer: "bytes",
  val_fraction: 0.1,
};

const FLAGS = {
  files: "input",
  values: [
    "out",
    "split",
    "column",
    "split_on",
    "limit",
    "dedup",
    "shuffle_docs",
    "tokenizer",
    "val_fraction",
    "seed",
    "shard_tokens",
    "workers",
    "shard",
  ],
  switches: ["skip_bad", "overwrite", "merge"],
} as const;
type Given = Flags<typeof FLAGS.values[number], typeof FLAGS.switches[number]>;
const WITH_MERGE = ["out", "overwrite", "merge"]; // the rest is in the parts

const MOST_TOKENS = 1e9; // in a shard
const MOST_SEED = 2 ** 31 - 1;

/** What a command line asks for. Throws UserError for unknown flags, missing values and values out of range. */
export function parseCommand(args: string[]): Command {
  const given = parseFlags(args, FLAGS), { files: inputs, values, switches } = given, { out } = values;
  if (switches.merge) return { merge: mergeOptions(given) };
  const demo = inputs.length === 0;
  if (demo && out !== undefined) {
    throw new UserError(`Cannot prepare "${out}": --input is missing, such as --input corpus.parquet`);
  }
  if (!demo && out === undefined) {
    throw new UserError(`Cannot prepare "${inputs[0]}": --out is missing, such as --out data/c4`);
  }
  const defaults = demo ? DEMO : DEFAULTS;
  const number = (
    name: "limit" | "shuffle_docs" | "seed" | "shard_tokens" | "workers",
    least: number,
    most?: number,
  ) => wholeNumber(name, values[name], least, most);
  return {
    prepare: {
      inputs: demo ? DEMO.inputs : inputs,
      split: values.split ?? defaults.split,
      out: out ?? defaults.out,
      column: values.column ?? defaults.column,
      split_on: unescape(values.split_on) ?? defaults.split_on,
      limit: number("limit", 1) ?? defaults.limit,
      dedup: exact(values.dedup) ?? defaults.dedup,
      shuffle_docs: number("shuffle_docs", 0, MOST_SEED) ?? defaults.shuffle_docs,
      skip_bad: switches.skip_bad,
      tokenizer: values.tokenizer ?? defaults.tokenizer,
      val_fraction: fraction(values.val_fraction) ?? defaults.val_fraction,
      seed: number("seed", 0, MOST_SEED) ?? defaults.seed,
      shard_tokens: number("shard_tokens", 1, MOST_TOKENS) ?? defaults.shard_tokens,
      overwrite: switches.overwrite,
      workers: number("workers", 1, 256) ?? defaults.workers,
      shard: partNumber(values.shard) ?? defaults.shard,
    },
  };
}

/**
 * What the inputs decide: a plain text that is the only document is cut in two, as nanoGPT does it, since documents are not.
 */
export function settle(options: PrepareOptions, sources: Source[]): SettledOptions {
  const inputs = sources.flatMap(({ inputs }) => inputs), { split_on, shard } = options;
  const by_position = inputs.length === 1 && formatOf(inputs[0]!.name)!.kind === "txt" && split_on === "" &&
    shard === null;
  return { ...options, by_position, val_fraction: options.val_fraction ?? (by_position ? 0.1 : 0.005) };
}

function mergeOptions({ files, values, switches }: Given): MergeOptions {
  const given = Object.entries({ input: files[0], ...values, ...switches });
  const other = given.find(([name, value]) => value && !WITH_MERGE.includes(name))?.[0];
  if (other !== undefined) {
    throw new UserError(`Cannot use --${other} with --merge: the parts have it already; leave it out`);
  }
  if (values.out === undefined) throw new UserError("Cannot merge: --out is missing, such as --out data/c4");
  return { out: values.out, overwrite: switches.overwrite };
}

function fraction(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d*\.?\d+(e-\d+)?$/.test(text) ? Number(text) : NaN;
  if (number >= 0 && number < 1) return number;
  throw new UserError(`Cannot use --val_fraction=${text}: it should be a number from 0 to below 1`);
}

function exact(text: string | undefined): "exact" | undefined {
  if (text === undefined || text === "exact") return text;
  throw new UserError(`Cannot use --dedup=${text}: it should be exact`);
}

function partNumber(text: string | undefined): PartNumber | undefined {
  if (text === undefined) return undefined;
  const [index, count] = /^\d+\/\d+$/.test(text) ? text.split("/").map(Number) : [];
  if (index !== undefined && count !== undefined && index >= 1 && index <= count) return { index, count };
  throw new UserError(`Cannot use --shard=${text}: it should be I/N with I from 1 to N, such as 1/8`);
}
