// The CUDA kernels on a CPU: kernels.cu compiled over tests/emu, in the place of a GPU. Here are the suites of the ops and
// the model under several orders of threads, what CUDA refuses, and a model and a run beside the same on the CPU library.
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { KernelError, UserError } from "../base/errors.ts";
import { environment } from "../base/testing.ts";
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  allocateHost,
  copyToDevice,
  copyToHost,
  free,
  libraryExists,
  memoryUse,
  open,
  s,
} from "../ffi/library.ts";
import type { Ranges } from "../base/flags.ts";
import { modelTensors, optimizerTensors } from "../model/checkpoint.ts";
import { configure } from "../model/configure.ts";
import { type TrainConfig, variables } from "../train.ts";
import { requireRightKernels } from "../model/device.ts";
import { forward, init, type LlamaConfig, logits, loss } from "../model/llama.ts";
import { planMemory, type StepSettings, timeStep } from "../model/plan.ts";
import { forgetMemory } from "../runtime/memory.ts";
import { AdamW, type LoadValues, Parameters } from "../runtime/optim.ts";
import { loadCheckpoint, saveCheckpoint } from "../runtime/checkpoint.ts";
import { readSafetensors, toFloat32 } from "../runtime/safetensors.ts";
import { readSums } from "../runtime/sums.ts";
import { backward, endStep, noGrad } from "../runtime/tape.ts";
import { fixed, readFloats, type Tensor, writeFloats } from "../runtime/tensor.ts";
import { attention } from "../runtime/ops.ts";
import {
  close,
  companies,
  compareAttention,
  forwardBackward,
  integers,
  leaf,
  normal,
  readMasters,
  tokens,
  writeMasters,
} from "../runtime/testing.ts";
import {
  checkpointOf,
  copy,
  dataset,
  ending,
  errorLine,
  freshPath,
  metrics,
  refuse,
  ROOT,
  run,
  SMALL,
  succeed,
} from "./testing.ts";

const emu = { ignore: !libraryExists("emu"), sanitizeResources: false }; // libraries stay loaded
const SEEDS = [0, 11]; // 0: threads and blocks in order; others: a random order each
const FLAGS = [...SMALL, "--head_dim=32"]; // attention takes 32, 64 and 128

/** Runs deno; returns what it printed if it failed, or "". */
async function complaint(args: string[], env: Record<string, string>): Promise<string> {
  const options = { args, env: { NO_COLOR: "1", ...env }, cwd: ROOT };
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), options).output();
  const text = new TextDecoder();
  return success ? "" : text.decode(stdout) + text.decode(stderr);
}

// ---- the suites that run on every device

const QUICK = [
  "runtime/wide_test.ts",
  "runtime/tape_test.ts",
  "runtime/optim_test.ts",
  "runtime/muon_test.ts",
];
const SLOW = [
  "runtime/ops_test.ts",
  "model/llama_test.ts",
  "model/lora_test.ts",
  "model/generate_test.ts",
  "model/tasks_test.ts",
]; // in a random order only

for (const seed of SEEDS) {
  const env = { LOAM_TEST_DEVICE: "emu", LOAM_EMU_SEED: `${seed}` };
  const files = seed === 0 ? QUICK : [...SLOW, ...QUICK];

  Deno.test(`the tests of ops, optimizer and model pass on the emulator with seed ${seed}`, emu, async () => {
    assertEquals(await complaint(["test", "-q", "--no-check", "-P=test", ...files], env), "");
  });

  Deno.test(`attention is right and free of bank conflicts with seed ${seed}`, emu, async () => {
    const args = ["run", "-q", "-P=test", "tests/emu/attention_check.ts", "build/libloam_emu.so"];
    assertEquals(await complaint(args, env), "");
  });
}

