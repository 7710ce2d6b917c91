// Plants faults, one at a time, and expects the tests named beside each to fail: deno task test:mutants
//
// A fault that stays unnoticed is printed, and the exit code is 1, unless its line says why it is harmless. Works on a copy of
// the repository: it may be edited meanwhile.
import { runMain, UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { help, readFlags } from "../base/flags.ts";

const defaults = {
  only: "", // some of the tables below tests/mutants, such as train,data; "" = all: hours
  name: "", // faults whose name holds this text
};

/** A fault. `from` is replaced by `to` in `file`, in which it must stand once, or at its `occurrence` from 1. */
type Mutant = {
  name: string;
  file: string;
  from: string;
  to: string;
  occurrence?: number;
  /** What has to fail: files of tests with flags of deno test behind them, or programs that check build/libloam_emu.so. */
  tests: string[];
  /** Why nothing can notice it. */
  harmless?: string;
};

const ROOT = new URL("../", import.meta.url).pathname;
const TABLES = `${ROOT}tests/mutants`;
const LIMIT_MS = 300_000; // a fault that makes a test wait for ever is caught
const BUILD_LIMIT_MS = 3_600_000; // a build that is slow says nothing of a fault
const SEEDS = [11, 0, 1]; // orders of threads on the emulator, those of emu_test.ts first; one that shows the fault is enough

async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const source = Deno.readTextFileSync(new URL(import.meta.url));
    return console.log(help("Plant faults, one at a time; the tests must catch each", defaults, source));
  }
  const { only, name: text } = { ...defaults, ...readFlags(args, defaults) };
  const mutants = readTables(only === "" ? undefined : only.split(",")).filter(({ name }) =>
    name.includes(text)
  );
  if (mutants.length === 0) throw new UserError("Cannot plant anything: no fault has such a name");
  mutants.forEach((mutant) => plant(Deno.readTextFileSync(ROOT + mutant.file), mutant)); // all of them can be, before any is
  const copy = await copyRepository();
  try {
    console.log("building what is not up to date, then running the tests without a fault");
    const broken = await build(copy);
    if (broken) throw new UserError(`Cannot begin: the repository ${broken}`);
    const all = mutants.flatMap(({ file, tests }) => tests.map((test) => `${deviceOf(file)} ${test}`));
    for (const test of new Set(all)) {
      const [device, ...words] = test.split(" "),
        complaint = await firstComplaint(copy, words.join(" "), device!);
      if (complaint) throw new UserError(`Cannot begin: ${test} fails without a fault: ${complaint}`);
    }
    const survivors = [];
    for (const mutant of mutants) if (!await isCaught(copy, mutant)) survivors.push(mutant);
    const unexplained = survivors.filter(({ harmless }) => harmless === undefined);
    console.log(
      `${
        mutants.length - survivors.length
      } caught, ${survivors.length} survived, ${unexplained.length} unexplained`,
    );
    Deno.exitCode = unexplained.length > 0 ? 1 : 0;
  } finally {
    Deno.removeSync(copy, { recursive: true });
  }
}

/** The faults of all tables, or of those with these names. */
export function readTables(only: string[] | undefined): Mutant[] {
  const all = Array.from(Deno.readDirSync(TABLES), ({ name }) => name.replace(".json", "")).sort();
  const unknown = only?.find((name) => !all.includes(name));
  if (unknown !== undefined) throw new UserError(`Cannot use table ${unknown}: there are ${all.join(", ")}`);
  return (only ?? all).flatMap((name) =>
    JSON.parse(Deno.readTextFileSync(`${TABLES}/${name}.json`)) as Mutant[]
  );
}

/** The source with the fault in it. */
export function plant(source: string, { name, file, from, to, occurrence }: Mutant): string {
  const pieces = source.split(from), at = occurrence ?? 1;
  if (pieces.length < 2 || (occurrence === undefined && pieces.length > 2) || at >= pieces.length) {
    throw new UserError(
      `Cannot plant "${name}": ${file} has its text ${pieces.length - 1} times; update tests/mutants`,
    );
  }
  return pieces.slice(0, at).join(from) + to + pieces.slice(at).join(from);
}

