// deno task compile. What goes into the program is checked everywhere, with /bin/true in place of the runtime; that the program
// runs is checked where LOAM_DENORT or DENORT_BIN names denort, which holds Deno's runtime for compiled programs.
import { assert, assertEquals, assertMatch } from "@std/assert";
import settings from "../deno.json" with { type: "json" };
import { reason } from "../tools/compile.ts";
import { libraryExists } from "../ffi/library.ts";
import { errorLine, freshPath, list, type Result, resultOf, ROOT, SMALL } from "./testing.ts";

const DENORT = `https://dl.deno.land/release/v${Deno.version.deno}/denort-${Deno.build.target}.zip`;

async function output(program: string, args: string[], cwd: string | URL, env = {}): Promise<Result> {
  return resultOf(await new Deno.Command(program, { args, cwd, env, stdin: "null" }).output());
}

/** Runs deno task compile with a runtime. */
async function compile(denort: string, path: string): Promise<Result> {
  const args = [...settings.tasks.compile.command.split(" ").slice(1), `--output=${path}`];
  return await output(Deno.execPath(), args, ROOT, { DENORT_BIN: denort });
}

// ---- what goes in

/**
 * The paths in the tree that deno compile prints: two columns a level, then ├── name (size) or ├─┬ name (size). A folder of
 * which all is in is one line, "name/*".
 */
function pathsIn(tree: string): string[] {
  const parents: string[] = [], paths: string[] = [];
  for (const [, indent, name] of tree.matchAll(/^((?:[│ ] )*)[├└]─[─┬] (\S+)/gm)) {
    parents.splice(indent!.length / 2, Infinity, name!);
    paths.push(parents.join("/"));
  }
  return paths;
}

function holds(embedded: string[], path: string): boolean {
  return embedded.some((known) =>
    known === path || known.endsWith("/*") && path.startsWith(known.slice(0, -1))
  );
}

/** The files of ours that a module reaches, dynamic imports included. */
async function graphOf(path: string): Promise<string[]> {
  const { stdout } = await output(Deno.execPath(), ["info", "--json", path], ROOT);
  const { modules }: { modules: { specifier: string }[] } = JSON.parse(stdout);
  const ours = modules.filter(({ specifier }) => specifier.startsWith(ROOT.href));
  return ours.map(({ specifier }) => specifier.slice(ROOT.href.length));
}

/** The modules that any of these files starts as workers. */
function workersOf(files: string[]): string[] {
  return files.filter((path) => path.endsWith(".ts")).flatMap((path) => {
    const file = new URL(path, ROOT), started = /new URL\("([^"]*worker\.ts)", import\.meta\.url\)/g;
    const names = Array.from(Deno.readTextFileSync(file).matchAll(started), ([, name]) => name!);
    return names.map((name) => new URL(name, file).href.slice(ROOT.href.length));
  });
}

const faked = { path: freshPath(), result: undefined as Result | undefined };

/** What deno task compile says with a runtime that does nothing, which is after all else has worked. */
async function fakedCompile(): Promise<Result> {
  return faked.result ??= await compile("/bin/true", faked.path);
}

Deno.test("compile puts the whole module graph, the workers and what they reach into the program", async () => {
  const embedded = pathsIn((await fakedCompile()).stdout), files = await graphOf("mod.ts");
  const workers = workersOf(files);
  assertEquals(workers.sort(), [
    "base/sha256_worker.ts",
    "data/prepare/encode_worker.ts",
    "runtime/save_worker.ts",
    "serve/model_worker.ts",
    "serve/worker.ts",
  ]);
  for (const worker of workers) files.push(...await graphOf(worker));
  const code = /^(export )?(async )?(const|let|function|class) /m; // a file of types leaves nothing to run
  const programs = files.filter((path) => code.test(Deno.readTextFileSync(new URL(path, ROOT))));
  assertEquals([...new Set(programs)].filter((path) => !holds(embedded, path)), []);
});

Deno.test("compile puts the libraries that are built, vocabularies and the dashboard into the program", async () => {
  const embedded = pathsIn((await fakedCompile()).stdout);
  const libraries = ["cpu", "cpu_avx2", "cpu_avx512", "cuda"].filter(libraryExists);
  assert(libraries.length > 0);
  for (const name of libraries) {
    assert(embedded.some((path) => path.startsWith(`build/libloam_${name}.`)), name);
  }
  for (const name of ["gpt-tokenizer", "uplot"]) {
    assert(embedded.some((path) => path.includes(`/${name}/`)), name);
  }
  for (const name of list(new URL("serve/dashboard", ROOT).pathname)) {
    if (/\.(js|css|html|svg)$/.test(name)) assert(holds(embedded, `serve/dashboard/${name}`), name);
  }
});

