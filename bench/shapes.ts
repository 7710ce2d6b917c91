// The models that benchmarks train and whose kernels they time. T and B are what each is measured with by default.

/** Sizes of a model and its batch, in the names of model/llama.ts and kernels.h. */
export type Shape = {
  n_layer: number;
  n_embd: number;
  n_head: number;
  n_kv_head: number;
  n_inner: number;
  T: number;
  B: number;
  V: number;
};

/** The presets of train.ts; V is the demo's vocabulary or GPT-2's. */
export const SHAPES: Record<string, Shape> = {
  "tiny": { n_layer: 4, n_embd: 128, n_head: 4, n_kv_head: 2, n_inner: 384, T: 64, B: 12, V: 65 },
  "small": { n_layer: 6, n_embd: 384, n_head: 6, n_kv_head: 2, n_inner: 1024, T: 256, B: 8, V: 65 },
  "gpt-270m": { n_layer: 24, n_embd: 1024, n_head: 16, n_kv_head: 4, n_inner: 2816, T: 2048, B: 4, V: 50257 },
};
