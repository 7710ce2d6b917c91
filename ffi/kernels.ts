// One typed wrapper per function of kernels.h that queues work, so that each call site is monomorphic and takes the fast
// FFI path (5-10 ns). Shapes, units and meaning stand in kernels.h; the order of arguments is the same.
// Every wrapper throws KernelError with the library's own text when the call fails.
import { check, s } from "./library.ts";
import type { Address } from "./symbols.ts";

// ---- memory

/** Queues a copy of bytes between addresses on the device, or in pinned memory of the host. */
export function copy_async(dst: Address, src: Address, bytes: bigint): void {
  check(s.copy_async(dst, src, bytes));
}

/** Sets bytes at dst to 0. */
export function fill_zero(dst: Address, bytes: bigint): void {
  check(s.fill_zero(dst, bytes));
}

/** dst[i] = src[i] for i < n, rounded to nearest even. The types are F32 or BF16. */
export function convert(dst: Address, src: Address, dst_type: number, src_type: number, n: bigint): void {
  check(s.convert(dst, src, dst_type, src_type, n));
}

// ---- random numbers
/** dst (n) = std * z, float, z standard normal: element i follows from seed and offset + i alone. */
export function init_normal(dst: Address, n: bigint, std: number, seed: bigint, offset: bigint): void {
  check(s.init_normal(dst, n, std, seed, offset));
}

/** dst (n) = value, float. */
export function init_constant(dst: Address, n: bigint, value: number): void {
  check(s.init_constant(dst, n, value));
}

// ---- embedding: rows of a table
/** out (N, C) = weight (V, C) at ids (N). */
export function embedding_forward(
  out: Address,
  ids: Address,
  weight: Address,
  N: number,
  V: number,
  C: number,
): void {
  check(s.embedding_forward(out, ids, weight, N, V, C));
}

/** dweight (V, C) = the sum of the rows of dout (N, C) by their ids (N). */
export function embedding_backward(
  dweight: Address,
  dout: Address,
  ids: Address,
  N: number,
  V: number,
  C: number,
  accumulate: number,
): void {
  check(s.embedding_backward(dweight, dout, ids, N, V, C, accumulate));
}

// ---- rmsnorm: out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), over the last axis
/** out, x (N, C); weight (C); rstd (N) is kept for backward. */
export function rmsnorm_forward(
  out: Address,
  rstd: Address,
  x: Address,
  weight: Address,
  N: number,
  C: number,
  eps: number,
): void {
  check(s.rmsnorm_forward(out, rstd, x, weight, N, C, eps));
}

/** dx (N, C), dweight (C). out (N, C), where not 0, receives the forward result again. */
export function rmsnorm_backward(
  dx: Address,
  dweight: Address,
  out: Address,
  dout: Address,
  x: Address,
  weight: Address,
  rstd: Address,
  N: number,
  C: number,
  accumulate_dx: number,
  accumulate_dweight: number,
): void {
  check(s.rmsnorm_backward(dx, dweight, out, dout, x, weight, rstd, N, C, accumulate_dx, accumulate_dweight));
}

// ---- rope: rotates pairs (j, j + D/2) of each query and key head, in place
/** Rotates qkv (B, T, H + 2K, D) by rows pos + t of table (rows, D): cosines, sines. inverse 1 is the backward pass. */
export function rope(
  qkv: Address,
  table: Address,
  B: number,
  T: number,
  pos: number,
  H: number,
  K: number,
  D: number,
  inverse: number,
): void {
  check(s.rope(qkv, table, B, T, pos, H, K, D, inverse));
}

// ---- attention: causal, grouped-query, scale 1/sqrt(D), online softmax
/** out (B, T, H, D); qkv (B, T, H + 2K, D); lse (B, H, T) is kept for backward. */
export function attention_forward(
  out: Address,
  lse: Address,
  qkv: Address,
  B: number,
  T: number,
  H: number,
  K: number,
  D: number,
): void {
  check(s.attention_forward(out, lse, qkv, B, T, H, K, D));
}

/** Overwrites all of dqkv (B, T, H + 2K, D). delta (B, H, T) is scratch. */
export function attention_backward(
  dqkv: Address,
  delta: Address,
  dout: Address,
  out: Address,
  lse: Address,
  qkv: Address,
  B: number,
  T: number,
  H: number,
  K: number,
  D: number,
): void {
  check(s.attention_backward(dqkv, delta, dout, out, lse, qkv, B, T, H, K, D));
}

