// A model that writes one text at a time in a Worker, and those who wait for it.
import { basename } from "node:path";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { UserError } from "../ffi/errors.ts";
import type { GenerateOptions } from "../model/generate.ts";
import { resolveCheckpoint, runOfCheckpoint } from "../runtime/checkpoint.ts";
import type { Job, Said, Start } from "./model_worker.ts";
import { Refusal } from "./refusal.ts";

const MOST_WAITING = 8; // texts, beside the one that is written
const RETRY_S = 5;

/** A text to write, and who is told about it: each token, then the end or an error. */
export type Order = {
  prompt: number[];
  options: GenerateOptions;
  onToken(token: number): void;
  onEnd(): void;
  onError(error: Error): void;
};

type Ready = Extract<Said, { kind: "ready" }>;

/** A model to talk to. */
export class Model {
  readonly name: string;
  readonly created: number; // seconds since 1970
  readonly block_size: number;
  readonly #waiting: Order[] = [];
  #current: Order | undefined;
  #number = 0; // of the current text
  #failure: Refusal | undefined;

  /**
   * Loads the model at a path, which is a run, a checkpoint or a Hugging Face directory, on a device, "" for the best.
   *
   * @throws {UserError} if there is none, or the device does not open.
   */
  static async load(path: string, device: string): Promise<Model> {
    const directory = resolveCheckpoint(path), tokenizer = await openTokenizer(directory);
    const worker = new Worker(new URL("./model_worker.ts", import.meta.url), { type: "module" });
    const stop = new SharedArrayBuffer(4);
    worker.postMessage({ checkpoint: directory, device, stop } satisfies Start);
    const ready = await firstWord(worker);
    if (tokenizer.vocab_size > ready.vocab_size) {
      throw new UserError(
        `Cannot serve ${directory}: its tokenizer has ${tokenizer.vocab_size} tokens, the model ${ready.vocab_size}`,
      );
    }
    return new Model(directory, tokenizer, worker, new Int32Array(stop), ready);
  }

  private constructor(
    directory: string,
    readonly tokenizer: Tokenizer,
    readonly worker: Worker,
    readonly stop: Int32Array, // holds the number of the last text that is not wanted any more
    { block_size }: Ready,
  ) {
    this.name = basename(runOfCheckpoint(directory));
    this.created = Math.floor((Deno.statSync(directory).mtime?.getTime() ?? 0) / 1000);
    this.block_size = block_size;
    worker.onmessage = ({ data }: MessageEvent<Said>) => this.#hear(data);
    worker.onerror = (event) => {
      event.preventDefault(); // or it would end the server
      this.#fail(event.message);
    };
  }

  /** Has a text written, now or after those that came before. Throws Refusal when too many wait. */
  write(order: Order): void {
    if (this.#failure) throw this.#failure;
    if (this.#waiting.length === MOST_WAITING) {
      const headers = { "Retry-After": `${RETRY_S}` };
      throw new Refusal(429, `The model is busy: ${MOST_WAITING} requests wait for it already`, headers);
    }
    this.#waiting.push(order);
    this.#next();
  }

  /** Writes no more of a text, whose end is not told. */
  cancel(order: Order): void {
    const place = this.#waiting.indexOf(order);
    if (place >= 0) this.#waiting.splice(place, 1);
    if (order === this.#current) Atomics.store(this.stop, 0, this.#number); // the Worker says when it has noticed
  }

  #next(): void {
    if (this.#current) return;
    this.#current = this.#waiting.shift();
    if (!this.#current) return;
    const { prompt, options } = this.#current;
    this.worker.postMessage({ number: ++this.#number, prompt, options } satisfies Job);
  }

  #hear(said: Said): void {
    const order = this.#wanted();
    if (said.kind === "token") order?.onToken(said.token);
    if (said.kind === "end") order?.onEnd();
    if (said.kind === "error") {
      order?.onError(said.isUserError ? new Refusal(500, said.message) : new Error(said.message));
    }
    if (said.kind === "token") return;
    this.#current = undefined;
    this.#next();
  }

  #fail(message: string): void {
    const failure = new Refusal(503, `The model has failed: ${message}; start the server again`);
    this.#failure = failure;
    for (const order of [this.#wanted(), ...this.#waiting.splice(0)]) order?.onError(failure);
  }

  /** The current text, unless it was cancelled: then nobody listens any more. */
  #wanted(): Order | undefined {
    return Atomics.load(this.stop, 0) < this.#number ? this.#current : undefined;
  }

  /** Ends the Worker. */
  close(): void {
    this.worker.terminate();
  }
}

/** Resolves when a Worker has loaded its model. */
function firstWord(worker: Worker): Promise<Ready> {
  const { promise, resolve, reject } = Promise.withResolvers<Ready>();
  worker.onmessage = ({ data }: MessageEvent<Said>) => {
    if (data.kind === "ready") resolve(data);
    else if (data.kind === "error") {
      reject(data.isUserError ? new UserError(data.message) : new Error(data.message));
    }
  };
  worker.onerror = (event) => {
    event.preventDefault();
    reject(new Error(event.message));
  };
  return promise;
}
