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
    ...stalled(stats),
    ...notFinite(stats),
    ...stopped(stats),
    ...skipped(stats),
    ...rising(loss),
    ...unread(stats),
  ];
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
function stopped({ state, step, max_iters }) {
  if (state !== "stopped" || max_iters === null) return [];
  const where = `after step ${integer(step)} of ${integer(max_iters)}`;
  return [{
    level: "warn",
    text: `Stopped ${where}; deno task train --resume goes on from its last checkpoint`,
  }];
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
