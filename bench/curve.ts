// Trains the same model on the same batches with train.ts and with PyTorch, from equal weights, and compares the losses of
// every step: LOAM_PYTHON=python3 deno run -P=bench bench/curve.ts --preset=tiny --data_dir=data/demo --max_iters=200
//
// loam's side is `deno task train` itself. What PyTorch is given: the float32 weights that the run began with, the run's
// config.json, and the list of windows that its loader read; it reads the token files on its own (torch_curve.py).
//
// --bf16_seeds=1337,1338,1339 compares loam with itself instead, without PyTorch: for each seed a run with float32 and one
// with bfloat16 matrix products (--bf16_gemm), and says how far they are apart beside how far the seeds are.
// --muon_rates=1e-3,2e-3,4e-3 compares AdamW with Muon: a run of each with each learning rate, whose min_lr is a tenth of it.
// --adamw_rates=... are AdamW's, where they are others, and --muon_seeds=1337,1338 takes each run once for each seed.
import { openDataset } from "../data/bins.ts";
import { Loader } from "../data/loader.ts";
import { runMain, UserError } from "../base/errors.ts";
import { readFlags } from "../base/flags.ts";
import { copyToHost, device, type DeviceName, open, tokenSource } from "../ffi/library.ts";
import { llamaConfig, type RunVariables } from "../model/configure.ts";
import { init } from "../model/llama.ts";
import { release, take } from "../runtime/memory.ts";
import { Parameters, type Slot } from "../runtime/optim.ts";
import { table } from "../base/format.ts";
import { writeSafetensors } from "../runtime/safetensors.ts";
import settings from "../deno.json" with { type: "json" };

/** Flags of this program; every other flag goes to train.ts. */
const OWN = {
  ...{ json: "", dtype: "", threads: navigator.hardwareConcurrency, bf16_seeds: "" },
  ...{ muon_rates: "", adamw_rates: "", muon_seeds: "1337" },
};

/** Losses of both sides, step by step. relative differences are |loam - torch| / torch. */
export type Curve = {
  command: string;
  device: string;
  act: string; // loam's type of weights and activations
  torch: { version: string; device: string; dtype: string; step_ms: number };
  steps: number;
  max_relative: number;
  max_at_step: number;
  last_relative: number;
  max_grad_norm_relative: number;
  loam: number[];
  reference: number[];
};

/** What train.ts writes to config.json, as far as it is needed here. */
type Config = RunVariables & {
  seed: number;
  batch_size: number;
  gradient_accumulation_steps: number;
  max_iters: number;
};

type Losses = { losses: number[]; grad_norms: number[]; val_losses: number[] };

/** Losses with float32 and bfloat16 products, each a mean over the last steps of a run, by seed. */
export type Bf16Comparison = {
  seeds: number[];
  float32: number[];
  bfloat16: number[];
  seed_range: number; // the largest less the smallest of float32
  mean_difference: number; // bfloat16 - float32, over seeds
  largest_difference: number; // of one seed
};

// ---- loam's side

/** Runs train.ts to its end and returns what it logged. */
async function trainHere(flags: string[], out_dir: string): Promise<Losses> {
  const quiet = ["--eval_interval=0", "--sample_interval=0", "--save_interval=0", "--log_interval=50"];
  const args = [
    ...settings.tasks.train.command.split(" ").slice(1),
    ...quiet,
    ...flags,
    `--out_dir=${out_dir}`,
  ];
  await finish("train.ts", Deno.execPath(), args);
  const lines = Deno.readTextFileSync(`${out_dir}/metrics.jsonl`).trimEnd().split("\n");
  const steps = lines.map((line) =>
    JSON.parse(line) as { loss: number; grad_norm: number; val_loss?: number }
  );
  return {
    losses: steps.map(({ loss }) => loss),
    grad_norms: steps.map(({ grad_norm }) => grad_norm),
    val_losses: steps.flatMap(({ val_loss }) => val_loss ?? []),
  };
}

// ---- loam with bfloat16 products beside loam with float32 ones

const LAST_STEPS = 50;

