// deno task build: compiles the libraries of build/. kernels.cpp becomes libloam_cpu*.so, one for each instruction set;
// kernels.cu becomes libloam_cuda.so where nvcc is found, and with the headers of tests/emu libloam_emu.so, which runs the
// CUDA kernels on a CPU for the tests.
// Each is compiled to a temporary name and renamed, because overwriting a library that a process has loaded crashes it.
import { codeFlags, findToolkit, resolveArchs } from "./cuda_toolkit.ts";
import { runMain, UserError } from "../base/errors.ts";
import { help, readFlags } from "../base/flags.ts";
import { libraryUrl, pathOf } from "../ffi/library.ts";
import { visible } from "../base/visible.ts";
import { answer } from "../base/programs.ts";
import { parsePtxas, ptxasTable } from "./ptxas.ts";
import { FUNCTIONS } from "../ffi/symbols.ts";

const ROOT = new URL("../", import.meta.url);
const EXPORTS = "build/exports.map"; // linker script: these functions and nothing else
const PTXAS = "build/ptxas.txt"; // the command that built the CUDA library, then what ptxas said

/** Where the kernels of a library run: on a CPU, on a GPU that a CPU emulates, or on a GPU. */
type Kind = "cpu" | "emu" | "cuda";

const KINDS: readonly Kind[] = ["cpu", "emu", "cuda"];

const defaults = {
  only: "cpu,emu,cuda", // some of these
  arch: "", // CUDA: all, native (the GPUs at hand) or one by its number, such as 120; "" = what is built, else all
  force: false, // compile what is up to date, too
  verbose: false, // print the registers that each CUDA kernel takes
};
type BuildOptions = Omit<typeof defaults, "only"> & { only: readonly Kind[] };

/** How to make one library. Paths are relative to the repository, as nvcc does not take spaces in all places. */
type Recipe = { name: string; args: string[]; sources: string[] };
type Job = Recipe & { compiler: string; version: string };

const HOST_FLAGS = ["-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"];
const OPENMP = Deno.build.os === "darwin" ? [] : ["-fopenmp"]; // Apple's clang ships none
const LINK = Deno.build.os === "darwin" ? [] : [`-Wl,--version-script=${EXPORTS}`, "-Wl,-z,nodelete"]; // never unloaded: idle OpenMP threads would run in unmapped code at exit

const CPU_FLAGS = [
  ...HOST_FLAGS,
  "-O3",
  "-fno-math-errno", // sqrt and exp set no errno: lets loops vectorise
  "-fno-trapping-math",
  "-ffp-contract=fast", // a * b + c may become one FMA
];

/** Instruction sets to build for on this processor family; the best one is chosen when the library is opened. */
const CPU_VARIANTS: Record<string, string[]> = Deno.build.arch === "x86_64"
  ? { cpu: [], cpu_avx2: ["-march=x86-64-v3"], cpu_avx512: ["-march=x86-64-v4", "-mprefer-vector-width=512"] }
  : { cpu: [] };

/** The C++ compiler to use: $CXX, else the first of g++, c++, clang++ that answers. Throws UserError if there is none. */
export async function findCompiler(): Promise<{ command: string; version: string }> {
  const asked = Deno.env.get("CXX");
  for (const command of asked ? [asked] : ["g++", "c++", "clang++"]) {
    const version = (await answer(command, ["--version"]))?.split("\n")[0];
    if (version) return { command, version };
  }
  throw new UserError(
    asked
      ? `Cannot run the compiler CXX=${asked}: set CXX to a C++17 compiler or unset it`
      : "Cannot find a C++ compiler: install g++ (Debian: apt-get install g++) or set CXX",
  );
}

// ---- what there is to build

/** The jobs that are not up to date. */
async function staleJobs({ only, force, arch, verbose }: BuildOptions): Promise<Job[]> {
  const host = [...only.includes("cpu") ? cpuRecipes() : [], ...only.includes("emu") ? emuRecipes() : []];
  const recipes = host.filter((recipe) => force || !isFresh(recipe));
  const stale = recipes.length > 0 ? withCompiler(recipes, await findCompiler()) : [];
  if (!only.includes("cuda")) return stale;
  const cuda = await cudaJob(arch || "all");
  if (typeof cuda === "string") {
    if (arch || verbose) throw new UserError(`Cannot build the CUDA library: ${cuda}`);
    console.log(`CUDA library: skipped, ${cuda}`);
    return stale;
  }
  const isOther = arch !== "" && commandOfReport() !== commandOf(cuda);
  return force || isOther || !isFresh(cuda) ? [cuda, ...stale] : stale; // it takes longest
}

function withCompiler(recipes: Recipe[], { command, version }: { command: string; version: string }): Job[] {
  return recipes.map((recipe) => ({ ...recipe, compiler: command, version }));
}

function cpuRecipes(): Recipe[] {
  return Object.entries(CPU_VARIANTS).map(([name, flags]) => ({
    name,
    args: [...CPU_FLAGS, ...OPENMP, ...flags, "kernels.cpp", ...LINK, "-ldl"],
    sources: ["kernels.cpp", "kernels.h", "formulas.h", "host.h"],
  }));
}

/** The emulator needs Linux; it stays on this machine, so it may use all of its instructions. */
function emuRecipes(): Recipe[] {
  if (Deno.build.os !== "linux") return [];
  const cuda = ["-DLOAM_EMU", "-Itests/emu", "-Wno-unknown-pragmas", "-x", "c++", "kernels.cu"];
  return [{
    name: "emu",
    args: [...HOST_FLAGS, "-O2", "-march=native", ...OPENMP, ...cuda, ...LINK, "-ldl"],
    sources: [
      "kernels.cu",
      "attention_hopper.cuh",
      "kernels.h",
      "formulas.h",
      "host.h",
      ...headers("tests/emu"),
    ],
  }];
}

