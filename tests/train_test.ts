// What deno task train does and leaves behind when all is well.
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import { openDataset, readTokens } from "../data/bins.ts";
import { chooseDevice, copyToDevice, open } from "../ffi/library.ts";
import { loadModel } from "../model/checkpoint.ts";
import { chunkOf } from "../model/configure.ts";
import { forward, logits, paddedVocab } from "../model/llama.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { empty } from "../runtime/tensor.ts";
import { readTrainerState } from "../runtime/trainer_state.ts";
import {
  dataset,
  ending,
  errorLine,
  freshPath,
  isInstalled,
  list,
  metrics,
  refuse,
  ROOT,
  run,
  runOnTerminal,
  runWith,
  SMALL,
  succeed,
} from "./testing.ts";

const hasGPU = chooseDevice().name === "cuda";
open("cpu", { threads: 2 });

Deno.test("train writes metrics, a log, its configuration and checkpoints", async () => {
  const data = await dataset(), out = freshPath();
  const flags = ["--max_iters=7", "--eval_interval=3", "--eval_batches=2", "--save_interval=3"];
  flags.push("--sample_interval=5", "--gradient_accumulation_steps=2", "--keep_checkpoints=2");
  const stdout = await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, ...flags);

  const lines = metrics(out);
  assertEquals(lines.map((m) => m.step), [1, 2, 3, 4, 5, 6, 7]);
  const always = [
    ...["step", "loss", "lr", "grad_norm", "tokens", "tokens_per_sec", "step_ms", "mfu", "memory_bytes"],
    "skipped",
  ];
  for (const m of lines) {
    const evaluated = m.step! % 3 === 0 || m.step === 7;
    assertEquals(Object.keys(m), evaluated ? [...always, "val_loss", "val_bpb"] : always);
    assert(Object.values(m).every(Number.isFinite), JSON.stringify(m));
    assertEquals([m.tokens, m.skipped], [m.step! * 4 * 16 * 2, 0]);
    assertAlmostEquals(m.tokens_per_sec!, 4 * 16 * 2 / (m.step_ms! / 1000), 1e-6 * m.tokens_per_sec!);
    const cosine = 0.5 * (1 + Math.cos(Math.PI * (m.step! - 1 - 5) / 2)); // from step 6 of 7 on
    const lr = m.step! <= 5 ? 0.01 * m.step! / 5 : 3e-4 + (0.01 - 3e-4) * cosine;
    assertAlmostEquals(m.lr!, lr, 1e-6 * lr);
  }
  assertAlmostEquals(lines[0]!.loss!, Math.log(257), 0.01 * Math.log(257));

  assertEquals(list(out), [
    ...["best", "checkpoints", "config.json", "latest", "log.txt", "metrics.jsonl", "run.json"],
    "samples.jsonl",
  ]);
  assertEquals(Deno.readTextFileSync(`${out}/log.txt`), stdout);
  assertMatch(
    stdout,
    /^step 3\/7 \| loss \d\.\d{4} \| val \d\.\d{4}, \d\.\d{4} bpb \| norm \S+ +\| \S+ tok\/s +\| \d+% MFU, [\d.]+ GFLOP\/s +\| \d+ s left$/m,
  );
  assertMatch(
    stdout,
    /^preset tiny with device=cpu data_dir=\S+ n_layer=2 n_embd=32 n_inner=48 block_size=16 batch_size=4 .*max_iters=7 .*\n/, // all that was set, and nothing else
  );
  const { best_val_loss, best_step } = readTrainerState(`${out}/checkpoints/step_000007`);
  const best = `best val ${best_val_loss!.toFixed(4)} after step ${best_step}`;
  assertMatch(
    stdout,
    new RegExp(`^finished in \\d+ s, ${best}, at most \\d+ MB of memory; write text: .*=${out}\n$`, "m"),
  );
  assertEquals(stdout.match(/^--- sample after step \d+$/gm), [
    "--- sample after step 5",
    "--- sample after step 7",
  ]);
  assertEquals(ending(out), { state: "finished", error: null });
  const { learning_rate, max_iters, out_dir } = JSON.parse(Deno.readTextFileSync(`${out}/config.json`));
  assertEquals({ learning_rate, max_iters, out_dir }, { learning_rate: 0.01, max_iters: 7, out_dir: out });

  assertEquals(list(`${out}/checkpoints`), ["step_000006", "step_000007"]);
  assertEquals(Deno.readTextFileSync(`${out}/latest`), "checkpoints/step_000007\n");
  assertEquals(list(`${out}/checkpoints/step_000007`), [
    "SHA256SUMS",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
  ]);
});

