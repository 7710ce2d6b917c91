import { assertAlmostEquals, assertEquals, assertStringIncludes } from "@std/assert";
import { type Facts, trendOf, verdictOf } from "./health.ts";
import { Table } from "./table.ts";
import { metricsAt } from "./testing.ts";

type Line = Omit<ReturnType<typeof metricsAt>, "loss" | "grad_norm"> & {
  loss: number | null;
  grad_norm: number | null;
  ranks: { step_ms: number[]; memory_bytes: number[] };
};

const wobble = (step: number) => 0.01 * (step % 3 - 1);

/** A run of so many steps that falls slowly; change says what else it measured. */
function tableOf(steps: number, change: (step: number) => Partial<Line> = () => ({})): Table {
  const table = new Table();
  for (let step = 1; step <= steps; step++) {
    const { val_loss: _, ...line } = metricsAt(step);
    const made = {
      ...line,
      loss: 4 - step / 1000 + wobble(step),
      grad_norm: 1 + wobble(step),
      ...change(step),
    };
    table.append(JSON.stringify(made));
  }
  return table;
}

/** The sentence about a run of 1,000 steps of 5,000, as "level text", where something is changed. */
function about(facts: Partial<Facts>, change?: (step: number) => Partial<Line>, steps = 1000): string {
  const table = tableOf(steps, change);
  const { level, text } = verdictOf({
    ...{ state: "running", error: null, age_s: 1, step: steps, max_iters: 5000, loss: 3, grad_norm: 1 },
    ...{ trend: trendOf(table), val_loss: table.lastValLoss, best_val_loss: table.best?.val_loss ?? null },
    ...{ best_step: table.best?.step ?? null, skipped: 0, eta_s: null, bad_lines: 0, checkpoint: null },
    ...facts,
  }, table);
  return `${level} ${text}`;
}

const WELL =
  "loss is falling, 3.2% in 100 steps; the gradient norm is steady; speed is near its median of 20,480 tokens a second";

Deno.test("verdictOf() says that a run is healthy, and why", () => {
  assertEquals(about({ eta_s: 3480 }), `good Healthy: ${WELL}; 58 min left`);
  assertEquals(about({}, undefined, 12), "good Healthy: 12 steps so far");
  assertEquals(about({ step: 0, loss: null }, undefined, 0), "good It has begun: no step yet");
  assertEquals(
    about({ state: "finished", max_iters: 1000 }),
    "good Finished after 1,000 steps; loss was falling, 3.2% in 100 steps; the gradient norm is steady",
  );
});

Deno.test("verdictOf() tells a rising, a flat and a jumping loss", () => {
  const flat = () => ({ loss: 3 });
  assertStringIncludes(about({}, flat), "good Healthy: loss is flat over 100 steps; ");
  const noisy = (step: number) => ({ loss: 2 + 0.3 * Math.sin(7 * step) });
  assertStringIncludes(about({}, noisy), "good Healthy: loss is flat over 100 steps; ");
  const spiked = (step: number) => step === 850 ? { loss: 40 } : {};
  assertStringIncludes(about({}, spiked), "good Healthy: loss is falling, 3.2% in 100 steps; ");
  const wild = (step: number) => ({ loss: 2 + 1.5 * Math.sin(0.7 * step * step) }); // by chance 13% higher
  assertStringIncludes(about({}, wild), "good Healthy: loss is flat over 100 steps; ");
  const rising = (step: number) => ({ loss: 2 + step / 1000 + wobble(step) });
  assertStringIncludes(about({}, rising), "warn Worth a look: loss is rising, 3.5% in 100 steps; ");
  const jump = (step: number) => step > 985 ? { loss: 5 } : {};
  assertStringIncludes(about({}, jump), "warn Worth a look: loss has jumped: ");
});

Deno.test("trendOf() compares tenths of all steps, and knows none before 50", () => {
  assertEquals(trendOf(tableOf(49)), null);
  assertEquals(trendOf(tableOf(100, (step) => step > 90 ? { loss: null } : {})), null);
  const { is, change, steps } = trendOf(tableOf(1000))!;
  assertEquals([is, steps], ["falling", 100]);
  assertAlmostEquals(change, -0.1 / 3.15, 1e-3); // from a mean of 3.15 to one of 3.05
});

