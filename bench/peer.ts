// deno task bench:peer: trains the same model in loam and in PyTorch (eager and torch.compile) on this machine, by turns, so
// that a change in clock speed or load meets all of them. On a CPU PyTorch runs twice: as it is installed, and tuned as its users
// may tune it, with tcmalloc (apt-get install libtcmalloc-minimal4) and, on AMD, with the kernels that MKL keeps for Intel. Prints
// medians and keeps every step time in bench/results/.
//
//   LOAM_PYTHON=python3 deno task bench:peer --preset=small --V=50257 --B=4
import os from "node:os";
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { lines } from "../base/lines.ts";
import { type Shape, SHAPES } from "./shapes.ts";
import { median } from "./median.ts";
import type { Report } from "./kernels.ts";
import { type Head, reportHead, saveReport, warnOfLoad } from "./report.ts";

const defaults = {
  preset: "small", // tiny, small, 124m or gpt-270m
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
  bf16_too: false, // CPU: loam with bf16 GEMM inputs as one more side
  lora_rank: 0, // loam with adapters of that rank beside frozen weights, of dtype, as one more side
  only: "", // some of the sides, such as loam or "loam,torch compile tuned"
  markdown: false, // print a row for docs/speed.md too
  alone: false, // each side ends before the next one starts: for models of which three do not fit on a card
  json: "", // where the results go; "" = a name in bench/results/ that says what was measured
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  ...each(whole(0, 2 ** 20), "V", "B", "T", "lora_rank"),
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
  settings: Record<string, string>; // of its environment
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

  /** settings: variables of its environment beside our own. */
  constructor(
    readonly name: string,
    readonly command: string,
    readonly args: string[],
    readonly settings: Record<string, string> = {},
  ) {}

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
      const options = { args: this.args, env: this.settings, cwd } as const;
      this.#child = new Deno.Command(this.command, { ...options, stdin: "piped", stdout: "piped" }).spawn();
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

/** The programs to compare, none of them started. preloads: the libraries that tune PyTorch. */
function chooseSides(o: Options, shape: Shape, preloads: string[]): Side[] {
  const { accum, threads, dtype, device, head_chunk, recompute } = o;
  const common = { ...shape, accum, threads, dtype };
  const loam = (name: string, dtype: string, lora_rank = 0) => {
    const args = flags({ ...common, dtype, device, head_chunk, recompute, lora_rank });
    return new Side(name, Deno.execPath(), ["run", "-q", "-P=bench", "bench/loam_steps.ts", ...args]);
  };
  const cudaOrCpu = device === "cuda" ? "cuda" : "cpu"; // emu is loam's alone
  const python = Deno.env.get("LOAM_PYTHON") ?? "python3";
  const torch = (name: string, mode: string[], settings: Record<string, string>) => {
    const args = flags({ ...common, V: torchVocab(shape.V), device: cudaOrCpu });
    return new Side(name, python, ["bench/torch_llama.py", "--serve", ...mode, ...args], settings);
  };
  const sides = [loam("loam", dtype)];
  if (o.bf16_too) sides.push(loam("loam bf16", "bfloat16"));
  if (o.lora_rank > 0) sides.push(loam("loam lora", dtype, o.lora_rank));
  sides.push(torch("torch eager", [], {}), torch("torch compile", ["--compile"], {}));
  if (preloads.length > 0) {
    const settings = { LD_PRELOAD: preloads.join(":") };
    sides.push(torch("torch eager tuned", [], settings));
    sides.push(torch("torch compile tuned", ["--compile"], settings));
  }
  if (!o.only) return sides;
  const names = o.only.split(","), unknown = names.find((name) => !sides.some((side) => side.name === name));
  if (unknown) {
    throw new UserError(
      `Cannot compare "${unknown}": it should be one of ${sides.map(({ name }) => name).join(", ")}`,
    );
  }
  return sides.filter(({ name }) => names.includes(name));
}

const TCMALLOC = /\/libtcmalloc(_minimal)?\.so\.4$/;

/**
 * Libraries that make PyTorch faster on this CPU: tcmalloc where the linker finds it, and on AMD one, compiled into a directory,
 * that tells MKL to take the kernels it keeps for Intel's.
 */
async function tuning(directory: string): Promise<string[]> {
  const found: string[] = [];
  const tcmalloc = (await output("/sbin/ldconfig", ["-p"])).split(/\s+/).find((path) => TCMALLOC.test(path));
  if (tcmalloc) found.push(tcmalloc);
  else console.log("no tcmalloc for PyTorch: apt-get install libtcmalloc-minimal4");
  if (os.cpus()[0]?.model.includes("AMD")) {
    const source = `${directory}/mkl_intel.c`, library = `${directory}/libmkl_intel.so`;
    Deno.writeTextFileSync(source, "int mkl_serv_intel_cpu_true(void) { return 1; }\n");
    await output("cc", ["-shared", "-fPIC", "-o", library, source]);
    found.push(library);
  }
  return found;
}

/** What a program prints. Throws UserError where it cannot be run. */
async function output(command: string, args: string[]): Promise<string> {
  try {
    const { success, stdout } = await new Deno.Command(command, { args, stderr: "inherit" }).output();
    if (success) return new TextDecoder().decode(stdout);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  throw new UserError(
    `Cannot run ${command} ${
      args.join(" ")
    }: it failed, and the cause stands above; where PyTorch was to be tuned, leave that out with --only=`,
  );
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
    settings: baseNames(side.settings),
    step_ms: side.step_ms,
    ready: side.ready!,
  };
}

function table(results: Record<string, Result>): string {
  const best = bestTorch(results)?.tokens_per_sec;
  const rows = Object.entries(results).map(([name, r]) => [
    name,
    r.median_ms.toFixed(1),
    `${Math.min(...r.step_ms).toFixed(1)}-${Math.max(...r.step_ms).toFixed(1)}`,
    r.tokens_per_sec.toFixed(0),
    `${(r.peak_bytes / 2 ** 30).toFixed(2)} GiB`,
    r.last_loss.toFixed(3),
    best === undefined ? "" : `${(r.tokens_per_sec / best).toFixed(2)}x`,
  ]);
  const all = [["", "ms/step", "range", "tokens/s", "peak memory", "loss", "of best torch"], ...rows];
  const widths = all[0]!.map((_, i) => Math.max(...all.map((row) => row[i]!.length)));
  return all.map((row) =>
    row.map((cell, i) => i ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)).join("  ")
  )
    .join("\n");
}

