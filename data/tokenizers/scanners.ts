// Cutting text into the pieces that are byte-pair encoded one by one, by hand-written scanners over UTF-8: each gives the
// same pieces as the regular expression in its comment, several times as fast and without a string per piece.
import {
  CASELESS,
  kindAt,
  LETTER,
  LOWER,
  MARK,
  NEWLINE,
  NUMBER,
  OTHER,
  runEnd,
  startBefore,
  UPPER,
  WHITE_SPACE,
  widthAt,
} from "./characters.ts";

/** Says where the piece ends that begins at byte i of valid UTF-8; the text ends before byte `to`. */
export type Scanner = (bytes: Uint8Array, i: number, to: number) => number;

const CONTRACTION = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)`;
const WORDS = String.raw`[^\r\n\p{L}\p{N}]?\p{L}+`, SYMBOLS = String.raw` ?[^\s\p{L}\p{N}]+[\r\n]*`;
const LINES = String.raw`\s*[\r\n]+|\s+(?!\S)|\s+`;

/**
 * The regular expressions by which tokenizers cut text, as they stand in tokenizer.json. \s is Unicode's White_Space, to
 * which JavaScript adds U+FEFF and from which it takes U+0085; letters of any case are equal within (?i:), U+017F is an s.
 */
export const PATTERNS = {
  gpt2: String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
  cl100k: String.raw`${CONTRACTION}|${WORDS}|\p{N}{1,3}|${SYMBOLS}|\s+(?![\s\S])|${LINES}`,
  llama3: String.raw`${CONTRACTION}|${WORDS}|\p{N}{1,3}|${SYMBOLS}|${LINES}`,
  /** The same as llama3 in other words, as in Phi 4. */
  gpt4: String
    .raw`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`,
  qwen: String.raw`${CONTRACTION}|${WORDS}|\p{N}|${SYMBOLS}|${LINES}`,
  qwen35: String
    .raw`${CONTRACTION}|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|${LINES}`,
  o200k: [
    String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+${CONTRACTION}?`,
    String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*${CONTRACTION}?`,
    String.raw`\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|${LINES}`,
  ].join("|"),
  /** Each digit for itself. */
  digits: String.raw`\p{N}`,
};

const SYMBOL = MARK | OTHER; // [^\s\p{L}\p{N}]
const APOSTROPHE = 0x27, SLASH = 0x2f, BLANK = 0x20;

/** Cuts by GPT-2's pattern, PATTERNS.gpt2. */
const gpt2Scanner: Scanner = (bytes, i, to): number => {
  if (bytes[i] === APOSTROPHE) {
    const suffix = contraction(bytes, i, to);
    // Here the suffix is in lower case only: the capitals and the long s are other letters.
    if (suffix > 0 && isLowerAscii(bytes, i + 1, i + suffix)) return i + suffix;
  }
  const start = bytes[i] === BLANK && i + 1 < to ? i + 1 : i, kind = kindAt(bytes, start);
  if (kind & WHITE_SPACE) return whiteSpace(bytes, i, to);
  const run = kind & LETTER ? LETTER : kind & NUMBER ? NUMBER : SYMBOL;
  return runEnd(bytes, start, to, run);
};

/** What differs among the tokenizers that cut as cl100k does. */
type Cl100kVariant = {
  /** Characters in a piece of a number, at most. */
  digits: number;
  /** White space at the end of the text is one piece, line ends included. */
  wholeTail?: boolean;
  /** Marks count as letters. */
  marks?: boolean;
};

/** Cuts by PATTERNS.cl100k, llama3, gpt4, qwen or qwen35. */
function cl100kScanner({ digits, wholeTail = false, marks = false }: Cl100kVariant): Scanner {
  const letter = marks ? LETTER | MARK : LETTER, symbol = marks ? OTHER : SYMBOL;
  return (bytes, i, to) => {
    if (bytes[i] === APOSTROPHE) {
      const suffix = contraction(bytes, i, to);
      if (suffix > 0) return i + suffix;
    }
    const kind = kindAt(bytes, i), next = i + widthAt(bytes, i);
    if (kind & letter) return runEnd(bytes, next, to, letter);
    if (kind & NUMBER) return numberEnd(bytes, next, to, digits);
    if (kind !== NEWLINE) {
      const end = runEnd(bytes, next, to, letter);
      if (end > next) return end;
    }
    const start = bytes[i] === BLANK ? next : i, symbols = runEnd(bytes, start, to, symbol);
    if (symbols > start) return runEnd(bytes, symbols, to, NEWLINE);
    return lines(bytes, i, to, wholeTail);
  };
}

/** Cuts by PATTERNS.o200k. */
const o200kScanner: Scanner = (bytes, i, to): number => {
  const kind = kindAt(bytes, i), next = i + widthAt(bytes, i);
  if (kind & NUMBER) return numberEnd(bytes, next, to, 3);
  const word = kind & LETTER
    ? wordEnd(bytes, i, to)
    : kind === NEWLINE
    ? i
    : prefixedWordEnd(bytes, i, next, to);
  if (word > i) return bytes[word] === APOSTROPHE ? word + contraction(bytes, word, to) : word;
  const start = bytes[i] === BLANK ? next : i, symbols = runEnd(bytes, start, to, SYMBOL);
  if (symbols > start) return newlinesAndSlashes(bytes, symbols, to);
  return lines(bytes, i, to, false);
};

/** Cuts by PATTERNS.digits: what is between its matches stays whole. */
const digitScanner: Scanner = (bytes, i, to): number => {
  if (kindAt(bytes, i) === NUMBER) return i + widthAt(bytes, i);
  return runEnd(bytes, i, to, 255 - NUMBER);
};

/**
 * Where the word of o200k's pattern ends that begins at byte i, without the suffix; i if none does. Capitals may stand
 * before small letters only; letters without case and marks count as both.
 */
function wordEnd(bytes: Uint8Array, i: number, to: number): number {
  const both = backUp(bytes, i, to);
  if (both > i) return both;
  return runEnd(bytes, i, to, UPPER); // the second alternative: capitals alone
}

/** The first alternative of o200k's pattern from byte i on, without prefix and suffix; i if it does not match. */
function backUp(bytes: Uint8Array, i: number, to: number): number {
  let end = i, small = i; // behind the last character that may stand for a small letter
  for (;;) {
    const kind = end < to ? kindAt(bytes, end) : 0;
    if (kind & LOWER) return runEnd(bytes, end, to, LOWER | CASELESS | MARK);
    if ((kind & (UPPER | CASELESS | MARK)) === 0) return small;
    end += widthAt(bytes, end);
    if (kind & (CASELESS | MARK)) small = end;
  }
}

/** Where the word ends of which the character before byte `next`, no letter, is the prefix; i if there is none. */
function prefixedWordEnd(bytes: Uint8Array, i: number, next: number, to: number): number {
  if (kindAt(bytes, i) === MARK) { // may be the prefix, or the first character of a word
    const end = backUp(bytes, next, to);
    return end > next ? end : backUp(bytes, i, to);
  }
  const end = wordEnd(bytes, next, to);
  return end > next ? end : i;
}

function numberEnd(bytes: Uint8Array, i: number, to: number, digits: number): number {
  for (let n = 1; n < digits && i < to && kindAt(bytes, i) === NUMBER; n++) i += widthAt(bytes, i);
  return i;
}

function newlinesAndSlashes(bytes: Uint8Array, i: number, to: number): number {
  while (i < to && (bytes[i] === SLASH || bytes[i] === 0x0a || bytes[i] === 0x0d)) i++;
  return i;
}

/** `\s+(?!\S)|\s+`: of white space before a word the last character is left, since it belongs to the word. */
function whiteSpace(bytes: Uint8Array, i: number, to: number): number {
  const end = runEnd(bytes, i, to, WHITE_SPACE);
  if (end === to) return end;
  const last = startBefore(bytes, end);
  return last > i ? last : end;
}

/** `\s+$|\s*[\r\n]+|\s+(?!\S)|\s+`, the first of them only with wholeTail: white space up to its last line end. */
function lines(bytes: Uint8Array, i: number, to: number, wholeTail: boolean): number {
  let end = runEnd(bytes, i, to, WHITE_SPACE);
  if (wholeTail && end === to) return end;
  for (; end > i; end--) if (bytes[end - 1] === 0x0a || bytes[end - 1] === 0x0d) return end;
  return whiteSpace(bytes, i, to);
}

/** Bytes of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at byte i, where the apostrophe is; 0 if the suffix is not there. */
function contraction(bytes: Uint8Array, i: number, to: number): number {
  const left = to - i - 1,
    first = left > 0 ? bytes[i + 1]! | BLANK : 0,
    second = left > 1 ? bytes[i + 2]! : 0;
  switch (first) {
    case 0x73: // s
    case 0x74: // t
    case 0x6d: // m
    case 0x64: // d
      return 2;
    case 0x6c: // ll
      return (second | BLANK) === 0x6c ? 3 : 0;
    case 0x76: // ve
    case 0x72: // re
      return (second | BLANK) === 0x65 ? 3 : 0;
    default: // the long s, U+017F, is an s to a pattern that ignores case
      return bytes[i + 1] === 0xc5 && second === 0xbf ? 3 : 0;
  }
}

function isLowerAscii(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i++) if (bytes[i]! < 0x61 || bytes[i]! > 0x7a) return false;
  return true;
}

/** The scanner that does what a regular expression does, undefined if there is none. */
export function scannerOf(pattern: string): Scanner | undefined {
  return SCANNERS.get(pattern);
}

const SCANNERS = new Map<string, Scanner>([
  [PATTERNS.gpt2, gpt2Scanner],
  [PATTERNS.cl100k, cl100kScanner({ digits: 3, wholeTail: true })],
  [PATTERNS.llama3, cl100kScanner({ digits: 3 })],
  [PATTERNS.gpt4, cl100kScanner({ digits: 3 })],
  [PATTERNS.qwen, cl100kScanner({ digits: 1 })],
  [PATTERNS.qwen35, cl100kScanner({ digits: 1, marks: true })],
  [PATTERNS.o200k, o200kScanner],
  [PATTERNS.digits, digitScanner],
]);
