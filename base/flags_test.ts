import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "./errors.ts";
import { between, each, help, type Ranges, readFlags, requireRanges, whole } from "./flags.ts";

const DEFAULTS = { n_layer: 24, learning_rate: 3e-4, data: "data/demo", compile: true, debug: "" };

/** The message that parsing ends with. */
function mistake(...args: string[]): string {
  return assertThrows(() => readFlags(args, DEFAULTS), UserError).message;
}

Deno.test("readFlags() gives values the type of their default", () => {
  assertEquals(readFlags([], DEFAULTS), {});
  assertEquals(
    readFlags(["--n_layer=12", "--learning_rate=1e-3", "--data=12", "--compile=false"], DEFAULTS),
    { n_layer: 12, learning_rate: 1e-3, data: "12", compile: false },
  );
  assertEquals(readFlags(["--debug="], DEFAULTS), { debug: "" });
  assertEquals(readFlags(["--data=a=b --c"], DEFAULTS), { data: "a=b --c" });
  assertEquals(readFlags(["--n_layer=1", "--n_layer=2"], DEFAULTS), { n_layer: 2 }); // the last one counts
  assertEquals(Object.is(readFlags(["--n_layer=-0"], DEFAULTS).n_layer, 0), true);
});

Deno.test("readFlags() reads numbers as people write them", () => {
  const read = (text: string) => readFlags([`--n_layer=${text}`], DEFAULTS).n_layer;
  const texts = ["0", "-3", "+3", "1_000_000", "6e-4", "1E3", ".5", "5.", "007"];
  assertEquals(texts.map(read), [0, -3, 3, 1e6, 6e-4, 1000, 0.5, 5, 7]);
  for (const text of ["twelve", "1,000", "0x10", "1e", "NaN", "Infinity", "1e999", "1 2", "_1", "--1"]) {
    assertEquals(
      mistake(`--n_layer=${text}`),
      `Cannot use --n_layer=${text}: it should be a number, such as 24`,
    );
  }
});

Deno.test("readFlags() takes a value from the next argument, and a flag alone as true or what it stands for", () => {
  assertEquals(readFlags(["--n_layer", "6", "--compile", "--data", "x"], DEFAULTS), {
    n_layer: 6,
    compile: true,
    data: "x",
  });
  assertEquals(readFlags(["--n_layer", "-5"], DEFAULTS), { n_layer: -5 });
  assertEquals(readFlags(["--compile", "false", "--debug", "tape"], DEFAULTS, { bare: { debug: "check" } }), {
    compile: false,
    debug: "tape",
  });
  assertEquals(readFlags(["--debug", "--n_layer=1"], DEFAULTS, { bare: { debug: "check" } }), {
    debug: "check",
    n_layer: 1,
  });
  assertEquals(readFlags(["--debug=tape"], DEFAULTS, { bare: { debug: "check" } }), { debug: "tape" });
});

Deno.test("readFlags() names what is wrong and the nearest variable", () => {
  assertEquals(
    mistake("--n_layers=3"),
    "Cannot use --n_layers: there is no such flag; did you mean --n_layer?",
  );
  assertEquals(
    mistake("--lerning_rate", "3"),
    "Cannot use --lerning_rate: there is no such flag; did you mean --learning_rate?",
  );
  assertEquals(mistake("--hlep"), "Cannot use --hlep: there is no such flag; did you mean --help?");
  assertEquals(mistake("--toString=3").startsWith("Cannot use --toString: there is no such flag"), true);
  assertEquals(mistake("-n_layer=3"), "Cannot use -n_layer: there is no such flag; did you mean --n_layer?");
  assertEquals(
    mistake("--no-compile=1"),
    "Cannot use --no-compile: there is no such flag; did you mean --compile?",
  );
  assertEquals(mistake("-x"), "Cannot use -x: there is no such flag; see --help");
  const word = (arg: string) =>
    `Cannot read the argument ${arg}: flags are given as --name=value, such as --`;
  assertEquals(mistake("data=x"), `${word("data=x")}data=x`);
  assertEquals(mistake("12"), `${word("12")}n_layer=12`);
  assertEquals(mistake("--compile=yes"), "Cannot use --compile=yes: it should be true or false");
  assertEquals(mistake("--n_layer"), "Cannot use --n_layer: it needs a value, such as --n_layer=24");
  assertEquals(mistake("--n_layer="), "Cannot use --n_layer: it needs a value, such as --n_layer=24");
  assertEquals(
    mistake("--data", "--compile"),
    "Cannot use --data: it needs a value, such as --data=data/demo",
  );
  assertEquals(mistake("--data="), "Cannot use --data: it needs a value, such as --data=data/demo");
  assertEquals(mistake("--debug"), "Cannot use --debug: it needs a value, such as --debug=...");
});

const LISTS = { input: [] as string[], limit: null as number | null, out: "", overwrite: false };

