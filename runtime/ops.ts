// Every differentiable op: check shapes, launch the forward kernel, hand record() the backward kernel.
// N is the product of all but the last dimension. Saved for backward: only what the closures below name.
import * as k from "../ffi/kernels.ts";
import { BF16, F32, UNARY } from "../ffi/library.ts";
import { debug } from "./debug.ts";
import { claim, give, grad, isRecording, nextMask, passOn, record } from "./tape.ts";
import { type Block, release, take } from "./memory.ts";
import { type Address, bytesPerElement, empty, type Tensor } from "./tensor.ts";

/** Rows of a table. ids (..., T) int32, w (V, C) -> (..., T, C) */
export function embedding(ids: Tensor, w: Tensor): Tensor {
  const [V, C] = matrix("embedding", w);
  checkIds("embedding", "ids", ids);
  const out = empty([...ids.shape, C]);
  const look = w.buf.isHalf ? k.embedding_forward_bf16 : k.embedding_forward;
  look(out.address, ids.address, w.address, ids.size, V, C);
  return record("embedding", out, [w], () => {
    const add = claim(w);
    k.embedding_backward(grad(w), grad(out), ids.address, ids.size, V, C, add);
  });
}

/** y = x / sqrt(mean(x^2) + eps) * w over the last axis. x (..., C), w (C) -> (..., C) */
export function rmsnorm(x: Tensor, w: Tensor, eps: number): Tensor {
  const C = x.shape.at(-1)!, N = x.size / C;
  checkActivation("rmsnorm", "x", x);
  checkWeight("rmsnorm", w);
  if (w.size !== C) {
    throw new RangeError(`rmsnorm: w must be (${C}) to scale x (${x.shape}), but w is (${w.shape})`);
  }
  const out = empty(x.shape);
  const rstd = take(4 * N); // 1 / rms of each row
  k.rmsnorm_forward(out.address, rstd.address, x.address, w.address, N, C, 1, C, eps);
  return record("rmsnorm", out, [x, w], () => {
    rmsnormBackward(x, w, rstd, grad(out), 0n);
  });
}

/** Adds to the gradients of x and w given dout, the gradient of the normalised rows, which are written to again if not 0. */
function rmsnormBackward(x: Tensor, w: Tensor, rstd: Block, dout: Address, again: Address): void {
  const C = w.size, N = x.size / C, unwanted = x.buf.needsGrad ? undefined : take(x.bytes);
  const addX = unwanted ? 0 : claim(x), dx = unwanted?.address ?? grad(x);
  weightGrad(w, (dw, addW) => {
    k.rmsnorm_backward(dx, dw, again, dout, x.address, w.address, rstd.address, N, C, 1, C, addX, addW);
  });
  if (unwanted) release(unwanted);
}

/** Has f write the gradient of a weight, or add to it; to memory that is given back where none is wanted. */
function weightGrad(w: Tensor, f: (dw: Address, add: 0 | 1) => void): void {
  if (w.buf.needsGrad) {
    const add = claim(w);
    return f(grad(w), add);
  }
  const unwanted = take(4 * w.size);
  f(unwanted.address, 0);
  release(unwanted);
}

/** What is added to a weight w (OUT, IN) that may be frozen: scale B A, of low rank R. A (R, IN), B (OUT, R) */
export type Adapter = { A: Tensor; B: Tensor; scale: number };

/** y = x w^T (+ residual), w + scale B A in the place of w with an adapter. x (..., IN), w (OUT, IN), residual (..., OUT) -> (..., OUT) */
export function linear(x: Tensor, w: Tensor, residual?: Tensor, adapter?: Adapter): Tensor {
  const [OUT, IN] = matrix("linear", w), N = x.size / IN;
  const shape = [...x.shape.slice(0, -1), OUT];
  checkActivation("linear", "x", x);
  if (x.shape.at(-1) !== IN) {
    throw new RangeError(
      `linear: w must be (O, ${x.shape.at(-1)}) to multiply x (${x.shape}), but w is (${w.shape})`,
    );
  }
  if (residual) checkActivation("linear", "residual", residual);
  if (residual && residual.size !== N * OUT) {
    throw new RangeError(
      `linear: residual must be (${shape}) to be added to x w^T, but it is (${residual.shape})`,
    );
  }
  const low = lowRank("linear", w, adapter, N);
  const out = empty(shape);
  multiply(out.address, x.address, w, residual?.address ?? 0n, N, low);
  return record("linear", out, [x, w, ...residual ? [residual] : [], ...weightsOf(low)], () => {
    if (low) outerGrad(low, grad(out), N);
    if (x.buf.needsGrad) {
      const add = claim(x);
      inputGrad(grad(x), grad(out), w, N, add, low);
    }
    productGrad(w, grad(out), x.address, N);
    if (low) innerGrad(low, x.address, N);
    if (residual) passOn(residual, out);
  }, { flops: productFlops(w, N, low) });
}

/** out (N, OUT) = x (N, IN) w^T (+ residual, or 0n), with what is added to w. w (OUT, IN) may be bfloat16 where activations are float32. */
function multiply(out: Address, x: Address, w: Tensor, residual: Address, N: number, low?: LowRank): void {
  const [OUT, IN] = w.shape as [number, number],
    product = w.buf.isHalf ? k.linear_forward_bf16 : k.linear_forward;
  if (!low) return product(out, x, w.address, residual, N, IN, OUT);
  multiply(low.u.address, x, low.A, 0n, N);
  scaleInPlace(low, N);
  multiply(out, low.u.address, low.B, residual, N);
  product(out, x, w.address, out, N, IN, OUT);
}

