// Batches of token windows. A window is block_size + 1 tokens of one shard: x is the first block_size of them, y the last.
// Windows start every block_size tokens, so each token is an input once. Which windows a step reads is a pure function of
// (seed, step, micro-step, rank): nothing has to be saved to resume, ranks never overlap, and an epoch reads each window
// once, in an order of its own.
import { basename } from "node:path";
import { KernelError, UserError } from "../ffi/errors.ts";
import { type Dataset, readTokens, type Shard } from "./bins.ts";
import { mix } from "./hash.ts";
import { damaged } from "./meta.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Reads shards natively; the functions data_open() and data_gather() of kernels.h. */
export interface TokenSource {
  /** Maps a file of tokens. */
  open(path: string, header_bytes: number, token_bytes: number): { handle: number; tokens: number };
  /** Writes tokens [start, start + T) to x and [start + 1, start + T + 1) to y, as int32 in host memory. */
  gather(x: bigint, y: bigint, handle: number, start: bigint, T: number, V: number): void;
}

/** What a loader reads. */
export interface LoaderOptions {
  /** Part of the dataset. */
  split: "train" | "val";
  /** Windows in a batch: B. */
  batch_size: number;
  /** Tokens of input in a window: T. */
  block_size: number;
  /** Vocabulary of the model; larger ids in the data are an error. */
  vocab_size: number;
}

/** Where in training a batch stands. */
export interface Position {
  /** Chooses the order of the windows. */
  seed: number;
  /** Optimizer step, from 0. */
  step: number;
  /** Micro-step of this rank within the step, from 0. */
  micro: number;
  /** Micro-steps of each rank in a step. */
  gradient_accumulation_steps: number;
  /** This process, from 0. */
  rank: number;
  /** Number of processes that train together. */
  world_size: number;
}

/** A window: block_size + 1 tokens from `start` in a shard. */
export interface Window {
  /** Place of the shard in the split. */
  shard: number;
  /** Token of the shard that the window begins with. */
  start: number;
}

/** Batches from one split of a dataset. */
export class Loader {
  /** What it was made with. */
  readonly options: LoaderOptions;
  /** Windows in all shards; an epoch is this many. */
  readonly n_windows: number;
  readonly #source: TokenSource;
  readonly #shards: Shard[];
  readonly #handles: number[];
  readonly #ends: number[]; // number of the window behind the last one of each shard

