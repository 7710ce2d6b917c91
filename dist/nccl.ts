// NCCL, opened at run time: how GPU ranks exchange gradients and weights. Collectives are queued on the library's own stream,
// behind the kernels whose results they read, and nothing waits for them but what reads their results.
import { KernelError, UserError } from "../base/errors.ts";
import {
  allocate,
  copyToDevice,
  copyToHost,
  deviceStream,
  mark,
  sideJoin,
  sideMark,
  sideStream,
  sideWait,
  synchronize,
} from "../ffi/library.ts";
import type { Piece, Share, Sum } from "../runtime/optim.ts";
import { within } from "./deadline.ts";
import { type Meeting, share } from "./rendezvous.ts";
import type { Address } from "../ffi/symbols.ts";

const INT = "i32", SIZE = "usize", POINTER = "usize";
const UNIQUE_ID = { struct: Array<"u64">(16).fill("u64") }; // 128 bytes, passed by value

const symbols = {
  ncclGetVersion: { parameters: ["buffer"], result: INT },
  ncclGetUniqueId: { parameters: ["buffer"], result: INT },
  ncclCommInitRankConfig: { parameters: ["buffer", INT, UNIQUE_ID, INT, "buffer"], result: INT }, // on this thread: it takes its GPU
  ncclGroupStart: { parameters: [], result: INT },
  ncclGroupEnd: { parameters: [], result: INT },
  ncclReduce: { parameters: [POINTER, POINTER, SIZE, INT, INT, INT, POINTER, POINTER], result: INT },
  ncclAllGather: { parameters: [POINTER, POINTER, SIZE, INT, POINTER, POINTER], result: INT },
  ncclAllReduce: { parameters: [POINTER, POINTER, SIZE, INT, INT, POINTER, POINTER], result: INT },
  ncclBroadcast: { parameters: [POINTER, POINTER, SIZE, INT, INT, POINTER, POINTER], result: INT },
  ncclCommGetAsyncError: { parameters: [POINTER, "buffer"], result: INT },
  ncclCommAbort: { parameters: [POINTER], result: INT },
  ncclCommFinalize: { parameters: [POINTER], result: INT },
  ncclCommDestroy: { parameters: [POINTER], result: INT },
  ncclGetErrorString: { parameters: [INT], result: "pointer" },
  ncclGetLastError: { parameters: [POINTER], result: "pointer" },
} as const satisfies Deno.ForeignLibraryInterface;

type Library = Deno.DynamicLibrary<typeof symbols>["symbols"];

const UNIQUE_ID_BYTES = 128;
const INT8 = 0, FLOAT32 = 7, FLOAT64 = 8, SUM = 0; // ncclDataType_t, ncclRedOp_t
const IN_PROGRESS = 7; // ncclResult_t
const FIRST_MARK = 16; // of those in kernels.h; model/progress.ts has the ones before
const FIRST_SHARE = 8192; // of the marks behind shares
const SPIN_MS = 1; // for a call to be done before timers get their turn: most are in some 20 us

/** An ncclConfig_t of version 2.14, the first one, of which later ones read that much: size, magic, version, blocking = 0. */
const CONFIG = new Uint8Array(Uint32Array.of(24, 0, 0xcafebeef, 21400, 0, 0).buffer);

/** The GPUs of all ranks. */
export class Nccl {
  /** This process, from 0. */
  readonly rank: number;
  /** Number of processes. */
  readonly size: number;
  /** "2.27.3" */
  readonly version: string;
  readonly #library: Library;
  readonly #stream: bigint;
  readonly #side: bigint; // for what goes on beside kernels
  #begun: Piece[][] = [];
  #given = 0; // calls of beginGather() since all were waited for
  #gathered = 0; // of them those that were waited for
  #communicator = 0n;
  #staging = { address: 0n, bytes: 0 };

  private constructor(library: Library, { rank, world_size }: Meeting) {
    this.#library = library;
    this.rank = rank;
    this.size = world_size;
    this.version = version(library);
    this.#stream = deviceStream();
    this.#side = sideStream();
  }

