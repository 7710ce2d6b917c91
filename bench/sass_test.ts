// Reading a listing of machine code: loops, what they ask of each unit, and what is no loop though it jumps back.
import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { parseSass } from "./sass.ts";

/** Lines as cuobjdump prints them, 16 bytes apart. */
function code(...lines: string[]): string {
  return lines.map((line, i) =>
    `        /*${(16 * i).toString(16).padStart(4, "0")}*/   ${line} ;   /* 0x00 */\n` + "    /* 0x01 */\n"
  ).join("");
}

const NAME = "_Z24attention_forward_kernelILi64EEvP13__nv_bfloat16PfPKS0_iiif";
const MASK = Array<string>(8).fill("FSEL R4, R4, -INF , P1");

/** A loop from 0x10 to 0x140; its mask is jumped over off the diagonal; code that waits stands behind the end. */
const LISTING = `
Resource usage:
 Common:
  GLOBAL:0
 Function ${NAME}:
  REG:168 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:912 TEXTURE:0 SURFACE:0 SAMPLER:0

	code for sm_90a
		Function : ${NAME}
	.headerflags	@"EF_CUDA_SM90"
${
  code(
    "LDC R1, c[0x0][0x28]", // 0
    "LDSM.16.M88.4 R148, [R148]", // 10: four clocks
    "LDS.64 R18, [R224+0x8000]", // 20: two
    "@!PT LDS RZ, [RZ]", // 30: reads nothing
    "HMMA.16816.F32.BF16 R24, R4, R8, R24", // 40: 16 x 8 x 16 products
    "MUFU.EX2 R4, R4", // 50
    "@!P0 BRA 0xf0", // 60
    ...MASK, // 70 to e0
    "@P1 BRA 0x190", // f0: waits there
    "F2FP.BF16.F32.PACK_AB R4, R5, R6", // 100
    "SHFL.BFLY PT, R4, R5, 0x1, 0x1f", // 110
    "FFMA R4, R5, R6, R7", // 120
    "LDGSTS.E.BYPASS.128 [R129], desc[UR6][R16.64], !P0", // 130: four
    "@!P0 BRA 0x10", // 140
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR20], RZ, !UPT", // 150
    "HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR4].tnspB, R88", // 160
    "@P0 EXIT", // 170
    "EXIT", // 180
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR25+0x20], R3", // 190
    "@P0 BRA 0x100", // 1a0: back into the middle of the loop
    "BRA 0x1b0", // 1b0
    "NOP", // 1c0
  )
}
`;

Deno.test("parseSass() counts a loop by hand: its units, without the mask of the diagonal", () => {
  const { arch, kernels: [kernel] } = parseSass(LISTING);
  assertEquals(arch, "90a");
  const { loops, body, ...rest } = kernel!;
  assertEquals(rest, { kernel: "attention_forward_kernel<64>", registers: 168, shared: 1024 });
  const inner = loops.filter(({ from, to }) => to > from);
  assertEquals(inner.map(({ from, to }) => [from, to]), [[0x10, 0x140]]);
  assertEquals(inner[0]!.use, {
    instructions: 12, // 20, of which 8 mask
    alu: 1, // F2FP
    mufu: 1,
    tensor_flops: 4096,
    wgmma_flops: 0,
    shared: 4 + 2 + 0 + 1 + 4,
  });
  assertEquals([inner[0]!.opcodes["LDS.64"], inner[0]!.opcodes.HMMA], [1, 1]);
  // Of a warpgroup 2 * 64 * 128 * 16 and half of that; B (16, 128) and A (64, 16) of 2 bytes, then B (16, 64).
  assertEquals(body, {
    instructions: 5,
    alu: 0,
    mufu: 0,
    tensor_flops: 0,
    wgmma_flops: (262144 + 131072) / 4,
    shared: (2 * (2048 + 1024) + 2 * 1024) / 128 / 4,
  });
});

Deno.test("parseSass() reads what cuobjdump 12.8 prints: waiting behind each instruction, and sm_90 for sm_90a", () => {
  const waits = (line: string, i: number) =>
    `${line}   ${i % 2 ? "&req={1} &wr=0x3   " : ""}?trans${i % 11};`;
  const lines = LISTING.split("\n"),
    told = lines.map((line, i) =>
      line.includes(" ;") ? line.replace(/^([^;]*?) ;/, (_, code) => waits(code, i)) : line
    );
  const listing = `arch = sm_90a\n${told.join("\n").replace("code for sm_90a", "code for sm_90")}`;
  assertEquals(parseSass(listing), parseSass(LISTING));
});

Deno.test("parseSass() refuses what is no listing", () => {
  assertThrows(() => parseSass("cuobjdump fatal"), UserError, "Cannot read the listing: it should be what");
});