Deno.test(
  "a run with Muon follows that of the CPU within bfloat16 rounding, and has one moment a matrix",
  emu,
  async () => {
    const runs = ["cpu", "emu"].map(() => freshPath());
    const flags = [
      ...FLAGS,
      "--preset=tiny",
      "--n_layer=1",
      "--optimizer=muon",
      "--max_iters=6",
      "--save_interval=6",
    ];
    flags.push(`--data_dir=${await data()}`, "--bf16_gemm=false");
    await succeed("train", ...flags, `--out_dir=${runs[0]}`);
    await succeed("train", ...flags, `--out_dir=${runs[1]}`, "--device=emu");
    const [cpu, emulated] = runs.map((run) => metrics(run).map(({ loss }) => loss!)) as [number[], number[]];
    assertEquals(emulated.length, 6);
    emulated.forEach((loss, i) => assertAlmostEquals(loss, cpu[i]!, 5e-3 * cpu[i]!));
    const { tensors } = readSafetensors(`${runs[1]}/checkpoints/${checkpointOf(6)}/optimizer.safetensors`);
    const kinds = (name: string) => ["master", "m", "v"].filter((kind) => tensors.has(`${kind}.${name}`));
    assertEquals(kinds("layers.0.gate_up_proj"), ["master", "m"]);
    assertEquals(kinds("embed_tokens"), ["master", "m", "v"]);
  },
);

// ---- what CUDA refuses

const faults: [string, string][] = [
  ["no_driver", "no NVIDIA driver found: install the driver (nvidia-smi must work) or use --device=cpu"],
  [
    "old_driver",
    "the NVIDIA driver supports CUDA 12.4, this library needs CUDA 13.0: update the driver or build with an older " +
    "CUDA toolkit",
  ],
  ["no_gpu", "no NVIDIA GPU found: check nvidia-smi, or use --device=cpu"],
  [
    "busy_gpu",
    "emulated GPU is in use by another process, which has it for itself (nvidia-smi shows both): wait for it, or choose " +
    "another GPU with CUDA_VISIBLE_DEVICES",
  ],
  [
    "wrong_arch",
    "built for sm_80, sm_86, sm_89, sm_90, sm_100, sm_120; this GPU (emulated GPU) is sm_110: run deno task build " +
    "--arch=native",
  ],
  [
    "no_jit",
    "this GPU (emulated GPU) is sm_80, and the driver does not compile for it (cudaErrorUnsupportedPtxVersion): update the " +
    "driver, or run deno task build --arch=native",
  ],
  ["old_gpu", "emulated GPU is sm_70: loam needs a GPU of sm_80 or later; use --device=cpu"],
  [
    "no_cublaslt",
    "cannot find libcublasLt.so.13: install CUDA 13 or `pip install nvidia-cublas`, or set LOAM_CUBLASLT to the file",
  ],
  ["old_cublaslt", "but loam was built for cuBLASLt 13: set LOAM_CUBLASLT to libcublasLt.so.13"],
];

for (const [fault, message] of faults) {
  Deno.test(`a device is not opened with ${fault}, and the error says what to do about it`, emu, () => {
    using _ = environment({ LOAM_EMU_FAULT: fault });
    const { message: line } = assertThrows(() => open("emu"), KernelError, "device_open: ");
    assertStringIncludes(line, message);
  });
}

Deno.test("train says in one line why it cannot open the device", emu, async () => {
  using _ = environment({ CUDA_VISIBLE_DEVICES: "" });
  const flags = [`--data_dir=${await data()}`, `--out_dir=${freshPath()}`, ...FLAGS, "--device=emu"];
  assertEquals(
    await refuse("train", ...flags),
    'Cannot open device emu: device_open: no NVIDIA GPU is visible: CUDA_VISIBLE_DEVICES is "": unset it, or name one that ' +
      "nvidia-smi shows, such as 0; or use --device=cpu",
  );
});

Deno.test("a GPU newer than the library runs the portable kernels", emu, () => {
  using _ = environment({ LOAM_EMU_ARCH: "130" });
  const { arch, attention } = open("emu");
  assertEquals([arch, attention], ["sm_130", "portable"]);
  const address = allocate(4), read = new Float32Array(1);
  k.init_constant(address, 1n, 7);
  copyToHost(read, address);
  assertEquals(read[0], 7);
  free(address);
});

