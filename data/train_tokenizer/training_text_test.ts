import { assertEquals } from "@std/assert";
import { PATTERNS } from "../tokenizers/scanners.ts";
import { TrainingText } from "./training_text.ts";
import type { WordLimits } from "./word_counts.ts";

const utf8 = new TextEncoder(), decoder = new TextDecoder();

/** A text of these documents, added in blocks of up to 7. */
function textOf(documents: string[], limits?: WordLimits): TrainingText {
  const text = new TrainingText(PATTERNS.llama3, limits);
  for (let d = 0; d < documents.length; d += 7) {
    const parts = documents.slice(d, d + 7).map((document) => utf8.encode(document));
    let end = 0;
    const ends = Uint32Array.from(parts, ({ length }) => end += length);
    if (!text.add({ text: utf8.encode(documents.slice(d, d + 7).join("")), ends })) break;
  }
  return text;
}

function wordsOf({ words }: TrainingText): Record<string, number> {
  return Object.fromEntries(
    Array.from(
      { length: words.size },
      (_, word) => [decoder.decode(words.bytesOf(word)), words.countOf(word)],
    ),
  );
}

Deno.test("TrainingText counts the words of each document by itself, and no empty documents", () => {
  const text = textOf(["one two", "", " two", "one two 1234"]);
  assertEquals(wordsOf(text), { one: 2, " two": 3, " ": 1, "123": 1, "4": 1 });
  assertEquals([text.documents, text.bytes], [3, 23]);
});

Deno.test("TrainingText holds out every hundredth document", () => {
  const text = textOf(Array.from({ length: 250 }, (_, i) => `d${String.fromCharCode(0x4e00 + i)}`));
  assertEquals(text.heldOut, true);
  assertEquals(
    text.sample.map((bytes) => decoder.decode(bytes)),
    [99, 199].map((i) => `d${String.fromCharCode(0x4e00 + i)}`),
  );
  assertEquals([text.documents, text.words.size], [250, 248]);
});

Deno.test("TrainingText has the beginning of the text for a sample where there are too few documents to hold one out", () => {
  const text = textOf(["é".repeat(400_000), "b".repeat(150_001), "é".repeat(400_000), "c"]);
  assertEquals(text.heldOut, false);
  assertEquals(text.sample.map(({ length }) => length), [800_000, 150_001, 50_000]); // in whole characters
  assertEquals(decoder.decode(text.sample[2]), "é".repeat(25_000));
});

Deno.test("TrainingText ends where there is no room for a new word", () => {
  const text = textOf(["a b", "a c", "a d", "a e"], { words: 3, bytes: 100 });
  assertEquals(Object.keys(wordsOf(text)), ["a", " b", " c"]);
  assertEquals(text.documents, 2);
});
