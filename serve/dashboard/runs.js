// @ts-check
/// <reference lib="dom" />
// The choice of the run to look at, and of others to compare it with.
import { byId, make, setText } from "./dom.js";
import { compact, loss } from "./format.js";

/** @typedef {import("./api.js").RunSummary} RunSummary */

/** As many runs as there are colours in style.css. */
export const MOST_RUNS = 6;

/**
 * Lists the runs in the head of the page and in the menu.
 * @param {RunSummary[]} runs
 * @param {string} current the one that the page is about
 * @param {string[]} compared the others that are drawn
 * @param {(name: string, isOn: boolean) => void} onCompare
 */
export function showRuns(runs, current, compared, onCompare) {
  const text = JSON.stringify([runs, current, compared]), list = byId("runs", HTMLTableSectionElement);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  showChoice(runs.map(({ name }) => name), current);
  const focused = document.activeElement instanceof HTMLInputElement ? document.activeElement.value : "";
  list.replaceChildren(...runs.map((run) => runRow(run, current, compared, onCompare)));
  [...list.querySelectorAll("input")].find(({ value }) => value === focused)?.focus();
  byId("compare", HTMLDetailsElement).hidden = runs.length < 2;
  setText("compared", compared.length > 0 ? String(compared.length + 1) : "");
}

/**
 * The choice in the head of the page. It stays as it is while the names do, for it may be open.
 * @param {string[]} names
 * @param {string} current
 */
function showChoice(names, current) {
  const select = byId("run", HTMLSelectElement);
  const options = names.includes(current) ? names : [current, ...names]; // it may be gone
  const text = JSON.stringify([options, current]);
  if (select.dataset.text === text) return;
  select.dataset.text = text;
  select.replaceChildren(
    ...options.map((name) => make("option", name === current ? { selected: "" } : {}, name)),
  );
  select.disabled = options.length < 2;
}

/**
 * @param {RunSummary} run
 * @param {string} current
 * @param {string[]} compared
 * @param {(name: string, isOn: boolean) => void} onCompare
 */
function runRow(run, current, compared, onCompare) {
  const place = run.name === current ? 0 : compared.indexOf(run.name) + 1; // 0 or below: not drawn
  const isDrawn = run.name === current || place > 0;
  const box = make("input", { type: "checkbox", value: run.name });
  box.checked = isDrawn;
  box.disabled = run.name === current || (!isDrawn && compared.length + 1 >= MOST_RUNS);
  box.addEventListener("change", () => onCompare(run.name, box.checked));
  const mark = make("span", { class: isDrawn ? `swatch run-${place + 1}` : "swatch" });
  const step = compact(run.step) + (run.max_iters ? ` / ${compact(run.max_iters)}` : "");
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, make("label", {}, box, mark, run.name)),
    make("td", { class: "state", "data-state": run.state, title: run.error ?? "" }, run.state),
    make("td", {}, step),
    make("td", {}, loss(run.loss)),
    make("td", {}, loss(run.val_loss)),
  );
}
