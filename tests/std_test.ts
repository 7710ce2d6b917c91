// What loam relies on in @std/assert and @std/cli. Passes with offline/ and, after `deno unlink`, with the real packages.
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  AssertionError,
  assertLess,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
  fail,
} from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import { ProgressBar, type ProgressBarFormatter } from "@std/cli/unstable-progress-bar";

/** Runs a check that must fail, and returns its message. */
function failure(check: () => void): string {
  try {
    check();
  } catch (error) {
    if (error instanceof AssertionError) return error.message;
    throw error;
  }
  throw new Error("the check passed");
}

Deno.test("assertEquals() compares contents", () => {
  const same: [unknown, unknown][] = [
    [NaN, NaN],
    [0, -0],
    [new Float32Array([1, NaN, -0]), new Float32Array([1, NaN, 0])],
    [new Uint8Array([1, 2]).buffer, new Uint8Array([1, 2]).buffer],
    [{ a: 1, b: [{ c: 2 }] }, { b: [{ c: 2 }], a: 1 }],
    [new Set([{ a: 1 }, 2]), new Set([2, { a: 1 }])],
    [new Map([["x", [1]], ["y", [2]]]), new Map([["y", [2]], ["x", [1]]])],
    [new Date(5), new Date(5)],
    [/a+/g, /a+/g],
    [Object.assign(Object.create(null), { a: 1 }), { a: 1 }],
  ];
  for (const [a, b] of same) {
    assertEquals(a, b);
    assertThrows(() => assertNotEquals(a, b), AssertionError);
  }
});

Deno.test("assertNotEquals() tells apart what only looks alike", () => {
  const different: [unknown, unknown][] = [
    [1, "1"],
    [null, undefined],
    [{ a: undefined }, {}],
    [{ a: undefined }, { b: undefined }],
    [[1, 2], [1, 2, 3]],
    [[1], new Float32Array([1])],
    [new Float32Array([1]), new Float64Array([1])],
    [new Float32Array([1]), new Float32Array([1.0001])],
    [new Set([{ a: 1 }]), new Set([{ a: 2 }])],
    [new Map([["x", 1]]), new Map([["x", 2]])],
    [new Date(5), new Date(6)],
    [/a/, /a/g],
    [new RangeError("x"), new TypeError("x")],
    [{ [Symbol.for("k")]: 1 }, { [Symbol.for("k")]: 2 }],
  ];
  for (const [a, b] of different) {
    assertNotEquals(a, b);
    assertThrows(() => assertEquals(a, b), AssertionError, "Values are not equal");
  }
});

Deno.test("assertEquals() follows cycles", () => {
  const cycle = (last: number) => {
    const a: Record<string, unknown> = { last };
    return a.self = { a }, a;
  };
  assertEquals(cycle(1), cycle(1));
  assertNotEquals(cycle(1), cycle(2));
});

Deno.test("assertEquals() shows what differs, and the note", () => {
  const message = failure(() => assertEquals({ lr: 1, n_layer: 12 }, { lr: 2, n_layer: 12 }, "config"));
  assertStringIncludes(message, "config");
  assertMatch(message, /-\s+lr: 1/);
  assertMatch(message, /\+\s+lr: 2/);
  assert(!/[-+]\s+n_layer/.test(message), message);
});

Deno.test("assertAlmostEquals() has a relative tolerance by default and an absolute one when given", () => {
  assertAlmostEquals(1e-8 * (1 + 1e-8), 1e-8);
  assertAlmostEquals(0.01, 0.02, 0.1);
  assertAlmostEquals(Infinity, Infinity);
  assertAlmostEquals(NaN, NaN);
  assertThrows(() => assertAlmostEquals(1, NaN, 1), AssertionError);
  assertThrows(() => assertAlmostEquals(1e-8, 1e-9), AssertionError, "to be close to");
  assertThrows(() => assertAlmostEquals(1, 1.2, 0.1, "loss"), AssertionError, "loss");
});

