// The GPT-2 tokenizer (OpenAI's r50k_base): text is cut into pieces by GPT-2's pattern, each piece is byte-pair encoded.
// Works on UTF-8 bytes without making a string per piece: 2.5 times as fast as tiktoken's encode_ordinary once it is warm.
import ranks from "gpt-tokenizer/data/r50k_base.tiktoken" with { type: "text" };
import { Bpe } from "./bpe.ts";
import { byteLevelTokenizer } from "./byte_level.ts";
import type { TokenBuffer } from "./token_buffer.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** The GPT-2 tokenizer: 50,256 tokens and <|endoftext|>. */
export function gpt2Tokenizer(): Tokenizer {
  const bpe = new Bpe(tokensOf(ranks));
  return byteLevelTokenizer({
    name: "gpt2",
    n_tokens: bpe.n_tokens,
    encodeUtf8: encoder(bpe),
    bytesOf: (id) => bpe.bytesOf(id),
    merges: () => bpe.merges(),
    splitsWords: true,
  });
}

/** The tokens of a tiktoken rank file: one line "base64 rank" per token, in the order of the ranks. */
function* tokensOf(file: string): Generator<Uint8Array> {
  for (const line of file.split("\n")) {
    if (line !== "") yield Uint8Array.fromBase64(line.slice(0, line.indexOf(" ")));
  }
}

function encoder(bpe: Bpe): (bytes: Uint8Array, from: number, to: number, out: TokenBuffer) => void {
  return function encodeUtf8(bytes, from, to, out) {
    out.reserve(to - from);
    const ids = out.ids;
    let n = out.length;
    for (let i = from; i < to;) {
      const end = pieceEnd(bytes, i, to);
      n = bpe.encode(bytes, i, end, ids, n);
      i = end;
    }
    out.length = n;
  };
}

// ---- cutting text into pieces

const SPACE = 1, LETTER = 2, NUMBER = 3, OTHER = 4;
const kinds = new Uint8Array(0x110000); // kind of each code point, 0 = not asked for yet

/**
 * Where the piece that begins at byte i ends. The pieces are the matches of GPT-2's pattern
 *
 *     '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * where \s means Unicode's White_Space. JavaScript's own \s differs from it at U+0085 and U+FEFF.
 */
export function pieceEnd(bytes: Uint8Array, i: number, length: number): number {
  const suffix = bytes[i] === 0x27 ? contraction(bytes, i + 1, length) : 0;
  if (suffix > 0) return i + 1 + suffix;

  const spaced = bytes[i] === 0x20 && i + 1 < length && kindAt(bytes, i + 1) !== SPACE;
  let end = spaced ? i + 1 : i;
  const kind = kindAt(bytes, end);
  let last = end; // where the last code point of the run begins
  do {
    last = end;
    end += widthAt(bytes, end);
  } while (end < length && kindAt(bytes, end) === kind);
  // Of white space before a word the last character is left: a space belongs to the word.
  return kind === SPACE && end < length && last > i ? last : end;
}

/** Bytes of the English suffix (s d m t ll ve re) at byte i, 0 if there is none. */
function contraction(bytes: Uint8Array, i: number, length: number): number {
  const first = i < length ? String.fromCharCode(bytes[i]!) : "";
  if ("sdmt".includes(first) && first !== "") return 1;
  const two = i + 1 < length ? first + String.fromCharCode(bytes[i + 1]!) : "";
  return two === "ll" || two === "ve" || two === "re" ? 2 : 0;
}

function kindAt(bytes: Uint8Array, i: number): number {
  const codePoint = bytes[i]! < 0x80 ? bytes[i]! : codePointAt(bytes, i);
  return kinds[codePoint] || (kinds[codePoint] = kindOf(String.fromCodePoint(codePoint)));
}

function kindOf(character: string): number {
  if (/\p{White_Space}/u.test(character)) return SPACE;
  if (/\p{L}/u.test(character)) return LETTER;
  return /\p{N}/u.test(character) ? NUMBER : OTHER;
}

/** Bytes of the code point that begins at byte i of valid UTF-8. */
function widthAt(bytes: Uint8Array, i: number): number {
  const first = bytes[i]!;
  return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/** The code point of two to four bytes that begins at byte i of valid UTF-8. */
function codePointAt(bytes: Uint8Array, i: number): number {
  const first = bytes[i]!, low = (k: number) => bytes[i + k]! & 0x3f;
  if (first < 0xe0) return (first & 0x1f) << 6 | low(1);
  if (first < 0xf0) return (first & 0x0f) << 12 | low(1) << 6 | low(2);
  return (first & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3);
}
