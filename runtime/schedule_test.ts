// Learning rates by hand, and against torch's LambdaLR with the schedules of transformers (tests/oracle/schedules.py).
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import cases from "../tests/golden/schedules.json" with { type: "json" };
import { cosineSchedule, learningRate, plotSchedule, SCHEDULES } from "./schedule.ts";

Deno.test("cosineSchedule() warms up, falls along half a cosine and stays at the minimum", () => {
  const s = { learning_rate: 1, min_lr: 0.1, warmup_iters: 10, max_iters: 110 };
  const expected: [number, number][] = [[0, 0.1], [4, 0.5], [9, 1], [10, 1], [60, 0.55], [110, 0.1], [
    10_000,
    0.1,
  ]];
  for (const [step, rate] of expected) {
    assertAlmostEquals(cosineSchedule(step, s), rate, 1e-12, `step ${step}`);
  }
  assertAlmostEquals(cosineSchedule(35, s), 0.1 + 0.45 * (1 + Math.SQRT1_2), 1e-12); // a quarter of the way
});

Deno.test("cosineSchedule() works without warm-up and without decay", () => {
  const none = { learning_rate: 1, min_lr: 0.1, warmup_iters: 0, max_iters: 10 };
  assertEquals(cosineSchedule(0, none), 1);
  const constant = { learning_rate: 1, min_lr: 1, warmup_iters: 2, max_iters: 5 };
  assertEquals([0, 1, 2, 4, 5, 9].map((step) => cosineSchedule(step, constant)), [0.5, 1, 1, 1, 1, 1]);
  const warmupOnly = { learning_rate: 1, min_lr: 0.1, warmup_iters: 5, max_iters: 5 };
  assertEquals([4, 5].map((step) => cosineSchedule(step, warmupOnly)), [1, 0.1]);
});

Deno.test("learningRate() gives the rates of torch's LambdaLR, of every schedule", () => {
  assertEquals(new Set(cases.map(({ schedule }) => schedule)), new Set(SCHEDULES));
  for (const { rates, ...s } of cases) {
    rates.forEach((rate, step) => {
      assertAlmostEquals(learningRate(step, s), rate, 1e-15, `${JSON.stringify(s)}, step ${step}`);
    });
  }
});

Deno.test("learningRate() of wsd does not depend on max_iters before the cooldown", () => {
  const s = { schedule: "wsd", learning_rate: 0.1, min_lr: 0, warmup_iters: 3, cooldown_iters: 4 };
  const rates = (max_iters: number, n: number) =>
    Array.from({ length: n }, (_, step) => learningRate(step, { ...s, max_iters }));
  assertEquals(rates(10, 7), rates(20, 7)); // to the bit
  assertEquals(rates(20, 20), rates(20, 20).map((rate, step) => step === 19 ? 0.1 / 4 : rate));
});

Deno.test("plotSchedule() draws a schedule in the width that there is", () => {
  const s = {
    schedule: "wsd",
    learning_rate: 0.5,
    min_lr: 0,
    warmup_iters: 4,
    cooldown_iters: 4,
    max_iters: 12,
  };
  assertEquals(plotSchedule(s, 17), [
    "0.5 |   ''''''", // a quarter of 0.5 is 2.25 of 9 points
    "    |  '      '",
    "    | '        '",
    "    |.          .",
    "  0 |",
    "     1         12",
  ]);
  for (const schedule of SCHEDULES) {
    for (const width of [0, 20, 80]) {
      const lines = plotSchedule({ ...s, schedule, max_iters: 1, learning_rate: 0 }, width);
      assert(lines.every((line) => line.length <= Math.max(width, 5)), lines.join("\n"));
    }
  }
});
