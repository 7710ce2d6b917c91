// Parameters in flat buffers, AdamW over them, gradient clipping. muon.ts takes matrices from it where that is asked for.
import { createHash } from "node:crypto";
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  BF16,
  CONTROL,
  copyToDevice,
  copyToHost,
  F32,
  free,
  readSnapshot,
  snapshot,
} from "../ffi/library.ts";
import { timeOther } from "./debug.ts";
import { type Block, permanent } from "./memory.ts";
import { isHidden, Muon, type MuonOptions } from "./muon.ts";
import type { Follower } from "./tape.ts";
import { type Address, type Buffer, bytesPerElement, isPlaced, named, type Tensor } from "./tensor.ts";

/** Where one parameter lies in the flat buffers. */
export type Slot = { name: string; tensor: Tensor; offset: number; size: number }; // in elements

const ALIGN = 64; // elements; 128 bytes of bfloat16, 256 of float

/** A range of the flat buffers, in elements: from, up to but without to. */
export type Range = { from: number; to: number };

/** How parameters are made. */
export type ParameterOptions = {
  seed: number;
  train: boolean; // with gradients and float32 master weights
  rank?: number; // this process of world_size that train together
  world_size?: number;
  zero_stage?: number; // 1: master weights and moments of this rank's part only
  load?: LoadValues | undefined; // instead of initial values
  half?: boolean | undefined; // matrices, or only frozen ones as always where some are trained, are bfloat16 beside float32 activations: on a CPU
  trains?: ((name: string) => boolean) | undefined; // the others are frozen: no gradient, master weights or moments
};

/**
 * Puts the float32 values of the parameter of that name at an address, where everything is zero before; false where there are
 * none, and it begins as declared.
 */
export type LoadValues = (name: string, address: Address) => void | false;

/**
 * All weights of a model in one buffer, matrices first (they decay), then vectors (they do not), then what is frozen; gradients
 * likewise, but for that. A flat range [from, to) is all that the optimizer and a checkpoint need to know.
 */
export class Parameters {
  /** All parameters in flat order. */
  readonly slots: Slot[] = [];
  /** Those that are trained: the first ones. */
  readonly trained: Slot[];
  /** Their elements, padding between parameters and up to equal parts for all ranks included. */
  readonly total: number;
  /** The first so many elements decay. */
  readonly decayed: number;
  /** This rank's part: everything for a process on its own. */
  readonly part: Range;
  /** What this rank keeps optimizer state of and updates: everything, or with zero_stage 1 its part. */
  readonly updated: Range;
  /** What the model reads, in the device's act type. */
  readonly weights: Block;
  /**
   * What bfloat16 weights lack of their float32 masters, for elements `updated`: 16 bits of each, and one more. See split_master()
   * in kernels.h. Undefined where weights are float32, or nothing is trained.
   */
  readonly rest: { halves: Block; ties: Block } | undefined;
  /** float32; only when training. */
  readonly grads: Block | undefined;
  readonly #half: Range; // elements whose weights are bfloat16 beside others of float32

