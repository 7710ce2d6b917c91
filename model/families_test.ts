// Each class of transformers that loam computes, against transformers itself: tests/oracle/families.py made the numbers.
import { assert, assertAlmostEquals, assertEquals, assertLess } from "@std/assert";
import { device } from "../ffi/library.ts";
import { loadTensors } from "../runtime/checkpoint.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { readSafetensors, toFloat32 } from "../runtime/safetensors.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { readFloats } from "../runtime/tensor.ts";
import { openTestDevice, tokens } from "../runtime/testing.ts";
import { loadModel, modelTensors, saveModel } from "./checkpoint.ts";
import { generate } from "./generate.ts";
import { fileTensors } from "./hf.ts";
import { configFromHF } from "./hf_config.ts";
import { init, loss, type Recompute } from "./llama.ts";
import { allLogits, followSteps, relativeError } from "./testing.ts";

const PYTHON = Deno.env.get("LOAM_PYTHON");
const ORACLE = new URL("../tests/oracle/families.py", import.meta.url).pathname;
const GOLDEN = new URL("../tests/golden/families/", import.meta.url).pathname;
openTestDevice();
const isFloat = device.act === "f32";

type Golden = ReturnType<typeof open>;

/** A file of the oracle: the model that it describes, with its weights, and its numbers. */
function open(path: string) {
  const { tensors, read, metadata } = readSafetensors(path), about = JSON.parse(metadata.about!);
  const c = configFromHF(about.config), model = init(c);
  const parameters = new Parameters(model, { seed: 0, train: true });
  loadTensors(path, modelTensors(parameters, c));
  const floats = (name: string) => toFloat32(read(name), "F32");
  const ints = (name: string) => new Int32Array(read(name).buffer);
  const [idx, targets] = ["idx", "targets"].map((name) => tokens(tensors.get(name)!.shape, ints(name)));
  return { path, c, model, parameters, floats, ints, about, idx: idx!, targets: targets! };
}

function checkForwardAndBackward(golden: Golden): void {
  const { model, parameters, c, idx, targets, floats } = golden;
  assertLess(relativeError(allLogits(model, c, idx), floats("logits")), 1e-5);
  for (const recompute of ["norm_swiglu", "block"] satisfies Recompute[]) {
    parameters.zeroGrad();
    const l = loss(model, idx, targets, c, { recompute });
    backward(l);
    assertAlmostEquals(l.toArray()[0]!, floats("loss")[0]!, 1e-5);
    const declared = parameters.slots.map(({ name, tensor }) => {
      const { shape, buf } = tensor, rows = "rows" in buf.init! ? buf.init.rows ?? shape[0]! : shape[0]!;
      return { name, shape: [rows, ...shape.slice(1)] };
    });
    for (const { name, shape, ours, first } of fileTensors(declared, c)) {
      const { offset } = parameters.slots.find((slot) => slot.name === ours)!;
      const at = parameters.grads!.address + BigInt(4 * (offset + first));
      const error = relativeError(
        readFloats(at, shape.reduce((a, b) => a * b), "f32"),
        floats(`grad.${name}`),
      );
      assert(error < 1e-4, `${name}, recompute ${recompute}: relative error ${error}`);
    }
    endStep();
  }
}

function checkText({ model, c, ints }: Golden): void {
  const options = { max_new_tokens: 12, temperature: 0, top_k: 0, top_p: 1, seed: 0 };
  const prompt = Array.from(ints("idx").slice(0, 4));
  assertEquals(Array.from(generate(model, c, prompt, options)), Array.from(ints("greedy")));
}

function checkTraining({ model, parameters, c, idx, targets, floats, about }: Golden): void {
  const { betas: [beta1, beta2], ...rest } = about.optimizer;
  const optimizer = new AdamW(parameters, { beta1, beta2, ...rest });
  parameters.zeroGrad();
  followSteps(optimizer, () => loss(model, idx, targets, c), floats);
}

/** Saves the model as loam does; what loadModel() reads is the same model. */
function save({ path, c, model, parameters }: Golden): string {
  const directory = Deno.makeTempDirSync();
  saveModel(directory, parameters, c, { bos: 0, eot: 0, files: () => ({}) });
  const loaded = loadModel(directory);
  assertEquals(loaded.config, c);
  assertEquals(loaded.model.layers[0]!.qkv_proj.toArray(), model.layers[0]!.qkv_proj.toArray());
  const names = (file: string) =>
    Array.from(readSafetensors(file).tensors.keys()).filter((name) => /^(model|lm_head)\./.test(name)).sort();
  assertEquals(names(`${directory}/model.safetensors`), names(path));
  Deno.copyFileSync(path, `${directory}/golden.safetensors`);
  return directory;
}

const FAMILIES = Array.from(Deno.readDirSync(GOLDEN), ({ name }) => name.replace(".safetensors", "")).sort();

Deno.test("there is a golden for each family but Llama's plain kind, and each kind of scaled RoPE", () => {
  const configs = FAMILIES.map((name) => open(`${GOLDEN}${name}.safetensors`).c);
  assertEquals(new Set(configs.map(({ family = "llama" }) => family)).size, 5);
  assertEquals(new Set(configs.map(({ rope_scaling }) => rope_scaling?.rope_type)).size, 4);
});

for (const name of FAMILIES) {
  Deno.test({
    name: `${name}: logits, loss, every gradient and text are those of transformers, also after it is saved`,
    ignore: !isFloat,
    fn() {
      const golden = open(`${GOLDEN}${name}.safetensors`);
      checkForwardAndBackward(golden);
      checkText(golden);
      Deno.removeSync(save(golden), { recursive: true });
    },
  });

  Deno.test({
    name: `${name}: 10 AdamW steps follow transformers' losses and gradient norms`,
    ignore: !isFloat,
    fn: () => checkTraining(open(`${GOLDEN}${name}.safetensors`)),
  });
}

Deno.test({
  name: "random shapes of each family are those of transformers, which load what loam saved (LOAM_PYTHON)",
  ignore: !PYTHON || !isFloat,
  fn() {
    const python = (...args: string[]) => {
      const { code, stdout, stderr } = new Deno.Command(PYTHON!, { args: [ORACLE, ...args] }).outputSync();
      assertEquals(code, 0, new TextDecoder().decode(stderr));
      return new TextDecoder().decode(stdout);
    };
    const cases = Deno.makeTempDirSync(), seed = Math.floor(Math.random() * 1e6);
    python("cases", cases, "--seed", `${seed}`);
    const saved = FAMILIES.map((name) => {
      const golden = open(`${cases}/${name}.safetensors`);
      try {
        checkForwardAndBackward(golden);
        checkText(golden);
        const directory = save(golden);
        checkTraining(golden);
        return directory;
      } catch (error) {
        throw new Error(`${name}, seed ${seed}`, { cause: error });
      }
    });
    const reports = JSON.parse(python("check", ...saved));
    for (const [i, { architecture, missing, unexpected, error }] of reports.entries()) {
      const { architectures } = open(`${cases}/${FAMILIES[i]}.safetensors`).about.config;
      assertEquals([architecture, missing, unexpected], [architectures[0], [], []], FAMILIES[i]);
      assertLess(error, 1e-5, FAMILIES[i]);
    }
    for (const directory of [cases, ...saved]) Deno.removeSync(directory, { recursive: true });
  },
});
