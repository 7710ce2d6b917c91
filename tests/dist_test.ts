// Several ranks on one machine, started by mpirun as a user starts them.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { OfRanks } from "../runtime/optim.ts";
import {
  AS_ROOT,
  checkpointOf,
  command,
  dataset,
  freshPath,
  isInstalled,
  list,
  metrics,
  MPIRUN,
  mpirun,
  mpirunOver,
  type Result,
  resultOf,
  SMALL,
  standIn,
  succeed,
  taskArgs,
} from "./testing.ts";

const hasMpirun = isInstalled("mpirun"), mpi = { ignore: !hasMpirun };
if (!hasMpirun) {
  console.log("ignored for want of mpirun (Debian: openmpi-bin): the tests of tests/dist_test.ts");
}

/** A job whose ranks run `train` with their own flags. */
class Job {
  readonly #child: Deno.ChildProcess;
  readonly #output: Promise<[string, string]>;
  stdout = "";

  constructor(ranks: string[][], env: Record<string, string> = {}) {
    const task = (flags: string[]) => [Deno.execPath(), ...taskArgs("train:dist", flags)];
    const apps = ranks.flatMap((flags, i) => [...(i > 0 ? [":"] : []), "-n", "1", ...task(flags)]);
    this.#child = command("mpirun", [...MPIRUN, ...apps], { ...AS_ROOT, ...env }).spawn();
    this.#output = Promise.all([this.#read(), new Response(this.#child.stderr).text()]);
  }

  async #read(): Promise<string> {
    for await (const text of this.#child.stdout.pipeThrough(new TextDecoderStream())) this.stdout += text;
    return this.stdout;
  }

