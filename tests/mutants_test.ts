// deno task test:mutants where nothing is built yet, as in a fresh clone. A script stands in for the compiler.
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { libraryExists } from "../ffi/library.ts";
import { emptyDirectory, isInstalled, ROOT } from "./testing.ts";

/** A clone without libraries, with one table of its own and a test that wants build/libloam_emu.so. */
async function clone(): Promise<string> {
  const dir = emptyDirectory(), root = decodeURIComponent(ROOT.pathname);
  const script = 'git ls-files -z | xargs -0 cp --parents -t "$0" && cd "$0" && git init -q && git add -A';
  assertEquals((await new Deno.Command("sh", { args: ["-c", script, dir], cwd: root }).output()).code, 0);
  const compiler = `#!/bin/sh
    if [ "$1" = --version ]; then echo "stand-in 1.0"; exit; fi
    while [ "$1" != -o ]; do shift; done
    name=$(basename "$2"); cp "${root}build/libloam_\${name%%.*}.so" "$2"`;
  Deno.writeTextFileSync(`${dir}/compiler`, compiler, { mode: 0o755 });
  const test = `Deno.test("two words", () => {
    Deno.statSync("build/libloam_emu.so");
    if (Deno.readTextFileSync("kernels.cu").startsWith("planted")) throw new Error("seen");
  });`;
  Deno.writeTextFileSync(`${dir}/tests/own_test.ts`, test);
  const first = Deno.readTextFileSync(new URL("kernels.cu", ROOT)).split("\n")[0]!;
  const own = {
    name: "own",
    file: "kernels.cu",
    from: first,
    to: "planted",
    tests: ["tests/own_test.ts --filter=/two words/"],
  };
  Deno.writeTextFileSync(`${dir}/tests/mutants/own.json`, JSON.stringify([own]));
  assertEquals((await new Deno.Command("git", { args: ["add", "-A"], cwd: dir }).output()).code, 0);
  return dir;
}

Deno.test({
  name: "test:mutants builds in a fresh clone what its tests need, and says so",
  ignore: !isInstalled("git") || !libraryExists("emu"),
  fn: async () => {
    const cwd = await clone();
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", "-P=test", "tests/mutants.ts", "--only=own"],
      cwd,
      env: { CXX: `${cwd}/compiler`, NO_COLOR: "1" },
    }).output();
    const text = new TextDecoder().decode(stdout);
    assertEquals([code, new TextDecoder().decode(stderr)], [0, ""], text);
    assertMatch(text, /^building what is not up to date, then running the tests without a fault\n/);
    assertStringIncludes(text, "\n1 caught, 0 survived, 0 unexplained\n");
  },
});