/** dx = dout w, or adds that, for what multiply() did; outerGrad() comes before. dout (N, OUT), dx (N, IN) */
function inputGrad(dx: Address, dout: Address, w: Tensor, N: number, add: 0 | 1, low?: LowRank): void {
  const [OUT, IN] = w.shape as [number, number],
    product = w.buf.isHalf ? k.linear_dgrad_bf16 : k.linear_dgrad;
  product(dx, dout, w.address, N, IN, OUT, add);
  if (low) k.linear_dgrad(dx, low.u.address, low.A.address, N, IN, low.A.shape[0]!, 1);
}

/** Writes the gradient of w (OUT, IN), or adds to it, where one is wanted: dout^T x of dout (N, OUT) and x (N, IN). */
function productGrad(w: Tensor, dout: Address, x: Address, N: number): void {
  if (!w.buf.needsGrad) return;
  const [OUT, IN] = w.shape as [number, number], add = claim(w);
  k.linear_wgrad(grad(w), dout, x, N, IN, OUT, add);
}

/** An adapter at work: u (N, R) is scale x A^T, and in the backward pass becomes the gradient of x A^T. */
type LowRank = Adapter & { u: Block };

/** Takes the memory that an adapter of w needs for N rows. */
function lowRank(op: string, w: Tensor, adapter: Adapter | undefined, N: number): LowRank | undefined {
  if (!adapter) return undefined;
  const [OUT, IN] = w.shape as [number, number], [R, inner] = matrix(op, adapter.A);
  const outer = matrix(op, adapter.B);
  if (inner !== IN || outer.join() !== `${OUT},${R}`) {
    throw new RangeError(
      `${op}: A must be (R,${IN}) and B (${OUT},R) for w (${w.shape}), but they are (${adapter.A.shape}) and (${adapter.B.shape})`,
    );
  }
  return { ...adapter, u: take(N * R * bytesPerElement("act")) };
}

function weightsOf(low: LowRank | undefined): Tensor[] {
  return low ? [low.A, low.B] : [];
}

/** FLOPs of multiply(). */
function productFlops(w: Tensor, N: number, low?: LowRank): number {
  return 2 * N * [w, ...weightsOf(low)].reduce((sum, { size }) => sum + size, 0);
}

function scaleInPlace({ u, A, scale }: LowRank, N: number): void {
  k.unary_forward(u.address, u.address, UNARY.scale, scale, BigInt(N * A.shape[0]!));
}

/** The gradient of B, and that of x A^T in the place of u. dout (N, OUT) */
function outerGrad(low: LowRank, dout: Address, N: number): void {
  const { u, B } = low, [OUT, R] = B.shape as [number, number];
  productGrad(B, dout, u.address, N);
  k.linear_dgrad(u.address, dout, B.address, N, R, OUT, 0);
  scaleInPlace(low, N);
}

/** The gradient of A, after outerGrad(). x (N, IN) */
function innerGrad({ u, A }: LowRank, x: Address, N: number): void {
  productGrad(A, u.address, x, N);
  release(u);
}

/** H query heads and K key/value heads of size D, side by side in the last two axes of qkv: (B, T, H + 2K, D). */
export type Heads = { n_head: number; n_kv_head: number; head_dim: number };

/**
 * Rotates queries and keys in place, the first token of each row of the batch at position pos, or each at its own; with starts,
 * as attention() has it, the first token of each document. qkv (B, T, (H + 2K) * D), table (rows, D) of cosines and sines -> the
 * same qkv
 */
export function rope(
  qkv: Tensor,
  table: Tensor,
  { n_head: H, n_kv_head: K, head_dim: D }: Heads,
  pos: number | readonly number[] = 0,
  starts?: Tensor,
): Tensor {
  const [B, T] = headShape("rope", qkv, H, K, D), all = typeof pos === "number" ? [pos] : pos;
  const last = Math.max(...all);
  if (table.shape[1] !== D || last + T > table.shape[0]!) {
    throw new RangeError(
      `rope: table must be (>= ${last + T}, ${D}) for positions ${last}..${
        last + T - 1
      }, but it is (${table.shape})`,
    );
  }
  if (typeof pos !== "number") checkRows("rope", "positions", all.length, qkv);
  if (starts) checkStarts("rope", starts, B, T);
  if (isRecording() && qkv.buf.uses > 0) {
    throw new Error(
      `rope: qkv (${qkv.shape}) is turned in place, but another op has read it and needs its values for backward: call rope first`,
    );
  }
  const rows = B / all.length, bytes = BigInt(rows * T * (H + 2 * K) * D * bytesPerElement("act"));
  const turn = (address: Address, inverse: number) => {
    all.forEach((pos, i) => {
      const from = starts ? starts.address + BigInt(4 * i * rows * T) : 0n;
      k.rope(address + BigInt(i) * bytes, table.address, from, rows, T, pos, H, K, D, inverse);
    });
  };
  turn(qkv.address, 0);
  return record("rope", qkv, [qkv], () => turn(grad(qkv), 1), { inPlace: true });
}

