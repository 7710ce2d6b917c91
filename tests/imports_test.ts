// Keeps the layers apart and the dialect one: reads every source file.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { FOLDERS, sourcesIn } from "./testing_sources.ts";

const ROOT = new URL("../", import.meta.url);

/** What each folder may import besides itself. "" is the root: train.ts, serve.ts, mod.ts. */
const ALLOWED: Record<string, string[]> = {
  base: [],
  ffi: ["base"],
  runtime: ["base", "ffi"],
  dist: ["base", "ffi", "runtime"],
  data: ["base"],
  model: ["base", "ffi", "runtime", "dist", "data"],
  serve: ["base", "ffi", "runtime", "dist", "data", "model"],
  tools: ["base", "ffi"],
  "": FOLDERS,
  bench: [...FOLDERS, ""],
  tests: [...FOLDERS, "", "bench", "examples"],
  examples: [""],
  offline: [],
};

/** What every test may import, too. */
const FOR_TESTS = ["ffi", "tools", "tests"];

type Import = { file: string; specifier: string };

const { imports: importMap }: { imports: Record<string, string> } = JSON.parse(
  Deno.readTextFileSync(new URL("deno.json", ROOT)),
);

Deno.test("imports point one way: base <- ffi <- runtime <- dist <- model <- train, serve, mod; data knows only base", () => {
  const wrong = importsOf(sourceFiles()).filter(({ file, specifier }) => {
    if (!specifier.startsWith(".") || specifier.endsWith(".json")) return false; // data has no layer
    const from = layerOf(file), to = layerOf(targetOf(file, specifier));
    const allowed = file.endsWith("_test.ts") ? [...ALLOWED[from]!, ...FOR_TESTS] : ALLOWED[from]!;
    return from !== to && !allowed.includes(to);
  });
  assertEquals(wrong, []);
});

Deno.test("no file imports itself by way of others, types and workers included", () => {
  const files = sourceFiles();
  const relative = importsOf(files).filter(({ specifier }) => specifier.startsWith("."));
  const targets = (file: string) =>
    relative.filter((each) => each.file === file).map(({ specifier }) => targetOf(file, specifier))
      .filter((target) => target !== file); // its own text, which --help takes its comments from
  assertEquals(circles(new Map(files.map((file) => [file, targets(file)]))), []);
  const graph = { a: ["b", "x"], b: ["c"], c: ["a", "d"], d: [], x: ["d"], y: ["a"] };
  assertEquals(circles(new Map(Object.entries(graph))), ["a -> b", "b -> c", "c -> a"]);
});

/** The imports that lead round in circles: those left when files that import nothing, or that nothing imports, fall away. */
function circles(graph: Map<string, string[]>): string[] {
  let edges = [...graph].flatMap(([from, targets]) => targets.map((to) => ({ from, to }))), before;
  do {
    before = edges.length;
    const importers = new Set(edges.map(({ from }) => from)), imported = new Set(edges.map(({ to }) => to));
    edges = edges.filter(({ from, to }) => imported.has(from) && importers.has(to));
  } while (edges.length < before);
  return edges.map(({ from, to }) => `${from} -> ${to}`);
}

Deno.test("every package import goes through deno.json", () => {
  const known = (specifier: string) =>
    specifier.startsWith("node:") ||
    Object.keys(importMap).some((key) =>
      specifier === key || specifier.startsWith(`${key.replace(/\/$/, "")}/`)
    );
  const wrong = importsOf(sourceFiles()).filter(({ specifier }) =>
    !specifier.startsWith(".") && !known(specifier)
  );
  assertEquals(wrong, []);
});

Deno.test("every npm package in deno.json has an exact version", () => {
  for (const target of Object.values(importMap)) {
    assertMatch(target, /^(npm:\/?(@[\w-]+\/)?[\w.-]+@\d+\.\d+\.\d+(\/.*)?|jsr:@std\/.+)$/);
  }
});

Deno.test("the layer rules see an import of every kind", () => {
  const source = `import { a } from "./a.ts";\nimport {\n  b,\n} from "../b.ts";\nexport * from "./c.ts";
import "./d.ts";\nconst e = await import("./e.ts");\nnew Worker(new URL("./f.ts", import.meta.url));
export function f(g = "./not.ts") {}\nexport const h: "./not.ts";`;
  assertEquals(specifiersOf(source), ["./a.ts", "../b.ts", "./c.ts", "./d.ts", "./e.ts", "./f.ts"]);
  assertEquals(layerOf(targetOf("runtime/ops.ts", "../model/llama.ts")), "model");
  assertEquals(layerOf(targetOf("model/llama.ts", "../train.ts")), "");
});

/** Ways to write TypeScript that have another way here, and which (CONTRIBUTING.md). */
const DIALECT: [RegExp, string][] = [
  [/^(export )?(declare )?interface /, "type Name = { ... }"],
  [/^ *(\/\*)?\*+ @throws /, "Throws UserError if ..."],
  [/^(export )?(declare )?(const )?enum /, 'a union of literals, "a" | "b"'],
  [/^export default /, "an export with a name"],
  [/^ +(private|protected) (?!constructor)/, "#name"],
];

Deno.test("every source file is written in the dialect of CONTRIBUTING.md", () => {
  const files = sourceFiles().filter((file) => !file.startsWith("offline/")); // those read like what they stand for
  assertEquals(
    files.flatMap((file) => strangeIn(file, Deno.readTextFileSync(new URL(file, ROOT)))),
    [],
  );
  const strange = [
    "interface Shape {",
    "/** @throws {UserError} if it is missing. */",
    "enum Kind {",
    "export default 1;",
    "  private x = 1;",
  ];
  assertEquals(strangeIn("a.ts", strange.join("\n")).length, DIALECT.length);
});

function strangeIn(file: string, source: string): string[] {
  return source.split("\n").flatMap((line, i) =>
    DIALECT.filter(([pattern]) => pattern.test(line)).map(([, way]) => `${file}:${i + 1}: write ${way}`)
  );
}

/** Paths of all TypeScript files in the layers, relative to the root. */
function sourceFiles(): string[] {
  const files = sourcesIn(Object.keys(ALLOWED));
  assert(files.length > 0);
  return files;
}

function importsOf(files: string[]): Import[] {
  return files.flatMap((file) =>
    specifiersOf(Deno.readTextFileSync(new URL(file, ROOT))).map((specifier) => ({ file, specifier }))
  );
}

/** What a source imports or starts as a worker. */
function specifiersOf(source: string): string[] {
  const pattern =
    /(?:^import\s*|^(?:import|export)\b[^"'`;(=]*\bfrom\s*|\bimport\(\s*|\bnew Worker\(\s*new URL\(\s*)"([^"]+)"/gm;
  return [...source.matchAll(pattern)].map((match) => match[1]!);
}

function targetOf(file: string, specifier: string): string {
  return new URL(specifier, new URL(file, ROOT)).pathname.slice(ROOT.pathname.length);
}

function layerOf(path: string): string {
  return path.includes("/") ? path.slice(0, path.indexOf("/")) : "";
}
