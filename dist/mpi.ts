// MPI, opened at run time: how CPU ranks exchange gradients and weights. Open MPI 4 and 5, and MPICH and its relatives, whose
// handles are numbers instead of addresses. Calls that may wait run on another thread, so that timers and signals go on.
import { KernelError, UserError } from "../base/errors.ts";
import type { Address } from "../ffi/symbols.ts";
import type { Piece, Share, Sum } from "../runtime/optim.ts";
import { type Waiting, within } from "./deadline.ts";

const HANDLE = "usize", INT = "i32"; // a handle is an address in Open MPI, an int in MPICH: both fit one register

const symbols = {
  MPI_Init_thread: { parameters: ["usize", "usize", INT, "buffer"], result: INT }, // on this thread, which stays: see open()
  MPI_Comm_rank: { parameters: [HANDLE, "buffer"], result: INT },
  MPI_Comm_size: { parameters: [HANDLE, "buffer"], result: INT },
  MPI_Comm_set_errhandler: { parameters: [HANDLE, HANDLE], result: INT },
  MPI_Error_string: { parameters: [INT, "buffer", "buffer"], result: INT },
  MPI_Barrier: { parameters: [HANDLE], result: INT, nonblocking: true },
  MPI_Bcast: { parameters: ["buffer", INT, HANDLE, INT, HANDLE], result: INT, nonblocking: true },
  MPI_Iallreduce: {
    parameters: ["usize", "usize", INT, HANDLE, HANDLE, HANDLE, "buffer"],
    result: INT,
  },
  MPI_Ibcast: { parameters: ["usize", INT, HANDLE, INT, HANDLE, "buffer"], result: INT },
  MPI_Ireduce: {
    parameters: ["usize", "usize", INT, HANDLE, HANDLE, INT, HANDLE, "buffer"],
    result: INT,
  },
  MPI_Test: { parameters: ["buffer", "buffer", "usize"], result: INT },
  MPI_Wait: { parameters: ["buffer", "usize"], result: INT, nonblocking: true },
  MPI_Allgather: {
    parameters: ["usize", INT, HANDLE, "usize", INT, HANDLE, HANDLE],
    result: INT,
    nonblocking: true,
  },
  MPI_Abort: { parameters: [HANDLE, INT], result: INT },
  MPI_Finalize: { parameters: [], result: INT },
} as const satisfies Deno.ForeignLibraryInterface;

type Library = Deno.DynamicLibrary<typeof symbols>["symbols"];

/** What was begun, and by which function. */
type Request = { name: string; request: BigUint64Array<ArrayBuffer> };

/** The handles that mpi.h defines as macros. */
type Handles = {
  world: bigint;
  errorsReturn: bigint;
  byte: bigint;
  float: bigint;
  double: bigint;
  sum: bigint;
  inPlace: bigint;
  statusIgnore: bigint;
};

const LIBRARIES = {
  openmpi: [Deno.build.os === "darwin" ? "libmpi.dylib" : "libmpi.so.40"], // 4 and 5 have the same number
  mpich: ["libmpi.so.12", "libmpich.so.12"], // the second as Debian names it
};
// For networks on which the way takes long, unless they are set. Open MPI asks the other side before it sends more than 64 KB over
// TCP: three times the way. Sums go to one rank and back: twice the way.
const SETTINGS = {
  OMPI_MCA_btl_tcp_eager_limit: `${1 << 22}`,
  OMPI_MCA_btl_tcp_rndv_eager_limit: `${1 << 22}`,
  OMPI_MCA_coll_libnbc_iallreduce_algorithm: "4", // recursive doubling: the same bits on each
};
const THREAD_SERIALIZED = 2; // one thread at a time: calls alternate between this thread and those that wait
const MPICH: Handles = {
  world: 0x44000000n,
  errorsReturn: 0x54000001n,
  byte: 0x4c00010dn,
  float: 0x4c00040an,
  double: 0x4c00080bn,
  sum: 0x58000003n,
  inPlace: (1n << 64n) - 1n,
  statusIgnore: 1n,
};

/** All processes that mpirun started, and what they do together. */
export class Mpi {
  /** This process, from 0. */
  readonly rank: number;
  /** Number of processes. */
  readonly size: number;
  readonly #library: Library;
  readonly #handles: Handles;
  readonly #waiting: Waiting;
  // What was begun, the oldest first: sums for this rank, what it sends to others' sums, shares for it by call, what it gives.
  #sums: Request[] = [];
  #addends: Request[] = [];
  readonly #shares: Request[][] = [];
  #gifts: Request[] = [];