  /**
   * Gives the parameters of model memory, and initial values. Those that have values already, such as those of loadModel(), move
   * to the new memory with them; the old memory stays allocated. With options.load all values come from there.
   */
  constructor(model: unknown, options: ParameterOptions) {
    const { rank = 0, world_size = 1, zero_stage = 0 } = options;
    const all = named(model), { train, trains = () => true } = options;
    const trained = all.filter(([name]) => trains(name)), frozen = all.filter(([name]) => !trains(name));
    if (options.half) frozen.sort(([, a], [, b]) => b.shape.length - a.shape.length); // matrices first here too
    const matrices = trained.filter(([, t]) => t.shape.length > 1),
      vectors = trained.filter(([, t]) => t.shape.length === 1);
    let offset = 0;
    const place = ([name, tensor]: [string, Tensor]) => {
      this.slots.push({ name, tensor, offset, size: tensor.size });
      offset += aligned(tensor.size);
    };
    matrices.forEach(place);
    this.decayed = offset;
    vectors.forEach(place);
    const size = Math.ceil(offset / (ALIGN * world_size)) * ALIGN;
    this.total = size * world_size;
    this.part = { from: rank * size, to: (rank + 1) * size };
    this.updated = zero_stage === 0 ? { from: 0, to: this.total } : this.part;
    this.trained = this.slots.slice();
    offset = this.total;
    frozen.forEach(place);

    const element = bytesPerElement("act");
    this.#half = options.half && element === 4
      ? this.#matrices(train || frozen.length > 0)
      : { from: 0, to: 0 };
    this.weights = permanent(this.#bytesBefore(offset), "weights");
    this.rest = element === 4 || !train ? undefined : {
      halves: permanent(length(this.updated) * 2, "optimizer"),
      ties: permanent(length(this.updated) / 8, "optimizer"),
    };
    this.grads = train ? permanent(this.total * 4, "gradients") : undefined;
    const values = new Map(all.filter(([, t]) => isPlaced(t)).map(([, t]) => [t, t.address]));
    for (const { name, tensor, offset, size } of this.slots) {
      tensor.buf.name = name;
      const isTrained = train && offset < this.total;
      const at = this.#bytesBefore(offset), end = this.#bytesBefore(offset + size);
      tensor.buf.block = { address: this.weights.address + BigInt(at), bytes: end - at };
      tensor.buf.isHalf = this.#isHalf(offset);
      if (this.grads && isTrained) tensor.buf.grad = part(this.grads, offset, size, 4);
      tensor.buf.gradIsEmpty = isTrained;
      tensor.buf.needsGrad = isTrained;
    }
    this.#initialise(BigInt(options.seed), values, options.load);
  }

  /** Where matrices are: those that are frozen, or those that are trained. */
  #matrices(areFrozen: boolean): Range {
    if (!areFrozen) return { from: 0, to: this.decayed };
    const vector = this.slots.find(({ offset, tensor }) => offset >= this.total && tensor.shape.length === 1);
    return { from: this.total, to: vector?.offset ?? Infinity };
  }

