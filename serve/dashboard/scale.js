// @ts-check
// The axes of a chart: how far the y axis reaches, and what ticks say. No DOM here.

/** @typedef {{ min: number, max: number }} Limits */

/**
 * How far an axis reaches, without margin. above, below: the farthest value beyond its end, null where there is none.
 * @typedef {Limits & { above: number | null, below: number | null }} Reach
 */

/**
 * What stands at ticks: plain numbers, counts (12k, 1.5M), shares of one as percent, bytes, seconds.
 * @typedef {"number" | "count" | "share" | "bytes" | "time"} TickKind
 */

const TAIL = 0.02; // of the steps may lie beyond an end of the axis
const ROOM = 0.5; // of the height of the others is left for them
const FLATTENED = 2; // times as high as without them: then they are left out

/**
 * How far a y axis reaches for curves. Extremes do not flatten the rest: where all values need more than twice the height
 * that those between the 2nd and the 98th percentile of a run's steps have, with half of it more at both ends, the axis
 * ends there.
 * @param {{ y: number[], steps: number[] }[]} curves values at steps; not finite ones do not count
 * @param {{ fromZero?: boolean | undefined, isLog?: boolean, isWhole?: boolean }} how fromZero: the axis begins at 0, for
 *   values that are not below it; isLog: heights are those of logarithms; isWhole: nothing is left out
 * @returns {Reach | null} null where there is nothing to show
 */
export function reach(curves, { fromZero = false, isLog = false, isWhole = false }) {
  const scaled = (/** @type {number} */ value) => isLog ? Math.log(value) : value;
  const back = (/** @type {number} */ value) => isLog ? Math.exp(value) : value;
  const weighed = curves.map(({ y, steps }) => weigh(y.map(scaled), steps)).filter(({ length }) =>
    length > 0
  );
  if (weighed.length === 0) return null;
  const all = union(weighed.map(ends)), most = union(weighed.map(bulk));
  const floor = fromZero && !isLog;
  if (floor) all.min = most.min = Math.min(0, all.min);
  const isCut = !isWhole && most.max > most.min && all.max - all.min > FLATTENED * (most.max - most.min);
  const shown = isCut ? most : all;
  return {
    min: back(shown.min),
    max: back(shown.max),
    above: all.max > shown.max ? back(all.max) : null,
    below: all.min < shown.min ? back(all.min) : null,
  };
}

/** @typedef {{ value: number, weight: number }} Weighed */

/**
 * The finite values, ascending, each with the number of steps that it stands for: single ones, or a stretch of many.
 * @param {number[]} values
 * @param {number[]} steps
 * @returns {Weighed[]}
 */
function weigh(values, steps) {
  return values.map((value, i) => ({
    value,
    weight: (steps[i] ?? 0) - (steps[i - 1] ?? (steps[i] ?? 0) - 1),
  }))
    .filter(({ value }) => Number.isFinite(value)).sort((a, b) => a.value - b.value);
}

/** @param {Weighed[]} weighed @returns {Limits} */
function ends(weighed) {
  return { min: weighed[0]?.value ?? NaN, max: weighed.at(-1)?.value ?? NaN };
}

/** Where most values lie, and some room beyond, but no farther than the last one. @param {Weighed[]} weighed @returns {Limits} */
function bulk(weighed) {
  const total = weighed.reduce((sum, { weight }) => sum + weight, 0), { min, max } = ends(weighed);
  let seen = 0, low = min, high = max;
  for (const { value, weight } of weighed) {
    if (seen <= TAIL * total) low = value;
    if (seen < (1 - TAIL) * total) high = value;
    seen += weight;
  }
  const room = ROOM * (high - low);
  return { min: Math.max(min, low - room), max: Math.min(max, high + room) };
}

/** @param {Limits[]} limits @returns {Limits} */
function union(limits) {
  return { min: Math.min(...limits.map(({ min }) => min)), max: Math.max(...limits.map(({ max }) => max)) };
}

/**
 * The limits of a y axis, with a margin around what it reaches to.
 * @param {Limits} reached
 * @param {{ fromZero?: boolean | undefined, isLog?: boolean }} how
 * @returns {[number, number]}
 */
