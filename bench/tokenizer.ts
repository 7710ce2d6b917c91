// Times tokenizers against Python's on the same text: opening, the first pass in a fresh process, and warm ones. Both sides run
// by turns on one thread: tiktoken for OpenAI's encodings, tokenizers for a tokenizer.json. Prints a table of medians.
//
//   LOAM_PYTHON=python3 deno run -P=bench bench/tokenizer.ts --sample=c4_validation_2k.parquet
import { median } from "./median.ts";
import { warnOfLoad } from "./report.ts";
import { PATTERNS } from "../data/tokenizers/scanners.ts";
import { openTokenizer, VOCABULARIES } from "../data/tokenizer.ts";
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";

const defaults = {
  sample: "", // a parquet file with a column text
  tokenizers: "gpt2,cl100k,o200k,llama3_like", // names, or directories with tokenizer.json
  rounds: 5, // turns of each side
  passes: 4, // over the sample
  work_dir: "/tmp", // gets a directory for the time of the run
};
type Options = typeof defaults;

const ranges: Ranges<Options> = each(whole(1), "rounds", "passes");

/** What one process of either side prints. */
type Timing = {
  library: string;
  open_ms: number;
  /** What opening added to the memory of the process. */
  open_mb: number;
  /** Of each pass. */
  mb_per_sec: number[];
  tokens: number;
};

const ROOT = `${import.meta.dirname}/..`;

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      return console.log(
        help(
          "Time tokenizers against Python's on the same text",
          defaults,
          Deno.readTextFileSync(import.meta.filename!),
        ),
      );
    }
    await main({ ...defaults, ...readFlags(args, defaults, { ranges }) });
  });
}

async function main(options: Options): Promise<void> {
  const python = Deno.env.get("LOAM_PYTHON");
  if (!options.sample || python === undefined) {
    throw new UserError(
      "Cannot time tokenizers: --sample or LOAM_PYTHON is missing; " +
        "give a parquet file with a column text, and a Python with tiktoken, tokenizers and pyarrow",
    );
  }
  warnOfLoad(Deno.loadavg()[0]!);
  const work_dir = Deno.makeTempDirSync({ dir: options.work_dir, prefix: "loam_tokenizers_" });
  const o = { ...options, work_dir };
  try {
    const rows = [["tokenizer", "side", "open ms", "open MB", "first MB/s", "warm MB/s", "tokens"]];
    for (const name of o.tokenizers.split(",")) rows.push(...await compare(o, python, name));
    console.log(table(rows));
  } finally {
    Deno.removeSync(work_dir, { recursive: true });
  }
}

/** Has both sides open a tokenizer and encode the sample, by turns; two rows of the table. */
async function compare(o: Options, python: string, name: string): Promise<string[][]> {
  const path = name in VOCABULARIES || isDirectory(name) ? name : `${o.work_dir}/${name}`;
  if (name === "llama3_like") await writeLlama3Like(path);
  else if (path !== name) {
    throw new UserError(`Cannot time "${name}": it is no tokenizer and no directory of one`);
  }
  const theirs = name in VOCABULARIES ? await writeRanks(o, name) : `${path}/tokenizer.json`;
  const loam: Timing[] = [], other: Timing[] = [], rest = [String(o.passes), o.sample];
  for (let round = 0; round < o.rounds; round++) {
    other.push(await run(python, ["bench/tokenizer_side.py", theirs, ...rest]));
    loam.push(
      await run(Deno.execPath(), ["run", "-q", "-P=bench", "bench/tokenizer_side.ts", path, ...rest]),
    );
  }
  if (loam[0]!.tokens !== other[0]!.tokens) {
    throw new UserError(
      `Cannot compare ${name}: loam has ${loam[0]!.tokens} tokens, ${other[0]!.library} ${other[0]!.tokens}`,
    );
  }
  return [row(name, loam), row(name, other)];
}

async function run(command: string, args: string[]): Promise<Timing> {
  const process = new Deno.Command(command, { args, cwd: ROOT, stderr: "inherit" });
  const { success, stdout } = await process.output();
  if (!success) throw new UserError(`Cannot time tokenizers: ${args.join(" ")} failed`);
  return JSON.parse(new TextDecoder().decode(stdout));
}

function row(name: string, timings: Timing[]): string[] {
  const of = (value: (timing: Timing) => number) => median(timings.map(value)).toFixed(1);
  return [
    name,
    timings[0]!.library,
    of(({ open_ms }) => open_ms),
    of(({ open_mb }) => open_mb),
    of(({ mb_per_sec }) => mb_per_sec[0]!),
    timings[0]!.mb_per_sec.length > 1 ? of(({ mb_per_sec }) => median(mb_per_sec.slice(1))) : "n/a",
    String(timings[0]!.tokens),
  ];
}

/** A tokenizer.json of the size of Llama 3's: cl100k's tokens, cut by the pattern of Llama 3. */
async function writeLlama3Like(directory: string): Promise<void> {
  const json = JSON.parse((await openTokenizer("cl100k")).files()["tokenizer.json"]!);
  json.pre_tokenizer.pretokenizers[0].pattern.Regex = PATTERNS.llama3;
  Deno.mkdirSync(directory);
  Deno.writeTextFileSync(`${directory}/tokenizer.json`, JSON.stringify(json));
}

/** The rank file of one of OpenAI's encodings, under the name that tiktoken has for it. */
async function writeRanks(o: Options, name: string): Promise<string> {
  switch (name) {
    case "gpt2":
      return write(
        o,
        "r50k_base",
        await import("gpt-tokenizer/data/r50k_base.tiktoken", { with: { type: "text" } }),
      );
    case "cl100k":
      return write(
        o,
        "cl100k_base",
        await import("gpt-tokenizer/data/cl100k_base.tiktoken", { with: { type: "text" } }),
      );
    case "o200k":
      return write(
        o,
        "o200k_base",
        await import("gpt-tokenizer/data/o200k_base.tiktoken", { with: { type: "text" } }),
      );
    default:
      throw new UserError(`Cannot time "${name}": tiktoken has no such encoding`);
  }
}

function write(o: Options, encoding: string, ranks: { default: string }): string {
  const path = `${o.work_dir}/${encoding}.tiktoken`;
  Deno.writeTextFileSync(path, ranks.default);
  return path;
}

function isDirectory(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