Deno.test(
  "train says how much of a GPU others have, and what to do about it, before and in a run",
  emu,
  async () => {
    const flags = [
      `--data_dir=${await data()}`,
      `--out_dir=${freshPath()}`,
      ...FLAGS,
      "--device=emu",
      "--max_iters=1",
    ];
    const refusal = async (LOAM_EMU_OTHERS: number) => {
      using _ = environment({ LOAM_EMU_OTHERS: `${LOAM_EMU_OTHERS}`, LOAM_EMU_MEMORY: "8000000000" });
      return errorLine((await run("train", ...flags)).stderr);
    };
    assertEquals(
      await refusal(7.95e9),
      "Cannot open device emu: device_open: 67.1 MB do not fit on emulated GPU: 50.0 MB are free of 8000.0 MB: end the " +
        "processes that nvidia-smi shows there, or choose another GPU with CUDA_VISIBLE_DEVICES",
    );
    assertMatch(
      await refusal(7.932e9),
      /: a step needs \S+ [kM]B; mem_alloc: \d\.\d MB do not fit on emulated GPU: \d\.\d MB are free of 8000\.0 MB, \d\.\d MB already given, 793\d\.\d MB are others' \(nvidia-smi shows whose\); /,
    );
  },
);

Deno.test("an error inside of a step is one line with the op and the step", emu, async () => {
  const out = freshPath(),
    flags = [`--data_dir=${await data()}`, ...FLAGS, "--device=emu", "--max_iters=9", "--save_interval=1"];
  flags.push("--gradient_accumulation_steps=1");
  using _ = environment({ LOAM_EMU_FAILS: "swiglu_backward 5", LOAM_EMU_SEED: "0" }); // two layers: of the third step
  const { code, stderr } = await run("train", ...flags, `--out_dir=${out}`);
  assertEquals(code, 1);
  const line = errorLine(stderr);
  assertMatch(
    line,
    /^Cannot go on: step 3: \w+: the GPU failed in this op or one queued before it: cudaErrorLaunchFailure: an /,
  );
  assertStringIncludes(line, `); to name the op: deno task train --resume=${out} --debug`);
  assertEquals(ending(out), { state: "failed", error: line });
  using __ = environment({ LOAM_EMU_FAILS: "cross_entropy 1" }); // a matrix product is told first
  const told = errorLine((await run("train", ...flags, `--out_dir=${freshPath()}`)).stderr);
  assertMatch(
    told,
    /^Cannot go on: step 1: linear_\w+: the GPU failed in this op or one queued before it: cuBLASLt /,
  );
  using ___ = environment({ LOAM_EMU_FAILS: "swiglu_backward 1" });
  const named = errorLine((await run("train", `--resume=${out}`, "--debug")).stderr);
  assertMatch(
    named,
    /^Cannot go on: step 3: swiglu_backward: the GPU failed in this op: cudaErrorLaunchFailure: an /,
  );
});

let made: Promise<string> | undefined;
function data(): Promise<string> {
  return made ??= dataset();
}

Deno.test("a GPU with a wrong kernel does not train", emu, () => {
  open("emu");
  const error = assertThrows(() => requireRightKernels("a card", { ...s, add: () => 0 }), UserError);
  assertMatch(
    error.message,
    /^Cannot train on a card: add writes what is not finite, or nothing; use --device=cpu, or --self_check=false /,
  );
});

Deno.test("train refuses a head size that the attention kernels do not have", emu, async () => {
  const flags = [`--data_dir=${await data()}`, `--out_dir=${freshPath()}`, ...SMALL, "--device=emu"];
  assertEquals(
    await refuse("train", ...flags, "--head_dim=80"),
    "Cannot build the model: head_dim 80 must be 32, 64 or 128 on a GPU; it is n_embd 32 / n_head 4 unless set",
  );
});

Deno.test("train names settings that fit when memory runs out, and they do", emu, async () => {
  using _ = environment({ LOAM_EMU_MEMORY: "69054432" }); // cuBLASLt's workspace takes 67.1 MB of it
  const large = [
    "--block_size=32",
    "--batch_size=16",
    "--gradient_accumulation_steps=1",
    "--max_iters=1",
    "--device=emu",
  ];
  const train = async (...more: string[]) => {
    const flags = [`--data_dir=${await data()}`, `--out_dir=${freshPath()}`, ...FLAGS, ...large];
    const args = ["run", "-q", "-P=train", "train.ts", ...flags, ...more];
    return await complaint(args, {});
  };
  const [, line] = /error: (.*)\n/.exec(await train()) ?? [];
  const pattern = new RegExp(
    "^Cannot train with batch_size 16, recompute norm_swiglu and head_chunk 2048: a step needs \\d\\.\\d MB; mem_alloc: " +
      "\\d\\.\\d MB do not fit on emulated GPU: \\d\\.\\d MB are free of 69\\.1 MB, \\d\\.\\d MB already given; " +
      "this fits: (.+)$",
  );
  assertMatch(line ?? "", pattern);
  for (const fitting of pattern.exec(line!)![1]!.split(", or ")) {
    assertEquals(await train(...fitting.split(" ")), "", fitting);
  }
});

