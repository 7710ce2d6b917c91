import { assertEquals } from "@std/assert";
import { logTicks } from "./plot.js";

Deno.test("logTicks() are round numbers, evenly spread where the axis is long and dense where it is short", () => {
  const round = (min: number, max: number) => logTicks(min, max).map((tick) => Number(tick.toPrecision(6)));
  assertEquals(round(2.5, 12), [3, 5, 7, 10]);
  assertEquals(round(0.001, 5), [0.001, 0.01, 0.1, 1]);
  assertEquals(round(3.1, 3.6), [3.1, 3.2, 3.3, 3.4, 3.5, 3.6]);
});