Deno.test("an interval of 0 turns evaluation, samples, checkpoints and log lines off", async () => {
  const out = freshPath();
  const flags = [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL, "--max_iters=3"];
  const stdout = await succeed("train", ...flags, "--log_interval=0");
  assertEquals(list(out), ["config.json", "log.txt", "metrics.jsonl", "run.json"]);
  assertEquals(metrics(out).map((m) => [m.step, m.val_loss]), [[1, undefined], [2, undefined], [
    3,
    undefined,
  ]]);
  assertEquals(stdout.match(/^(step \d+|saved|--- sample)/gm), ["step 3"]); // the last one is always there
});

Deno.test("a run says what the data is, computes no val_loss without a val split, and warns of a small one", async () => {
  const out = freshPath(), text = `${out}.txt`, flags = [...SMALL, "--max_iters=2", "--eval_interval=1"];
  Deno.writeTextFileSync(text, "So much of a text. ".repeat(100)); // 1,900 bytes
  const prepared = async (...more: string[]) => {
    const data = freshPath();
    const { code } = await run("prepare", "--input", text, "--tokenizer=bytes", "--out", data, ...more);
    assertEquals(code, 0);
    return data;
  };
  const none = await prepared("--val_fraction=0"), small = await prepared("--val_fraction=0.1");
  const first = await succeed(
    "train",
    `--data_dir=${none}`,
    `--out_dir=${out}`,
    ...flags,
    "--save_interval=2",
  );
  assertEquals(metrics(out).map((m) => "val_loss" in m), [false, false]);
  const facts = "loam bins, tokenizer bytes, vocab_size 257, eot 256";
  assertStringIncludes(
    first,
    `data ${none}: ${facts}; 1,901 train and 0 val tokens\nno val split: val_loss is not computed\n`,
  );

  const second = await succeed("train", `--data_dir=${small}`, `--out_dir=${freshPath()}`, ...flags);
  const windows = Math.floor((190 + 1 - 1) / 16); // of block_size tokens and the one that follows
  assertStringIncludes(
    second,
    `data ${small}: ${facts}; 1,711 train and 191 val tokens\nwarning: the val split has ${windows} windows of 16 tokens, eval_batches x batch_size are 40; val_loss is the mean of ${windows}: prepare with a larger --val_fraction\n`,
  );
  assertEquals(second.includes("val_bpb is not"), false);
  const path = `${small}/meta.json`,
    { val: { bytes: _, ...val }, meta_sha256: __, ...meta } = JSON.parse(Deno.readTextFileSync(path));
  Deno.writeTextFileSync(path, JSON.stringify({ ...meta, val })); // as an earlier version may have left it
  const third = freshPath(),
    said = await succeed("train", `--data_dir=${small}`, `--out_dir=${third}`, ...flags);
  assertStringIncludes(said, "\nval_bpb is not computed: the bytes of text in the val split are not known\n");
  assertEquals(metrics(third).map((m) => ["val_loss" in m, "val_bpb" in m]), [[true, false], [true, false]]);
  const enough = await succeed(
    "train",
    `--data_dir=${small}`,
    `--out_dir=${freshPath()}`,
    ...flags,
    "--eval_batches=2",
  );
  assertEquals(enough.includes("warning"), false);

  const mixed = await succeed(
    "train",
    `--data_dir=${none}:1,${small}:1`,
    `--out_dir=${freshPath()}`,
    ...flags,
  );
  assertStringIncludes(mixed, `the val split has ${windows} windows`);
  const only = await run("train", `--resume=${out}`, "--eval_only");
  assertEquals(
    [only.code, errorLine(only.stderr)],
    [
      1,
      `Cannot read windows of the val split of "${none}": it has none; prepare with a --val_fraction above 0`,
    ],
  );
});

