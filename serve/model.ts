// A model that writes one text at a time in a Worker, and those who wait for it.
import { basename } from "node:path";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { endsOf } from "../model/checkpoint.ts";
import type { GenerateOptions } from "../model/generate.ts";
import { resolveCheckpoint, runOfCheckpoint } from "../runtime/checkpoint.ts";
import type { Job, Said, Start } from "./model_worker.ts";
import { asRefusal, Refusal, report } from "./refusal.ts";

const MOST_WAITING = 8; // texts, beside the one that is written
const RETRY_S = 5;

/** A text to write, and who is told about it: each token, then the end or why there is none. */
export type Order = {
  prompt: number[];
  options: GenerateOptions;
  onToken(token: number): void;
  onEnd(): void;
  onError(error: Refusal): void;
};

type Ready = Extract<Said, { kind: "ready" }>;

/** A model to talk to. */
export class Model {
  /** What requests call it. */
  readonly name: string;
  /** When, in seconds since 1970. */
  readonly created: number;
  /** Tokens of the longest text. */
  readonly block_size: number;
  /** Tokens that it knows. */
  readonly vocab_size: number;
  /** Tokens that end a text. */
  readonly ends: readonly number[];
  /** Where it computes. */
  worker: Worker;
  readonly #start: Start;
  readonly #stop: Int32Array; // holds the number of the last text that is not wanted any more
  readonly #waiting: Order[] = [];
  #current: Order | undefined;
  #number = 0; // of the current text
  #isReady = true;
  #failure: Refusal | undefined;

  /**
   * Loads the model at a path, which is a run, a checkpoint or a Hugging Face directory, on a device, "" for the
   * best. Throws UserError if there is none, or the device does not open.
   */
  static async load(path: string, device: string): Promise<Model> {
    const checkpoint = resolveCheckpoint(path), tokenizer = await openTokenizer(checkpoint);
    const worker = newWorker(), start = { checkpoint, device, stop: new SharedArrayBuffer(4) };
    try {
      const ready = await firstWord(worker, start);
      if (tokenizer.vocab_size <= ready.vocab_size) return new Model(start, tokenizer, worker, ready);
      throw new UserError(
        `Cannot serve ${checkpoint}: its tokenizer has ${tokenizer.vocab_size} tokens, the model ${ready.vocab_size}`,
      );
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  private constructor(start: Start, readonly tokenizer: Tokenizer, worker: Worker, ready: Ready) {
    this.#start = start;
    this.#stop = new Int32Array(start.stop);
    this.worker = worker;
    this.name = basename(runOfCheckpoint(start.checkpoint));
    this.created = Math.floor((Deno.statSync(start.checkpoint).mtime?.getTime() ?? 0) / 1000);
    this.block_size = ready.block_size;
    this.vocab_size = ready.vocab_size;
    this.ends = endsOf(start.checkpoint, tokenizer);
    this.#listen();
  }

  /**
   * Has a text written, now or after those that came before. isNext: it follows another one of the same request. Throws Refusal
   * when too many requests wait.
   */
  write(order: Order, isNext = false): void {
    if (this.#failure) throw this.#failure;
    if (!isNext && this.#waiting.length >= MOST_WAITING) {
      throw new Refusal(429, `The model is busy: ${MOST_WAITING} requests wait for it already`, {
        headers: { "Retry-After": `${RETRY_S}` },
        code: "rate_limit_exceeded",
      });
    }
    this.#waiting.push(order);
    this.#next();
  }

  /** Writes no more of a text, whose end is not told. */
  cancel(order: Order): void {
    const place = this.#waiting.indexOf(order);
    if (place >= 0) this.#waiting.splice(place, 1);
    if (order === this.#current) Atomics.store(this.#stop, 0, this.#number); // the Worker says when it has noticed
  }

  /** Ends the Worker. */
  close(): void {
    this.worker.terminate();
  }

  // What is thrown in these would end the server.
  #listen(): void {
    this.worker.onmessage = ({ data }: MessageEvent<Said>) => this.#hear(data);
    this.worker.onmessageerror = () => this.#restart("it said what cannot be read");
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.#restart(event.message);
    };
  }

  #next(): void {
    if (this.#current || !this.#isReady) return;
    this.#current = this.#waiting.shift();
    if (!this.#current) return;
    const { prompt, options } = this.#current;
    this.worker.postMessage({ number: ++this.#number, prompt, options } satisfies Job);
  }

  #hear(said: Said): void {
    this.#tell((order) => {
      if (said.kind === "token") order.onToken(said.token);
      if (said.kind === "end") order.onEnd();
      if (said.kind === "error") order.onError(asRefusal(errorOf(said)));
    });
    if (said.kind !== "token") this.#done();
  }

  /** Tells whoever waits for the current text. What goes wrong there ends this text, and no other one. */
  #tell(act: (order: Order) => void): void {
    // Of a text that was cancelled nobody wants to hear.
    const order = Atomics.load(this.#stop, 0) < this.#number ? this.#current : undefined;
    if (!order) return;
    try {
      act(order);
    } catch (error) {
      this.cancel(order);
      fail(order, asRefusal(error));
    }
  }

  #done(): void {
    this.#current = undefined;
    this.#next();
  }

  /** Takes a new Worker for one that broke down, such as one without memory. The text that it wrote is lost, no other. */
  async #restart(reason: string): Promise<void> {
    report(`warning: the model failed: ${reason}; it is loaded again`);
    this.#isReady = false;
    this.#tell((order) =>
      order.onError(new Refusal(500, "The model failed and is loaded again: ask once more"))
    );
    this.#current = undefined;
    this.worker.terminate();
    try {
      this.worker = newWorker();
      await firstWord(this.worker, this.#start);
      this.#isReady = true;
      this.#listen();
      this.#next();
    } catch (error) {
      report(`warning: the model could not be loaded again: ${(error as Error).message}`);
      this.#failure = new Refusal(
        503,
        "The model failed and could not be loaded again: start the server again",
      );
      for (const order of this.#waiting.splice(0)) fail(order, this.#failure);
    }
  }
}

function fail(order: Order, refusal: Refusal): void {
  try {
    order.onError(refusal);
  } catch {
    // its connection is closed
  }
}

function newWorker(): Worker {
  return new Worker(new URL("./model_worker.ts", import.meta.url), { type: "module" });
}

/** Resolves when a Worker has loaded its model. */
function firstWord(worker: Worker, start: Start): Promise<Ready> {
  const { promise, resolve, reject } = Promise.withResolvers<Ready>();
  worker.onmessage = ({ data }: MessageEvent<Said>) => {
    if (data.kind === "ready") resolve(data);
    else if (data.kind === "error") reject(errorOf(data));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    reject(new Error(event.message));
  };
  worker.postMessage(start);
  return promise;
}

function errorOf({ message, isUserError }: Extract<Said, { kind: "error" }>): Error {
  return isUserError ? new UserError(message) : new Error(message);
}
