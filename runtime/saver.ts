// Saves checkpoints beside training: each rank makes a copy of its part at once, and a Worker writes it while the next steps run.
// What all ranks do together they do at the same places of the loop: they begin, and once each has said in a step that its
// part is written, rank 0 gives the checkpoint its name.
import { ask } from "../base/worker_scope.ts";
import { device, hostLimits } from "../ffi/library.ts";
import {
  bytesOf,
  type CheckpointContent,
  type Company,
  copyOf,
  describeTensor,
  LARGE_BYTES,
  makeRoom,
  partOf,
  saveCheckpoint,
  sumsOfAll,
} from "./checkpoint.ts";
import type { Done, ToMake, ToPublish, ToWrite } from "./save_worker.ts";
import type { Sums } from "./sums.ts";

const RESTS = 39; // where the model computes on the cores: a fortieth of one is for saving, and a step waits for its slowest thread
const SPARE = 1.25; // free memory over the bytes of a copy, for what the system keeps of files

/** A save that is under way. */
type Pending = {
  written: Promise<Sums | undefined>; // this rank's part; undefined where that failed
  isWritten: boolean;
  publish: (sums: Sums) => Promise<void>;
  published: Promise<void> | undefined; // once all parts are written
};

/** Saves the checkpoints of a run, one at a time. Declare it with `await using`, which waits for the last one. */
export class Saver implements AsyncDisposable {
  readonly #company: Company;
  readonly #tell: (path: string) => void;
  readonly #large_bytes: number;
  readonly #rests: number;
  readonly #hurry = new Int32Array(new SharedArrayBuffer(4)); // 1: somebody waits for the save under way
  #worker: Worker | undefined;
  #isBeside = false; // agreed on by all ranks
  #copies: Promise<Uint8Array<ArrayBuffer>[]> = Promise.resolve([]); // of the last checkpoint, for the next one
  #pending: Pending | undefined;
  #failure: unknown;

  /**
   * tell: told, on rank 0, of each checkpoint that is whole. large_bytes: from where on a Worker writes it, and what its files hold.
   * rests: how often the time of a piece that is written beside training passes before the next one is.
   */
  constructor(
    company: Company,
    tell: (path: string) => void,
    large_bytes: number = LARGE_BYTES,
    rests: number = device.library === "cuda" ? 0 : RESTS,
  ) {
    this.#company = company;
    this.#tell = tell;
    this.#large_bytes = large_bytes;
    this.#rests = rests;
  }

  /**
   * Once for all: has checkpoints written beside training where they are large and each rank has the memory for a copy of all
   * parts, which others may share with it. Has the Worker make its own, which takes longer than the copy. All ranks call it.
   */
  async prepare(content: Pick<CheckpointContent, "model" | "optimizer">): Promise<void> {
    const part = partOf({ ...content, files: {} }, this.#company, this.#large_bytes);
    const sizes = part.flatMap(({ tensors }) => tensors.map(bytesOf));
    const [bytes = 0] = await this.#company.sum(sizes.reduce((a, b) => a + b, 0));
    const hasRoom = hostLimits().free > SPARE * bytes, [n] = await this.#company.sum(Number(hasRoom));
    this.#isBeside = bytes >= this.#large_bytes && n === this.#company.world_size;
    if (this.#isBeside) {
      this.#copies = this.#ask({ kind: "make", sizes }).then(({ copies }) => copies, () => []);
    }
  }

  /**
   * saveCheckpoint(), of which only the copy is made when this returns if prepare() has said so: where that is not finite, look()
   * or finish() say so. Waits for the one before. Throws UserError as saveCheckpoint(), and as finish(). All ranks call it.
   */
  async save(runDir: string, content: CheckpointContent, keep: number): Promise<void> {
    await this.finish();
    if (!this.#isBeside) {
      const path = await saveCheckpoint(runDir, content, keep, this.#company, undefined, this.#large_bytes);
      return this.#isFirst ? this.#tell(path) : undefined;
    }
    const { files, state } = content, { rank, world_size } = this.#company, place = { rank, world_size };
    await makeRoom(runDir, state, this.#company);
    const part = partOf(content, this.#company, this.#large_bytes);
    const copies = copyOf(part.flatMap(({ tensors }) => tensors), await this.#copies);
    const described = part.map((file) => ({ ...file, tensors: file.tensors.map(describeTensor) }));
    const pace = { rests: this.#rests, hurry: this.#hurry };
    const order: ToWrite = { kind: "write", runDir, state, part: described, place, copies, ...pace };
    Atomics.store(this.#hurry, 0, 0);
    const pending: Pending = {
      written: this.#ask(order).then(({ sums, copies }) => {
        this.#copies = Promise.resolve(copies);
        pending.isWritten = true;
        return sums;
      }).catch((error) => void (this.#failure = error)),
      isWritten: false,
      publish: (sums) => this.#publish({ kind: "publish", runDir, content: { files, state }, keep, sums }),
      published: undefined,
    };
    this.#copies = Promise.resolve([]);
    this.#pending = pending;
    if (world_size === 1) pending.published = pending.written.then((sums) => sums && pending.publish(sums));
  }

  get #isFirst(): boolean {
    return this.#company.rank === 0;
  }

  /** Whether this rank has written its part of a checkpoint that has no name yet. */
  get hasWritten(): boolean {
    return this.#pending !== undefined && !this.#pending.published && this.#pending.isWritten;
  }

  /**
   * Has a checkpoint published once all ranks have said of a step that they have written their parts. Throws what made the save
   * under way fail on this rank, if it has; does not wait for it. All ranks call it with what they said of the same step.
   */
  async look(written: number): Promise<void> {
    this.#throwFailure();
    if (written === this.#company.world_size && this.hasWritten) await this.#publishTogether();
  }

  #throwFailure(): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
  }

  /** Waits for the save that is under way, on all ranks. Throws UserError if it failed. All ranks call it. */
  async finish(): Promise<void> {
    const pending = this.#pending;
    if (!pending) return this.#throwFailure();
    this.#hurryUp();
    await pending.written;
    this.#throwFailure();
    if (!pending.published) await this.#publishTogether();
    await pending.published;
    this.#pending = undefined;
    this.#throwFailure();
  }

  #hurryUp(): void {
    Atomics.store(this.#hurry, 0, 1);
    Atomics.notify(this.#hurry, 0);
  }

  /** Rank 0 gives the checkpoint under way its name, which all have written; that it has done so finish() waits for. */
  async #publishTogether(): Promise<void> {
    const pending = this.#pending!, sums = await sumsOfAll((await pending.written)!, this.#company);
    pending.published = this.#isFirst ? pending.publish(sums) : Promise.resolve();
  }

  async #publish(order: ToPublish): Promise<void> {
    try {
      const { path } = await this.#ask(order);
      this.#tell(path);
    } catch (error) {
      this.#failure = error;
    }
  }

  /** Waits until the Worker has done what it was asked to; whether it fails is of no use any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#hurryUp();
    await this.#copies;
    await this.#pending?.written;
    await this.#pending?.published;
    this.#worker?.terminate();
  }

  async #ask(order: ToMake | ToWrite | ToPublish): Promise<Done> {
    const worker = this.#worker ??= new Worker(new URL("./save_worker.ts", import.meta.url), {
      type: "module",
    });
    return await ask(worker, order, "copies" in order ? order.copies.map(({ buffer }) => buffer) : []);
  }
}
