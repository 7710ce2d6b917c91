// @ts-check
/// <reference lib="dom" />
// Below the charts: the latest sample, the configuration with its search, the end of the log.
import { byId, make, setText } from "./dom.js";
import { bytes, integer, isCode, stepTime } from "./format.js";
import { facts } from "./now.js";

/** @typedef {import("./api.js").Stats} Stats */
/** @typedef {import("./api.js").Sample} Sample */

let samples = /** @type {Sample[]} */ ([]);

/** The latest sample, unless somebody looks at an earlier one. @param {Sample[]} all the oldest first */
export function showSamples(all) {
  const select = byId("sample-step", HTMLSelectElement), latest = samples.at(-1)?.step;
  const isAtLatest = select.value === "" || select.value === String(latest);
  const text = JSON.stringify(all.map(({ step }) => step));
  samples = all;
  if (select.dataset.text !== text) {
    select.dataset.text = text;
    const chosen = isAtLatest ? "" : select.value;
    const options = all.toReversed().map(({ step }) =>
      make("option", { value: String(step) }, `step ${integer(step)}`)
    );
    select.replaceChildren(...options);
    if (all.some(({ step }) => String(step) === chosen)) select.value = chosen;
  }
  select.hidden = all.length === 0;
  showSample();
}

/** The sample that is chosen. */
export function showSample() {
  const { value } = byId("sample-step", HTMLSelectElement);
  const sample = samples.find(({ step }) => String(step) === value);
  setText("sample", sample?.text ?? "No sample yet: --sample_interval says how often the model writes one");
  const { classList } = byId("sample", HTMLElement);
  classList.toggle("muted", !sample);
  classList.toggle("code", isCode(sample?.text ?? ""));
}

/** @param {string[]} lines */
export function showLog(lines) {
  const log = byId("log-tail", HTMLPreElement);
  const text = lines.join("\n") || "No line yet";
  if (log.textContent === text) return;
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  log.textContent = text;
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

/** @param {Stats} stats */
export function showConfig(stats) {
  const groups = {
    Run: facts(stats),
    Memory: Object.entries(stats.memory ?? {}).map(([kind, size]) => [kind, bytes(size)]),
    Ranks: ranks(stats.ranks),
    Versions: Object.entries(stats.versions),
    Variables: Object.entries(stats.config).map(([name, value]) => [name, inWords(value)]),
  };
  const table = byId("config", HTMLTableElement), text = JSON.stringify(groups);
  if (table.dataset.text === text) return;
  table.dataset.text = text;
  const bodies = Object.entries(groups).filter(([, rows]) => rows.length > 0).map(([name, rows]) =>
    make("tbody", {}, groupRow(name), ...rows.map(([key = "", value = ""]) => configRow(key, value)))
  );
  table.replaceChildren(...table.querySelectorAll("caption"), ...bodies);
  search();
}

/** The time of each rank's own work in a step, and its memory. @param {Stats["ranks"]} ranks */
function ranks(ranks) {
  return (ranks?.step_ms ?? []).map((ms, rank) => [
    `rank ${rank}${rank === ranks?.slowest ? ", the slowest" : ""}`,
    `${stepTime(ms)} · ${bytes(ranks?.memory_bytes[rank] ?? null)}`,
  ]);
}

/** A value of the configuration. @param {unknown} value */
export function inWords(value) {
  return typeof value === "string" ? value || "–" : JSON.stringify(value);
}

/** @param {string} name */
function groupRow(name) {
  return make("tr", { class: "group" }, make("th", { colspan: "2", scope: "rowgroup" }, name));
}

/**
 * @param {string} name
 * @param {string} value
 */
function configRow(name, value) {
  return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value));
}

/** Shows the rows that hold every word of the search, and the groups that have such rows. */
export function search() {
  const words = byId("search", HTMLInputElement).value.toLowerCase().split(/\s+/);
  const table = byId("config", HTMLTableElement);
  for (const body of table.tBodies) {
    const rows = [...body.rows].slice(1); // the first one is the name of the group
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    body.hidden = rows.every((row) => row.hidden);
  }
  const isEmpty = [...table.tBodies].every((body) => body.hidden);
  byId("no-match", HTMLElement).hidden = !isEmpty || table.tBodies.length === 0;
}
