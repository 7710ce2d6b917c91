import { assert, assertEquals } from "@std/assert";
import { CYCLE, Dealer, inTurn, permute, slotsOf } from "./order.ts";

Deno.test("permute() gives each number once, whatever n is", () => {
  for (const n of [1, 2, 3, 4, 5, 16, 17, 100, 257, 1000]) {
    const order = Array.from({ length: n }, (_, i) => permute(i, n, 7, 3));
    assertEquals(order.toSorted((a, b) => a - b), Array.from({ length: n }, (_, i) => i));
  }
});

Deno.test("permute() gives the same order everywhere, and others for other seeds and epochs", () => {
  const order = (seed: number, epoch: number) =>
    Array.from({ length: 10 }, (_, i) => permute(i, 10, seed, epoch));
  assertEquals(order(1337, 0), [0, 6, 7, 9, 2, 4, 8, 1, 5, 3]); // resuming old runs depends on it
  const orders = [order(1337, 0), order(1337, 1), order(1338, 0), order(1337 + 2 ** 32, 0)].map(String);
  assertEquals(new Set(orders).size, 4);
});

Deno.test("permute() moves every number to every place about equally often", () => {
  const n = 8, rounds = 8000, counts = Array.from({ length: n * n }, () => 0);
  for (let seed = 0; seed < rounds; seed++) {
    for (let i = 0; i < n; i++) counts[i * n + permute(i, n, seed, 0)]!++;
  }
  // Chi-squared with 49 degrees of freedom is below 86 in 999 of 1000 cases.
  const expected = rounds / n;
  const chi2 = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
  assert(chi2 < 86, `chi-squared ${chi2}`);
});

Deno.test("permute() leaves neighbours unrelated", () => {
  const n = 10_000, order = Array.from({ length: n }, (_, i) => permute(i, n, 5, 0));
  const near = order.filter((w, i) => i > 0 && Math.abs(w - order[i - 1]!) <= 10).length;
  assert(near < 50, `${near} of ${n} neighbours are still within 10`); // 20 by chance
});

Deno.test("slotsOf() shares a cycle by largest remainder", () => {
  assertEquals(slotsOf([0.8, 0.2]), [8000, 2000]);
  assertEquals(slotsOf([4, 1]), [8000, 2000]);
  assertEquals(slotsOf([1, 1, 1]), [3334, 3333, 3333]);
  assertEquals(slotsOf([2, 3, 2]), [2857, 4286, 2857]); // 2857.14, 4285.71, 2857.14
  assertEquals(slotsOf([0.00001, 1]), [0, 10_000]);
  for (const weights of [[0.7, 0.1, 0.1, 0.1], [1e-3, 1e3, 7], Array.from({ length: 60 }, (_, i) => i + 1)]) {
    const slots = slotsOf(weights), sum = weights.reduce((a, b) => a + b);
    assertEquals(slots.reduce((a, b) => a + b), CYCLE);
    slots.forEach((n, i) => assert(Math.abs(n - weights[i]! / sum * CYCLE) < 1));
  }
});

Deno.test("Dealer.deal() gives each part its slots in every cycle and numbers its samples in the order they come", () => {
  const slots = [7000, 2999, 1], dealer = new Dealer(slots), next = slots.map(() => 0);
  for (let cycle = 0; cycle < 3; cycle++) {
    for (let place = 0; place < CYCLE; place++) {
      const { part, index } = dealer.deal(cycle * CYCLE + place, 1337);
      assertEquals(index, next[part]!++);
    }
    assertEquals(next, slots.map((n) => n * (cycle + 1)));
  }
});

Deno.test("Dealer.deal() answers the same whatever it was asked before", () => {
  const samples = [0, 9_999, 10_000, 123_456_789, 5, 20_001], one = new Dealer([6000, 4000]);
  const fresh = (sample: number, seed: number) => new Dealer([6000, 4000]).deal(sample, seed);
  for (const sample of samples) {
    for (const seed of [1, 2]) assertEquals(one.deal(sample, seed), fresh(sample, seed));
  }
});

Deno.test("Dealer.deal() spreads a part over the cycle, differently for each cycle and seed", () => {
  const dealer = new Dealer([8000, 2000]);
  const parts = (first: number, seed: number) =>
    Array.from({ length: 1000 }, (_, i) => dealer.deal(first + i, seed).part);
  for (let first = 0; first < CYCLE; first += 1000) {
    const second = parts(first, 1337).reduce((a, b) => a + b);
    assert(second > 140 && second < 260, `${second} of 1000 samples at ${first} are of the second part`); // 200 +- 12
  }
  assertEquals(new Set([parts(0, 1), parts(CYCLE, 1), parts(0, 2)].map(String)).size, 3);
});

Deno.test("Dealer.deal() leaves the samples of a single part as they are", () => {
  assertEquals(new Dealer([CYCLE]).deal(123_456, 7), { part: 0, index: 123_456 });
});

Deno.test("inTurn() takes the first of each list, then the second of each, until none has any left", () => {
  const order = (...sizes: number[]) =>
    Array.from({ length: sizes.reduce((a, b) => a + b) }, (_, i) => {
      const { part, index } = inTurn(i, sizes);
      return "abc"[part]! + index;
    }).join(" ");
  assertEquals(order(3), "a0 a1 a2");
  assertEquals(order(2, 2), "a0 b0 a1 b1");
  assertEquals(order(1, 4, 2), "a0 b0 c0 b1 c1 b2 b3");
  assertEquals(order(0, 2), "b0 b1");
});
