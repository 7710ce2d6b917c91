// The models that benchmarks train and whose kernels they time. T and B are what each is measured with by default.
import type { LlamaConfig } from "../model/llama.ts";

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

/** The presets of train.ts, and the shape of GPT-2's smallest (124m); V is that of the characters of nanoGPT's Shakespeare or GPT-2's. */
export const SHAPES: Record<string, Shape> = {
  "tiny": { n_layer: 4, n_embd: 128, n_head: 4, n_kv_head: 2, n_inner: 384, T: 64, B: 12, V: 65 },
  "small": { n_layer: 6, n_embd: 384, n_head: 6, n_kv_head: 2, n_inner: 1024, T: 256, B: 8, V: 65 },
  "124m": { n_layer: 12, n_embd: 768, n_head: 12, n_kv_head: 12, n_inner: 2048, T: 256, B: 4, V: 50257 },
  "gpt-270m": { n_layer: 24, n_embd: 1024, n_head: 16, n_kv_head: 4, n_inner: 2816, T: 2048, B: 4, V: 50257 },
};

/** The model of a shape, with the RoPE, norms and tied embeddings of train.ts. */
export function modelOf(
  { n_layer, n_embd, n_head, n_kv_head, n_inner, T, V }: Omit<Shape, "B">,
): LlamaConfig {
  return {
    vocab_size: V,
    n_layer,
    n_embd,
    n_head,
    n_kv_head,
    head_dim: n_embd / n_head,
    n_inner,
    block_size: T,
    rope_theta: 10000,
    norm_eps: 1e-6,
    tie_word_embeddings: true,
  };
}
