// Builds small kernels with a copy of base/, ffi/ and tools/ in a folder whose name has a space. In place of nvcc there is a shell script.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";

const ROOT = `${import.meta.dirname}/..`;
const SOURCE = 'extern "C" int answer() { return 42; }\n';

type Project =
  & { root: string; build: (args?: string[], env?: Record<string, string>) => Promise<Ran> }
  & Disposable;
type Ran = { code: number; stdout: string; stderr: string };

/** What `deno task build` needs, with the given kernels.cpp and kernels.cu. Without CUDA unless env says where it is. */
function project(source: string): Project {
  const root = Deno.makeTempDirSync({ prefix: "loam build " });
  for (const folder of ["tests/emu", "base", "ffi", "tools", "offline/assert", "offline/cli"]) {
    Deno.mkdirSync(`${root}/${folder}`, { recursive: true });
    for (const { name, isFile } of Deno.readDirSync(`${ROOT}/${folder}`)) {
      if (isFile) Deno.copyFileSync(`${ROOT}/${folder}/${name}`, `${root}/${folder}/${name}`);
    }
  }
  for (const name of ["deno.json", "kernels.h", "formulas.h", "host.h", "attention_hopper.cuh"]) {
    Deno.copyFileSync(`${ROOT}/${name}`, `${root}/${name}`);
  }
  for (const name of ["kernels.cpp", "kernels.cu"]) Deno.writeTextFileSync(`${root}/${name}`, source);
  return {
    root,
    build: async (args = [], env = {}) => {
      const command = ["run", "-q", "--cached-only", "--no-lock", "-P=build", "tools/build.ts", ...args];
      const options = { args: command, cwd: root, env: { NO_COLOR: "1", CUDA_HOME: `${root}/no`, ...env } };
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), options).output();
      return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
    },
    [Symbol.dispose]: () => Deno.removeSync(root, { recursive: true }),
  };
}

/** Names in build/. */
function built({ root }: Project): string[] {
  return [...Deno.readDirSync(`${root}/build`)].map(({ name }) => name).sort();
}

Deno.test("build compiles every variant, and again only what is out of date", async () => {
  using p = project(SOURCE);
  const first = await p.build(["--only=cpu"]);
  assertEquals([first.code, first.stderr], [0, ""]);
  assertMatch(first.stdout, /^compiling cpu.* with .+\nbuilt libloam_cpu.* in \d+\.\d s\n$/);
  const libraries = built(p);
  assert(libraries.some((name) => /^libloam_cpu\.(so|dylib)$/.test(name)), libraries.join());
  assertEquals((await p.build(["--only=cpu"])).stdout, "build/: the libraries are up to date\n");
  assertMatch((await p.build(["--only=cpu", "--force"])).stdout, /^compiling cpu/);
  const past = new Date(Date.now() - 60_000), future = new Date(Date.now() + 60_000);
  for (const source of ["kernels.h", "formulas.h", "host.h", "kernels.cpp"]) {
    Deno.utimeSync(`${p.root}/${source}`, future, future);
    assertMatch((await p.build(["--only=cpu"])).stdout, /^compiling cpu/);
    Deno.utimeSync(`${p.root}/${source}`, past, past);
  }
  assertEquals((await p.build(["--only=cpu"])).stdout, "build/: the libraries are up to date\n");
  assertEquals(built(p), libraries); // nothing temporary is left
});

