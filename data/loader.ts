// Batches of token windows. A window is block_size + 1 tokens of one shard: x is the first block_size of them, y the last.
// Windows start every block_size tokens, so each token is an input once. Their order is a pure function of the seed: which
// windows a step reads depends besides on how many samples were taken before it, all that has to be saved to resume, with
// another batch too. Ranks never overlap, and an epoch reads each window once, in an order of its own (order.ts). Of a mix
// each dataset has epochs of its own (mix.ts).
import { hash } from "node:crypto";
import { basename, relative } from "node:path";
import { UserError } from "../base/errors.ts";
import { type Dataset, readTokens, type Shard, TRAINED } from "./bins.ts";
import { type Mix, partsOf } from "./mix.ts";
import { Dealer, inTurn, permute } from "./order.ts";
import { orMistake } from "../base/system_error.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Reads shards natively; the functions data_open() and data_gather() of kernels.h. */
export type TokenSource = {
  /** Opens a file of tokens. */
  open(path: string, header_bytes: number, token_bytes: number): { handle: number; tokens: number };
  /**
   * Writes tokens [start, start + T) to x and [start + 1, start + T + 1) to y, as int32 in host memory. Throws
   * UserError naming a file that cannot be read, has changed since it was opened, or holds a token >= V.
   */
  gather(x: bigint, y: bigint, handle: number, start: bigint, T: number, V: number): void;
  /**
   * By the same window of a mask, whose tokens have one byte each, writes -1 to y where a token is not trained on, and to
   * starts (T), unless it is 0n, where in the window its conversation begins. Throws UserError as gather().
   */
  mask(y: bigint, starts: bigint, handle: number, start: bigint, T: number): void;
  /** Writes to starts (T) where in x (T) the document of each token begins: at the last bos up to it, else at 0. */
  starts(starts: bigint, x: bigint, T: number, bos: number): void;
};

/** What a loader reads. */
export type LoaderOptions = {
  /** Part of the dataset. */
  split: "train" | "val";
  /** Windows in a batch: B. */
  batch_size: number;
  /** Tokens of input in a window: T. */
  block_size: number;
  /** Vocabulary of the model; larger ids in the data are an error. */
  vocab_size: number;
};

/** Where in training a batch stands. */
export type Position = {
  /** Chooses the order of the windows. */
  seed: number;
  /** Samples of the order that were taken before the step: windows, of all ranks. */
  sample: number;
  /** Micro-step within the step, from 0: among those of all ranks. */
  micro: number;
};

/** A window: block_size + 1 tokens from `start` in a shard. */
export type Window = {
  /** Place of the shard in the split; of a mix, among the shards of all its datasets. */
  shard: number;
  /** Token of the shard that the window begins with. */
  start: number;
};

/** A shard that is open. */
type Handles = {
  ids: number;
  /** Of conversations. */
  mask?: number;
  /** Of conversations, how many of the tokens to predict are trained on, by window. */
  trained?: Uint32Array;
};

/** Where the windows of one dataset are. */
type Windows = {
  /** Place of its first shard in the split. */
  firstShard: number;
  /** Of each of its shards, the number of the window behind its last one. */
  ends: number[];
  /** Windows in all its shards. */
  count: number;
};

/** Batches from one split of a dataset or of a mix. */
export class Loader {
  /** What it was made with. */
  readonly options: LoaderOptions;
  /** Windows in all shards. An epoch of a dataset is this many; of a mix, each dataset has epochs of its own. */
  readonly n_windows: number;
  readonly #source: TokenSource;
  readonly #dataset: Dataset | Mix;
  readonly #shards: Shard[];
  readonly #handles: (Handles | undefined)[]; // of the shards that hold windows
  readonly #parts: Windows[];
  readonly #dealer: Dealer;

