// What prepare finds in the directory that it is to write: nothing, a finished dataset, an interrupted one, or another corpus.
import { basename, dirname, join } from "node:path";
import { UserError } from "../../base/errors.ts";
import { openDataset } from "../bins.ts";
import { type Meta, readWholeMeta, type Recipe } from "../meta.ts";
import { parsePartName } from "./parts.ts";
import { completePublishing, UNFINISHED } from "./publish.ts";
import { differences } from "./recipe.ts";
import { readState, type State } from "./state.ts";
import { checkWritten } from "./writer.ts";

/** The dataset that was asked for, or where to go on; no state means from the start. */
export type Before = { finished: Meta } | { state: State | undefined };

/**
 * Takes up the work on a dataset, for which the caller holds the lock. Throws UserError saying what is there and what
 * differs.
 *
 * @param overwrite Whatever stands in the directory may be replaced; what is of the same recipe is gone on with.
 */
export function takeUp(dir: string, recipe: Recipe, overwrite: boolean): Before {
  const published = completePublishing(dir);
  if (published !== undefined && differences(published, recipe).length === 0) return { finished: published };
  refuseParts(dir, recipe);
  if (!overwrite) {
    const names = fileNames(dir);
    if (names.includes("meta.json")) return { finished: finishedDataset(dir, recipe) };
    refuseBins(dir, names);
  }
  return { state: interrupted(dir, recipe, overwrite) };
}

/** The dataset in a directory, if it is of this recipe. */
function finishedDataset(dir: string, recipe: Recipe): Meta {
  const meta = readWholeMeta(dir), different = differences(meta, recipe);
  if (different.length > 0) {
    throw new UserError(
      `Cannot write to "${dir}": it holds a finished dataset, and ${different.join(", ")}; ` +
        "choose another --out, or replace it with --overwrite",
    );
  }
  openDataset(dir); // checks that the shards are there
  return meta;
}

/** The state that an interrupted run left; undefined if there is none, or if it is to be written over. */
function interrupted(dir: string, recipe: Recipe, overwrite: boolean): State | undefined {
  const unfinished = join(dir, UNFINISHED);
  try {
    const state = readState(unfinished);
    if (state === undefined) return undefined;
    const different = differences(state.recipe, recipe);
    if (different.length === 0) {
      checkWritten(unfinished, recipe.token_bytes, state.written, recipe.template !== undefined);
      return state;
    }
    throw new UserError(
      `Cannot go on in "${dir}": it holds an interrupted prepare, and ${different.join(", ")}; ` +
        "give what was given then, choose another --out, or start over with --overwrite",
    );
  } catch (error) {
    if (error instanceof UserError && overwrite) return undefined;
    throw error;
  }
}

/** Refuses the shards of another program, or those that lost their meta.json. */
function refuseBins(dir: string, names: string[]): void {
  const bins = names.filter((name) => name.endsWith(".bin"));
  if (bins.length === 0) return;
  throw new UserError(
    `Cannot write to "${dir}": it holds a dataset (${bins[0]}${bins.length > 1 ? ", ..." : ""}); ` +
      "choose another --out, or replace it with --overwrite",
  );
}

/** Refuses a directory with parts of another number of parts than this is one of, which nothing replaces. */
function refuseParts(dir: string, recipe: Recipe): void {
  const whole = recipe.part === null ? dir : dirname(dir), count = recipe.part?.count;
  const other = fileNames(whole).find((name) => (parsePartName(name) ?? { count }).count !== count);
  if (other === undefined) return;
  const asked = recipe.part === null ? "the whole" : basename(dir);
  throw new UserError(
    `Cannot write ${asked} to "${whole}": it holds ${other}; choose another --out, or remove the parts that are there`,
  );
}

function fileNames(dir: string): string[] {
  return Array.from(Deno.readDirSync(dir), (entry) => entry.name).sort();
}
