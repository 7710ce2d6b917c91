// deno task bench:peer: trains the same model in loam and in PyTorch (eager and torch.compile) on this machine, by turns, so
// that a change in clock speed or load meets all of them. Prints medians and keeps every step time in bench/results/.
//
//   LOAM_PYTHON=python3 deno task bench:peer --preset=small --V=50257 --B=4
import os from "node:os";
import { runMain, UserError } from "../ffi/errors.ts";
import { parseOverrides } from "../runtime/config.ts";
import { lines } from "./lines.ts";

const SHAPES = {
  "tiny": { n_layer: 4, n_embd: 128, n_head: 4, n_kv_head: 2, n_inner: 384, T: 64, B: 12, V: 65 },
  "small": { n_layer: 6, n_embd: 384, n_head: 6, n_kv_head: 2, n_inner: 1024, T: 256, B: 8, V: 65 },
  "gpt-270m": { n_layer: 24, n_embd: 1024, n_head: 16, n_kv_head: 4, n_inner: 2816, T: 2048, B: 4, V: 50257 },
};

const defaults = {
  preset: "small", // tiny, small or gpt-270m
  V: 0, // 0: the preset's vocabulary, batch size and length
  B: 0,
  T: 0,
  accum: 1, // micro-steps in a step
  rounds: 5, // turns of each side
  steps: 3, // timed steps in a turn, after one that is not timed
  dtype: "float32", // or bfloat16: loam's bf16 GEMM inputs (CPU) or bf16 weights (CUDA), PyTorch's autocast
  threads: navigator.hardwareConcurrency, // of the CPU, for both
  device: "cpu", // or cuda
};
type Options = typeof defaults;
type Shape = typeof SHAPES["small"];

const PAUSE_MS = 300; // between turns: OpenMP threads spin for up to 200 ms after their last work

/** What a side says when it has built and warmed up its model, and after each turn. */
type Ready = { ready: true; parameters: number; version: string; device: string; blas?: string };
type Turn = { step_ms: number[]; loss: number; peak_bytes: number };

type Result = {
  median_ms: number;
  tokens_per_sec: number;
  peak_bytes: number;
  last_loss: number;
  step_ms: number[];
  ready: Ready;
};

/** One of the processes that are compared. It trains only while ask() waits for it. */
class Side {
  readonly step_ms: number[] = [];
  ready: Ready | undefined;
  last: Turn | undefined;
  readonly #child: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: AsyncGenerator<string, void>;

  constructor(readonly name: string, command: string, args: string[]) {
    const cwd = `${import.meta.dirname}/..`;
    try {
      this.#child = new Deno.Command(command, { args, cwd, stdin: "piped", stdout: "piped" }).spawn();
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      throw new UserError(
        `Cannot run ${name}: there is no ${command}; set LOAM_PYTHON to a Python that has torch`,
      );
    }
    this.#input = this.#child.stdin.getWriter();
    this.#output = lines(this.#child.stdout);
  }

  /** Waits until the model is built and warmed up. */
  async start(): Promise<void> {
    this.ready = await this.#answer() as Ready;
  }

  /** Runs one step that is not counted, then `count` that are. */
  async run(count: number): Promise<void> {
    await this.#input.write(new TextEncoder().encode(`steps ${count + 1}\n`));
    this.last = await this.#answer() as Turn;
    this.step_ms.push(...this.last.step_ms.slice(1));
  }

  async #answer(): Promise<unknown> {
    const { value, done } = await this.#output.next();
    if (done) throw new UserError(`Cannot run ${this.name}: its process ended early; the cause stands above`);
    return JSON.parse(value);
  }

  /** Lets the process end by closing its input. */
  async stop(): Promise<void> {
    await this.#input.close().catch(() => {}); // it may have ended already
    await this.#child.status;
  }
}

function shapeOf(o: Options): Shape {
  if (!Object.hasOwn(SHAPES, o.preset)) {
    throw new UserError(
      `Cannot use preset ${o.preset}: it should be one of ${Object.keys(SHAPES).join(", ")}`,
    );
  }
  const preset = SHAPES[o.preset as keyof typeof SHAPES];
  return { ...preset, V: o.V || preset.V, B: o.B || preset.B, T: o.T || preset.T };
}

/** loam pads the vocabulary to a multiple of 64 by itself; PyTorch users do so for large ones (50257 -> 50304). */
function torchVocab(V: number): number {
  return V < 1000 ? V : Math.ceil(V / 64) * 64;
}

function flags(values: Record<string, string | number>): string[] {
  return Object.entries(values).map(([name, value]) => `--${name}=${value}`);
}

