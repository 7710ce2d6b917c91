// Runs loam's command lines as a user does: the tasks of deno.json, from the repository root, in directories below /tmp
// that are removed after the tests of a file.
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { openTokenizer } from "../data/tokenizer.ts";
import { findCompiler } from "../tools/build.ts";
import { sha256OfFile } from "../base/files.ts";
import { readSafetensors } from "../runtime/safetensors.ts";
import settings from "../deno.json" with { type: "json" };
import { hfShape, hfTensors } from "../model/hf.ts";
import { configToHF } from "../model/hf_config.ts";
import type { LlamaConfig } from "../model/llama.ts";
import { type Entry, writeSafetensors } from "../runtime/safetensors.ts";

export const ROOT = new URL("../", import.meta.url);

type Task =
  | "prepare"
  | "tokenizer"
  | "train"
  | "train:dist"
  | "sample"
  | "chat"
  | "eval"
  | "export"
  | "serve"
  | "runs";
export type Result = { code: number; signal: Deno.Signal | null; stdout: string; stderr: string };

/**
 * A model and batch so small that a step takes about a millisecond, and nothing but training. Later flags win. One thread:
 * on a busy machine threads that wait for each other make it a hundred times slower. No BLAS: loading one takes a quarter of
 * the time of a short run; golden_run_test.ts has the one that is found.
 */
export const SMALL = [
  ...["--n_layer=2", "--n_embd=32", "--n_head=4", "--n_kv_head=2", "--n_inner=48", "--block_size=16"],
  ...["--batch_size=4", "--device=cpu", "--threads=1", "--blas=builtin"],
  ...[
    "--warmup_iters=5",
    "--learning_rate=0.01",
    "--eval_interval=0",
    "--sample_interval=0",
    "--save_interval=0",
  ],
];

const scratch = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_" });
Deno.test.afterAll(() => Deno.removeSync(scratch, { recursive: true }));
let paths = 0;

/** A path below /tmp where nothing is yet. */
export function freshPath(): string {
  return `${scratch}/${++paths}`;
}

/** A directory below /tmp that is empty. */
export function emptyDirectory(): string {
  const path = freshPath();
  Deno.mkdirSync(path);
  return path;
}

/** The command that a task runs, without the name of the program. */
export function taskArgs(task: Task, args: string[]): string[] {
  return [...settings.tasks[task].command.split(" ").slice(1), ...args];
}

/** Runs a task to its end. */
export async function run(task: Task, ...args: string[]): Promise<Result> {
  return resultOf(await command(Deno.execPath(), taskArgs(task, args)).output());
}

/** Runs a task whose stdout is a file on a disk that is full. */
export async function runWithoutStdout(task: Task, ...args: string[]): Promise<Result> {
  return await runInShell('exec "$@" > /dev/full', "sh", taskArgs(task, args));
}

/** Runs a task that may write no file of more than `bytes`, as on a disk that is full. */
export async function runWithFullDisk(bytes: number, task: Task, ...args: string[]): Promise<Result> {
  const script = 'trap "" XFSZ; ulimit -f "$0"; exec "$@"'; // without the trap the signal would end the program
  return await runInShell(script, String(bytes / 512), taskArgs(task, args));
}

/** Runs a task of a checkout in another directory. */
export async function runIn(directory: string, task: Task, ...args: string[]): Promise<Result> {
  return await runInShell('cd "$0" && exec "$@"', directory, taskArgs(task, args));
}

/** Runs a task to which this is typed, or piped. */
export async function runTyping(text: string, task: Task, ...args: string[]): Promise<Result> {
  const path = freshPath();
  Deno.writeTextFileSync(path, text);
  return await runInShell('exec "$@" < "$0"', path, taskArgs(task, args));
}

/** Runs a shell script that ends with what "$@" is. */
async function runInShell(script: string, argument: string, args: string[]): Promise<Result> {
  return resultOf(await command("sh", ["-c", script, argument, Deno.execPath(), ...args]).output());
}

const CGROUPS = "/sys/fs/cgroup"; // version 1, where a controller is a folder, or 2

/** Whether this process may make cgroups that limit memory and processor time. Only root outside of a container may. */
export const canLimit = ["memory", "cpu"].every((controller) => {
  const script = `cd ${CGROUPS} && { [ ! -d ${controller} ] || cd ${controller}; } && mkdir "$0" && ` +
    `{ [ -e "$0"/memory.limit_in_bytes ] || [ -e "$0"/memory.max ] || [ -e "$0"/cpu.cfs_quota_us ]; } && rmdir "$0"`;
  const args = ["-c", script, `loam_${Deno.pid}`];
  return new Deno.Command("sh", { args, stderr: "null" }).outputSync().success;
});