Deno.test("assertThrows() checks class and message and returns the error", () => {
  const thrower = () => {
    throw new RangeError("Cannot view (2,3) as (7)");
  };
  assertEquals(assertThrows(thrower, RangeError, "view (2,3)").message, "Cannot view (2,3) as (7)");
  assert(assertThrows(thrower) instanceof RangeError);
  assertThrows(() => assertThrows(() => {}, "note"), AssertionError, "Expected function to throw: note");
  assertThrows(() => assertThrows(thrower, TypeError), AssertionError, '"TypeError", but was "RangeError"');
  assertThrows(() => assertThrows(thrower, RangeError, "other"), AssertionError, 'to include "other"');
  assertThrows(
    () =>
      assertThrows(() => {
        // deno-lint-ignore no-throw-literal
        throw "text";
      }, Error),
    AssertionError,
    "A non-Error object was thrown",
  );
});

Deno.test("assertRejects() checks class and message and resolves to the error", async () => {
  const reject = () => Promise.reject(new RangeError("Cannot read"));
  assertEquals((await assertRejects(reject, RangeError, "Cannot")).message, "Cannot read");
  assert(await assertRejects(reject, "note") instanceof RangeError);
  await assertRejects(
    () => assertRejects(() => Promise.resolve()),
    AssertionError,
    "Expected function to reject",
  );
  await assertRejects(() => assertRejects(reject, TypeError), AssertionError, '"TypeError"');
  await assertRejects(
    () =>
      assertRejects(() => {
        throw new RangeError("at once");
      }),
    AssertionError,
    "Function throws when expected to reject",
  );
});

Deno.test("the small assertions pass and fail where they should", () => {
  assertLess(1, 2);
  const failing = [
    () => assert(0),
    () => assertLess(1, 1),
    () => assertLess(NaN, 1),
    () => assertMatch("abc", /x/),
    () => assertStringIncludes("abc", "x"),
    () => fail("on purpose"),
  ];
  for (const check of failing) assertThrows(check, AssertionError);
});

Deno.test("parseArgs() keeps texts that are declared so, the last one or all", () => {
  const args = parseArgs(
    ["--name=7", "--tag=a", "--name=007", "--tag", "b=c", "--none", "", "--void"],
    {
      string: ["name", "none", "tag", "more", "void"],
      collect: ["tag", "more"],
    },
  );
  const name: string | undefined = args.name;
  const tags: string[] = args.tag;
  assertEquals(name, "007");
  assertEquals(tags, ["a", "b=c"]);
  assertEquals(args.more, []);
  assertEquals([args.none, args.void, args._], ["", "", [""]]);
});

Deno.test("ProgressBar draws at the start and at the end and leaves the stream open", async () => {
  const text = await drawn({});
  const lines = text.split("\r\x1b[K");
  assertEquals(lines[1], "[00:00] [----------]");
  assertEquals(lines.at(-1), "[00:00] [#####-----]\nafter");
});

Deno.test("ProgressBar disappears with clear", async () => {
  const text = await drawn({ clear: true });
  assertEquals(text.split("\r\x1b[K"), ["", "[00:00] [----------]", "after"]);
});

/** What a bar writes while it goes to half of 2048, followed by "after", written once it has given its stream back. */
async function drawn(options: Partial<ConstructorParameters<typeof ProgressBar>[0]>): Promise<string> {
  let text = "";
  const decoder = new TextDecoder();
  const writable = new WritableStream<Uint8Array>({
    write(bytes) {
      text += decoder.decode(bytes);
    },
  });
  const formatter = ({ styledTime, progressBar }: ProgressBarFormatter) => `[${styledTime}] [${progressBar}]`;
  const bar = new ProgressBar({
    max: 2048,
    barLength: 10,
    interval: 60_000,
    writable,
    formatter,
    ...options,
  });
  bar.value = 1024;
  await bar.stop();
  const writer = writable.getWriter();
  await writer.write(new TextEncoder().encode("after"));
  return text;
}
