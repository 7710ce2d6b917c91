// Byte-level BPE from tokenizer.json, by our own encoder: the tokenizers of GPT-2, Llama 3, Qwen, SmolLM, DeepSeek, gpt-oss,
// SuperBPE and many others. The ids are those of Python's tokenizers when encode_special_tokens is set.
import { type AddedToken, AddedTokens, withIds } from "./added_tokens.ts";
import { Bpe, isSuperword } from "./bpe.ts";
import { appendTo } from "./byte_level.ts";
import { byteToken, readMerges, readVocabulary } from "./byte_level_vocabulary.ts";
import type { ByteStrings } from "./byte_strings.ts";
import { isInert, normalizeNfc } from "./nfc.ts";
import { NEVER, PairTable } from "./pair_table.ts";
import { PieceTable } from "./piece_table.ts";
import { encoderOf, type PreTokenizer, readPreTokenizer } from "./pre_tokenizer.ts";
import type { Tokenizer } from "./types.ts";
import type { TokenizerFile } from "./tokenizer_file.ts";

/** tokenizer.json, as far as it is looked at here. */
type ByteLevelJson = {
  model: {
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
};

type AddedTokenJson = AddedToken & {
  normalized: boolean;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
};

type Normalizer = {
  type: string;
  normalizers?: Normalizer[];
};

/** Encodes UTF-8 text: encodeUtf8() of a Tokenizer. */
export type EncodeUtf8 = Tokenizer["encodeUtf8"];

/** How byte-level BPE encodes text, and what its ids stand for. */
export type ByteLevelBpe = {
  /** Ids of the vocabulary and the added tokens, one more than the largest. */
  vocab_size: number;
  /** As that of a Tokenizer. */
  encodeUtf8: EncodeUtf8;
  /** The bytes that a token stands for. */
  bytesOf(id: number): Uint8Array;
  /** The id of a token as it is written, undefined if there is none. */
  idOf(token: string): number | undefined;
  /** The tokens that are found where they are written out. */
  added: AddedToken[];
  /** Whether text is brought to Unicode's form NFC first. */
  composes: boolean;
};

/**
 * Reads a tokenizer.json of byte-level BPE. Throws RangeError saying what the file has that is not supported, and
 * what it should have.
 */
export function byteLevelBpe(file: TokenizerFile): ByteLevelBpe {
  const json = file.json as unknown as ByteLevelJson, { model } = json;
  const { cuts, prefixBlank } = readPreTokenizer(json.pre_tokenizer),
    composes = readNormalizer(json.normalizer);
  const { size, tokens, others } = readVocabulary(file.bytes, file.vocab!), table = new PieceTable(tokens, 0);
  checkModel(model, table);
  const added = withIds(json.added_tokens ?? [], size, (content) => vocabularyId(content, table, others));
  checkAddedTokens(added);
  const merges = readMerges(file.bytes, file.merges!, table);
  const bpe = new Bpe({
    tokens: tokens.without(added.filter((token) => token.special).map(({ id }) => id)),
    merges: pairTable(merges),
    wholePieces: model.ignore_merges ?? false,
    superwords: superwordRank(merges, tokens),
  });

  // The steps of tokenizers, the last first. Added tokens are looked for twice: before and after normalisation.
  let encodeUtf8 = appendTo(encoderOf(cuts, bpe));
  if (prefixBlank) encodeUtf8 = withBlank(encodeUtf8);
  const contentOf = ({ content }: AddedToken) => composes ? normalizeNfc(content) : content;
  const normalized = added.filter((token) => token.normalized).map((t) => ({ ...t, content: contentOf(t) }));
  encodeUtf8 = withAddedTokens(new AddedTokens(normalized), encodeUtf8);
  if (composes) encodeUtf8 = withNfc(encodeUtf8);
  encodeUtf8 = withAddedTokens(new AddedTokens(added.filter((token) => !token.normalized)), encodeUtf8);
  const written = added.filter((token) => token.special || !token.normalized);
  return { ...decoding(tokens, others, added), added: written, composes, encodeUtf8 };
}

/** Everything of the tokenizer but encoding. */
function decoding(
  tokens: ByteStrings,
  others: Map<number, string>,
  added: AddedToken[],
): Omit<ByteLevelBpe, "encodeUtf8" | "added" | "composes"> {
  const names = new Map([...others, ...added.map(({ id, content }) => [id, content] as const)]);
  const bytes = new Map<number, Uint8Array>(), ids = new Map<string, number>(), utf8 = new TextEncoder();
  let vocab_size = tokens.length;
  for (const [id, name] of names) {
    bytes.set(id, byteToken(name) ?? utf8.encode(name));
    ids.set(name, id);
    vocab_size = Math.max(vocab_size, id + 1);
  }
  const nothing = new Uint8Array(0);
  return {
    vocab_size,
    bytesOf: (id) => bytes.get(id) ?? (id < tokens.length ? tokens.at(id) : nothing),
    idOf: (token) => ids.get(token) ?? tokens.indexOf(byteToken(token) ?? nothing),
  };
}

/** The id of a token in the vocabulary. */
function vocabularyId(token: string, table: PieceTable, others: Map<number, string>): number | undefined {
  const bytes = byteToken(token);
  if (bytes === undefined) return Array.from(others).find(([, other]) => other === token)?.[0];
  const id = table.token(table.find(bytes, 0, bytes.length));
  return id < 0 ? undefined : id;
}

function checkModel(model: ByteLevelJson["model"], table: PieceTable): void {
  const { dropout, continuing_subword_prefix, end_of_word_suffix, byte_fallback, unk_token } = model;
  const unsupported = { dropout, continuing_subword_prefix, end_of_word_suffix, byte_fallback };
  for (const [name, value] of Object.entries(unsupported)) {
    if (value) throw new RangeError(`its model has ${name} ${JSON.stringify(value)}, should have none`);
  }
  for (let byte = 0; unk_token && byte < 256; byte++) { // without unk_token the byte is left out, as tokenizers does
    if (table.find(Uint8Array.of(byte), 0, 1) < 0) {
      throw new RangeError(
        `its vocabulary lacks byte ${byte} and it has an unk_token, should have all bytes`,
      );
    }
  }
}

/** The pairs that join, their ranks counted from 1. */
function pairTable(merges: Int32Array): PairTable {
  const pairs = new PairTable(merges.length / 3);
  for (let i = 0; i < merges.length; i += 3) pairs.set(merges[i]!, merges[i + 1]!, i / 3 + 1, merges[i + 2]!);
  return pairs;
}

/** From which rank on the merges make superwords, as Bpe has it; NEVER if they do not or not in the way that it needs. */
function superwordRank(merges: Int32Array, tokens: ByteStrings): number {
  let first = 0;
  while (first < merges.length && !isSuperword(tokens.at(merges[first + 2]!))) first += 3;
  if (first === merges.length) return NEVER;
  const later = new Set<number>();
  for (let i = first; i < merges.length; i += 3) later.add(merges[i + 2]!);
  for (let i = 0; i < first; i += 3) if (later.has(merges[i]!) || later.has(merges[i + 1]!)) return NEVER;
  return first / 3 + 1;
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
    if (isInert(bytes, from, to)) return encode(bytes, from, to, out);
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
