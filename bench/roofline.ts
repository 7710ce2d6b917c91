// What each kernel of a step should take on cards that are not at hand: predicted from the machine code of the built library,
// measured on no card. A first run on one confirms or refutes it line by line (gpu_report.ts puts both side by side).
//
//   deno run -q -P=bench bench/roofline.ts                       takes build/libloam_cuda.so apart with cuobjdump
//   deno run -q -P=bench bench/roofline.ts --listing=a.sass,b.sass   reads what cuobjdump -sass -res-usage -arch sm_... printed
//
// cuobjdump is part of CUDA, and of Triton's wheel: pip install triton, then
// --cuobjdump=.../site-packages/triton/backends/nvidia/bin/cuobjdump.
//
// How. The instructions of each loop say how many clocks it keeps each unit of an SM busy: schedulers, integer units,
// exponentials, tensor cores, shared memory; memory is busy with the bytes. together() makes one time of these. A warp waits
// LATENCY_MS for memory at each trip of a loop, and attention's blocks are dealt out to SMs one by one, FIXED_CLOCKS to begin
// and end each. Matrix products are cuBLASLt's: a stated rate, times the share of SMs that their tiles fill. What it leaves
// out: the L2 cache, clocks that fall under load below what is stated, and the host.
import { runMain, UserError } from "../base/errors.ts";
import { help, readFlags } from "../base/flags.ts";
import { table } from "../base/format.ts";
import { answer } from "../base/programs.ts";
import { measureModel } from "../model/plan.ts";
import { allCases, type Case, type Sizes, weightCount } from "./cases.ts";
import { reportHead, saveReport } from "./report.ts";
import { type KernelCode, type Loop, parseSass, type Use } from "./sass.ts";
import { modelOf, SHAPES } from "./shapes.ts";

const defaults = {
  listing: "", // files that cuobjdump -sass -res-usage wrote, with commas; "" = it runs now
  cuobjdump: "cuobjdump", // the program
  card: "", // print every kernel on this one
  json: "", // where the results go; "" = bench/results/predicted-DATE.json
};

// ---- cards

/** Limits of a card: NVIDIA's published ones, but for the rates that it reaches. */
export type Card = {
  name: string; // begins what the driver calls it
  arch: string; // of the code that runs on it
  sms: number;
  ghz: number; // while it multiplies
  peak: number; // TFLOP/s of dense bfloat16 with float sums, which MFU is counted against
  tflops: number; // that a large matrix product reaches
  tb_per_sec: number; // that a large copy reaches
  mma: number; // FLOPs a clock of an SM, by mma.sync
  wgmma: number; // and by wgmma; 0: it has none
  warps: number; // resident in an SM at most
  blocks: number;
  shared: number; // bytes of an SM
  tiles: [m: number, n: number, rate: number][]; // of matrix products, and the share of tflops that each reaches
  from: string;
};

const HOPPER = {
  arch: "90a",
  sms: 132,
  ghz: 1.755,
  peak: 989.4,
  mma: 2540, // 62% of wgmma's, as published tests of the instruction have it
  wgmma: 4096,
  warps: 64,
  blocks: 32,
  shared: 228 * 1024,
  tiles: [[256, 128, 1], [128, 128, 0.85]] as Card["tiles"],
};
const GEFORCE = {
  mma: 512,
  wgmma: 0,
  warps: 48,
  blocks: 24,
  shared: 100 * 1024,
  tiles: [[128, 128, 1], [128, 64, 0.9]] as Card["tiles"],
};