/** out (B, T, H, D) for T new tokens at pos, whose keys and values go to the caches (B, K, T_max, D) first. */
export function attention_cached(
  out: Address,
  k_cache: Address,
  v_cache: Address,
  qkv: Address,
  B: number,
  T: number,
  pos: number,
  T_max: number,
  H: number,
  K: number,
  D: number,
): void {
  check(s.attention_cached(out, k_cache, v_cache, qkv, B, T, pos, T_max, H, K, D));
}

// ---- linear: out = x weight^T (+ residual)
/** out, residual (N, OUT); x (N, IN); weight (OUT, IN). residual may be 0; it may not be out. */
export function linear_forward(
  out: Address,
  x: Address,
  weight: Address,
  residual: Address,
  N: number,
  IN: number,
  OUT: number,
): void {
  check(s.linear_forward(out, x, weight, residual, N, IN, OUT));
}

/** dx (N, IN) = dout (N, OUT) weight (OUT, IN). */
export function linear_dgrad(
  dx: Address,
  dout: Address,
  weight: Address,
  N: number,
  IN: number,
  OUT: number,
  accumulate: number,
): void {
  check(s.linear_dgrad(dx, dout, weight, N, IN, OUT, accumulate));
}

/** dweight (OUT, IN) = dout^T (N, OUT) x (N, IN). */
export function linear_wgrad(
  dweight: Address,
  dout: Address,
  x: Address,
  N: number,
  IN: number,
  OUT: number,
  accumulate: number,
): void {
  check(s.linear_wgrad(dweight, dout, x, N, IN, OUT, accumulate));
}

// ---- swiglu: h = silu(gate) * up
/** h (N, F); a row of gate_up (N, 2F) is F gates, then F ups. */
export function swiglu_forward(h: Address, gate_up: Address, N: number, F: number): void {
  check(s.swiglu_forward(h, gate_up, N, F));
}

/** dgate_up (N, 2F), which may be gate_up itself. h (N, F), where not 0, receives the forward result again. */
export function swiglu_backward(
  dgate_up: Address,
  h: Address,
  dh: Address,
  gate_up: Address,
  N: number,
  F: number,
): void {
  check(s.swiglu_backward(dgate_up, h, dh, gate_up, N, F));
}

// ---- add
/** out = a + b, each (n); out may be a or b. */
export function add(out: Address, a: Address, b: Address, n: bigint): void {
  check(s.add(out, a, b, n));
}

// ---- cross entropy: softmax and loss, the gradient in place of the logits
/**
 * losses (N), in nats, of logits (N, V_stride), whose columns from V on are padding, at targets (N), < 0 = no loss. backward 1:
 * logits become their gradient times grad_scale.
 */
export function cross_entropy(
  logits: Address,
  losses: Address,
  targets: Address,
  N: number,
  V: number,
  V_stride: number,
  grad_scale: number,
  backward: number,
): void {
  check(s.cross_entropy(logits, losses, targets, N, V, V_stride, grad_scale, backward));
}

/** out (1) = scale * the sum of x (n), in a fixed order. */
export function sum_scaled(out: Address, x: Address, n: number, scale: number, accumulate: number): void {
  check(s.sum_scaled(out, x, n, scale, accumulate));
}

// ---- optimizer: everything reads its scalars from the control block
/** sumsq (1), a double, = the sum of the squares of grad (n), in a fixed order. */
export function grad_sumsq(sumsq: Address, grad: Address, n: bigint, accumulate: number): void {
  check(s.grad_sumsq(sumsq, grad, n, accumulate));
}

/** Fills the control block from sumsq and the loss in it, and decides whether the update is skipped. grad_clip 0 = no clipping. */
export function step_control(
  control: Address,
  sumsq: Address,
  grad_clip: number,
  beta1: number,
  beta2: number,
): void {
  check(s.step_control(control, sumsq, grad_clip, beta1, beta2));
}

/** Updates weight, master, m and v (n) by grad (n); a skipped update changes nothing. On a CPU weight is master. */
export function adamw(
  weight: Address,
  master: Address,
  m: Address,
  v: Address,
  grad: Address,
  control: Address,
  n: bigint,
  beta1: number,
  beta2: number,
  eps: number,
  weight_decay: number,
): void {
  check(s.adamw(weight, master, m, v, grad, control, n, beta1, beta2, eps, weight_decay));
}