  /**
   * Maps the shards of a split.
   *
   * @throws {UserError} if no shard holds a window or the data has more ids than the model.
   */
  constructor(source: TokenSource, dataset: Dataset, options: LoaderOptions) {
    const { split, block_size, vocab_size } = options;
    if (dataset.vocab_size > vocab_size) {
      throw new UserError(
        `Cannot train on "${dataset.dir}": its vocab_size is ${dataset.vocab_size}, the model's is ${vocab_size}; ` +
          "train a new model on it, or use data of the model's tokenizer",
      );
    }
    this.options = options;
    this.#source = source;
    this.#shards = dataset[split];
    this.#ends = runningSums(
      this.#shards.map(({ tokens }) => Math.max(0, Math.floor((tokens - 1) / block_size))),
    );
    this.n_windows = this.#ends.at(-1) ?? 0;
    if (this.n_windows === 0) {
      const longest = Math.max(0, ...this.#shards.map(({ tokens }) => tokens));
      throw new UserError(
        `Cannot read windows of block_size ${block_size} from the ${split} split of "${dataset.dir}": its longest shard ` +
          `has ${longest} tokens, a window needs ${block_size + 1}; use a smaller --block_size or ` +
          `prepare ${split === "val" ? "with a larger --val_fraction" : "more text"}`,
      );
    }
    this.#handles = this.#shards.map(({ path, header_bytes, token_bytes }) =>
      source.open(path, header_bytes, token_bytes).handle
    );
  }

  /**
   * Fills x and y (B, T), int32 in host memory, with the training batch of a position.
   *
   * @throws {UserError} for a token that the vocabulary lacks.
   */
  trainBatch(x: bigint, y: bigint, position: Position): void {
    this.trainWindows(position).forEach((window, b) => this.#gather(x, y, b, window));
  }

  /**
   * The windows of a training batch, for messages and for looking at the data.
   *
   * Sample i of the whole run is place i % n_windows in the order of epoch floor(i / n_windows). A step takes the next
   * batch_size * world_size * gradient_accumulation_steps samples; the set does not depend on how ranks share them.
   */
  trainWindows({ seed, step, micro, gradient_accumulation_steps, rank, world_size }: Position): Window[] {
    const { batch_size } = this.options;
    const first = ((step * gradient_accumulation_steps + micro) * world_size + rank) * batch_size;
    return Array.from({ length: batch_size }, (_, b) => {
      const epoch = Math.floor((first + b) / this.n_windows);
      return this.#window(permute((first + b) % this.n_windows, this.n_windows, seed, epoch));
    });
  }

  /** Number of batches that evalBatch() has, the last one partial. */
  get n_evalBatches(): number {
    return Math.ceil(this.n_windows / this.options.batch_size);
  }

  /**
   * Fills x and y (B, T) with windows index * B, index * B + 1, ... in file order, the same every time.
   *
   * @returns How many rows are windows. In the last batch there may be fewer than B: the rows after them repeat its last
   * window, and the caller leaves them out of the loss (sums the first rows * T losses, or sets their targets to -1).
   * @throws {UserError} for a token that the vocabulary lacks.
   */
  evalBatch(x: bigint, y: bigint, index: number): number {
    const { batch_size } = this.options;
    const rows = Math.min(batch_size, this.n_windows - index * batch_size);
    if (rows <= 0) throw new RangeError(`Cannot read batch ${index}: there are ${this.n_evalBatches}`);
    for (let b = 0; b < batch_size; b++) {
      this.#gather(x, y, b, this.#window(index * batch_size + Math.min(b, rows - 1)));
    }
    return rows;
  }

  /** File and token range of a window, for messages. */
  placeOf({ shard, start }: Window): string {
    return `${basename(this.#shards[shard]!.path)} tokens ${start} to ${start + this.options.block_size}`;
  }

  /** The text of a window, read without the native library. */
  decodeWindow({ shard, start }: Window, tokenizer: Tokenizer): string {
    return tokenizer.decode(readTokens(this.#shards[shard]!, start, this.options.block_size + 1));
  }

  /** Window number w in file order. */
  #window(w: number): Window {
    const shard = this.#ends.findIndex((end) => w < end);
    const first = shard === 0 ? 0 : this.#ends[shard - 1]!;
    return { shard, start: (w - first) * this.options.block_size };
  }

  /** Writes a window to row b of x and y. */
  #gather(x: bigint, y: bigint, b: number, { shard, start }: Window): void {
    const { block_size: T, vocab_size: V } = this.options;
    const row = BigInt(4 * b * T); // bytes
    try {
      this.#source.gather(x + row, y + row, this.#handles[shard]!, BigInt(start), T, V);
    } catch (error) {
      throw error instanceof KernelError ? this.#wrongToken({ shard, start }) ?? error : error;
    }
  }

  /** Names the first token of a window that the vocabulary lacks, if there is one. */
  #wrongToken({ shard, start }: Window): UserError | undefined {
    const { block_size: T, vocab_size: V } = this.options;
    const { path } = this.#shards[shard]!, tokens = readTokens(this.#shards[shard]!, start, T + 1);
    const wrong = tokens.findIndex((token) => token >= V);
    if (wrong < 0) return undefined;
    return damaged(path, `token ${start + wrong} is ${tokens[wrong]}, should be below vocab_size ${V}`);
  }
}

/**
 * Place i of a shuffled 0 .. n - 1. Every (seed, epoch) has its own order, in which each number comes once.
 *
 * A Feistel network is a bijection on pairs of half-words whatever its round function is; results of n or more are put in
 * again until one is below n, which keeps it a bijection on 0 .. n - 1. n must be below 2^40.
 */
export function permute(i: number, n: number, seed: number, epoch: number): number {
  const half = 2 ** Math.ceil(Math.log2(n) / 2); // half * half >= n
  const key = mix(mix(seed | 0) ^ mix(Math.floor(seed / 2 ** 32) + 0x5bd1e995) ^ mix(epoch + 0x27d4eb2f));
  let result = i;
  do {
    let left = Math.floor(result / half), right = result % half;
    for (let round = 0; round < 6; round++) {
      [left, right] = [right, (left + (mix(right ^ mix(key + round)) >>> 0)) % half];
    }
    result = left * half + right;
  } while (result >= n);
  return result;
}

function runningSums(values: number[]): number[] {
  let sum = 0;
  return values.map((value) => sum += value);
}
