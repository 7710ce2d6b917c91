// What a tokenizer does, of whatever kind it is.
import type { AddedToken } from "./added_tokens.ts";
import type { TokenBuffer } from "./token_buffer.ts";

/** Turns text into ids and back. */
export type Tokenizer = {
  /** "bytes", "gpt2", "cl100k", "o200k" or the directory or file that it was read from. */
  readonly name: string;
  /** One more than the largest id, special tokens included. */
  readonly vocab_size: number;
  /** Id that begins every document: what the tokenizer's own post-processor begins a text with, or else eot. */
  readonly bos: number;
  /** Id of the end-of-text token, which ends every document; where it is bos too, one stands between two documents. */
  readonly eot: number;
  /** What a text is encoded by in which special tokens are written out, as chat templates write them (rendered.ts). */
  readonly written: Written;
  /** The ids of a text, without special tokens. A lone surrogate counts as U+FFFD. */
  encode(text: string): Uint32Array;
  /**
   * The ids of a text for a model to go on from: those that transformers' tokenizer gives, so that they begin with bos where
   * the tokenizer adds it by itself; bos alone for a text without ids.
   */
  prompt(text: string): number[];
  /** Appends the ids of the valid UTF-8 text bytes[from, to) to out, without special tokens. */
  encodeUtf8(bytes: Uint8Array, from: number, to: number, out: TokenBuffer): void;
  /**
   * The text of ids. Bytes that are not UTF-8 become U+FFFD; a special token reads as it is written, such as
   * "<|endoftext|>". Ids that stand for nothing give no text, as in transformers: cl100k and o200k have some, and a
   * model's vocabulary may be larger than its tokenizer's. Throws RangeError for a number that is not a whole one of
   * at least 0.
   */
  decode(ids: Iterable<number>): string;
  /** Decodes ids that come one by one. */
  stream(): TextStream;
  /**
   * Contents by name of the files from which Hugging Face's tokenizers and transformers load this tokenizer. It
   * begins texts with `start` there, which is bos if nothing else is asked for. Throws UserError if start is neither
   * bos nor eot.
   */
  files(start?: number): Record<string, string>;
};

/** How tokens are found where they are written out. */
export type Written = {
  /** The tokens that are looked for before the text between them is encoded. */
  added: readonly AddedToken[];
  /** Bytes of UTF-8 text that an id stands for. */
  widthOf(id: number): number;
  /** Whether text is brought to Unicode's form NFC first. */
  composes: boolean;
};

/** Text that grows id by id; a character whose bytes come in several tokens is returned when it is whole. */
export type TextStream = {
  /** The text that this id completes, maybe none. */
  write(id: number): string;
  /** What is left when no more ids come. */
  end(): string;
};
