// A run that was interrupted, at any moment and in any way, ends with the same bits as one that was not.
import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { openDataset } from "../data/bins.ts";
import { permute } from "../data/order.ts";
import { open } from "../ffi/library.ts";
import {
  checkpointOf,
  copy,
  dataset,
  ending,
  errorLine,
  freshPath,
  list,
  metrics,
  plantNaN,
  refuse,
  run,
  Running,
  runWith,
  SMALL,
  succeed,
  sum,
} from "./testing.ts";

/** What a run multiplies with: the usual library, and the first BLAS that is found. */
const [usual, found] = ["auto", ""].map((blas) => open("cpu", { threads: 1, blas }).blas!.split(" ")[0]!);

/** Flags of a run that passes its data more than once and updates on two micro-steps. */
async function flags(...more: string[]): Promise<string[]> {
  return [
    `--data_dir=${await dataset({ words: 500 })}`,
    ...SMALL,
    "--gradient_accumulation_steps=2",
    ...more,
  ];
}

const losses = (run: string) => metrics(run).map((m) => [m.step, m.loss, m.grad_norm, m.lr, m.val_loss]);
const bytes = (run: string, file: string) => Deno.readFileSync(`${run}/checkpoints/${file}`);

/** Both runs ended with the same losses, weights and moments. */
function assertSameRun(actual: string, expected: string): void {
  assertEquals(losses(actual), losses(expected)); // numbers are compared with Object.is()
  const last = list(`${expected}/checkpoints`).at(-1)!;
  for (const file of ["model.safetensors", "optimizer.safetensors"]) {
    assertEquals(bytes(actual, `${last}/${file}`), bytes(expected, `${last}/${file}`), file);
  }
}

for (const more of [[], ["--optimizer=muon", "--schedule=linear"]]) {
  Deno.test(
    ["20 steps in one go equal 10 steps, a resume and 10 more, bit by bit", ...more].join(" "),
    async () => {
      const whole = freshPath();
      const given = await flags(
        "--max_iters=20",
        "--save_interval=10",
        "--eval_interval=5",
        "--eval_batches=2",
      );
      given.push("--threads=2", ...more);
      await succeed("train", `--out_dir=${whole}`, ...given);
      const parts = copy(whole); // with metrics of later steps, as a kill after step 10 would leave them
      Deno.removeSync(`${parts}/checkpoints/step_000020`, { recursive: true });
      const stdout = await succeed("train", `--resume=${parts}`);
      assertMatch(stdout, /^going on in \S+ after step 10\ndata .*\nstep 11\/20 /m);
      assertEquals(metrics(parts).map((m) => m.step), Array.from({ length: 20 }, (_, i) => i + 1));
      assertSameRun(parts, whole);
      assertNotEquals(
        bytes(whole, "step_000010/model.safetensors"),
        bytes(whole, "step_000020/model.safetensors"),
      );
    },
  );
}

Deno.test("a run goes on with its own optimizer", async () => {
  const out = freshPath();
  await succeed("train", `--out_dir=${out}`, ...await flags("--max_iters=1", "--save_interval=1"));
  assertStringIncludes(
    await refuse("train", `--resume=${out}`, "--max_iters=2", "--optimizer=muon"),
    `Cannot set optimizer with --resume: the run in ${out} keeps its own; leave --optimizer out`,
  );
});

Deno.test("a run keeps the library that it multiplied with, until it is told another", async () => {
  const other = usual === found ? "builtin" : found;
  const out = freshPath(), recorded = () => JSON.parse(Deno.readTextFileSync(`${out}/config.json`)).blas;
  const goOn = async (step: number, ...more: string[]) => {
    await succeed("train", `--resume=${out}`, `--max_iters=${step}`, ...more);
    return recorded();
  };
  const given = await flags("--max_iters=1", "--save_interval=1", "--bf16_gemm=false", "--blas=auto");
  await runWith([`LOAM_BLAS=${other}`], "train", `--out_dir=${out}`, ...given);
  assertEquals(recorded(), other);
  assertEquals(await goOn(2), other);
  assertEquals(await goOn(3, "--blas=auto"), usual);
  const old = `${out}/checkpoints/${checkpointOf(3)}`, state = `${old}/trainer_state.json`;
  Deno.writeTextFileSync(state, Deno.readTextFileSync(state).replace(`"blas": "${usual}"`, '"blas": ""'));
  sum(old);
  assertEquals(await goOn(4), found); // as before the usual one had a name
});