/** Compares runs of one model, one with each kind of product for every seed, by what `of` says of a run. */
export function compareBf16(
  seeds: number[],
  float32: Losses[],
  bfloat16: Losses[],
  of: (run: Losses) => number,
): Bf16Comparison {
  const [a, b] = [float32.map(of), bfloat16.map(of)];
  const differences = b.map((value, i) => value - a[i]!);
  return {
    seeds,
    float32: a,
    bfloat16: b,
    seed_range: Math.max(...a) - Math.min(...a),
    mean_difference: mean(differences),
    largest_difference: Math.max(...differences.map(Math.abs)),
  };
}

function mean(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Trains with both kinds of products for every seed, prints how far they are apart and writes it down. */
async function compareProducts(seeds: number[], flags: string[], dir: string, json: string): Promise<void> {
  const runs: Record<"float32" | "bfloat16", Losses[]> = { float32: [], bfloat16: [] };
  for (const seed of seeds) {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const own = [`--seed=${seed}`, `--bf16_gemm=${dtype === "bfloat16"}`];
      runs[dtype].push(await trainHere([...flags, "--device=cpu", ...own], `${dir}/${seed}-${dtype}`));
    }
  }
  const { float32, bfloat16 } = runs;
  const train = compareBf16(seeds, float32, bfloat16, ({ losses }) => mean(losses.slice(-LAST_STEPS)));
  const val = float32[0]!.val_losses.length > 0
    ? compareBf16(seeds, float32, bfloat16, ({ val_losses }) => val_losses.at(-1)!)
    : undefined;
  for (
    const [name, c] of [[`mean loss of the last ${LAST_STEPS} steps`, train], ["val loss", val]] as const
  ) {
    if (!c) continue;
    const rows = c.seeds.map((seed, i) => [`${seed}`, c.float32[i]!.toFixed(4), c.bfloat16[i]!.toFixed(4)]);
    console.log(table([["seed", "float32", "bfloat16"], ...rows]));
    console.log(
      `${name}: bfloat16 - float32 is ${c.mean_difference.toFixed(4)} over the seeds, at most ` +
        `${c.largest_difference.toFixed(4)} for one; float32 seeds are ${c.seed_range.toFixed(4)} apart`,
    );
  }
  const command = `bench/curve.ts ${Deno.args.join(" ")}`;
  const rounded = (curve: Losses) => ({ ...curve, losses: curve.losses.map((loss) => +loss.toFixed(5)) });
  const strip = (all: Losses[]) => all.map(rounded).map(({ losses, val_losses }) => ({ losses, val_losses }));
  const curves = { float32: strip(float32), bfloat16: strip(bfloat16) };
  if (json) Deno.writeTextFileSync(json, JSON.stringify({ command, train, val, ...curves }) + "\n");
}

// ---- Muon beside AdamW

/** A run of --muon_rates. val_losses: one each eval_interval steps. */
type RateRun = { optimizer: string; learning_rate: number; seed: number; val_losses: number[] };

/**
 * After which step a run was at a loss: between two evaluations, of which there is one each `every` steps, on the line from one to
 * the other. undefined where it never was.
 */
export function stepsTo(val_losses: number[], every: number, loss: number): number | undefined {
  const i = val_losses.findIndex((value) => value <= loss);
  if (i < 1) return i === 0 ? every : undefined;
  const [before, after] = [val_losses[i - 1]!, val_losses[i]!];
  return every * (i + (before - loss) / (before - after));
}

/**
 * Trains with each optimizer at each of its rates, for every seed, and says after which step Muon's best run is where AdamW's best
 * one ends, of the rates that are best over the seeds.
 */