export const CARDS: Card[] = [
  { name: "H100", ...HOPPER, tflops: 798, tb_per_sec: 3.0, from: "8192^3 product and large copy, measured" },
  { name: "H200", ...HOPPER, tflops: 790, tb_per_sec: 4.3, from: "8192^3 product and large copy, measured" },
  {
    ...GEFORCE,
    ...{ name: "RTX 4090", arch: "89", sms: 128, ghz: 2.52, peak: 165.2, tflops: 155, tb_per_sec: 0.91 },
    from: "94% of NVIDIA's peak, 90% of 1.01 TB/s: assumed",
  },
  {
    ...GEFORCE,
    ...{ name: "RTX 5090", arch: "120", sms: 170, ghz: 2.407, peak: 209.5, tflops: 195, tb_per_sec: 1.6 },
    from: "93% of NVIDIA's peak (at 400 W 170 TFLOP/s were published), 90% of 1.79 TB/s: assumed",
  },
];

const REGISTERS = 65536; // of an SM, on all of them
const LATENCY_MS = 0.6e-3; // from asking memory to having it
const LAUNCH_MS = 1.5e-3; // from the end of a kernel to the start of the next one in its stream
const FIXED_CLOCKS = 5000; // of a block of attention, outside of its loop
const ACCUMULATION = 32; // micro-steps of a step: train.ts's gradient_accumulation_steps at B = 4

/** Blocks of a kernel that are in an SM at the same time. Registers come in 256 a warp, warps and registers in quarters of an SM. */
export function residentBlocks(
  card: Pick<Card, "warps" | "blocks" | "shared">,
  { warps, registers, shared }: { warps: number; registers: number; shared: number },
): number {
  const each = Math.ceil(32 * registers / 256) * 256;
  const byRegisters = registers ? Math.floor(4 * Math.floor(REGISTERS / 4 / each) / warps) : Infinity;
  const byShared = shared ? Math.floor(card.shared / (Math.ceil(shared / 128) * 128)) : Infinity;
  return Math.min(card.blocks, Math.floor(card.warps / warps), byRegisters, byShared);
}

/** Clocks of an SM that so many warps keep each of its units busy with. */
export function unitClocks(use: Use, warps: number, { mma, wgmma }: Pick<Card, "mma" | "wgmma">): Units {
  const products = use.tensor_flops / mma + (use.wgmma_flops ? use.wgmma_flops / wgmma : 0);
  return {
    issue: warps * use.instructions / 4, // four schedulers, a clock each
    integer: warps * 2 * use.alu / 4,
    exponentials: warps * 8 * use.mufu / 4,
    tensor: warps * products,
    shared: warps * use.shared,
  };
}
type Units = Record<"issue" | "integer" | "exponentials" | "tensor" | "shared", number>;

const OVERLAP = 1.8; // 1: units take turns; without end: the busiest one alone counts

/** What units take that are busy side by side, but not always: of one alone its time, of two equal ones 1.47 times that. */
function together(parts: number[]): number {
  return parts.reduce((sum, part) => sum + part ** OVERLAP, 0) ** (1 / OVERLAP);
}

// ---- what an op launches

/** A loop that a warp of a kernel goes through: `items` times a pass that holds `has` `per` times; unrolled it holds it more often. */
type Pass = { has: string; lacks?: string; per: number; items: number };

/** A kernel whose warps all do the same. bytes: what it moves, where that is not all that the op does. */
type Even = {
  kernel: string;
  warps: number;
  block: number;
  shared?: number;
  passes?: Pass[];
  bytes?: number;
};

/** A kernel of attention: blocks of `warps` that multiply and `idle` ones that load, kind after kind. */
type Tiled = { kernel: string; warps: number; idle: number; shared: number; kinds: Kind[] };

/** Blocks of `rows`; tiles of `keys` stream by, each multiplied `products` times. */
type Kind = { products: number; rows: number; keys: number; blocks: number[] }; // blocks: tiles of each, in order

type Attention = "hopper" | "portable";

