// Who trains in a run directory, in owner.json: for the message to a second process, and for file systems shared by several
// machines, not all of which carry locks from one to another.
import { UserError } from "../base/errors.ts";
import { isFile, remove, writeAtomic } from "../base/files.ts";

/** A process that trains. */
type Owner = {
  /** Name of its machine. */
  host: string;
  /** Its process id there. */
  pid: number;
  /** What the launcher calls its job: jobName(). */
  job: string;
};

const FRESH_MS = 600_000; // a run that has written this lately may still be at work on another machine

/** Says which process trains in a directory: "process 123 on node4". */
export function ownerOf(dir: string): string {
  const owner = readOwner(dir);
  return owner ? `process ${owner.pid} on ${owner.host}` : "another process";
}

/**
 * Writes owner.json; the caller holds the lock of the directory. What a process that has ended left there is
 * replaced, such as one of the same job: a launcher starts a job once more, maybe on another machine, when all
 * processes of it have ended. Throws UserError if a process of another machine seems to be at work there.
 */
export function claimRun(dir: string): void {
  const owner = readOwner(dir), here = hostname(), job = jobName((name) => Deno.env.get(name));
  const isOurs = owner?.host === here || job !== "" && owner?.job === job;
  if (owner && !isOurs && Date.now() - lastWrite(dir) < FRESH_MS) {
    throw new UserError(
      `Cannot train in ${dir}: process ${owner.pid} on ${owner.host} wrote there in the last ten minutes and has not ended ` +
        `in good order; if it is gone, remove ${dir}/owner.json, or choose another --out_dir`,
    );
  }
  writeAtomic(path(dir), JSON.stringify({ host: here, pid: Deno.pid, job } satisfies Owner) + "\n");
}

/** Removes owner.json, if the system lets it: the next process there replaces what is left. */
export function releaseRun(dir: string): void {
  try {
    if (isFile(path(dir))) remove(path(dir));
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
  }
}

function path(dir: string): string {
  return `${dir}/owner.json`;
}

function readOwner(dir: string): Owner | undefined {
  try {
    const { host, pid, job = "" } = JSON.parse(Deno.readTextFileSync(path(dir)));
    const isOwner = typeof host === "string" && Number.isSafeInteger(pid) && pid > 0 &&
      typeof job === "string";
    return isOwner ? { host, pid, job } : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined; // not there, or not whole
  }
}

function lastWrite(dir: string): number {
  const metrics = `${dir}/metrics.jsonl`;
  return isFile(metrics) ? Deno.statSync(metrics).mtime!.getTime() : 0;
}

/** Name of this machine; "this machine" for a program that may not know it. */
export function hostname(): string {
  try {
    return Deno.hostname();
  } catch {
    return "this machine";
  }
}

/** What the launcher calls this job, the same when it starts it once more; "" where it does not say. */
export function jobName(get: (name: string) => string | undefined): string {
  const slurm = get("SLURM_JOB_ID"), torchrun = get("TORCHELASTIC_RUN_ID");
  if (slurm) return `Slurm ${slurm}`;
  return torchrun && torchrun !== "none" ? `torchrun ${torchrun}` : ""; // "none" without --rdzv-id
}
