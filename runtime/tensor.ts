// Tensors and the buffers they look into.
//
// Five rules keep a step ready for replay as a CUDA graph: after the first step nothing allocates and addresses repeat;
// inputs live in fixed buffers; scalars that change are read from device memory; no host read inside a step; one stream.
import * as k from "../ffi/kernels.ts";
import { BF16, copyToDevice, copyToHost, device, F32 } from "../ffi/library.ts";
import type { Address } from "../ffi/symbols.ts";
import { type Block, type MemoryKind, permanent, release, take } from "./memory.ts";

export type { Address, Block };

/** act: the device's type for weights and activations (float on the CPU, bfloat16 on CUDA). */
export type DType = "act" | "f32" | "i32";

/** Bytes of one element on the open device. */
export function bytesPerElement(dtype: DType): number {
  return dtype === "act" && device.act === "bf16" ? 2 : 4;
}

// ---- tensors

/**
 * How a parameter starts: normal with this standard deviation (in its first `rows` rows, zero below), or all `value`. parts: rows
 * of each of the matrices that lie in it one below the other, for Muon.
 */
export type Init = ({ std: number; rows?: number } | { value: number }) & { parts?: readonly number[] };

/** Device memory and the gradient that belongs to it. Several tensors (views) may look into one buffer. */
export class Buffer {
  /** Whether backward() is to make a gradient for it. */
  needsGrad = false;
  /** The gradient: act elements, float32 for parameters. */
  grad: Block | undefined;
  /** Parameters: the gradient's block is there, but the next write overwrites it. */
  gradIsEmpty = false;
  /** A loss, or a part of one: its gradient is 1. */
  isLoss = false;
  /** Ops on the tape that read it. */
  uses = 0;
  /** Parameters: their path, "layers.3.qkv_proj". */
  name = "";
  /** Parameters: bfloat16 beside float32 activations; embedding() and ops that multiply by a matrix read them. */
  isHalf = false;
  /** Parameters: how they start. */
  init: Init | undefined;
  /** Parameters whose values are on their way from another rank: waits until they are there for what is queued from then on. */
  arrive: (() => void) | undefined;
  /** A buffer over a block of memory. */
  constructor(public block: Block) {}
}

/** A shape over a whole buffer, row-major. */
export class Tensor {
  /** Elements. */
  readonly size: number;
  /** Prefer empty(), fixed(), param() or tensor(). */
  constructor(readonly shape: readonly number[], readonly dtype: DType, readonly buf: Buffer) {
    this.size = shape.reduce((a, b) => a * b, 1);
  }

  /** Where the memory begins. Whoever asks may read it: waits for values that are on their way. */
  get address(): Address {
    this.buf.arrive?.();
    return this.buf.block.address;
  }

  /** Bytes of memory. */
  get bytes(): number {
    return this.size * bytesPerElement(this.dtype);
  }

  /** The same memory and gradient under another shape. Throws RangeError if the number of elements differs. */
  view(...shape: number[]): Tensor {
    const view = new Tensor(shape, this.dtype, this.buf);
    if (view.size !== this.size) {
      throw new RangeError(
        `Cannot view (${this.shape}) as (${shape}): ${this.size} elements are not ${view.size}`,
      );
    }
    return view;
  }

  /** Values as float32 (int32 ids too), after all queued work. For tests, sampling and debugging, not for the step. */
  toArray(): Float32Array<ArrayBuffer> {
    return readFloats(this.address, this.size, this.dtype);
  }
}

/** An uninitialised tensor in step memory. */
export function empty(shape: readonly number[], dtype: DType = "act"): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return new Tensor(shape, dtype, new Buffer(take(size * bytesPerElement(dtype))));
}

/** A tensor that stays, for inputs and constants. It takes no part in gradients. */
export function fixed(shape: readonly number[], dtype: DType, kind: Exclude<MemoryKind, "step">): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return new Tensor(shape, dtype, new Buffer(permanent(size * bytesPerElement(dtype), kind)));
}

/** Rows from, from + 1, ... of t as (n, C): a look at its memory that takes no part in gradients. */
export function rows(t: Tensor, from: number, n: number): Tensor {
  const C = t.shape.at(-1)!, row = C * bytesPerElement(t.dtype);
  if (from < 0 || (from + n) * C > t.size) {
    throw new RangeError(`Cannot take rows ${from}..${from + n - 1} of (${t.shape})`);
  }
  return new Tensor([n, C], t.dtype, new Buffer({ address: t.address + BigInt(from * row), bytes: n * row }));
}

const UNPLACED: Block = { address: 0n, bytes: 0 };

/** Declares a trainable tensor. It has no memory until Parameters (optim.ts) places the whole model in one flat buffer. */
export function param(shape: readonly number[], init: Init): Tensor {
  const tensor = new Tensor(shape, "act", new Buffer(UNPLACED));
  tensor.buf.init = init;
  tensor.buf.needsGrad = true;
  return tensor;
}

/** Whether a parameter has memory, and with it values. */
export function isPlaced(t: Tensor): boolean {
  return t.buf.block !== UNPLACED;
}

/**
 * All parameters of a model in the order they are written, with their path as name: "layers.3.qkv_proj". One that is there
 * twice, as a tie, has its first path alone.
 */
export function named(model: unknown, path = "", seen: Set<Buffer> = new Set()): [string, Tensor][] {
  if (model instanceof Tensor) {
    if (!model.buf.init || seen.has(model.buf)) return [];
    seen.add(model.buf);
    return [[path, model]];
  }
  if (typeof model !== "object" || model === null) return [];
  return Object.entries(model).flatMap(([key, value]) => named(value, path ? `${path}.${key}` : key, seen));
}

// ---- to and from the host

/** n elements at an address as float32; waits for queued work. */
export function readFloats(address: Address, n: number, dtype: DType): Float32Array<ArrayBuffer> {
  const host = new Float32Array(n);
  if (dtype === "i32") {
    const ints = new Int32Array(host.buffer);
    copyToHost(ints, address);
    return Float32Array.from(ints);
  }
  if (bytesPerElement(dtype) === 4) {
    copyToHost(host, address);
    return host;
  }
  const wide = take(4 * n);
  k.convert(wide.address, address, F32, BF16, BigInt(n));
  copyToHost(host, wide.address);
  release(wide);
  return host;
}

/** Writes float32 values to an address, converted to the dtype. */
export function writeFloats(address: Address, values: Float32Array<ArrayBuffer>, dtype: "act" | "f32"): void {
  if (bytesPerElement(dtype) === 4) return copyToDevice(address, values);
  const wide = take(values.byteLength);
  copyToDevice(wide.address, values);
  k.convert(address, wide.address, BF16, F32, BigInt(values.length));
  release(wide);
}

/** A tensor in step memory with the given values; needsGrad makes it a leaf whose gradient can be asked for. */
export function tensor(shape: readonly number[], values: ArrayLike<number>, needsGrad = false): Tensor {
  const t = empty(shape);
  if (values.length !== t.size) {
    throw new RangeError(`Cannot fill (${shape}) with ${values.length} values: it holds ${t.size}`);
  }
  writeFloats(t.address, Float32Array.from(values), "act");
  t.buf.needsGrad = needsGrad;
  return t;
}