  #isHalf(element: number): boolean {
    return element >= this.#half.from && element < this.#half.to;
  }

  /** Bytes of the weights before an element. */
  #bytesBefore(element: number): number {
    const { from, to } = this.#half, halves = Math.min(Math.max(element - from, 0), to - from);
    return element * bytesPerElement("act") - 2 * halves;
  }

  /** kept: where the values are of those parameters that have some. */
  #initialise(seed: bigint, kept: Map<Tensor, Address>, load: LoadValues | undefined): void {
    for (const { name, tensor, offset, size } of this.slots) {
      const init = tensor.buf.init!, rows = tensor.shape[0]!, from = kept.get(tensor);
      this.#setValues(offset, size, (values) => {
        if (load && load(name, values) !== false) return;
        if (from !== undefined) {
          if (bytesPerElement("act") === 4) return k.copy_async(values, from, BigInt(4 * size));
          return k.convert(values, from, F32, BF16, BigInt(size));
        }
        if ("value" in init) return k.init_constant(values, BigInt(size), init.value);
        const n = (init.rows ?? rows) * (size / rows); // padded rows stay zero
        k.init_normal(values, BigInt(n), init.std, seed, BigInt(offset));
      });
    }
  }

  /** Has write() put the float32 values of a parameter where they are zero before; keeps those that this rank has room for. */
  #setValues(offset: number, size: number, write: (values: Address) => void): void {
    if (bytesPerElement("act") === 4 && !this.#isHalf(offset)) return write(this.weightAt(offset));
    const staging = allocate(4 * size), { from, to } = this.updated; // as step memory it would stay
    k.fill_zero(staging, BigInt(4 * size));
    write(staging);
    k.convert(this.weightAt(offset), staging, BF16, F32, BigInt(size));
    const first = Math.max(offset, from), n = Math.min(offset + size, to) - first;
    if (n > 0 && this.rest) this.setMasters(first, n, staging + BigInt(4 * (first - offset)));
    free(staging);
  }

  /** Where the weight of an element is, in the act type, or bfloat16 where it is half of that. */
  weightAt(element: number): Address {
    return this.weights.address + BigInt(this.#bytesBefore(element));
  }

  /** Where the gradient of an element is. */
  gradAt(element: number): Address {
    return this.grads!.address + BigInt(4 * element);
  }

  /** What this rank updates of a range; it may be empty. */
  own({ from, to }: Range): Range {
    const { updated } = this, first = Math.min(to, Math.max(from, updated.from));
    return { from: first, to: Math.max(first, Math.min(to, updated.to)) };
  }

  /** What of a range is in the parts of which ranks. */
  partsOf({ from, to }: Range): (Range & { owner: number })[] {
    const size = length(this.part), parts = [];
    for (let at = from; at < to;) {
      const owner = Math.floor(at / size), end = Math.min(to, (owner + 1) * size);
      parts.push({ from: at, to: end, owner });
      at = end;
    }
    return parts;
  }

  /** Where rest.halves and rest.ties of an element are; 0 where there is none. It must be in `updated`, and a multiple of 8. */
  restAt(element: number): [halves: Address, ties: Address] {
    if (!this.rest) return [0n, 0n];
    const at = element - this.updated.from, { halves, ties } = this.rest;
    return [halves.address + BigInt(2 * at), ties.address + BigInt(at / 8)];
  }

  /** Writes n masters to `values` (float32), from an element in `updated` on that is a multiple of 8. */
  getMasters(element: number, n: number, values: Address): void {
    const [halves, ties] = this.restAt(element);
    k.join_master(values, this.weightAt(element), halves, ties, BigInt(n));
  }

  /** Gives n weights and their masters the values (float32), which zeros follow up to a multiple of 8. As getMasters(). */
  setMasters(element: number, n: number, values: Address): void {
    const [halves, ties] = this.restAt(element);
    k.split_master(this.weightAt(element), halves, ties, values, BigInt(n));
  }

  /** Forgets all gradients: the next backward pass overwrites them. */
  zeroGrad(): void {
    for (const { tensor } of this.trained) tensor.buf.gradIsEmpty = true;
  }

  /** Hexadecimal sha256 of the weights as they are now. */
  sha256(): string {
    const hash = createHash("sha256"), chunk = new Uint8Array(1 << 24), { address, bytes } = this.weights;
    for (let done = 0; done < bytes; done += chunk.length) {
      const part = chunk.subarray(0, Math.min(chunk.length, bytes - done));
      copyToHost(part, address + BigInt(done));
      hash.update(part);
    }
    return hash.digest("hex");
  }

  /** Number of values, without padding between parameters; those of all parameters if none are named. */
  count(slots: Slot[] = this.slots): number {
    return slots.reduce((sum, slot) => sum + slot.size, 0);
  }
}

function rangeOf({ offset, size }: Slot): Range {
  return { from: offset, to: offset + size };
}

function aligned(elements: number): number {
  return Math.ceil(elements / ALIGN) * ALIGN;
}

function length({ from, to }: Range): number {
  return to - from;
}

function part(block: Block, offset: number, size: number, element: number): Block {
  return { address: block.address + BigInt(offset * element), bytes: size * element };
}

/** Settings of AdamW. */
export type AdamWOptions = MuonOptions & {
  beta1: number;
  beta2: number;
  eps: number;
  weight_decay: number; // on matrices only
  grad_clip: number; // L2 norm of the whole gradient; 0 = no clipping
  optimizer?: string; // muon: it updates the matrices in layers, AdamW the rest
  overlap?: boolean; // ranks that share the optimizer's state get new weights while the next forward pass goes on
};

/** Elements that AdamW updates alike, `place` elements of second moments behind the first one. */
type Decaying = Range & { weight_decay: number; place: number };