/** Starts the three sides one after the other, since warming up uses all cores. */
async function startSides(o: Options, shape: Shape): Promise<Side[]> {
  const { accum, threads, dtype, device } = o;
  const common = flags({ ...shape, accum, threads, dtype, device });
  const torch = flags({ ...shape, V: torchVocab(shape.V), accum, threads, dtype, device });
  const python = Deno.env.get("LOAM_PYTHON") ?? "python3";
  const commands: [string, string, string[]][] = [
    ["loam", Deno.execPath(), ["run", "-q", "-P=bench", "bench/loam_steps.ts", ...common]],
    ["torch eager", python, ["bench/torch_llama.py", "--serve", ...torch]],
    ["torch compile", python, ["bench/torch_llama.py", "--serve", "--compile", ...torch]],
  ];
  const sides = [];
  for (const [name, command, args] of commands) {
    const side = new Side(name, command, args);
    sides.push(side);
    await side.start();
  }
  return sides;
}

async function takeTurns(sides: Side[], rounds: number, steps: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    for (const side of sides) {
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      await side.run(steps);
    }
  }
}

function summarise(side: Side, tokens: number): Result {
  const median_ms = median(side.step_ms);
  return {
    median_ms,
    tokens_per_sec: tokens / median_ms * 1000,
    peak_bytes: side.last!.peak_bytes,
    last_loss: side.last!.loss,
    step_ms: side.step_ms,
    ready: side.ready!,
  };
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function table(results: Record<string, Result>): string {
  const best = bestTorch(results);
  const rows = Object.entries(results).map(([name, r]) => [
    name,
    r.median_ms.toFixed(1),
    `${Math.min(...r.step_ms).toFixed(1)}-${Math.max(...r.step_ms).toFixed(1)}`,
    r.tokens_per_sec.toFixed(0),
    `${(r.peak_bytes / 2 ** 30).toFixed(2)} GiB`,
    r.last_loss.toFixed(3),
    `${(r.tokens_per_sec / best).toFixed(2)}x`,
  ]);
  const all = [["", "ms/step", "range", "tokens/s", "peak memory", "loss", "of best torch"], ...rows];
  const widths = all[0]!.map((_, i) => Math.max(...all.map((row) => row[i]!.length)));
  return all.map((row) =>
    row.map((cell, i) => i ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)).join("  ")
  )
    .join("\n");
}

/** Names of the sides whose step times vary too much for their median to mean anything. */
function unsteady(results: Record<string, Result>): string[] {
  return Object.entries(results).filter(([, r]) => Math.max(...r.step_ms) > 1.5 * Math.min(...r.step_ms))
    .map(([name]) => name);
}

function bestTorch(results: Record<string, Result>): number {
  return Math.max(...Object.entries(results).map(([name, r]) => name === "loam" ? 0 : r.tokens_per_sec));
}

/** Writes bench/results/cpu-2026-01-31-small-V65-B8-T256-float32.json and returns its path. */
function save(o: Options, shape: Shape, load: number[], results: Record<string, Result>): string {
  const gpu = results["torch eager"]!.ready.device;
  const kind = (o.device === "cuda" ? gpu : "cpu").toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const date = new Date().toISOString().slice(0, 10);
  const { V, B, T } = shape;
  const path = `${import.meta.dirname}/results/${kind}-${date}-${o.preset}-V${V}-B${B}-T${T}-${o.dtype}.json`;
  Deno.mkdirSync(`${import.meta.dirname}/results`, { recursive: true });
  const report = {
    command: `deno task bench:peer ${Deno.args.join(" ")}`.trim(),
    date,
    cpu: os.cpus()[0]?.model ?? "unknown",
    device: gpu,
    deno: Deno.version.deno,
    torch: results["torch eager"]!.ready.version,
    options: { ...o, ...shape, torch_V: torchVocab(V) },
    load_before: load[0], // processes that wanted a core in the minute before
    ratio_to_best_torch: results.loam!.tokens_per_sec / bestTorch(results),
    results,
  };
  Deno.writeTextFileSync(path, JSON.stringify(report, null, 2) + "\n");
  return path;
}

if (import.meta.main) {
  await runMain(async () => {
    const options = { ...defaults, ...parseOverrides(Deno.args, defaults) };
    const shape = shapeOf(options), load = Deno.loadavg();
    console.log(
      `${options.preset}: ${flags(shape).join(" ")}, ${options.dtype}, ${options.device}, ` +
        `${options.threads} threads; PyTorch gets a vocabulary of ${torchVocab(shape.V)}`,
    );
    if (load[0]! > 0.5) console.log(`the machine is busy (load ${load[0]!.toFixed(2)}): expect noise`);

    const sides = await startSides(options, shape);
    await takeTurns(sides, options.rounds, options.steps);
    for (const side of sides) await side.stop();

    const tokens = shape.B * shape.T * options.accum;
    const results = Object.fromEntries(sides.map((side) => [side.name, summarise(side, tokens)]));
    console.log(`\n${table(results)}\n\nmedians of ${options.rounds} turns of ${options.steps} steps`);
    const noisy = unsteady(results);
    if (noisy.length > 0) {
      console.log(`not quiet: ${noisy.join(", ")} varied by more than 1.5x; run it again`);
    }
    console.log(`every step time is in ${save(options, shape, load, results)}`);
  });
}
