// What doctor says: of GPUs, shown by a program that answers in place of nvidia-smi, and of what is not as it should be.
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { basename } from "node:path";
import { libraryExists, libraryUrl, pathOf } from "../ffi/library.ts";

const ROOT = new URL("../", import.meta.url).pathname;

/** Runs doctor, or a copy of it. */
async function run(
  script: string,
  env: Record<string, string> = {},
  ...flags: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const args = ["run", "-q", "-A", "--config", `${ROOT}deno.json`, script, ...flags];
  const result = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT, env: { NO_COLOR: "1", ...env } })
    .output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code: result.code, stdout: text(result.stdout), stderr: text(result.stderr) };
}

/** Runs doctor where nvidia-smi is a shell script with this body. */
async function doctor(nvidia_smi: string): Promise<string> {
  const folder = Deno.makeTempDirSync();
  Deno.writeTextFileSync(`${folder}/nvidia-smi`, `#!/bin/sh\n${nvidia_smi}\n`, { mode: 0o755 });
  const env = { PATH: `${folder}:${Deno.env.get("PATH")}`, CUDA_HOME: "/no/cuda", NO_COLOR: "1" };
  const args = ["run", "-q", "-P=doctor", "tools/doctor.ts"], cwd = ROOT;
  const { code, stdout } = await new Deno.Command(Deno.execPath(), { args, cwd, env }).output();
  Deno.removeSync(folder, { recursive: true });
  assertEquals(code, 0);
  return new TextDecoder().decode(stdout);
}

Deno.test("doctor names each GPU, its driver and architecture, and what is missing to build for it", async () => {
  const text = await doctor(
    "printf 'NVIDIA H100, 580.65.06, 81559 MiB, 9.0\\nNVIDIA A100, 580.65.06, 40960 MiB, 8.0\\n'",
  );
  assertMatch(text, /^GPU +NVIDIA H100, driver 580\.65\.06, 81559 MiB, sm_90$/m);
  assertMatch(text, /^GPU +NVIDIA A100, driver 580\.65\.06, 40960 MiB, sm_80$/m);
  assertMatch(
    text,
    /^CUDA toolkit +none to build with\n +-> no nvcc in \/no\/cuda\/bin, where CUDA_HOME points$/m,
  );
  assertMatch(text, /^CUDA library +(built for sm_\d+|not built\n +-> run: deno task build)/m);
});

Deno.test("doctor does without the compiler's report on the CUDA library", async () => {
  const copy = Deno.makeTempDirSync();
  Deno.mkdirSync(`${copy}/build`);
  Deno.copyFileSync(`${ROOT}deno.json`, `${copy}/deno.json`);
  for (const folder of ["base", "ffi", "tools"]) {
    Deno.mkdirSync(`${copy}/${folder}`);
    for (const { name } of Deno.readDirSync(ROOT + folder)) {
      Deno.copyFileSync(`${ROOT}${folder}/${name}`, `${copy}/${folder}/${name}`);
    }
  }
  Deno.writeTextFileSync(`${copy}/build/${basename(pathOf(libraryUrl("cuda")))}`, "no library");
  const { stdout, stderr } = await run(`${copy}/tools/doctor.ts`);
  Deno.removeSync(copy, { recursive: true });
  assertEquals(stderr, "");
  assertMatch(stdout, /^CUDA library +built\nCUDA device +none opens\n/m);
});

Deno.test("doctor says how to get the processor's best, and exits with 1 where nothing can train", async () => {
  const portable = await run("tools/doctor.ts", { LOAM_ISA: "portable" });
  assertEquals(portable.code, 0);
  const best = /it could use (\w+): (.*)/.exec(portable.stdout);
  if (best) assertEquals(best[2], libraryExists(`cpu_${best[1]}`) ? "unset LOAM_ISA" : "run deno task build");
  const wrong = await run("tools/doctor.ts", { LOAM_ISA: "sse9" });
  assertEquals(wrong.code, 1);
  assertMatch(
    wrong.stdout,
    /^CPU library +does not open\n +-> Cannot open the CPU library for LOAM_ISA=sse9: /m,
  );
});

Deno.test("doctor refuses arguments in one line", async () => {
  const { code, stderr } = await run("tools/doctor.ts", {}, "--foo");
  assertEquals(code, 1);
  assertEquals(stderr, "error: Cannot use --foo: there is no such flag; see --help\n");
});

Deno.test("doctor asks for nothing of CUDA where there is no GPU", async () => {
  const text = await doctor("exit 1");
  assertMatch(
    text,
    /^GPU +none \(nvidia-smi does not answer\)\nCUDA toolkit +none to build with: no nvcc in [^\n]*\nCUDA library /m,
  );
  assertStringIncludes(text, "CPU library ");
});

Deno.test("doctor and build, which run.sh runs, say the same of what CUDA lacks, with a GPU and without", async () => {
  const built = await run("tools/build.ts", { CUDA_HOME: "/no/cuda" }, "--only=cuda");
  const [, lacking] = /^CUDA library: skipped, (.*)$/m.exec(built.stdout) ?? [];
  assertEquals(lacking, "no nvcc in /no/cuda/bin, where CUDA_HOME points");
  assertStringIncludes(await doctor("exit 1"), `CUDA toolkit  none to build with: ${lacking}\n`);
  assertStringIncludes(
    await doctor("echo NVIDIA H100, 580.65.06, 81559 MiB, 9.0"),
    `CUDA toolkit  none to build with\n              -> ${lacking}\n`,
  );
});