/** What one step did, read back from the device. */
export type StepResult = {
  loss: number;
  learning_rate: number; // that it was done with, in float32
  grad_norm: number;
  skipped: number;
  skipped_row: number;
  updates: number;
  stopping: number; // ranks that were asked to stop, Infinity where one left out micro-steps; see stepTogether()
  written: number; // ranks that have written their parts of a checkpoint
  ranks?: OfRanks; // where there are several
};

/** What each rank said of itself in a step, in order of their numbers. */
export type OfRanks = {
  step_ms: number[]; // of its own work in a step, without waiting for the others; 0 = not known yet
  memory_bytes: number[]; // as its own line of metrics.jsonl would have it
};

/** What a rank says of itself: of the last step whose result it has read, and whether (1) it has written its part of a checkpoint. */
export type OfRank = { step_ms: number; memory_bytes: number; written: number };

/** n floats that all ranks have, whose sum one of them is to have in their place. */
export type Piece = { address: Address; n: number; owner: number };

/** Bytes, a multiple of 4, of which all ranks are to have those of one of them. */
export type Share = { address: Address; bytes: number; owner: number };

/** n numbers that become their sum over all ranks, the same bits on each. */
export type Sum = { address: Address; n: number; type: "float" | "double" };

/** What ranks do together, on memory of the device. All of them make the same calls in the same order. */
export type Exchange = {
  /** Begins to add up pieces over all ranks, each of which its owner will have. Work on this rank goes on beside. */
  beginReduce(pieces: Piece[]): void;
  /** Lets what was begun get on, where that takes a call; it does not wait. */
  progress(): void;
  /**
   * The pieces of this rank that were begun are added up for what is queued from here on. What others own is undefined then, and
   * may be written to after the next allReduce().
   */
  reduced(): Promise<void>;
  /** Begins to give shares to all ranks. Work on this rank that reads none of them, and writes to none, goes on beside. */
  beginGather(shares: Share[]): Promise<void>;
  /** Waits, on this thread, until the shares of the oldest such call are here for what is queued from here on. */
  gathered(): void;
  /** all: one part of `bytes` bytes for each rank. Each rank has its own part and receives the others. */
  allGather(all: Address, bytes: number): Promise<void>;
  /** All of these become their sums, in the time of one. */
  allReduce(...sums: Sum[]): Promise<void>;
};

const SUMS_SAID = 3; // of what ranks say: loss, stopping and written are added up

/** AdamW. Learning rate, loss, norm, clipping and the decision to skip a non-finite update all live on the device. */
export class AdamW {
  /** First moments, float32, of the elements `parameters.updated`. */
  readonly m: Block;
  /** Second moments, of those of them that Muon does not update. */
  readonly v: Block;
  readonly #ranges: Decaying[]; // what AdamW updates, on all ranks
  readonly #muon: Muon | undefined;
  readonly #world_size: number;
  readonly #buckets: Bucket[]; // all gradients, in the order in which they are added up
  #left: Set<Buffer>[] = []; // of each bucket of this step the parameters without their gradient yet
  #begun = 0; // buckets of this step that are being added up
  #coming: { bucket: Bucket; exchange: Exchange }[] = []; // weights that are on their way, the next ones first
  readonly #control: Block; // and behind it, of several ranks, what they say: loss, stopping, written, step_ms and memory of each
  readonly #sumsq: Block = permanent(8, "optimizer");

