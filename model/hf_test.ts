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
