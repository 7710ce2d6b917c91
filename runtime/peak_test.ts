import { assert, assertEquals, assertMatch } from "@std/assert";
import process from "node:process";
import { device, open } from "../ffi/library.ts";
import { linear } from "./ops.ts";
import { GPU_PEAKS, type Peak, peakFlops, peakOfGpu, utilization } from "./peak.ts";
import { endStep, noGrad } from "./tape.ts";
import { tensor } from "./tensor.ts";

open("cpu");

// What NVIDIA's data sheets and white papers say of bfloat16 with float32 sums: dense FLOP/s, FLOP/s with sparsity, and for
// some cards what makes them: multiprocessors, FLOPs of each in a clock, boost clock in MHz.
const CARDS: [
  name: string,
  dense: number,
  sparse: number,
  multiprocessors?: number,
  per_clock?: number,
  mhz?: number,
][] = [
  ["NVIDIA H100 80GB HBM3", 989.4e12, 1979e12],
  ["NVIDIA H100 PCIe", 756e12, 1513e12],
  ["NVIDIA H100 NVL", 835.5e12, 1671e12],
  ["NVIDIA H200", 989.4e12, 1979e12],
  ["NVIDIA H200 NVL", 835.5e12, 1671e12],
  ["NVIDIA GH200 480GB", 989.4e12, 1979e12],
  ["NVIDIA B200", 2250e12, 4500e12],
  ["NVIDIA GB200", 2500e12, 5000e12],
  ["NVIDIA A100-SXM4-80GB", 312e12, 624e12, 108, 2048, 1410],
  ["NVIDIA A100 80GB PCIe", 312e12, 624e12, 108, 2048, 1410],
  ["NVIDIA L40S", 362e12, 733e12],
  ["NVIDIA GeForce RTX 5090", 209.5e12, 419e12, 170, 512, 2407],
  ["NVIDIA GeForce RTX 4090", 165.2e12, 330.4e12, 128, 512, 2520],
  ["NVIDIA GeForce RTX 3090", 71e12, 142e12, 82, 512, 1695],
  ["NVIDIA GeForce RTX 3090 Ti", 80e12, 160e12, 84, 512, 1860],
];

Deno.test("the peak of each card is the published dense one: half of the sparse, multiprocessors times clock", () => {
  for (const [name, dense, sparse, multiprocessors, per_clock, mhz] of CARDS) {
    assertEquals(peakOfGpu(name)?.[1], dense, name);
    const computed = multiprocessors ? multiprocessors * per_clock! * mhz! * 1e6 : dense;
    for (const other of [sparse / 2, computed]) {
      assert(Math.abs(other / dense - 1) < 0.013, `${name}: ${other}`);
    }
  }
  assertEquals(new Set(CARDS.map(([name]) => peakOfGpu(name))).size, GPU_PEAKS.length); // each entry is tested
});

Deno.test("cards that only share a name with one of a known peak have none", () => {
  const others = [
    ...[
      "NVIDIA GeForce RTX 5090 D",
      "NVIDIA GeForce RTX 5090 Laptop GPU",
      "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
    ...[
      "NVIDIA A10",
      "NVIDIA A100X",
      "NVIDIA H1000",
      "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
      "GRID A100-10C",
      "Tesla T4",
    ],
  ];
  for (const name of others) assertEquals(peakOfGpu(name), undefined, name);
});

/** FLOP/s of products, in processor time, which other programs do not lengthen: of many, as it is counted in ticks. */
function rateOfProducts(n = 1024, runs = 16): number {
  const ones = new Float32Array(n * n).fill(1), a = tensor([n, n], ones), b = tensor([n, n], ones);
  noGrad(() => linear(a, b));
  const before = process.cpuUsage();
  for (let run = 0; run < runs; run++) noGrad(() => linear(a, b));
  const { user, system } = process.cpuUsage(before);
  endStep();
  return 2 * n ** 3 * runs / ((user + system) / 1e6 / device.threads!);
}

Deno.test("no product is faster than the measured peak, of one thread or two, in float32 or bfloat16", () => {
  for (const [threads, blas] of [[1, "builtin"], [1, ""], [2, ""]] as const) {
    for (const bf16_gemm of [false, true]) {
      try {
        open("cpu", { threads, blas, bf16_gemm });
      } catch {
        continue; // no BLAS here multiplies bfloat16
      }
      const peak = peakFlops()!, product = rateOfProducts();
      assert(product <= 1.05 * peak.flops, `${product} of ${peak.flops} (${device.blas}, ${peak.how})`);
      const how = new RegExp(
        `^(float32|bfloat16) [\\w -]+( \\([\\w -]+\\))? in the registers of ${threads} threads?$`,
      );
      assertMatch(peak.how, how);
      if (!bf16_gemm) assertMatch(peak.how, /^float32/);
    }
  }
});

Deno.test("utilization() is a share of the peak; a measured one rises to what was reached", () => {
  const published: Peak = { flops: 100, how: "", measured: false },
    measured: Peak = { ...published, measured: true };
  assertEquals([utilization(undefined, 1), utilization(published, 40), utilization(published, 150)], [
    null,
    0.4,
    1.5,
  ]);
  assertEquals([utilization(measured, 40), utilization(measured, 200), utilization(measured, 50)], [
    0.4,
    1,
    0.25,
  ]);
});
