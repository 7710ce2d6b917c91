import { assert, assertEquals, assertMatch } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { type App, createApp } from "./app.ts";
import { ASSETS } from "./assets.ts";
import { Run } from "./runs.ts";
import { FACTS, FakeRun, metricsAt } from "./testing.ts";
import type { Failure, Health, History, Log, Runs, Samples, Stats } from "./types.ts";

/** What a path answers: status and JSON, which other tests hold against the document. */
async function get<T = Failure>(hono: App["hono"], path: string): Promise<[number, T]> {
  const response = await hono.request(path);
  return [response.status, await response.json()];
}

Deno.test("several runs are told apart by ?run=, the first is meant without", async () => {
  using a = new FakeRun(3, { name: "a" });
  using b = new FakeRun(5, { name: "b", config: { max_iters: 5 } });
  const { hono } = createApp({ runs: [a.run(), b.run()] });
  const [, { runs }] = await get<Runs>(hono, "/runs");
  const { loss, tokens_per_sec } = metricsAt(3);
  const { ended_at, ...first } = runs[0]!;
  assert(Math.abs(Date.parse(ended_at!) - Date.now()) < 60_000);
  assertEquals(first, {
    health: { level: "warn", text: "Stopped after step 3 of 1,000; no checkpoint was saved" },
    ...{ name: "a", state: "stopped", error: null, started: FACTS.started, step: 3, max_iters: 1000 },
    ...{ loss, val_loss: null, val_bpb: null, tokens_per_sec, eta_s: null, preset: "tiny" },
  });
  assertEquals([runs[1]?.name, runs[1]?.state], ["b", "finished"]);
  for (const [path, run] of [["/stats", "a"], ["/stats?run=a", "a"], ["/stats?run=b", "b"]] as const) {
    assertEquals((await get<Stats>(hono, path))[1].run, run);
  }
  assertEquals((await get<History>(hono, "/stats/history?run=b"))[1].series.loss?.step, [1, 2, 3, 4, 5]);
  assertEquals((await get<Log>(hono, "/log?run=b"))[1].run, "b");
});

Deno.test("GET /stats/history gives each key its own steps", async () => {
  using fake = new FakeRun(30);
  const { hono } = createApp({ runs: [fake.run()] });
  const [, { run, series }] = await get<History>(
    hono,
    "/stats/history?key=loss&key=val_loss&key=elapsed_s&points=4&since=9",
  );
  assertEquals(run, "fake");
  assertEquals(Object.keys(series), ["loss", "val_loss", "elapsed_s"]);
  assertEquals(series.loss?.step, [10, 11, 29, 30]);
  const evaluated = [10, 20, 30].map((step) => metricsAt(step).val_loss!);
  assertEquals(series.val_loss, { step: [10, 20, 30], value: evaluated, mean: evaluated });
  const [, part] = await get<History>(hono, "/stats/history?since=3&until=6");
  assertEquals(part.series.loss?.step, [4, 5, 6]);
});

Deno.test("GET /stats/history computes a key once, however often it is named", async () => {
  using fake = new FakeRun(100);
  const run = fake.run(), { hono } = createApp({ runs: [run] });
  await run.refresh();
  let count = 0;
  const column = run.table.column;
  run.table.column = (key) => {
    if (key === "loss") count++;
    return column.call(run.table, key);
  };
  await get<History>(hono, `/stats/history?${"key=loss&".repeat(200)}`);
  assertEquals(count, 1);
});

Deno.test("GET /log gives the last lines, without home directories", async () => {
  using fake = new FakeRun(1);
  fake.append("log.txt", "data_dir=/home/alice/data\nstep 1\nstep 2\n");
  const { hono } = createApp({ runs: [fake.run()] });
  assertEquals((await get<Log>(hono, "/log"))[1].lines, ["data_dir=~/data", "step 1", "step 2"]);
  assertEquals((await get<Log>(hono, "/log?lines=1"))[1].lines, ["step 2"]);
});

Deno.test("GET /samples gives all that the model wrote, the oldest first", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()] });
  assertEquals((await get<Samples>(hono, "/samples"))[1], { run: "fake", samples: [] });
  fake.sample(1, "Once");
  fake.append("samples.jsonl", "garbage\n");
  fake.sample(2, "Once\nupon");
  assertEquals((await get<Samples>(hono, "/samples?run=fake"))[1].samples, [
    { step: 1, text: "Once" },
    { step: 2, text: "Once\nupon" },
  ]);
});

