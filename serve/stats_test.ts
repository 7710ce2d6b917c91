import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { statsOf, summaryOf, withoutHome } from "./stats.ts";
import { CONFIG, FACTS, FakeRun, metricsAt } from "./testing.ts";

Deno.test("statsOf() says all there is to know of a run", async () => {
  using fake = new FakeRun(25);
  fake.sample(20, "Once upon");
  for (const name of ["step_000009", "step_000020", ".tmp_step_000025"]) {
    Deno.mkdirSync(`${fake.dir}/checkpoints/${name}`, { recursive: true });
  }
  const run = fake.run();
  await run.refresh();
  const { age_s, ended_at, ...stats } = statsOf(run);
  assert(age_s >= 0 && age_s < 60);
  assert(Math.abs(Date.parse(ended_at!) - Date.now()) < 60_000);
  const last = metricsAt(25), evaluated = metricsAt(20);
  assertEquals(stats, {
    run: "fake",
    state: "stopped",
    error: null,
    health: {
      level: "warn",
      text: "Stopped after step 25 of 1,000; --resume goes on from step_000020; " +
        "validation loss is 0.10 above training loss",
    },
    trend: null,
    started: FACTS.started,
    device: FACTS.device,
    model: FACTS.model,
    parameters: FACTS.parameters,
    step: 25,
    max_iters: 1000,
    epoch: 0.25,
    tokens: 51_200,
    loss: last.loss,
    val_loss: evaluated.val_loss!,
    val_bpb: evaluated.val_bpb!,
    best_val_loss: evaluated.val_loss!,
    best_step: 20,
    lr: last.lr,
    grad_norm: last.grad_norm,
    tokens_per_sec: 20_480,
    step_ms: 100,
    mfu: 0.5,
    memory_bytes: 123_000_000,
    memory: FACTS.memory,
    ranks: null,
    skipped: 0,
    elapsed_s: run.table.last("elapsed_s"),
    eta_s: null,
    bad_lines: 0,
    checkpoint: "step_000020",
    sample: { step: 20, text: "Once upon" },
    gpu: null,
    versions: FACTS.versions,
    config: CONFIG,
  });
  assertAlmostEquals(stats.elapsed_s, 2.5, 1e-9);
});

Deno.test("statsOf() of a run of another program has null for what is not known", async () => {
  using fake = new FakeRun(0);
  for (const file of ["run.json", "config.json"]) Deno.writeTextFileSync(`${fake.dir}/${file}`, "[]");
  const run = fake.run();
  await run.refresh();
  const stats = statsOf(run);
  assertEquals([stats.step, stats.loss, stats.max_iters, stats.epoch, stats.memory, stats.device], [
    0,
    null,
    null,
    null,
    null,
    null,
  ]);
  assertEquals(summaryOf(run).preset, null);
});

Deno.test("statsOf() shows the ranks of the last line that has them, and which is slowest", async () => {
  const said = { step_ms: [90, 97.5, 91], memory_bytes: [3e9, 1e9, 2e9] };
  using fake = new FakeRun(11, {
    metrics: (step) => ({ ...metricsAt(step), ...(step % 5 === 0 ? { ranks: said } : {}) }),
  });
  const run = fake.run();
  await run.refresh();
  assertEquals(statsOf(run).ranks, { slowest: 1, ...said });
  for (
    const ranks of [{}, 3, { step_ms: [1], memory_bytes: [] }, { step_ms: [1, "a"], memory_bytes: [1, 2] }]
  ) {
    fake.append("metrics.jsonl", JSON.stringify({ ...metricsAt(run.table.last("step") + 1), ranks }) + "\n");
    await run.refresh(); // of another program: the step counts, what it says of ranks does not
  }
  assertEquals([statsOf(run).step, statsOf(run).ranks!.slowest], [15, 1]);
});

Deno.test("eta_s counts evaluation and checkpoints, not the steps of earlier processes", async () => {
  using fake = new FakeRun(500);
  fake.start(500);
  fake.steps(501, 600); // 10 s in steps
  const started = new Date(Date.now() - 20_000).toISOString(); // 20 s in all
  Deno.writeTextFileSync(`${fake.dir}/run.json`, JSON.stringify({ ...FACTS, started, after: 500 }));
  const run = fake.run();
  await run.refresh();
  assertAlmostEquals(statsOf(run).eta_s!, 400 * 0.1 * 2, 1);
  fake.stop();
  await run.refresh();
  assertEquals(statsOf(run).eta_s, null);
});

Deno.test("withoutHome() hides whose directories they are", () => {
  const cases = [
    ["/home/alice/data/c4", "~/data/c4"],
    ["saved /home/alice/runs/a and /Users/bob/b", "saved ~/runs/a and ~/b"],
    ["/root/data", "~/data"],
    ["/root", "~"],
    ["C:\\Users\\carol\\data", "~\\data"],
    ["/rooted/data/c4 /srv/home", "/rooted/data/c4 /srv/home"],
    ["data_dir=/home/alice/x out=/root/y", "data_dir=~/x out=~/y"],
  ];
  for (const [text, expected] of cases) assertEquals(withoutHome(text), expected);
  assertEquals(withoutHome({ a: ["/home/alice"], b: { c: "/root/x" }, d: 1, e: null }), {
    a: ["~"],
    b: { c: "~/x" },
    d: 1,
    e: null,
  });
});
