import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { logTicks, reach, tickLabels, withMargin } from "./scale.js";

/** A curve with a value a step. */
function curve(y: number[], by = 1): { y: number[]; steps: number[] } {
  return { y, steps: y.map((_, i) => (i + 1) * by) };
}

const NOISE = Array.from({ length: 1000 }, (_, i) => 2 + 0.2 * Math.sin(7 * i));

Deno.test("reach() is all of a curve that nothing flattens", () => {
  const falling = Array.from({ length: 300 }, (_, i) => 1 + 4 / Math.sqrt(i + 1));
  for (const y of [falling, NOISE, [1, 2, 3], [5]]) {
    const all = { min: Math.min(...y), max: Math.max(...y), above: null, below: null };
    assertEquals(reach([curve(y)], {}), all);
  }
  assertEquals(reach([curve([NaN])], {}), null);
  assertEquals(reach([], {}), null);
});

Deno.test("reach() leaves out a spike, the first steps and a slow step, and says how far they go", () => {
  const spiked = NOISE.with(500, 40), dipped = NOISE.with(10, -30);
  for (const y of [spiked, dipped]) {
    const { min, max } = reach([curve(y)], {})!;
    assert(min > 1.5 && min < 1.9 && max > 2.1 && max < 2.5, `${min} to ${max}`);
  }
  assertEquals([reach([curve(spiked)], {})!.above, reach([curve(spiked)], {})!.below], [40, null]);
  assertEquals([reach([curve(dipped)], {})!.above, reach([curve(dipped)], {})!.below], [null, -30]);

  const long = Array.from({ length: 20_000 }, (_, i) => 3 + 8 * Math.exp(-i / 60) + NOISE[i % 1000]! / 10);
  const { max, above } = reach([curve(long)], {})!;
  assert(max < 4 && above! > 11, `${max}`); // the first 1% of the steps fell from 11 to 3.5

  const speed = NOISE.map((value) => 1000 * value).with(700, 9e4);
  assertAlmostEquals(reach([curve(speed)], { fromZero: true })!.max, 2400, 300);
  assertEquals(reach([curve(speed)], { fromZero: true })!.min, 0);
  const slow = NOISE.map((value) => 1000 * value).with(700, 3);
  assertEquals(reach([curve(slow)], { fromZero: true })!.below, null); // the axis goes down to it
});

Deno.test("reach() counts a point for as many steps as it stands for, and shows all where that is asked for", () => {
  const y = [...NOISE, ...Array(2000).fill(3.5)];
  const steps = [
    ...NOISE.map((_, i) => 1000 * (i + 1)),
    ...Array.from({ length: 2000 }, (_, i) => 1_000_001 + i),
  ];
  assert(reach([{ y: y.with(2999, 9), steps }], {})!.max < 3); // the last 2,000 are 0.2% of the run
  assertEquals(reach([curve(NOISE.with(500, 40))], { isWhole: true })!.max, 40);
});

Deno.test("reach() of several curves holds the better part of each", () => {
  const high = curve(NOISE.map((value) => value + 5)), low = curve(NOISE.with(3, 99).slice(0, 200));
  const { min, max, above } = reach([high, low], {})!;
  assertAlmostEquals(min, 1.8, 0.01);
  assertAlmostEquals(max, 7.2, 0.01);
  assertEquals(above, 99);
});

Deno.test("reach() of logarithms knows no values below zero, and no spike that they make small", () => {
  const { min, max } = reach([curve([-1, 0, 1, 10])], { isLog: true })!;
  assertAlmostEquals(min, 1, 1e-12);
  assertAlmostEquals(max, 10, 1e-12);
  const { above } = reach([curve(NOISE.with(500, 1e9))], { isLog: true })!;
  assertAlmostEquals(above!, 1e9, 1);
});

Deno.test("withMargin() leaves some room, and none below zero", () => {
  assertEquals(withMargin({ min: 0, max: 100 }, {}), [-6, 106]);
  assertEquals(withMargin({ min: 0, max: 100 }, { fromZero: true }), [0, 108]);
  assertEquals(withMargin({ min: 0, max: 0 }, { fromZero: true }), [0, 1]);
  assertEquals(withMargin({ min: 5, max: 5 }, {}), [4.5, 5.5]);
  assertEquals(withMargin({ min: 2, max: 2 }, { isLog: true }), [2 / 1.1, 2.2]);
});

Deno.test("logTicks() are round numbers, evenly spread where the axis is long and dense where it is short", () => {
  const round = (min: number, max: number) => logTicks(min, max).map((tick) => Number(tick.toPrecision(6)));
  assertEquals(round(2.5, 12), [3, 5, 7, 10]);
  assertEquals(round(0.001, 5), [0.001, 0.01, 0.1, 1]);
  assertEquals(round(3.1, 3.6), [3.1, 3.2, 3.3, 3.4, 3.5, 3.6]);
});

Deno.test("tickLabels() says what the ticks are, in the digits that all need", () => {
  assertEquals(tickLabels([4.5, 4.75, 5, 5.25]), ["4.50", "4.75", "5.00", "5.25"]);
  assertEquals(tickLabels([1, 1.5, 2]), ["1.0", "1.5", "2.0"]);
  assertEquals(tickLabels([0, 5, 10]), ["0", "5", "10"]);
  assertEquals(tickLabels([0.1, 0.2, 0.1 + 0.2]), ["0.1", "0.2", "0.3"]);
  assertEquals(tickLabels([2.5, 7.5, 12.5]), ["2.5", "7.5", "12.5"]);
  assertEquals(tickLabels([10_000, 12_500]), ["10,000", "12,500"]);
  assertEquals(tickLabels([0, 0.0025, 0.005]), ["0", "0.0025", "0.0050"]);
  assertEquals(tickLabels([0, 2.5e-5, 5e-5]), ["0", "2.5e-5", "5e-5"]);
  assertEquals(tickLabels([0.001, 0.01, 0.1, 1]), ["0.001", "0.01", "0.1", "1"]); // of a logarithmic axis
  assertEquals(tickLabels([]), []);
});

Deno.test("tickLabels() has a unit, and never two ticks of one name", () => {
  assertEquals(tickLabels([0, 500, 1000], "count"), ["0", "500", "1,000"]);
  assertEquals(tickLabels([0, 1000, 2000], "count"), ["0", "1k", "2k"]);
  assertEquals(tickLabels([10_000, 12_500], "count"), ["10.0k", "12.5k"]);
  assertEquals(tickLabels([1_250_000, 1_260_000], "count"), ["1.25M", "1.26M"]);
  assertEquals(tickLabels([1_255_000, 1_260_000], "count"), ["1,255,000", "1,260,000"]);
  assertEquals(tickLabels([0, 0.0025], "share"), ["0%", "0.25%"]);
  assertEquals(tickLabels([0, 0.2, 0.4], "share"), ["0%", "20%", "40%"]);
  assertEquals(tickLabels([0, 2.5e6, 5e6], "bytes"), ["0 MB", "2.5 MB", "5.0 MB"]);
  assertEquals(tickLabels([0, 5e9, 1e10], "bytes"), ["0 GB", "5 GB", "10 GB"]);
  assertEquals(tickLabels([0, 30, 750, 108_000, 105_300, 0.5], "time"), [
    ...["0 s", "30 s", "12 min 30 s", "1 d 6 h", "1 d 5 h 15 min", "0.5 s"],
  ]);
});
