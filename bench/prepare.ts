// Times prepare: first one of its encoders against Python's tiktoken on the same text, by turns, each in a fresh process; then
// whole runs on corpora that bench/make_corpus.py makes, with their peak memory, beside tiktoken and Hugging Face's tokenizers
// with as many threads. Everything goes to bench/results/.
//
//   LOAM_PYTHON=python3 deno run -P=bench bench/prepare.ts --sample=c4_validation_2k.parquet --parquet_mb=5000
import { createHash } from "node:crypto";
import { type EncodingName, rankFile } from "../data/tokenizers/tiktoken.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { median } from "./median.ts";
import { reportHead, saveReport, warnOfLoad } from "./report.ts";

const defaults = {
  sample: "", // a parquet file with a column text
  tokenizers: "gpt2,cl100k,o200k", // for the encoders
  rounds: 5, // turns of each side
  long_mb: 60, // parquet to encode once, besides the sample; stored bytes, as below
  parquet_mb: 200, // corpora for whole runs; 0 for none
  jsonl_mb: 100, // .jsonl.zst
  tokenizer: "gpt2", // of whole runs
  workers: `1,${navigator.hardwareConcurrency}`,
  work_dir: "/tmp", // gets a directory for the time of the run
  json: "", // where the results go; "" = bench/results/prepare-<date>.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  rounds: whole(1),
  ...each(whole(0), "long_mb", "parquet_mb", "jsonl_mb"),
};

/** Names of tiktoken's encodings, and of their files on the way to its cache. */
const TIKTOKEN: Record<string, string> = { gpt2: "r50k_base", cl100k: "cl100k_base", o200k: "o200k_base" };
const ENCODINGS_URL = "https://openaipublic.blob.core.windows.net/encodings";

const ROOT = `${import.meta.dirname}/..`;

/** What an encoder prints. */
type Timing = { bytes: number; tokens: number; seconds: number[]; version: string };

/** MB/s of both sides on one text, medians over the rounds of first passes. */
type Encoding = {
  tokenizer: string;
  text: string;
  bytes: number;
  tokens: number;
  /** Of each round, in a fresh process. */
  loam_mb_per_sec: number[];
  tiktoken_mb_per_sec: number[];
  /** The medians' ratio. */
  ratio: number;
  /** The same for the second pass over the sample, in which all words have been seen. */
  warm_ratio: number | null;
  loam_warm_mb_per_sec: number[];
  tiktoken_warm_mb_per_sec: number[];
};

/** What a program used. */
type Usage = {
  seconds: number;
  /** Of all threads, in user and system mode. */
  cpu_seconds: number;
  peak_rss_bytes: number;
};

