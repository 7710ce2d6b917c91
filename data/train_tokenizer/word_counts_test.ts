import { assertEquals } from "@std/assert";
import { WordCounts } from "./word_counts.ts";

const utf8 = new TextEncoder();

function addAll(counts: WordCounts, words: string[]): boolean[] {
  return words.map((word) => {
    const bytes = utf8.encode(`<${word}>`); // the word is a part of what it is added from
    return counts.add(bytes, 1, bytes.length - 1);
  });
}

Deno.test("WordCounts counts words and keeps the order of their first occurrence", () => {
  const words = Array.from({ length: 60_000 }, (_, i) => `word ${Math.imul(i, 7919) % 9973}`); // grows several times
  const expected = new Map<string, number>();
  for (const word of words) expected.set(word, (expected.get(word) ?? 0) + 1);
  const counts = new WordCounts();
  assertEquals(addAll(counts, words).every(Boolean), true);
  const found = Array.from(
    { length: counts.size },
    (_, word) => [new TextDecoder().decode(counts.bytesOf(word)), counts.countOf(word)] as const,
  );
  assertEquals(found, [...expected]);
  assertEquals(counts.bytes, [...expected.keys()].join("").length);
});

Deno.test("WordCounts refuses new words when there is no room, and counts known ones", () => {
  const few = new WordCounts({ words: 2, bytes: 100 });
  assertEquals(addAll(few, ["a", "b", "c", "a"]), [true, true, false, true]);
  const short = new WordCounts({ words: 100, bytes: 3 });
  assertEquals(addAll(short, ["ab", "cd", "e", "ab"]), [true, false, true, true]);
  assertEquals([short.size, short.bytes, short.countOf(0)], [2, 3, 2]);
});
