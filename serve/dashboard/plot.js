// @ts-check
/// <reference lib="dom" />
// How a chart looks, as options of uPlot: axes, ranges, curves, cursor.
import { cssColor } from "./dom.js";
import { logTicks, ROUND, ROUND_TIMES, tickLabels, withMargin } from "./scale.js";

/** @typedef {import("uplot/dist/uPlot.d.ts")} Plot */
/** @typedef {import("uplot/dist/uPlot.d.ts").Options} PlotOptions */
/** @typedef {import("uplot/dist/uPlot.d.ts").Range.MinMax} MinMax */
/** @typedef {import("./scale.js").Reach} Reach */
/** @typedef {import("./scale.js").TickKind} TickKind */
/** @typedef {import("./series.js").XAxis} XAxis */
/** @typedef {{ min: number, max: number }} Zoom a range of the x axis */

/**
 * A curve: y at steps, whose places on the axis are x. Faint ones are what was measured; the curve after it, its average,
 * speaks for both in the legend (isAverage). Dots are joined: they are far apart. until: the place where its run ends.
 * @typedef {{
 *   label: string, color: string, style: "faint" | "line" | "dots", isAverage: boolean, x: number[], y: number[],
 *   steps: number[], until: number,
 * }} Line
 */

/**
 * One chart of the page. unit: of its values, where ticks do not say it. fromZero: the y axis begins at 0. isNoisy: it is
 * smoothed, and extremes do not flatten it. isStepped: a count, which changes at once. marksLost: steps where it was not
 * finite are marked. isRare: it is shown only where there is something to draw. empty: why there may be steps, but nothing to draw.
 * @typedef {{
 *   key: string, title: string, unit?: string, empty?: string, format: (value: number) => string, ticks?: TickKind,
 *   fromZero?: boolean, isNoisy?: boolean, isStepped?: boolean, marksLost?: boolean, isRare?: boolean,
 * }} ChartSpec
 */

/**
 * What a plot asks of its chart, and tells it. reached: how far the curves in view go up and down. onEdge: somebody has
 * clicked where values lie beyond the edge.
 * @typedef {{
 *   zoom: () => Zoom | null, reached: () => Reach | null, lines: () => Line[], onZoom: (zoom: Zoom | null) => void,
 *   onCursor: () => void, onEdge: () => void,
 * }} Links
 */

/** @type {typeof import("uplot/dist/uPlot.d.ts")} uplot.js is a classic script */
export const uPlot = Reflect.get(globalThis, "uPlot");

const MARK = 8; // pixels of the page: the size of a mark at the edge, and how far apart two are at least
const AXIS_NAMES = { step: "step", tokens: "tokens", time: "time of training" };

/**
 * The options of a plot.
 * @param {ChartSpec} spec
 * @param {{ lines: Line[], axis: XAxis, isLog: boolean, width: number, height: number }} what
 * @param {Links} links
 * @returns {PlotOptions}
 */
