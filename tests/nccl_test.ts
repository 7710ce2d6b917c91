// Ranks that meet through NCCL, started with torchrun's variables. A stand-in for NCCL (tests/emu/nccl.cpp) takes the place of
// GPUs: every call is made, and what it does to memory is checked against MPI's.
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { KernelError } from "../base/errors.ts";
import { allocate, copyToDevice, copyToHost, libraryExists, open } from "../ffi/library.ts";
import { Nccl } from "../dist/nccl.ts";
import { joinRanks } from "../dist/ranks.ts";
import { findWorld } from "../dist/world.ts";
import * as golden from "./golden_run.ts";
import {
  command,
  dataset,
  errorLine,
  freshPath,
  list,
  metrics,
  type Result,
  resultOf,
  Running,
  SMALL,
  standIn,
  succeed,
  taskArgs,
} from "./testing.ts";

const data = await dataset({ words: 2000 });
const library = await standIn("nccl");

/** Two ports next to each other that nothing listens at: torchrun's own and ours. */
function masterPort(): string {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return String((listener.addr as Deno.NetAddr).port - 1);
}

/** Runs `train` as the ranks of one job; env: more variables for all, or for one. */
function torchrun(
  ranks: string[][],
  env: Record<string, string> | ((rank: number) => Record<string, string>) = {},
): Promise<Result[]> {
  const common = {
      LOAM_NCCL: library,
      LOAM_EMU_GPUS: String(ranks.length),
      WORLD_SIZE: String(ranks.length),
      MASTER_ADDR: "127.0.0.1",
      MASTER_PORT: masterPort(),
    },
    of = (rank: number) => typeof env === "function" ? env(rank) : env;
  return Promise.all(ranks.map(async (flags, rank) => {
    const own = { ...common, RANK: String(rank), LOCAL_RANK: String(rank), ...of(rank) };
    return resultOf(await command(Deno.execPath(), taskArgs("train:dist", flags), own).output());
  }));
}

const FLAGS = [
  `--data_dir=${data}`,
  ...SMALL,
  "--gradient_accumulation_steps=5", // no multiple of two or three
  "--max_iters=8",
  "--save_interval=8",
];

function compare(actual: string, expected: string, tolerance: number): void {
  const [ours, theirs] = [metrics(actual), metrics(expected)];
  assertEquals(ours.map(({ step }) => step), theirs.map(({ step }) => step));
  ours.forEach(({ step, loss }, i) => {
    const should = theirs[i]!.loss!;
    assert(Math.abs(loss! - should) <= tolerance * should, `step ${step}: loss ${loss}, should be ${should}`);
  });
}

Deno.test({
  name: "two ranks on emulated GPUs give the run in PyTorch within bfloat16 rounding",
  ignore: !libraryExists("emu"),
  async fn() {
    const out = freshPath();
    const flags = [...golden.FLAGS, ...golden.SHARED, "--device=emu", `--out_dir=${out}`];
    const ranks = await torchrun([flags, flags]);
    assertEquals(ranks.map(({ code, stderr }) => [code, stderr]), [[0, ""], [0, ""]]);
    golden.compare(out, { loss: 1e-3, weights: 3e-2 });
  },
});

Deno.test("two and three ranks over NCCL follow one process", async () => {
  const alone = freshPath();
  await succeed("train", ...FLAGS, `--out_dir=${alone}`, "--eval_interval=4");
  for (const n of [2, 3]) {
    const out = freshPath();
    const results = await torchrun(Array(n).fill([...FLAGS, `--out_dir=${out}`, "--eval_interval=4"]));
    for (const { code, stderr } of results) assertEquals({ code, stderr }, { code: 0, stderr: "" });
    compare(out, alone, 2e-5);
    assertEquals(list(`${out}/checkpoints`), ["step_000008"]);
  }
});

Deno.test("a rank on its own exchanges with itself", { sanitizeResources: false }, async () => { // libraries stay open
  open("cpu");
  Deno.env.set("LOAM_NCCL", library);
  const ranks = await joinRanks(findWorld(() => undefined), 10);
  Deno.env.delete("LOAM_NCCL");
  const values = Float32Array.from({ length: 64 }, (_, i) => i),
    address = allocate(256),
    after = new Float32Array(64);
  copyToDevice(address, values);
  ranks.beginReduce([{ address, n: 64, owner: 0 }]);
  await ranks.reduced();
  await ranks.allGather(address, 256);
  await ranks.beginGather([{ address, bytes: 256, owner: 0 }]);
  ranks.gathered();
  await ranks.allReduce({ address, n: 64, type: "float" });
  copyToHost(after, address);
  assertEquals(after, values);
  assertEquals(await ranks.sum(0.5, 2), [0.5, 2]);
  assertEquals(await ranks.fromFirst({ a: "b" }), { a: "b" });
  await ranks.finalize();
});

