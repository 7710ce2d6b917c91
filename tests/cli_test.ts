// The command line of the binary, run as the source of it: mod.ts by its path, from directories that are not the repository,
// with the permissions that the binary has.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import settings from "../deno.json" with { type: "json" };
import { SUBCOMMANDS } from "../base/command.ts";
import { presets } from "../model/presets.ts";
import {
  emptyDirectory,
  errorLine,
  freshPath,
  isInstalled,
  list,
  type Result,
  resultOf,
  ROOT,
  SMALL,
} from "./testing.ts";

const MOD = new URL("mod.ts", ROOT).pathname;

async function loam(cwd: string, ...args: string[]): Promise<Result> {
  return await output(cwd, Deno.execPath(), "run", "-q", "-P=loam", MOD, ...args);
}

async function output(cwd: string, program: string, ...args: string[]): Promise<Result> {
  return resultOf(await new Deno.Command(program, { args, cwd, stdin: "null" }).output());
}

/** Runs a subcommand that has to succeed and print nothing to stderr; returns stdout. */
async function succeed(cwd: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await loam(cwd, ...args);
  assertEquals({ code, stderr }, { code: 0, stderr: "" }, args.join(" "));
  return stdout;
}

/** Runs a subcommand that has to fail with one line on stderr and nothing on stdout; returns the line after "error: ". */
async function refuse(cwd: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await loam(cwd, ...args);
  assertEquals({ code, stdout }, { code: 1, stdout: "" }, stderr);
  return errorLine(stderr);
}

// ---- one command at a time

Deno.test("loam --help names every subcommand, as does loam alone", async () => {
  const help = await succeed("/", "--help");
  for (const name of [...SUBCOMMANDS, "completions"]) {
    assertMatch(help, new RegExp(`^  loam ${name} +[A-Z]`, "m"));
  }
  assertEquals(await succeed("/"), help);
});

Deno.test("loam --version names the versions of loam and Deno", async () => {
  const wanted = `loam ${settings.version} (Deno ${Deno.version.deno}, ${Deno.build.target})\n`;
  assertEquals(await succeed("/", "--version"), wanted);
});

for (const name of [...SUBCOMMANDS, "completions"]) {
  Deno.test(`loam ${name} --help explains the subcommand`, async () => {
    const help = await succeed("/", name, "--help");
    assertEquals(await succeed("/", name, "-h"), help);
    assertMatch(help, /^[A-Z].*\n/);
    assert(!help.includes("deno task"), help);
  });
}

/** Name, size and time of all that the tasks may write to. */
function written(): string[] {
  return ["build", "bench/results", "data", "runs"].flatMap((dir) =>
    list(new URL(dir, ROOT).pathname).map((name) => {
      const { size, mtime } = Deno.statSync(new URL(`${dir}/${name}`, ROOT));
      return `${dir}/${name} ${size} ${mtime?.getTime()}`;
    })
  );
}

for (const [task, { command }] of Object.entries(settings.tasks)) {
  const [program, ...args] = command.split(" ");
  if (program !== "deno" || args[0] !== "run") continue; // programs of others
  Deno.test(`deno task ${task} --help explains the task and does nothing`, async () => {
    const before = written(),
      [long, short] = await Promise.all(
        ["--help", "-h"].map((flag) => output(ROOT.pathname, Deno.execPath(), ...args, flag)),
      );
    assertEquals({ ...long, stdout: "" }, { code: 0, signal: null, stdout: "", stderr: "" });
    assertMatch(long!.stdout, /^[A-Z][a-z]+ .*\n/);
    assertEquals(short, long);
    assertEquals(written(), before);
  });
}

for (const [name, path] of [["train", "train.ts"], ["sample", "model/sample.ts"]] as const) {
  Deno.test(`loam ${name} --help prints every variable with its explanation`, async () => {
    const [, literal = ""] = / = \{\n([^]*?)\n\};/.exec(Deno.readTextFileSync(new URL(path, ROOT))) ?? [];
    const names = Array.from(literal.matchAll(/^ {2}(\w+):/gm), ([, name]) => name!);
    const lines = Array.from(
      (await succeed("/", name, "--help")).matchAll(/^ {2}--(\w+)=\S*( {2,}\S.*)?$/gm),
    );
    assertEquals(lines.map(([, name]) => name), names);
    assert(names.length > 7);
    const unexplained = lines.filter(([, , comment]) => !comment);
    assertEquals(unexplained.map(([line]) => line), []);
  });
}

