// @ts-check
/// <reference lib="dom" />
// The dashboard: loads a run, follows it live, and draws what has changed.
import { follow, getHistory, getLog, getModel, getRuns, getSamples, getStats, RequestError } from "./api.js";
import { Chart } from "./chart.js";
import { askForToken, bindChoices, bindKeys, bindTheme, keptChoices } from "./controls.js";
import { chartInWords, CHARTS, curves } from "./curves.js";
import { byId, setText, showProblem } from "./dom.js";
import { clock } from "./format.js";
import { showNow } from "./now.js";
import { showConfig, showLog, showSample, showSamples } from "./panels.js";
import { bindOverview, MOST_RUNS, showRuns } from "./runs.js";
import { append, refined, stepsBetween, truncate } from "./series.js";

/** @typedef {import("./api.js").RunSummary} RunSummary */
/** @typedef {import("./api.js").Stats} Stats */
/** @typedef {import("./api.js").StepLine} StepLine */
/** @typedef {import("./plot.js").Zoom} Zoom */
/** @typedef {import("./series.js").Measured} Measured */

const POLL_MS = 5000; // for what no event announces: time left, log, other runs
const RETRY_MS = 2000;
const DRAW_MS = 150; // at most so often
const MOST_POINTS = 4000; // of a curve; then the history is down-sampled again
const MOST_RECENT = 1000;

const asked = new URLSearchParams(location.search);

/** What the person has chosen. */
let choices = keptChoices();
let zoom = /** @type {Zoom | null} */ (null);
let compared = asked.getAll("compare").slice(0, MOST_RUNS - 1);

/** What the server has told. */
let run = asked.get("run") ?? ""; // "": the first that it has
let stats = /** @type {Stats | null} */ (null);
let runs = /** @type {RunSummary[]} */ ([]);
/** @type {Map<string, Measured>} */
const measuredBy = new Map(); // name of a run
/** @type {Map<string, Record<string, unknown>>} */
const configBy = new Map();
let sampledAt = -1; // the step of the last sample that was asked for
/** @type {StepLine[]} */
let recent = []; // since the connection stands: a history that was on its way may lack them
let isFollowing = false; // the connection for events stands
let isLoading = false; // a history is on its way

const charts = CHARTS.map((spec) => new Chart(byId("charts", HTMLElement), spec, setZoom));

// ---- what comes from the server

async function start() {
  try {
    showStats(await getStats(run));
  } catch (error) {
    showFailure(error);
    if (needsToken(error)) return; // signing in loads the page anew
    if (error instanceof RequestError) setText("state", "No run");
    setTimeout(start, RETRY_MS);
    return attempt(refreshRuns); // there may be others to look at
  }
  showProblem("");
  follow(run, {
    connected(isConnected) {
      isFollowing = isConnected;
      showConnection(isConnected);
      recent = [];
      if (isConnected) attempt(loadHistory); // nobody knows what was missed
    },
    step: addStep,
    reset(after) {
      recent = recent.filter(({ step }) => step <= after);
      truncate(measured(), after);
      attempt(refresh);
    },
    missed: () => attempt(loadHistory),
    changed: () => attempt(refresh),
  });
  attempt(refreshOthers);
  attempt(async () => {
    byId("prompt-link", HTMLElement).hidden = await getModel() === undefined;
  });
  setInterval(() => attempt(refresh), POLL_MS);
  setInterval(() => attempt(refreshOthers), POLL_MS);
}

/**
 * Does something with the server; where that fails, the page says so and lives on.
 * @param {() => Promise<void>} action
 */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showFailure(error);
  }
}

async function loadHistory() {
  isLoading = true;
  try {
    const loaded = await getHistory(run);
    for (const line of recent) addLine(loaded, line);
    measuredBy.set(run, loaded);
    redraw();
  } finally {
    isLoading = false;
  }
  await refine();
}

/** Asks for more points of the steps in view: those of the whole run are too few to zoom into. */
async function refine() {
  const range = zoom, { axis } = choices;
  if (!range) return;
  await Promise.all([run, ...compared].map(async (name) => {
    const steps = stepsBetween(range.min, range.max, axis, measuredBy.get(name) ?? {});
    const detail = await getHistory(name, steps);
    measuredBy.set(name, refined(measuredBy.get(name) ?? {}, detail, steps)); // as it is by now
  }));
  redraw();
}

/** What the run has measured. */
function measured() {
  return measuredBy.get(run) ?? {};
}

/** @param {StepLine} line */
function addStep(line) {
  recent = [...recent.slice(-MOST_RECENT), line];
  addLine(measured(), line);
  const isFirst = stats?.step === 0, wasLost = !isFirst && stats?.loss === null;
  if (stats && line.step > stats.step) stats = afterStep(stats, line);
  if (isFirst || (line.loss === null && !wasLost)) attempt(refresh); // what /stats says is another thing now
  if (!isLoading && (measured().loss?.length ?? 0) > MOST_POINTS) attempt(loadHistory);
  redraw();
}

/**
 * What /stats would say after a step.
 * @param {Stats} before
 * @param {StepLine} line
 * @returns {Stats}
 */
