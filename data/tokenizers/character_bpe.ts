// BPE over characters with bytes for those that the vocabulary lacks, as sentencepiece makes it, by our own encoder: what text
// begins as, and where it may be cut. A blank is the character "▁" to these vocabularies.
import { AddedTokens } from "./added_tokens.ts";
import type { AddedToken } from "./added_tokens.ts";
import { Bpe } from "./bpe.ts";
import { ByteStrings } from "./byte_strings.ts";
import { PairTable } from "./pair_table.ts";
import type { Json } from "./tokenizer_file.ts";
import type { Tokenizer } from "./types.ts";

const BLANK = "▁", SPACE = 0x20;
const BLANK_BYTES = new TextEncoder().encode(BLANK); // e2 96 81

/** Where a "▁" goes before text that has none there: nowhere, before the text, or before each part of it between added tokens. */
type Prefix = "never" | "first" | "each, unless it begins with one" | "each";

/**
 * Encoding with the ids of Python's tokenizers when encode_special_tokens is set, for a tokenizer.json that libraryBpe() reads.
 * undefined for one of which it is not known to be the same, as every step of it is what stands here.
 *
 * @param added Its added tokens with their ids.
 */
export function characterBpe(json: Json, added: AddedToken[]): Tokenizer["encodeUtf8"] | undefined {
  const model = json.model as Json, vocab = new Map(Object.entries(model.vocab as Record<string, number>));
  const prefix = prefixOf(json),
    merges = mergesOf(model.merges as unknown[], vocab),
    blank = vocab.get(BLANK);
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
  );
  const isPlain = !model.dropout && !model.continuing_subword_prefix && !model.end_of_word_suffix &&
    !model.ignore_merges;
  const isKnown = isPlain && prefix !== undefined && merges !== undefined && blank !== undefined;
  if (!isKnown || bytes.includes(undefined) || !areSimple(added)) return undefined;
  const begin = beginning(vocab, blank, bytes as number[]);
  const bpe = new Bpe({ tokens: new ByteStrings(0, 0), merges: merges.table, wholePieces: false, begin });
  return encoding(bpe, new AddedTokens(added), prefix, merges.cuts);
}

/** Whether added tokens are found in the text as it is, and nothing around them is dropped. */
function areSimple(added: AddedToken[]): boolean {
  if (added.every(({ special }) => special)) return true; // none of them is looked for
  const flags = ["normalized", "single_word", "lstrip", "rstrip"];
  return added.every((token) => flags.every((flag) => !(token as Record<string, unknown>)[flag]));
}

/** What the normalizer and the pre_tokenizer do beside writing blanks as "▁"; undefined if that is something else. */
function prefixOf({ normalizer, pre_tokenizer }: Json): Prefix | undefined {
  const is = (value: unknown, ...parts: unknown[]) => parts.some((part) => isEqual(value ?? null, part));
  const replace = { type: "Replace", pattern: { String: " " }, content: BLANK };
  const prepend = { type: "Prepend", prepend: BLANK };
  const split = { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false }; // finds no blank
  if (is(normalizer, replace)) return is(pre_tokenizer, null, split) ? "never" : undefined;
  if (is(normalizer, { type: "Sequence", normalizers: [prepend, replace] })) {
    return is(pre_tokenizer, null) ? "each" : undefined;
  }
  const space = (prepend_scheme: string) => ({
    type: "Metaspace",
    replacement: BLANK,
    prepend_scheme,
    split: false,
  });
  if (!is(normalizer, null)) return undefined;
  if (is(pre_tokenizer, space("never"))) return "never";
  if (is(pre_tokenizer, space("first"))) return "first";
  return is(pre_tokenizer, space("always")) ? "each, unless it begins with one" : undefined;
}

/** Whether two values of JSON are the same, whatever the order of keys. */
function isEqual(a: unknown, b: unknown): boolean {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const [left, right] = [a, b] as Record<string, unknown>[], keys = Object.keys(left!);
  return keys.length === Object.keys(right!).length && Array.isArray(a) === Array.isArray(b) &&
    keys.every((key) => Object.hasOwn(right!, key) && isEqual(left![key], right![key]));
}