Deno.test("GET /healthz is 503 with the reason where a run has failed, and 200 again when it goes on", async () => {
  using fake = new FakeRun(3, { name: "a" }), other = new FakeRun(3, { name: "b" });
  const { hono } = createApp({ runs: [fake.run(), other.run()] });
  const healthy = async () => {
    const [status, { healthy, reason, runs }] = await get<Health>(hono, "/healthz");
    return [status, healthy, reason, runs.map(({ state }) => state)];
  };
  assertEquals(await healthy(), [200, true, null, ["stopped", "stopped"]]);
  fake.start(3);
  fake.fail(new UserError("Cannot go on in /home/alice/runs/a: the disk is full"));
  const reason = "a failed: Cannot go on in ~/runs/a: the disk is full";
  assertEquals(await healthy(), [503, false, reason, ["failed", "stopped"]]);
  assertEquals((await get(hono, "/healthz?run=b"))[0], 200);
  other.start(3);
  other.kill();
  const killed = "b failed: its process ended without a word, as one that is killed does";
  assertEquals(await healthy(), [503, false, `${reason}; ${killed}`, ["failed", "failed"]]);
  for (const run of [fake, other]) run.start(3);
  assertEquals(await healthy(), [200, true, null, ["running", "running"]]);
  fake.stop();
  other.steps(4, 1000);
  other.stop();
  assertEquals(await healthy(), [200, true, null, ["stopped", "finished"]]);
});

Deno.test("GET /healthz is 503 where a trainer is there but no step came for long", async () => {
  using good = new FakeRun(3, { name: "good" });
  using bad = new FakeRun(3, { name: "bad" });
  const { hono } = createApp({ runs: [good.run(), bad.run()] });
  good.start(3);
  bad.start(3);
  assertEquals((await get(hono, "/healthz"))[0], 200);
  Deno.utimeSync(`${bad.dir}/metrics.jsonl`, Date.now() / 1000 - 100, Date.now() / 1000 - 100);
  const [status, { healthy, reason, runs }] = await get<Health>(hono, "/healthz");
  assertEquals([status, healthy, runs[1]?.state], [503, false, "stalled"]);
  assertMatch(reason!, /^bad is stalled: no step for 10\d s$/);
  assertEquals((await get(hono, "/healthz?run=good"))[0], 200);
  assertEquals((await get(hono, "/healthz?run=bad"))[0], 503);
  bad.stop();
  assertEquals((await get(hono, "/healthz"))[0], 200);
});

Deno.test("a path that takes another method says which, one that is unknown takes none, and HEAD is GET", async () => {
  using fake = new FakeRun(3);
  const { hono } = createApp({ runs: [fake.run()] });
  const ask = async (method: string, path: string) => {
    const response = await hono.request(path, { method });
    return [response.status, response.headers.get("Allow"), (await response.text()) !== ""];
  };
  for (
    const path of [
      "/",
      "/app.js",
      "/stats",
      "/stats/history",
      "/runs",
      "/log",
      "/events",
      "/metrics",
      "/healthz",
    ]
  ) {
    for (const method of ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"]) {
      assertEquals(await ask(method, path), [405, "GET, HEAD", true], `${method} ${path}`);
    }
    if (path !== "/events") assertEquals(await ask("HEAD", path), [200, null, false], path);
  }
  for (const method of ["GET", "PUT"]) {
    for (const path of ["/v1/completions", "/v1/chat/completions"]) {
      assertEquals(await ask(method, path), [405, "POST", true]);
    }
  }
  for (const method of ["GET", "POST", "PUT", "OPTIONS"]) {
    for (const path of ["/none", "/v1/chat", "/stats/", "/v1"]) {
      assertEquals(await ask(method, path), [404, null, true], `${method} ${path}`);
    }
    assertEquals((await ask("HEAD", "/none"))[0], 404);
  }
});

Deno.test("of runs that were found, the one written last is meant where none is named, and a failed one is no alarm", async () => {
  using a = new FakeRun(3, { name: "a" }),
    b = new FakeRun(5, { name: "b" }),
    c = new FakeRun(7, { name: "c" });
  const found = (fake: FakeRun) => new Run(fake.dir.split("/").at(-1)!, fake.dir, true);
  const runs = [found(a), found(b)], wait = [found(c)];
  const { hono } = createApp({ runs, look: () => runs.push(...wait.splice(0)) });
  const age = (fake: FakeRun, seconds: number) => {
    const then = Date.now() / 1000 - seconds;
    Deno.utimeSync(`${fake.dir}/metrics.jsonl`, then, then);
  };
  age(a, 300);
  age(b, 100);
  age(c, 200);
  assertEquals((await get<Stats>(hono, "/stats?run=c"))[1].step, 7); // found because it is asked for
  assertEquals((await get<Stats>(hono, "/stats"))[1].run, "b");
  age(a, 50);
  assertEquals((await get<Stats>(hono, "/stats"))[1].run, "a");
  b.start(5);
  b.kill();
  assertEquals([(await get(hono, "/healthz"))[0], (await get(hono, "/healthz?run=b"))[0]], [200, 503]);
  a.start(3);
  age(a, 1000);
  assertEquals((await get<Health>(hono, "/healthz"))[1].reason, "a is stalled: no step for 1000 s");
});