  /** Allocates the moments. Throws UserError where there is nothing that Muon, if asked for, may update. */
  constructor(readonly parameters: Parameters, readonly options: AdamWOptions) {
    const { total, decayed, trained } = parameters, isMuon = options.optimizer === "muon";
    this.#world_size = parameters.total / length(parameters.part);
    this.#buckets = bucketsOf(parameters);
    this.#control = permanent(4 * (CONTROL.size + this.#said), "optimizer");
    this.m = permanent(4 * length(parameters.updated), "optimizer");
    this.#muon = isMuon ? new Muon(parameters, this.m, options) : undefined;
    const others = trained.filter((slot) => slot.offset < decayed && !isHidden(slot));
    const matrices = isMuon ? others.map(rangeOf) : [{ from: 0, to: decayed }];
    let place = 0;
    this.#ranges = [...matrices, { from: decayed, to: total }].map(({ from, to }) => {
      const range = { from, to, weight_decay: from < decayed ? options.weight_decay : 0, place };
      place += aligned(length(parameters.own(range)));
      return range;
    });
    this.v = permanent(4 * Math.max(1, place), "optimizer"); // all that is this rank's may be Muon's
  }

  /** Adds a micro-step's loss (1) to the mean loss of this step: scale is 1 / gradient_accumulation_steps. */
  addLoss(loss: Tensor, scale: number, isFirst: boolean): void {
    k.sum_scaled(this.#at(CONTROL.loss), loss.address, 1, scale, isFirst ? 0 : 1);
  }

  /**
   * For the last backward pass before stepTogether(): the gradients of a block are added up over the ranks as soon as it has
   * them, while the blocks before it go backward. To the same bits as without.
   */
  reducing(exchange: Exchange): Follower {
    this.#left = this.#buckets.map(({ slots }) => new Set(slots.map(({ tensor }) => tensor.buf)));
    return {
      finished: (parameter) => {
        for (const left of this.#left) left.delete(parameter);
        while (this.#left[this.#begun]?.size === 0) this.#beginBucket(exchange);
      },
      afterOp: () => exchange.progress(),
    };
  }

  #beginBucket(exchange: Exchange): void {
    const parts = this.parameters.partsOf(this.#buckets[this.#begun++]!);
    exchange.beginReduce(
      parts.map(({ from, to, owner }) => ({ address: this.parameters.gradAt(from), n: to - from, owner })),
    );
  }

  /**
   * Begins to give all ranks the weights that each has updated, in the order in which a forward pass reads them. Whoever asks
   * where one is waits for it.
   */
  async #beginGathers(exchange: Exchange): Promise<void> {
    const { parameters: p } = this, element = bytesPerElement("act");
    for (const bucket of this.#buckets.toReversed()) {
      const shares = p.partsOf(bucket).map(({ from, to, owner }) => (
        { address: p.weightAt(from), bytes: element * (to - from), owner }
      ));
      await exchange.beginGather(shares);
      this.#coming.push({ bucket, exchange });
      for (const { tensor } of bucket.slots) tensor.buf.arrive = () => this.#arrive(bucket);
    }
  }

  /** Waits for the weights of a bucket, and of those before it. */
  #arrive(last: Bucket): void {
    let isHere = false;
    while (!isHere) {
      const { bucket, exchange } = this.#coming.shift()!;
      exchange.gathered();
      for (const { tensor } of bucket.slots) tensor.buf.arrive = undefined;
      isHere = bucket === last;
    }
  }

  /** Waits for all weights that are on their way: before what reads or writes them other than through their tensors. */
  gathered(): void {
    const last = this.#coming.at(-1);
    if (last) this.#arrive(last.bucket);
  }

  /** One update with the gradients of the micro-steps since the last one. */
  step(learning_rate: number): void {
    this.#completeGradients();
    this.#sumSquares({ from: 0, to: this.parameters.total });
    this.#update(learning_rate);
    this.#muon?.update(this.#control.address);
  }

  /**
   * step() of all ranks together. The gradients that each made, and the losses that each added, are added up: with the scale
   * 1 / (micro-steps of all ranks) everywhere, that is the mean. stopping: 1 if this rank was asked to stop, Infinity if it left
   * out micro-steps over that; the result has the sum, so that all ranks stop after the same step. Where it is Infinity the update
   * is skipped on all of them, as one that is not finite is. own: what this rank says of itself.
   */
  async stepTogether(
    learning_rate: number,
    exchange: Exchange,
    stopping = 0,
    own: OfRank = { step_ms: 0, memory_bytes: 0, written: 0 },
  ): Promise<void> {
    const { parameters: p } = this, { part, updated } = p, isSharded = length(updated) < p.total;
    this.#completeGradients();
    while (this.#begun < this.#buckets.length) this.#beginBucket(exchange);
    this.#begun = 0;
    this.gathered(); // of which no pass has asked for
    await exchange.reduced();
    if (!isSharded) await exchange.allGather(p.grads!.address, 4 * length(part));
    this.#sumSquares(part);
    if (stopping === Infinity) k.init_constant(this.#at(CONTROL.loss), 1n, NaN);
    await this.#sayTogether(exchange, stopping, own);
    this.#update(learning_rate);
    if (isSharded) await this.#muon?.share(exchange);
    this.#muon?.update(this.#control.address);
    if (isSharded && this.options.overlap) return await this.#beginGathers(exchange);
    if (isSharded) await exchange.allGather(p.weights.address, bytesPerElement("act") * length(part));
  }

  /** Floats that ranks exchange beside gradients and weights; a rank on its own says nothing. */
  get #said(): number {
    return this.#world_size === 1 ? 0 : SUMS_SAID + 2 * this.#world_size;
  }

  /**
   * The sum of squares and the loss become sums over all ranks, as does what they say; each has its own places for step_ms and
   * memory.
   */
  async #sayTogether(exchange: Exchange, stopping: number, own: OfRank): Promise<void> {
    if (this.#world_size === 1) return k.init_constant(this.#at(CONTROL.stopping), 1n, stopping);
    const at = (i: number) => this.#at(CONTROL.size + i), { part } = this.parameters;
    const rank = part.from / length(part);
    k.fill_zero(at(0), BigInt(4 * this.#said));
    k.copy_async(at(0), this.#at(CONTROL.loss), 4n);
    k.init_constant(at(1), 1n, stopping);
    k.init_constant(at(2), 1n, own.written);
    k.init_constant(at(SUMS_SAID + rank), 1n, own.step_ms);
    k.init_constant(at(SUMS_SAID + this.#world_size + rank), 1n, own.memory_bytes);
    await exchange.allReduce(
      { address: this.#sumsq.address, n: 1, type: "double" },
      { address: at(0), n: this.#said, type: "float" },
    );
    k.copy_async(this.#at(CONTROL.loss), at(0), 4n);
    k.copy_async(this.#at(CONTROL.stopping), at(1), 4n);
  }

  /** Has the device choose how to multiply what a step does, before it. */
  meetProducts(): void {
    this.#muon?.meetProducts();
  }

  /** Parameters that took no part in the step have no gradient: it is zero. */
  #completeGradients(): void {
    for (const { tensor } of this.parameters.trained) {
      if (tensor.buf.gradIsEmpty) k.fill_zero(tensor.buf.grad!.address, BigInt(tensor.buf.grad!.bytes));
    }
  }

  #sumSquares(range: Range): void {
    k.grad_sumsq(this.#sumsq.address, this.parameters.gradAt(range.from), BigInt(length(range)), 0);
  }

  #update(learning_rate: number): void {
    const { parameters: p, options: o } = this;
    // Queued like any kernel: nothing waits for a copy from pageable memory, and a step still under way reads its own rate.
    k.init_constant(this.#at(CONTROL.learning_rate), 1n, learning_rate);
    k.step_control(this.#control.address, this.#sumsq.address, o.grad_clip, o.beta1, o.beta2);
    for (const range of this.#ranges) this.#adamw(range);
    timeOther("adamw", 7 * this.v.bytes); // 28 a parameter
    this.#muon?.begin(this.#control.address);
    p.zeroGrad();
  }

  /** Updates what of a range is this rank's. */
  #adamw(range: Decaying): void {
    const { parameters: p, options: o } = this, { from, to } = p.own(range);
    if (from === to) return;
    k.adamw(
      p.weightAt(from),
      ...p.restAt(from),
      this.firstMomentAt(from),
      this.v.address + BigInt(4 * range.place),
      p.gradAt(from),
      this.#control.address,
      BigInt(to - from),
      o.beta1,
      o.beta2,
      o.eps,
      range.weight_decay,
    );
  }

  /** Where the first moment of an element is, which should be in `updated`; that of the first one there for any before it. */
  firstMomentAt(element: number): Address {
    return this.m.address + BigInt(4 * Math.max(0, element - this.parameters.updated.from));
  }

  /** Likewise the second moment; undefined where Muon updates the element, which then has none. */
  secondMomentAt(element: number): Address | undefined {
    const range = this.#ranges.find(({ from, to }) => from <= element && element < to);
    if (!range) return undefined;
    return this.v.address +
      BigInt(4 * (range.place + Math.max(0, element - this.parameters.own(range).from)));
  }

  #at(place: number): Address {
    return this.#control.address + BigInt(4 * place);
  }

  /** Loss, gradient norm and counters of the last step. Waits for everything that is queued. */
  result(): StepResult {
    const control = new Float32Array(CONTROL.size + this.#said);
    copyToHost(control, this.#control.address);
    return stepResult(control, this.#world_size);
  }

  /** Keeps the result of the last step for nextResult(), so that the next step may be queued before this one is read. */
  keepResult(): void {
    snapshot(this.#control.address, this.#control.bytes);
  }

  /** The oldest result kept and not yet read. Waits for its step, but not for a step queued behind it. */
  async nextResult(): Promise<StepResult> {
    const control = new Float32Array(CONTROL.size + this.#said);
    await readSnapshot(control);
    return stepResult(control, this.#world_size);
  }

  /** Puts back the counters of a checkpoint: Adam's bias correction and the guard go on where they stood. */
  restore(state: Pick<StepResult, "updates" | "skipped" | "skipped_row">): void {
    const c = new Float32Array(CONTROL.size);
    c[CONTROL.updates] = state.updates;
    c[CONTROL.skipped] = state.skipped;
    c[CONTROL.skipped_row] = state.skipped_row;
    copyToDevice(this.#control.address, c);
  }
}

/** Gradients that are added up together: those of a block's matrices, of another matrix, or of all vectors. */
type Bucket = Range & { slots: Slot[] };

/**
 * All gradients in pieces, the matrices from the last one on, since backward() comes to that first. The order is the same on all
 * ranks, and so in all of them at any time the same reductions are under way.
 */
function bucketsOf({ trained, decayed, total }: Parameters): Bucket[] {
  const blockOf = ({ name, offset }: Slot) =>
    offset >= decayed ? "vectors" : /^(.*?\.\d+)\./.exec(name)?.[1] ?? name;
  const groups = [...Map.groupBy(trained, blockOf).values()], begins = groups.map(([first]) => first!.offset);
  const buckets = groups.map((slots, i) => ({ from: begins[i]!, to: begins[i + 1] ?? total, slots }));
  const matrices = buckets.filter(({ from }) => from < decayed), vectors = buckets.slice(matrices.length);
  return [...matrices.reverse(), ...vectors];
}

function stepResult(control: Float32Array, world_size: number): StepResult {
  const first = CONTROL.size + SUMS_SAID; // of what ranks say of themselves
  const said = (i: number) =>
    Array.from(control.subarray(first + i * world_size, first + (i + 1) * world_size));
  return {
    ...(world_size > 1 ? { ranks: { step_ms: said(0), memory_bytes: said(1) } } : {}),
    loss: control[CONTROL.loss]!,
    learning_rate: control[CONTROL.learning_rate]!,
    grad_norm: control[CONTROL.grad_norm]!,
    skipped: control[CONTROL.skipped]!,
    skipped_row: control[CONTROL.skipped_row]!,
    updates: control[CONTROL.updates]!,
    stopping: control[CONTROL.stopping]!,
    written: world_size > 1 ? control[CONTROL.size + 2]! : 0,
  };
}