  private constructor(library: Library, handles: Handles, waiting: Waiting) {
    this.#library = library;
    this.#handles = handles;
    this.#waiting = waiting;
    const provided = new Int32Array(1), number = new Int32Array(1);
    const init = () => library.MPI_Init_thread(0n, 0n, THREAD_SERIALIZED, provided);
    this.#check("MPI_Init_thread", within("MPI_Init_thread", waiting, init));
    if (provided[0]! < THREAD_SERIALIZED) {
      throw new UserError(
        `Cannot use MPI: it was built for one thread (level ${
          provided[0]
        }, should be ${THREAD_SERIALIZED}); ` +
          "install an MPI with thread support",
      );
    }
    library.MPI_Comm_set_errhandler(handles.world, handles.errorsReturn);
    this.#check("MPI_Comm_rank", library.MPI_Comm_rank(handles.world, number));
    this.rank = number[0]!;
    this.#check("MPI_Comm_size", library.MPI_Comm_size(handles.world, number));
    this.size = number[0]!;
  }

  /**
   * Opens MPI and joins the processes of this job. Waits for them on this thread: on one of those that Deno keeps for
   * calls that wait, which end when idle, Open MPI leaves clean-up code of plugins that it has closed by then. Throws
   * UserError where none is found, saying what was searched and what to install; ends the process where they do not come.
   *
   * @param path Library to open; "" for the one that belongs to the launcher.
   * @param launcher Whose mpirun started this process: with the library of the other one, each process would be alone.
   */
  static open(path: string, launcher: keyof typeof LIBRARIES, waiting: Waiting): Mpi {
    for (const [name, value] of Object.entries(SETTINGS)) { // before it opens
      if (!Deno.env.get(name)) Deno.env.set(name, value);
    }
    const { library, name } = openFirst(path ? [path] : LIBRARIES[launcher]);
    return new Mpi(library, openMpiHandles(name) ?? MPICH, waiting);
  }

  /** Begins to add up pieces, each for its owner; they get on within calls of MPI, of which progress() is one. */
  beginReduce(pieces: Piece[]): void {
    const { float, sum, inPlace, world } = this.#handles;
    for (const { address, n, owner } of pieces) {
      const [send, receive] = owner === this.rank ? [inPlace, address] : [address, 0n];
      const request = this.#begin(
        "MPI_Ireduce",
        (request) => this.#library.MPI_Ireduce(send, receive, n, float, sum, owner, world, request),
      );
      (owner === this.rank ? this.#sums : this.#addends).push(request);
    }
  }

  /** Lets what was begun get on. */
  progress(): void {
    for (const requests of [this.#sums, this.#addends, this.#shares[0] ?? [], this.#gifts]) {
      if (requests.length > 0 && !this.#isDone(requests)) return;
    }
  }

  /** Waits until this rank's sums are there. Those of others may still wait for what it sends. */
  async reduced(): Promise<void> {
    await this.#wait(this.#gifts); // the update writes to what it gave
    await this.#wait(this.#sums);
  }

  /** Begins to give bytes of ranks to all. */
  beginGather(shares: Share[]): Promise<void> {
    const { float, world } = this.#handles, coming: Request[] = []; // counts are ints: floats reach further than bytes
    for (const { address, bytes, owner } of shares) {
      const request = this.#begin(
        "MPI_Ibcast",
        (request) => this.#library.MPI_Ibcast(address, bytes / 4, float, owner, world, request),
      );
      (owner === this.rank ? this.#gifts : coming).push(request);
    }
    this.#shares.push(coming);
    return Promise.resolve();
  }

  /** Whether the oldest that were begun are here; then the next ones are the oldest. Lets them get on. */
  hasGathered(): boolean {
    if (!this.#isDone(this.#shares[0]!)) return false;
    this.#shares.shift();
    return true;
  }

  #begin(name: string, call: (request: BigUint64Array<ArrayBuffer>) => number): Request {
    const request = new BigUint64Array(1); // an int in MPICH: its lower half
    this.#check(name, call(request));
    return { name, request };
  }

  /** Whether all are done; takes those out that are, up to the first that is not. */
  #isDone(requests: Request[]): boolean {
    for (const isDone = new Int32Array(1); requests.length > 0; requests.shift()) {
      const { name, request } = requests[0]!;
      this.#check(name, this.#library.MPI_Test(request, isDone, this.#handles.statusIgnore));
      if (!isDone[0]) return false;
    }
    return true;
  }

  /** Waits until all are done, and takes them out. */
  async #wait(requests: Request[]): Promise<void> {
    for (; !this.#isDone(requests); requests.shift()) { // on another thread only for what is not here yet
      const { name, request } = requests[0]!;
      this.#check(name, await this.#library.MPI_Wait(request, this.#handles.statusIgnore));
    }
  }

