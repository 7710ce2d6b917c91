// deno task serve, and train --serve_port, as a user runs them.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { RawClient, statusOf } from "../serve/testing.ts";
import type { Health, History, Runs, Stats } from "../serve/types.ts";
import {
  dataset,
  freePort,
  freshPath,
  metrics,
  refuse,
  run,
  Running,
  SMALL,
  succeed,
  withFewFiles,
} from "./testing.ts";

const data = await dataset();
const finished = freshPath();
const TRAIN = [`--data_dir=${data}`, ...SMALL];
await succeed(
  "train",
  ...TRAIN,
  `--out_dir=${finished}`,
  "--max_iters=20",
  "--save_interval=20",
  "--sample_interval=20",
);

/** The JSON at an address; serve/openapi_test.ts holds its types against the answers. */
async function getJson<T = Stats>(url: string): Promise<T> {
  return await (await fetch(url)).json();
}

/** What deno task serve prints first, as the address that it serves at. */
async function addressOf(server: Running): Promise<string> {
  return /http\S+/.exec(await server.line("serving at ") ?? "")![0];
}

Deno.test("serve shows a finished run and lets others talk to its model, until SIGTERM", async () => {
  const server = new Running(
    "serve",
    "--run",
    finished,
    "--checkpoint",
    finished,
    "--device=cpu",
    "--port=0",
  );
  const url = await addressOf(server), name = finished.split("/").at(-1);
  const { state, step, sample, val_loss, config, versions, parameters } = await getJson(`${url}stats`);
  assertEquals([state, step, sample?.step, val_loss, config.max_iters], ["finished", 20, 20, null, 20]);
  assert(versions.loam && versions.deno && parameters! > 1000);
  assertEquals(
    (await getJson<History>(`${url}stats/history?key=loss`)).series.loss?.value,
    metrics(finished).map((m) => m.loss ?? null),
  );
  const body = JSON.stringify({ prompt: "Once", max_tokens: 5, temperature: 0 });
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  const { model, usage } = await (await fetch(`${url}v1/completions`, request)).json();
  assertEquals([model, usage.completion_tokens], [name, 5]);
  const events = await fetch(`${url}events?since=0`); // open connections do not hold it up
  server.signal("SIGTERM");
  assertMatch(await events.text(), /id: 20\n/);
  const { code, stderr } = await server.end();
  assertEquals(code, 0);
  assertMatch(stderr, /^note: the model has no chat template, [^\n]*\n$/);
});

Deno.test("serve refuses with one line what it cannot serve", async () => {
  assertMatch(await refuse("serve"), /^Cannot serve nothing: name a run or a directory of runs/);
  assertMatch(await refuse("serve", "--run", freshPath()), /^Cannot serve \S+: there is no such directory/);
  assertMatch(await refuse("serve", "--run", data), /^Cannot serve \S+: it holds no run/);
  assertMatch(await refuse("serve", "--checkpoint", data), /^Cannot find a checkpoint in/);
  assertMatch(
    await refuse("serve", "--run", finished, "--host", "0.0.0.0"),
    /^Cannot serve on 0\.0\.0\.0 without a token: .*LOAM_TOKEN/,
  );
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = taken.addr;
  assertMatch(
    await refuse("serve", "--run", finished, `--port=${port}`),
    new RegExp(
      `^Cannot serve on port ${port}: another program does already; choose another, such as --port=\\d+$`,
    ),
  );
  const { code, stdout } = await run("serve", "--help");
  assertEquals(code, 0);
  assertMatch(stdout, /--checkpoint=/);
});

Deno.test("serve gets over 300 half-open connections where 64 files may be open", async () => {
  const server = new Running(withFewFiles(64, "serve", "--run", finished, "--port=0"));
  const url = await addressOf(server);
  const slow = await Promise.all(
    Array.from({ length: 300 }, () => new RawClient(url).send("GET /stats HTTP/1.1\r\nHost: local")),
  );
  const meanwhile = await fetch(`${url}stats`); // waits for its turn
  assert(meanwhile.status === 200 || meanwhile.status === 503, `${meanwhile.status}`); // 503: no file can be opened now
  await meanwhile.body?.cancel();
  slow.forEach((client) => client[Symbol.dispose]());
  assertEquals((await getJson(`${url}stats`)).state, "finished");
  server.signal("SIGTERM");
  const { code, stderr } = await server.end();
  assertEquals(code, 0);
  assertMatch(
    stderr,
    /^warning: Cannot take more than \d+ connections: Too many open files \(os error 24\); those that wait are closed\n$/,
  );
});

