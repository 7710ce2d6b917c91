// A whole run of train.ts beside the same run written a second time with PyTorch (tests/oracle/train_run.py): three micro-steps
// a step, warm-up and cosine to the end, clipping in some steps, decay, two epochs of data that twelve windows a step do not
// divide, evaluation with a partial batch. What the flags below do not set are the defaults of train.ts.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { libraryExists, open } from "../ffi/library.ts";
import { modelTensors } from "../model/checkpoint.ts";
import { init, type LlamaConfig } from "../model/llama.ts";
import { forgetMemory } from "../runtime/memory.ts";
import { Parameters } from "../runtime/optim.ts";
import { readSafetensors } from "../runtime/safetensors.ts";
import { readFloats } from "../runtime/tensor.ts";
import {
  ALONE,
  chatDataset,
  chatExpected,
  compare,
  compareSteps,
  expected,
  FLAGS,
  GOLDEN,
  SHARED,
  values,
} from "./golden_run.ts";
import { freshPath, isInstalled, metrics, mpirun, run, succeed } from "./testing.ts";

open("cpu", { threads: 2 });

const GOLDEN_MODEL: LlamaConfig = {
  ...{ vocab_size: 257, n_layer: 2, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 32, n_inner: 48 },
  ...{ block_size: 16, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: true },
};

/** The weights that a model begins with, under the names they have on disk. */
function firstWeights(config: LlamaConfig, seed: number) {
  forgetMemory();
  return modelTensors(new Parameters(init(config), { seed, train: false }), config);
}

Deno.test("the first weights are those of the generator written a second time", () => {
  const theirs = readSafetensors(`${GOLDEN}/first.safetensors`);
  for (const { name, shape, address } of firstWeights(GOLDEN_MODEL, expected.seed)) {
    const ours = readFloats(address, shape.reduce((a, b) => a * b, 1), "act"), wanted = values(theirs, name);
    ours.forEach((value, i) =>
      assert(Math.abs(value - wanted[i]!) <= 1e-7, `${name}[${i}] is ${value}, should be ${wanted[i]}`)
    );
  }
});

Deno.test("first weights have mean 0, deviation 0.02 and 0.02/sqrt(2 n_layer) on the residual path, norms 1", () => {
  const n_layer = 3, config = { ...GOLDEN_MODEL, n_layer, n_embd: 128, n_inner: 256, head_dim: 64 };
  for (const { name, shape, address } of firstWeights(config, 1337)) {
    const n = shape.reduce((a, b) => a * b, 1), w = readFloats(address, n, "act");
    if (name.includes("norm")) {
      assert(w.every((value) => value === 1), name);
      continue;
    }
    const wanted = /o_proj|down_proj/.test(name) ? 0.02 / Math.sqrt(2 * n_layer) : 0.02;
    const mean = w.reduce((a, b) => a + b, 0) / n;
    const std = Math.sqrt(w.reduce((sum, value) => sum + (value - mean) ** 2, 0) / n);
    // of n samples the mean has a deviation of std / sqrt(n), the deviation one of std / sqrt(2 n)
    assert(Math.abs(mean) < 5 * wanted / Math.sqrt(n), `${name}: mean ${mean}`);
    assert(
      Math.abs(std - wanted) < 5 * wanted / Math.sqrt(2 * n),
      `${name}: deviation ${std}, not ${wanted}`,
    );
  }
});

Deno.test("train gives the losses, norms, rates and weights of the same run in PyTorch", async () => {
  const out = freshPath();
  await succeed("train", ...FLAGS, ...ALONE, "--device=cpu", `--out_dir=${out}`);
  compare(out, { loss: 1e-6, weights: 5e-6 });
});

Deno.test("train on conversations gives the losses and norms of the same run in PyTorch, with labels of -100 and each by itself", async () => {
  const out = freshPath();
  await succeed(
    "train",
    ...FLAGS,
    ...ALONE,
    "--device=cpu",
    `--data_dir=${chatDataset()}`,
    `--out_dir=${out}`,
  );
  compareSteps(out, chatExpected, 1e-6);
});

Deno.test("train without a token that is trained on has losses and norms of 0, and refuses masks of another dataset", async () => {
  const data = chatDataset(),
    out = freshPath(),
    flags = [...FLAGS, ...ALONE, "--device=cpu", `--data_dir=${data}`];
  for (const { name } of Deno.readDirSync(data)) {
    if (name.endsWith(".mask")) {
      Deno.writeFileSync(`${data}/${name}`, new Uint8Array(Deno.statSync(`${data}/${name}`).size));
    }
  }
  const { code, stderr } = await run("train", ...flags, `--out_dir=${out}`);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^error: Cannot use ".*\/train_00000\d\.mask": its SHA-256 is \w+, should be \w+; write the dataset again/,
  );
  const unseen = [...flags, "--verify_data=false", "--max_iters=4", `--out_dir=${out}`];
  assertMatch(
    (await run("train", ...unseen)).stderr,
    /^error: Cannot evaluate on .*: no token in the first 3 batches/,
  );
  const said = await run("train", ...unseen, "--eval_interval=0");
  assertEquals(said.code, 0);
  const warning =
    /^warning: no token of step (\d) is trained on: its loss is 0, .* than \d+, or more windows/gm;
  assertEquals(Array.from(`${said.stdout}${said.stderr}`.matchAll(warning), ([, step]) => step), ["1"]);
  const steps = metrics(out);
  assertEquals(steps.map(({ loss, grad_norm }) => [loss, grad_norm]), Array(4).fill([0, 0]));
});

Deno.test({
  name: "two ranks train on conversations with the losses and norms of the same run in PyTorch (mpirun)",
  ignore: !isInstalled("mpirun"),
  async fn() {
    const out = freshPath();
    await mpirun(2, ...FLAGS, ...SHARED, "--device=cpu", `--data_dir=${chatDataset()}`, `--out_dir=${out}`);
    compareSteps(out, chatExpected, 1e-6);
  },
});

Deno.test({
  name: "two ranks give the losses, norms, rates and weights of the same run in PyTorch (mpirun)",
  ignore: !isInstalled("mpirun"),
  async fn() {
    const out = freshPath();
    await mpirun(2, ...FLAGS, ...SHARED, "--device=cpu", `--out_dir=${out}`);
    compare(out, { loss: 1e-6, weights: 5e-6 });
  },
});

Deno.test({
  name: "train on the emulated GPU gives the run in PyTorch within bfloat16 rounding",
  ignore: !libraryExists("emu"),
  async fn() {
    const out = freshPath();
    await succeed("train", ...FLAGS, ...ALONE, "--device=emu", `--out_dir=${out}`);
    compare(out, { loss: 1e-3, weights: 3e-2 });
  },
});