Deno.test("a run with --document_mask keeps it, and goes on to the same bits", async () => {
  const whole = freshPath(), without = freshPath();
  const given = await flags("--max_iters=6", "--save_interval=3", "--eval_interval=3", "--eval_batches=2");
  const said = await succeed("train", `--out_dir=${whole}`, ...given, "--document_mask");
  assertMatch(said, /^documents are kept apart: attention and positions begin anew at each token 256$/m);
  const parts = copy(whole);
  Deno.removeSync(`${parts}/checkpoints/step_000006`, { recursive: true });
  await succeed("train", `--resume=${parts}`);
  assertSameRun(parts, whole);
  await succeed("train", `--out_dir=${without}`, ...given);
  const kept = [parts, without].map((run) => JSON.parse(Deno.readTextFileSync(`${run}/config.json`)));
  assertEquals(kept.map(({ document_mask }) => document_mask), ["true", "false"]); // what auto was
  losses(without).forEach((line, i) => assertNotEquals(line[1], losses(whole)[i]![1])); // from the first step on
});

Deno.test("a run that is killed again and again, also while it saves, ends with the same bits", async () => {
  const given = await flags("--max_iters=60", "--save_interval=1", "--keep_checkpoints=2");
  const whole = freshPath(), killed = freshPath();
  await succeed("train", `--out_dir=${whole}`, ...given);

  let first = true, kills = 0, whileSaving = 0;
  for (const delay_ms of [-1, 3, 11, -1]) { // -1: as soon as a checkpoint is being written; durability_test.ts has all moments
    const running = first
      ? new Running("train", `--out_dir=${killed}`, ...given)
      : new Running("train", `--resume=${killed}`);
    first = false;
    await running.line("saved");
    if (delay_ms < 0) await untilSaving(killed);
    else await new Promise((done) => setTimeout(done, delay_ms));
    running.signal("SIGKILL");
    if ((await running.end()).signal === "SIGKILL") kills++;
    if (leftovers(killed).length > 0) whileSaving++;
  }
  assert(kills >= 2, `only ${kills} of 4 kills came before the end`);
  assert(whileSaving >= 1, "no kill came while a checkpoint was written");

  await succeed("train", `--resume=${killed}`);
  assertSameRun(killed, whole);
  assertEquals(list(`${killed}/checkpoints`), ["step_000059", "step_000060"]); // nothing half-written is left
});

Deno.test("a wsd run is made longer before its cooldown, bit by bit, and not amid it", async () => {
  const whole = freshPath(), parts = freshPath();
  const wsd = ["--schedule=wsd", "--cooldown_iters=4", "--save_interval=6", "--keep_checkpoints=9"];
  const given = await flags(...wsd);
  await succeed("train", `--out_dir=${whole}`, ...given, "--max_iters=18");
  await succeed("train", `--out_dir=${parts}`, ...given, "--max_iters=12"); // its cooldown begins after step 8
  assertEquals(losses(parts).slice(0, 9), losses(whole).slice(0, 9));
  const checkpoint = (step: number) => `${parts}/checkpoints/${checkpointOf(step)}`;
  assertStringIncludes(
    await refuse("train", `--resume=${parts}`, "--max_iters=18"),
    `Cannot resume ${
      checkpoint(12)
    }: its cooldown begins at step 8 of 12, now at step 14 of 18, and after step 12 ` +
      "the learning rate would jump from 0.00272 to 0.01; leave max_iters and cooldown_iters as they were, or begin a run with " +
      `--init_from=${checkpoint(12)}`,
  );
  Deno.removeSync(checkpoint(12), { recursive: true });
  assertStringIncludes(
    await refuse("train", `--resume=${parts}`, "--max_iters=7"),
    "its cooldown begins at step 8 of 12, now at step 3 of 7, and after step 6 the learning rate would jump",
  );
  await succeed("train", `--resume=${parts}`, "--max_iters=18");
  assertSameRun(parts, whole);
});

