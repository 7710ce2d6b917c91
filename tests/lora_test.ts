// LoRA from the command line: what is trained, saved, refused, and how a run goes on with its base.
import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { basename } from "node:path";
import { UserError } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { formatBytes } from "../base/format.ts";
import { open } from "../ffi/library.ts";
import { loadModel, openModel, saveModel } from "../model/checkpoint.ts";
import { allLogits, relativeError } from "../model/testing.ts";
import { readSafetensors, writeSafetensors } from "../runtime/safetensors.ts";
import { tokens } from "../runtime/testing.ts";
import {
  dataset,
  emptyDirectory,
  freshPath,
  isInstalled,
  list,
  metrics,
  modelDirectory,
  mpirun,
  refuse,
  SMALL,
  succeed,
} from "./testing.ts";

const hasPairs = open("cpu", { bf16_gemm: "auto" }).bf16_gemm;
open("cpu", { bf16_gemm: false });
const mpi = { ignore: !isInstalled("mpirun") };
const PYTHON = Deno.env.get("LOAM_PYTHON");
const SHAPE = { n_layer: 2, n_head: 4, n_kv_head: 2, head_dim: 8, n_inner: 48 }; // (64, 32), (32, 32), (96, 32), (32, 48)
const FLAGS = SMALL.filter((flag) => !/--(n_|block_size|head_dim)/.test(flag)).concat("--min_lr=0.01");
const LORA = ["--lora_rank=4", "--lora_alpha=8", "--block_size=16", "--gradient_accumulation_steps=2"];

const step = (out: string, n: number) => `${out}/checkpoints/step_00000${n}`;

/** The bytes of all tensors of a file by name. */
function tensorsOf(path: string): Record<string, Uint8Array> {
  const { tensors, read } = readSafetensors(path);
  return Object.fromEntries(Array.from(tensors.keys(), (name) => [name, read(name)]));
}

Deno.test("train --lora_rank saves adapters alone, and goes on from them and the base to the same bits", async () => {
  const data = await dataset(),
    base = await modelDirectory(SHAPE),
    [whole, parts] = [freshPath(), freshPath()];
  const flags = [`--data_dir=${data}`, ...FLAGS, `--init_from=${base}`, ...LORA, "--save_interval=2"];
  const said = await succeed("train", ...flags, `--out_dir=${whole}`, "--max_iters=4");
  // of each layer ranks of 4 for the four
  const values = 2 * 4 * (64 + 32 + 32 + 32 + 96 + 32 + 32 + 48);
  assertMatch(
    said,
    new RegExp(`^training 16 of 31 tensors, ${values.toLocaleString("en-US")} of .* values;`, "m"),
  );
  await succeed("train", ...flags, `--out_dir=${parts}`, "--max_iters=2");
  await succeed("train", `--resume=${parts}`, "--max_iters=4");
  for (const file of ["adapter_model.safetensors", "optimizer.safetensors"]) {
    assertEquals(tensorsOf(`${step(whole, 4)}/${file}`), tensorsOf(`${step(parts, 4)}/${file}`), file);
  }
  const files = list(step(whole, 4));
  assert(files.includes("adapter_config.json") && files.includes("base.json"));
  assert(!files.includes("model.safetensors") && !files.includes("config.json")); // transformers would take it for a model
  const { sha256 } = JSON.parse(Deno.readTextFileSync(`${step(whole, 4)}/base.json`));
  const ofBase = ["config.json", "model.safetensors"].map((file) => [file, sha256OfFile(`${base}/${file}`)]);
  assertEquals(sha256, Object.fromEntries(ofBase));

  const adapters = tensorsOf(`${step(whole, 4)}/adapter_model.safetensors`);
  const path = "base_model.model.model.layers.1.self_attn.";
  assertEquals(adapters[`${path}q_proj.lora_A.weight`], adapters[`${path}v_proj.lora_A.weight`]);
  assert(Object.values(adapters).every((bytes) => bytes.some((byte) => byte !== 0)), "B has moved");
  assertEquals(Object.keys(adapters).length, 2 * 2 * 7);

  // What the text is written with, and the loss measured, is the base with its adapters.
  const before = await succeed("train", ...flags, "--eval_only", "--lora_rank=0");
  const after = await succeed("train", `--resume=${whole}`, "--eval_only");
  const loss = (text: string) => Number(/^val loss ([\d.]+)/.exec(text)![1]);
  assert(loss(after) < loss(before) - 0.01, `${after}${before}`);
  const text = async (checkpoint: string) => {
    const flags = [`--checkpoint=${checkpoint}`, "--device=cpu", "--max_new_tokens=8", "--temperature=0"];
    return await succeed("sample", ...flags);
  };
  const merged = `${emptyDirectory()}/${basename(whole)}`; // which names the model in a GGUF file
  assertMatch(
    await succeed("export", `--checkpoint=${whole}`, "--merge", `--out=${merged}`),
    /: a model of 31,968 parameters, f32, for transformers\n$/,
  );
  assertEquals(await text(merged), await text(whole));
  assertSameLogits(whole, merged);
  const [one, other] = [freshPath(), freshPath()];
  await succeed("export", `--checkpoint=${whole}`, "--format=gguf", `--out=${one}`);
  await succeed("export", `--checkpoint=${merged}`, `--out=${other}`);
  assertEquals(Deno.readFileSync(one), Deno.readFileSync(other));
  assertStringIncludes(
    await refuse("export", `--checkpoint=${whole}`, "--format=hf", `--out=${freshPath()}`),
    "it holds adapters, which PEFT loads from there; add --merge to write the whole model",
  );
  assertStringIncludes(
    await refuse("export", `--checkpoint=${merged}`, "--merge", `--out=${freshPath()}`),
    `Cannot merge ${merged}: it has no adapters; leave --merge out`,
  );
});

