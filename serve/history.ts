// A column of a long run as few points, which keep its extremes: no spike disappears from a chart.
import type { Table } from "./table.ts";
import type { Key, Series } from "./types.ts";

/** Which part of a run: steps after since, up to until. */
export type Range = { since: number; until: number };

const ALL: Range = { since: 0, until: Infinity };

/**
 * At most `points` (2 or more) of the values in a range, at the steps they belong to: the first and the last, and of each of
 * equally long stretches between them the smallest and the largest, with the mean of their stretch beside them; the last one
 * has that of the stretch before it. A value that was not finite is null; of each stretch the first such is kept too, since
 * charts mark it.
 */
export function history(table: Table, key: Key, points: number, { since, until } = ALL): Series {
  const begin = table.rowAfter(since), end = table.rowAfter(until);
  const steps = table.column("step").subarray(begin, end), values = table.column(key).subarray(begin, end);
  const rows = measuredRows(values), series: Series = { step: [], value: [], mean: [] };
  const keep = (row: number, mean = values[row]!) => {
    series.step.push(steps[row]!);
    series.value.push(finite(values[row]!));
    series.mean.push(finite(mean));
  };
  if (rows.length <= points) rows.forEach((row) => keep(row));
  else {
    keep(rows[0]!);
    const inner = rows.subarray(1, -1), hasLost = inner.some((row) => !Number.isFinite(values[row]));
    const mean = keepExtremes(values, inner, Math.floor((points - 2) / (hasLost ? 3 : 2)), keep);
    const last = rows.at(-1)!;
    keep(last, Number.isFinite(values[last]) ? mean : undefined); // alone it would weigh as much as a stretch
  }
  return series;
}

function measuredRows(values: Float64Array): Uint32Array {
  const rows = new Uint32Array(values.length);
  let n = 0;
  for (let row = 0; row < values.length; row++) if (!Number.isNaN(values[row])) rows[n++] = row;
  return rows.subarray(0, n);
}

function finite(value: number): number | null {
  return Number.isFinite(value) ? value : null;
}

/**
 * Keeps the smallest and the largest finite value of each stretch of rows, and the first that is not finite, in order of their
 * steps; the mean of the last stretch.
 */
function keepExtremes(
  values: Float64Array,
  rows: Uint32Array,
  stretches: number,
  keep: (row: number, mean?: number) => void,
): number | undefined {
  let mean: number | undefined;
  for (let i = 0; i < stretches; i++) {
    const begin = Math.floor(i * rows.length / stretches),
      end = Math.floor((i + 1) * rows.length / stretches);
    let least = rows[begin]!, most = least, sum = 0, n = 0, lost: number | undefined;
    for (let j = begin; j < end; j++) {
      const row = rows[j]!, value = values[row]!;
      if (!Number.isFinite(value)) {
        lost ??= row;
        continue;
      }
      if (n === 0 || value < values[least]!) least = row;
      if (n === 0 || value > values[most]!) most = row;
      sum += value;
      n++;
    }
    mean = n > 0 ? sum / n : undefined;
    const kept = [...n > 0 ? [least, most] : [], ...lost === undefined ? [] : [lost]];
    for (const row of new Set(kept.sort((a, b) => a - b))) keep(row, row === lost ? undefined : mean);
  }
  return mean;
}