Deno.test("loam train --help names the presets", async () => {
  const [, list] = /\npresets\n((?: {2}.*\n)+)/.exec(await succeed("/", "train", "--help"))!;
  const names = Array.from(list!.matchAll(/^ {2}(\S+) {2,}\S/gm), ([, name]) => name);
  assertEquals(names.sort(), Object.keys(presets).sort());
});

Deno.test("loam names the nearest subcommand to one that it does not have", async () => {
  assertEquals(
    await refuse("/", "trian"),
    "Cannot run trian: there is no such subcommand; did you mean train?",
  );
  assertEquals(
    await refuse("/", "--hlep"),
    "Cannot run --hlep: there is no such subcommand; did you mean --help?",
  );
});

Deno.test("loam train without data says what to do next", async () => {
  const cwd = emptyDirectory(), error = await refuse(cwd, "train", "--device=cpu");
  assertEquals(
    error,
    `Cannot open dataset "data/demo": there is no such directory in ${cwd}; ` +
      "make it: loam prepare --input FILES --out data/demo",
  );
});

const NOT_THERE: [string[], string][] = [
  [["prepare", "--input", "t.txt", "--out=ds"], 'Cannot read "t.txt": there is no such file in CWD'],
  [["prepare", "--input", "*.jsonl", "--out=ds"], 'Cannot find input: no file matches "*.jsonl" in CWD'],
  [["prepare", "--merge", "--out=ds"], 'Cannot merge "ds": there is no such directory in CWD'],
  [["tokenizer", "--train", "t.txt", "--out=tok"], 'Cannot read "t.txt": there is no such file in CWD'],
  [["data", "--dir=ds"], 'Cannot open dataset "ds": there is no such directory in CWD'],
  [["train", "--data_dir=ds"], 'Cannot open dataset "ds": there is no such directory in CWD'],
  [["train", "--resume=runs/a"], "Cannot find a checkpoint in runs/a: there is no such directory in CWD"],
  [
    ["sample", "--checkpoint=runs/a"],
    "Cannot find a checkpoint in runs/a: there is no such directory in CWD",
  ],
  [["eval", "--checkpoint=runs/a", "t.jsonl"], 'Cannot read "t.jsonl": there is no such file in CWD'],
  [["serve", "--run=runs/a"], "Cannot serve runs/a: there is no such directory in CWD"],
  [["serve", "--checkpoint=runs/a"], "Cannot find a checkpoint in runs/a: there is no such directory in CWD"],
  [["runs", "mine"], "Cannot list the runs in mine: No such file or directory in CWD"],
];

Deno.test("loam says in which directory it looked for a relative path", async () => {
  const cwd = Deno.realPathSync(emptyDirectory());
  for (const [args, message] of NOT_THERE) {
    assertStringIncludes(`${await refuse(cwd, ...args)};`, `${message.replace("CWD", cwd)};`);
  }
  const missing = `${cwd}/none`, absolute = await refuse(cwd, "data", "--dir", missing);
  assertStringIncludes(absolute, `Cannot open dataset "${missing}": there is no such directory; make it`);
});

Deno.test("loam prepare alone, without the demo corpus, asks for text", async () => {
  assertStringIncludes(await refuse(emptyDirectory(), "prepare"), "loam prepare --input FILES --out DIR");
});

Deno.test("a subcommand keeps its own exit code and one-line error", async () => {
  assertMatch(await refuse("/", "train", "--n_layers=3"), /did you mean --n_layer\?$/);
  assertMatch(
    await refuse("/", "sample", "--checkpoint=/nonexistent"),
    /loam train --out_dir=\/nonexistent$/,
  );
});

/** The first page that loam serve shows; ends the server. */
async function page(cwd: string, ...args: string[]): Promise<string> {
  const command = ["run", "-q", "-P=loam", MOD, "serve", "--port=0", ...args];
  await using server = new Deno.Command(Deno.execPath(), {
    args: command,
    cwd,
    stdin: "null",
    stdout: "piped",
  })
    .spawn();
  for await (const text of server.stdout.pipeThrough(new TextDecoderStream())) {
    const [url] = /http:\S+/.exec(text) ?? [];
    if (url) return await (await fetch(url)).text();
  }
  return "the server ended";
}

// ---- from text to text, in a directory of one's own

