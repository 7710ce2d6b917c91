// The benchmarks run and say what they should, with shapes that take a moment. Their figures are not looked at here, and what
// needs PyTorch runs where LOAM_PYTHON names a Python that has it.
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertLess,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { UserError } from "../base/errors.ts";
import { allCases, weightCount } from "../bench/cases.ts";
import { type Curve, largestDifference, stepsTo } from "../bench/curve.ts";
import {
  factsOf,
  gather,
  latestPredictions,
  printed,
  type Results,
  unfinished,
} from "../bench/gpu_report.ts";
import type { Report } from "../bench/kernels.ts";
import {
  CARDS,
  floorMs,
  groupRows,
  GROUPS,
  isFallback,
  lastEnd,
  predict,
  type Prediction,
  productMs,
  residentBlocks,
  unitClocks,
} from "../bench/roofline.ts";
import { SHAPES } from "../bench/shapes.ts";
import { libraryExists } from "../ffi/library.ts";
import type { KernelCode } from "../bench/sass.ts";
import { dataset, emptyDirectory, freshPath, ROOT } from "./testing.ts";

const PYTHON = Deno.env.get("LOAM_PYTHON");
const GPT_270M = { ...SHAPES["gpt-270m"]!, head_chunk: 2048, act: 2 };

