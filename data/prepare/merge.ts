// Makes one dataset of the parts that several machines prepared with --shard: checks that all are there and belong together,
// and writes a meta.json that lists their shards where they are. Nothing is moved or copied but the tokenizer's files.
import { join } from "node:path";
import { UserError } from "../../base/errors.ts";
import {
  isFile,
  noDirectory,
  remove,
  removeTemporary,
  syncDirectory,
  writeAtomic,
} from "../../base/files.ts";
import { openDataset } from "../bins.ts";
import type { Input } from "../read/inputs.ts";
import { DirectoryLock } from "./lock.ts";
import { type Meta, metaText, readWholeMeta, type SplitSize, verifyMeta } from "../meta.ts";
import type { MergeOptions } from "./options.ts";
import { describeFiles, parsePartName, partName } from "./parts.ts";
import { removeOthers, UNFINISHED } from "./publish.ts";
import { differences } from "./recipe.ts";

/** A part and its directory in that of the whole. */
type PartOf = {
  name: string;
  meta: Meta;
};

/**
 * Merges the parts in a directory; merging them again changes nothing. Throws UserError if a part is missing or
 * unfinished, if parts do not belong together, or if another dataset stands there.
 */
export function merge({ out, overwrite }: MergeOptions): Meta {
  const names = partNames(out);
  using _lock = DirectoryLock.take(out);
  const parts = names.map((name) => openPart(out, name));
  for (const part of parts) checkBelongs(out, parts[0]!, part);
  const meta = mergedMeta(parts);
  checkComplete(out, parts, meta);
  checkSplits(out, meta);
  if (!overwrite) refuseOther(out, meta);
  write(out, meta, join(out, names[0]!));
  return meta;
}

/** The directories of all parts, in order. */
function partNames(out: string): string[] {
  const found = partsIn(out), count = found[0]?.count;
  if (count === undefined) {
    throw new UserError(
      `Cannot merge "${out}": it has no parts; make them: deno task prepare --shard 1/8 --out ${out} --input FILES`,
    );
  }
  const other = found.find((part) => part.count !== count);
  if (other !== undefined) {
    throw new UserError(
      `Cannot merge "${out}": it has ${partName(found[0]!)} and ${
        partName(other)
      }; remove those that are not wanted`,
    );
  }
  const indices = new Set(found.map(({ index }) => index));
  const names = Array.from({ length: count }, (_, i) => partName({ index: i + 1, count }));
  const missing = names.filter((_, i) => !indices.has(i + 1));
  if (missing.length === 0) return names;
  throw new UserError(
    `Cannot merge "${out}": ${missing.slice(0, 8).join(", ")}${missing.length > 8 ? ", ..." : ""} ` +
      `${missing.length === 1 ? "is" : "are"} missing; prepare with --shard ${
        missing[0]!.match(/\d+/)![0]
      }/${count}`,
  );
}

function partsIn(out: string): { index: number; count: number }[] {
  try {
    return Array.from(Deno.readDirSync(out)).flatMap(({ name }) => parsePartName(name) ?? []);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory)) throw error;
    throw new UserError(`Cannot merge "${out}": ${noDirectory(out)}`);
  }
}

function openPart(out: string, name: string): PartOf {
  const dir = join(out, name), { index, count } = parsePartName(name)!;
  if (!isFile(join(dir, "meta.json"))) {
    throw new UserError(
      `Cannot merge "${out}": ${name} is not finished; run its prepare with --shard ${index}/${count} to the end`,
    );
  }
  const meta = readWholeMeta(dir);
  verifyMeta(dir);
  openDataset(dir); // checks that the shards are there
  if (meta.part?.index === index && meta.part.count === count) return { name, meta };
  const is = meta.part ? `part ${meta.part.index} of ${meta.part.count}` : "no part";
  throw new UserError(`Cannot merge "${out}": ${name} is ${is} by its meta.json; prepare it again`);
}