  /** Waits until a text has been printed. */
  async printed(text: string): Promise<void> {
    for (let i = 0; !this.stdout.replaceAll(/^step +/gm, "step ").includes(text); i++) {
      if (i > 1200) throw new Error(`the job has not printed "${text}" in a minute, but: ${this.stdout}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** Sends mpirun a signal. */
  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  async end(): Promise<Result> {
    const [stdout, stderr] = await this.#output, { code, signal } = await this.#child.status;
    return { code, signal, stdout, stderr };
  }
}

/** Runs a job that has to fail with an exit code; returns the lines that the ranks wrote about it. */
async function failing(job: Job, exitCode = 1): Promise<string[]> {
  const { code, stderr } = await job.end();
  assertEquals(code, exitCode, stderr);
  return stderr.split("\n").filter((line) => line.startsWith("error: "));
}

const data = await (hasMpirun ? dataset({ words: 3000 }) : "");
const FLAGS = [
  ...[`--data_dir=${data}`, ...SMALL, "--gradient_accumulation_steps=4", "--eval_batches=3"],
  "--bf16_gemm=false", // one process and several are the same to the rounding of float32
];
const numbers = (run: string) => metrics(run).map((m) => [m.step, m.loss, m.grad_norm, m.val_loss]);
const state = (run: string, step: number) => {
  const directory = `${run}/checkpoints/${checkpointOf(step)}`;
  const files = list(directory).filter((file) => file.endsWith(".safetensors"));
  assertEquals(files.map((file) => file.split("-")[0]), ["model.safetensors", "optimizer", "optimizer"]);
  return files.map((file) => Deno.readFileSync(`${directory}/${file}`));
};

/** The pids of a job's ranks, from the files that they keep. */
function pids(run: string): number[] {
  return list(`${run}/ranks`).map((file) => JSON.parse(Deno.readTextFileSync(`${run}/ranks/${file}`)).pid);
}

Deno.test("two ranks follow one process over 20 steps, with either zero_stage", mpi, async () => {
  const tasks = `${freshPath()}.jsonl`, choices = ["cloth", "a day", "loom."]; // for two passes and more
  const questions = Array.from(
    { length: 600 },
    (_, i) => JSON.stringify({ context: "x", choices, label: i % 3 }),
  );
  Deno.writeTextFileSync(tasks, questions.join("\n"));
  const flags = [
    ...FLAGS,
    "--max_iters=20",
    "--eval_interval=5",
    "--save_interval=20",
    `--eval_tasks=${tasks}`,
  ];
  const one = freshPath(), two = freshPath(), whole = freshPath();
  await succeed("train", ...flags, `--out_dir=${one}`);
  const printed = await mpirun(2, ...flags, `--out_dir=${two}`);
  await mpirun(2, ...flags, `--out_dir=${whole}`, "--zero_stage=0");

  assertEquals(printed.match(/^step 20\/20 /gm)?.length, 1); // one rank writes
  assertEquals(numbers(whole), numbers(two)); // to the last bit
  const said = metrics(two).map(({ ranks }) => ranks);
  assertEquals(said[0], undefined); // of the step before, as all later ones
  for (const { step_ms, memory_bytes } of said.slice(1) as unknown as OfRanks[]) {
    assertEquals([step_ms.length, memory_bytes.length], [2, 2]);
    assert(
      [...step_ms, ...memory_bytes.map((bytes) => bytes / 1e7)].every((n) => n > 0),
      `${step_ms} ${memory_bytes}`,
    );
  }
  assert(metrics(one).every((line) => !("ranks" in line)));
  assertEquals(state(whole, 20), state(two, 20));
  const scores = (run: string) => metrics(run).map(({ task_acc_norm }) => task_acc_norm);
  assertEquals([scores(two), scores(one)[19]], [scores(one), 1 / 3]);
  const expected = numbers(one);
  assertEquals(numbers(two).length, 20);
  numbers(two).forEach((values, i) =>
    values.forEach((value, j) => {
      const should = expected[i]![j];
      if (should === undefined) return assertEquals(value, undefined);
      assert(
        Math.abs(value! - should) <= 2e-5 * Math.abs(should),
        `step ${i + 1}: ${value}, should be ${should}`,
      );
    })
  );
});

Deno.test(
  "overlap gives the bits of sums after the backward pass and weights before the next, where blocks are recomputed too",
  mpi,
  async () => {
    const flags = [...FLAGS, "--recompute=block", "--n_layer=3", "--max_iters=3", "--save_interval=2"];
    const beside = freshPath(), after = freshPath();
    await mpirun(3, ...flags, `--out_dir=${beside}`);
    await mpirun(3, ...flags, `--out_dir=${after}`, "--overlap=false");
    assertEquals(numbers(beside), numbers(after));
    for (const file of ["model.safetensors", "optimizer-00002-of-00003.safetensors"]) {
      const [a, b] = [beside, after].map((run) =>
        Deno.readFileSync(`${run}/checkpoints/step_000003/${file}`)
      );
      assertEquals(a, b, file);
    }
  },
);

Deno.test(
  "eight ranks that talk over TCP read the windows of one process, of 11 micro-steps over the end of an epoch, and end in good order",
  mpi,
  async () => {
    const flags = [...FLAGS, "--gradient_accumulation_steps=11", "--block_size=256", "--max_iters=2"];
    const one = freshPath(), eight = freshPath();
    await succeed("train", ...flags, `--out_dir=${one}`);
    const printed = await mpirunOver("self,tcp", 8, ...flags, `--out_dir=${eight}`, "--save_interval=2");
    assertStringIncludes(printed, "\nfinished in ");
    const { tokens_per_epoch } = JSON.parse(Deno.readTextFileSync(`${one}/run.json`));
    assert(tokens_per_epoch > 44 * 256 && tokens_per_epoch < 88 * 256, `${tokens_per_epoch}`);
    const expected = numbers(one);
    numbers(eight).flat().forEach((value, i) => { // another window in a step: 1e-5 of it
      const should = expected.flat()[i];
      assert(
        value === should || Math.abs(value! - should!) <= 2e-6 * should!,
        `${value}, should be ${should}`,
      );
    });
    const path = `${eight}/checkpoints/${checkpointOf(2)}/trainer_state.json`;
    assertEquals(JSON.parse(Deno.readTextFileSync(path)).samples, 88);
    const again = await mpirunOver("self,tcp", 2, `--resume=${eight}`);
    assertStringIncludes(again, "nothing to do: step 2 of max_iters 2 is done");
  },
);

Deno.test("a run goes on with another number of ranks, and bit by bit with the same", mpi, async () => {
  const flags = [...FLAGS, "--document_mask", "--save_interval=5", "--max_iters=15", "--min_lr=0.01"]; // else the rate would follow max_iters
  const whole = freshPath(), changing = freshPath(), two = freshPath(), resumed = freshPath();
  await succeed("train", ...flags, `--out_dir=${whole}`);
  await succeed("train", ...flags, `--out_dir=${changing}`, "--max_iters=5");
  await mpirun(3, `--resume=${changing}`, "--max_iters=8"); // of the four micro-steps rank 0 has two
  await mpirun(2, `--resume=${changing}`, "--max_iters=10");
  await succeed("train", `--resume=${changing}`, "--max_iters=15");
  const expected = metrics(whole).map((m) => m.loss!);
  metrics(changing).forEach(({ loss }, i) => {
    const should = expected[i]!;
    assert(Math.abs(loss! - should) <= 1e-4 * should, `step ${i + 1}: loss ${loss}, should be ${should}`);
  });

  await mpirun(2, ...flags, `--out_dir=${two}`);
  await mpirun(2, ...flags, `--out_dir=${resumed}/`, "--max_iters=5", "--resume=auto");
  await mpirun(2, `--out_dir=${resumed}/`, "--max_iters=10", "--resume=auto");
  await mpirun(2, `--out_dir=${resumed}/`, "--max_iters=15", "--resume=auto");
  assertEquals(numbers(resumed), numbers(two));
  assertEquals(state(resumed, 15), state(two, 15));
});

Deno.test("ranks that share Muon follow one process, and go on bit by bit", mpi, async () => {
  const flags = [...FLAGS, "--optimizer=muon", "--schedule=constant", "--save_interval=3", "--max_iters=6"];
  const alone = freshPath(), two = freshPath(), resumed = freshPath();
  await succeed("train", ...flags, `--out_dir=${alone}`);
  await mpirun(2, ...flags, `--out_dir=${two}`);
  await mpirun(2, ...flags, `--out_dir=${resumed}`, "--max_iters=3");
  await mpirun(2, `--resume=${resumed}`, "--max_iters=6");
  assertEquals(numbers(resumed), numbers(two));
  assertEquals(state(resumed, 6), state(two, 6));
  await succeed("train", `--resume=${resumed}`, "--max_iters=7");
  await succeed("train", `--resume=${alone}`, "--max_iters=7");
  const expected = metrics(alone).map(({ loss }) => loss!);
  metrics(resumed).forEach(({ loss, step }, i) => {
    assert(
      Math.abs(loss! - expected[i]!) <= 1e-4 * expected[i]!,
      `step ${step}: loss ${loss}, should be ${expected[i]}`,
    );
  });
});

Deno.test("a signal to one rank stops all of them after the same step, with a checkpoint", mpi, async () => {
  const out = freshPath(),
    job = new Job(Array(2).fill([...FLAGS, `--out_dir=${out}`, "--save_interval=100000"]));
  await job.printed("step 20/");
  Deno.kill(pids(out)[1]!, "SIGTERM");
  const { code, stdout } = await job.end();
  assertEquals(code, 0);
  const step = Number(/^stopped by a signal to another rank after step (\d+); go on with/m.exec(stdout)?.[1]);
  assertEquals(list(`${out}/checkpoints`), [checkpointOf(step)]);
});

Deno.test("a signal amid a step leaves it out, and the run goes on with the bits of none", mpi, async () => {
  const flags = [...FLAGS, "--gradient_accumulation_steps=600", "--min_lr=0.01"], out = freshPath(); // whatever max_iters is
  const endless = [
    ...flags,
    `--out_dir=${out}`,
    "--resume=auto",
    "--max_iters=1000000",
    "--save_interval=1000000",
  ];
  let step = 0;
  for (const signal of ["SIGTERM", "SIGUSR2"] as const) {
    const job = new Job(Array(2).fill(endless));
    await job.printed(`step ${step + 1}/`);
    if (signal === "SIGUSR2") job.signal(signal); // which mpirun passes on
    else for (const pid of pids(out)) Deno.kill(pid, signal); // as mpirun does, which then kills
    const { code, stdout } = await job.end();
    assertEquals(code, 0);
    step = Number(new RegExp(`^stopped by ${signal} after step (\\d+); go on with: `, "m").exec(stdout)![1]);
    assertEquals(list(`${out}/checkpoints`).at(-1), checkpointOf(step));
    assertEquals(metrics(out).length, step);
  }
  const whole = freshPath(), more = [`--max_iters=${++step}`, `--save_interval=${step}`];
  await mpirun(2, `--resume=${out}`, ...more);
  await mpirun(2, ...flags, `--out_dir=${whole}`, ...more);
  assertEquals(numbers(out), numbers(whole));
  assertEquals(state(out, step), state(whole, step));
});

Deno.test("a signal to one rank interrupts the evaluation of all of them", mpi, async () => {
  const out = freshPath(), flags = [...FLAGS, `--out_dir=${out}`, "--save_interval=100000"];
  flags.push(`--data_dir=${await dataset({ words: 100_000 })}`, "--n_embd=256", "--n_inner=768");
  flags.push("--eval_interval=2", "--eval_batches=100000", "--batch_size=1"); // half a minute
  const job = new Job(Array(2).fill(flags));
  await job.printed("step 1/");
  await new Promise((resolve) => setTimeout(resolve, 1000));
  Deno.kill(pids(out)[1]!, "SIGTERM");
  const { code, stdout } = await job.end();
  assertEquals(code, 0);
  assertMatch(stdout, /^stopped by a signal to another rank after step 2; go on with/m);
  assertEquals(metrics(out).map((m) => [m.step, m.val_loss]), [[1, undefined], [2, undefined]]);
  assertEquals(list(`${out}/checkpoints`), ["step_000002"]);
});

Deno.test(
  "a rank that is killed ends the job, and --resume=auto goes on from the last checkpoint",
  mpi,
  async () => {
    const out = freshPath(), flags = [...FLAGS, `--out_dir=${out}`, "--save_interval=5"];
    const job = new Job(Array(2).fill(flags));
    await job.printed("step 22/");
    Deno.kill(pids(out)[1]!, "SIGKILL");
    const { code, stderr } = await job.end();
    assert(code !== 0);
    assertMatch(stderr, /process rank 1 .* exited on signal 9/);
    const saved = Number(list(`${out}/checkpoints`).at(-1)!.slice(5));
    assert(saved >= 20);
    const printed = await mpirun(2, ...flags, "--resume=auto", `--max_iters=${saved + 2}`);
    assertStringIncludes(printed, `going on in ${out} after step ${saved}`);
  },
);

Deno.test(
  "ranks write a large checkpoint beside training, of which a kill at any moment leaves the one before whole",
  mpi,
  async () => {
    const large = ["--n_embd=512", "--n_inner=1536", "--batch_size=1"]; // 76 MB
    const flags = [
      ...FLAGS,
      ...large,
      "--gradient_accumulation_steps=2",
      "--min_lr=0.01",
      "--save_interval=2",
    ];
    const out = freshPath(), whole = freshPath(), endless = [`--out_dir=${out}`, "--max_iters=1000000"];
    const names = () => list(out).includes("checkpoints") ? list(`${out}/checkpoints`) : [];
    const hasBegun = (files: number, after: number) => { // to write so many files of a checkpoint, with one before it whole
      const half = names().find((name) => name.startsWith(".tmp_step"));
      if (!half || !names().includes(checkpointOf(after + 2))) return false;
      try {
        return list(`${out}/checkpoints/${half}`).length >= files;
      } catch {
        return false; // it has its name now
      }
    };
    let saved = 0;
    for (const files of [1, 3]) {
      const job = new Job(Array(2).fill([...flags, ...endless, "--resume=auto"])), before = saved;
      for (let i = 0; !hasBegun(files, before); i++) {
        assert(i < 12_000, `nothing is written in a minute: ${names()}`);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      Deno.kill(pids(out)[files % 2]!, "SIGKILL");
      assert((await job.end()).code !== 0);
      saved = Math.max(
        ...names().filter((name) => !name.startsWith(".")).map((name) => Number(name.slice(5))),
      );
      assert(saved > before, `${names()}`);
    }
    const more = `--max_iters=${saved + 2}`;
    assertStringIncludes(
      await mpirun(2, ...flags, `--out_dir=${out}`, "--resume=auto", more),
      `going on in ${out} after step ${saved}`,
    );
    assertEquals(names().filter((name) => name.startsWith(".")), []);
    const printed = await mpirun(2, ...flags, `--out_dir=${whole}`, more);
    assertEquals(printed.match(/^saved /gm)?.length, saved / 2 + 1); // by one rank
    assertEquals(numbers(out), numbers(whole));
    assertEquals(state(out, saved + 2), state(whole, saved + 2));
  },
);

Deno.test("a rank that stalls is named by the others", mpi, async () => {
  const out = freshPath(), job = new Job(Array(2).fill([...FLAGS, `--out_dir=${out}`, "--dist_timeout_s=2"]));
  await job.printed("step 20/");
  const pid = pids(out)[0]!;
  Deno.kill(pid, "SIGSTOP");
  const [message] = await failing(job, 75);
  assertMatch(
    message!,
    new RegExp(
      `^error: rank 1: rank 0 \\(process ${pid} on \\S+\\) did not come to the [a-z -]+ of step \\d+ ` +
        "within 2 s \\(--dist_timeout_s\\); start again with --resume=auto$", // nothing is saved
    ),
  );
  const { state, error } = JSON.parse(Deno.readTextFileSync(`${out}/run.json`));
  assertEquals({ state, error }, { state: "failed", error: message!.slice("error: ".length) });
});

Deno.test(
  "a call of MPI that never returns ends the job with a line of each rank that waits",
  mpi,
  async () => {
    const LOAM_MPI = await standIn("mpi", "-Wl,--no-as-needed", "-l:libmpi.so.40");
    const lines = async (LOAM_FAKE_MPI_STALL: string) => {
      const flags = [...FLAGS, `--out_dir=${freshPath()}`, "--max_iters=1", "--dist_timeout_s=3"];
      return await failing(new Job([flags, flags], { LOAM_MPI, LOAM_FAKE_MPI_STALL }), 75);
    };
    for (const name of ["MPI_Init_thread", "MPI_Finalize"]) { // mpirun may end rank 0 before it has said so too
      const line = (rank: number) =>
        `error: rank ${rank}: ${name} has waited 3 s (--dist_timeout_s) for rank ${
          1 - rank
        }; look at what they printed, and ` +
        "start again with --resume=auto";
      const printed = await lines(name);
      assert(printed.length > 0, name);
      for (const text of printed) assert([line(0), line(1)].includes(text), text);
    }
  },
);

Deno.test("a rank that differs from rank 0 is refused, with both values", mpi, async () => {
  const out = freshPath(), flags = [...FLAGS, `--out_dir=${out}`];
  const [message, ...more] = await failing(new Job([flags, [...flags, "--seed=7"]]));
  assertEquals(more, []);
  assertEquals(list(out).filter((name) => name !== "ranks"), []); // no run that would be in the way of the next start
  assertMatch(
    message!,
    /^error: rank 1: Cannot train with rank 0: config\.seed is 7 here and 1337 on rank 0, weights is /,
  );
});

Deno.test("what cannot work with several ranks is refused", mpi, async () => {
  const flags = [...FLAGS, `--out_dir=${freshPath()}`];
  const first = async (job: Job) => (await failing(job))[0];
  assertEquals(
    await first(new Job(Array(2).fill([...flags, "--gradient_accumulation_steps=1"]))),
    "error: Cannot share a step among 2 ranks: gradient_accumulation_steps is 1, should be 2 or more; start fewer ranks, or " +
      "set --batch_size=2 --gradient_accumulation_steps=2, which is as many windows a step",
  );
  assertEquals(
    await first(new Job([flags, flags], { LOAM_MPI: "/nowhere/libmpi.so" })),
    "error: Cannot open MPI: /nowhere/libmpi.so: cannot open shared object file: No such file or directory (searched: " +
      "LD_LIBRARY_PATH and the system's directories); install it (Debian: openmpi-bin), or set LOAM_MPI to the path of libmpi",
  );
  assertMatch(
    (await first(new Job([flags, flags].map((flags) => [...flags, "--out_dir=/nowhere/run"]))))!,
    /^error: rank \d: Requires write access to "\/nowhere\/run": this program was granted less; grant it with: /,
  );
  assertMatch(
    (await first(new Job([flags, flags], { RANK: "0", WORLD_SIZE: "3" })))!,
    /^error: Cannot tell which process this is: torchrun says rank 0 of 3, Open MPI says rank \d of 2; /,
  );
});

Deno.test(
  "bench/dist.ts times an exchange, and refuses what leaves nothing to take the median of",
  mpi,
  async () => {
    const run = async (program: string, ...args: string[]) => {
      return resultOf(await command(program, args, AS_ROOT).output());
    };
    const bench = ["run", "-q", "--allow-all", "bench/dist.ts"];
    const { code, stdout } = await run(
      "mpirun",
      ...MPIRUN,
      "-n",
      "2",
      Deno.execPath(),
      ...bench,
      "--exchange=1000",
    );
    assertEquals(code, 0);
    assertMatch(stdout, /^exchange [\d.]+ ms\n$/);
    for (
      const [flag, message] of [["turns=0", "--turns=0: .* at least 1"], [
        "steps=15",
        "--steps=15: .* at least 16",
      ]]
    ) {
      const { code, stderr } = await run(Deno.execPath(), ...bench, `--${flag}`);
      assertEquals(code, 1);
      assertMatch(stderr, new RegExp(`^error: Cannot use ${message}\n$`));
    }
  },
);