Deno.test("the last step is evaluated and saved whatever the intervals", async () => {
  const out = freshPath();
  const flags = ["--max_iters=3", "--eval_interval=100", "--save_interval=100", "--eval_batches=1"];
  await succeed("train", `--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL, ...flags);
  assertEquals(metrics(out).map((m) => "val_loss" in m), [false, false, true]);
  assertEquals(list(`${out}/checkpoints`), ["step_000003"]);
});

Deno.test("each checkpoint is evaluated, whatever eval_interval is", async () => {
  const out = freshPath(), flags = [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL];
  await succeed(
    "train",
    ...flags,
    "--max_iters=5",
    "--eval_interval=100",
    "--save_interval=2",
    "--eval_batches=1",
  );
  assertEquals(metrics(out).map((m) => "val_loss" in m), [false, true, false, true, true]);
});

Deno.test("the newest keep_checkpoints stay, and the best", async () => {
  const out = freshPath();
  const flags = [
    "--learning_rate=0",
    "--min_lr=0",
    "--max_iters=6",
    "--save_interval=1",
    "--eval_interval=1",
  ];
  flags.push("--eval_batches=1", "--keep_checkpoints=2"); // a model that learns nothing is never better than at first
  await succeed("train", `--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL, ...flags);
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000005", "step_000006"]);
  assertEquals(Deno.readTextFileSync(`${out}/best`), "checkpoints/step_000001\n");
});

Deno.test("a run without out_dir goes to a directory of its own below runs/", async () => {
  const data = await dataset(), dirs: string[] = [];
  try {
    for (let i = 0; i < 2; i++) {
      const stdout = await succeed("train", `--data_dir=${data}`, ...SMALL, "--max_iters=1");
      dirs.push(/^writing to (runs\/\S+)$/m.exec(stdout)![1]!);
    }
    for (const dir of dirs) assertMatch(dir, /^runs\/\d{4}-\d\d-\d\d-tiny(-\d+)?$/);
    assert(dirs[0] !== dirs[1], dirs[0]);
  } finally {
    for (const dir of dirs) Deno.removeSync(new URL(dir, ROOT), { recursive: true });
  }
});

Deno.test("the same seed trains the same model and another seed another", async () => {
  const data = await dataset();
  const losses = async (seed: number) => {
    const out = freshPath();
    await succeed(
      "train",
      `--data_dir=${data}`,
      `--out_dir=${out}`,
      ...SMALL,
      "--max_iters=5",
      `--seed=${seed}`,
    );
    return metrics(out).map((m) => m.loss);
  };
  const first = await losses(1);
  assertEquals(await losses(1), first);
  assert((await losses(2))[0] !== first[0]);
});

Deno.test("--eval_only prints the loss over the whole val split, computed here once more", async () => {
  const data = await dataset(), out = freshPath();
  const flags = ["--max_iters=30", "--save_interval=30", "--bf16_gemm=false"]; // as it is computed here
  await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, ...flags);
  const before = list(out), stdout = await succeed("train", `--resume=${out}`, "--eval_only");
  assertEquals(await succeed("train", `--resume=${out}`, "--eval_only"), stdout);
  assertEquals(list(out), before);
  const [, loss, bpb, windows] =
    /^val loss (\d\.\d{6}), (\d\.\d{6}) bits per byte, over (\d+) windows of 16 tokens\n$/.exec(stdout)!;
  const expected = lossOfSplit(out, data);
  assertEquals(Number(windows), expected.windows);
  assertAlmostEquals(Number(loss), expected.loss, 2e-6);
  const shard = openDataset(data).val[0]!, tokens = readTokens(shard, 0, shard.tokens);
  const bytes = tokens.filter((id) => id < 256).length; // of the tokenizer "bytes" a token is one, or the end of a document
  assertAlmostEquals(Number(bpb), expected.loss / Math.LN2 * tokens.length / bytes, 2e-6);

  const apart = await succeed("train", `--resume=${out}`, "--eval_only", "--document_mask");
  const [, own] =
    /^val loss (\d\.\d{6}), \d\.\d{6} bits per byte, over \d+ windows of 16 tokens, each document by itself\n$/
      .exec(
        apart,
      )!;
  assertAlmostEquals(Number(own), lossOfSplit(out, data, true).loss, 2e-6);
  assertNotEquals(own, loss);
});

/**
 * Mean cross entropy over the val split from logits, window by window, with the softmax in float64. apart: the model is given
 * what a window holds of each document alone.
 */
