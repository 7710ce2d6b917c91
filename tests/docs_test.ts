// Every command in the pages for users runs as it is printed, in a copy of the program with a small world around it: data and
// models under the names that the pages use. Only flags that make a run short are added behind it. What cannot run here is in
// UNTESTED with the reason, and nothing is in there that the pages do not say.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { dirname } from "node:path";
import { copyInto, emptyDirectory, isInstalled, ROOT, SMALL } from "./testing.ts";
import { programSources } from "./testing_sources.ts";

const PAGES = ["README.md", "CONTRIBUTING.md", "bench/README.md"].concat(
  Array.from(Deno.readDirSync(new URL("docs", ROOT)), ({ name }) => `docs/${name}`)
    .filter((path) => path.endsWith(".md") && path !== "docs/reference.md").sort(), // which no one wrote
);

/** Beginnings of commands that no test runs from its text, and why. */
const UNTESTED: Record<string, string> = {
  "./run.sh": "sets up a whole machine; continuous integration runs it, tests/scaffold_test.ts its last line",
  "deno task ok": "runs all tests, this one too",
  "deno task build": "compiles for a minute; tools/build_test.ts runs it",
  "deno task compile": "needs Deno's runtime; tests/compile_test.ts runs it",
  "deno task test:": "ten minutes the one, hours the other",
  "LOAM_TEST_DEVICE=emu deno task test": "tests/emu_test.ts runs it",
  "deno task screenshots": "needs Chromium; tests/dashboard_test.ts looks at the page",
  "deno task download": "the hub is far; model/download_test.ts has one of its own",
  "deno unlink": "needs the JSR registry; tests/std_test.ts runs with either package",
  "wandb sync": "a program of others, with an account",
  "deno task mlflow": "a server of others; serve/mlflow_test.ts has a stand-in for it",
  "deno run -q -P=bench bench/roofline.ts": "needs cuobjdump; tests/bench_test.ts has code of its own",
  "torchrun":
    "needs PyTorch's launcher and GPUs; tests/nccl_test.ts runs such ranks with a stand-in for NCCL",
  "env LOCAL_RANK=0 deno run": "what torchrun starts where two ranks share a GPU",
  "mpirun -n 16 --hostfile hosts": "several machines",
  "mpirun.mpich": "one MPI at a time is installed",
  "srun": "a Slurm cluster",
  "id=$(sbatch": "a Slurm cluster",
  "sbatch": "a Slurm cluster",
  "#!/bin/bash\n#SBATCH": "a Slurm cluster",
};

/** As small as runs of the tests are, but for a context that holds a question and a short answer. */
const SHORT = [...SMALL, "--block_size=64"];

/** What is added to commands that begin so: it makes them short, or says what the page leaves to the reader. */
const ADDED: [start: RegExp, flags: string[]][] = [
  [/--ranks=64/, ["--gradient_accumulation_steps=64"]],
  [/prepare --chat\b/, ["--val_fraction=0.3"]],
  [/deno task train\b|train\.ts/, [...SHORT, "--max_iters=4", "--save_interval=2"]],
  [/--init_from/, ["--gradient_accumulation_steps=1"]], // the presets have 16
  [/^deno task sample$/, ["--checkpoint=runs/c4"]],
  [/^deno task eval$/, ["--checkpoint=runs/c4", "tasks.jsonl", "--device=cpu"]],
  [/^deno task (sample|serve|eval) /, ["--device=cpu"]],
  [/deno task chat\b/, ["--device=cpu", "--max_new_tokens=4"]],
  [/^deno task chat$/, ["--checkpoint=runs/c4"]],
  [/^deno task export$/, ["--checkpoint=runs/c4", "--out=model.gguf"]],
  [/^deno task serve$/, ["--run", "runs/c4"]],
  [/^deno task serve\b/, ["--port=0"]],
  [/^deno task tokenizer(:web)?$/, [
    "--train",
    "corpus/*.parquet",
    "--vocab_size=300",
    "--out=data/tokenizer",
  ]],
  [/^deno task data$/, ["--dir=data/c4"]],
  [/^deno task bench$/, [
    ...["--device=cpu", "--preset=tiny", "--B=1", "--T=32", "--n_layer=1", "--V=65", "--copy_mb=1"],
    ...["--rotate_mb=0.1", "--batch_ms=0", "--batches=1"],
  ]],
  [/^deno task bench:peer$/, ["--only=loam", "--preset=tiny", "--B=1", "--T=32", "--rounds=1", "--steps=1"]],
  [/bench\/generate\.ts/, ["--preset=tiny", "--prompt=8", "--tokens=2", "--rounds=1"]],
  [/examples\/\w+\.ts$/, ["2"]], // steps
];

