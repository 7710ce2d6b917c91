// What it takes to compile kernels.cu: nvcc, the headers of cuBLASLt of the same CUDA, and the GPUs to compile for.
import { UserError } from "../base/errors.ts";
import { answer } from "../base/programs.ts";

/** A compiler and the cuBLASLt it goes with. */
export type Toolkit = {
  nvcc: string;
  release: string; // "13.0"
  archs: string[]; // what this nvcc compiles for by default: "80", "90a", "120"
  known: string[]; // and of GPUs that loam runs on, all that it can: "80", "87", "103"
  include: string; // holds cublasLt.h
  lib: string; // holds libcublasLt.so
};

/** Compiled for by default where nvcc knows them; 90a is 90 with Hopper's own instructions. */
const ARCHS = ["80", "86", "89", "90a", "100", "120"];
const OLDEST_RELEASE = 12; // the first to know sm_90a

/** nvcc and its release: $CUDA_HOME/bin/nvcc where CUDA_HOME is set, else the one on PATH or in /usr/local/cuda. */
async function findNvcc(): Promise<{ nvcc: string; release: string } | undefined> {
  const home = Deno.env.get("CUDA_HOME");
  for (const nvcc of home ? [`${home}/bin/nvcc`] : ["nvcc", "/usr/local/cuda/bin/nvcc"]) {
    const release = /release (\d+\.\d+)/.exec(await answer(nvcc, ["--version"]) ?? "")?.[1];
    if (release) return { nvcc, release };
  }
  return undefined;
}

/** The toolkit, or in words why the CUDA library cannot be built here. */
export async function findToolkit(): Promise<Toolkit | string> {
  const found = await findNvcc();
  if (!found) {
    const home = Deno.env.get("CUDA_HOME");
    return home
      ? `no nvcc in ${home}/bin, where CUDA_HOME points`
      : "no nvcc on PATH or in /usr/local/cuda; to train on an NVIDIA GPU install the CUDA toolkit or set CUDA_HOME";
  }
  const major = parseInt(found.release);
  if (major < OLDEST_RELEASE) {
    return `${found.nvcc} is of CUDA ${found.release}, ${OLDEST_RELEASE}.0 or later is needed`;
  }
  const blas = findBlas(major);
  if (!blas) {
    return `nvcc ${found.release} is here, but not cublasLt.h of CUDA ${major}; install CUDA's cuBLAS development ` +
      `files, or pip install nvidia-cublas, or set LOAM_CUBLAS to the folder that has include/ and lib/ of it`;
  }
  const listed = await answer(found.nvcc, ["--list-gpu-code"]) ?? "";
  const archs = ARCHS.filter((arch) => listed.includes(`sm_${arch.replace("a", "")}`));
  const known = Array.from(listed.matchAll(/sm_(\d+)\b/g), ([, number]) => number!).filter((number) =>
    parseInt(number) >= parseInt(ARCHS[0]!)
  );
  return { ...found, archs, known, ...blas };
}

/** Folders with cuBLAS: LOAM_CUBLAS, then toolkits, then NVIDIA's Python wheels (nvidia/cu13, or nvidia/cublas for CUDA 12). */
function findBlas(major: number): { include: string; lib: string } | undefined {
  const asked = Deno.env.get("LOAM_CUBLAS"), home = Deno.env.get("CUDA_HOME");
  const toolkits = [...home ? [home] : [], `/usr/local/cuda-${major}`, "/usr/local/cuda", "/usr"];
  const wheels = sitePackages().flatMap((dir) => [`${dir}/nvidia/cu${major}`, `${dir}/nvidia/cublas`]);
  const root = (asked ? [asked] : [...toolkits, ...wheels]).find((dir) => versionOfBlas(dir) === major);
  if (!root) return undefined;
  const lib = ["lib64", "lib", "lib/x86_64-linux-gnu"].map((dir) => `${root}/${dir}`).find((dir) =>
    names(dir).includes(`libcublasLt.so.${major}`)
  );
  return { include: `${root}/include`, lib: lib ?? `${root}/lib` };
}