async function compareOptimizers(
  rates: Record<string, number[]>,
  seeds: number[],
  flags: string[],
  dir: string,
  json: string,
): Promise<void> {
  const runs: RateRun[] = [];
  let steps = 0;
  for (const [optimizer, its] of Object.entries(rates)) {
    for (const [learning_rate, seed] of its.flatMap((rate) => seeds.map((seed) => [rate, seed] as const))) {
      const own = [
        `--optimizer=${optimizer}`,
        `--learning_rate=${learning_rate}`,
        `--min_lr=${learning_rate / 10}`,
      ];
      const out_dir = `${dir}/${optimizer}-${learning_rate}-${seed}`;
      const { losses, val_losses } = await trainHere([...flags, ...own, `--seed=${seed}`], out_dir);
      steps = losses.length;
      runs.push({ optimizer, learning_rate, seed, val_losses });
    }
  }
  const last = (run?: RateRun) => run?.val_losses.at(-1) ?? NaN;
  const of = (optimizer: string, rate: number) =>
    runs.filter((run) => run.optimizer === optimizer && run.learning_rate === rate);
  const best = Object.fromEntries(
    Object.entries(rates).map(([name, its]) => {
      const losses = its.map((rate) => mean(of(name, rate).map(last)));
      return [name, its[losses.indexOf(Math.min(...losses))]!];
    }),
  );
  const eval_interval = steps / runs[0]!.val_losses.length;
  const reached = seeds.map((_, i) => {
    const [adamw, muon] = ["adamw", "muon"].map((name) => of(name, best[name]!)[i]!);
    return stepsTo(muon!.val_losses, eval_interval, last(adamw));
  });
  const all = [...new Set(Object.values(rates).flat())].toSorted((a, b) => a - b);
  const row = (rate: number, seed: number) => {
    const losses = ["adamw", "muon"].map((name) => last(of(name, rate).find((run) => run.seed === seed)));
    return [`${rate}`, `${seed}`, ...losses.map((loss) => Number.isNaN(loss) ? "-" : loss.toFixed(4))];
  };
  console.log(table([
    ["learning_rate", "seed", "adamw", "muon"],
    ...all.flatMap((rate) => seeds.map((seed) => row(rate, seed))),
  ]));
  const after = reached.map((step) => step?.toFixed(0) ?? "none").join(", ");
  console.log(`Muon's best is where AdamW's best ends after ${after} of ${steps} steps`);
  const command = `bench/curve.ts ${Deno.args.join(" ")}`;
  if (json) {
    Deno.writeTextFileSync(
      json,
      JSON.stringify({ command, steps, eval_interval, best, reached, runs }) + "\n",
    );
  }
}

/** Writes what the run began with for PyTorch: weights.safetensors and windows.json. */
function writeStart(config: Config, dir: string): void {
  const dataset = openDataset(config.data_dir), c = llamaConfig(config, dataset.vocab_size);
  const parameters = new Parameters(init(c), { seed: config.seed, train: true });
  writeSafetensors(
    `${dir}/weights.safetensors`,
    parameters.slots.map((slot) => {
      const rows = unpaddedRows(slot), values = new Float32Array(slot.size / slot.tensor.shape[0]! * rows);
      return {
        name: `${slot.name}.weight`,
        dtype: "F32",
        shape: [rows, ...slot.tensor.shape.slice(1)],
        bytes: () => {
          const staging = take(values.byteLength);
          parameters.getMasters(slot.offset, values.length, staging.address);
          copyToHost(values, staging.address);
          release(staging);
          return new Uint8Array(values.buffer);
        },
      };
    }),
  );

  const { seed, batch_size, block_size, gradient_accumulation_steps, max_iters } = config;
  const options = { split: "train", batch_size, block_size, vocab_size: dataset.vocab_size } as const;
  const loader = new Loader(tokenSource, dataset, options),
    perStep = batch_size * gradient_accumulation_steps;
  const windows = Array.from(
    { length: max_iters },
    (_, step) =>
      Array.from(
        { length: gradient_accumulation_steps },
        (_, micro) =>
          loader.trainWindows({ seed, sample: step * perStep, micro })
            .map(({ shard, start }) => [shard, start]),
      ),
  );
  Deno.writeTextFileSync(
    `${dir}/windows.json`,
    JSON.stringify({ shards: dataset.train, model: c, windows }),
  );
}

/** Rows of a parameter without those that pad the vocabulary. */
function unpaddedRows({ tensor }: Slot): number {
  const start = tensor.buf.init!;
  return ("rows" in start && start.rows) || tensor.shape[0]!;
}

// ---- PyTorch's side, and the comparison

/** Runs a program, its output with ours, and waits until it has succeeded. */
async function finish(what: string, command: string, args: string[]): Promise<void> {
  const options = { args, cwd: `${import.meta.dirname}/..`, stdin: "null" } as const;
  let child: Deno.ChildProcess;
  try {
    child = new Deno.Command(command, options).spawn();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(`Cannot run ${what}: there is no ${command}; set LOAM_PYTHON to a Python with torch`);
  }
  const { success } = await child.status;
  if (!success) throw new UserError(`Cannot compare: ${what} failed; the cause stands above`);
}

