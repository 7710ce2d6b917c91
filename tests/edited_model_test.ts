// A model/llama.ts that was edited: what it adds is trained, counted, saved and loaded, or refused by name.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { readSafetensors } from "../runtime/safetensors.ts";
import { dataset, errorLine, freshPath, metrics, ROOT, run, runIn, SMALL, succeed } from "./testing.ts";

/** QK-norm under names that no class of transformers has: five lines. */
const QK_NORM: [after: string, added: string][] = [
  ["  o_proj: Tensor; // (C, H * D)\n", "  q_scale: Tensor;\n  k_scale: Tensor;\n"],
  [
    "      o_proj: param([C, H * D], { std: residual_std }),\n",
    "      q_scale: param([D], { value: 1 }),\n      k_scale: param([D], { value: 1 }),\n",
  ],
  [
    "w.qkv_proj, c.norm_eps, keep); // (B, T, (H + 2K) * D)\n",
    "  qkv = qkNorm(qkv, w.q_scale, w.k_scale, c, c.norm_eps);\n",
  ],
];

/** A second head matrix behind each block, in place of nothing: C x C more weights a layer, which every token meets. */
const EXTRA_LINEAR: typeof QK_NORM = [
  ["  o_proj: Tensor; // (C, H * D)\n", "  extra: Tensor;\n"],
  ["      o_proj: param([C, H * D], { std: residual_std }),\n", "      extra: param([C, C], { std }),\n"],
  [
    "    x = selfAttention(x, w, c, keep, i, layer && { layer, pos });\n",
    "    x = linear(x, w.extra, x);\n",
  ],
];

/** A copy of loam whose model/llama.ts has more lines. Everything else is this one's. */
function loamWith(edits: typeof QK_NORM): string {
  const root = ROOT.pathname.replace(/\/$/, ""), copy = freshPath();
  Deno.mkdirSync(`${copy}/model`, { recursive: true });
  for (const { name } of Deno.readDirSync(root)) {
    if (name === "deno.json" || name === "deno.lock") Deno.copyFileSync(`${root}/${name}`, `${copy}/${name}`);
    else if (name !== "model" && name !== ".git") Deno.symlinkSync(`${root}/${name}`, `${copy}/${name}`);
  }
  for (const { name } of Deno.readDirSync(`${root}/model`)) {
    Deno.copyFileSync(`${root}/model/${name}`, `${copy}/model/${name}`);
  }
  let source = Deno.readTextFileSync(`${root}/model/llama.ts`);
  for (const [after, added] of edits) {
    assertEquals(source.split(after).length, 2, after);
    source = source.replace(after, () => after + added);
  }
  Deno.writeTextFileSync(`${copy}/model/llama.ts`, source);
  return copy;
}

/** Runs a task of such a copy, which has to succeed. */
async function succeedIn(...args: Parameters<typeof runIn>): Promise<string> {
  const { code, stdout, stderr } = await runIn(...args);
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  return stdout;
}

Deno.test("weights that model/llama.ts has more are saved, loaded, resumed to the same bits, and refused without it", async () => {
  const edited = loamWith(QK_NORM), data = await dataset(), [whole, parts] = [freshPath(), freshPath()];
  const flags = [
    ...SMALL,
    `--data_dir=${data}`,
    "--save_interval=4",
    "--eval_interval=4",
    "--min_lr=0.01",
    "--eval_batches=1000",
  ];
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
  assertStringIncludes(all, `val loss ${last.toFixed(6)} over `);
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
  const { code, stderr } = await runIn(loamWith(QK_NORM), "train", `--resume=${out}`, "--max_iters=4");
  assertEquals(code, 1);
  assertMatch(errorLine(stderr), /model\.safetensors: it has no tensor layers\.0\.q_scale of shape \(8\)$/);
  assertEquals(metrics(out).length, 2);
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
