// Byte-level BPE from tokenizer.json, by our own encoder: the tokenizers of GPT-2, Llama 3, Qwen, SmolLM, DeepSeek, gpt-oss,
// SuperBPE and many others. The ids are those of Python's tokenizers when encode_special_tokens is set.
import { type AddedToken, AddedTokens } from "./added_tokens.ts";
import { Bpe } from "./bpe.ts";
import { appendTo } from "./byte_level.ts";
import { byteCharacters } from "./byte_level_files.ts";
import { ByteStrings } from "./byte_strings.ts";
import { isSurelyNfc, normalizeNfc } from "./nfc.ts";
import { PairTable } from "./pair_table.ts";
import { encoderOf, type PreTokenizer, readPreTokenizer } from "./pre_tokenizer.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A tokenizer.json of byte-level BPE, as far as it is looked at here. */
export interface ByteLevelJson {
  model: {
    vocab: Record<string, number>;
    merges: (string | [string, string])[];
    dropout?: number | null;
    unk_token?: string | null;
    continuing_subword_prefix?: string | null;
    end_of_word_suffix?: string | null;
    byte_fallback?: boolean;
    ignore_merges?: boolean;
  };
  added_tokens?: AddedTokenJson[];
  normalizer?: Normalizer | null;
  pre_tokenizer?: PreTokenizer | null;
}

