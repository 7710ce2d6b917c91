// The functions of kernels.h as Deno.dlopen wants them. symbols_test.ts parses kernels.h and compares every name and type,
// because a mismatch would not fail: it would corrupt memory.

/** A device address. Always a bigint: a plain number in its place costs 20 times as much per call. */
export type Address = bigint;

const PTR = "usize"; // an address in device memory
const HOST = "buffer"; // a typed array of ours, only outside the training step
const I32 = "i32", I64 = "i64", U32 = "u32", U64 = "u64", F32 = "f32", F64 = "f64";

function fn<const P extends readonly Deno.NativeType[]>(...parameters: P) {
  return { parameters, result: "i32" } as const;
}

/** Symbol table of libloam_*.so, in the order of kernels.h. Every function returns 0 or an error code. */
export const symbols = {
  // device
  abi_version: fn(),
  last_error: fn(HOST, I32),
  device_open: fn(I32, I32, I32, HOST, HOST),
  device_info: fn(HOST, I32),
  device_memory: fn(HOST),
  host_limits: fn(HOST, HOST, I32, HOST),
  end_after: fn(I64, I32, HOST),
  device_peak: fn(HOST, HOST, I32),
  device_stream: fn(HOST),
  mark: fn(I32),
  mark_ms: fn(HOST, I32, I32),
  side_stream: fn(HOST),
  side_wait: fn(I32),
  side_mark: fn(I32),
  side_join: fn(I32),
  synchronize: fn(),
  // memory
  mem_alloc: fn(HOST, I64),
  mem_free: fn(PTR),
  host_alloc: fn(HOST, I64),
  copy_to_device: fn(PTR, HOST, I64),
  copy_to_host: fn(HOST, PTR, I64),
  copy_async: fn(PTR, PTR, I64),
  snapshot: fn(PTR, I64),
  snapshot_read: fn(HOST, I64),
  fill_zero: fn(PTR, I64),
  convert: fn(PTR, PTR, I32, I32, I64),
  find_nonfinite: fn(HOST, PTR, I32, I64),
  // frozen weights of two bytes beside float activations, on a CPU
  embedding_forward_bf16: fn(PTR, PTR, PTR, I32, I32, I32),
  linear_forward_bf16: fn(PTR, PTR, PTR, PTR, I32, I32, I32),
  linear_dgrad_bf16: fn(PTR, PTR, PTR, I32, I32, I32, I32),
  // random numbers
  init_normal: fn(PTR, I64, F32, U64, U64),
  init_constant: fn(PTR, I64, F32),
  // token data
  data_open: fn(HOST, HOST, I32, I32),
  data_close: fn(I32),
  data_gather: fn(PTR, PTR, I32, I64, I32, I32),
  data_mask: fn(PTR, PTR, I32, I64, I32),
  document_starts: fn(PTR, PTR, I32, I32),
  // embedding: rows of a table
  embedding_forward: fn(PTR, PTR, PTR, I32, I32, I32),
  embedding_backward: fn(PTR, PTR, PTR, I32, I32, I32, I32),
  // rmsnorm: out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), over the last axis
  rmsnorm_forward: fn(PTR, PTR, PTR, PTR, I32, I32, I32, I32, F32),
  rmsnorm_backward: fn(PTR, PTR, PTR, PTR, PTR, PTR, PTR, I32, I32, I32, I32, I32, I32),
  // layernorm: out = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + eps), over the last axis
  layernorm_forward: fn(PTR, PTR, PTR, PTR, PTR, I32, I32, F32),
  layernorm_backward: fn(PTR, PTR, PTR, PTR, PTR, PTR, PTR, I32, I32, I32, I32),
  // rope: rotates pairs (j, j + D/2) of each query and key head, in place
  rope: fn(PTR, PTR, PTR, I32, I32, I32, I32, I32, I32, I32),
  // attention: causal, grouped-query, scale 1/sqrt(D), online softmax
  attention_forward: fn(PTR, PTR, PTR, PTR, I32, I32, I32, I32, I32),
  attention_backward: fn(PTR, PTR, PTR, PTR, PTR, PTR, PTR, I32, I32, I32, I32, I32),
  attention_cached: fn(PTR, PTR, PTR, PTR, I32, I32, I32, I32, I32, I32, I32),
  // linear: out = x weight^T (+ residual)
  linear_forward: fn(PTR, PTR, PTR, PTR, I32, I32, I32),
  linear_dgrad: fn(PTR, PTR, PTR, I32, I32, I32, I32),
  linear_wgrad: fn(PTR, PTR, PTR, I32, I32, I32, I32),
  gram: fn(PTR, PTR, PTR, I32, I32, I32, F32, F32),
  gemm_choices: fn(HOST, I32),
  gemm_choose: fn(HOST, HOST, I32),
  // swiglu: h = silu(gate) * up
  swiglu_forward: fn(PTR, PTR, I32, I32),
  swiglu_backward: fn(PTR, PTR, PTR, PTR, I32, I32),
  // add
  add: fn(PTR, PTR, PTR, I64),
  // element-wise: one value, or two, of which each output follows
  unary_forward: fn(PTR, PTR, I32, F32, I64),
  unary_backward: fn(PTR, PTR, PTR, I32, F32, I64),
  mul: fn(PTR, PTR, PTR, I64),
  dropout: fn(PTR, PTR, I64, F32, U64),
  // rows and columns
  bias_forward: fn(PTR, PTR, PTR, I32, I32),
  bias_backward: fn(PTR, PTR, I32, I32, I32),
  copy_columns: fn(PTR, PTR, I32, I32, I32, I32, I32),
  softmax_forward: fn(PTR, PTR, I32, I32),
  softmax_backward: fn(PTR, PTR, PTR, I32, I32),
  logsumexp_forward: fn(PTR, PTR, PTR, I32, I32, I32),
  logsumexp_backward: fn(PTR, PTR, PTR, PTR, I32, I32, I32),
  // cross entropy: softmax and loss, the gradient in place of the logits
  cross_entropy: fn(PTR, PTR, PTR, I32, I32, I32, F32, I32),
  sum_scaled: fn(PTR, PTR, I32, F32, I32),
  // sampling: from logits to tokens
  sample: fn(HOST, PTR, I32, F64, I32, F64, U32),
  logprobs: fn(HOST, HOST, PTR, HOST, I32, I32, I32, I32),
  // optimizer: everything reads its scalars from the control block
  grad_sumsq: fn(PTR, PTR, I64, I32),
  step_control: fn(PTR, PTR, F32, F32, F32),
  split_master: fn(PTR, PTR, PTR, PTR, I64),
  join_master: fn(PTR, PTR, PTR, PTR, I64),
  adamw: fn(PTR, PTR, PTR, PTR, PTR, PTR, PTR, I64, F32, F32, F32, F32),
  muon_momentum: fn(PTR, PTR, PTR, I64, F32),
  normalize: fn(PTR, PTR, PTR, I64),
  muon_update: fn(PTR, PTR, PTR, PTR, PTR, I64, F32, F32),
  // the same functions on another thread, so that signals and timers are served while the device works
  synchronize_async: { name: "synchronize", ...fn(), nonblocking: true },
  snapshot_read_async: { name: "snapshot_read", ...fn(HOST, I64), nonblocking: true },
} as const satisfies Deno.ForeignLibraryInterface;

/** The functions of kernels.h: the names of symbols without the second faces. */
export const FUNCTIONS: string[] = Object.entries(symbols).filter(([, symbol]) => !("name" in symbol)).map((
  [name],
) => name);