export function plotOptions(spec, { lines, axis, isLog, width, height }, links) {
  return {
    width,
    height,
    legend: { show: false },
    padding: [8, 20, 0, 0],
    scales: {
      x: { time: false, range: (_plot, min, max) => xRange(min, max, links.zoom()) },
      y: { distr: isLog ? 3 : 1, range: () => yRange(links.reached(), spec, isLog) },
    },
    axes: [xAxis(axis, width), yAxis(spec, isLog)],
    series: [{}, ...lines.map((line) => seriesOptions(line, spec.isStepped))],
    cursor: cursorOptions(lines, links.onZoom),
    hooks: {
      init: [({ over }) => over.addEventListener("click", (event) => clicked(over, event, links.onEdge))],
      setCursor: [links.onCursor],
      setSelect: [(plot) => selected(plot, links.onZoom)],
      draw: [(plot) => drawMarks(plot, links.lines(), spec.marksLost)],
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
  return {
    ...axisOptions(),
    size: 24,
    gap: 4,
    space: width < 600 ? 56 : 96,
    incrs: axis === "time" ? ROUND_TIMES : ROUND,
    values: (_plot, values) => tickLabels(values, axis === "time" ? "time" : "count"),
    label: AXIS_NAMES[axis],
    labelSize: 14,
    labelGap: 0,
    labelFont: axisOptions().font,
  };
}

/**
 * @param {ChartSpec} spec
 * @param {boolean} isLog
 * @returns {import("uplot/dist/uPlot.d.ts").Axis}
 */
function yAxis({ ticks, isStepped }, isLog) {
  return {
    ...axisOptions(),
    gap: 8,
    space: 36,
    size: (_plot, labels) => 16 + 7 * Math.max(3, ...(labels ?? []).map((label) => label.length)),
    values: (_plot, values) => tickLabels(values, ticks),
    ...(isStepped && { incrs: ROUND }),
    ...(isLog && {
      splits: (/** @type {Plot} */ { scales: { y } }) => logTicks(y?.min ?? 1, y?.max ?? 1),
      filter: (/** @type {Plot} */ _plot, /** @type {number[]} */ splits) => splits, // all of them have room
    }),
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
 * @param {Reach | null} reached
 * @param {ChartSpec} spec
 * @param {boolean} isLog
 * @returns {MinMax}
 */
function yRange(reached, { fromZero }, isLog) {
  return reached ? withMargin(reached, { fromZero, isLog }) : [null, null];
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
    dataIdx: (plot, series, index) =>
      nearestOwn(plot.data, series, index, lines[series - 1]?.until ?? Infinity),
    bind: { dblclick: () => () => (onZoom(null), null) },
  };
}

/** What other charts follow: where the cursor is, not what is selected. @param {string} type */
function isMove(type) {
  return type === "mousemove" || type === "mouseleave";
}

/**
 * The index nearest to one at which a curve has a point of its own, since every curve has its own steps. Where its run has
 * not begun or has ended, it has none.
 * @param {import("uplot/dist/uPlot.d.ts").AlignedData} data
 * @param {number} series
 * @param {number} index
 * @param {number} until
 */
function nearestOwn([xs, ...curves], series, index, until) {
  const values = curves[series - 1] ?? [];
  if ((xs[index] ?? 0) > until) return index;
  for (let distance = 0; distance < values.length; distance++) {
    if (values[index - distance] !== undefined) return index - distance;
    if (values[index + distance] !== undefined) return index + distance;
  }
  return index;
}

/**
 * @param {HTMLElement} over
 * @param {MouseEvent} event
 * @param {() => void} onEdge
 */
function clicked(over, { clientY }, onEdge) {
  const { top, bottom } = over.getBoundingClientRect();
  if (clientY < top + 2 * MARK || clientY > bottom - 2 * MARK) onEdge();
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

/**
 * Marks what no curve can show: values beyond the edge as triangles, and steps that were not finite as crosses.
 * @param {Plot} plot
 * @param {Line[]} lines
 * @param {boolean} marksLost
 */
function drawMarks(plot, lines, marksLost = false) {
  const { ctx, bbox } = plot, size = MARK * devicePixelRatio, bottom = bbox.top + bbox.height;
  const { min: left = -Infinity, max: right = Infinity } = plot.scales.x ?? {};
  const { min: low = -Infinity, max: high = Infinity } = plot.scales.y ?? {};
  const lostColor = marksLost ? cssColor("bad") : ""; // asked once, not for each mark: it adds to the page
  ctx.save();
  lines.forEach((line, i) => {
    if (line.isAverage || !plot.series[i + 1]?.show) return; // what was measured has the marks
    const last = { above: -Infinity, below: -Infinity, lost: -Infinity }; // where marks are, in pixels
    line.x.forEach((x, k) => {
      const value = line.y[k] ?? NaN, isLost = Number.isNaN(value);
      const kind = isLost ? "lost" : value > high ? "above" : value < low ? "below" : undefined;
      if (x < left || x > right || !kind || (isLost && !marksLost)) return;
      const at = plot.valToPos(x, "x", true);
      if (at < last[kind] + size) return;
      last[kind] = at;
      if (kind === "lost") cross(ctx, at, bottom - size, size, lostColor);
      else if (kind === "above") triangle(ctx, at, bbox.top, size, line.color);
      else triangle(ctx, at, bottom, -size, line.color);
    });
  });
  ctx.restore();
}

/**
 * A triangle whose tip is at (x, y), and which is below it, above it where the size is negative.
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x
 * @param {number} y
 * @param {number} size
 * @param {string} color
 */
function triangle(ctx, x, y, size, color) {
  ctx.fillStyle = color;
  ctx.beginPath();
  ctx.moveTo(x, y);
  ctx.lineTo(x - size / 2, y + size);
  ctx.lineTo(x + size / 2, y + size);
  ctx.fill();
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x of its centre
 * @param {number} y
 * @param {number} size
 * @param {string} color
 */
function cross(ctx, x, y, size, color) {
  ctx.strokeStyle = color;
  ctx.lineWidth = size / 4;
  ctx.beginPath();
  for (const slope of [1, -1]) {
    ctx.moveTo(x - size / 2, y - slope * size / 2);
    ctx.lineTo(x + size / 2, y + slope * size / 2);
  }
  ctx.stroke();
}
