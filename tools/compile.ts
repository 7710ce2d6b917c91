// deno task compile: puts loam into one program, build/loam: the modules that mod.ts reaches, the workers that deno.json
// names, tokenizer data, dashboard and every library that is built. Around them goes denort, which is Deno without its tools.
import loam from "../deno.json" with { type: "json" };
import { resolve } from "node:path";
import { runMain, UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { help, readFlags } from "../base/flags.ts";
import { libraryExists, libraryUrl, pathOf } from "../ffi/library.ts";
import { answer } from "../base/programs.ts";

const defaults = {
  output: "build/loam", // below build/ or /tmp
};

const ROOT = new URL("../", import.meta.url);
const LIBRARIES = ["cpu", "cpu_avx2", "cpu_avx512", "cuda"]; // emu is for tests
const DENORT = `https://dl.deno.land/release/v${Deno.version.deno}/denort-${Deno.build.target}.zip`;

/** Writes the program to a path, prints what it holds, and starts it once. Throws UserError where that does not work. */
async function compile(output: string): Promise<void> {
  const built = LIBRARIES.filter(libraryExists), denort = Deno.env.get("DENORT_BIN");
  if (!built.includes("cpu")) {
    throw new UserError(`Cannot compile ${output}: the CPU library is not built; run: deno task build`);
  }
  if (denort && !isFile(denort)) {
    throw new UserError(
      `Cannot compile ${output}: DENORT_BIN=${denort} is no file; it should be denort of ${DENORT}`,
    );
  }
  const libraries = built.flatMap((name) => ["--include", pathOf(libraryUrl(name))]);
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["compile", "-P=loam", "--no-prompt", "--exclude-unused-npm", ...libraries, "-o", output, "mod.ts"],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder().decode(stderr).trimEnd();
  const cause = reason(text);
  if (!success && cause === undefined) console.error(text);
  if (!success) throw new UserError(`Cannot compile ${output}: ${cause ?? "deno compile failed, see above"}`);
  console.log(text);
  await start(output, denort);
}

/** What is in the way where deno compile says that its runtime cannot be downloaded. */
export function reason(text: string): string | undefined {
  const [, cause] = /error sending request for url \([^)]*\): ([^\n]*)/.exec(text) ?? [];
  if (!cause || !text.includes("base binary")) return undefined;
  return `Deno's runtime cannot be downloaded (${cause}); fetch ${DENORT} where there is a network, unzip it, ` +
    "and run: DENORT_BIN=path/to/denort deno task compile";
}

/** Any file passes for a runtime until it runs: even deno itself, which then ignores what was put into it. */
async function start(output: string, denort: string | undefined): Promise<void> {
  const path = resolve(pathOf(ROOT), output);
  const wanted = `loam ${loam.version} `, said = await answer(path, ["--version"]);
  if (said?.startsWith(wanted)) return console.log(`${path}: ${said}`);
  await Deno.remove(path).catch(() => {}); // elsewhere than in build/ and /tmp it may not
  throw new UserError(
    `Cannot compile ${output}: it starts, but not as loam; ${
      denort ? `DENORT_BIN=${denort} should be` : "the runtime should be"
    } denort of ${DENORT}`,
  );
}

const USAGE = `Put everything into one program: code, libraries, vocabularies, dashboard

DENORT_BIN=path/to/denort takes Deno's runtime from there, not from dl.deno.land.`;

if (import.meta.main) {
  await runMain(async (args) => {
    if (!args.includes("--help")) return await compile({ ...defaults, ...readFlags(args, defaults) }.output);
    const { default: source } = await import("./compile.ts", { with: { type: "text" } });
    console.log(help(USAGE, defaults, source));
  });
}
