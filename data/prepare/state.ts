// The state of an interrupted prepare: unfinished/state.json beside the shards that it names. It is replaced in one step at
// each commit point, after the tokens that it speaks of are on the disk; what the shards hold beyond it is cut off again.
import { join } from "node:path";
import { UserError } from "../../base/errors.ts";
import { writeAtomic } from "../../base/files.ts";
import { type Recipe, sha256Of, type SplitSize } from "../meta.ts";
import type { Written } from "./writer.ts";

/** What has been counted while writing. */
export type Counts = {
  /** Documents taken from the reader, empty ones too. */
  documents: number;
  /** Bytes of input, as they are stored, from which they came. */
  read: number;
  /** Documents without text, which are left out. */
  empty: number;
  /** Conversations that cannot be read, which are left out. */
  bad: number;
  /** Those that lost their end, because they were too long. */
  cut: number;
  /** Those that were left out, since their first answer is too long already. */
  too_long: number;
  /** What went to train. */
  train: SplitSize;
  /** What went to val. */
  val: SplitSize;
  /** Smallest of the fractions in [0, 1) by which documents go to train or val; 1 without documents. */
  smallest: number;
  /** Largest of them; 0 without documents. */
  largest: number;
};

/** The contents of state.json. */
export type State = {
  /** Says what kind of file it is. */
  format: "loam-unfinished";
  /** Of this format. */
  version: 1;
  /** What the interrupted run was asked for. */
  recipe: Recipe;
  /** What it had counted. */
  counts: Counts;
  /** What it had written. */
  written: Written;
};

const FILE = "state.json";

/** No documents. */
export function emptyCounts(): Counts {
  const empty = () => ({ documents: 0, tokens: 0, bytes: 0 });
  const left_out = { empty: 0, bad: 0, cut: 0, too_long: 0 };
  return { documents: 0, read: 0, ...left_out, train: empty(), val: empty(), smallest: 1, largest: 0 };
}

/** Replaces the state in a directory `unfinished`, in one step. */
export function writeState(unfinished: string, recipe: Recipe, counts: Counts, written: Written): void {
  const state: State = { format: "loam-unfinished", version: 1, recipe, counts, written };
  writeAtomic(join(unfinished, FILE), `${JSON.stringify({ ...state, sha256: sha256Of(state) })}\n`);
}

/**
 * Reads the state in a directory `unfinished`; undefined if there is none, because nothing was committed there.
 * Throws UserError if it was written by another version of loam, is no state, or was changed.
 */
export function readState(unfinished: string): State | undefined {
  const path = join(unfinished, FILE);
  try {
    const { sha256, ...state }: State & { sha256: string } = JSON.parse(Deno.readTextFileSync(path));
    if (state.format === "loam-unfinished" && state.version === 1 && sha256 === sha256Of(state)) return state;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new UserError(
    `Cannot go on with "${path}": it is no state that this loam wrote; start over with --overwrite`,
  );
}