/** Parts of one dataset have the same options, tokenizer and list of input files. */
function checkBelongs(out: string, first: PartOf, { name, meta }: PartOf): void {
  const sameInputs = { inputs: [], sources: meta.sources.map(({ weight }) => ({ weight, files: 0 })) };
  const of = first.meta, weights = of.sources.map(({ weight }) => ({ weight, files: 0 }));
  const different = differences({ ...of, inputs: [], sources: weights }, { ...meta, ...sameInputs });
  const [a, b] = [of.part!, meta.part!];
  if (a.files !== b.files || a.bytes !== b.bytes) {
    different.push(
      `the input is ${a.files} files of ${a.bytes} bytes there and ${b.files} of ${b.bytes} here`,
    );
  } else if (a.sha256 !== b.sha256) {
    different.push("the list of input files has other names or another order");
  }
  if (different.length === 0) return;
  throw new UserError(
    `Cannot merge "${out}": ${first.name} and ${name} (there and here) differ: ${different.join(", ")}; ` +
      "prepare one of them again with --overwrite",
  );
}

/** The inputs of all parts have to be the list that every part was cut from. */
function checkComplete(out: string, parts: PartOf[], { inputs }: Meta): void {
  const { files, bytes, sha256 } = parts[0]!.meta.part!, actual = describeFiles(inputs);
  if (actual.sha256 === sha256) return;
  throw new UserError(
    `Cannot merge "${out}": its parts read ${actual.files} files of ${actual.bytes} bytes, ` +
      `should be the ${files} of ${bytes} that they were cut from; prepare all parts again with --overwrite`,
  );
}

function checkSplits(out: string, { train, val, options }: Meta): void {
  if (train.documents > 0 && (val.documents > 0 || options.val_fraction === 0)) return;
  throw new UserError(
    `Cannot merge "${out}": of ${train.documents + val.documents} documents none is left for ` +
      `${val.documents === 0 ? "val" : "train"} with --val_fraction=${options.val_fraction}; ` +
      "prepare the parts with another",
  );
}

function mergedMeta(parts: PartOf[]): Meta {
  const metas = parts.map(({ meta }) => meta), [first] = metas as [Meta];
  const isChat = first.template !== undefined;
  const sum = (of: (meta: Meta) => number) => metas.reduce((total, meta) => total + of(meta), 0);
  const size = (split: "train" | "val"): SplitSize => ({
    documents: sum((meta) => meta[split].documents),
    tokens: sum((meta) => meta[split].tokens),
    bytes: sum((meta) => meta[split].bytes),
    ...isChat && { trained: sum((meta) => meta[split].trained!) },
  });
  const shards = parts.flatMap(({ name, meta }) =>
    meta.shards.map((shard) => ({ ...shard, file: `${name}/${shard.file}` }))
  );
  return {
    ...first,
    inputs: first.sources.flatMap((_, i) => metas.flatMap((meta) => filesOf(meta, i))),
    sources: first.sources.map(({ weight }, i) => ({ weight, files: sum((meta) => meta.sources[i]!.files) })),
    part: null,
    train: size("train"),
    val: size("val"),
    left_out: {
      empty: sum((meta) => meta.left_out.empty),
      duplicates: sum((meta) => meta.left_out.duplicates),
      bad: sum((meta) => meta.left_out.bad),
      ...isChat && { too_long: sum((meta) => meta.left_out.too_long!) },
    },
    ...isChat && { cut: sum((meta) => meta.cut!) },
    shards,
  };
}

/** The files of one source of a part. */
function filesOf({ inputs, sources }: Meta, source: number): Input[] {
  const begin = sources.slice(0, source).reduce((sum, { files }) => sum + files, 0);
  return inputs.slice(begin, begin + sources[source]!.files);
}

/** Refuses to replace a dataset that is not the merge of these parts. */
function refuseOther(out: string, meta: Meta): void {
  const names = Array.from(Deno.readDirSync(out), ({ name }) => name);
  const same = names.includes("meta.json") && metaText(readWholeMeta(out)) === metaText(meta);
  const other = names.filter((name) => name === "meta.json" || name === UNFINISHED || name.endsWith(".bin"));
  if (same || other.length === 0) return;
  throw new UserError(
    `Cannot merge "${out}": it holds another dataset (${other.sort().join(", ")}); ` +
      "move it away, or replace it with --overwrite",
  );
}

/** Another dataset ends before the first file of this one is there; what is no longer listed is removed afterwards. */
function write(out: string, meta: Meta, firstPart: string): void {
  const path = join(out, "meta.json"), text = metaText(meta);
  removeTemporary(out);
  if (isFile(path) && Deno.readTextFileSync(path) !== text) {
    remove(path);
    syncDirectory(out);
  }
  if (meta.tokenizer === ".") {
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
      writeAtomic(join(out, name), Deno.readTextFileSync(join(firstPart, name)));
    }
  }
  writeAtomic(path, text);
  removeOthers(out, meta);
}
