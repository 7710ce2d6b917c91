// A model/llama.ts that was edited: what it adds is trained, counted, saved and loaded, or refused by name.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { modelTensors, optimizerTensors, resumeFrom } from "../model/checkpoint.ts";
import { configToHF } from "../model/hf_config.ts";
import type * as Model from "../model/llama.ts";
import { withPlan } from "../ffi/library.ts";
import { saveCheckpoint } from "../runtime/checkpoint.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { memoryByKind, withOwnMemory } from "../runtime/memory.ts";
import { readSafetensors } from "../runtime/safetensors.ts";
import { backward, beginMasks, endStep, flopsOf, noGrad } from "../runtime/tape.ts";
import { fixed, readFloats, type Tensor, writeFloats } from "../runtime/tensor.ts";
import { assertClose, gradient, integers, openTestDevice, tokens } from "../runtime/testing.ts";
import { dataset, errorLine, freshPath, metrics, ROOT, run, runIn, SMALL, succeed } from "./testing.ts";

/** The edits of examples/edits, by name. */
const EXAMPLES = Array.from(Deno.readDirSync(new URL("examples/edits", ROOT)), ({ name }) => name)
  .map((file) => file.replace(".diff", "")).sort();

/** Changes the model/llama.ts below a directory as examples of edits do. */
async function applyTo(directory: string, ...names: string[]): Promise<void> {
  for (const name of names) {
    const patch = new URL(`examples/edits/${name}.diff`, ROOT).pathname;
    const git = new Deno.Command("git", { args: ["apply", patch], cwd: directory });
    const { success, stderr } = await git.output();
    assert(success, `git apply examples/edits/${name}.diff: ${new TextDecoder().decode(stderr)}`);
  }
}

/** A second head matrix behind each block, in place of nothing: C x C more weights a layer, which every token meets. */
const EXTRA_LINEAR: [after: string, added: string][] = [
  ["  o_proj: Tensor; // (C, H * D)\n", "  extra: Tensor;\n"],
  ["      o_proj: param([C, H * D], { std: residual_std }),\n", "      extra: param([C, C], { std }),\n"],
  [
    "    x = selfAttention(x, w, c, keep, i, starts, layer && { layer, pos });\n",
    "    x = linear(x, w.extra, x);\n",
  ],
];

/** A copy of loam whose model/llama.ts may be edited. Everything else is this one's. */
function copyOfLoam(): string {
  const root = ROOT.pathname.replace(/\/$/, ""), copy = freshPath();
  Deno.mkdirSync(`${copy}/model`, { recursive: true });
  for (const { name } of Deno.readDirSync(root)) {
    if (name === "deno.json" || name === "deno.lock") Deno.copyFileSync(`${root}/${name}`, `${copy}/${name}`);
    else if (name !== "model" && name !== ".git") Deno.symlinkSync(`${root}/${name}`, `${copy}/${name}`);
  }
  for (const { name } of Deno.readDirSync(`${root}/model`)) {
    Deno.copyFileSync(`${root}/model/${name}`, `${copy}/model/${name}`);
  }
  return copy;
}

/** Such a copy whose model/llama.ts has more lines. */
function loamWith(lines: typeof EXTRA_LINEAR): string {
  const copy = copyOfLoam(), path = `${copy}/model/llama.ts`;
  let source = Deno.readTextFileSync(path);
  for (const [after, added] of lines) {
    assertEquals(source.split(after).length, 2, after);
    source = source.replace(after, () => after + added);
  }
  Deno.writeTextFileSync(path, source);
  return copy;
}

/** Runs a task of such a copy, which has to succeed. */
async function succeedIn(directory: string, task: "train" | "sample", ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runIn(directory, task, ...args);
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  return stdout;
}

