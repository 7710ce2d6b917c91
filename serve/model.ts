// A model that writes up to eight texts at a time in a Worker, and those who wait for it.
import { basename } from "node:path";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { endsOf, type WeightType } from "../model/checkpoint.ts";
import { type Conversations, openConversations } from "../model/conversations.ts";
import { type GenerateOptions, type Logprobs, MOST_TEXTS, type Telling } from "../model/generate.ts";
import { resolveCheckpoint, runOfCheckpoint } from "../runtime/checkpoint.ts";
import type { Asked, News, Said, Start } from "./model_worker.ts";
import { asRefusal, Refusal, report } from "./refusal.ts";

const MOST_WAITING = 8; // requests, beside those whose texts are written
const RETRY_S = 5;

/** A text to write, and who is told about it: the prompt's probabilities, each token, then the end or why there is none. */
export type Order = {
  prompt: number[];
  options: GenerateOptions & Telling;
  onEcho?(logprobs: Logprobs[]): void;
  onToken(token: number, logprobs?: Logprobs): void;
  onEnd(): void;
  onError(error: Refusal): void;
};

type Ready = Extract<Said, { kind: "ready" }>;

/** A model to talk to. */
export class Model {
  /** What requests call it. */
  readonly name: string;
  /** When its directory was written, in seconds since 1970. */
  readonly created: number;
  /** Tokens of the longest text. */
  readonly block_size: number;
  /** Tokens that it knows. */
  readonly vocab_size: number;
  /** Tokens that end a text. */
  readonly ends: readonly number[];
  /** How it talks, or why it does not. */
  readonly conversations: Conversations | UserError;
  /** Where it computes. */
  worker: Worker;
  readonly #start: Start;
  readonly #waiting: { order: Order; isNext: boolean }[] = [];
  readonly #writing = new Map<number, Order>(); // by their numbers
  #number = 0; // of the last text
  #isReady = true;
  #failure: Refusal | undefined;

  /**
   * Loads the model at a path, which is a run, a checkpoint or a Hugging Face directory, on a device, "" for the
   * best, its weights of a type as loadModel() has it. Throws UserError if there is none, or the device does not open.
   */
  static async load(path: string, device: string, dtype: WeightType = "auto"): Promise<Model> {
    const checkpoint = resolveCheckpoint(path), tokenizer = await openTokenizer(checkpoint);
    const worker = newWorker(), start = { checkpoint, device, dtype };
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
    this.worker = worker;
    this.name = basename(runOfCheckpoint(start.checkpoint));
    this.created = Math.floor((Deno.statSync(start.checkpoint).mtime?.getTime() ?? 0) / 1000);
    this.block_size = ready.block_size;
    this.vocab_size = ready.vocab_size;
    this.ends = endsOf(start.checkpoint, tokenizer);
    this.conversations = orReason(() => openConversations(start.checkpoint, tokenizer));
    this.#listen();
  }

  /**
   * Has a text written, with others or after those that came before. isNext: it follows another one of the same request. Throws
   * Refusal when too many requests wait.
   */
  write(order: Order, isNext = false): void {
    if (this.#failure) throw this.#failure;
    if (!isNext && this.#waiting.filter(({ isNext }) => !isNext).length >= MOST_WAITING) {
      throw new Refusal(429, `The model is busy: ${MOST_WAITING} requests wait for it already`, {
        headers: { "Retry-After": `${RETRY_S}` },
        code: "rate_limit_exceeded",
      });
    }
    this.#waiting.push({ order, isNext });
    this.#next();
  }

  /** Writes no more of a text, whose end is not told. */
  cancel(order: Order): void {
    const place = this.#waiting.findIndex((waiting) => waiting.order === order);
    if (place >= 0) this.#waiting.splice(place, 1);
    for (const [number, written] of this.#writing) {
      if (written !== order) continue;
      this.#writing.delete(number);
      this.#ask({ kind: "cancel", number });
    }
    this.#next();
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
    while (this.#isReady && this.#writing.size < MOST_TEXTS) {
      const order = this.#waiting.shift()?.order;
      if (!order) return;
      this.#writing.set(++this.#number, order);
      this.#ask({ kind: "write", number: this.#number, prompt: order.prompt, options: order.options });
    }
  }

  #ask(asked: Asked): void {
    if (this.#isReady) this.worker.postMessage(asked);
  }

  #hear(said: Said): void {
    if (said.kind === "news") said.news.forEach((news) => this.#report(news));
    if (said.kind === "error") {
      const refusal = asRefusal(errorOf(said));
      for (const number of said.numbers) this.#tell(number, (order) => order.onError(refusal), true);
    }
    this.#next();
  }

  #report({ number, token, logprobs, echo, isLast }: News): void {
    this.#tell(number, (order) => {
      if (echo) order.onEcho?.(echo);
      if (token !== undefined) order.onToken(token, logprobs);
    });
    if (isLast) this.#tell(number, (order) => order.onEnd(), true);
  }

  /** Tells whoever waits for a text, which may be its last. What goes wrong there ends this text, and no other one. */
  #tell(number: number, act: (order: Order) => void, isLast = false): void {
    const order = this.#writing.get(number); // of a text that was cancelled nobody wants to hear
    if (!order) return;
    if (isLast) this.#writing.delete(number);
    try {
      act(order);
    } catch (error) {
      this.cancel(order);
      fail(order, asRefusal(error));
    }
  }

  /** Takes a new Worker for one that broke down, such as one without memory. Texts that it wrote are lost, no others. */
  async #restart(reason: string): Promise<void> {
    report(`warning: the model failed: ${reason}; it is loaded again`);
    this.#isReady = false;
    const refusal = new Refusal(500, "The model failed and is loaded again: ask once more");
    for (const number of [...this.#writing.keys()]) {
      this.#tell(number, (order) => order.onError(refusal), true);
    }
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
      for (const { order } of this.#waiting.splice(0)) fail(order, this.#failure);
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

/** What a function gives, or why it does not: a model without conversations writes texts all the same. */
function orReason<T>(get: () => T): T | UserError {
  try {
    return get();
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
}

function errorOf({ message, isUserError }: Extract<Said, { kind: "error" }>): Error {
  return isUserError ? new UserError(message) : new Error(message);
}
