// @ts-check
/// <reference lib="dom" />
// A chart: curves of several runs, a legend of buttons with the values at the cursor, zoom by mouse and keyboard.
import { make } from "./dom.js";
import { compact, duration, integer } from "./format.js";
import { plotOptions, uPlot } from "./plot.js";
import { reach } from "./scale.js";

/** @typedef {import("./plot.js").Plot} Plot */
/** @typedef {import("./plot.js").ChartSpec} ChartSpec */
/** @typedef {import("./plot.js").Line} Line */
/** @typedef {import("./plot.js").Zoom} Zoom */
/** @typedef {import("./series.js").XAxis} XAxis */

/** @typedef {{ lines: Line[], axis: XAxis, isLog: boolean, zoom: Zoom | null, summary: string }} Content */

const NOTHING = "No step yet";

/** What the cursor is at. */
const PLACE = {
  step: (/** @type {number} */ x) => `step ${integer(x)}`,
  tokens: (/** @type {number} */ x) => `${compact(x)} tokens`,
  time: (/** @type {number} */ x) => duration(x),
};

export class Chart {
  /** @type {Plot | undefined} */
  #plot;
  /** @type {Content} */
  #content = { lines: [], axis: "step", isLog: false, zoom: null, summary: "" };
  #shape = ""; // what the plot was made for; another shape needs another plot
  /** @type {Set<string>} */
  #hidden = new Set(); // labels of curves
  #isWhole = false; // outliers are shown too
  #legend = make("ul", { class: "legend" });
  #average = make("p", { class: "muted", hidden: "" }, "smoothed");
  #beyond = make("button", { type: "button", class: "beyond", hidden: "" });
  #place = make("p", { class: "place muted" });
  /** @type {HTMLElement} */
  #figure;
  #frame = make("div", { class: "plot", role: "img", tabindex: "0" });
  #empty = make("p", { class: "empty muted" });

  /**
   * Makes an empty chart at the end of a parent.
   * @param {HTMLElement} parent
   * @param {ChartSpec} spec
   * @param {(zoom: Zoom | null) => void} onZoom null: the whole run
   */
  constructor(parent, spec, onZoom) {
    this.spec = spec;
    this.onZoom = onZoom;
    const id = `chart-${spec.key}`;
    this.#figure = make(
      "figure",
      { "aria-labelledby": id, "data-chart": spec.key, ...spec.isRare && { hidden: "" } },
      make(
        "figcaption",
        {},
        make("h2", { id }, spec.title),
        ...(spec.unit ? [make("p", { class: "muted" }, spec.unit)] : []),
        this.#average,
        this.#legend,
        this.#beyond,
      ),
      make("div", { class: "canvas" }, this.#frame, this.#place, this.#empty),
    );
    parent.append(this.#figure);
    this.#beyond.addEventListener("click", () => this.#showBeyond(!this.#isWhole));
    this.#frame.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.#frame);
  }

  /** @param {Content} content */
  draw(content) {
    this.#content = content;
    const { lines, axis, isLog, summary } = content;
    this.#empty.textContent = lines.some(({ y }) => y.length > 0) ? this.spec.empty ?? NOTHING : NOTHING;
    this.#empty.hidden = lines.some(({ y }) => y.some(Number.isFinite));
    this.#figure.hidden = this.spec.isRare === true && !this.#empty.hidden;
    this.#legend.hidden = !this.#empty.hidden;
    this.#frame.setAttribute("aria-label", `${this.spec.title}: ${summary}`);
    const looks = lines.map(({ label, color, style }) => [label, color, style]);
    const shape = JSON.stringify([looks, axis, isLog]);
    if (this.#plot && shape === this.#shape) this.#plot.setData(this.#data());
    else this.#build();
    this.#shape = shape;
    this.#showValues();
    this.#nameBeyond();
  }

  /** Takes on the colours of another theme. */
  restyle() {
    this.#shape = "";
  }

  #build() {
    this.#plot?.destroy();
    const options = plotOptions(this.spec, { ...this.#content, ...this.#size() }, {
      zoom: () => this.#content.zoom,
      reached: () => this.#reached(),
      lines: () => this.#content.lines,
      onZoom: this.onZoom,
      onCursor: () => this.#showValues(),
      onEdge: () => this.#showBeyond(!this.#isWhole),
    });
    this.#plot = new uPlot(options, this.#data(), this.#frame);
    const named = this.#content.lines.filter(isNamed), areMany = named.length > 2;
    this.#legend.replaceChildren(...named.map((line) => this.#legendEntry(line, !areMany && line.isAverage)));
    this.#average.hidden = !areMany || named.every((line) => !line.isAverage);
    this.#applyHidden();
  }

  /** @returns {import("uplot/dist/uPlot.d.ts").AlignedData} */
  #data() {
    const { lines, isLog } = this.#content;
    const canDraw = (/** @type {number} */ value) => Number.isFinite(value) && (!isLog || value > 0);
    if (lines.length === 0) return [[]];
    return uPlot.join(lines.map(({ x, y }) => [x, y.map((value) => canDraw(value) ? value : null)]));
  }

  #size() {
    return { width: this.#frame.clientWidth, height: this.#frame.clientHeight };
  }

