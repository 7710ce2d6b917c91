// The command line of prepare: flags, defaults and what is wrong with a value.
import { parseArgs } from "@std/cli/parse-args";
import { nearest, UserError } from "../ffi/errors.ts";

/** Text of --help. */
export const HELP = `Turn text into a dataset of token bins

  deno task prepare                                        the demo: data/demo.txt into data/demo, as bytes
  deno task prepare --input c4/*.parquet --out data/c4     files or globs: .parquet, .jsonl, .txt

  --input FILES          files and globs; more may follow it
  --out DIR              where the dataset goes
  --column NAME          parquet column or jsonl field with the text           (text)
  --separator TEXT       what separates documents in .txt files, such as '\\n\\n' (each file is one document)
  --tokenizer NAME       gpt2, bytes, or a directory with tokenizer.json       (gpt2)
  --val_fraction NUMBER  share of the documents that goes to val               (0.005)
  --seed NUMBER          chooses which documents go to val                     (1337)
  --limit NUMBER         read this many documents at most                      (all)
  --shard_tokens NUMBER  a shard ends with the document that reaches this many (100000000)
  --overwrite            replace the dataset in --out`;

/** What to prepare. */
export interface PrepareOptions {
  /** Files and globs. */
  inputs: string[];
  out: string;
  column: string;
  /** Between the documents of .txt files; "" if each file is one document. */
  separator: string;
  tokenizer: string;
  val_fraction: number;
  seed: number;
  /** Documents to read at most; null for all. */
  limit: number | null;
  shard_tokens: number;
  overwrite: boolean;
}

const DEFAULTS: PrepareOptions = {
  inputs: [],
  out: "",
  column: "text",
  separator: "",
  tokenizer: "gpt2",
  val_fraction: 0.005,
  seed: 1337,
  limit: null,
  shard_tokens: 100_000_000, // as llm.c's
  overwrite: false,
};

/** What is prepared when no input is named. */
export const DEMO: PrepareOptions = {
  ...DEFAULTS,
  inputs: ["data/demo.txt"],
  out: "data/demo",
  separator: "\n\n", // declarations and their comments
  tokenizer: "bytes",
  val_fraction: 0.1,
};

const STRINGS = [
  "input",
  "out",
  "column",
  "separator",
  "tokenizer",
  "val_fraction",
  "seed",
  "limit",
  "shard_tokens",
] as const;
const FLAGS = [...STRINGS, "overwrite", "help"];

/**
 * The options that a command line means.
 *
 * @throws {UserError} for unknown flags, missing values and values out of range.
 */
export function parseOptions(args: string[]): PrepareOptions {
  const flags = parseArgs(args, {
    string: STRINGS,
    collect: ["input"],
    boolean: ["overwrite"],
    unknown: refuseFlag,
  });
  const value = (name: Exclude<typeof STRINGS[number], "input">): string | undefined => {
    if (flags[name] === "") {
      throw new UserError(`Cannot use --${name}: it needs a value, such as --${name}=...`);
    }
    return flags[name];
  };
  for (const name of STRINGS) if (name !== "input") value(name); // the "" of --out "" is in flags._ too
  const inputs = [...flags.input, ...flags._.map(String)];
  if (inputs.includes("")) {
    throw new UserError("Cannot use --input: it needs a file, such as --input corpus.parquet");
  }
  const demo = inputs.length === 0, out = value("out");
  if (demo && out !== undefined) {
    throw new UserError(`Cannot prepare "${out}": --input is missing, such as --input corpus.parquet`);
  }
  if (!demo && out === undefined) {
    throw new UserError(`Cannot prepare "${inputs[0]}": --out is missing, such as --out data/c4`);
  }
  const defaults = demo ? DEMO : DEFAULTS;
  return {
    inputs: demo ? DEMO.inputs : inputs,
    out: out ?? defaults.out,
    column: value("column") ?? defaults.column,
    separator: unescape(value("separator")) ?? defaults.separator,
    tokenizer: value("tokenizer") ?? defaults.tokenizer,
    val_fraction: fraction(value("val_fraction")) ?? defaults.val_fraction,
    seed: wholeNumber("seed", value("seed"), 0, 2 ** 31 - 1) ?? defaults.seed,
    limit: wholeNumber("limit", value("limit"), 1, Infinity) ?? defaults.limit,
    shard_tokens: wholeNumber("shard_tokens", value("shard_tokens"), 1, 1e9) ?? defaults.shard_tokens,
    overwrite: flags.overwrite,
  };
}

/** Called with each argument that is no known flag: plain words are inputs, the rest are mistakes. */
function refuseFlag(arg: string, name?: string): boolean {
  if (name === undefined) return true;
  throw new UserError(
    `Cannot use ${arg.split("=")[0]}: there is no such flag; did you mean --${nearest(name, FLAGS)}?`,
  );
}

function wholeNumber(
  name: string,
  text: string | undefined,
  least: number,
  most: number,
): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d+$/.test(text) ? Number(text) : NaN;
  if (number >= least && number <= most) return number;
  const range = most === Infinity ? `of at least ${least}` : `from ${least} to ${most}`;
  throw new UserError(`Cannot use --${name}=${text}: it should be a whole number ${range}`);
}

function fraction(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d*\.?\d+(e-\d+)?$/.test(text) ? Number(text) : NaN;
  if (number > 0 && number < 1) return number;
  throw new UserError(`Cannot use --val_fraction=${text}: it should be a number above 0 and below 1`);
}

/** Turns \n, \t and \\ into what they stand for, since a shell passes them on as they are. */
function unescape(text: string | undefined): string | undefined {
  return text?.replace(/\\([nt\\])/g, (_, letter) => letter === "n" ? "\n" : letter === "t" ? "\t" : "\\");
}
