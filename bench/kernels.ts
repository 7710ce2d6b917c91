// Times every call of a training step and holds it against the card: deno task bench --preset=small
//
// The library has no clock of its own, so a time is that of many queued calls and one wait, divided by their number: the
// median of several such batches. Calls go round between copies of their arrays, together larger than the card's cache.
import { runMain, UserError } from "../base/errors.ts";
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  BF16,
  chooseDevice,
  copyToDevice,
  device,
  type DeviceName,
  F32,
  free,
  open,
  synchronizeNow,
} from "../ffi/library.ts";
import { between, each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { formatFlops, table } from "../base/format.ts";
import { peakFlops } from "../runtime/peak.ts";
import { type Address, bytesPerElement } from "../runtime/tensor.ts";
import { allCases, type Arrays, type Case, stepCases } from "./cases.ts";
import { SHAPES } from "./shapes.ts";

const defaults = {
  preset: "", // tiny, small or gpt-270m; "" = gpt-270m on a GPU, else small
  B: 0, // 0: the preset's batch size, length and vocabulary
  T: 0,
  V: 0,
  n_layer: 0, // 0: the preset's; the optimizer's arrays grow with it
  head_chunk: 2048, // as in train.ts
  device: "", // cuda, cpu or emu; "" = the one that answers
  threads: 0, // of the CPU, 0 = all
  bf16_gemm: "auto", // of the CPU, as in train.ts
  filter: "", // only ops whose name holds this
  copy_mb: 1000, // size of the copy that bandwidth is read from
  rotate_mb: 512, // arrays of a call and its copies together, where memory is larger than that; 0 = no copies
  batch_ms: 10, // least time between two waits
  batches: 9,
  json: "", // write the results there too
};

const ranges: Ranges<typeof defaults> = {
  ...each(whole(0, 2 ** 20), "B", "T", "V", "n_layer"),
  ...each(whole(1, 2 ** 20), "head_chunk", "batches"),
  threads: whole(0, 1024),
  bf16_gemm: ["auto", "true", "false"],
  copy_mb: between(0.01, 1e6),
  ...each(between(0, 1e6), "rotate_mb", "batch_ms"),
};

/** What one call takes. share: of what the roofline allows; null where the card's peak is not known. */
export type Timing = {
  op: string;
  shape: string;
  count: number; // calls in a micro-step
  ms: number; // median
  ms_least: number;
  ms_most: number;
  calls: number; // in each batch
  tflops: number | null; // null where it computes no products
  gb_per_sec: number;
  bound: "compute" | "memory" | null; // the larger part of roofline_ms
  roofline_ms: number | null; // the larger of flops / peak and bytes / copy bandwidth
  share: number | null;
};

// ---- arrays

/** Arrays of one case; freed together. */
class CaseArrays implements Arrays {
  readonly #blocks: Address[] = [];

  f32(n: number): Address {
    const address = this.#take(4 * n);
    k.init_normal(address, BigInt(n), 1, 1n, 0n);
    return address;
  }

  act(n: number): Address {
    if (bytesPerElement("act") === 4) return this.f32(n);
    const address = this.#take(2 * n), wide = allocate(4 * n);
    k.init_normal(wide, BigInt(n), 1, 1n, 0n);
    k.convert(address, wide, BF16, F32, BigInt(n));
    free(wide);
    return address;
  }

  ids(n: number, below: number): Address {
    const address = this.#take(4 * n);
    copyToDevice(address, Int32Array.from({ length: n }, () => Math.random() * below));
    return address;
  }

  bytes(n: number): Address {
    return this.#take(n);
  }

  free(): void {
    this.#blocks.forEach(free);
  }

  #take(bytes: number): Address {
    const address = allocate(bytes);
    this.#blocks.push(address);
    return address;
  }
}

// ---- timing

