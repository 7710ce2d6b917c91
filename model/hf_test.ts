import { assertEquals, assertLess } from "@std/assert";
import { readSafetensors, writeSafetensors } from "../runtime/safetensors.ts";
import { hfShape, hfTensors } from "./hf.ts";
import { configFromHF, configToHF, generationConfig } from "./hf_config.ts";
import { GPT_270M } from "./testing.ts";

const PYTHON = Deno.env.get("LOAM_PYTHON");

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

// What stands in the config.json of models as they are published, and how many parameters they are said to have.
const PUBLISHED: [name: string, parameters: number, config: Record<string, unknown>][] = [
  ["SmolLM2-135M", 134_515_008, {
    ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], vocab_size: 49152, hidden_size: 576 },
    ...{ intermediate_size: 1536, num_hidden_layers: 30, num_attention_heads: 9, num_key_value_heads: 3 },
    ...{ max_position_embeddings: 8192, rope_theta: 100000, rope_scaling: null, rope_interleaved: false },
    ...{ is_llama_config: true, tie_word_embeddings: true, "transformers.js_config": { dtype: "q4" } },
  }],
  ["Llama-3.2-1B", 1_235_814_400, {
    ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], vocab_size: 128256, hidden_size: 2048 },
    ...{ intermediate_size: 8192, num_hidden_layers: 16, num_attention_heads: 32, num_key_value_heads: 8 },
    ...{ head_dim: 64, max_position_embeddings: 131072, rope_theta: 500000, tie_word_embeddings: true },
    rope_scaling: {
      ...{ factor: 32, high_freq_factor: 4, low_freq_factor: 1, original_max_position_embeddings: 8192 },
      rope_type: "llama3",
    },
  }],
  ["Mistral-7B-v0.1", 7_241_732_096, {
    ...{ model_type: "mistral", architectures: ["MistralForCausalLM"], vocab_size: 32000, hidden_size: 4096 },
    ...{ intermediate_size: 14336, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8 },
    ...{ max_position_embeddings: 32768, sliding_window: 4096, rms_norm_eps: 1e-5 },
  }],
  ["Qwen2.5-0.5B", 494_032_768, {
    ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], vocab_size: 151936, hidden_size: 896 },
    ...{ intermediate_size: 4864, num_hidden_layers: 24, num_attention_heads: 14, num_key_value_heads: 2 },
    ...{
      max_position_embeddings: 32768,
      max_window_layers: 24,
      sliding_window: 32768,
      use_sliding_window: false,
    },
    ...{ rope_theta: 1000000, use_mrope: false, tie_word_embeddings: true },
  }],
  ["Qwen3-0.6B", 596_049_920, {
    ...{ model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], vocab_size: 151936, hidden_size: 1024 },
    ...{ intermediate_size: 3072, num_hidden_layers: 28, num_attention_heads: 16, num_key_value_heads: 8 },
    ...{ head_dim: 128, max_position_embeddings: 40960, max_window_layers: 28, sliding_window: null },
    ...{ rope_scaling: null, rope_theta: 1000000, attention_bias: false, tie_word_embeddings: true },
  }],
  ["SmolLM3-3B", 3_075_098_624, {
    ...{
      model_type: "smollm3",
      architectures: ["SmolLM3ForCausalLM"],
      vocab_size: 128256,
      hidden_size: 2048,
    },
    ...{ intermediate_size: 11008, num_hidden_layers: 36, num_attention_heads: 16, num_key_value_heads: 4 },
    ...{ max_position_embeddings: 65536, rope_theta: 5000000, pad_token_id: 128004, mlp_bias: false },
    ...{
      no_rope_layers: Array.from({ length: 36 }, (_, i) => i % 4 === 3 ? 0 : 1),
      no_rope_layer_interval: 4,
    },
    layer_types: Array(36).fill("full_attention"),
  }],
];

Deno.test("hfTensors() has as many parameters as models of each class are published with", () => {
  for (const [name, parameters, config] of PUBLISHED) {
    const tensors = hfTensors(configFromHF({ rms_norm_eps: 1e-6, hidden_act: "silu", ...config }));
    assertEquals(tensors.reduce((n, t) => n + t.rows * (t.cols || 1), 0), parameters, name);
  }
});

Deno.test("hfTensors() counts 218 tensors and 322.0 million parameters for gpt-270m", () => {
  const tensors = hfTensors(GPT_270M);
  const parameters = tensors.reduce((n, t) => n + t.rows * (t.cols || 1), 0);
  assertEquals(tensors.length, 218);
  assertEquals(parameters, 270_582_784 + 50257 * 1024);
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
