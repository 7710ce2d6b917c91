// @ts-check
/// <reference lib="dom" />
// Which charts there are, and the curves that runs have in them.
import { cssColor } from "./dom.js";
import { bytes, integer, loss, percent, roundBytes, roundPercent, significant } from "./format.js";
import { places, smooth, summary } from "./series.js";

/** @typedef {import("./plot.js").ChartSpec} ChartSpec */
/** @typedef {import("./plot.js").Line} Line */
/** @typedef {import("./series.js").Measured} Measured */
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
    const x = places(val_loss, how.axis, measured);
    return [...drawn, { ...look, style: "dots", x, y: val_loss.map((p) => p.value) }];
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
function trainCurves({ key, isSmoothed }, look, measured, { axis, smoothing }) {
  const series = measured[key] ?? [], x = places(series, axis, measured), y = series.map((p) => p.value);
  if (!isSmoothed || smoothing === 0) return [{ ...look, style: "line", x, y }];
  return [{ ...look, style: "faint", x, y }, { ...look, style: "line", x, y: smooth(series, smoothing) }];
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
