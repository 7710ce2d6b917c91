import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { UserError } from "../base/errors.ts";
import type { Change, Run } from "./runs.ts";
import { FakeRun, metricsAt } from "./testing.ts";

/** What a run tells from now on, in short. */
function listen(run: Run): unknown[] {
  const heard: unknown[] = [];
  run.listeners.add((change: Change) => {
    if (change.kind === "steps") heard.push(...change.lines.map(({ step }) => step));
    else heard.push(change);
  });
  return heard;
}

/** Writes when metrics.jsonl was written last, in seconds before now. */
function age(fake: FakeRun, seconds: number): void {
  const then = Date.now() / 1000 - seconds;
  Deno.utimeSync(`${fake.dir}/metrics.jsonl`, then, then);
}

Deno.test("refresh() tells each step once, samples and changes of state", async () => {
  using fake = new FakeRun(3);
  const run = fake.run();
  await run.refresh();
  assertEquals([run.table.last("step"), run.state, run.sample], [3, "stopped", null]);
  const heard = listen(run);
  fake.start(3);
  await run.refresh();
  fake.steps(4, 5);
  fake.append("metrics.jsonl", JSON.stringify(metricsAt(6)).slice(0, 50)); // half-written
  fake.sample(5, "Once");
  await run.refresh();
  await run.refresh();
  fake.append("metrics.jsonl", JSON.stringify(metricsAt(6)).slice(50) + "\n");
  await run.refresh();
  const running = { kind: "state", state: "running" };
  assertEquals(heard, [running, 4, 5, { kind: "sample", sample: { step: 5, text: "Once" } }, 6]);
});

Deno.test("refresh() tells up to which step a resumed run is as it was", async () => {
  using fake = new FakeRun(20);
  const run = fake.run();
  await run.refresh();
  const heard = listen(run);
  fake.start(12);
  fake.append("metrics.jsonl", JSON.stringify({ ...metricsAt(13), step_ms: 99.5 }) + "\n");
  await run.refresh();
  assertEquals(heard.slice(0, 2), [{ kind: "reset", after: 12 }, 13]);
  assertEquals([run.table.last("step"), run.table.last("step_ms")], [13, 99.5]);
});

Deno.test("refresh() has listeners read the history again where a resumed run has gone far already", async () => {
  using fake = new FakeRun(20);
  const run = fake.run();
  await run.refresh();
  const heard = listen(run);
  fake.start(12);
  fake.append("metrics.jsonl", JSON.stringify({ ...metricsAt(13), step_ms: 99.5 }) + "\n");
  fake.steps(14, 5000);
  await run.refresh();
  assertEquals(heard.slice(0, 2), [{ kind: "reset", after: 12 }, { kind: "resync" }]);
});

Deno.test("refresh() tells all steps of a burst", async () => {
  using fake = new FakeRun(1, { config: { max_iters: 1e6 } });
  const run = fake.run();
  await run.refresh();
  const heard = listen(run);
  fake.steps(2, 9000);
  await run.refresh();
  assertEquals(heard, Array.from({ length: 8999 }, (_, i) => i + 2));
});

Deno.test("refresh() gets over garbage and says how much there was", async () => {
  using fake = new FakeRun(2);
  fake.append("metrics.jsonl", '\0\0\0 not json\n{"step":\n');
  fake.append("samples.jsonl", "nonsense\n");
  fake.append("run.json", "}");
  fake.steps(3, 4);
  const run = fake.run();
  await run.refresh();
  assertEquals([run.table.last("step"), run.table.badLines, run.sample, run.facts], [4, 2, null, {}]);
});

Deno.test("a run that is removed while it is watched is gone, and comes back", async () => {
  using fake = new FakeRun(5);
  const run = fake.run();
  await run.refresh();
  const heard = listen(run);
  Deno.renameSync(fake.dir, `${fake.dir}-elsewhere`);
  await run.refresh();
  assertEquals([run.exists, run.table.length, heard], [false, 0, [{ kind: "reset", after: 0 }]]);
  Deno.renameSync(`${fake.dir}-elsewhere`, fake.dir);
  await run.refresh();
  assertEquals([run.exists, run.table.length], [true, 5]);
});

Deno.test("a run whose directory becomes a symbolic link is gone", async () => {
  using fake = new FakeRun(5);
  const run = fake.run();
  Deno.renameSync(fake.dir, `${fake.dir}-elsewhere`);
  Deno.symlinkSync(`${fake.dir}-elsewhere`, fake.dir);
  await run.refresh();
  assertEquals([run.exists, run.table.length, run.logLines(5)], [false, 0, []]);
});