/** Compares the logits of a LoRA with those of the same merged. */
function assertSameLogits(low: string, merged: string): void {
  const idx = tokens([2, 16], Array.from({ length: 32 }, (_, i) => i * 37 % 257));
  const [a, b] = [low, merged].map((path) => {
    const { model, config } = loadModel(path);
    return allLogits(model, config, idx);
  });
  const error = relativeError(a!, b!);
  assert(error < 2e-6, `relative error ${error}`);
}

Deno.test("two ranks train what one does, and go on from their parts to the same bits", mpi, async () => {
  const data = await dataset(),
    base = await modelDirectory(SHAPE),
    [one, whole, parts] = [
      freshPath(),
      freshPath(),
      freshPath(),
    ];
  const flags = [`--data_dir=${data}`, ...FLAGS, `--init_from=${base}`, ...LORA, "--bf16_gemm=false"];
  await succeed("train", ...flags, `--out_dir=${one}`, "--max_iters=4");
  await mpirun(2, ...flags, `--out_dir=${whole}`, "--max_iters=4", "--save_interval=4");
  await mpirun(2, ...flags, `--out_dir=${parts}`, "--max_iters=2", "--save_interval=2");
  await mpirun(2, `--resume=${parts}`, "--max_iters=4");
  metrics(whole).forEach(({ loss }, i) => {
    const should = metrics(one)[i]!.loss!;
    assert(Math.abs(loss! / should - 1) < 2e-5, `step ${i + 1}: ${loss}, should be ${should}`);
  });
  const files = list(step(whole, 4)).filter((file) => file.endsWith(".safetensors"));
  assertEquals(files.map((file) => file.split("-")[0]), [
    "adapter_model.safetensors",
    "optimizer",
    "optimizer",
  ]);
  for (const file of files) {
    assertEquals(tensorsOf(`${step(whole, 4)}/${file}`), tensorsOf(`${step(parts, 4)}/${file}`), file);
  }
});

Deno.test("a base of bfloat16 is so in memory too to write text, beside adapters of float32", async () => {
  const data = await dataset({ words: 500 }), [base, out] = [freshPath(), freshPath()];
  const flags = [...FLAGS, ...LORA, "--learning_rate=0.1", "--max_iters=2", "--save_interval=2"];
  await succeed(
    "export",
    `--checkpoint=${await modelDirectory(SHAPE)}`,
    "--format=hf",
    "--dtype=bf16",
    `--out=${base}`,
  );
  await succeed("train", `--data_dir=${data}`, `--init_from=${base}`, ...flags, `--out_dir=${out}`);
  const [half, wide] = (["auto", "float32"] as const).map((dtype) => loadModel(out, { dtype }));
  const { qkv_proj, input_layernorm, lora } = half!.model.layers[1]!;
  assertEquals([qkv_proj, input_layernorm, lora!.qkv_proj!.A].map(({ buf }) => buf.isHalf), [
    true,
    false,
    false,
  ]);
  const matrices = 2 * 320 * 32 + 2 * (64 + 32 + 96 + 48) * 32, vectors = 64 * 5, adapters = 2944; // 257 rows are 320
  assertEquals(half!.parameters.weights.bytes, 4 * adapters + 2 * matrices + 4 * vectors);
  const idx = tokens([2, 16], Array.from({ length: 32 }, (_, i) => i * 37 % 257));
  const [a, b] = [half!, wide!].map(({ model, config }) => allLogits(model, config, idx));
  assert(relativeError(a!, b!) < 1e-5);
  const training = loadModel(out, { dtype: "auto", train: true }).model.layers[1]!;
  assertEquals(training.qkv_proj.buf.isHalf, false); // what a program does with them is not known

  const { parameters, config } = wide!, to = freshPath();
  const tokenizer = { bos: 0, eot: 0, files: () => ({}) };
  assertThrows(
    () => saveModel(to, parameters, config, tokenizer),
    UserError,
    `Cannot write ${to}: the model has adapters beside its weights; merge them: deno task export --merge`,
  );
});

