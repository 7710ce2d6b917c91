import { assertEquals } from "@std/assert";
import { formatBytes, formatCount, formatFlops, formatSeconds, formatShort, table } from "./format.ts";

Deno.test("formatCount() groups digits and rounds", () => {
  assertEquals([0, 999.4, 999.5, 1234567].map(formatCount), ["0", "999", "1,000", "1,234,567"]);
});

Deno.test("formatShort() has one digit behind the point from ten thousand on", () => {
  const numbers = [0, 9500.4, 9999, 10_000, 16_449, 999_900, 6_144_000, 2.62144e10, 1.3e12, 5e15];
  assertEquals(numbers.map(formatShort), [
    "0",
    "9,500",
    "9,999",
    "10.0k",
    "16.4k",
    "999.9k",
    "6.1M",
    "26.2B",
    "1.3T",
    "5000.0T",
  ]);
});

Deno.test("formatBytes() uses decimal units", () => {
  assertEquals([0, 4040, 12_300, 1e6, 9.94e6, 340.4e6, 1e9, 80.24e9].map(formatBytes), [
    "0.0 kB",
    "4.0 kB",
    "12 kB",
    "1.0 MB",
    "9.9 MB",
    "340 MB",
    "1.0 GB",
    "80.2 GB",
  ]);
});

Deno.test("formatFlops() has three digits or two", () => {
  assertEquals([0, 2.04e9, 9.94e9, 72.4e9, 999e9, 2.55e12, 989.4e12].map(formatFlops), [
    "0.0 GFLOP/s",
    "2.0 GFLOP/s",
    "9.9 GFLOP/s",
    "72 GFLOP/s",
    "999 GFLOP/s",
    "2.5 TFLOP/s",
    "989 TFLOP/s",
  ]);
});

Deno.test("formatSeconds() takes the unit that a time is shortest in", () => {
  assertEquals([0, 89, 90, 3600].map(formatSeconds), ["0 s", "89 s", "2 min", "60 min"]);
  assertEquals([5400, 11_520, 129_599].map(formatSeconds), ["1.5 h", "3.2 h", "36.0 h"]);
  assertEquals([129_600, 181_440].map(formatSeconds), ["1.5 d", "2.1 d"]);
});

Deno.test("table() aligns numbers to the right and words to the left", () => {
  assertEquals(
    table([["run", "step", "share"], ["a", "1,200", "4%"], ["long name", "7", "-0.5"]]),
    "run        step   share\na          1,200     4%\nlong name      7   -0.5",
  );
});
