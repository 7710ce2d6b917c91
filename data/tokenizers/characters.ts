// What kind of character stands at a place in UTF-8 text, for cutting text as the patterns of tokenizers do. The kinds are
// bits, so that a class of a pattern, such as \p{L}, is a mask. The tables come from JavaScript's own regular expressions:
// Unicode 17 in V8 15.0, as in tiktoken 0.14 and tokenizers 0.23. Characters newer than the Unicode of the library that a
// model was trained with may be cut otherwise there; characters_test.ts notices when V8 moves on.

/** White_Space but for the two of NEWLINE. */
const SPACE = 1;
/** \r and \n. */
export const NEWLINE = 2;
/** \p{N} */
export const NUMBER = 4;
/** \p{Lu} and \p{Lt} */
export const UPPER = 8;
/** \p{Ll} */
export const LOWER = 16;
/** \p{Lm} and \p{Lo}: letters without case. */
export const CASELESS = 32;
/** \p{M} */
export const MARK = 64;
/** Everything else: punctuation, symbols, control characters, unassigned code points. */
export const OTHER = 128;

/** \s of the patterns. JavaScript's own \s differs from it at U+0085 and U+FEFF. */
export const WHITE_SPACE = SPACE | NEWLINE;
/** \p{L} */
export const LETTER = UPPER | LOWER | CASELESS;

const kinds = new Uint8Array(0x110000); // kind of each code point, 0 = not asked for yet

/** The kind of the character that begins at byte i of valid UTF-8. */
export function kindAt(bytes: Uint8Array, i: number): number {
  const first = bytes[i]!, codePoint = first < 0x80 ? first : codePointAt(bytes, i);
  return kinds[codePoint] || (kinds[codePoint] = kindOf(String.fromCodePoint(codePoint)));
}

/** Where the run of characters of the kinds in mask ends that begins at byte i; i itself if there is none. */
export function runEnd(bytes: Uint8Array, i: number, to: number, mask: number): number {
  while (i < to && (kindAt(bytes, i) & mask) !== 0) i += widthAt(bytes, i);
  return i;
}

/** Bytes of the character that begins at byte i of valid UTF-8. */
export function widthAt(bytes: Uint8Array, i: number): number {
  const first = bytes[i]!;
  return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/** Where the character begins whose last byte is before end. */
export function startBefore(bytes: Uint8Array, end: number): number {
  do end--; while ((bytes[end]! & 0xc0) === 0x80);
  return end;
}

function kindOf(character: string): number {
  if (character === "\r" || character === "\n") return NEWLINE;
  if (/\p{White_Space}/u.test(character)) return SPACE;
  if (/\p{N}/u.test(character)) return NUMBER;
  if (/[\p{Lu}\p{Lt}]/u.test(character)) return UPPER;
  if (/\p{Ll}/u.test(character)) return LOWER;
  if (/\p{L}/u.test(character)) return CASELESS;
  return /\p{M}/u.test(character) ? MARK : OTHER;
}

/** The code point of two to four bytes that begins at byte i of valid UTF-8. */
export function codePointAt(bytes: Uint8Array, i: number): number {
  const first = bytes[i]!, second = bytes[i + 1]! & 0x3f;
  if (first < 0xe0) return (first & 0x1f) << 6 | second;
  const third = bytes[i + 2]! & 0x3f;
  if (first < 0xf0) return (first & 0x0f) << 12 | second << 6 | third;
  return (first & 0x07) << 18 | second << 12 | third << 6 | bytes[i + 3]! & 0x3f;
}