  /** all: size parts of so many bytes, a multiple of 4. Each rank has its own part and receives the others. */
  async allGather(all: Address, bytes: number): Promise<void> {
    const { inPlace, float, world } = this.#handles, n = bytes / 4; // counts are ints: floats reach further than bytes
    this.#check("MPI_Allgather", await this.#library.MPI_Allgather(inPlace, 0, float, all, n, float, world));
  }

  /** All of these become their sums over all ranks, the same bits on each. */
  async allReduce(...sums: Sum[]): Promise<void> {
    const { inPlace, sum, world } = this.#handles;
    const requests = sums.map(({ address, n, type }) =>
      this.#begin(
        "MPI_Iallreduce",
        (request) =>
          this.#library.MPI_Iallreduce(inPlace, address, n, this.#handles[type], sum, world, request),
      )
    );
    await this.#wait(requests);
    await this.#wait(this.#addends); // all ranks have come here, and had their sums before
  }

  /** Bytes of rank 0 to every rank. */
  async broadcast(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const { byte, world } = this.#handles;
    this.#check("MPI_Bcast", await this.#library.MPI_Bcast(bytes, bytes.length, byte, 0, world));
  }

  /** Waits until every rank is here. */
  async barrier(): Promise<void> {
    this.#check("MPI_Barrier", await this.#library.MPI_Barrier(this.#handles.world));
  }

  /** Ends all ranks at once. */
  abort(code: number): void {
    this.#library.MPI_Abort(this.#handles.world, code);
  }

  /** Leaves the job in good order. Waits for the others to do so. */
  finalize(): void {
    // One rank after the other: mpirun of Open MPI 4.1 hangs or crashes where several end within this call at once. The first
    // one that does has it end the others.
    const grace_s = 3 * Math.min(this.rank, 20);
    const code = within("MPI_Finalize", this.#waiting, () => this.#library.MPI_Finalize(), grace_s);
    this.#check("MPI_Finalize", code);
  }

  #check(name: string, code: number): void {
    if (code === 0) return;
    const text = new Uint8Array(1024), length = new Int32Array(1);
    this.#library.MPI_Error_string(code, text, length);
    const reason = new TextDecoder().decode(text.subarray(0, length[0]));
    throw new KernelError(`${name} failed: ${reason || `code ${code}`}`);
  }
}

function openFirst(names: readonly string[]): { library: Library; name: string } {
  const reasons: string[] = [];
  for (const name of names) {
    try {
      return { library: Deno.dlopen(name, symbols).symbols, name };
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      reasons.push((error as Error).message.replace(/^(Could not open library: )+/, ""));
    }
  }
  throw new UserError(
    `Cannot open MPI: ${
      reasons.join("; ")
    } (searched: LD_LIBRARY_PATH and the system's directories); install it ` +
      "(Debian: openmpi-bin), or set LOAM_MPI to the path of libmpi",
  );
}

/** The addresses of Open MPI's predefined objects, which are its handles; undefined for another MPI. */
function openMpiHandles(name: string): Handles | undefined {
  const object = { type: "pointer" } as const; // of a variable Deno gives the address
  const objects = {
    ompi_mpi_comm_world: object,
    ompi_mpi_errors_return: object,
    ompi_mpi_byte: object,
    ompi_mpi_float: object,
    ompi_mpi_double: object,
    ompi_mpi_op_sum: object,
  };
  let found: Record<keyof typeof objects, Deno.PointerValue>;
  try {
    found = Deno.dlopen(name, objects).symbols;
  } catch {
    return undefined;
  }
  const address = (key: keyof typeof objects) => Deno.UnsafePointer.value(found[key]);
  return {
    world: address("ompi_mpi_comm_world"),
    errorsReturn: address("ompi_mpi_errors_return"),
    byte: address("ompi_mpi_byte"),
    float: address("ompi_mpi_float"),
    double: address("ompi_mpi_double"),
    sum: address("ompi_mpi_op_sum"),
    inPlace: 1n,
    statusIgnore: 0n,
  };
}
