// deno task build: compiles kernels.cpp into build/libloam_cpu*.so, one library per instruction set.
// Each is compiled to a temporary name and renamed, because overwriting a library that a process has loaded crashes it.
import { parseArgs } from "@std/cli/parse-args";
import { runMain, UserError } from "./errors.ts";
import { libraryUrl } from "./library.ts";

const ROOT = new URL("../", import.meta.url);

const CPU_FLAGS = [
  "-std=c++17",
  "-O3",
  "-fPIC",
  "-shared",
  "-fvisibility=hidden",
  "-fno-math-errno", // sqrt and exp set no errno: lets loops vectorise
  "-fno-trapping-math",
  "-ffp-contract=fast", // a * b + c may become one FMA
  "-Wall",
  "-Wextra",
];

/** Instruction sets to build for on this processor family; the best one is chosen when the library is opened. */
const CPU_VARIANTS: Record<string, string[]> = Deno.build.arch === "x86_64"
  ? { cpu: [], cpu_avx2: ["-march=x86-64-v3"], cpu_avx512: ["-march=x86-64-v4", "-mprefer-vector-width=512"] }
  : { cpu: [] };

/** The C++ compiler to use: $CXX, else the first of g++, c++, clang++ that answers. Throws UserError if there is none. */
export async function findCompiler(): Promise<{ command: string; version: string }> {
  const asked = Deno.env.get("CXX");
  for (const command of asked ? [asked] : ["g++", "c++", "clang++"]) {
    const version = await firstLine(command, ["--version"]);
    if (version) return { command, version };
  }
  throw new UserError(
    asked
      ? `Cannot run the compiler CXX=${asked}: set CXX to a C++17 compiler or unset it`
      : "Cannot find a C++ compiler: install g++ (Debian: apt-get install g++) or set CXX",
  );
}

/** First line that a program prints, or undefined where it cannot be run. */
export async function firstLine(command: string, args: string[]): Promise<string | undefined> {
  try {
    const { success, stdout } = await new Deno.Command(command, { args, stdout: "piped", stderr: "null" })
      .output();
    return success ? new TextDecoder().decode(stdout).split("\n")[0] : undefined;
  } catch {
    return undefined; // not installed
  }
}

function isFresh(output: URL, sources: URL[]): boolean {
  try {
    const built = Deno.statSync(output).mtime!.getTime();
    return sources.every((source) => Deno.statSync(source).mtime!.getTime() < built);
  } catch {
    return false;
  }
}

async function compile(command: string, args: string[], source: URL, output: URL): Promise<void> {
  const temporary = `${output.pathname}.${Deno.pid}.tmp`;
  const { success, stderr } = await new Deno.Command(command, {
    args: [...args, source.pathname, "-o", temporary, "-ldl"],
    stderr: "piped",
  }).output();
  const text = new TextDecoder().decode(stderr).trim();
  if (!success) {
    await Deno.remove(temporary).catch(() => {});
    throw new UserError(`Cannot compile ${source.pathname} with ${command}:\n${text}`);
  }
  if (text) console.error(text);
  await Deno.rename(temporary, output);
}

/** Builds what is out of date, two compilers at a time (each takes about 300 MB). */
export async function build(force: boolean): Promise<void> {
  await Deno.mkdir(new URL("build/", ROOT), { recursive: true });
  const source = new URL("kernels.cpp", ROOT);
  const sources = [source, new URL("kernels.h", ROOT), new URL(import.meta.url)];
  const stale = Object.entries(CPU_VARIANTS).filter(([name]) => force || !isFresh(libraryUrl(name), sources));
  if (stale.length === 0) return console.log("build/: the CPU libraries are up to date");

  const { command, version } = await findCompiler();
  console.log(`compiling ${stale.map(([name]) => name).join(", ")} with ${version}`);
  const platform = Deno.build.os === "darwin"
    ? [] // Apple's clang ships no OpenMP
    : ["-fopenmp", "-Wl,-z,nodelete"]; // never unloaded: idle OpenMP threads would run in unmapped code at exit
  const t0 = performance.now();
  const queue = [...stale];
  const worker = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const [name, flags] = next;
      await compile(command, [...CPU_FLAGS, ...platform, ...flags], source, libraryUrl(name));
    }
  };
  await Promise.all([worker(), worker()]);
  console.log(
    `built ${stale.map(([name]) => libraryUrl(name).pathname.split("/").at(-1)).join(", ")} in ${
      ((performance.now() - t0) / 1000).toFixed(1)
    } s`,
  );
}

if (import.meta.main) {
  await runMain(async () => {
    const flags = parseArgs(Deno.args, {
      boolean: ["force"],
      unknown: (arg) => {
        throw new UserError(`Cannot build: unknown argument ${arg}; the only flag is --force`);
      },
    });
    await build(flags.force);
  });
}
