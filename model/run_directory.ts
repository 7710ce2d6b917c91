// The directory of a training run: whether one may begin or go on there, and how to go on with what is saved in it.
import type { Dataset } from "../data/bins.ts";
import { asTyped } from "../base/command.ts";
import { UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { holdsRun, listCheckpoints } from "../runtime/checkpoint.ts";
import { RunLog } from "../runtime/metrics.ts";
import { telemetry } from "../runtime/telemetry.ts";
import { json, type TrainerState } from "../runtime/trainer_state.ts";

/** What is read here of the variables of train.ts. */
export type DirectoryConfig = {
  out_dir: string;
  resume: string;
  data_dir: string;
  eval_only: boolean;
  tensorboard: boolean;
  quiet: boolean;
  save_interval: number;
};

/** Makes the run directory, or goes on in it. Throws UserError if a new run would mix with an old one. */
export async function openRun(config: DirectoryConfig, saved: TrainerState | undefined): Promise<RunLog> {
  const { out_dir } = config, isAuto = config.resume === "auto"; // a restart before the first checkpoint begins anew
  if (!saved && isFile(`${out_dir}/config.json`) && !isFile(`${out_dir}/metrics.jsonl`)) {
    throw new UserError(
      `Cannot start a run in ${out_dir}: its config.json is not that of a run, but of a model maybe; choose another --out_dir`,
    );
  }
  if (!saved && holdsRun(out_dir) && !isAuto) {
    const [what, next] = listCheckpoints(out_dir).length > 0
      ? ["one", `go on with --resume=${out_dir}`]
      : ["one that saved no checkpoint", "begin it anew with --resume=auto"];
    throw new UserError(
      `Cannot start a run in ${out_dir}: it already holds ${what}; choose another --out_dir, or ${next}`,
    );
  }
  const onStep = await telemetry(out_dir),
    after = saved?.step ?? (isAuto && holdsRun(out_dir) ? 0 : undefined);
  return new RunLog(out_dir, json(config), after, { ...config, onStep });
}

/** A run goes on with the data that it began with, unless another data_dir is named. */
export function requireSameData(config: DirectoryConfig, dataset: Dataset, state: TrainerState): void {
  const differs = JSON.stringify(state.data) !== JSON.stringify(dataset.sha256);
  if (!differs || config.eval_only || config.data_dir !== state.config.data_dir) return;
  throw new UserError(
    `Cannot resume with ${config.data_dir}: its shards are not those that the run was trained on; prepare it as it was, or ` +
      `name the new data with another --data_dir`,
  );
}

/** How a run that was stopped goes on, as far as anything is saved. */
export function howToGoOn({ out_dir, save_interval }: DirectoryConfig, step: number): string {
  const newest = listCheckpoints(out_dir).at(-1);
  if (newest === undefined) {
    return save_interval === 0 ? "nothing was saved, as save_interval is 0" : "nothing was saved";
  }
  const command = asTyped(`deno task train --resume=${out_dir}`);
  if (Number(newest.slice("step_".length)) === step) return `go on with: ${command}`;
  return `this step was not saved; go on from ${newest} with: ${command}`;
}
