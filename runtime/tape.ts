// Autograd: a list of what ran, walked from its end.
//
// An op launches its forward kernel and hands record() a closure that launches its backward kernel. A gradient belongs to a
// Buffer; the first op to write it overwrites, later ones add (claim() says which), so weight tying, residuals and gradient
// accumulation need no special case and nothing is ever zeroed. A view shares its buffer's gradient and records nothing.
import * as k from "../ffi/kernels.ts";
import { afterBackward, afterForward, callSite, debug, type Op } from "./debug.ts";
import { type Block, release, releaseAll, take, takenBy } from "./memory.ts";
import { type Address, Buffer, bytesPerElement, Tensor } from "./tensor.ts";

/** An op of the forward pass, how to go back through it, and parameters that it reads beside its inputs. */
type Entry = Op & { backward: () => void; reads: Iterable<Buffer> };

/** Is told how a backward pass gets on. */
export type Follower = {
  /** The gradient of a parameter is whole: nothing of this pass adds to it any more. */
  finished(parameter: Buffer): void;
  /** An op has gone backward. */
  afterOp(): void;
};

let tape: Entry[] = [];
let recording = true;
let dropping = true; // dropout() drops: everywhere but in noGrad()
let read: Set<Buffer> | undefined; // parameters that checkpoint() has seen ops read
let flopsRun = 0; // by all forward passes so far

/** Whether ops are to keep what their backward pass needs. */
export function isRecording(): boolean {
  return recording;
}

/** Runs f without recording, and without dropout: for evaluation and generation. */
export function noGrad<T>(f: () => T): T {
  const before = dropping;
  dropping = false;
  try {
    return unrecorded(f);
  } finally {
    dropping = before;
  }
}

function unrecorded<T>(f: () => T): T {
  const before = recording;
  recording = false;
  try {
    return f();
  } finally {
    recording = before;
  }
}

/** Runs f with a tape of its own, which no debug mode looks at: whatever is on the other one stays there. */
export function withOwnTape<T>(f: () => T): T {
  const outer = tape, { on } = debug;
  tape = [];
  debug.on = false;
  try {
    return f();
  } finally {
    tape = outer;
    debug.on = on;
  }
}

/** FLOPs of the forward passes that f runs, as their ops state them. */
export function flopsOf(f: () => void): number {
  const before = flopsRun;
  f();
  return flopsRun - before;
}

/** flops: of the forward pass, for profiles and MFU. inPlace: out is one of the inputs. reads: parameters beside the inputs. */
export type RecordOptions = { flops?: number; inPlace?: boolean; reads?: Iterable<Buffer> };

/** Puts an op that just ran on the tape, if any of its inputs, or what it reads beside them, needs a gradient. Returns out. */
export function record(
  name: string,
  out: Tensor,
  inputs: readonly Tensor[],
  backward: () => void,
  options: RecordOptions = {},
): Tensor {
  const where = debug.on ? callSite() : "";
  const entry = {
    name,
    out,
    inputs,
    backward,
    flops: options.flops ?? 0,
    inPlace: options.inPlace ?? false,
    reads: options.reads ?? [],
    where,
  };
  flopsRun += entry.flops;
  if (debug.on) afterForward(entry);
  if (read) { for (const { buf } of inputs) if (buf.init) read.add(buf); }
  if (!recording) return out;
  if (!inputs.some((t) => t.buf.needsGrad) && !Array.from(entry.reads).some((buf) => buf.needsGrad)) {
    return out;
  }
  if (!entry.inPlace) { for (const t of inputs) t.buf.uses++; }
  out.buf.needsGrad = true;
  tape.push(entry);
  return out;
}

/**
 * f(x) without keeping its activations: backward runs f once more, recording, and then its backward pass. f may read
 * parameters, but no other activation than x.
 */
export function checkpoint(f: (x: Tensor) => Tensor, x: Tensor): Tensor {
  if (!recording) return f(x);
  const firstMask = masks;
  const reads = read = new Set<Buffer>();
  const { result: out, blocks } = takenBy(() => unrecorded(() => f(x)));
  read = undefined;
  for (const block of blocks) if (block !== out.buf.block) release(block);
  return record("checkpoint", out, [x], () => {
    const outer = tape, input = new Tensor(x.shape, x.dtype, new Buffer(x.buf.block));
    input.buf.needsGrad = x.buf.needsGrad;
    input.buf.uses = 1; // other ops may read x: none in f may write over it
    tape = [];
    const lastMask = masks;
    masks = firstMask; // what is dropped is the same both times
    const { blocks } = takenBy(() => {
      const y = f(input);
      y.buf.grad = out.buf.grad;
      out.buf.grad = undefined;
      backward(y);
    });
    tape = outer;
    masks = lastMask;
    for (const block of blocks) if (block !== input.buf.grad) release(block);
    if (x.buf.needsGrad) give(x, input.buf.grad!);
  }, { reads });
}

