import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { main } from "./list.ts";
import { OPENAPI } from "./openapi.ts";
import { type Schema, violations } from "./testing_schema.ts";

const dir = Deno.makeTempDirSync();
Deno.test.afterAll(() => Deno.removeSync(dir, { recursive: true }));

/** What main() prints. */
async function printed(...args: string[]): Promise<string> {
  const log = console.log, lines: string[] = [];
  console.log = (text: string) => lines.push(text);
  try {
    await main(args);
  } finally {
    console.log = log;
  }
  return lines.join("\n");
}

function writeRun(name: string, started: string, steps: number, max_iters: number, end = {}): void {
  const run = `${dir}/${name}`;
  Deno.mkdirSync(run);
  Deno.writeTextFileSync(`${run}/config.json`, JSON.stringify({ max_iters, preset: "tiny" }));
  Deno.writeTextFileSync(`${run}/run.json`, JSON.stringify({ started, ...end }));
  Deno.writeTextFileSync(`${run}/log.txt`, "");
  const lines = Array.from({ length: steps }, (_, i) => ({
    step: i + 1,
    loss: 5 - i / 10,
    tokens: 100 * (i + 1),
    tokens_per_sec: 12345.6,
    step_ms: 10,
    ...(i === steps - 1 ? { val_loss: 4.25, val_bpb: 1.5 } : {}),
  }));
  Deno.writeTextFileSync(`${run}/metrics.jsonl`, lines.map((line) => JSON.stringify(line) + "\n").join(""));
}

Deno.test("main() lists runs by when they started, with what became of them", async () => {
  writeRun("b", "2026-01-01T10:00:00.000Z", 20, 20);
  writeRun("a", "2026-02-01T10:00:00.000Z", 3, 20);
  Deno.mkdirSync(`${dir}/no_run`);
  const [head, first, second, ...more] = (await printed(dir)).split("\n").map((line) =>
    line.trim().split(/ {2,}/)
  );
  assertEquals(head, [
    "run",
    "state",
    "step",
    "loss",
    "val loss",
    "bpb",
    "tok/s",
    "left",
    "preset",
    "started",
  ]);
  const b = [
    `${dir}/b`,
    "finished",
    "20/20",
    "3.1000",
    "4.2500",
    "1.5000",
    "12,346",
    "-",
    "tiny",
    "2026-01-01 10:00",
  ];
  const a = [
    `${dir}/a`,
    "stopped",
    "3/20",
    "4.8000",
    "4.2500",
    "1.5000",
    "12,346",
    "-",
    "tiny",
    "2026-02-01 10:00",
  ];
  assertEquals([first, second, more], [b, a, []]);
});

Deno.test("main() takes a run itself, and prints JSON as GET /runs has it", async () => {
  const { runs } = JSON.parse(await printed(`${dir}/a`, "--json"));
  assertEquals([runs[0].name, runs[0].state, runs[0].step, runs.length], [`${dir}/a`, "stopped", 3, 1]);
  const paths = OPENAPI.paths as unknown as Record<string, { get: { responses: Record<string, unknown> } }>;
  const { content } = paths["/runs"]!.get.responses[200] as { content: Record<string, { schema: Schema }> };
  for (const at of [`${dir}/a`, dir, `${dir}/no_run`]) {
    assertEquals(
      violations(JSON.parse(await printed(at, "--json")), content["application/json"]!.schema),
      [],
    );
  }
});

Deno.test("main() says why runs failed", async () => {
  writeRun("c", "2026-03-01T10:00:00.000Z", 3, 20, {
    state: "failed",
    error: "Cannot go on: a \x1b[2J\nlie",
  });
  writeRun("d", "2026-04-01T10:00:00.000Z", 3, 20, { state: "running" }); // and no process holds its log
  const lines = (await printed(dir)).split("\n");
  assertEquals(lines.slice(3, 5).map((line) => line.split(/ {2,}/)[1]), ["failed", "failed"]);
  assertEquals(lines.slice(5), [
    `${dir}/c failed: Cannot go on: a \\u001b[2J\\nlie`,
    `${dir}/d failed: its process ended without a word, as one that is killed does`,
  ]);
  for (const name of ["c", "d"]) Deno.removeSync(`${dir}/${name}`, { recursive: true });
});

Deno.test("main() shows what steers a terminal in the name of a run", async () => {
  writeRun("c\x1b[2J\nd", "2026-03-01T10:00:00.000Z", 1, 2);
  const shown = await printed(dir), name = `${dir}/c\\u001b[2J\\nd`;
  assertEquals([shown.split("\n").length, shown.split("\n")[3]!.slice(0, name.length)], [4, name]);
  Deno.removeSync(`${dir}/c\x1b[2J\nd`, { recursive: true });
});

Deno.test("main() says what to do where there is nothing, and what is wrong", async () => {
  assertMatch(await printed(`${dir}/no_run`), /^no runs in .*no_run; start one with: deno task train$/);
  assertEquals(
    (await assertRejects(() => main(["/nowhere/at/all"]), UserError)).message,
    "Cannot list the runs in /nowhere/at/all: No such file or directory; name a directory of runs",
  );
  assertEquals(
    (await assertRejects(() => main(["--jsn"]), UserError)).message,
    "Cannot use --jsn: there is no such flag; did you mean --json?",
  );
});