function lossOfSplit(checkpoint: string, data: string, apart = false): { loss: number; windows: number } {
  const { model, config } = loadModel(checkpoint), T = config.block_size, V = config.vocab_size;
  const { val: [shard], bos } = openDataset(data), windows = Math.floor((shard!.tokens - 1) / T);
  const logitsOf = (ids: Uint32Array) => {
    const all = noGrad(() => {
      const idx = empty([1, ids.length], "i32");
      copyToDevice(idx.address, Int32Array.from(ids));
      return Array.from(logits(model, forward(model, idx, config)).toArray());
    });
    endStep();
    return all;
  };
  let sum = 0;
  for (let w = 0; w < windows; w++) {
    const tokens = readTokens(shard!, w * T, T + 1);
    const begins = Array.from({ length: T }, (_, t) => t).filter((t) =>
      t === 0 || apart && tokens[t] === bos
    );
    const all = begins.flatMap((from, i) => logitsOf(tokens.slice(from, begins[i + 1] ?? T)));
    for (let t = 0; t < T; t++) {
      const row = Float64Array.from(all.slice(t * paddedVocab(config), t * paddedVocab(config) + V));
      sum += Math.log(row.reduce((total, l) => total + Math.exp(l), 0)) - row[tokens[t + 1]!]!;
    }
  }
  return { loss: sum / (windows * T), windows };
}

