// deno task doctor: what is here, and what to do about what is missing. Exits with 1 if training cannot run at all.
import { findCompiler } from "./build.ts";
import { findToolkit } from "./cuda_toolkit.ts";
import { runMain } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { readFlags } from "../base/flags.ts";
import { device, libraryExists, open, pathOf } from "../ffi/library.ts";
import { oneLine } from "../base/visible.ts";
import { answer } from "../base/programs.ts";
import { parsePtxas } from "./ptxas.ts";

const isBinary = Deno.build.standalone; // which builds nothing
type Finding = { what: string; found: string; advice?: string; needed?: boolean };

async function compiler(): Promise<Finding> {
  try {
    return { what: "C++ compiler", found: (await findCompiler()).version };
  } catch (error) {
    return {
      what: "C++ compiler",
      found: "none",
      advice: (error as Error).message,
      needed: !libraryExists("cpu"),
    };
  }
}

function cpuLibrary(): Finding[] {
  const variants = ["cpu", "cpu_avx2", "cpu_avx512"].filter(libraryExists);
  if (!variants.includes("cpu")) {
    return [{ what: "CPU library", found: "not built", advice: "run: deno task build", needed: true }];
  }
  try {
    open("cpu", { bf16_gemm: "auto" });
  } catch (error) {
    return [{ what: "CPU library", found: "does not open", advice: (error as Error).message, needed: true }];
  }
  const { name, isa, isa_best, threads, blas, bf16_gemm } = device;
  const remedy = variants.includes(`cpu_${isa_best}`) ? "unset LOAM_ISA" : "run deno task build";
  return [
    { what: "CPU library", found: `${variants.join(", ")} in ${isBinary ? "this program" : "build/"}` },
    {
      what: "processor",
      found: `${name}, ${threads} threads, using ${isa}`,
      ...(isa === isa_best ? {} : { advice: `it could use ${isa_best}: ${remedy}` }),
    },
    {
      what: "BLAS",
      found: blas ?? "none",
      ...(blas?.startsWith("builtin") && !bf16_gemm // else its own product is as fast
        ? {
          advice:
            "install oneDNN for faster training (Debian: apt-get install libdnnl-dev), or OpenBLAS (libopenblas-dev)",
        }
        : {}),
    },
  ];
}

async function gpu(): Promise<Finding[]> {
  const query = ["--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"];
  const cards = (await answer("nvidia-smi", query))?.split("\n") ?? [];
  return [
    ...cards.map((card) => ({ what: "GPU", found: describe(card) })),
    ...(cards.length > 0 ? [] : [{ what: "GPU", found: "none (nvidia-smi does not answer)" }]),
    ...(isBinary ? [] : [await toolkit(cards.length > 0)]),
    ...cudaLibrary(cards.length > 0),
  ];
}

async function toolkit(hasGpu: boolean): Promise<Finding> {
  const found = await findToolkit(), what = "CUDA toolkit";
  if (typeof found !== "string") return { what, found: `nvcc ${found.release}, cuBLASLt in ${found.lib}` };
  return hasGpu
    ? { what, found: "none to build with", advice: found }
    : { what, found: `none to build with: ${found}` };
}

/** "NVIDIA H100, driver 580.65, 81559 MiB, sm_90" of a line from nvidia-smi. */
function describe(card: string): string {
  const [name, driver, memory, capability = "?"] = card.split(", ");
  return `${name}, driver ${driver}, ${memory}, sm_${capability.replace(".", "")}`;
}

/** What the library was compiled for, and the GPU, driver and cuBLASLt that it finds, or in its words why not. */
function cudaLibrary(hasGpu: boolean): Finding[] {
  if (!libraryExists("cuda")) {
    const [found, advice] = isBinary
      ? ["not in this program", "where it is built, make a program that holds it: deno task compile"]
      : ["not built", "run: deno task build"];
    return [{ what: "CUDA library", found, ...(hasGpu ? { advice } : {}) }];
  }
  const library = { what: "CUDA library", found: `built${compiledArchs()}` };
  try {
    open("cuda");
  } catch (error) {
    return [library, { what: "CUDA device", found: "none opens", advice: (error as Error).message }];
  }
  return [
    library,
    { what: "CUDA device", found: `${device.name}, ${device.arch}` },
    { what: "cuBLASLt", found: device.blas ?? "none" },
  ];
}

/** " for sm_80, sm_90a" as the compiler reported it, or "" where its report was not kept. */
function compiledArchs(): string {
  const report = pathOf(new URL("../build/ptxas.txt", import.meta.url));
  if (!isFile(report)) return "";
  const archs = new Set(parsePtxas(Deno.readTextFileSync(report)).map(({ arch }) => arch));
  return ` for ${
    [...archs].sort((a, b) => parseInt(a) - parseInt(b)).map((arch) => `sm_${arch}`).join(", ")
  }`;
}

/** The command line: prints what is here, a line each, with advice below. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    return console.log(
      "Say what is installed here and what to do about what is missing; exits with 1 where training cannot run",
    );
  }
  readFlags(args, {}); // there are none
  const findings: Finding[] = [
    { what: "Deno", found: `${Deno.version.deno} on ${Deno.build.target}` },
    ...(isBinary ? [] : [await compiler()]),
    ...cpuLibrary(),
    ...await gpu(),
  ];
  const width = Math.max(...findings.map(({ what }) => what.length));
  for (const { what, found, advice } of findings) {
    console.log(`${what.padEnd(width)}  ${oneLine(found)}`);
    if (advice) console.log(`${" ".repeat(width)}  -> ${oneLine(advice)}`);
  }
  if (findings.some(({ needed }) => needed)) Deno.exit(1);
}

if (import.meta.main) await runMain(main);
