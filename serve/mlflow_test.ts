// forward() against a server in this process that answers as MLflow's REST API does.
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { forward } from "./mlflow.ts";
import { FakeRun } from "./testing.ts";

type Call = { name: string; body: Record<string, unknown> };
type Metric = { key: string; value: number; step: number };

/** An MLflow server; fails: what it answers first, in place of 200. */
function mlflow(fails: number[] = []) {
  const calls: Call[] = [];
  const answers: Record<string, unknown> = {
    "experiments/search": {},
    "experiments/create": { experiment_id: "7" },
    "runs/create": { run: { info: { run_id: "abc" } } },
  };
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    const name = new URL(request.url).pathname.replace("/api/2.0/mlflow/", "");
    const status = fails.shift();
    if (status) return new Response("busy", { status });
    calls.push({ name, body: await request.json() });
    return Response.json(answers[name] ?? {});
  });
  const steps = () =>
    calls.flatMap(({ body }) => (body.metrics as Metric[] ?? [])).filter((m) => m.key === "loss");
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    calls,
    steps,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

Deno.test("forward() sends parameters and every step once, and how the run ended", async () => {
  using fake = new FakeRun(200);
  await using server = mlflow();
  const said = await forward(fake.dir, server.url, "words");
  assertMatch(said, /^sent \S+ up to step 200 to http\S+, run abc: \w+$/);
  assertEquals(server.calls.map(({ name }) => name).slice(0, 4), [
    ...["experiments/search", "experiments/create", "runs/create", "runs/log-batch"],
  ]);
  assertEquals(server.calls[1]!.body, { name: "words" });
  assertEquals(server.calls[2]!.body.experiment_id, "7");
  assertEquals(server.steps().map(({ step }) => step), Array.from({ length: 200 }, (_, i) => i + 1));
  const most = Math.max(...server.calls.map(({ body }) => (body.metrics as Metric[] ?? []).length));
  assertEquals([most <= 1000, server.calls.at(-1)!.name], [true, "runs/update"]);
  assertEquals(server.calls.at(-1)!.body.status, "KILLED"); // stopped
  await forward(fake.dir, server.url, "words"); // nothing is sent twice, nor another run made
  assertEquals([server.steps().length, server.calls.filter(({ name }) => name === "runs/create").length], [
    200,
    1,
  ]);
});

Deno.test("forward() follows a run at work, and gets over a server that is away", async () => {
  using fake = new FakeRun(2);
  fake.start(2);
  await using server = mlflow([503, 429, 500]);
  const waiting = forward(fake.dir, server.url, "loam", [1], 5);
  while (server.steps().length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  fake.steps(3, 4);
  while (server.steps().length < 4) await new Promise((resolve) => setTimeout(resolve, 5));
  fake.stop();
  await waiting;
  assertEquals(server.steps().map(({ step }) => step), [1, 2, 3, 4]);
});

Deno.test("forward() stops where trying again would change nothing", async () => {
  using fake = new FakeRun(2);
  await using server = mlflow([401]);
  const error = await assertRejects(() => forward(fake.dir, server.url, "loam"), UserError);
  assertMatch(error.message, /^Cannot send to http\S+experiments\/search: the server answers 401 busy$/);
});