Deno.test("failure() is what NCCL says of queued work", { sanitizeResources: false }, async () => {
  open("cpu");
  const alone = { rank: 0, world_size: 1, job: "", address: "127.0.0.1", ports: [1], timeout_s: 1 };
  const nccl = await Nccl.join(library, alone);
  assertEquals(Deno.env.get("NCCL_ALGO"), "^NVLS,NVLSTree"); // before NCCL opened, as the user had set none
  assertEquals(nccl.failure(), undefined);
  Deno.env.set("LOAM_FAKE_NCCL_FAULT", "async");
  assertEquals(nccl.failure(), "internal error: said the stand-in (NCCL 2.30.7)");
  Deno.env.set("LOAM_FAKE_NCCL_FAULT", "ncclCommGetAsyncError"); // it cannot even say
  assertEquals(nccl.failure(), "internal error: said the stand-in (NCCL 2.30.7)");
  Deno.env.delete("LOAM_FAKE_NCCL_FAULT");
  await nccl.finalize();
});

Deno.test("two ranks of the emulated GPU go on bit by bit from their shares of the state", async () => {
  const two = freshPath(), resumed = freshPath();
  const model = [`--data_dir=${data}`, ...SMALL, "--head_dim=32", "--device=emu", "--batch_size=2"];
  model.push("--gradient_accumulation_steps=2");
  const flags = [...model, "--save_interval=2", "--min_lr=0.01"]; // the rate does not depend on max_iters
  // Rank 0 chooses for both how they multiply, and the run that goes on keeps that, whatever is the fastest on either.
  const train = async (fastest: [string, string], ...more: string[]) => {
    const results = await torchrun([more, more], (rank) => ({ LOAM_EMU_FASTEST: fastest[rank]! }));
    for (const { code, stderr } of results) assertEquals({ code, stderr }, { code: 0, stderr: "" });
  };
  await train(["2", "3"], ...flags, "--max_iters=4", `--out_dir=${two}`);
  await train(["2", "2"], ...flags, "--max_iters=2", `--out_dir=${resumed}`);
  await train(["3", "1"], `--resume=${resumed}`, "--max_iters=4");
  const { gemms }: { gemms: string[] } = JSON.parse(Deno.readTextFileSync(`${resumed}/kernels.json`));
  assertEquals(new Set(gemms.map((line) => line.split(" ")[8])), new Set(["2"])); // the candidate
  compare(resumed, two, 0);
  const parts = [1, 2].map((rank) => `optimizer-0000${rank}-of-00002.safetensors`);
  for (const file of ["model.safetensors", ...parts]) {
    const [a, b] = [resumed, two].map((run) => Deno.readFileSync(`${run}/checkpoints/step_000004/${file}`));
    assertEquals(a, b, file);
  }
});

Deno.test("overlap on the second stream of an emulated GPU gives the bits of sums after the backward pass", async () => {
  const beside = freshPath(), after = freshPath();
  const flags = [
    `--data_dir=${data}`,
    ...SMALL,
    "--device=emu",
    "--head_dim=32",
    "--max_iters=2",
    "--save_interval=2",
  ];
  flags.push("--gradient_accumulation_steps=2", "--batch_size=2", "--self_check=false");
  for (const more of [[`--out_dir=${beside}`], [`--out_dir=${after}`, "--overlap=false"]]) {
    const results = await torchrun(Array(2).fill([...flags, ...more]), { LOAM_EMU_FASTEST: "2" });
    for (const { code, stderr } of results) assertEquals({ code, stderr }, { code: 0, stderr: "" });
  }
  compare(beside, after, 0);
  const [a, b] = [beside, after].map((run) =>
    Deno.readFileSync(`${run}/checkpoints/step_000002/model.safetensors`)
  );
  assertEquals(a, b);
});

