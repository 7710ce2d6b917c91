// Reads the machine code that `cuobjdump -sass -res-usage` lists, and counts what each loop of a kernel asks of an SM's units.
import { UserError } from "../base/errors.ts";
import { kernelName } from "../tools/ptxas.ts";

/** What one warp asks for when it runs a piece of code once. */
export type Use = {
  instructions: number;
  alu: number; // of these: integers, comparisons, choices, conversions, which take two clocks of a warp's scheduler
  mufu: number; // exponentials, reciprocals and roots: eight clocks
  tensor_flops: number; // of mma.sync
  wgmma_flops: number; // a warp's quarter of its warpgroup's
  shared: number; // clocks of shared memory's 128 bytes a clock; two lanes that read one word are not known
};

/** A loop without the loops inside of it. opcodes: how often each instruction stands there. */
export type Loop = { from: number; to: number; use: Use; opcodes: Record<string, number> };

/** One kernel. body: the code that is in no loop, up to the end of a thread. */
export type KernelCode = { kernel: string; registers: number; shared: number; loops: Loop[]; body: Use };

type Instruction = { at: number; opcode: string; text: string; guarded: boolean; target: number | null };

/** The kernels of a listing and their architecture, "90a". Throws UserError if it is no such listing. */
export function parseSass(listing: string): { arch: string; kernels: KernelCode[] } {
  const arch = /^(?:arch =|\s*code for) sm_(\w+)/m.exec(listing)?.[1]; // 12.8 has code for sm_90 below arch = sm_90a
  const usage = new Map(
    Array.from(
      listing.matchAll(/^ Function (\w+):\s+REG:(\d+).*? SHARED:(\d+)/gm),
      ([, symbol, registers, shared]) => [symbol!, { registers: Number(registers), shared: Number(shared) }],
    ),
  );
  const parts = listing.split(/^\s*Function : /m).slice(1);
  if (!arch || parts.length === 0 || usage.size === 0) {
    throw new UserError("Cannot read the listing: it should be what `cuobjdump -sass -res-usage` prints");
  }
  const kernels = parts.map((part) => {
    const symbol = /^\w+/.exec(part)![0], code = instructionsOf(part);
    return {
      kernel: kernelName(symbol),
      ...usage.get(symbol) ?? { registers: 0, shared: 0 },
      ...split(code),
    };
  });
  return { arch, kernels };
}

/** Its address and words, without what some versions of cuobjdump add for sm_120: `&wr=0x2 ?trans4`. */
const INSTRUCTION = /^\s+\/\*([0-9a-f]{4,})\*\/\s+([^;]*?)(?:\s+[&?][^;]*)?;/gm;

function instructionsOf(text: string): Instruction[] {
  return Array.from(text.matchAll(INSTRUCTION), ([, at, words]) => {
    const [, guard, opcode, rest] = /^(@\S+ )?(\S+)(.*)$/.exec(words!.trim())!;
    const target = opcode!.startsWith("BRA") ? /0x([0-9a-f]+)$/.exec(rest!.trim())?.[1] : undefined;
    return {
      at: parseInt(at!, 16),
      opcode: opcode!,
      text: rest!,
      guarded: guard !== undefined || /^ !?U?P\d/.test(rest!) && opcode!.startsWith("BRA"),
      target: target === undefined ? null : parseInt(target, 16),
    };
  });
}

// ---- loops

type Range = { from: number; to: number };

const contains = (outer: Range, inner: Range) => outer.from <= inner.from && inner.to <= outer.to;

/**
 * A loop ends where an instruction jumps back to its begin. Code that waits stands behind the kernel's end and jumps back,
 * too, into the middle of a loop: that is none.
 */
function loopRanges(code: Instruction[]): Range[] {
  const ends = code.filter(({ opcode, guarded }) => opcode === "EXIT" && !guarded);
  return code.filter(({ at, target }) => target !== null && target < at)
    .map(({ at, target }) => ({ from: target!, to: at }))
    .filter(({ from, to }) => !ends.some(({ at }) => from <= at && at <= to));
}

