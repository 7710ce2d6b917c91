// What several processes that train one model do together. The world comes from the launcher's variables (world.ts); MPI or
// NCCL carry the data. A process on its own never comes here.
import { KernelError, UserError } from "../ffi/errors.ts";
import { isFile, writeAtomic } from "../ffi/files.ts";
import { allocate, copyToDevice, copyToHost, device } from "../ffi/library.ts";
import type { Exchange } from "./optim.ts";
import { hostname } from "./owner.ts";
import type { Address } from "./tensor.ts";
import type { World } from "./world.ts";

/** Carries data between the ranks: MPI for CPUs, NCCL for GPUs. */
export interface Engine extends Exchange {
  /** Bytes of rank 0 to every rank; all pass as many. */
  broadcast(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Waits until every rank is here. */
  barrier(): Promise<void>;
  /** What has gone wrong in work that is queued, if anything has. MPI says it when the call returns. */
  failure?(): string | undefined;
  /** Ends all ranks, without waiting for any. */
  abort(code: number): void;
  /** Leaves in good order. */
  finalize(): void;
}

const MAX_SUMS = 8; // numbers that sum() takes
const BEAT_MS = 5000; // between two writes of a rank's file
const WATCH_MS = 500; // between two looks at whether it goes on
const GRACE_MS = 2000; // for the others to write theirs once the time is up

/** The ranks of a run, as one of them sees them. All of them make the same calls in the same order. */
export class Ranks implements Exchange {
  readonly rank: number;
  readonly world_size: number;
  readonly #engine: Engine;
  readonly #timeout_ms: number;
  #sums: Address = 0n;
  #directory = ""; // where each rank keeps a file, once the run directory is known
  #beat = { step: 0, written_ms: -Infinity };

  /** timeout_s: a rank that does not come to a meeting of all for so long ends the run; 0 = never. */
  constructor({ rank, world_size }: World, engine: Engine, timeout_s: number) {
    this.rank = rank;
    this.world_size = world_size;
    this.#engine = engine;
    this.#timeout_ms = timeout_s * 1000;
  }