// ---- dropout: which random words the next mask is made of

let place = 0n; // of the micro-step, among all of the run
let masks = 0; // since then

/** Where a micro-step stands in a run: no two have the same. */
export type MaskPlace = { seed: number; sample: number; micro: number };

/**
 * Begins the masks of a micro-step: those of dropout() follow from its place and their number in it alone, so that a run that
 * was resumed, or has another number of ranks, goes on with the same. Without it masks differ from each other and are the same
 * in the next process.
 */
export function beginMasks({ seed, sample, micro }: MaskPlace): void {
  place = [seed, sample, micro].reduce((mixed, part) => mix(mixed + BigInt(part)), 0n);
  masks = 0;
}

/** The key of the next mask of dropout(); undefined where nothing is dropped. */
export function nextMask(): bigint | undefined {
  return dropping ? mix(place + BigInt(++masks)) : undefined;
}

/** splitmix64: numbers next to each other become 64 random bits each. */
function mix(x: bigint): bigint {
  let z = BigInt.asUintN(64, x + 0x9E3779B97F4A7C15n);
  z = BigInt.asUintN(64, (z ^ z >> 30n) * 0xBF58476D1CE4E5B9n);
  z = BigInt.asUintN(64, (z ^ z >> 27n) * 0x94D049BB133111EBn);
  return z ^ z >> 31n;
}

// ---- gradients

/** Address of the gradient of t. Throws if there is none. */
export function grad(t: Tensor): Address {
  if (!t.buf.grad) throw new Error(`internal: (${t.shape}) ${t.buf.name} has no gradient`);
  return t.buf.grad.address;
}

/** Before writing the gradient of t: makes its memory and returns 0 to overwrite (first writer) or 1 to add. */
export function claim(t: Tensor): 0 | 1 {
  const buf = t.buf;
  if (!buf.grad) {
    buf.grad = take(t.size * bytesPerElement("act"));
    return 0;
  }
  if (!buf.gradIsEmpty) return 1;
  buf.gradIsEmpty = false;
  return 0;
}

/** Gives x a finished gradient block. The block becomes x's own if it is the first, else it is added and released. */
export function give(x: Tensor, block: Block): void {
  if (!x.buf.needsGrad) return release(block);
  if (x.buf.grad === undefined) {
    x.buf.grad = block;
    return;
  }
  k.add(grad(x), grad(x), block.address, BigInt(x.size));
  release(block);
}

/** Hands the gradient of out, which is not read again, on to x: how a residual connection goes backward at no cost. */
export function passOn(x: Tensor, out: Tensor): void {
  const block = out.buf.grad!;
  out.buf.grad = undefined;
  give(x, block);
}

/**
 * Walks the tape from its end. The gradients of parameters and leaves remain; every other buffer goes back to step memory as
 * soon as its producer's backward pass has run, so do not read activations after this (debug mode keeps them readable).
 */
export function backward(loss: Tensor, follower?: Follower): void {
  loss.buf.isLoss = true;
  const firstRead = follower ? firstReads() : [];
  for (let i = tape.length - 1; i >= 0; i--) {
    const entry = tape[i]!, { out } = entry;
    const overwritten = out.buf.grad === out.buf.block; // the gradient took the place of the values
    const { isLoss } = out.buf;
    if (out.buf.grad || isLoss) {
      entry.backward();
      if (debug.on) afterBackward(entry);
    }
    follower?.afterOp();
    for (const parameter of firstRead[i] ?? []) if (!parameter.gradIsEmpty) follower!.finished(parameter);
    if (entry.inPlace || debug.on) continue; // its first producer releases it; debug keeps everything
    if (out.buf.grad) release(out.buf.grad); // else it was handed on
    out.buf.grad = undefined;
    if (!isLoss && !overwritten) release(out.buf.block);
  }
  tape.length = 0;
}

/** For each op on the tape the trained parameters that none before it reads. */
function firstReads(): Buffer[][] {
  const seen = new Set<Buffer>();
  return tape.map(({ inputs, reads }) =>
    [...inputs.map(({ buf }) => buf), ...reads].filter((buf) => {
      if (!buf.init || !buf.needsGrad || seen.has(buf)) return false;
      seen.add(buf);
      return true;
    })
  );
}

/** Forgets the tape and takes back all step memory. Call it after every micro-step, evaluation batch and generated token. */
export function endStep(): void {
  tape.length = 0;
  releaseAll();
}
