// What the tests of the model share.
import type { LlamaConfig } from "./llama.ts";

/** The preset gpt-270m with the GPT-2 vocabulary, written out, as published figures and memory plans count it. */
export const GPT_270M: LlamaConfig = {
  vocab_size: 50257,
  n_layer: 24,
  n_embd: 1024,
  n_head: 16,
  n_kv_head: 4,
  head_dim: 64,
  n_inner: 2816,
  block_size: 2048,
  rope_theta: 10000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};