/** Kernels of the ops of a step, but for matrix products. */
function launches(s: Sizes, card: Card, attention: Attention): Record<string, (Even | Tiled)[]> {
  const { B, T, n_embd: C, n_inner: F, n_head: H, n_kv_head: K, V } = s, N = B * T, D = C / H;
  const n = Math.min(N, s.head_chunk), weights = weightCount(s);
  const even = (kernel: string, warps: number, passes: Pass[] = [], block = 8, shared = 0): Even => ({
    ...{ kernel, warps: Math.ceil(warps), block, passes, shared },
  });
  const reads = (per: number, items: number): Pass => ({ has: "LDG.128", lacks: "STG.128", per, items });
  const writes = (per: number, items: number): Pass => ({ has: "STG.128", per, items });
  const rowBlocks = 2 * card.sms,
    sumRows = even("sum_rows_kernel", C, [
      { has: "LDG.32", per: 1, items: rowBlocks / 32 },
    ], 32);
  const rope = [even("rope_kernel<8>", N * (H + K) * D / 2 / 8 / 32)];
  const tiles = attention === "portable" ? portableTiles(s) : hopperTiles(s);
  return {
    "embedding forward": [even("embedding_forward_kernel<8>", N * C / 8 / 32)],
    "embedding backward": [even("embedding_backward_kernel", 8 * N, [
      { has: "LDG.32", lacks: "LDS.128", per: 1, items: N / 2 / 256 }, // was the token there before?
      { has: "LDS.128", per: 2, items: N / 2 / 256 }, // where is it again?
    ])],
    "rmsnorm forward": [even("rmsnorm_forward_kernel<8>", N, [reads(1, C / 256), writes(1, C / 256)])],
    "rmsnorm backward": [
      // A warp takes several rows: as many passes as if each row had a warp, in no more than two blocks a multiprocessor.
      even("rmsnorm_backward_kernel<8>", N, [reads(3, C / 256), writes(2, C / 256)], 8, 8 * C * 4),
      sumRows,
    ],
    "rope forward": rope,
    "rope backward": rope,
    "attention forward": tiles.forward,
    "attention backward": tiles.backward,
    "swiglu forward": [even("swiglu_forward_kernel<8>", N * F / 8 / 32)],
    "swiglu backward": [even("swiglu_backward_kernel<8>", N * F / 8 / 32)],
    "cross_entropy": [
      even("cross_entropy_kernel<8>", 16 * n, [reads(1, V / 8 / 512), writes(1, V / 8 / 512)], 16),
    ],
    "sum_scaled": [even("sum_scaled_kernel", 32, [{ has: "LDG.32", per: 1, items: N / 1024 }], 32)],
    "grad_sumsq": [
      even("grad_sumsq_kernel", 8 * 1024, [{ has: "LDG.32", per: 1, items: weights / 1024 / 256 }]),
      even("sum_partials_kernel", 8, [{ has: "LDG.64", per: 1, items: 4 }]),
    ],
    "adamw": [even("adamw_kernel<4>", weights / 4 / 32)],
  };
}

/** Tiles that queries from `from` to `from` + rows - 1 see, the mean over groups of `group` rows. */
function tilesBefore(from: number, rows: number, group: number, keys: number, T: number): number {
  const ends = Array.from({ length: rows / group }, (_, g) => Math.min(from + (g + 1) * group, T) - 1);
  return ends.reduce((sum, end) => sum + Math.floor(end / keys) + 1, 0) / ends.length;
}

/** Blocks of queries for each of so many heads, those with most keys first. */
function queryBlocks(T: number, heads: number, rows: number, group: number, keys: number): number[] {
  const starts = Array.from({ length: Math.ceil(T / rows) }, (_, i) => i * rows).reverse();
  return starts.flatMap((from) => Array<number>(heads).fill(tilesBefore(from, rows, group, keys, T)));
}

/** Blocks of keys: each goes through the queries from the diagonal on, `shared` times. */
function keyBlocks(
  T: number,
  heads: number,
  rows: number,
  group: number,
  keys: number,
  shared: number,
): number[] {
  const all = Math.ceil(T / keys);
  return Array.from({ length: Math.ceil(T / rows) }, (_, i) => i * rows).flatMap((from) => {
    const groups = Array.from(
      { length: rows / group },
      (_, g) => all - Math.floor((from + g * group) / keys),
    );
    return Array<number>(heads).fill(shared * groups.reduce((a, b) => a + b) / groups.length);
  });
}