  reduceScatter(all: Address, n: number): Promise<void> {
    return this.meet("reduce-scatter of gradients", this.#engine.reduceScatter(all, n));
  }

  allGather(all: Address, bytes: number): Promise<void> {
    return this.meet("all-gather", this.#engine.allGather(all, bytes));
  }

  allReduce(x: Address, n: number, type: "float" | "double"): Promise<void> {
    return this.meet("all-reduce", this.#engine.allReduce(x, n, type));
  }

  /** Waits until every rank is here. */
  barrier(): Promise<void> {
    return this.meet("barrier", this.#engine.barrier());
  }

  /** The sums of numbers (at most 8) over all ranks. */
  async sum(...values: number[]): Promise<number[]> {
    if (values.length > MAX_SUMS) throw new RangeError(`internal: sum() of ${values.length} numbers`);
    this.#sums ||= allocate(8 * MAX_SUMS);
    const array = Float64Array.from(values);
    copyToDevice(this.#sums, array);
    await this.allReduce(this.#sums, values.length, "double");
    copyToHost(array, this.#sums);
    return Array.from(array);
  }

  /** The value of rank 0, on every rank. It must be JSON. */
  async fromFirst<T>(value: T): Promise<T> {
    const text = new TextEncoder().encode(JSON.stringify(value)), length = Uint32Array.of(text.length);
    await this.meet("broadcast", this.#engine.broadcast(new Uint8Array(length.buffer)));
    const bytes = this.rank === 0 ? text : new Uint8Array(length[0]!);
    await this.meet("broadcast", this.#engine.broadcast(bytes));
    return JSON.parse(new TextDecoder().decode(bytes));
  }

  /** Throws UserError on a rank where something differs from rank 0, with both values. facts: values or objects of values. */
  async requireSame(facts: Record<string, unknown>): Promise<void> {
    const first = flat(await this.fromFirst(facts)), here = flat(facts);
    const differences = Object.keys({ ...first, ...here }).filter((name) => here[name] !== first[name])
      .map((name) => `${name} is ${here[name]} here and ${first[name]} on rank 0`);
    if (differences.length === 0) return;
    throw new UserError(
      `Cannot train with rank 0: ${
        differences.join(", ")
      }; start all ranks with the same code, data and flags`,
    );
  }

  /** Says that this rank works on a step: what the others read when it does not come. Cheap. */
  beat(directory: string, step: number): void {
    this.#directory = directory;
    this.#beat.step = step;
    if (performance.now() - this.#beat.written_ms < BEAT_MS) return;
    this.#writeFile("");
  }

  /** Prints an error and ends all ranks. */
  fail(error: unknown): never {
    const isMessage = error instanceof UserError || error instanceof KernelError;
    const text = isMessage ? error.message : (error as Error).stack ?? String(error);
    console.error(`error: rank ${this.rank}: ${text}`);
    this.#engine.abort(1);
    Deno.exit(1);
  }

  /** Leaves in good order. */
  finalize(): void {
    this.#engine.finalize();
  }

  /** Waits for work that the others take part in, at most for the time allowed. */
  async meet<T>(what: string, work: Promise<T>): Promise<T> {
    const began = performance.now();
    const timer = setInterval(() => {
      const failure = this.#engine.failure?.();
      if (failure) this.fail(new KernelError(`${what} of step ${this.#beat.step}: ${failure}`));
      if (this.#timeout_ms === 0 || performance.now() - began < this.#timeout_ms) return;
      clearInterval(timer);
      this.#giveUp(what);
    }, WATCH_MS);
    try {
      return await work;
    } finally {
      clearInterval(timer);
    }
  }

  /** Says who did not come, and ends all ranks. */
  async #giveUp(what: string): Promise<void> {
    if (this.#directory) {
      this.#writeFile(what);
      await new Promise((resolve) => setTimeout(resolve, GRACE_MS));
    }
    console.error(
      `error: rank ${this.rank}: ${this.#missing(what)} within ${this.#timeout_ms / 1000} s ` +
        "(--dist_timeout_s); the last checkpoint is whole: go on with --resume=auto",
    );
    this.#engine.abort(1);
    Deno.exit(1);
  }

  #missing(what: string): string {
    const where = `the ${what} of step ${this.#beat.step}`;
    const others = Array.from({ length: this.world_size }, (_, rank) => rank).filter((r) => r !== this.rank);
    const files = this.#directory ? others.map((rank) => readFile(this.#directory, rank)) : [];
    const late = files.filter((file) => file !== undefined && file.waiting_for === "");
    if (late.length === 0) return `not all ranks came to ${where}`;
    const names = late.map((file) => `rank ${file!.rank} (process ${file!.pid} on ${file!.host})`);
    return `${names.join(", ")} did not come to ${where}`;
  }

  #writeFile(waiting_for: string): void {
    this.#beat.written_ms = performance.now();
    const { step } = this.#beat;
    const file: RankFile = { rank: this.rank, host: hostname(), pid: Deno.pid, step, waiting_for };
    Deno.mkdirSync(`${this.#directory}/ranks`, { recursive: true });
    writeAtomic(`${this.#directory}/ranks/${this.rank}.json`, JSON.stringify(file) + "\n");
  }
}

/** What a rank says of itself in the run directory. */
interface RankFile {
  rank: number;
  host: string;
  pid: number;
  step: number;
  waiting_for: string;
}

function readFile(directory: string, rank: number): RankFile | undefined {
  const path = `${directory}/ranks/${rank}.json`;
  return isFile(path) ? JSON.parse(Deno.readTextFileSync(path)) : undefined;
}

/** { a: { b: 1 } } as { "a.b": "1" }. */
function flat(value: unknown, name = ""): Record<string, string> {
  if (typeof value !== "object" || value === null) return { [name]: String(value) };
  const entries = Object.entries(value).map(([key, v]) => flat(v, name === "" ? key : `${name}.${key}`));
  return Object.assign({}, ...entries);
}

/**
 * Joins the other ranks. The device must be open: CPUs meet through MPI, GPUs through NCCL.
 *
 * @throws {UserError} where the library is missing, or does not see the ranks that the launcher announced.
 */
export async function joinRanks(world: World, timeout_s: number): Promise<Ranks> {
  const engine = device.library === "cuda" || Deno.env.get("LOAM_NCCL") // a library named for a test on the emulator
    ? await joinNccl(world, timeout_s)
    : await joinMpi(world);
  return new Ranks(world, engine, timeout_s);
}

async function joinMpi({ rank, world_size, launcher }: World): Promise<Engine> {
  const { Mpi } = await import("../ffi/mpi.ts");
  const mpi = Mpi.open(Deno.env.get("LOAM_MPI") ?? "", launcher === "MPICH" ? "mpich" : "openmpi");
  if (mpi.size === world_size && mpi.rank === rank) return mpi;
  throw new UserError(
    `Cannot train with ${world_size} ranks: ${launcher} says rank ${rank} of ${world_size}, MPI sees rank ${mpi.rank} of ` +
      `${mpi.size}; start CPU ranks with the mpirun of the MPI that is opened (LOAM_MPI names its library), or srun --mpi=pmix`,
  );
}

async function joinNccl(
  { rank, world_size, launcher, ...master }: World,
  timeout_s: number,
): Promise<Engine> {
  const { Nccl } = await import("../ffi/nccl.ts");
  const port = master.master_port + (launcher === "torchrun" ? 1 : 0); // torchrun itself listens at MASTER_PORT
  const meeting = { rank, world_size, address: master.master_addr, port, timeout_s };
  return await Nccl.join(Deno.env.get("LOAM_NCCL") ?? "", meeting);
}
