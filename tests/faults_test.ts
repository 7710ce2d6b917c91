// What happens when a run meets a full disk, a kill, or numbers that are not finite.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { findCompiler } from "../tools/build.ts";
import { sha256OfFile } from "../base/files.ts";
import { existsSync } from "node:fs";
import settings from "../deno.json" with { type: "json" };
import {
  canLimit,
  dataset,
  emptyDirectory,
  ending,
  errorLine,
  freshPath,
  isInstalled,
  list,
  metrics,
  onTerminal,
  plantNaN,
  ROOT,
  run,
  runLimited,
  Running,
  runWith,
  runWithFullDisk,
  runWithoutStdout,
  SMALL,
  succeed,
} from "./testing.ts";

/** A run of two steps with a checkpoint after each. */
async function trained(): Promise<string> {
  const out = freshPath(), flags = ["--max_iters=2", "--save_interval=1"];
  await succeed("train", `--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL, ...flags);
  return out;
}

// ---- a full disk

Deno.test("a disk that fills up while a checkpoint is written leaves the earlier ones whole", async () => {
  const out = await trained();
  const flags = [`--resume=${out}`, "--max_iters=4"];
  // model.safetensors fits, optimizer.safetensors, twice as large, does not
  const { code, stderr } = await runWithFullDisk(150 * 1024, "train", ...flags);
  assertEquals(code, 1);
  const line = errorLine(stderr);
  assertStringIncludes(line, `Cannot save checkpoint ${out}/checkpoints/step_000003: Cannot write `);
  assertMatch(
    line,
    /optimizer\.safetensors: .+; free some space and go on from step_000002, which is whole: --resume=/,
  );
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000002"]);
  assertEquals(Deno.readTextFileSync(`${out}/latest`), "checkpoints/step_000002\n");
  assertEquals(ending(out), { state: "failed", error: line });

  await succeed("train", ...flags);
  assertEquals(metrics(out).map((m) => m.step), [1, 2, 3, 4]);
  assertEquals(list(`${out}/checkpoints`), ["step_000002", "step_000003", "step_000004"]);
});

Deno.test("a disk that is full before the first checkpoint is one line, and nothing half-written stays", async () => {
  const out = freshPath(), flags = [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL];
  flags.push("--max_iters=2", "--save_interval=1");
  const { code, stderr } = await runWithFullDisk(50 * 1024, "train", ...flags);
  assertEquals(code, 1);
  assertMatch(
    errorLine(stderr),
    /model\.safetensors: .+; free some space and start again with --out_dir=\S+ --resume=auto, none was saved before$/,
  );
  assertEquals(list(`${out}/checkpoints`), []);
  await succeed("train", ...flags, "--resume=auto");
  assertEquals(metrics(out).map(({ step }) => step), [1, 2]);
});

Deno.test("a checkpoint that cannot be written for want of something else than space does not ask for space", async () => {
  const out = emptyDirectory(), flags = [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL];
  Deno.writeTextFileSync(`${out}/checkpoints`, "a file where a directory has to be");
  const { code, stderr } = await run("train", ...flags, "--max_iters=1", "--save_interval=1");
  assertEquals(code, 1);
  assertMatch(
    errorLine(stderr),
    /^Cannot save checkpoint .+; mend that and start again with --out_dir=\S+ --resume=auto, /,
  );
});

Deno.test("a disk that is full for config.json, the log or the metrics is one line that names the file", async () => {
  const data = await dataset();
  const cases = [[512, /config\.json\.\d+\.tmp: /], [2048, /(log\.txt|metrics\.jsonl): /]] as const;
  for (const [bytes, file] of cases) {
    const flags = [`--data_dir=${data}`, `--out_dir=${freshPath()}`, ...SMALL, "--max_iters=200"];
    const { code, stderr } = await runWithFullDisk(bytes, "train", ...flags);
    assertEquals(code, 1);
    assertMatch(errorLine(stderr), /^Cannot write /);
    assertMatch(stderr, file);
  }
});

// ---- limits of memory and processor time

const LARGE = ["--n_layer=4", "--n_embd=256", "--n_inner=1024", "--block_size=64", "--batch_size=32"];

Deno.test({
  name: "a run that its cgroup has no memory for ends with one line before it starts, and names what fits",
  ignore: !canLimit,
  async fn() {
    const flags = [`--data_dir=${await dataset()}`, ...SMALL, ...LARGE, "--max_iters=2"],
      memory = 250_000_000;
    const { code, signal, stderr } = await runLimited(
      { memory },
      "train",
      ...flags,
      `--out_dir=${freshPath()}`,
    );
    assertEquals([code, signal], [1, null], stderr);
    const line = errorLine(stderr);
    const pattern = new RegExp(
      "^Cannot train with batch_size 32, recompute norm_swiglu and head_chunk 2048: a step needs \\d+ MB; \\w+: [\\d.]+ MB " +
        "do not fit: [\\d.]+ MB are free of 250\\.0 MB \\(memory\\.\\w+ of cgroup /sys/fs/cgroup/\\S*loam_\\d+\\), [\\d.]+ MB " +
        "already given; this fits: (.+)$",
    );
    assertMatch(line, pattern);
    for (const fitting of pattern.exec(line)![1]!.split(", or ")) {
      const out = `--out_dir=${freshPath()}`,
        more = ["--save_interval=1", "--eval_interval=1", "--eval_batches=1", ...fitting.split(" ")];
      const { code, stderr } = await runLimited({ memory }, "train", ...flags, out, ...more);
      assertEquals([code, stderr], [0, ""], fitting);
    }
    const { stdout } = await runLimited({ memory }, "train", ...flags, "--dry_run");
    assertMatch(
      stdout,
      /^free {3}\d+ MB of 250 MB \(memory\.\w+ of cgroup \S+\); the step does not fit; this fits: --.+\nspeed {2}not measured$/m,
    );
  },
});

Deno.test({
  name: "the processors that a run is bound to are the number of threads unless that is asked for",
  ignore: !isInstalled("taskset") || navigator.hardwareConcurrency < 2,
  async fn() {
    const args = [...settings.tasks.train.command.split(" "), `--data_dir=${await dataset()}`, ...SMALL];
    for (const [cpus, threads] of [["0", 1], ["0,1", 2]] as const) {
      const more = ["--threads=0", "--max_iters=1", `--out_dir=${freshPath()}`];
      const command = new Deno.Command("taskset", { args: ["-c", cpus, ...args, ...more], cwd: ROOT });
      const { stdout } = await command.output();
      assertStringIncludes(new TextDecoder().decode(stdout), `, ${threads} threads, `);
    }
  },
});

Deno.test({
  name: "a cgroup's quota of processor time, rounded up, is the number of threads unless that is asked for",
  ignore: !canLimit,
  async fn() {
    const flags = [`--data_dir=${await dataset()}`, ...SMALL, "--max_iters=1"];
    const threads = async (cpu: number, asked: number) => {
      const out = `--out_dir=${freshPath()}`;
      const { stdout, stderr } = await runLimited({ cpu }, "train", ...flags, out, `--threads=${asked}`);
      return Number(/^device cpu .*, (\d+) threads, /m.exec(stdout)?.[1] ?? stderr);
    };
    assertEquals(await threads(90_000, 0), 1);
    assertEquals(await threads(110_000, 0), Math.min(2, navigator.hardwareConcurrency));
    assertEquals(await threads(90_000, 2), 2);
  },
});

// ---- a shard that changes under a run, or cannot be read

Deno.test("a shard that is cut short under a run ends it with one line, and nothing saved is lost", async () => {
  const data = await dataset(), out = freshPath(), shard = `${data}/train_000000.bin`;
  const bytes = Deno.statSync(shard).size;
  const flags = [
    `--data_dir=${data}`,
    `--out_dir=${out}`,
    ...SMALL,
    "--max_iters=1000000",
    "--save_interval=5",
  ];
  const running = new Running("train", ...flags);
  await running.line("saved ");
  Deno.truncateSync(shard, 5000);
  const { code, signal, stderr } = await running.end();
  assertEquals([code, signal], [1, null]);
  const ends = `it ends at byte \\d+, should have ${bytes} bytes: it was cut short while it was in use`;
  const shrank = `it has 5000 bytes, should have ${bytes}: its size changed while it was in use`;
  const next = "write the dataset again: deno task prepare --overwrite \\.\\.\\.";
  assertMatch(errorLine(stderr), new RegExp(`^Cannot use "${shard}": (${ends}|${shrank}); ${next}$`));
  const steps = metrics(out).map(({ step }) => step);
  assertEquals(steps, Array.from(steps, (_, i) => i + 1));
  const [newest] = list(`${out}/checkpoints`).map((name) => Number(name.slice(5))).reverse();
  assert(newest! % 5 === 0 && newest! >= 5, `the newest checkpoint is of step ${newest}`);
});

/** Compiles a library whose pread() stands before the system's: C code that may use bytes, calls and real(). */
async function pread(body: string): Promise<string> {
  const path = `${freshPath()}.so`,
    code = `#define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <unistd.h>
    ssize_t pread(int file, void *to, size_t bytes, off_t at) {
      static ssize_t (*real)(int, void *, size_t, off_t);
      static int calls;
      if (!real) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
      calls++;
      ${body}
    }`;
  Deno.writeTextFileSync(`${path}.c`, code);
  const args = ["-x", "c", "-shared", "-fPIC", `${path}.c`, "-o", path, "-ldl"];
  const { success } = await new Deno.Command((await findCompiler()).command, { args }).output();
  assert(success);
  return path;
}

Deno.test("reads that give less than asked for, or are interrupted, are gone on with", async () => {
  const data = await dataset(), flags = [`--data_dir=${data}`, ...SMALL, "--max_iters=3"];
  const losses = async (...environment: string[]) => {
    const out = freshPath();
    const { code, stderr } = await runWith(environment, "train", ...flags, `--out_dir=${out}`);
    assertEquals([code, stderr], [0, ""]);
    return metrics(out).map(({ loss }) => loss);
  };
  const slow = await pread(`
    if (calls % 3 == 0) { errno = EINTR; return -1; }
    return real(file, to, bytes < 7 ? bytes : 7, at);`);
  assertEquals(await losses(`LD_PRELOAD=${slow}`), await losses());
});

Deno.test("a read that fails ends a run with one line that names the shard, the place and the cause", async () => {
  const data = await dataset(), out = freshPath();
  const broken = await pread("if (calls < 6) return real(file, to, bytes, at); errno = EIO; return -1;");
  const flags = [`--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--save_interval=1"];
  const { code, stderr } = await runWith([`LD_PRELOAD=${broken}`], "train", ...flags);
  assertEquals([code, metrics(out).length, list(`${out}/checkpoints`)], [1, 1, ["step_000001"]]);
  assertMatch(
    errorLine(stderr),
    new RegExp(
      `^Cannot use "${data}/train_000000.bin": its 34 bytes at \\d+ could not be read: Input/output error; `,
    ),
  );
});