Deno.test("docs/code.md and mod.ts have every op", () => {
  const read = (path: string) => Deno.readTextFileSync(new URL(path, ROOT));
  const ops = Array.from(read("runtime/ops.ts").matchAll(/^export function (\w+)/gm), ([, name]) => name!);
  assert(ops.length > 20);
  for (const name of ops) {
    assertStringIncludes(read("docs/code.md"), `${name}(`);
    assertStringIncludes(read("mod.ts"), `  ${name},\n`);
  }
});

Deno.test("every picture in the pages is there, and small", () => {
  for (const page of PAGES) {
    const text = Deno.readTextFileSync(new URL(page, ROOT));
    for (const [, path] of text.matchAll(/(?:!\[[^\]]*\]\(|src(?:set)?=")([^)"]+)/g)) {
      const { size } = Deno.statSync(new URL(path!, new URL(page, ROOT)));
      assert(size < 250_000, `${path}: ${size} bytes`);
    }
  }
});

// ---- the commands of the pages

const PROGRAM =
  /^(?:[A-Z_]+=\S+ )*(?:deno (?:task|run|doc|types|unlink)|loam [a-z]|\.\/run\.sh|mpirun|srun|torchrun|env|wandb|curl|source)/;

/** A run of commands that belong together: those of a block of code, or a single one between backticks. */
type Group = { page: string; commands: string[] };

