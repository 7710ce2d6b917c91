import { assertAlmostEquals, assertEquals } from "@std/assert";
import { append, places, type Point, refined, smooth, stepsBetween, summary, truncate } from "./series.js";

/** A series with one value a step, from step 1 or `first` on. */
function series(values: number[], first = 1, by = 1): Point[] {
  return values.map((value, i) => ({ step: first + i * by, value, mean: value }));
}

Deno.test("append() adds only what is newer, and null as NaN", () => {
  const loss = series([3, 2]);
  append(loss, 2, 9);
  append(loss, 3, null);
  assertEquals(loss, series([3, 2, NaN]));
});

Deno.test("truncate() drops what came after a step, in every series", () => {
  const measured = { loss: series([3, 2, 1]), val_loss: series([2], 3) };
  truncate(measured, 2);
  assertEquals(measured, { loss: series([3, 2]), val_loss: [] });
});

Deno.test("refined() puts detail in the place of what was known of a range", () => {
  const measured = { loss: series([1, 2, 3, 4], 10, 10), lr: series([1]) };
  const detail = { loss: series([2.5, 2.6], 25, 1), val_loss: series([9], 25) };
  assertEquals(refined(measured, detail, { since: 19, until: 30 }), {
    loss: [...series([1], 10), ...series([2.5, 2.6], 25, 1), ...series([4], 40)],
    lr: series([1]),
    val_loss: series([9], 25),
  });
});

Deno.test("smooth() is a weighted mean from the first value on", () => {
  const [a, b, c] = smooth(series([4, 2, 6]), 0.5);
  assertEquals(a, 4);
  assertAlmostEquals(b!, (0.5 * 4 + 2) / 1.5); // weights 1/2 and 1
  assertAlmostEquals(c!, (0.25 * 4 + 0.5 * 2 + 6) / 1.75);
  assertEquals(smooth(series([5, 5, 5]), 0.99).map((value) => Number(value.toFixed(12))), [5, 5, 5]);
  assertEquals(smooth([], 0.5), []);
});

Deno.test("smooth() leaves out what is not finite", () => {
  assertEquals(smooth(series([4, NaN, 4]), 0.5), [4, NaN, 4]);
});

Deno.test("smooth() takes the means of down-sampled points, for as many steps as they stand for", () => {
  const means = Array.from({ length: 1001 }, (_, i) => Math.sin(i / 50));
  const dense = smooth(series(means, 1, 1), 0.9).at(-1)!; // one unit is a step
  const sparse = smooth(series(means, 1, 100).map((p) => ({ ...p, value: 99 })), 0.9).at(-1)!; // 100 steps
  assertAlmostEquals(dense, sparse, 1e-9);
});

Deno.test("places() puts steps on tokens and seconds, between and after what is known", () => {
  const measured = { tokens: series([100, 300], 10, 10), elapsed_s: series([5], 10) };
  assertEquals(places(series([0, 0, 0, 0], 5, 5), "step", measured), [5, 10, 15, 20]);
  assertEquals(places(series([0, 0, 0, 0, 0], 5, 5), "tokens", measured), [50, 100, 200, 300, 375]);
  assertEquals(places(series([0, 0, 0], 10, 10), "time", measured), [5, 10, 15]);
  assertEquals(places(series([0]), "time", {}), [1]);
});

Deno.test("stepsBetween() turns a range of an x axis back into steps", () => {
  const measured = { tokens: series([100, 300], 10, 10) };
  assertEquals(stepsBetween(12.5, 17.5, "step", measured), { since: 11, until: 18 });
  assertEquals(stepsBetween(150, 200, "tokens", measured), { since: 11, until: 15 });
  assertEquals(stepsBetween(0, 375, "tokens", measured), { since: 0, until: 25 });
});

Deno.test("summary() says where a curve begins, ends and has been", () => {
  const text = summary(series([3, NaN, 1, 2]), (value) => value.toFixed(1));
  assertEquals(
    text,
    "from 3.0 at step 1 to 2.0 at step 4, lowest 1.0 at step 3, highest 3.0 at step 1, with values that are not finite",
  );
  assertEquals(summary([], String), "no values yet");
});