/** CUBLAS_VER_MAJOR in the headers below root, or undefined where there is none. */
function versionOfBlas(root: string): number | undefined {
  try {
    Deno.statSync(`${root}/include/cublasLt.h`);
    const header = Deno.readTextFileSync(`${root}/include/cublas_api.h`);
    return Number(/#define CUBLAS_VER_MAJOR (\d+)/.exec(header)?.[1]);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** Where Python keeps its packages: of the active environment, of environments in /opt, of the system, of the user. */
function sitePackages(): string[] {
  const active = ["VIRTUAL_ENV", "CONDA_PREFIX"].flatMap((name) => Deno.env.get(name) ?? []);
  const prefixes = [
    ...active,
    ...names("/opt").map((name) => `/opt/${name}`),
    "/usr/local",
    "/usr",
    `${Deno.env.get("HOME")}/.local`,
  ];
  const pythons = prefixes.flatMap((prefix) =>
    names(`${prefix}/lib`).filter((name) => name.startsWith("python3")).map((name) => `${prefix}/lib/${name}`)
  );
  return pythons.flatMap((python) => [`${python}/site-packages`, `${python}/dist-packages`]);
}

/** Names in a folder, sorted; none where there is no such folder. */
function names(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
  } catch {
    return [];
  }
}

/**
 * The architectures that --arch means: all that nvcc knows of ours, "native" those that run on the GPUs here, or one by its
 * number. Throws UserError for one that nvcc does not compile for.
 */
export async function resolveArchs(asked: string, toolkit: Toolkit): Promise<string[]> {
  if (asked === "all") return toolkit.archs;
  const numbers = asked === "native" ? await nativeArchs() : [asked];
  return numbers.map((number) => {
    const arch = toolkit.archs.find((arch) => arch === number || arch === `${number}a`) ??
      (asked === "native" ? codeThatRunsOn(number, toolkit.archs) : undefined) ??
      toolkit.known.find((arch) => arch === number);
    if (arch) return arch;
    const list = toolkit.archs.join(", ").replaceAll("a", "");
    throw new UserError(
      asked === "native"
        ? `Cannot build for --arch=native: the GPU here is sm_${number}, nvcc ${toolkit.release} and loam know ${list}; ` +
          "use --device=cpu, or a newer CUDA toolkit where the GPU is newer than these"
        : `Cannot build for --arch=${asked}: nvcc ${toolkit.release} and loam know ${list}; choose one of these, native or all`,
    );
  });
}

/** Machine code runs on later GPUs of the same generation: code for 12.0 on 12.1. That of 90a only on 9.0. */
function codeThatRunsOn(number: string, archs: string[]): string | undefined {
  const generation = (arch: string) => Math.floor(parseInt(arch) / 10);
  return archs.findLast((arch) =>
    !arch.endsWith("a") && generation(arch) === generation(number) && parseInt(arch) <= parseInt(number)
  );
}

/** Compute capabilities of the GPUs here without the point, "120". Throws UserError where nvidia-smi names none. */
async function nativeArchs(): Promise<string[]> {
  const text = await answer("nvidia-smi", ["--query-gpu=compute_cap", "--format=csv,noheader"]) ?? "";
  const archs = new Set(text.split("\n").map((line) => line.trim().replace(".", "")).filter(Boolean));
  if (archs.size > 0) return [...archs];
  throw new UserError(
    "Cannot build for --arch=native: nvidia-smi shows no GPU; name its architecture, such as --arch=120, or --arch=all",
  );
}

/** Arguments of nvcc for machine code of each architecture, and PTX of the newest for GPUs that come later. */
export function codeFlags(archs: string[]): string[] {
  const newest = archs.at(-1)!.replace("a", ""); // PTX of 90a would run on Hopper only
  return [...archs.map((arch) => [arch, `sm_${arch}`]), [newest, `compute_${newest}`]].flatMap(
    ([arch, code]) => ["-gencode", `arch=compute_${arch},code=${code}`],
  );
}