Deno.test({
  name: "adapters train beside a base of bfloat16 to the bits that one of float32 gives, in half its memory",
  ignore: !hasPairs,
  async fn() {
    const data = await dataset({ words: 500 }), [half, wide] = [freshPath(), freshPath()];
    const hf = ["--format=hf", "--dtype=bf16"],
      flags = [...FLAGS, ...LORA, "--max_iters=3", "--save_interval=3"];
    await succeed("export", `--checkpoint=${await modelDirectory(SHAPE)}`, ...hf, `--out=${half}`);
    await succeed("export", `--checkpoint=${half}`, "--format=hf", "--dtype=f32", `--out=${wide}`);
    const runs = await Promise.all([half, wide].map(async (base) => {
      const out = freshPath(), from = [`--data_dir=${data}`, `--init_from=${base}`, ...flags];
      const plan = await succeed("train", ...from, "--dry_run");
      await succeed("train", ...from, `--out_dir=${out}`);
      const losses = metrics(out).map(({ loss, val_loss }) => [loss, val_loss]);
      return { losses, adapters: tensorsOf(`${step(out, 3)}/adapter_model.safetensors`), plan };
    }));
    const [a, b] = runs.map(({ losses, adapters }) => ({ losses, adapters }));
    assertEquals(a, b);
    const matrices = 2 * 320 * 32 + 2 * (64 + 32 + 96 + 48) * 32, rest = 4 * (2944 + 64 * 5); // 257 rows are 320
    const [of16, of32] = [2 * matrices + rest, 4 * matrices + rest].map(formatBytes);
    assertMatch(runs[0]!.plan, new RegExp(`^ +weights +${of16}$`, "m"));
    assertMatch(runs[1]!.plan, new RegExp(`^ +weights +${of32}$`, "m"));
    const plain = ["--dry_run", "--bf16_gemm=false"]; // products round nothing there: a float32 base is faster
    const plan = await succeed("train", `--data_dir=${data}`, `--init_from=${half}`, ...flags, ...plain);
    assertMatch(plan, new RegExp(`^ +weights +${of32}$`, "m"));
  },
});

