// Helpers of the tests: a device, seeded data, gradients of a single op, and comparisons whose tolerance follows from rounding.
import { AssertionError } from "@std/assert";
import * as k from "../ffi/kernels.ts";
import { copyToDevice, copyToHost, device, type DeviceInfo, type DeviceName, open } from "../ffi/library.ts";
import type { Company } from "./checkpoint.ts";
import { release, take } from "./memory.ts";
import { type Exchange, Parameters, type Piece, type Share } from "./optim.ts";
import { attention } from "./ops.ts";
import type { Numbers } from "./testing_reference.ts";
import * as ref from "./testing_reference.ts";
import { backward, claim, endStep, grad, noGrad } from "./tape.ts";
import { type Address, fixed, param, readFloats, type Tensor, tensor, writeFloats } from "./tensor.ts";

/**
 * Opens the device that LOAM_TEST_DEVICE names, or the CPU, with 2 threads. Call it at the top of a test file: the test
 * runner takes a library opened inside a test for a leak.
 */
export function openTestDevice(): DeviceInfo {
  return open((Deno.env.get("LOAM_TEST_DEVICE") || "cpu") as DeviceName, { threads: 2 });
}

// ---- data

/** Elements of a tensor, row-major. */
export type Values = Float32Array<ArrayBuffer>;

/** Uniform numbers in (0, 1] that follow from the seed: Knuth's MMIX generator, upper half. */
export function uniform(seed: number): () => number {
  let state = BigInt(seed);
  const next = () => {
    state = BigInt.asUintN(64, state * 6364136223846793005n + 1442695040888963407n);
    return (Number(state >> 32n) + 1) / 2 ** 32;
  };
  next(); // small seeds are alike in their first number
  return next;
}

/** n standard normal numbers, rounded to the device's act type so that device and reference begin with the same values. */
export function normal(n: number, seed: number): Values {
  const u = uniform(seed);
  return toAct(Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(u())) * Math.cos(2 * Math.PI * u())));
}