async function run(program: string, args: string[], env: Record<string, string> = {}): Promise<string> {
  const command = new Deno.Command(program, { args, cwd: ROOT, env, stdin: "null" });
  const { code, stdout, stderr } = await command.output();
  assertEquals(code, 0, new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

function bench(script: string, ...args: string[]): Promise<string> {
  return run(Deno.execPath(), ["run", "-q", "-P=bench", `bench/${script}.ts`, ...args]);
}

for (const device of ["cpu", "emu"] as const) {
  Deno.test({
    name: `kernels.ts times every call of a step on ${device}`,
    ignore: !libraryExists(device),
    fn: async () => {
      const json = freshPath(), toy = ["--preset=tiny", "--B=1", "--T=32", "--n_layer=1", "--V=65"];
      const quick = ["--copy_mb=1", "--rotate_mb=0.1", "--batch_ms=0", "--batches=3"];
      const text = await bench("kernels", `--device=${device}`, ...toy, ...quick, `--json=${json}`);
      assertMatch(text, /ms for the calls of a micro-step/);

      const report: Report = JSON.parse(Deno.readTextFileSync(json));
      const sizes = {
        ...SHAPES.tiny!,
        B: 1,
        T: 32,
        n_layer: 1,
        head_chunk: 2048,
        act: device === "emu" ? 2 : 4,
      };
      assertEquals(report.timings.map(({ op }) => op), allCases(sizes, 1e6).map(({ op }) => op));
      assertEquals(report.failed, []);
      assertEquals(report.device.library, device);
      for (const { ms, ms_least, ms_most, gb_per_sec, op } of report.timings) {
        assert(0 < ms_least && ms_least <= ms && ms <= ms_most && gb_per_sec > 0, op);
      }
      const sum = report.timings.reduce((sum, { ms, count }) => sum + ms * count, 0);
      assertAlmostEquals(report.micro_step_ms, sum, 1e-9);
      assertEquals(report.wall_ms === null, device === "emu"); // which has no peak
      const wall = report.timings.reduce((sum, { roofline_ms, count }) => sum + roofline_ms! * count, 0);
      if (report.wall_ms !== null) assertAlmostEquals(report.wall_ms, wall, 1e-9);

      // Of a step all calls count, timed or not, and those of the optimizer once.
      assertEquals(report.step_wall_ms === null, device === "emu");
      const optimizer = report.timings.filter(({ op }) => ["grad_sumsq", "adamw"].includes(op));
      const update = optimizer.reduce((sum, { roofline_ms }) => sum + roofline_ms!, 0);
      if (report.step_wall_ms !== null) assertAlmostEquals(report.step_wall_ms, wall + update, 1e-9);
    },
  });
}

for (
  const [script, flag, message] of [
    ["kernels", "--batches=0", "Cannot use --batches=0: it should be a whole number from 1 to 1048576"],
    ["kernels", "--threads=0.5", "Cannot use --threads=0.5: it should be a whole number from 0 to 1024"],
    ["kernels", "--T=1e300", "Cannot use --T=1e300: it should be a whole number from 0 to 1048576"],
    ["peer", "--rounds=0", "Cannot use --rounds=0: it should be a whole number from 1 to 1048576"],
    ["generate", "--preset=big", "Cannot use preset big: it should be one of tiny, small, 124m"],
    ["loader", "--gb=0", "Cannot use --gb=0: it should be a number of at least 0.001"],
    ["curve", "--threads=two", "Cannot use --threads=two: it should be a number, such as CPUS"],
    [
      ...["roofline", "--cuobjdump=/there/is/none"] as const,
      "Cannot take build/libloam_cuda.so apart: /there/is/none does not run or finds no code of 90a, 89, 120; build it " +
      "with deno task build --arch=all, and pip install triton for " +
      "--cuobjdump=.../triton/backends/nvidia/bin/cuobjdump, or name saved listings with --listing",
    ],
  ] as const
) {
  Deno.test(`${script}.ts refuses ${flag} in one line`, async () => {
    const args = ["run", "-q", "-P=bench", `bench/${script}.ts`, flag];
    const { code, stderr } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
    const expected = `error: ${message.replace("CPUS", `${navigator.hardwareConcurrency}`)}\n`;
    assertEquals([code, new TextDecoder().decode(stderr)], [1, expected]);
  });
}

Deno.test("every benchmark explains its flags", async () => {
  const scripts = [
    "checkpoint",
    "dist",
    "documents",
    "generate",
    "loader",
    "serve",
    "prepare",
    "roofline",
    "tokenizer",
    "train_tokenizer",
  ];
  await Promise.all(scripts.map(async (script) => {
    const args = ["run", "-q", "-P=bench", `bench/${script}.ts`, "--help"];
    const { code, stdout } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
    assertEquals(code, 0);
    assertMatch(new TextDecoder().decode(stdout), /^(Time|Predict) [^\n]+\n\n( {2}--\w+=.*\n)+$/);
  }));
});

Deno.test("generate.ts times prompts, tokens and the choice of a token", async () => {
  const json = freshPath(), few = ["--preset=tiny", "--rounds=1", "--prompt=8", "--tokens=3", "--threads=1"];
  const text = await bench("generate", ...few, `--json=${json}`);
  const sides = ["loam", "loam, 8 texts", ...PYTHON ? ["transformers"] : []];
  for (const name of sides) {
    assertMatch(text, new RegExp(`^${name} +prompt +\\d+ +writing +\\d+\\.\\d$`, "m"));
  }
  const { results, sampler_ms } = JSON.parse(Deno.readTextFileSync(json));
  for (const name of sides) {
    const { prompt_tokens_per_sec, tokens_per_sec, turns } = results[name];
    assert(prompt_tokens_per_sec > 0 && tokens_per_sec > 0);
    assertEquals([turns.length, turns[0].token_ms.length], [1, 2]);
  }
  assertEquals(Object.keys(sampler_ms).length, 4);
});

Deno.test({
  name: "prepare.ts times encoders and whole runs (LOAM_PYTHON)",
  ignore: PYTHON === undefined,
  fn: async () => {
    const json = freshPath(), sample = freshPath() + ".parquet";
    const texts = "[f'Text {i}. It has a few words. And more, perhaps.' for i in range(200)]";
    const table =
      `import pyarrow as a, pyarrow.parquet as p; p.write_table(a.table({'text': ${texts}}), '${sample}')`;
    await run(PYTHON!, ["-c", table]);
    const small = ["--rounds=1", "--tokenizers=gpt2", "--long_mb=0", "--parquet_mb=2", "--jsonl_mb=1"];
    const flags = [
      `--sample=${sample}`,
      ...small,
      "--workers=1,2",
      `--work_dir=${emptyDirectory()}`,
      `--json=${json}`,
    ];
    const text = await bench("prepare", ...flags);
    assertMatch(text, /gpt2 on .* \(sample\): loam [\d.]+ MB\/s, tiktoken [\d.]+/);
    const { encodings, runs } = JSON.parse(Deno.readTextFileSync(json));
    assertEquals(encodings.length, 1);
    assertEquals(
      runs.map(({ side, corpus, workers }: { side: string; corpus: string; workers: number }) => {
        return [side.split(" ")[0], corpus, workers];
      }),
      [
        ...[1, 2].flatMap((threads) =>
          ["loam", "tiktoken", "tokenizers"].map((side) => [side, "parquet", threads])
        ),
        ["loam", "jsonl.zst", 1],
        ["loam", "jsonl.zst", 2],
      ],
    );
    for (const { peak_rss_bytes, stored_bytes, mb_per_sec } of runs) {
      assert(peak_rss_bytes > 50e6 && stored_bytes > 1e5 && mb_per_sec > 0);
    }
  },
});

Deno.test({
  name: "tokenizer.ts times both sides, with one pass too (LOAM_PYTHON)",
  ignore: PYTHON === undefined,
  fn: async () => {
    const sample = `${freshPath()}.parquet`;
    const table =
      `import pyarrow as a, pyarrow.parquet as p; p.write_table(a.table({'text': ['A text.'] * 9}), '${sample}')`;
    await run(PYTHON!, ["-c", table]);
    const text = await bench(
      "tokenizer",
      `--sample=${sample}`,
      "--tokenizers=gpt2",
      "--rounds=1",
      "--passes=1",
    );
    assertMatch(text, /gpt2 +loam .*n\/a +27\n/); // "A", " text" and "." nine times
    assertMatch(text, /gpt2 +tiktoken .*n\/a +27\n/);
  },
});

Deno.test("documents.ts times attention within documents, and whole steps", async () => {
  const json = freshPath(), data = `--data_dir=${await dataset({ words: 500 })}`;
  const flags = ["--tokens=256", "--rounds=2", `--json=${json}`];
  const rest = String.raw`( +\d+\.\d\d){3}( +[-+]?\d+\.\d% \([-+]?\d+\.\d to [-+]?\d+\.\d\)){2}$`;
  const attention = await bench("documents", data, "--block_size=64,128", ...flags);
  assertMatch(attention, new RegExp(String.raw`^ *128 +\d+\.\d\d +backward${rest}`, "m"));
  assertEquals(JSON.parse(Deno.readTextFileSync(json)).rows.length, 2);
  const steps = await bench("documents", data, "--block_size=64", "--preset=tiny", ...flags);
  assertMatch(steps, new RegExp(String.raw`^ *64 +\d+\.\d\d +step${rest}`, "m"));
  const [row] = JSON.parse(Deno.readTextFileSync(json)).rows;
  assertEquals([row.times.step.apart.length, row.times.step.without.length], [2, 2]);
});

Deno.test("checkpoint.ts times saving and resuming", async () => {
  const json = freshPath(), text = await bench("checkpoint", "--mb=13", "--rounds=2", `--json=${json}`);
  for (const line of ["save, all of it", "save beside training: stall", "resume, cached"]) {
    assertMatch(text, new RegExp(`^${line} +\\d+\\.\\d\\d +\\d+\\.\\d\\d$`, "m"));
  }
  const { costs } = JSON.parse(Deno.readTextFileSync(json));
  assertEquals(costs["read once, cached"].length, 2);
});

Deno.test("allCases() counts the FLOPs of gpt-270m", () => {
  const cases = allCases(GPT_270M, 0), tokens = GPT_270M.B * GPT_270M.T;
  const flops = cases.reduce((sum, { flops, count }) => sum + flops * count, 0) / tokens;
  assertAlmostEquals(flops / 1e9, 2.2848, 1e-4); // 2.2344 of the model, and attention's scores once more in backward
  assertEquals(weightCount(GPT_270M), 322_094_080);
});

Deno.test("floorMs() of an RTX 5090 leaves room for 60,000 tokens/s", () => {
  const ms = allCases(GPT_270M, 0).reduce(
    (sum, c) => sum + c.count * floorMs(c, { tflops: 209.5, tb_per_sec: 1.6 }),
    0,
  );
  const tokens_per_sec = GPT_270M.B * GPT_270M.T / ms * 1000;
  assert(tokens_per_sec > 78_000 && tokens_per_sec < 82_000, `${tokens_per_sec}`);
});

Deno.test("residentBlocks() is what NVIDIA's limits of an SM allow", () => {
  const [h100, rtx4090] = [
    CARDS.find(({ name }) => name === "H100")!,
    CARDS.find(({ name }) => name === "RTX 4090")!,
  ];
  const blocks = (card: typeof h100, warps: number, registers: number, shared: number) =>
    residentBlocks(card, { warps, registers, shared });
  assertEquals(blocks(h100, 32, 64, 1024), 1); // 1,024 threads of 64 registers: all 65,536
  assertEquals(blocks(h100, 32, 32, 1024), 2); // 2,048 threads
  assertEquals(blocks(h100, 8, 32, 1024), 8);
  assertEquals(blocks(rtx4090, 8, 32, 1024), 6); // 1,536 threads
  assertEquals(blocks(h100, 1, 16, 1024), 32);
  assertEquals(blocks(rtx4090, 1, 16, 1024), 24);
  assertEquals(blocks(rtx4090, 4, 168, 33 * 1024), 3); // 3 * 33 of 100 KB, 12 warps of 5,376 registers
  assertEquals(blocks(rtx4090, 4, 255, 33 * 1024), 2); // 8,192 a warp, 8 warps
  assertEquals(blocks(rtx4090, 4, 32, 51 * 1024), 1);
  assertEquals(blocks(h100, 4, 40, 100 * 1024), 2); // of 228 KB
});

Deno.test("unitClocks() and lastEnd() are what one works out by hand", () => {
  const use = { instructions: 100, alu: 40, mufu: 16, tensor_flops: 32 * 4096, wgmma_flops: 0, shared: 64 };
  // Four warps, one for each scheduler; an m16n8k16 takes 32 clocks of a quarter of an SM at 128 FLOPs a clock.
  const expected = { issue: 100, integer: 80, exponentials: 128, tensor: 32 * 32, shared: 256 };
  assertEquals(unitClocks(use, 4, { mma: 512, wgmma: 0 }), expected);
  // Of a warpgroup's m64n128k16 each warp has a quarter: 64 clocks of 4,096 FLOPs together.
  const wgmma = { ...use, tensor_flops: 0, wgmma_flops: 2 * 64 * 128 * 16 / 4 };
  assertEquals(unitClocks(wgmma, 4, { mma: 2540, wgmma: 4096 }).tensor, 64);
  assertEquals(lastEnd([3, 2, 1, 1], 2), 4); // 3 and 1; 2 and 1
  assertEquals(lastEnd([3, 3], 4), 3);
});

/** A kernel without loops of 8 instructions that nothing but memory keeps busy. */
function plain(kernel: string, loops: KernelCode["loops"] = []): KernelCode {
  const body = { instructions: 8, alu: 0, mufu: 0, tensor_flops: 0, wgmma_flops: 0, shared: 0 };
  return { kernel, registers: 32, shared: 0, loops, body };
}

/** As much of the library as a step needs: straight kernels, and loops that do next to nothing. */
function library(multiplies: number): Map<string, KernelCode> {
  const use = { instructions: 8, alu: 0, mufu: 0, tensor_flops: 0, wgmma_flops: 0, shared: 0 };
  const loop = (opcodes: Record<string, number>, tensor_flops = 0) => ({
    ...{ from: 0, to: 16, use: { ...use, tensor_flops }, opcodes },
  });
  const memory = ["LDG.32", "LDG.64", "LDG.128", "LDS.128"].map((name) => loop({ [name]: 1 })).concat(
    loop({ "STG.128": 1 }),
  );
  const names = ["embedding_forward_kernel<8>", "embedding_backward_kernel", "rmsnorm_forward_kernel<8>"]
    .concat("rmsnorm_backward_kernel<8>", "sum_rows_kernel", "rope_kernel<8>", "swiglu_forward_kernel<8>")
    .concat("swiglu_backward_kernel<8>", "cross_entropy_kernel<8>", "sum_scaled_kernel", "grad_sumsq_kernel")
    .concat("sum_partials_kernel", "adamw_kernel<4>", "attention_delta_kernel<64>");
  const flops = (products: number, scores: number) => multiplies * 2 * products * scores * 64; // of a warp
  const attention = { forward: [flops(2, 32 * 64)], backward: [flops(3, 32 * 32), flops(4, 16 * 64)] };
  return new Map([
    ...names.map((name) => [name, plain(name, memory)] as const),
    ...Object.entries(attention).map(([name, kinds]) => {
      const kernel = `attention_${name}_kernel<64>`, loops = kinds.map((flops) => loop({ HMMA: 1 }, flops));
      return [kernel, { ...plain(kernel, loops), registers: 255 }] as const;
    }),
  ]);
}

Deno.test("predict() adds up a step in the names of kernels.ts, and refuses tiles that it does not know", () => {
  const card = CARDS.find(({ name }) => name === "RTX 5090")!;
  const p = predict(GPT_270M, card, library(1), "portable"), cases = allCases(GPT_270M, 0);
  const ofStep = cases.filter(({ op, count }) => count > 0 || op === "adamw" || op === "grad_sumsq");
  assertEquals(p.ops.map(({ op }) => op), ofStep.map(({ op }) => op));
  for (const { op } of p.ops) assertEquals(GROUPS.filter(([, ops]) => ops.test(op)).length, 1, op);
  assertAlmostEquals(p.ops.reduce((sum, { share }) => sum + share, 0), 1, 1e-9);
  assertAlmostEquals(p.step_ms, 32 * p.micro_step_ms, 1e-6);
  assertAlmostEquals(p.mfu, 2.2344e9 * p.tokens_per_sec / 209.5e12, 1e-4);

  // Attention forward by hand: 16 blocks of 128 queries for each of 64 heads, 2, 4 ... 32 tiles of which two warps skip the
  // last: 2i + 1.5; 128 HMMA of 32 clocks a tile. 340 places; no unit but tensor and a little issue is busy.
  const forward = p.ops.find(({ op }) => op === "attention forward")!.launches[0]!;
  assertEquals([forward.blocks_per_sm, forward.waves], [2, 1024 / 340]);
  assertAlmostEquals(forward.units.tensor!, 64 * 16 * 16.5 * 4096 / 170 / 2.407e6, 1e-6);
  assert(forward.ms > forward.units.tensor! && forward.ms < 1.25 * forward.units.tensor!, `${forward.ms}`);

  // rope forward: 42 MB at 1.6 TB/s, 0.6 us of latency for each of its waves, 1.5 us to start.
  const rope = p.ops.find(({ op }) => op === "rope forward")!;
  assert(rope.ms > 0.0277 && rope.ms < 0.0285, `${rope.ms}`);
  assertThrows(() => predict(GPT_270M, card, library(2), "portable"), UserError, "Cannot predict: a tile of");
});

Deno.test("productMs() of a large product is its rate, of a small one what its tiles fill", () => {
  const card = { ...CARDS.find(({ name }) => name === "H200")!, tb_per_sec: 1e6, sms: 128 };
  const ms = (m: number, n: number, k: number) => productMs([m, n, k], 0, card) - 1.5e-3;
  assertAlmostEquals(ms(8192, 8192, 8192), 2 * 8192 ** 3 / 790e9, 1e-6); // 2,048 tiles: 16 full waves
  // 8 tiles on 128 SMs; in four parts 32 of them, and of half the size 64, at 85%.
  assertAlmostEquals(ms(512, 512, 8192), 2 * 512 * 512 * 8192 / (790e9 * 0.85 * 64 / 128), 1e-6);
});

Deno.test("the predictions that docs/speed.md shows are those of bench/results", () => {
  const predictions = latestPredictions(`${ROOT.pathname}bench/results`);
  const page = Deno.readTextFileSync(new URL("docs/speed.md", ROOT)).replaceAll(/ +/g, " ");
  const shown = [predictions.filter((p) => p.B === 4 && !isFallback(p)), predictions.filter((p) => p.B > 4)];
  assertEquals(shown.map(({ length }) => length), [4, 6]);
  for (const row of groupRows(shown[0]!)) assertStringIncludes(page, `| ${row.join(" | ")} |`);
  for (const row of groupRows(shown[1]!).slice(-5)) assertStringIncludes(page, `| ${row.join(" | ")} |`);
  const names = allCases(GPT_270M, 0).map(({ op }) => op);
  for (const { ops } of predictions) assertEquals(ops.filter(({ op }) => !names.includes(op)), []);
});

Deno.test("largestDifference() is relative, and NaN where a curve has a hole", () => {
  assertEquals(largestDifference([1, 2.5, 4], [1, 2, 4]), { value: 0.25, at: 1 });
  assertEquals(largestDifference([1, NaN], [1, 2]), { value: NaN, at: 1 });
  assertEquals(largestDifference([1], [1, 2]), { value: NaN, at: 1 });
});

Deno.test("factsOf() reads the counts of deno test and the summaries of compute-sanitizer", () => {
  const log =
    "running 3 tests\nFAILED | 134 passed (2 steps) | 2 failed | 5 ignored (26s)\n\nerror: Test failed\n";
  assertEquals(factsOf("tests", log), { passed: 134, failed: 2, ignored: 5 });
  const cut = "add() ... ok (3ms)\nrope() ... ok (1s)\nsum() ... FAILED (2ms)\nmul() ...";
  const ended = { passed: 2, failed: 1, summary: "none: the tests did not end" };
  assertEquals(factsOf("tests", cut), ended);
  const sanitizer = "--- memcheck\n========= ERROR SUMMARY: 0 errors\n--- racecheck\nkilled\n";
  assertEquals(factsOf("sanitizer", sanitizer), { memcheck: "0 errors", racecheck: "no summary" });
  assertEquals(factsOf("env", "nvcc: 13.0\ncpus: 16\n"), { nvcc: "13.0", cpus: "16" });
  const check =
    "--- hopper\npreset tiny\nerror: Cannot train on H200: rope\n--- portable\ndevice cuda (as asked): H200\n";
  assertEquals(factsOf("check", check), {
    hopper: "Cannot train on H200: rope",
    portable: "cuda (as asked): H200",
  });
});

Deno.test("gather() and printed() make do with what a stage left behind", () => {
  const work = freshPath();
  Deno.mkdirSync(work);
  const side = { median_ms: 50, tokens_per_sec: 160_000, peak_bytes: 1e10, ready: { planned_bytes: 9.9e9 } };
  const failures = { "torch eager": "Cannot run torch eager" };
  const options4 = { ...SHAPES["gpt-270m"], accum: 4 };
  const peer = { device: "NVIDIA H200", options: options4, results: { loam: side }, failures };
  Deno.writeTextFileSync(`${work}/steps-B4.json`, JSON.stringify(peer));
  Deno.writeTextFileSync(`${work}/steps-B16.json`, '{"results": {"lo'); // its process was killed
  const stage = gather(work, "steps", 124, 60);
  assertEquals(Object.keys(stage.files), ["steps-B16.json", "steps-B4.json"]);

  const device = { name: "NVIDIA H200", blas: "cuBLASLt", attention: "hopper, which agrees" };
  const options = { B: 4 }, rope = { op: "rope forward", count: 24, ms: 0.02, gb_per_sec: 4000, share: 0.5 };
  const report = {
    device,
    options,
    timings: [rope],
    micro_step_ms: 50,
    failed: [],
    peak_flops: 989.4e12,
    copy_gb_per_sec: 3000,
  };
  const kernels = { ...stage, files: { "kernels.json": report } };
  const results: Results = {
    date: "2026-01-31",
    stages: { steps: stage, build: gather(work, "build", 1, 2), kernels },
  };
  const [portable, hopper] = ["portable", "hopper"].map((attention) => {
    const op = { op: "rope forward", ms: 0.01, count: 24 }, adamw = { op: "adamw", ms: 2.5, count: 1 / 32 };
    const ops = attention === "hopper" ? [op, adamw] : [];
    return { card: "H200", B: 4, attention, ops } as unknown as Prediction;
  });
  const text = printed(results, [portable!, hopper!]);
  assertMatch(text, /^rope forward +0.0200 +0.0100 +2.00x/m); // twice what was predicted
  assertMatch(text, /^50.00 ms for these calls of a micro-step, predicted 0.24$/m);
  assertMatch(text, /predicted 3.5 ms$/m); // 4 micro-steps of 0.24 ms and an update
  assertMatch(text, /^steps +124 +60$/m);
  assertMatch(text, /^loam +50.0 +160000 +36.1% +10.00 GB +planned 99.0% of it +predicted/m); // 2.2344 GFLOP a token
  assertMatch(text, /failed: Cannot run torch eager/);
});

Deno.test("gpu.sh goes on after a stage that fails, keeps what there is, and begins again with what is not done", async () => {
  const out = freshPath(),
    flags = ["--device=cpu", `--out=${out}`],
    env = { LOAM_PYTHON: "/there/is/no/python" };
  const read = (folder: string): Results => JSON.parse(Deno.readTextFileSync(`${folder}/rehearsal.json`));
  await run("bench/gpu.sh", [...flags, "--name=rehearsal", "--stages=sanitizer,kernels"], env);
  const { stages } = read(out);
  assertEquals(stages.sanitizer!.code, 1); // there is no GPU here
  assertEquals(stages.kernels!.code, 0);
  assertEquals(Object.keys(stages.kernels!.files), ["kernels.json"]);
  assertMatch(Deno.readTextFileSync(`${out}/rehearsal.log`), /^=== kernels \(.*code 0/m);

  // As if all others had succeeded: on another machine only the one that failed runs again.
  for (const name of ["env", "build", "check", "tests", "steps4", "steps8", "steps16", "curve"]) {
    stages[name] = { ...stages.kernels!, files: {} };
  }
  Deno.writeTextFileSync(`${out}/rehearsal.json`, JSON.stringify({ date: "2026-01-31", stages }));
  const elsewhere = freshPath(), again = ["--device=cpu", `--out=${elsewhere}`];
  const text = await run("bench/gpu.sh", [...again, `--resume=${out}/rehearsal.json`], env);
  assertEquals(Array.from(text.matchAll(/^=== (\w+), at most \d+ s$/gm), ([, name]) => name), ["sanitizer"]);
  assertEquals(Object.keys(read(elsewhere).stages).length, 10);
  assert(read(elsewhere).stages.sanitizer!.finished > stages.sanitizer!.finished);
});

Deno.test("gpu.sh that is told to end leaves what it has done, and ends what it has started", async () => {
  const out = freshPath(), json = `${out}/rehearsal.json`;
  const flags = ["--device=cpu", `--out=${out}`, "--name=rehearsal", "--stages=kernels,curve"];
  const env = { LOAM_PYTHON: "/there/is/no/python", LOAM_TEST_STAGE: out };
  const command = new Deno.Command("bench/gpu.sh", {
    args: flags,
    cwd: ROOT,
    env,
    stdout: "null",
    stderr: "null",
  });
  await using child = command.spawn();
  const results = (): Results => {
    try {
      return JSON.parse(Deno.readTextFileSync(json));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return { date: "", stages: {} };
      throw error; // half a file
    }
  };
  while (!results().stages.kernels) await new Promise((resolve) => setTimeout(resolve, 20));
  assertEquals(results().stages.kernels!.code, -1); // it has begun
  child.kill("SIGTERM");
  assertEquals((await child.status).code, 143);
  const { stages } = results();
  assertEquals(Object.keys(stages), ["kernels"]);
  assertEquals(stages.kernels!.code, 143);
  assertEquals(unfinished({ date: "", stages }, ["curve", "kernels", "env"]), ["curve", "env", "kernels"]);
  const still = `grep -lzs LOAM_TEST_STAGE=${out} /proc/[0-9]*/environ`; // of what it has started
  const left = `for i in {1..50}; do ${still} >/dev/null || exit 0; sleep 0.1; done; ${still} || true`;
  assertEquals(await run("bash", ["-c", left]), "");
});

Deno.test("stepsTo() finds the step at which a loss was reached between two evaluations", () => {
  assertEquals([4, 3.5, 2.5, 1].map((loss) => stepsTo([4, 3, 2], 10, loss)), [10, 15, 25, undefined]);
  assertEquals(stepsTo([4, 2, 3, 1], 10, 2.5), 17.5); // where it first was
});

Deno.test("curve.ts trains with AdamW and with Muon at every rate, and says where they are alike", async () => {
  const json = freshPath(),
    model = ["--n_layer=1", "--n_embd=32", "--n_head=2", "--n_kv_head=1", "--n_inner=48"];
  const flags = [
    ...model,
    "--block_size=16",
    `--data_dir=${await dataset()}`,
    "--max_iters=4",
    "--eval_interval=2",
  ];
  const printed = await bench(
    "curve",
    "--muon_rates=1e-3,1e-2",
    "--adamw_rates=1e-3",
    "--muon_seeds=1,2",
    ...flags,
    "--device=cpu",
    "--threads=1",
    `--json=${json}`,
  );
  assertMatch(
    printed,
    /^learning_rate +seed +adamw +muon\n +0\.001 +1( +[\d.]+){2}\n.*\n +0\.01 +1 +- +[\d.]+\n.*\nMuon's .* (\d+|none), (\d+|none) of 4 steps$/m,
  );
  const { eval_interval, runs, best } = JSON.parse(Deno.readTextFileSync(json));
  assertEquals([eval_interval, runs.length, best.adamw], [2, 6, 0.001]);
  const [first, other] = [2, 3].map((i) => runs[i]); // Muon's at its first rate
  assertEquals([first.optimizer, first.seed, other.seed, first.val_losses.length], ["muon", 1, 2, 2]);
  assert(first.val_losses[1] !== other.val_losses[1]);
});

Deno.test({
  name: "curve.ts: train.ts and PyTorch lose alike from equal weights and batches (LOAM_PYTHON)",
  ignore: !PYTHON,
  fn: async () => {
    const json = freshPath(), data = await dataset();
    const model = [
      "--n_layer=2",
      "--n_embd=32",
      "--n_head=4",
      "--n_kv_head=2",
      "--n_inner=48",
      "--block_size=16",
    ];
    const steps = ["--max_iters=20", "--warmup_iters=5", "--batch_size=4", "--gradient_accumulation_steps=2"];
    const flags = ["--preset=tiny", "--device=cpu", `--data_dir=${data}`, `--json=${json}`, "--threads=2"];
    await bench("curve", ...flags, ...model, ...steps);
    const curve: Curve = JSON.parse(Deno.readTextFileSync(json));
    assertEquals(curve.loam.length, 20);
    assertLess(curve.max_relative, 1e-5);
    assertLess(curve.max_grad_norm_relative, 1e-3);
  },
});
