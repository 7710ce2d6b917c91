// deno task serve: shows runs in a browser and to programs. It reads run directories only and never needs the trainer.
import { type Context, Hono } from "hono";
import { ASSETS } from "./serve/assets.ts";
import { Events } from "./serve/events.ts";
import { history } from "./serve/history.ts";
import type { Run } from "./serve/runs.ts";
import { statsOf, summaryOf, withoutHome } from "./serve/stats.ts";
import { type Failure, type History, type Key, KEYS, type Log, type Runs } from "./serve/types.ts";

/** What an app serves. */
export type AppOptions = { runs: Run[] };

const MOST_POINTS = 20_000, MOST_LOG_LINES = 1000;

/** The routes. close() ends the connections of GET /events, which last until then. */
export function createApp({ runs }: AppOptions): { app: Hono; close: () => void } {
  const app = new Hono(), events = new Events();
  app.onError((error, c) => {
    if (error instanceof Refusal) return fail(c, error.status, error.message);
    console.error(error);
    return fail(c, 500, "The server made a mistake; its log says more");
  });
  app.notFound((c) => fail(c, 404, `There is no ${c.req.path}; GET /openapi.json lists what there is`));

  for (const [path, { type, text }] of Object.entries(ASSETS)) {
    app.get(
      path,
      (c) => c.body(text, 200, { "Content-Type": `${type}; charset=utf-8`, "Cache-Control": "no-cache" }),
    );
  }
  app.get("/runs", async (c) => {
    await Promise.all(runs.map((run) => run.refresh()));
    return c.json({ runs: runs.filter(({ exists }) => exists).map(summaryOf) } satisfies Runs);
  });
  app.get("/stats", async (c) => c.json(statsOf(await findRun(c, runs))));
  app.get("/stats/history", async (c) => {
    const run = await findRun(c, runs), keys = c.req.queries("key") ?? ["loss"];
    const points = wholeParameter(c, "points", 1000, 2, MOST_POINTS);
    const since = wholeParameter(c, "since", 0, 0, Number.MAX_SAFE_INTEGER);
    const series = keys.map((key) => [requireKey(key), history(run.table, requireKey(key), points, since)]);
    return c.json({ run: run.name, series: Object.fromEntries(series) } satisfies History);
  });
  app.get("/log", async (c) => {
    const run = await findRun(c, runs), count = wholeParameter(c, "lines", 100, 1, MOST_LOG_LINES);
    return c.json({ run: run.name, lines: withoutHome(run.logLines(count)) } satisfies Log);
  });
  app.get("/events", async (c) => {
    const run = await findRun(c, runs);
    const since = c.req.header("Last-Event-ID") ?? c.req.query("since");
    const body = await events.stream(run, since === undefined ? undefined : Number(since));
    const headers = { "Content-Type": "text/event-stream", "Cache-Control": "no-store, no-transform" };
    return c.body(body, 200, headers);
  });
  return { app, close: () => events.close() };
}

/** An answer other than 200 for a request that cannot be served. The message is one sentence. */
class Refusal extends Error {
  constructor(readonly status: 400 | 404 | 410, message: string) {
    super(message);
  }
}

function fail(c: Context, status: 400 | 404 | 410 | 500, message: string): Response {
  return c.json({ error: { message } } satisfies Failure, status);
}

async function findRun(c: Context, runs: Run[]): Promise<Run> {
  const name = c.req.query("run") ?? runs[0]?.name;
  const run = runs.find((run) => run.name === name);
  if (!run) {
    throw new Refusal(
      404,
      `There is no run ${name}: here are ${runs.map(({ name }) => name).join(", ")}`,
    );
  }
  await run.refresh();
  if (!run.exists) {
    throw new Refusal(410, `The run ${name} is gone: its directory holds no metrics.jsonl any more`);
  }
  return run;
}

function requireKey(name: string): Key {
  const key = KEYS.find((key) => key === name);
  if (!key) throw new Refusal(400, `There is no history of ${name}: choose from ${KEYS.join(", ")}`);
  return key;
}

function wholeParameter(c: Context, name: string, fallback: number, least: number, most: number): number {
  const text = c.req.query(name);
  if (text === undefined) return fallback;
  const value = /^\d{1,16}$/.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new Refusal(400, `Cannot use ${name}: it must be a whole number from ${least} to ${most}`);
}

if (import.meta.main) {
  const { Run } = await import("./serve/runs.ts");
  const runs = Deno.args.map((dir) => new Run(dir.split("/").at(-1)!, Deno.realPathSync(dir)));
  const { app } = createApp({ runs });
  Deno.serve({ port: 8000, hostname: "127.0.0.1" }, app.fetch);
}
