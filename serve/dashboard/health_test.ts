import { assertEquals } from "@std/assert";
import type { Stats } from "./api.js";
import { warnings } from "./health.js";

const WELL: Stats = {
  ...{
    run: "r",
    state: "running",
    error: null,
    started: null,
    ended_at: null,
    age_s: 1,
    device: null,
    model: null,
    step: 10,
    max_iters: 100,
  },
  ...{
    epoch: null,
    tokens: 1,
    loss: 2,
    val_loss: null,
    best_val_loss: null,
    best_step: null,
    lr: 1,
    grad_norm: 1,
  },
  ...{
    tokens_per_sec: 1,
    step_ms: 1,
    mfu: null,
    memory_bytes: 1,
    memory: null,
    skipped: 0,
    elapsed_s: 1,
    eta_s: 1,
  },
  ...{ bad_lines: 0, checkpoint: null, sample: null, gpu: null, versions: {}, config: {} },
};

/** The warnings about a run that is well but for something, as "level text". */
function about(change: Partial<Stats>, losses: number[] = []): string[] {
  const loss = losses.map((value, i) => ({ step: i + 1, value, mean: value }));
  return warnings({ ...WELL, ...change }, loss).map(({ level, text }) => `${level} ${text}`);
}

Deno.test("warnings() has nothing to say of a run that is well, has not begun or is finished", () => {
  assertEquals(about({}), []);
  assertEquals(about({ step: 0, loss: null, grad_norm: null }), []);
  assertEquals(about({ state: "finished", step: 100 }), []);
});

Deno.test("warnings() names what is wrong, the worst first", () => {
  assertEquals(about({ state: "stalled", age_s: 184, loss: null, skipped: 1, bad_lines: 2 }), [
    "bad No step for 3 min 4 s, but the trainer is still there",
    "bad Loss is not finite at step 10",
    "warn 1 update was skipped, because loss or gradient norm was not finite",
    "warn 2 lines of metrics.jsonl could not be read",
  ]);
  assertEquals(about({ grad_norm: null }), ["bad The gradient norm is not finite at step 10"]);
  assertEquals(about({ state: "stopped" }), [
    "warn Stopped after step 10 of 100; no checkpoint was saved",
  ]);
  assertEquals(about({ state: "stopped", checkpoint: "step_000008" }), [
    "warn Stopped after step 10 of 100; --resume goes on from step_000008",
  ]);
  const failed = { state: "failed", error: "The disk is full" } as const;
  assertEquals(about({ ...failed, loss: null, max_iters: null }), [
    "bad Failed after step 10: The disk is full; no checkpoint was saved",
    "bad Loss is not finite at step 10",
  ]);
  assertEquals(about({ ...failed, checkpoint: "step_000008" }), [
    "bad Failed after step 10 of 100: The disk is full; --resume goes on from step_000008",
  ]);
});

Deno.test("warnings() tells a rising loss from a noisy one", () => {
  const noise = Array.from({ length: 200 }, (_, i) => 2 + 0.3 * Math.sin(7 * i));
  assertEquals(about({}, noise), []);
  const rising = noise.map((value, i) => value + (i < 180 ? 0 : 0.5));
  assertEquals(about({}, rising).map((text) => text.replace(/[\d.]+%/, "N%")), [
    "warn Loss is rising: N% more than 20 steps ago",
  ]);
});
