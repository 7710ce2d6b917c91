import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import {
  linesFromEnd,
  logOfRank,
  memoryBytes,
  type RunFacts,
  RunLog,
  type StepMetrics,
  truncateMetrics,
} from "./metrics.ts";
import { openTestDevice } from "./testing.ts";

openTestDevice();

const METRICS: StepMetrics = {
  step: 120,
  loss: 4.321,
  lr: 2.9e-4,
  grad_norm: 0.8142,
  tokens: 1_966_080,
  tokens_per_sec: 18432.4,
  step_ms: 888.9,
  mfu: 0.3811,
  memory_bytes: 1.23e9,
  skipped: 0,
};

/** A run directory that is removed at the end of the block. */
function runDirectory(): { dir: string } & Disposable {
  const dir = Deno.makeTempDirSync();
  return { dir, [Symbol.dispose]: () => Deno.removeSync(dir, { recursive: true }) };
}

Deno.test({
  name: "RunLog appends one object a step, and lines of text, across restarts",
  fn: () => {
    using run = runDirectory();
    const dir = `${run.dir}/runs/a`;
    {
      using log = new RunLog(dir, "{}\n");
      log.step(METRICS);
      assertThrows(() => new RunLog(dir, "{}\n", 120), UserError, `process ${Deno.pid} on `);
    }
    using again = new RunLog(dir, "{}\n", 120);
    again.step({ ...METRICS, step: 121, val_loss: 4.4 });
    const lines = Deno.readTextFileSync(`${dir}/metrics.jsonl`).trimEnd().split("\n").map((line) =>
      JSON.parse(line)
    );
    assertEquals(lines, [METRICS, { ...METRICS, step: 121, val_loss: 4.4 }]);
    assertEquals(Deno.readTextFileSync(`${dir}/log.txt`), "");
  },
});

/** run.json without its times. */
function runJson(dir: string): Record<string, unknown> {
  const { started: _, ended_at, ...rest } = JSON.parse(Deno.readTextFileSync(`${dir}/run.json`));
  return { ...rest, hasEnded: ended_at !== null };
}

const FACTS = { started: "2026-01-02T03:04:05.000Z", device: "cpu" } as RunFacts;

Deno.test("RunLog lets nothing that it is told forge a line or steer a terminal", () => {
  using run = runDirectory();
  const print = console.log, printed: string[] = [];
  console.log = (text: string) => printed.push(text);
  try {
    using log = new RunLog(`${run.dir}/a`, "{}\n", 0);
    log.line("writing to a\nstep 9 | loss 0.0\x1b[1A");
    log.sample(5, "Once\n---\nstep 7 | loss 0.0\r\n\tend \x1b]0;title\x07\u202e");
  } finally {
    console.log = print;
  }
  const wanted = [
    "writing to a\\nstep 9 | loss 0.0\\u001b[1A",
    "--- sample after step 5",
    "| Once",
    "| ---",
    "| step 7 | loss 0.0\\u000d",
    "| \tend \\u001b]0;title\\u0007\\u202e",
    "---",
  ].join("\n");
  assertEquals(printed.join("\n"), wanted);
  assertEquals(Deno.readTextFileSync(`${run.dir}/a/log.txt`), `${wanted}\n`);
  const { text } = JSON.parse(Deno.readTextFileSync(`${run.dir}/a/samples.jsonl`)); // a file keeps it as it is
  assertEquals(text, "Once\n---\nstep 7 | loss 0.0\r\n\tend \x1b]0;title\x07\u202e");
});

Deno.test("RunLog says in run.json that the run is running, and then how it ended", () => {
  using run = runDirectory();
  using log = new RunLog(`${run.dir}/a`, "{}\n", 0);
  log.describe(FACTS);
  const running = { device: "cpu", state: "running", error: null, hasEnded: false };
  assertEquals(runJson(log.dir), running);
  log.end("finished");
  assertEquals(runJson(log.dir), { ...running, state: "finished", hasEnded: true });
  log.describe(FACTS); // another process goes on
  log.fail(new UserError("Cannot go on after step 5: too hot"));
  logOfRank(1, log.dir).fail(new UserError("Cannot go on: rank 0 is gone")); // a consequence
  const failed = { ...running, state: "failed", hasEnded: true };
  assertEquals(runJson(log.dir), { ...failed, error: "Cannot go on after step 5: too hot" });
  assertEquals(
    Deno.readTextFileSync(`${log.dir}/log.txt`),
    "error: Cannot go on after step 5: too hot\nerror: rank 1: Cannot go on: rank 0 is gone\n",
  );
  log.describe(FACTS);
  logOfRank(1, log.dir).fail(new TypeError("x is not a function\nat all"));
  assertEquals(runJson(log.dir), { ...failed, error: "rank 1: TypeError: x is not a function\\nat all" });
});

