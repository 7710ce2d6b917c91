// `deno task mlflow`: sends the steps of a run to an MLflow server, as they come or afterwards. It reads the run's files alone, in a
// process of its own: a server that is slow or away never delays a step.
import { runMain, UserError } from "../base/errors.ts";
import { isFile, writeAtomic } from "../base/files.ts";
import { help, readFlags } from "../base/flags.ts";
import { oneLine } from "../base/visible.ts";
import { Run } from "./runs.ts";
import { KEYS } from "./types.ts";

const defaults = {
  run: [] as string[], // run directory, also as a plain word
  url: "http://127.0.0.1:5000", // of the server; a token for it stands in MLFLOW_TRACKING_TOKEN
  experiment: "loam", // its name there, made if there is none
};

const USAGE = `Send the steps of a run to MLflow, until the run has ended; the same command again goes on

  deno task mlflow runs/c4 --url=http://tracking:5000`;

const MOST_METRICS = 1000, MOST_PARAMS = 100; // in a request, by MLflow's REST API
const LOOK_MS = 2000; // between two looks at the run
const WAITS_MS = [1000, 5000, 20_000, 60_000]; // before each further attempt; the last one again and again
const STATUS = { finished: "FINISHED", stopped: "KILLED", failed: "FAILED" } as const;

/** What is kept in mlflow.json of the run directory: where its steps went, and how far. */
type Sent = { url: string; run_id: string; step: number };

/** The command line. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./mlflow.ts", { with: { type: "text" } });
    return console.log(help(USAGE, defaults, source));
  }
  const { run: [dir, ...more], url, experiment } = {
    ...defaults,
    ...readFlags(args, defaults, { words: "run" }),
  };
  if (dir === undefined || more.length > 0) {
    throw new UserError("Cannot send to MLflow: name one run directory, such as deno task mlflow runs/c4");
  }
  if (!isFile(`${dir}/run.json`)) {
    throw new UserError(`Cannot send ${dir} to MLflow: it has no run.json, should be a run directory`);
  }
  console.log(await forward(dir, url.replace(/\/+$/, ""), experiment));
}

/**
 * Sends a run to the MLflow server at a URL, until its trainer has ended; returns what was sent, in words. waits_ms: before each
 * further attempt. Throws UserError for an answer that trying again does not change.
 */
export async function forward(
  dir: string,
  url: string,
  experiment: string,
  waits_ms: readonly number[] = WAITS_MS,
  look_ms: number = LOOK_MS,
): Promise<string> {
  const run = new Run(dir, Deno.realPathSync(dir)), path = `${dir}/mlflow.json`;
  const post = (name: string, body: unknown) => request(`${url}/api/2.0/mlflow/${name}`, body, waits_ms);
  await run.refresh();
  const before: Sent | undefined = isFile(path) ? JSON.parse(Deno.readTextFileSync(path)) : undefined;
  const begun = Date.parse(String(run.facts.started)) || Date.now();
  const sent = before?.url === url
    ? before
    : { url, run_id: await create(run, experiment, begun, post), step: 0 };
  run.listeners.add((change) => {
    if (change.kind === "reset") sent.step = Math.min(sent.step, change.after); // a resumed run does its later steps again
  });
  for (;; await new Promise((resolve) => setTimeout(resolve, look_ms))) {
    await run.refresh();
    const ended = run.state === "running" || run.state === "stalled" ? undefined : STATUS[run.state];
    const elapsed = run.table.column("elapsed_s");
    for (let row = run.table.rowAfter(sent.step); row < run.table.length;) {
      const metrics = [];
      for (; row < run.table.length && metrics.length + KEYS.length <= MOST_METRICS; row++) {
        const step = sent.step = run.table.column("step")[row]!;
        const timestamp = Math.round(begun + 1000 * elapsed[row]!);
        for (const key of KEYS) {
          const value = run.table.column(key)[row]!;
          if (key !== "step" && Number.isFinite(value)) metrics.push({ key, value, timestamp, step });
        }
      }
      await post("runs/log-batch", { run_id: sent.run_id, metrics });
      writeAtomic(path, JSON.stringify(sent) + "\n");
    }
    if (!ended) continue;
    await post("runs/update", { run_id: sent.run_id, status: ended, end_time: Date.now() });
    writeAtomic(path, JSON.stringify(sent) + "\n");
    return oneLine(`sent ${dir} up to step ${sent.step} to ${url}, run ${sent.run_id}: ${run.state}`);
  }
}

type Post = (name: string, body: unknown) => Promise<Record<string, unknown>>;

/** Makes a run in an experiment, and that if there is none; returns its id. */
async function create(run: Run, experiment: string, start_time: number, post: Post): Promise<string> {
  const filter = `name = '${experiment.replaceAll("'", "")}'`;
  const { experiments } = await post("experiments/search", { filter, max_results: 1 });
  const [found] = experiments as { experiment_id: string }[] | undefined ?? [];
  const { experiment_id } = found ?? await post("experiments/create", { name: experiment });
  const made = await post("runs/create", { experiment_id, run_name: run.name, start_time });
  const { info: { run_id } } = made.run as { info: { run_id: string } };
  const params = Object.entries(run.config).map(([key, value]) => ({ key, value: String(value) }));
  for (let i = 0; i < params.length; i += MOST_PARAMS) {
    await post("runs/log-batch", { run_id, params: params.slice(i, i + MOST_PARAMS) });
  }
  return run_id;
}

/** Posts until there is an answer: servers restart, and networks come and go. */
async function request(
  url: string,
  body: unknown,
  waits_ms: readonly number[],
): Promise<Record<string, unknown>> {
  const token = Deno.env.get("MLFLOW_TRACKING_TOKEN");
  const headers = {
    "content-type": "application/json",
    ...(token ? { authorization: `Bearer ${token}` } : {}),
  };
  for (let attempt = 0;; attempt++) {
    let what: string;
    try {
      const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
      const text = await response.text();
      if (response.ok) return JSON.parse(text);
      what = `${response.status} ${text.slice(0, 200)}`;
      if (response.status < 500 && response.status !== 429) {
        throw new UserError(oneLine(`Cannot send to ${url}: the server answers ${what}`));
      }
    } catch (error) {
      if (error instanceof UserError || error instanceof Deno.errors.NotCapable) throw error;
      what = (error as Error).message;
    }
    const wait_ms = waits_ms[Math.min(attempt, waits_ms.length - 1)]!;
    console.error(oneLine(`no answer from ${url}: ${what}; trying again in ${wait_ms / 1000} s`));
    await new Promise((resolve) => setTimeout(resolve, wait_ms));
  }
}

if (import.meta.main) await runMain(main);
