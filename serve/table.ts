// The lines of metrics.jsonl as columns of numbers, with the sums that every answer needs.
import { isObject } from "../base/json.ts";
import { type Key, KEYS, type RanksSeen } from "./types.ts";

/** A line as it stands in metrics.jsonl. */
export type Line = { step: number; text: string };

const RECENT = 500; // lines kept as text, for clients that connect again

/** What ranks said in so many lines tells a slow one from a slow step. */
export const RECENT_OF_RANKS = 5;

/** Rows of metrics in order of their steps. A value that is missing is NaN; one that was not finite, Infinity. */
export class Table {
  /** How many rows. */
  length = 0;
  /** Lines that are no row, or none of a later step. */
  badLines = 0;
  /** The lowest val_loss and its step. */
  best: { step: number; val_loss: number } | null = null;
  /** The last val_loss, nats a token. */
  lastValLoss: number | null = null;
  /** The same in bits per byte of text, where that is known. */
  lastValBpb: number | null = null;
  /** What its ranks said last, the newest first; nothing of a run that has one. */
  ranks: RanksSeen[] = [];
  #recent: Line[] = [];
  #columns = KEYS.map(() => new Float64Array(1024));

  /** Appends a line and returns it, or counts it if it is not a later step. */
  append(text: string): Line | undefined {
    const row = parse(text);
    if (!row || row.step <= this.last("step")) {
      this.badLines++;
      return undefined;
    }
    if (this.length === this.#columns[0]!.length) this.#columns = this.#columns.map(twice);
    const step_s = Number.isFinite(row.step_ms) ? row.step_ms! / 1000 : 0; // JSON has 1e999 too
    row.elapsed_s = (this.last("elapsed_s") || 0) + step_s;
    KEYS.forEach((key, i) => this.#columns[i]![this.length] = row[key] === null ? Infinity : row[key] ?? NaN);
    this.length++;
    if (row.val_loss !== undefined && row.val_loss !== null) this.#evaluated(row.step, row.val_loss);
    this.lastValBpb = row.val_bpb ?? this.lastValBpb;
    const ranks = ranksOf(row);
    if (ranks) this.ranks = [ranks, ...this.ranks].slice(0, RECENT_OF_RANKS);
    const line = { step: row.step, text };
    this.#recent.push(line);
    if (this.#recent.length >= 2 * RECENT) this.#recent = this.#recent.slice(-RECENT);
    return line;
  }

  /** The lines after a step; undefined where they go further back than the text of lines is kept. */
  linesAfter(step: number): Line[] | undefined {
    const first = this.column("step")[this.rowAfter(step)];
    if (first === undefined) return [];
    return this.#recent[0]!.step <= first ? this.#recent.filter((line) => line.step > step) : undefined;
  }

  #evaluated(step: number, val_loss: number): void {
    this.lastValLoss = val_loss;
    if (val_loss < (this.best?.val_loss ?? Infinity)) this.best = { step, val_loss };
  }

  /** The values of a column, one a row. */
  column(key: Key): Float64Array {
    return this.#columns[KEYS.indexOf(key)]!.subarray(0, this.length);
  }

  /** The value in the last row; 0 for the step, else NaN, where there is none. */
  last(key: Key): number {
    return this.column(key).at(-1) ?? (key === "step" ? 0 : NaN);
  }

  /** Index of the first row after a step. */
  rowAfter(step: number): number {
    const steps = this.column("step");
    let low = 0, high = steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle]! <= step) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

type Row = { step: number } & Partial<Record<Key, number | null>>;

function parse(text: string): Row | undefined {
  let row: unknown;
  try {
    row = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (!isObject(row) || !Number.isSafeInteger(row.step)) return undefined;
  const isRow = KEYS.every((key) => row[key] == null || typeof row[key] === "number"); // null: not finite
  return isRow ? row as Row : undefined;
}

function ranksOf(row: Row & { ranks?: unknown }): RanksSeen | undefined {
  if (!isObject(row.ranks)) return undefined;
  const { step_ms, memory_bytes } = row.ranks;
  if (!isNumbers(step_ms) || !isNumbers(memory_bytes) || step_ms.length !== memory_bytes.length) {
    return undefined;
  }
  const slowest = step_ms.reduce((most, ms, rank) => ms > step_ms[most]! ? rank : most, 0);
  return { slowest, step_ms, memory_bytes };
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 && value.every(Number.isFinite);
}

function twice(column: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(2 * column.length);
  larger.set(column);
  return larger;
}
