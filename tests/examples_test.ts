// Runs the scripts of examples/ as their first lines say, for a few steps, and the examples in docstrings.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { squaredRelu } from "../examples/own_op.ts";
import { add, backward, claim, endStep, grad, open, readFloats, tensor, writeFloats } from "../mod.ts";
import { copy, dataset, emptyDirectory, ROOT } from "./testing.ts";
import { programSources } from "./testing_sources.ts";

open("cpu");

/** Runs a line of shell words that begins with deno, with a program on stdin if there is one; returns stdout. */
async function succeed(line: string, program = "", cwd: string | URL = ROOT): Promise<string> {
  const child = new Deno.Command(Deno.execPath(), {
    args: line.split(" ").slice(1),
    cwd,
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  await new Blob([program]).stream().pipeTo(child.stdin);
  const { code, stdout, stderr } = await child.output();
  assertEquals({ code, stderr: new TextDecoder().decode(stderr) }, { code: 0, stderr: "" }, line);
  return new TextDecoder().decode(stdout);
}

function read(path: string): string {
  return Deno.readTextFileSync(new URL(path, ROOT));
}

const examples = Array.from(Deno.readDirSync(new URL("examples", ROOT)))
  .filter(({ isFile }) => isFile).map(({ name }) => `examples/${name}`).sort();

for (const path of examples) {
  Deno.test(`${path} says how to run it, and trains for a few steps that way`, async () => {
    const [, command = ""] = /^\/\/ {3}(deno run .*?) {2,}/m.exec(read(path)) ?? [];
    assert(command.includes(path), `${path}: the comment at its top should say how to run it`);
    const output = await succeed(command.replace("[STEPS]", "3").replace(/ \[.*/, ""));
    assertMatch(output, /step 3: loss \d+\.\d+\n/);
  });
}

Deno.test("examples/own_data.ts learns to write words backwards", async () => {
  const output = await succeed("deno run -q --seed=1 -P=sample examples/own_data.ts 300");
  const [, loss] = /step 300: loss (\S+)/.exec(output) ?? [];
  assert(Number(loss) < 0.6, output); // letters at random: ln(8) / 2 = 1.04; the words of this seed end at 0.34
});

Deno.test("examples/qk_norm.ts gives the new weights gradients", async () => {
  const output = await succeed("deno run -q -P=sample examples/qk_norm.ts 5");
  const [, least, most] = /q_norm was all 1 and is now (\S+) to (\S+)/.exec(output) ?? [];
  assert(Number(least) < 1 && Number(most) > 1, output);
});

/** What the cells of docs/notebook.ipynb hold, in their order. */
const cells: { cell_type: string; source: string[]; outputs?: unknown[] }[] =
  JSON.parse(read("docs/notebook.ipynb")).cells;

Deno.test("the cells of docs/notebook.ipynb run as a script, and the notebook has what they gave", async () => {
  const code = cells.filter(({ cell_type }) => cell_type === "code");
  const program = code.map(({ source }) => source.join("")).join("\n");
  let short = program.replace("../mod.ts", new URL("mod.ts", ROOT).href);
  for (
    const [long, few] of [["const steps = 400;", "const steps = 20;"], ["% 100", "% 20"], [
      ", 80)",
      ", 4)",
    ]] as const
  ) {
    assert(short.includes(long), long);
    short = short.replace(long, few);
  }
  const docs = new URL("docs/", ROOT);
  const output = await succeed(`deno run -q -P=sample --config ../deno.json --ext=ts -`, short, docs);
  assertMatch(output, /qkv_proj \(256,128\): root mean square \d\.\d\de-\d\nstep 20: loss \d\.\d+\nA test /);
  code.slice(0, 1).concat(code.slice(-2)).forEach(({ outputs }) => assert(outputs!.length > 0));
  assertMatch(JSON.stringify(code.at(-2)), /image\/svg\+xml/);
});

// deno.json leaves it out: Deno 2.9.6's `deno fmt --check` refuses every notebook until `deno fmt` has seen it.
Deno.test("docs/notebook.ipynb is formatted", async () => {
  const notebook = read("docs/notebook.ipynb");
  assertEquals(await succeed("deno fmt -q --ext=ipynb -", notebook), notebook);
});

const jupyter = Deno.env.get("LOAM_JUPYTER");

Deno.test({
  name: "docs/notebook.ipynb runs in Deno's kernel (LOAM_JUPYTER names a Python with nbclient)",
  ignore: jupyter === undefined,
  fn: async () => {
    const home = emptyDirectory(), env = { HOME: home, LOAM_NOTEBOOK: new URL("docs/", ROOT).pathname };
    const program = `import nbformat, os
from nbclient import NotebookClient
path = os.environ["LOAM_NOTEBOOK"]
notebook = nbformat.read(path + "notebook.ipynb", 4)
NotebookClient(notebook, timeout=600, kernel_name="deno", resources={"metadata": {"path": path}}).execute()
print(notebook.cells[-1].outputs[0].text)`;
    const run = (file: string, ...args: string[]) => new Deno.Command(file, { args, env }).output();
    assert((await run(Deno.execPath(), "jupyter", "--install")).success);
    const { success, stdout, stderr } = await run(jupyter!, "-c", program);
    assert(success, new TextDecoder().decode(stderr));
    assertMatch(new TextDecoder().decode(stdout), /^A test /);
  },
});

Deno.test("examples/own_op.ts has the derivative of its op, alone and beside another reader of its input", () => {
  const x = [-2, -0.5, 0.25, 0.5, 1, 3], weights = [0.5, -1, 2, 1, 0.25, -3], h = 2 ** -10;
  const sum = (x: number[], f: (v: number) => number) => x.reduce((sum, v, i) => sum + weights[i]! * f(v), 0);
  const square = (v: number) => v > 0 ? v * v : 0, both = (v: number) => square(v) + v;
  for (const [f, isShared] of [[square, false], [both, true]] as const) {
    const leaf = tensor([1, 6], x, true), y = squaredRelu(leaf), out = isShared ? add(y, leaf) : y;
    assertEquals([...out.toArray()], x.map(f));
    claim(out);
    writeFloats(grad(out), Float32Array.from(weights), "act");
    backward(out);
    const numeric = x.map((_, i) => {
      const moved = (by: number) => sum(x.map((v, j) => j === i ? v + by : v), f);
      return (moved(h) - moved(-h)) / (2 * h); // without rounding, since f is a parabola on both sides of 0
    });
    assertEquals([...readFloats(grad(leaf), 6, "act")], numeric);
    endStep();
  }
});

/** The programs in the docstrings of a source. */
function examplesOf(source: string): string[] {
  const blocks = source.matchAll(/^ *\* ```ts\n((?: *\*.*\n)*?) *\* ```$/gm);
  return Array.from(blocks, ([, lines]) => lines!.replaceAll(/^ *\* ?/gm, ""));
}

// ---- programs that lie elsewhere, as the head of mod.ts says

const CONFIG = new URL("deno.json", ROOT).pathname;
const programs: Record<string, string> = {};
for (const path of programSources()) {
  for (const [i, program] of examplesOf(read(path)).entries()) {
    programs[`example ${i + 1} of ${path}`] = program;
  }
}
const [example = ""] = examplesOf(read("mod.ts"));
const GPT2 = "a vocabulary that is in a package";
programs[GPT2] = example.replace('"bytes"', '"gpt2"').replace("step < 60", "step < 1").replace(
  "T = 32",
  "T = 4",
);
const MIX = "a mix of datasets";
programs[MIX] = `
  import { backward, init, Inputs, Loader, loss, open, openData, openDataset, Parameters, tokenSource } from "@loam/loam";
  open("cpu");
  const data = openData(Deno.args[0]!, openDataset), T = 16;
  const loader = new Loader(tokenSource, data, { split: "train", batch_size: 2, block_size: T, vocab_size: 257 });
  const shape = { n_layer: 1, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 16, n_inner: 48, block_size: T };
  const c = { ...shape, vocab_size: 257, rope_theta: 1e4, norm_eps: 1e-6, tie_word_embeddings: true };
  const model = init(c), inputs = new Inputs(2, T, 1);
  new Parameters(model, { seed: 1, train: true });
  const place = { seed: 1, sample: 0, micro: 0 };
  inputs.fill((x, y) => loader.trainBatch(x, y, place));
  const mean = loss(model, inputs.idx, inputs.targets, c);
  backward(mean);
  console.log("parts" in data && data.parts.map(({ slots }) => slots).join(), mean.toArray()[0]!.toFixed(1));`;

/** Runs a program from a directory outside of the repository. */
async function runElsewhere(name: string): Promise<string> {
  const cwd = emptyDirectory();
  Deno.writeTextFileSync(`${cwd}/program.ts`, programs[name]!);
  return await succeed(`deno run -q --config ${CONFIG} -P=sample program.ts`, "", cwd);
}

Deno.test("the types of programs elsewhere fit the public interface", async () => {
  const cwd = emptyDirectory(), paths = Object.keys(programs).map((_, i) => `program_${i}.ts`);
  Object.values(programs).forEach((program, i) => Deno.writeTextFileSync(`${cwd}/${paths[i]}`, program));
  await succeed(`deno check -q --config ${CONFIG} ${paths.join(" ")}`, "", cwd);
});

for (const name of Object.keys(programs).filter((name) => name.startsWith("example"))) {
  Deno.test(`${name} runs outside of the repository`, async () => {
    const output = await runElsewhere(name);
    if (name.endsWith(" mod.ts")) {
      assertMatch(output, /loss: 0\.0\d+,\n[^]*Once upon a time there was a loo\n$/);
    }
  });
}

Deno.test("a program elsewhere may use a vocabulary that is in a package", async () => {
  assertMatch(await runElsewhere(GPT2), /updates: 1,/);
});

Deno.test("a program with a deno.json of its own, as in docs/code.md, trains on a mix of datasets", async () => {
  const cwd = emptyDirectory(), data = await dataset();
  const [config = ""] = /^\{\n\s+"imports"[^]*?^\}/m.exec(read("docs/code.md")) ?? [];
  assertMatch(config, /"links": \["path\/to\/loam", /);
  Deno.writeTextFileSync(
    `${cwd}/deno.json`,
    config.replaceAll("path/to/loam/", ROOT.pathname).replace("path/to/loam", ROOT.pathname),
  );
  Deno.writeTextFileSync(`${cwd}/program.ts`, programs[MIX]!);
  const permissions = "--allow-read --allow-env --allow-ffi";
  const output = await succeed(`deno run -q ${permissions} program.ts ${data}:3,${copy(data)}:1`, "", cwd);
  assertEquals(output, "7500,2500 5.5\n"); // ln 257 = 5.55
});

Deno.test("the example of mod.ts is there, and 20 lines long besides its import", () => {
  const lines = example.split("\n").filter((line) => line !== "" && !line.startsWith("import"));
  assertEquals(lines.length, 20);
});
