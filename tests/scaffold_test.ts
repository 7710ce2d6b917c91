// Keeps deno.json, run.sh and the pages that name tasks in step with one another.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

type Permissions = Record<string, boolean | string[]>;
type Settings = {
  tasks: Record<string, { command: string }>;
  imports: Record<string, string>;
  links?: string[]; // gone after deno unlink
  exclude: string[];
  permissions: Record<string, Permissions>;
};
const settings: Settings = JSON.parse(read("deno.json"));

Deno.test("no task runs with all permissions", () => {
  for (const [name, { command }] of Object.entries(settings.tasks)) {
    assert(!/(^|\s)(-A|--allow-all|-P)(\s|$)/.test(command), `task ${name}: ${command}`);
    assert(!/--allow-(run|write|ffi|net|sys)(\s|$)/.test(command), `task ${name}: ${command}`);
  }
});

Deno.test("every permission set that a task names exists", () => {
  for (const { command } of Object.values(settings.tasks)) {
    for (const [, set] of command.matchAll(/-P=(\S+)/g)) assert(set! in settings.permissions, command);
  }
});

Deno.test("train, prepare and sample run no program and write to named places only", () => {
  for (const name of ["train", "prepare", "sample"]) {
    const { run = false, write = [], ffi = [], net = [] } = settings.permissions[name]!;
    assertEquals(run, false, name);
    assert(Array.isArray(write), `${name} may write anywhere`);
    // The system's MPI and NCCL are found by their names, for which Deno wants all of ffi; prepare reads from any host.
    assertEquals([name, ffi === true, net === true], [name, name === "train", name === "prepare"]);
  }
});

Deno.test("every task that a page or script names exists", () => {
  const docs = Array.from(Deno.readDirSync(new URL("docs", ROOT)), ({ name }) => `docs/${name}`)
    .filter((path) => path.endsWith(".md"));
  assert(docs.length > 0);
  for (const page of ["README.md", "CONTRIBUTING.md", "run.sh", "bench/README.md", ".ci/run", ...docs]) {
    for (const [, task] of read(page).matchAll(/deno task (?:-q )?([a-z][\w:-]*)/g)) {
      assert(task! in settings.tasks, `${page} names deno task ${task}, which deno.json lacks`);
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