Deno.test("checkpoints hold whole float32 masters, whichever parts ranks save and load", emu, async () => {
  open("emu");
  const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };
  const bits = Uint32Array.from({ length: 100_000 }, (_, i) => 0x3c000000 + 0x2000 * i + i % 3); // halfway, too
  const masters = new Float32Array(bits.buffer), config = { ...c, vocab_size: 61 }; // 61 rows of embed_tokens, and padding
  const none = { val_loss: null, best_val_loss: null, best_step: null, tokenizer: null };
  const counts = { step: 1, updates: 1, skipped: 0, skipped_row: 0, tokens: 1, samples: 1 };
  const state = { ...counts, ...none, order: "", data: {}, config: {}, versions: {} };
  const tensorsOf = (rank: number, world_size: number, load?: LoadValues) => {
    const ranks = { rank, world_size, zero_stage: 1 };
    const parameters = new Parameters(init(config), { seed: 1, train: true, load, ...ranks });
    const optimizer = optimizerTensors(new AdamW(parameters, options), parameters.updated);
    return { parameters, model: modelTensors(parameters, config), optimizer };
  };
  forgetMemory();
  const { slots } = tensorsOf(0, 1).parameters,
    offsets = new Map(slots.map(({ name, offset }) => [name, offset]));
  const sizes = new Map(slots.map(({ name, size }) => [name, name === "embed_tokens" ? 61 * 64 : size]));
  const valuesOf = (name: string, from = 0, to = sizes.get(name)!) =>
    masters.slice(offsets.get(name)! + from, offsets.get(name)! + to);
  const load: LoadValues = (name, address) => writeFloats(address, valuesOf(name), "f32");
  for (const [world_size, large_bytes] of [[1, undefined], [2, undefined], [1, 0], [3, 0]] as const) { // 0: in several files each
    const run = freshPath(), path = `${run}/checkpoints/step_000001`;
    await Promise.all(
      companies(world_size).map((company) => {
        const tensors = tensorsOf(company.rank, world_size, load);
        return saveCheckpoint(run, { ...tensors, files: {}, state }, 2, company, 256, large_bytes);
      }),
    );
    if (world_size === 1 && large_bytes !== 0) {
      const { read } = readSafetensors(`${path}/optimizer.safetensors`);
      for (const name of sizes.keys()) {
        assertEquals(toFloat32(read(`master.${name}`), "F32"), valuesOf(name), name);
      }
    }
    for (const [rank, n] of [[0, 1], [0, 3], [1, 3], [2, 3]] as const) {
      const { model, optimizer, parameters } = tensorsOf(rank, n), { from, to } = parameters.updated;
      await loadCheckpoint(path, model, optimizer, readSums(path), 512);
      for (const { name, offset } of slots) {
        const [first, end] = [Math.max(0, from - offset), Math.min(sizes.get(name)!, to - offset)];
        if (first >= end) continue;
        const found = readMasters(parameters, offset + first, end - first);
        assertEquals(found, valuesOf(name, first, end), `${name} of rank ${rank} of ${n}`);
      }
    }
  }
});

Deno.test("configure() offers larger batches of gpt-270m, but not in the place of one that is given", () => {
  const larger = (world_size: number, ...args: string[]) => {
    const all = ["--preset=gpt-270m", "--device=cuda", "--out_dir=runs/none", ...args];
    return configure(variables, {} as Ranges<TrainConfig>, all, { world_size, local_rank: 0 }).larger?.map((
      { config: { batch_size, gradient_accumulation_steps, recompute, head_chunk } },
    ) => [batch_size, gradient_accumulation_steps, recompute, head_chunk]);
  };
  assertEquals(larger(1), [[16, 8, "none", 8192], [8, 16, "none", 8192]]);
  assertEquals(larger(16), [[8, 16, "none", 8192]]); // every rank has a micro-step
  assertEquals(larger(32), []);
  const given = [[16, 8, "gate_up", 64], [8, 16, "gate_up", 64]];
  assertEquals(larger(1, "--recompute=gate_up", "--head_chunk=64"), given);
  assertEquals(larger(1, "--batch_size=4"), undefined);
  assertEquals(larger(1, "--gradient_accumulation_steps=32"), undefined);
  assertEquals(larger(1, "--preset=small"), undefined);
});