Deno.test("every subcommand works in any directory, on paths relative to it", async () => {
  const cwd = emptyDirectory();
  const lines = Array.from({ length: 300 }, (_, day) => `On day ${day} a small loom wove the long cloth.`);
  Deno.writeTextFileSync(`${cwd}/corpus.txt`, lines.join("\n\n"));
  const flags = ["--tokenizer=bytes", "--val_fraction=0.3", "--split_on=blank_line", "--workers=2"];
  await succeed(cwd, "prepare", "--input", "corpus.txt", "--out", "data/mine", ...flags);
  assertMatch(await succeed(cwd, "data", "--dir", "data/mine"), /bytes/);
  const tokenizer = ["--train", "corpus.txt", "--split_on=blank_line", "--vocab_size=260", "--out=data/bpe"];
  assertMatch(await succeed(cwd, "tokenizer", ...tokenizer), /260 tokens/);
  const train = ["--data_dir=data/mine", "--out_dir=runs/mine", "--max_iters=3", "--save_interval=3"];
  assertMatch(await succeed(cwd, "train", ...SMALL, ...train), /saved runs\/mine\/checkpoints\/step_000003/);
  assertMatch(await succeed(cwd, "runs"), /mine/);
  const sample = ["--checkpoint=runs/mine/latest", "--prompt=Once", "--max_new_tokens=5", "--device=cpu"];
  assertMatch(await succeed(cwd, "sample", ...sample), /^Once/);
  assertMatch(
    await succeed(cwd, "export", "--checkpoint=runs/mine", "--out=runs/a.gguf"),
    /^runs\/a.gguf: llama /,
  );
  assertMatch(await succeed(cwd, "doctor"), /CPU library +cpu/);
  const models = ["--checkpoint", "runs/mine", "--device=cpu"];
  assertStringIncludes(await page(cwd, "--run", "runs/mine", ...models), "<title>");
  assertEquals(list(cwd), ["corpus.txt", "data", "runs"]);
});

Deno.test("the permissions of the binary cover those of each subcommand", () => {
  const { loam, ...own } = settings.permissions;
  const sets = { ...own, tokenizer: own.prepare, chat: own.sample, eval: own.sample };
  const refused = SUBCOMMANDS.flatMap((name) => Object.keys(sets[name]).filter((kind) => !(kind in loam)));
  assertEquals(refused, []);
  assert(Object.values(loam).every((grant) => grant === true));
});

// ---- what the tasks may do

/** Prints which of some actions a permission set refuses. */
const ATTEMPTS = `const attempts = {
  program: () => new Deno.Command("true").outputSync(),
  host: () => Deno.connect({ hostname: "192.0.2.1", port: 80 }),
  library: () => Deno.dlopen("libc.so.6", {}),
  path: () => Deno.dlopen("/lib/x86_64-linux-gnu/libc.so.6", {}),
  write: () => Deno.writeTextFileSync("/var/tmp/loam_attempt", ""),
  env: () => Deno.env.get("HOME"),
};
const refused = [];
for (const [name, attempt] of Object.entries(attempts)) {
  try {
    await attempt();
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) refused.push(name);
  }
}
console.log(refused.join(" "));
Deno.exit(0);`;

for (const set of ["prepare", "data", "train", "sample", "export", "serve", "runs"]) {
  Deno.test(`the permissions of ${set} refuse programs, hosts, libraries and what lies elsewhere`, async () => {
    const path = `${freshPath()}.ts`;
    Deno.writeTextFileSync(path, ATTEMPTS);
    const args = ["run", "-q", "--no-prompt", "--config", `${ROOT.pathname}deno.json`, `-P=${set}`, path];
    const { stdout } = await output("/", Deno.execPath(), ...args);
    assertEquals(stdout, "program host library path write env\n");
  });
}

Deno.test("prepare reads no URLs and names prepare:web, which does, but not the keys in the home directory", async () => {
  const documents = Array.from({ length: 200 }, (_, i) => `The loom wove cloth number ${i}.\n`).join("");
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response(documents),
  );
  const url = `http://127.0.0.1:${server.addr.port}/a.txt`, out = freshPath(), home = emptyDirectory();
  const caches = Deno.env.get("DENO_DIR") ?? `${Deno.env.get("HOME")}/.cache/deno`;
  const task = (name: string, input: string) =>
    output(
      ROOT.pathname,
      "env",
      ...[
        `HOME=${home}`,
        `DENO_DIR=${caches}`,
        Deno.execPath(),
        "task",
        "-q",
        name,
        "--input",
        input,
        "--out",
        out,
      ],
      ...["--split_on=line", "--val_fraction=0.3", "--tokenizer=bytes"],
    );
  const refused = await task("prepare", url);
  assertEquals(
    { ...refused, stderr: errorLine(refused.stderr) },
    {
      code: 1,
      signal: null,
      stdout: "",
      stderr: `Requires net access to "127.0.0.1:${server.addr.port}": this program was granted less; ` +
        "run: deno task prepare:web ...",
    },
  );
  assertEquals((await task("prepare:web", url)).code, 0);
  Deno.mkdirSync(`${home}/.ssh`);
  Deno.writeTextFileSync(`${home}/.ssh/id.txt`, documents);
  const { code, stderr } = await task("prepare:web", `${home}/.ssh/id.txt`);
  assertEquals(code, 1);
  assertMatch(errorLine(stderr), /^Requires read access to ".*id\.txt"/);
});

