// A column of a long run as few points, which keep its extremes: no spike disappears from a chart.
import type { Table } from "./table.ts";
import type { Key, Series } from "./types.ts";

/** Which part of a run: steps after since, up to until. */
export type Range = { since: number; until: number };

const ALL: Range = { since: 0, until: Infinity };

/**
 * At most `points` (2 or more) of the finite values in a range, at the steps they belong to: the first and the last, and of
 * each of equally long stretches between them the smallest and the largest, with the mean of their stretch beside them.
 */
export function history(table: Table, key: Key, points: number, { since, until } = ALL): Series {
  const begin = table.rowAfter(since), end = table.rowAfter(until);
  const steps = table.column("step").subarray(begin, end), values = table.column(key).subarray(begin, end);
  const rows = finiteRows(values), series: Series = { step: [], value: [], mean: [] };
  const keep = (row: number, mean: number) => {
    series.step.push(steps[row]!);
    series.value.push(values[row]!);
    series.mean.push(mean);
  };
  if (rows.length <= points) rows.forEach((row) => keep(row, values[row]!));
  else {
    keep(rows[0]!, values[rows[0]!]!);
    keepExtremes(values, rows.subarray(1, -1), Math.floor(points / 2) - 1, keep);
    keep(rows.at(-1)!, values[rows.at(-1)!]!);
  }
  return series;
}

function finiteRows(values: Float64Array): Uint32Array {
  const rows = new Uint32Array(values.length);
  let n = 0;
  for (let row = 0; row < values.length; row++) if (Number.isFinite(values[row])) rows[n++] = row;
  return rows.subarray(0, n);
}

/** Keeps the smallest and the largest value of each stretch of rows, in order of their steps. */
function keepExtremes(
  values: Float64Array,
  rows: Uint32Array,
  stretches: number,
  keep: (row: number, mean: number) => void,
): void {
  for (let i = 0; i < stretches; i++) {
    const begin = Math.floor(i * rows.length / stretches),
      end = Math.floor((i + 1) * rows.length / stretches);
    let least = rows[begin]!, most = least, sum = 0;
    for (let j = begin; j < end; j++) {
      const row = rows[j]!, value = values[row]!;
      sum += value;
      if (value < values[least]!) least = row;
      if (value > values[most]!) most = row;
    }
    const mean = sum / (end - begin);
    keep(Math.min(least, most), mean);
    if (least !== most) keep(Math.max(least, most), mean);
  }
}
