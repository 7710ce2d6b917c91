// Times the training of a tokenizer against Hugging Face's, on the same text by turns, each in a fresh process: seconds and
// peak memory. Checks that both learn the same tokens and merges. The results go to bench/results/.
//
//   LOAM_PYTHON=python3 deno run -P=bench bench/train_tokenizer.ts --sample=c4_validation_2k.parquet --corpora_mb=0,600
import { median } from "./median.ts";
import { reportHead, saveReport, warnOfLoad } from "./report.ts";
import { runMain, UserError } from "../base/errors.ts";
import { help, type Ranges, readFlags, whole } from "../base/flags.ts";

const defaults = {
  sample: "", // a parquet file with a column text
  corpora_mb: "0,60", // stored sizes of the corpora that bench/make_corpus.py makes; 0 is the sample itself
  vocab_size: 32000,
  rounds: 3, // turns of each side
  threads: "1", // of the Python side; loam uses one
  work_dir: "/tmp", // gets a directory for the time of the run
  json: "", // where the results go; "" = bench/results/tokenizer-<date>.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = { vocab_size: whole(257, 1_000_000), rounds: whole(1) };

const ROOT = `${import.meta.dirname}/..`;

/** Runs a command and prints what it took. Its peak memory is out of reach for Deno. */
const MEASURE = `
import json, resource, subprocess, sys, time
start = time.perf_counter()
output = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True, text=True).stdout
seconds, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime,
                  "peak_rss_bytes": usage.ru_maxrss * 1024, "output": output}))`;

/** One training. */
type Run = {
  seconds: number;
  /** On all cores, in user and system mode: what a busy machine changes less. */
  cpu_seconds: number;
  peak_rss_bytes: number;
};

/** All trainings on one corpus. */
type Result = {
  corpus_mb: number;
  /** Of text. */
  bytes: number;
  loam: Run[];
  /** By the number of threads. */
  tokenizers: Record<string, Run[]>;
  version: string;
};

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      return console.log(
        help(
          "Time the training of a tokenizer against Hugging Face's",
          defaults,
          Deno.readTextFileSync(import.meta.filename!),
        ),
      );
    }
    await main({ ...defaults, ...readFlags(args, defaults, { ranges }) });
  });
}

async function main(options: Options): Promise<void> {
  if (!options.sample) {
    throw new UserError("Cannot time training: --sample is missing, a parquet file with a column text");
  }
  const head = reportHead("deno run -P=bench bench/train_tokenizer.ts");
  warnOfLoad(head.load_before);
  const work_dir = Deno.makeTempDirSync({ dir: options.work_dir, prefix: "loam_train_tokenizer_" });
  const o = { ...options, work_dir };
  try {
    const results: Result[] = [];
    for (const mb of o.corpora_mb.split(",").map(Number)) results.push(await timeCorpus(o, mb));
    const path = saveReport({ ...head, results }, `tokenizer-${head.date}`, o.json);
    console.log(`every figure is in ${path}`);
  } finally {
    Deno.removeSync(work_dir, { recursive: true });
  }
}

/** Has both sides train on a corpus by turns. */
async function timeCorpus(o: Options, corpus_mb: number): Promise<Result> {
  const corpus = corpus_mb === 0 ? o.sample : await makeCorpus(o, corpus_mb);
  const result: Result = { corpus_mb, bytes: 0, loam: [], tokenizers: {}, version: "" };
  for (let round = 0; round < o.rounds; round++) {
    for (const threads of o.threads.split(",")) {
      const { output, ...run } = await trainWithTokenizers(o, corpus, threads);
      (result.tokenizers[threads] ??= []).push(run);
      Object.assign(result, JSON.parse(output));
    }
    result.loam.push(await trainWithLoam(o, corpus));
    checkSame(o);
  }
  console.log(`${o.vocab_size} tokens from ${(result.bytes / 1e6).toFixed(1)} MB of text:`);
  console.log(`  loam: ${inWords(result.loam)}`);
  for (const [threads, runs] of Object.entries(result.tokenizers)) {
    console.log(`  tokenizers ${result.version}, RAYON_NUM_THREADS=${threads}: ${inWords(runs)}`);
  }
  return result;
}

function inWords(runs: Run[]): string {
  const of = (name: keyof Run) => median(runs.map((run) => run[name]));
  return `${of("seconds").toFixed(2)} s, ${of("cpu_seconds").toFixed(2)} s of CPU time, ` +
    `peak RSS ${(of("peak_rss_bytes") / 1e6).toFixed(0)} MB`;
}

async function trainWithLoam(o: Options, corpus: string): Promise<Run> {
  const flags = [
    "--train",
    corpus,
    `--vocab_size=${o.vocab_size}`,
    "--out",
    `${o.work_dir}/loam`,
    "--overwrite",
  ];
  const { output: _, ...run } = await measure([
    Deno.execPath(),
    ...["run", "-q", "-P=prepare", "data/train_tokenizer.ts", ...flags],
  ]);
  return run;
}

function trainWithTokenizers(o: Options, corpus: string, threads: string): Promise<Run & { output: string }> {
  const script = ["bench/train_tokenizer.py", corpus, String(o.vocab_size), `${o.work_dir}/tokenizers.json`];
  return measure([python(), ...script], { RAYON_NUM_THREADS: threads, TOKENIZERS_PARALLELISM: "true" });
}

/** Runs a command to its end. */
async function measure(
  command: string[],
  env: Record<string, string> = {},
): Promise<Run & { output: string }> {
  return JSON.parse(await output(["-c", MEASURE, ...command], env));
}

/** Throws unless both sides learned the same. */
function checkSame(o: Options): void {
  const [ours, theirs] = [`${o.work_dir}/loam/tokenizer.json`, `${o.work_dir}/tokenizers.json`].map(
    (path) => {
      const { vocab, merges } = JSON.parse(Deno.readTextFileSync(path)).model;
      const ids = Object.entries(vocab as Record<string, number>).sort(([, a], [, b]) => a - b);
      return JSON.stringify([
        ids,
        (merges as (string | string[])[]).map((merge) => [merge].flat().join(" ")),
      ]);
    },
  );
  if (ours !== theirs) throw new UserError("Cannot compare the times: the tokens or merges differ");
}

async function makeCorpus(o: Options, mb: number): Promise<string> {
  const dir = `${o.work_dir}/corpus_${mb}`;
  await output([
    "bench/make_corpus.py",
    o.sample,
    dir,
    "--format=parquet",
    `--bytes=${mb * 1e6}`,
    "--files=1",
  ]);
  return `${dir}/000.parquet`;
}

function python(): string {
  return Deno.env.get("LOAM_PYTHON") ?? "python3";
}

/** What a Python program prints. */
async function output(args: string[], env: Record<string, string> = {}): Promise<string> {
  const program = python();
  try {
    const { code, stdout } = await new Deno.Command(program, { args, cwd: ROOT, env, stderr: "inherit" })
      .output();
    if (code === 0) return new TextDecoder().decode(stdout);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(
      `Cannot run ${program}: there is no such program; set LOAM_PYTHON to a Python with tokenizers and pyarrow`,
    );
  }
  throw new UserError(
    `Cannot run ${program} ${args[0] === "-c" ? args[2] : args[0]}: it failed; the cause stands above`,
  );
}
