// Tokenizers: "bytes" (one id per byte), OpenAI's "gpt2", "cl100k" and "o200k", and any Hugging Face tokenizer.json.
// Text never turns into a special token: "<|endoftext|>" inside a document is thirteen characters like any others.
import { UserError } from "../base/errors.ts";
import { isFile, lookedIn } from "../base/files.ts";
import { byteLevelTokenizer } from "./tokenizers/byte_level.ts";
import { byteLevelFiles } from "./tokenizers/byte_level_files.ts";
import { ByteStrings } from "./tokenizers/byte_strings.ts";
import type { TokenBuffer } from "./tokenizers/token_buffer.ts";

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

/** Text that grows id by id; a character whose bytes come in several tokens is returned when it is whole. */
export type TextStream = {
  /** The text that this id completes, maybe none. */
  write(id: number): string;
  /** What is left when no more ids come. */
  end(): string;
};

/** vocab_size of the tokenizers that every loam has, by their names. */
export const VOCABULARIES: Readonly<Record<string, number>> = {
  bytes: 257,
  gpt2: 50257,
  cl100k: 100277,
  o200k: 200019,
};

/**
 * Opens a tokenizer by one of the names in VOCABULARIES, or the one of a tokenizer.json: its path, or a directory
 * that holds it, such as a checkpoint. A tokenizer_config.json beside it is read too. Only what is asked for is
 * loaded. Throws UserError if there is no such tokenizer or its files are broken or of an unsupported kind.
 */
export async function openTokenizer(nameOrPath: string): Promise<Tokenizer> {
  if (nameOrPath === "bytes") return bytesTokenizer();
  if (nameOrPath === "gpt2" || nameOrPath === "cl100k" || nameOrPath === "o200k") {
    return (await import("./tokenizers/tiktoken.ts")).tiktokenTokenizer(nameOrPath);
  }
  if (nameOrPath.endsWith(".pkl")) return (await import("./tokenizers/nano_gpt.ts")).openMetaPkl(nameOrPath);
  const path = nameOrPath.endsWith(".json") ? nameOrPath : `${nameOrPath}/tokenizer.json`;
  if (!isFile(path)) {
    throw new UserError(
      `Cannot open tokenizer "${nameOrPath}": it is neither ${Object.keys(VOCABULARIES).join(", ")} ` +
        `nor a tokenizer.json or a directory that holds one${lookedIn(path)}`,
    );
  }
  const { loamTokenizerOf, openTokenizerJson, withStartOf } = await import("./tokenizers/hugging_face.ts");
  const known = loamTokenizerOf(path);
  return known !== undefined && known in VOCABULARIES
    ? withStartOf(path, await openTokenizer(known))
    : openTokenizerJson(nameOrPath, path);
}

/** Ids 0 to 255 are the bytes of UTF-8, 256 is the end of text. */
function bytesTokenizer(): Tokenizer {
  const tokens = new ByteStrings(256, 256);
  for (let byte = 0; byte < 256; byte++) tokens.push(Uint8Array.of(byte));
  const special = { "<|endoftext|>": 256 }, endOfText = new TextEncoder().encode("<|endoftext|>");
  return byteLevelTokenizer({
    name: "bytes",
    vocab_size: 257,
    eot: 256,
    start: 256,
    encodeUtf8(bytes, from, to, out) {
      out.reserve(to - from);
      out.ids.set(bytes.subarray(from, to), out.length);
      out.length += to - from;
    },
    bytesOf: (id) => id < 256 ? tokens.at(id) : endOfText,
    files: () => byteLevelFiles({ name: "bytes", tokens, special, eot: 256, merges: [], pattern: null }),
  });
}
