import { assertEquals } from "@std/assert";
import { TextSet } from "./text_set.ts";

const utf8 = new TextEncoder();

Deno.test("TextSet knows which texts it has", () => {
  const set = new TextSet(), texts = Array.from({ length: 20_000 }, (_, i) => utf8.encode(`text ${i}`));
  for (const text of texts) assertEquals(set.add(text), true);
  for (const text of texts) assertEquals(set.add(text.slice()), false);
});

Deno.test("TextSet tells texts apart that differ in a bit, in zeros at the end or in the order of their words", () => {
  const set = new TextSet(), text = utf8.encode("abcdefgh");
  assertEquals(set.add(text), true);
  for (let bit = 0; bit < 64; bit++) {
    const other = text.slice();
    other[bit >> 3]! ^= 1 << (bit & 7);
    assertEquals(set.add(other), true);
  }
  for (let n = 0; n < 20; n++) assertEquals(set.add(new Uint8Array(n)), true);
  assertEquals(set.add(utf8.encode("efghabcd")), true);
});

Deno.test("TextSet has two hashes that do not collide together", () => {
  const set = new TextSet(), text = new Uint8Array(8), view = new DataView(text.buffer);
  for (let i = 0; i < 200_000; i++) { // about five pairs collide in each hash
    view.setUint32(0, 4096 * i, true);
    view.setUint32(4, i, true);
    assertEquals(set.add(text), true);
  }
});