function afterStep(before, line) {
  const now = { ...before, ...line, age_s: 0 }, { val_loss = null } = line;
  if (val_loss === null || val_loss >= (before.best_val_loss ?? Infinity)) return now;
  return { ...now, best_val_loss: val_loss, best_step: line.step };
}

/**
 * Adds a step to the curves.
 * @param {Measured} to
 * @param {StepLine} line
 */
function addLine(to, { step, ...values }) {
  const elapsed_s = (to.elapsed_s?.at(-1)?.value ?? 0) + (values.step_ms ?? 0) / 1000;
  for (const [key, value] of Object.entries({ ...values, elapsed_s })) append(to[key] ??= [], step, value);
}

/** Brings up to date what no event of a step tells. */
async function refresh() {
  showStats(await getStats(run));
  if (!isFollowing) return;
  showConnection(true);
  showProblem("");
}

async function loadSamples() {
  sampledAt = stats?.sample?.step ?? -1;
  showSamples(sampledAt < 0 ? [] : await getSamples(run));
}

/** Brings up to date what is beside the run: its log, the other runs. */
async function refreshOthers() {
  await Promise.all([getLog(run).then(showLog), refreshRuns()]);
  const isLive = (/** @type {string} */ name) =>
    runs.find((other) => other.name === name)?.state === "running";
  const wanted = compared.filter((name) => isLive(name) || !measuredBy.has(name));
  await Promise.all(wanted.map(async (name) => {
    const [loaded, { config }] = await Promise.all([getHistory(name), getStats(name)]);
    measuredBy.set(name, loaded);
    configBy.set(name, config);
  }));
  redraw();
  listRuns();
}

async function refreshRuns() {
  runs = await getRuns();
  compared = compared.filter((name) => name !== run && runs.some((other) => other.name === name));
  listRuns();
}

// ---- what is on the page

/** @param {Stats} now */
function showStats(now) {
  stats = now;
  run = now.run;
  configBy.set(run, now.config);
  if (now.sample?.step !== sampledAt) attempt(loadSamples);
  showConfig(now);
  redraw();
}

/** @param {boolean} isConnected */
function showConnection(isConnected) {
  const { dataset } = document.body, next = isConnected ? "live" : "lost";
  if (dataset.connection === next) return;
  dataset.connection = next;
  setText("connection", isConnected ? "Connected" : "Disconnected");
  showProblem(
    isConnected ? "" : `No connection since ${clock(new Date())}: the page shows how things were then`,
  );
}

/** @param {unknown} error */
function showFailure(error) {
  if (needsToken(error)) askForToken();
  else if (error instanceof RequestError) showProblem(error.message);
  else showConnection(false);
}

/** @param {unknown} error */
function needsToken(error) {
  return error instanceof RequestError && error.status === 401;
}

let isDrawing = false;

/** Draws soon, and once for all that changes until then. */
function redraw() {
  if (isDrawing) return;
  isDrawing = true;
  setTimeout(() => {
    isDrawing = false;
    draw();
  }, DRAW_MS);
}

function draw() {
  if (!stats) return;
  showNow(stats);
  if (document.hidden) return;
  const drawn = [run, ...compared].map((name) => ({ name, measured: measuredBy.get(name) ?? {} }));
  for (const chart of charts) {
    const isLog = choices.isLog && chart.spec.key === "loss";
    const lines = curves(chart.spec, drawn, choices), summary = chartInWords(chart.spec, drawn);
    chart.draw({ lines, axis: choices.axis, isLog, zoom, summary });
  }
}

function listRuns() {
  const configs = [run, ...compared].map((name) => ({ name, config: configBy.get(name) }));
  showRuns({ runs, current: run, compared, configs, onCompare });
}

/**
 * @param {string} name
 * @param {boolean} isOn
 */
function onCompare(name, isOn) {
  compared = compared.filter((other) => other !== name);
  if (isOn) compared.push(name);
  setAddress();
  listRuns();
  attempt(refreshOthers);
}

/** Keeps the choice of runs in the address, so that it can be sent to others. */
function setAddress() {
  const parameters = new URLSearchParams({ run });
  for (const name of compared) parameters.append("compare", name);
  history.replaceState(null, "", `?${parameters}`);
}

/** @param {Zoom | null} range */
function setZoom(range) {
  zoom = range;
  byId("reset-zoom", HTMLButtonElement).hidden = range === null;
  draw();
  attempt(refine);
}

// ---- what a person does

bindChoices(choices, (chosen) => {
  if (chosen.axis !== choices.axis) setZoom(null);
  choices = chosen;
  draw();
});
bindTheme(() => {
  for (const chart of charts) chart.restyle();
  draw();
});
bindKeys();
bindOverview();
byId("sample-step", HTMLSelectElement).addEventListener("change", showSample);
byId("reset-zoom", HTMLButtonElement).addEventListener("click", () => setZoom(null));
byId("run", HTMLSelectElement).addEventListener("change", ({ target }) => {
  if (target instanceof HTMLSelectElement) location.search = `?${new URLSearchParams({ run: target.value })}`;
});
document.addEventListener("visibilitychange", redraw);
start();