Deno.test("weights that model/llama.ts has more are saved, loaded, resumed to the same bits, and refused without it", async () => {
  const edited = copyOfLoam(), data = await dataset(), [whole, parts] = [freshPath(), freshPath()];
  const flags = [
    ...SMALL,
    `--data_dir=${data}`,
    "--save_interval=4",
    "--eval_interval=4",
    "--min_lr=0.01",
    "--eval_batches=1000",
  ];
  await applyTo(edited, "qk_norm", "dropout"); // masks are those of the step, in whatever process
  await succeedIn(edited, "train", ...flags, `--out_dir=${whole}`, "--max_iters=8");
  await succeedIn(edited, "train", ...flags, `--out_dir=${parts}`, "--max_iters=4");
  await succeedIn(edited, "train", `--resume=${parts}`, "--max_iters=8");
  const seen = (run: string) => metrics(run).map(({ loss, val_loss }) => [loss, val_loss]);
  assertEquals(seen(parts), seen(whole));

  const checkpoint = `${whole}/checkpoints/step_000008`,
    { tensors } = readSafetensors(`${checkpoint}/model.safetensors`);
  const own = ["q_scale", "k_scale"].flatMap((name) => [0, 1].map((layer) => `layers.${layer}.${name}`));
  assertEquals(Array.from(tensors.keys()).filter((name) => !name.startsWith("model.")).sort(), own.sort());
  assertEquals(tensors.get("layers.0.q_scale")!.shape, [8]);
  const config = JSON.parse(Deno.readTextFileSync(`${checkpoint}/config.json`));
  assertEquals([config.model_type, config.architectures], ["loam", undefined]);
  assertMatch(
    config.note,
    /not a Llama as in transformers: layers\.0\.q_scale, layers\.0\.k_scale, layers\.1\.q_scale, /,
  );

  const last = metrics(whole).at(-1)!.val_loss!;
  const all = await succeedIn(edited, "train", `--resume=${whole}`, "--eval_only");
  assertStringIncludes(all, `val loss ${last.toFixed(6)}, `);
  assert((await succeedIn(edited, "sample", "--device=cpu", `--checkpoint=${whole}`)).length > 10);

  for (const [task, flag] of [["sample", `--checkpoint=${whole}`], ["train", `--resume=${whole}`]] as const) {
    const { code, stderr } = await run(
      task,
      flag,
      ...(task === "train" ? ["--max_iters=9"] : ["--device=cpu"]),
    );
    assertEquals(code, 1);
    assertMatch(
      errorLine(stderr),
      /model\.safetensors: it has layers\.0\.[qk]_scale \(8\), which (loam does not|the model lacks)/,
    );
  }
});

Deno.test("weights that a checkpoint lacks are named before anything is trained", async () => {
  const out = freshPath(), flags = [...SMALL, `--data_dir=${await dataset()}`, "--save_interval=2"];
  await succeed("train", ...flags, `--out_dir=${out}`, "--max_iters=2");
  const edited = copyOfLoam();
  await applyTo(edited, "qk_norm");
  const { code, stderr } = await runIn(edited, "train", `--resume=${out}`, "--max_iters=4");
  assertEquals(code, 1);
  assertMatch(errorLine(stderr), /model\.safetensors: it has no tensor layers\.0\.q_scale of shape \(8\)$/);
  assertEquals(metrics(out).length, 2);
});

Deno.test("a model that computes something else without weights of its own is no Llama to others, nor to loam", async () => {
  const edited = copyOfLoam(), out = freshPath(), data = await dataset();
  await applyTo(edited, "parallel_blocks");
  const flags = [...SMALL, `--data_dir=${data}`, `--out_dir=${out}`, "--save_interval=1", "--max_iters=1"];
  await succeedIn(edited, "train", ...flags);
  const path = `${out}/checkpoints/step_000001/config.json`, config = JSON.parse(Deno.readTextFileSync(path));
  assertEquals([config.model_type, config.architectures, config.variant], [
    "loam",
    undefined,
    "parallel blocks",
  ]);
  assertMatch(config.note, /not a Llama as in transformers: parallel blocks$/);
  const { code, stderr } = await run("train", `--resume=${out}`, "--max_iters=2");
  assertEquals(code, 1);
  assertMatch(
    errorLine(stderr),
    /variant is "parallel blocks", and should be that of model\/llama\.ts, which has none$/,
  );
  await succeedIn(edited, "train", `--resume=${out}`, "--max_iters=2");
});

