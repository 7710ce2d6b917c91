// @ts-check
/// <reference lib="dom" />
// How a chart looks, as options of uPlot: axes, ranges, curves, cursor.
import { cssColor } from "./dom.js";
import { compact, duration, tickLabels } from "./format.js";

/** @typedef {import("uplot/dist/uPlot.d.ts")} Plot */
/** @typedef {import("uplot/dist/uPlot.d.ts").Options} PlotOptions */
/** @typedef {import("uplot/dist/uPlot.d.ts").Range.MinMax} MinMax */
/** @typedef {import("./series.js").XAxis} XAxis */
/** @typedef {{ min: number, max: number }} Zoom a range of the x axis */

/**
 * A curve. Faint ones are what was measured; the curve after it, its average, speaks for both in the legend. Dots are
 * joined: they are far apart.
 * @typedef {{ label: string, color: string, style: "faint" | "line" | "dots", x: number[], y: number[] }} Line
 */

/**
 * One chart of the page. ticks writes the labels of the y axis, where plain numbers do not. fromZero: the y axis begins at
 * 0. isStepped: a count, which changes at once. empty: what to say while there is nothing to draw.
 * @typedef {{
 *   key: string, title: string, empty: string, format: (value: number) => string, ticks?: (value: number) => string,
 *   fromZero?: boolean, isSmoothed?: boolean, isStepped?: boolean,
 * }} ChartSpec
 */

/** @type {typeof import("uplot/dist/uPlot.d.ts")} uplot.js is a classic script */
export const uPlot = Reflect.get(globalThis, "uPlot");

/** Distances between ticks: round numbers of steps and tokens; of seconds, minutes, hours and days. */
const ROUND = Array.from({ length: 16 }, (_, i) => [1, 2, 5].map((n) => n * 10 ** i)).flat();
const ROUND_TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200]
  .concat([1, 2, 5, 10, 20, 50, 100].map((days) => 86400 * days));

/**
 * The options of a plot.
 * @param {ChartSpec} spec
 * @param {{ lines: Line[], axis: XAxis, isLog: boolean, width: number, height: number }} what
 * @param {{ zoom: () => Zoom | null, onZoom: (zoom: Zoom | null) => void, onCursor: () => void }} links
 * @returns {PlotOptions}
 */
export function plotOptions(spec, { lines, axis, isLog, width, height }, { zoom, onZoom, onCursor }) {
  return {
    width,
    height,
    legend: { show: false },
    padding: [8, 16, 0, 0],
    scales: {
      x: { time: false, range: (_plot, min, max) => xRange(min, max, zoom()) },
      y: {
        distr: isLog ? 3 : 1,
        range: (_plot, min, max) => isLog ? logRange(min, max) : yRange(min, max, spec.fromZero),
      },
    },
    axes: [xAxis(axis, width), yAxis(spec, isLog)],
    series: [{}, ...lines.map((line) => seriesOptions(line, spec.isStepped))],
    cursor: cursorOptions(lines, onZoom),
    hooks: {
      setCursor: [onCursor],
      setSelect: [(plot) => selected(plot, onZoom)],
    },
  };
}

/** What both axes have. */
function axisOptions() {
  return {
    stroke: cssColor("muted"),
    grid: { stroke: cssColor("grid"), width: 1 },
    font: `12px ${getComputedStyle(document.body).fontFamily}`,
    ticks: { show: false },
  };
}

/**
 * @param {XAxis} axis
 * @param {number} width of the chart
 * @returns {import("uplot/dist/uPlot.d.ts").Axis}
 */
function xAxis(axis, width) {
  const format = axis === "time" ? duration : compact;
  return {
    ...axisOptions(),
    size: 28,
    space: width < 600 ? 56 : 96,
    incrs: axis === "time" ? ROUND_TIMES : ROUND,
    values: (_plot, values) => values.map(format),
  };
}

/**
 * @param {ChartSpec} spec
 * @param {boolean} isLog
 * @returns {import("uplot/dist/uPlot.d.ts").Axis}
 */
function yAxis({ format, ticks, isStepped }, isLog) {
  return {
    ...axisOptions(),
    gap: 8,
    space: 36,
    size: (_plot, labels) => 16 + 7 * Math.max(3, ...(labels ?? []).map((label) => label.length)),
    values: (_plot, values) => ticks ? values.map(ticks) : tickLabels(values, format),
    ...(isStepped && { incrs: ROUND }),
    ...(isLog && { splits: (/** @type {Plot} */ { scales: { y } }) => logTicks(y?.min ?? 1, y?.max ?? 1) }),
  };
}

/**
 * @param {number | null} min
 * @param {number | null} max
 * @param {Zoom | null} zoom
 * @returns {MinMax}
 */
function xRange(min, max, zoom) {
  if (zoom) return [zoom.min, zoom.max];
  if (min === null || max === null) return [null, null];
  return min === max ? [0, 2 * max] : [min, max];
}

