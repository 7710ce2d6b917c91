import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { exitCodeOf, explain, KernelError, TransientError, UserError } from "./errors.ts";

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
    `await e.runMain(async () => { await 0; throw new RangeError("rope: D=3 must be even"); });`,
  );
  assertEquals(code, 1);
  assertMatch(stderr, /^RangeError: rope: D=3 must be even\n {4}at file:.*\.ts:2:\d+\n/);
});

Deno.test("exitCodeOf() is 75 where another start may go well: in company after all that is no mistake", async () => {
  const mistakes = [new UserError("a"), new Deno.errors.NotCapable("a")];
  const failures = [new KernelError("a"), new TypeError("a"), new Deno.errors.Http("a"), "a"];
  for (const isAlone of [true, false]) {
    assertEquals(mistakes.map((error) => exitCodeOf(error, isAlone)), [1, 1]);
    assertEquals(exitCodeOf(new TransientError("a"), isAlone), 75);
    assertEquals(failures.map((error) => exitCodeOf(error, isAlone)), Array(4).fill(isAlone ? 1 : 75));
  }
  const ends = await run(`await e.runMain(() => { throw new e.TransientError("Cannot listen"); });`);
  assertEquals(ends, { code: 75, stdout: "", stderr: "error: Cannot listen\n" });
});

const later = {
  "a promise nobody waits for": `Promise.reject(new e.UserError("Cannot go on"));`,
  "a timer": `setTimeout(() => { throw new e.UserError("Cannot go on"); });`,
};
for (const [what, body] of Object.entries(later)) {
  Deno.test(`runMain() explains what ${what} throws, after the other listeners`, async () => {
    const listen = ["error", "unhandledrejection"].map((event) =>
      `addEventListener("${event}", () => console.log("seen"));`
    );
    const forever = "await new Promise(() => setInterval(() => {}, 1000));";
    assertEquals(await run(`await e.runMain(async () => { ${listen.join(" ")} ${body} ${forever} });`), {
      code: 1,
      stdout: "seen\n",
      stderr: "error: Cannot go on\n",
    });
  });
}

Deno.test({
  name: "runMain() ends with 1 where neither stdout nor stderr can be written",
  ignore: Deno.build.os !== "linux",
  fn: async () => {
    const path = Deno.makeTempFileSync({ suffix: ".ts" }),
      quiet = { stdin: "null", stdout: "piped" } as const;
    Deno.writeTextFileSync(
      path,
      `import { runMain } from "${
        import.meta.resolve("./errors.ts")
      }";\nawait runMain(() => console.log("text"));\n`,
    );
    const full = async (redirection: string) => {
      const args = ["-c", `"$0" run -q --no-check "$1" ${redirection}`, Deno.execPath(), path];
      const { code, stderr } = await new Deno.Command("sh", { args, ...quiet, stderr: "piped" }).output();
      return { code, stderr: new TextDecoder().decode(stderr) };
    };
    const why = "error: Cannot print: No space left on device\n";
    assertEquals(await full(">/dev/full"), { code: 1, stderr: why });
    assertEquals(await full(">/dev/full 2>/dev/full"), { code: 1, stderr: "" });
    Deno.removeSync(path);
  },
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
  assertStringIncludes(explain(new RangeError("add: n=0")), "RangeError: add: n=0\n");
  assertEquals(explain(new KernelError("add: n=0")), "error: Cannot go on: add: n=0");
  assertStringIncludes(explain(new KernelError("internal: code 7")), "KernelError: internal: code 7\n"); // a bug of ours
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

/** Says what an action throws. */
function explained(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return explain(error);
  }
  return "nothing was thrown";
}

Deno.test("explain() has one line for what the operating system refuses, with the path", () => {
  const file = import.meta.filename!, json = '{"a": 1,\n "b": }\n';
  using directory = Deno.openSync("/tmp");
  const cases: [() => unknown, string][] = [
    [() => Deno.openSync("/no/file"), "Cannot open /no/file: No such file or directory"],
    [() => Deno.readTextFileSync("/tmp"), "Cannot read /tmp: Is a directory"],
    [() => Deno.mkdirSync(`${file}/a`), `Cannot make ${file}/a: Not a directory`],
    [() => Deno.renameSync("/no/a", "/no/b"), "Cannot rename /no/a to /no/b: No such file or directory"],
    [() => directory.readSync(new Uint8Array(1)), "Cannot go on: Is a directory"],
  ];
  for (const [action, message] of cases) assertEquals(explained(action), `error: ${message}`);
  const quoted = explained(() => {
    try {
      JSON.parse(json);
    } catch (error) {
      throw new UserError(`Cannot read a.json: ${(error as Error).message}`);
    }
  });
  assertEquals(
    quoted,
    `error: Cannot read a.json: Unexpected token '}', "{"a": 1,\\n "b": }\\n" is not valid JSON`,
  );
});