Deno.test("parameters and FLOPs of an edited model are counted from what it declares and runs", async () => {
  const edited = loamWith(EXTRA_LINEAR),
    flags = [...SMALL, `--data_dir=${await dataset()}`, "--n_embd=64", "--dry_run"];
  const read = (text: string) => {
    const [, all, rest] = /^model {2}([\d.]+)k parameters, ([\d.]+)k without embeddings$/m.exec(text)!;
    return { all: Number(all), rest: Number(rest), step: Number(/, ([\d.]+) TFLOP a step/.exec(text)![1]) };
  };
  const large = ["--batch_size=1000", "--gradient_accumulation_steps=1000"]; // so that TFLOP have digits enough
  const plain = read(await succeed("train", ...flags, ...large)),
    more = read(await succeedIn(edited, "train", ...flags, ...large));
  assertEquals([more.all - plain.all, more.rest - plain.rest].map((n) => n.toFixed(1)), ["8.2", "8.2"]); // 2 x 64 x 64
  // 6 FLOPs for each new weight and each of 16 million tokens
  assertEquals((more.step - plain.step).toFixed(2), (6 * 2 * 64 * 64 * 16e6 / 1e12).toFixed(2));
});

// ---- the examples of edits, each a model in this process

openTestDevice();

const B = 2, T = 7;
const TINY: Model.LlamaConfig = {
  ...{
    vocab_size: 61,
    n_layer: 2,
    n_embd: 16,
    n_head: 2,
    n_kv_head: 1,
    head_dim: 8,
    n_inner: 24,
    block_size: T,
  },
  ...{ rope_theta: 100, norm_eps: 1e-6, tie_word_embeddings: true },
};

/** The files that examples of edits make of model/llama.ts, which read everything else from here. */
const editedFiles: Promise<string[]> = Promise.all(EXAMPLES.map(async (name) => {
  const directory = freshPath(), path = `${directory}/model/llama.ts`;
  Deno.mkdirSync(`${directory}/model`, { recursive: true });
  Deno.copyFileSync(new URL("model/llama.ts", ROOT), path);
  await applyTo(directory, name);
  const source = Deno.readTextFileSync(path).replaceAll(/ from "(\.\.?\/.*)";/g, (_, file) => {
    return ` from "${new URL(file, new URL("model/", ROOT))}";`;
  });
  Deno.writeTextFileSync(path, source);
  return path;
}));

/** A model that trains on batches that follow from the step alone. */
class Trained {
  readonly parameters: Parameters;
  readonly optimizer: AdamW;
  readonly weights: Model.Llama;
  readonly c: Model.LlamaConfig = { ...TINY }; // the table of rope() belongs to it, on the device that is open

  constructor(readonly llama: typeof Model) {
    this.weights = llama.init(this.c);
    this.parameters = new Parameters(this.weights, { seed: 1, train: true });
    const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };
    this.optimizer = new AdamW(this.parameters, options);
  }

  loss(step: number): Tensor {
    const batch = (seed: number) => tokens([B, T], integers(B * T, TINY.vocab_size, seed));
    beginMasks({ seed: 1, sample: step * B, micro: 0 });
    return this.llama.loss(this.weights, batch(step), batch(step + 100), this.c, {
      recompute: "norm_swiglu",
    });
  }

  step(step: number): number {
    const loss = this.loss(step);
    this.optimizer.addLoss(loss, 1, true);
    backward(loss);
    endStep();
    this.optimizer.step(0.01);
    return this.optimizer.result().loss;
  }

  values(): Float32Array<ArrayBuffer> {
    return readFloats(this.parameters.weights.address, this.parameters.total, "act");
  }

  async save(out_dir: string, step: number): Promise<string> {
    const options = { bos_token_id: 0, eos_token_id: 0, dtype: "float32" as const };
    const count = {
      step,
      updates: step,
      skipped: 0,
      skipped_row: 0,
      tokens: step * B * T,
      samples: step * B,
    };
    const state = {
      ...count,
      order: "",
      val_loss: null,
      best_val_loss: null,
      best_step: null,
      tokenizer: null,
    };
    return await saveCheckpoint(out_dir, {
      model: modelTensors(this.parameters, TINY),
      optimizer: optimizerTensors(this.optimizer),
      files: { "config.json": JSON.stringify(configToHF(TINY, options)) },
      state: { ...state, data: {}, config: { block_size: T }, versions: {} },
    }, 2);
  }

  /** Logits of T tokens at once, and of one after the other. */
  logits(): [whole: Float32Array, cached: Float32Array] {
    const ids = integers(T, TINY.vocab_size, 7), { n_kv_head, head_dim, n_layer } = TINY;
    const kv = () => [fixed([n_kv_head, T, head_dim], "act", "cache")]; // of one row
    const layers = Array.from({ length: n_layer }, () => ({ k: kv(), v: kv() }));
    const run = (ids: number[], cache?: Model.KVCache) => {
      const hidden = this.llama.forward(
        this.weights,
        tokens([1, ids.length], ids),
        this.c,
        cache && { cache },
      );
      return [...this.llama.logits(this.weights, hidden).toArray()];
    };
    const oneByOne = () => ids.flatMap((id, pos) => run([id], { pos: [pos], layers }));
    return noGrad(() => [Float32Array.from(run(ids)), Float32Array.from(oneByOne())]);
  }
}