Deno.test(
  "the batch of gpt-270m follows the free memory, and a run that goes on keeps its own",
  emu,
  async () => {
    using _ = environment({ LOAM_EMU_MEMORY: "25000000000" });
    const flags = FLAGS.filter((flag) => !/batch_size/.test(flag)), out = freshPath();
    const all = [
      `--data_dir=${await data()}`,
      ...flags,
      "--device=emu",
      "--save_interval=1",
      "--block_size=4",
    ];
    const printed = await succeed("train", ...all, "--max_iters=1", `--out_dir=${out}`);
    const batch = () => {
      const { batch_size, gradient_accumulation_steps } = JSON.parse(
        Deno.readTextFileSync(`${out}/config.json`),
      );
      return [batch_size, gradient_accumulation_steps];
    };
    assertMatch(
      printed,
      /^batch_size 8, gradient_accumulation_steps 16, recompute none, head_chunk 8192, as 24\.9 GB are free on emulated GPU; a step takes .*$/m,
    );
    assertEquals(batch(), [8, 16]);
    Deno.env.set("LOAM_EMU_MEMORY", "100000000000");
    await succeed("train", `--resume=${out}`, "--max_iters=1");
    assertEquals(batch(), [8, 16]);
  },
);

Deno.test("the memory plan is what the allocator gives, to the byte, and its peak", emu, () => {
  const optimizer = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };
  for (
    const [recompute, head_chunk, train] of [["none", 32, ""], ["norm_swiglu", 64, ""], [
      "block",
      64,
      "layers.*.o_proj",
    ]]
  ) {
    const batch = { batch_size: 2, gradient_accumulation_steps: 1, head_chunk, recompute, train };
    const settings = { ...optimizer, ...batch, seed: 1 } as StepSettings;
    const plan = planMemory(c, settings, "bf16"), planned = Object.values(plan).reduce((a, b) => a + b, 0);
    open("emu");
    forgetMemory();
    const before = memoryUse();
    timeStep(c, settings);
    const after = memoryUse(), taken = after.now - before.now;
    assertEquals(taken, planned, recompute as string);
    assert(after.peak <= Math.max(before.peak, after.now), `${recompute}: ${after.peak} bytes for a while`);
  }
});

Deno.test("a vocabulary above 65,536 has right ids, losses and gradients on the emulator", emu, () => {
  open("emu");
  forgetMemory();
  const V = 70_000, C = 8, at = 69_999, w = fixed([V, C], "act", "inputs");
  const row = normal(C, 1), ids = tokens([1], [at]);
  writeFloats(w.address + BigInt(2 * C * at), row, "act");
  const out = fixed([1, C], "act", "inputs"), losses = fixed([1], "f32", "inputs");
  k.embedding_forward(out.address, ids.address, w.address, 1, V, C);
  assertEquals(out.toArray(), readFloats(w.address + BigInt(2 * C * at), C, "act"));
  const x = fixed([1, V], "act", "inputs"); // logits all 0: every probability is 1 / V
  k.cross_entropy(x.address, losses.address, ids.address, 1, V, V, 1, 1);
  assert(Math.abs(losses.toArray()[0]! - Math.log(V)) < 1e-5);
  const gradient = x.toArray();
  assertEquals(gradient[at], -1); // 1 / V - 1, rounded
  assert(Math.abs(gradient[0]! * V - 1) < 2 ** -8);
});

Deno.test(
  "an array may be reused once copyToDevice() returns, and pinned memory is read when its turn comes",
  emu,
  () => {
    open("emu");
    const address = allocate(16), values = Int32Array.of(1, 2, 3, 4), read = new Int32Array(4);
    copyToDevice(address, values);
    values.fill(0);
    copyToHost(read, address);
    assertEquals(read, Int32Array.of(1, 2, 3, 4));
    free(address);
  },
);

