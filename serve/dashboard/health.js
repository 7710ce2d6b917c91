// @ts-check
// What a person should worry about, in words. No DOM here.
import { duration, integer, percent } from "./format.js";
import { trend } from "./series.js";

/** @typedef {import("./api.js").Stats} Stats */
/** @typedef {import("./series.js").Series} Series */
/** @typedef {{ level: "bad" | "warn", text: string }} Warning */

/**
 * The warnings of a run, worst first.
 * @param {Stats} stats
 * @param {Series} loss
 * @returns {Warning[]}
 */
export function warnings(stats, loss) {
  return [
    ...failed(stats),
    ...stalled(stats),
    ...notFinite(stats),
    ...stopped(stats),
    ...skipped(stats),
    ...rising(loss),
    ...unread(stats),
  ];
}

/** @param {Stats} stats @returns {Warning[]} */
function failed(stats) {
  const { state, error } = stats;
  return state === "failed"
    ? [{ level: "bad", text: `Failed ${where(stats)}: ${error}; ${howToGoOn(stats)}` }]
    : [];
}

/** @param {Stats} stats @returns {Warning[]} */
function stalled({ state, age_s }) {
  if (state !== "stalled") return [];
  return [{ level: "bad", text: `No step for ${duration(age_s)}, but the trainer is still there` }];
}

/** @param {Stats} stats @returns {Warning[]} */
function notFinite({ step, loss, grad_norm }) {
  if (step === 0 || (loss !== null && grad_norm !== null)) return [];
  const what = loss === null ? "Loss" : "The gradient norm";
  return [{ level: "bad", text: `${what} is not finite at step ${integer(step)}` }];
}

/** @param {Stats} stats @returns {Warning[]} */
function stopped(stats) {
  if (stats.state !== "stopped" || stats.max_iters === null) return [];
  return [{ level: "warn", text: `Stopped ${where(stats)}; ${howToGoOn(stats)}` }];
}

/** @param {Stats} stats */
function where({ step, max_iters }) {
  return `after step ${integer(step)}${max_iters === null ? "" : ` of ${integer(max_iters)}`}`;
}

/** @param {Stats} stats */
function howToGoOn({ checkpoint }) {
  return checkpoint === null ? "no checkpoint was saved" : `--resume goes on from ${checkpoint}`;
}

/** @param {Stats} stats @returns {Warning[]} */
function skipped({ skipped }) {
  if (skipped === 0) return [];
  const what = count(skipped, "update was", "updates were");
  return [{ level: "warn", text: `${what} skipped, because loss or gradient norm was not finite` }];
}

/** @param {Series} loss @returns {Warning[]} */
function rising(loss) {
  const found = trend(loss);
  if (!found?.isRising) return [];
  const text = `Loss is rising: ${percent(found.change)} more than ${integer(found.steps)} steps ago`;
  return [{ level: "warn", text }];
}

/** @param {Stats} stats @returns {Warning[]} */
function unread({ bad_lines }) {
  if (bad_lines === 0) return [];
  return [{ level: "warn", text: `${count(bad_lines, "line", "lines")} of metrics.jsonl could not be read` }];
}

/**
 * @param {number} number
 * @param {string} one
 * @param {string} many
 */
function count(number, one, many) {
  return `${integer(number)} ${number === 1 ? one : many}`;
}