Deno.test("a signal amid a step of emulated GPUs, which read results a step late, leaves it out and costs no bit", async () => {
  const out = freshPath(), whole = freshPath(), meeting = { WORLD_SIZE: "2", MASTER_PORT: masterPort() };
  const flags = [
    `--data_dir=${data}`,
    ...SMALL,
    "--head_dim=32",
    "--device=emu",
    "--batch_size=1",
    "--n_layer=1",
  ];
  flags.push(
    "--gradient_accumulation_steps=24",
    "--min_lr=0.01",
    "--save_interval=1000",
    "--self_check=false",
  );
  const env = { LOAM_NCCL: library, LOAM_EMU_GPUS: "2", LOAM_EMU_FASTEST: "2", MASTER_ADDR: "127.0.0.1" };
  const ranks = [0, 1].map((rank) => {
    const own = { ...env, ...meeting, RANK: `${rank}`, LOCAL_RANK: `${rank}` };
    const args = taskArgs("train:dist", [...flags, `--out_dir=${out}`, "--max_iters=1000"]);
    return new Running(command(Deno.execPath(), args, own));
  });
  await ranks[0]!.line("step 2/");
  ranks[1]!.signal("SIGTERM");
  const [first, second] = await Promise.all(ranks.map((rank) => rank.end()));
  assertEquals([first!.code, second!.code], [0, 0], first!.stderr + second!.stderr);
  const step = Number(/^stopped by a signal to another rank after step (\d+); /m.exec(first!.stdout)![1]);
  assertEquals(list(`${out}/checkpoints`).map((name) => Number(name.slice(5))), [step]);
  assertEquals(metrics(out).length, step);
  const more = [`--max_iters=${step + 1}`];
  for (const run of [[`--resume=${out}`, ...more], [...flags, `--out_dir=${whole}`, ...more]]) {
    const results = await torchrun([run, run], { LOAM_EMU_FASTEST: "2" });
    for (const { code, stderr } of results) assertEquals({ code, stderr }, { code: 0, stderr: "" });
  }
  compare(out, whole, 0);
});

Deno.test("an error of NCCL names the collective and its text", { sanitizeResources: false }, async () => {
  open("cpu");
  Deno.env.set("LOAM_NCCL", library);
  const ranks = await joinRanks(findWorld(() => undefined), 10), address = allocate(256);
  const calls = {
    ncclReduce: () => {
      ranks.beginReduce([{ address, n: 64, owner: 0 }]);
      return ranks.reduced();
    },
    ncclAllGather: () => ranks.allGather(address, 256),
    ncclAllReduce: () => ranks.allReduce({ address, n: 64, type: "float" }),
    ncclBroadcast: () => ranks.fromFirst({ a: "b" }),
  };
  for (const [name, call] of Object.entries(calls)) {
    Deno.env.set("LOAM_FAKE_NCCL_FAULT", name);
    const error = await assertRejects(async () => await call(), KernelError);
    assertEquals(error.message, `${name} failed: internal error: said the stand-in (NCCL 2.30.7)`);
  }
  Deno.env.delete("LOAM_FAKE_NCCL_FAULT");
  Deno.env.delete("LOAM_NCCL");
  await ranks.finalize();
});

Deno.test("a rank says which it is in front of an error of NCCL", async () => {
  const flags = [...FLAGS, `--out_dir=${freshPath()}`];
  const results = await torchrun([flags, flags], { LOAM_FAKE_NCCL_FAULT: "ncclReduce" });
  results.forEach(({ code, stderr }, rank) => {
    assertEquals(code, 75);
    const text = "step 1: ncclReduce failed: internal error: said the stand-in (NCCL 2.30.7)";
    assertEquals(errorLine(stderr), `rank ${rank}: ${text}`);
  });
  const [{ code, stderr }] = await torchrun([flags, flags], {
    LOAM_FAKE_NCCL_FAULT: "ncclCommInitRankConfig",
  }) as [
    Result,
    Result,
  ];
  assertEquals(code, 75);
  assertEquals(
    errorLine(stderr),
    "Cannot join 2 ranks: rank 0: ncclCommInitRankConfig failed: internal error: said the stand-in (NCCL 2.30.7); set " +
      "NCCL_DEBUG=INFO to see more",
  );
});

Deno.test("a rank that waits in vain says so with 75, in the binary too", async () => {
  const env = { LOAM_NCCL: library, WORLD_SIZE: "2", RANK: "0", LOCAL_RANK: "0", MASTER_PORT: masterPort() };
  const flags = [...FLAGS, "--dist_timeout_s=1", `--out_dir=${freshPath()}`];
  const binary = ["run", "-q", "-P=loam", "mod.ts", "train", ...flags];
  for (const args of [taskArgs("train:dist", flags), binary]) {
    const { code, stderr } = resultOf(await command(Deno.execPath(), args, env).output());
    assertEquals(code, 75);
    assertMatch(errorLine(stderr), /^Cannot start 2 ranks: rank 0 waited 1 s at port \d+ for rank 1; /);
  }
});

