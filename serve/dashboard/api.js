// @ts-check
/// <reference lib="dom" />
// Talks to the server: JSON, history and live events. /openapi.json explains every field.

/** @typedef {import("./series.js").Measured} Measured */
/** @typedef {import("./series.js").StepRange} StepRange */
/** @typedef {import("../types.ts").Stats} Stats */
/** @typedef {import("../types.ts").Sample} Sample */
/** @typedef {import("../types.ts").RunSummary} RunSummary */

/** @typedef {{ step: number } & Record<string, number | null>} StepLine a line of metrics.jsonl */

const TIMEOUT_MS = 10_000;
const RETRY_MS = 2000;

/** A request that the server refused; the message is its own sentence. */
export class RequestError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * The JSON at a path. Throws RequestError for an error status, and what fetch() throws where no server answers.
 * @param {string} path
 * @param {Record<string, string> | URLSearchParams} parameters
 */
async function getJson(path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  const response = await fetch(query ? `${path}?${query}` : path, {
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (response.ok) return response.json();
  throw await refusal(response);
}

/** What an answer says of why there is none. @param {Response} response */
async function refusal(response) {
  const body = await response.json().catch(() => null);
  return new RequestError(response.status, body?.error?.message ?? `The server answers ${response.status}`);
}

/**
 * @param {string} run "" for the server's first
 * @returns {Promise<Stats>}
 */
export function getStats(run) {
  return getJson("stats", run ? { run } : {});
}

/** @returns {Promise<RunSummary[]>} */
export async function getRuns() {
  return (await getJson("runs")).runs;
}

/**
 * @param {string} run
 * @returns {Promise<string[]>}
 */
export async function getLog(run) {
  return (await getJson("log", { run, lines: "200" })).lines;
}

/**
 * What the model wrote, the oldest first.
 * @param {string} run
 * @returns {Promise<Sample[]>}
 */
export async function getSamples(run) {
  return (await getJson("samples", { run })).samples;
}

/** Signs in with a token: the answer sets a cookie. @param {string} token */
export function signIn(token) {
  return getJson("v1/models", { token });
}

/** The name of the model that can be talked to. @returns {Promise<string | undefined>} */
export async function getModel() {
  return (await getJson("v1/models")).data[0]?.id;
}

/**
 * Has the model write a text. Throws RequestError where it is refused, or fails on the way.
 * @param {"completions" | "chat/completions"} route
 * @param {Record<string, unknown>} body of POST to it
 * @param {(text: string) => void} onText called with each piece
 * @param {AbortSignal} signal ends the text
 * @returns {Promise<{ tokens: number, reason: string }>} how many tokens were written, and why no more
 */
export async function writeText(route, body, onText, signal) {
  const response = await fetch(`v1/${route}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok || !response.body) throw await refusal(response);
  const written = { tokens: 0, reason: "" },
    reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = "";;) {
    const { value, done } = await reader.read();
    if (done) return written;
    const events = (held + value).split("\n\n");
    held = events.pop() ?? "";
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const { error, choices, usage } = JSON.parse(data), choice = choices?.[0];
      if (error) throw new RequestError(500, error.message);
      if (choice) onText(choice.text ?? choice.delta.content ?? "");
      written.reason = choice?.finish_reason ?? written.reason;
      written.tokens = usage?.completion_tokens ?? written.tokens;
    }
  }
}

const MAIN_KEYS = ["loss", "val_loss"];
const OTHER_KEYS = ["lr", "grad_norm", "tokens_per_sec", "mfu", "memory_bytes", "skipped", "task_acc_norm"];
const X_KEYS = ["tokens", "elapsed_s"]; // for the x axes; they grow evenly

/**
 * What a run has measured, down-sampled: enough points for the width of the charts.
 * @param {string} run
 * @param {StepRange} [range] all of it without
 * @returns {Promise<Measured>}
 */
export async function getHistory(run, range) {
  const series = await Promise.all([
    getSeries(run, range, MAIN_KEYS, 1000),
    getSeries(run, range, OTHER_KEYS, 400),
    getSeries(run, range, X_KEYS, 200),
  ]);
  return Object.assign({}, ...series);
}

/**
 * @param {string} run
 * @param {StepRange | undefined} range
 * @param {string[]} keys
 * @param {number} points
 * @returns {Promise<Measured>}
 */
async function getSeries(run, range, keys, points) {
  const parameters = new URLSearchParams(keys.map((key) => ["key", key]));
  for (const [name, value] of Object.entries({ run, points, ...range })) {
    parameters.append(name, String(value));
  }
  /** @type {{ series: Record<string, { step: number[], value: (number | null)[], mean: (number | null)[] }> }} */
  const { series } = await getJson("stats/history", parameters);
  return Object.fromEntries(
    Object.entries(series).map(([key, { step, value, mean }]) => [
      key,
      step.map((s, i) => ({ step: s, value: value[i] ?? NaN, mean: mean[i] ?? NaN })),
    ]),
  );
}

/**
 * @typedef {{
 *   connected: (isConnected: boolean) => void,
 *   step: (line: StepLine) => void,
 *   reset: (after: number) => void,
 *   missed: () => void,
 *   changed: () => void,
 * }} Listener connected: each time the connection comes or goes. reset: steps after `after` are gone. missed: some steps
 *   were not sent, since we were too slow. changed: there is a new sample or state
 */

/**
 * Follows a run live while the page is seen: browsers open six connections to a server, which tabs in the background would
 * take. The browser reconnects by itself and names the last step it has seen; where it gives up, because the server refused,
 * we begin again.
 * @param {string} run
 * @param {Listener} listener
 */
export function follow(run, listener) {
  /** @type {EventSource | undefined} */
  let source;
  const restart = () => {
    source?.close();
    source = document.hidden ? undefined : listen(run, listener, restart);
  };
  document.addEventListener("visibilitychange", restart);
  restart();
}

/**
 * @param {string} run
 * @param {Listener} listener
 * @param {() => void} restart
 */
function listen(run, listener, restart) {
  const source = new EventSource(`events?${new URLSearchParams({ run })}`);
  source.addEventListener("open", () => listener.connected(true));
  source.addEventListener("error", () => {
    listener.connected(false);
    if (source.readyState === EventSource.CLOSED) setTimeout(restart, RETRY_MS);
  });
  source.addEventListener("step", ({ data }) => listener.step(JSON.parse(data)));
  source.addEventListener("reset", ({ data }) => listener.reset(JSON.parse(data).after));
  source.addEventListener("resync", () => listener.missed());
  source.addEventListener("sample", () => listener.changed());
  source.addEventListener("state", () => listener.changed());
  return source;
}
