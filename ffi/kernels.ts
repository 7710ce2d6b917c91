// One typed wrapper per function of kernels.h that queues work, so that each call site is monomorphic and takes the fast
// FFI path (5-10 ns). Shapes, units and meaning stand in kernels.h; the order of arguments is the same.
// Every wrapper throws KernelError with the library's own text when the call fails.
import { check, s } from "./library.ts";
import type { Address } from "./symbols.ts";

// ---- memory

export function copy_async(dst: Address, src: Address, bytes: bigint): void {
  check(s.copy_async(dst, src, bytes));
}

export function fill_zero(dst: Address, bytes: bigint): void {
  check(s.fill_zero(dst, bytes));
}

export function convert(dst: Address, src: Address, dst_type: number, src_type: number, n: bigint): void {
  check(s.convert(dst, src, dst_type, src_type, n));
}

// ---- random numbers
export function init_normal(dst: Address, n: bigint, std: number, seed: bigint, offset: bigint): void {
  check(s.init_normal(dst, n, std, seed, offset));
}

export function init_constant(dst: Address, n: bigint, value: number): void {
  check(s.init_constant(dst, n, value));
}

// ---- embedding: rows of a table
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
export function swiglu_forward(h: Address, gate_up: Address, N: number, F: number): void {
  check(s.swiglu_forward(h, gate_up, N, F));
}

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
export function add(out: Address, a: Address, b: Address, n: bigint): void {
  check(s.add(out, a, b, n));
}

// ---- cross entropy: softmax and loss, the gradient in place of the logits
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

export function sum_scaled(out: Address, x: Address, n: number, scale: number, accumulate: number): void {
  check(s.sum_scaled(out, x, n, scale, accumulate));
}

// ---- optimizer: everything reads its scalars from the control block
export function grad_sumsq(sumsq: Address, grad: Address, n: bigint, accumulate: number): void {
  check(s.grad_sumsq(sumsq, grad, n, accumulate));
}

export function step_control(
  control: Address,
  sumsq: Address,
  grad_clip: number,
  beta1: number,
  beta2: number,
): void {
  check(s.step_control(control, sumsq, grad_clip, beta1, beta2));
}

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