/** Median, least and most ms of a call, over batches of queued calls. */
function time(calls: (() => void)[], batch_ms: number, batches: number): Omit<Timing, keyof Roof> {
  const run = (n: number): number => {
    const t0 = performance.now();
    for (let i = 0; i < n; i++) calls[i % calls.length]!();
    synchronizeNow();
    return (performance.now() - t0) / n;
  };
  run(calls.length); // the first calls choose algorithms and touch memory
  const n = Math.max(calls.length, Math.ceil(batch_ms / run(calls.length)));
  run(n); // clocks rise
  const ms = Array.from({ length: batches }, () => run(n)).sort((a, b) => a - b);
  return { ms: ms[batches >> 1]!, ms_least: ms[0]!, ms_most: ms.at(-1)!, calls: n };
}

type Options = typeof defaults;
/** FLOP/s and bytes/s that results are held against. */
type Limits = { flops: number | undefined; bytes: number | undefined };
type Roof = Pick<
  Timing,
  "op" | "shape" | "count" | "tflops" | "gb_per_sec" | "bound" | "roofline_ms" | "share"
>;

function measure(c: Case, o: Options, limits: Limits): Timing {
  const copies = Math.max(1, Math.min(16, Math.ceil(o.rotate_mb * 1e6 / c.bytes)));
  const arrays = new CaseArrays();
  try {
    const timed = time(Array.from({ length: copies }, () => c.make(arrays)), o.batch_ms, o.batches);
    return { ...timed, ...roof(c, timed.ms, limits) };
  } finally {
    arrays.free();
  }
}

function roof({ op, shape, count, flops, bytes }: Case, ms: number, limits: Limits): Roof {
  const compute_ms = limits.flops ? flops / limits.flops * 1000 : flops ? undefined : 0;
  const memory_ms = limits.bytes ? bytes / limits.bytes * 1000 : undefined;
  const known = compute_ms !== undefined && memory_ms !== undefined;
  const roofline_ms = known ? Math.max(compute_ms, memory_ms) : null;
  return {
    op,
    shape,
    count,
    tflops: flops ? flops / ms / 1e9 : null,
    gb_per_sec: bytes / ms / 1e6,
    bound: known ? (compute_ms > memory_ms ? "compute" : "memory") : null,
    roofline_ms,
    share: roofline_ms === null ? null : roofline_ms / ms,
  };
}

// ---- output

function row(t: Timing): string[] {
  return [
    t.op,
    t.shape,
    t.ms.toFixed(4),
    t.tflops === null ? "" : (1000 * t.tflops).toFixed(0),
    t.gb_per_sec.toFixed(0),
    t.bound ?? "",
    t.share === null ? "" : `${(100 * t.share).toFixed(0)}%`,
    t.count ? (t.count * t.ms).toFixed(2) : "",
  ];
}

/** What is in the JSON file. micro_step_ms: all calls of a micro-step one after the other. */
export type Report = {
  command: string;
  device: typeof device;
  options: Record<string, number | string>;
  peak_flops: number | null;
  peak_how: string | null;
  copy_gb_per_sec: number | null;
  micro_step_ms: number;
  wall_ms: number | null; // the least that they could take by peak and bandwidth; null where no peak is known
  step_wall_ms: number | null; // the same of a step of one micro-step, whatever was filtered out
  failed: { op: string; message: string }[];
  timings: Timing[];
};

