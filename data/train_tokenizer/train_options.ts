// The command line of the tokenizer's training: flags, defaults and what is wrong with a value.
import { UserError } from "../../base/errors.ts";
import { meant } from "../../base/suggest.ts";
import { parseFlags, unescape, wholeNumber } from "../../base/flags.ts";
import { PATTERNS, scannerOf } from "../tokenizers/scanners.ts";

/** The special token that every tokenizer has: it goes between documents. */
export const END_OF_TEXT = "<|endoftext|>";

/**
 * How text may be cut into words, by names of PATTERNS. llama3, which is cl100k's but for the end of a text, is the default:
 * numbers in groups of three leave the vocabulary to words and still make short texts, runs of spaces before code stay whole,
 * and its tokenizer.json is read by every other program. qwen is for arithmetic, o200k for text in many scripts.
 */
export const CUTS = ["llama3", "o200k", "qwen", "gpt2"] as const;

/** Longer tokens come from rules and runs of one sign; the longest in use have 128 bytes, all of them spaces. */
const MAX_TOKEN_LENGTH = 1024;
/** A merge is written as two tokens with a space between, and no string of a tokenizer.json may have more characters. */
const LONGEST_STRING = 65_535;

/** Text of --help. */
export const HELP = `Train a byte-level BPE tokenizer on your own text

  deno task tokenizer --train 'c4/*.parquet' --out data/c4_32k
  deno task tokenizer --train 'web/*.parquet:0.8' 'code/*.jsonl.zst:0.2' --vocab_size 50000 --out data/mixed_50k
  deno task prepare --input 'c4/*.parquet' --tokenizer data/c4_32k --out data/c4    encodes with it

The same text and options give the same tokens as BpeTrainer of Hugging Face's tokenizers, in ids and merges; its
libraries load the directory. Of 100 documents the last is held out to measure bytes per token, until that is 1 MB.

  --train PATTERN        files, globs and directories of .parquet, .jsonl and .txt, as --input of prepare, and URLs
                         for deno task tokenizer:web, which may use the network; more may follow, all or none
                         with a weight
  --out DIR              gets tokenizer.json and tokenizer_config.json
  --vocab_size NUMBER    tokens, the special ones included                     (32000)
  --special_tokens LIST  more than ${END_OF_TEXT}, such as '<|im_start|>,<|im_end|>'
  --pattern NAME         where words end: llama3, o200k (also before a capital), qwen (digits singly),
                         gpt2 (numbers whole); no token reaches over the end of a word
                                                                               (llama3)
  --min_frequency NUMBER merge two tokens if they stand together so often      (2)
  --max_token_length NUMBER
                         make no token of so many bytes or more                (${MAX_TOKEN_LENGTH})
  --split NAME           which files of directories and patterns to read, by their names, such as validation
                                                                               (all but validation and test)
  --column NAME          parquet column or jsonl field with the text           (text)
  --split_on WHERE       where documents of .txt files end: blank_line, line, or a text such as '\\n---\\n'
                                                                               (each file is one document)
  --limit NUMBER         read this many documents at most                      (all)
  --skip_bad             leave out and count what cannot be read               (stop there)
  --overwrite            replace the tokenizer in --out`;

/** How to train a tokenizer. */
export type TrainOptions = {
  /** Files, globs, directories and URLs, with weights or without. */
  train: string[];
  /** Which files of directories to read; null for all that name neither validation nor test. */
  split: string | null;
  /** Directory of the tokenizer. */
  out: string;
  /** Tokens, the special ones included. */
  vocab_size: number;
  /** Their ids are 0, 1 and so on. */
  special_tokens: string[];
  /** By which text is cut into words. */
  pattern: typeof CUTS[number];
  /** Two tokens are merged if they stand together so often. */
  min_frequency: number;
  /** Bytes that no token reaches but special ones. */
  max_token_length: number;
  /** Parquet column or JSON field with the text. */
  column: string;
  /** Where documents of .txt files end: "blank_line", "line" or a text; "" if each file is one document. */
  split_on: string;
  /** Documents to read at most; null for all. */
  limit: number | null;
  /** Leave out and count what cannot be read, instead of stopping there. */
  skip_bad: boolean;
  /** Replace the tokenizer in out. */
  overwrite: boolean;
};