type AttentionTiles = Record<"forward" | "backward", (Even | Tiled)[]>;

/** kernels.cu's ForwardShape, KeyShape and QueryShape for heads of 64; both kinds of the backward pass are in one launch. */
function portableTiles({ B, T, n_head: H, n_kv_head: K }: Sizes): AttentionTiles {
  const warps = 4, idle = 0, row = 2 * 64; // bytes of a row
  const forward = { products: 2, rows: 128, keys: 64 }, dq = { products: 3, rows: 128, keys: 32 };
  const dkv = { products: 4, rows: 64, keys: 64 };
  const queries = ({ rows, keys }: { rows: number; keys: number }) =>
    queryBlocks(T, H * B, rows, rows / warps, keys);
  const keyKind = { ...dkv, blocks: keyBlocks(T, K * B, dkv.rows, dkv.rows / warps, dkv.keys, H / K) };
  return {
    forward: [{
      ...{ kernel: "attention_forward_kernel<64>", warps, idle },
      shared: 2 * 2 * forward.keys * row,
      kinds: [{ ...forward, blocks: queries(forward) }],
    }],
    backward: [{
      ...{ kernel: "attention_delta_kernel<64>", warps: Math.ceil(B * T * H * 8 / 32), block: 8 },
      bytes: 2 * B * T * H * row + 4 * B * T * H, // dO, O and delta
    }, {
      ...{ kernel: "attention_backward_kernel<64>", warps, idle },
      shared: 2 * dq.rows * row + 2 * 2 * dq.keys * row + 2 * 2 * dq.keys * 4, // more than dK and dV need
      kinds: [keyKind, { ...dq, blocks: queries(dq) }],
    }],
  };
}

/** attention_hopper.cuh's shapes for heads of 64: groups of 64 rows, one more of warps that load. */
function hopperTiles({ B, T, n_head: H, n_kv_head: K }: Sizes): AttentionTiles {
  const idle = 4, row = 2 * 64;
  const forward = { products: 2, rows: 192, keys: 128 }, dq = { products: 3, rows: 128, keys: 128 };
  const dkv = { products: 4, rows: 128, keys: 64 };
  return {
    forward: [{
      ...{ kernel: "hopper::forward_kernel<64>", warps: 12, idle },
      shared: forward.rows * row + 2 * 3 * forward.keys * row,
      kinds: [{ ...forward, blocks: queryBlocks(T, H * B, forward.rows, 64, forward.keys) }],
    }],
    backward: [{
      ...{ kernel: "hopper::dq_kernel<64>", warps: 8, idle },
      shared: 2 * dq.rows * row + 2 * 3 * dq.keys * row,
      kinds: [{ ...dq, blocks: queryBlocks(T, H * B, dq.rows, 64, dq.keys) }],
    }, {
      ...{ kernel: "hopper::dkv_kernel<64>", warps: 8, idle },
      shared: 2 * dkv.rows * row + 2 * 4 * dkv.keys * row + 2 * 4 * dkv.keys * 4,
      kinds: [{ ...dkv, blocks: keyBlocks(T, K * B, dkv.rows, dkv.rows, dkv.keys, H / K) }],
    }],
  };
}

// ---- time

/** What is predicted of one launch. units: ms that each would need alone. */
export type Launched = {
  kernel: string;
  ms: number;
  registers: number;
  blocks_per_sm: number;
  waves: number;
  loop: Use | null; // of the inner loop, by one warp
  units: Record<string, number>;
};

type Code = Map<string, KernelCode>;

function codeOf(code: Code, kernel: string): KernelCode {
  const found = code.get(kernel);
  if (!found) throw new UserError(`Cannot predict: the library has no ${kernel}; build this version of it`);
  return found;
}

