// Keeps deno.json, run.sh and the pages that name tasks in step with one another.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { existsSync } from "node:fs";
import { PLACES } from "../serve/nvml.ts";
import { defaults as prepareFlags } from "../data/prepare/options.ts";
import { architecture, partImports, reference } from "../tools/docs.ts";
import { variables } from "../train.ts";
import { plant, readTables } from "./mutants.ts";
import { emptyDirectory, ROOT } from "./testing.ts";

type Permissions = Record<string, boolean | string[]>;
type Settings = {
  tasks: Record<string, { command: string }>;
  imports: Record<string, string>;
  links?: string[]; // gone after deno unlink
  exclude: string[];
  permissions: Record<string, Permissions>;
};
const settings: Settings = JSON.parse(read("deno.json"));

/** What tasks have beyond their permission sets. */
const MORE: Record<string, string[]> = {
  "prepare:web": ["net"],
  "tokenizer:web": ["net"],
  "mlflow": ["net"],
  "train:dist": ["ffi", "net"], // the system's MPI and NCCL are found by their names, for which Deno wants all of ffi
};

Deno.test("no task runs with all permissions, and four with more than their sets", () => {
  for (const [name, { command }] of Object.entries(settings.tasks)) {
    assert(!/(^|\s)(-A|--allow-all|-P)(\s|$)/.test(command), `task ${name}: ${command}`);
    const allowed = Array.from(command.matchAll(/--allow-(\w+)/g), ([, kind]) => kind);
    assertEquals(allowed.filter((kind) => kind !== "dirty"), MORE[name] ?? []); // publish --allow-dirty: files not committed
  }
});

Deno.test("every permission set that a task names exists", () => {
  for (const { command } of Object.values(settings.tasks)) {
    for (const [, set] of command.matchAll(/-P=(\S+)/g)) assert(set! in settings.permissions, command);
  }
});

Deno.test("what works on data and models runs no program, reaches no other machine, and loads and writes in named places", () => {
  const local = ["127.0.0.1", "localhost", "0.0.0.0", "[::]", "[::1]"],
    all: Record<string, Permissions> = settings.permissions;
  for (const name of ["prepare", "data", "train", "sample", "export", "serve", "runs"]) {
    const { run = false, write = [], ffi = [], net = [] } = all[name]!;
    assertEquals(run, false, name);
    assert(Array.isArray(write) && Array.isArray(ffi) && Array.isArray(net), name);
    assertEquals(net.filter((host) => !local.includes(host)), [], name);
    assertEquals(ffi.filter((path) => path !== "build" && !PLACES.includes(path)), [], name);
  }
});

Deno.test("every task that a page or script names exists", () => {
  const docs = Array.from(Deno.readDirSync(new URL("docs", ROOT)), ({ name }) => `docs/${name}`)
    .filter((path) => path.endsWith(".md"));
  assert(docs.length > 0);
  for (
    const page of [
      "README.md",
      "CONTRIBUTING.md",
      "run.sh",
      "bench/README.md",
      ".ci/run",
      "Dockerfile",
      ...docs,
    ]
  ) {
    for (const [, task] of read(page).matchAll(/deno task (?:-q )?([a-z][\w:-]*)/g)) {
      assert(task! in settings.tasks, `${page} names deno task ${task}, which deno.json lacks`);
    }
  }
});