/**
 * Divides each query and each key head by its root mean square and scales it by q_norm or k_norm, so that attention scores stay
 * bounded; values stay as they are. Call it before rope(). qkv (B, T, (H + 2K) * D), q_norm and k_norm (D) -> the shape of qkv
 */
export function qkNorm(qkv: Tensor, q_norm: Tensor, k_norm: Tensor, heads: Heads, eps: number): Tensor {
  const { n_head: H, n_kv_head: K, head_dim: D } = heads, [B, T] = headShape("qkNorm", qkv, H, K, D);
  for (const w of [q_norm, k_norm]) {
    checkWeight("qkNorm", w);
    if (w.size === D) continue;
    throw new RangeError(
      `qkNorm: q_norm and k_norm must be (${D}) for heads of ${D}, but one is (${w.shape})`,
    );
  }
  const N = B * T, stride = (H + 2 * K) * D, head = D * bytesPerElement("act");
  const out = empty(qkv.shape), rstd = take(4 * N * (H + K)); // 1 / rms of each query head, then of each key head
  const kinds = [
    { w: q_norm, n: H, at: 0n, stats: rstd.address },
    { w: k_norm, n: K, at: BigInt(H * head), stats: rstd.address + BigInt(4 * N * H) },
  ];
  for (const { w, n, at, stats } of kinds) {
    k.rmsnorm_forward(out.address + at, stats, qkv.address + at, w.address, N * n, D, n, stride, eps);
  }
  const values = BigInt((H + K) * head);
  k.copy_columns(out.address + values, qkv.address + values, N, K * D, stride, stride, 0);
  return record("qkNorm", out, [qkv, q_norm, k_norm], () => {
    const d = grad(out); // becomes the gradient of qkv: that of the values is there already
    for (const { w, n, at, stats } of kinds) {
      weightGrad(w, (dw, add) => {
        const x = qkv.address + at;
        k.rmsnorm_backward(d + at, dw, 0n, d + at, x, w.address, stats, N * n, D, n, stride, 0, add);
      });
    }
    passOn(qkv, out);
  });
}

/** Keys and values of earlier tokens, of one layer: for each row of the batch a tensor (K, T_max, D), T_max its own. */
export type LayerCache = { k: readonly Tensor[]; v: readonly Tensor[] };

/**
 * Causal softmax(q k^T / sqrt(D)) v, query head h reading key/value head floor(h K / H). starts (B, T) int32: where in its row the
 * document of each token begins, which is all that the token sees; as Inputs fills it, it never falls along a row. Without it a
 * row is one document. qkv (B, T, (H + 2K) * D) -> (B, T, H * D)
 */
export function attention(
  qkv: Tensor,
  { n_head: H, n_kv_head: K, head_dim: D }: Heads,
  starts?: Tensor,
): Tensor {
  const [B, T] = headShape("attention", qkv, H, K, D), from = starts?.address ?? 0n;
  if (starts) checkStarts("attention", starts, B, T);
  const out = empty([B, T, H * D]);
  const lse = take(4 * B * H * T); // log of each row's softmax denominator
  k.attention_forward(out.address, lse.address, qkv.address, from, B, T, H, K, D);
  out.buf.uses++; // by the backward pass below
  return record("attention", out, [qkv], () => {
    const dqkv = take(qkv.bytes), delta = take(lse.bytes);
    k.attention_backward(
      dqkv.address,
      delta.address,
      grad(out),
      out.address,
      lse.address,
      qkv.address,
      from,
      B,
      T,
      H,
      K,
      D,
    );
    release(delta);
    give(qkv, dqkv);
  }, { flops: 2 * B * H * D * T * (T + 1) }); // of one document a row: a kernel may leave out most of it
}

/**
 * attention() for generation: the T tokens of row b of qkv stand at positions pos[b].. and see everything in that row's
 * cache; no gradient.
 */
export function cachedAttention(
  qkv: Tensor,
  { n_head: H, n_kv_head: K, head_dim: D }: Heads,
  cache: LayerCache,
  pos: readonly number[],
): Tensor {
  const [B, T] = headShape("cachedAttention", qkv, H, K, D);
  for (const [what, n] of [["positions", pos], ["keys", cache.k], ["values", cache.v]] as const) {
    checkRows("cachedAttention", what, n.length, qkv);
  }
  const out = empty([B, T, H * D]), act = bytesPerElement("act");
  for (let b = 0; b < B; b++) {
    const keys = cache.k[b]!, values = cache.v[b]!, T_max = keys.shape[1]!, wanted = [K, T_max, D].join();
    if (keys.shape.join() !== wanted || values.shape.join() !== wanted || pos[b]! + T > T_max) {
      throw new RangeError(
        `cachedAttention: cache must be (${K}, >= ${pos[b]! + T}, ${D}) to go on from ${
          pos[b]
        } with qkv (${qkv.shape}), ` +
          `but keys are (${keys.shape}) and values (${values.shape})`,
      );
    }
    const to = out.address + BigInt(b * T * H * D * act), from = BigInt(b * T * (H + 2 * K) * D * act);
    k.attention_cached(to, keys.address, values.address, qkv.address + from, 1, T, pos[b]!, T_max, H, K, D);
  }
  return record("attention_cached", out, [qkv], () => {
    throw new Error("cachedAttention: there is no backward pass; use attention()");
  });
}

