// Tokenizers of a Hugging Face tokenizer.json. Byte-level BPE, which most models of today have, goes through our own encoder;
// everything else through the library @huggingface/tokenizers, which is exact too but runs at about 1 MB/s.
import { UserError } from "../ffi/errors.ts";
import { isFile } from "../ffi/files.ts";
import { byteLevelTokenizer } from "./byte_level.ts";
import { byteLevelBpe, type ByteLevelJson } from "./byte_level_bpe.ts";
import { libraryTokenizer } from "./library_tokenizer.ts";
import type { Tokenizer } from "./tokenizer.ts";

type Json = Record<string, unknown>;

/** The usual end-of-text tokens, for a configuration that names none. */
const END_OF_TEXT = ["<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "</s>"];

const SUPPORTED =
  "supported are byte-level BPE (as of GPT-2, Llama 3, Qwen, SmolLM, DeepSeek, gpt-oss, SuperBPE), " +
  "BPE with byte_fallback (Llama 2, Gemma), Unigram (T5) and WordPiece (BERT)";

/** Which of loam's own tokenizers the tokenizer.json at a path is, by the tokenizer_config.json beside it. */
export function loamTokenizerOf(path: string): string | undefined {
  const name = readConfig(path).json.loam_tokenizer;
  return typeof name === "string" ? name : undefined;
}

/**
 * The tokenizer of the tokenizer.json at a path. Its end of text is the eos_token of the tokenizer_config.json beside it, or
 * else a usual one that the vocabulary has.
 *
 * @throws {UserError} if the file cannot be read, is of a kind that is not supported, or has no end-of-text token.
 */
export function openTokenizerJson(name: string, path: string): Tokenizer {
  const text = readText(path), json = parse(path, text), config = readConfig(path);
  const ids = idsOf(path, json), eot = endOfText(path, ids, config.json);
  let vocab_size = 0;
  for (const id of ids.values()) vocab_size = Math.max(vocab_size, id + 1);
  const files = () => ({
    "tokenizer.json": text,
    "tokenizer_config.json": config.text ?? newConfig([...ids].find(([, id]) => id === eot)![0]),
  });
  const common = { name, vocab_size, eot, files };
  try {
    return isByteLevelBpe(json)
      ? byteLevelTokenizer({ ...common, ...byteLevelBpe(json as unknown as ByteLevelJson) })
      : { ...common, ...libraryTokenizer(json, config.json) };
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof SyntaxError)) throw error;
    throw new UserError(`Cannot use "${path}": ${error.message}; ${SUPPORTED}`);
  }
}

/** Whether the model is byte-level BPE. */
function isByteLevelBpe({ model, pre_tokenizer }: Json): boolean {
  const { type, merges } = model as Json;
  return (type ?? "BPE") === "BPE" && Array.isArray(merges) &&
    JSON.stringify(pre_tokenizer ?? "").includes('"ByteLevel"');
}

/** The ids of all tokens; those of added ones count where the model has others. */
function idsOf(path: string, { model, added_tokens }: Json): Map<string, number> {
  const vocab = (model as Json | null | undefined)?.vocab;
  if (typeof vocab !== "object" || vocab === null) {
    throw new UserError(
      `Cannot use "${path}": it has no model with a vocab, should be a tokenizer.json; ${SUPPORTED}`,
    );
  }
  const ids = new Map<string, number>(
    Array.isArray(vocab) // of Unigram, with a score for each
      ? (vocab as [string, number][]).map(([token], id) => [token, id])
      : Object.entries(vocab as Record<string, number>),
  );
  for (const { content, id } of (added_tokens ?? []) as { content: string; id: number }[]) {
    ids.set(content, id);
  }
  return ids;
}

/** Id of eos_token, which is a text or an object with the text in `content`. */
function endOfText(path: string, ids: Map<string, number>, config: Json): number {
  const eos = config.eos_token as string | { content?: string } | null | undefined;
  const text = (typeof eos === "string" ? eos : eos?.content) ?? END_OF_TEXT.find((usual) => ids.has(usual));
  const id = text === undefined ? undefined : ids.get(text);
  if (id !== undefined) return id;
  throw new UserError(
    `Cannot use "${path}": the eos_token in tokenizer_config.json beside it is ${
      JSON.stringify(eos ?? null)
    }, ` +
      `should be a token of the vocabulary, since it goes between documents`,
  );
}

/** tokenizer_config.json for a tokenizer.json that came without. */
function newConfig(eos_token: string): string {
  return `${JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast", eos_token }, null, 2)}\n`;
}

/** The tokenizer_config.json beside a tokenizer.json, empty if there is none. */
function readConfig(path: string): { json: Json; text?: string } {
  const configPath = path.replace(/[^/]*$/, "tokenizer_config.json");
  if (!isFile(configPath)) return { json: {} };
  const text = readText(configPath);
  return { json: parse(configPath, text), text };
}

function readText(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(`Cannot read "${path}": ${(error as Error).message}`);
  }
}

function parse(path: string, text: string): Json {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UserError(`Cannot read "${path}": ${(error as Error).message}`);
  }
}