function leftovers(run: string): string[] {
  return list(`${run}/checkpoints`).filter((name) => name.startsWith(".tmp_"));
}

/** Waits until a checkpoint is being written, but no longer than a second. */
async function untilSaving(run: string): Promise<void> {
  for (const end = Date.now() + 1000; Date.now() < end && leftovers(run).length === 0;) {
    await new Promise((done) => setTimeout(done, 0));
  }
}

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const) {
  Deno.test(`${signal} ends a run after its step with a checkpoint to go on from`, async () => {
    const out = freshPath();
    const given = await flags("--max_iters=1_000_000", "--save_interval=1_000_000");
    given.push("--eval_interval=1_000_000", "--sample_interval=1_000_000"); // what a last step has, but for a signal
    const running = new Running("train", `--out_dir=${out}`, ...given);
    await running.line("step 3/");
    running.signal(signal);
    const { code, stdout, stderr } = await running.end();
    const said = stderr.split("\n").filter((line) => line.startsWith("SIG")); // Deno's inspector answers SIGUSR1 too
    assertEquals({ code, said }, {
      code: 0,
      said: [`${signal}: stopping after this micro-step; once more stops at once`],
    });
    const step = metrics(out).length;
    assertEquals([metrics(out).at(-1)!.val_loss, stdout.includes("--- sample")], [undefined, false]);
    assertEquals(list(`${out}/checkpoints`), [checkpointOf(step)]);
    assertEquals(ending(out), { state: "stopped", error: null });
    assertStringIncludes(
      stdout,
      `\nstopped by ${signal} after step ${step}; go on with: deno task train --resume=${out}\n`,
    );
    const more = await succeed("train", `--resume=${out}`, `--max_iters=${step + 2}`);
    assertStringIncludes(more, `\ngoing on in ${out} after step ${step}\n`);
    assertMatch(more, new RegExp(`^step +${step + 1}/`, "m"));
  });
}

Deno.test("a run that saves nothing says so when a signal ends it", async () => {
  const out = freshPath(), given = await flags("--max_iters=1_000_000");
  const stop = async (running: Running, at: string) => {
    await running.line(at);
    running.signal("SIGTERM");
    const { code, stdout } = await running.end();
    assertEquals(code, 0);
    return /\nstopped by SIGTERM after step (\d+; .*)\n$/.exec(stdout)![1]!;
  };
  const fresh = await stop(new Running("train", `--out_dir=${out}`, ...given), "step 3/");
  assertMatch(fresh, /^\d+; nothing was saved, as save_interval is 0$/);
  await succeed("train", `--out_dir=${out}/a`, ...given, "--max_iters=2", "--save_interval=2");
  const resumed = ["--max_iters=1_000_000", "--save_interval=0"];
  const said = await stop(new Running("train", `--resume=${out}/a`, ...resumed), "step 5/");
  const command = `deno task train --resume=${out}/a`;
  assertEquals(
    said.replace(/^\d+/, "N"),
    `N; this step was not saved; go on from step_000002 with: ${command}`,
  );
});

/** The run was stopped after a step and saved. */
async function assertStopped(running: Running, out: string, step: number): Promise<void> {
  const { code, stdout } = await running.end(), saved = checkpointOf(step);
  assertEquals(code, 0, stdout);
  assertEquals(list(`${out}/checkpoints`), [saved]);
  const command = `deno task train --resume=${out}`;
  const said =
    `saved ${out}/checkpoints/${saved}\nstopped by SIGTERM after step ${step}; go on with: ${command}\n`;
  assertStringIncludes(stdout, said);
}

