// config.json: the shape of a model in the words of Hugging Face, for each class of transformers that loam computes.
import { UserError } from "../base/errors.ts";
import { isObject } from "../base/json.ts";
import { type Family, type LlamaConfig, VARIANT } from "./llama.ts";
import type { RopeScaling } from "./rope.ts";

/** The settings of each LlamaConfig that the files have under the names of others: lora in adapter_config.json. */
const SETTINGS =
  ("family vocab_size n_layer n_embd n_head n_kv_head head_dim n_inner block_size max_position_embeddings rope_theta " +
    "rope_scaling norm_eps tie_word_embeddings lora").split(" ");

/** The settings of a model that config.json has no names for: those of an edited model/llama.ts. */
export function ownSettings(config: LlamaConfig): string[] {
  const known = [...SETTINGS, ...FAMILIES[config.family ?? "llama"].settings ?? []];
  return Object.keys(config).filter((name) => !known.includes(name));
}

/** What config.json says beside the shape of the model. The token ids are null for a tokenizer that has none. */
export type HFOptions = {
  bos_token_id: number | null;
  eos_token_id: number | null;
  dtype: "float32" | "bfloat16";
};

/** A class of transformers. settings: those of a LlamaConfig that it alone has; defaults: of missing keys, where not Llama's. */
type Class = {
  architecture: string;
  settings?: string[];
  keys?: string[]; // of config.json that are read for what they say, or say nothing here
  defaults?: Record<string, unknown>;
};

const WINDOW = ["sliding_window", "max_window_layers"]; // mean nothing without use_sliding_window

const FAMILIES: Record<Family, Class> = {
  llama: { architecture: "LlamaForCausalLM" },
  mistral: {
    architecture: "MistralForCausalLM",
    settings: ["sliding_window"],
    keys: ["sliding_window"],
    defaults: { num_key_value_heads: 8, max_position_embeddings: 131_072, sliding_window: 4096 },
  },
  qwen2: {
    architecture: "Qwen2ForCausalLM",
    keys: WINDOW,
    defaults: { num_key_value_heads: 32, max_position_embeddings: 32_768 },
  },
  qwen3: {
    architecture: "Qwen3ForCausalLM",
    keys: WINDOW,
    defaults: { num_key_value_heads: 32, max_position_embeddings: 32_768, head_dim: 128 },
  },
  smollm3: {
    architecture: "SmolLM3ForCausalLM",
    settings: ["no_rope_layers"],
    keys: [...WINDOW, "no_rope_layers", "no_rope_layer_interval"],
    defaults: {
      ...{ num_key_value_heads: 4, max_position_embeddings: 32_768, rope_theta: 2_000_000 },
      ...{ tie_word_embeddings: true, no_rope_layer_interval: 4 },
    },
  },
};

/** What config.json says of some families alone. */
function familyKeys(config: LlamaConfig): Record<string, unknown> {
  switch (config.family ?? "llama") {
    case "llama":
      return { attention_bias: false, mlp_bias: false };
    case "mistral":
      return { sliding_window: config.sliding_window ?? null }; // 4096 where it is missing
    case "qwen2":
      return { use_sliding_window: false };
    case "qwen3":
      return { use_sliding_window: false, attention_bias: false };
    case "smollm3": {
      const { no_rope_layers } = config, pad_token_id = null; // which is otherwise that of its own vocabulary
      return {
        no_rope_layers,
        use_sliding_window: false,
        attention_bias: false,
        mlp_bias: false,
        pad_token_id,
      };
    }
  }
}

/**
 * The content of config.json for the class of transformers that computes the model. One that differs from it, see differences(),
 * does not go by its name: its type is loam, and all its settings are there under their own names too.
 */