for (const [i, name] of EXAMPLES.entries()) {
  Deno.test(`examples/edits/${name}.diff trains, and goes on from a checkpoint to the same bits`, async () => {
    const llama = await import(`file://${(await editedFiles)[i]}`);
    const whole = new Trained(llama), losses = [0, 1, 2, 3].map((step) => whole.step(step));
    const before = new Trained(llama), out_dir = freshPath();
    assertEquals([0, 1].map((step) => before.step(step)), losses.slice(0, 2));
    const checkpoint = await before.save(out_dir, 2), after = new Trained(llama);
    await resumeFrom(checkpoint, TINY, after.optimizer);
    assertEquals([2, 3].map((step) => after.step(step)), losses.slice(2));
    assertEquals(after.values(), whole.values());
    const [all, cached] = after.logits();
    assertClose(cached, all, { rtol: 1e-4, atol: 1e-5 }, "logits of one token after the other");
    endStep();
  });

  Deno.test(`examples/edits/${name}.diff has the gradient that finite differences give`, async () => {
    const model = new Trained(await import(`file://${(await editedFiles)[i]}`)), { parameters } = model;
    [0, 1, 2].forEach((step) => model.step(step)); // away from where norms are 1 and biases 0
    const loss = model.loss(3);
    backward(loss);
    const slots = parameters.slots.map(({ tensor }) => ({
      tensor,
      at: tensor.toArray(),
      g: gradient(tensor),
    }));
    endStep();
    const norm = Math.sqrt(slots.reduce((sum, { g }) => g.reduce((sum, g) => sum + g * g, sum), 0)),
      h = 0.003;
    const moved = (along: number) => {
      for (const { tensor, at, g } of slots) {
        writeFloats(tensor.address, at.map((w, i) => w + along * g[i]! / norm), "act");
      }
      const value = model.loss(3).toArray()[0]!;
      endStep();
      return value;
    };
    const slope = (moved(h) - moved(-h)) / (2 * h); // along the gradient it is its length, and nowhere else as much
    assertClose([slope], [norm], { rtol: 2e-3, atol: 0 }, "slope along the gradient");
  });
}

Deno.test("memory of the examples of edits is planned as it is taken, however many steps there are", async () => {
  for (const [i, name] of EXAMPLES.entries()) {
    const llama = await import(`file://${(await editedFiles)[i]}`);
    const steps = (n: number) =>
      withOwnMemory(() => {
        const model = new Trained(llama),
          batch = [fixed([B, T], "i32", "inputs"), fixed([B, T], "i32", "inputs")];
        for (let step = 0; step < n; step++) {
          backward(model.llama.loss(model.weights, batch[0]!, batch[1]!, model.c));
          endStep();
        }
        return memoryByKind();
      });
    const planned = withPlan("f32", () => steps(1)), taken = steps(3);
    assertEquals(planned, taken, name);
    assert(planned.step! > 0 && planned.gradients! > 0);
  }
});

Deno.test("FLOPs of the examples of edits are those of their matrix products and of attention", async () => {
  const { n_layer: L, n_embd: C, n_head: H, n_kv_head: K, head_dim: D, n_inner: F } = TINY, N = B * T;
  for (const [i, name] of EXAMPLES.entries()) {
    const model = new Trained(await import(`file://${(await editedFiles)[i]}`));
    const weights = C * (H + 2 * K) * D + H * D * C + (name === "gelu_mlp" ? 2 : 3) * C * F;
    const expected = L * (2 * N * weights + 2 * B * H * D * T * (T + 1)) + 2 * N * C * 64; // 61 tokens, padded
    assertEquals(flopsOf(() => noGrad(() => model.loss(0))), expected, name);
    endStep();
  }
});

Deno.test("the examples of edits have the types that the rest of loam wants", async () => {
  const args = ["check", "-q", "--config", new URL("deno.json", ROOT).pathname, ...await editedFiles];
  const { success, stderr } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
  assert(success, new TextDecoder().decode(stderr));
});