Deno.test({
  name:
    "a run that cannot print any more, as when its terminal is closed, goes on and has everything in its log",
  ignore: Deno.build.os !== "linux", // for /dev/full
  async fn() {
    const out = freshPath(), flags = [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL];
    const { code, stderr } = await runWithoutStdout("train", ...flags, "--max_iters=3", "--save_interval=3");
    assertEquals(code, 0);
    assertMatch(stderr, /^warning: from here on nothing is printed: No space left on device.*\n$/); // who sees it is told
    const log = Deno.readTextFileSync(`${out}/log.txt`);
    assertMatch(log, /^preset tiny .*\nwarning: from here on nothing is printed: .*\ndevice cpu /);
    assertMatch(log, /\nstep 3\/3 \| .*\nsaved .*step_000003\nfinished in .*\n$/);
  },
});

Deno.test({
  name: "a run whose terminal goes away while it shows steps between its lines goes on",
  ignore: !isInstalled("script") || !isInstalled("setsid"),
  fn: async () => {
    const out = freshPath(), flags = [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL];
    const terminal = new Running(
      onTerminal(
        ["sh", "-c", `exec setsid --wait "$@" 2>"$0"`, `${out}.err`], // hears no SIGHUP
        "train",
        ...flags,
        "--max_iters=1500",
        "--log_interval=0",
      ),
    );
    const steps = `${out}/metrics.jsonl`;
    while (!existsSync(steps) || Deno.statSync(steps).size < 1000) {
      await new Promise((ok) => setTimeout(ok, 20));
    }
    terminal.signal("SIGKILL");
    const state = () => JSON.parse(Deno.readTextFileSync(`${out}/run.json`)).state;
    while (state() === "running") await new Promise((ok) => setTimeout(ok, 20));
    assertEquals([ending(out), metrics(out).length], [{ state: "finished", error: null }, 1500]);
    assertMatch(Deno.readTextFileSync(`${out}.err`), /warning: from here on nothing is printed: .*\n$/);
    await terminal.end();
  },
});

