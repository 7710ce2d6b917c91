// --init_from: a run begins with the weights, shape and tokenizer of a model directory, or says in one line why it cannot.
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { readSafetensors, writeSafetensors } from "../runtime/safetensors.ts";
import { dataset, freshPath, list, metrics, modelDirectory, refuse, run, SMALL, succeed } from "./testing.ts";

const FLAGS = SMALL.filter((flag) => !/--(n_|block_size|head_dim)/.test(flag)); // all but the shape
const SHAPE = { n_layer: 2, block_size: 48, rope_theta: 500, norm_eps: 1e-5 };

/** The bytes of all tensors of a model directory by name. */
function weights(directory: string): Record<string, Uint8Array> {
  const { tensors, read } = readSafetensors(`${directory}/model.safetensors`);
  return Object.fromEntries(Array.from(tensors.keys(), (name) => [name, read(name)]));
}

Deno.test("train --init_from begins with the weights and the shape of a directory, and goes on without it", async () => {
  const data = await dataset(), model = await modelDirectory(SHAPE), out = freshPath();
  const flags = [`--data_dir=${data}`, `--out_dir=${out}`, ...FLAGS, "--save_interval=1"];
  const talks = { eos_token_id: [256, 5], temperature: 0.6 }, template = "{{ messages[0].content }}"; // as instruct models do
  Deno.writeTextFileSync(`${model}/generation_config.json`, JSON.stringify(talks));
  Deno.writeTextFileSync(`${model}/chat_template.jinja`, template);
  const still = ["--learning_rate=0", "--min_lr=0", "--max_iters=1"]; // a step that changes nothing
  const said = await succeed("train", ...flags, ...still, `--init_from=${model}`, "--block_size=16");
  assertStringIncludes(said, `beginning with the weights in ${model}\n`);
  const first = `${out}/checkpoints/step_000001`;
  assertEquals(weights(first), weights(model));
  const { max_position_embeddings, rope_theta, rms_norm_eps, tie_word_embeddings } = JSON.parse(
    Deno.readTextFileSync(`${first}/config.json`),
  );
  assertEquals([max_position_embeddings, rope_theta, rms_norm_eps, tie_word_embeddings], [
    48,
    500,
    1e-5,
    false,
  ]);
  const config = JSON.parse(Deno.readTextFileSync(`${out}/config.json`));
  assertEquals([config.preset, config.n_layer, config.head_dim, config.block_size], ["finetune", 2, 16, 16]);

  Deno.removeSync(model, { recursive: true });
  const again = ["--max_iters=3", "--learning_rate=0.01"];
  assertStringIncludes(
    await refuse("train", `--resume=${out}`, ...again, "--block_size=32"),
    "block_size is 16 there and 32 here",
  );
  assertStringIncludes(
    await refuse("train", `--resume=${out}`, ...again, "--init_from=other"),
    "Cannot set init_from with --resume: the run",
  );
  const planned = await succeed("train", `--resume=${out}`, ...again, "--dry_run");
  assertStringIncludes(planned, `\nfrom   ${first}: llama, weights of F32\n`);
  await succeed("train", `--resume=${out}`, ...again);
  assertEquals(metrics(out).map(({ step, lr }) => [step, lr]), [[1, 0], [2, 0.004], [3, 0.006]]);
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000002", "step_000003"]);
  const exported = freshPath();
  await succeed("export", `--checkpoint=${out}`, "--format=hf", `--out=${exported}`);
  for (const directory of [`${out}/checkpoints/step_000003`, exported]) {
    const kept = JSON.parse(Deno.readTextFileSync(`${directory}/generation_config.json`));
    assertEquals(kept, { ...talks, bos_token_id: 256 });
    assertEquals(Deno.readTextFileSync(`${directory}/chat_template.jinja`), template);
  }
  // A run of loam's own is a directory of weights too, and its val loss is what it is there.
  const all = await succeed("train", `--resume=${out}`, "--eval_only");
  const same = ["--eval_only", `--init_from=${out}`, `--data_dir=${data}`, ...FLAGS, "--block_size=16"];
  assertEquals(await succeed("train", ...same), all);
  assertMatch(all, /^val loss \d\.\d{6}, \d\.\d{6} bits per byte, over \d+ windows of 16 tokens\n$/);
});

Deno.test("train --init_from --dry_run says what will be trained, and checks all weights", async () => {
  const data = await dataset({ words: 500 }), model = await modelDirectory(SHAPE);
  const flags = [`--data_dir=${data}`, ...FLAGS, `--init_from=${model}`, "--dry_run"];
  const said = await succeed("train", ...flags);
  assertMatch(said, /^model {2}32\.9k parameters, /m); // 2 x 6208 + 2 x 320 x 32 + 32
  assertStringIncludes(said, `from   ${model}: llama, weights of F32\n`);

  const path = `${model}/model.safetensors`, { tensors, read } = readSafetensors(path);
  const entries = Array.from(tensors, ([name, { dtype, shape }]) => {
    const bytes = read(name);
    return { name, dtype, shape, bytes: () => bytes };
  });
  writeSafetensors(path, entries.filter(({ name }) => name !== "model.norm.weight"));
  const { code, stderr } = await run("train", ...flags);
  assertEquals(
    [code, stderr],
    [1, `error: Cannot load ${model}: it has no tensor model.norm.weight of shape (32)\n`],
  );
});

Deno.test("train --train changes the named weights alone, saves all, and goes on to the same bits", async () => {
  const data = await dataset({ words: 500 }),
    model = await modelDirectory(SHAPE),
    [whole, parts] = [freshPath(), freshPath()];
  const flags = [
    `--data_dir=${data}`,
    ...FLAGS,
    `--init_from=${model}`,
    "--block_size=16",
    "--save_interval=2",
  ];
  flags.push("--train=layers.*.qkv_proj,norm", "--min_lr=0.01", "--recompute=block");
  const said = await succeed("train", ...flags, `--out_dir=${whole}`, "--max_iters=4");
  assertMatch(said, /^training 3 of 15 tensors, 4,128 of 32,928 values; the others are frozen$/m);
  await succeed("train", ...flags, `--out_dir=${parts}`, "--max_iters=2");
  await succeed("train", `--resume=${parts}`, "--max_iters=4");
  const [a, b] = [weights(`${whole}/checkpoints/step_000004`), weights(`${parts}/checkpoints/step_000004`)];
  assertEquals(a, b);
  const before = weights(model),
    changed = Object.keys(before).filter((name) => `${a[name]}` !== `${before[name]}`);
  const attention = [0, 1].flatMap((i) =>
    ["k", "q", "v"].map((x) => `model.layers.${i}.self_attn.${x}_proj.weight`)
  );
  assertEquals(changed.sort(), [...attention, "model.norm.weight"]);
  const { tensors } = readSafetensors(`${whole}/checkpoints/step_000004/optimizer.safetensors`);
  assertEquals(Array.from(tensors.keys()).filter((name) => name.startsWith("m.")).sort(), [
    ...["m.layers.0.qkv_proj", "m.layers.1.qkv_proj", "m.norm"],
  ]);
  assertStringIncludes(
    await refuse("train", `--resume=${parts}`, "--max_iters=5", "--train=norm"),
    "Cannot set train with --resume: the run in",
  );
});