/** silu(gate) * up. gate_up (..., 2F), gates first -> (..., F) */
export function swiglu(gate_up: Tensor): Tensor {
  const F = gate_up.shape.at(-1)! / 2, N = gate_up.size / (2 * F);
  checkActivation("swiglu", "x", gate_up);
  if (!Number.isInteger(F)) {
    throw new RangeError(
      `swiglu: the last axis must be even to hold gates and ups, but x is (${gate_up.shape})`,
    );
  }
  const out = empty([...gate_up.shape.slice(0, -1), F]);
  k.swiglu_forward(out.address, gate_up.address, N, F);
  return record("swiglu", out, [gate_up], () => {
    swigluBackward(gate_up, grad(out), 0n);
  });
}

/** Gives gate_up its gradient given dh, the gradient of swiglu's output, which is written to again if not 0. */
function swigluBackward(gate_up: Tensor, dh: Address, again: Address): void {
  const F = gate_up.shape.at(-1)! / 2, N = gate_up.size / (2 * F);
  // The gradient takes the place of its input if that is an activation that no other op reads.
  const inPlace = gate_up.buf.needsGrad && gate_up.buf.uses === 1 && !debug.on;
  const block = inPlace ? gate_up.buf.block : take(gate_up.bytes);
  k.swiglu_backward(block.address, again, dh, gate_up.address, N, F);
  give(gate_up, block);
}

// ---- fused pairs that need not keep what lies between them, since backward makes it again at the cost of one write

/**
 * linear(rmsnorm(x, norm, eps), w). x (..., C), norm (C), w (OUT, C) -> (..., OUT). keep: hold the normalised rows for
 * backward; otherwise the backward pass of rmsnorm writes them again before the gradient of w needs them. adapter: as in linear().
 */
export function normLinear(
  x: Tensor,
  norm: Tensor,
  w: Tensor,
  eps: number,
  keep = false,
  adapter?: Adapter,
): Tensor {
  const [OUT, C] = matrix("normLinear", w), N = x.size / C;
  checkActivation("normLinear", "x", x);
  checkWeight("normLinear", norm);
  if (x.shape.at(-1) !== C || norm.size !== C) {
    throw new RangeError(
      `normLinear: x must be (..., ${C}) and norm (${C}) for w (${w.shape}), but they are (${x.shape}) and (${norm.shape})`,
    );
  }
  const out = empty([...x.shape.slice(0, -1), OUT]);
  const rstd = take(4 * N), low = lowRank("normLinear", w, adapter, N), rows = take(x.bytes);
  const normalise = (to: Block) =>
    k.rmsnorm_forward(to.address, rstd.address, x.address, norm.address, N, C, 1, C, eps);
  normalise(rows);
  multiply(out.address, rows.address, w, 0n, N, low);
  if (!keep) release(rows);
  return record("normLinear", out, [x, norm, w, ...weightsOf(low)], () => {
    const again = keep ? rows : take(x.bytes);
    if (low) outerGrad(low, grad(out), N);
    if (x.buf.needsGrad || norm.buf.needsGrad) {
      const drows = take(x.bytes);
      inputGrad(drows.address, grad(out), w, N, 0, low);
      rmsnormBackward(x, norm, rstd, drows.address, keep ? 0n : again.address);
      release(drows);
    } else if (!keep) normalise(again);
    productGrad(w, grad(out), again.address, N);
    if (low) innerGrad(low, again.address, N);
    release(again);
  }, { flops: productFlops(w, N, low) });
}

/**
 * linear(swiglu(gate_up), w, residual). gate_up (..., 2F), w (C, F), residual (..., C) -> (..., C). keep as in normLinear():
 * otherwise the backward pass of swiglu writes its output again. adapter: as in linear().
 */
export function swigluLinear(
  gate_up: Tensor,
  w: Tensor,
  residual: Tensor,
  keep = false,
  adapter?: Adapter,
): Tensor {
  const [C, F] = matrix("swigluLinear", w), N = gate_up.size / (2 * F);
  checkActivation("swigluLinear", "gate_up", gate_up);
  checkActivation("swigluLinear", "residual", residual);
  if (gate_up.shape.at(-1) !== 2 * F || residual.size !== N * C) {
    throw new RangeError(
      `swigluLinear: gate_up must be (..., ${
        2 * F
      }) and residual (..., ${C}) for w (${w.shape}), but they are (${gate_up.shape}) and (${residual.shape})`,
    );
  }
  const out = empty([...gate_up.shape.slice(0, -1), C]);
  const low = lowRank("swigluLinear", w, adapter, N), h = take(gate_up.bytes / 2); // (N, F)
  k.swiglu_forward(h.address, gate_up.address, N, F);
  multiply(out.address, h.address, w, residual.address, N, low);
  if (!keep) release(h);
  return record("swigluLinear", out, [gate_up, w, residual, ...weightsOf(low)], () => {
    const dh = take(h.bytes), again = keep ? h : take(h.bytes);
    if (low) outerGrad(low, grad(out), N);
    inputGrad(dh.address, grad(out), w, N, 0, low);
    swigluBackward(gate_up, dh.address, keep ? 0n : again.address);
    release(dh);
    productGrad(w, grad(out), again.address, N);
    if (low) innerGrad(low, again.address, N);
    release(again);
    passOn(residual, out);
  }, { flops: productFlops(w, N, low) });
}