Deno.test("readFlags() gathers a repeated flag and plain words in their order", () => {
  const read = (...args: string[]) => readFlags(args, LISTS, { words: "input" });
  assertEquals(
    read("a", "--input", "b", "--out", "-", "c", "--overwrite", "--", "-", "--input=--d", "--limit=3"),
    { input: ["a", "b", "c", "-", "--d"], out: "-", overwrite: true, limit: 3 },
  );
  assertEquals(read("--out", "", "a"), { out: "", input: ["a"] });
  const refusals: [string[], string][] = [
    [["a", "--input="], "Cannot use --input: it needs a value, such as --input=..."],
    [["--input", "", "a"], "Cannot use --input: it needs a value, such as --input=..."],
    [[""], "Cannot use --input: it needs a value, such as --input=..."],
    [["--limit="], "Cannot use --limit: it needs a value, such as --limit=..."],
    [["--overwrite="], "Cannot use --overwrite: it needs a value, such as --overwrite=false"],
  ];
  for (const [args, message] of refusals) {
    assertEquals(assertThrows(() => read(...args), UserError).message, message);
  }
});

Deno.test("help() prints variables with their defaults and comments, below the headings of their groups", () => {
  const source = `import { a } from "a";

const DEFAULTS = {
  n_layer: 24,
  learning_rate: 3e-4, // where the cosine begins, after warm-up
  // and goes on

  // data: from deno task prepare
  data: "data/demo", // a: b, c // d
  compile: true,
  debug: "", // --debug: stops
  // at the first

  // last
  limit: null as number | null, // all
  list: ["a", "b"], // two
};

const more = {
  data: "", // no variable
};
`;
  assertEquals(
    help("Do it", { ...DEFAULTS, limit: null, list: ["a", "b"] }, source),
    `Do it

  --n_layer=24
  --learning_rate=0.0003  where the cosine begins, after warm-up
                          and goes on

data: from deno task prepare
  --data=data/demo        a: b, c // d
  --compile=true
  --debug=                --debug: stops
                          at the first

last
  --limit=                all
  --list=a,b              two`,
  );
});

const NUMBERS = { n: 3, share: 0.5, p: 1, ratio: null as number | null, mode: "" };
const RANGES: Ranges<typeof NUMBERS> = {
  n: whole(1, 256),
  share: between(0, 1, 1),
  p: between(0, 1, 0),
  ratio: between(1e-12),
  mode: ["", "check", "tape", "profile"],
};

Deno.test("readFlags() takes numbers and words that are in their ranges, with the ends but for the open one", () => {
  const read = (arg: string) => Object.values(readFlags([arg], NUMBERS, { ranges: RANGES }))[0];
  const taken: [string, number | string][] = [
    ["--n=1", 1],
    ["--n=256", 256],
    ["--share=0", 0],
    ["--p=1", 1],
    ["--ratio=1e-12", 1e-12],
    ["--ratio=1e300", 1e300],
    ["--mode=tape", "tape"],
    ["--mode=", ""],
  ];
  for (const [arg, value] of taken) assertEquals(read(arg), value, arg);
  const refused: [string, string][] = [
    ["--n=0", "a whole number from 1 to 256"],
    ["--n=257", "a whole number from 1 to 256"],
    ["--n=1.5", "a whole number from 1 to 256"],
    ["--n=many", "a whole number from 1 to 256"],
    ["--share=1", "a number from 0 to below 1"],
    ["--share=-0.1", "a number from 0 to below 1"],
    ["--p=0", "a number above 0 to 1"],
    ["--p=1.1", "a number above 0 to 1"],
    ["--ratio=0", "a number of at least 1e-12"],
    ["--mode=all", "check, tape or profile"],
  ];
  for (const [arg, what] of refused) {
    const { message } = assertThrows(() => read(arg), UserError);
    assertEquals(message, `Cannot use ${arg}: it should be ${what}`);
  }
});

Deno.test("requireRanges() stops at the first value that is not in its range", () => {
  const ranges = { ...each(whole(1), "a", "b"), c: between(0, 1) }, good = { a: 1, b: 2 ** 53 - 1, c: 1 };
  requireRanges(good, ranges);
  const message = (values: Partial<typeof good>) =>
    assertThrows(() => requireRanges({ ...good, ...values }, ranges), UserError).message;
  assertEquals(message({ a: 0 }), "Cannot use --a=0: it should be a whole number of at least 1");
  assertEquals(message({ a: 2.5 }), "Cannot use --a=2.5: it should be a whole number of at least 1");
  assertEquals(
    message({ b: 2 ** 53 }),
    "Cannot use --b=9007199254740992: it should be a whole number from 1 to 9007199254740991",
  );
  assertEquals(message({ c: NaN }), "Cannot use --c=NaN: it should be a number from 0 to 1");
});