/** Settings without the directories of this machine: LD_PRELOAD=libtcmalloc_minimal.so.4:libmkl_intel.so. */
function baseNames(settings: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [name, value.replace(/[^:]*\//g, "")]),
  );
}

/** "(LD_PRELOAD=libtcmalloc_minimal.so.4:libmkl_intel.so)"; "" for none. */
function describe(settings: Record<string, string>): string {
  const all = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
  return all.length > 0 ? `(${all.join(", ")})` : "";
}

/** A row of the table in docs/speed.md: tokens/s of loam, with bf16 GEMMs and of the best PyTorch, ratios, memory. */
function markdownRow(o: Options, { V, B, T }: Shape, results: Record<string, Result>): string {
  const best = bestTorch(results), sides = [results.loam, results["loam bf16"], results[best?.name ?? ""]];
  const rate = (r?: Result) =>
    r ? r.tokens_per_sec.toLocaleString("en-US", { maximumFractionDigits: 0 }) : "-";
  const ratio = (r?: Result) => r && best ? `${(r.tokens_per_sec / best.tokens_per_sec).toFixed(2)}x` : "-";
  const memory = sides.map((r) => r ? (r.peak_bytes / 2 ** 30).toFixed(2) : "-").join(" / ");
  const shape = `${o.preset}, V=${V}, B=${B}, T=${T}, ${o.dtype}`;
  const cells = [
    shape,
    ...sides.map(rate),
    best?.name ?? "-",
    ratio(sides[0]),
    ratio(sides[1]),
    `${memory} GiB`,
  ];
  return `| ${cells.join(" | ")} |`;
}

/** ms that a step of each of loam's sides would take at the processor's peak and bandwidth; of none on a GPU. */
async function wallsOf(
  o: Options,
  shape: Shape,
  names: string[],
  directory: string,
): Promise<Record<string, number>> {
  const walls: Record<string, number> = {}, json = `${directory}/kernels.json`;
  if (o.device !== "cpu" || o.accum > 1) return walls;
  const { preset, threads, head_chunk, device } = o, { B, T, V } = shape;
  for (const name of names.filter((name) => /^loam( bf16)?$/.test(name))) {
    const bf16_gemm = `${name === "loam bf16" || o.dtype === "bfloat16"}`;
    const args = flags({ preset, B, T, V, threads, head_chunk, device, bf16_gemm, json, filter: "copy" });
    await output(Deno.execPath(), ["run", "-q", "-P=bench", "bench/kernels.ts", ...args]);
    walls[name] = (JSON.parse(Deno.readTextFileSync(json)) as Report).step_wall_ms!;
  }
  return walls;
}

/** A row of the second table in docs/speed.md: of each of loam's sides the wall, the share reached, and the ratio at all of it. */
function wallRow(
  o: Options,
  { V, B, T }: Shape,
  results: Record<string, Result>,
  walls: Record<string, number>,
): string {
  const best = bestTorch(results), tokens = B * T * 1000;
  const cells = ["loam", "loam bf16"].flatMap((name) => {
    const wall = walls[name], side = results[name];
    if (!wall || !side || !best) return ["-", "-", "-"];
    const ratio = tokens / wall / best.tokens_per_sec;
    const beyond = wall > side.median_ms ? ", disturbed" : ""; // no step is faster than its wall
    const share = `${(100 * wall / side.median_ms).toFixed(0)}%${beyond}`;
    return [`${wall.toFixed(wall < 100 ? 1 : 0)} ms`, share, `${ratio.toFixed(2)}x`];
  });
  return `| ${[`${o.preset}, V=${V}, B=${B}, T=${T}, ${o.dtype}`, ...cells].join(" | ")} |`;
}

/** Names of the sides whose step times vary too much for their median to mean anything. */
function unsteady(results: Record<string, Result>): string[] {
  return Object.entries(results).filter(([, r]) => Math.max(...r.step_ms) > 1.5 * Math.min(...r.step_ms))
    .map(([name]) => name);
}

/** The fastest PyTorch and its settings; undefined where none ran. */
function bestTorch(
  results: Record<string, Result>,
): { name: string; settings: Record<string, string>; tokens_per_sec: number } | undefined {
  return Object.entries(results).filter(([name]) => name.startsWith("torch"))
    .map(([name, { settings, tokens_per_sec }]) => ({ name, settings, tokens_per_sec }))
    .sort((a, b) => b.tokens_per_sec - a.tokens_per_sec)[0];
}

/** Writes bench/results/cpu-2026-01-31-small-V65-B8-T256-float32.json, or to --json, and returns the path. */
function save(
  o: Options,
  shape: Shape,
  head: Head,
  results: Record<string, Result>,
  failures: Record<string, string>,
  walls_ms: Record<string, number>,
): string {
  const { loam } = results, best = bestTorch(results), bf16 = results["loam bf16"];
  const ratio = (side?: Result) => side && best ? side.tokens_per_sec / best.tokens_per_sec : null;
  const gpu = Object.values(results)[0]?.ready.device ?? o.device;
  const kind = (o.device === "cuda" ? gpu : o.device).toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const { V, B, T } = shape;
  const name = `${kind}-${head.date}-${o.preset}-V${V}-B${B}-T${T}-${o.dtype}`;
  const report = {
    ...head,
    device: gpu,
    torch: Object.entries(results).find(([name]) => name.startsWith("torch"))?.[1].ready.version ?? null,
    options: { ...o, ...shape, torch_V: torchVocab(V) },
    best_torch: best ?? null,
    ratio_to_best_torch: ratio(loam),
    ...(bf16 ? { bf16_ratio_to_best_torch: ratio(bf16) } : {}),
    walls_ms,
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

    const directory = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_peer_" });
    const wantsTuned = options.device === "cpu" && Deno.build.os === "linux" &&
      (!options.only || options.only.includes("tuned"));
    const { rounds, steps } = options, sides: Side[] = [], tokens = shape.B * shape.T * options.accum;
    let walls: Record<string, number> = {};
    const outcome = () => {
      const ran = sides.filter((side) => !side.failure && side.last);
      const results = Object.fromEntries(ran.map((side) => [side.name, summarise(side, tokens)]));
      const failures = Object.fromEntries(sides.flatMap((s) => s.failure ? [[s.name, s.failure]] : []));
      return { ran, results, failures, path: save(options, shape, head, results, failures, walls) };
    };
    try {
      sides.push(...chooseSides(options, shape, wantsTuned ? await tuning(directory) : []));
      for (const group of options.alone ? sides.map((side) => [side]) : [sides]) {
        await takeTurns(group, rounds, steps);
        outcome(); // saved: what comes may be cut short
      }
      walls = await wallsOf(options, shape, Object.keys(outcome().results), directory);
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }

    const { ran, results, failures, path } = outcome();
    console.log(`\n${table(results)}\n\nmedians of ${rounds} turns of ${steps} steps`);
    if (options.markdown) console.log(`markdown: ${markdownRow(options, shape, results)}`);
    if (options.markdown) console.log(`wall: ${wallRow(options, shape, results, walls)}`);
    const best = bestTorch(results), noisy = unsteady(results);
    if (best) console.log(`best PyTorch: ${best.name} ${describe(best.settings)}`.trim());
    if (noisy.length > 0) {
      console.log(`not quiet: ${noisy.join(", ")} varied by more than 1.5x; run it again`);
    }
    console.log(`every step time is in ${path}`);
    for (const message of Object.values(failures)) console.error(`error: ${message}`);
    if (ran.length < sides.length) Deno.exit(1);
  });
}
