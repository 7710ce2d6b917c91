// trainer_state.json of a checkpoint: what a run needs to go on, beside the tensors. It is believed only as a whole: its
// checksum, each key, each type and range, and what the keys say of each other.
import { basename, resolve } from "node:path";
import { UserError } from "../base/errors.ts";
import { isObject, show } from "../base/json.ts";
import { readSums, requireSums, SUMS } from "./sums.ts";

/** What a run needs to go on, beside the tensors. */
export type TrainerState = {
  step: number; // optimizer steps done
  updates: number; // of these, applied
  skipped: number; // of these, skipped because loss or norm was not finite
  skipped_row: number; // in a row, up to this one
  tokens: number; // trained on in these steps
  order: string; // Loader.order(): what `samples` counts in
  samples: number; // windows of this order that were read
  val_loss: number | null; // measured at this step
  best_val_loss: number | null; // of all checkpoints up to this one
  best_step: number | null; // where it was
  tokenizer: string | null; // of the data; null where it is not known
  data: Record<string, string>; // sha256 of each shard
  config: Record<string, unknown>; // of the run
  versions: Record<string, string>;
};

type Check = { is: (value: unknown) => boolean; should: string };

const ofCount = (least: number): Check => ({
  is: (value) => Number.isSafeInteger(value) && (value as number) >= least,
  should: `a whole number of at least ${least}`,
});
const orNull = ({ is, should }: Check): Check => ({
  is: (value) => value === null || is(value),
  should: `${should}, or null`,
});
const ofLoss: Check = {
  is: (value) => typeof value === "number" && value >= 0 && value < Infinity,
  should: "a number of at least 0",
};
const ofText: Check = { is: (value) => typeof value === "string", should: "a string" };
const ofObject: Check = { is: isObject, should: "an object" };
const ofTexts: Check = {
  is: (value) => isObject(value) && Object.values(value).every(ofText.is),
  should: "an object of strings",
};

/** What each key has to be. All of them are there, and no others. */
const CHECKS: Record<keyof TrainerState, Check> = {
  step: ofCount(1),
  updates: ofCount(0),
  skipped: ofCount(0),
  skipped_row: ofCount(0),
  tokens: ofCount(1),
  order: ofText,
  samples: ofCount(0),
  val_loss: orNull(ofLoss),
  best_val_loss: orNull(ofLoss),
  best_step: orNull(ofCount(1)),
  tokenizer: orNull(ofText),
  data: ofTexts,
  config: ofObject,
  versions: ofTexts,
};

/**
 * Reads trainer_state.json of a checkpoint, whose small files are all compared with their checksums. Throws UserError
 * naming what is missing, damaged or contradicts another thing.
 */
export function readTrainerState(checkpoint: string): TrainerState {
  const path = `${checkpoint}/trainer_state.json`, sums = readSums(checkpoint);
  if (sums === undefined) throw noFile(path);
  requireSums(checkpoint, sums, (name) => !name.endsWith(".safetensors"));
  const state = readJson(path);
  if (!sums.has("trainer_state.json")) throw wrong(path, `${SUMS} has no line for it`);
  checkKeys(path, state);
  checkMeaning(path, state as TrainerState, basename(resolve(checkpoint)));
  return state as TrainerState;
}

function checkKeys(path: string, state: Record<string, unknown>): void {
  const known = Object.keys(CHECKS) as (keyof TrainerState)[];
  const missing = known.filter((key) => !Object.hasOwn(state, key));
  const unknown = Object.keys(state).filter((key) => !Object.hasOwn(CHECKS, key));
  if (missing.length + unknown.length > 0) {
    const what = [...missing.map((key) => `no ${key}`), ...unknown.map((key) => `an unknown ${show(key)}`)];
    throw new UserError(
      `Cannot read ${path}: it has ${
        what.join(", ")
      }; if another version of loam wrote it, go on with that one, else use ` +
        "another checkpoint",
    );
  }
  for (const key of known) {
    const { is, should } = CHECKS[key];
    if (!is(state[key])) throw wrong(path, `${key} is ${show(state[key])}, should be ${should}`);
  }
}

/** What the keys say of each other, and of the name of the directory. */
function checkMeaning(path: string, s: TrainerState, directory: string): void {
  const { step, updates, skipped, skipped_row, tokens, samples, val_loss, best_val_loss, best_step } = s;
  if (directory !== checkpointName(step)) {
    throw wrong(path, `step is ${step}, but the directory is called ${directory}`);
  }
  if (updates + skipped !== step && step < MOST_COUNTED) {
    throw wrong(path, `updates ${updates} and skipped ${skipped} do not add up to step ${step}`);
  }
  if (skipped_row > skipped) throw wrong(path, `skipped_row is ${skipped_row}, above skipped ${skipped}`);
  if (samples > tokens) throw wrong(path, `samples is ${samples}, above tokens ${tokens}`);
  const isBest = best_step === step ? best_val_loss === val_loss : (best_step ?? 0) < step;
  const fits = best_val_loss === null ? val_loss === null : best_val_loss <= (val_loss ?? Infinity);
  if ((best_step === null) === (best_val_loss === null) && isBest && fits) return;
  throw wrong(
    path,
    `val_loss ${val_loss} of step ${step} contradicts best_val_loss ${best_val_loss} of step ${best_step}`,
  );
}

const MOST_COUNTED = 2 ** 24; // the device counts updates in float32

/** What a checkpoint is called, after so many steps. */
export function checkpointName(step: number): string {
  return `step_${String(step).padStart(6, "0")}`;
}

/** Reads a JSON file of a run or checkpoint. Throws UserError naming the file when it is missing or not JSON. */
export function readJson(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw noFile(path);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // says the same as any other value below
  }
  if (isObject(value)) return value;
  throw wrong(path, "it is not a JSON object");
}

/** A value as the text of a JSON file. */
export function json(value: unknown): string {
  return JSON.stringify(value, null, 2) + "\n";
}

function noFile(path: string): UserError {
  return wrong(path, "there is no such file");
}

function wrong(path: string, what: string): UserError {
  return new UserError(`Cannot read ${path}: ${what}; use another checkpoint`);
}