Deno.test("serve shows the runs of a directory, and those that begin while it serves", async () => {
  const parent = freshPath();
  Deno.mkdirSync(parent);
  const server = new Running("serve", parent, "--port=0"), url = await addressOf(server);
  assertEquals(await statusOf(`${url}stats`), 404);
  for (const name of ["b", "a"]) {
    await succeed("train", ...TRAIN, `--out_dir=${parent}/${name}`, "--max_iters=2");
    assertEquals((await getJson(`${url}stats`)).run, name); // the one written last
  }
  const { runs } = await getJson<Runs>(`${url}runs`);
  assertEquals(runs.map(({ name, state }) => [name, state]), [["b", "finished"], ["a", "finished"]]);
  const listed: Runs = JSON.parse(await succeed("runs", parent, "--json"));
  const named = runs.map((run) => ({ ...run, name: `${parent}/${run.name}` }));
  assertEquals(listed.runs, named); // in the order in which they began, as here
  server.signal("SIGTERM");
  assertEquals((await server.end()).code, 0);
});

Deno.test("train --serve_port shows the run while it trains; then the port is free", async () => {
  const out = freshPath(), port = freePort();
  const trainer = new Running(
    "train",
    ...TRAIN,
    `--out_dir=${out}`,
    "--max_iters=100000",
    `--serve_port=${port}`,
  );
  assertEquals(await addressOf(trainer), `http://127.0.0.1:${port}/`);
  for (let i = 0; i < 50; i++) await trainer.line("step ");
  const stats = await getJson(`http://127.0.0.1:${port}/stats`);
  assert(stats.step >= 50 && stats.eta_s! > 0, JSON.stringify(stats));
  assertEquals([stats.state, stats.memory!.weights! > 0, stats.memory!.step! > 0], ["running", true, true]);
  const events = fetch(`http://127.0.0.1:${port}/events`).then((response) => response.text());
  await getJson(`http://127.0.0.1:${port}/stats`); // by now it listens to events
  for (let i = 0; i < 50; i++) await trainer.line("step ");
  trainer.signal("SIGTERM");
  assertMatch(await events, /event: step\n[^]*event: state\ndata: \{"state":"stopped"/);
  assertEquals((await trainer.end()).code, 0);
  Deno.listen({ hostname: "127.0.0.1", port }).close();
  assertMatch(
    Deno.readTextFileSync(`${out}/log.txt`),
    new RegExp(`^serving at http://127.0.0.1:${port}/$`, "m"),
  );
});

Deno.test("train goes on with a warning when its port is taken", async () => {
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const out = freshPath(), flags = ["--max_iters=3000", `--serve_port=${taken.addr.port}`];
  const { code, stderr } = await run("train", ...TRAIN, `--out_dir=${out}`, ...flags);
  assertEquals(code, 0);
  assertMatch(stderr, /^warning: Cannot serve on port \d+: [^\n]*; training goes on without the server\n$/);
  assertEquals(metrics(out).length, 3000);
  assertMatch(
    await refuse("train", ...TRAIN, `--out_dir=${freshPath()}`, "--serve_port=70000"),
    /^Cannot use --serve_port=70000: /,
  );
});

Deno.test("a trainer that is killed is seen to have failed, and to go on when it is resumed", async () => {
  const out = freshPath(), flags = [`--out_dir=${out}`, "--max_iters=100000", "--save_interval=20"];
  const trainer = new Running("train", ...TRAIN, ...flags);
  await trainer.line("saved ");
  const server = new Running("serve", "--run", out, "--port=0"), url = await addressOf(server);
  assertEquals((await getJson(`${url}stats`)).state, "running");
  trainer.signal("SIGKILL");
  await trainer.end();
  const { runs, reason } = await getJson<Health>(`${url}healthz`);
  assertEquals(runs[0]?.state, "failed");
  assertMatch(reason!, /^\S+ failed: its process ended without a word/);
  const resumed = new Running("train", `--resume=${out}`);
  await resumed.line("step ");
  const { state, started } = await getJson(`${url}stats`);
  assertEquals(state, "running");
  assert(Date.parse(started!) > 0);
  resumed.signal("SIGKILL");
  await resumed.end();
  Deno.removeSync(out, { recursive: true }); // while it is watched
  assertEquals(await statusOf(`${url}stats`), 410);
  assertEquals(await getJson<Runs>(`${url}runs`), { runs: [] });
  server.signal("SIGINT");
  assertEquals((await server.end()).code, 0);
});
