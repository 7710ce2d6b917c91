// What reading data costs: the time of a batch as a share of a training step, and resident memory while windows all over a
// large dataset are read: deno run -P=bench bench/loader.ts
//
// The dataset is made up, below /tmp, and removed afterwards; it lies in the page cache when it is read. The step is that of
// `deno task train` itself with --preset=tiny on the same files.
import { median } from "./median.ts";
import { type Head, reportHead, saveReport } from "./report.ts";
import { openDataset, shardHeader } from "../data/bins.ts";
import { Loader, type Position } from "../data/loader.ts";
import { openData } from "../data/mix.ts";
import { runMain, UserError } from "../base/errors.ts";
import { allocateHost, device, open, tokenSource } from "../ffi/library.ts";
import { presets } from "../model/presets.ts";
import { between, each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";
import settings from "../deno.json" with { type: "json" };

const defaults = {
  gb: 2, // size of the dataset
  shard_tokens: 100_000_000, // as prepare's
  steps: 300, // of the training run that a batch is held against
  batches: 50, // in each of 41 timings
  json: "", // where the results go; "" = bench/results/loader-<date>.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  gb: between(0.001),
  ...each(whole(1), "shard_tokens", "steps", "batches"),
};

const V = 257; // of the tokenizer bytes
const TIMINGS = 41;
const SAMPLES = 10; // of resident memory

/** Time of one batch. heap_bytes: garbage that it leaves. */
type BatchTime = { us: number; us_least: number; us_most: number; heap_bytes: number };
/** Resident memory after so much of the dataset was read, from /proc/self/status. */
type Memory = { read_mb: number; rss_mb: number; file_mb: number; anon_mb: number };

/** What is in the JSON file. */
export type Report = Head & {
  isa: string;
  dataset: { bytes: number; shards: number };
  tiny: {
    B: number;
    T: number;
    batch: BatchTime;
    batch_of_mix: BatchTime;
    step_ms: number;
    share_of_step: number;
  };
  memory: { B: number; T: number; ms: number; gb_per_sec: number; samples: Memory[] };
};

// ---- a dataset

/** Writes a dataset of random tokens. */
function writeDataset(dir: string, tokens: number, shard_tokens: number): void {
  Deno.mkdirSync(dir);
  const noise = Uint16Array.from({ length: 1 << 21 }, () => Math.random() * V);
  const shards: { file: string; tokens: number; sha256: string }[] = [];
  const write = (file: string, tokens: number) => {
    writeShard(`${dir}/${file}`, noise, tokens);
    shards.push({ file, tokens, sha256: "" });
  };
  for (let left = tokens, i = 0; left > 0; left -= shard_tokens, i++) {
    write(`train_${String(i).padStart(6, "0")}.bin`, Math.min(left, shard_tokens));
  }
  write("val_000000.bin", 100_000);
  const size = { documents: 0, tokens: 0, bytes: 0 };
  const meta = {
    format: "loam-bins",
    version: 1,
    tokenizer: "bytes",
    vocab_size: V,
    eot: V - 1,
    token_bytes: 2,
  };
  Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify({ ...meta, train: size, val: size, shards }));
}

function writeShard(path: string, noise: Uint16Array, tokens: number): void {
  using file = Deno.openSync(path, { write: true, create: true });
  const write = (bytes: Uint8Array) => {
    for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
  };
  write(shardHeader(2, tokens));
  for (let left = tokens; left > 0; left -= noise.length) {
    write(new Uint8Array(noise.buffer, 0, 2 * Math.min(left, noise.length)));
  }
}

// ---- time of a batch

function position(sample: number): Position {
  return { seed: 1337, sample, micro: 0 };
}

/** Reads the batches of one step after the other. */
class Reader {
  readonly #loader: Loader;
  readonly #x: bigint;
  readonly #y: bigint;
  #step = 0;
  readonly #batch_size: number;

  constructor(data_dir: string, B: number, T: number) {
    const options = { split: "train", batch_size: B, block_size: T, vocab_size: V } as const;
    this.#loader = new Loader(tokenSource, openData(data_dir, openDataset), options);
    this.#batch_size = B;
    this.#x = allocateHost(4 * B * T);
    this.#y = allocateHost(4 * B * T);
  }

  get n_windows(): number {
    return this.#loader.n_windows;
  }

  read(batches: number): void {
    for (let i = 0; i < batches; i++) {
      this.#loader.trainBatch(this.#x, this.#y, position(this.#batch_size * this.#step++));
    }
  }
}

function timeBatch(reader: Reader, batches: number): BatchTime {
  reader.read(10 * batches); // warms up
  const us: number[] = [], heap: number[] = [];
  for (let i = 0; i < TIMINGS; i++) {
    const before = Deno.memoryUsage().heapUsed, start = performance.now();
    reader.read(batches);
    us.push((performance.now() - start) * 1000 / batches);
    heap.push((Deno.memoryUsage().heapUsed - before) / batches);
  }
  return { us: median(us), us_least: Math.min(...us), us_most: Math.max(...us), heap_bytes: median(heap) };
}

