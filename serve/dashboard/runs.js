// @ts-check
/// <reference lib="dom" />
// The choice of the run to look at, and the list of all: to sort, to search, to compare.
import { byId, make, setText } from "./dom.js";
import { clock, compact, duration, integer, isKnown, loss } from "./format.js";
import { arranged, counted, differences, LATEST, reordered } from "./overview.js";
import { inWords } from "./panels.js";

/** @typedef {import("./api.js").RunSummary} RunSummary */
/** @typedef {import("./overview.js").Column} Column */

/** @typedef {{ name: string, config: Record<string, unknown> | undefined }} DrawnConfig undefined while it is on its way */

/**
 * What is listed. compared: the other runs that are drawn beside the current one.
 * @typedef {{
 *   runs: RunSummary[], current: string, compared: string[], configs: DrawnConfig[],
 *   onCompare: (name: string, isOn: boolean) => void,
 * }} Listed
 */

/** As many runs as there are colours in style.css. */
export const MOST_RUNS = 6;

/** @type {[Column | null, string][]} null: nothing to sort by */
const HEADS = [
  ["name", "Run"],
  ["state", "State"],
  ["step", "Step"],
  ["loss", "Loss"],
  ["val_loss", "Val loss"],
  ["tokens_per_sec", "Tokens/s"],
  [null, "Ends, ended"],
  ["preset", "Preset"],
  ["started", "Started"],
];

let order = LATEST;
let listed =
  /** @type {Listed} */ ({ runs: [], current: "", compared: [], configs: [], onCompare: () => {} });

/**
 * Lists the runs in the head of the page and below what the run does now.
 * @param {Listed} what
 */
export function showRuns(what) {
  listed = what;
  const { runs, current, configs } = what;
  showChoice(runs.map(({ name }) => name), current);
  byId("overview", HTMLDetailsElement).hidden = runs.length < 2;
  setText("counted", counted(runs));
  list();
  showDifferences(configs);
}

/** The search of the list. */
export function bindOverview() {
  byId("find", HTMLInputElement).addEventListener("input", list);
}

/** Lists the runs in the order and with the words that somebody has chosen. */
function list() {
  const { runs, current, compared } = listed, body = byId("runs", HTMLTableSectionElement);
  const found = arranged(runs, byId("find", HTMLInputElement).value, order);
  const text = JSON.stringify([found, current, compared, order]);
  if (body.dataset.text === text) return;
  body.dataset.text = text;
  const focused = keyOf(document.activeElement);
  byId("order", HTMLTableRowElement).replaceChildren(...HEADS.map(head));
  body.replaceChildren(...found.map(runRow));
  byId("none-found", HTMLElement).hidden = found.length > 0;
  for (const control of byId("overview", HTMLElement).querySelectorAll("th button, th input, th a")) {
    if (control instanceof HTMLElement && focused !== "" && keyOf(control) === focused) control.focus();
  }
}

/** What tells a control of the list from the others. @param {Element | null} control */
function keyOf(control) {
  if (!control?.closest("#overview th")) return "";
  return `${control.tagName} ${control instanceof HTMLInputElement ? control.value : control.textContent}`;
}

/** @param {[Column | null, string]} column */
function head([column, title]) {
  const { column: chosen, isDescending } = order;
  if (!column) return make("th", { scope: "col" }, title);
  const button = make("button", { type: "button" }, title);
  button.addEventListener("click", () => {
    order = reordered(order, column);
    list();
  });
  const sort = column !== chosen ? "none" : isDescending ? "descending" : "ascending";
  return make("th", { scope: "col", "aria-sort": sort }, button);
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

/** @param {RunSummary} run */
function runRow(run) {
  const { current, compared, onCompare } = listed;
  const place = run.name === current ? 0 : compared.indexOf(run.name) + 1; // 0 or below: not drawn
  const isDrawn = run.name === current || place > 0;
  const box = make("input", { type: "checkbox", value: run.name, "aria-label": `Draw ${run.name}` });
  box.checked = isDrawn;
  box.disabled = run.name === current || (!isDrawn && compared.length + 1 >= MOST_RUNS);
  box.addEventListener("change", () => onCompare(run.name, box.checked));
  const link = make("a", { href: `?${new URLSearchParams({ run: run.name })}` }, run.name);
  if (run.name === current) link.setAttribute("aria-current", "page");
  return make(
    "tr",
    {},
    make(
      "th",
      { scope: "row" },
      make("span", { class: "drawn" }, box, swatch(isDrawn ? place + 1 : 0), link),
    ),
    make(
      "td",
      { "data-state": run.state, "data-level": run.health.level, title: run.health.text },
      run.state,
    ),
    make("td", {}, compact(run.step) + (run.max_iters ? ` / ${compact(run.max_iters)}` : "")),
    make("td", {}, loss(run.loss)),
    make("td", {}, loss(run.val_loss)),
    make("td", {}, integer(run.tokens_per_sec)),
    make("td", {}, endOf(run)),
    make("td", {}, run.preset ?? "–"),
    make("td", {}, run.started ? clock(new Date(run.started)) : "–"),
  );
}

/** A mark in the colour of a run. @param {number} place among those that are drawn, from 1; 0 where it is not */
function swatch(place) {
  const mark = make("span", { class: "swatch" });
  if (place > 0) mark.style.background = `var(--run-${place})`;
  return mark;
}

/** @param {RunSummary} run */
function endOf({ eta_s, ended_at }) {
  if (isKnown(eta_s)) return `${duration(eta_s)} left`;
  return ended_at ? clock(new Date(ended_at)) : "–";
}

/** @param {DrawnConfig[]} drawn */
function showDifferences(drawn) {
  const configs = drawn.map((each, i) => ({ ...each, place: i + 1 })).filter(({ config }) => config);
  const table = byId("differences", HTMLTableElement), text = JSON.stringify(configs);
  byId("differ", HTMLElement).hidden = configs.length < 2;
  if (table.dataset.text === text) return;
  table.dataset.text = text;
  const found = differences(configs.map(({ config }) => config ?? {}));
  const heads = configs.map(({ name, place }) =>
    make(
      "th",
      { scope: "col" },
      make("span", { class: "drawn" }, swatch(place), name),
    )
  );
  const rows = found.map(({ name, values }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      ...values.map((value) => make("td", {}, value === undefined ? "–" : inWords(value))),
    )
  );
  const same = make("tr", {}, make("td", { colspan: String(configs.length + 1) }, "In nothing"));
  table.replaceChildren(
    ...table.querySelectorAll("caption"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Variable"), ...heads)),
    make("tbody", {}, ...rows.length > 0 ? rows : [same]),
  );
}