Deno.test("verdictOf() holds validation loss against training loss and against its best", () => {
  const near = (step: number) => step % 100 === 0 ? { loss: 3, val_loss: 3.09 } : { loss: 3 };
  assertStringIncludes(about({}, near), "; validation loss is 0.09 above training loss; ");
  const below = (step: number) => step % 100 === 0 ? { loss: 3, val_loss: 2.8 } : { loss: 3 };
  assertStringIncludes(about({}, below), "; validation loss is 0.20 below training loss; ");
  const over = (step: number) => step % 100 === 0 ? { val_loss: 3 + Math.abs(step - 400) / 1000 } : {};
  assertStringIncludes(
    about({}, over),
    "warn Worth a look: validation loss is 20.0% above its best, of step 400, while training loss falls: it overfits; ",
  );
  const both = (step: number) => ({ loss: 3, ...over(step) });
  assertStringIncludes(
    about({}, both),
    "warn Worth a look: validation loss is 20.0% above its best, of step 400; ",
  );
});

Deno.test("verdictOf() finds spikes of the gradient norm among the last tenth of the steps", () => {
  const one = (step: number) => step === 950 ? { grad_norm: 41 } : {};
  assertStringIncludes(
    about({}, one),
    "warn Worth a look: the gradient norm was 41 times its median at step 950; ",
  );
  const early = (step: number) => step < 20 ? { grad_norm: 41 } : {};
  assertStringIncludes(about({}, early), "good Healthy");
  const many = (step: number) => step % 30 === 0 ? { grad_norm: step / 50 } : {};
  assertStringIncludes(
    about({}, many),
    "the gradient norm jumped 3 times in the last 100 steps, to 20 times its median at step 990; ",
  );
});

Deno.test("verdictOf() holds the speed against its median; a single slow step is none of it", () => {
  const slow = (step: number) => step > 970 ? { tokens_per_sec: 10_240 } : {};
  const text = "speed is 50.0% below its median of 20,480 tokens a second";
  assertStringIncludes(about({}, slow), `warn Worth a look: ${text}; `);
  assertStringIncludes(about({}, (step) => step === 990 ? { tokens_per_sec: 10 } : {}), "good Healthy");
  const fast = (step: number) => step > 970 ? { tokens_per_sec: 30_720 } : {};
  assertStringIncludes(about({}, fast), "speed is 50.0% above its median");
});

Deno.test("verdictOf() names a rank that the others wait for, where it is slow in each of the last lines", () => {
  const said = (...step_ms: number[]) => ({ ranks: { step_ms, memory_bytes: step_ms.map(() => 1e9) } });
  const slow = () => said(100, 102, 135, 98);
  const text = "the other ranks wait for rank 2, whose own work takes 35.0% longer";
  assertStringIncludes(about({}, slow), `warn Worth a look: ${text}; `);
  assertStringIncludes(about({}, () => said(131, 100)), "wait for rank 0, whose own work takes 31.0% longer");
  assertStringIncludes(about({}, () => said(100, 102, 115, 98)), "good Healthy");
  assertStringIncludes(about({}, (step) => step === 998 ? said(100, 100, 100, 100) : slow()), "good Healthy");
  assertStringIncludes(about({}, (step) => step > 996 ? slow() : {}), "good Healthy"); // too few lines
  assertEquals(about({ state: "stopped" }, slow).includes(text), false);
});

Deno.test("verdictOf() names what is bad alone, the worst first", () => {
  const stalled = "bad Stalled: no step for 3 min, but the trainer is still there";
  assertEquals(about({ state: "stalled", age_s: 184 }), stalled);
  assertEquals(
    about({ loss: null, skipped: 1, bad_lines: 2 }),
    "bad In trouble: loss is not finite at step 1,000; 1 update was skipped, because loss or gradient norm was not finite; " +
      "2 lines of metrics.jsonl could not be read",
  );
  assertEquals(about({ grad_norm: null }), "bad In trouble: the gradient norm is not finite at step 1,000");
  const failed = { state: "failed", error: "The disk is full" } as const;
  const text = "Failed after step 1,000 of 5,000: The disk is full; ";
  assertEquals(about(failed), `bad ${text}no checkpoint was saved`);
  assertEquals(
    about({ ...failed, checkpoint: "step_000800" }),
    `bad ${text}--resume goes on from step_000800`,
  );
  const told = { ...failed, error: "Lost a rank; go on with --resume=auto", checkpoint: "step_000800" };
  assertEquals(about(told), "bad Failed after step 1,000 of 5,000: Lost a rank; go on with --resume=auto");
  assertEquals(
    about({ ...failed, loss: null, max_iters: null }),
    "bad Failed after step 1,000: The disk is full; no checkpoint was saved; loss is not finite at step 1,000",
  );
  assertStringIncludes(
    about({ state: "stopped", checkpoint: "step_000800" }),
    "warn Stopped after step 1,000 of 5,000; --resume goes on from step_000800; loss was falling, ",
  );
  assertStringIncludes(
    about({ skipped: 2 }),
    "warn Worth a look: 2 updates were skipped, because loss or gradient norm was not finite; loss is falling, ",
  );
});
