// Tokenizers: "bytes" (one id per byte), OpenAI's "gpt2", "cl100k" and "o200k", and any Hugging Face tokenizer.json.
// Text never turns into a special token: "<|endoftext|>" inside a document is thirteen characters like any others.
import { UserError } from "../base/errors.ts";
import { isFile, lookedIn } from "../base/files.ts";
import { specialTokens } from "./tokenizers/added_tokens.ts";
import { byteLevelTokenizer } from "./tokenizers/byte_level.ts";
import { byteLevelFiles } from "./tokenizers/byte_level_files.ts";
import { ByteStrings } from "./tokenizers/byte_strings.ts";
import type { Tokenizer } from "./tokenizers/types.ts";

export type { TextStream, Tokenizer } from "./tokenizers/types.ts";

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
  const path = tokenizerFile(nameOrPath);
  const { loamTokenizerOf, openTokenizerJson, withStartOf } = await import("./tokenizers/hugging_face.ts");
  const known = loamTokenizerOf(path);
  return known !== undefined && known in VOCABULARIES
    ? withStartOf(path, await openTokenizer(known))
    : openTokenizerJson(nameOrPath, path);
}

/** The tokenizer.json of a path that is one, or of a directory that holds one. Throws UserError where there is none. */
export function tokenizerFile(nameOrPath: string): string {
  const path = nameOrPath.endsWith(".json") ? nameOrPath : `${nameOrPath}/tokenizer.json`;
  if (isFile(path)) return path;
  throw new UserError(
    `Cannot open tokenizer "${nameOrPath}": it is neither ${Object.keys(VOCABULARIES).join(", ")} ` +
      `nor a tokenizer.json or a directory that holds one${lookedIn(path)}`,
  );
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
    added: specialTokens(special),
    encodeUtf8(bytes, from, to, out) {
      out.reserve(to - from);
      out.ids.set(bytes.subarray(from, to), out.length);
      out.length += to - from;
    },
    bytesOf: (id) => id < 256 ? tokens.at(id) : endOfText,
    files: () => byteLevelFiles({ name: "bytes", tokens, special, eot: 256, merges: [], pattern: null }),
  });
}