/** Median ms of a step of `deno task train --preset=tiny` on a dataset. */
async function stepTime(data_dir: string, steps: number, out_dir: string): Promise<number> {
  const quiet = ["--eval_interval=0", "--sample_interval=0", "--save_interval=0", "--log_interval=1000000"];
  const args = [
    ...settings.tasks.train.command.split(" ").slice(1),
    ...["--preset=tiny", "--device=cpu", "--verify_data=false", `--data_dir=${data_dir}`],
    ...[`--out_dir=${out_dir}`, `--max_iters=${steps}`, ...quiet],
  ];
  const command = new Deno.Command(Deno.execPath(), {
    args,
    cwd: `${import.meta.dirname}/..`,
    stdout: "null",
  });
  const { success } = await command.spawn().status;
  if (!success) throw new UserError("Cannot time a step: training failed; the cause stands above");
  const lines = Deno.readTextFileSync(`${out_dir}/metrics.jsonl`).trimEnd().split("\n");
  const step_ms = lines.map((line) => (JSON.parse(line) as { step_ms: number }).step_ms);
  return median(step_ms.slice(Math.floor(steps / 10))); // the first steps warm up
}

// ---- memory

/** Reads as many windows as the dataset has, in training's order, and looks at resident memory now and then. */
function watchMemory(reader: Reader, B: number, bytes: number): Omit<Report["memory"], "B" | "T"> {
  const batches = Math.floor(reader.n_windows / B / SAMPLES);
  const samples = [residentMemory(0)], start = performance.now();
  for (let i = 1; i <= SAMPLES; i++) {
    reader.read(batches);
    samples.push(residentMemory(bytes * i / SAMPLES / 1e6));
  }
  const ms = performance.now() - start;
  return { ms, gb_per_sec: bytes / ms / 1e6, samples };
}

function residentMemory(read_mb: number): Memory {
  // Deno grants nobody but --allow-all to read /proc by itself.
  const { stdout } = new Deno.Command("cat", { args: [`/proc/${Deno.pid}/status`] }).outputSync();
  const status = new TextDecoder().decode(stdout);
  const mb = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)![1]) * 1024 / 1e6;
  return { read_mb, rss_mb: mb("VmRSS"), file_mb: mb("RssFile"), anon_mb: mb("RssAnon") };
}

// ---- everything

async function measure(o: Options, dir: string): Promise<Report> {
  const head = reportHead("bench/loader.ts"), tokens = Math.ceil(o.gb * 1e9 / 4); // half of them in each dataset
  const [one, two] = [`${dir}/one`, `${dir}/two`];
  for (const data_dir of [one, two]) writeDataset(data_dir, tokens, o.shard_tokens);
  const mix = `${one}:0.8,${two}:0.2`, halves = `${one}:1,${two}:1`;

  open("cpu", { threads: 1 });
  const large = { B: 4, T: 2048 }; // gpt-270m's
  const memory = watchMemory(new Reader(halves, large.B, large.T), large.B, 4 * tokens); // before others open the files
  const { batch_size: B, block_size: T, gradient_accumulation_steps } = presets.tiny;
  const step_ms = await stepTime(one, o.steps, `${dir}/run`);
  const batch = timeBatch(new Reader(one, B, T), o.batches),
    batch_of_mix = timeBatch(new Reader(mix, B, T), o.batches);
  const share_of_step = gradient_accumulation_steps * batch.us / 1000 / step_ms;
  return {
    ...head,
    isa: device.isa ?? "unknown",
    dataset: { bytes: 4 * tokens, shards: 2 * Math.ceil(tokens / o.shard_tokens) },
    tiny: { B, T, batch, batch_of_mix, step_ms, share_of_step },
    memory: { ...large, ...memory },
  };
}

function printed({ tiny, memory, dataset }: Report): string {
  const time = ({ us, us_least, us_most, heap_bytes }: BatchTime) =>
    `${us.toFixed(1)} us (${us_least.toFixed(1)} to ${us_most.toFixed(1)}), ${
      heap_bytes.toFixed(0)
    } bytes of garbage`;
  const growth = memory.samples.at(-1)!.file_mb - memory.samples[0]!.file_mb;
  const rows = memory.samples.map(({ read_mb, ...sizes }) =>
    [read_mb, ...Object.values(sizes)].map((mb) => mb.toFixed(0))
  );
  return [
    `tiny, B=${tiny.B} T=${tiny.T}, ${(dataset.bytes / 1e9).toFixed(1)} GB in ${dataset.shards} shards`,
    `a batch         ${time(tiny.batch)}`,
    `of a mix        ${time(tiny.batch_of_mix)}`,
    `a step          ${tiny.step_ms.toFixed(2)} ms; the batch is ${
      (100 * tiny.share_of_step).toFixed(2)
    }% of it`,
    `memory in MB, windows of ${memory.T} tokens in training's order, ${
      memory.gb_per_sec.toFixed(2)
    } GB/s; ` +
    `file pages grew by ${growth.toFixed(0)} MB of ${(dataset.bytes / 1e6).toFixed(0)}`,
    table([["read", "VmRSS", "RssFile", "RssAnon"], ...rows]),
  ].join("\n");
}

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      return console.log(
        help(
          "Time the reading of data, and its memory",
          defaults,
          Deno.readTextFileSync(import.meta.filename!),
        ),
      );
    }
    const options = { ...defaults, ...readFlags(args, defaults, { ranges }) };
    const dir = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_loader_" });
    try {
      const report = await measure(options, dir);
      console.log(printed(report));
      saveReport(report, `loader-${report.date}`, options.json);
    } finally {
      Deno.removeSync(dir, { recursive: true });
    }
  });
}