  /** How far the curves go that are seen. */
  #reached() {
    const { lines, zoom, isLog } = this.#content, { min = -Infinity, max = Infinity } = zoom ?? {};
    const seen = lines.filter(({ label, isAverage }) => !isAverage && !this.#hidden.has(label)).map(
      ({ x, y, steps }) => {
        const inView = x.map((_, i) => i).filter((i) => (x[i] ?? NaN) >= min && (x[i] ?? NaN) <= max);
        return { y: inView.map((i) => y[i] ?? NaN), steps: inView.map((i) => steps[i] ?? NaN) };
      },
    );
    const isWhole = this.#isWhole || !this.spec.isNoisy;
    return reach(seen, { fromZero: this.spec.fromZero, isLog, isWhole });
  }

  /** Whether outliers are shown too. @param {boolean} isWhole */
  #showBeyond(isWhole) {
    const { above = null, below = null } = this.#reached() ?? {};
    if (isWhole && above === null && below === null) return;
    this.#isWhole = isWhole;
    this.draw(this.#content);
  }

  /** Says on the button how far outliers go, which are marked at the edge. */
  #nameBeyond() {
    const { above = null, below = null } = this.#reached() ?? {};
    const ends = [
      above !== null && `up to ${this.spec.format(above)}`,
      below !== null && `down to ${this.spec.format(below)}`,
    ];
    const text = ends.filter(Boolean).join(", ");
    this.#beyond.hidden = text === "" && !this.#isWhole;
    this.#beyond.textContent = this.#isWhole ? "Hide outliers" : `Show ${text}`;
  }

  /**
   * @param {Line} line
   * @param {boolean} saysAverage
   */
  #legendEntry({ label, color, style }, saysAverage) {
    const mark = make("span", { class: `mark ${style}` });
    mark.style.color = color;
    const name = make("span", label ? {} : { class: "hidden" }, label || this.spec.title);
    const button = make("button", { type: "button" }, mark, name, saysAverage ? "smoothed" : "", make("b"));
    button.addEventListener("click", () => {
      if (!this.#hidden.delete(label)) this.#hidden.add(label);
      this.#applyHidden();
      this.#nameBeyond();
    });
    return make("li", {}, button);
  }

  #applyHidden() {
    this.#content.lines.forEach(({ label }, i) =>
      this.#plot?.setSeries(i + 1, { show: !this.#hidden.has(label) })
    );
    const named = this.#content.lines.filter(isNamed);
    this.#legend.querySelectorAll("button").forEach((button, i) => {
      button.setAttribute("aria-pressed", String(!this.#hidden.has(named[i]?.label ?? "")));
    });
  }

  /** Writes the values at the cursor, or else the newest ones, into the legend. */
  #showValues() {
    const plot = this.#plot, { lines, axis } = this.#content;
    if (!plot) return;
    const { idx, idxs = [] } = plot.cursor;
    const atCursor = typeof idx === "number";
    const values = this.#legend.querySelectorAll("b");
    let entry = 0;
    lines.forEach((line, i) => {
      if (!isNamed(line)) return;
      const value = atCursor ? plot.data[i + 1]?.[idxs[i + 1] ?? idx] : line.y.findLast(Number.isFinite);
      const target = values[entry++];
      if (target) {
        target.textContent = value === null ? "NaN" : value === undefined ? "–" : this.spec.format(value);
      }
    });
    this.#place.textContent = atCursor ? PLACE[axis](plot.data[0][idx] ?? 0) : "";
    this.#place.style.left = `${plot.over.offsetLeft + (plot.cursor.left ?? 0)}px`;
  }

  /** Arrow keys move the cursor, + and - zoom around it, Escape shows all. @param {KeyboardEvent} event */
  #onKey(event) {
    const plot = this.#plot;
    if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      moveCursor(plot, event.key === "ArrowLeft" ? -1 : 1);
    } else if (event.key === "+" || event.key === "=") this.onZoom(zoomed(plot, 0.5));
    else if (event.key === "-") this.onZoom(zoomed(plot, 2));
    else if (event.key === "Escape") this.onZoom(null);
    else return;
    event.preventDefault();
  }
}

/** @param {Line} line */
function isNamed(line) {
  return line.style !== "faint";
}

/**
 * Moves the cursor by a point; it begins at the right end.
 * @param {Plot} plot
 * @param {number} by
 */
function moveCursor(plot, by) {
  const xs = plot.data[0], { min = 0, max = 0 } = plot.scales.x ?? {};
  const index = Math.min(xs.length - 1, Math.max(0, (plot.cursor.idx ?? xs.length) + by));
  const x = Math.min(max, Math.max(min, xs[index] ?? 0));
  plot.setCursor({ left: plot.valToPos(x, "x"), top: plot.over.clientHeight / 2 });
}

/**
 * The range that is `factor` times as wide as the one in view, around the cursor; null for all of the run.
 * @param {Plot} plot
 * @param {number} factor
 * @returns {Zoom | null}
 */
function zoomed(plot, factor) {
  const xs = plot.data[0], { min = 0, max = 0 } = plot.scales.x ?? {};
  const first = xs[0] ?? min, last = xs[xs.length - 1] ?? max;
  const width = factor * (max - min);
  if (width >= last - first) return null;
  const center = typeof plot.cursor.idx === "number" ? xs[plot.cursor.idx] ?? max : (min + max) / 2;
  const start = Math.min(last - width, Math.max(first, center - width / 2));
  return { min: start, max: start + width };
}