// ---- prepare: a full disk, kills and signals

/** Some megabytes of documents as a command line, all but --out, and one document of 300 kB after the middle. */
function corpus(): string[] {
  const path = `${freshPath()}.jsonl`;
  const short = Array.from(
    { length: 2000 },
    (_, i) => `Document ${i} ` + "says a word or two. ".repeat(i % 160),
  );
  const texts = [...short, "A long one. ".repeat(25_000), ...short.slice(0, 500)];
  Deno.writeTextFileSync(path, texts.map((text) => JSON.stringify({ text })).join("\n"));
  return ["--input", path, "--tokenizer=bytes", "--val_fraction=0.2", "--shard_tokens=40000"];
}

/** SHA-256 by name of the files in a directory. */
function checksums(dir: string): Record<string, string> {
  return Object.fromEntries(list(dir).map((name) => [name, sha256OfFile(`${dir}/${name}`)]));
}

/** Shards that have their names. */
function shardsIn(dir: string): string[] {
  return list(dir).filter((name) => name.endsWith(".bin"));
}

Deno.test("a disk that fills up leaves prepare's finished shards whole, and the same command goes on", async () => {
  const flags = corpus(), whole = freshPath(), out = freshPath();
  await succeed("prepare", ...flags, "--out", whole);
  // 40,000 tokens of 2 bytes fit, the long document does not
  const { code, stderr } = await runWithFullDisk(200 * 1024, "prepare", ...flags, "--out", out);
  assertEquals(code, 1);
  assertMatch(
    errorLine(stderr),
    /^Cannot write "\S+\/unfinished\/(train|val)_\d+\.bin": .+; the first [\d,]+ documents are done, the same command goes on behind them$/,
  );
  assertEquals(list(out).filter((name) => name !== "prepare.lock"), ["unfinished"]);
  const { written } = JSON.parse(Deno.readTextFileSync(`${out}/unfinished/state.json`));
  const finished = [...written.train.shards, ...written.val.shards];
  assert(finished.length > 20);
  for (const { file, sha256 } of finished) assertEquals(sha256OfFile(`${out}/unfinished/${file}`), sha256);
  assertMatch(await succeed("prepare", ...flags, "--out", out), /went on behind [\d,]+ documents/);
  assertEquals(checksums(out), checksums(whole));
});

