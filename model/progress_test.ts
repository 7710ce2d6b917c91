// Progress with a clock and an optimizer of the test's own.
import { assertEquals } from "@std/assert";
import { open } from "../ffi/library.ts";
import { Ranks } from "../dist/ranks.ts";
import type { StepMetrics } from "../runtime/metrics.ts";
import { Progress, type ProgressParts } from "./progress.ts";

open("cpu", { threads: 2 });

Deno.test("Progress counts to a step the time since the last result, or since skipTime()", async () => {
  const now = performance.now;
  let clock_ms = 0;
  performance.now = () => clock_ms;
  try {
    const result = {
      loss: 1,
      grad_norm: 1,
      skipped: 0,
      skipped_row: 0,
      updates: 1,
      stopping: 0,
      learning_rate: 1,
    };
    const config = {
      batch_size: 1,
      gradient_accumulation_steps: 1,
      block_size: 8,
      max_iters: 9,
      log_interval: 1,
    };
    const more = { eval_interval: 1, save_interval: 0, sample_interval: 0, debug: "", out_dir: "", seed: 1 };
    const shape = { vocab_size: 9, n_layer: 1, n_embd: 8, n_head: 1, n_kv_head: 1, head_dim: 8, n_inner: 8 };
    const parts = {
      config: { ...config, ...more, max_skipped: 0, learning_rate: 1 },
      c: { ...shape, block_size: 8, rope_theta: 1e4, norm_eps: 1e-6, tie_word_embeddings: true },
      data: { order: () => "" },
      optimizer: { keepResult() {}, nextResult: () => Promise.resolve(result) },
      ranks: Ranks.alone(),
      stop: { isAgreed: () => false },
      log: { describe() {} },
      peak: undefined,
      facts: {},
      saved: undefined,
    };
    const progress = new Progress(parts as unknown as ProgressParts), metrics: StepMetrics[] = [];
    clock_ms = 100;
    metrics.push((await progress.after(1))!.metrics);
    clock_ms = 5000; // an evaluation
    progress.skipTime();
    clock_ms = 5030;
    metrics.push((await progress.after(2))!.metrics);
    assertEquals(metrics.map(({ step_ms, tokens_per_sec }) => [step_ms, tokens_per_sec]), [
      [100, 80],
      [30, 8 / 0.03],
    ]);
  } finally {
    performance.now = now;
  }
});