/** Runs a task in a cgroup of its own with so many bytes of memory, or microseconds of processor time in 100,000. */
export async function runLimited(
  limit: { memory: number } | { cpu: number },
  task: Task,
  ...args: string[]
): Promise<Result> {
  const [controller, value, one, two, twoValue] = "memory" in limit
    ? ["memory", limit.memory, "memory.limit_in_bytes", "memory.max", `${limit.memory}`]
    : ["cpu", limit.cpu, "cpu.cfs_quota_us", "cpu.max", `${limit.cpu} 100000`];
  const script = `cd ${CGROUPS}; [ ! -d ${controller} ] || cd ${controller}; group=$PWD/loam_$$; mkdir $group
    if [ -e $group/${one} ]; then echo ${value} > $group/${one}; else echo ${twoValue} > $group/${two}; fi
    cd "$0"; (echo 0 > $group/cgroup.procs; exec "$@"); code=$?; rmdir $group; exit $code`;
  return await runInShell(script, decodeURIComponent(ROOT.pathname), taskArgs(task, args));
}

/** Runs a task with these variables in its environment, each NAME=VALUE. */
export async function runWith(environment: string[], task: Task, ...args: string[]): Promise<Result> {
  return resultOf(await command("env", [...environment, Deno.execPath(), ...taskArgs(task, args)]).output());
}

/** Runs a task on a terminal, with env's options before it, such as NO_COLOR=1. stdout is all that it shows. */
export async function runOnTerminal(options: string[], task: Task, ...args: string[]): Promise<Result> {
  return resultOf(await onTerminal(["env", ...options], task, ...args).output());
}

/** The same, to be started. before: words in front of the program there, such as env NO_COLOR=1. */
export function onTerminal(before: string[], task: Task, ...args: string[]): Deno.Command {
  return command("script", terminalArgs([...before, Deno.execPath(), ...taskArgs(task, args)]));
}

/**
 * script's arguments to run a program on a terminal, with its exit code. No shell stays beside the program: some, such as dash,
 * end with 130 after Ctrl-C, whatever the program's code was.
 */
export function terminalArgs(words: string[]): string[] {
  return ["-qec", `exec ${words.map((word) => `'${word}'`).join(" ")}`, "/dev/null"];
}

/** Runs a task that has to succeed and print nothing to stderr; returns stdout. */
export async function succeed(task: Task, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(task, ...args);
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  return stdout;
}

/** Runs a task that has to fail with one line on stderr and nothing on stdout; returns the line after "error: ". */
export async function refuse(task: Task, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(task, ...args);
  assertEquals({ code, stdout }, { code: 1, stdout: "" }, stderr);
  return errorLine(stderr);
}

/** What a program that stops over a mistake of its user prints to stderr: one line. */
export function errorLine(stderr: string): string {
  assertMatch(stderr, /^error: [^\n]+\n$/);
  return stderr.slice("error: ".length, -1);
}

/** A task that may have so many files open at a time, to be started. */
export function withFewFiles(files: number, task: Task, ...args: string[]): Deno.Command {
  const script = 'ulimit -n "$0"; exec "$@"';
  return command("sh", ["-c", script, String(files), Deno.execPath(), ...taskArgs(task, args)]);
}

/** A task that runs while the test goes on. */
export class Running {
  readonly #child: Deno.ChildProcess;
  readonly #lines: AsyncGenerator<string>;
  readonly #errors: Promise<void>;
  #stdout = "";
  #stderr = "";

  constructor(task: Task | Deno.Command, ...args: string[]) {
    const started = typeof task === "string" ? command(Deno.execPath(), taskArgs(task, args)) : task;
    this.#child = started.spawn();
    this.#lines = this.#read();
    this.#errors = this.#readErrors();
  }

  async #readErrors(): Promise<void> {
    for await (const text of this.#child.stderr.pipeThrough(new TextDecoderStream())) this.#stderr += text;
  }