/**
 * The whole feed-forward block, x + linear(swiglu(linear(rmsnorm(x), gate_up)), down), that keeps nothing but x: backward
 * repeats the norm and the gate/up product, half again the block's forward FLOPs. x (..., C), gate_up (2F, C), down (C, F).
 * adapters: of the two, as in linear().
 */
export function feedForward(
  x: Tensor,
  norm: Tensor,
  gate_up: Tensor,
  down: Tensor,
  eps: number,
  adapters: { gate_up_proj?: Adapter; down_proj?: Adapter } = {},
): Tensor {
  const [F2, C] = matrix("feedForward", gate_up), N = x.size / C, F = F2 / 2, act = bytesPerElement("act");
  matrix("feedForward", down);
  checkActivation("feedForward", "x", x);
  checkWeight("feedForward", norm);
  if (x.shape.at(-1) !== C || norm.size !== C || down.shape.join() !== `${C},${F}`) {
    throw new RangeError(
      `feedForward: x must be (..., ${C}), norm (${C}) and down (${C},${F}) for gate_up (${gate_up.shape}), but they are ` +
        `(${x.shape}), (${norm.shape}) and (${down.shape})`,
    );
  }
  const out = empty(x.shape), rstd = take(4 * N);
  const low = lowRank("feedForward", gate_up, adapters.gate_up_proj, N);
  const lowDown = lowRank("feedForward", down, adapters.down_proj, N);
  const gates = () => { // the normalised rows (N, C) and gates and ups (N, 2F)
    const rows = take(x.bytes), gu = take(N * F2 * act);
    k.rmsnorm_forward(rows.address, rstd.address, x.address, norm.address, N, C, 1, C, eps);
    multiply(gu.address, rows.address, gate_up, 0n, N, low);
    return { rows, gu };
  };
  const { rows, gu } = gates(), h = take(N * F * act);
  k.swiglu_forward(h.address, gu.address, N, F);
  multiply(out.address, h.address, down, x.address, N, lowDown);
  for (const block of [h, gu, rows]) release(block);
  const inputs = [x, norm, gate_up, down, ...weightsOf(low), ...weightsOf(lowDown)];
  return record("feedForward", out, inputs, () => {
    const { rows, gu } = gates(), dh = take(N * F * act), h = take(N * F * act);
    if (lowDown) outerGrad(lowDown, grad(out), N);
    inputGrad(dh.address, grad(out), down, N, 0, lowDown);
    k.swiglu_backward(gu.address, h.address, dh.address, gu.address, N, F); // gu becomes its own gradient
    release(dh);
    productGrad(down, grad(out), h.address, N);
    if (lowDown) innerGrad(lowDown, h.address, N);
    release(h);
    const drows = take(x.bytes);
    productGrad(gate_up, gu.address, rows.address, N);
    if (low) outerGrad(low, gu.address, N);
    inputGrad(drows.address, gu.address, gate_up, N, 0, low);
    if (low) innerGrad(low, rows.address, N);
    release(gu);
    release(rows);
    passOn(x, out); // the residual; rmsnorm adds to it
    rmsnormBackward(x, norm, rstd, drows.address, 0n);
    release(drows);
  }, { flops: productFlops(gate_up, N, low) + productFlops(down, N, lowDown) });
}

// ---- element-wise ops. Where backward may, it writes over the gradient that it was given, which becomes that of x.

/** a + b, of equal shapes; or the sum of two losses, of which both then have the gradient 1. */
export function add(a: Tensor, b: Tensor): Tensor {
  if (isLoss(a) && isLoss(b)) return addLosses(a, b);
  checkActivation("add", "a", a);
  checkActivation("add", "b", b);
  if (a.size !== b.size) {
    throw new RangeError(`add: a (${a.shape}) and b (${b.shape}) must have the same shape`);
  }
  const out = empty(a.shape);
  k.add(out.address, a.address, b.address, BigInt(a.size));
  return record("add", out, [a, b], () => {
    if (b.buf.needsGrad) {
      const copy = take(b.bytes);
      k.copy_async(copy.address, grad(out), BigInt(b.bytes));
      give(b, copy);
    }
    passOn(a, out);
  });
}

function addLosses(a: Tensor, b: Tensor): Tensor {
  const out = empty([1], "f32");
  k.sum_scaled(out.address, a.address, 1, 1, 0);
  k.sum_scaled(out.address, b.address, 1, 1, 1);
  return record("add", out, [a, b], () => {
    a.buf.isLoss = b.buf.isLoss = true; // what made them runs next
  });
}

/** a * b, element by element, of equal shapes. */
export function mul(a: Tensor, b: Tensor): Tensor {
  checkActivation("mul", "a", a);
  checkActivation("mul", "b", b);
  if (a.size !== b.size) {
    throw new RangeError(`mul: a (${a.shape}) and b (${b.shape}) must have the same shape`);
  }
  const out = empty(a.shape), n = BigInt(a.size);
  k.mul(out.address, a.address, b.address, n);
  return record("mul", out, [a, b], () => {
    if (b.buf.needsGrad) {
      const db = take(b.bytes);
      k.mul(db.address, grad(out), a.address, n);
      give(b, db);
    }
    k.mul(grad(out), grad(out), b.address, n);
    passOn(a, out);
  });
}