Deno.test("compile leaves tests and what only tests use out of the program", async () => {
  const wrong = /_test|testing|^tests|^bench|libloam_emu|playwright|@std\/assert|offline\/assert/;
  assertEquals(pathsIn((await fakedCompile()).stdout).filter((path) => wrong.test(path)), []);
});

Deno.test("pathsIn() reads the tree of deno compile", () => {
  const tree = "loam\n├─┬ a (1KB)\n│ ├─┬ b/c (1B)\n│ │ └── d.ts (2B)\n│ └── e.ts (1B)\n└── f/* (1B)\n";
  assertEquals(pathsIn(tree), ["a", "a/b/c", "a/b/c/d.ts", "a/e.ts", "f/*"]);
  assert(holds(pathsIn(tree), "a/e.ts") && holds(pathsIn(tree), "f/g.ts") && !holds(pathsIn(tree), "a/g.ts"));
});

// ---- without a runtime, or with a wrong one

Deno.test("compile starts the program, and refuses a runtime that is none", async () => {
  const { code, stderr } = await fakedCompile();
  assertEquals(code, 1);
  assertEquals(
    errorLine(stderr),
    `Cannot compile ${faked.path}: it starts, but not as loam; DENORT_BIN=/bin/true should be denort of ${DENORT}`,
  );
  assertEquals(list(faked.path.replace(/\/[^/]+$/, "")).includes(faked.path.split("/").at(-1)!), false);
});

Deno.test("compile says what DENORT_BIN should be when it names no file", async () => {
  const path = freshPath(), { code, stdout, stderr } = await compile("/nonexistent", path);
  assertEquals({ code, stdout }, { code: 1, stdout: "" });
  assertEquals(
    errorLine(stderr),
    `Cannot compile ${path}: DENORT_BIN=/nonexistent is no file; it should be denort of ${DENORT}`,
  );
});

Deno.test("compile removes what does not run from any path, and wants one", async () => {
  const { stderr } = await compile("/bin/true", "build/loam test #1");
  assertMatch(errorLine(stderr), /^Cannot compile build\/loam test #1: it starts, but not as loam;/);
  assertEquals(list(new URL("build", ROOT).pathname).filter((name) => name.startsWith("loam test")), []);
  const none = await compile("/bin/true", "");
  assertEquals(errorLine(none.stderr), "Cannot use --output: it needs a value, such as --output=build/loam");
});

Deno.test("compile says where to fetch the runtime when it cannot be downloaded", () => {
  const text = `Compile mod.ts to build/loam
error: Writing deno compile executable to temporary file 'build/loam.tmp-8426e0bc4cc219d4'

Caused by:
    0: Setting up base binary.
    1: error sending request for url (${DENORT}): client error (Connect): dns error: failed to lookup address
    2: client error (Connect)`;
  assertEquals(
    reason(text),
    "Deno's runtime cannot be downloaded (client error (Connect): dns error: failed to lookup address); " +
      `fetch ${DENORT} where there is a network, unzip it, and run: DENORT_BIN=path/to/denort deno task compile`,
  );
  assertEquals(reason("error: Module not found"), undefined); // anything else is printed as it is
});

// ---- the program itself

const denort = Deno.env.get("LOAM_DENORT") ?? Deno.env.get("DENORT_BIN") ?? "";

Deno.test({
  name: `the compiled program works in an empty directory${denort ? "" : " (LOAM_DENORT)"}`,
  ignore: denort === "",
  fn: async () => {
    const program = freshPath(), cwd = freshPath();
    Deno.mkdirSync(cwd);
    const { code, stderr } = await compile(denort, program);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    const succeed = async (...args: string[]) => {
      const { code, stdout, stderr } = await output(program, args, cwd);
      assertEquals({ code, stderr }, { code: 0, stderr: "" }, args.join(" "));
      return stdout;
    };

    assertMatch(await succeed("--help"), /loam train/);
    assertMatch(await succeed("train", "--help"), /^ {2}--head_dim=0 +0 = n_embd/m); // from its source, which is inside
    const lines = Array.from({ length: 300 }, (_, day) => `On day ${day} a small loom wove the long cloth.`);
    Deno.writeTextFileSync(`${cwd}/corpus.txt`, lines.join("\n\n"));
    const flags = ["--val_fraction=0.3", "--split_on=blank_line", "--workers=2"]; // the vocabulary of gpt2 is inside
    await succeed("prepare", "--input", "corpus.txt", "--out", "data/mine", ...flags);
    const train = ["--data_dir=data/mine", "--out_dir=runs/mine", "--max_iters=3", "--save_interval=3"];
    assertMatch(await succeed("train", ...SMALL, ...train), /saved runs\/mine\/checkpoints\/step_000003/);
    assertMatch(await succeed("sample", "--checkpoint=runs/mine", "--prompt=Once", "--device=cpu"), /^Once/);
    assertMatch(await succeed("runs"), /mine/);
    assertMatch(await succeed("doctor"), /CPU library +cpu/);
  },
});
