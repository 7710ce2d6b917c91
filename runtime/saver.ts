// Saves checkpoints beside training: a copy of what is saved is made at once, and a Worker writes it while the next steps run.
import { errorOf } from "../base/worker_scope.ts";
import { hostLimits } from "../ffi/library.ts";
import {
  bytesOf,
  type CheckpointContent,
  type Company,
  copyOf,
  describeTensor,
  requireSavable,
  saveCheckpoint,
} from "./checkpoint.ts";
import type { Saved, ToMake, ToSave } from "./save_worker.ts";

const LARGE_BYTES = 1 << 26; // a smaller checkpoint is written before a Worker would have started
const SPARE = 1.25; // free memory over the bytes of a copy, for what the system keeps of files

/** Saves the checkpoints of a run, one at a time. Declare it with `await using`, which waits for the last one. */
export class Saver implements AsyncDisposable {
  readonly #tell: (path: string) => void;
  readonly #large_bytes: number;
  #worker: Worker | undefined;
  #copies: Uint8Array<ArrayBuffer>[] = []; // of the last checkpoint, for the next one
  #preparing: Promise<void> | undefined;
  #pending: Promise<void> | undefined;
  #failure: unknown;

  /** tell: told of each checkpoint that is whole. large_bytes: from where on the Worker writes it. */
  constructor(tell: (path: string) => void, large_bytes: number = LARGE_BYTES) {
    this.#tell = tell;
    this.#large_bytes = large_bytes;
  }

  /** Has the Worker make the memory of the first copy, which takes longer than the copy, where save() will use one. */
  prepare(content: Pick<CheckpointContent, "model" | "optimizer">, company: Company): void {
    if (!this.#writesBeside(content, company)) return;
    const sizes = [...content.model, ...content.optimizer].map(bytesOf);
    this.#preparing = this.#ask({ sizes }).then(({ copies }) => void (this.#copies = copies), () => {});
  }

  /**
   * saveCheckpoint(), of which only the copy is made when this returns, unless the checkpoint is small, there is no memory for
   * the copy, or several ranks write it together. Waits for the one before. Throws UserError as saveCheckpoint(), and as
   * finish().
   */
  async save(runDir: string, content: CheckpointContent, keep: number, company: Company): Promise<void> {
    await this.finish();
    await this.#preparing;
    if (!this.#writesBeside(content, company)) {
      return this.#tell(await saveCheckpoint(runDir, content, keep, company));
    }
    requireSavable(runDir, content);
    const copies = copyOf(content, this.#copies), { files, state } = content;
    this.#copies = [];
    const model = content.model.map(describeTensor), moments = content.optimizer.map(describeTensor);
    this.#pending = this.#write({ runDir, model, moments, copies, files, state, keep }).catch((error) => {
      this.#failure = error;
    });
  }

  #writesBeside(content: Pick<CheckpointContent, "model" | "optimizer">, { world_size }: Company): boolean {
    const bytes = [...content.model, ...content.optimizer].reduce((sum, t) => sum + bytesOf(t), 0);
    const hasRoom = () => this.#copies.length > 0 || hostLimits().free > SPARE * bytes;
    return world_size === 1 && bytes >= this.#large_bytes && hasRoom();
  }

  /** Throws what made the save under way fail, if it has; does not wait for it. */
  look(): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
  }

  /** Waits for the save that is under way. Throws UserError if it failed. */
  async finish(): Promise<void> {
    await this.#pending;
    this.#pending = undefined;
    this.look();
  }

  /** Waits for the save that is under way; whether it fails is of no use any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pending;
    this.#worker?.terminate();
  }

  async #write(order: ToSave): Promise<void> {
    const { path, copies } = await this.#ask(order);
    this.#copies = copies;
    this.#tell(path);
  }

  async #ask(order: ToSave | ToMake): Promise<Extract<Saved, { path: string }>> {
    const worker = this.#worker ??= new Worker(new URL("./save_worker.ts", import.meta.url), {
      type: "module",
    });
    const { promise, resolve, reject } = Promise.withResolvers<Saved>();
    worker.onmessage = ({ data }: MessageEvent<Saved>) => resolve(data);
    worker.onmessageerror = () => reject(new Error("The Worker that saves said what cannot be read"));
    worker.onerror = (event) => {
      event.preventDefault();
      reject(new Error(`The Worker that saves failed: ${event.message}`));
    };
    worker.postMessage(order, "copies" in order ? order.copies.map(({ buffer }) => buffer) : []);
    const answer = await promise;
    if (!("error" in answer)) return answer;
    throw errorOf(answer);
  }
}
