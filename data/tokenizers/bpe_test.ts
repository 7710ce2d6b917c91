import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { Bpe, isSuperword } from "./bpe.ts";
import { ByteStrings } from "./byte_strings.ts";
import { PairTable } from "./pair_table.ts";
import { randomNumbers } from "./testing.ts";
import { TokenBuffer } from "./token_buffer.ts";

const utf8 = new TextEncoder();

/** All bytes, then the given tokens. */
function vocabulary(...tokens: string[]): ByteStrings {
  const strings = new ByteStrings(0, 0);
  for (let byte = 0; byte < 256; byte++) strings.push(Uint8Array.of(byte));
  for (const token of tokens) strings.push(utf8.encode(token));
  return strings;
}

/** Random tokens of a few letters, each made of two earlier ones. */
function randomVocabulary(random: (below: number) => number): ByteStrings {
  const tokens = ["a", "b", "c"];
  while (tokens.length < 40) {
    const token = tokens[random(tokens.length)]! + tokens[random(tokens.length)]!;
    if (token.length < 9 && !tokens.includes(token)) tokens.push(token);
  }
  return vocabulary(...tokens.slice(3));
}

function encode(bpe: Bpe, text: string): number[] {
  const bytes = utf8.encode(text), ids = new Uint32Array(bytes.length + 3);
  return Array.from(ids.subarray(3, bpe.encode(bytes, 0, bytes.length, ids, 3)));
}

/** Joins by OpenAI's rule as plainly as can be. */
function joinPlainly(tokens: ByteStrings, text: string): number[] {
  const ids = new Map<string, number>();
  for (let id = 0; id < tokens.length; id++) ids.set(new TextDecoder().decode(tokens.at(id)), id);
  const parts = Array.from(text);
  for (;;) {
    let least = Infinity, at = 0;
    for (let i = 0; i + 1 < parts.length; i++) {
      const id = ids.get(parts[i]! + parts[i + 1]!) ?? Infinity;
      if (id < least) [least, at] = [id, i];
    }
    if (least === Infinity) return parts.map((part) => ids.get(part)!);
    parts.splice(at, 2, parts[at]! + parts[at + 1]!);
  }
}

Deno.test("Bpe joins the pair of the lowest rank first, the leftmost of equals", () => {
  const bpe = new Bpe({ tokens: vocabulary("bc", "ab", "aa"), merges: null, wholePieces: false });
  assertEquals(encode(bpe, "abc"), [97, 256]);
  assertEquals(encode(bpe, "abab"), [257, 257]);
  assertEquals(encode(bpe, "aaa"), [258, 97]);
});

Deno.test("Bpe gives what joining one pair after the other gives, for pieces of every length", () => {
  const random = randomNumbers(3);
  for (let n = 0; n < 30; n++) {
    const tokens = randomVocabulary(random), bpe = new Bpe({ tokens, merges: null, wholePieces: false });
    for (const length of [1, 2, 3, 5, 8, 20, 31, 32, 33, 34, 60, 200, 400]) {
      const text = Array.from({ length }, () => "abc"[random(3)]).join("");
      const known = tokens.indexOf(utf8.encode(text)); // a token counts as one, however it would be joined
      if (known === undefined) assertEquals(encode(bpe, text), joinPlainly(tokens, text), text);
      assertEquals(encode(bpe, text), encode(bpe, text)); // again, from the table
    }
  }
});

Deno.test("Bpe joins listed pairs only, by their place in the list", () => {
  const tokens = vocabulary("ab", "bc", "abc"), merges = new PairTable(3);
  merges.set(98, 99, 1, 257); // b c
  merges.set(256, 99, 2, 258); // ab c
  merges.set(97, 98, 3, 256); // a b
  const bpe = new Bpe({ tokens, merges, wholePieces: false });
  assertEquals(encode(bpe, "abc"), [97, 257]);
  assertEquals(encode(bpe, "ab"), [256]);
  assertEquals(encode(new Bpe({ tokens, merges, wholePieces: true }), "abc"), [258]);
});

Deno.test("Bpe joins superwords as if it did not join words first", () => {
  const random = randomNumbers(9);
  for (let n = 0; n < 30; n++) {
    const texts = ["a", "b", " "], ids = [97, 98, 32], added: string[] = [], joins: [number, number][] = [];
    while (added.length < 60) { // 30 words, then 30 superwords
      const left = random(texts.length), right = random(texts.length), text = texts[left]! + texts[right]!;
      if (text.length > 12 || texts.includes(text) || isSuperword(utf8.encode(text)) !== added.length >= 30) {
        continue;
      }
      joins.push([ids[left]!, ids[right]!]);
      ids.push(256 + added.length);
      texts.push(text);
      added.push(text);
    }
    const tokens = vocabulary(...added), merges = new PairTable(60);
    for (const [rank, [left, right]] of joins.entries()) merges.set(left, right, rank + 1, 256 + rank);
    const inSteps = new Bpe({ tokens, merges, wholePieces: false, superwords: 31 });
    const atOnce = new Bpe({ tokens, merges, wholePieces: false });
    for (const length of [1, 10, 40, 300]) {
      const text = Array.from({ length }, () => "ab "[random(3)]).join("");
      assertEquals(encode(inSteps, text), encode(atOnce, text), text);
      assertEquals(encode(inSteps, text), encode(atOnce, text), text); // again, from the table
    }
  }
});

Deno.test("Bpe leaves out bytes without a token", () => {
  const tokens = new ByteStrings(0, 0);
  for (const token of ["a", "b", "ab"]) tokens.push(utf8.encode(token));
  const merges = new PairTable(1);
  merges.set(0, 1, 1, 2);
  assertEquals(encode(new Bpe({ tokens, merges, wholePieces: false }), "xaxbx"), [2]);
});

Deno.test("Bpe goes on when it has met more pieces than it can remember", () => {
  const tokens = vocabulary("ab", "bc"), bpe = new Bpe({ tokens, merges: null, wholePieces: true });
  for (let n = 0; n < 250_000; n++) encode(bpe, `ab${n}`);
  assertEquals(encode(bpe, "ab7"), [256, 55]);
  assertEquals(encode(bpe, "bc"), [257]);
});

Deno.test("TokenBuffer keeps its ids when it grows", () => {
  const buffer = new TokenBuffer(), n = 200_000; // it has room for 2^16 at first
  for (let id = 0; id < n; id++) buffer.push(id);
  buffer.reserve(1_000_000);
  assertEquals(buffer.ids.subarray(0, buffer.length), Uint32Array.from({ length: n }, (_, id) => id));
});

Deno.test("Bpe encodes a piece of a million letters", () => {
  const bpe = new Bpe({ tokens: vocabulary("ab", "abab"), merges: null, wholePieces: true });
  assertEquals(encode(bpe, "ab".repeat(500_000)), Array(250_000).fill(257));
});

Deno.test("Bpe refuses a piece that would need gigabytes", () => {
  const bpe = new Bpe({ tokens: vocabulary(), merges: null, wholePieces: true }), to = (1 << 26) + 1;
  const error = assertThrows(() => bpe.encode(new Uint8Array(to), 0, to, new Uint32Array(0), 0), UserError);
  assertStringIncludes(
    error.message,
    "Cannot encode a text of 67108865 bytes that the tokenizer cuts nowhere",
  );
});
