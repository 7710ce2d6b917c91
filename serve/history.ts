// A column of a long run as few points, which keep its extremes: no spike disappears from a chart.
import type { Table } from "./table.ts";
import type { Key, Series } from "./types.ts";

/**
 * At most `points` (2 or more) of the finite values after a step, at the steps they belong to: the first and the last, and
 * of each of equally long stretches between them the smallest and the largest.
 */
export function history(table: Table, key: Key, points: number, since = 0): Series {
  const first = table.rowAfter(since);
  const steps = table.column("step").subarray(first), values = table.column(key).subarray(first);
  const rows = finiteRows(values);
  const kept = rows.length <= points ? rows : extremes(values, rows, points);
  return { step: Array.from(kept, (row) => steps[row]!), value: Array.from(kept, (row) => values[row]!) };
}

function finiteRows(values: Float64Array): Uint32Array {
  const rows = new Uint32Array(values.length);
  let n = 0;
  for (let row = 0; row < values.length; row++) if (Number.isFinite(values[row])) rows[n++] = row;
  return rows.subarray(0, n);
}

function extremes(values: Float64Array, rows: Uint32Array, points: number): number[] {
  const stretches = Math.floor((points - 2) / 2), inner = rows.subarray(1, -1);
  const kept = [rows[0]!];
  for (let i = 0; i < stretches; i++) {
    const begin = Math.floor(i * inner.length / stretches);
    const end = Math.floor((i + 1) * inner.length / stretches);
    let least = inner[begin]!, most = least;
    for (let j = begin + 1; j < end; j++) {
      const row = inner[j]!;
      if (values[row]! < values[least]!) least = row;
      if (values[row]! > values[most]!) most = row;
    }
    kept.push(Math.min(least, most));
    if (least !== most) kept.push(Math.max(least, most));
  }
  kept.push(rows.at(-1)!);
  return kept;
}