Deno.test("a signal interrupts a sample: the run saves and ends", async () => {
  const out = freshPath(), given = await flags("--max_iters=1_000_000", "--save_interval=1_000_000");
  given.push(`--data_dir=${await dataset({ tokenizer: "gpt2" })}`, "--sample_interval=3");
  given.push("--sample_tokens=1_000_000_000", "--sample_temperature=9"); // one token in 50,257 would end the text
  const running = new Running("train", `--out_dir=${out}`, ...given);
  await running.line("step 3/");
  running.signal("SIGTERM");
  await assertStopped(running, out, 3);
  assertEquals(list(out).includes("samples.jsonl"), false);
});

Deno.test("a signal interrupts an evaluation: the run saves and ends", async () => {
  const out = freshPath(), data = await dataset({ words: 100_000 });
  const model = ["--n_layer=4", "--n_embd=256", "--n_head=4", "--n_inner=768", "--block_size=64"];
  const given = [`--data_dir=${data}`, ...SMALL, ...model, "--eval_interval=2", "--eval_batches=1_000_000"];
  const running = new Running("train", `--out_dir=${out}`, ...given, "--save_interval=1_000_000");
  await running.line("step 1/");
  await new Promise((resolve) => setTimeout(resolve, 1000)); // now it evaluates some 400 batches, for many seconds
  running.signal("SIGTERM");
  await assertStopped(running, out, 2);
  assertEquals(metrics(out).map(({ step, val_loss }) => [step, val_loss]), [[1, undefined], [2, undefined]]);
});

Deno.test("a signal amid a step leaves it out: its windows come when the run goes on, with the bits of none", async () => {
  const given = await flags("--gradient_accumulation_steps=500", "--min_lr=0.01"); // whatever max_iters is
  const whole = freshPath(), out = freshPath();
  const running = new Running(
    "train",
    `--out_dir=${out}`,
    ...given,
    "--max_iters=1000000",
    "--save_interval=1000000",
  );
  await running.line("step 1/");
  running.signal("SIGTERM"); // amid the second step, or the third
  const { code, stdout } = await running.end();
  assertEquals(code, 0);
  const step = Number(/^stopped by SIGTERM after step (\d+); go on with: /m.exec(stdout)![1]);
  assertEquals([metrics(out).length, list(`${out}/checkpoints`)], [step, [
    checkpointOf(step),
  ]]);
  const more = `--max_iters=${step + 1}`;
  assertStringIncludes(
    await succeed("train", `--resume=${out}`, more),
    `going on in ${out} after step ${step}`,
  );
  await succeed("train", `--out_dir=${whole}`, ...given, more);
  const numbers = (run: string) =>
    metrics(run).map(({ step, loss, grad_norm, tokens }) => [step, loss, grad_norm, tokens]);
  assertEquals(numbers(out), numbers(whole));
});

Deno.test("a signal does not wait for the end of a long step", async () => {
  const given = await flags("--gradient_accumulation_steps=1000000", "--save_interval=1"); // minutes
  const running = new Running("train", `--out_dir=${freshPath()}`, ...given);
  await running.line("writing to");
  running.signal("SIGINT");
  const { code, stdout } = await running.end();
  assertEquals(code, 0);
  assertMatch(stdout, /^stopped by SIGINT after step 0; nothing was saved$/m);
});

Deno.test("a run goes on with the data that it began with, or with other data that is named", async () => {
  const data = copy(await dataset()), out = freshPath();
  const given = [...SMALL, `--data_dir=${data}`, "--save_interval=2"];
  await succeed("train", `--out_dir=${out}`, ...given, "--max_iters=2");
  const other = await dataset({ words: 2000 });
  Deno.removeSync(data, { recursive: true });
  Deno.renameSync(copy(other), data);
  const line = await refuse("train", `--resume=${out}`, "--max_iters=4");
  assertStringIncludes(
    line,
    `Cannot resume with ${data}: its shards are not those that the run was trained on`,
  );
  const stdout = await succeed(
    "train",
    `--resume=${out}`,
    `--data_dir=${other}`,
    "--max_iters=4",
    "--batch_size=2",
  );
  assertStringIncludes(stdout, `\nchanged since the checkpoint: data_dir ${data} -> ${other}, `);
  assertStringIncludes(stdout, "batch_size 4 -> 2");
});

