// deno task doctor: what is here, and what to do about what is missing. Exits with 1 if training cannot run at all.
import { findCompiler, firstLine } from "./build.ts";
import { explain, runMain } from "./errors.ts";
import { device, libraryExists, open } from "./library.ts";

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
    open("cpu");
  } catch (error) {
    return [{ what: "CPU library", found: "does not open", advice: explain(error), needed: true }];
  }
  const { name, isa, isa_best, threads, blas } = device;
  return [
    { what: "CPU library", found: `${variants.join(", ")} in build/` },
    {
      what: "processor",
      found: `${name}, ${threads} threads, using ${isa}`,
      ...(isa === isa_best
        ? {}
        : { advice: `it could use ${isa_best}: run deno task build, or unset LOAM_ISA` }),
    },
    {
      what: "BLAS",
      found: blas ?? "none",
      ...(blas?.startsWith("builtin")
        ? {
          advice:
            "install oneDNN for faster training (Debian: apt-get install libdnnl2), or OpenBLAS (libopenblas0)",
        }
        : {}),
    },
  ];
}

async function gpu(): Promise<Finding[]> {
  const card = await firstLine("nvidia-smi", [
    "--query-gpu=name,driver_version,memory.total",
    "--format=csv,noheader",
  ]);
  const nvcc = await lastLine("nvcc", ["--version"]);
  const findings: Finding[] = [{ what: "GPU", found: card ?? "none (nvidia-smi does not answer)" }];
  if (card || nvcc) {
    findings.push({
      what: "nvcc",
      found: nvcc ?? "none",
      ...(nvcc ? {} : { advice: "install the CUDA toolkit to build the CUDA library" }),
    });
  }
  findings.push({ what: "CUDA library", found: libraryExists("cuda") ? "built" : "not built" });
  if (!libraryExists("cuda")) return findings;
  try {
    open("cuda");
    findings.push({ what: "CUDA device", found: `${device.name}, ${device.arch}` });
  } catch (error) {
    findings.push({ what: "CUDA device", found: "none opens", advice: (error as Error).message });
  }
  return findings;
}

async function lastLine(command: string, args: string[]): Promise<string | undefined> {
  try {
    const { success, stdout } = await new Deno.Command(command, { args, stderr: "null" }).output();
    return success ? new TextDecoder().decode(stdout).trim().split("\n").at(-1) : undefined;
  } catch {
    return undefined; // not installed
  }
}

if (import.meta.main) {
  await runMain(async () => {
    const findings: Finding[] = [
      { what: "Deno", found: `${Deno.version.deno} on ${Deno.build.target}` },
      await compiler(),
      ...cpuLibrary(),
      ...await gpu(),
    ];
    const width = Math.max(...findings.map(({ what }) => what.length));
    for (const { what, found, advice } of findings) {
      console.log(`${what.padEnd(width)}  ${found}`);
      if (advice) console.log(`${" ".repeat(width)}  -> ${advice}`);
    }
    if (findings.some(({ needed }) => needed)) Deno.exit(1);
  });
}