export function withMargin({ min, max }, { fromZero = false, isLog = false }) {
  if (isLog) {
    const margin = min === max ? 1.1 : (max / min) ** 0.06;
    return [min / margin, max * margin];
  }
  if (fromZero) return [min, min + 1.08 * (max - min) || 1];
  const margin = 0.06 * (max - min) || 0.1 * Math.abs(max) || 1;
  return [min - margin, max + margin];
}

/** Distances between ticks of steps and tokens. */
export const ROUND = Array.from({ length: 16 }, (_, i) => [1, 2, 5].map((n) => n * 10 ** i)).flat();

/** Of seconds, minutes, hours and days. */
export const ROUND_TIMES = [
  ...[1, 2, 5, 10, 15, 30],
  ...[1, 2, 5, 10, 15, 30].map((minutes) => 60 * minutes),
  ...[1, 2, 3, 6, 12].map((hours) => 3600 * hours),
  ...[1, 2, 5, 10, 20, 50, 100].map((days) => 86400 * days),
];

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

/** @type {Record<Exclude<TickKind, "time">, [number, string][]>} units from large to small, and what stands behind the number */
const UNITS = {
  number: [[1, ""]],
  count: [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"], [1, ""]],
  share: [[0.01, "%"]],
  bytes: [[1e12, " TB"], [1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [1, " B"]],
};
const MOST_DIGITS = 4; // behind the point; smaller numbers are written as 2.5e-5

/**
 * Labels that say what the ticks are: all have the digits that the most exact one needs, and one unit. Ticks at uneven
 * distances, as on a logarithmic axis, have their own digits each.
 * @param {number[]} ticks ascending
 * @param {TickKind} kind
 * @returns {string[]}
 */
export function tickLabels(ticks, kind = "number") {
  if (kind === "time") return ticks.map(exactTime);
  const most = Math.max(...ticks.map(Math.abs)), units = UNITS[kind], least = units.at(-1);
  let [size, suffix] = units.find(([size]) => most >= size) ?? least ?? [1, ""];
  const isEven = ticks.every((tick, i) =>
    i < 2 || isNear(tick - (ticks[i - 1] ?? 0), (ticks[1] ?? 0) - (ticks[0] ?? 0))
  );
  const digits = (/** @type {number} */ size) => Math.max(0, ...ticks.map((tick) => digitsOf(tick / size)));
  if (kind === "count" && digits(size) > (most < 10_000 ? 0 : 2)) [size, suffix] = [1, ""];
  const common = digits(size);
  return ticks.map((tick) => {
    if (tick === 0) return kind === "count" ? "0" : `0${suffix}`;
    const value = tick / size, own = isEven ? common : digitsOf(value);
    if (own > MOST_DIGITS || Math.abs(value) >= 1e6 && kind === "number") return shortest(value) + suffix;
    const [minimumFractionDigits, maximumFractionDigits] = [own, own];
    return value.toLocaleString("en-US", { minimumFractionDigits, maximumFractionDigits }) + suffix;
  });
}

/** How many digits behind the point a number has, apart from the noise of its last bits. @param {number} value */
function digitsOf(value) {
  for (let digits = 0; digits < 15; digits++) if (isNear(Number(value.toFixed(digits)), value)) return digits;
  return 15;
}

/** 2.5e-5, 1e6: as many digits as it has. @param {number} value */
function shortest(value) {
  return value === 0 ? "0" : Number(value.toPrecision(9)).toExponential().replace("e+", "e");
}

/** @param {number} a @param {number} b */
function isNear(a, b) {
  return Math.abs(a - b) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b));
}

/** 1 d 6 h, 12 min 30 s, 0.5 s: nothing is rounded away. @param {number} seconds */
function exactTime(seconds) {
  if (!Number.isInteger(seconds)) return `${Number(seconds.toPrecision(6))} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].map(([size, unit], i, all) => {
    const rest = i === 0 ? seconds : seconds % Number(all[i - 1]?.[0]);
    return { count: Math.floor(rest / Number(size)), unit };
  });
  return parts.filter(({ count }) => count > 0).map(({ count, unit }) => `${count} ${unit}`).join(" ") ||
    "0 s";
}
