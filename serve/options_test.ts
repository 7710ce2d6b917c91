import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { openRuns, parseOptions } from "./options.ts";
import { FakeRun } from "./testing.ts";

Deno.test("parseOptions() serves one run on this machine unless told otherwise", () => {
  const defaults = {
    run: ["runs/a"],
    checkpoint: "",
    device: "",
    dtype: "auto",
    port: 8000,
    host: "127.0.0.1",
    cors: [],
  };
  assertEquals(parseOptions(["--run", "runs/a"]), defaults);
  assertEquals(parseOptions(["--run=runs/a"]), defaults);
  assertEquals(parseOptions(["runs/a"]), defaults);
  assertEquals(parseOptions(["--run", "runs/a", "runs/b", "--run", "c"]).run, ["runs/a", "runs/b", "c"]);
  assertEquals(parseOptions(["--checkpoint", "runs/a", "--device=cpu", "--port", "0", "--host=::1"]), {
    run: [],
    checkpoint: "runs/a",
    device: "cpu",
    dtype: "auto",
    port: 0,
    host: "::1",
    cors: [],
  });
  const origins = ["http://localhost:3000", "chrome-extension://abcdef"];
  assertEquals(parseOptions(["runs/a", ...origins.flatMap((origin) => ["--cors", origin])]).cors, origins);
});

Deno.test("parseOptions() refuses what it does not understand", () => {
  const cases: [string[], string][] = [
    [[], "Cannot serve nothing: name a run or a directory of runs, such as runs"],
    [["--prot=1"], "there is no such flag; did you mean --port?"],
    [["--run", "a", "--port"], "Cannot use --port: it needs a value"],
    [["--run", "a", "--port=http"], "Cannot use --port=http: it should be a whole number from 0 to 65535"],
    [["--run", "a", "--port=65536"], "Cannot use --port=65536"],
    [["--run", "a", "--port=-1"], "Cannot use --port=-1"],
    [["--run", "a", "--port=0x50"], "Cannot use --port=0x50"],
    [["--run="], "Cannot use --run: it needs a value"],
    ...["*", "localhost:3000", "http://a/", "http://a/b", "http://a:80", "http://A", "http://b@a"].map((
      origin,
    ): [string[], string] => [
      ["--run", "a", `--cors=${origin}`],
      `Cannot use --cors=${origin}: it should be`,
    ]),
  ];
  for (const [args, message] of cases) {
    assertThrows(() => parseOptions(args), UserError, message, args.join(" "));
  }
});

Deno.test("openRuns() names runs by their directories, with those above where these are called the same", () => {
  using a = new FakeRun(1, { name: "a" });
  using b = new FakeRun(1, { name: "b" });
  using other = new FakeRun(1, { name: "a" });
  assertEquals(openRuns([a.dir, `${b.dir}/`, b.dir]).runs.map(({ name }) => name), ["a", "b"]);
  const names = openRuns([a.dir, b.dir, other.dir]).runs.map(({ name }) => name);
  assertEquals(
    names,
    [a, b, other].map(({ dir }) => dir.split("/").slice(dir === b.dir ? -1 : -2).join("/")),
  );
  Deno.symlinkSync(a.dir, `${b.dir}/link`); // which whoever starts the server may name
  assertEquals(openRuns([`${b.dir}/link`]).runs.map(({ name, dir }) => [name, dir]), [["link", a.dir]]);
});

/** A directory of runs with these names, each of one step. */
function directoryOfRuns(...names: string[]): { path: string; add: (name: string) => void } & Disposable {
  const root = Deno.realPathSync(Deno.makeTempDirSync({ prefix: "loam_" })), path = `${root}/runs`;
  const add = (name: string) => {
    Deno.mkdirSync(`${path}/${name}`, { recursive: true });
    Deno.writeTextFileSync(`${path}/${name}/metrics.jsonl`, '{"step":1}\n');
  };
  Deno.mkdirSync(path);
  names.forEach(add);
  return { path, add, [Symbol.dispose]: () => Deno.removeSync(root, { recursive: true }) };
}

Deno.test("openRuns() of a directory takes the runs in it, and look() those that come", () => {
  using directory = directoryOfRuns("b", "a");
  const { path, add } = directory;
  const named = new FakeRun(1, { name: "a" });
  Deno.mkdirSync(`${path}/no_run`);
  Deno.writeTextFileSync(`${path}/notes.txt`, "");
  Deno.symlinkSync(named.dir, `${path}/link`);
  const { runs, look } = openRuns([`${path}/`]),
    names = () => runs.map(({ name, isFound }) => [name, isFound]);
  assertEquals(names(), [["a", true], ["b", true]]);
  look();
  assertEquals(names(), [["a", true], ["b", true]]);
  for (const name of ["no_run", "c"]) add(name);
  look();
  assertEquals(names(), [["a", true], ["b", true], ["c", true], ["no_run", true]]);
  Deno.removeSync(path, { recursive: true });
  look();
  named[Symbol.dispose]();
});

Deno.test("openRuns() tells found runs from named ones, whose names stay", () => {
  using directory = directoryOfRuns("a", "b");
  const { path, add } = directory;
  using other = new FakeRun(1, { name: "c" });
  const { runs, look } = openRuns([other.dir, path, `${path}/b`]);
  const expected = [["c", false], ["b", false], ["a", true]];
  assertEquals(runs.map(({ name, isFound }) => [name, isFound]), expected);
  add("c");
  look();
  assertEquals(runs.map(({ name, isFound }) => [name, isFound]), [...expected, ["runs/c", true]]);
});

Deno.test("openRuns() takes a directory in which no run is yet, but none of other files", () => {
  using directory = directoryOfRuns();
  const { path, add } = directory;
  Deno.mkdirSync(`${path}/lost+found`);
  const { runs, look } = openRuns([path]);
  assertEquals(runs, []);
  add("a");
  look();
  assertEquals(runs.map(({ name }) => name), ["a"]);
  Deno.removeSync(`${path}/a`, { recursive: true });
  Deno.writeTextFileSync(`${path}/meta.json`, "{}");
  assertThrows(() => openRuns([path]), UserError, "it holds no run");
});

Deno.test("openRuns() says which directory is missing or no run", () => {
  using fake = new FakeRun(1);
  Deno.mkdirSync(`${fake.dir}/empty`);
  Deno.writeTextFileSync(`${fake.dir}/empty/notes.txt`, "");
  assertThrows(() => openRuns([`${fake.dir}/none`]), UserError, "there is no such directory");
  assertThrows(() => openRuns([`${fake.dir}/empty`]), UserError, "it holds no run");
  assertThrows(() => openRuns([`${fake.dir}/config.json`]), UserError, "it holds no run");
});