function headers(folder: string): string[] {
  return [...Deno.readDirSync(new URL(folder, ROOT))].map(({ name }) => `${folder}/${name}`)
    .filter((path) => path.endsWith(".h"));
}

/** The CUDA library, or in words why it cannot be built here. */
async function cudaJob(arch: string): Promise<Job | string> {
  const toolkit = await findToolkit();
  if (typeof toolkit === "string") return toolkit;
  const archs = await resolveArchs(arch, toolkit);
  const host = ["-fPIC", "-fvisibility=hidden", "-idirafter", toolkit.include];
  return {
    name: "cuda",
    compiler: toolkit.nvcc,
    version: `nvcc ${toolkit.release} for sm_${archs.join(", sm_")}`,
    args: [
      ...[
        "-std=c++17",
        "-O3",
        "-shared",
        "-cudart",
        "static",
        "-Xptxas",
        "-v",
        "-lineinfo",
        "--threads",
        "2",
      ],
      ...codeFlags(archs),
      ...host.flatMap((flag) => ["-Xcompiler", flag]),
      ...[`-DLOAM_CUBLASLT_DIR="${toolkit.lib}"`, "kernels.cu"],
      ...["-Xlinker", `--version-script=${EXPORTS}`, "-Xlinker", "-z", "-Xlinker", "nodelete", "-ldl"],
    ],
    sources: ["kernels.cu", "attention_hopper.cuh", "kernels.h", "formulas.h", "host.h"],
  };
}

function isFresh({ name, sources }: Recipe): boolean {
  const programs = ["build.ts", "cuda_toolkit.ts", "../ffi/symbols.ts"].map((name) =>
    new URL(name, import.meta.url)
  );
  try {
    const built = Deno.statSync(libraryUrl(name)).mtime!.getTime();
    return [...sources.map((path) => new URL(path, ROOT)), ...programs]
      .every((file) => Deno.statSync(file).mtime!.getTime() < built);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

// ---- compiling

function commandOf({ compiler, args }: Job): string {
  return [compiler, ...args].join(" ");
}

function commandOfReport(): string {
  try {
    return Deno.readTextFileSync(new URL(PTXAS, ROOT)).split("\n")[0]!;
  } catch {
    return ""; // not built yet
  }
}

async function compile(job: Job): Promise<void> {
  const output = libraryUrl(job.name), temporary = `build/${job.name}.${Deno.pid}.tmp`;
  const { success, stdout, stderr } = await new Deno.Command(job.compiler, {
    args: [...job.args, "-o", temporary],
    cwd: ROOT,
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
  const warnings = text.split("\n").filter((line) => !isPtxasInfo(line)).join("\n").trim();
  if (warnings) console.error(visible(warnings));
  if (!success) {
    await Deno.remove(new URL(temporary, ROOT)).catch(() => {});
    const without = job.name === "cuda" ? "; to go on without it: deno task build --only=cpu" : "";
    throw new UserError(
      `Cannot compile ${
        pathOf(new URL(job.sources[0]!, ROOT))
      } with ${job.compiler}: it says why above${without}`,
    );
  }
  if (job.name === "cuda") await Deno.writeTextFile(new URL(PTXAS, ROOT), `${commandOf(job)}\n${text}`);
  await Deno.rename(new URL(temporary, ROOT), output);
}

function isPtxasInfo(line: string): boolean {
  return /^ptxas info(?!.*\(C75)|bytes stack frame/.test(line); // C75..: wgmma runs slower than it could
}

/** Builds what is out of date, two compilers at a time (each takes about 300 MB). */
async function build(options: BuildOptions): Promise<void> {
  await Deno.mkdir(new URL("build/", ROOT), { recursive: true });
  const stale = await staleJobs(options), queue = [...stale], t0 = performance.now();
  if (stale.length > 0) {
    await Deno.writeTextFile(new URL(EXPORTS, ROOT), exportsMap());
    for (const version of new Set(stale.map((job) => job.version))) {
      const jobs = stale.filter((job) => job.version === version).map(({ name }) => name);
      console.log(`compiling ${jobs.join(", ")} with ${version}`);
    }
    const worker = async () => {
      for (let next = queue.shift(); next; next = queue.shift()) await compile(next);
    };
    await Promise.all([worker(), worker()]);
    const names = stale.map(({ name }) => libraryUrl(name).pathname.split("/").at(-1));
    console.log(`built ${names.join(", ")} in ${((performance.now() - t0) / 1000).toFixed(1)} s`);
  } else console.log("build/: the libraries are up to date");
  if (options.verbose) console.log(ptxasTable(parsePtxas(Deno.readTextFileSync(new URL(PTXAS, ROOT)))));
}

/** The functions of kernels.h, of which symbols.ts has the list. */
function exportsMap(): string {
  return `{\n  global:\n${FUNCTIONS.map((name) => `    ${name};`).join("\n")}\n  local: *;\n};\n`;
}

const USAGE =
  "Compile what is out of date in build/: the libraries of the CPU, of the emulator, and of CUDA where nvcc is found";

function readOptions(args: string[]): BuildOptions {
  const o = { ...defaults, ...readFlags(args, defaults) }, only = o.only.split(",");
  const isKind = (name: string): name is Kind => KINDS.some((kind) => kind === name);
  if (only.every(isKind)) return { ...o, only };
  throw new UserError(`Cannot use --only=${o.only}: it should be cpu, emu, cuda or several with commas`);
}

if (import.meta.main) {
  await runMain(async (args) => {
    if (!args.includes("--help")) return await build(readOptions(args));
    const { default: source } = await import("./build.ts", { with: { type: "text" } });
    console.log(help(USAGE, defaults, source));
  });
}
