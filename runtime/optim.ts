// Parameters in flat buffers, AdamW over them, gradient clipping, the learning-rate schedule.
import * as k from "../ffi/kernels.ts";
import { CONTROL, copyToDevice, copyToHost, device, readSnapshot, snapshot } from "../ffi/library.ts";
import { timeOther } from "./debug.ts";
import { type Block, permanent } from "./memory.ts";
import { type Address, bytesPerElement, named, type Tensor } from "./tensor.ts";

/** Where one parameter lies in the flat buffers. */
export type Slot = { name: string; tensor: Tensor; offset: number; size: number }; // in elements

const ALIGN = 64; // elements; 128 bytes of bfloat16, 256 of float

/**
 * All weights of a model in one buffer, matrices first (they decay), then vectors (they do not); gradients likewise. A flat
 * range [a, b) is all that the optimizer and a checkpoint need to know.
 */
export class Parameters {
  /** All parameters in flat order. */
  readonly slots: Slot[] = [];
  /** Elements, padding between parameters included. */
  readonly total: number;
  /** The first so many elements decay. */
  readonly decayed: number;
  /** What the model reads, in the device's act type. */
  readonly weights: Block;
  /** float32; the same block as weights where those are float32. */
  readonly master: Block;
  /** float32; only when training. */
  readonly grads: Block | undefined;

  /** Gives the parameters of model memory and initial values. train: with gradients and master weights. */
  constructor(model: unknown, options: { seed: number; train: boolean }) {
    const all = named(model);
    const matrices = all.filter(([, t]) => t.shape.length > 1),
      vectors = all.filter(([, t]) => t.shape.length === 1);
    let offset = 0;
    const place = ([name, tensor]: [string, Tensor]) => {
      this.slots.push({ name, tensor, offset, size: tensor.size });
      offset += Math.ceil(tensor.size / ALIGN) * ALIGN;
    };
    matrices.forEach(place);
    this.decayed = offset;
    vectors.forEach(place);
    this.total = offset;

    const element = bytesPerElement("act");
    this.weights = permanent(this.total * element, "weights");
    this.master = element === 4 ? this.weights : permanent(this.total * 4, "optimizer");
    this.grads = options.train ? permanent(this.total * 4, "gradients") : undefined;
    for (const { name, tensor, offset, size } of this.slots) {
      tensor.buf.name = name;
      tensor.buf.block = part(this.weights, offset, size, element);
      if (this.grads) tensor.buf.grad = part(this.grads, offset, size, 4);
      tensor.buf.gradIsEmpty = true;
      tensor.buf.needsGrad = options.train;
    }
    this.#initialise(BigInt(options.seed));
  }

  #initialise(seed: bigint): void {
    for (const { tensor, offset, size } of this.slots) {
      const init = tensor.buf.init!, address = this.master.address + BigInt(4 * offset);
      if ("value" in init) k.init_constant(address, BigInt(size), init.value);
      else {
        const n = (init.rows ?? tensor.shape[0]!) * (size / tensor.shape[0]!); // padded rows stay zero
        k.init_normal(address, BigInt(n), init.std, seed, BigInt(offset));
      }
    }
    this.masterToWeights();
  }

  /** Rounds the master weights into the weights that the model reads, after they were loaded or initialised. */
  masterToWeights(): void {
    if (this.master === this.weights) return;
    const type = device.act === "bf16" ? 1 : 0;
    k.convert(this.weights.address, this.master.address, type, 0, BigInt(this.total));
  }

  /** Forgets all gradients: the next backward pass overwrites them. */
  zeroGrad(): void {
    for (const { tensor } of this.slots) tensor.buf.gradIsEmpty = true;
  }

  /** Number of trainable values, without padding between parameters. */
  count(): number {
    return this.slots.reduce((sum, slot) => sum + slot.size, 0);
  }
}

function part(block: Block, offset: number, size: number, element: number): Block {
  return { address: block.address + BigInt(offset * element), bytes: size * element };
}

/** Settings of AdamW. */
export type AdamWOptions = {
  beta1: number;
  beta2: number;
  eps: number;
  weight_decay: number; // on matrices only
  grad_clip: number; // L2 norm of the whole gradient; 0 = no clipping
};

/** What one step did, read back from the device. */
export type StepResult = {
  loss: number;
  grad_norm: number;
  skipped: number;
  skipped_row: number;
  updates: number;
};