/** The four words of block `counter` (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011). */
export function philox(counter: number[], key: number[]): number[] {
  let [c0, c1, c2, c3] = counter as [number, number, number, number];
  let [k0, k1] = key as [number, number];
  const multiply = (a: number, b: number): [high: number, low: number] => {
    const product = BigInt(a) * BigInt(b);
    return [Number(product >> 32n), Number(product & 0xffffffffn)];
  };
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(0xd2511f53, c0), [high1, low1] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** n whole numbers from 0 up to below, as float64. */
export function integers(n: number, below: number, seed: number): number[] {
  const u = uniform(seed);
  return Array.from({ length: n }, () => Math.ceil(u() * below) - 1);
}

/** The smallest head size of at least D that the device's attention takes: any on the CPU, one of three on a GPU. */
export function headSize(D: number): number {
  return device.act === "f32" ? D : [32, 64, 128].find((size) => size >= D)!;
}

/** Values rounded to the device's act type. */
function toAct(values: number[]): Values {
  const floats = Float32Array.from(values);
  if (device.act === "f32") return floats;
  const bits = new Uint32Array(floats.buffer);
  bits.forEach((b, i) => bits[i] = (b + 0x7fff + ((b >> 16) & 1)) & 0xffff0000); // to nearest, ties to even
  return floats;
}

/** Token ids or targets on the device. */
export function tokens(shape: number[], values: Iterable<number>): Tensor {
  const t = fixed(shape, "i32", "inputs");
  copyToDevice(t.address, Int32Array.from(values));
  return t;
}

/** A tensor on the device and its values. */
export type Data = { t: Tensor; values: Values };

/** A leaf with normal values, in step memory. */
export function leaf(shape: number[], seed: number): Data {
  const values = normal(elements(shape), seed);
  return { t: tensor(shape, values, true), values };
}

/** A parameter with the given values, placed by a Parameters of its own. */
export function weight(shape: number[], values: Values): Tensor {
  const w = param(shape, { value: 0 });
  new Parameters({ w }, { seed: 0, train: true });
  writeFloats(w.address, values, "act");
  return w;
}

/** A parameter with normal values. */
export function normalWeight(shape: number[], seed: number): Data {
  const values = normal(elements(shape), seed);
  return { t: weight(shape, values), values };
}

/** A table for rope: cosines, then sines of position * 100^(-2j/D), (rows, D). */
export function rotations(rows: number, D: number): Data {
  const values = Float32Array.from({ length: rows * D }, (_, i) => {
    const angle = Math.floor(i / D) * 100 ** (-2 * (i % (D / 2)) / D);
    return i % D < D / 2 ? Math.cos(angle) : Math.sin(angle);
  });
  const t = fixed([rows, D], "f32", "constants");
  writeFloats(t.address, values, "f32");
  return { t, values };
}

function elements(shape: number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

// ---- gradients

/** The gradient of a leaf or parameter after backward(). */
export function gradient(t: Tensor): Values {
  return readFloats(grad(t), t.size, t.buf.init ? "f32" : "act");
}

/** Output of f and the gradients of inputs, given dout, the gradient of the output; ends the step. */
export function forwardBackward(
  f: () => Tensor,
  inputs: Tensor[],
  dout: Values,
): { out: Values; grads: Values[] } {
  const y = f(), out = y.toArray();
  claim(y);
  writeFloats(grad(y), dout, "act");
  backward(y);
  const grads = inputs.map(gradient);
  endStep();
  return { out, grads };
}

/**
 * Compares the gradients of f, a function of tensors of the given shapes (`{ weight }` for a parameter), with central
 * differences of <f(x), dout> along random directions of +1 and -1, which pass through every element. It asks nothing of
 * the reference, only of the tape.
 *
 * The values are float32 with rounding unit u = 2^-24, the sums over them float64. A step h leaves errors of about h^2 from
 * the third derivative and u / h from rounding; both are least at h = u^(1/3) = 0.004, about 1.5e-5 relative to the norm of
 * the gradient, the size that a derivative along a random direction has. Ten times that is allowed: the constants before h^2
 * are those of the op. bfloat16 is too coarse for differences (u^(2/3) = 0.025): there the float64 reference has to do.
 */
export function checkGrad(
  f: (...inputs: Tensor[]) => Tensor,
  ...shapes: (number[] | { weight: number[] })[]
): void {
  if (device.act !== "f32") return;
  const h = 2 ** -8;
  const x = shapes.map((shape, i) => normal(elements("weight" in shape ? shape.weight : shape), 100 + i));
  const place = (values: Values[]) =>
    values.map((v, i) => {
      const shape = shapes[i]!;
      return "weight" in shape ? weight(shape.weight, v) : tensor(shape, v, true);
    });
  const evaluate = (values: Values[]) => {
    const y = noGrad(() => f(...place(values))), out = y.toArray();
    endStep();
    return { out, isLoss: y.dtype === "f32" };
  };
  const { out, isLoss } = evaluate(x), inputs = place(x);
  const dout = isLoss ? Float32Array.of(1) : normal(out.length, 99); // a loss begins with the gradient 1
  const { grads } = forwardBackward(() => f(...inputs), inputs, dout);
  grads.forEach((gradient, i) => {
    for (let seed = 0; seed < 3; seed++) {
      const direction = integers(gradient.length, 2, seed).map((bit) => 2 * bit - 1);
      const moved = (step: number) => x.with(i, x[i]!.map((v, j) => v + step * direction[j]!));
      const plus = evaluate(moved(h)).out, minus = evaluate(moved(-h)).out;
      const expected = sum(dout, (d, j) => d * (plus[j]! - minus[j]!)) / (2 * h);
      const actual = sum(gradient, (g, j) => g * direction[j]!);
      const allowed = 10 * h ** 2 * Math.sqrt(sum(gradient, (g) => g * g));
      if (Math.abs(actual - expected) <= allowed) continue;
      throw new AssertionError(
        `The gradient of input ${i} along direction ${seed} is ${actual}, ` +
          `finite differences give ${expected}, ${allowed} apart are allowed`,
      );
    }
  });
}

function sum(values: Values, term: (value: number, i: number) => number): number {
  return values.reduce((sum, value, i) => sum + term(value, i), 0);
}

// ---- comparisons

/** Largest relative error of one rounding to the device's act type: 24 significant bits in float, 8 in bfloat16. */
export function eps(): number {
  return device.act === "f32" ? 2 ** -24 : 2 ** -8;
}

/** How far a value may be off: atol + rtol * what is expected. */
export type Tolerance = { rtol: number; atol: number };

/**
 * What rounding can do to results that are sums of n products, each of `stages` such sums built on another.
 *
 * Roundings err independently by at most eps (of what is stored) and 2^-24 (of float sums, whatever is stored). n of them in
 * a sum of random signs grow like a random walk, to 2^-24 sqrt(n) of the typical result, not n; six times that, six standard
 * deviations and more, is met by one value in a billion. Results are compared on the scale of their root mean square, since
 * a sum that happens to come out small has the rounding errors of its large terms.
 */
export function rounding(expected: Numbers, n: number, stages = 1): Tolerance {
  const rtol = 6 * stages * (eps() + 2 ** -24 * Math.sqrt(n));
  const squares = Array.from(expected).reduce((sum, e) => sum + e * e, 0);
  return { rtol, atol: rtol * Math.sqrt(squares / expected.length) };
}

/** Every |actual - expected| <= atol + rtol |expected|; NaN and infinities must be the same. Names the worst element. */
export function assertClose(
  actual: Numbers,
  expected: Numbers,
  { rtol, atol }: Tolerance,
  what = "values",
): void {
  if (actual.length !== expected.length) {
    throw new AssertionError(`${what}: there are ${actual.length} values, but should be ${expected.length}`);
  }
  let worst = 0, worstRatio = 0, outside = 0;
  for (let i = 0; i < actual.length; i++) {
    const a = actual[i]!, e = expected[i]!;
    if (a === e || Number.isNaN(a) && Number.isNaN(e)) continue;
    const ratio = Math.abs(a - e) / (atol + rtol * Math.abs(e)); // NaN where only one of them is finite
    if (ratio <= 1) continue;
    outside++;
    if (ratio <= worstRatio) continue;
    worst = i;
    worstRatio = Number.isNaN(ratio) ? Infinity : ratio;
  }
  if (outside === 0) return;
  throw new AssertionError(
    `${what}: ${outside} of ${actual.length} values differ, most at [${worst}]: it is ${actual[worst]}, ` +
      `should be ${expected[worst]}; rtol ${rtol.toExponential(1)}, atol ${atol.toExponential(1)}`,
  );
}

/** assertClose() with the tolerance of rounding(). */
export function close(actual: Numbers, expected: Numbers, n: number, what: string, stages = 1): void {
  assertClose(actual, expected, rounding(expected, n, stages), what);
}

/** The sum of arrays of one length, element by element. */
export function plus(...terms: Numbers[]): Float64Array {
  return Float64Array.from(terms[0]!, (_, i) => terms.reduce((sum, term) => sum + term[i]!, 0));
}

// ---- attention

/** starts (rows, T) of documents that begin at these places, those of each row. */
export function startsOf(T: number, ...rows: number[][]): number[] {
  return rows.flatMap((begins) =>
    Array.from({ length: T }, (_, t) => Math.max(0, ...begins.filter((begin) => begin <= t)))
  );
}

/** Compares attention(), out (B, T, H D) and the gradient of qkv (B, T, (H + 2K) D), with float64, but for rounding. */
export function compareAttention(size: ref.HeadSizes): void {
  const { B, T, H, K, D } = size,
    heads = { n_head: H, n_kv_head: K, head_dim: D },
    starts = size.starts && tokens([B, T], Array.from(size.starts)),
    what = JSON.stringify(size);
  const qkv = leaf([B, T, (H + 2 * K) * D], 1), dout = normal(B * T * H * D, 2);
  const { out, grads } = forwardBackward(() => attention(qkv.t, heads, starts), [qkv.t], dout);
  close(out, ref.attention(qkv.values, size), T + D, `out of ${what}`, 2); // scores, then values
  close(grads[0]!, ref.attentionBackward(dout, qkv.values, size), T + D, `dqkv of ${what}`, 3);
}

// ---- float32 master weights

/** The masters of n elements of a model, from an element on. */
export function readMasters(parameters: Parameters, element: number, n: number): Values {
  const values = take(4 * n);
  parameters.getMasters(element, n, values.address);
  const floats = readFloats(values.address, n, "f32");
  release(values);
  return floats;
}

/** Gives elements of a model these masters, and their weights what these are rounded. */
export function writeMasters(parameters: Parameters, element: number, floats: Values): void {
  const values = take(floats.byteLength);
  writeFloats(values.address, floats, "f32");
  parameters.setMasters(element, floats.length, values.address);
  release(values);
}

// ---- several ranks in one process

/** An exchange for each of n ranks that live in this process and run by turns, each in its own asynchronous function. */
export function localExchanges(n: number): Exchange[] {
  let waiting: { rank: number; address: Address; go: () => void }[] = [];

  /** Waits until all ranks are here; the last one then does the work for all. */
  async function meet(rank: number, address: Address, work: (addresses: Address[]) => void): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    waiting.push({ rank, address, go: resolve });
    if (waiting.length === n) {
      const all = waiting.sort((a, b) => a.rank - b.rank);
      waiting = [];
      work(all.map(({ address }) => address));
      all.forEach(({ go }) => go());
    }
    await promise;
  }

  const sum = (all: Address[], from: Address, size: number) => {
    const total = readFloats(all[0]! + from, size, "f32");
    for (const address of all.slice(1)) {
      readFloats(address + from, size, "f32").forEach((x, i) => total[i] = Math.fround(total[i]! + x));
    }
    return total;
  };
  const given: Share[][][] = Array.from({ length: n }, () => []); // by each rank, all there ever were
  const taken: number[] = new Array(n).fill(0); // of these, by each
  const begun: Piece[][] = Array.from({ length: n }, () => []); // by each rank
  return Array.from({ length: n }, (_, rank) => ({
    beginReduce: (pieces) => void begun[rank]!.push(...pieces),
    progress: () => {},
    reduced: () =>
      meet(rank, 0n, () => {
        begun[0]!.forEach(({ n: size, owner }, i) => {
          const all = begun.map((pieces) => pieces[i]!);
          if (all.some((piece) => piece.n !== size || piece.owner !== owner)) {
            throw new AssertionError("other pieces");
          }
          writeFloats(all[owner]!.address, sum(all.map(({ address }) => address), 0n, size), "f32");
        });
        for (const pieces of begun) pieces.length = 0;
      }),
    allGather: (address, bytes) =>
      meet(rank, address, (all) => {
        all.forEach((owner, i) => {
          const part = BigInt(bytes * i);
          for (const other of all) {
            if (other !== owner) k.copy_async(other + part, owner + part, BigInt(bytes));
          }
        });
      }),
    beginGather: (shares) => {
      given[rank]!.push(shares);
      return meet(rank, 0n, () => {}); // what is given does not change after this
    },
    gathered: () => {
      const at = taken[rank]!++;
      given[rank]![at]!.forEach(({ address, bytes, owner }, i) => {
        const from = given[owner]![at]![i]!;
        if (from.owner !== owner || from.bytes !== bytes) throw new AssertionError("other shares");
        if (owner !== rank) k.copy_async(address, from.address, BigInt(bytes));
      });
    },
    allReduce: async (...sums) => {
      for (const { address, n: size, type } of sums) {
        await meet(rank, address, (all) => {
          const values = all.map((at) => {
            const array = type === "double" ? new Float64Array(size) : new Float32Array(size);
            copyToHost(array, at);
            return array;
          });
          const total = values[0]!.map((_, i) => values.reduce((a, v) => a + v[i]!, 0));
          for (const at of all) copyToDevice(at, total as Float32Array<ArrayBuffer>);
        });
      }
    },
  }));
}

/** Ranks that live in this process. */
export function companies(world_size: number): Company[] {
  let waiting: { values: number[]; go: (sums: number[]) => void }[] = [];
  const sum = (...values: number[]) =>
    new Promise<number[]>((go) => {
      waiting.push({ values, go });
      if (waiting.length < world_size) return;
      const all = waiting, sums = values.map((_, i) => all.reduce((sum, { values }) => sum + values[i]!, 0));
      waiting = [];
      all.forEach(({ go }) => go(sums));
    });
  const barrier = () => sum().then(() => {});
  return Array.from({ length: world_size }, (_, rank) => ({ rank, world_size, barrier, sum }));
}