Deno.test("RunLog records what ends the process outside of its main function", async () => {
  for (
    const [name, uncaught] of Object.entries({
      error: 'setTimeout(() => { throw new TypeError("a timer\'s") })',
      unhandledrejection: 'Promise.reject(new TypeError("a promise\'s"))',
    })
  ) {
    using run = runDirectory();
    const program = `
      import { RunLog } from "${new URL("metrics.ts", import.meta.url)}";
      const log = new RunLog("${run.dir}", "{}", 0);
      log.describe({ device: "cpu" });
      ${uncaught};
    `;
    const args = ["eval", program];
    const { code } = await new Deno.Command(Deno.execPath(), { args, stderr: "null" }).output();
    assertEquals(code, 1);
    const { state, error } = runJson(run.dir), whose = name === "error" ? "a timer's" : "a promise's";
    assertEquals([state, error], ["failed", `TypeError: ${whose}`]);
  }
});

Deno.test("truncateMetrics() drops later steps and a half-written last line", () => {
  using run = runDirectory();
  const path = `${run.dir}/metrics.jsonl`,
    line = (step: number) => JSON.stringify({ ...METRICS, step }) + "\n";
  const [one, two, three] = [1, 2, 3].map(line) as [string, string, string];
  const cases: [before: string, step: number, after: string][] = [
    [one + two + three, 2, one + two],
    [one + two + three.slice(0, 40), 3, one + two],
    [one + two + '{"step":3}'.slice(0, -1), 3, one + two],
    [one + two + "12", 3, one + two], // JSON, but no step
    [one + two + "null\n", 3, one + two],
    [one + two + '{"step":-1}\n{"step":2.5}\n{"step":"3"}\n', 3, one + two], // no steps
    [one + two, 0, ""],
    ["", 5, ""],
  ];
  for (const [before, step, after] of cases) {
    Deno.writeTextFileSync(path, before);
    truncateMetrics(run.dir, step);
    assertEquals(Deno.readTextFileSync(path), after);
  }
  assertEquals([...Deno.readDirSync(run.dir)].map(({ name }) => name), ["metrics.jsonl"]);
});

Deno.test("truncateMetrics() of a run without metrics does nothing", () => {
  using run = runDirectory();
  assertEquals(truncateMetrics(run.dir, 3), { last: 0, sampled: 0 });
  assertEquals([...Deno.readDirSync(run.dir)].length, 0);
});

Deno.test("truncateMetrics() reads the ends of files that are larger than any string", () => {
  using run = runDirectory();
  for (const name of ["metrics.jsonl", "samples.jsonl"]) {
    const path = `${run.dir}/${name}`;
    Deno.writeTextFileSync(path, "");
    Deno.truncateSync(path, 3e9); // takes no room on the disk
    Deno.writeTextFileSync(path, '\n{"step":7}\n{"step":8}\n{"step":9}\n{"st', { append: true });
  }
  assertEquals(truncateMetrics(run.dir, 8), { last: 8, sampled: 8 });
  assertEquals(Deno.statSync(`${run.dir}/metrics.jsonl`).size, 3e9 + '\n{"step":7}\n{"step":8}\n'.length);
});

Deno.test("linesFromEnd() gives the lines of a file backwards, whatever the pieces that it reads", () => {
  using run = runDirectory();
  const path = `${run.dir}/lines`;
  for (
    const text of [
      "",
      "\n",
      "a",
      "a\n",
      "\n\na\n",
      "one\n\ntwo, and longer\nthree\ncut",
      "x".repeat(40) + "\ny\n",
    ]
  ) {
    Deno.writeTextFileSync(path, text);
    const whole = text.split("\n").slice(0, -1); // the last one has no line feed
    let end = 0;
    const expected = whole.map((text) => ({ text, end: end += text.length + 1 })).reverse();
    for (const chunk_bytes of [1, 2, 3, 7, 1000]) {
      assertEquals([...linesFromEnd(path, chunk_bytes)], expected, JSON.stringify([text, chunk_bytes]));
    }
  }
});

Deno.test("RunLog says which steps metrics.jsonl lacks, and ends a line of the log that was cut short", () => {
  const line = (step: number) => JSON.stringify({ ...METRICS, step }) + "\n";
  const cases = [[4, "steps 3 to 4"], [3, "step 3"], [2, undefined], [1, undefined]] as const;
  for (const [after, missing] of cases) {
    using run = runDirectory();
    Deno.writeTextFileSync(`${run.dir}/metrics.jsonl`, line(1) + line(2) + line(3).slice(0, 9));
    Deno.writeTextFileSync(`${run.dir}/log.txt`, "step 1 | lo");
    new RunLog(run.dir, "{}\n", after)[Symbol.dispose]();
    const said = missing ? [`metrics.jsonl has no ${missing}`] : [];
    assertEquals(Deno.readTextFileSync(`${run.dir}/log.txt`).split("\n"), ["step 1 | lo", ...said, ""]);
  }
});

Deno.test("memoryBytes() is of the right order", () => {
  assert(memoryBytes() > 1e6);
});
