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
  const names = Object.keys(symbols), other = ["attention_cached", "sample", "logprobs"];
  const kernels = ["init_normal", ...names.slice(names.indexOf("embedding_forward"))]
    .filter((name) => !other.includes(name) && !name.endsWith("_async"));
  const wrong = wrongKernels(
    planted(Object.fromEntries(kernels.map((name) => [name, () => 0]))),
    openCpuBeside()!,
  );
  assertEquals(kernels.filter((name) => !wrong.some((text) => text.includes(name))), []);
});

Deno.test(
  "wrongKernels() tells results that change from wrong ones, and ends at a kernel that does not run",
  both,
  () => {
    let calls = 0;
    const rmsnorm_forward: Symbols["rmsnorm_forward"] = (out, rstd, x, weight, N, C, group, stride, eps) =>
      s.rmsnorm_forward(out, rstd, x, weight, N, C, group, stride, calls++ === 1 ? 100 * eps : eps);
    const rope: Symbols["rope"] = (qkv, table, B, T, pos, H, K, D) =>
      s.rope(qkv, table, B, T, pos, H, K, D, 0); // never back
    const linear_forward: Symbols["linear_forward"] = (out, x, weight, _, N, IN) =>
      s.linear_forward(out, x, weight, 0n, N, IN, 0);
    const wrong = wrongKernels(planted({ rmsnorm_forward, rope, linear_forward }), openCpuBeside()!);
    assertEquals(wrong.length, 3, wrong.join("\n"));
    assertEquals(wrong[0], "rmsnorm_forward gives other bits when it runs again");
    assertStringIncludes(wrong[1]!, "rope differs from the CPU's by ");
    assertStringIncludes(wrong[2]!, "linear_forward does not run: linear_forward: OUT must be at least 1");
  },
);
