// @ts-check
// Numbers as people read them: 12,345 · 1.2B · 2 h 14 min · 64 MB. What is not known is an en dash.

const UNKNOWN = "–";
const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** @typedef {number | null | undefined} Maybe a number, or nothing known yet; NaN counts as nothing */

/** @param {Maybe} value @returns {value is number} */
export function isKnown(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** 12,345 @param {Maybe} value */
export function integer(value) {
  return isKnown(value) ? GROUPED.format(value) : UNKNOWN;
}

/** 3.2104 @param {Maybe} value */
export function loss(value) {
  return isKnown(value) ? value.toFixed(value < 100 ? 4 : 1) : UNKNOWN;
}

/** 0.87, 1.2e-4, 12.5: three significant digits. @param {Maybe} value */
export function significant(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return size >= 1000 ? integer(value) : String(Number(value.toPrecision(3)));
}

/** 950, 12.3k, 4.56M, 1.2B. @param {Maybe} value */
export function compact(value) {
  if (!isKnown(value)) return UNKNOWN;
  for (const [unit, suffix] of /** @type {const} */ ([[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])) {
    if (Math.abs(value) >= unit) return Number((value / unit).toPrecision(3)) + suffix;
  }
  return String(Number(value.toPrecision(3)));
}

/** 38.2 % of a share between 0 and 1. @param {Maybe} share */
export function percent(share) {
  if (!isKnown(share)) return UNKNOWN;
  const value = 100 * share;
  return `${value.toFixed(value < 100 ? 1 : 0)}%`;
}

/** 1.20 GB, 340 MB: decimal units, as in the log. @param {Maybe} value */
export function bytes(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} GB`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(0)} MB`;
  return value === 0 ? "0" : `${(value / 1e3).toFixed(0)} kB`;
}

/** 412 ms, 1.25 s, 14.2 s. @param {Maybe} ms */
export function stepTime(ms) {
  if (!isKnown(ms)) return UNKNOWN;
  if (ms < 1000) return `${significant(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

/** 3 d 4 h, 2 h 14 min, 25 min, 5 min 10 s, 12 s: as exact as one wants to know. @param {Maybe} seconds */
export function duration(seconds) {
  if (!isKnown(seconds) || seconds < 0) return UNKNOWN;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const s = Math.round(seconds), min = Math.floor(s / 60), h = Math.floor(min / 60), d = Math.floor(h / 24);
  if (min === 0) return `${s} s`;
  if (min < 10) return inTwo(min, "min", s % 60, "s");
  if (h === 0) return `${min} min`;
  return d === 0 ? inTwo(h, "h", min % 60, "min") : inTwo(d, "d", h % 24, "h");
}

/**
 * "2 h 14 min", or "2 h" for two hours.
 * @param {number} large
 * @param {string} unit
 * @param {number} small
 * @param {string} smallUnit
 */
function inTwo(large, unit, small, smallUnit) {
  return `${large} ${unit}` + (small > 0 ? ` ${small} ${smallUnit}` : "");
}

/** 14:32 today, Mon 14:32 within a week, 3 Dec 14:32 after that. @param {Date} date @param {Date} now */
export function clock(date, now = new Date()) {
  const time = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  if (date.toDateString() === now.toDateString()) return time;
  const days = Math.abs(date.getTime() - now.getTime()) / 86_400_000;
  /** @type {Intl.DateTimeFormatOptions} */
  const day = days < 6 ? { weekday: "short" } : { day: "numeric", month: "short" };
  return `${date.toLocaleDateString("en-GB", day)} ${time}`;
}

/** Whether a text looks like a program, whose columns should stand below one another. @param {string} text */
export function isCode(text) {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  const marked = lines.filter((line) =>
    /^(\t| {2,})\S|[{};]\s*$|^\s*[})\]]|=>|==|\w\(.*\)|^\s*(#include|\/\/|import |def )/.test(line)
  );
  return lines.length > 1 && marked.length > lines.length / 2;
}

/**
 * A device and a model as the head of the page names them: "cpu: AMD EPYC, 2 threads, avx512 · 0.8M parameters". How it was
 * chosen, and its library, stand in the list of the configuration.
 * @param {string | null} device
 * @param {string | null} model
 */
export function inShort(device, model) {
  const short = device?.replace(/ \([^)]*\)(?=: )/, "").replace(/, (GEMM|attention): .*/, "");
  return [short, model?.replace(/,.*/, "")].filter(Boolean).join(" · ");
}
