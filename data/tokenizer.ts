// Tokenizers: "bytes" (one id per byte), "gpt2" (OpenAI's r50k_base) and any Hugging Face tokenizer directory.
// Text never turns into a special token: "<|endoftext|>" inside a document is thirteen characters like any others.
import { UserError } from "../ffi/errors.ts";
import { isFile } from "../ffi/files.ts";
import { byteLevelTokenizer } from "./byte_level.ts";
import type { TokenBuffer } from "./token_buffer.ts";

/** Turns text into ids and back. */
export interface Tokenizer {
  /** "bytes", "gpt2" or the directory that it was read from. */
  readonly name: string;
  /** One more than the largest id, special tokens included. */
  readonly vocab_size: number;
  /** Id of the end-of-text token, which stands before every document. */
  readonly eot: number;
  /** The ids of a text, without special tokens. A lone surrogate counts as U+FFFD. */
  encode(text: string): Uint32Array;
  /** Appends the ids of the valid UTF-8 text bytes[from, to) to out, without special tokens. */
  encodeUtf8(bytes: Uint8Array, from: number, to: number, out: TokenBuffer): void;
  /** The text of ids. Bytes that are not UTF-8 become U+FFFD; the end of text reads "<|endoftext|>". */
  decode(ids: Iterable<number>): string;
  /** Decodes ids that come one by one. */
  stream(): TextStream;
  /** Contents by name of the files from which Hugging Face's tokenizers and transformers load this tokenizer. */
  files(): Record<string, string>;
}

/** Text that grows id by id; a character whose bytes come in several tokens is returned when it is whole. */
export interface TextStream {
  /** The text that this id completes, maybe none. */
  write(id: number): string;
  /** What is left when no more ids come. */
  end(): string;
}

/**
 * Opens the tokenizer "bytes" or "gpt2", or the one in a directory with tokenizer.json and tokenizer_config.json, such as
 * a checkpoint. Only the tokenizer that is asked for is loaded.
 *
 * @throws {UserError} if there is no such tokenizer or its files are broken.
 */
export async function openTokenizer(nameOrDirectory: string): Promise<Tokenizer> {
  if (nameOrDirectory === "bytes") return bytesTokenizer();
  if (nameOrDirectory === "gpt2") return (await import("./gpt2.ts")).gpt2Tokenizer();
  if (!isFile(`${nameOrDirectory}/tokenizer.json`)) {
    throw new UserError(
      `Cannot open tokenizer "${nameOrDirectory}": it is neither "gpt2" nor "bytes" nor a directory with tokenizer.json`,
    );
  }
  const config = readJson(`${nameOrDirectory}/tokenizer_config.json`);
  if (config.loam_tokenizer === "bytes" || config.loam_tokenizer === "gpt2") {
    return openTokenizer(config.loam_tokenizer);
  }
  const { huggingFaceTokenizer } = await import("./hugging_face.ts");
  return huggingFaceTokenizer(nameOrDirectory, readJson(`${nameOrDirectory}/tokenizer.json`), config);
}

/** Ids 0 to 255 are the bytes of UTF-8, 256 is the end of text. */
function bytesTokenizer(): Tokenizer {
  return byteLevelTokenizer({
    name: "bytes",
    n_tokens: 256,
    encodeUtf8(bytes, from, to, out) {
      out.reserve(to - from);
      out.ids.set(bytes.subarray(from, to), out.length);
      out.length += to - from;
    },
    bytesOf: (id) => Uint8Array.of(id),
    merges: () => [],
    splitsWords: false,
  });
}

function readJson(path: string): Record<string, unknown> {
  try {
    return JSON.parse(Deno.readTextFileSync(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(`Cannot read "${path}": ${(error as Error).message}`);
  }
}
