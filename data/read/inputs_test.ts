import { assertEquals } from "@std/assert";
import { findSources, formatOf } from "./inputs.ts";
import { assertRefused } from "./testing.ts";
import { withFiles } from "../testing.ts";

const ENDINGS = ".parquet, .jsonl, .ndjson, .json or .txt, all but the first perhaps with .gz or .zst";

Deno.test("formatOf() goes by the end of the name", () => {
  const kinds: [string, string | undefined, string?][] = [
    ["a.parquet", "parquet", ""],
    ["dir/a.jsonl", "jsonl", ""],
    ["c4-train.00000-of-01024.json.gz", "jsonl", "gz"],
    ["a.jsonl.zst", "jsonl", "zst"],
    ["a.txt.gz", "txt", "gz"],
    ["https://example.org/a.parquet?download=true", "parquet", ""],
    ["a.parquet.gz", undefined],
    ["a.csv", undefined],
    [".txt", undefined],
    ["txt", undefined],
    ["https://example.org/?a.txt", undefined],
  ];
  for (const [name, kind, compression] of kinds) {
    assertEquals(formatOf(name), kind === undefined ? undefined : { kind, compression } as never, name);
  }
});

Deno.test("findSources() expands globs and directories in the order of the names", () =>
  withFiles({
    "b.txt": "b",
    "a.txt": "a",
    "c.jsonl": "{}",
    "README.md": "x",
    ".hidden/h.txt": "h",
    ".h.txt": "h",
    "sub/d.txt": "d",
    "sub/deep/e.txt": "e",
  }, async (dir) => {
    const names = async (...patterns: string[]) => {
      const sources = await findSources(patterns.map((pattern) => dir + pattern), { column: "text" });
      assertEquals(sources.map(({ pattern }) => pattern), patterns.map((pattern) => dir + pattern));
      return sources.map(({ inputs }) => inputs.map(({ name }) => name.slice(dir.length + 1)));
    };
    assertEquals(await names("/*.txt"), [["a.txt", "b.txt"]]);
    assertEquals(await names("/c.jsonl", "/*.txt"), [["c.jsonl"], ["a.txt", "b.txt"]]);
    assertEquals(await names("/?.jsonl"), [["c.jsonl"]]);
    assertEquals(await names("/*/*.txt"), [["sub/d.txt"]]);
    assertEquals(await names("/**/*.txt"), [["a.txt", "b.txt", "sub/d.txt", "sub/deep/e.txt"]]);
    assertEquals(await names(""), [["a.txt", "b.txt", "c.jsonl", "sub/d.txt", "sub/deep/e.txt"]]);
    assertEquals(await names("/sub/"), [["sub/d.txt", "sub/deep/e.txt"]]);
    assertEquals(await names("/.hidden/*.txt"), [[".hidden/h.txt"]]);
  }));

Deno.test("findSources() follows links to directories, but not back up", () =>
  withFiles({ "far/a.txt": "a", "far/b.txt": "b", "in/c.txt": "c" }, async (dir) => {
    Deno.symlinkSync("../far", `${dir}/in/link`);
    Deno.symlinkSync("..", `${dir}/in/top`);
    const names = async (pattern: string) => {
      const [source] = await findSources([dir + pattern], { column: "text" });
      return source!.inputs.map(({ name }) => name.slice(dir.length + 1));
    };
    assertEquals(await names("/in/*/*.txt"), ["in/link/a.txt", "in/link/b.txt"]);
    assertEquals(await names("/in"), ["in/c.txt", "in/link/a.txt", "in/link/b.txt"]);
  }));

Deno.test("findSources() gives size and time of each file", () =>
  withFiles({ "a.txt": "abc" }, async (dir) => {
    Deno.utimeSync(`${dir}/a.txt`, 1, 2.5);
    assertEquals(await findSources([`${dir}/a.txt`], { column: "text" }), [{
      pattern: `${dir}/a.txt`,
      weight: null,
      inputs: [{ name: `${dir}/a.txt`, bytes: 3, version: "1970-01-01T00:00:02.500Z" }],
    }]);
  }));