Deno.test("adapters are refused without their base, with another one, and with other settings", async () => {
  const data = await dataset({ words: 500 }), base = await modelDirectory(SHAPE), out = freshPath();
  const flags = [`--data_dir=${data}`, ...FLAGS, ...LORA, "--save_interval=1", "--max_iters=1"];
  const from = [...flags, `--init_from=${base}`];
  assertStringIncludes(await refuse("train", ...flags), "Cannot train adapters without a base: ");
  assertStringIncludes(
    await refuse("train", ...from, "--lora_targets=q_proj"),
    'Cannot adapt "q_proj": lora_targets are of qkv_proj, o_proj, gate_up_proj, down_proj; ',
  );
  assertStringIncludes(
    await refuse("train", ...from, "--lora_rank=33"),
    "Cannot use lora_rank 33: qkv_proj is (64, 32), the rank must be 32 at most",
  );
  assertStringIncludes(
    await refuse("train", ...from, "--train=norm"),
    "Cannot train norm with LoRA: its adapters alone are trained; leave --train or --lora_rank out",
  );
  assertEquals(list(out), []);

  await succeed("train", ...from, `--out_dir=${out}`);
  const resume = `--resume=${out}`;
  for (const other of ["--lora_rank=2", "--lora_alpha=16", "--lora_targets=o_proj", "--lora_rank=0"]) {
    const name = /--(\w+)/.exec(other)![1];
    assertStringIncludes(
      await refuse("train", resume, other),
      `Cannot set ${name} with --resume: the run in`,
    );
  }
  assertStringIncludes(
    await refuse("train", ...flags, `--init_from=${out}`),
    "they are adapters; merge them into their base: deno task export --checkpoint ",
  );

  const weights = `${base}/model.safetensors`, bytes = Deno.readFileSync(weights), other = bytes.slice();
  other[other.length - 4]! ^= 1;
  Deno.writeFileSync(weights, other);
  const sample = ["sample", `--checkpoint=${out}`, "--device=cpu"] as const;
  for (const said of [await refuse(...sample), await refuse("train", resume, "--max_iters=2")]) {
    assertMatch(said, /it is an adapter for another base: \S+\/model\.safetensors has the sha256 /);
  }
  assertEquals(openModel(out, false).base, undefined); // what other ranks than the first do, which compare weights with its own
  Deno.writeFileSync(weights, bytes);
  const shape = `${base}/config.json`, text = Deno.readTextFileSync(shape);
  assertMatch(text, /"rope_theta": 10000\b/);
  Deno.writeTextFileSync(shape, text.replaceAll(/"rope_theta": 10000\b/g, '"rope_theta": 20000'));
  assertMatch(
    await refuse(...sample),
    /it is an adapter for another base: \S+\/config\.json has the sha256 /,
  );
  Deno.writeTextFileSync(shape, text);
  await succeed(...sample, "--max_new_tokens=1");

  const peft = freshPath(), name = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"; // not of a run
  Deno.mkdirSync(peft);
  for (const file of ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]) {
    Deno.copyFileSync(`${step(out, 1)}/${file}`, `${peft}/${file}`);
  }
  await succeed("sample", `--checkpoint=${peft}`, "--device=cpu", "--max_new_tokens=1");
  const stored = Deno.readFileSync(`${peft}/adapter_model.safetensors`);
  stored[readSafetensors(`${peft}/adapter_model.safetensors`).tensors.get(name)!.offset]! ^= 1;
  Deno.writeFileSync(`${peft}/adapter_model.safetensors`, stored);
  assertStringIncludes(
    await refuse("sample", `--checkpoint=${peft}`, "--device=cpu"),
    `k_proj.lora_A.weight is not ${
      name.replace("k_proj", "q_proj")
    }, but loam adapts these matrices together`,
  );
  Deno.renameSync(base, `${base}.gone`);
  assertStringIncludes(
    await refuse(...sample),
    `it holds adapters for the model in ${base}, which is not there; put it there, a link does`,
  );
});

Deno.test({
  name:
    "PEFT and transformers get the same logits from a base and its adapters, and from both merged (LOAM_PYTHON)",
  ignore: !PYTHON,
  async fn() {
    const data = await dataset({ words: 500 }),
      base = await modelDirectory(SHAPE),
      [out, merged] = [freshPath(), freshPath()];
    const flags = [...FLAGS, ...LORA, "--learning_rate=0.1", "--max_iters=4", "--save_interval=4"];
    await succeed("train", `--data_dir=${data}`, `--init_from=${base}`, ...flags, `--out_dir=${out}`);
    await succeed("export", `--checkpoint=${out}`, "--merge", `--out=${merged}`);
    const adapters = step(out, 4);
    const idx = Int32Array.from({ length: 32 }, (_, i) => i * 37 % 257);
    const { model, config } = loadModel(adapters), logits = allLogits(model, config, tokens([2, 16], idx));
    writeSafetensors(`${adapters}/logits.safetensors`, [
      { name: "idx", dtype: "I32", shape: [2, 16], bytes: () => new Uint8Array(idx.buffer) },
      {
        name: "logits",
        dtype: "F32",
        shape: [2, 16, 257],
        bytes: () => new Uint8Array(logits.slice().buffer),
      },
    ]);
    const args = [new URL("oracle/lora.py", import.meta.url).pathname, "check", base, adapters, merged];
    const { code, stdout, stderr } = new Deno.Command(PYTHON!, { args }).outputSync();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    const errors = JSON.parse(new TextDecoder().decode(stdout));
    for (const how of ["adapters", "automatic", "merged", "merge_and_unload"]) {
      assert(errors[how] < 2e-6, JSON.stringify(errors));
    }
    assert(errors.base > 1e-3, JSON.stringify(errors));
  },
});
