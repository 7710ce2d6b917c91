// The model: Llama. Pre-norm RMSNorm, rotary positions (half-split pairs as in Hugging Face), grouped-query attention,
// SwiGLU, no biases, tied embeddings; and what its relatives do otherwise, each where its name stands (Family). This is the file
// to edit: gradients follow from the ops, no derivative is written here.
// B batch, T time, C n_embd, H query heads, K key/value heads, D head_dim, F n_inner, V vocab_size.
import { UserError } from "../base/errors.ts";
import { device } from "../ffi/library.ts";
import {
  type Adapter,
  attention,
  bias,
  cachedAttention,
  embedding,
  feedForward,
  type LayerCache,
  linear,
  linearCrossEntropy,
  normLinear,
  qkNorm,
  rmsnorm,
  rope,
  swigluLinear,
} from "../runtime/ops.ts";
import { checkpoint } from "../runtime/tape.ts";
import { param, type Tensor } from "../runtime/tensor.ts";
import { type RopeScaling, ropeTable } from "./rope.ts";

/**
 * Who a model is to transformers: Llama (and TinyLlama, SmolLM 1 and 2), Mistral (Llama by another name), Qwen 2 and 2.5 (biases
 * of queries, keys and values), Qwen 3 (norms of query and key heads), SmolLM 3 (layers without positions).
 */
export type Family = "llama" | "mistral" | "qwen2" | "qwen3" | "smollm3";

/**
 * What an edit of this file computes that no family does, in a few words: a model saved with it is no Llama to others, and
 * loads only where this says the same. Weights and settings that are added say so themselves.
 */
export const VARIANT: string = "";

/** The shape of a model. */
export type LlamaConfig = {
  family?: Family; // llama if absent
  vocab_size: number; // tokens; the embedding has this rounded up to 64 rows, the rest are zero and masked
  n_layer: number;
  n_embd: number;
  n_head: number;
  n_kv_head: number;
  head_dim: number;
  n_inner: number; // feed-forward width
  block_size: number; // longest sequence
  max_position_embeddings?: number; // longest sequence of the model that training began with, where that is more
  rope_theta: number;
  rope_scaling?: RopeScaling; // for longer texts than the first training had
  no_rope_layers?: number[]; // for each layer, 0: queries and keys do not turn, the order of tokens is known by the mask alone
  sliding_window?: number; // Mistral's, of at least block_size: it attends to all tokens
  norm_eps: number;
  tie_word_embeddings: boolean;
  lora?: Lora; // what is trained beside the weights, which are frozen then
};

/** A matrix of a layer that goes with an adapter below. */
export type LoraTarget = "qkv_proj" | "o_proj" | "gate_up_proj" | "down_proj";

/** All of them. */
export const LORA_TARGETS: readonly LoraTarget[] = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"];

/** LoRA: alpha / rank B A is added to each target, B and A having so many columns and rows. */
export type Lora = { rank: number; alpha: number; targets: readonly LoraTarget[] };

/** vocab_size rounded up to a multiple of 64: GEMMs are faster on even shapes. */
export function paddedVocab(c: LlamaConfig): number {
  return Math.ceil(c.vocab_size / 64) * 64;
}

/** Stops with one line when the numbers of a configuration do not fit together. */
function validate(c: LlamaConfig): void {
  const { vocab_size, n_layer, n_embd, n_head, n_kv_head, head_dim, n_inner, block_size } = c;
  const sizes = { vocab_size, n_layer, n_embd, n_head, n_kv_head, head_dim, n_inner, block_size };
  for (const [key, size] of Object.entries(sizes)) {
    if (!Number.isInteger(size) || size < 1) {
      throw new UserError(`Cannot build the model: ${key} is ${size}, it must be a whole number above 0`);
    }
  }
  if (c.n_head % c.n_kv_head !== 0) {
    throw new UserError(
      `Cannot build the model: n_head ${c.n_head} is not divisible by n_kv_head ${c.n_kv_head}; each key/value head serves the same number of query heads`,
    );
  }
  if (c.head_dim % 8 !== 0 || c.head_dim > 256) {
    throw new UserError(
      `Cannot build the model: head_dim ${c.head_dim} must be a multiple of 8 up to 256; it is n_embd ${c.n_embd} / n_head ${c.n_head} unless set`,
    );
  }
  if (device.act === "bf16" && ![32, 64, 128].includes(c.head_dim)) {
    throw new UserError(
      `Cannot build the model: head_dim ${c.head_dim} must be 32, 64 or 128 on a GPU; it is n_embd ${c.n_embd} / n_head ${c.n_head} unless set`,
    );
  }
}

