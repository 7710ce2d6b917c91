// Times checkpoints of a size: how long saving holds training up and how long it takes in all, resuming, and reading the files
// once, from the disk where this may drop its cache (root on Linux). Prints a table; each line is the median of the rounds.
//
//   deno run -q -P=bench bench/checkpoint.ts --mb=1000
//
// With --train=tiny,small,85M runs of these sizes in its place: steps beside which a checkpoint is written against those before, and how long a
// process takes to its first step, of a new run and of one that goes on, whose files come from the disk.
import process from "node:process";
import { runMain, UserError } from "../base/errors.ts";
import { help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";
import { lines } from "../base/lines.ts";
import { open } from "../ffi/library.ts";
import {
  ALONE,
  type CheckpointContent,
  loadCheckpoint,
  momentsFiles,
  READ_BYTES,
  resolveCheckpoint,
  saveCheckpoint,
  weightsFile,
} from "../runtime/checkpoint.ts";
import { Saver } from "../runtime/saver.ts";
import { readSums } from "../runtime/sums.ts";
import { fixed, writeFloats } from "../runtime/tensor.ts";
import { checkpointName } from "../runtime/trainer_state.ts";
import { median } from "./median.ts";
import { reportHead, saveReport, warnOfLoad } from "./report.ts";

const defaults = {
  mb: 1000, // of a checkpoint: a third are weights, the others moments
  rounds: 5, // of each line
  threads: navigator.hardwareConcurrency, // of the CPU
  train: "", // times runs of train.ts instead, of these models, such as tiny,small,85M
  work_dir: "/tmp", // gets a directory for the time of the run
  json: "", // where the results go; "" = bench/results/checkpoint-DATE.json, with --train resume-DATE.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = { mb: whole(1), rounds: whole(1, 1000), threads: whole(1, 1024) };
const PIECE = 1 << 20; // floats

type Cost = { seconds: number; cpu_seconds: number };

/** A checkpoint of float32 tensors of a size in all. */
function contentOf(mb: number): CheckpointContent {
  const pieces = Math.max(1, Math.round(mb * 1e6 / 12 / PIECE));
  const values = Float32Array.from({ length: PIECE }, (_, i) => Math.sin(i));
  const tensor = (name: string) => {
    const { address } = fixed([pieces, PIECE], "f32", "constants");
    for (let i = 0; i < pieces; i++) writeFloats(address + BigInt(4 * i * PIECE), values, "f32");
    return { name, shape: [pieces, PIECE], address, dtype: "f32" as const };
  };
  const counts = { step: 1, updates: 1, skipped: 0, skipped_row: 0, tokens: 1, order: "", samples: 1 };
  const best = { val_loss: null, best_val_loss: null, best_step: null };
  return {
    model: [tensor("w")],
    optimizer: [tensor("m"), tensor("v")],
    files: { "config.json": "{}\n" },
    state: { ...counts, ...best, tokenizer: null, data: {}, config: {}, versions: {} },
  };
}

async function timed(act: () => unknown): Promise<Cost> {
  const cpu = process.cpuUsage(), start = performance.now();
  await act();
  const { user, system } = process.cpuUsage(cpu);
  return { seconds: (performance.now() - start) / 1000, cpu_seconds: (user + system) / 1e6 };
}

/** Reads the large files of a checkpoint and does nothing with them. */
function readOnce(directory: string): void {
  const buffer = new Uint8Array(READ_BYTES);
  for (const path of [weightsFile(directory), ...momentsFiles(directory)]) {
    using file = Deno.openSync(path);
    while (file.readSync(buffer) !== null);
  }
}

/** Has the next reads come from the disk; false where that is not allowed. */
function dropCache(): boolean {
  const args = ["-c", "echo 1 > /proc/sys/vm/drop_caches"];
  return new Deno.Command("sh", { args, stderr: "null" }).outputSync().success;
}

const TRAIN = "run -q -P=train train.ts --device=cpu --eval_interval=0 --sample_interval=0".split(" ");
const MODELS: Record<string, string[]> = { // beside the presets
  "85M": "--preset=small --n_layer=12 --n_embd=768 --n_head=12 --n_kv_head=12 --n_inner=2048 --batch_size=1"
    .split(" "),
};
const SAVES_AFTER = 70; // steps, of which the first four are left out; a save of 1 GB takes some fifty of 85M
const SAVES = 2;

/** Seconds of a run of train.ts from its start to its first step, and of each step: which it was, and whether a save went on. */
async function timeRun(
  flags: string[],
): Promise<{ first: number; steps: [n: number, s: number, saving: boolean][] }> {
  const start = performance.now(), steps: [number, number, boolean][] = [];
  const child = new Deno.Command(Deno.execPath(), { args: [...TRAIN, ...flags], stdout: "piped" }).spawn();
  let first = 0, last = start, saving = false;
  for await (const line of lines(child.stdout)) {
    const now = performance.now(), [, step] = /^step +(\d+)\//.exec(line) ?? [];
    if (line.startsWith("saved ")) saving = false;
    if (step === undefined) continue;
    first ||= (now - start) / 1000;
    steps.push([Number(step), (now - last) / 1000, saving]);
    if (Number(step) % SAVES_AFTER === 0) saving = true;
    last = now;
  }
  if (!(await child.status).success) throw new UserError(`Cannot measure: deno ${flags.join(" ")} failed`);
  return { first, steps };
}

/** Prints and keeps what runs of each size take. */
async function timeRuns(o: Options): Promise<void> {
  const head = reportHead("deno run -q -P=bench bench/checkpoint.ts"), rows = [];
  warnOfLoad(head.load_before);
  for (const model of o.train.split(",")) {
    const shape = MODELS[model] ?? [`--preset=${model}`];
    const run = Deno.makeTempDirSync({ dir: o.work_dir, prefix: "loam_checkpoint_" });
    try {
      const flags = [
        ...shape,
        `--threads=${o.threads}`,
        "--gradient_accumulation_steps=1",
        `--out_dir=${run}/run`,
      ];
      const fresh = await timeRun([
        ...flags,
        `--max_iters=${SAVES * SAVES_AFTER}`,
        `--save_interval=${SAVES_AFTER}`,
      ]);
      const directory = resolveCheckpoint(`${run}/run`);
      dropCache();
      const read = await timed(() => readOnce(directory));
      dropCache();
      const resumed = await timeRun([`--resume=${run}/run`, `--max_iters=${SAVES * SAVES_AFTER + 2}`]);
      const of = (isSaving: boolean) =>
        fresh.steps.filter(([n, , saving]) => saving === isSaving && n > 4 && n % SAVES_AFTER !== 1 // the copy is made before that one
        ).map(([, seconds]) => seconds);
      const bytes = [weightsFile(directory), ...momentsFiles(directory)].reduce(
        (n, path) => n + Deno.statSync(path).size,
        0,
      );
      rows.push({
        model,
        megabytes: bytes / 1e6,
        start_to_first_step_s: fresh.first,
        read_once_s: read.seconds,
        resume_to_first_step_s: resumed.first,
        step_s: of(false),
        step_while_saving_s: of(true),
      });
    } finally {
      Deno.removeSync(run, { recursive: true });
    }
  }
  const ms = (seconds: number[]) =>
    seconds.length === 0 ? "" : `${(1000 * median(seconds)).toFixed(1)} (${seconds.length})`;
  const titles = [
    "",
    "MB",
    "new: s to first step",
    "read once, s",
    "resumed: s to first step",
    "ms a step (of)",
    "while saving (of)",
  ];
  console.log(table([
    titles,
    ...rows.map((r) => [
      r.model,
      r.megabytes.toFixed(0),
      ...[r.start_to_first_step_s, r.read_once_s, r.resume_to_first_step_s].map((s) => s.toFixed(2)),
      ...[ms(r.step_s), ms(r.step_while_saving_s)],
    ]),
  ]));
  console.log(`written to ${saveReport({ ...head, options: o, rows }, `resume-${head.date}`, o.json)}`);
}

async function main(o: Options): Promise<void> {
  if (o.train !== "") return await timeRuns(o);
  const head = reportHead("deno run -q -P=bench bench/checkpoint.ts");
  warnOfLoad(head.load_before);
  open("cpu", { threads: o.threads });
  const run = Deno.makeTempDirSync({ dir: o.work_dir, prefix: "loam_checkpoint_" }),
    content = contentOf(o.mb);
  const costs: Record<string, Cost[]> = {};
  const time = async (name: string, act: () => unknown) => (costs[name] ??= []).push(await timed(act));
  try {
    await using saver = new Saver(ALONE, () => {}, 0);
    await saver.prepare(content);
    for (let step = 1; step <= o.rounds; step++) {
      content.state.step = 2 * step;
      await time("save, all of it", () => saveCheckpoint(run, content, 2));
      content.state.step++;
      const stall = step === 1 ? "the first save beside training: stall" : "save beside training: stall";
      await time(stall, () => saver.save(run, content, 2));
      await time("save beside training: the rest", () => saver.finish());
      const directory = `${run}/checkpoints/${checkpointName(content.state.step)}`;
      const sums = readSums(directory),
        resume = () => loadCheckpoint(directory, content.model, content.optimizer, sums);
      await time("read once, cached", () => readOnce(directory));
      await time("resume, cached", resume);
      if (!dropCache()) continue;
      await time("read once, from the disk", () => readOnce(directory));
      dropCache();
      await time("resume, from the disk", resume);
    }
  } finally {
    Deno.removeSync(run, { recursive: true });
  }
  const rows = Object.entries(costs).map(([name, all]) => {
    const of = (key: keyof Cost) => median(all.map((cost) => cost[key])).toFixed(2);
    return [name, of("seconds"), of("cpu_seconds")];
  });
  console.log(`a checkpoint of ${o.mb} MB, ${o.threads} threads`);
  console.log(table([["", "seconds", "CPU seconds"], ...rows]));
  console.log(`written to ${saveReport({ ...head, options: o, costs }, `checkpoint-${head.date}`, o.json)}`);
}

if (import.meta.main) {
  await runMain(async (args) => {
    if (!args.includes("--help")) {
      return await main({ ...defaults, ...readFlags(args, defaults, { ranges }) });
    }
    const source = Deno.readTextFileSync(import.meta.filename!);
    console.log(help("Time saving checkpoints and resuming from them", defaults, source));
  });
}