/** AdamW. Learning rate, loss, norm, clipping and the decision to skip a non-finite update all live on the device. */
export class AdamW {
  /** First moments, float32, as flat as the parameters. */
  readonly m: Block;
  /** Second moments. */
  readonly v: Block;
  readonly #control: Block = permanent(4 * CONTROL.size, "optimizer");
  readonly #sumsq: Block = permanent(8, "optimizer");

  /** Allocates the moments. */
  constructor(readonly parameters: Parameters, readonly options: AdamWOptions) {
    this.m = permanent(4 * parameters.total, "optimizer");
    this.v = permanent(4 * parameters.total, "optimizer");
  }

  /** Adds a micro-step's loss (1) to the mean loss of this step: scale is 1 / gradient_accumulation_steps. */
  addLoss(loss: Tensor, scale: number, isFirst: boolean): void {
    k.sum_scaled(this.#at(CONTROL.loss), loss.address, 1, scale, isFirst ? 0 : 1);
  }

  /** One update with the gradients of the micro-steps since the last one. */
  step(learning_rate: number): void {
    const { parameters: p, options: o } = this, grads = p.grads!.address;
    for (const { tensor } of p.slots) {
      if (tensor.buf.gradIsEmpty) k.fill_zero(tensor.buf.grad!.address, BigInt(tensor.buf.grad!.bytes)); // took no part
    }
    // Queued like any kernel: nothing waits for a copy from pageable memory, and a step still under way reads its own rate.
    k.init_constant(this.#at(CONTROL.learning_rate), 1n, learning_rate);
    k.grad_sumsq(this.#sumsq.address, grads, BigInt(p.total), 0);
    k.step_control(this.#control.address, this.#sumsq.address, o.grad_clip, o.beta1, o.beta2);
    this.#update(0, p.decayed, o.weight_decay);
    this.#update(p.decayed, p.total, 0);
    p.zeroGrad();
    timeOther("adamw", 28 * p.total);
  }

  #update(from: number, to: number, weight_decay: number): void {
    if (from === to) return;
    const { parameters: p, options: o } = this,
      f = BigInt(4 * from),
      w = BigInt(bytesPerElement("act") * from);
    k.adamw(
      p.weights.address + w,
      p.master.address + f,
      this.m.address + f,
      this.v.address + f,
      p.grads!.address + f,
      this.#control.address,
      BigInt(to - from),
      o.beta1,
      o.beta2,
      o.eps,
      weight_decay,
    );
  }

  #at(place: number): Address {
    return this.#control.address + BigInt(4 * place);
  }

  /** Loss, gradient norm and counters of the last step. Waits for everything that is queued. */
  result(): StepResult {
    const control = new Float32Array(CONTROL.size);
    copyToHost(control, this.#control.address);
    return stepResult(control);
  }

  /** Keeps the result of the last step for nextResult(), so that the next step may be queued before this one is read. */
  keepResult(): void {
    snapshot(this.#control.address, 4 * CONTROL.size);
  }

  /** The oldest result kept and not yet read. Waits for its step, but not for a step queued behind it. */
  async nextResult(): Promise<StepResult> {
    const control = new Float32Array(CONTROL.size);
    await readSnapshot(control);
    return stepResult(control);
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

function stepResult(control: Float32Array): StepResult {
  return {
    loss: control[CONTROL.loss]!,
    grad_norm: control[CONTROL.grad_norm]!,
    skipped: control[CONTROL.skipped]!,
    skipped_row: control[CONTROL.skipped_row]!,
    updates: control[CONTROL.updates]!,
  };
}

/** Settings of cosineSchedule(). */
export type Schedule = { learning_rate: number; min_lr: number; warmup_iters: number; max_iters: number };

/** Learning rate of a step (from 0): linear warm-up over warmup_iters, then half a cosine down to min_lr at max_iters. */
export function cosineSchedule(step: number, s: Schedule): number {
  if (step < s.warmup_iters) return s.learning_rate * (step + 1) / s.warmup_iters;
  if (step >= s.max_iters) return s.min_lr;
  const progress = (step - s.warmup_iters) / Math.max(1, s.max_iters - s.warmup_iters);
  return s.min_lr + 0.5 * (1 + Math.cos(Math.PI * progress)) * (s.learning_rate - s.min_lr);
}