  async *#read(): AsyncGenerator<string> {
    let rest = "";
    for await (const text of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      this.#stdout += text;
      const lines = (rest + text).split("\n");
      rest = lines.pop()!;
      yield* lines;
    }
  }

  /** Waits for a line of stdout that begins so, and returns it; undefined at the end. */
  async line(start: string): Promise<string | undefined> {
    while (true) {
      const { done, value } = await this.#lines.next();
      if (done) return undefined;
      if (value.replace(/^step +/, "step ").startsWith(start)) return value; // numbers of steps are aligned
    }
  }

  /** Waits until a text has come on stderr; throws if the program ends without it. */
  async error(text: string): Promise<void> {
    const ended = this.#errors.then(() => true), soon = () => new Promise((next) => setTimeout(next, 10));
    while (!this.#stderr.includes(text)) {
      if (await Promise.race([ended, soon()])) assertStringIncludes(this.#stderr, text);
    }
  }

  /** Stops reading stdout. */
  async close(): Promise<void> {
    await this.#lines.return(undefined);
  }

  /** Sends a signal, unless the program has ended. */
  signal(signal: Deno.Signal): void {
    try {
      this.#child.kill(signal);
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof Deno.errors.NotFound)) throw error;
    }
  }

  /** Waits for its end, a minute at most. */
  async end(): Promise<Result> {
    const timer = setTimeout(() => this.signal("SIGKILL"), 60_000);
    for await (const _ of this.#lines);
    const { code, signal } = await this.#child.status;
    clearTimeout(timer);
    await this.#errors;
    return { code, signal, stdout: this.#stdout, stderr: this.#stderr };
  }
}

/** A program to be started from the repository root with these variables more, whose output is read. */
export function command(program: string, args: string[], env: Record<string, string> = {}): Deno.Command {
  return new Deno.Command(program, { args, env, cwd: ROOT, stdin: "null", stdout: "piped", stderr: "piped" });
}

/** What a program did, with its output as text. */
export function resultOf({ code, signal, stdout, stderr }: Deno.CommandOutput): Result {
  const decoder = new TextDecoder();
  return { code, signal, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

/** A free port, which nobody takes in the meantime, one hopes. */
export function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Runs a program to its end; returns whether it was found and succeeded. */
export function does(program: string, ...args: string[]): boolean {
  try {
    return new Deno.Command(program, { args, stdout: "null", stderr: "null" }).outputSync().success;
  } catch {
    return false;
  }
}

/** Whether a program is on PATH. */
export function isInstalled(program: string): boolean {
  return does(program, "--version");
}

// ---- several ranks

/** mpirun's flags for containers and for machines with fewer cores than ranks. */
export const MPIRUN = [
  ...["--oversubscribe", "--bind-to", "none"],
  ...["--mca", "btl_vader_single_copy_mechanism", "none"],
];

/** What Open MPI wants of root. */
export const AS_ROOT = {
  OMPI_ALLOW_RUN_AS_ROOT: "1",
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1",
  OMPI_MCA_btl: "self,vader",
  NO_COLOR: "1", // the ranks have a terminal, one of Open MPI's own
};

/** Runs `train:dist` in n ranks with the same flags, which has to succeed and print nothing to stderr; returns stdout. */
export async function mpirun(n: number, ...flags: string[]): Promise<string> {
  return await mpirunOver("self,vader", n, ...flags);
}

/** The same over these of Open MPI's transports. */
export async function mpirunOver(OMPI_MCA_btl: string, n: number, ...flags: string[]): Promise<string> {
  const args = [...MPIRUN, "-n", String(n), Deno.execPath(), ...taskArgs("train:dist", flags)];
  const { code, stdout, stderr } = resultOf(
    await command("mpirun", args, { ...AS_ROOT, OMPI_MCA_btl }).output(),
  );
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  return stdout;
}

/** Compiles a stand-in, for which flags may name libraries: the path of one for LOAM_NCCL, which needs no GPU, or LOAM_MPI. */
export async function standIn(name: "nccl" | "mpi", ...flags: string[]): Promise<string> {
  const compiler = await findCompiler(), out = `${freshPath()}.so`;
  const args = ["-std=c++17", "-O1", "-shared", "-fPIC", `tests/emu/${name}.cpp`, ...flags, "-o", out];
  const { code, stderr } = resultOf(await command(compiler.command, args).output());
  assertEquals(code, 0, stderr);
  return out;
}

// ---- data

/** A dataset of many short documents, made by prepare from DATASET.txt. 3,000 words are 14 kB. */
export async function dataset({ words = 3000, tokenizer = "bytes" } = {}): Promise<string> {
  const out = freshPath(), text = `${out}.txt`;
  Deno.writeTextFileSync(text, documents(words));
  const flags = ["--split_on=blank_line", "--val_fraction=0.2", `--tokenizer=${tokenizer}`];
  await succeed("prepare", "--input", text, "--out", out, ...flags);
  return out;
}

/** The words of the documents. */
export const VOCABULARY = "Once upon a time there was one small loom that wove the long day into cloth".split(
  " ",
);

/** Sentences of 2 to 8 words, each a document. */
function documents(words: number): string {
  let state = 1, text = "";
  const next = (below: number) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % 65521 % below;
  for (let n = 0; n < words;) {
    const length = 2 + next(7);
    text += Array.from({ length }, () => VOCABULARY[next(VOCABULARY.length)]).join(" ") + ".\n\n";
    n += length;
  }
  return text;
}

// ---- models

/** What modelDirectory() makes if nothing else is asked for. */
export const SMALL_MODEL = {
  ...{ vocab_size: 257, n_layer: 1, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 16, n_inner: 32 },
  ...{ block_size: 64, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: false },
};

/** A model directory as from elsewhere, without a run, of weights by chance. The files of the tokenizer are the named one's. */
export async function modelDirectory(change: Partial<LlamaConfig> = {}): Promise<string> {
  const directory = freshPath(), config: LlamaConfig = { ...SMALL_MODEL, ...change };
  const options = { bos_token_id: 256, eos_token_id: 256, dtype: "float32" as const };
  const files = { "config.json": JSON.stringify(configToHF(config, options), null, 2) };
  Deno.mkdirSync(directory);
  for (const [name, text] of Object.entries({ ...files, ...(await openTokenizer("bytes")).files() })) {
    Deno.writeTextFileSync(`${directory}/${name}`, text);
  }
  writeSafetensors(`${directory}/model.safetensors`, randomTensors(config));
  return directory;
}

/** Such a model with the tokenizer of tests/golden/chat, of 362 tokens, and the template of that name there, if any. */
export async function chatModelDirectory(
  template?: string,
  change: Partial<LlamaConfig> = {},
): Promise<string> {
  const directory = await modelDirectory({ vocab_size: 362, ...change });
  const golden = new URL("tests/golden/chat/", ROOT).pathname;
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) {
    Deno.copyFileSync(`${golden}bytes/${file}`, `${directory}/${file}`);
  }
  if (template) Deno.copyFileSync(`${golden}${template}.jinja`, `${directory}/chat_template.jinja`);
  return directory;
}

/** Float32 tensors of a model, uniform between -0.5 and 0.5, by their names in Hugging Face. */
function randomTensors(config: LlamaConfig): Entry[] {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  return hfTensors(config).map((tensor) => {
    const shape = hfShape(tensor),
      values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, next);
    return { name: tensor.hf, dtype: "F32", shape, bytes: () => new Uint8Array(values.buffer) };
  });
}

// ---- what a run leaves behind

/** The objects of metrics.jsonl. */
export function metrics(run: string): Record<string, number>[] {
  return Deno.readTextFileSync(`${run}/metrics.jsonl`).trimEnd().split("\n").map((line) => JSON.parse(line));
}

/** What run.json says of the end of a run; ended_at is only looked at. */
export function ending(run: string): { state: string; error: string | null } {
  const { state, ended_at, error } = JSON.parse(Deno.readTextFileSync(`${run}/run.json`));
  const age_s = (Date.now() - Date.parse(ended_at)) / 1000;
  if (!(age_s >= 0 && age_s < 3600)) throw new Error(`${run} ended at ${ended_at}`);
  return { state, error };
}

/** What the checkpoint of a step is called, said apart from the program. */
export function checkpointOf(step: number): string {
  return `step_${String(step).padStart(6, "0")}`;
}

/** The names in a directory, sorted; none where it is missing. */
export function list(dir: string): string[] {
  try {
    return Array.from(Deno.readDirSync(dir), (entry) => entry.name).sort();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** Copies a directory and all in it; returns where to. */
export function copy(from: string): string {
  const to = freshPath();
  copyInto(from, to);
  return to;
}

export function copyInto(from: string, to: string): void {
  Deno.mkdirSync(to);
  for (const { name, isDirectory } of Deno.readDirSync(from)) {
    const [source, target] = [`${from}/${name}`, `${to}/${name}`];
    if (isDirectory) copyInto(source, target);
    else Deno.copyFileSync(source, target);
  }
}

/** Writes the checksums of a checkpoint anew, as one does who means a change. */
export function sum(dir: string): void {
  new Deno.Command("sh", { args: ["-c", 'cd "$0" && sha256sum *.* > SHA256SUMS', dir] }).outputSync();
}

/** Writes a NaN over an element of a weight of the newest checkpoint, whose checksum then fits again. */
export function plantNaN(out: string, name: string, index: number): void {
  const dir = `${out}/checkpoints/${list(`${out}/checkpoints`).at(-1)}`, path = `${dir}/model.safetensors`;
  const bytes = Deno.readFileSync(path), { offset } = readSafetensors(path).tensors.get(name)!;
  new DataView(bytes.buffer).setFloat32(offset + 4 * index, NaN, true);
  Deno.writeFileSync(path, bytes);
  const sums = Deno.readTextFileSync(`${dir}/SHA256SUMS`);
  const line = `${sha256OfFile(path)}  model.safetensors`;
  Deno.writeTextFileSync(`${dir}/SHA256SUMS`, sums.replace(/.* {2}model\.safetensors/, line));
}
