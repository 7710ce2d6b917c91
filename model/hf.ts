// hf.ts: our model in the words of Hugging Face, so that a checkpoint is a directory that transformers (and llama.cpp,
// vLLM, ...) load as it is. Two differences to bridge: loam keeps q, k, v (and gate, up) stacked in one matrix, and pads
// the vocabulary to a multiple of 64 rows. RoPE already uses the half-split pairs of Hugging Face: nothing is permuted.

import { Buffer } from "node:buffer";
import { UserError } from "../base/errors.ts";
import { requireTensors } from "../runtime/checkpoint.ts";
import type { SafetensorsFile } from "../runtime/safetensors.ts";
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

/** A parameter as a model declares it: its dot path, and its shape without padding. */
export type Declared = { name: string; shape: readonly number[] };

/** One tensor of model.safetensors: elements of our parameter `ours` from element `first` on. */
export type FileTensor = { name: string; shape: number[]; ours: string; first: number };

/**
 * The tensors that hold all that a model declares. What is as in Hugging Face's Llama has its name there; what was added to
 * model/llama.ts, or has another shape, its own dot path.
 */
export function fileTensors(declared: Declared[], config: LlamaConfig): FileTensor[] {
  const own = new Map(notInHF(declared, config).map(({ name, shape }) => [name, shape]));
  const known = new Set(declared.map(({ name }) => name));
  return [
    ...hfTensors(config).filter(({ ours }) => known.has(ours) && !own.has(ours)).map((t) => (
      { name: t.hf, shape: hfShape(t), ours: t.ours, first: t.row * Math.max(1, t.cols) }
    )),
    ...Array.from(own, ([name, shape]) => ({ name, shape: [...shape], ours: name, first: 0 })),
  ];
}

/** The parameters that Hugging Face's Llama has not, or not in this shape. */
function notInHF(declared: Declared[], config: LlamaConfig): Declared[] {
  const parts = Map.groupBy(hfTensors(config), ({ ours }) => ours);
  return declared.filter(({ name, shape }) => {
    const all = parts.get(name) ?? [], rows = all.reduce((sum, t) => sum + t.rows, 0);
    return `${shape}` !== `${hfShape({ ...all[0]!, rows })}` || all.length === 0;
  });
}

/** What keeps a model from being Hugging Face's Llama: parameters that only one of the two has, and settings of its own. */
export function differences(declared: Declared[], config: LlamaConfig): string[] {
  const here = new Set(declared.map(({ name }) => name)), settings = Object.keys(config);
  const missing = hfTensors(config).filter(({ ours }) => !here.has(ours)).map(({ hf }) => `no ${hf}`);
  return [
    ...notInHF(declared, config).map(({ name }) => name),
    ...missing,
    ...settings.filter((name) => !SETTINGS.has(name)),
  ];
}

/** The settings of a LlamaConfig that config.json has under Hugging Face's names. */
const SETTINGS = new Set(
  ("vocab_size n_layer n_embd n_head n_kv_head head_dim n_inner block_size max_position_embeddings rope_theta norm_eps " +
    "tie_word_embeddings").split(" "),
);

/** What config.json says beside the shape of the model. The token ids are null for a tokenizer that has none. */
export type HFOptions = {
  bos_token_id: number | null;
  eos_token_id: number | null;
  dtype: "float32" | "bfloat16";
};

/**
 * The content of config.json for LlamaForCausalLM. A model that differs from it, see differences(), does not go by its name:
 * its type is loam, and all its settings are there under their own names too.
 */
