// The routes: what is asked for by which path, and how it is found.
import { type Context, Hono } from "hono";
import { access, HEALTH } from "./access.ts";
import { ASSETS } from "./assets.ts";
import { chatCompletions } from "./chat_completions.ts";
import { noModel } from "./completion_request.ts";
import { completions } from "./completions.ts";
import { Events } from "./events.ts";
import { history } from "./history.ts";
import type { Model } from "./model.ts";
import { OPENAPI } from "./openapi.ts";
import { prometheusText } from "./prometheus.ts";
import { explainFailure, Refusal } from "./refusal.ts";
import type { Run } from "./runs.ts";
import { statsOf, summaryOf, withoutHome } from "./stats.ts";
import {
  type Health,
  type History,
  type Key,
  KEYS,
  type Log,
  type Runs,
  type Samples,
  type Series,
} from "./types.ts";

/** What an app serves. */
export type AppOptions = {
  runs: Run[]; // the first is meant where a request names none; of those that were found, the one written last
  look?: () => void; // adds new ones to runs
  model?: Model | undefined;
  token?: string | undefined; // that requests need
  origins?: readonly string[]; // whose pages may use the server, beside its own
};

/**
 * The routes. close() ends what lasts: live events and texts that are being written.
 *
 * @internal since `deno doc --lint` takes Hono, a type of the package hono, for a private one
 */
export type App = { hono: Hono; close: () => void };

const MOST_POINTS = 20_000, MOST_LOG_LINES = 1000, MOST_CLIENTS = 250;

/** Makes the app. It listens nowhere yet; requests may be given to hono.request(). */
export function createApp({ runs, look = () => {}, model, token, origins }: AppOptions): App {
  const hono = new Hono(), events = new Events();
  hono.onError(explainFailure);
  hono.notFound((c) => explainFailure(noRoute(hono, c.req), c));
  hono.use(access(token, origins));
  const findRun = (c: Context) => runAskedFor(c, runs, look), refreshAll = () => refresh(runs, look);

  for (const path of Object.keys(ASSETS)) {
    hono.get(path, (c) => {
      const isPrompt = path === "/" && model !== undefined && runs.length === 0; // there is nothing else to show
      const { type, text } = ASSETS[isPrompt ? "/prompt" : path]!;
      return c.body(text, 200, { "Content-Type": `${type}; charset=utf-8`, "Cache-Control": "no-cache" });
    });
  }
  hono.get("/openapi.json", (c) => c.json(OPENAPI));

  hono.get("/runs", async (c) => {
    const present = await refreshAll();
    return c.json({ runs: present.map(summaryOf) } satisfies Runs);
  });
  hono.get("/stats", async (c) => c.json(statsOf(await findRun(c))));
  hono.get("/stats/history", async (c) => c.json(historyOf(c, await findRun(c))));
  hono.get("/log", async (c) => {
    const run = await findRun(c), count = wholeNumber(c, "lines", 100, 1, MOST_LOG_LINES);
    return c.json({ run: run.name, lines: withoutHome(run.logLines(count)) } satisfies Log);
  });
  hono.get("/samples", async (c) => {
    const run = await findRun(c);
    return c.json({ run: run.name, samples: run.samples() } satisfies Samples);
  });
  hono.get("/events", async (c) => {
    const run = await findRun(c);
    if (events.count >= MOST_CLIENTS) {
      throw new Refusal(503, `${MOST_CLIENTS} clients follow runs already`, {
        headers: { "Retry-After": "10" },
      });
    }
    const headers = { "Content-Type": "text/event-stream", "Cache-Control": "no-store, no-transform" };
    return c.body(events.stream(run, lastSeen(c)), 200, headers);
  });

  hono.get("/metrics", async (c) => {
    const type = "text/plain; version=0.0.4; charset=utf-8";
    return c.body(prometheusText(await refreshAll()), 200, { "Content-Type": type });
  });
  hono.get(HEALTH, async (c) => {
    const isAsked = c.req.query("run") !== undefined;
    const health = healthOf(isAsked ? [await findRun(c)] : await refreshAll(), isAsked);
    return c.json(health, health.healthy ? 200 : 503);
  });

  hono.get("/v1/models", (c) => {
    return c.json({ object: "list", data: model ? [cardOf(model)] : [] });
  });
  hono.get("/v1/models/:name", (c) => {
    const name = c.req.param("name");
    if (name !== model?.name) throw noModel(JSON.stringify(name), model?.name);
    return c.json(cardOf(model));
  });
  for (const [path, answer] of Object.entries({ completions, "chat/completions": chatCompletions })) {
    hono.post(`/v1/${path}`, (c) => {
      if (!model) throw new Refusal(404, "There is no model here: deno task serve --checkpoint PATH has one");
      return answer(c, model);
    });
  }
  return { hono, close: () => events.close() };
}