/**
 * The pairs that join, and whether text may be cut before each blank that follows another character: no pair makes a token
 * with such a blank in it, so none joins over the cut. undefined where a pair is not of two tokens that make a token.
 */
function mergesOf(
  merges: unknown[],
  vocab: Map<string, number>,
): { table: PairTable; cuts: boolean } | undefined {
  const table = new PairTable(merges.length);
  let cuts = true;
  for (const [i, merge] of merges.entries()) {
    const [left, right, ...more] = typeof merge === "string" ? merge.split(" ") : merge as string[];
    const made = `${left}${right}`;
    const ids = [left!, right!, made].map((token) => vocab.get(token));
    if (more.length > 0 || ids.includes(undefined)) return undefined;
    table.set(ids[0]!, ids[1]!, i + 1, ids[2]!);
    if (/[^▁]▁/u.test(made)) cuts = false;
  }
  return { table, cuts };
}

/** begin() of a Bpe: an id for each character that the vocabulary has, one for each byte of the others. */
function beginning(vocab: Map<string, number>, blank: number, idOfByte: number[]) {
  const idOf = new Int32Array(0x110000).fill(-1);
  for (const [token, id] of vocab) {
    const point = token.codePointAt(0)!;
    if (token.length > 0 && token.length === (point > 0xffff ? 2 : 1)) idOf[point] = id;
  }
  idOf[SPACE] = blank;
  return (bytes: Uint8Array, from: number, to: number, parts: Int32Array): number => {
    let count = 0;
    for (let i = from; i < to;) {
      const first = bytes[i]!, length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
      let point = length === 1 ? first : first & 0xff >> length + 1;
      for (let k = 1; k < length; k++) point = point << 6 | bytes[i + k]! & 0x3f;
      const id = idOf[point]!;
      if (id >= 0) parts[count++] = id;
      else for (let k = 0; k < length; k++) parts[count++] = idOfByte[bytes[i + k]!]!;
      i += length;
    }
    return count;
  };
}

function encoding(bpe: Bpe, added: AddedTokens, prefix: Prefix, cuts: boolean): Tokenizer["encodeUtf8"] {
  let longer = new Uint8Array(1 << 10);

  function encodePart(
    bytes: Uint8Array,
    from: number,
    to: number,
    isFirst: boolean,
    ids: Uint32Array,
    n: number,
  ): number {
    if (from === to) return n;
    const bare = prefix === "each" || !isBlank(bytes, from, to);
    if (bare && prefix !== "never" && (isFirst || prefix !== "first")) { // a piece with a blank before it
      const end = endOfPiece(bytes, from, to);
      if (end - from + 1 > longer.length) longer = new Uint8Array(2 * (end - from + 1));
      longer[0] = SPACE;
      longer.set(bytes.subarray(from, end), 1);
      n = bpe.encode(longer, 0, end - from + 1, ids, n);
      from = end;
    }
    while (from < to) {
      const end = endOfPiece(bytes, from, to);
      n = bpe.encode(bytes, from, end, ids, n);
      from = end;
    }
    return n;
  }

  /** Where the piece ends that begins at byte i: before the first blank behind another character. */
  function endOfPiece(bytes: Uint8Array, i: number, to: number): number {
    if (!cuts) return to;
    while (isBlank(bytes, i, to)) i += bytes[i] === SPACE ? 1 : BLANK_BYTES.length;
    while (i < to && !isBlank(bytes, i, to)) i++;
    return i;
  }

  return (bytes, from, to, out) => {
    out.reserve(2 * (to - from) + 1); // a blank may go before each part
    const { ids } = out;
    let n = out.length;
    for (let at = from; at < to;) {
      const found = added.any && added.next(bytes, at, to), end = found ? added.start : to;
      n = encodePart(bytes, at, end, at === from, ids, n);
      if (found) ids[n++] = added.id;
      at = found ? added.end : to;
    }
    out.length = n;
  };
}

function isBlank(bytes: Uint8Array, i: number, to: number): boolean {
  const byte = bytes[i]!;
  return i < to && (byte === SPACE ||
    byte === BLANK_BYTES[0] && i + 2 < to && bytes[i + 1] === BLANK_BYTES[1] &&
      bytes[i + 2] === BLANK_BYTES[2]);
}
