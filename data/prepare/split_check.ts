// A dataset needs documents to train on and others to evaluate on; says what to change where it lacks either.
import { UserError } from "../../base/errors.ts";
import type { ReadCounts } from "../read/documents.ts";
import type { SettledOptions } from "./options.ts";
import type { Counts } from "./state.ts";

/** What to say if a split got no documents, naming a val_fraction that gives both some; undefined if both have some. */
export function splitMistake(
  counts: Counts,
  { bad, first_bad }: ReadCounts,
  { input, val_fraction, limit, by_position }: SettledOptions,
): UserError | undefined {
  const { train, val, empty, too_long, smallest, largest } = counts;
  const documents = train.documents + val.documents, name = input.join(" ");
  if (documents === 0) {
    const left_out = [
      ...(empty > 0 ? [`, ${empty} were empty`] : []),
      ...(too_long > 0 ? [`, ${too_long} have a first answer that ends behind --block_size`] : []),
      ...(bad > 0 ? [`, ${bad} cannot be read (the first: ${first_bad})`] : []),
    ];
    const advice = too_long > 0 ? "use a larger one, which is then that of training" : "give files with text";
    return new UserError(`Cannot prepare "${name}": it has no documents${left_out.join("")}; ${advice}`);
  }
  if (train.documents > 0 && (val.documents > 0 || val_fraction === 0)) return undefined;
  if (by_position) {
    return new UserError(
      `Cannot split "${name}", one document, with --val_fraction=${val_fraction}: nothing is left for ` +
        `${train.documents > 0 ? "val" : "train"}; use --val_fraction=0.1, or 0 for no val`,
    );
  }
  if (smallest === largest && limit !== null && counts.documents >= limit) {
    return new UserError(
      `Cannot split "${name}" into train and val: --limit=${limit} leaves one document only; use a larger --limit`,
    );
  }
  if (smallest === largest) {
    const what = documents === 1 ? "it has one document only" : `its ${documents} documents are all the same`;
    return new UserError(
      `Cannot split "${name}" into train and val: ${what}; give more, or say where ` +
        "the documents of a .txt file end, such as --split_on=blank_line",
    );
  }
  return new UserError(
    `Cannot split the ${documents} documents of "${name}" with --val_fraction=${val_fraction}: ` +
      `none is left for ${val.documents === 0 ? "val" : "train"}; ` +
      `use more input or --val_fraction=${between(smallest, largest)}`,
  );
}

/** The shortest decimal number above a and up to b. */
function between(a: number, b: number): number {
  for (let scale = 100;; scale *= 10) {
    const number = Math.floor(a * scale + 1) / scale;
    if (number <= b) return number;
  }
}