  /**
   * Opens NCCL and joins the other ranks. The device must be open; waits until all have come. Throws UserError where
   * it is not found, or ranks do not come, and KernelError where it cannot connect them.
   *
   * @param path Library to open; "" for the one that the system finds.
   */
  static async join(path: string, meeting: Meeting): Promise<Nccl> {
    // Before it opens: switches of NVLink add up in an order of their own, which the same run need not meet again.
    if (!Deno.env.get("NCCL_ALGO")) Deno.env.set("NCCL_ALGO", "^NVLS,NVLSTree");
    const library = open(path || "libnccl.so.2"), nccl = new Nccl(library, meeting);
    const id = new Uint8Array(UNIQUE_ID_BYTES),
      communicator = new BigUint64Array(1),
      { rank, world_size } = meeting;
    if (rank === 0) {
      nccl.#check(
        "ncclGetUniqueId",
        within("ncclGetUniqueId", meeting, () => library.ncclGetUniqueId(id)),
      );
    }
    const shared = await share(id, meeting), name = "ncclCommInitRankConfig";
    const code = within(name, meeting, () => library[name](communicator, world_size, shared, rank, CONFIG));
    nccl.#communicator = communicator[0]!;
    await nccl.#finished(name, code, meeting.timeout_s);
    return nccl;
  }

  /**
   * Begins to add up pieces, each for its owner: marks the place behind the kernels that made them. reduced() queues the rest,
   * since a call may take until ranks are connected; by then the kernels of a backward pass are queued, but hardly begun.
   */
  beginReduce(pieces: Piece[]): void {
    mark(FIRST_MARK + this.#begun.length);
    this.#begun.push(pieces);
  }

  /** What was begun needs no call to get on. */
  progress(): void {}

  /** Queues all that was begun on the second stream, where each waits for its mark alone; later kernels wait for all of it. */
  async reduced(): Promise<void> {
    const { ncclReduce } = this.#library, communicator = this.#communicator, side = this.#side;
    for (const [i, pieces] of this.#begun.splice(0).entries()) {
      sideWait(FIRST_MARK + i);
      await this.#group(
        "ncclReduce",
        pieces,
        ({ address, n, owner }) =>
          ncclReduce(address, address, BigInt(n), FLOAT32, SUM, owner, communicator, side),
      );
    }
    sideMark(FIRST_SHARE);
    sideJoin(FIRST_SHARE);
  }

  /** Queues it on the second stream, behind the kernels up to the first of such calls. */
  async beginGather(shares: Share[]): Promise<void> {
    const { ncclBroadcast } = this.#library, communicator = this.#communicator, side = this.#side;
    if (this.#given++ === 0) {
      mark(FIRST_MARK);
      sideWait(FIRST_MARK);
    }
    await this.#group(
      "ncclBroadcast",
      shares,
      ({ address, bytes, owner }) =>
        ncclBroadcast(address, address, BigInt(bytes), INT8, owner, communicator, side),
    );
    sideMark(FIRST_SHARE + this.#given);
  }

  /** Lets what is queued from here on wait for the oldest, and nothing else. */
  hasGathered(): boolean {
    sideJoin(FIRST_SHARE + ++this.#gathered);
    if (this.#gathered === this.#given) this.#gathered = this.#given = 0;
    return true;
  }

  /** Makes a call for each, all as one group, and waits until they are queued. */
  async #group<T>(name: string, all: T[], call: (one: T) => number): Promise<void> {
    this.#check("ncclGroupStart", this.#library.ncclGroupStart());
    for (const one of all) {
      const code = call(one);
      if (code !== IN_PROGRESS) this.#check(name, code);
    }
    await this.#finished(name, this.#library.ncclGroupEnd());
  }

  /** all: size parts of so many bytes. Each rank has its own part and receives the others. */
  allGather(all: Address, bytes: number): Promise<void> {
    const own = all + BigInt(bytes * this.rank);
    return this.#finished(
      "ncclAllGather",
      this.#library.ncclAllGather(own, all, BigInt(bytes), INT8, this.#communicator, this.#stream),
    );
  }

  /** All of these become their sums over all ranks, the same bits on each. */
  async allReduce(...sums: Sum[]): Promise<void> {
    for (const { address, n, type } of sums) {
      const kind = type === "float" ? FLOAT32 : FLOAT64;
      await this.#finished(
        "ncclAllReduce",
        this.#library.ncclAllReduce(
          address,
          address,
          BigInt(n),
          kind,
          SUM,
          this.#communicator,
          this.#stream,
        ),
      );
    }
  }

  /** Bytes of rank 0 to every rank. */
  async broadcast(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const address = this.#room(bytes.length), n = BigInt(bytes.length);
    copyToDevice(address, bytes);
    await this.#finished(
      "ncclBroadcast",
      this.#library.ncclBroadcast(address, address, n, INT8, 0, this.#communicator, this.#stream),
    );
    await synchronize();
    copyToHost(bytes, address);
  }

  /** Waits until every rank is here. */
  async barrier(): Promise<void> {
    await this.allReduce({ address: this.#room(4), n: 1, type: "float" });
    await synchronize();
  }

  /** Device memory for so many bytes, the same one again where it is large enough. */
  #room(bytes: number): Address {
    if (this.#staging.bytes < bytes) this.#staging = { address: allocate(bytes), bytes };
    return this.#staging.address;
  }

  /** What has gone wrong since the last call in work that was queued; undefined if nothing has. */
  failure(): string | undefined {
    const code = this.#state();
    return code === 0 || code === IN_PROGRESS ? undefined : this.#text(code);
  }

  /** What has become of the last call: 0, IN_PROGRESS or the code of an error; that of asking where that fails. */
  #state(): number {
    const state = new Int32Array(1), code = this.#library.ncclCommGetAsyncError(this.#communicator, state);
    return code || state[0]!;
  }

  /** Ends this rank's part; the other ranks see an error. */
  abort(_code: number): void {
    if (this.#communicator !== 0n) this.#library.ncclCommAbort(this.#communicator);
  }

  /** Leaves in good order. */
  async finalize(): Promise<void> {
    await this.#finished("ncclCommFinalize", this.#library.ncclCommFinalize(this.#communicator));
    const code = this.#library.ncclCommDestroy(this.#communicator); // goes on beside us: the process is about to end
    if (code !== IN_PROGRESS) this.#check("ncclCommDestroy", code);
  }

  /**
   * Waits until a call is done, or its work queued: NCCL may connect ranks first, on threads of its own. The next call must not
   * come before. timeout_s: 0 where the caller looks at the time.
   */
  async #finished(name: string, code: number, timeout_s = 0): Promise<void> {
    for (const began = performance.now(); code === IN_PROGRESS; code = this.#state()) {
      const waited_ms = performance.now() - began;
      if (timeout_s > 0 && waited_ms > 1000 * timeout_s) {
        throw new KernelError(`${name} has waited ${timeout_s} s (--dist_timeout_s) for the others`);
      }
      if (waited_ms > SPIN_MS) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    this.#check(name, code);
  }

  #check(name: string, code: number): void {
    if (code !== 0) throw new KernelError(`${name} failed: ${this.#text(code)}`);
  }

  #text(code: number): string {
    const last = cString(this.#library.ncclGetLastError(this.#communicator));
    return `${cString(this.#library.ncclGetErrorString(code))}${
      last ? `: ${last}` : ""
    } (NCCL ${this.version})`;
  }
}

function open(name: string): Library {
  try {
    return Deno.dlopen(name, symbols).symbols;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const reason = (error as Error).message.replace(/^(Could not open library: )+/, "");
    throw new UserError(
      `Cannot open NCCL: ${reason} (searched: LD_LIBRARY_PATH and the system's directories); install it (Debian: libnccl2 ` +
        "of NVIDIA's repository; pip: nvidia-nccl-cu13), or set LOAM_NCCL to the path of libnccl.so.2",
    );
  }
}

function version(library: Library): string {
  const number = new Int32Array(1);
  library.ncclGetVersion(number);
  const n = number[0]!; // 22703 is 2.27.3
  return `${Math.floor(n / 10000)}.${Math.floor(n / 100) % 100}.${n % 100}`;
}

function cString(pointer: Deno.PointerValue): string {
  return pointer === null ? "" : Deno.UnsafePointerView.getCString(pointer);
}