Deno.test("findSources() takes weights, of all patterns or of none", () =>
  withFiles({ "a.txt": "a", "b.txt": "b", "c:2.txt": "c" }, async (dir) => {
    const weights = async (...patterns: string[]) =>
      (await findSources(patterns, { column: "text" })).map(({ weight }) => weight);
    assertEquals(await weights(`${dir}/a.txt:0.8`, `${dir}/b.*:3`), [0.8, 3]);
    assertEquals(await weights(`${dir}/c:2.txt`), [null]);
    await assertRefused(
      () => weights(`${dir}/a.txt:0`),
      `Cannot use --input ${dir}/a.txt:0: its weight is 0, should be above 0`,
    );
    await assertRefused(
      () => weights(`${dir}/a.txt`, `${dir}/b.txt:.5`),
      `Cannot mix --input ${dir}/b.txt:.5 with --input ${dir}/a.txt: one has a weight and the other has none; ` +
        `give every --input one, such as ${dir}/a.txt:1`,
    );
  }));

Deno.test("findSources() takes a name with a colon for a path if there is one", () =>
  withFiles({ "snap:2024/a.txt": "a", "b.txt:3": "b", "c.txt": "c" }, async (dir) => {
    const found = async (pattern: string) => {
      const [source] = await findSources([`${dir}/${pattern}`], { column: "text" });
      return [source!.weight, source!.inputs.map(({ name }) => name.replace(`${dir}/`, ""))];
    };
    assertEquals(await found("snap:2024"), [null, ["snap:2024/a.txt"]]);
    assertEquals(await found("snap:2024:0.5"), [0.5, ["snap:2024/a.txt"]]);
    assertEquals(await found("snap:2024/a.txt:2"), [2, ["snap:2024/a.txt"]]);
    assertEquals(await found("c.txt:3"), [3, ["c.txt"]]);
    await assertRefused(
      () => found("b.txt:3"),
      `Cannot read "${dir}/b.txt:3": its name should end in ${ENDINGS}`,
    );
  }));

Deno.test("findSources() refuses to read a file twice, however it is named", () =>
  withFiles({ "a.txt": "a", "b.txt": "b", "sub/c.txt": "c" }, async (dir) => {
    Deno.symlinkSync(`${dir}/a.txt`, `${dir}/sub/link.txt`);
    for (const other of ["a.txt", "*.txt", "./sub/../a.txt", "sub/link.txt", "sub"]) {
      const name = other === "*.txt" ? "a.txt" : other === "sub" ? "sub/link.txt" : other;
      await assertRefused(
        () => findSources([`${dir}/a.txt`, `${dir}/${other}`], { column: "text" }),
        `Cannot read "${dir}/${name}" twice: --input ${dir}/a.txt and --input ${dir}/${other} both name it; ` +
          "leave one of them out",
      );
    }
  }));

Deno.test("findSources() explains what it cannot read", () =>
  withFiles({ "empty.txt": "", "a.csv": "x", "a.parquet": "x", "no/README.md": "a" }, async (dir) => {
    const messages: [string, string][] = [
      ["missing.txt", 'Cannot read "DIR/missing.txt": there is no such file'],
      ["a.csv/b.txt", 'Cannot read "DIR/a.csv/b.txt": there is no such file'],
      ["empty.txt", 'Cannot read "DIR/empty.txt": it is empty'],
      ["a.csv", `Cannot read "DIR/a.csv": its name should end in ${ENDINGS}`],
      ["a.parquet", 'Cannot read "DIR/a.parquet": it is not a parquet file, which begins with PAR1'],
      ["no", `Cannot find input: directory "DIR/no" has no file whose name ends in ${ENDINGS}`],
      ["*.jsonl", 'Cannot find input: no file matches "DIR/*.jsonl"'],
      ["nowhere/*.txt", 'Cannot find input: no file matches "DIR/nowhere/*.txt"'],
    ];
    for (const [name, message] of messages) {
      await assertRefused(
        () => findSources([`${dir}/${name}`], { column: "text" }),
        message.replace("DIR", dir),
      );
    }
    await assertRefused(
      () => findSources(["hf://datasets/name.parquet"], { column: "text" }),
      'Cannot read "hf://datasets/name.parquet": it should be like hf://datasets/OWNER/NAME/PATH ' +
        "or hf://datasets/OWNER/NAME@REVISION/PATH",
    );
  }));
