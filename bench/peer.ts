// deno task bench:peer: trains the same model in loam and in PyTorch (eager and torch.compile) on this machine, by turns, so
// that a change in clock speed or load meets all of them. Prints medians and keeps every step time in bench/results/.
//
//   LOAM_PYTHON=python3 deno task bench:peer --preset=small --V=50257 --B=4
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { lines } from "./lines.ts";
import { type Shape, SHAPES } from "./shapes.ts";
import { median } from "./median.ts";
import { type Head, reportHead, saveReport, warnOfLoad } from "./report.ts";

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
  head_chunk: 2048, // loam's rows whose logits are in memory at a time
  recompute: "norm_swiglu", // what loam's backward computes again; see train.ts
  only: "", // some of the sides, such as loam or "loam,torch compile"
  alone: false, // each side ends before the next one starts: for models of which three do not fit on a card
  json: "", // where the results go; "" = a name in bench/results/ that says what was measured
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  ...each(whole(0, 2 ** 20), "V", "B", "T"),
  ...each(whole(1, 2 ** 20), "accum", "rounds", "steps", "head_chunk"),
  threads: whole(1, 1024),
};

const PAUSE_MS = 300; // between turns: OpenMP threads spin for up to 200 ms after their last work

/** What a side says when it has built and warmed up its model, and after each turn. */
type Ready = {
  ready: true;
  parameters: number;
  version: string;
  device: string;
  blas?: string;
  planned_bytes?: number; // of device memory, by model/plan.ts
};
type Turn = { step_ms: number[]; loss: number; peak_bytes: number };

type Result = {
  median_ms: number;
  tokens_per_sec: number;
  peak_bytes: number;
  last_loss: number;
  step_ms: number[];
  ready: Ready;
};

/** One of the processes that are compared. It trains only while run() waits for it. */
class Side {
  readonly step_ms: number[] = [];
  ready: Ready | undefined;
  last: Turn | undefined;
  failure: string | undefined;
  #child: Deno.ChildProcess | undefined;
  #input: WritableStreamDefaultWriter<Uint8Array> | undefined;
  #output: AsyncGenerator<string, void> | undefined;

  constructor(readonly name: string, readonly command: string, readonly args: string[]) {}

  /** Does something with this side unless it has failed. A side that fails is left out from then on; the others go on. */
  async attempt(act: () => Promise<void>): Promise<void> {
    if (this.failure) return;
    try {
      await act();
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      this.failure = error.message;
    }
  }

  /** Starts the process and waits until the model is built and warmed up. */
  async start(): Promise<void> {
    const cwd = `${import.meta.dirname}/..`;
    try {
      this.#child = new Deno.Command(this.command, { args: this.args, cwd, stdin: "piped", stdout: "piped" })
        .spawn();
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      throw new UserError(
        `Cannot run ${this.name}: there is no ${this.command}; set LOAM_PYTHON to a Python that has torch`,
      );
    }
    this.#input = this.#child.stdin.getWriter();
    this.#output = lines(this.#child.stdout);
    this.ready = await this.#answer() as Ready;
  }

  /** Runs one step that is not counted, then `count` that are. */
  async run(count: number): Promise<void> {
    await this.#input!.write(new TextEncoder().encode(`steps ${count + 1}\n`)).catch(() => {}); // #answer() says so
    this.last = await this.#answer() as Turn;
    this.step_ms.push(...this.last.step_ms.slice(1));
  }

  async #answer(): Promise<unknown> {
    const { value, done } = await this.#output!.next();
    if (done) throw new UserError(`Cannot run ${this.name}: its process ended early; the cause stands above`);
    return JSON.parse(value);
  }

  /** Lets the process end by closing its input. */
  async stop(): Promise<void> {
    await this.#input?.close().catch(() => {}); // it may have ended already
    await this.#child?.status;
  }
}

function shapeOf(o: Options): Shape {
  const preset = SHAPES[o.preset];
  if (!preset) {
    throw new UserError(
      `Cannot use preset ${o.preset}: it should be one of ${Object.keys(SHAPES).join(", ")}`,
    );
  }
  return { ...preset, V: o.V || preset.V, B: o.B || preset.B, T: o.T || preset.T };
}

/** loam pads the vocabulary to a multiple of 64 by itself; PyTorch users do so for large ones (50257 -> 50304). */
function torchVocab(V: number): number {
  return V < 1000 ? V : Math.ceil(V / 64) * 64;
}

function flags(values: Record<string, string | number>): string[] {
  return Object.entries(values).map(([name, value]) => `--${name}=${value}`);
}

