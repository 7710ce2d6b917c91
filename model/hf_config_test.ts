import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { configFromHF, configToHF, generationConfig } from "./hf_config.ts";
import type { LlamaConfig } from "./llama.ts";
import type { RopeScaling } from "./rope.ts";
import { GPT_270M } from "./testing.ts";

const OPTIONS = { bos_token_id: 50256, eos_token_id: 50256, dtype: "bfloat16" } as const;

Deno.test("configFromHF() reads what configToHF() writes", () => {
  assertEquals(configFromHF(configToHF(GPT_270M, OPTIONS)), GPT_270M);
  const odd = { ...GPT_270M, head_dim: 32, rope_theta: 500000, norm_eps: 1e-5, tie_word_embeddings: false };
  assertEquals(configFromHF(configToHF(odd, OPTIONS)), odd);
  const extra = { q_scale: 1 }, own = { ...odd, family: "qwen3" as const, ...extra };
  const json = configToHF(own, OPTIONS, ["q_scale"]);
  assertEquals([json.model_type, json.architectures], ["loam", undefined]);
  assertEquals(configFromHF(json), own);
  assertEquals(generationConfig(OPTIONS), { bos_token_id: 50256, eos_token_id: 50256 });
});

Deno.test("configFromHF() gives missing keys the values of transformers", () => {
  const json = {
    model_type: "llama",
    vocab_size: 9,
    hidden_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
  };
  assertEquals(configFromHF({ ...json, intermediate_size: 12 }), {
    vocab_size: 9,
    n_layer: 1,
    n_embd: 8,
    n_head: 2,
    n_kv_head: 2,
    head_dim: 4,
    n_inner: 12,
    block_size: 2048,
    rope_theta: 10000,
    norm_eps: 1e-6,
    tie_word_embeddings: false,
  });
  const error = assertThrows(() => configFromHF(json, "m/config.json"), UserError);
  assertEquals(
    error.message,
    "Cannot load m/config.json: intermediate_size is missing, and should be a whole number from 1 to 1048576",
  );
});

Deno.test("configFromHF() gives missing keys of each class the values that transformers 5.18 has for them", () => {
  const small = { vocab_size: 9, hidden_size: 256, num_hidden_layers: 5, intermediate_size: 12 };
  const read = (json: object) => configFromHF({ ...small, num_attention_heads: 32, ...json });
  const ours = ({ n_kv_head, head_dim, block_size, max_position_embeddings, ...c }: LlamaConfig) => [
    ...[n_kv_head, head_dim, block_size, max_position_embeddings, c.rope_theta, c.tie_word_embeddings],
    ...[c.sliding_window, c.no_rope_layers],
  ];
  assertEquals(ours(read({ model_type: "mistral" })), [8, 8, 4096, 131_072, 10_000, false, 4096, undefined]);
  assertEquals(
    ours(read({ model_type: "mistral", sliding_window: null, num_key_value_heads: null })),
    [32, 8, 131_072, undefined, 10_000, false, undefined, undefined],
  );
  for (const [model_type, head_dim] of [["qwen2", 8], ["qwen3", 128]] as const) {
    const more = { use_sliding_window: false, sliding_window: 4096, max_window_layers: 28 };
    assertEquals(
      ours(read({ model_type, ...more })),
      [32, head_dim, 32_768, undefined, 10_000, false, undefined, undefined],
    );
    assertThrows(
      () => read({ model_type, use_sliding_window: true }),
      UserError,
      "use_sliding_window is true, which loam does not compute",
    );
  }
  const layers = [1, 1, 1, 0, 1];
  assertEquals(
    ours(read({ model_type: "smollm3" })),
    [4, 8, 32_768, undefined, 2_000_000, true, undefined, layers],
  );
  assertEquals(
    read({ model_type: "smollm3", no_rope_layers: [0, 1, 0, 1, 0, 1] }).no_rope_layers,
    [0, 1, 0, 1, 0],
  );
  assertThrows(
    () => read({ model_type: "smollm3", no_rope_layers: [1, 0] }),
    UserError,
    "no_rope_layers is [1,0], and should be 0 or 1 for each of 5 layers",
  );
});

Deno.test("configFromHF() reads original_max_position_embeddings, or takes max_position_embeddings as transformers does", () => {
  const json = configToHF(GPT_270M, OPTIONS), yarn = { rope_type: "yarn", factor: 4 };
  const scaling = (rope_scaling: object) => configFromHF({ ...json, rope_scaling }).rope_scaling;
  assertEquals(scaling(yarn), { ...yarn, original_max_position_embeddings: 2048 } as RopeScaling);
  const whole = { ...yarn, original_max_position_embeddings: 512, truncate: false, attention_factor: 1.5 };
  assertEquals(scaling(whole), whole as RopeScaling);
});

Deno.test("configFromHF() takes rope_theta from either place, rope_parameters first", () => {
  const json = configToHF(GPT_270M, OPTIONS);
  const theta = (changes: object) => configFromHF({ ...json, ...changes }).rope_theta;
  assertEquals(theta({ rope_theta: 7, rope_parameters: undefined }), 7);
  assertEquals(theta({ rope_theta: undefined, rope_parameters: { rope_theta: 8 } }), 8);
  assertEquals(theta({ rope_theta: 7, rope_parameters: { rope_type: "default", rope_theta: 8 } }), 8);
});