function groupsOf(page: string): Group[] {
  const text = Deno.readTextFileSync(new URL(page, ROOT)), groups: Group[] = [];
  const prose = text.replaceAll(/^(`{3,})(\w*)\n([^]*?)^\1\n/gm, (_, _fence, language, block) => {
    groups.push({ page, commands: commandsIn(block, language) });
    return "";
  });
  for (const line of prose.replaceAll(/(?<!\|)\n(?=[^\n|#-])/g, " ").split("\n")) {
    for (const command of commandsBetweenBackticks(line)) groups.push({ page, commands: [command] });
  }
  return groups.filter(({ commands }) => commands.length > 0);
}

/** In a block of shell every line is a command, but for a script; in other blocks those behind a prompt. */
function commandsIn(block: string, language: string): string[] {
  if (block.startsWith("#!")) return [block];
  const lines = block.replaceAll(/ *\\\n */g, " ").split("\n");
  const typed = language === "sh" ? lines : lines.filter((line) => line.startsWith("$ "));
  return typed.map((line) => line.replace(/^\$ /, "").replace(/(^| +)# .*/, "").trim()).filter(Boolean);
}

/** `deno task sample`, `runs` and `=tape` in the first cell of a table are three commands. */
function commandsBetweenBackticks(line: string): string[] {
  const isRow = line.startsWith("| `deno task"), place = isRow ? line.split(" | ")[0]! : line;
  const spans = Array.from(place.matchAll(/`([^`]+)`/g), ([, span]) => span!.replaceAll("\\|", "|"));
  if (!isRow) return spans.filter((span) => PROGRAM.test(span));
  return spans.map((span) =>
    span.startsWith("=") ? spans[0] + span : PROGRAM.test(span) ? span : `deno task ${span}`
  );
}

const groups = PAGES.flatMap(groupsOf), commands = groups.flatMap(({ commands }) => commands);

function untested(command: string): string | undefined {
  return Object.keys(UNTESTED).find((start) => command.startsWith(start));
}

Deno.test("the commands of the pages are found, and those that do not run here are all in one list", () => {
  const found = (page: string) => groups.filter((group) => group.page === page).flatMap((g) => g.commands);
  for (const command of ["./run.sh", "deno doc mod.ts"]) {
    assert(found("README.md").includes(command), command);
  }
  for (const command of ["deno task sample", "deno task train --debug=tape"]) {
    assert(found("docs/commands.md").includes(command), command);
  }
  assert(found("docs/serve.md").some((command) => command.startsWith("curl ")));
  const used = new Set(commands.map(untested));
  assertEquals(Object.keys(UNTESTED).filter((start) => !used.has(start)), []);
});

Deno.test("docs/troubleshooting.md has the program's own words", () => {
  const sources = [...programSources(), "kernels.cu", "kernels.cpp", "host.h"].map((path) =>
    Deno.readTextFileSync(new URL(path, ROOT))
  ).join("\n")
    .replaceAll(/["`] \+\s*["`]/g, "").replaceAll(/\$\{[^}]*\}/g, "…"); // texts in one piece, with gaps for what is put in
  const page = Deno.readTextFileSync(new URL("docs/troubleshooting.md", ROOT));
  const messages = Array.from(page.matchAll(/^ {4}(.*)$/gm), ([, message]) => message!);
  assert(messages.length >= 10);
  for (const piece of messages.flatMap((message) => message.split("…"))) {
    const words = piece.replace(/^[;:,]? | $/g, "");
    if (!words.startsWith("Requires ")) assert(sources.includes(words), words); // that is Deno's
  }
});

Deno.test("the script for Slurm queues a job again over what another start may mend, twenty times", () => {
  const bin = emptyDirectory(),
    script = commands.find((command) => command.startsWith("#!/bin/bash\n#SBATCH --ntasks"))!;
  for (const [name, code] of [["deno", "exit $MISTAKE"], ["srun", "exit $ENDS"], ["scontrol", 'echo "$@"']]) {
    Deno.writeTextFileSync(`${bin}/${name}`, `#!/bin/sh\n${code}\n`, { mode: 0o755 });
  }
  const run = (MISTAKE: number, ENDS: number, SLURM_RESTART_COUNT = 0) => {
    const numbers = { MISTAKE, ENDS, SLURM_RESTART_COUNT, SLURM_JOB_ID: 7 };
    const env = Object.fromEntries(Object.entries(numbers).map(([name, n]) => [name, `${n}`]));
    const options = { args: ["-c", script], env: { ...env, PATH: `${bin}:${Deno.env.get("PATH")}` } };
    const { code, stdout } = new Deno.Command("bash", options).outputSync();
    return [code, new TextDecoder().decode(stdout).trim()];
  };
  assertEquals(run(0, 0), [0, ""]);
  assertEquals([run(1, 0), run(0, 1)], [[1, ""], [1, ""]]);
  assertEquals([run(0, 75), run(0, 137)], [[75, "requeue 7"], [137, "requeue 7"]]);
  assertEquals([run(0, 75, 19), run(0, 75, 20)], [[75, "requeue 7"], [75, ""]]);
});

// ---- the world in which they run

const SOURCES = /\.(ts|js|json|html|css|svg|lock|md|so|dylib|diff)$/;

/** A copy of the program without its tests, data and runs. Outside of /tmp, to which every task may write. */
function copyOfProgram(): string {
  const root = Deno.makeTempDirSync({ dir: "/var/tmp", prefix: "loam_" });
  Deno.test.afterAll(() => Deno.removeSync(root, { recursive: true }));
  const visit = (folder: string) => {
    for (const { name, isFile, isDirectory } of Deno.readDirSync(new URL(folder || ".", ROOT))) {
      const path = `${folder}${name}`;
      if (isFile && SOURCES.test(name) && !name.endsWith("_test.ts")) {
        Deno.mkdirSync(`${root}/${folder}`, { recursive: true });
        Deno.copyFileSync(new URL(path, ROOT), `${root}/${path}`);
      }
      if (isDirectory && isOfProgram(path)) visit(`${path}/`);
    }
  };
  visit("");
  return root;
}

/** Whether a folder is of the program: beside its folders in data/ lie datasets. */
function isOfProgram(path: string): boolean {
  if (/^(\.|tests|runs|docs|bench\/results)/.test(path)) return false;
  return !path.startsWith("data/") ||
    Array.from(Deno.readDirSync(new URL(path, ROOT))).some(({ name }) => name.endsWith(".ts"));
}

class World {
  readonly root = copyOfProgram();
  readonly #standard = emptyDirectory(); // data/ and runs/ as every group finds them
  readonly #servers: Deno.ChildProcess[] = [];
  #port = "";

  static async make(): Promise<World> {
    const world = new World(), { root } = world;
    for (const dir of ["bin", "corpus", "c4", "elsewhere", "bench/results"]) {
      Deno.mkdirSync(`${root}/${dir}`, { recursive: true });
    }
    const loam = `#!/bin/sh\nexec "${Deno.execPath()}" run -q -P=loam "${root}/mod.ts" "$@"\n`;
    Deno.writeTextFileSync(`${root}/bin/loam`, loam, { mode: 0o755 });
    const question = { context: "The sky is", choices: ["blue", "square"], label: 0 };
    Deno.writeTextFileSync(`${root}/tasks.jsonl`, JSON.stringify(question));
    for (const path of ["corpus/a.parquet", "c4/a.parquet", "c4_validation_2k.parquet"]) {
      Deno.copyFileSync(new URL("tests/fixtures/texts_zstd.parquet", ROOT), `${root}/${path}`);
    }
    const said = [["user", "Who wove the cloth?"], ["assistant", "A small loom."]];
    const messages = said.map(([role, content]) => ({ role, content }));
    const chats = Array.from({ length: 40 }, (_, id) => JSON.stringify({ id, messages }) + "\n"); // each another line
    Deno.writeTextFileSync(`${root}/chats.jsonl`, chats.join(""));
    await world.run("deno task prepare");
    await world.run("deno task prepare --input 'corpus/*.parquet' --out data/c4 --val_fraction=0.3");
    for (const name of ["fineweb", "code"]) copyInto(`${root}/data/c4`, `${root}/data/${name}`);
    const train = ["deno task train --data_dir=data/c4", ...SHORT, "--max_iters=2 --save_interval=2"].join(
      " ",
    );
    await world.run(`${train} --out_dir=runs/c4`);
    for (const name of ["a", "b", "kjv"]) copyInto(`${root}/runs/c4`, `${root}/runs/${name}`);
    Deno.mkdirSync(`${root}/models/HuggingFaceTB`, { recursive: true });
    copyInto(`${root}/runs/c4/checkpoints/step_000002`, `${root}/models/HuggingFaceTB/SmolLM2-135M`);
    for (const path of ["data/c4", "data/fineweb", "data/code", "runs"]) {
      Deno.mkdirSync(dirname(`${world.#standard}/${path}`), { recursive: true });
      copyInto(`${root}/${path}`, `${world.#standard}/${path}`);
    }
    return world;
  }

  /** Puts data and runs back as they were. */
  restore(): void {
    for (const path of ["data/c4", "data/fineweb", "data/code", "runs"]) {
      Deno.removeSync(`${this.root}/${path}`, { recursive: true });
      copyInto(`${this.#standard}/${path}`, `${this.root}/${path}`);
    }
  }

  /** Runs a command as a shell would; returns what it printed. What it makes is not there before. */
  async run(command: string): Promise<string> {
    for (const [, made] of command.matchAll(/--out(?:_dir)?[ =](\S+)/g)) {
      if (!/--(resume|merge)/.test(command)) {
        await Deno.remove(`${this.root}/${made}`, { recursive: true }).catch(() => {});
      }
    }
    const child = new Deno.Command("bash", {
      args: ["-c", command.replaceAll("127.0.0.1:8000", `127.0.0.1:${this.#port}`)],
      cwd: this.root,
      env: {
        PATH: `${this.root}/bin:${dirname(Deno.execPath())}:${Deno.env.get("PATH")}`,
        NO_COLOR: "1",
        ...MPI,
      },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const stderr = new Response(child.stderr).text();
    if (/^deno task (serve|train .*--serve_port)\b/.test(command)) return await this.#serve(child);
    const stdout = await new Response(child.stdout).text(), { code } = await child.status;
    assertEquals(code, 0, `${command}\n${stdout}${await stderr}`);
    return stdout + await stderr;
  }

  /** Waits for the address of a server, which goes on until end(). */
  async #serve(child: Deno.ChildProcess): Promise<string> {
    let text = "";
    this.#servers.push(child);
    for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) {
      text += part;
      const [, port] = /http:\/\/127\.0\.0\.1:(\d+)\//.exec(text) ?? [];
      if (port) {
        this.#port = port;
        break;
      }
    }
    return text;
  }

  async end(): Promise<void> {
    for (const server of this.#servers.splice(0)) {
      try {
        server.kill();
      } catch (error) { // training that has ended
        if (!(error instanceof TypeError)) throw error;
      }
      await server.status;
    }
  }
}

/** As it runs here. What a page puts outside of the program goes to a directory of the test. */
function asRun(command: string, root: string): string {
  const plain = command.replace(/ &$/, ""); // run() returns when a server is there
  const flags = ADDED.filter(([start]) => start.test(plain)).flatMap(([, flags]) => flags);
  const elsewhere = plain.replaceAll("/mnt/", `${root}/elsewhere/`);
  return [elsewhere, ...flags].join(" ");
}

let made: Promise<World> | undefined;

for (const page of PAGES) {
  Deno.test(`the commands of ${page} run as they are printed`, async (t) => {
    const world = await (made ??= World.make());
    for (const { commands } of groups.filter((group, i) => group.page === page && isFirst(group, i))) {
      world.restore();
      for (const command of commands) {
        const why = untested(command) ?? missing(command);
        await t.step({
          name: command.split("\n")[0]!,
          ignore: why !== undefined,
          fn: async () => {
            const printed = await world.run(asRun(command, world.root));
            if (command.startsWith("curl")) assertMatch(printed, /"(text_completion|chat\.completion)"/);
          },
        });
      }
      await world.end();
    }
  });
}

/** Whether no page before has the same commands. */
function isFirst({ commands }: Group, i: number): boolean {
  return groups.findIndex((group) => String(group.commands) === String(commands)) === i;
}

function missing(command: string): string | undefined {
  return ["mpirun", "curl"].find((program) => command.startsWith(program) && !isInstalled(program));
}

Deno.test({
  name: "the Python of the pages runs as it is printed (LOAM_PYTHON)",
  ignore: !Deno.env.get("LOAM_PYTHON"),
  fn: async () => {
    const world = await (made ??= World.make()),
      made_by = "deno task export --checkpoint runs/c4 --format hf --out model-hf";
    assert(commands.includes(made_by));
    await world.run(made_by);
    const snippets = PAGES.flatMap((page) => {
      const text = Deno.readTextFileSync(new URL(page, ROOT));
      return Array.from(text.matchAll(/^```python\n([^]*?)^```$/gm), ([, code]) => code!);
    });
    assert(snippets.length > 0);
    for (const code of snippets) {
      Deno.writeTextFileSync(`${world.root}/page.py`, code);
      assertStringIncludes(
        await world.run(`${Deno.env.get("LOAM_PYTHON")} page.py 2> page.log`),
        "<|endoftext|>Once",
      );
    }
  },
});

// ---- commands of launchers, which cannot run here

/** The number of ranks that a launcher starts. */
function ranksOf(command: string): number {
  const flag = (pattern: RegExp) => Number(pattern.exec(command)?.[1] ?? 1);
  return flag(/(?:-n |--ntasks=)(\d+)/) * flag(/--nnodes=(\d+)/) * flag(/--nproc-per-node=(\d+)/);
}

Deno.test("what launchers start holds together for so many ranks, where it cannot run here", async (t) => {
  const world = await (made ??= World.make());
  const launched = commands.filter((command) => ranksOf(command) > 1);
  assert(launched.length > 6);
  for (const command of launched) {
    await t.step(command.split("\n")[0]!, async () => {
      const flagsOf = /^flags="(.*)"$/m.exec(command)?.[1] ?? ""; // of a script
      const line = command.replaceAll(/ *\\\n */g, " ").replaceAll("$flags", flagsOf).replaceAll(
        " --ranks=$SLURM_NTASKS",
        "",
      );
      const [, args = ""] = /(?:deno task train(?::dist)?|train\.ts)((?: --\S+)*)/.exec(line) ?? [];
      const preset = command.startsWith("torchrun") ? "gpt-270m" : "tiny"; // the default of the device
      const ranks = `RANK=0 LOCAL_RANK=0 WORLD_SIZE=${
        ranksOf(command)
      } MASTER_ADDR=localhost MASTER_PORT=29500`;
      const flags = [
        ...SMALL,
        `--preset=${preset}`,
        "--dry_run",
        ...args.includes("auto") ? ["--out_dir=runs/new"] : [],
      ];
      await world.run([ranks, "deno task train", args, ...flags].join(" "));
    });
  }
});

// ---- commands in error messages

/** Commands that are refused, and what stands for the words in capitals of the command that their message ends with. */
const REFUSED: [command: string, files?: string][] = [
  ["deno task train --data_dir=data/none", "corpus"],
  ["deno task train --data_dir=data/parts"],
  ["deno task train --resume=runs/none"],
  ["deno task runs no_runs"],
  ["deno task prepare --merge --out data/unmade", "corpus/*.parquet"],
  ["deno run -q -P=data data/prepare.ts --input corpus --out data/refused --val_fraction=0.3"],
];

Deno.test("the command that an error ends with does what it says", async (t) => {
  const world = await (made ??= World.make());
  for (const dir of ["no_runs", "data/unmade"]) Deno.mkdirSync(`${world.root}/${dir}`);
  for (let i = 0; i < 8; i++) {
    Deno.copyFileSync(`${world.root}/c4/a.parquet`, `${world.root}/corpus/${i}.parquet`);
  }
  await world.run("deno task prepare --input corpus --out data/parts --val_fraction=0.3 --shard=1/1");
  for (const [refused, files = ""] of REFUSED) {
    await t.step(refused, async () => {
      const said = await world.run(`${refused} 2>&1 || true`);
      const [, advice] =
        /(?:run|make it|make them|train one with|start one with|grant it with): (deno .*)/.exec(said) ?? [];
      assert(advice, said);
      const typed = advice.replace("FILES", files).replace(/ \.\.\.$/, refused.replace(/^.*\.ts/, ""));
      await world.run(asRun(typed, world.root));
    });
  }
});

/** What Open MPI wants in a container, as root and on two cores. */
const MPI = {
  OMPI_ALLOW_RUN_AS_ROOT: "1",
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1",
  OMPI_MCA_rmaps_base_oversubscribe: "1",
  OMPI_MCA_hwloc_base_binding_policy: "none",
  OMPI_MCA_mpi_yield_when_idle: "1",
  OMPI_MCA_btl: "self,vader",
  OMPI_MCA_btl_vader_single_copy_mechanism: "none",
};