export function configToHF(
  config: LlamaConfig,
  options: HFOptions,
  differences: string[] = [],
): Record<string, unknown> {
  const more = differences.length > 8 ? ` and ${differences.length - 8} more` : "";
  const type = differences.length === 0 ? { architectures: ["LlamaForCausalLM"], model_type: "llama" } : {
    model_type: OWN_TYPE,
    note: `read by loam with the model/llama.ts that wrote it; not a Llama as in transformers: ${
      differences.slice(0, 8).join(", ")
    }${more}`,
    settings: config,
  };
  return {
    ...type,
    vocab_size: config.vocab_size,
    hidden_size: config.n_embd,
    intermediate_size: config.n_inner,
    num_hidden_layers: config.n_layer,
    num_attention_heads: config.n_head,
    num_key_value_heads: config.n_kv_head,
    head_dim: config.head_dim,
    hidden_act: "silu",
    max_position_embeddings: config.max_position_embeddings ?? config.block_size,
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

const OWN_TYPE = "loam"; // model_type of what is no Llama

/** The content of generation_config.json: where a text begins and ends. */
export function generationConfig(options: HFOptions): Record<string, unknown> {
  return { bos_token_id: options.bos_token_id, eos_token_id: options.eos_token_id };
}

/** Keys of config.json that change nothing of what a model computes: who wrote it, training, names, how to generate. */
const HARMLESS = new Set(
  ("_name_or_path name_or_path transformers_version unsloth_version unsloth_fixed is_llama_config torch_dtype dtype " +
    "_attn_implementation attn_implementation _attn_implementation_autoset _commit_hash transformers.js_config " +
    "initializer_range attention_dropout use_cache pretraining_tp gradient_checkpointing torchscript use_bfloat16 " +
    "tf_legacy_loss chunk_size_feed_forward max_sequence_length is_decoder " +
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class prefix " +
    "return_dict output_hidden_states output_attentions tie_last_hidden_states id2label label2id num_labels problem_type " +
    "finetuning_task task_specific_params output_scores return_dict_in_generate bad_words_ids begin_suppress_tokens " +
    "diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff " +
    "eta_cutoff exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length " +
    "min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values " +
    "repetition_penalty suppress_tokens temperature top_k top_p typical_p").split(" "),
);

/** Keys that loam computes for one value, under the names that config.json has for it. */
const ONLY: Record<string, unknown[]> = { hidden_act: ["silu", "swish"], partial_rotary_factor: [1] };

/** The largest sizes that are believed of a config.json. */
const LARGEST = {
  vocab_size: 2 ** 24,
  hidden_size: 2 ** 16,
  intermediate_size: 2 ** 20,
  num_hidden_layers: 2 ** 12,
  num_attention_heads: 2 ** 12,
  num_key_value_heads: 2 ** 12,
  head_dim: 2 ** 12,
  max_position_embeddings: 2 ** 24,
};

/** Keys that are read for what they say. */
const COMPUTED = new Set([
  ...Object.keys(LARGEST),
  ...["model_type", "architectures", "layer_types", "tie_word_embeddings"],
  ...["rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"],
]);

/**
 * The model that a config.json describes; `path` is named in errors. A missing key has the value transformers gives it.
 * Throws UserError for what loam does not compute: other architectures, scaled RoPE, biases, quantized weights, keys that it
 * does not know and that are not empty, null, 0 or false, and sizes out of all proportion.
 */
export function configFromHF(json: unknown, path = "config.json"): LlamaConfig {
  if (!isObject(json)) throw unsupported(path, "its content", json, "a JSON object");
  refuseUnknown(path, json);
  const rope = ropeOf(path, json);
  const count = (key: keyof typeof LARGEST, fallback?: number) => {
    const value = json[key] ?? fallback, largest = LARGEST[key];
    if (Number.isSafeInteger(value) && (value as number) > 0 && value as number <= largest) {
      return value as number;
    }
    throw unsupported(path, key, value, `a whole number from 1 to ${largest}`);
  };
  const C = count("hidden_size"), H = count("num_attention_heads"), K = count("num_key_value_heads", H);
  const D = count("head_dim", C / H), tied = json.tie_word_embeddings ?? false;
  if (H % K !== 0) {
    throw unsupported(path, "num_attention_heads", H, `a multiple of num_key_value_heads, ${K}`);
  }
  if (D % 2 !== 0) throw unsupported(path, "head_dim", D, "even, since RoPE turns pairs");
  if (typeof tied !== "boolean") throw unsupported(path, "tie_word_embeddings", tied, "true or false");
  return {
    ...(isOwn(json) ? json.settings as object : {}),
    vocab_size: count("vocab_size"),
    n_layer: count("num_hidden_layers"),
    n_embd: C,
    n_head: H,
    n_kv_head: K,
    head_dim: D,
    n_inner: count("intermediate_size"),
    block_size: count("max_position_embeddings", 2048),
    rope_theta: positive(path, "rope_theta", rope.rope_theta ?? json.rope_theta ?? 10000),
    norm_eps: positive(path, "rms_norm_eps", json.rms_norm_eps ?? 1e-6),
    tie_word_embeddings: tied,
  };
}

/** What says how positions turn: rope_scaling where it says anything, as in transformers. Refuses all but the plain kind. */
function ropeOf(path: string, json: Record<string, unknown>): Record<string, unknown> {
  for (const name of ["rope_scaling", "rope_parameters"]) {
    const rope = json[name] ?? {};
    if (!isObject(rope)) throw unsupported(path, name, rope, "an object");
    for (const [key, value] of Object.entries(rope)) {
      const known = ["rope_type", "type"].includes(key) ? ["default"] : ONLY[key];
      if (key === "rope_theta" || isOff(value) || known?.includes(value)) continue;
      if (known) throw unsupported(path, `${name}.${key}`, value, JSON.stringify(known[0]));
      throw unknown(path, `${name}.${key}`, value);
    }
  }
  return isOff(json.rope_scaling)
    ? (json.rope_parameters ?? {}) as Record<string, unknown>
    : json.rope_scaling as Record<string, unknown>;
}

/** Throws UserError for what a config.json has switched on that loam does not compute. */
function refuseUnknown(path: string, json: Record<string, unknown>): void {
  const { model_type, architectures: names = null, layer_types: types = null } = json;
  if (model_type !== "llama" && !isOwn(json)) throw unsupported(path, "model_type", model_type, '"llama"');
  if (names !== null && !JSON.stringify(names).toLowerCase().includes('"llamaforcausallm"')) {
    throw unsupported(path, "architectures", names, '["LlamaForCausalLM"]');
  }
  if (types !== null && !(Array.isArray(types) && types.every((type) => type === "full_attention"))) {
    throw unsupported(path, "layer_types", types, '"full_attention" for each layer');
  }
  for (const [key, value] of Object.entries(json)) {
    if (isOwn(json) && ["note", "settings"].includes(key)) continue;
    if (COMPUTED.has(key) || HARMLESS.has(key) || isOff(value) || ONLY[key]?.includes(value)) continue;
    throw ONLY[key] ? unsupported(path, key, value, JSON.stringify(ONLY[key][0])) : unknown(path, key, value);
  }
}

/** Whether it is the config.json of a model with a model/llama.ts of its own. */
function isOwn({ model_type, settings }: Record<string, unknown>): boolean {
  return model_type === OWN_TYPE && isObject(settings);
}

/** Whether a value can switch nothing on. */
function isOff(value: unknown): boolean {
  return !value || JSON.stringify(value) === "[]" || JSON.stringify(value) === "{}";
}

function positive(path: string, key: string, value: unknown): number {
  if (typeof value === "number" && value > 0 && value < Infinity) return value;
  throw unsupported(path, key, value, "a positive number");
}

function unknown(path: string, key: string, value: unknown): UserError {
  return new UserError(
    `Cannot load ${path}: ${key} is ${
      shown(value)
    }, which loam does not compute; remove it only if the model is the same ` +
      "without it",
  );
}

function unsupported(path: string, key: string, value: unknown, expected: string): UserError {
  return new UserError(`Cannot load ${path}: ${key} is ${shown(value)}, and should be ${expected}`);
}

/** A value as in the file, cut where it is long. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? "missing";
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

// ---- weights

/** Tensors that the files of old models have beside the weights: RoPE's, which follow from config.json. */
const HARMLESS_TENSOR = /(^|\.)rotary_emb\.inv_freq$/;

/**
 * Throws UserError where the files of a model do not hold exactly the weights that it declares: one is missing, of another
 * shape, or loam would not compute with it. `directory` is named in errors. Reads headers, and of a tied model both ends of
 * the tie where the files have both.
 */
export function requireWeights(
  directory: string,
  weights: Map<string, SafetensorsFile>,
  wanted: FileTensor[],
  config: LlamaConfig,
): void {
  requireTensors(directory, weights, wanted);
  const names = new Set(wanted.map(({ name }) => name));
  for (const [name, file] of weights) {
    if (names.has(name) || HARMLESS_TENSOR.test(name)) continue;
    if (name === "lm_head.weight" && config.tie_word_embeddings) {
      const embedding = "model.embed_tokens.weight";
      if (areSame(file, name, weights.get(embedding)!, embedding)) continue;
      throw new UserError(
        `Cannot load ${file.path}: lm_head.weight is not model.embed_tokens.weight, but tie_word_embeddings is true in ` +
          "config.json; set it to false there, if the two are meant to differ",
      );
    }
    throw new UserError(
      `Cannot load ${file.path}: it has ${name} (${
        file.tensors.get(name)!.shape
      }), which loam does not compute with`,
    );
  }
}

/** Whether two tensors of the same shape have the same bytes. */
function areSame(fileA: SafetensorsFile, a: string, fileB: SafetensorsFile, b: string): boolean {
  const { length } = fileA.tensors.get(a)!, piece = 1 << 24;
  if (fileB.tensors.get(b)!.length !== length) return false;
  for (let begin = 0; begin < length; begin += piece) {
    const end = Math.min(length, begin + piece);
    if (!Buffer.from(fileA.read(a, begin, end).buffer).equals(fileB.read(b, begin, end))) return false;
  }
  return true;
}
