// How numbers and tables are printed for a reader.

/** "18,432": a whole number, rounded. */
export function formatCount(n: number): string {
  return Math.round(n).toLocaleString("en-US");
}

/** "9,500", "16.4k", "6.1M", "26.2B", "1.3T": a number that needs no more digits. */
export function formatShort(n: number): string {
  if (n < 1e4) return formatCount(n);
  const [size, unit] = n >= 1e12
    ? [1e12, "T"]
    : n >= 1e9
    ? [1e9, "B"]
    : n >= 1e6
    ? [1e6, "M"]
    : [1e3, "k"] as const;
  return `${(n / size).toFixed(1)}${unit}`;
}

/** "1.2 GB", "340 MB", "4.2 MB", "12 kB": decimal units. */
export function formatBytes(bytes: number): string {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
  return `${(bytes / 1e3).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
}

/** "72 GFLOP/s", "401 TFLOP/s" */
export function formatFlops(per_second: number): string {
  return per_second < 1e12
    ? `${(per_second / 1e9).toFixed(per_second < 1e10 ? 1 : 0)} GFLOP/s`
    : `${(per_second / 1e12).toFixed(per_second < 1e13 ? 1 : 0)} TFLOP/s`;
}

/** A time: "45 s", "12 min", "3.2 h", "2.1 d". */
export function formatSeconds(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  return seconds < 36 * 3600 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} d`;
}

/** Columns padded to equal width: numbers right-aligned, the rest left-aligned. */
export function table(rows: string[][]): string {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const isNumber = (text: string) => /^-?[\d.,]*%?$/.test(text);
  return rows.map((row) =>
    row.map((cell, i) => isNumber(cell) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)).join("  ")
      .trimEnd()
  ).join("\n");
}
