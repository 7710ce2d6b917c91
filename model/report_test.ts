import { assertEquals, assertMatch } from "@std/assert";
import type { StepMetrics } from "../runtime/metrics.ts";
import { StepLines } from "./report.ts";

const METRICS: StepMetrics = {
  step: 1,
  loss: 4.321,
  lr: 2.9e-4,
  grad_norm: 0.81,
  tokens: 1000,
  tokens_per_sec: 0,
  step_ms: 0,
  mfu: null,
  memory_bytes: 1.23e9,
  skipped: 0,
};

Deno.test("StepLines.line() has the means since the last line, of time where it is a rate", () => {
  let now = 0;
  const lines = new StepLines({ max_iters: 12, before: 0, evaluates: true, flops_per_token: 2e6 }, () => now);
  const step = (
    step: number,
    loss: number,
    grad_norm: number,
    step_ms: number,
    mfu: number | null,
    skipped = 0,
  ) => {
    now += step_ms;
    const m = { ...METRICS, step, loss, grad_norm, step_ms, tokens_per_sec: 1e6 / step_ms, mfu, skipped };
    lines.add(m); // 1000 tokens
    return m;
  };
  step(1, 5, 1, 100, 0.8);
  step(2, 4, 2, 100, 0.8);
  const third = { ...step(3, 3, 6, 800, 0.1), val_loss: 2 }; // 3000 tokens in 1 s, 0.08 + 0.08 + 0.08 of the peak
  const said =
    "step  3/12 | loss 4.0000 | val 2.0000 | norm 3.00 | 3,000 tok/s | 24% MFU, 6.0 GFLOP/s | 3 s left"; // 9 steps of 1/3 s
  assertEquals(lines.text(third), said);
  assertEquals(lines.line(third), said);
  assertEquals(
    lines.line(step(4, 7, 10, 500, null)), // 8 steps of 1.5 s / 4
    "step  4/12 | loss 7.0000 |            | norm 10.00 | 2,000 tok/s | MFU n/a, 4.0 GFLOP/s | 3 s left",
  );
  step(5, 6, 3, 100, null);
  assertEquals(
    lines.line(step(6, NaN, Infinity, 100, 0.5, 1)), // aligned with the widest before
    "step  6/12 | loss 6.0000 |            | norm 3.00  | 10,000 tok/s | 25% MFU, 20 GFLOP/s  | 2 s left | 1 skipped",
  );
  assertMatch(
    lines.line(step(7, NaN, Infinity, 100, null, 2)),
    /^step {2}7\/12 \| loss NaN {4}\| .* norm Infinity \| /,
  );
  assertMatch(
    lines.line(step(12, 1, 1, 200, null)),
    / \| 5,000 tok\/s {2}\| MFU n\/a, 10 GFLOP\/s {2}\| 2 s$/,
  ); // what it took
  assertMatch(lines.text({ ...third, val_bpb: 0.98765 }), / \| val 2\.0000, 0\.9877 bpb \| /);
});

Deno.test("StepLines counts the time left from the steps of this process, and has no val where none is computed", () => {
  let now = 0;
  const lines = new StepLines(
    { max_iters: 1000, before: 900, evaluates: false, flops_per_token: 2e6 },
    () => now,
  );
  now = 60_000; // ten steps, evaluation and saving included
  const m = { ...METRICS, step: 910, step_ms: 1000, tokens_per_sec: 1000 };
  lines.add(m);
  assertEquals(
    lines.line(m),
    "step  910/1000 | loss 4.3210 | norm 0.81 | 1,000 tok/s | MFU n/a, 2.0 GFLOP/s | 9 min left",
  );
});
