// What several processes that train one model do together. The world comes from the launcher's variables (world.ts); MPI or
// NCCL carry the data. A process on its own is the only rank: for it everything here is done at once.
import { exitCodeOf, explain, KernelError, TransientError, TRY_AGAIN, UserError } from "../base/errors.ts";
import { listCheckpoints } from "../runtime/checkpoint.ts";
import { makeDirectory } from "../base/files.ts";
import { allocate, copyToDevice, copyToHost, device, endAfter, synchronize } from "../ffi/library.ts";
import { oneLine } from "../base/visible.ts";
import type { Exchange, Piece, Share, Sum } from "../runtime/optim.ts";
import { hostname } from "../runtime/owner.ts";
import { queueing, type Waiting, within } from "./deadline.ts";
import { RollCall } from "./roll_call.ts";
import type { Address } from "../runtime/tensor.ts";
import type { World } from "./world.ts";

/** Carries data between the ranks: MPI for CPUs, NCCL for GPUs. */
export type Engine = Omit<Exchange, "gathered"> & {
  /** Whether gathered() is done with waiting for the oldest shares; the next ones are the oldest then. */
  hasGathered(): boolean;
  /** Bytes of rank 0 to every rank; all pass as many. */
  broadcast(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Waits until every rank is here. */
  barrier(): Promise<void>;
  /** What has gone wrong in work that is queued, if anything has. MPI says it when the call returns. */
  failure?(): string | undefined;
  /** Ends all ranks, without waiting for any. */
  abort(code: number): void;
  /** Leaves in good order. */
  finalize(): void | Promise<void>;
};

/** Carries nothing: there is one rank. */
const NOTHING: Engine = {
  beginReduce: () => {},
  progress: () => {},
  reduced: () => Promise.resolve(),
  beginGather: () => Promise.resolve(),
  hasGathered: () => true,
  allGather: () => Promise.resolve(),
  allReduce: () => Promise.resolve(),
  broadcast: () => Promise.resolve(),
  barrier: () => Promise.resolve(),
  abort: () => {},
  finalize: () => {},
};

const MAX_SUMS = 8; // numbers that sum() takes
const END = "the end of the run";
const GATHER = "gathering of weights";
const MARGIN = 1.25; // of a deadline over the time in which mpirun notices why ranks wait
const LEAVE_MS = 10_000; // for NCCL or MPI, and what runs at the end of a process, to end one that has failed
const WATCH_MS = 500; // between two looks at whether it goes on
const ANSWER_MS = 5000; // a rank that waits for so long says so in its file
const SIGHT_MS = 60_000; // for a file of rank 0 to come in sight on other machines: NFS looks up names so late

/** The ranks of a run, as one of them sees them. All of them make the same calls in the same order. */
export class Ranks implements Exchange {
  /** This process, from 0. */
  readonly rank: number;
  /** How many ranks there are. */
  readonly world_size: number;
  /** Called with what ends this process from within a meeting. */
  onFailure: (error: unknown) => void = () => {};
  readonly #engine: Engine;
  readonly #timeout_ms: number;
  #sums: Address = 0n;
  #waited_ms = 0;
  #rollCall: RollCall | undefined; // once the run directory is known
  #directory = ""; // of the run, likewise
  #step = 0; // what is under way; 0 = the start

  /** timeout_s: a rank that does not come to a meeting of all for so long ends the run; 0 = never. */
  constructor({ rank, world_size }: World, engine: Engine, timeout_s: number) {
    this.rank = rank;
    this.world_size = world_size;
    this.#engine = engine;
    this.#timeout_ms = timeout_s * 1000;
  }

  /** The only rank of a process on its own. */
  static alone(): Ranks {
    return new Ranks({ rank: 0, world_size: 1 } as World, NOTHING, 0);
  }

  /** Whether this is the only one, which then does nothing together with others. */
  get isAlone(): boolean {
    return this.#engine === NOTHING;
  }

  /** Of n things that the ranks share, which are numbered from 0, this rank's. Some ranks may have one more than others. */
  share(n: number): number[] {
    const { rank, world_size } = this;
    return Array.from({ length: Math.ceil((n - rank) / world_size) }, (_, i) => i * world_size + rank);
  }

  /** Begins to add up gradients over all ranks: Exchange.beginReduce(). */
  beginReduce(pieces: Piece[]): void {
    this.#engine.beginReduce(pieces);
  }

  /** Lets that get on: Exchange.progress(). */
  progress(): void {
    this.#engine.progress();
  }

  /** Waits for it: Exchange.reduced(). */
  reduced(): Promise<void> {
    return this.meet("reduce-scatter of gradients", () => this.#engine.reduced());
  }

  /** Begins to give every rank shares of others: Exchange.beginGather(). */
  beginGather(shares: Share[]): Promise<void> {
    return this.meet(GATHER, () => this.#engine.beginGather(shares));
  }

  /** Waits for the oldest of them: Exchange.gathered(). */
  gathered(): void {
    const began = performance.now(), watch = this.#watch(GATHER);
    while (!this.#engine.hasGathered()) watch.look();
    watch.end();
    this.#waited_ms += performance.now() - began;
  }

  /** How long gathered() has waited since the last call, which is no work of this rank's own. */
  takeWaited(): number {
    const ms = this.#waited_ms;
    this.#waited_ms = 0;
    return ms;
  }

  /** Gives every rank the parts of all: Exchange.allGather(). */
  allGather(all: Address, bytes: number): Promise<void> {
    return this.meet("all-gather", () => this.#engine.allGather(all, bytes));
  }

  /** Adds numbers up over all ranks: Exchange.allReduce(). */
  allReduce(...sums: Sum[]): Promise<void> {
    return this.meet("all-reduce", () => this.#engine.allReduce(...sums));
  }

  /** Waits until every rank is here. */
  barrier(): Promise<void> {
    return this.meet("barrier", () => this.#engine.barrier());
  }

  /** The sums of numbers (at most 8) over all ranks. */
  async sum(...values: number[]): Promise<number[]> {
    if (this.isAlone) return values;
    if (values.length > MAX_SUMS) throw new RangeError(`internal: sum() of ${values.length} numbers`);
    this.#sums ||= allocate(8 * MAX_SUMS);
    const array = Float64Array.from(values);
    copyToDevice(this.#sums, array);
    await this.meet("all-reduce", async () => {
      await this.#engine.allReduce({ address: this.#sums, n: values.length, type: "double" });
      await synchronize(); // a GPU's only queues it, and copyToHost() would wait for ever
    });
    copyToHost(array, this.#sums);
    return Array.from(array);
  }

  /** The smallest of the values of all ranks. */
  async least(value: number): Promise<number> {
    let least = value;
    for (let rank = 0; rank < this.world_size; rank++) {
      const [its] = await this.sum(rank === this.rank ? value : 0);
      least = Math.min(least, its!);
    }
    return least;
  }

  /** The value of rank 0, on every rank. It must be JSON. */
  async fromFirst<T>(value: T): Promise<T> {
    if (this.isAlone) return value;
    const text = new TextEncoder().encode(JSON.stringify(value)), length = Uint32Array.of(text.length);
    await this.meet("broadcast", () => this.#engine.broadcast(new Uint8Array(length.buffer)));
    const bytes = this.rank === 0 ? text : new Uint8Array(length[0]!);
    await this.meet("broadcast", () => this.#engine.broadcast(bytes));
    return JSON.parse(new TextDecoder().decode(bytes));
  }

  /**
   * Returns once all ranks are alike; until then rank 0 writes nothing either. facts: values or objects of values. Throws
   * UserError on a rank where something differs from rank 0, with both values.
   */
  async requireSame(facts: Record<string, unknown>): Promise<void> {
    if (this.isAlone) return;
    const first = flat(await this.fromFirst(facts)), here = flat(facts);
    const differences = Object.keys({ ...first, ...here }).filter((name) => here[name] !== first[name])
      .map((name) => `${name} is ${here[name]} here and ${first[name]} on rank 0`);
    if (differences.length === 0) return await this.barrier();
    throw new UserError(
      `Cannot train with rank 0: ${
        differences.join(", ")
      }; start all ranks with the same code, data and flags`,
    );
  }

  /**
   * Makes a run directory known, where each rank leaves word of itself for the message about one that does not come. Returns
   * that of rank 0. Throws UserError on a rank that does not see there what rank 0 has written.
   */
  async enter(directory: string): Promise<string> {
    if (this.isAlone) return directory;
    const [shared, job] = await this.fromFirst([directory, crypto.randomUUID()] as const);
    this.#directory = shared;
    const rollCall = this.#rollCall = new RollCall(shared, job, this.rank, this.world_size);
    try {
      makeDirectory(shared); // where that is not allowed, the message asks for all of it
      rollCall.answer("");
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      throw new UserError(`Cannot write to ${shared}: ${(error as Error).message}; choose another --out_dir`);
    }
    await this.barrier();
    const began = performance.now(), patience_ms = Math.min(SIGHT_MS, this.#timeout_ms || SIGHT_MS);
    while (!rollCall.hasAnswered(0)) {
      if (performance.now() - began > patience_ms) {
        throw new UserError(
          `Cannot train in ${shared}: on ${hostname()} it is not the directory that rank 0 writes to; choose an --out_dir on ` +
            "a file system that all ranks share",
        );
      }
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
    }
    return shared;
  }

  /** Says which step is under way, for messages. */
  beat(step: number): void {
    this.#step = step;
  }

  /** Prints an error and ends all ranks; the only rank throws it. */
  fail(error: unknown): never {
    if (this.isAlone) throw error;
    const text = error instanceof KernelError
      ? oneLine(error.message)
      : explain(error).replace(/^error: /, "");
    console.error(`error: rank ${this.rank}: ${text}`);
    const code = exitCodeOf(error, false);
    endAfter(
      Math.min(LEAVE_MS, this.#timeout_ms || LEAVE_MS),
      code,
      `error: rank ${this.rank}: could not leave the others in good order`,
    );
    this.#engine.abort(code);
    Deno.exit(code);
  }

  /** Leaves in good order, once all ranks are done. */
  async finalize(): Promise<void> {
    await this.meet(END, () => this.#engine.barrier());
    await this.meet(END, async () => await this.#engine.finalize());
    this.#rollCall?.leave();
  }

  /** Waits for work that the others take part in, at most for the time allowed. */
  async meet<T>(what: string, begin: () => Promise<T>): Promise<T> {
    if (this.isAlone) return await begin();
    const work = within(this.#place(what), this.#waiting, begin);
    const watch = this.#watch(what), timer = setInterval(watch.look, WATCH_MS);
    try {
      return await work;
    } finally {
      clearInterval(timer);
      watch.end();
    }
  }

  /** Until this is disposed of work may be queued behind what waits for others, whose place is here. */
  queueing(): Disposable {
    return queueing(this.#place("result"), this.#waiting, (ANSWER_MS + 2 * WATCH_MS) / 1000); // those that can have said who is late
  }

  get #waiting(): Waiting {
    return { rank: this.rank, world_size: this.world_size, timeout_s: this.#timeout_ms / 1000 };
  }

  /** Watches a wait. look: ends the job where something has failed, or the others have not come in time. end: it is over. */
  #watch(what: string): { look(): void; end(): void } {
    const began = performance.now(), answer_ms = Math.min(ANSWER_MS, this.#timeout_ms / 2 || ANSWER_MS);
    let hasAnswered = false;
    const look = () => {
      const failure = this.#engine.failure?.();
      if (failure) this.#failHere(new KernelError(`${this.#place(what)}: ${failure}`));
      const waited_ms = performance.now() - began;
      if (!hasAnswered && waited_ms > answer_ms) {
        hasAnswered = true;
        this.#answer(what);
      }
      if (this.#timeout_ms === 0 || waited_ms < this.#timeout_ms + answer_ms + WATCH_MS) return; // the others have answered
      this.#failHere(new TransientError(this.#missing(what)));
    };
    return { look, end: () => hasAnswered && this.#answer("") };
  }

  #failHere(error: Error): never {
    this.onFailure(error);
    this.fail(error);
  }

  #answer(waits_at: string): void {
    try {
      this.#rollCall?.answer(waits_at);
    } catch {
      // a full disk: this rank cannot say that it waits, but those that it waits for may yet come
    }
  }

  /** Says who did not come; or where all have, that they do not hear each other. */
  #missing(what: string): string {
    const late = this.#rollCall?.late(), within = `within ${this.#timeout_ms / 1000} s (--dist_timeout_s)`;
    const newest = this.#directory ? listCheckpoints(this.#directory).at(-1) : undefined;
    const next = `${newest ? `go on from ${newest}` : "start again"} with --resume=auto`;
    if (late === "") {
      return `all ranks came to ${this.#place(what)}, but it did not end ${within}: ${this.#cut()}; ${next}`;
    }
    return `${late ? `${late} did not come` : "not all ranks came"} to ${
      this.#place(what)
    } ${within}; ${next}`;
  }

  #cut(): string {
    const hosts = this.#rollCall?.hosts() ?? [],
      more = hosts.length > 4 ? ` and ${hosts.length - 4} more` : "";
    if (hosts.length < 2) return `one of them hangs on ${hosts[0]}`;
    return `the network between ${hosts.slice(0, 4).join(", ")}${more} is cut or stands still`;
  }

  #place(what: string): string {
    if (what === END) return END;
    return `the ${what} ${this.#step === 0 ? "at the start" : `of step ${this.#step}`}`;
  }
}

/** { a: { b: 1 } } as { "a.b": "1" }. */
function flat(value: unknown, name = ""): Record<string, string> {
  if (typeof value !== "object" || value === null) return { [name]: String(value) };
  const entries = Object.entries(value).map(([key, v]) => flat(v, name === "" ? key : `${name}.${key}`));
  return Object.assign({}, ...entries);
}

/**
 * Joins the other ranks. The device must be open: CPUs meet through MPI, GPUs through NCCL. Throws UserError where
 * the library is missing, does not see the ranks that the launcher announced, or a rank would end before the launcher notices why;
 * TransientError where they do not come.
 */
export async function joinRanks(world: World, timeout_s: number): Promise<Ranks> {
  const least_s = Math.ceil(MARGIN * world.notice_s);
  if (timeout_s > 0 && timeout_s < least_s) {
    throw new UserError(
      `Cannot train on several hosts with --dist_timeout_s=${timeout_s}: mpirun notices after ${world.notice_s} s that a host ` +
        `has gone, and hangs where a rank ends itself before; set it to ${least_s} or more, or give mpirun --mca ` +
        "oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 5",
    );
  }
  const isGpu = device.library === "cuda" || Deno.env.get("LOAM_NCCL"); // a library named for a test on the emulator
  try {
    return new Ranks(world, await (isGpu ? joinNccl : joinMpi)(world, timeout_s), timeout_s);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    endAfter(LEAVE_MS, TRY_AGAIN, ""); // threads of the library may still wait
    throw new TransientError(
      `Cannot join ${world.world_size} ranks: rank ${world.rank}: ${error.message}` +
        (isGpu ? "; set NCCL_DEBUG=INFO to see more" : ""),
    );
  }
}

async function joinMpi({ rank, world_size, launcher }: World, timeout_s: number): Promise<Engine> {
  const { Mpi } = await import("./mpi.ts"), waiting = { rank, world_size, timeout_s };
  const mpi = Mpi.open(Deno.env.get("LOAM_MPI") ?? "", launcher === "MPICH" ? "mpich" : "openmpi", waiting);
  if (mpi.size === world_size && mpi.rank === rank) return mpi;
  throw new UserError(
    `Cannot train with ${world_size} ranks: ${launcher} says rank ${rank} of ${world_size}, MPI sees rank ${mpi.rank} of ` +
      `${mpi.size}; start CPU ranks with the mpirun of the MPI that is opened (LOAM_MPI names its library), or srun --mpi=pmix`,
  );
}

async function joinNccl(
  { rank, world_size, job, master_addr, master_ports }: World,
  timeout_s: number,
): Promise<Engine> {
  const { Nccl } = await import("./nccl.ts");
  const meeting = { rank, world_size, job, address: master_addr, ports: master_ports, timeout_s };
  return await Nccl.join(Deno.env.get("LOAM_NCCL") ?? "", meeting);
}