// ---- mod.ts as a library

Deno.test("importing mod.ts runs no command line and needs no permissions", async () => {
  const path = `${freshPath()}.ts`;
  Deno.writeTextFileSync(
    path,
    `import * as loam from "${MOD}";\nconsole.log(typeof loam.init, typeof loam.open);`,
  );
  const config = ["--config", `${ROOT.pathname}deno.json`]; // says where packages are, as docs/code.md has it
  const result = await output("/", Deno.execPath(), "run", "-q", "--no-prompt", ...config, path, "train");
  assertEquals(result, { code: 0, signal: null, stdout: "function function\n", stderr: "" });
});

// ---- completions

Deno.test("loam completions names the shells it knows", async () => {
  assertMatch(await refuse("/", "completions"), /name one shell, such as loam completions bash$/);
  assertMatch(
    await refuse("/", "completions", "bsh"),
    /there is no such shell; did you mean bash\?$/,
  );
});

/** A directory with a program named loam, to put on PATH. */
function directoryWithLoam(): string {
  const path = emptyDirectory();
  Deno.writeTextFileSync(
    `${path}/loam`,
    `#!/bin/sh\nexec "${Deno.execPath()}" run -q -P=loam "${MOD}" "$@"\n`,
  );
  Deno.chmodSync(`${path}/loam`, 0o755);
  return path;
}

/** What is typed behind loam, in a directory with a file named corpus, and what the tab key makes of its last word. */
const TYPED = [
  ["sam", "sample"],
  ["train --n_l", "train --n_layer"],
  ["train --preset=ti", "train --preset=tiny"],
  ["train --preset ti", "train --preset tiny"],
  ["train --data_dir=cor", "train --data_dir=corpus"],
  ["data --dir cor", "data --dir corpus"],
  ["completions f", "completions fish"],
] as const;

/** Types lines in a shell that runs in a terminal; loam only says what it was called with. Returns that. */
async function typeIn(shell: string, setUp: string, cwd: string): Promise<string[]> {
  const lines = [
    `PS1=; PATH="${directoryWithLoam()}:$PATH"; ${setUp}`,
    `source <(loam completions ${shell.split(" ")[0]})`,
    'loam() { case "$*" in *--help) command loam "$@" ;; *) printf "<%s>\\n" "$*" ;; esac; }',
    ...TYPED.map(([typed]) => `loam ${typed}\t`),
    "exit",
  ];
  const child = new Deno.Command("script", {
    args: ["-qec", shell, "/dev/null"],
    cwd,
    env: { TERM: "dumb" },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  await new Blob([lines.join("\n") + "\n"]).stream().pipeTo(child.stdin);
  const { stdout } = await child.output();
  return Array.from(new TextDecoder().decode(stdout).matchAll(/^<(.*)>\r$/gm), ([, line]) => line!);
}

/** What fish offers for each line, in place of its last word. */
async function askFish(cwd: string): Promise<string[]> {
  const ask = TYPED.map(([typed]) =>
    `complete -C "loam ${typed}" | string replace -r "\\t.*" "" | string join " "`
  );
  const script = `set PATH ${directoryWithLoam()} $PATH; loam completions fish | source; ${ask.join("; ")}`;
  const { stdout, stderr } = await output(cwd, "fish", "--no-config", "-c", script);
  assertEquals(stderr, "");
  return stdout.trimEnd().split("\n").map((word, i) => TYPED[i]![0].replace(/\S+$/, word));
}

const SHELLS = {
  bash: (cwd: string) => typeIn("bash --norc --noprofile -i", "", cwd),
  zsh: (cwd: string) => typeIn("zsh -f -i", "autoload -Uz compinit; compinit -u -D", cwd),
  fish: askFish,
};

for (const [shell, complete] of Object.entries(SHELLS)) {
  const missing = [shell, ...shell === "fish" ? [] : ["script"]].filter((program) => !isInstalled(program));
  const why = missing.length > 0 ? ` (${missing.join(" and ")} not installed)` : "";
  Deno.test({
    name: `completions for ${shell} complete subcommands, flags, presets and file names${why}`,
    ignore: missing.length > 0,
    fn: async () => {
      const cwd = emptyDirectory();
      Deno.writeTextFileSync(`${cwd}/corpus`, "");
      assertEquals(await complete(cwd), TYPED.map(([, completed]) => completed));
    },
  });
}