/**
 * @param {number | null} min
 * @param {number | null} max
 * @param {boolean} fromZero
 * @returns {MinMax}
 */
function yRange(min, max, fromZero = false) {
  if (min === null || max === null) return [null, null];
  if (fromZero) return [0, 1.08 * max || 1];
  const margin = 0.06 * (max - min) || 0.1 * Math.abs(max) || 1;
  return [min - margin, max + margin];
}

/**
 * @param {number | null} min
 * @param {number | null} max
 * @returns {MinMax}
 */
function logRange(min, max) {
  if (min === null || max === null) return [null, null];
  const margin = (max / min) ** 0.06;
  return margin === 1 ? [min / 1.1, max * 1.1] : [min / margin, max * margin];
}

/**
 * Round numbers of a logarithmic axis: 2, 3, 5, 10, 20, … or, where it spans little, as on a linear one.
 * @param {number} min
 * @param {number} max
 */
export function logTicks(min, max) {
  const distance = ROUND.map((n) => n / 1e6).find((n) => (max - min) / n <= 6) ?? 1;
  const linear = Array.from({ length: 7 }, (_, i) => (Math.ceil(min / distance) + i) * distance);
  if (max / min < 3) return linear.filter((tick) => tick <= max);
  const mantissas = max / min < 100 ? [1, 2, 3, 5, 7] : [1];
  const decades = Array.from({ length: 40 }, (_, i) => 10 ** (i - 20));
  return decades.flatMap((ten) => mantissas.map((n) => n * ten)).filter((tick) => tick >= min && tick <= max);
}

/**
 * @param {Line} line
 * @param {boolean} isStepped
 * @returns {import("uplot/dist/uPlot.d.ts").Series}
 */
function seriesOptions({ color, style }, isStepped = false) {
  return {
    stroke: color,
    width: style === "faint" ? 1 : 2,
    alpha: style === "faint" ? 0.3 : 1,
    points: {
      size: 6,
      fill: color,
      show: (plot, index) => style === "dots" && hasRoom(plot, index),
      filter: (plot, index, isShown) => isShown || style === "faint" ? null : lonely(plot.data[index] ?? []),
    },
    ...(style === "dots" && { dash: [6, 4] }),
    ...(isStepped && uPlot.paths.stepped && { paths: uPlot.paths.stepped({ align: 1 }) }),
  };
}

/**
 * Whether there is room to mark every point of a curve.
 * @param {Plot} plot
 * @param {number} index
 */
function hasRoom({ data, over }, index) {
  const count = Array.from(data[index] ?? []).filter((value) => value != null).length;
  return 12 * count < over.clientWidth;
}

/**
 * Where a value stands between gaps or alone: no line leads there, so that it has to be marked.
 * @param {ArrayLike<number | null | undefined>} values undefined at the steps of other curves
 */
function lonely(values) {
  const own = Array.from(values, (_, i) => i).filter((i) => values[i] !== undefined);
  const isKnown = (/** @type {number | undefined} */ i) => i !== undefined && values[i] !== null;
  return own.filter((i, k) => isKnown(i) && !isKnown(own[k - 1]) && !isKnown(own[k + 1]));
}

/**
 * A cursor that all charts share; dragging selects what to zoom into, a double click shows all again.
 * @param {Line[]} lines
 * @param {(zoom: Zoom | null) => void} onZoom
 * @returns {import("uplot/dist/uPlot.d.ts").Cursor}
 */
function cursorOptions(lines, onZoom) {
  const isFaint = (/** @type {number} */ series) => lines[series - 1]?.style === "faint";
  return {
    y: false,
    drag: { x: true, y: false, setScale: false },
    sync: { key: "loam", scales: ["x", null], filters: { pub: isMove } },
    points: { size: (_plot, series) => isFaint(series) ? 0 : 8 },
    dataIdx: (plot, series, index) => nearestKnown(plot.data[series] ?? [], index),
    bind: { dblclick: () => () => (onZoom(null), null) },
  };
}

/** What other charts follow: where the cursor is, not what is selected. @param {string} type */
function isMove(type) {
  return type === "mousemove" || type === "mouseleave";
}

/**
 * The index nearest to one at which there is a value: every curve has its own steps.
 * @param {ArrayLike<number | null | undefined>} values
 * @param {number} index
 */
function nearestKnown(values, index) {
  for (let distance = 0; distance < values.length; distance++) {
    if (values[index - distance] != null) return index - distance;
    if (values[index + distance] != null) return index + distance;
  }
  return index;
}

/**
 * @param {Plot} plot
 * @param {(zoom: Zoom) => void} onZoom
 */
function selected(plot, onZoom) {
  const { left, width, height, top } = plot.select;
  if (width < 4) return; // a click
  plot.setSelect({ left: 0, width: 0, top, height }, false);
  onZoom({ min: plot.posToVal(left, "x"), max: plot.posToVal(left + width, "x") });
}