/** The loop that holds `has` most often, of those that lack `lacks`. */
function loopWith(code: KernelCode, has: string, lacks = ""): Loop {
  const loops = code.loops.filter(({ opcodes }) => opcodes[has] && !opcodes[lacks]);
  const [most] = loops.sort((a, b) => b.opcodes[has]! - a.opcodes[has]!);
  if (!most) throw new UserError(`Cannot predict: ${code.kernel} has no loop with ${has} any more`);
  return most;
}

/** Bytes of shared memory that a block takes: from sm_90 on cuobjdump counts the driver's 1,024 too. */
function sharedBytes(card: Card, code: KernelCode, dynamic: number): number {
  return dynamic + code.shared + (parseInt(card.arch) >= 90 ? 0 : 1024);
}

function even(launch: Even, card: Card, code: KernelCode, bytes: number): Launched {
  const { warps, block, passes = [], shared = 0 } = launch;
  const resident = residentBlocks(card, {
    ...{ warps: block, registers: code.registers, shared: sharedBytes(card, code, shared) },
  });
  const trips = passes.map(({ has, lacks, per, items }) => {
    const loop = loopWith(code, has, lacks);
    return { loop, count: items / (loop.opcodes[has]! / per) };
  });
  const uses = [{ use: code.body, count: 1 }, ...trips.map(({ loop: { use }, count }) => ({ use, count }))];
  const waves = warps / block / card.sms / resident, clock_ms = 1 / card.ghz / 1e6;
  const units: Record<string, number> = { memory: bytes / card.tb_per_sec / 1e9 };
  for (const { use, count } of uses) {
    for (const [unit, clocks] of Object.entries(unitClocks(use, warps * count / card.sms, card))) {
      units[unit] = (units[unit] ?? 0) + clocks * clock_ms;
    }
  }
  units.latency = Math.max(1, waves) * (1 + trips.reduce((sum, { count }) => sum + count, 0)) * LATENCY_MS;
  const longest = trips.sort((a, b) => b.loop.use.instructions - a.loop.use.instructions)[0];
  return {
    ...{ kernel: launch.kernel, ms: together(Object.values(units)) + LAUNCH_MS },
    ...{ registers: code.registers, blocks_per_sm: resident, waves, loop: longest?.loop.use ?? null, units },
  };
}

/** When the last block ends if each goes to the first of so many places that is free. */
export function lastEnd(blocks: number[], places: number): number {
  const free = new Float64Array(places);
  for (const block of blocks) {
    let first = 0;
    for (let i = 1; i < places; i++) if (free[i]! < free[first]!) first = i;
    free[first]! += block;
  }
  return Math.max(...free);
}

function tiled(launch: Tiled, card: Card, code: KernelCode, D: number): Launched {
  const { kernel, warps, idle, kinds } = launch,
    flopsOf = (use: Use) => warps * (use.tensor_flops + use.wgmma_flops);
  const resident = residentBlocks(card, {
    ...{ warps: warps + idle, registers: code.registers, shared: sharedBytes(card, code, launch.shared) },
  });
  const places = card.sms * resident, clock_ms = 1 / card.ghz / 1e6, units: Record<string, number> = {};
  const loops = kinds.map(({ products, rows, keys }) => {
    const flops = 2 * products * rows * keys * D, loops = code.loops.filter(({ use }) => flopsOf(use) > 0);
    const loop = loops.find(({ use }) => flopsOf(use) === flops);
    if (!loop) {
      throw new UserError(
        `Cannot predict: a tile of ${kernel} multiplies ${
          loops.map(({ use }) => flopsOf(use)).join(" or ")
        } FLOPs ` +
          `in the library, ${flops} in bench/roofline.ts; write its present tiles there`,
      );
    }
    return loop.use;
  });
  const blocks = kinds.flatMap(({ blocks }, i) => {
    const clocks = unitClocks(loops[i]!, warps, card), tile = together(Object.values(clocks));
    const all = blocks.reduce((a, b) => a + b, 0) / card.sms;
    for (const [unit, n] of Object.entries(clocks)) units[unit] = (units[unit] ?? 0) + n * all * clock_ms;
    return blocks.map((tiles) => tiles * tile * resident + FIXED_CLOCKS);
  });
  return {
    ...{ kernel, ms: lastEnd(blocks, places) * clock_ms + LAUNCH_MS, registers: code.registers },
    ...{ blocks_per_sm: resident, waves: blocks.length / places, loop: loops[0]!, units },
  };
}

