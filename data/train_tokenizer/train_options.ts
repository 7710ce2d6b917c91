// The command line of the tokenizer's training: flags, defaults and what is wrong with a value.
import { UserError } from "../../base/errors.ts";
import { help, type Ranges, readFlags, unescape, whole } from "../../base/flags.ts";
import { PATTERNS, scannerOf } from "../tokenizers/scanners.ts";

/** The special token that every tokenizer has: it goes between documents. */
export const END_OF_TEXT = "<|endoftext|>";

/**
 * How text may be cut into words, by names of PATTERNS. llama3, which is cl100k's but for the end of a text, is the default:
 * numbers in groups of three leave the vocabulary to words and still make short texts, runs of spaces before code stay whole,
 * and its tokenizer.json is read by every other program. qwen is for arithmetic, o200k for text in many scripts.
 */
export const CUTS = ["llama3", "o200k", "qwen", "gpt2"] as const;

/** A merge is written as two tokens with a space between, and no string of a tokenizer.json may have more characters. */
const LONGEST_STRING = 65_535;

/** The flags of the training; null is what is not set. */
export const defaults = {
  train: [] as string[], // files, globs and directories of .parquet, .jsonl and .txt, as --input of prepare, and
  // URLs for deno task tokenizer:web, which may use the network; again or as plain words for
  // more, all or none with a weight
  out: "", // gets tokenizer.json and tokenizer_config.json
  vocab_size: 32000, // tokens, the special ones included
  special_tokens: "", // more than <|endoftext|>, such as '<|im_start|>,<|im_end|>'
  pattern: "llama3" as typeof CUTS[number], // where words end: llama3, o200k (also before a capital), qwen (digits singly),
  // gpt2 (numbers whole); no token reaches over the end of a word
  min_frequency: 2, // merge two tokens if they stand together so often
  max_token_length: 1024, // make no token of so many bytes or more, which come from rules and runs of one sign
  split: "", // which files of directories and patterns to read, by their names, such as validation;
  // "" = all but validation and test
  column: "text", // parquet column or jsonl field with the text
  split_on: "", // where documents of .txt files end: blank_line, line, or a text such as '\n---\n';
  // "" = each file is one document
  limit: null as number | null, // read this many documents at most, all unless set
  skip_bad: false, // leave out and count what cannot be read, in place of stopping there
  overwrite: false, // replace the tokenizer in --out
};

const ranges: Ranges<typeof defaults> = {
  vocab_size: whole(257, 1_000_000), // the largest vocabularies in use have a quarter of it
  pattern: CUTS,
  min_frequency: whole(1),
  max_token_length: whole(2, LONGEST_STRING),
  limit: whole(1),
};

/** Text of --help. */
export async function helpText(): Promise<string> {
  const { default: source } = await import("./train_options.ts", { with: { type: "text" } });
  return help(USAGE, defaults, source);
}

const USAGE = `Train a byte-level BPE tokenizer on your own text

  deno task tokenizer --train 'c4/*.parquet' --out data/c4_32k
  deno task tokenizer --train 'web/*.parquet:0.8' 'code/*.jsonl.zst:0.2' --vocab_size 50000 --out data/mixed_50k
  deno task prepare --input 'c4/*.parquet' --tokenizer data/c4_32k --out data/c4    encodes with it

The same text and options give the same tokens as BpeTrainer of Hugging Face's tokenizers, in ids and merges; its
libraries load the directory. Of 100 documents the last is held out to measure bytes per token, until that is 1 MB.`;

/** How to train a tokenizer: the flags of the same names. */
export type TrainOptions = Omit<typeof defaults, "special_tokens"> & {
  /** Their ids are 0, 1 and so on. */
  special_tokens: string[];
};

/** The options that a command line means. Throws UserError for unknown flags, missing values and values out of range. */
export function parseOptions(args: string[]): TrainOptions {
  const o = { ...defaults, ...readFlags(args, defaults, { ranges, words: "train" }) };
  if (o.train.length === 0) {
    throw new UserError("Cannot train: --train is missing, such as --train corpus.txt");
  }
  if (!o.out) {
    throw new UserError(`Cannot train on "${o.train[0]}": --out is missing, such as --out data/tokenizer`);
  }
  const special_tokens = specialTokens(o.special_tokens, o.pattern);
  requireRoom(o.vocab_size, special_tokens.length);
  return { ...o, split_on: unescape(o.split_on), special_tokens };
}

/** The end of text and the special tokens of a list with commas. */
function specialTokens(list: string, pattern: TrainOptions["pattern"]): string[] {
  const tokens = [END_OF_TEXT, ...list ? list.split(",") : []];
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

/** Stops where 256 bytes and the special tokens do not fit into a vocabulary. */
function requireRoom(vocab_size: number, special: number): void {
  if (vocab_size >= 256 + special) return;
  throw new UserError(
    `Cannot use --vocab_size=${vocab_size}: it should be at least ${
      256 + special
    }, for 256 bytes and ${special} special tokens`,
  );
}
