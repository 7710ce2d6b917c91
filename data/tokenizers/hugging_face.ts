// Tokenizers of a Hugging Face tokenizer.json, with the ids of Python's tokenizers. Byte-level BPE, which most models of today
// have, and BPE over characters go through our own encoder; what is rare through the library @huggingface/tokenizers.
import { UserError } from "../../base/errors.ts";
import { isFile, sha256OfFile } from "../../base/files.ts";
import { byteLevelTokenizer } from "./byte_level.ts";
import { byteLevelBpe } from "./byte_level_bpe.ts";
import { charactersOf, characterTokenizer } from "./character_level.ts";
import { libraryBpe } from "./library_bpe.ts";
import { beginning, beginWith, configOf, type SpecialToken, startOf } from "./post_processor.ts";
import type { Tokenizer } from "./types.ts";
import {
  decode,
  type Json,
  parseJson,
  readBytes,
  readTokenizerFile,
  type TokenizerFile,
  withParts,
} from "./tokenizer_file.ts";

/** The usual end-of-text tokens, for a configuration that names none. */
const END_OF_TEXT = ["<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "</s>"];

const SUPPORTED =
  "supported are byte-level BPE (as of GPT-2, Llama 3, Qwen, SmolLM, DeepSeek, gpt-oss and SuperBPE) " +
  "and BPE with byte_fallback (as of Llama 2, Mistral and Gemma)";

/**
 * Which of loam's own tokenizers the tokenizer.json at a path is, by the tokenizer_config.json beside it. That may also be of
 * one to which tokens were added: transformers keeps what it does not know of the configuration when it saves a tokenizer.
 */
export function loamTokenizerOf(path: string): string | undefined {
  const { loam_tokenizer: name, loam_tokenizer_sha256: sha256 } = readConfig(path);
  if (typeof name !== "string" || sha256 !== undefined && sha256 !== sha256OfFile(path)) return undefined;
  return name;
}

/** One of loam's own tokenizers as the tokenizer.json at a path has it: earlier ones began no text with a token. */
export function withStartOf(path: string, tokenizer: Tokenizer): Tokenizer {
  const { json } = readTokenizerFile(path);
  return { ...tokenizer, ...beginning(orSupported(path, () => startOf(json))?.id, tokenizer) };
}

/**
 * The tokenizer of the tokenizer.json at a path. Its end of text is the eos_token of the tokenizer_config.json beside
 * it, or else a usual one that the vocabulary has. Throws UserError if the file cannot be read, is of a kind that is
 * not supported, or has no end-of-text token.
 */
export function openTokenizerJson(name: string, path: string): Tokenizer {
  const file = readTokenizerFile(path), config = readConfig(path);
  if (file.vocab === undefined) {
    throw new UserError(
      `Cannot use "${path}": it has no model with a vocab, should be a tokenizer.json; ${SUPPORTED}`,
    );
  }
  return orSupported(path, () => {
    const characters = charactersOf(file.json, () => parseJson(path, decode(file.bytes)));
    if (characters !== undefined) return characterTokenizer(name, characters);
    const isBytes = isByteLevel(file.json);
    const { idOf, ...rest } = isBytes
      ? byteLevelBpe(file)
      : libraryBpe(parseJson(path, decode(file.bytes)), config);
    const start = knownStart(file.json, idOf), end = endOfText(path, config, idOf);
    const files = (first = start?.id ?? end.id) => filesOf(file, config, start, end, first);
    const common = { name, eot: end.id, files };
    return "bytesOf" in rest
      ? byteLevelTokenizer({ ...common, start: start?.id, ...rest })
      : { ...common, ...beginning(start?.id, { ...common, ...rest }), ...rest };
  });
}

/** What read() finds in a tokenizer.json. Throws UserError where it throws over what the file has. */
function orSupported<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof RangeError || error instanceof SyntaxError) {
      throw new UserError(`Cannot use "${path}": ${error.message}; ${SUPPORTED}`);
    }
    if (!(error instanceof TypeError)) throw error; // which a list in the place of a text gives, and the like
    const what = `a part of it is not of the kind that it has in every tokenizer.json (${error.message})`;
    throw new UserError(`Cannot use "${path}": ${what}; ${SUPPORTED}`, { cause: error });
  }
}

/** The files of a tokenizer that begins each text with the token `first`, which is its own start or its end of text. */
function filesOf(
  file: TokenizerFile,
  config: Json,
  start: SpecialToken | undefined,
  end: SpecialToken,
  first: number,
): Record<string, string> {
  const begin = [start, end].find((token) => token?.id === first), { truncation, padding } = file.json;
  if (!begin) {
    throw new UserError(
      `Cannot begin texts with token ${first}: the tokenizer has ${
        start?.id ?? end.id
      } for it and ends them with ${end.id}`,
    );
  }
  const isSame = begin === start && !truncation && !padding;
  const changes = { post_processor: beginWith(begin), truncation: null, padding: null };
  const more = Object.keys(config).length > 0 ? config : { clean_up_tokenization_spaces: false };
  return {
    "tokenizer.json": isSame ? decode(file.bytes) : withParts(file, changes),
    "tokenizer_config.json": `${JSON.stringify({ ...more, ...configOf(begin.token, end.token) }, null, 2)}\n`,
  };
}

/** The token that begins every text, as the vocabulary has it too. */
function knownStart(json: Json, idOf: (token: string) => number | undefined): SpecialToken | undefined {
  const start = startOf(json), known = start && idOf(start.token);
  if (start?.id === known) return start;
  throw new RangeError(
    `its post_processor has ${start!.token} as ${start!.id}, its vocabulary as ${known}, should be the same`,
  );
}

/** Whether a tokenizer.json is of byte-level BPE. */
function isByteLevel({ model, pre_tokenizer }: Json): boolean {
  const { type, merges } = model as Json;
  return (type ?? "BPE") === "BPE" && merges !== undefined &&
    JSON.stringify(pre_tokenizer ?? null).includes('"ByteLevel"');
}

/** The end-of-text token: eos_token, which is a text or an object with the text in `content`. */
function endOfText(
  path: string,
  { eos_token }: Json,
  idOf: (token: string) => number | undefined,
): SpecialToken {
  const named = typeof eos_token === "string"
    ? eos_token
    : (eos_token as { content?: string } | null)?.content;
  for (const token of named === undefined ? END_OF_TEXT : [named]) {
    const id = idOf(token);
    if (id !== undefined) return { token, id };
  }
  throw new UserError(
    `Cannot use "${path}": the eos_token in tokenizer_config.json beside it is ${
      JSON.stringify(named ?? null)
    }, ` +
      `should be a token of the vocabulary, since it goes between documents`,
  );
}

/** The tokenizer_config.json beside a tokenizer.json; empty if there is none. */
function readConfig(path: string): Json {
  const configPath = path.replace(/[^/]*$/, "tokenizer_config.json");
  return isFile(configPath) ? parseJson(configPath, decode(readBytes(configPath))) : {};
}