/** A matrix product by the best of a few tiles, its sums in one part or up to four. */
export function productMs([m, n, k]: [number, number, number], bytes: number, card: Card): number {
  const ways = card.tiles.flatMap(([tile_m, tile_n, rate]) =>
    [1, 2, 3, 4].map((parts) => {
      const tiles = Math.ceil(m / tile_m) * Math.ceil(n / tile_n) * parts;
      const fill = tiles / (Math.ceil(tiles / card.sms) * card.sms);
      const compute = 2 * m * n * k / (card.tflops * rate * fill) / 1e9;
      const moved = bytes + (parts > 1 ? 2 * 4 * m * n * parts : 0);
      return together([compute, moved / card.tb_per_sec / 1e9]);
    })
  );
  return Math.min(...ways) + LAUNCH_MS;
}

/** One op, named as in kernels.ts's table. */
export type PredictedOp = {
  op: string;
  count: number; // calls in a micro-step
  ms: number; // of a call
  micro_step_ms: number; // of all of them
  share: number; // of the micro-step
  floor_ms: number; // of a call: the larger of FLOPs / tflops and bytes / bandwidth
  launches: Launched[]; // empty for a product
};

/** A model on a card. */
export type Prediction = {
  card: string;
  attention: Attention;
  B: number;
  recompute: string;
  head_chunk: number;
  floor_ms: number; // of a micro-step, by peak and bandwidth alone
  micro_step_ms: number;
  step_ms: number; // of 262,144 tokens
  tokens_per_sec: number;
  mfu: number;
  ops: PredictedOp[];
};

/** The least ms of a call that peak and bandwidth allow. */
export function floorMs(
  { flops, bytes }: Pick<Case, "flops" | "bytes">,
  card: Pick<Card, "tflops" | "tb_per_sec">,
): number {
  return Math.max(flops / card.tflops / 1e9, bytes / card.tb_per_sec / 1e9);
}

/** Whether an op runs once a step, not once a micro-step. */
export function isOfStep(op: string): boolean {
  return op === "adamw" || op === "grad_sumsq";
}

/** Predicts every op of a micro-step; those of the optimizer count as one part of so many micro-steps. */
export function predict(s: Sizes, card: Card, code: Code, attention: Attention): Prediction {
  const launched = launches(s, card, attention), tokens = s.B * s.T;
  const micro_steps = ACCUMULATION * 4 / s.B;
  const ops = allCases(s, 0).flatMap((c): PredictedOp[] => {
    const of = launched[c.op];
    if (!of && !c.product) return [];
    const kernels = (of ?? []).map((launch, i) =>
      "kinds" in launch
        ? tiled(launch, card, codeOf(code, launch.kernel), s.n_embd / s.n_head)
        : even(launch, card, codeOf(code, launch.kernel), launch.bytes ?? (i === 0 ? c.bytes : 0))
    );
    const ms = c.product ? productMs(c.product, c.bytes, card) : kernels.reduce((sum, { ms }) => sum + ms, 0);
    const count = isOfStep(c.op) ? 1 / micro_steps : c.count;
    const op = { op: c.op, count, ms, micro_step_ms: count * ms, share: 0 };
    return [{ ...op, floor_ms: floorMs(c, card), launches: kernels }];
  });
  const micro_step_ms = ops.reduce((sum, op) => sum + op.micro_step_ms, 0);
  const tokens_per_sec = tokens / micro_step_ms * 1000;
  const flops = measureModel(modelOf(s)).flops_per_token;
  return {
    ...{
      card: card.name,
      attention,
      B: s.B,
      recompute: s.recompute ?? "norm_swiglu",
      head_chunk: s.head_chunk,
    },
    floor_ms: ops.reduce((sum, { count, floor_ms }) => sum + count * floor_ms, 0),
    ...{ micro_step_ms, step_ms: micro_step_ms * micro_steps, tokens_per_sec },
    mfu: flops * tokens_per_sec / card.peak / 1e12,
    ops: ops.map((op) => ({ ...op, share: op.micro_step_ms / micro_step_ms })),
  };
}

