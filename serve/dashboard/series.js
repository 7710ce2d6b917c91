// @ts-check
// What a run has measured, and what is computed from it: smoothing, other x axes, summaries. No DOM here.

/**
 * One measurement; NaN where it was not finite. mean: of the steps that a down-sampled point stands for; else the value.
 * @typedef {{ step: number, value: number, mean: number }} Point
 */
/** @typedef {Point[]} Series one quantity at the steps where it was measured, steps ascending */
/** @typedef {Record<string, Series>} Measured a series for each key of metrics.jsonl */
/** @typedef {"step" | "tokens" | "time"} XAxis */
/** @typedef {{ since: number, until: number }} StepRange steps after since, up to until */

/**
 * Adds a measurement. One that is not newer than the last is dropped, since it is in the series already.
 * @param {Series} series
 * @param {number} step
 * @param {number | null} value null where it was not finite, as in JSON
 */
export function append(series, step, value) {
  if (step > (series.at(-1)?.step ?? 0)) series.push({ step, value: value ?? NaN, mean: value ?? NaN });
}

/**
 * Drops what was measured after a step.
 * @param {Measured} measured
 * @param {number} step
 */
export function truncate(measured, step) {
  for (const [key, series] of Object.entries(measured)) measured[key] = series.filter((p) => p.step <= step);
}

/**
 * Replaces what is known of some steps by something more exact.
 * @param {Measured} measured
 * @param {Measured} detail
 * @param {StepRange} range the steps that the detail is about
 * @returns {Measured}
 */
export function refined(measured, detail, { since, until }) {
  const inner = Object.entries(detail).map(([key, series]) => {
    const before = measured[key]?.filter((p) => p.step <= since) ?? [];
    return [key, [...before, ...series, ...measured[key]?.filter((p) => p.step > until) ?? []]];
  });
  return { ...measured, ...Object.fromEntries(inner) };
}

/**
 * The exponential moving average with bias correction: the first values are true averages, not pulled towards 0. The
 * decay is per thousandth of the run, or per step in shorter runs, so that the curve keeps its shape where down-sampled
 * points are followed by single steps. A value that is not finite is a gap and does not count.
 * @param {Series} series
 * @param {number} decay above 0 and below 1
 * @returns {number[]}
 */
export function smooth(series, decay) {
  const first = series[0], final = series.at(-1);
  if (!first || !final) return [];
  const unit = Math.max(1, (final.step - first.step) / 1000);
  let sum = 0, weight = 0, previous = first.step - unit;
  return series.map(({ step, mean }) => {
    if (!Number.isFinite(mean)) return NaN;
    const kept = decay ** ((step - previous) / unit);
    previous = step;
    sum = kept * sum + (1 - kept) * mean;
    weight = kept * weight + (1 - kept);
    return sum / weight;
  });
}

/** @param {Series} series */
export function finite(series) {
  return series.filter(({ value }) => Number.isFinite(value));
}

/**
 * Where the points of a series lie on an x axis. Tokens and seconds are interpolated, since every series has its own steps.
 * @param {Series} series
 * @param {XAxis} axis
 * @param {Measured} measured
 * @returns {number[]} steps, tokens, or seconds of training; ascending
 */
export function places(series, axis, measured) {
  const steps = series.map((p) => p.step);
  return interpolate(steps, knownPlaces(axis, measured).map(({ step, value }) => [step, value]));
}

/**
 * The steps that lie between two places of an x axis, with those at its ends.
 * @param {number} min
 * @param {number} max
 * @param {XAxis} axis
 * @param {Measured} measured
 * @returns {StepRange}
 */
export function stepsBetween(min, max, axis, measured) {
  const known = knownPlaces(axis, measured).map(({ step, value }) => [value, step]);
  const [first = min, last = max] = interpolate([min, max], known);
  return { since: Math.max(0, Math.floor(first) - 1), until: Math.ceil(last) };
}

/**
 * @param {XAxis} axis
 * @param {Measured} measured
 * @returns {Series} the tokens or seconds at steps; empty where steps are the places
 */
function knownPlaces(axis, measured) {
  return finite((axis === "step" ? undefined : measured[axis === "tokens" ? "tokens" : "elapsed_s"]) ?? []);
}

/**
 * The y of each x, on straight lines from (0, 0) through known points, and on in the direction from (0, 0) to the last.
 * @param {number[]} xs ascending
 * @param {number[][]} known pairs [x, y], ascending; none: y is x
 */
function interpolate(xs, known) {
  let [x0 = 0, y0 = 0] = [0, 0], i = 0;
  return known.length === 0 ? xs : xs.map((x) => {
    let [x1 = 0, y1 = 0] = known[i] ?? [];
    while (i < known.length && x1 <= x) {
      [x0, y0] = [x1, y1];
      [x1 = 0, y1 = 0] = known[++i] ?? [];
    }
    return i === known.length ? y0 * x / x0 : y0 + (y1 - y0) * (x - x0) / (x1 - x0);
  });
}

/**
 * What a chart shows, for those who do not see it: "from 10.9 at step 1 to 3.2 at step 500, lowest 3.1 at step 480".
 * @param {Series} series
 * @param {(value: number) => string} format
 */
export function summary(series, format) {
  const points = finite(series);
  const first = points[0], final = points.at(-1);
  if (!first || !final) return "no values yet";
  const lowest = points.reduce((a, b) => b.value < a.value ? b : a);
  const highest = points.reduce((a, b) => b.value > a.value ? b : a);
  const at = (/** @type {Point} */ { step, value }) => `${format(value)} at step ${step}`;
  const lost = series.length - points.length;
  return `from ${at(first)} to ${at(final)}, lowest ${at(lowest)}, highest ${at(highest)}` +
    (lost > 0 ? ", with values that are not finite" : "");
}