Deno.test("a run goes on behind the windows that it has read, whatever its batch is then", async () => {
  const data = await dataset(), out = freshPath(), T = 16;
  const n = Math.floor((openDataset(data).train[0]!.tokens - 1) / T);
  const flags = [...SMALL, `--data_dir=${data}`, "--gradient_accumulation_steps=1", "--save_interval=100"];
  await succeed("train", `--out_dir=${out}`, ...flags, "--batch_size=8", "--max_iters=5"); // 40 windows
  await succeed("train", `--resume=${out}`, "--batch_size=4", "--max_iters=7"); // 48
  const three = ["--batch_size=3", "--gradient_accumulation_steps=2"];
  await succeed("train", `--resume=${out}`, ...three, "--max_iters=8"); // 54
  const windows = [8, 16, 24, 32, 40, 44, 48, 54];
  assertEquals(metrics(out).map(({ step, tokens }) => [step, tokens]), windows.map((w, i) => [i + 1, T * w]));

  plantNaN(out, "model.norm.weight", 0); // the message then says what the step has read
  const five = ["--batch_size=5", "--gradient_accumulation_steps=1", "--max_skipped=1", "--max_iters=20"];
  for (const [seed, first] of [[1337, 54], [7, 0]] as const) {
    const { stdout, stderr } = await run("train", `--resume=${out}`, ...five, `--seed=${seed}`);
    const begins = Array.from({ length: 5 }, (_, i) => T * permute(first + i, n, seed, 0));
    const places = begins.map((start) => `train_000000.bin tokens ${start} to ${start + T}`);
    assertStringIncludes(stderr, `; the step read ${places.join(", ")}; `);
    const says = "\nthe windows come in another order than before: it begins with its first one\n";
    assertEquals(stdout.includes(says), seed === 7);
  }
});

Deno.test("a sample that a kill left out is written when the run goes on", async () => {
  const out = freshPath(), every = ["--save_interval=2", "--sample_interval=2", "--sample_tokens=3"];
  await succeed("train", `--out_dir=${out}`, ...await flags("--max_iters=4", ...every));
  const path = `${out}/samples.jsonl`, lines = () => Deno.readTextFileSync(path).trimEnd().split("\n");
  const before = lines();
  Deno.writeTextFileSync(path, before[0] + "\n"); // of step 4 there is the checkpoint alone
  await succeed("train", `--resume=${out}`, "--max_iters=6");
  assertEquals(lines().map((line) => JSON.parse(line).step), [2, 4, 6]);
  assertEquals(lines().slice(0, 2), before);
});

Deno.test("a new run that fails before its first step leaves nothing behind", async () => {
  const out = freshPath();
  await succeed("train", `--out_dir=${out}/a`, ...await flags("--max_iters=4", "--debug=tape"));
  assertEquals(list(out), []);
  Deno.mkdirSync(`${out}/b`, { recursive: true });
  Deno.writeTextFileSync(`${out}/b/notes.txt`, "mine");
  await succeed("train", `--out_dir=${out}/b`, ...await flags("--max_iters=4", "--debug=tape"));
  assertEquals(list(`${out}/b`), ["notes.txt"]);
});