// ---- output

/** The parts of a step that tables show, and the ops of each. */
export const GROUPS: [name: string, ops: RegExp][] = [
  ["linears, forward", /^(qkv|o|gate_up|down) forward$/],
  ["linears, dgrad", /^(qkv|o|gate_up|down) dgrad$/],
  ["linears, wgrad", /^(qkv|o|gate_up|down) wgrad$/],
  ["head, three products", /^head /],
  ["attention forward", /^attention forward$/],
  ["attention backward", /^attention backward$/],
  ["rmsnorm", /^rmsnorm /],
  ["rope", /^rope /],
  ["swiglu", /^swiglu /],
  ["cross_entropy", /^cross_entropy$/],
  ["embedding, loss", /^(embedding .*|sum_scaled)$/],
  ["optimizer, its part", /^(adamw|grad_sumsq)$/],
];

/** Whether attention is not the card's own. */
export function isFallback({ card, attention }: Pick<Prediction, "card" | "attention">): boolean {
  return attention === "portable" && CARDS.some(({ name, wgmma }) => name === card && wgmma > 0);
}

function title({ card, attention, B }: Prediction): string {
  return `${card}, B=${B}${isFallback({ card, attention }) ? ", portable" : ""}`;
}

/** ms and share of each group, a column for each prediction: rows of cells. */
export function groupRows(predictions: Prediction[]): string[][] {
  const sum = ({ ops }: Prediction, of: RegExp, what: "micro_step_ms" | "share") =>
    ops.filter(({ op }) => of.test(op)).reduce((total, op) => total + op[what], 0);
  const row = (name: string, cell: (p: Prediction) => string) => [name, ...predictions.map(cell)];
  return [
    row("ms of a micro-step", title),
    ...GROUPS.map(([name, ops]) =>
      row(
        name,
        (p) => `${sum(p, ops, "micro_step_ms").toFixed(2)} ${(100 * sum(p, ops, "share")).toFixed(1)}%`,
      )
    ),
    row("micro-step", (p) => p.micro_step_ms.toFixed(1)),
    row("least that products and bytes take", (p) => p.floor_ms.toFixed(1)),
    row("step of 262,144 tokens", (p) => p.step_ms.toFixed(0)),
    row("tokens/s", (p) => `${(p.tokens_per_sec / 1000).toFixed(0)}k`),
    row("MFU", (p) => `${(100 * p.mfu).toFixed(0)}%`),
  ];
}

/** Each op and kernel of one prediction: what a warp does in the inner loop, and what that keeps busy. */
export function kernelTable({ ops }: Prediction): string {
  const header = [
    "op",
    "kernel",
    "ms",
    "calls",
    "share",
    "instructions",
    "MUFU",
    "registers",
    "blocks/SM",
    "waves",
  ];
  const rows = ops.flatMap(({ op, ms, count, share, launches }) => {
    const percent = `${(100 * share).toFixed(1)}%`, calls = count < 1 ? "" : `${count}`;
    if (launches.length === 0) {
      return [[op, "cuBLASLt", ms.toFixed(4), calls, percent, "", "", "", "", "", ""]];
    }
    return launches.map((l, i) => [
      i === 0 ? op : "",
      l.kernel,
      l.ms.toFixed(4),
      i === 0 ? calls : "",
      i === 0 ? percent : "",
      `${l.loop?.instructions ?? ""}`,
      `${l.loop?.mufu ?? ""}`,
      `${l.registers}`,
      `${l.blocks_per_sm}`,
      l.waves.toFixed(1),
      Object.entries(l.units).sort(([, a], [, b]) => b - a).slice(0, 2)
        .map(([unit, ms]) => `${unit} ${ms.toFixed(4)}`).join(", "),
    ]);
  });
  return table([[...header, "busiest units, ms"], ...rows]);
}