/** One block: attention and feed-forward, each behind its norm. */
export type Layer = {
  input_layernorm: Tensor; // (C)
  qkv_proj: Tensor; // ((H + 2K) * D, C), rows: queries, keys, values
  qkv_bias?: Tensor; // ((H + 2K) * D)
  q_norm?: Tensor; // (D)
  k_norm?: Tensor; // (D)
  o_proj: Tensor; // (C, H * D)
  post_attention_layernorm: Tensor; // (C)
  gate_up_proj: Tensor; // (2F, C), rows: gates, ups
  down_proj: Tensor; // (C, F)
  lora?: Partial<Record<LoraTarget, Adapter>>;
};

/** All weights of a model. lm_head is there only if it is not tied to embed_tokens. */
export type Llama = { embed_tokens: Tensor; layers: Layer[]; norm: Tensor; lm_head?: Tensor };

/** All weights as plain data, declared here and placed in memory by Parameters. Shapes are (out, in). */
export function init(c: LlamaConfig): Llama {
  validate(c);
  const { n_embd: C, n_head: H, n_kv_head: K, head_dim: D, n_inner: F, vocab_size: V } = c;
  const std = 0.02; // GPT-2's
  const residual_std = 0.02 / Math.sqrt(2 * c.n_layer); // keeps the residual stream's variance independent of depth
  return adapted({
    embed_tokens: param([paddedVocab(c), C], { std, rows: V }),
    layers: Array.from({ length: c.n_layer }, () => ({
      input_layernorm: param([C], { value: 1 }),
      qkv_proj: param([(H + 2 * K) * D, C], { std, parts: [H * D, K * D, K * D] }),
      ...(c.family === "qwen2" ? { qkv_bias: param([(H + 2 * K) * D], { value: 0 }) } : {}),
      ...(c.family === "qwen3" ? { q_norm: param([D], { value: 1 }), k_norm: param([D], { value: 1 }) } : {}),
      o_proj: param([C, H * D], { std: residual_std }),
      post_attention_layernorm: param([C], { value: 1 }),
      gate_up_proj: param([2 * F, C], { std, parts: [F, F] }),
      down_proj: param([C, F], { std: residual_std }),
    })),
    norm: param([C], { value: 1 }),
    ...(c.tie_word_embeddings ? {} : { lm_head: param([paddedVocab(c), C], { std, rows: V }) }),
  }, c.lora);
}

/** The model with an adapter at each target: A spread as PEFT spreads it, and B zero, so that nothing changes at first. */
function adapted(m: Llama, lora: Lora | undefined): Llama {
  if (!lora) return m;
  const { rank, alpha, targets } = lora;
  for (const layer of m.layers) {
    layer.lora = {};
    for (const name of targets) {
      const [OUT, IN] = layer[name].shape as [number, number];
      if (rank > Math.min(OUT, IN)) {
        throw new UserError(
          `Cannot use lora_rank ${rank}: ${name} is (${OUT}, ${IN}), the rank must be ${
            Math.min(OUT, IN)
          } at most`,
        );
      }
      const A = param([rank, IN], { std: 1 / Math.sqrt(3 * IN) }), B = param([OUT, rank], { value: 0 });
      layer.lora[name] = { A, B, scale: alpha / rank };
    }
  }
  return m;
}

/** Keys and values of earlier tokens: pos[b] tokens of row b of the batch are cached, in one LayerCache a layer. */
export type KVCache = { pos: readonly number[]; layers: LayerCache[] };

/**
 * What backward computes again instead of keeping it, least memory last: nothing; the outputs of norms and swiglu (almost
 * free); the gate/up product too (12% more FLOPs); whole blocks (30% more).
 */
export type Recompute = "none" | "norm_swiglu" | "gate_up" | "block";

/** All of them, least memory last. */
export const RECOMPUTE: readonly Recompute[] = ["none", "norm_swiglu", "gate_up", "block"];