/** The programs to compare, none of them started. */
function chooseSides(o: Options, shape: Shape): Side[] {
  const { accum, threads, dtype, device, head_chunk, recompute } = o;
  const loam = flags({ ...shape, accum, threads, dtype, device, head_chunk, recompute });
  const cudaOrCpu = device === "cuda" ? "cuda" : "cpu"; // emu is loam's alone
  const torch = flags({ ...shape, V: torchVocab(shape.V), accum, threads, dtype, device: cudaOrCpu });
  const python = Deno.env.get("LOAM_PYTHON") ?? "python3";
  const sides = [
    new Side("loam", Deno.execPath(), ["run", "-q", "-P=bench", "bench/loam_steps.ts", ...loam]),
    new Side("torch eager", python, ["bench/torch_llama.py", "--serve", ...torch]),
    new Side("torch compile", python, ["bench/torch_llama.py", "--serve", "--compile", ...torch]),
  ];
  if (!o.only) return sides;
  const names = o.only.split(","), unknown = names.find((name) => !sides.some((side) => side.name === name));
  if (unknown) {
    throw new UserError(
      `Cannot compare "${unknown}": it should be one of ${sides.map(({ name }) => name).join(", ")}`,
    );
  }
  return sides.filter(({ name }) => names.includes(name));
}

/** Starts sides one after the other, since warming up uses all cores, has them take turns and ends them. */
async function takeTurns(sides: Side[], rounds: number, steps: number): Promise<void> {
  for (const side of sides) await side.attempt(() => side.start());
  for (let round = 0; round < rounds; round++) {
    for (const side of sides) {
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      await side.attempt(() => side.run(steps));
    }
  }
  for (const side of sides) await side.stop();
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

function table(results: Record<string, Result>): string {
  const best = bestTorch(results);
  const rows = Object.entries(results).map(([name, r]) => [
    name,
    r.median_ms.toFixed(1),
    `${Math.min(...r.step_ms).toFixed(1)}-${Math.max(...r.step_ms).toFixed(1)}`,
    r.tokens_per_sec.toFixed(0),
    `${(r.peak_bytes / 2 ** 30).toFixed(2)} GiB`,
    r.last_loss.toFixed(3),
    best === null ? "" : `${(r.tokens_per_sec / best).toFixed(2)}x`,
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

/** Tokens a second of the faster PyTorch, null where none ran. */
function bestTorch(results: Record<string, Result>): number | null {
  const torch = Object.entries(results).filter(([name]) => name !== "loam");
  return torch.length > 0 ? Math.max(...torch.map(([, r]) => r.tokens_per_sec)) : null;
}

/** Writes bench/results/cpu-2026-01-31-small-V65-B8-T256-float32.json, or to --json, and returns the path. */
function save(
  o: Options,
  shape: Shape,
  head: Head,
  results: Record<string, Result>,
  failures: Record<string, string>,
): string {
  const { loam } = results, best = bestTorch(results);
  const gpu = Object.values(results)[0]?.ready.device ?? o.device;
  const kind = (o.device === "cuda" ? gpu : o.device).toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const { V, B, T } = shape;
  const name = `${kind}-${head.date}-${o.preset}-V${V}-B${B}-T${T}-${o.dtype}`;
  const report = {
    ...head,
    device: gpu,
    torch: Object.entries(results).find(([name]) => name !== "loam")?.[1].ready.version ?? null,
    options: { ...o, ...shape, torch_V: torchVocab(V) },
    ratio_to_best_torch: loam && best !== null ? loam.tokens_per_sec / best : null,
    results,
    failures,
  };
  return saveReport(report, name, o.json);
}

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      return console.log(
        help(
          "Train the same model in loam and in PyTorch, by turns",
          defaults,
          Deno.readTextFileSync(import.meta.filename!),
        ),
      );
    }
    const options = { ...defaults, ...readFlags(args, defaults, { ranges }) };
    const shape = shapeOf(options), head = reportHead("deno task bench:peer");
    console.log(
      `${options.preset}: ${flags(shape).join(" ")}, ${options.dtype}, ${options.device}, ` +
        `${options.threads} threads; PyTorch gets a vocabulary of ${torchVocab(shape.V)}`,
    );
    warnOfLoad(head.load_before);

    const sides = chooseSides(options, shape), { rounds, steps } = options;
    for (const group of options.alone ? sides.map((side) => [side]) : [sides]) {
      await takeTurns(group, rounds, steps);
    }

    const tokens = shape.B * shape.T * options.accum;
    const ran = sides.filter((side) => !side.failure);
    const results = Object.fromEntries(ran.map((side) => [side.name, summarise(side, tokens)]));
    const failures = Object.fromEntries(sides.flatMap((s) => s.failure ? [[s.name, s.failure]] : []));
    console.log(`\n${table(results)}\n\nmedians of ${rounds} turns of ${steps} steps`);
    const noisy = unsteady(results);
    if (noisy.length > 0) {
      console.log(`not quiet: ${noisy.join(", ")} varied by more than 1.5x; run it again`);
    }
    console.log(`every step time is in ${save(options, shape, head, results, failures)}`);
    for (const message of Object.values(failures)) console.error(`error: ${message}`);
    if (ran.length < sides.length) Deno.exit(1);
  });
}
