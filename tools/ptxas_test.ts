// What ptxas says about kernels.cu: no kernel may keep registers in slow local memory.
import { assert, assertEquals } from "@std/assert";
import { type KernelUse, parsePtxas, ptxasTable } from "./ptxas.ts";

const SAMPLE = `nvcc kernels.cu
ptxas info    : 24 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_Z19attention_dq_kernelILi128EEvP13__nv_bfloat16Pf' for 'sm_90a'
ptxas info    : Function properties for _Z19attention_dq_kernelILi128EEvP13__nv_bfloat16Pf
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 252 registers, used 1 barriers, 408 bytes cmem[0]
ptxas info    : Compiling entry function '_Z14convert_kernelI13__nv_bfloat16fEvPT_PKT0_m' for 'sm_80'
ptxas info    : Function properties for _Z14convert_kernelI13__nv_bfloat16fEvPT_PKT0_m
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Compiling entry function '_ZN6hopper9dq_kernelILi64EEEvP13__nv_bfloat16Pf' for 'sm_90a'
ptxas info    : Function properties for _ZN6hopper9dq_kernelILi64EEEvP13__nv_bfloat16Pf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
`;

Deno.test("parsePtxas() reads kernel, architecture, registers and spills", () => {
  const expected: KernelUse[] = [
    { kernel: "attention_dq_kernel<128>", arch: "90a", registers: 252, spill_bytes: 16 },
    { kernel: "convert_kernel<act>", arch: "80", registers: 10, spill_bytes: 0 },
    { kernel: "hopper::dq_kernel<64>", arch: "90a", registers: 168, spill_bytes: 0 },
  ];
  assertEquals(parsePtxas(SAMPLE), expected);
  assertEquals(
    ptxasTable(expected),
    "registers (+ spilled bytes)    sm_80   sm_90a\n" +
      "attention_dq_kernel<128>              252+16B\n" +
      "convert_kernel<act>               10         \n" +
      "hopper::dq_kernel<64>                     168",
  );
  assertEquals(wgmmaRemarks(SAMPLE).length, 1);
});

/** What ptxas says of products by wgmma that it cannot leave running, and of setmaxnreg that it ignores. */
function wgmmaRemarks(report: string): string[] {
  return report.split("\n").filter((line) => /\(C75\d\d\)/.test(line));
}

/** The report of the last build, or "" where the CUDA library was not built or for other architectures. */
function lastReport(): string {
  try {
    const report = Deno.readTextFileSync(new URL("../build/ptxas.txt", import.meta.url)),
      uses = parsePtxas(report);
    return ["80", "90a", "120"].every((arch) => uses.some((use) => use.arch === arch)) ? report : "";
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  }
}

const report = lastReport(), uses = parsePtxas(report);

Deno.test({
  name: "no CUDA kernel spills a register on any architecture",
  ignore: uses.length === 0,
  fn() {
    const kernels = new Set(uses.map(({ kernel }) => kernel));
    assert(
      kernels.size > 30 && uses.length >= 3 * kernels.size,
      `${kernels.size} kernels, ${uses.length} uses`,
    );
    const over = uses.filter(({ spill_bytes }) => spill_bytes > 0);
    assertEquals(over, [], ptxasTable(over));
  },
});

Deno.test({
  name:
    "Hopper's attention begins with the registers that setmaxnreg shares out, and its products run beside it",
  ignore: uses.length === 0,
  fn() {
    const registers = (kernel: string) =>
      uses.find((use) => use.kernel === kernel && use.arch === "90a")?.registers;
    // 65,536 / (4 warpgroups of 128) for three that compute and one that loads, 65,536 / (3 of 128) for two and one
    const planned = { forward_kernel: [128, 168], dq_kernel: [168, 168], dkv_kernel: [168, 168] };
    for (const [kernel, [d64, d128]] of Object.entries(planned)) {
      assertEquals(registers(`hopper::${kernel}<64>`), d64, kernel);
      assertEquals(registers(`hopper::${kernel}<128>`), d128, kernel);
    }
    assertEquals(wgmmaRemarks(report), []);
  },
});