Deno.test("memory that cannot be pinned or given is one error, and the next call works", emu, () => {
  open("emu");
  using _ = environment({ LOAM_EMU_PINNED: "1000" });
  const pinned = () => allocateHost(2000), given = () => allocate(2 ** 40);
  for (
    const [refused, text] of [[pinned, "cannot pin 0.0 MiB of host memory: raise `ulimit -l`"], [
      given,
      " MB do not fit",
    ]] as const
  ) {
    assertThrows(refused, KernelError, text);
    const address = allocate(16);
    k.init_constant(address, 4n, 1);
    free(address);
  }
});

// ---- lengths and groups of heads

/** T at both sides of a tile's rows, H / K of 1 to 8. */
const LENGTHS = [[1, 7, 1], [63, 8, 1], [64, 6, 1], [65, 4, 1], [127, 5, 1], [129, 3, 1], [33, 2, 1], [
  2,
  4,
  4,
]] as const;

Deno.test(
  "attention() agrees with float64 at every length around a tile and for groups of 1 to 8 heads",
  emu,
  () => {
    open("emu", { attention: "portable" });
    forgetMemory();
    for (const [T, H, K] of LENGTHS) compareAttention({ B: 1, T, H, K, D: 64 });
  },
);

for (const [kind, LOAM_EMU_ARCH, D] of [["portable", "80", 32], ["hopper", "90", 64]] as const) {
  Deno.test(`attention() of 2,047 tokens agrees with float64, ${kind} kernels`, emu, () => {
    using _ = environment({ LOAM_EMU_ARCH });
    open("emu", { attention: kind });
    forgetMemory();
    const T = 2047, heads = { n_head: 1, n_kv_head: 1, head_dim: D };
    const qkv = leaf([1, T, 3 * D], 1), rows = [0, 1000, T - 1]; // which alone have a gradient: the reference is quick then
    const dout = normal(T * D, 2).map((x, i) => rows.includes(Math.floor(i / D)) ? x : 0);
    const { out, grads } = forwardBackward(() => attention(qkv.t, heads), [qkv.t], dout);
    const expected = sparseAttention(qkv.values, dout, T, D, rows);
    for (const t of rows) {
      const row = (x: Float32Array | Float64Array) => x.subarray(t * D, (t + 1) * D);
      close(row(out), row(expected.out), T + D, `out of row ${t} of ${T}`, 2);
    }
    close(grads[0]!, expected.dqkv, T + D, "dqkv", 3);
  });
}

/** One head of D: out (T, D) of some rows and dqkv (T, 3D) of their gradient alone, in float64. */
function sparseAttention(
  qkv: ArrayLike<number>,
  dout: ArrayLike<number>,
  T: number,
  D: number,
  rows: number[],
) {
  const out = new Float64Array(T * D), dqkv = new Float64Array(T * 3 * D), scale = 1 / Math.sqrt(D);
  const at = (t: number, part: number, d: number) => (3 * t + part) * D + d; // query, key, value
  const dot = (f: (d: number) => number) => Array.from({ length: D }, (_, d) => f(d)).reduce((a, b) => a + b);
  for (const i of rows) {
    const e = Array.from(
      { length: i + 1 },
      (_, j) => Math.exp(scale * dot((d) => qkv[at(i, 0, d)]! * qkv[at(j, 1, d)]!)),
    );
    const sum = e.reduce((a, b) => a + b), p = e.map((x) => x / sum);
    const dp = p.map((_, j) => dot((d) => dout[i * D + d]! * qkv[at(j, 2, d)]!));
    const delta = p.reduce((sum, x, j) => sum + x * dp[j]!, 0);
    p.forEach((x, j) => {
      for (let d = 0; d < D; d++) {
        const ds = x * (dp[j]! - delta) * scale;
        out[i * D + d]! += x * qkv[at(j, 2, d)]!;
        dqkv[at(i, 0, d)]! += ds * qkv[at(j, 1, d)]!;
        dqkv[at(j, 1, d)]! += ds * qkv[at(i, 0, d)]!;
        dqkv[at(j, 2, d)]! += x * dout[i * D + d]!;
      }
    });
  }
  return { out, dqkv };
}

// ---- beside the CPU library

const c: LlamaConfig = {
  vocab_size: 65,
  n_layer: 2,
  n_embd: 64,
  n_head: 4,
  n_kv_head: 2,
  head_dim: 32,
  n_inner: 96,
  block_size: 48,
  rope_theta: 10000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};

