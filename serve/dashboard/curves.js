// @ts-check
/// <reference lib="dom" />
// Which charts there are, and the curves that runs have in them.
import { cssColor } from "./dom.js";
import { bytes, integer, loss, percent, significant } from "./format.js";
import { places, smooth, summary } from "./series.js";

/** @typedef {import("./plot.js").ChartSpec} ChartSpec */
/** @typedef {import("./plot.js").Line} Line */
/** @typedef {import("./series.js").Measured} Measured */
/** @typedef {import("./series.js").Series} Series */
/** @typedef {import("./series.js").XAxis} XAxis */

/** @typedef {{ name: string, measured: Measured }} DrawnRun */
/** @typedef {{ axis: XAxis, smoothing: number }} How */

/** @type {ChartSpec[]} The first one is large. */
export const CHARTS = [
  {
    key: "loss",
    title: "Loss",
    unit: "nats a token",
    format: loss,
    isNoisy: true,
    marksLost: true,
  },
  {
    key: "grad_norm",
    title: "Gradient norm",
    unit: "before clipping",
    format: significant,
    isNoisy: true,
    marksLost: true,
  },
  { key: "lr", title: "Learning rate", format: significant, fromZero: true },
  {
    key: "tokens_per_sec",
    title: "Speed",
    unit: "tokens a second",
    format: integer,
    fromZero: true,
    isNoisy: true,
  },
  {
    key: "mfu",
    title: "MFU",
    unit: "of the device's peak",
    empty: "The peak of this device is not known",
    format: percent,
    ticks: "share",
    fromZero: true,
    isNoisy: true,
  },
  { key: "memory_bytes", title: "Memory", format: bytes, ticks: "bytes", fromZero: true },
  {
    key: "task_acc_norm",
    title: "Tasks",
    unit: "acc_norm, mean of all",
    format: percent,
    ticks: "share",
    isRare: true,
  },
  {
    key: "skipped",
    title: "Skipped updates",
    unit: "so far",
    format: integer,
    fromZero: true,
    isStepped: true,
  },
];

/**
 * The curves of a chart, in the order in which they are painted: of each run what was measured, faint, its average over it,
 * and the validation loss.
 * @param {ChartSpec} spec
 * @param {DrawnRun[]} runs the first has the first colour
 * @param {How} how
 * @returns {Line[]}
 */
export function curves(spec, runs, how) {
  return runs.flatMap(({ name, measured }, i) => {
    const isAlone = runs.length === 1, isLoss = spec.key === "loss", color = cssColor(`run-${i + 1}`);
    const label = isAlone ? (isLoss ? "train" : "") : name;
    const drawn = trainCurves(spec, { label, color }, measured, how);
    const val_loss = measured.val_loss ?? [];
    if (!isLoss || val_loss.length === 0) return drawn;
    const look = isAlone ? { label: "val", color: cssColor("val") } : { label: `${name} val`, color };
    return [...drawn, { ...look, ...measuredLine(val_loss, measured, how.axis), style: "dots" }];
  });
}

/**
 * What was measured at every step, faint under its average where it is to be smoothed.
 * @param {ChartSpec} spec
 * @param {Pick<Line, "label" | "color">} look
 * @param {Measured} measured
 * @param {How} how
 * @returns {Line[]}
 */
function trainCurves({ key, isNoisy }, look, measured, { axis, smoothing }) {
  const series = measured[key] ?? [], line = { ...look, ...measuredLine(series, measured, axis) };
  if (!isNoisy || smoothing === 0) return [line];
  return [{ ...line, style: "faint" }, { ...line, isAverage: true, y: smooth(series, smoothing) }];
}

/**
 * @param {Series} series
 * @param {Measured} measured
 * @param {XAxis} axis
 * @returns {Omit<Line, "label" | "color">}
 */
function measuredLine(series, measured, axis) {
  const x = places(series, axis, measured), steps = series.map((p) => p.step), y = series.map((p) => p.value);
  const until = places(measured.loss?.slice(-1) ?? [], axis, measured)[0] ?? Infinity;
  return { style: "line", isAverage: false, x, y, steps, until };
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