/** factor * x. */
export function scale(x: Tensor, factor: number): Tensor {
  return unary("scale", x, UNARY.scale, factor);
}

/** x * Phi(x), Phi the normal distribution: PyTorch's gelu(x). */
export function gelu(x: Tensor): Tensor {
  return unary("gelu", x, UNARY.gelu);
}

/** x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2: PyTorch's gelu(x, approximate="tanh"), GPT-2's. */
export function geluTanh(x: Tensor): Tensor {
  return unary("geluTanh", x, UNARY.gelu_tanh);
}

/** max(x, 0)^2. */
export function reluSquared(x: Tensor): Tensor {
  return unary("reluSquared", x, UNARY.relu_squared);
}

/** 1 / (1 + e^-x). mul(x, sigmoid(x)) is silu. */
export function sigmoid(x: Tensor): Tensor {
  return unary("sigmoid", x, UNARY.sigmoid);
}

/** cap * tanh(x / cap): x where it is small, and never beyond -cap and cap. A cap of 1 is tanh. */
export function softcap(x: Tensor, cap: number): Tensor {
  if (!(cap > 0)) throw new RangeError(`softcap: cap must be above 0, but it is ${cap}`);
  return unary("softcap", x, UNARY.softcap, cap);
}

function unary(name: string, x: Tensor, kind: number, parameter = 0): Tensor {
  checkActivation(name, "x", x);
  const out = empty(x.shape), n = BigInt(x.size);
  k.unary_forward(out.address, x.address, kind, parameter, n);
  return record(name, out, [x], () => {
    k.unary_backward(grad(out), grad(out), x.address, kind, parameter, n);
    passOn(x, out);
  });
}

/**
 * x with each value dropped, to 0, with probability rate, and the others divided by 1 - rate. Nothing is kept: backward makes
 * the mask again. noGrad() drops nothing, and so evaluation and generation do not; for the seed see beginMasks().
 */
export function dropout(x: Tensor, rate: number): Tensor {
  checkActivation("dropout", "x", x);
  if (!(rate >= 0 && rate < 1)) {
    throw new RangeError(`dropout: rate must be at least 0 and below 1, but it is ${rate}`);
  }
  const key = nextMask();
  if (key === undefined || rate === 0) return x;
  const out = empty(x.shape), n = BigInt(x.size);
  k.dropout(out.address, x.address, n, rate, key);
  return record("dropout", out, [x], () => {
    k.dropout(grad(out), grad(out), n, rate, key);
    passOn(x, out);
  });
}

// ---- ops on rows, N of C, and on their columns

/** x + b, added to each row. x (..., C), b (C) -> (..., C) */
export function bias(x: Tensor, b: Tensor): Tensor {
  const C = x.shape.at(-1)!, N = x.size / C;
  checkActivation("bias", "x", x);
  checkWeight("bias", b);
  if (b.size !== C) {
    throw new RangeError(`bias: b must be (${C}) to be added to x (${x.shape}), but it is (${b.shape})`);
  }
  const out = empty(x.shape);
  k.bias_forward(out.address, x.address, b.address, N, C);
  return record("bias", out, [x, b], () => {
    if (b.buf.needsGrad) {
      const add = claim(b);
      k.bias_backward(grad(b), grad(out), N, C, add);
    }
    passOn(x, out);
  });
}

/** (x - mean) / sqrt(variance + eps) * w + b over the last axis. x (..., C), w and b (C) -> (..., C) */
export function layernorm(x: Tensor, w: Tensor, b: Tensor, eps: number): Tensor {
  const C = x.shape.at(-1)!, N = x.size / C;
  checkActivation("layernorm", "x", x);
  checkWeight("layernorm", w);
  checkWeight("layernorm", b);
  if (w.size !== C || b.size !== C) {
    throw new RangeError(
      `layernorm: w and b must be (${C}) to scale x (${x.shape}), but they are (${w.shape}) and (${b.shape})`,
    );
  }
  const out = empty(x.shape), stats = take(8 * N); // mean and 1 / deviation of each row
  k.layernorm_forward(out.address, stats.address, x.address, w.address, b.address, N, C, eps);
  return record("layernorm", out, [x, w, b], () => {
    const d = grad(out);
    weightGrad(w, (dw, addW) =>
      weightGrad(b, (db, addB) => {
        k.layernorm_backward(d, dw, db, d, x.address, w.address, stats.address, N, C, addW, addB);
      }));
    passOn(x, out);
  });
}

/** e^x / sum(e^x) over the last axis. x (..., C) -> (..., C) */
export function softmax(x: Tensor): Tensor {
  const C = x.shape.at(-1)!, N = x.size / C;
  checkActivation("softmax", "x", x);
  const out = empty(x.shape);
  k.softmax_forward(out.address, x.address, N, C);
  out.buf.uses++; // by the backward pass below
  return record("softmax", out, [x], () => {
    k.softmax_backward(grad(out), grad(out), out.address, N, C);
    passOn(x, out);
  });
}