Deno.test("what cannot be answered is refused with one sentence, and the server goes on", async () => {
  using fake = new FakeRun(3);
  const { hono } = createApp({ runs: [fake.run()] });
  const huge = "9".repeat(400);
  const cases: [string, number, RegExp][] = [
    ["/nope", 404, /^There is no \/nope/],
    ["/stats/", 404, /^There is no/],
    ["/stats?run=other", 404, /^There is no run "other"/],
    ["/stats?run=../../etc", 404, /^There is no run/],
    ["/log?run=/etc/passwd", 404, /^There is no run/],
    ["/..%2f..%2fetc/passwd", 404, /^There is no/],
    ["/stats/history?key=secret", 400, /^There is no history of "secret": choose from step, loss/],
    ["/stats/history?key=", 400, /^There is no history/],
    ["/stats/history?key=__proto__", 400, /^There is no history/],
    ["/stats/history?points=1", 400, /^points must be a whole number from 2 to 20000/],
    ["/stats/history?points=1e9", 400, /^points must/],
    ["/stats/history?key=loss&key=lr&points=10001", 400, /^points must be a whole number from 2 to 10000/],
    [`/stats/history?points=${huge}`, 400, /^points must/],
    [`/stats/history?since=${huge}`, 400, /^since must/],
    ["/stats/history?since=-1", 400, /^since must/],
    ["/stats/history?since=%00", 400, /^since must/],
    ["/stats/history?until=now", 400, /^until must/],
    ["/log?lines=0", 400, /^lines must/],
    ["/log?lines=NaN", 400, /^lines must/],
    ["/events?since=x", 400, /^since must/],
    ["/events?run=other", 404, /^There is no run/],
    ["/healthz?run=other", 404, /^There is no run/],
  ];
  for (const [path, expected, sentence] of cases) {
    const [status, { error }] = await get(hono, path);
    assertEquals(status, expected, path);
    assertMatch(error.message, sentence);
    assertMatch(error.message, /^[^\n]+[^.\n]$/);
  }
  assertEquals((await get(hono, "/stats"))[0], 200);
});

Deno.test("a run that is removed while it is served is 410, and 200 when it is back", async () => {
  using fake = new FakeRun(3);
  const { hono } = createApp({ runs: [fake.run()] });
  assertEquals((await get(hono, "/stats"))[0], 200);
  Deno.renameSync(fake.dir, `${fake.dir}-gone`);
  const [status, { error }] = await get(hono, "/stats");
  assertEquals([status, error.message], [410, "The run fake is gone: its directory holds no run any more"]);
  assertEquals(await get<Runs>(hono, "/runs"), [200, { runs: [] }]);
  assertEquals(await (await hono.request("/metrics")).text(), "");
  assertEquals((await get(hono, "/healthz"))[0], 200);
  Deno.renameSync(`${fake.dir}-gone`, fake.dir);
  assertEquals((await get<Stats>(hono, "/stats"))[1].step, 3);
});

Deno.test("no file outside of the run is read, though a symbolic link in it leads there", async () => {
  using fake = new FakeRun(3);
  using other = new FakeRun(7, { name: "other" });
  other.append("log.txt", "a secret\n");
  for (const file of ["log.txt", "metrics.jsonl", "samples.jsonl", "run.json", "config.json"]) {
    try {
      Deno.removeSync(`${fake.dir}/${file}`);
    } catch {
      // no sample was written
    }
    Deno.symlinkSync(`${other.dir}/${file}`, `${fake.dir}/${file}`);
  }
  const { hono } = createApp({ runs: [fake.run()] });
  for (const path of ["/log", "/stats", "/stats/history"]) {
    assertEquals((await get(hono, path))[0], 410, path);
  }
});

Deno.test("an app without runs or a model says how to name them", async () => {
  const { hono } = createApp({ runs: [] });
  assertEquals(await get<Runs>(hono, "/runs"), [200, { runs: [] }]);
  const message =
    "There is no run here: deno task serve takes the names of runs, or of a directory that will hold some";
  assertEquals(await get(hono, "/stats"), [404, {
    error: { message, type: "invalid_request_error", param: null, code: null },
  }]);
  assertEquals(await get<unknown>(hono, "/v1/models"), [200, { object: "list", data: [] }]);
  const response = await hono.request("/v1/completions", { method: "POST", body: "{}" });
  assertEquals(
    (await response.json()).error.message,
    "There is no model here: deno task serve --checkpoint PATH has one",
  );
});

Deno.test("the dashboard's files are all served, each with its type", async () => {
  const { hono } = createApp({ runs: [] });
  const files = Array.from(Deno.readDirSync(new URL("dashboard", import.meta.url)), ({ name }) => name)
    .filter((name) => /\.(html|css|svg|js)$/.test(name) && !name.endsWith("_test.js"));
  for (const name of files) {
    const response = await hono.request(name === "index.html" ? "/" : `/${name.replace(/\.html$/, "")}`);
    assertEquals(response.status, 200, `${name} is missing in serve/assets.ts`);
    assertEquals(
      await response.text(),
      Deno.readTextFileSync(new URL(`dashboard/${name}`, import.meta.url)),
      name,
    );
    assertMatch(
      response.headers.get("Content-Type")!,
      /^(text\/(html|css|javascript)|image\/svg\+xml); charset=utf-8$/,
    );
  }
  assert(Object.keys(ASSETS).length >= files.length);
});