Deno.test("prepare killed at 6 moments ends with the files of a run that was not disturbed", async () => {
  const flags = corpus(), whole = freshPath(), out = freshPath();
  await succeed("prepare", ...flags, "--out", whole);
  const wanted = checksums(whole), total = shardsIn(whole).length;
  let state = 1;
  const random = (below: number) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % 65521 % below;
  for (let kills = 0; kills < 6;) { // durability_data_test.ts has all moments
    const dir = random(4) === 0 ? out : `${out}/unfinished`; // while files move up, or while shards are written
    const shards = Math.min(total, shardsIn(dir).length + random(total >> 2));
    const running = new Running("prepare", ...flags, "--out", out, `--workers=${1 + random(2)}`);
    let ended = false;
    const end = running.end().finally(() => ended = true);
    while (!ended && shardsIn(dir).length < shards) await new Promise((resolve) => setTimeout(resolve));
    running.signal("SIGKILL");
    const { code, signal, stderr } = await end;
    if (signal === "SIGKILL") {
      kills++;
      continue;
    }
    assertEquals(code, 0, stderr); // it was faster
    assertEquals(checksums(out), wanted);
    Deno.removeSync(out, { recursive: true });
  }
  await succeed("prepare", ...flags, "--out", out);
  assertEquals(checksums(out), wanted);
});