/** Four digits of every number, so that the file stays readable. */
function rounded(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value, (_, v) => typeof v === "number" ? Number(v.toPrecision(4)) : v));
}

/** The code of each architecture that a card needs. */
async function readCode({ listing, cuobjdump }: typeof defaults): Promise<Map<string, Code>> {
  const archs = [...new Set(CARDS.map(({ arch }) => arch))], library = "build/libloam_cuda.so";
  const texts = listing ? listing.split(",").map((path) => Deno.readTextFileSync(path)) : await Promise.all(
    archs.map((arch) => answer(cuobjdump, ["-sass", "-res-usage", "-arch", `sm_${arch}`, library])),
  );
  return new Map(texts.map((text) => {
    if (!text) {
      throw new UserError(
        `Cannot take ${library} apart: ${cuobjdump} does not run or finds no code of ${
          archs.join(", ")
        }; build it with ` +
          "deno task build --arch=all, and pip install triton for --cuobjdump=.../triton/backends/nvidia/bin/cuobjdump, " +
          "or name saved listings with --listing",
      );
    }
    const { arch, kernels } = parseSass(text);
    return [arch, new Map(kernels.map((kernel) => [kernel.kernel, kernel]))];
  }));
}

/** The settings that are predicted for a card: kernels.ts's, and those of larger batches. */
function settings(card: Card): { B: number; attention: Attention; large: boolean }[] {
  const attention = card.wgmma ? "hopper" : "portable";
  const large = card.wgmma ? [8, 16] : [8];
  return [
    { B: 4, attention, large: false },
    ...large.map((B) => ({ B, attention, large: true } as const)),
    ...card.wgmma ? [{ B: 4, attention: "portable", large: false } as const] : [],
  ];
}

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      const about = "Predict the time of every kernel of a step on cards that are not at hand";
      return console.log(help(about, defaults, Deno.readTextFileSync(import.meta.filename!)));
    }
    const ranges = { card: ["", ...CARDS.map(({ name }) => name)] };
    const o = { ...defaults, ...readFlags(args, defaults, { ranges }) }, code = await readCode(o);
    const cards = CARDS.filter(({ arch }) => code.has(arch));
    const predictions = cards.flatMap((card) =>
      settings(card).map(({ B, attention, large }) => {
        const more = large ? { recompute: "none", head_chunk: 8192 } as const : { head_chunk: 2048 };
        return predict({ ...SHAPES["gpt-270m"]!, B, act: 2, ...more }, card, code.get(card.arch)!, attention);
      })
    );
    console.log("gpt-270m. Predicted from machine code, measured on no card.\n");
    console.log(table(groupRows(predictions.filter(({ B }) => B === 4))));
    console.log(
      `\nrecompute none, head_chunk 8192\n${table(groupRows(predictions.filter(({ B }) => B > 4)))}`,
    );
    for (const p of predictions.filter(({ card, B }) => card === o.card && B === 4)) {
      console.log(`\n${title(p)}\n${kernelTable(p)}`);
    }
    const head = reportHead("deno run -q -P=bench bench/roofline.ts", []); // where cuobjdump lies does not matter
    const commit = await answer("git", [
      "log",
      "-1",
      "--format=%h",
      "--",
      "kernels.cu",
      "attention_hopper.cuh",
    ]);
    const assumptions = { OVERLAP, LATENCY_MS, LAUNCH_MS, FIXED_CLOCKS, cards };
    const short = predictions.map((p) =>
      p.B === 4 ? p : { ...p, ops: p.ops.map((op) => ({ ...op, launches: [] })) }
    );
    const report = { ...head, kernels: commit ?? "", assumptions, predictions: rounded(short) };
    console.log(`\n${saveReport(report, `predicted-${head.date}`, o.json)}`);
  });
}
