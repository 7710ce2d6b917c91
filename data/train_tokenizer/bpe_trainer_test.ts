import { assert, assertEquals } from "@std/assert";
import { bpeMerges } from "./bpe_trainer.ts";
import { mix } from "../hash.ts";
import { WordCounts } from "./word_counts.ts";

const SAME = Uint8Array.from({ length: 256 }, (_, byte) => byte);

/** Counts of words of Latin-1, whose characters are bytes. */
function countsOf(words: Record<string, number>): WordCounts {
  const counts = new WordCounts();
  for (const [word, count] of Object.entries(words)) {
    const bytes = Uint8Array.from(word, (character) => character.charCodeAt(0));
    for (let n = 0; n < count; n++) counts.add(bytes, 0, bytes.length);
  }
  return counts;
}

/** The first n merges, as the texts of their two tokens. */
function mergesOf(
  words: Record<string, number>,
  min_frequency: number,
  n = Infinity,
  max_token_length = Infinity,
): string[] {
  const texts = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte)), merges: string[] = [];
  for (const [left, right] of bpeMerges(countsOf(words), SAME, min_frequency, max_token_length)) {
    merges.push(`${texts[left]}+${texts[right]}`);
    texts.push(texts[left]! + texts[right]!);
    if (merges.length === n) break;
  }
  return merges;
}

/** The same merges, by counting all pairs anew before each one. */
function plainMerges(words: Record<string, number>, min_frequency: number, n: number): string[] {
  const texts = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte)), merges: string[] = [];
  let cut = Object.entries(words).map(([word, count]) =>
    [Array.from(word, (character) => character.charCodeAt(0)), count] as const
  );
  while (merges.length < n) {
    const counts = new Map<number, number>(); // by left * 2^16 + right
    for (const [tokens, count] of cut) {
      for (let i = 0; i + 1 < tokens.length; i++) {
        const pair = tokens[i]! * 65536 + tokens[i + 1]!;
        counts.set(pair, (counts.get(pair) ?? 0) + count);
      }
    }
    const [best] = [...counts].sort(([a, m], [b, n]) => n - m || a - b);
    if (best === undefined || best[1] < min_frequency) break;
    const left = Math.floor(best[0] / 65536), right = best[0] % 65536, token = texts.length;
    merges.push(`${texts[left]}+${texts[right]}`);
    texts.push(texts[left]! + texts[right]!);
    cut = cut.map(([tokens, count]) => [joined(tokens, left, right, token), count]);
  }
  return merges;
}

function joined(tokens: readonly number[], left: number, right: number, token: number): number[] {
  const result: number[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const found = tokens[i] === left && tokens[i + 1] === right;
    result.push(found ? token : tokens[i]!);
    if (found) i++;
  }
  return result;
}

Deno.test("bpeMerges() merges the pair that occurs most often, weighted by the counts of the words", () => {
  assertEquals(mergesOf({ low: 5, lower: 2, newest: 6, widest: 3 }, 1, 6), [
    "e+s", // 9
    "es+t", // 9, and no more for s+t
    "l+o", // 7
    "lo+w", // 7
    "e+w", // 6, as often as n+e and w+est, which have a larger left token
    "n+ew", // 6, as often as ew+est
  ]);
});

Deno.test("bpeMerges() takes the smaller left token of pairs that occur equally often, then the smaller right one", () => {
  assertEquals(mergesOf({ db: 2, ca: 2, cb: 2, "a-": 3 }, 1), ["a+-", "c+a", "c+b", "d+b"]);
});

Deno.test("bpeMerges() goes by the order that it is given of the bytes", () => {
  const order = Uint8Array.from({ length: 256 }, (_, byte) => 255 - byte);
  assertEquals([...bpeMerges(countsOf({ ab: 1, cd: 1 }), order, 1, Infinity)], [[156, 155], [158, 157]]);
});

Deno.test("bpeMerges() merges runs of one byte from the left", () => {
  assertEquals(mergesOf({ aaaaaaa: 1 }, 1), ["a+a", "aa+aa", "aa+a", "aaaa+aaa"]);
});

Deno.test("bpeMerges() makes no token of max_token_length bytes, as BpeTrainer does, but for pairs of bytes", () => {
  const words = { lowest: 5, aaaaaaaa: 3 }; // BpeTrainer gives these merges
  const all = ["a+a", "aa+aa", "e+s", "l+o", "w+es", "lo+wes", "lowes+t", "aaaa+aaaa"];
  assertEquals(mergesOf(words, 1, Infinity, 9), all);
  assertEquals(mergesOf(words, 1, Infinity, 8), all.slice(0, -1));
  assertEquals(mergesOf(words, 1, Infinity, 5), ["a+a", "aa+aa", "e+s", "l+o", "w+es", "wes+t"]);
  for (const length of [2, 3]) assertEquals(mergesOf(words, 1, Infinity, length), ["a+a", "e+s", "l+o"]);
});

Deno.test("bpeMerges() leaves out pairs that occur less often than min_frequency", () => {
  const words = { ab: 3, cd: 2, ef: 1 };
  assertEquals(mergesOf(words, 3), ["a+b"]);
  assertEquals(mergesOf(words, 2), ["a+b", "c+d"]);
  assertEquals(mergesOf(words, 4), []);
});

Deno.test("bpeMerges() of no words, or of words of one byte, is empty", () => {
  assertEquals(mergesOf({}, 1), []);
  assertEquals(mergesOf({ a: 9, b: 3 }, 1), []);
});

Deno.test("bpeMerges() gives the merges of the plain algorithm", () => {
  for (let seed = 1; seed <= 60; seed++) {
    let state = seed;
    const random = (below: number) => (mix(state++) >>> 0) % below;
    const letters = 2 + seed % 4, words: Record<string, number> = {};
    for (let n = 0; n < 40; n++) {
      const word = Array.from({ length: 1 + random(20) }, () => "abcdef"[random(letters)]).join("");
      words[word] = 1 + random(5);
    }
    const min_frequency = 1 + seed % 3;
    assertEquals(mergesOf(words, min_frequency, 150), plainMerges(words, min_frequency, 150), `seed ${seed}`);
  }
});

Deno.test("bpeMerges() learns from a word of a million bytes", () => {
  const word = new Uint8Array(1 << 20);
  for (let i = 0; i < word.length; i++) word[i] = "ACGT".charCodeAt(mix(i) & 3);
  const words = new WordCounts();
  assert(words.add(word, 0, word.length));
  const merges = bpeMerges(words, SAME, 2, Infinity);
  for (let n = 0; n < 2000; n++) assertEquals(merges.next().done, false);
});