Deno.test("--dry_run prints data, model, FLOPs, memory, speed and the first batch, and writes nothing", async () => {
  const data = await dataset(), out = freshPath();
  const stdout = await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--dry_run");
  assertEquals(list(out), []);
  const { train, val } = JSON.parse(Deno.readTextFileSync(`${data}/meta.json`));
  const count = (n: number) => n.toLocaleString("en-US");
  const facts = "loam bins, tokenizer bytes, vocab_size 257, eot 256";
  const tokens = `${count(train.tokens)} train and ${count(val.tokens)} val tokens`;
  assertStringIncludes(stdout, `data   ${data}: ${facts}; ${tokens}\n`);
  assertMatch(stdout, /^model {2}25\.8k parameters, 15\.5k without embeddings$/m);
  assertMatch(stdout, /^FLOPs {2}0\.0002 GFLOP a token, /m);
  const table = new Map(
    Array.from(stdout.matchAll(/^ {7}(\w+) +([\d.]+) (kB|MB)$/gm), ([, kind, n, unit]) => {
      return [kind, Number(n) * (unit === "MB" ? 1000 : 1)];
    }),
  );
  // two layers of q, k, v, o (32 x 96), gates, ups and downs (32 x 144) and norms; 320 x 32 embeddings; a last norm
  const parameters = 2 * (32 * 96 + 32 * 144 + 2 * 64) + 320 * 32 + 64; // each in multiples of 64
  assertAlmostEquals(table.get("weights")!, 4 * parameters / 1000, 1);
  assertAlmostEquals(table.get("gradients")!, 4 * parameters / 1000, 1);
  assertAlmostEquals(table.get("optimizer")!, 8 * parameters / 1000, 1);
  assertEquals(table.get("inputs"), 0.5);
  assert(table.get("step")! > 100, stdout);
  assertMatch(
    stdout,
    /^rate {3}cosine schedule, by steps\n {7}0\.01 \| '+\.+\n {12}\|.*\n(.*\n)* {10}0 \|.*\n {13}1 +1000$/m,
  );
  assertMatch(stdout, /^free {3}[\d.]+ [MG]B of [\d.]+ [MG]B \((the machine's memory|\S+ of cgroup \S+)\)$/m);
  assertMatch(stdout, /^speed {2}[\d,]+ tokens\/s, forward and backward$/m);
  const size = 4 * 16 * 1000, windows = Math.floor((train.tokens - 1) / 16) * 16; // 1000 steps of tiny
  const rest = stdout.split("\nrun ")[1]!.split("\nbatch ")[0]!;
  assertMatch(rest, /^ {7}steps +1,000 {2}of 64 tokens, 64\.0k in all$/m);
  assertMatch(rest, /^ {7}time +[\d.]+ (ms|s|min) {2}at [\d,]+ tokens\/s; /m);
  assertMatch(rest, new RegExp(`^ {7}epochs +${(size / windows).toFixed(1)} {2}of `, "m"));
  const saved = 2 * (32 * 96 + 32 * 144 + 2 * 32) + 257 * 32 + 32; // without padding, 12 bytes each: 284.9 kB
  assertMatch(
    rest,
    new RegExp(
      `^ {7}disk +0\\.0 kB {2}0 of 0 checkpoints of ${Math.round(12 * saved / 1e3)} kB are kept$`,
      "m",
    ),
  );
  assertMatch(rest, /^ {7}memory +\d+ kB {2}of [\d.]+ GB that are free$/m);
  assertMatch(rest, /^ {7}ratio +2\.5 {2}tokens a parameter; Chinchilla's 20 are 515\.2k, 8,050 steps$/m);
  const batch = Array.from(stdout.matchAll(/^batch {2}train_000000\.bin tokens \d+ to \d+: ".+"$/gm));
  assertEquals(batch.length, 4);
});

Deno.test("--dry_run --ranks plans for one of several, whose checkpoints have the sizes that are planned", async () => {
  const data = await dataset(),
    out = freshPath(),
    flags = [`--data_dir=${data}`, ...SMALL, "--n_embd=128", "--n_inner=384"];
  flags.push("--gradient_accumulation_steps=4");
  const alone = await succeed("train", ...flags, "--dry_run");
  const ranks = await succeed("train", ...flags, "--dry_run", "--ranks=3");
  const megabytes = (text: string, name: string) =>
    Number(new RegExp(`${name} +([\\d.]+) MB`).exec(text)![1]);
  assertAlmostEquals(megabytes(ranks, "optimizer"), megabytes(alone, "optimizer") / 3, 0.1);
  assertEquals(megabytes(ranks, "gradients"), megabytes(alone, "gradients"));
  assertMatch(ranks, /^memory on cpu, by kind, of one of 3 ranks$/m);
  assertMatch(
    ranks,
    /^comm {3}each rank sends and receives [\d.]+ MB a step, gradients beside the last backward pass: /m,
  );
  assertMatch(ranks, /^speed .*; it computes .* of a step \(2 micro-steps\), and the exchange is /m); // two, one and one
  assertMatch(ranks, /^ {7}time .*, 3 ranks with one 400G adapter a node; /m);
  assertEquals(alone.includes("\ncomm "), false);
  await succeed("train", ...flags, `--out_dir=${out}`, "--max_iters=1", "--save_interval=1");
  const sizes = ["model", "optimizer"].map((name) =>
    Deno.statSync(`${out}/checkpoints/step_000001/${name}.safetensors`).size / 1e6
  );
  const planned = ["model", "optimizer"].map((name) => megabytes(/^save.*$/m.exec(alone)![0], name));
  sizes.forEach((size, i) => assertAlmostEquals(planned[i]! / size, 1, 0.05)); // 63 rows that pad the vocabulary are not saved
  assertEquals(
    await refuse("train", ...flags, "--ranks=3"),
    "Cannot start 3 ranks: --ranks plans for them, with --dry_run; start them with torchrun, mpirun or srun, see " +
      "docs/distributed.md",
  );
  const of = (rank: number) => ["WORLD_SIZE=2", `RANK=${rank}`, `LOCAL_RANK=${rank}`];
  const [first, second] = [
    await runWith(of(0), "train", ...flags, "--dry_run"),
    await runWith(of(1), "train", ...flags, "--dry_run"),
  ];
  assertMatch(first.stdout, /^memory on cpu, by kind, of one of 2 ranks$/m);
  assertEquals(second, { code: 0, signal: null, stdout: "", stderr: "" }); // one copy is enough
});

Deno.test("a run on a CPU has 512 rows of a large vocabulary's logits at a time, or as many as are given, also as it goes on", async () => {
  const data = await dataset({ words: 5000, tokenizer: "gpt2" }); // 50,257 tokens
  const trained = async (...flags: string[]) => {
    await succeed("train", ...SMALL, "--device=cpu", "--save_interval=1", ...flags);
  };
  const chunk = (out: string) => JSON.parse(Deno.readTextFileSync(`${out}/config.json`)).head_chunk;
  const usual = freshPath(), given = freshPath();
  await trained(`--data_dir=${data}`, "--max_iters=1", `--out_dir=${usual}`);
  await trained(`--data_dir=${data}`, "--max_iters=1", `--out_dir=${given}`, "--head_chunk=1024");
  assertEquals([chunk(usual), chunk(given)], [512, 1024]);
  await succeed("train", `--resume=${given}`, "--max_iters=2");
  assertEquals(chunk(given), 1024);
  assertEquals(chunkOf(2048, 257), 2048);
});

Deno.test("--dry_run counts gpt-270m as published", async () => {
  const data = await dataset({ words: 5000, tokenizer: "gpt2" });
  const stdout = await succeed(
    "train",
    `--data_dir=${data}`,
    "--preset=gpt-270m",
    "--device=cpu",
    "--dry_run",
  );
  assertMatch(stdout, /^model {2}322\.1M parameters, 270\.6M without embeddings$/m);
  assertMatch(stdout, /^FLOPs {2}2\.2344 GFLOP a token, 585\.73 TFLOP a step of 262144 tokens$/m);
  assertMatch(stdout, /^ {7}weights +1\.3 GB\n {7}gradients +1\.3 GB\n {7}optimizer +2\.6 GB$/m);
  assertMatch(stdout, /^batch .*"<\|endoftext\|>/m);
});

Deno.test({
  name: "--dry_run --device=cuda plans for a GPU that is not here and says why it measured no speed",
  ignore: hasGPU,
  async fn() {
    const data = await dataset({ words: 5000, tokenizer: "gpt2" });
    const flags = ["--device=cuda", "--dry_run"];
    const { code, stdout, stderr } = await run("train", `--data_dir=${data}`, ...flags);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    assertMatch(stdout, /^memory on cuda, by kind$/m);
    assertMatch(stdout, /^ {7}weights +644 MB$/m); // bfloat16
    assertMatch(stdout, /^ {7}optimizer +3\.3 GB$/m); // float32 m and v; 17 bits of each master weight
    assertMatch(stdout, /^speed {2}not measured: Cannot open .*cuda.*: (it is not built; run: |.*driver)/m);
  },
});

Deno.test("--help lists the variables with comments and the values of the preset that would run", async () => {
  const tiny = await succeed("train", "--help", "--device=cpu");
  assertMatch(
    tiny,
    /^Train a Llama\n\n {2}deno task train .*\n\npresets\n {2}gpt-270m +322M .*\n(.*\n)+\nvariables, as tiny has them here\n\n {2}--preset=tiny .*\n(.*\n)+ {2}--min_lr=0\.0003 +where it ends\n/,
  );
  const large = await succeed("train", "--preset=gpt-270m", "--n_layer=5", "--help");
  assertMatch(
    large,
    /\nvariables, as gpt-270m has them here\n(.*\n)+ {2}--n_layer=5 .*\n(.*\n)+ {2}--min_lr=0\.00003 +where it ends/,
  );
  assertMatch(
    await succeed("sample", "--help"),
    /^Write text .*\n\n {2}--checkpoint= .*\n(.*\n)+ {2}--temperature=0\.8 +0 = always .*\n/,
  );
});

Deno.test("a line of the log is the mean of the steps since the last one, metrics.jsonl has each", async () => {
  const out = freshPath(), flags = ["--max_iters=8", "--log_interval=3"];
  const stdout = await succeed(
    "train",
    `--data_dir=${await dataset()}`,
    `--out_dir=${out}`,
    ...SMALL,
    ...flags,
  );
  const lines = Array.from(
    stdout.matchAll(/^step (\d+)\/8 \| loss ([\d.]+) .* norm ([\d.]+) +\| ([\d,]+) tok\/s/gm),
  );
  assertEquals(lines.map(([, step]) => Number(step)), [3, 6, 8]);
  const steps = metrics(out);
  lines.forEach(([, , loss, norm, speed], i) => {
    const own = steps.slice(3 * i, 3 * i + 3),
      mean = (key: string) => own.reduce((s, m) => s + m[key]!, 0) / own.length;
    assertEquals([loss, norm], [mean("loss").toFixed(4), mean("grad_norm").toFixed(2)]);
    assertAlmostEquals(Number(speed!.replaceAll(",", "")), 64 / mean("step_ms") * 1000, 1); // 4 windows of 16 tokens
  });
});

Deno.test({
  name: "train shows steps between lines, and colours, on a terminal that has them; --quiet shows nothing",
  ignore: !isInstalled("script"),
  fn: async () => {
    const shown = async (options: string[], ...more: string[]) => {
      const out = freshPath(), flags = [...SMALL, "--max_iters=4", "--log_interval=2", "--eval_interval=2"];
      const where = [`--data_dir=${await dataset()}`, `--out_dir=${out}`];
      const { code, stdout } = await runOnTerminal(options, "train", ...where, ...flags, ...more);
      const log = Deno.readTextFileSync(`${out}/log.txt`);
      assertEquals([code, log.match(/^step.*/gm)?.length, log.includes("\x1b")], [0, 2, false], stdout);
      return stdout.replaceAll("\x1b", "ESC");
    };
    const colours = await shown(["-u", "NO_COLOR"]);
    assertMatch(colours, /\rstep 1\/4 \| [^\nE]*ESC\[K\rESC\[Kstep 2\/4ESC\[2m \| ESC\[0mloss/);
    assertMatch(colours, /ESC\[1mval \d\.\d{4}ESC\[0m/);
    const plain = await shown(["NO_COLOR=1"]);
    assertMatch(plain, /\rstep 1\/4 \| [^\nE]*ESC\[K\rESC\[Kstep 2\/4 \| loss [^E]*\n/);
    assertEquals(await shown([], "--quiet"), "");
  },
});

Deno.test("--debug=tape lists the ops of one micro-step", async () => {
  const out = freshPath();
  const flags = ["--debug=tape", "--eval_interval=1", "--save_interval=1", "--sample_interval=1"];
  const stdout = await succeed(
    "train",
    `--data_dir=${await dataset()}`,
    `--out_dir=${out}`,
    ...SMALL,
    ...flags,
  );
  const rows = Array.from(
    stdout.matchAll(/^ *\d+ +(forward|backward) +(\w+) +(.*?) +(\([\d, ]+\)) +\S+ +\S+$/gm),
  );
  const ops = (pass: string) => rows.filter((row) => row[1] === pass).map((row) => row[2]!);
  const forward = ops("forward");
  assertEquals([forward[0], forward.at(-1)], ["embedding", "linearCrossEntropy"]);
  assertEquals(forward.filter((op) => op === "attention").length, 2); // one in each layer
  assertEquals(ops("backward"), forward.toReversed());
  assertEquals(rows[0]!.slice(3), ["embed_tokens", "(4, 16, 32)"]);
  assertEquals(list(`${out}/checkpoints`), []);
});

Deno.test("--debug=profile adds up the time of training steps by op and by layer, in a resumed run too", async () => {
  const data = await dataset(), out = freshPath();
  const train = (...flags: string[]) =>
    succeed("train", `--data_dir=${data}`, ...SMALL, "--max_iters=20", ...flags);
  await train(`--out_dir=${out}`, "--max_iters=2", "--save_interval=2");
  const intervals = ["--eval_interval=1", "--eval_batches=1", "--save_interval=1", "--sample_interval=1"];
  for (const place of [`--out_dir=${freshPath()}`, `--resume=${out}`]) {
    const stdout = await train(place, "--debug=profile", ...intervals);
    assertMatch(stdout, /^op +calls +ms a step +share +GFLOP\/s +GB\/s$/m);
    const calls = (name: string) => new RegExp(`^${name} +(\\d+) `, "m").exec(stdout)?.[1];
    assertEquals(calls("attention forward"), "2"); // one in each layer: neither evaluation nor samples are counted
    assertEquals(calls("attention backward"), "2");
    assertEquals(calls("adamw"), "1");
    assert(calls("layers.1") !== undefined, stdout);
    const path = `${place.split("=")[1]}/profile.json`;
    assertStringIncludes(stdout, `every op in ${path}: open it in ui.perfetto.dev\n`);
    const { traceEvents } = JSON.parse(Deno.readTextFileSync(path));
    const steps = traceEvents.filter(({ cat }: { cat: string }) => cat === "step");
    assertEquals(steps.length, 4);
  }
});

Deno.test("a mix of datasets is trained on, evaluated on the val splits of all, and resumed to the same bits", async () => {
  const [a, b, whole, parts] = [
    await dataset({ words: 900 }),
    await dataset({ words: 400 }),
    freshPath(),
    freshPath(),
  ];
  const flags = [...SMALL, `--data_dir=${a}:0.7,${b}:0.3`, "--save_interval=4", "--min_lr=0.01"];
  await succeed("train", ...flags, `--out_dir=${whole}`, "--max_iters=8");
  await succeed("train", ...flags, `--out_dir=${parts}`, "--max_iters=4");
  await succeed("train", `--resume=${parts}`, "--max_iters=8");
  assertEquals(metrics(parts).map(({ loss }) => loss), metrics(whole).map(({ loss }) => loss));
  const windows = async (dir: string) => {
    const printed = await succeed("train", `--resume=${whole}`, `--data_dir=${dir}`, "--eval_only");
    return Number(/over (\d+) windows/.exec(printed)![1]);
  };
  assertEquals(await windows(`${a}:0.7,${b}:0.3`), await windows(a) + await windows(b));
});
