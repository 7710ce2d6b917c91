import { assert, assertEquals } from "@std/assert";
import { isInert, normalizeNfc } from "./nfc.ts";
import { askPython, python, randomTexts } from "./testing.ts";

const utf8 = new TextEncoder();

function inert(text: string): boolean {
  const bytes = utf8.encode(`\u0301${text}\u0301`);
  return isInert(bytes, 2, bytes.length - 2);
}

Deno.test("normalizeNfc() composes what Unicode 10 composes", () => {
  assertEquals(
    normalizeNfc("e\u0301 \u1112\u1161\u11ab \u212b a\u0315\u0334"),
    "\u00e9 \ud55c \u00c5 a\u0334\u0315",
  );
  assertEquals(normalizeNfc("\u{16d63}\u{16d67}e\u0301"), "\u{16d63}\u{16d67}\u00e9"); // the pair is of Unicode 16
  assertEquals(normalizeNfc("a\u0315\u0897\u0334e\u0301"), "a\u0315\u0897\u0334\u00e9"); // so is U+0897
});

Deno.test("isInert() is true of text that stays as it is, and of most text", () => {
  for (const text of ["", "plain", "Größe “quoted” – 中文 かな 한국어 👍 Ελλάδα кот"]) {
    assert(inert(text), text);
  }
  for (const text of ["e\u0301", "\u1112\u1161", "\u212b", "हिन्दी", "\u{105d2}\u0307"]) {
    assert(!inert(text), text);
  }
  for (const text of randomTexts(2000, 5)) {
    assert(!inert(text) || text.normalize("NFC") === text, JSON.stringify(text));
  }
});

Deno.test({
  name: "normalizeNfc() gives what Python's tokenizers gives around every character (LOAM_PYTHON)",
  ignore: python === undefined,
  fn: async () => {
    const texts: string[] = [];
    for (let point = 0x80; point < 0x110000; point++) {
      if (point >= 0xd800 && point < 0xe000) continue;
      const character = String.fromCodePoint(point), parts = character.normalize("NFD");
      if (parts === character && !/\p{M}/u.test(character) && point % 64 !== 0) continue;
      texts.push(character, parts, `a\u0315${character}`, `a${character}\u0334`, `${character}\u0307`);
    }
    const theirs = await askPython<string[]>(
      "from tokenizers import normalizers\nnfc = normalizers.NFC()\nprint(json.dumps([nfc.normalize_str(t) for t in argument]))",
      texts,
    );
    for (const [i, text] of texts.entries()) {
      assertEquals(normalizeNfc(text), theirs[i], JSON.stringify(text));
    }
  },
});