interface AddedTokenJson extends AddedToken {
  normalized: boolean;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

interface Normalizer {
  type: string;
  normalizers?: Normalizer[];
}

type EncodeUtf8 = Tokenizer["encodeUtf8"];

/**
 * How byte-level BPE encodes text, and what its ids stand for.
 *
 * @throws {RangeError} saying what the file has that is not supported, and what it should have.
 */
export function byteLevelBpe(
  json: ByteLevelJson,
): { encodeUtf8: EncodeUtf8; bytesOf(id: number): Uint8Array } {
  const { model, added_tokens: added = [] } = json;
  checkModel(model);
  checkAddedTokens(added);
  const { tokens, others } = readVocabulary(model.vocab, added);
  const merges = readMerges(model.vocab, model.merges);
  const bpe = new Bpe({ tokens, merges, wholePieces: model.ignore_merges ?? false });
  const { cuts, prefixBlank } = readPreTokenizer(json.pre_tokenizer),
    composes = readNormalizer(json.normalizer);

  // The steps of tokenizers, the last first. Added tokens are looked for twice: before and after normalisation.
  let encodeUtf8 = appendTo(encoderOf(cuts, bpe));
  if (prefixBlank) encodeUtf8 = withBlank(encodeUtf8);
  const contentOf = ({ content }: AddedToken) => composes ? normalizeNfc(content) : content;
  const normalized = added.filter((token) => token.normalized).map((t) => ({ ...t, content: contentOf(t) }));
  encodeUtf8 = withAddedTokens(new AddedTokens(normalized), encodeUtf8);
  if (composes) encodeUtf8 = withNfc(encodeUtf8);
  encodeUtf8 = withAddedTokens(new AddedTokens(added.filter((token) => !token.normalized)), encodeUtf8);

  const nothing = new Uint8Array(0);
  return { encodeUtf8, bytesOf: (id) => others.get(id) ?? (id < tokens.length ? tokens.at(id) : nothing) };
}

function checkModel(model: ByteLevelJson["model"]): void {
  const { dropout, continuing_subword_prefix, end_of_word_suffix, byte_fallback, unk_token, vocab } = model;
  const unsupported = { dropout, continuing_subword_prefix, end_of_word_suffix, byte_fallback };
  for (const [name, value] of Object.entries(unsupported)) {
    if (value) throw new RangeError(`its model has ${name} ${JSON.stringify(value)}, should have none`);
  }
  const missing = byteCharacters().findIndex((character) => !Object.hasOwn(vocab, character));
  if (unk_token && missing >= 0) { // without unk_token the byte is left out, as tokenizers does
    throw new RangeError(
      `its vocabulary lacks byte ${missing} and it has an unk_token, should have all bytes`,
    );
  }
}

/** Special tokens are never looked for, so that it does not matter what they have. */
function checkAddedTokens(added: AddedTokenJson[]): void {
  for (const token of added.filter(({ special }) => !special)) {
    for (const name of ["single_word", "lstrip", "rstrip"] as const) {
      if (token[name]) {
        throw new RangeError(
          `its added token ${JSON.stringify(token.content)} has ${name}, should not have it`,
        );
      }
    }
  }
}

/** Whether the normalizer composes characters. */
function readNormalizer(normalizer: Normalizer | null | undefined): boolean {
  if (normalizer === null || normalizer === undefined) return false;
  if (normalizer.type === "Sequence") return normalizer.normalizers!.map(readNormalizer).includes(true);
  if (normalizer.type !== "NFC") {
    throw new RangeError(`its normalizer has ${normalizer.type}, should have NFC or none`);
  }
  return true;
}

/**
 * The tokens that text becomes, as byte strings by id, and the bytes of the other ids: of added tokens, and of tokens that
 * are not written in the 256 characters that stand for bytes.
 */
function readVocabulary(
  vocab: Record<string, number>,
  added: AddedTokenJson[],
): { tokens: ByteStrings; others: Map<number, Uint8Array> } {
  const written: string[] = [], special = new Set(added.filter((token) => token.special).map(({ id }) => id));
  for (const token in vocab) written[vocab[token]!] = token;
  const tokens = new ByteStrings(written.length, 8 * written.length), others = new Map<number, Uint8Array>();
  const nothing = new Uint8Array(0), read = byteReader();
  for (let id = 0; id < written.length; id++) {
    const token = written[id];
    const bytes = token === undefined || special.has(id) ? nothing : read(token);
    tokens.push(bytes ?? nothing);
    if (bytes === null) others.set(id, new TextEncoder().encode(token));
  }
  for (const { id, content } of added) {
    others.set(id, read(content)?.slice() ?? new TextEncoder().encode(content));
  }
  return { tokens, others };
}

/** Gives the bytes that a token stands for, valid until the next call; null if a character of it stands for none. */
function byteReader(): (token: string) => Uint8Array | null {
  const byteOf = new Int16Array(0x10000).fill(-1);
  byteCharacters().forEach((character, byte) => byteOf[character.charCodeAt(0)] = byte);
  let buffer = new Uint8Array(1024);
  return (token) => {
    if (token.length > buffer.length) buffer = new Uint8Array(2 * token.length);
    for (let i = 0; i < token.length; i++) {
      const byte = byteOf[token.charCodeAt(i)]!;
      if (byte < 0) return null;
      buffer[i] = byte;
    }
    return buffer.subarray(0, token.length);
  };
}

function readMerges(vocab: Record<string, number>, merges: ByteLevelJson["model"]["merges"]): PairTable {
  const ids = new Map(Object.entries(vocab)), pairs = new PairTable(merges.length);
  for (const [i, merge] of merges.entries()) {
    const [left, right] = typeof merge === "string" ? merge.split(" ") as [string, string] : merge;
    const a = ids.get(left), b = ids.get(right), join = ids.get(left + right);
    if (a === undefined || b === undefined || join === undefined) {
      throw new RangeError(`its merge ${i} is ${JSON.stringify(merge)}, should be of tokens and make one`);
    }
    pairs.set(a, b, i + 1, join);
  }
  return pairs;
}

/** Encoding that first takes added tokens out of the text. */
function withAddedTokens(added: AddedTokens, encode: EncodeUtf8): EncodeUtf8 {
  if (!added.any) return encode;
  return (bytes, from, to, out) => {
    while (added.next(bytes, from, to)) {
      const { start, end, id } = added;
      if (start > from) encode(bytes, from, start, out);
      out.push(id);
      from = end;
    }
    if (from < to) encode(bytes, from, to, out);
  };
}

/** Encoding of the composed form of the text. */
function withNfc(encode: EncodeUtf8): EncodeUtf8 {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true }), encoder = new TextEncoder();
  return (bytes, from, to, out) => {
    if (isSurelyNfc(bytes, from, to)) return encode(bytes, from, to, out);
    const text = decoder.decode(bytes.subarray(from, to)), normal = normalizeNfc(text);
    if (normal === text) return encode(bytes, from, to, out);
    const other = encoder.encode(normal);
    encode(other, 0, other.length, out);
  };
}

/** Encoding of the text with a blank before it, if it has none. */
function withBlank(encode: EncodeUtf8): EncodeUtf8 {
  return (bytes, from, to, out) => {
    if (from === to || bytes[from] === 0x20) return encode(bytes, from, to, out);
    const longer = new Uint8Array(to - from + 1);
    longer[0] = 0x20;
    longer.set(bytes.subarray(from, to), 1);
    encode(longer, 0, longer.length, out);
  };
}
