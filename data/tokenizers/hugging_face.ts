// Tokenizers of a Hugging Face tokenizer.json, with the ids of Python's tokenizers. Byte-level BPE, which most models of today
// have, goes through our own encoder, BPE over characters through the library @huggingface/tokenizers at about 1 MB/s.
import { UserError } from "../../ffi/errors.ts";
import { isFile, sha256OfFile } from "../../ffi/files.ts";
import { byteLevelTokenizer } from "./byte_level.ts";
import { byteLevelBpe } from "./byte_level_bpe.ts";
import { charactersOf, characterTokenizer } from "./character_level.ts";
import { libraryBpe } from "./library_bpe.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { decode, type Json, parseJson, readBytes, readTokenizerFile } from "./tokenizer_file.ts";

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
  const { loam_tokenizer: name, loam_tokenizer_sha256: sha256 } = readConfig(path).json;
  if (typeof name !== "string" || sha256 !== undefined && sha256 !== sha256OfFile(path)) return undefined;
  return name;
}

/**
 * The tokenizer of the tokenizer.json at a path. Its end of text is the eos_token of the tokenizer_config.json beside it, or
 * else a usual one that the vocabulary has.
 *
 * @throws {UserError} if the file cannot be read, is of a kind that is not supported, or has no end-of-text token.
 */
export function openTokenizerJson(name: string, path: string): Tokenizer {
  const { bytes, ...file } = readTokenizerFile(path), config = readConfig(path);
  if (file.vocab === undefined) {
    throw new UserError(
      `Cannot use "${path}": it has no model with a vocab, should be a tokenizer.json; ${SUPPORTED}`,
    );
  }
  const files = (eos_token: string) => () => ({
    "tokenizer.json": decode(bytes),
    "tokenizer_config.json": config.text ?? newConfig(eos_token),
  });
  try {
    const characters = charactersOf(file.json, () => parseJson(path, decode(bytes)));
    if (characters !== undefined) return characterTokenizer(name, characters);
    if (isByteLevel(file.json)) {
      const { idOf, ...rest } = byteLevelBpe({ bytes, ...file }), end = endOfText(path, config.json, idOf);
      return byteLevelTokenizer({ name, eot: end.id, files: files(end.token), ...rest });
    }
    const { idOf, ...rest } = libraryBpe(parseJson(path, decode(bytes)), config.json);
    const end = endOfText(path, config.json, idOf);
    return { name, eot: end.id, files: files(end.token), ...rest };
  } catch (error) {
    if (error instanceof RangeError || error instanceof SyntaxError) {
      throw new UserError(`Cannot use "${path}": ${error.message}; ${SUPPORTED}`);
    }
    if (!(error instanceof TypeError)) throw error; // which a list in the place of a text gives, and the like
    const what = `a part of it is not of the kind that it has in every tokenizer.json (${error.message})`;
    throw new UserError(`Cannot use "${path}": ${what}; ${SUPPORTED}`, { cause: error });
  }
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
): { token: string; id: number } {
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

/** tokenizer_config.json for a tokenizer.json that came without. */
function newConfig(eos_token: string): string {
  return `${JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast", eos_token }, null, 2)}\n`;
}

/** The tokenizer_config.json beside a tokenizer.json; empty, and without text, if there is none. */
function readConfig(path: string): { json: Json; text?: string } {
  const configPath = path.replace(/[^/]*$/, "tokenizer_config.json");
  if (!isFile(configPath)) return { json: {} };
  const text = decode(readBytes(configPath));
  return { json: parseJson(configPath, text), text };
}
