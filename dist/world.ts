// Which of how many processes this is, from the variables that launchers set: torchrun, Slurm, Open MPI, MPICH. Reading them
// costs nothing and loads nothing; a process that no launcher started is rank 0 of 1.
import { UserError } from "../base/errors.ts";

/** A process among those that train together. */
export type World = {
  /** This process, from 0. */
  rank: number;
  /** Number of processes. */
  world_size: number;
  /** This process among those of its machine: the GPU that it takes. */
  local_rank: number;
  /** What started it; "" for a process on its own. */
  launcher: "" | "torchrun" | "Slurm" | "Open MPI" | "MPICH";
  /** Where rank 0 can be reached, for NCCL. */
  master_addr: string;
  /** Its TCP port. */
  master_port: number;
};

// Names of rank, size and local rank. Open MPI's come before Slurm's: mpirun inside a Slurm job sees both.
const LAUNCHERS = [
  ["torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"],
  ["Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
  ["MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
  ["Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
] as const;

/** The variables that findWorld() reads, for permissions. */
export const WORLD_VARIABLES = [
  ...LAUNCHERS.flatMap(([, ...names]) => names),
  "MASTER_ADDR",
  "MASTER_PORT",
  "SLURM_JOB_ID",
  "SLURM_JOB_NODELIST",
  "SLURM_STEP_ID",
  "SLURM_STEP_NUM_NODES",
  "SLURM_STEP_NUM_TASKS",
  "TORCHELASTIC_RUN_ID",
];

const DEFAULT_PORT = 29500; // torchrun's
const SLURM_PORTS = { first: 20_000, count: 10_000 }; // by job, as two jobs may share a node; systems hand out those above 32767

/**
 * Reads the world from the environment. Throws UserError for variables that are missing, out of range, or of two
 * launchers that do not agree.
 *
 * @param get Value of a variable, such as Deno.env.get.
 */
export function findWorld(get: (name: string) => string | undefined): World {
  const found = LAUNCHERS.flatMap(([launcher, rank, size, local]) => {
    if (get(rank) === undefined && get(size) === undefined) return [];
    if (launcher === "Slurm" && !isSlurmTask(get)) return []; // sbatch or salloc runs the script, not srun
    return [{ launcher, ...ranks(get, launcher, rank, size, local) }];
  });
  const first = found[0];
  if (first === undefined) {
    return { rank: 0, world_size: 1, local_rank: 0, launcher: "", ...master(get) };
  }
  for (const other of found.slice(1)) {
    // A launcher that starts another one leaves its own variables behind: srun starts one torchrun on each node, or mpirun's
    // helpers on all nodes but its own.
    if (other.world_size === 1 || other.launcher === "Slurm" && isOneTaskANode(get)) continue;
    if (other.rank === first.rank && other.world_size === first.world_size) continue;
    throw new UserError(
      `Cannot tell which process this is: ${first.launcher} says rank ${first.rank} of ${first.world_size}, ` +
        `${other.launcher} says rank ${other.rank} of ${other.world_size}; start it with one launcher, or unset the ` +
        "variables of the other",
    );
  }
  return { ...first, ...master(get) };
}

/** The value of an environment variable, undefined if it is not set. */
export type Get = (name: string) => string | undefined;

function ranks(get: Get, launcher: string, rankName: string, sizeName: string, localName: string) {
  const world_size = number(get, launcher, sizeName, 1, 1 << 20);
  const rank = number(get, launcher, rankName, 0, world_size - 1);
  const local_rank = get(localName) === undefined ? 0 : number(get, launcher, localName, 0, world_size - 1);
  return { rank, world_size, local_rank };
}

function number(get: Get, launcher: string, name: string, least: number, most: number): number {
  const text = get(name);
  const value = text !== undefined && /^\d+$/.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new UserError(
    `Cannot use the variables of ${launcher}: ${name} is ${text ?? "not set"}, should be ${least} to ${most}`,
  );
}

/** Whether srun started this process: the script of a batch job has SLURM_PROCID too, but is alone. */
function isSlurmTask(get: Get): boolean {
  return /^\d+$/.test(get("SLURM_STEP_ID") ?? "") && get("SLURM_STEP_NUM_TASKS") !== undefined;
}

function isOneTaskANode(get: Get): boolean {
  return get("SLURM_STEP_NUM_TASKS") === get("SLURM_STEP_NUM_NODES");
}

function master(get: Get): { master_addr: string; master_port: number } {
  const nodes = get("SLURM_JOB_NODELIST") ?? "", job = Number(get("SLURM_JOB_ID"));
  const isOneNode = firstHost(nodes) === nodes;
  const port = job > 0 ? SLURM_PORTS.first + job % SLURM_PORTS.count : DEFAULT_PORT;
  return {
    master_addr: get("MASTER_ADDR") ?? (isOneNode ? "127.0.0.1" : firstHost(nodes)),
    master_port: get("MASTER_PORT") === undefined ? port : number(get, "torchrun", "MASTER_PORT", 1, 65_535),
  };
}

/** The first host of a Slurm list: "gpu[003-007,9],cpu1" begins with gpu003. */
export function firstHost(nodes: string): string {
  const [, prefix, first, suffix] = /^([^,[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?/.exec(nodes) ?? [];
  return `${prefix ?? nodes}${first ?? ""}${suffix ?? ""}`;
}