/** One run of prepare, or of Python. */
type WholeRun = Usage & {
  /** "loam", "tiktoken 0.12.0", ... */
  side: string;
  corpus: string;
  stored_bytes: number;
  text_bytes: number;
  tokens: number;
  workers: number;
  mb_per_sec: number;
  tokens_per_sec: number;
};

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      return console.log(
        help(
          "Time the encoders of prepare against tiktoken, and whole runs",
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
    throw new UserError("Cannot time prepare: --sample is missing, a parquet file with a column text");
  }
  const args = Deno.args.map((arg) => arg.replace(/=.*\//, "=")); // without the directories of this machine
  const head = reportHead("deno run -P=bench bench/prepare.ts", args);
  warnOfLoad(head.load_before);
  const work_dir = Deno.makeTempDirSync({ dir: options.work_dir, prefix: "loam_prepare_" });
  const o = { ...options, work_dir };
  try {
    const encodings = await timeEncoders(o), runs = await timeRuns(o);
    const path = saveReport({ ...head, encodings, runs }, `prepare-${head.date}`, o.json);
    console.log(`every figure is in ${path}`);
  } finally {
    Deno.removeSync(work_dir, { recursive: true });
  }
}

// ---- encoders

async function timeEncoders(o: Options): Promise<Encoding[]> {
  const long = o.long_mb > 0 ? await makeCorpus(o, "long", "parquet", o.long_mb, 1) : undefined;
  const cache = await tiktokenCache(o);
  const results: Encoding[] = [];
  for (const tokenizer of o.tokenizers.split(",")) {
    results.push(await compare(o, tokenizer, "sample", 2, o.sample, cache));
    if (long !== undefined) {
      results.push(await compare(o, tokenizer, "long", 1, `${long}/000.parquet`, cache));
    }
  }
  return results;
}

/** Has both sides encode a file by turns. */
async function compare(
  o: Options,
  tokenizer: string,
  text: string,
  passes: number,
  file: string,
  cache: string,
): Promise<Encoding> {
  const loam: Timing[] = [], tiktoken: Timing[] = [];
  const loamArgs = ["run", "-q", "-P=bench", "bench/encode.ts", tokenizer, String(passes), file];
  const pythonArgs = ["bench/tiktoken_encode.py", TIKTOKEN[tokenizer]!, String(passes), file];
  for (let round = 0; round < o.rounds; round++) {
    tiktoken.push(JSON.parse(await output(python(), pythonArgs, { TIKTOKEN_CACHE_DIR: cache })));
    loam.push(JSON.parse(await output(Deno.execPath(), loamArgs)));
  }
  const { bytes, tokens } = loam[0]!, other = tiktoken[0]!;
  if (bytes !== other.bytes || tokens !== other.tokens) {
    throw new UserError(
      `Cannot compare ${tokenizer} on ${file}: loam has ${tokens} tokens of ${bytes} bytes, ` +
        `tiktoken ${other.tokens} of ${other.bytes}`,
    );
  }
  const rates = (side: Timing[], pass: number) =>
    side.flatMap(({ seconds }) => pass < seconds.length ? [bytes / seconds[pass]! / 1e6] : []);
  const result: Encoding = {
    tokenizer,
    text,
    bytes,
    tokens,
    loam_mb_per_sec: rates(loam, 0),
    tiktoken_mb_per_sec: rates(tiktoken, 0),
    ratio: median(rates(loam, 0)) / median(rates(tiktoken, 0)),
    warm_ratio: passes > 1 ? median(rates(loam, 1)) / median(rates(tiktoken, 1)) : null,
    loam_warm_mb_per_sec: rates(loam, 1),
    tiktoken_warm_mb_per_sec: rates(tiktoken, 1),
  };
  const warm = result.warm_ratio === null
    ? ""
    : `, second pass ${median(result.loam_warm_mb_per_sec).toFixed(1)} against ` +
      `${median(result.tiktoken_warm_mb_per_sec).toFixed(1)} (${result.warm_ratio.toFixed(2)}x)`;
  console.log(
    `${tokenizer} on ${(bytes / 1e6).toFixed(1)} MB (${text}): loam ${
      median(result.loam_mb_per_sec).toFixed(1)
    } MB/s, ` +
      `tiktoken ${median(result.tiktoken_mb_per_sec).toFixed(1)} (${result.ratio.toFixed(2)}x)${warm}`,
  );
  return result;
}

/** Puts the vocabularies where tiktoken looks before it asks the network. */
async function tiktokenCache(o: Options): Promise<string> {
  const dir = `${o.work_dir}/tiktoken`;
  Deno.mkdirSync(dir);
  for (const tokenizer of new Set([...o.tokenizers.split(","), o.tokenizer])) {
    const file = `${TIKTOKEN[tokenizer]}.tiktoken`;
    const name = createHash("sha1").update(`${ENCODINGS_URL}/${file}`).digest("hex");
    Deno.writeTextFileSync(`${dir}/${name}`, await vocabulary(tokenizer));
  }
  return dir;
}

async function vocabulary(tokenizer: string): Promise<string> {
  if (Object.hasOwn(TIKTOKEN, tokenizer)) return await rankFile(tokenizer as EncodingName);
  throw new UserError(`Cannot compare ${tokenizer}: tiktoken has ${Object.keys(TIKTOKEN).join(", ")}`);
}

// ---- whole runs

async function timeRuns(o: Options): Promise<WholeRun[]> {
  const runs: WholeRun[] = [];
  for (const [format, mb] of [["parquet", o.parquet_mb], ["jsonl.zst", o.jsonl_mb]] as const) {
    if (mb === 0) continue;
    const corpus = await makeCorpus(o, format, format, mb, 8);
    for (const workers of o.workers.split(",").map(Number)) {
      runs.push(await timeRun(o, corpus, format, workers));
      if (format !== "parquet" || !Object.hasOwn(TIKTOKEN, o.tokenizer)) continue;
      const { stored_bytes } = runs.at(-1)!;
      for (const library of ["tiktoken", "tokenizers"] as const) {
        runs.push(await timePython(o, library, corpus, stored_bytes, workers));
      }
    }
    Deno.removeSync(corpus, { recursive: true });
  }
  return runs;
}

async function timeRun(o: Options, corpus: string, format: string, workers: number): Promise<WholeRun> {
  const out = `${o.work_dir}/out`;
  const flags = [
    "--input",
    `${corpus}/*`,
    "--out",
    out,
    `--tokenizer=${o.tokenizer}`,
    `--workers=${workers}`,
  ];
  const prepare = [Deno.execPath(), "run", "-q", "-P=prepare", "data/prepare.ts", ...flags];
  const measured: Usage = JSON.parse(await output(python(), ["bench/measure.py", ...prepare]));
  const { train, val, inputs } = JSON.parse(Deno.readTextFileSync(`${out}/meta.json`));
  Deno.removeSync(out, { recursive: true });
  const text_bytes = train.bytes + val.bytes, tokens = train.tokens + val.tokens;
  const stored_bytes = inputs.reduce((sum: number, { bytes }: { bytes: number }) => sum + bytes, 0);
  return said({
    side: "loam",
    corpus: format,
    stored_bytes,
    text_bytes,
    tokens,
    workers,
    ...measured,
    mb_per_sec: text_bytes / measured.seconds / 1e6,
    tokens_per_sec: tokens / measured.seconds,
  });
}

/** The same by one of Python's libraries with so many threads. */
async function timePython(
  o: Options,
  library: "tiktoken" | "tokenizers",
  corpus: string,
  stored_bytes: number,
  threads: number,
): Promise<WholeRun> {
  const json = `${o.work_dir}/tokenizer.json`, out = `${o.work_dir}/ids.bin`;
  if (library === "tokenizers") {
    Deno.writeTextFileSync(json, (await openTokenizer(o.tokenizer)).files()["tokenizer.json"]!);
  }
  const encoder = library === "tiktoken" ? `tiktoken:${TIKTOKEN[o.tokenizer]}` : `tokenizers:${json}`;
  const files = Array.from(Deno.readDirSync(corpus), ({ name }) => `${corpus}/${name}`).sort();
  const printed = `${o.work_dir}/printed.json`;
  const args = ["bench/prepare_side.py", encoder, String(threads), out, ...files];
  const env = { TIKTOKEN_CACHE_DIR: `${o.work_dir}/tiktoken`, LOAM_PRINTED: printed };
  const measured: Usage = JSON.parse(await output(python(), ["bench/measure.py", python(), ...args], env));
  const { bytes, tokens, version } = JSON.parse(Deno.readTextFileSync(printed));
  Deno.removeSync(out);
  return said({
    side: `${library} ${version}`,
    corpus: "parquet",
    stored_bytes,
    text_bytes: bytes,
    tokens,
    workers: threads,
    ...measured,
    mb_per_sec: bytes / measured.seconds / 1e6,
    tokens_per_sec: tokens / measured.seconds,
  });
}

/** Prints a run and returns it. */
function said(run: WholeRun): WholeRun {
  console.log(
    `${run.side} ${(run.stored_bytes / 1e6).toFixed(0)} MB ${run.corpus}, ${run.workers} threads: ` +
      `${run.seconds.toFixed(1)} s (${run.cpu_seconds.toFixed(1)} s of CPU), ` +
      `${run.mb_per_sec.toFixed(1)} MB/s of text, ${(run.tokens_per_sec / 1e6).toFixed(2)}M tokens/s, ` +
      `peak RSS ${(run.peak_rss_bytes / 1e6).toFixed(0)} MB`,
  );
  return run;
}

// ---- corpora and processes

async function makeCorpus(
  o: Options,
  name: string,
  format: string,
  mb: number,
  files: number,
): Promise<string> {
  const dir = `${o.work_dir}/${name}`, size = [`--bytes=${mb * 1e6}`, `--files=${files}`];
  await output(python(), ["bench/make_corpus.py", o.sample, dir, `--format=${format}`, ...size]);
  return dir;
}

function python(): string {
  return Deno.env.get("LOAM_PYTHON") ?? "python3";
}

/** What a program prints. */
async function output(program: string, args: string[], env: Record<string, string> = {}): Promise<string> {
  try {
    const { code, stdout } = await new Deno.Command(program, { args, cwd: ROOT, env, stderr: "inherit" })
      .output();
    if (code === 0) return new TextDecoder().decode(stdout);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(
      `Cannot run ${program}: there is no such program; set LOAM_PYTHON to a Python with tiktoken and pyarrow`,
    );
  }
  throw new UserError(`Cannot run ${program} ${args[0]}: it failed; the cause stands above`);
}
