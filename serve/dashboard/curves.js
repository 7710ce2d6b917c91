// @ts-check
/// <reference lib="dom" />
// Which charts there are, and the curves that runs have in them.
import { cssColor } from "./dom.js";
import { bytes, integer, loss, percent, roundBytes, roundPercent, significant } from "./format.js";
import { places, smooth, summary } from "./series.js";

/** @typedef {import("./plot.js").ChartSpec} ChartSpec */
/** @typedef {import("./plot.js").Line} Line */
/** @typedef {import("./series.js").Measured} Measured */
/** @typedef {import("./series.js").Series} Series */
/** @typedef {import("./series.js").XAxis} XAxis */

/** @typedef {{ name: string, measured: Measured }} DrawnRun */
/** @typedef {{ axis: XAxis, smoothing: number }} How */

const NOTHING = "No step yet";

/** @type {ChartSpec[]} The first one is large. */
export const CHARTS = [
  { key: "loss", title: "Loss", empty: NOTHING, format: loss, isSmoothed: true },
  { key: "grad_norm", title: "Gradient norm", empty: NOTHING, format: significant, isSmoothed: true },
  {
    key: "lr",
    title: "Learning rate",
    empty: NOTHING,
    format: significant,
    ticks: significant,
    fromZero: true,
  },
  {
    key: "tokens_per_sec",
    title: "Tokens per second",
    empty: NOTHING,
    format: integer,
    ticks: integer,
    fromZero: true,
    isSmoothed: true,
  },
  {
    key: "mfu",
    title: "MFU",
    empty: "The peak of this device is not known",
    format: percent,
    ticks: roundPercent,
    fromZero: true,
    isSmoothed: true,
  },
  { key: "memory_bytes", title: "Memory", empty: NOTHING, format: bytes, ticks: roundBytes, fromZero: true },
  {
    key: "skipped",
    title: "Skipped steps",
    empty: NOTHING,
    format: integer,
    ticks: integer,
    fromZero: true,
    isStepped: true,
  },
];

/**
 * The curves of a chart, in the order in which they are painted.
 * @param {ChartSpec} spec
 * @param {DrawnRun[]} runs the first has the first colour
 * @param {How} how
 * @returns {Line[]}
 */
export function curves(spec, runs, how) {
  const isAlone = runs.length === 1;
  return runs.flatMap(({ name, measured }, i) => {
    const series = measured[spec.key] ?? [], color = cssColor(`run-${i + 1}`);
    const label = isAlone && spec.key === "loss" ? "train" : isAlone ? "" : name;
    const drawn = measuredAndSmooth(
      spec,
      series,
      { label, color, x: places(series, how.axis, measured) },
      how,
    );
    if (spec.key !== "loss" || !measured.val_loss?.length) return drawn;
    const val = { label: isAlone ? "val" : `${name} val`, color: isAlone ? cssColor("val") : color };
    return [...drawn, { ...val, style: "dots", ...points(measured.val_loss, how.axis, measured) }];
  });
}

/**
 * What was measured, faint, and its average over it; or only the first where nothing is to be smoothed.
 * @param {ChartSpec} spec
 * @param {Series} series
 * @param {Pick<Line, "label" | "color" | "x">} base
 * @param {How} how
 * @returns {Line[]}
 */
function measuredAndSmooth({ isSmoothed }, series, base, { smoothing }) {
  const y = series.map((p) => p.value);
  if (!isSmoothed || smoothing === 0) return [{ ...base, style: "line", y }];
  const average = smooth(series, smoothing).map((p) => p.value);
  return [{ ...base, style: "faint", y }, { ...base, style: "line", y: average }];
}

/**
 * @param {Series} series
 * @param {XAxis} axis
 * @param {Measured} measured
 */
function points(series, axis, measured) {
  return { x: places(series, axis, measured), y: series.map((p) => p.value) };
}

/**
 * A chart in words.
 * @param {ChartSpec} spec
 * @param {DrawnRun[]} runs
 */
export function chartInWords({ key, format }, runs) {
  return runs.map(({ name, measured }) => {
    const val = key === "loss" && measured.val_loss?.length;
    return `${name} ${summary(measured[key] ?? [], format)}` +
      (val ? `; validation ${summary(measured.val_loss ?? [], format)}` : "");
  }).join(". ");
}