/** OpenAI's model object. */
function cardOf({ name, created }: Model) {
  return { id: name, object: "model", created, owned_by: "loam" };
}

/** Why a path was not answered: there is none, or it takes other methods. */
function noRoute(hono: Hono, { path, method }: { path: string; method: string }): Refusal {
  const taken = ["GET", "POST"].filter((method) =>
    hono.router.match(method, path)[0].some(([[, route]]) => route.method === method)
  );
  if (taken.length === 0) return new Refusal(404, `There is no ${path}: see /openapi.json`);
  const allowed = taken.map((method) => method === "GET" ? "GET, HEAD" : method).join(", ");
  return new Refusal(405, `${path} takes ${allowed}, not ${method}`, { headers: { Allow: allowed } });
}

/** Brings runs up to date, new ones too; returns those that are there. */
async function refresh(runs: Run[], look: () => void): Promise<Run[]> {
  look();
  await Promise.all(runs.map((run) => run.refresh()));
  return runs.filter(({ exists }) => exists);
}

/** The run that a request asks for, up to date. */
async function runAskedFor(c: Context, runs: Run[], look: () => void): Promise<Run> {
  const name = c.req.query("run"), find = () => runs.find((run) => run.name === name);
  if (name !== undefined && !find()) look();
  const run = name === undefined ? await theRun(runs, look) : find();
  if (!run) {
    throw new Refusal(
      404,
      name === undefined ? NO_RUNS : `There is no run ${JSON.stringify(name)} here: see /runs`,
    );
  }
  await run.refresh();
  if (!run.exists) throw new Refusal(410, `The run ${run.name} is gone: its directory holds no run any more`);
  return run;
}

/** The run that is meant where none is named. */
async function theRun(runs: Run[], look: () => void): Promise<Run | undefined> {
  if (runs[0]?.isFound === false) return runs[0];
  const [first, ...others] = await refresh(runs, look);
  return first && others.reduce((a, b) => b.age_s < a.age_s ? b : a, first);
}
const NO_RUNS =
  "There is no run here: deno task serve takes the names of runs, or of a directory that will hold some";

function historyOf(c: Context, run: Run): History {
  const keys = Array.from(new Set(c.req.queries("key") ?? ["loss"]), requireKey); // each once, however often it is named
  const points = wholeNumber(c, "points", 1000, 2, Math.floor(MOST_POINTS / keys.length));
  const range = { since: stepParameter(c, "since") ?? 0, until: stepParameter(c, "until") ?? Infinity };
  const series = keys.map((key): [Key, Series] => [key, history(run.table, key, points, range)]);
  return { run: run.name, series: Object.fromEntries(series) };
}

/** Runs that nobody named, only found, do no harm when they have failed: the directory may hold years of them. */
function healthOf(runs: Run[], isAsked: boolean): Health {
  const reasons = runs.flatMap(({ name, state, age_s, error, isFound }) => {
    if (state === "stalled") return [`${name} is stalled: no step for ${Math.round(age_s)} s`];
    return state === "failed" && (isAsked || !isFound) ? [`${name} failed: ${withoutHome(error)}`] : [];
  });
  return {
    healthy: reasons.length === 0,
    reason: reasons.join("; ") || null,
    runs: runs.map(({ name, state, age_s }) => ({ name, state, age_s })),
  };
}

/** The last step that a client of /events knows: what its browser says when it connects again, or what it asks for. */
function lastSeen(c: Context): number | undefined {
  const header = c.req.header("Last-Event-ID") ?? "";
  return /^\d{1,15}$/.test(header) ? Number(header) : stepParameter(c, "since");
}

function requireKey(name: string): Key {
  const key = KEYS.find((key) => key === name);
  if (!key) {
    throw new Refusal(400, `There is no history of ${JSON.stringify(name)}: choose from ${KEYS.join(", ")}`);
  }
  return key;
}

function stepParameter(c: Context, name: string): number | undefined {
  return c.req.query(name) === undefined ? undefined : wholeNumber(c, name, 0, 0, Number.MAX_SAFE_INTEGER);
}

/** A parameter of the address, which has to be a whole number in [least, most]. */
function wholeNumber(c: Context, name: string, fallback: number, least: number, most: number): number {
  const text = c.req.query(name);
  if (text === undefined) return fallback;
  const value = /^\d{1,16}$/.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new Refusal(400, `${name} must be a whole number from ${least} to ${most}`);
}