const FLAGS = {
  files: "train",
  values: [
    "out",
    "vocab_size",
    "special_tokens",
    "pattern",
    "min_frequency",
    "max_token_length",
    "split",
    "column",
    "split_on",
    "limit",
  ],
  switches: ["skip_bad", "overwrite"],
} as const;

const MOST_TOKENS = 1_000_000; // the largest vocabularies in use have a quarter of it

/**
 * The options that a command line means. Throws UserError for unknown flags, missing values and values out of range.
 */
export function parseOptions(args: string[]): TrainOptions {
  const { files: train, values, switches } = parseFlags(args, FLAGS), { out } = values;
  if (train.length === 0) throw new UserError("Cannot train: --train is missing, such as --train corpus.txt");
  if (out === undefined) {
    throw new UserError(`Cannot train on "${train[0]}": --out is missing, such as --out data/tokenizer`);
  }
  const pattern = cut(values.pattern ?? "llama3");
  const special_tokens = specialTokens(values.special_tokens, pattern);
  return {
    train,
    split: values.split ?? null,
    out,
    vocab_size: vocabularySize(values.vocab_size ?? "32000", special_tokens.length),
    special_tokens,
    pattern,
    min_frequency: wholeNumber("min_frequency", values.min_frequency, 1) ?? 2,
    max_token_length: wholeNumber("max_token_length", values.max_token_length, 2, LONGEST_STRING) ??
      MAX_TOKEN_LENGTH,
    column: values.column ?? "text",
    split_on: unescape(values.split_on) ?? "",
    limit: wholeNumber("limit", values.limit, 1) ?? null,
    ...switches,
  };
}

function cut(name: string): TrainOptions["pattern"] {
  const found = CUTS.find((known) => known === name);
  if (found !== undefined) return found;
  throw new UserError(
    `Cannot use --pattern=${name}: there is no such pattern; ${meant(name, CUTS)}`,
  );
}

/** The end of text and the special tokens of a list with commas. */
function specialTokens(list: string | undefined, pattern: TrainOptions["pattern"]): string[] {
  const tokens = [END_OF_TEXT, ...list?.split(",") ?? []];
  for (const token of tokens.slice(1)) checkSpecial(token, pattern);
  return [...new Set(tokens)];
}

/** Throws unless text can never become a token that is written like this special one. */
function checkSpecial(token: string, pattern: TrainOptions["pattern"]): void {
  const advice = "such as <|im_start|>";
  if (!/^[!-~]+$/.test(token)) {
    throw new UserError(
      `Cannot use special token "${token}": it should consist of letters, digits and signs of ASCII, ${advice}`,
    );
  }
  if (token.length > LONGEST_STRING) {
    throw new UserError(
      `Cannot use special token "${token.slice(0, 20)}...": it has ${token.length} characters, ` +
        `should have at most ${LONGEST_STRING}`,
    );
  }
  const bytes = new TextEncoder().encode(token), end = scannerOf(PATTERNS[pattern])!(bytes, 0, bytes.length);
  if (end < bytes.length) return;
  throw new UserError(
    `Cannot use special token "${token}": it is one word in a text, which could become the same token; ` +
      `choose one of several words, ${advice}`,
  );
}

function vocabularySize(text: string, special: number): number {
  const least = 256 + special, size = /^\d+$/.test(text) ? Number(text) : NaN;
  if (size >= least && size <= MOST_TOKENS) return size;
  const needed = `${least}, for 256 bytes and ${special} special token${special === 1 ? "" : "s"}`;
  throw new UserError(
    `Cannot use --vocab_size=${text}: it should be a whole number from ${needed}, to ${MOST_TOKENS}`,
  );
}
