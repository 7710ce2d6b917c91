// Plants faults in kernels.cu, one at a time, and expects attention_check.ts to catch each of them on the emulator.
// deno task test:mutants
// A fault that only some order of threads shows is caught when one of the seeds shows it.
import { runMain } from "../../ffi/errors.ts";

type Mutant = { name: string; search: string; occurrence: number; replace: string };

const root = new URL("../../", import.meta.url).pathname;
const seeds = [0, 1, 2, 3];

function plant(source: string, mutant: Mutant): string {
  let at = -1;
  for (let i = 0; i < mutant.occurrence; i++) {
    at = source.indexOf(mutant.search, at + 1);
    if (at < 0) {
      throw new Error(
        `Cannot plant "${mutant.name}": kernels.cu no longer has its text, update mutants.json`,
      );
    }
  }
  return source.slice(0, at) + mutant.replace + source.slice(at + mutant.search.length);
}

async function run(command: string, args: string[], env: Record<string, string> = {}) {
  const { code, stdout, stderr } = await new Deno.Command(command, { args, env, cwd: root }).output();
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, text: (decode(stdout) + decode(stderr)).trim() };
}

async function compile(source: string, directory: string, name: string): Promise<string> {
  const library = `${directory}/${name}.so`;
  await Deno.writeTextFile(`${directory}/${name}.cu`, source);
  const flags = ["-std=c++17", "-O2", "-march=native", "-DLOAM_EMU", "-shared", "-fPIC", "-w"];
  const result = await run("g++", [
    ...flags,
    "-Itests/emu",
    "-I.",
    "-x",
    "c++",
    `${directory}/${name}.cu`,
    "-o",
    library,
  ]);
  if (result.code !== 0) throw new Error(`Cannot compile ${name}.cu: ${result.text}`);
  return library;
}

/** What the check says about a library under the first seed that shows something, or "" if it is right under all. */
async function firstComplaint(library: string): Promise<string> {
  for (const seed of seeds) {
    const args = ["run", "-q", "-P=test", "tests/emu/attention_check.ts", library];
    const result = await run(Deno.execPath(), args, { LOAM_EMU_SEED: String(seed) });
    if (result.code !== 0) return `seed ${seed}: ${result.text.split("\n")[0]}`;
  }
  return "";
}

await runMain(async (args) => {
  if (args.includes("--help")) {
    return console.log("Plant faults in the attention kernels, and expect the tests to catch each");
  }
  const source = await Deno.readTextFile(`${root}kernels.cu`);
  const mutants: Mutant[] = JSON.parse(await Deno.readTextFile(`${root}tests/emu/mutants.json`));
  const directory = await Deno.makeTempDir({ prefix: "mutants-" });
  let failed = 0;
  try {
    const complaint = await firstComplaint(await compile(source, directory, "original"));
    if (complaint) throw new Error(`The unchanged kernels fail already: ${complaint}`);
    for (const [i, mutant] of mutants.entries()) {
      const caught = await firstComplaint(await compile(plant(source, mutant), directory, `mutant${i}`));
      if (!caught) failed++;
      console.log(`${caught ? "caught" : "MISSED"}  ${mutant.name}${caught && `: ${caught}`}`);
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
  console.log(`${mutants.length - failed} caught, ${failed} missed`);
  Deno.exit(failed ? 1 : 0);
});