if (import.meta.main) {
  await runMain((args) => {
    if (args.includes("--help")) {
      return console.log(
        help("Time every op of a training step", defaults, Deno.readTextFileSync(import.meta.filename!)),
      );
    }
    const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
    const bf16_gemm = o.bf16_gemm === "auto" ? "auto" : o.bf16_gemm === "true";
    open((o.device || chooseDevice().name) as DeviceName, { threads: o.threads, bf16_gemm });
    o.preset ||= device.library === "cuda" ? "gpt-270m" : "small";
    const preset = SHAPES[o.preset];
    if (!preset) {
      throw new UserError(
        `Cannot time preset ${o.preset}: it should be one of ${Object.keys(SHAPES).join(", ")}`,
      );
    }
    const { B = preset.B, T = preset.T, V = preset.V, n_layer = preset.n_layer } = onlySet(o);
    const s = { ...preset, B, T, V, n_layer, head_chunk: o.head_chunk, act: bytesPerElement("act") };
    const peak = peakFlops(), limits: Limits = { flops: peak?.flops, bytes: undefined };
    const inputs = device.bf16_gemm ? " of bfloat16" : "";
    console.log(`${device.name} (${device.library}), ${device.act}, GEMM${inputs}: ${device.blas}`);
    if (device.attention) console.log(`attention: ${device.attention}`);
    console.log(
      `${o.preset}: B=${B} T=${T} V=${V}, ${s.n_layer} layers; ${
        peak ? `${formatFlops(peak.flops)}, ${peak.how}` : "no known peak"
      }`,
    );

    const timings: Timing[] = [], failed: Report["failed"] = [];
    const micro_step_ms = () => timings.reduce((sum, { count, ms }) => sum + count * ms, 0);
    const stepWall = () => wallOf(stepCases(s).map((c) => roof(c, 1, limits)));
    const save = () => {
      const report: Report = {
        command: `bench/kernels.ts ${Deno.args.join(" ")}`.trim(),
        device,
        options: { ...o, ...s },
        peak_flops: peak?.flops ?? null,
        peak_how: peak?.how ?? null,
        copy_gb_per_sec: limits.bytes ? limits.bytes / 1e9 : null,
        micro_step_ms: micro_step_ms(),
        wall_ms: wallOf(timings),
        step_wall_ms: stepWall(),
        failed,
        timings,
      };
      if (o.json) Deno.writeTextFileSync(o.json, JSON.stringify(report, null, 2) + "\n");
    };
    const cases = allCases(s, o.copy_mb * 1e6).filter(({ op }) => op === "copy" || op.includes(o.filter));
    for (const c of cases) {
      try {
        const timing = measure(c, o, limits);
        if (c.op === "copy") limits.bytes = timing.gb_per_sec * 1e9;
        timings.push(timing);
      } catch (error) {
        failed.push({ op: c.op, message: (error as Error).message });
      }
      save(); // the rest may be cut short
    }
    const header = ["op", "shape", "ms", "GFLOP/s", "GB/s", "bound", "of roofline", "ms a micro-step"];
    console.log(table([header, ...timings.map(row)]));
    console.log(`${micro_step_ms().toFixed(2)} ms for the calls of a micro-step one after the other`);
    const wall_ms = wallOf(timings);
    if (wall_ms) { // 0 where all were filtered out
      const share = (100 * wall_ms / micro_step_ms()).toFixed(0);
      console.log(
        `${wall_ms.toFixed(2)} ms is the wall: the roofline of each call; ${share}% of it is reached`,
      );
    }
    const step_wall_ms = stepWall();
    if (step_wall_ms !== null) {
      console.log(`${step_wall_ms.toFixed(2)} ms is that of a step with its optimizer`);
    }
    for (const { op, message } of failed) console.error(`failed: ${op}: ${message}`);
    if (failed.length > 0) Deno.exit(1);
  });
}

/** ms that the calls of a micro-step would take at their rooflines, one after the other. */
export function wallOf(timings: Pick<Timing, "count" | "roofline_ms">[]): number | null {
  const steps = timings.filter(({ count }) => count > 0);
  if (steps.some(({ roofline_ms }) => roofline_ms === null)) return null;
  return steps.reduce((sum, { count, roofline_ms }) => sum + count * roofline_ms!, 0);
}

/** The sizes that the command line sets, without those left at 0. */
function onlySet({ B, T, V, n_layer }: Options): Partial<Record<"B" | "T" | "V" | "n_layer", number>> {
  return Object.fromEntries(Object.entries({ B, T, V, n_layer }).filter(([, value]) => value > 0));
}
