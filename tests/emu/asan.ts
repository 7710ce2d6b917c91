// deno task test:asan: the op, tape and optimizer suites on the emulator under AddressSanitizer and the undefined-behaviour
// checks, in two orders of threads. A kernel that reads or writes outside of its arrays ends the run. Ten minutes on two cores.
import { findCompiler } from "../../tools/build.ts";
import { runMain, UserError } from "../../base/errors.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const SUITES = ["runtime/ops_test.ts", "runtime/tape_test.ts", "runtime/optim_test.ts"];

async function run(
  command: string,
  args: string[],
  cwd: string,
  env: Record<string, string> = {},
): Promise<void> {
  const { code } = await new Deno.Command(command, { args, cwd, env, stdout: "inherit", stderr: "inherit" })
    .spawn()
    .status;
  if (code !== 0) throw new UserError(`${command} ended with code ${code}: see above`);
}

/** A folder that looks like the repository, but for an empty build/ of its own. */
function shadowOfRepository(): string {
  const shadow = Deno.makeTempDirSync({ prefix: "asan-" });
  for (const { name } of Deno.readDirSync(ROOT)) {
    if (!name.startsWith(".") && name !== "build") Deno.symlinkSync(`${ROOT}${name}`, `${shadow}/${name}`);
  }
  Deno.mkdirSync(`${shadow}/build`);
  return shadow;
}

async function compile(shadow: string): Promise<void> {
  const { command } = await findCompiler();
  const checks = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
  ];
  const flags = [
    "-std=c++17",
    "-O1",
    "-march=native",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-w",
  ];
  const source = ["-DLOAM_EMU", "-Itests/emu", "-x", "c++", "kernels.cu"];
  await run(command, [...flags, ...checks, ...source, "-o", `${shadow}/build/libloam_emu.so`, "-ldl"], ROOT);
}

/** The sanitizer has to be there before anything else is loaded; what Deno itself never frees is not ours. */
async function sanitizerEnvironment(): Promise<Record<string, string>> {
  const { command } = await findCompiler();
  const { stdout } = await new Deno.Command(command, { args: ["-print-file-name=libasan.so"] }).output();
  return { LD_PRELOAD: new TextDecoder().decode(stdout).trim(), ASAN_OPTIONS: "detect_leaks=0" };
}

await runMain(async (args) => {
  if (args.includes("--help")) {
    return console.log(
      "Run the op suites on the emulated GPU under AddressSanitizer, ten minutes on two cores",
    );
  }
  const shadow = shadowOfRepository();
  try {
    await compile(shadow);
    const sanitizer = await sanitizerEnvironment();
    for (const seed of ["0", "11"]) {
      const env = { ...sanitizer, LOAM_TEST_DEVICE: "emu", LOAM_EMU_SEED: seed };
      await run(Deno.execPath(), ["test", "-q", "-P=test", "--no-check", ...SUITES], shadow, env);
    }
  } finally {
    Deno.removeSync(shadow, { recursive: true });
  }
});