function split(code: Instruction[]): Pick<KernelCode, "loops" | "body"> {
  const ranges = loopRanges(code), end = code.find((i) => i.opcode === "EXIT" && !i.guarded)?.at ?? Infinity;
  const inRange = ({ at }: Instruction, { from, to }: Range) => from <= at && at <= to;
  const loops = ranges.map((range) => {
    const nested = ranges.filter((other) => other !== range && contains(range, other));
    const own = code.filter((i) => inRange(i, range) && !nested.some((other) => inRange(i, other)));
    return { ...range, ...count(withoutDiagonal(own)) };
  });
  const body = code.filter((i) => i.at <= end && !ranges.some((range) => inRange(i, range)));
  return { loops, body: count(body).use };
}

/**
 * A tile that the diagonal passes through is masked; others jump over that. Masking is code that chooses and neither
 * multiplies, loads, nor waits.
 */
function withoutDiagonal(code: Instruction[]): Instruction[] {
  const last = code.at(-1)!.at;
  for (const { at, guarded, target } of code) {
    if (!guarded || target === null || target <= at || target > last) continue;
    const skipped = code.filter((i) => i.at > at && i.at < target);
    const choices = skipped.filter(({ opcode }) => /^(FSEL|SEL|@?MOV)\b/.test(opcode)).length;
    const works = skipped.some(({ opcode }) => /^(HMMA|HGMMA|MUFU|LDG|SYNCS|LDS|STG|BAR)/.test(opcode));
    if (choices >= 8 && !works) return code.filter((i) => !skipped.includes(i));
  }
  return code;
}

// ---- units

const ALU =
  /^(FMNMX3?|FSEL|FSETP?|ISETP|IADD3?|LOP3|LEA|SHF|SEL|PRMT|F2FP|IABS|IMNMX|VIADD(MNMX)?|VIMNMX|I2FP|PLOP3|POPC|MOV)\b/;

/** m n k of a product's name: HMMA.16816 multiplies (16, 16) by (16, 8), HGMMA.64x128x16 (64, 16) by (16, 128). */
function productFlops(opcode: string): number {
  const [, m, n, k] = /^HMMA\.(16)(8)(16|8)\./.exec(opcode) ?? /^HGMMA\.(\d+)x(\d+)x(\d+)/.exec(opcode) ?? [];
  if (!m) throw new Error(`internal: cannot read the sizes of ${opcode}`);
  return 2 * Number(m) * Number(n) * Number(k);
}

/** Clocks of shared memory for one warp. A product of a warpgroup reads its operands once for four warps. */
function sharedClocks({ opcode, text }: Instruction): number {
  if (opcode.startsWith("LDSM")) return Number(/\.M?T?88\.(\d)/.exec(opcode)?.[1] ?? 1);
  if (/^(LDS|STS|LDGSTS)\b/.test(opcode)) return / RZ, \[RZ\]/.test(text) ? 0 : width(opcode) / 32;
  if (opcode.startsWith("SHFL")) return 1;
  if (!opcode.startsWith("HGMMA")) return 0;
  const [, m, n, k] = /^HGMMA\.(\d+)x(\d+)x(\d+)/.exec(opcode)!.map(Number);
  const own = /^\s*R\d+, gdesc/.test(text) ? m! * k! : 0; // its rows too, where no register holds them
  return 2 * (n! * k! + own) / 128 / 4;
}

function width(opcode: string): number {
  return Number(/\.(64|128)\b/.exec(opcode)?.[1] ?? 32);
}

function count(code: Instruction[]): Pick<Loop, "use" | "opcodes"> {
  const use: Use = { instructions: 0, alu: 0, mufu: 0, tensor_flops: 0, wgmma_flops: 0, shared: 0 };
  const opcodes: Record<string, number> = {};
  for (const instruction of code) {
    const { opcode } = instruction, name = opcode.split(".")[0]!;
    const wide = /^(LDG|STG|LD|ST|LDS|STS)$/.test(name) ? `${name}.${width(opcode)}` : name;
    opcodes[wide] = (opcodes[wide] ?? 0) + 1;
    use.instructions++;
    use.alu += ALU.test(opcode) ? 1 : 0;
    use.mufu += name === "MUFU" ? 1 : 0;
    use.tensor_flops += name === "HMMA" ? productFlops(opcode) : 0;
    use.wgmma_flops += name === "HGMMA" ? productFlops(opcode) / 4 : 0;
    use.shared += sharedClocks(instruction);
  }
  return { use, opcodes };
}
