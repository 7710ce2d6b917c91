// The check of a GPU's kernels at start, on the emulator: it passes as they are, and names each that is wrong.
import { assertEquals, assertStringIncludes } from "@std/assert";
import { libraryExists, open, openCpuBeside, s, type Symbols } from "../ffi/library.ts";
import { symbols } from "../ffi/symbols.ts";
import { wrongKernels } from "./self_check.ts";

const both = { ignore: !(libraryExists("emu") && libraryExists("cpu")), sanitizeResources: false }; // they stay loaded

/** The emulator's functions with some replaced. */
function planted(faults: Partial<Symbols>): Symbols {
  open("emu");
  return { ...s, ...faults };
}

Deno.test("wrongKernels() finds nothing in the kernels as they are", both, () => {
  assertEquals(wrongKernels(planted({}), openCpuBeside()!), []);
});

Deno.test("wrongKernels() names every kernel of a step that does nothing", both, () => {
  const names = Object.keys(symbols),
    other = ["attention_cached", "gemm_choices", "gemm_choose", "sample", "logprobs"];
  const kernels = ["init_normal", ...names.slice(names.indexOf("embedding_forward"))]
    .filter((name) => !other.includes(name) && !name.endsWith("_async"));
  const wrong = wrongKernels(
    planted(Object.fromEntries(kernels.map((name) => [name, () => 0]))),
    openCpuBeside()!,
  );
  assertEquals(kernels.filter((name) => !wrong.some((text) => text.includes(name))), []);
});

const TELLS =
  "wrongKernels() tells results that change, are wrong or missing, and ends at a kernel that does not run";

Deno.test(TELLS, both, () => {
  const gpu = planted({}); // of the functions, the emulator's own
  let calls = 0;
  const faults: Partial<Symbols> = {
    rmsnorm_forward: (out, rstd, x, weight, N, C, group, stride, eps) =>
      gpu.rmsnorm_forward(out, rstd, x, weight, N, C, group, stride, calls++ === 1 ? 100 * eps : eps),
    rmsnorm_backward: (dx, dweight, _, ...rest) => gpu.rmsnorm_backward(dx, dweight, 0n, ...rest),
    rope: (qkv, table, starts, B, T, pos, H, K, D) => gpu.rope(qkv, table, starts, B, T, pos, H, K, D, 0), // never back
    linear_forward: (out, x, weight, _, N, IN) => gpu.linear_forward(out, x, weight, 0n, N, IN, 0),
  };
  const [changing, missing, wrong, ends, ...more] = wrongKernels({ ...gpu, ...faults }, openCpuBeside()!);
  assertEquals(changing, "rmsnorm_forward gives other bits when it runs again");
  assertEquals(missing, "rmsnorm_backward writes what is not finite, or nothing");
  assertStringIncludes(wrong!, "rope differs from the CPU's by ");
  assertStringIncludes(ends!, "linear_forward does not run: linear_forward: OUT must be at least 1");
  assertEquals(more, []);
});
