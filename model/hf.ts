// hf.ts: our model in the words of Hugging Face, so that a checkpoint is a directory that transformers (and llama.cpp,
// vLLM, ...) load as it is. Two differences to bridge: loam keeps q, k, v (and gate, up) stacked in one matrix, and pads
// the vocabulary to a multiple of 64 rows. RoPE already uses the half-split pairs of Hugging Face: nothing is permuted.

import { UserError } from "../ffi/errors.ts";
import type { LlamaConfig } from "./llama.ts";

/** One Hugging Face tensor: `rows` rows from `row` on of our tensor at the dot path `ours`. cols is 0 for a vector. */
export type HFTensor = { hf: string; ours: string; row: number; rows: number; cols: number };

/** Every tensor of model.safetensors in file order: 9 per layer, and 2 (tied) or 3. */
export function hfTensors(config: LlamaConfig): HFTensor[] {
  const { vocab_size: V, n_embd: C, n_inner: F, head_dim: D } = config;
  const Q = config.n_head * D, K = config.n_kv_head * D;
  const layers = Array.from({ length: config.n_layer }, (_, i) => {
    const hf = `model.layers.${i}`, ours = `layers.${i}`;
    return [
      { hf: `${hf}.input_layernorm.weight`, ours: `${ours}.input_layernorm`, row: 0, rows: C, cols: 0 },
      { hf: `${hf}.self_attn.q_proj.weight`, ours: `${ours}.qkv_proj`, row: 0, rows: Q, cols: C },
      { hf: `${hf}.self_attn.k_proj.weight`, ours: `${ours}.qkv_proj`, row: Q, rows: K, cols: C },
      { hf: `${hf}.self_attn.v_proj.weight`, ours: `${ours}.qkv_proj`, row: Q + K, rows: K, cols: C },
      { hf: `${hf}.self_attn.o_proj.weight`, ours: `${ours}.o_proj`, row: 0, rows: C, cols: Q },
      {
        hf: `${hf}.post_attention_layernorm.weight`,
        ours: `${ours}.post_attention_layernorm`,
        row: 0,
        rows: C,
        cols: 0,
      },
      { hf: `${hf}.mlp.gate_proj.weight`, ours: `${ours}.gate_up_proj`, row: 0, rows: F, cols: C },
      { hf: `${hf}.mlp.up_proj.weight`, ours: `${ours}.gate_up_proj`, row: F, rows: F, cols: C },
      { hf: `${hf}.mlp.down_proj.weight`, ours: `${ours}.down_proj`, row: 0, rows: C, cols: F },
    ];
  });
  const tensors = [
    { hf: "model.embed_tokens.weight", ours: "embed_tokens", row: 0, rows: V, cols: C }, // without the padding
    ...layers.flat(),
    { hf: "model.norm.weight", ours: "norm", row: 0, rows: C, cols: 0 },
  ];
  // A tied lm_head is left out: transformers takes embed_tokens for it.
  if (!config.tie_word_embeddings) {
    tensors.push({ hf: "lm_head.weight", ours: "lm_head", row: 0, rows: V, cols: C });
  }
  return tensors;
}

/** The shape on disk: [rows, cols], or [rows] for a vector. */
export function hfShape(tensor: HFTensor): number[] {
  return tensor.cols === 0 ? [tensor.rows] : [tensor.rows, tensor.cols];
}

/** What config.json says beside the shape of the model. The token ids are null for a tokenizer that has none. */
export type HFOptions = {
  bos_token_id: number | null;
  eos_token_id: number | null;
  dtype: "float32" | "bfloat16";
};

/** The content of config.json for LlamaForCausalLM. */
export function configToHF(config: LlamaConfig, options: HFOptions): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: config.vocab_size,
    hidden_size: config.n_embd,
    intermediate_size: config.n_inner,
    num_hidden_layers: config.n_layer,
    num_attention_heads: config.n_head,
    num_key_value_heads: config.n_kv_head,
    head_dim: config.head_dim,
    hidden_act: "silu",
    max_position_embeddings: config.block_size,
    initializer_range: 0.02,
    rms_norm_eps: config.norm_eps,
    rope_theta: config.rope_theta, // read by transformers 4
    rope_scaling: null,
    rope_parameters: { rope_type: "default", rope_theta: config.rope_theta }, // read by transformers 5
    attention_bias: false,
    attention_dropout: 0,
    mlp_bias: false,
    tie_word_embeddings: config.tie_word_embeddings,
    bos_token_id: options.bos_token_id,
    eos_token_id: options.eos_token_id,
    use_cache: true,
    torch_dtype: options.dtype,
  };
}

/** The content of generation_config.json: where a text begins and ends. */
export function generationConfig(options: HFOptions): Record<string, unknown> {
  return { bos_token_id: options.bos_token_id, eos_token_id: options.eos_token_id };
}

/**
 * The model that a config.json describes; `path` is named in errors. A missing key has the value transformers gives it.
 * Throws UserError for what loam does not compute: other architectures, scaled RoPE, biases, other activations.
 */
export function configFromHF(json: unknown, path = "config.json"): LlamaConfig {
  if (typeof json !== "object" || json === null) {
    throw unsupported(path, "its content", json, "a JSON object");
  }
  const values = json as Record<string, unknown>;
  const rope = (values.rope_parameters ?? {}) as Record<string, unknown>;
  const scaling = (values.rope_scaling ?? {}) as Record<string, unknown>;
  const only: [string, unknown, unknown][] = [
    ["model_type", values.model_type, "llama"],
    ["hidden_act", values.hidden_act ?? "silu", "silu"],
    ["attention_bias", values.attention_bias ?? false, false],
    ["mlp_bias", values.mlp_bias ?? false, false],
    ["rope_scaling.rope_type", scaling.rope_type ?? scaling.type ?? "default", "default"],
    ["rope_parameters.rope_type", rope.rope_type ?? "default", "default"],
  ];
  for (const [key, value, supported] of only) {
    if (value !== supported) throw unsupported(path, key, value, JSON.stringify(supported));
  }

  const count = (key: string, fallback?: number) => positive(path, key, values[key] ?? fallback, "integer");
  const C = count("hidden_size"), H = count("num_attention_heads"), K = count("num_key_value_heads", H);
  const D = count("head_dim", C / H);
  if (H % K !== 0) {
    throw unsupported(path, "num_attention_heads", H, `a multiple of num_key_value_heads, ${K}`);
  }
  if (D % 2 !== 0) throw unsupported(path, "head_dim", D, "even, since RoPE turns pairs");
  return {
    vocab_size: count("vocab_size"),
    n_layer: count("num_hidden_layers"),
    n_embd: C,
    n_head: H,
    n_kv_head: K,
    head_dim: D,
    n_inner: count("intermediate_size"),
    block_size: count("max_position_embeddings", 2048),
    rope_theta: positive(path, "rope_theta", rope.rope_theta ?? values.rope_theta ?? 10000, "number"),
    norm_eps: positive(path, "rms_norm_eps", values.rms_norm_eps ?? 1e-6, "number"),
    tie_word_embeddings: values.tie_word_embeddings === true,
  };
}

function positive(path: string, key: string, value: unknown, kind: "integer" | "number"): number {
  const fits = typeof value === "number" && value > 0 && (kind === "number" || Number.isSafeInteger(value));
  if (!fits) throw unsupported(path, key, value, `a positive ${kind}`);
  return value;
}

function unsupported(path: string, key: string, value: unknown, expected: string): UserError {
  return new UserError(
    `Cannot load ${path}: ${key} is ${JSON.stringify(value) ?? "missing"}, and should be ${expected}`,
  );
}
