// Which input files each of n machines prepares: contiguous runs of files, of about the same number of bytes.
import { createHash } from "node:crypto";
import { UserError } from "../../base/errors.ts";
import type { Input, Source } from "../read/inputs.ts";
import type { PartNumber } from "./options.ts";
import type { Part } from "../meta.ts";

/** The sources of one part, and what says that parts belong together. */
export type OwnPart = {
  /** The input files of this part. */
  sources: Source[];
  /** Which part they are, and of what. */
  part: Part;
};

/** Name of the directory of a part, in that of the whole dataset. */
export function partName({ index, count }: PartNumber): string {
  return `part_${index}_of_${count}`;
}

/** The number in the name of a directory of a part; undefined for other names. */
export function parsePartName(name: string): PartNumber | undefined {
  const [, index, count] = /^part_(\d+)_of_(\d+)$/.exec(name) ?? [];
  return index === undefined ? undefined : { index: Number(index), count: Number(count) };
}

/**
 * What one of the parts reads. Of sources with weights every part gets its share of each, so that all parts have the
 * same mix; others are cut as one list. Throws UserError if there are more parts than files.
 */
export function takePart(sources: Source[], { index, count }: PartNumber): OwnPart {
  const all = sources.flatMap(({ inputs }) => inputs);
  const part = { index, count, ...describeFiles(all) };
  if (sources.some(({ weight }) => weight !== null)) {
    return { sources: sources.map((source) => cut(source, index, count)), part };
  }
  const whole: Source = {
    pattern: sources.map(({ pattern }) => pattern).join(" "),
    weight: null,
    inputs: all,
  };
  return { sources: [cut(whole, index, count)], part };
}

/** Number, bytes and SHA-256 of the list of files: names and sizes, in their order. */
export function describeFiles(files: Input[]): Pick<Part, "files" | "bytes" | "sha256"> {
  const sha256 = createHash("sha256");
  for (const { name, bytes } of files) sha256.update(`${JSON.stringify([name, bytes])}\n`);
  const bytes = files.reduce((sum, { bytes }) => sum + bytes, 0);
  return { files: files.length, bytes, sha256: sha256.digest("hex") };
}

function cut(source: Source, index: number, count: number): Source {
  const { pattern, inputs } = source;
  if (count > inputs.length) {
    throw new UserError(
      `Cannot take part ${index} of ${count} of "${pattern}": it has ${inputs.length} input file${
        inputs.length === 1 ? "" : "s"
      }, and every part needs one; use --shard I/${inputs.length} or less`,
    );
  }
  const starts = partStarts(inputs.map(({ bytes }) => bytes), count);
  return { ...source, inputs: inputs.slice(starts[index - 1], starts[index]) };
}

/** First file of each part: the one whose middle comes first behind the even cut, but no part is empty. */
export function partStarts(bytes: number[], count: number): number[] {
  const sizes = bytes.map((size) => Math.max(1, size)); // a size may be unknown
  const total = sizes.reduce((a, b) => a + b, 0), starts = [0];
  let file = 0, before = 0;
  for (let part = 1; part < count; part++) {
    const most = sizes.length - (count - part); // leaves one for each of the parts behind
    while (file < most && (file <= starts[part - 1]! || before + sizes[file]! / 2 < part * total / count)) {
      before += sizes[file++]!;
    }
    starts.push(file);
  }
  return starts;
}
