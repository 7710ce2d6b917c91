// Unicode's composed normal form as Hugging Face's tokenizers computes it. Its tables are of Unicode 10, so the marks that
// came later neither move nor compose: text between them is normalised by JavaScript, which is of Unicode 17.
// nfc_test.ts looks for characters for which the two differ.
import { codePointAt, widthAt } from "./characters.ts";

const LATER = new RegExp(
  "[\\u07fd\\u0897-\\u089f\\u08ca-\\u08d3\\u09fe\\u0c3c\\u0d3b\\u0d3c\\u0eba\\u1715\\u1abf-\\u1ace\\u1df6-\\u1dfa\\ua82c" +
    "\\u{105c9}\\u{105d2}\\u{105da}\\u{105e4}\\u{10d24}-\\u{10d27}\\u{10d69}-\\u{10d6d}\\u{10eab}\\u{10eac}" +
    "\\u{10efd}-\\u{10eff}\\u{10f46}-\\u{10f50}\\u{10f82}-\\u{10f85}\\u{11070}\\u{1133b}\\u{11382}-\\u{11385}\\u{1138b}" +
    "\\u{1138e}\\u{11390}\\u{11391}\\u{113b8}\\u{113bb}\\u{113c2}\\u{113c5}\\u{113c7}-\\u{113c9}\\u{113ce}-\\u{113d0}" +
    "\\u{1145e}\\u{11839}\\u{1183a}\\u{11930}\\u{11935}\\u{11938}\\u{1193d}\\u{1193e}\\u{11943}\\u{119e0}\\u{11a34}" +
    "\\u{11a47}\\u{11a99}\\u{11d42}\\u{11d44}\\u{11d45}\\u{11d97}\\u{11f41}\\u{11f42}\\u{1611e}-\\u{16129}\\u{1612f}" +
    "\\u{16d63}\\u{16d67}-\\u{16d6a}\\u{16ff0}\\u{16ff1}\\u{1e08f}\\u{1e130}-\\u{1e136}\\u{1e2ae}\\u{1e2ec}-\\u{1e2ef}" +
    "\\u{1e4ec}-\\u{1e4ef}\\u{1e5ee}\\u{1e5ef}]",
  "u",
);
const BETWEEN_LATER = new RegExp(`(${LATER.source})`, "u");

/** The composed form of a text. */
export function normalizeNfc(text: string): string {
  if (!LATER.test(text)) return text.normalize("NFC");
  return text.split(BETWEEN_LATER).map((part, i) => i % 2 === 0 ? part.normalize("NFC") : part).join("");
}

/**
 * Whether UTF-8 text has only characters that never change nor let others change, so that it is its own composed form. Most
 * text is of this kind, and need not become a string to be sure.
 */
export function isInert(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i += widthAt(bytes, i)) {
    if (bytes[i]! < 0xcc) continue; // below U+0300
    const point = codePointAt(bytes, i);
    if ((inert[point] || (inert[point] = inertness(String.fromCodePoint(point)))) === 2) return false;
  }
  return true;
}

const inert = new Uint8Array(0x110000); // of each code point: 1 inert, 2 not, 0 not asked for yet

/** Marks move and compose, the medial and final letters of Hangul compose, and some characters become others. */
function inertness(character: string): number {
  return /[\p{M}\u1161-\u1175\u11a8-\u11c2]/u.test(character) || LATER.test(character) ||
      character.normalize("NFC") !== character
    ? 2
    : 1;
}
