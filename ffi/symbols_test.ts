import { assert, assertEquals } from "@std/assert";
import { ABI_VERSION, CONTROL, UNARY } from "./library.ts";
import * as kernels from "./kernels.ts";
import { FUNCTIONS, symbols } from "./symbols.ts";

const header = Deno.readTextFileSync(new URL("../kernels.h", import.meta.url));

const C_TYPES: Record<string, string> = {
  int32_t: "i32",
  int64_t: "i64",
  uint32_t: "u32",
  uint64_t: "u64",
  float: "f32",
  double: "f64",
};

/** Functions declared in kernels.h, with the Deno type each C parameter must have. */
function declarations(): Record<string, string[]> {
  const found: Record<string, string[]> = {};
  const code = header.slice(header.indexOf('extern "C" {')).replace(/\/\/[^\n]*/g, "");
  for (const [, name, list] of code.matchAll(/^int (\w+)\(([^)]*)\);/gm)) {
    const parameters = list!.trim() === "void" ? [] : list!.split(",").map((p) => p.trim());
    found[name!] = parameters.map((p) => {
      if (p.startsWith("HOST ")) return "buffer";
      if (p.includes("*")) return "usize";
      const type = /^(int32_t|int64_t|uint32_t|uint64_t|float|double) \w+$/.exec(p)?.[1];
      assert(type, `cannot read parameter "${p}" of ${name}`);
      return C_TYPES[type!]!;
    });
  }
  return found;
}

Deno.test("symbols has exactly the functions of kernels.h with the same types", () => {
  const table = Object.fromEntries(
    FUNCTIONS.map((name) => [name, [...symbols[name as keyof typeof symbols].parameters]]),
  );
  assertEquals(table, declarations() as Record<string, never>);
});

Deno.test("a second face of a function takes the same arguments as the first", () => {
  for (const face of [symbols.synchronize_async, symbols.snapshot_read_async]) {
    assertEquals<readonly string[]>(face.parameters, symbols[face.name].parameters, face.name);
  }
});

Deno.test("declarations() finds every int function of kernels.h", () => {
  const lines = header.split("\n").filter((line) => /^int \w+\(/.test(line)).length;
  assertEquals(Object.keys(declarations()).length, lines);
  assert(lines > 30);
});

Deno.test("the wrappers pass as many arguments as their function takes", () => {
  for (const [name, wrapper] of Object.entries(kernels)) {
    const parameters = symbols[name as keyof typeof symbols].parameters.length;
    assertEquals((wrapper as (...args: never[]) => unknown).length, parameters, name);
  }
});

Deno.test("ABI_VERSION, UNARY and CONTROL agree with kernels.h", () => {
  const constant = (name: string) => Number(new RegExp(`#define ${name} (\\d+)`).exec(header)?.[1]);
  assertEquals(ABI_VERSION, constant("LOAM_ABI_VERSION"));
  for (const [name, value] of Object.entries(UNARY)) {
    assertEquals(value, constant(`LOAM_${name.toUpperCase()}`), name);
  }
  for (const [name, value] of Object.entries(CONTROL)) {
    assertEquals(value, constant(`CONTROL_${name.toUpperCase()}`), name);
  }
});
