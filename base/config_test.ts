import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "./errors.ts";
import { help, parseOverrides, requireRange, requireWhole } from "./config.ts";

const DEFAULTS = { n_layer: 24, learning_rate: 3e-4, data: "data/demo", compile: true, debug: "" };

/** The message that parsing ends with. */
function mistake(...args: string[]): string {
  return assertThrows(() => parseOverrides(args, DEFAULTS), UserError).message;
}

Deno.test("parseOverrides() gives values the type of their default", () => {
  assertEquals(parseOverrides([], DEFAULTS), {});
  assertEquals(
    parseOverrides(["--n_layer=12", "--learning_rate=1e-3", "--data=12", "--compile=false"], DEFAULTS),
    { n_layer: 12, learning_rate: 1e-3, data: "12", compile: false },
  );
  assertEquals(parseOverrides(["--data="], DEFAULTS), { data: "" });
  assertEquals(parseOverrides(["--data=a=b --c"], DEFAULTS), { data: "a=b --c" });
  assertEquals(parseOverrides(["--n_layer=1", "--n_layer=2"], DEFAULTS), { n_layer: 2 }); // the last one counts
  assertEquals(Object.is(parseOverrides(["--n_layer=-0"], DEFAULTS).n_layer, 0), true);
});

Deno.test("parseOverrides() reads numbers as people write them", () => {
  const read = (text: string) => parseOverrides([`--n_layer=${text}`], DEFAULTS).n_layer;
  const texts = ["0", "-3", "+3", "1_000_000", "6e-4", "1E3", ".5", "5.", "007"];
  assertEquals(texts.map(read), [0, -3, 3, 1e6, 6e-4, 1000, 0.5, 5, 7]);
  for (const text of ["", "twelve", "1,000", "0x10", "1e", "NaN", "Infinity", "1e999", "1 2", "_1", "--1"]) {
    assertEquals(
      mistake(`--n_layer=${text}`),
      `Cannot set n_layer to "${text}": it must be a number, such as 24`,
    );
  }
});

Deno.test("parseOverrides() takes a value from the next argument, and a flag alone as true or what it stands for", () => {
  assertEquals(parseOverrides(["--n_layer", "6", "--compile", "--data", "x"], DEFAULTS), {
    n_layer: 6,
    compile: true,
    data: "x",
  });
  assertEquals(parseOverrides(["--n_layer", "-5"], DEFAULTS), { n_layer: -5 });
  assertEquals(parseOverrides(["--debug", "--n_layer=1"], DEFAULTS, { debug: "check" }), {
    debug: "check",
    n_layer: 1,
  });
  assertEquals(parseOverrides(["--debug=tape"], DEFAULTS, { debug: "check" }), { debug: "tape" });
});

Deno.test("parseOverrides() names what is wrong and the nearest variable", () => {
  assertEquals(
    mistake("--n_layers=3"),
    "Cannot set n_layers: there is no such variable; did you mean --n_layer?",
  );
  assertEquals(
    mistake("--lerning_rate=3"),
    "Cannot set lerning_rate: there is no such variable; did you mean --learning_rate?",
  );
  assertEquals(mistake("--hlep"), "Cannot set hlep: there is no such variable; did you mean --help?");
  assertEquals(mistake("--toString=3").startsWith("Cannot set toString: there is no such variable"), true);
  assertEquals(mistake("n_layer=3"), "Cannot read the argument n_layer=3: variables are set as --name=value");
  assertEquals(
    mistake("-n_layer=3"),
    "Cannot read the argument -n_layer=3: variables are set as --name=value",
  );
  assertEquals(mistake("--compile=yes"), 'Cannot set compile to "yes": it must be true or false');
  assertEquals(mistake("--n_layer"), "Cannot set n_layer: it needs a value, --n_layer=24");
  assertEquals(mistake("--data", "--compile"), "Cannot set data: it needs a value, --data=data/demo");
  assertEquals(mistake("--debug"), "Cannot set debug: it needs a value, --debug=...");
});

Deno.test("help() prints variables with their defaults and comments, below the headings of their groups", () => {
  const source = `import { a } from "a";

const DEFAULTS = {
  n_layer: 24,
  learning_rate: 3e-4, // where the cosine begins, after warm-up

  // data: from deno task prepare
  data: "data/demo", // a: b, c // d
  compile: true,
  debug: "", // --debug: stops
};

const more = {
  data: "", // no variable
};
`;
  assertEquals(
    help("Do it", DEFAULTS, source),
    `Do it

  --n_layer=24
  --learning_rate=0.0003  where the cosine begins, after warm-up

data: from deno task prepare
  --data=data/demo        a: b, c // d
  --compile=true
  --debug=                --debug: stops`,
  );
});

Deno.test("requireWhole() stops at the first variable that is not a whole number in [min, max]", () => {
  const config = { a: 3, b: 0, c: 2.5, d: 2 ** 60 };
  requireWhole(config, ["a"], 3);
  const message = (name: keyof typeof config, min: number, max?: number) =>
    assertThrows(() => requireWhole(config, ["a", name], min, max), UserError).message;
  assertEquals(message("b", 1), "Cannot use b 0: it must be a whole number of at least 1");
  assertEquals(message("c", 1), "Cannot use c 2.5: it must be a whole number of at least 1");
  assertEquals(
    message("d", 1),
    `Cannot use d ${2 ** 60}: it must be a whole number from 1 to 9007199254740991`,
  );
  assertEquals(message("a", 1, 2), "Cannot use a 3: it must be a whole number from 1 to 2");
});

Deno.test("requireRange() stops at the first variable outside [min, max]", () => {
  const config = { a: 0, b: 1, c: 1.5, d: NaN };
  requireRange(config, ["a", "b"], 0, 1);
  const message = (name: keyof typeof config, max: number) =>
    assertThrows(() => requireRange(config, [name], 0.5, max), UserError).message;
  assertEquals(message("c", 1), "Cannot use c 1.5: it must be between 0.5 and 1");
  assertEquals(message("a", Infinity), "Cannot use a 0: it must be at least 0.5");
  assertEquals(message("d", 1), "Cannot use d NaN: it must be between 0.5 and 1");
});