function selfAttention(
  x: Tensor,
  w: Layer,
  c: LlamaConfig,
  keep: boolean,
  i: number, // of the layer
  starts?: Tensor,
  past?: { layer: LayerCache; pos: readonly number[] },
): Tensor {
  let qkv = normLinear(x, w.input_layernorm, w.qkv_proj, c.norm_eps, keep, w.lora?.qkv_proj); // (B, T, (H + 2K) * D)
  if (w.qkv_bias) qkv = bias(qkv, w.qkv_bias); // Qwen 2
  if (w.q_norm && w.k_norm) qkv = qkNorm(qkv, w.q_norm, w.k_norm, c, c.norm_eps); // Qwen 3
  if (c.no_rope_layers?.[i] !== 0) qkv = rope(qkv, ropeTable(c), c, past?.pos ?? 0, starts); // all layers but a few of SmolLM 3
  const y = past ? cachedAttention(qkv, c, past.layer, past.pos) : attention(qkv, c, starts); // (B, T, H * D)
  return linear(y, w.o_proj, x, w.lora?.o_proj); // x + y w^T
}

function mlp(x: Tensor, w: Layer, c: LlamaConfig, keep: boolean): Tensor {
  const { post_attention_layernorm: norm, gate_up_proj, lora } = w;
  const gate_up = normLinear(x, norm, gate_up_proj, c.norm_eps, keep, lora?.gate_up_proj); // (B, T, 2F)
  return swigluLinear(gate_up, w.down_proj, x, keep, lora?.down_proj); // x + swiglu(gate_up) w^T, (B, T, C)
}

/** Options of forward(). */
export type ForwardOptions = {
  cache?: KVCache; // each row of idx continues what it holds of that row, one document; no gradient
  starts?: Tensor | undefined; // (B, T), where the document of each token begins: tokens see theirs alone, and positions begin anew in each
  recompute?: Recompute;
};

/** Token ids (B, T) -> final hidden states (B, T, C). */
export function forward(
  m: Llama,
  idx: Tensor,
  c: LlamaConfig,
  { cache, starts, recompute = "norm_swiglu" }: ForwardOptions = {},
): Tensor {
  const T = idx.shape[1]!, keep = recompute === "none";
  const pos = cache?.pos ?? [0], longest = Math.max(...pos) + T;
  if (longest > c.block_size) {
    throw new RangeError(`Cannot run ${longest} tokens: block_size is ${c.block_size}`);
  }
  if (cache && starts) throw new RangeError("Cannot run several documents with a cache: it holds one a row");
  const block = (x: Tensor, w: Layer, i: number): Tensor => {
    const layer = cache?.layers[i];
    x = selfAttention(x, w, c, keep, i, starts, layer && { layer, pos });
    if (recompute === "gate_up") {
      return feedForward(x, w.post_attention_layernorm, w.gate_up_proj, w.down_proj, c.norm_eps, w.lora);
    }
    return mlp(x, w, c, keep);
  };
  let x = embedding(idx, m.embed_tokens); // (B, T, C)
  m.layers.forEach((w, i) => {
    x = recompute === "block" ? checkpoint((x) => block(x, w, i), x) : block(x, w, i);
  });
  if (cache) cache.pos = pos.map((n) => n + T);
  return rmsnorm(x, m.norm, c.norm_eps);
}

/** Hidden states (..., C) -> logits (..., V padded to 64). Columns from vocab_size on mean nothing. */
export function logits(m: Llama, hidden: Tensor): Tensor {
  return linear(hidden, head(m));
}

/** Options of loss(). */
export type LossOptions = {
  grad_scale?: number; // multiplies the gradient: 1 / gradient_accumulation_steps
  head_chunk?: number; // rows whose logits are in memory at a time
  starts?: Tensor | undefined; // as in forward()
  recompute?: Recompute;
};

/** Mean cross entropy in nats of predicting targets (B, T) from idx (B, T). */
export function loss(
  m: Llama,
  idx: Tensor,
  targets: Tensor,
  c: LlamaConfig,
  { grad_scale = 1, head_chunk = 1024, starts, recompute = "norm_swiglu" }: LossOptions = {},
): Tensor {
  return linearCrossEntropy(forward(m, idx, c, { starts, recompute }), head(m), targets, {
    vocab_size: c.vocab_size,
    grad_scale,
    head_chunk,
  });
}

function head(m: Llama): Tensor {
  return m.lm_head ?? m.embed_tokens;
}