export function configToHF(
  config: LlamaConfig,
  options: HFOptions,
  differences: string[] = [],
): Record<string, unknown> {
  const more = differences.length > 8 ? ` and ${differences.length - 8} more` : "";
  const { family = "llama", rope_scaling } = config, { architecture } = FAMILIES[family];
  const type = differences.length === 0 ? { architectures: [architecture], model_type: family } : {
    model_type: OWN_TYPE,
    note: `read by loam with the model/llama.ts that wrote it; not a ${
      family === "llama" ? "Llama" : architecture
    } as in transformers: ${differences.slice(0, 8).join(", ")}${more}`,
    settings: config,
    variant: VARIANT,
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
    rope_scaling: rope_scaling ?? null,
    rope_parameters: { ...rope_scaling ?? { rope_type: "default" }, rope_theta: config.rope_theta }, // read by transformers 5
    attention_dropout: 0,
    ...familyKeys(config),
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
  sliding_window: 2 ** 24,
};

/** Keys that are read for what they say. */
const COMPUTED = new Set([
  ...Object.keys(LARGEST).filter((key) => key !== "sliding_window"),
  ...["model_type", "architectures", "layer_types", "tie_word_embeddings"],
  ...["rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"],
]);

/**
 * The model that a config.json describes; `path` is named in errors. A missing key has the value transformers gives it.
 * Throws UserError for what loam does not compute: other architectures, other scaling of RoPE, biases, quantized weights, keys
 * that it does not know and that are not empty, null, 0 or false, and sizes out of all proportion.
 */
export function configFromHF(json: unknown, path = "config.json"): LlamaConfig {
  if (!isObject(json)) throw unsupported(path, "its content", json, "a JSON object");
  const family = familyOf(path, json), { defaults = {} } = FAMILIES[family];
  if (isOwn(json) && (json.variant ?? "") !== VARIANT) {
    const here = VARIANT ? `the VARIANT "${VARIANT}"` : "none";
    throw unsupported(path, "variant", json.variant, `that of model/llama.ts, which has ${here}`);
  }
  refuseUnknown(path, json, family);
  const valueOf = (key: string) => key in json ? json[key] : defaults[key];
  const count = (key: keyof typeof LARGEST, fallback?: number) => {
    const value = valueOf(key) ?? fallback, largest = LARGEST[key];
    if (Number.isSafeInteger(value) && (value as number) > 0 && value as number <= largest) {
      return value as number;
    }
    throw unsupported(path, key, value, `a whole number from 1 to ${largest}`);
  };
  const C = count("hidden_size"), H = count("num_attention_heads"), K = count("num_key_value_heads", H);
  const D = count("head_dim", C / H), n_layer = count("num_hidden_layers");
  const tied = valueOf("tie_word_embeddings") ?? false;
  if (H % K !== 0) {
    throw unsupported(path, "num_attention_heads", H, `a multiple of num_key_value_heads, ${K}`);
  }
  if (D % 2 !== 0) throw unsupported(path, "head_dim", D, "even, since RoPE turns pairs");
  if (typeof tied !== "boolean") throw unsupported(path, "tie_word_embeddings", tied, "true or false");
  const longest = count("max_position_embeddings", 2048);
  const window = family === "mistral" && valueOf("sliding_window") !== null
    ? count("sliding_window")
    : undefined;
  const block_size = Math.min(longest, window ?? Infinity); // within the window it attends to all tokens
  const { theta, scaling } = ropeOf(path, json, longest, valueOf("rope_theta"));
  return {
    ...(isOwn(json) ? json.settings as object : {}),
    ...(family === "llama" ? {} : { family }),
    vocab_size: count("vocab_size"),
    n_layer,
    n_embd: C,
    n_head: H,
    n_kv_head: K,
    head_dim: D,
    n_inner: count("intermediate_size"),
    block_size,
    ...(longest > block_size ? { max_position_embeddings: longest } : {}),
    ...(window === undefined ? {} : { sliding_window: window }),
    ...(family === "smollm3" ? { no_rope_layers: noRopeLayers(path, valueOf, n_layer) } : {}),
    rope_theta: theta,
    ...(scaling === undefined ? {} : { rope_scaling: scaling }),
    norm_eps: positive(path, "rms_norm_eps", json.rms_norm_eps ?? 1e-6),
    tie_word_embeddings: tied,
  };
}

/** The family that model_type names, or that of a model of loam's own. */
function familyOf(path: string, json: Record<string, unknown>): Family {
  const type = isOwn(json) ? (json.settings as Partial<LlamaConfig>).family ?? "llama" : json.model_type;
  if (typeof type === "string" && Object.hasOwn(FAMILIES, type)) return type as Family;
  throw unsupported(
    path,
    "model_type",
    type,
    `one of those that loam computes: ${Object.keys(FAMILIES).join(", ")}`,
  );
}

/** For each layer 0 where nothing turns, as SmolLM 3 has it. */
function noRopeLayers(path: string, valueOf: (key: string) => unknown, n_layer: number): number[] {
  const list = valueOf("no_rope_layers") ?? null, every = valueOf("no_rope_layer_interval");
  if (list === null) {
    const interval = positive(path, "no_rope_layer_interval", every);
    return Array.from({ length: n_layer }, (_, i) => (i + 1) % interval === 0 ? 0 : 1);
  }
  if (Array.isArray(list) && list.length >= n_layer && list.every((turns) => turns === 0 || turns === 1)) {
    return list.slice(0, n_layer);
  }
  throw unsupported(path, "no_rope_layers", list, `0 or 1 for each of ${n_layer} layers`);
}

const YARN_MORE = ["attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"];

/** The keys of each kind of RoPE: those that it needs, and others that it may have. */
const ROPE_KEYS: Record<string, { needed: string[]; more?: string[] }> = {
  default: { needed: [] },
  linear: { needed: ["factor"] },
  llama3: {
    needed: ["factor", "low_freq_factor", "high_freq_factor"],
    more: ["original_max_position_embeddings"],
  },
  yarn: { needed: ["factor"], more: ["original_max_position_embeddings", "truncate", ...YARN_MORE] },
};

/** What says how positions turn: rope_scaling where it says anything, as in transformers, else rope_parameters. */
function ropeOf(
  path: string,
  json: Record<string, unknown>,
  longest: number,
  rope_theta: unknown = 10_000,
): { theta: number; scaling: RopeScaling | undefined } {
  let name = "rope_parameters", rope: Record<string, unknown> = {};
  for (const candidate of ["rope_parameters", "rope_scaling"]) {
    const value = json[candidate] ?? {};
    if (!isObject(value)) throw unsupported(path, candidate, value, "an object");
    requireKnownRope(path, candidate, value);
    if (!isOff(value)) [name, rope] = [candidate, value];
  }
  const theta = positive(path, "rope_theta", rope.rope_theta ?? rope_theta ?? 10_000);
  const type = ropeType(rope), { needed, more = [] } = ROPE_KEYS[type]!;
  if (type === "default") return { theta, scaling: undefined };
  const scaling: Record<string, unknown> = { rope_type: type };
  for (const key of [...needed, ...more]) {
    const value = rope[key] ?? (key === "original_max_position_embeddings" ? longest : undefined);
    if (value === undefined && more.includes(key)) continue;
    scaling[key] = key === "truncate" ? value : positive(path, `${name}.${key}`, value);
  }
  return { theta, scaling: scaling as RopeScaling };
}

/** Throws UserError for a kind of RoPE that is not computed, and a key that its kind has not. */
function requireKnownRope(path: string, name: string, rope: Record<string, unknown>): void {
  const type = ropeType(rope), kinds = Object.keys(ROPE_KEYS);
  if (!kinds.includes(type)) {
    throw unsupported(
      path,
      `${name}.${"rope_type" in rope ? "rope_type" : "type"}`,
      type,
      `one of ${kinds.join(", ")}`,
    );
  }
  const { needed, more = [] } = ROPE_KEYS[type]!,
    known = ["rope_type", "type", "rope_theta", ...needed, ...more];
  for (const [key, value] of Object.entries(rope)) {
    if (known.includes(key) || isOff(value) || ONLY[key]?.includes(value)) continue;
    if (ONLY[key]) throw unsupported(path, `${name}.${key}`, value, JSON.stringify(ONLY[key][0]));
    throw unknown(path, `${name}.${key}`, value);
  }
}

function ropeType(rope: Record<string, unknown>): string {
  return (rope.rope_type ?? rope.type ?? "default") as string;
}

/** Throws UserError for what a config.json has switched on that loam does not compute. */
function refuseUnknown(path: string, json: Record<string, unknown>, family: Family): void {
  const { architectures: names = null, layer_types: types = null } = json;
  const { architecture, keys = [] } = FAMILIES[family], inArchitectures = `"${architecture}"`.toLowerCase();
  if (names !== null && !JSON.stringify(names).toLowerCase().includes(inArchitectures)) {
    throw unsupported(path, "architectures", names, `["${architecture}"]`);
  }
  if (types !== null && !(Array.isArray(types) && types.every((type) => type === "full_attention"))) {
    throw unsupported(path, "layer_types", types, '"full_attention" for each layer');
  }
  for (const [key, value] of Object.entries(json)) {
    if (isOwn(json) && ["note", "settings", "variant"].includes(key)) continue;
    if (COMPUTED.has(key) || HARMLESS.has(key) || isOff(value) || keys.includes(key)) continue;
    if (ONLY[key]?.includes(value)) continue;
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
  const advice = key === "quantization_config"
    ? "use the model's weights from before they were quantized"
    : "remove it only if the model is the same without it";
  return new UserError(
    `Cannot load ${path}: ${key} is ${shown(value)}, which loam does not compute; ${advice}`,
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