  /**
   * Opens the shards of a split. Throws UserError if no shard of a dataset holds a window or the data has more ids
   * than the model.
   */
  constructor(source: TokenSource, dataset: Dataset | Mix, options: LoaderOptions) {
    const { split, block_size, vocab_size } = options;
    if (dataset.vocab_size > vocab_size) {
      throw new UserError(
        `Cannot train on "${dataset.dir}": its vocab_size is ${dataset.vocab_size}, the model's is ${vocab_size}; ` +
          "train a new model on it, or use data of the model's tokenizer",
      );
    }
    const parts = partsOf(dataset);
    this.options = options;
    this.#source = source;
    this.#dataset = dataset;
    this.#shards = dataset[split];
    this.#parts = locateWindows(parts.map((part) => part.dataset), split, block_size);
    this.#dealer = new Dealer(parts.map(({ slots }) => slots));
    this.n_windows = this.#parts.reduce((sum, { count }) => sum + count, 0);
    this.#handles = this.#shards.map((shard) => {
      if (shard.tokens <= block_size) return undefined;
      const ids = source.open(shard.path, shard.header_bytes, shard.token_bytes).handle, { mask } = shard;
      if (mask === undefined) return { ids };
      const trained = orMistake(
        `Cannot read "${mask}"`,
        () => trainedByWindow(mask, shard.tokens, block_size),
      );
      return { ids, mask: source.open(mask, 0, 1).handle, trained };
    });
  }

  /**
   * Fills x and y (B, T), int32 in host memory, with the training batch of a position, and starts (B, T), unless it is 0n, with
   * where in its row the document of each token begins. Throws UserError as TokenSource.gather().
   */
  trainBatch(x: bigint, y: bigint, position: Position, starts = 0n): void {
    this.trainWindows(position).forEach((window, b) => this.#gather(x, y, starts, b, window));
  }

  /**
   * The windows of a training batch, for messages and for looking at the data.
   *
   * A step takes the next batch_size * micro-steps samples of the run, however ranks share the micro-steps. Sample i of a
   * dataset is place i % n in the order of its epoch floor(i / n), n its windows.
   */
  trainWindows({ seed, sample, micro }: Position): Window[] {
    const { batch_size } = this.options;
    const first = sample + micro * batch_size;
    return Array.from({ length: batch_size }, (_, b) => this.#trainWindow(first + b, seed));
  }

  /**
   * What the mean losses of a step's micro-steps, of all ranks, are multiplied with before they are added up, so that the sum is
   * the mean of the tokens that are trained on: one by micro_steps where all are, 0 where none is.
   */
  lossScale({ seed, sample }: Position, micro_steps: number): number {
    if (!this.#handles.some((handles) => handles?.trained)) return 1 / micro_steps;
    const { batch_size, block_size } = this.options;
    let trained = 0;
    for (let i = 0; i < micro_steps * batch_size; i++) {
      trained += this.#trainedIn(this.#trainWindow(sample + i, seed));
    }
    return trained === 0 ? 0 : batch_size * block_size / trained;
  }

  /**
   * A checksum of what the order of the training windows depends on: the seed, block_size, the shards and, of a mix, the
   * shares. As long as it stays the same, so does the meaning of Position.sample.
   */
  order(seed: number): string {
    const shards = this.#dataset.train.map(({ path, tokens }) => [basename(path), tokens]);
    const contents = Object.values(this.#dataset.sha256),
      shares = partsOf(this.#dataset).map(({ slots }) => slots);
    const facts = JSON.stringify([seed, this.options.block_size, shards, contents, shares]);
    return hash("sha256", facts);
  }

  /** Number of batches that evalBatch() has, the last one partial. */
  get n_evalBatches(): number {
    return Math.ceil(this.n_windows / this.options.batch_size);
  }

  /**
   * Fills x and y, and starts as trainBatch(), with windows index * B, index * B + 1, ... in file order, the same every
   * time. The datasets of a mix take turns, window by window, until each has none left: the first batches hold some of
   * each, all batches hold all. Returns how many rows are windows. In the last batch there may be fewer than B: the rows after them
   * repeat its last window, and the caller leaves them out of the loss (sums the first rows * T losses, or sets their
   * targets to -1). Throws UserError as TokenSource.gather().
   */
  evalBatch(x: bigint, y: bigint, index: number, starts = 0n): number {
    const { batch_size } = this.options;
    const rows = Math.min(batch_size, this.n_windows - index * batch_size);
    if (rows <= 0) throw new RangeError(`Cannot read batch ${index}: there are ${this.n_evalBatches}`);
    for (let b = 0; b < batch_size; b++) {
      this.#gather(x, y, starts, b, this.#evalWindow(index * batch_size + Math.min(b, rows - 1)));
    }
    return rows;
  }

  /** How many windows the tokens of evalBatch() that are evaluated on would fill: its rows, where all are. */
  evalWeight(index: number): number {
    const { batch_size, block_size } = this.options, end = Math.min(this.n_windows, (index + 1) * batch_size);
    let trained = 0;
    for (let i = index * batch_size; i < end; i++) trained += this.#trainedIn(this.#evalWindow(i));
    return trained / block_size;
  }

  /** How many of the tokens to predict in a window are trained on. */
  #trainedIn({ shard, start }: Window): number {
    const { block_size } = this.options;
    return this.#handles[shard]!.trained?.[start / block_size] ?? block_size;
  }

  /** File and token range of a window, for messages. Of a mix the file is named with its directory. */
  placeOf({ shard, start }: Window): string {
    const { path } = this.#shards[shard]!, { dir, format } = this.#dataset;
    const file = format === "mix" ? path : relative(dir, path);
    return `${file} tokens ${start} to ${start + this.options.block_size}`;
  }

  /** The text of a window, read without the native library. */
  decodeWindow({ shard, start }: Window, tokenizer: Tokenizer): string {
    return tokenizer.decode(readTokens(this.#shards[shard]!, start, this.options.block_size + 1));
  }

  /** The window of a sample of the run. */
  #trainWindow(sample: number, seed: number): Window {
    const { part, index } = this.#dealer.deal(sample, seed);
    const { count } = this.#parts[part]!, epoch = Math.floor(index / count);
    return this.#window(part, permute(index % count, count, seed + part * 2 ** 32, epoch));
  }

  /** Window i of an evaluation. */
  #evalWindow(i: number): Window {
    const { part, index } = inTurn(i, this.#parts.map(({ count }) => count));
    return this.#window(part, index);
  }

  /** Window w of a dataset, in file order. */
  #window(part: number, w: number): Window {
    const { firstShard, ends } = this.#parts[part]!;
    const shard = firstAbove(ends, w), first = shard === 0 ? 0 : ends[shard - 1]!;
    return { shard: firstShard + shard, start: (w - first) * this.options.block_size };
  }

  /**
   * Writes a window to row b of x and y, and of starts, unless it is 0n. A window may hold the end of one document and the beginning
   * of others: of conversations where their mask says so, else at bos.
   */
  #gather(x: bigint, y: bigint, starts: bigint, b: number, { shard, start }: Window): void {
    const { block_size: T, vocab_size: V } = this.options;
    const row = BigInt(4 * b * T); // bytes
    const { ids, mask } = this.#handles[shard]!, begins = starts && starts + row;
    this.#source.gather(x + row, y + row, ids, BigInt(start), T, V);
    if (mask !== undefined) this.#source.mask(y + row, begins, mask, BigInt(start), T);
    else if (begins) this.#source.starts(begins, x + row, T, this.#dataset.bos);
  }
}

/** Counts in each window of a mask the tokens to predict that are trained on. */
function trainedByWindow(mask: string, tokens: number, block_size: number): Uint32Array {
  const counts = new Uint32Array(Math.floor((tokens - 1) / block_size)), buffer = new Uint8Array(1 << 20);
  using file = Deno.openSync(mask);
  for (let first = 0, n; (n = file.readSync(buffer)) !== null; first += n) { // first: token of the shard
    for (let i = 0; i < n;) {
      const window = Math.floor((first + i - 1) / block_size); // -1 for token 0, which no window predicts
      const end = Math.min(n, (window + 1) * block_size + 1 - first);
      let count = 0;
      for (; i < end; i++) count += buffer[i]! & TRAINED;
      if (window >= 0 && window < counts.length) counts[window]! += count;
    }
  }
  return counts;
}

/** Counts the windows of each dataset, whose shards stand one behind the other in the split. */
function locateWindows(datasets: Dataset[], split: "train" | "val", block_size: number): Windows[] {
  let firstShard = 0;
  return datasets.map((dataset) => {
    const shards = dataset[split];
    const ends = runningSums(shards.map(({ tokens }) => Math.max(0, Math.floor((tokens - 1) / block_size))));
    const windows = { firstShard, ends, count: ends.at(-1) ?? 0 };
    const none = split === "val" && shards.length === 0 && datasets.length > 1; // a mix evaluates on the others
    if (windows.count === 0 && !none) throw noWindow(dataset, split, block_size);
    firstShard += shards.length;
    return windows;
  });
}

function noWindow(dataset: Dataset, split: "train" | "val", block_size: number): UserError {
  if (dataset[split].length === 0) {
    return new UserError(
      `Cannot read windows of the ${split} split of "${dataset.dir}": it has none; ` +
        `prepare with a --val_fraction ${split === "val" ? "above 0" : "below 1"}`,
    );
  }
  const longest = Math.max(0, ...dataset[split].map(({ tokens }) => tokens));
  return new UserError(
    `Cannot read windows of block_size ${block_size} from the ${split} split of "${dataset.dir}": its longest shard ` +
      `has ${longest} tokens, a window needs ${block_size + 1}; use a smaller --block_size or ` +
      `prepare ${split === "val" ? "with a larger --val_fraction" : "more text"}`,
  );
}

function runningSums(values: number[]): number[] {
  let sum = 0;
  return values.map((value) => sum += value);
}

/** Place of the first of ascending values that is above x, which the last one is. */
function firstAbove(values: number[], x: number): number {
  let low = 0, high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle]! > x) high = middle;
    else low = middle + 1;
  }
  return low;
}