/** log(sum(e^x)) over the first V columns, all unless said. x (..., C) -> (..., 1) */
export function logsumexp(x: Tensor, V: number = x.shape.at(-1)!): Tensor {
  const C = x.shape.at(-1)!, N = x.size / C;
  checkActivation("logsumexp", "x", x);
  if (V > C) throw new RangeError(`logsumexp: x (${x.shape}) must have ${V} columns at least`);
  const out = empty([...x.shape.slice(0, -1), 1]), lse = take(4 * N); // the same in float
  k.logsumexp_forward(out.address, lse.address, x.address, N, V, C);
  return record("logsumexp", out, [x], () => {
    const dx = take(x.bytes);
    k.logsumexp_backward(dx.address, grad(out), lse.address, x.address, N, V, C);
    give(x, dx);
  });
}

/** Columns from, from + 1, ... of the last axis. x (..., C) -> (..., n) */
export function slice(x: Tensor, from: number, n: number): Tensor {
  const C = x.shape.at(-1)!, N = x.size / C, at = BigInt(from * bytesPerElement("act"));
  checkActivation("slice", "x", x);
  if (!(from >= 0 && n >= 1 && from + n <= C)) {
    throw new RangeError(`slice: x (${x.shape}) must have the columns ${from}..${from + n - 1}`);
  }
  const out = empty([...x.shape.slice(0, -1), n]);
  k.copy_columns(out.address, x.address + at, N, n, n, C, 0);
  return record("slice", out, [x], () => {
    if (claim(x) === 0) k.fill_zero(grad(x), BigInt(x.bytes));
    k.copy_columns(grad(x) + at, grad(out), N, n, C, n, 1);
  });
}

/** The columns of all parts, side by side. parts (..., C_i) of equal other sizes -> (..., sum of C_i) */
export function concat(parts: readonly Tensor[]): Tensor {
  const [first] = parts;
  if (!first) throw new RangeError("concat: there must be a part at least");
  const before = first.shape.slice(0, -1), widths = parts.map((x) => x.shape.at(-1)!);
  for (const x of parts) {
    checkActivation("concat", "a part", x);
    if (x.shape.slice(0, -1).join() === before.join()) continue;
    throw new RangeError(
      `concat: parts must have equal sizes but for the last, but are (${first.shape}) and (${x.shape})`,
    );
  }
  const C = widths.reduce((a, b) => a + b), N = first.size / widths[0]!, act = bytesPerElement("act");
  const out = empty([...before, C]);
  const eachPart = (f: (x: Tensor, width: number, at: bigint) => void) => {
    let at = 0;
    parts.forEach((x, i) => {
      f(x, widths[i]!, BigInt(at * act));
      at += widths[i]!;
    });
  };
  eachPart((x, width, at) => k.copy_columns(out.address + at, x.address, N, width, C, width, 0));
  return record("concat", out, parts, () =>
    eachPart((x, width, at) => {
      if (!x.buf.needsGrad) return;
      const dx = take(x.bytes);
      k.copy_columns(dx.address, grad(out) + at, N, width, width, C, 0);
      give(x, dx);
    }));
}

// ---- losses: one float32 value each, where backward() may start

/** Mean of all values, as a loss whose gradient is multiplied by grad_scale. x (...) -> (1) float */
export function mean(x: Tensor, grad_scale: number): Tensor {
  checkActivation("mean", "x", x);
  const n = x.size, isFloat = bytesPerElement("act") === 4, wide = isFloat ? undefined : take(4 * n);
  if (wide) k.convert(wide.address, x.address, F32, BF16, BigInt(n));
  const out = empty([1], "f32");
  k.sum_scaled(out.address, wide?.address ?? x.address, n, 1 / n, 0);
  if (wide) release(wide);
  return record("mean", out, [x], () => {
    const dx = take(x.bytes), wide = isFloat ? undefined : take(4 * n);
    k.init_constant(wide?.address ?? dx.address, BigInt(n), grad_scale / n);
    if (wide) k.convert(dx.address, wide.address, BF16, F32, BigInt(n));
    if (wide) release(wide);
    give(x, dx);
  });
}

/**
 * Mean cross entropy of softmax(logits) over the first vocab_size columns at the targets, in nats; a target < 0 has no loss.
 * linearCrossEntropy() needs far less memory, as it never has all logits. logits (..., V), targets (...) int32 -> (1) float
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  { vocab_size, grad_scale }: Pick<HeadOptions, "vocab_size" | "grad_scale">,
): Tensor {
  const V = logits.shape.at(-1)!, N = logits.size / V;
  checkActivation("crossEntropy", "logits", logits);
  checkIds("crossEntropy", "targets", targets);
  if (targets.size !== N || vocab_size > V) {
    throw new RangeError(
      `crossEntropy: logits must be (N, ${vocab_size} or more) with N targets, but they are (${logits.shape}) and (${targets.shape})`,
    );
  }
  const losses = take(4 * N), loss = empty([1], "f32");
  k.cross_entropy(logits.address, losses.address, targets.address, N, vocab_size, V, 0, 0);
  k.sum_scaled(loss.address, losses.address, N, 1 / N, 0);
  return record("crossEntropy", loss, [logits], () => {
    // The gradient takes the place of the logits if no other op reads them.
    const inPlace = logits.buf.uses === 1 && !debug.on,
      block = inPlace ? logits.buf.block : take(logits.bytes);
    if (!inPlace) k.copy_async(block.address, logits.address, BigInt(logits.bytes));
    const scale = grad_scale / N;
    k.cross_entropy(block.address, losses.address, targets.address, N, vocab_size, V, scale, 1);
    give(logits, block);
  });
}

/** Options of linearCrossEntropy(). */
export type HeadOptions = {
  vocab_size: number; // columns of the logits that count; w may have more rows (padding)
  head_chunk: number; // rows whose logits exist at a time
  grad_scale: number; // multiplies the gradient: 1 / gradient_accumulation_steps
};