/** A copy of the files that git knows, of the libraries and of the packages. */
async function copyRepository(): Promise<string> {
  const copy = await Deno.makeTempDir({ prefix: "loam_mutants_" });
  const script =
    'git ls-files -z | xargs -0 cp -p --parents -t "$0"; for d in build node_modules; do [ ! -e $d ] || cp -a $d "$0"; done';
  await output("sh", ["-c", script, copy], ROOT);
  return copy;
}

/** Whether a test fails when the fault is there. Leaves the sources as they were. */
async function isCaught(copy: string, mutant: Mutant): Promise<boolean> {
  const path = `${copy}/${mutant.file}`, source = Deno.readTextFileSync(path);
  let complaint: string | undefined;
  try {
    Deno.writeTextFileSync(path, plant(source, mutant));
    complaint = await build(copy);
    for (const test of mutant.tests) complaint ||= await firstComplaint(copy, test, deviceOf(mutant.file));
  } finally {
    Deno.writeTextFileSync(path, source); // the next fault, or none, is built over it
  }
  const verdict = complaint ? "caught  " : mutant.harmless === undefined ? "SURVIVED" : "harmless";
  console.log(
    `${verdict}  ${mutant.file}: ${mutant.name}: ${complaint || mutant.harmless || "no test failed"}`,
  );
  return Boolean(complaint);
}

/** Builds the libraries that are not up to date; returns what is wrong, if anything. */
async function build(copy: string): Promise<string | undefined> {
  const args = ["run", "-q", "-P=build", "tools/build.ts", "--only=cpu,emu"];
  const { code, signal, text } = await output(Deno.execPath(), args, copy, {}, BUILD_LIMIT_MS);
  if (signal !== null) throw new UserError(`Cannot go on: the build was ended by ${signal}`);
  return code === 0 ? undefined : `does not compile: ${lastLine(text)}`;
}

/** What the tests of a file run on. */
function deviceOf(file: string): "cpu" | "emu" {
  return /\.cuh?$/.test(file) ? "emu" : "cpu";
}

/** What a test says, or undefined if it passes: on the emulator, with each order of threads. */
async function firstComplaint(copy: string, test: string, device: string): Promise<string | undefined> {
  const [file, ...flags] = test.split(/ (?=--)/); // the text of a filter may have spaces
  if (!isFile(`${copy}/${file}`)) throw new UserError(`Cannot run ${file}: there is no such test`);
  for (const seed of device === "emu" ? SEEDS : [0]) {
    const args = file!.endsWith("_test.ts")
      ? ["test", "-q", "--no-check", "--fail-fast", "-P=test", file!, ...flags]
      : ["run", "-q", "--no-check", "-P=test", file!, "build/libloam_emu.so"];
    const env = { LOAM_TEST_DEVICE: device, LOAM_EMU_SEED: String(seed) };
    const { code, text } = await output(Deno.execPath(), args, copy, env);
    if (code !== 0) {
      return firstError(text) + (seed === SEEDS[0] || device === "cpu" ? "" : ` (seed ${seed})`);
    }
  }
  return undefined;
}

async function output(
  program: string,
  args: string[],
  cwd: string,
  env: Record<string, string> = {},
  limit_ms = LIMIT_MS,
) {
  const command = new Deno.Command(program, {
    args,
    cwd,
    env: { NO_COLOR: "1", ...env },
    signal: AbortSignal.timeout(limit_ms),
    stdin: "null",
  });
  const { code, signal, stdout, stderr } = await command.output();
  const text = new TextDecoder();
  return { code, signal, text: text.decode(stdout) + text.decode(stderr) };
}

/** The line that says most about a failure. */
function firstError(text: string): string {
  const lines = text.split("\n");
  return (lines.find((line) => /^error: (?!Test failed)/.test(line)) ?? lastLine(text)).slice(0, 120);
}

function lastLine(text: string): string {
  return text.trimEnd().split("\n").at(-1)!;
}

if (import.meta.main) await runMain(main);