Deno.test("a run that is being trained cannot be resumed or started by a second process", async () => {
  for (const save_interval of [0, 20]) {
    const out = freshPath(), given = await flags("--max_iters=1_000_000", `--save_interval=${save_interval}`);
    given.push("--keep_checkpoints=1000"); // or the one that the second process finds may be gone when it reads it
    const running = new Running("train", `--out_dir=${out}`, ...given);
    await running.line(save_interval === 0 ? "step 2/" : "saved");
    const second = save_interval === 0 ? [`--out_dir=${out}`, ...given] : [`--resume=${out}`];
    const { code, stderr } = await run("train", ...second);
    running.signal("SIGTERM");
    await running.end();
    assertEquals(code, 1);
    const who = /^Cannot train in (\S+): process \d+ on .+ is training there; choose another --out_dir$/.exec(
      errorLine(stderr),
    );
    assertEquals(who?.[1], out, stderr);
  }
});

Deno.test("a directory with a model in it is not taken for a run that saved nothing", async () => {
  const out = freshPath(), given = await flags("--max_iters=2", "--save_interval=2");
  await succeed("train", `--out_dir=${out}`, ...given);
  const model = copy(`${out}/checkpoints/step_000002`);
  const config = Deno.readTextFileSync(`${model}/config.json`);
  for (const resume of [[], ["--resume=auto"]]) {
    const { code, stderr } = await run("train", `--out_dir=${model}`, ...given, ...resume);
    assertEquals(code, 1);
    assertStringIncludes(
      errorLine(stderr),
      `Cannot start a run in ${model}: its config.json is not that of a run`,
    );
  }
  assertEquals(Deno.readTextFileSync(`${model}/config.json`), config);
});

Deno.test("a run moved to another directory goes on there", async () => {
  const out = freshPath();
  await succeed("train", `--out_dir=${out}`, ...await flags("--max_iters=4", "--save_interval=2"));
  const moved = copy(out);
  Deno.removeSync(out, { recursive: true });
  await succeed("train", `--resume=${moved}/`, "--max_iters=6");
  assertEquals(list(`${moved}/checkpoints`), ["step_000002", "step_000004", "step_000006"]);
  assertEquals(list(out), []);
});

Deno.test("a run that goes on keeps the best checkpoint of its first part", async () => {
  const out = freshPath(), unchanged = ["--learning_rate=0", "--min_lr=0", "--eval_batches=1"]; // never better than at first
  const given = await flags(
    "--max_iters=2",
    "--save_interval=1",
    "--eval_interval=1",
    "--keep_checkpoints=2",
  );
  await succeed("train", `--out_dir=${out}`, ...given, ...unchanged);
  await succeed("train", `--resume=${out}`, "--max_iters=5");
  assertEquals(list(`${out}/checkpoints`), ["step_000001", "step_000004", "step_000005"]);
  assertEquals(Deno.readTextFileSync(`${out}/best`), "checkpoints/step_000001\n");
});

Deno.test("a finished run has nothing to do until max_iters is raised", async () => {
  const out = freshPath();
  await succeed("train", `--out_dir=${out}`, ...await flags("--max_iters=2", "--save_interval=2"));
  assertMatch(
    await succeed("train", `--resume=${out}`),
    /\nnothing to do: step 2 of max_iters 2 is done\n$/,
  );
  await succeed("train", `--resume=${out}`, "--max_iters=3");
  assertEquals(metrics(out).map((m) => m.step), [1, 2, 3]);
});

Deno.test("an older checkpoint can be evaluated, and trained from once the newer ones are gone", async () => {
  const out = freshPath();
  await succeed("train", `--out_dir=${out}`, ...await flags("--max_iters=4", "--save_interval=2"));
  const older = `${out}/checkpoints/step_000002`, newer = `${out}/checkpoints/step_000004`;
  const evaluate = (path: string) => succeed("train", `--resume=${path}`, "--eval_only");
  assertNotEquals(await evaluate(older), await evaluate(out));
  assertEquals(await evaluate(newer), await evaluate(`${out}/latest`));
  assertEquals(
    await refuse("train", `--resume=${older}`),
    `Cannot go on from ${older}: the run holds newer checkpoints, up to ${newer}; remove them first`,
  );
  const before = losses(out);
  Deno.removeSync(newer, { recursive: true });
  await succeed("train", `--resume=${older}`);
  assertEquals(losses(out), before);
});
