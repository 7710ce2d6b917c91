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

// ---- frozen weights of two bytes beside float activations, on a CPU

/** out (N, C) = weight (V, C), bfloat16, at ids (N). */
export function embedding_forward_bf16(
  out: Address,
  ids: Address,
  weight: Address,
  N: number,
  V: number,
  C: number,
): void {
  check(s.embedding_forward_bf16(out, ids, weight, N, V, C));
}

/** out (N, OUT) = x (N, IN) weight (OUT, IN)^T (+ residual), of a bfloat16 weight. residual may be 0n. */
export function linear_forward_bf16(
  out: Address,
  x: Address,
  weight: Address,
  residual: Address,
  N: number,
  IN: number,
  OUT: number,
): void {
  check(s.linear_forward_bf16(out, x, weight, residual, N, IN, OUT));
}

/** dx (N, IN) = dout (N, OUT) weight (OUT, IN), or adds that, of a bfloat16 weight. */
export function linear_dgrad_bf16(
  dx: Address,
  dout: Address,
  weight: Address,
  N: number,
  IN: number,
  OUT: number,
  accumulate: number,
): void {
  check(s.linear_dgrad_bf16(dx, dout, weight, N, IN, OUT, accumulate));
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
/** out, x (N, C), of which `group` rows at a time stand side by side, `stride` from group to group; weight (C); rstd (N) is kept. */
export function rmsnorm_forward(
  out: Address,
  rstd: Address,
  x: Address,
  weight: Address,
  N: number,
  C: number,
  group: number,
  stride: number,
  eps: number,
): void {
  check(s.rmsnorm_forward(out, rstd, x, weight, N, C, group, stride, eps));
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
  group: number,
  stride: number,
  accumulate_dx: number,
  accumulate_dweight: number,
): void {
  check(
    s.rmsnorm_backward(
      dx,
      dweight,
      out,
      dout,
      x,
      weight,
      rstd,
      N,
      C,
      group,
      stride,
      accumulate_dx,
      accumulate_dweight,
    ),
  );
}

// ---- layernorm: out = (x - mean) * rstd * weight + bias, over the last axis
/** out, x (N, C); weight, bias (C); stats (N, 2) is kept for backward. */
export function layernorm_forward(
  out: Address,
  stats: Address,
  x: Address,
  weight: Address,
  bias: Address,
  N: number,
  C: number,
  eps: number,
): void {
  check(s.layernorm_forward(out, stats, x, weight, bias, N, C, eps));
}

/** dx (N, C), which may be dout; dweight, dbias (C). */
export function layernorm_backward(
  dx: Address,
  dweight: Address,
  dbias: Address,
  dout: Address,
  x: Address,
  weight: Address,
  stats: Address,
  N: number,
  C: number,
  accumulate_dweight: number,
  accumulate_dbias: number,
): void {
  check(
    s.layernorm_backward(
      dx,
      dweight,
      dbias,
      dout,
      x,
      weight,
      stats,
      N,
      C,
      accumulate_dweight,
      accumulate_dbias,
    ),
  );
}

// ---- rope: rotates pairs (j, j + D/2) of each query and key head, in place
/**
 * Rotates qkv (B, T, H + 2K, D) by rows pos + t - starts[b][t] of table (rows, D): cosines, sines. starts (B, T), or 0n = from the
 * first token on. inverse 1 is the backward pass.
 */
export function rope(
  qkv: Address,
  table: Address,
  starts: Address,
  B: number,
  T: number,
  pos: number,
  H: number,
  K: number,
  D: number,
  inverse: number,
): void {
  check(s.rope(qkv, table, starts, B, T, pos, H, K, D, inverse));
}

// ---- attention: causal, grouped-query, scale 1/sqrt(D), online softmax
/** out (B, T, H, D); qkv (B, T, H + 2K, D); lse (B, H, T) is kept for backward. starts (B, T), or 0n = one document a row. */
export function attention_forward(
  out: Address,
  lse: Address,
  qkv: Address,
  starts: Address,
  B: number,
  T: number,
  H: number,
  K: number,
  D: number,
): void {
  check(s.attention_forward(out, lse, qkv, starts, B, T, H, K, D));
}

/** Overwrites all of dqkv (B, T, H + 2K, D). delta (B, H, T) is scratch. */
export function attention_backward(
  dqkv: Address,
  delta: Address,
  dout: Address,
  out: Address,
  lse: Address,
  qkv: Address,
  starts: Address,
  B: number,
  T: number,
  H: number,
  K: number,
  D: number,
): void {
  check(s.attention_backward(dqkv, delta, dout, out, lse, qkv, starts, B, T, H, K, D));
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
/** out, residual (N, OUT); x (N, IN); weight (OUT, IN). residual may be 0, or out. */
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

/** out (N, N) = alpha x x^T + beta add, of x (N, C); of x (C, N), transposed, x^T x. add is symmetric, or 0n. */
export function gram(
  out: Address,
  x: Address,
  add: Address,
  N: number,
  C: number,
  transposed: number,
  alpha: number,
  beta: number,
): void {
  check(s.gram(out, x, add, N, C, transposed, alpha, beta));
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

// ---- element-wise: one value, or two, of which each output follows
/** out (n) = f(x), which may be x, for a kind of UNARY with its parameter. */
export function unary_forward(out: Address, x: Address, kind: number, parameter: number, n: bigint): void {
  check(s.unary_forward(out, x, kind, parameter, n));
}

/** dx (n) = dout * f'(x); it may be dout. */
export function unary_backward(
  dx: Address,
  dout: Address,
  x: Address,
  kind: number,
  parameter: number,
  n: bigint,
): void {
  check(s.unary_backward(dx, dout, x, kind, parameter, n));
}

/** out = a * b, each (n); out may be a or b. */
export function mul(out: Address, a: Address, b: Address, n: bigint): void {
  check(s.mul(out, a, b, n));
}

/** out (n) = x / (1 - rate), or 0 where the random words of key say so; out may be x. */
export function dropout(out: Address, x: Address, n: bigint, rate: number, key: bigint): void {
  check(s.dropout(out, x, n, rate, key));
}

// ---- rows and columns
/** out (N, C) = x + bias (C), added to each row; out may be x. */
export function bias_forward(out: Address, x: Address, bias: Address, N: number, C: number): void {
  check(s.bias_forward(out, x, bias, N, C));
}

/** dbias (C) = the sum of the rows of dout (N, C). */
export function bias_backward(dbias: Address, dout: Address, N: number, C: number, accumulate: number): void {
  check(s.bias_backward(dbias, dout, N, C, accumulate));
}

/** dst (N, columns) = src, whose rows are dst_stride and src_stride apart. */
export function copy_columns(
  dst: Address,
  src: Address,
  N: number,
  columns: number,
  dst_stride: number,
  src_stride: number,
  accumulate: number,
): void {
  check(s.copy_columns(dst, src, N, columns, dst_stride, src_stride, accumulate));
}

/** out (N, C) = softmax of each row of x; out may be x. */
export function softmax_forward(out: Address, x: Address, N: number, C: number): void {
  check(s.softmax_forward(out, x, N, C));
}

/** dx (N, C), which may be dout, from what softmax_forward() gave. */
export function softmax_backward(dx: Address, dout: Address, out: Address, N: number, C: number): void {
  check(s.softmax_backward(dx, dout, out, N, C));
}

/** out (N) = log(sum(e^x)) over the first V of V_stride columns; lse (N), the same in float, is kept for backward. */
export function logsumexp_forward(
  out: Address,
  lse: Address,
  x: Address,
  N: number,
  V: number,
  V_stride: number,
): void {
  check(s.logsumexp_forward(out, lse, x, N, V, V_stride));
}

/** dx (N, V_stride), which may be x; 0 in columns from V on. */
export function logsumexp_backward(
  dx: Address,
  dout: Address,
  lse: Address,
  x: Address,
  N: number,
  V: number,
  V_stride: number,
): void {
  check(s.logsumexp_backward(dx, dout, lse, x, N, V, V_stride));
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

/** weight (n) = master (n) rounded; rest (n, 16 bits) and ties (n bits) what that leaves. On a CPU weight is master. */
export function split_master(
  weight: Address,
  rest: Address,
  ties: Address,
  master: Address,
  n: bigint,
): void {
  check(s.split_master(weight, rest, ties, master, n));
}

/** master (n), with all its bits, of what split_master() made of it. */
export function join_master(master: Address, weight: Address, rest: Address, ties: Address, n: bigint): void {
  check(s.join_master(master, weight, rest, ties, n));
}

/** Updates the masters (n), kept as split_master() does, m and v by grad (n); a skipped update changes nothing. */
export function adamw(
  weight: Address,
  rest: Address,
  ties: Address,
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
  check(s.adamw(weight, rest, ties, m, v, grad, control, n, beta1, beta2, eps, weight_decay));
}

/** m (n) = its mixture with grad (n), which becomes Muon's direction before it is orthogonal; a skipped update changes nothing. */
export function muon_momentum(
  m: Address,
  grad: Address,
  control: Address,
  n: bigint,
  momentum: number,
): void {
  check(s.muon_momentum(m, grad, control, n, momentum));
}

/** out (n) = x (n, float32) by its norm; sumsq (1), a double, is that of grad_sumsq(). */
export function normalize(out: Address, x: Address, sumsq: Address, n: bigint): void {
  check(s.normalize(out, x, sumsq, n));
}

/** Moves the masters (n), kept as split_master() does, against scale * direction (n); a skipped update changes nothing. */
export function muon_update(
  weight: Address,
  rest: Address,
  ties: Address,
  direction: Address,
  control: Address,
  n: bigint,
  scale: number,
  weight_decay: number,
): void {
  check(s.muon_update(weight, rest, ties, direction, control, n, scale, weight_decay));
}
