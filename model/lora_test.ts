// LoRA against PEFT, on the numbers that tests/oracle/lora.py made, and the names and settings of its files.
import { assert, assertAlmostEquals, assertEquals, assertLess, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { device } from "../ffi/library.ts";
import { loadTensors } from "../runtime/checkpoint.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { readSafetensors, toFloat32 } from "../runtime/safetensors.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { named, readFloats, writeFloats } from "../runtime/tensor.ts";
import { gradient, normal, openTestDevice, tokens } from "../runtime/testing.ts";
import { adapterTensors, hfShape } from "./hf.ts";
import { modelTensors } from "./checkpoint.ts";
import { configFromHF } from "./hf_config.ts";
import { init, type LlamaConfig, type Lora, LORA_TARGETS, loss, RECOMPUTE } from "./llama.ts";
import { adapterFiles, loraOf, readAdapterConfig } from "./lora.ts";
import { allLogits, followSteps, relativeError } from "./testing.ts";
import { isAdapter, trainsOf } from "./trained.ts";

openTestDevice();
const isFloat = device.act === "f32";
const SMALL: LlamaConfig = {
  ...{ vocab_size: 65, n_layer: 2, n_embd: 64, n_head: 2, n_kv_head: 1, head_dim: 32, n_inner: 48 },
  ...{ block_size: 16, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: true },
};
const ALL: Lora = { rank: 8, alpha: 16, targets: LORA_TARGETS };
const PATH = new URL("../tests/golden/lora.safetensors", import.meta.url).pathname;

/** The base of the golden with its first adapters, in memory, and what PEFT made of them. */
function open() {
  const { tensors, read, metadata } = readSafetensors(PATH), about = JSON.parse(metadata.about!);
  const base = configFromHF(about.config), c = { ...base, lora: about.lora as Lora }, model = init(c);
  const parameters = new Parameters(model, { seed: 0, train: true, trains: trainsOf(model, "") });
  loadTensors(PATH, modelTensors(parameters, base).filter(({ name }) => !isAdapter(name)));
  const floats = (name: string) => toFloat32(read(name), "F32");
  for (const { name, tensor } of parameters.trained) {
    writeFloats(tensor.address, floats(`first.${name}`), "act");
  }
  const [idx, targets] = ["idx", "targets"].map((name) =>
    tokens(tensors.get(name)!.shape, new Int32Array(read(name).buffer))
  );
  return { c, model, parameters, floats, about, idx: idx!, targets: targets! };
}

Deno.test({
  name: "logits, loss and the gradients of adapters are PEFT's, however much is recomputed",
  ignore: !isFloat,
  fn() {
    const { c, model, parameters, floats, idx, targets } = open();
    assertLess(relativeError(allLogits(model, c, idx), floats("logits")), 1e-5);
    assertEquals(parameters.trained.length, 2 * 4 * 2);
    for (const recompute of RECOMPUTE) {
      parameters.zeroGrad();
      const l = loss(model, idx, targets, c, { recompute });
      backward(l);
      assertAlmostEquals(l.toArray()[0]!, floats("loss")[0]!, 1e-5);
      for (const { name, tensor } of parameters.trained) {
        const grad = readFloats(tensor.buf.grad!.address, tensor.size, "f32");
        const error = relativeError(grad, floats(`grad.${name}`));
        assert(error < 1e-4, `${name}, recompute ${recompute}: relative error ${error}`);
      }
      endStep();
    }
  },
});

Deno.test({
  name: "10 AdamW steps follow PEFT's losses and gradient norms to its adapters",
  ignore: !isFloat,
  fn() {
    const { c, model, parameters, floats, about, idx, targets } = open();
    const { betas: [beta1, beta2], ...rest } = about.optimizer;
    const optimizer = new AdamW(parameters, { beta1, beta2, ...rest });
    followSteps(optimizer, () => loss(model, idx, targets, c), floats);
    for (const { name, tensor } of parameters.trained) {
      assertLess(relativeError(tensor.toArray(), floats(`last.${name}`)), 1e-3, name);
    }
  },
});

Deno.test("new adapters change nothing, and B has the gradient of the weight, scale dW A^T", () => {
  const ids = (step: number) => tokens([2, 16], Array.from({ length: 32 }, (_, i) => i * step % 65));
  const idx = ids(7), targets = ids(11), start = (name: string) => Array.from(name).length % 7 + name.length;
  for (const recompute of RECOMPUTE) {
    const [all, low] = [SMALL, { ...SMALL, lora: ALL }].map((c) => {
      const model = init(c), trains = trainsOf(model, "");
      const load = (name: string, address: bigint) => {
        if (isAdapter(name)) return false; // the others have values that do not depend on their place
        const { tensor } = parametersOf.find((slot) => slot.name === name)!;
        const values = normal(tensor.size, start(name)).map((x) => /norm/.test(name) ? 1 + 0.1 * x : 0.2 * x);
        writeFloats(address, values, "f32");
        return undefined;
      };
      const parametersOf = named(model).map(([name, tensor]) => ({ name, tensor }));
      new Parameters(model, { seed: 3, train: true, trains, load });
      const l = loss(model, idx, targets, c, { recompute });
      backward(l);
      const value = l.toArray()[0];
      endStep();
      return { model, value };
    });
    assertEquals(low!.value, all!.value, recompute);
    low!.model.layers.forEach((layer, i) => {
      for (const name of LORA_TARGETS) {
        const { A, B } = layer.lora![name]!,
          w = all!.model.layers[i]![name],
          [OUT, IN] = w.shape as [number, number];
        const dw = gradient(w), a = A.toArray();
        const dB = Float64Array.from({ length: OUT * 8 }, (_, at) => {
          const [row, k] = [Math.floor(at / 8), at % 8];
          return 2 * dw.subarray(row * IN, row * IN + IN).reduce((sum, d, c) => sum + d * a[k * IN + c]!, 0);
        });
        assertLess(
          relativeError(gradient(B), dB),
          isFloat ? 1e-4 : 3e-2,
          `B of ${name}, recompute ${recompute}`,
        );
        assert(gradient(A).every((d) => d === 0), `A of ${name}, recompute ${recompute}`);
      }
    });
  }
});

Deno.test("adapters begin as PEFT's do: A with the variance of kaiming_uniform(a = sqrt(5)), B zero", () => {
  const model = init({ ...SMALL, n_embd: 512, n_inner: 512, lora: { ...ALL, rank: 16 } });
  new Parameters(model, { seed: 1, train: true, trains: trainsOf(model, "") });
  const { A, B, scale } = model.layers[0]!.lora!.gate_up_proj!;
  const values = A.toArray(), variance = values.reduce((sum, a) => sum + a * a, 0) / values.length;
  assertAlmostEquals(variance * 3 * 512, 1, 0.06); // uniform in +-1/sqrt(512); of 8192 values to 4 deviations
  assert(B.toArray().every((b) => b === 0));
  assertEquals(scale, 1);
});

Deno.test("adapterTensors() are the names and shapes of PEFT on a Llama, in which parts of a matrix share A", () => {
  const c: LlamaConfig = {
    ...{ ...SMALL, n_embd: 16, head_dim: 8, n_inner: 24 },
    lora: { rank: 4, alpha: 8, targets: ["qkv_proj", "down_proj"] },
  };
  const inFile = adapterTensors(c).slice(0, 8).map((t) => [t.hf, ...hfShape(t), t.ours, t.row]);
  const path = "base_model.model.model.layers.0", own = "layers.0.lora";
  assertEquals(inFile, [ // as PEFT 0.21 writes them, H 2, K 1, D 8, F 24
    [`${path}.self_attn.q_proj.lora_A.weight`, 4, 16, `${own}.qkv_proj.A`, 0],
    [`${path}.self_attn.q_proj.lora_B.weight`, 16, 4, `${own}.qkv_proj.B`, 0],
    [`${path}.self_attn.k_proj.lora_A.weight`, 4, 16, `${own}.qkv_proj.A`, 0],
    [`${path}.self_attn.k_proj.lora_B.weight`, 8, 4, `${own}.qkv_proj.B`, 16],
    [`${path}.self_attn.v_proj.lora_A.weight`, 4, 16, `${own}.qkv_proj.A`, 0],
    [`${path}.self_attn.v_proj.lora_B.weight`, 8, 4, `${own}.qkv_proj.B`, 24],
    [`${path}.mlp.down_proj.lora_A.weight`, 4, 24, `${own}.down_proj.A`, 0],
    [`${path}.mlp.down_proj.lora_B.weight`, 16, 4, `${own}.down_proj.B`, 0],
  ]);
});

Deno.test("readAdapterConfig() reads what adapterFiles() writes, and names what loam does not compute", () => {
  const directory = Deno.makeTempDirSync(), file = `${directory}/adapter_config.json`;
  const lora: Lora = { rank: 4, alpha: 8.5, targets: ["qkv_proj", "down_proj"] };
  const files = adapterFiles(lora, { path: "models/x", sha256: {} });
  assertEquals(readAdapterConfig(directory), undefined);
  const said = JSON.parse(files["adapter_config.json"]!);
  const write = (changes: Record<string, unknown>) =>
    Deno.writeTextFileSync(file, JSON.stringify({ ...said, ...changes }));
  write({});
  assertEquals(readAdapterConfig(directory), { lora, path: "models/x" });
  write({ target_modules: ["down_proj", "v_proj", "k_proj", "q_proj"], lora_bias: false }); // PEFT has a set
  assertEquals(readAdapterConfig(directory)!.lora, lora);
  for (
    const [changes, wrong] of [
      [{ peft_type: "IA3" }, 'peft_type is "IA3", should be "LORA"'],
      [{ r: 0 }, "r is 0, should be a whole number above 0"],
      [{ lora_alpha: "8" }, 'lora_alpha is "8", should be a number'],
      [
        { base_model_name_or_path: null },
        "base_model_name_or_path is null, should be the directory of the base",
      ],
      [{ use_rslora: true }, "use_rslora is true, should be false"],
      [{ use_dora: true }, "use_dora is true, should be false"],
      [{ rank_pattern: { q_proj: 8 } }, 'rank_pattern is {"q_proj":8}, should be {}'],
      [{ modules_to_save: ["lm_head"] }, 'modules_to_save is ["lm_head"], should be null'],
      [
        { target_modules: ["q_proj", "v_proj"] },
        'target_modules is ["q_proj","v_proj"], should be a list of q_proj',
      ],
      [
        { target_modules: ["o_proj", "q_proj"] },
        'target_modules is ["o_proj","q_proj"], should be a list of q_proj',
      ],
      [{ target_modules: "all-linear" }, 'target_modules is "all-linear", should be a list of q_proj with'],
    ] as const
  ) {
    write(changes);
    assertThrows(() => readAdapterConfig(directory), UserError, `Cannot use ${file}: ${wrong}`);
  }
  Deno.removeSync(directory, { recursive: true });
});

Deno.test("loraOf() orders targets, and refuses what is none", () => {
  const flags = { lora_rank: 2, lora_alpha: 4, lora_targets: "down_proj, qkv_proj" };
  assertEquals(loraOf(flags), { rank: 2, alpha: 4, targets: ["qkv_proj", "down_proj"] });
  assertEquals(loraOf({ ...flags, lora_rank: 0, lora_targets: "" }), undefined);
  for (const lora_targets of ["", "o_proj,", "layers.*.o_proj", "o_porj"]) {
    assertThrows(() => loraOf({ ...flags, lora_targets }), UserError, "Cannot adapt ");
  }
});