Deno.test("the state of a run: a lock tells whether its trainer is there, the age of the last step whether it works", async () => {
  using fake = new FakeRun(50);
  const run = fake.run();
  const state = async (seconds: number) => {
    age(fake, seconds);
    await run.refresh();
    assertAlmostEquals(run.age_s, seconds, 2);
    return run.state;
  };
  assertEquals(await state(5), "stopped");
  fake.start(50);
  assertEquals(await state(25), "running"); // 10 times the median of 0.1 s, but 30 s at least
  assertEquals(await state(35), "stalled");
  const slow = Array.from({ length: 101 }, (_, i) => ({ ...metricsAt(51 + i), step_ms: 20_000 }));
  fake.append("metrics.jsonl", slow.map((line) => JSON.stringify(line) + "\n").join(""));
  assertEquals(await state(195), "running");
  assertEquals(await state(205), "stalled");
  fake.steps(152, 1000);
  assertEquals(await state(1), "running"); // the last checkpoint is being saved
  fake.stop();
  assertEquals(await state(1), "finished");
});

Deno.test("a run that failed says why, and one that was killed that it said nothing", async () => {
  using fake = new FakeRun(5);
  const run = fake.run();
  const now = async () => {
    await run.refresh();
    return [run.state, run.error];
  };
  assertEquals(await now(), ["stopped", null]);
  fake.start(5);
  assertEquals(await now(), ["running", null]);
  fake.fail(new UserError("Cannot go on after step 5: the loss is not finite"));
  assertEquals(await now(), ["failed", "Cannot go on after step 5: the loss is not finite"]);
  fake.start(5);
  fake.kill();
  assertEquals(await now(), ["failed", "its process ended without a word, as one that is killed does"]);
  const facts = JSON.parse(Deno.readTextFileSync(`${fake.dir}/run.json`));
  for (const error of [undefined, null, 7, {}]) {
    Deno.writeTextFileSync(`${fake.dir}/run.json`, JSON.stringify({ ...facts, state: "failed", error }));
    assertEquals(await now(), ["failed", "the reason is not known"]);
  }
  Deno.writeTextFileSync(`${fake.dir}/run.json`, JSON.stringify({ ...facts, state: undefined })); // an older trainer
  assertEquals(await now(), ["stopped", null]);
  fake.steps(6, 1000);
  assertEquals(await now(), ["finished", null]);
});

Deno.test("a trainer that starts or ends while its run is read is never taken for one that was killed", async () => {
  using fake = new FakeRun(5);
  const run = fake.run(), states = new Set<string>();
  for (let i = 0; i < 30; i++) {
    const reading = run.refresh(); // reads lock, run.json and metrics in turns with what follows
    if (i % 2 === 0) fake.start(5);
    else fake.stop();
    await reading;
    states.add(run.state);
  }
  assertEquals([...states].filter((state) => state !== "running" && state !== "stopped"), []);
});

Deno.test("a run is running for ten minutes before its first step", async () => {
  using fake = new FakeRun(0);
  fake.start(0);
  const run = fake.run();
  age(fake, 500);
  await run.refresh();
  assertEquals([run.state, run.table.last("step")], ["running", 0]);
  age(fake, 700);
  await run.refresh();
  assertEquals(run.state, "stalled");
});

Deno.test("a server that looks at a run does not keep its trainer from starting", async () => {
  using fake = new FakeRun(5);
  const run = fake.run();
  const looking = setInterval(() => run.refresh(), 0);
  for (let i = 0; i < 20; i++) {
    await new Promise((resolve) => setTimeout(resolve, 2));
    fake.start(5);
    fake.stop();
  }
  clearInterval(looking);
  await run.refresh();
  assert(run.exists);
});

Deno.test("medianStep_ms() is the middle of the last hundred steps, however they are ordered", async () => {
  using fake = new FakeRun(0);
  const run = fake.run();
  assertEquals(run.medianStep_ms(), NaN);
  const append = (...times: (number | null)[]) => {
    const first = run.table.length + 1;
    const lines = times.map((step_ms, i) => ({ ...metricsAt(first + i), step_ms }));
    fake.append("metrics.jsonl", lines.map((line) => JSON.stringify(line) + "\n").join(""));
    return run.refresh();
  };
  await append(100, 9, 30, null);
  assertEquals(run.medianStep_ms(), 30);
  await append(...Array(60).fill(7), ...Array(41).fill(1000));
  assertEquals(run.medianStep_ms(), 7); // 60 of the last 101
});

Deno.test("refresh() while a large file is read waits for the same end, and tells what happened once", async () => {
  using fake = new FakeRun(6000);
  const run = fake.run();
  await run.refresh();
  const kinds: string[] = [];
  run.listeners.add(({ kind }) => kinds.push(kind));
  const lines = Array.from({ length: 9000 }, (_, i) => ({ ...metricsAt(i + 1), step_ms: 50 }));
  const text = lines.map((line) => JSON.stringify(line) + "\n").join("");
  assert(text.length > 2 ** 20); // more than is read at a time
  Deno.writeTextFileSync(`${fake.dir}/metrics.jsonl`, text);
  const first = run.refresh();
  await run.refresh();
  assertEquals([run.table.length, kinds], [9000, ["reset", "resync"]]);
  await first;
  assertEquals(kinds.length, 2);
});
