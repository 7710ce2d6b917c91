// @ts-check
// What a run has measured, and what is computed from it: smoothing, trend, other x axes, summaries. No DOM here.

/** @typedef {{ step: number, value: number }} Point one measurement; NaN where it was not finite */
/** @typedef {Point[]} Series one quantity at the steps where it was measured, steps ascending */
/** @typedef {Record<string, Series>} Measured a series for each key of metrics.jsonl */
/** @typedef {"step" | "tokens" | "time"} XAxis */

/**
 * Adds a measurement. One that is not newer than the last is dropped, since it is in the series already.
 * @param {Series} series
 * @param {number} step
 * @param {number | null} value null where it was not finite, as in JSON
 */
export function append(series, step, value) {
  if (step > (series.at(-1)?.step ?? 0)) series.push({ step, value: value ?? NaN });
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
 * The exponential moving average with bias correction: the first values are true averages, not pulled towards 0. The
 * decay is per thousandth of the run, or per step in shorter runs, so that the curve keeps its shape where down-sampled
 * points are followed by single steps. A value that is not finite stays a gap and does not count.
 * @param {Series} series
 * @param {number} decay 0 (off) to below 1
 * @returns {Series}
 */
export function smooth(series, decay) {
  const first = series[0], final = series.at(-1);
  if (decay === 0 || !first || !final) return series;
  const unit = Math.max(1, (final.step - first.step) / 1000);
  let sum = 0, weight = 0, previous = first.step - unit;
  return series.map(({ step, value }) => {
    if (!Number.isFinite(value)) return { step, value };
    const kept = decay ** ((step - previous) / unit);
    previous = step;
    sum = kept * sum + (1 - kept) * value;
    weight = kept * weight + (1 - kept);
    return { step, value: sum / weight };
  });
}

/**
 * How the newest values compare with those before. change is relative: -0.02 is 2% lower than `steps` steps ago. isRising:
 * higher by more than 2% and by more than the noise explains.
 * @typedef {{ change: number, steps: number, isRising: boolean }} Trend
 */

/**
 * Compares the mean of the last tenth of a series, 100 values at most, with that of as many values before.
 * @param {Series} series
 * @returns {Trend | null} null while there are fewer than 50 values
 */
export function trend(series) {
  const n = Math.min(100, Math.floor(series.length / 10));
  const newest = series.slice(-n), older = series.slice(-2 * n, -n);
  const start = older.at(-1), end = newest.at(-1);
  if (n < 5 || !start || !end) return null;
  const recent = moments(newest), before = moments(older);
  const difference = recent.mean - before.mean;
  const noise = 3 * Math.sqrt((recent.variance + before.variance) / n); // 3 standard errors
  if (Number.isNaN(difference)) return null;
  return {
    change: difference / Math.abs(before.mean),
    steps: end.step - start.step,
    isRising: difference > Math.max(noise, 0.02 * Math.abs(before.mean)),
  };
}

/**
 * Mean and variance of the finite values, NaN where there is none.
 * @param {Series} series
 */
function moments(series) {
  const values = finite(series).map((p) => p.value);
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length;
  return { mean, variance };
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
  const known = axis === "step" ? undefined : measured[axis === "tokens" ? "tokens" : "elapsed_s"];
  if (!known?.length) return steps;
  let left = { step: 0, value: 0 }, i = 0;
  return steps.map((step) => {
    let right = known[i];
    while (right && right.step <= step) {
      left = right;
      right = known[++i];
    }
    if (!right) return left.value * step / left.step; // after the last point both quantities grow as before
    return left.value + (right.value - left.value) * (step - left.step) / (right.step - left.step);
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
    (lost > 0 ? `, ${lost} not finite` : "");
}