/** |a - b| / |b|, the largest of them and its place. */
export function largestDifference(a: number[], b: number[]): { value: number; at: number } {
  const relative = b.map((value, i) => Math.abs((a[i] ?? NaN) - value) / Math.abs(value));
  if (a.length !== b.length || relative.some(Number.isNaN)) {
    return { value: NaN, at: relative.findIndex(Number.isNaN) };
  }
  const value = Math.max(...relative);
  return { value, at: relative.indexOf(value) };
}

function printed(curve: Curve): string {
  const percent = (x: number) => `${(100 * x).toPrecision(2)}%`;
  const every = Math.max(1, Math.ceil(curve.steps / 10));
  const steps = Array.from({ length: curve.steps }, (_, i) => i + 1)
    .filter((step) => step === 1 || step % every === 0 || step === curve.steps);
  return [
    table([
      ["step", "loam", "torch", "difference"],
      ...steps.map((step) => {
        const [a, b] = [curve.loam[step - 1]!, curve.reference[step - 1]!];
        return [`${step}`, a.toFixed(6), b.toFixed(6), percent(Math.abs(a - b) / b)];
      }),
    ]),
    `loam ${curve.act} on ${curve.device}, torch ${curve.torch.version} ${curve.torch.dtype} on ${curve.torch.device}`,
    `largest difference ${percent(curve.max_relative)}, at step ${curve.max_at_step}; ` +
    `${percent(curve.last_relative)} at the last, step ${curve.steps}; ` +
    `of gradient norms ${percent(curve.max_grad_norm_relative)}`,
  ].join("\n");
}

if (import.meta.main) {
  await runMain(async (args) => {
    const isOwn = (arg: string) => Object.hasOwn(OWN, arg.replace(/^--|=.*/g, ""));
    const own = { ...OWN, ...readFlags(args.filter(isOwn), OWN) };
    const flags = [...args.filter((arg) => !isOwn(arg)), `--threads=${own.threads}`];
    const dir = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_curve_" });
    try {
      if (own.bf16_seeds) {
        return await compareProducts(own.bf16_seeds.split(",").map(Number), flags, dir, own.json);
      }
      if (own.muon_rates) {
        const numbers = (text: string) => text.split(",").map(Number), muon = numbers(own.muon_rates);
        const rates = { adamw: own.adamw_rates ? numbers(own.adamw_rates) : muon, muon };
        return await compareOptimizers(rates, numbers(own.muon_seeds), flags, dir, own.json);
      }
      const loam = await trainHere([`--bf16_gemm=${own.dtype === "bfloat16"}`, ...flags], `${dir}/run`);
      const config: Config = JSON.parse(Deno.readTextFileSync(`${dir}/run/config.json`));
      open((config.device || "cpu") as DeviceName, { threads: own.threads });
      writeStart(config, dir);
      const dtype = own.dtype || (device.act === "bf16" ? "bfloat16" : "float32");
      const python = Deno.env.get("LOAM_PYTHON") ?? "python3";
      const on = device.library === "cuda" ? "cuda" : "cpu";
      await finish("torch_curve.py", python, [
        "bench/torch_curve.py",
        dir,
        `--device=${on}`,
        `--dtype=${dtype}`,
        `--threads=${own.threads}`,
      ]);
      const torch: Losses & Curve["torch"] = JSON.parse(Deno.readTextFileSync(`${dir}/torch.json`));
      const largest = largestDifference(loam.losses, torch.losses);
      const { version, step_ms } = torch;
      const curve: Curve = {
        command: `bench/curve.ts ${Deno.args.join(" ")}`,
        device: device.name,
        act: device.act,
        torch: { version, device: torch.device, dtype, step_ms },
        steps: config.max_iters,
        max_relative: largest.value,
        max_at_step: largest.at + 1,
        last_relative: Math.abs(loam.losses.at(-1)! - torch.losses.at(-1)!) / torch.losses.at(-1)!,
        max_grad_norm_relative: largestDifference(loam.grad_norms, torch.grad_norms).value,
        loam: loam.losses,
        reference: torch.losses,
      };
      console.log(printed(curve));
      if (own.json) Deno.writeTextFileSync(own.json, JSON.stringify(curve, null, 2) + "\n");
    } finally {
      Deno.removeSync(dir, { recursive: true });
    }
  });
}
