import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { openRuns, parseOptions } from "./options.ts";
import { FakeRun } from "./testing.ts";

Deno.test("parseOptions() serves one run on this machine unless told otherwise", () => {
  const defaults = { runs: ["runs/a"], checkpoint: "", device: "", port: 8000, host: "127.0.0.1" };
  assertEquals(parseOptions(["--run", "runs/a"]), defaults);
  assertEquals(parseOptions(["--run=runs/a"]), defaults);
  assertEquals(parseOptions(["--run", "runs/a", "runs/b", "--run", "c"]).runs, ["runs/a", "c", "runs/b"]);
  assertEquals(parseOptions(["--checkpoint", "runs/a", "--device=cpu", "--port", "0", "--host=::1"]), {
    runs: [],
    checkpoint: "runs/a",
    device: "cpu",
    port: 0,
    host: "::1",
  });
});

Deno.test("parseOptions() refuses what it does not understand", () => {
  const cases: [string[], string][] = [
    [[], "Cannot serve nothing: name a run with --run runs/..."],
    [["--prot=1"], "there is no such flag; did you mean --port?"],
    [["--run", "a", "--port"], "Cannot use --port: it needs a value"],
    [["--run", "a", "--port=http"], "Cannot use port http: it must be a whole number from 0 to 65535"],
    [["--run", "a", "--port=65536"], "Cannot use port 65536"],
    [["--run", "a", "--port=-1"], "Cannot use port -1"],
    [["--run", "a", "--port=0x50"], "Cannot use port 0x50"],
    [["--run="], "Cannot use --run: it needs a directory"],
  ];
  for (const [args, message] of cases) {
    assertThrows(() => parseOptions(args), UserError, message, args.join(" "));
  }
});

Deno.test("openRuns() names runs by their directories, with those above where these are called the same", () => {
  using a = new FakeRun(1, { name: "a" });
  using b = new FakeRun(1, { name: "b" });
  using other = new FakeRun(1, { name: "a" });
  assertEquals(openRuns([a.dir, `${b.dir}/`, b.dir]).map(({ name }) => name), ["a", "b"]);
  const names = openRuns([a.dir, b.dir, other.dir]).map(({ name }) => name);
  assertEquals(
    names,
    [a, b, other].map(({ dir }) => dir.split("/").slice(dir === b.dir ? -1 : -2).join("/")),
  );
  Deno.symlinkSync(a.dir, `${b.dir}/link`); // which whoever starts the server may name
  assertEquals(openRuns([`${b.dir}/link`]).map(({ name, dir }) => [name, dir]), [["link", a.dir]]);
});

Deno.test("openRuns() says which directory is missing or no run", () => {
  using fake = new FakeRun(1);
  Deno.mkdirSync(`${fake.dir}/empty`);
  assertThrows(() => openRuns([`${fake.dir}/none`]), UserError, "there is no such directory");
  assertThrows(() => openRuns([`${fake.dir}/empty`]), UserError, "it holds no run");
  assertThrows(() => openRuns([`${fake.dir}/config.json`]), UserError, "it holds no run");
});