function ids(T: number, seed: number): Tensor {
  return tokens([2, T], integers(2 * T, c.vocab_size, seed));
}

/** Logits, loss and gradients of a model whose weights are the same bfloat16 numbers on every device. */
function evaluate(
  device: "cpu" | "emu",
  shape: LlamaConfig,
  weights: Map<string, Float32Array<ArrayBuffer>>,
) {
  open(device, { threads: 2 });
  forgetMemory();
  const config = { ...shape },
    model = init(config),
    parameters = new Parameters(model, { seed: 1, train: true });
  for (const { name, offset } of parameters.slots) {
    writeMasters(parameters, offset, weights.get(name)!);
  }
  const idx = ids(shape.block_size, 1), targets = ids(shape.block_size, 2);
  const all = noGrad(() => logits(model, forward(model, idx, config)).toArray());
  endStep();
  const l = loss(model, idx, targets, config);
  backward(l);
  const value = l.toArray()[0]!;
  const gradients = parameters.slots.map(({ offset, size }) =>
    readFloats(parameters.grads!.address + BigInt(4 * offset), size, "f32")
  );
  endStep();
  return { logits: all, loss: value, gradients };
}

/** L2 norm of the difference over that of what is expected. */
function relativeError(actual: Float32Array, expected: Float32Array): number {
  const square = (f: (i: number) => number) => expected.reduce((sum, _, i) => sum + f(i) ** 2, 0);
  return Math.sqrt(square((i) => actual[i]! - expected[i]!) / square((i) => expected[i]!));
}

const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16 } as const;
const MODELS: Record<string, Partial<LlamaConfig>> = {
  Llama: {},
  "Qwen 2": { family: "qwen2", rope_scaling: yarn },
  "Qwen 3": { family: "qwen3", tie_word_embeddings: false },
  "SmolLM 3": { family: "smollm3", no_rope_layers: [1, 0] },
};

for (const T of [1, 63, 65, 129]) {
  MODELS[`Llama at T=${T}`] = { block_size: T, n_layer: 1, n_head: 2, n_kv_head: T === 1 ? 2 : 1 };
}

for (const [name, change] of Object.entries(MODELS)) {
  Deno.test(
    `logits, loss and gradients of ${name} differ from the CPU's by bfloat16 rounding only`,
    emu,
    () => {
      open("plan", { act: "bf16" }); // normal() rounds to bfloat16
      forgetMemory();
      const shape = { ...c, ...change }, { slots } = new Parameters(init(shape), { seed: 1, train: false });
      const weights = new Map(slots.map(({ name, size }, i) => {
        const scale = /[qk]_norm/.test(name) ? 0.25 : 1; // scores below 1: softmax magnifies no error
        const values = normal(size, i).map((x) => /norm/.test(name) ? scale : x / 16);
        if (/^(embed_tokens|lm_head)$/.test(name)) values.fill(0, c.vocab_size * c.n_embd); // padding
        return [name, values as Float32Array<ArrayBuffer>];
      }));
      const expected = evaluate("cpu", shape, weights), actual = evaluate("emu", shape, weights);
      // Each rounding is at most u = 2^-8 of a value, u / sqrt(3) in the mean square, and independent of the others. On the way
      // to the first layer's gradient lie the embedding, head and last norm, and 10 stored results a layer, there and back.
      const roundings = 2 * (3 + 10 * shape.n_layer), allowed = 2 ** -8 * Math.sqrt(roundings / 3);
      const check = (a: Float32Array, e: Float32Array, what: string) => {
        const error = relativeError(a, e);
        assert(error < allowed, `${what}: relative error ${error}, ${allowed} is allowed`);
        assert(error > 1e-4, `${what}: relative error ${error} is too small for bfloat16`);
      };
      check(actual.logits, expected.logits, "logits");
      assert(
        Math.abs(actual.loss - expected.loss) < allowed,
        `loss ${actual.loss}, on the CPU ${expected.loss}`,
      );
      slots.forEach(({ name }, i) =>
        check(actual.gradients[i]!, expected.gradients[i]!, `gradient of ${name}`)
      );
    },
  );
}