Deno.test("the images have run.sh's Deno, and nothing that git ignores", () => {
  const [, version] = /^deno_version=(\S+)/m.exec(read("run.sh"))!;
  assertStringIncludes(read("Dockerfile"), `FROM denoland/deno:bin-${version} AS deno\n`);
  const patterns = (file: string) =>
    read(file).split("\n").map((line) => line.replace(/^(!?)\//, "$1").replace(/(?<!\*)\/$/, ""))
      .filter((line) => line !== "" && !line.startsWith("#")).sort();
  assertEquals(patterns(".dockerignore"), [...patterns(".gitignore"), ".git", ".deno"].sort());
});

Deno.test("every fault of tests/mutants can be planted, and the tests that must notice it are there", () => {
  for (const mutant of readTables(undefined)) {
    const source = read(mutant.file);
    assert(plant(source, mutant) !== source, mutant.name);
    for (const test of mutant.tests) {
      assert(existsSync(new URL(test.split(" ")[0]!, ROOT)), `${mutant.name}: ${test}`);
    }
  }
});

Deno.test("no exclude pattern hides a folder of source files", () => {
  // Datasets lie beside the folders of data/: only their JSON is left out.
  for (const pattern of settings.exclude) assertMatch(pattern, /^\w+$|^data\/\*\*\/\*\.json$/);
  const hidden = ["data", "ffi", "model", "runtime", "serve", "tests", "bench", "offline", "examples"];
  assertEquals(settings.exclude.filter((pattern) => hidden.includes(pattern)), []);
});

Deno.test("each link is a package that satisfies its import", () => {
  for (const link of settings.links ?? []) {
    const { name, version } = JSON.parse(read(`${link}/deno.json`));
    const wanted = settings.imports[name];
    assertMatch(version, /^1\.\d+\.\d+$/);
    assertEquals(wanted, `jsr:${name}@^1`);
  }
});

Deno.test("deno.lock holds every npm import", () => {
  const locked = Object.keys(JSON.parse(read("deno.lock")).specifiers);
  for (const target of Object.values(settings.imports)) {
    const [, specifier] = /^npm:\/?(.+@[^/]+)/.exec(target) ?? [];
    if (specifier) assert(locked.includes(`npm:${specifier}`), `${specifier} is missing: run deno install`);
  }
});

Deno.test("run.sh and .ci/run are executable and parse", async () => {
  for (const [shell, path] of [["sh", "run.sh"], ["bash", ".ci/run"]] as const) {
    const mode = Deno.statSync(new URL(path, ROOT)).mode ?? 0;
    assert((mode & 0o111) === 0o111, `${path} is not executable: run chmod +x ${path}`);
    assertEquals(await output(shell, "-n", path), { code: 0, text: "" });
  }
});

Deno.test("run.sh explains itself and refuses unknown arguments", async () => {
  const help = await output("./run.sh", "help");
  assertEquals(help.code, 0);
  assertStringIncludes(help.text, "./run.sh test");
  assertEquals(await output("./run.sh", "tset"), {
    code: 1,
    text: "error: Unknown argument tset: use ./run.sh, ./run.sh test or ./run.sh help\n",
  });
});

const TOOLS = "awk cat cp dirname env grep id mkdir mktemp rm sed sh tail uname".split(" "); // which run.sh needs

/** A directory of programs: run.sh's tools, and scripts under their names. */
function programs(scripts: Record<string, string>): string {
  const bin = emptyDirectory(), dirs = Deno.env.get("PATH")!.split(":");
  for (const tool of TOOLS) {
    const found = dirs.map((dir) => `${dir}/${tool}`).find((path) => existsSync(path));
    if (found) Deno.symlinkSync(found, `${bin}/${tool}`);
  }
  for (const [name, script] of Object.entries(scripts)) {
    Deno.writeTextFileSync(`${bin}/${name}`, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  }
  return bin;
}

// Deno as npm would install it, which says how it was called, and does nothing for the steps of run.sh.
const FAKE_DENO = `case "$*" in
  --version) echo "deno 2.9.6" ;;
  install*|"task -q "*) ;;
  *) echo "deno $* in $HOME" ;;
esac`;

for (const home of ["/tmp", "/proc/none"]) { // one to write to, one that run.sh replaces
  Deno.test(`the last line of run.sh works where no deno is on PATH and HOME is ${home}`, async () => {
    const root = `${emptyDirectory()}/with a blank`, fake = `${programs({ deno: FAKE_DENO })}/deno`;
    Deno.mkdirSync(root);
    for (const name of ["run.sh", "deno.json"]) Deno.copyFileSync(new URL(name, ROOT), `${root}/${name}`);
    const npm = `for last; do :; done
      dir=.deno/node_modules/\${last%@*}; mkdir -p "$dir"; cp "${fake}" "$dir/deno"`;
    const PATH = programs({ npm, "g++": "" }),
      options = { cwd: root, clearEnv: true, stdin: "null" } as const;
    const made = await new Deno.Command("/bin/sh", {
      args: ["./run.sh"],
      env: { PATH, HOME: home, TMPDIR: root },
      ...options,
    }).output();
    const lines = new TextDecoder().decode(made.stdout).trimEnd().split("\n");
    assertEquals({ code: made.code, stderr: new TextDecoder().decode(made.stderr) }, { code: 0, stderr: "" });
    const [, command] = /^== next: (.*)$/.exec(lines.at(-1)!) ?? [];
    const { code, stdout } = await new Deno.Command("/bin/sh", {
      args: ["-c", command ?? "false"],
      env: { PATH, HOME: home },
      ...options,
      cwd: "/",
    }).output();
    const said = /^deno task in (.*)\n$/.exec(new TextDecoder().decode(stdout))?.[1] ?? "";
    assertEquals(code, 0);
    assertMatch(said, home === "/tmp" ? /^\/tmp$/ : /\/with a blank\/loam-home-\d+$/);
  });
}

/** The text of a file, empty where there is none. */
function read(path: string): string {
  try {
    return Deno.readTextFileSync(new URL(path, ROOT));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  }
}

/** Exit code of a program run in the root, and all it printed. */
async function output(command: string, ...args: string[]): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await new Deno.Command(command, { args, cwd: ROOT, stdin: "null" })
    .output();
  const decoder = new TextDecoder();
  return { code, text: decoder.decode(stdout) + decoder.decode(stderr) };
}

Deno.test("docs/reference.md and docs/architecture.svg are those of the source: deno task docs writes them", () => {
  assertEquals(read("docs/reference.md"), reference());
  assertEquals(read("docs/architecture.svg"), architecture());
});

Deno.test("the reference has every flag of train and prepare, and the picture no arrow that two others say", () => {
  const rows = (task: string) => {
    const section = reference().split(/^(?=###? )/m).find((text) => text.startsWith(`### ${task}\n`))!;
    return Array.from(section.matchAll(/^\| `--(\w+)`/gm), ([, name]) => name);
  };
  assertEquals(rows("train"), Object.keys(variables));
  assertEquals(rows("prepare"), Object.keys(prepareFlags));
  assertStringIncludes(reference(), "| `--max_iters` | `100000` | steps in all |");
  assertStringIncludes(
    reference(),
    "| `val_loss` | `number, or left out` | mean over the evaluation windows",
  );
  assertEquals(partImports().get("dist"), new Set(["runtime"])); // base and ffi too, but by way of it
  assertEquals(partImports().get("model"), new Set(["data", "dist"]));
});
