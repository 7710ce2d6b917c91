import { assert, assertEquals } from "@std/assert";
import { Lengths } from "./lengths.ts";

function lengthsOf(values: number[]): Lengths {
  const lengths = new Lengths();
  values.forEach((value) => lengths.add(value));
  return lengths;
}

Deno.test("Lengths.quantile() is exact below 1024 and at most a thousandth too low above", () => {
  const values: number[] = [];
  for (let i = 0, x = 1; i < 500; i++, x = x * 1.04 + i % 7) values.push(Math.floor(x)); // up to 10^9
  const lengths = lengthsOf(values.toReversed()), sorted = values.toSorted((a, b) => a - b);
  for (const share of [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1]) {
    const exact = sorted[Math.max(1, Math.ceil(share * 500)) - 1]!, found = lengths.quantile(share);
    if (exact < 1024) assertEquals(found, exact);
    assert(found <= exact && found > exact * 0.999, `${share}: ${found} for ${exact}`);
  }
  assertEquals([lengths.least, lengths.most], [sorted[0], sorted.at(-1)]);
  assertEquals([lengths.count, lengths.sum], [500, values.reduce((a, b) => a + b)]);
});

Deno.test("Lengths.quantile() of one length is that length", () => {
  for (const length of [0, 1, 1023, 1024, 1025, 123_457, 2 ** 33 + 5]) {
    for (const share of [0, 0.5, 1]) assertEquals(lengthsOf([length]).quantile(share), length);
  }
});

Deno.test("Lengths.octaves() counts between powers of two", () => {
  assertEquals(lengthsOf([]).octaves(), []);
  assertEquals(lengthsOf([0, 0, 1, 2, 3, 4, 7, 8]).octaves(), [2, 1, 2, 2, 1]);
  for (const power of [9, 10, 11, 20, 31, 32, 40]) {
    const octaves = lengthsOf([2 ** power - 1, 2 ** power, 2 ** power + 1]).octaves();
    assertEquals([octaves.length, octaves[power], octaves[power + 1]], [power + 2, 1, 2]);
  }
});
