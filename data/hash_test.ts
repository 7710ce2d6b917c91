import { assert, assertEquals } from "@std/assert";
import { bytesFraction, murmur3 } from "./hash.ts";

/** Values of MurmurHash3_x86_32 as published with other implementations. */
const published: [string, number, number][] = [
  ["", 0, 0],
  ["", 1, 0x514e28b7],
  ["", 0xffffffff, 0x81f16f39],
  ["a", 0x9747b28c, 0x7fa09ea6],
  ["aa", 0x9747b28c, 0x5d211726],
  ["aaa", 0x9747b28c, 0x283e0130],
  ["aaaa", 0x9747b28c, 0x5a97808a],
  ["Hello, world!", 0x9747b28c, 0x24884cba],
  ["ππππππππ", 0x9747b28c, 0xd58063c1],
  ["The quick brown fox jumps over the lazy dog", 0x9747b28c, 0x2fa826cd],
];

Deno.test("murmur3() gives the published values, wherever the bytes stand", () => {
  for (const [text, seed, hash] of published) {
    const bytes = new TextEncoder().encode(`xyz${text}z`);
    assertEquals(murmur3(bytes, 3, bytes.length - 1, seed), hash, text);
  }
});

Deno.test("bytesFraction() spreads texts evenly over [0, 1)", () => {
  const bytes = new TextEncoder().encode("0123456789".repeat(20));
  let below = 0;
  for (let from = 0; from < 100; from++) {
    for (let to = from; to < from + 100; to++) if (bytesFraction(bytes, from, to, from) < 0.3) below++;
  }
  assert(Math.abs(below / 10_000 - 0.3) < 0.02, `${below}`);
});
