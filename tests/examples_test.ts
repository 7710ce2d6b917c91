// Runs the scripts of examples/ as their first lines say, for a few steps, and the examples in docstrings.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { ROOT } from "./helpers.ts";

/** Runs a line of shell words that begins with deno in the root, with a program on stdin if there is one; returns stdout. */
async function succeed(line: string, program = ""): Promise<string> {
  const child = new Deno.Command(Deno.execPath(), {
    args: line.split(" ").slice(1),
    cwd: ROOT,
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

const examples = Array.from(Deno.readDirSync(new URL("examples", ROOT)), ({ name }) => `examples/${name}`)
  .sort();

for (const path of examples) {
  Deno.test(`${path} says how to run it, and trains for a few steps that way`, async () => {
    const [, command = ""] = /^\/\/ {3}(deno run .*?) {2,}/m.exec(read(path)) ?? [];
    assert(command.includes(path), `${path}: the comment at its top should say how to run it`);
    const output = await succeed(command.replace("[STEPS]", "3").replace(/ \[.*/, ""));
    assertMatch(output, /step 3: loss \d+\.\d+\n/);
  });
}

Deno.test("examples/own_data.ts learns to write words backwards", async () => {
  const output = await succeed("deno run -q -P=sample examples/own_data.ts 400");
  const [, loss] = /step 400: loss (\S+)/.exec(output) ?? [];
  assert(Number(loss) < 0.7, output); // letters at random: ln(8) / 2 = 1.04, as half of the places have no loss
});

Deno.test("examples/qk_norm.ts gives the new weights gradients", async () => {
  const output = await succeed("deno run -q -P=sample examples/qk_norm.ts 5");
  const [, least, most] = /q_norm was all 1 and is now (\S+) to (\S+)/.exec(output) ?? [];
  assert(Number(least) < 1 && Number(most) > 1, output);
});

/** Paths of our sources, in which docstrings may have examples. */
function* sources(folder = ""): Generator<string> {
  for (const { name, isFile, isDirectory } of Deno.readDirSync(new URL(folder || ".", ROOT))) {
    if (isFile && name.endsWith(".ts") && !name.endsWith("_test.ts")) yield folder + name;
    const ours = folder !== "" || ["ffi", "runtime", "data", "model", "serve"].includes(name);
    if (isDirectory && ours) yield* sources(`${folder}${name}/`);
  }
}

/** The programs in the docstrings of a source. */
function examplesOf(source: string): string[] {
  const blocks = source.matchAll(/^ *\* ```ts\n((?: *\*.*\n)*?) *\* ```$/gm);
  return Array.from(blocks, ([, lines]) => lines!.replaceAll(/^ *\* ?/gm, ""));
}

for (const path of sources()) {
  for (const [i, program] of examplesOf(read(path)).entries()) {
    Deno.test(`example ${i + 1} in the docstrings of ${path} runs`, async () => {
      const output = await succeed("deno run -q --check -P=sample -", program);
      if (path === "mod.ts") assertMatch(output, /loss: 0\.0\d+,\n[^]*Once upon a time there was a loo\n$/);
    });
  }
}

Deno.test("the example of mod.ts is there, and 20 lines long besides its import", () => {
  const [program = ""] = examplesOf(read("mod.ts"));
  const lines = program.split("\n").filter((line) => line !== "" && !line.startsWith("import"));
  assertEquals(lines.length, 20);
});