/** What two ranks print and end with where a function of NCCL stalls in one of them, or what it begins there. */
async function stalled(name: string, rank: number, fault = ""): Promise<string[]> {
  const program = `
    import { runMain } from "./base/errors.ts";
    import { joinRanks } from "./dist/ranks.ts";
    import { findWorld } from "./dist/world.ts";
    import { allocate, open } from "./ffi/library.ts";
    open("cpu", { threads: 1, blas: "builtin" });
    await runMain(async () => {
      const ranks = await joinRanks(findWorld((name) => Deno.env.get(name)), 4);
      try {
        await ranks.enter(Deno.args[0]!);
        ranks.beat(3);
        const address = allocate(512);
        ranks.beginReduce([0, 1].map((owner) => ({ address: address + BigInt(256 * owner), n: 64, owner })));
        await ranks.reduced();
        await ranks.finalize();
      } catch (error) {
        ranks.fail(error);
      }
    });
  `;
  const out = freshPath(),
    common = { LOAM_NCCL: library, WORLD_SIZE: "2", MASTER_PORT: masterPort(), NO_COLOR: "1" };
  const results = await Promise.all([0, 1].map(async (i) => {
    const faults = i === rank ? { LOAM_FAKE_NCCL_STALL: name, LOAM_FAKE_NCCL_FAULT: fault } : {};
    const args = ["eval", "-q", "--ext=ts", program, out],
      env = { ...common, ...faults, RANK: `${i}`, LOCAL_RANK: `${i}` };
    return resultOf(await command(Deno.execPath(), args, env).output());
  }));
  for (const { code, stderr } of results) assertEquals(code, 75, stderr);
  return results.map(({ stderr }) =>
    stderr.replaceAll(/\(process \d+ on \S+\)|(?<=hangs on )\S+(?=;)/g, "...").trimEnd()
  );
}

Deno.test("a call of NCCL that never returns, or what it began and never ends, ends the rank that waits with one line", async () => {
  const init = (rank: number) =>
    `error: Cannot join 2 ranks: rank ${rank}: ncclCommInitRankConfig has waited 4 s (--dist_timeout_s) for the others; ` +
    "set NCCL_DEBUG=INFO to see more";
  const within = "within 4 s (--dist_timeout_s)", again = "start again with --resume=auto";
  const call = (what: string) =>
    `error: rank 1: ${what} has waited 4 s (--dist_timeout_s) for rank 0; look at what they printed, and ${again}`;
  const missing = (rank: number) =>
    `error: rank ${rank}: not all ranks came to the broadcast at the start ${within}; ${again}`;
  const late = (what: string) => `error: rank 0: rank 1 ... did not come to ${what} ${within}; ${again}`;
  const reduce = "the reduce-scatter of gradients of step 3";
  const hangs = (rank: number) =>
    `error: rank ${rank}: all ranks came to ${reduce}, but it did not end ${within}: one of them hangs on ...; ${again}`;
  const failed = "error: rank 1: ncclReduce failed: internal error: said the stand-in (NCCL 2.30.7)";
  const cases: [string, string[]][] = [
    ["ncclCommInitRankConfig", [init(0), call("ncclCommInitRankConfig")]],
    ["async ncclCommInitRankConfig", [init(0), init(1)]],
    ["ncclBroadcast", [missing(0), call("the broadcast at the start")]],
    ["async ncclBroadcast", [missing(0), missing(1)]],
    ["ncclReduce", [late(reduce), call(reduce)]],
    ["async ncclReduce", [hangs(0), hangs(1)]],
    ["ncclCommFinalize", [late("the end of the run"), call("the end of the run")]],
  ];
  const abort = stalled("ncclCommAbort", 1, "ncclReduce");
  const ends = await Promise.all(cases.map(([name]) => stalled(name, 1)));
  cases.forEach(([name, lines], i) => assertEquals(ends[i], lines, name));
  assertEquals(await abort, [
    late(reduce),
    `${failed}\nerror: rank 1: could not leave the others in good order`,
  ]);
});

Deno.test("a NCCL that is not there is said with what to install", async () => {
  const flags = [...FLAGS, `--out_dir=${freshPath()}`], missing = "/nowhere/libnccl.so.2";
  const [{ code, stderr }] = await torchrun([flags, flags], { LOAM_NCCL: missing }) as [Result, Result];
  assertEquals(code, 1); // no start finds it
  assertMatch(
    errorLine(stderr),
    /^Cannot open NCCL: \/nowhere\/libnccl\.so\.2: cannot open shared object file: .* \(searched: .*\); install it /,
  );
});
