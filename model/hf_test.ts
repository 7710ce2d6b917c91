import { assertEquals, assertLess, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { readSafetensors, writeSafetensors } from "../runtime/safetensors.ts";
import { configFromHF, configToHF, generationConfig, hfShape, hfTensors } from "./hf.ts";
import { GPT_270M } from "./testing.ts";

const PYTHON = Deno.env.get("LOAM_PYTHON");
const OPTIONS = { bos_token_id: 50256, eos_token_id: 50256, dtype: "bfloat16" } as const;

function golden(name: string): ReturnType<typeof readSafetensors> & { config: unknown } {
  const file = readSafetensors(`${import.meta.dirname}/../tests/golden/${name}.safetensors`);
  return { ...file, config: JSON.parse(file.metadata.about!).config };
}

Deno.test("hfTensors() has the names and shapes of LlamaForCausalLM, tied and untied", () => {
  for (const name of ["llama_tiny", "llama_untied"]) {
    const { config, tensors } = golden(name);
    const ours = hfTensors(configFromHF(config));
    const weights = [...tensors.keys()].filter((name) => /^(model|lm_head)\./.test(name));
    assertEquals(ours.map((t) => t.hf).sort(), weights.sort());
    for (const t of ours) assertEquals([t.hf, hfShape(t)], [t.hf, tensors.get(t.hf)!.shape]);
  }
});

Deno.test("hfTensors() covers every row of ours once, in order", () => {
  const { n_embd: C, n_inner: F } = GPT_270M;
  const rows = new Map<string, number>();
  for (const { ours, row, rows: n } of hfTensors(GPT_270M)) {
    assertEquals([ours, row], [ours, rows.get(ours) ?? 0]);
    rows.set(ours, row + n);
  }
  assertEquals(rows.size, 24 * 6 + 2);
  assertEquals(rows.get("embed_tokens"), 50257);
  assertEquals(rows.get("layers.23.qkv_proj"), (16 + 2 * 4) * 64);
  assertEquals(rows.get("layers.23.gate_up_proj"), 2 * F);
  assertEquals(rows.get("layers.23.down_proj"), C);
});

Deno.test("hfTensors() counts 218 tensors and 322.0 million parameters for gpt-270m", () => {
  const tensors = hfTensors(GPT_270M);
  const parameters = tensors.reduce((n, t) => n + t.rows * (t.cols || 1), 0);
  assertEquals(tensors.length, 218);
  assertEquals(parameters, 270_582_784 + 50257 * 1024);
});

Deno.test("configFromHF() reads what configToHF() writes", () => {
  assertEquals(configFromHF(configToHF(GPT_270M, OPTIONS)), GPT_270M);
  const odd = { ...GPT_270M, head_dim: 32, rope_theta: 500000, norm_eps: 1e-5, tie_word_embeddings: false };
  assertEquals(configFromHF(configToHF(odd, OPTIONS)), odd);
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
    [{ model_type: "qwen3" }, 'model_type is "qwen3", and should be "llama"'],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu", and should be "silu"'],
    [{ attention_bias: true }, "attention_bias is true, which loam does not compute; remove it only if"],
    [{ mlp_bias: true }, "mlp_bias is true, which loam does not compute"],
    [{ rope_interleaved: true }, "rope_interleaved is true, which loam does not compute"],
    [{ sliding_window: 4096 }, "sliding_window is 4096, which loam does not compute"],
    [{ quantization_config: { bits: 4 } }, 'quantization_config is {"bits":4}, which loam does not compute'],
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
      { rope_scaling: { rope_type: "llama3" } },
      'rope_scaling.rope_type is "llama3", and should be "default"',
    ],
    [
      { rope_scaling: { type: "linear", factor: 2 } },
      'rope_scaling.type is "linear", and should be "default"',
    ],
    [{ rope_parameters: { rope_type: "yarn" } }, 'rope_parameters.rope_type is "yarn"'],
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

Deno.test({
  name:
    "hfTensors() and configToHF() make a directory that transformers load, with the same logits (LOAM_PYTHON)",
  ignore: !PYTHON,
  fn() {
    const script = `${import.meta.dirname}/../tests/oracle/check_checkpoint.py`;
    for (const name of ["llama_tiny", "llama_untied"]) {
      const { config, path, read } = golden(name);
      const ours = configFromHF(config);
      const directory = Deno.makeTempDirSync();
      const options = { bos_token_id: null, eos_token_id: 0, dtype: "float32" } as const;
      Deno.writeTextFileSync(`${directory}/config.json`, JSON.stringify(configToHF(ours, options)));
      Deno.writeTextFileSync(
        `${directory}/generation_config.json`,
        JSON.stringify(generationConfig(options)),
      );
      const entries = hfTensors(ours).map((t) => (
        { name: t.hf, dtype: "F32" as const, shape: hfShape(t), bytes: () => read(t.hf) }
      ));
      writeSafetensors(`${directory}/model.safetensors`, entries);

      const command = new Deno.Command(PYTHON!, { args: [script, directory, "--compare", path] });
      const { code, stdout, stderr } = command.outputSync();
      assertEquals(code, 0, new TextDecoder().decode(stderr));
      const report = JSON.parse(new TextDecoder().decode(stdout));
      assertEquals(report.tied, ours.tie_word_embeddings);
      assertLess(report.relative_error, 1e-6);
      Deno.removeSync(directory, { recursive: true });
    }
  },
});
