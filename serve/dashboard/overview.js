// @ts-check
// The list of all runs: its order, its search, and where the configurations of runs differ. No DOM here.

/** @typedef {import("./api.js").RunSummary} RunSummary */

/** @typedef {"name" | "state" | "step" | "loss" | "val_loss" | "tokens_per_sec" | "preset" | "started"} Column */
/** @typedef {{ column: Column, isDescending: boolean }} Order */

/** The states in order of how soon somebody should look. */
const STATES = ["failed", "stalled", "running", "stopped", "finished"];

/** The latest run first. @type {Order} */
export const LATEST = { column: "started", isDescending: true };

/**
 * The runs that hold every word, in an order. What is not known comes last in either direction; equals by their names.
 * @param {RunSummary[]} runs
 * @param {string} words
 * @param {Order} order
 */
export function arranged(runs, words, { column, isDescending }) {
  const key = (/** @type {RunSummary} */ run) => column === "state" ? STATES.indexOf(run.state) : run[column];
  return runs.filter((run) => holds(run, words)).sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === y || (x === null && y === null)) return compare(a.name, b.name);
    if (x === null || y === null) return x === null ? 1 : -1;
    return isDescending ? compare(y, x) : compare(x, y);
  });
}

/**
 * Whether name, state, preset or error of a run have all words in them.
 * @param {RunSummary} run
 * @param {string} words
 */
function holds({ name, state, preset, error }, words) {
  const text = [name, state, preset, error].join(" ").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/**
 * Numbers by their size, texts with numbers in them as people count: run-2 before run-10.
 * @param {string | number} a
 * @param {string | number} b
 */
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

/**
 * How a click on a head changes the order: names and states begin with the first, numbers and times with the largest.
 * @param {Order} order
 * @param {Column} column
 * @returns {Order}
 */
export function reordered(order, column) {
  if (order.column === column) return { column, isDescending: !order.isDescending };
  return { column, isDescending: !["name", "state", "preset", "loss", "val_loss"].includes(column) };
}

/** 3 runs: 1 running, 2 finished. @param {RunSummary[]} runs */
export function counted(runs) {
  const counts = STATES.map((state) => ({ state, n: runs.filter((run) => run.state === state).length }));
  const parts = counts.filter(({ n }) => n > 0).map(({ state, n }) => `${n} ${state}`);
  return `${runs.length} ${runs.length === 1 ? "run" : "runs"}: ${parts.join(", ")}`;
}

/**
 * The variables in which configurations differ, with the value of each; undefined where one lacks it.
 * @param {Record<string, unknown>[]} configs
 * @returns {{ name: string, values: unknown[] }[]}
 */
export function differences(configs) {
  const names = new Set(configs.flatMap(Object.keys));
  return [...names].map((name) => ({ name, values: configs.map((config) => config[name]) }))
    .filter(({ values }) => new Set(values.map((value) => JSON.stringify(value))).size > 1);
}