Deno.test("build shows the compiler's words and keeps the library that was there", async () => {
  using p = project(SOURCE);
  await p.build(["--only=cpu"]);
  const libraries = built(p);
  Deno.writeTextFileSync(`${p.root}/kernels.cpp`, "int broken(\n");
  const { code, stderr } = await p.build(["--only=cpu", "--force"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, `error: Cannot compile ${p.root}/kernels.cpp with `);
  assertMatch(stderr, /kernels\.cpp:\d+:\d+: error: /);
  assertEquals(built(p), libraries);
});

Deno.test("build refuses compilers and arguments that it does not know", async () => {
  using p = project(SOURCE);
  assertEquals(await p.build([], { CXX: "no-such-compiler" }), {
    code: 1,
    stdout: "",
    stderr: "error: Cannot run the compiler CXX=no-such-compiler: set CXX to a C++17 compiler or unset it\n",
  });
  assertEquals(
    (await p.build(["--isa=avx2"])).stderr,
    "error: Cannot use --isa: there is no such flag; see --help\n",
  );
  assertEquals(
    (await p.build(["--only=cpu,gpu"])).stderr,
    "error: Cannot use --only=cpu,gpu: it should be cpu, emu, cuda or several with commas\n",
  );
});

// ---- CUDA

/** A CUDA_HOME whose nvcc writes its arguments where the library should go, and knows the given architectures. */
function fakeToolkit({ root }: Project, { release = "13.0", archs = "75 80 86 89 90 100 110 120 121" } = {}) {
  const home = `${root}/cuda`, codes = archs.split(" ").map((arch) => `sm_${arch}`).join(" ");
  for (const folder of ["bin", "include", "lib64"]) Deno.mkdirSync(`${home}/${folder}`, { recursive: true });
  const script = `#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release ${release}, V${release}.88" ;;
  --list-gpu-code) printf '%s\\n' ${codes} ;;
  *) while [ "$1" != -o ]; do printf '%s\\n' "$1"; shift; done >args; mv args "$2"; echo "ptxas info    : fine" >&2 ;;
esac
`;
  Deno.writeTextFileSync(`${home}/bin/nvcc`, script, { mode: 0o755 });
  Deno.writeTextFileSync(`${home}/include/cublasLt.h`, "");
  Deno.writeTextFileSync(`${home}/include/cublas_api.h`, `#define CUBLAS_VER_MAJOR ${parseInt(release)}\n`);
  Deno.writeTextFileSync(`${home}/lib64/libcublasLt.so.${parseInt(release)}`, "");
  return { CUDA_HOME: home };
}

/** Targets that the fake nvcc was asked for. */
function codes({ root }: Project): string[] {
  const args = Deno.readTextFileSync(`${root}/build/libloam_cuda.so`).split("\n");
  return args.filter((_, i) => args[i - 1] === "-gencode").map((code) => code.split(",code=")[1]!);
}

const cuda = { ignore: Deno.build.os !== "linux" };

Deno.test(
  "build leaves CUDA out with one line where there is no nvcc, and makes the rest",
  cuda,
  async () => {
    using p = project(SOURCE);
    const { code, stdout, stderr } = await p.build();
    assertEquals([code, stderr], [0, ""]);
    const skipped = `CUDA library: skipped, no nvcc in ${p.root}/no/bin, where CUDA_HOME points\n`;
    assert(stdout.startsWith(`${skipped}compiling cpu`), stdout);
    assert(built(p).includes("libloam_emu.so"));
    assertEquals((await p.build()).stdout, `${skipped}build/: the libraries are up to date\n`);
    assertEquals(await p.build(["--arch=120"]), {
      code: 1,
      stdout: "",
      stderr: `error: Cannot build the CUDA library: no nvcc in ${p.root}/no/bin, where CUDA_HOME points\n`,
    });
  },
);

Deno.test(
  "build compiles CUDA for every architecture that nvcc knows, and PTX of the newest",
  cuda,
  async () => {
    using p = project(SOURCE);
    const env = fakeToolkit(p), only = "--only=cuda";
    const { code, stdout, stderr } = await p.build([only], env);
    assertEquals([code, stderr], [0, ""]);
    assertMatch(
      stdout,
      /^compiling cuda with nvcc 13\.0 for sm_80, sm_86, sm_89, sm_90a, sm_100, sm_120\nbuilt /,
    );
    assertEquals(codes(p), ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_120"]);
    assertStringIncludes(Deno.readTextFileSync(`${p.root}/build/ptxas.txt`), "\nptxas info    : fine\n");
    assert(Deno.readTextFileSync(`${p.root}/build/libloam_cuda.so`).includes("\n-lineinfo\n"));
    const one = await p.build([only, "--arch=90"], env);
    assertMatch(one.stdout, /^compiling cuda with nvcc 13\.0 for sm_90a\n/);
    assertEquals(codes(p), ["sm_90a", "compute_90"]);
    for (const again of [["--arch=90"], []]) { // without --arch, what is built will do
      assertEquals((await p.build([only, ...again], env)).stdout, "build/: the libraries are up to date\n");
    }
    assertEquals(
      (await p.build([only, "--arch=75"], env)).stderr,
      "error: Cannot build for --arch=75: nvcc 13.0 and loam know 80, 86, 89, 90, 100, 120; choose one of these, " +
        "native or all\n",
    );
  },
);

Deno.test("build --arch=native asks nvidia-smi for the GPU", cuda, async () => {
  using p = project(SOURCE);
  const env = fakeToolkit(p), PATH = `${p.root}/cuda/bin:${Deno.env.get("PATH")}`;
  const smi = (text: string) =>
    Deno.writeTextFileSync(`${p.root}/cuda/bin/nvidia-smi`, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  smi("printf '12.0\\n12.0\\n'");
  await p.build(["--only=cuda", "--arch=native"], { ...env, PATH });
  assertEquals(codes(p), ["sm_120", "compute_120"]);
  for (
    const [capability, code] of [
      ["10.3", "sm_100"],
      ["12.1", "sm_120"],
      ["8.7", "sm_86"],
      ["9.0", "sm_90a"],
      ["11.0", "sm_110"],
    ]
  ) {
    smi(`echo ${capability}`);
    await p.build(["--only=cuda", "--arch=native"], { ...env, PATH });
    assertEquals(codes(p)[0], code);
  }
  smi("echo 7.5");
  assertStringIncludes(
    (await p.build(["--only=cuda", "--arch=native"], { ...env, PATH })).stderr,
    "error: Cannot build for --arch=native: the GPU here is sm_75, nvcc 13.0 and loam know 80, 86, 89, 90, 100, 120; use " +
      "--device=cpu, or a newer CUDA toolkit where the GPU is newer than these\n",
  );
  smi("exit 1");
  assertStringIncludes(
    (await p.build(["--only=cuda", "--arch=native"], { ...env, PATH })).stderr,
    "error: Cannot build for --arch=native: nvidia-smi shows no GPU; name its architecture, such as --arch=120",
  );
});

Deno.test("build says what is wrong with a toolkit that is too old or has no cuBLASLt", cuda, async () => {
  using p = project(SOURCE);
  const old = fakeToolkit(p, { release: "11.8" });
  assertMatch(
    (await p.build(["--only=cuda"], old)).stdout,
    /^CUDA library: skipped, .*\/nvcc is of CUDA 11\.8, 12\.0 or later is needed\n/,
  );
  const without = { ...fakeToolkit(p), LOAM_CUBLAS: `${p.root}/nowhere` };
  assertMatch(
    (await p.build(["--only=cuda"], without)).stdout,
    /^CUDA library: skipped, nvcc 13\.0 is here, but not cublasLt\.h of CUDA 13; .*pip install nvidia-cublas/,
  );
});