Deno.test("configFromHF() takes every key that transformers writes, and what others leave off", () => {
  const json = JSON.parse(
    Deno.readTextFileSync(`${import.meta.dirname}/../tests/golden/sharded/config.json`),
  );
  const plain = configFromHF(json);
  const more = {
    ...{
      pretraining_tp: 2,
      attention_dropout: 0.1,
      use_cache: false,
      pad_token_id: 0,
      temperature: 0.6,
      do_sample: true,
    },
    ...{
      rope_scaling: null,
      rope_interleaved: false,
      sliding_window: null,
      quantization_config: {},
      pruned_heads: {},
    },
    ...{
      hidden_act: "swish",
      partial_rotary_factor: 1,
      layer_types: ["full_attention"],
      _name_or_path: "x/y",
    },
  };
  assertEquals(configFromHF({ ...json, ...more }), plain);
});

Deno.test("configFromHF() refuses what loam does not compute", () => {
  const json = configToHF(GPT_270M, OPTIONS);
  const cases: [object, string][] = [
    [
      { model_type: "gemma3" },
      'model_type is "gemma3", and should be one of those that loam computes: llama, mistral, qwen2, qwen3, smollm3',
    ],
    [{ model_type: "qwen3" }, 'architectures is ["LlamaForCausalLM"], and should be ["Qwen3ForCausalLM"]'],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu", and should be "silu"'],
    [{ attention_bias: true }, "attention_bias is true, which loam does not compute; remove it only if"],
    [{ mlp_bias: true }, "mlp_bias is true, which loam does not compute"],
    [{ rope_interleaved: true }, "rope_interleaved is true, which loam does not compute"],
    [{ sliding_window: 4096 }, "sliding_window is 4096, which loam does not compute"],
    [
      { quantization_config: { bits: 4 } },
      'quantization_config is {"bits":4}, which loam does not compute; use the model\'s weights from before they were quantized',
    ],
    [{ partial_rotary_factor: 0.5 }, "partial_rotary_factor is 0.5, and should be 1"],
    [{ per_layer_config: { 0: { head_dim: 8 } } }, "per_layer_config is"],
    [{ auto_map: { AutoModel: "my.Model" } }, "auto_map is"],
    [{ is_encoder_decoder: true }, "is_encoder_decoder is true"],
    [
      { layer_types: ["full_attention", "sliding_attention"] },
      'layer_types is ["full_attention","sliding_attention"], and should be "full_attention" for each layer',
    ],
    [
      { architectures: ["LlamaForSequenceClassification"] },
      'architectures is ["LlamaForSequenceClassification"], and should be ["LlamaForCausalLM"]',
    ],
    [{ tie_word_embeddings: "true" }, 'tie_word_embeddings is "true", and should be true or false'],
    [
      { rope_scaling: { factor: 8, rope_type: "default" } },
      "rope_scaling.factor is 8, which loam does not compute",
    ],
    [
      { rope_scaling: { rope_type: "dynamic", factor: 2 } },
      'rope_scaling.rope_type is "dynamic", and should be one of default, linear, llama3, yarn',
    ],
    [
      { rope_scaling: { type: "longrope" } },
      'rope_scaling.type is "longrope", and should be one of default, ',
    ],
    [
      { rope_scaling: { rope_type: "llama3", factor: 8 } },
      "rope_scaling.low_freq_factor is missing, and should be a positive number",
    ],
    [
      { rope_scaling: { type: "linear", factor: -2 } },
      "rope_scaling.factor is -2, and should be a positive number",
    ],
    [
      { rope_scaling: { type: "linear", factor: 2, beta_fast: 3 } },
      "rope_scaling.beta_fast is 3, which loam does not compute",
    ],
    [{ rope_parameters: { rope_type: "yarn" } }, "rope_parameters.factor is missing"],
    [{ rope_parameters: { partial_rotary_factor: 0.5 } }, "rope_parameters.partial_rotary_factor is 0.5"],
    [{ rope_parameters: { full_attention: { rope_theta: 9 } } }, "rope_parameters.full_attention is"],
    [{ rope_parameters: [1] }, "rope_parameters is [1], and should be an object"],
    [{ rope_theta: Infinity, rope_parameters: null }, "rope_theta is null, and should be a positive number"],
    [{ rope_theta: -1, rope_parameters: null }, "rope_theta is -1, and should be a positive number"],
    [{ head_dim: 63 }, "head_dim is 63, and should be even"],
    [
      { num_key_value_heads: 5 },
      "num_attention_heads is 16, and should be a multiple of num_key_value_heads, 5",
    ],
    [{ num_hidden_layers: 2.5 }, "num_hidden_layers is 2.5, and should be a whole number from 1 to 4096"],
    [{ num_hidden_layers: 1000000 }, "num_hidden_layers is 1000000, and should be a whole number from 1 to"],
    [{ hidden_size: 2 ** 32 }, "hidden_size is 4294967296, and should be a whole number from 1 to 65536"],
    [{ max_position_embeddings: 1e300 }, "max_position_embeddings is 1e+300, and should be a whole number"],
    [{ vocab_size: "50257" }, 'vocab_size is "50257", and should be a whole number from 1 to 16777216'],
  ];
  for (const [change, expected] of cases) {
    assertThrows(() => configFromHF({ ...json, ...change }, "m/config.json"), UserError, expected);
  }
  assertThrows(() => configFromHF({}), UserError, "model_type is missing");
  assertThrows(() => configFromHF([]), UserError, "its content is [], and should be a JSON object");
  assertThrows(() => configFromHF(null), UserError, "its content is null, and should be a JSON object");
});
