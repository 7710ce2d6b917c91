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
  /** What the launcher calls the job, the same for all its ranks and no other job; "" where it does not say. */
  job: string;
  /** Where rank 0 can be reached, for NCCL. */
  master_addr: string;
  /** TCP ports of which it takes the first that is free: MASTER_PORT alone where that says one. */
  master_ports: number[];
  /**
   * Seconds that mpirun may take to notice that a host has gone, and for ever where a rank ends itself before; 0 where there is one
   * host, and of launchers that do not wait so.
   */
  notice_s: number;
};

// Names of rank, size and local rank. Open MPI's come before Slurm's: mpirun inside a Slurm job sees both.
const LAUNCHERS = [
  ["torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"],
  ["Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
  ["MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
  ["Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
] as const;

const KEEPALIVE = "OMPI_MCA_oob_tcp_keepalive_"; // what mpirun --mca sets

/** The variables that findWorld() reads, for permissions. */
export const WORLD_VARIABLES = [
  ...LAUNCHERS.flatMap(([, ...names]) => names),
  "MASTER_ADDR",
  "MASTER_PORT",
  ...["time", "intvl", "probes"].map((name) => KEEPALIVE + name),
  "OMPI_MCA_orte_num_nodes",
  "PMIX_NAMESPACE",
  "SLURM_JOB_ID",
  "SLURM_JOB_NODELIST",
  "SLURM_STEP_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_STEP_NUM_NODES",
  "SLURM_STEP_NUM_TASKS",
  "TORCHELASTIC_RUN_ID",
];

const DEFAULT_PORT = 29500; // torchrun's
const JOB_PORTS = { first: 20_000, count: 10_000 }; // by job, as two jobs may share a node; systems hand out those above 32767
const PORTS = 8; // to choose from: other programs may have some of them

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
    return { rank: 0, world_size: 1, local_rank: 0, launcher: "", ...meetingPlace(get, ""), notice_s: 0 };
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
  return { ...first, ...meetingPlace(get, first.launcher), notice_s: noticeOf(get) };
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

function meetingPlace(
  get: Get,
  launcher: World["launcher"],
): Pick<World, "job" | "master_addr" | "master_ports"> {
  const nodes = get("SLURM_STEP_NODELIST") ?? get("SLURM_JOB_NODELIST") ?? "", job = jobOf(get, launcher);
  const isOneNode = firstHost(nodes) === nodes;
  return {
    job,
    master_addr: get("MASTER_ADDR")?.replace(/^\[(.*)\]$/, "$1") ??
      (isOneNode ? "127.0.0.1" : firstHost(nodes)),
    master_ports: portsOf(get, launcher, job),
  };
}

/** By the keepalives of the mpirun of Open MPI up to 4; without them it would not notice at all. */
function noticeOf(get: Get): number {
  if (Number(get("OMPI_MCA_orte_num_nodes") ?? 1) === 1) return 0;
  const of = (name: string, usual: number) => Number(get(KEEPALIVE + name) ?? usual), time = of("time", 300);
  return time > 0 ? time + of("intvl", 20) * of("probes", 9) : Infinity;
}

/** By the launcher alone: of the variables of another one that it was started by, not all ranks need have the same. */
function jobOf(get: Get, launcher: World["launcher"]): string {
  const names = {
    torchrun: ["TORCHELASTIC_RUN_ID"], // "none" without --rdzv-id
    "Open MPI": ["PMIX_NAMESPACE"],
    Slurm: ["SLURM_JOB_ID", "SLURM_STEP_ID"],
    MPICH: [],
    "": [],
  }[launcher];
  return names.flatMap((name) => get(name) ?? []).join(".");
}

function portsOf(get: Get, launcher: World["launcher"], job: string): number[] {
  const from = (first: number) =>
    Array.from({ length: PORTS }, (_, i) => first + i).filter((port) => port <= 65_535);
  if (get("MASTER_PORT") !== undefined) {
    const port = number(get, "torchrun", "MASTER_PORT", 1, 65_534);
    return launcher === "torchrun" ? from(port + 1) : [port]; // torchrun itself listens at MASTER_PORT
  }
  if (job === "") return from(DEFAULT_PORT);
  const { first, count } = JOB_PORTS,
    hash = Array.from(job).reduce((n, c) => (31 * n + c.charCodeAt(0)) % 2 ** 32, 0);
  return from(first + PORTS * (hash % (count / PORTS)));
}

/** The first host of a Slurm list: that of "gpu[003-007,9],cpu1" is gpu003, that of "rack[1-2]n[03,04]" rack1n03. */
export function firstHost(nodes: string): string {
  let host = "", depth = 0, skips = 0; // how deep in brackets this is, and how deep those are whose rest is left out
  for (const letter of nodes) {
    if (letter === "[") depth++;
    else if (letter === "]" && depth-- === skips) skips = 0;
    else if (letter === "," && depth === 0) break;
    else if (letter !== "]" && skips === 0) {
      if (depth > 0 && /[,-]/.test(letter)) skips = depth;
      else host += letter;
    }
  }
  return host;
}