for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
  Deno.test(`${signal} commits what prepare has written and says how to go on`, async () => {
    const flags = [...corpus(), "--tokenizer=gpt2"], whole = freshPath(), out = freshPath();
    await succeed("prepare", ...flags, "--out", whole);
    const running = new Running("prepare", ...flags, "--out", out, "--workers=2");
    while (shardsIn(`${out}/unfinished`).length === 0) await new Promise((resolve) => setTimeout(resolve));
    running.signal(signal);
    const ended = await running.end();
    assertEquals([ended.code, ended.stdout], [code, ""]);
    assertMatch(
      ended.stderr,
      new RegExp(`^${signal}: stopped with [\\d,]+ documents done; the same command goes on behind them\n$`),
    );
    assertMatch(await succeed("prepare", ...flags, "--out", out), /went on behind [\d,]+ documents/);
    assertEquals(checksums(out), checksums(whole));
  });
}

// ---- numbers that are not finite

Deno.test("--debug stops at the first NaN and names step, op, layer, tensor, shape, place and line", async () => {
  const cases = [
    ["model.layers.1.mlp.up_proj.weight", 5 * 32 + 7, "layers.1, output (4, 16, 96) is NaN at [0, 0, 53]"],
    ["model.layers.0.self_attn.k_proj.weight", 0, "layers.0, output (4, 16, 64) is NaN at [0, 0, 32]"],
    ["model.norm.weight", 9, "norm, output (4, 16, 32) is NaN at [0, 0, 9]"],
  ] as const;
  for (const [weight, index, expected] of cases) {
    const out = await trained();
    plantNaN(out, weight, index);
    const { code, stderr } = await run("train", `--resume=${out}`, "--max_iters=4", "--debug");
    assertEquals(code, 1);
    const line = errorLine(stderr);
    assertMatch(line, /^Non-finite value in step 3: \w+, .*; the op was called at model\/llama\.ts:\d+$/);
    const [, op, place] = /3: (\w+), (.*);/.exec(line)!;
    assertEquals(place, expected);
    assertStringIncludes(callingLine(line), `${op}(`);
  }
});

/** The line of source that an error points at. */
function callingLine(message: string): string {
  const [, file, line] = /(model\/llama\.ts):(\d+)$/.exec(message)!;
  return Deno.readTextFileSync(new URL(`../${file}`, import.meta.url)).split("\n")[Number(line) - 1]!;
}

Deno.test("updates that are not finite are skipped, counted, and end the run after max_skipped in a row", async () => {
  const out = await trained();
  plantNaN(out, "model.embed_tokens.weight", 32 * "e".charCodeAt(0));
  const flags = ["--max_iters=20", "--max_skipped=3", "--gradient_accumulation_steps=3", "--save_interval=0"];
  const { code, stdout, stderr } = await run("train", `--resume=${out}`, ...flags);
  assertEquals(code, 1);
  const lines = stderr.trimEnd().split("\n");
  assertEquals(
    lines.slice(0, 3),
    [3, 4, 5].map((step) => {
      return `warning: the update of step ${step} was skipped: loss NaN, gradient norm NaN`;
    }),
  );
  assertEquals(lines.length, 4);
  assertMatch(
    lines[3]!,
    /^error: Cannot go on after step 5: 3 updates in a row were not finite \(--max_skipped\); the step read (train_000000\.bin tokens \d+ to \d+, ){7}train_000000\.bin tokens \d+ to \d+ and 4 more; go on from step_000002 \(--resume=\S+\) with --debug, which finds the first bad value, or with a learning_rate below 0\.01; no update has followed step_000002: if none will, remove it and go on from step_000001$/,
  );
  assertMatch(stdout, /^step +5\/20 \| loss NaN +\| .* \| 3 skipped$/m);
  const measured = metrics(out).slice(2).map((m) => [m.step, m.loss, m.skipped]);
  assertEquals(JSON.stringify(measured), "[[3,null,1],[4,null,2],[5,null,3]]");
  assertEquals(ending(out), { state: "failed", error: lines[3]!.slice("error: ".length) });
  assertEquals(Deno.readTextFileSync(`${out}/log.txt`).trimEnd().split("\n").at(-1), lines[3]);
});

Deno.test("a learning rate that is far too high ends the run, and its last checkpoint still loads", async () => {
  const out = freshPath();
  const flags = ["--max_iters=60", "--learning_rate=1e30", "--warmup_iters=0", "--grad_clip=0"];
  flags.push("--save_interval=1", "--max_skipped=2");
  const { code, stderr } = await run(
    "train",
    `--data_dir=${await dataset()}`,
    `--out_dir=${out}`,
    ...SMALL,
    ...flags,
  );
  assertEquals(code, 1);
  assertMatch(stderr, /\nerror: Cannot go on after step \d+: 2 updates in a row were not finite/);
  assertMatch(await succeed("train", `--resume=${out}`, "--eval_only"), /^val loss (NaN|\d+\.\d{6}), /);
});