Deno.test(
  "results read one step late are those of steps read at once, each written once and in order",
  emu,
  async () => {
    const run = async (...flags: string[]) => {
      const out = freshPath();
      const all = [
        "--max_iters=5",
        "--gradient_accumulation_steps=2",
        "--eval_batches=1",
        "--device=emu",
        ...flags,
      ];
      all.push("--sample_interval=4", "--sample_tokens=2");
      await succeed("train", `--data_dir=${await data()}`, `--out_dir=${out}`, ...FLAGS, ...all);
      samples.push(Deno.readTextFileSync(`${out}/samples.jsonl`));
      return metrics(out).map(({ step, loss, lr, grad_norm }) => ({ step, loss, lr, grad_norm }));
    };
    const samples: string[] = []; // of the steps 4 and 5
    const late = await run("--eval_interval=0"), mixed = await run("--eval_interval=3");
    const atOnce = await run("--eval_interval=1");
    assertEquals(late.map(({ step }) => step), [1, 2, 3, 4, 5]);
    assertEquals(late, atOnce);
    assertEquals(mixed, atOnce);
    assertEquals(samples[0]!.match(/"step":\d/g), ['"step":4', '"step":5']);
    assertEquals(samples.slice(0, 2), [samples[2], samples[2]]);
  },
);

Deno.test(
  "a run that goes on has the same bits, whichever algorithms are faster by then or proposed",
  emu,
  async () => {
    const train = async (LOAM_EMU_FASTEST: string, ...flags: string[]) => {
      using _ = environment({ LOAM_EMU_FASTEST, LOAM_CACHE: `${other}.cache` });
      const { code, stderr } = await run("train", ...flags);
      assertEquals(code, 0, stderr);
      return stderr;
    };
    const whole = freshPath(),
      other = freshPath(),
      all = [`--data_dir=${await data()}`, ...FLAGS, "--device=emu"];
    all.push("--save_interval=1", "--gradient_accumulation_steps=2"); // two: a gradient is overwritten, then added to
    const saved = (run: string, step: number) => `${run}/checkpoints/step_00000${step}`;
    const moments = (run: string, step: number) =>
      Deno.readFileSync(`${saved(run, step)}/optimizer.safetensors`);
    await train("3", ...all, `--out_dir=${other}`, "--max_iters=1"); // leaves its choices in the cache
    Deno.renameSync(`${other}.cache`, `${other}.kept`);
    await train("1", ...all, `--out_dir=${whole}`, "--max_iters=2");
    const parts = copy(whole);
    Deno.removeSync(saved(parts, 2), { recursive: true });
    Deno.removeSync(`${other}.cache`, { recursive: true });
    Deno.renameSync(`${other}.kept`, `${other}.cache`);
    Deno.writeTextFileSync(`${saved(parts, 1)}/kernels.json`, "{}"); // its directory has the same
    const said = await train("3", `--resume=${parts}`);
    assertMatch(said, /^warning: \S+step_000001\/kernels\.json is damaged: what it alone knows [^\n]+\n$/);
    assertEquals(metrics(parts).map(({ loss }) => loss), metrics(whole).map(({ loss }) => loss));
    assertEquals(moments(parts, 2), moments(whole, 2));
    assertNotEquals(moments(other, 1), moments(whole, 1));
    const kept = (path: string) => Deno.readTextFileSync(`${path}/kernels.json`);
    assertEquals([kept(parts), kept(saved(parts, 2))], [kept(whole), kept(whole)]);
  },
);

Deno.test("10 steps of training follow the CPU's losses within bfloat16 noise", emu, async () => {
  const losses = async (device: string) => {
    const out = freshPath(),
      flags = ["--max_iters=10", "--gradient_accumulation_steps=2", `--device=${device}`];
    await succeed("train", `--data_dir=${await data()}`, `--out_dir=${out}`, ...FLAGS, ...flags);
    return metrics(out).map(({ loss }) => loss!);
  };
  const [cpu, cuda] = [await losses("cpu"), await losses("emu")];
  assertEquals([cpu.length, cuda.length], [10, 10]);
  assert(cpu.at(-1)! < 0.8 * cpu[0]!, `the loss went from ${cpu[0]} to ${cpu.at(-1)}`);
  cpu.forEach((expected, step) => {
    const difference = Math.abs(cuda[step]! - expected);
    assert(difference < 2 ** -8 * expected, `step ${step + 1}: loss ${cuda[step]}, on the CPU ${expected}`);
  });
});
