// OpenAI's encodings: gpt2 (r50k_base), cl100k and o200k, with the ids of tiktoken's encode_ordinary. Text is cut into pieces
// by a scanner, each piece is byte-pair encoded; both work on UTF-8 bytes.
import { specialTokens } from "./added_tokens.ts";
import { Bpe } from "./bpe.ts";
import { appendTo, byteLevelTokenizer, scanPieces } from "./byte_level.ts";
import { byteLevelFiles, mergesOf } from "./byte_level_files.ts";
import { ByteStrings } from "./byte_strings.ts";
import { PATTERNS, scannerOf } from "./scanners.ts";
import type { Tokenizer } from "./types.ts";

/** The names of OpenAI's encodings. */
export type EncodingName = "gpt2" | "cl100k" | "o200k";

const END_OF_TEXT = "<|endoftext|>";

/** Ids of the special tokens. The ids between them and above the tokens stand for nothing. */
const SPECIAL: Record<EncodingName, Record<string, number>> = {
  gpt2: { [END_OF_TEXT]: 50256 },
  cl100k: {
    [END_OF_TEXT]: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
  },
  o200k: { [END_OF_TEXT]: 199999, "<|endofprompt|>": 200018 },
};

/** Opens one of OpenAI's encodings. */
export async function tiktokenTokenizer(name: EncodingName): Promise<Tokenizer> {
  const special = SPECIAL[name], pattern = PATTERNS[name];
  const tokens = parseRanks(await rankFile(name));
  const bpe = new Bpe({ tokens, merges: null, wholePieces: true });
  const eot = special[END_OF_TEXT]!, vocab_size = Math.max(...Object.values(special)) + 1;
  const utf8 = new TextEncoder();
  const specialBytes = new Map(Object.entries(special).map(([text, id]) => [id, utf8.encode(text)]));
  const nothing = new Uint8Array(0);
  let merges: [number, number][] | undefined; // they take seconds, and each checkpoint has the files
  return byteLevelTokenizer({
    name,
    vocab_size,
    eot,
    start: eot,
    added: specialTokens(special),
    encodeUtf8: appendTo(scanPieces([scannerOf(pattern)!], bpe)),
    bytesOf: (id) => id < tokens.length ? tokens.at(id) : specialBytes.get(id) ?? nothing,
    files: () => byteLevelFiles({ name, tokens, special, eot, merges: merges ??= mergesOf(tokens), pattern }),
  });
}

/** The rank file of an encoding; the others are not loaded. */
export async function rankFile(name: EncodingName): Promise<string> {
  switch (name) {
    case "gpt2":
      return (await import("gpt-tokenizer/data/r50k_base.tiktoken", { with: { type: "text" } })).default;
    case "cl100k":
      return (await import("gpt-tokenizer/data/cl100k_base.tiktoken", { with: { type: "text" } })).default;
    case "o200k":
      return (await import("gpt-tokenizer/data/o200k_base.tiktoken", { with: { type: "text" } })).default;
  }
}

/** The tokens of a rank file: one line "base64 rank" per token, in the order of the ranks, which are the ids. */
function parseRanks(file: string): ByteStrings {
  const tokens = new ByteStrings(file.length >> 4, file.length >> 1);
  const token = new Uint8Array(1024);
  for (let i = 0; i < file.length; i = file.indexOf("\n", i) + 1) {
    let length = 0, bits = 0, count = 0; // the last `count` of bits are not in a byte yet
    for (let value: number; (value = BASE64[file.charCodeAt(i)]!) >= 0; i++) {
      bits = (bits << 6 | value) & 0x3fff;
      count += 6;
      if (count < 8) continue;
      count -= 8;
      token[length++] = bits >> count;
    }
    tokens.push(token, 0, length);
  }
  return tokens;
}

/** Value of each character of base64, -1 for others. */
const BASE64 = new Int8Array(128).fill(-1);
for (let i = 0; i < 64; i++) {
  BASE64["ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".charCodeAt(i)] = i;
}