// One step at a learning rate of 1e15 leaves weights that are finite and of no use: every later loss is NaN.
const EXPLODES = ["--learning_rate=1e15", "--min_lr=1e15", "--grad_clip=0", "--save_interval=1"];

Deno.test("nothing is saved and no checkpoint removed while updates are skipped", async () => {
  for (const keep of [1, 2]) {
    const out = await trained(), good = `${out}/checkpoints/step_000002`, before = checksums(good);
    const flags = [...EXPLODES, "--max_iters=20", "--max_skipped=6", `--keep_checkpoints=${keep}`];
    const { code, stderr } = await run("train", `--resume=${out}`, ...flags);
    assertEquals(code, 1);
    assertMatch(
      stderr,
      /\nerror: Cannot go on after step 9: 6 updates .*; go on from step_000003 \(--resume=\S+\) with --debug, .*; no update has followed step_000003: if none will, remove it and go on from step_000002\n$/,
    );
    assertEquals(list(`${out}/checkpoints`), ["step_000002", "step_000003"]);
    assertEquals(checksums(good), before);
    assertMatch(await succeed("train", `--resume=${good}`, "--eval_only"), /^val loss \d\.\d{6}, /);
  }
});

Deno.test("a model whose val loss is not finite is not saved", async () => {
  const out = await trained(),
    flags = [...EXPLODES, "--max_iters=3", "--eval_interval=1", "--eval_batches=1"];
  const { code, stdout, stderr } = await run("train", `--resume=${out}`, ...flags);
  assertEquals(code, 1);
  const lines = stderr.trimEnd().split("\n");
  assertEquals(lines[0], "warning: step 3 is not saved: its val loss is NaN");
  assertMatch(
    lines[1]!,
    /^error: Cannot end with step 3, nor save it: its val loss is NaN; go on from step_000002 /,
  );
  assertEquals(lines.length, 2);
  assertEquals(stdout.includes("\nsaved "), false);
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000002"]);
  assertStringIncludes(Deno.readTextFileSync(`${out}/log.txt`), lines.join("\n")); // warnings, too
});

Deno.test("a run that reaches max_iters, or a signal, while updates are skipped has failed and saves nothing", async () => {
  const out = await trained();
  plantNaN(out, "model.embed_tokens.weight", 32 * "e".charCodeAt(0));
  const { code, stdout, stderr } = await run("train", `--resume=${out}`, "--max_iters=4");
  assertEquals(code, 1);
  const last = stderr.trimEnd().split("\n").at(-1)!;
  assertMatch(
    last,
    /^error: Cannot end with step 4, nor save it: the last 2 updates were not finite; go on from step_000002 \(--resume=/,
  );
  assertEquals(stdout.includes("\nsaved "), false);
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000002"]);
  assertEquals(ending(out), { state: "failed", error: last.slice("error: ".length) });

  const running = new Running("train", `--resume=${out}`, "--max_iters=1_000_000", "--max_skipped=0");
  await running.line("step 5/");
  running.signal("SIGTERM");
  const ended = await running.end();
  assertEquals(ended.code, 1);
  assertMatch(
    ended.stderr,
    /\nerror: Cannot end with step \d+, nor save it: the last \d+ updates were not finite; /,
  );
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000002"]);
});

Deno.test("weights that are not finite are not saved, though no update was skipped", async () => {
  for (const saved of [true, false]) {
    const out = saved ? await trained() : freshPath();
    const begin = saved
      ? [`--resume=${out}`]
      : [`--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL];
    const flags = ["--max_iters=3", "--learning_rate=1e39", "--warmup_iters=0", "--save_interval=1"];
    const { code, stderr } = await run("train", ...begin, ...flags);
    assertEquals(code, 1);
    assertMatch(
      errorLine(stderr),
      /^Cannot save \S+\/step_00000\d: element \d+ of model\.\S+ \([\d,]+\) is (NaN|-?Infinity); lower the learning rate, or /,
    );
    assertEquals(list(`${out}/checkpoints`), saved ? ["step_000001", "step_000002"] : []);
  }
});
