import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { explain, KernelError, nearest, UserError } from "./errors.ts";

/** Runs a program that imports errors.ts as e, without permissions; returns its exit code and what it printed. */
async function run(body: string): Promise<{ code: number; stdout: string; stderr: string }> {
  const path = Deno.makeTempFileSync({ suffix: ".ts" });
  Deno.writeTextFileSync(path, `import * as e from "${import.meta.resolve("./errors.ts")}";\n${body}\n`);
  const options = { args: ["run", "-q", "--no-prompt", "--no-check", path], env: { NO_COLOR: "1" } };
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), options).output();
  Deno.removeSync(path);
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

Deno.test("runMain() prints a UserError as one line and exits with 1", async () => {
  assertEquals(await run(`await e.runMain(() => { throw new e.UserError("Cannot do: it is 1, not 2"); });`), {
    code: 1,
    stdout: "",
    stderr: "error: Cannot do: it is 1, not 2\n",
  });
});

Deno.test("runMain() keeps the stack of every other error and exits with 1", async () => {
  const { code, stderr } = await run(
    `await e.runMain(async () => { await 0; throw new e.KernelError("rope: D=3 must be even"); });`,
  );
  assertEquals(code, 1);
  assertMatch(stderr, /^KernelError: rope: D=3 must be even\n {4}at file:.*\.ts:2:\d+\n/);
});

Deno.test("runMain() names the flag that grants a missing permission", async () => {
  const { code, stderr } = await run(`await e.runMain(() => Deno.writeTextFileSync("/no/where", ""));`);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^error: Requires write access to "\/no\/where": .* deno run -q --allow-write="\/no\/where" \/\S+\.ts \.\.\.\n$/,
  );
});

for (
  const [program, wanted] of [
    [
      ["model/sample.ts"],
      /^error: Requires .* deno run -q -P=sample --allow-\S+ model\/sample\.ts \.\.\.\n$/,
    ],
    [["mod.ts", "sample"], /^error: Requires .* deno run -q -P=loam --allow-\S+ mod\.ts \.\.\.\n$/],
  ] as const
) {
  Deno.test(`runMain() names the permissions that ${program[0]} should have`, async () => {
    const args = ["run", "-q", "--no-prompt", "-P=data", ...program, "--checkpoint=runs/none"];
    const options = { args, cwd: new URL("../", import.meta.url), env: { NO_COLOR: "1" } };
    const { code, stderr } = await new Deno.Command(Deno.execPath(), options).output();
    assertEquals(code, 1);
    assertMatch(new TextDecoder().decode(stderr), wanted);
  });
}

Deno.test("runMain() exits with 0 when main returns", async () => {
  assertEquals(await run(`await e.runMain(() => console.log("done"));`), {
    code: 0,
    stdout: "done\n",
    stderr: "",
  });
});

Deno.test("explain() says something for whatever is thrown", () => {
  assertEquals(explain(new UserError("Cannot go on")), "error: Cannot go on");
  assertStringIncludes(explain(new KernelError("add: n=0")), "KernelError: add: n=0\n");
  assertEquals(explain("text"), "text");
  assertEquals(explain(undefined), "undefined");
});

Deno.test("explain() lets nothing in a message steer the terminal or begin a line", () => {
  const forged = "a.txt\r\nerror: all is lost\x1b[2J\x9b\u202e";
  const shown = "a.txt\\r\\nerror: all is lost\\u001b[2J\\u009b\\u202e";
  assertEquals(explain(new UserError(`Cannot read "${forged}"`)), `error: Cannot read "${shown}"`);
  assertEquals(explain(new TypeError(forged)).split("\n")[0], `TypeError: ${shown}`);
  assertEquals(
    explain(new Deno.errors.NotCapable(`Requires read access to "${forged}", run again`)).split("\n").length,
    1,
  );
  assertEquals(explain("\x1b[2J"), "\\u001b[2J");
});

Deno.test("nearest() is the name with the fewest letters changed, the first of equals", () => {
  const names = ["n_layer", "n_head", "n_kv_head", "learning_rate", "min_lr"];
  const expected: [string, string][] = [
    ["n_layers", "n_layer"],
    ["nlayer", "n_layer"],
    ["n_kvhead", "n_kv_head"],
    ["learning-rate", "learning_rate"],
    ["lr", "min_lr"],
    ["", "n_head"],
  ];
  for (const [name, known] of expected) assertEquals(nearest(name, names), known, name);
  assertEquals(nearest("b", ["a", "c"]), "a");
});
