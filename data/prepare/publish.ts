// The last phase of prepare: everything moves from DIR/unfinished up into DIR, meta.json last. unfinished/meta.json is written
// before anything moves, so that a kill anywhere in between is finished by the next run: each step may be done again.
import { join } from "node:path";
import { isFile, remove, rename, syncDirectory, writeAtomic, writeSynced } from "../../base/files.ts";
import { maskName } from "../bins.ts";
import { type Meta, metaText, readWholeMeta } from "../meta.ts";

/** Name of the directory, within that of a dataset, in which the dataset is written. */
export const UNFINISHED = "unfinished";

const OUR_FILES = /^(train|val)_\d{6}\.(bin|mask)$|^tokenizer(_config)?\.json$/; // and meta.json

/**
 * Publishes the shards in dir/unfinished, all of which have their names, in place of the dataset in dir.
 *
 * @param tokenizerFiles Contents by name of files that belong to the dataset.
 */
export function publish(dir: string, meta: Meta, tokenizerFiles: Record<string, string>): void {
  const unfinished = join(dir, UNFINISHED);
  for (const [name, text] of Object.entries(tokenizerFiles)) writeSynced(join(unfinished, name), text);
  writeAtomic(join(unfinished, "meta.json"), metaText(meta));
  syncDirectory(unfinished);
  completePublishing(dir);
}

/** Completes what publish() began before it was killed; returns the dataset, undefined if nothing had begun. */
export function completePublishing(dir: string): Meta | undefined {
  const unfinished = join(dir, UNFINISHED);
  removeIfEmpty(unfinished);
  if (!isFile(join(unfinished, "meta.json"))) return undefined;
  const meta = readWholeMeta(unfinished);
  removeOld(dir, meta);
  for (const { name } of Array.from(Deno.readDirSync(unfinished))) {
    if (OUR_FILES.test(name)) rename(join(unfinished, name), join(dir, name));
    else if (name !== "meta.json") remove(join(unfinished, name));
  }
  for (const changed of [unfinished, dir]) syncDirectory(changed);
  rename(join(unfinished, "meta.json"), join(dir, "meta.json"));
  removeIfEmpty(unfinished);
  syncDirectory(dir);
  return meta;
}

function removeIfEmpty(unfinished: string): void {
  try {
    if (Deno.readDirSync(unfinished)[Symbol.iterator]().next().done) remove(unfinished);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Removes the dataset that is replaced, but none of the new files that have moved already. */
function removeOld(dir: string, meta: Meta): void {
  if (isFile(join(dir, "meta.json"))) remove(join(dir, "meta.json"));
  syncDirectory(dir);
  removeOthers(dir, meta);
}

/** Removes shards and tokenizers in a directory that do not belong to its dataset. */
export function removeOthers(dir: string, meta: Meta): void {
  const files = new Set(
    meta.shards.flatMap(({ file, mask_sha256 }) => mask_sha256 ? [file, maskName(file)] : [file]),
  );
  if (meta.tokenizer === ".") files.add("tokenizer.json").add("tokenizer_config.json");
  for (const { name } of Array.from(Deno.readDirSync(dir))) {
    if (OUR_FILES.test(name) && !files.has(name)) remove(join(dir, name));
  }
}