/**
 * Mean cross entropy of softmax(x w^T) at the targets, in nats. x (..., C), w (V_padded, C), targets (...) int32 -> (1) float.
 * A target < 0 has no loss, but the mean is over all N rows. The logits are made, used and overwritten by their own gradient
 * chunk by chunk, so the gradients of x and w are computed here; backward only hands them over.
 */
export function linearCrossEntropy(x: Tensor, w: Tensor, targets: Tensor, options: HeadOptions): Tensor {
  const [V_padded, C] = matrix("linearCrossEntropy", w), N = x.size / C;
  checkActivation("linearCrossEntropy", "x", x);
  checkIds("linearCrossEntropy", "targets", targets);
  if (targets.size !== N || x.shape.at(-1) !== C || options.vocab_size > V_padded) {
    throw new RangeError(
      `linearCrossEntropy: x must be (N, ${C}) with N targets and w at least (${options.vocab_size}, ${C}), ` +
        `but x is (${x.shape}), targets (${targets.shape}), w (${w.shape})`,
    );
  }
  const train = isRecording(), chunk = Math.min(N, options.head_chunk), act = bytesPerElement("act");
  const losses = take(4 * N), logits = take(chunk * V_padded * act);
  const dx = train ? take(x.bytes) : undefined;
  for (let row = 0; row < N; row += chunk) {
    const n = Math.min(chunk, N - row), offset = BigInt(row * C * act), offset4 = BigInt(4 * row);
    multiply(logits.address, x.address + offset, w, 0n, n);
    k.cross_entropy(
      logits.address,
      losses.address + offset4,
      targets.address + offset4,
      n,
      options.vocab_size,
      V_padded,
      options.grad_scale / N,
      train ? 1 : 0,
    );
    if (!dx) continue;
    inputGrad(dx.address + offset, logits.address, w, n, 0);
    productGrad(w, logits.address, x.address + offset, n);
  }
  const loss = empty([1], "f32");
  k.sum_scaled(loss.address, losses.address, N, 1 / N, 0);
  release(logits);
  release(losses);
  return record("linearCrossEntropy", loss, [x, w], () => give(x, dx!), {
    flops: (train ? 6 : 2) * N * C * V_padded,
  });
}

/** Whether t is what mean(), crossEntropy(), linearCrossEntropy() and add() of them give. */
function isLoss(t: Tensor): boolean {
  return t.dtype === "f32" && t.size === 1;
}

function matrix(op: string, w: Tensor): [rows: number, columns: number] {
  checkWeight(op, w);
  if (w.shape.length !== 2) throw new RangeError(`${op}: w must be a matrix, but it is (${w.shape})`);
  return [w.shape[0]!, w.shape[1]!];
}

// A parameter has a float32 gradient, which ops write where it is a weight. Everything else has an act gradient, in memory
// that ops pass on and reuse: where activations go, a parameter would be damaged.

function checkWeight(op: string, w: Tensor): void {
  if (w.dtype === "act" && (w.buf.init || !w.buf.needsGrad)) return;
  throw new TypeError(`${op}: w must be a parameter, but it is a computed ${w.dtype} tensor (${w.shape})`);
}

function checkActivation(op: string, what: string, x: Tensor): void {
  if (x.dtype !== "act") throw new TypeError(`${op}: ${what} must be act, but it is ${x.dtype} (${x.shape})`);
  if (!x.buf.init) return;
  throw new TypeError(
    `${op}: ${what} must be computed by an op, but it is the parameter ${x.buf.name} (${x.shape}), which can only be a weight w`,
  );
}

function checkIds(op: string, what: string, ids: Tensor): void {
  if (ids.dtype === "i32") return;
  throw new TypeError(`${op}: ${what} must be i32, but they are ${ids.dtype} (${ids.shape})`);
}

function checkStarts(op: string, starts: Tensor, B: number, T: number): void {
  checkIds(op, "starts", starts);
  if (starts.shape.join() === [B, T].join()) return;
  throw new RangeError(
    `${op}: starts must be (${B},${T}), one for each token, but they are (${starts.shape})`,
  );
}

function checkRows(op: string, what: string, n: number, qkv: Tensor): void {
  if (n === qkv.shape[0]) return;
  throw new RangeError(`${op}: there are ${n} ${what} for the ${qkv.shape[0]} rows of qkv (${qkv.shape})`);
}

function headShape(op: string, qkv: Tensor, H: number, K: number, D: number): [B: number, T: number] {
  const [B, T, width] = qkv.shape;
  checkActivation(op, "qkv", qkv);
  if (qkv.shape.length !== 3 || width !== (H + 2 * K) * D) {
    throw new RangeError(
      `${op}: qkv must be (B, T, ${
        (H + 2 * K) * D
      }) for ${H} + 2 * ${K} heads of ${D}, but it is (${qkv.shape})`,
    );
  }
  return [B!, T!];
}
