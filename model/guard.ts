// What becomes of a run whose numbers are not finite. The device has skipped such an update already; here the run is told, and
// ended where there are too many of them or where it would end on one. Nothing is saved while they last.
import type { Loader } from "../data/loader.ts";
import { asTyped } from "../base/command.ts";
import { KernelError, UserError } from "../base/errors.ts";
import { listCheckpoints } from "../runtime/checkpoint.ts";
import type { Log } from "../runtime/metrics.ts";
import type { StepResult } from "../runtime/optim.ts";
import { checkpointName } from "../runtime/trainer_state.ts";
import { isOfMemory } from "./plan.ts";

/** What is read here of the variables of train.ts. */
export type GuardConfig = {
  out_dir: string;
  seed: number;
  gradient_accumulation_steps: number;
  max_skipped: number;
  learning_rate: number;
};

/** What came of a step. */
export type Outcome = { step: number; result: StepResult; val_loss?: number };

/** Whether the weights after a step may be saved. Those before a skipped update may not: it may be they that are bad. */
export function isGood({ result, val_loss }: Outcome): boolean {
  return result.skipped_row === 0 && Number.isFinite(val_loss ?? 0);
}

/** Warns of a step that is not good. Throws UserError after too many skipped updates in a row, saying what the step read. */
export function guard(config: GuardConfig, outcome: Outcome, places: () => string[], log: Log): void {
  const { step, result: { loss, grad_norm, skipped_row }, val_loss } = outcome;
  if (isGood(outcome)) return;
  const what = skipped_row > 0
    ? `the update of step ${step} was skipped: loss ${loss}, gradient norm ${grad_norm}`
    : `step ${step} is not saved: its val loss is ${val_loss}`;
  log.warn(what);
  if (config.max_skipped === 0 || skipped_row < config.max_skipped) return;
  const read = places(), more = read.length > 8 ? ` and ${read.length - 8} more` : "";
  throw new UserError(
    `Cannot go on after step ${step}: ${skipped_row} updates in a row were not finite (--max_skipped); the step ` +
      `read ${read.slice(0, 8).join(", ")}${more}; ${howToMend(config, step - skipped_row)}`,
  );
}

/**
 * The error; if the library refused something, in which step, the first or the last of those that nothing was read of yet, and
 * where the GPU failed, how to find the op that did it.
 */
export function ofStep(
  error: unknown,
  config: { out_dir: string; debug: string },
  first: number,
  last: number,
): unknown {
  if (!(error instanceof KernelError) || isOfMemory(error)) return error; // orDoesNotFit() has more to say of that
  const step = first < last ? `step ${first} or ${last}` : `step ${last}`;
  const flags = listCheckpoints(config.out_dir).length > 0 ? `--resume=${config.out_dir}` : "...";
  const isNamed = config.debug !== "" || !error.message.includes("the GPU failed");
  const advice = isNamed ? "" : `; to name the op: ${asTyped(`deno task train ${flags} --debug`)}`;
  return new KernelError(`${step}: ${error.message}${advice}`);
}

/** Where the windows lie that all ranks read in the step that begins with a sample. */
export function placesOf(data: Loader, config: GuardConfig, sample: number): string[] {
  const micros = Array.from({ length: config.gradient_accumulation_steps }, (_, micro) => micro);
  return micros.flatMap((micro) => {
    return data.trainWindows({ seed: config.seed, sample, micro }).map((window) => data.placeOf(window));
  });
}

/** Throws UserError where a run ends with a step that is not good. */
export function requireGoodEnd(config: GuardConfig, outcome: Outcome): void {
  if (isGood(outcome)) return;
  const { step, result: { skipped_row }, val_loss } = outcome;
  const what = skipped_row > 0
    ? `the last ${skipped_row} updates were not finite`
    : `its val loss is ${val_loss}`;
  throw new UserError(
    `Cannot end with step ${step}, nor save it: ${what}; ${howToMend(config, step - skipped_row)}`,
  );
}

/** What to do about numbers that are not finite, as far as anything is saved to go on from. last: the last step with an update. */
function howToMend({ out_dir, learning_rate }: GuardConfig, last: number): string {
  const [newest, older] = listCheckpoints(out_dir).reverse();
  const from = newest ? `go on from ${newest} (--resume=${out_dir})` : "nothing was saved: start again";
  const how =
    `${from} with --debug, which finds the first bad value, or with a learning_rate below ${learning_rate}`;
  if (!older || newest !== checkpointName(last)) return how;
  return `${how}; no update has followed ${newest}: if none will, remove it and go on from ${older}`; // its weights may be the bad ones
}
