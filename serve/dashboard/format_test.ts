import { assertEquals } from "@std/assert";
import * as format from "./format.js";

Deno.test("numbers are written as people read them, and a dash where there is none", () => {
  assertEquals([1234567, null, NaN].map(format.integer), ["1,234,567", "–", "–"]);
  assertEquals([3.14159, 1234.5, undefined].map(format.loss), ["3.1416", "1234.5", "–"]);
  assertEquals([0, 0.5, 12.345, 3e-4, 12345].map(format.significant), ["0", "0.5", "12.3", "3e-4", "12,345"]);
  assertEquals([950, 12_345, 4.56e6, 1.2e9].map(format.compact), ["950", "12.3k", "4.56M", "1.2B"]);
  assertEquals([0.3821, 1.7, null].map(format.percent), ["38.2%", "170%", "–"]);
  assertEquals([0, 12e3, 340e6, 1.2e9].map(format.bytes), ["0", "12 kB", "340 MB", "1.20 GB"]);
});

Deno.test("durations are as exact as one wants to know", () => {
  const of = (...seconds: number[]) => seconds.map(format.duration);
  assertEquals(of(0, 1.25, 12.3, 59.9), ["0 s", "1.3 s", "12 s", "1 min"]);
  assertEquals(of(310, 1530, 7200, 8075), ["5 min 10 s", "25 min", "2 h", "2 h 14 min"]);
  assertEquals(of(86_400, 100_000, -1, NaN), ["1 d", "1 d 3 h", "–", "–"]);
  assertEquals([0.83, 412.3, 1250, 14_210].map(format.stepTime), ["0.83 ms", "412 ms", "1.25 s", "14.2 s"]);
});

Deno.test("clock() names the day where it is not today", () => {
  const now = new Date("2026-03-04T12:00:00");
  assertEquals(format.clock(new Date("2026-03-04T14:32:00"), now), "14:32");
  assertEquals(format.clock(new Date("2026-03-06T08:05:00"), now), "Fri 08:05");
  assertEquals(format.clock(new Date("2026-04-12T08:05:00"), now), "12 Apr 08:05");
});

Deno.test("isCode() tells a program from prose and verse", () => {
  assertEquals(format.isCode("function f(x) {\n  return x;\n}\n"), true);
  assertEquals(format.isCode("def f(x):\n    return x + 1\n\nprint(f(1))"), true);
  assertEquals(format.isCode("And God said, Let there be light:\nand there was light."), false);
  assertEquals(
    format.isCode("First Citizen:\nBefore we proceed any further, hear me speak;\n\nAll:\nSpeak, speak."),
    false,
  );
  assertEquals(format.isCode(""), false);
});

Deno.test("inShort() names device and model without the path of a library", () => {
  const cpu =
    "cpu (as asked): AMD EPYC, 2 threads, avx512, GEMM: onednn /usr/lib/x86_64-linux-gnu/libdnnl.so.2.6";
  const model = "0.83M parameters, 0.79M without embeddings";
  assertEquals(format.inShort(cpu, model), "cpu: AMD EPYC, 2 threads, avx512 · 0.83M parameters");
  const gpu = "cuda (a GPU answers): NVIDIA H100 80GB HBM3 (PCIe), attention: hopper";
  assertEquals(format.inShort(gpu, null), "cuda: NVIDIA H100 80GB HBM3 (PCIe)");
  assertEquals(format.inShort(null, null), "");
});
