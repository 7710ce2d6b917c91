import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { findInputs, readDocuments } from "./documents.ts";

/** Runs with a directory of files, and removes it. */
function withFiles(files: Record<string, string | Uint8Array>, run: (directory: string) => void): void {
  const directory = Deno.makeTempDirSync();
  try {
    for (const [name, content] of Object.entries(files)) {
      Deno.mkdirSync(`${directory}/${name}`.replace(/\/[^/]*$/, ""), { recursive: true });
      if (typeof content === "string") Deno.writeTextFileSync(`${directory}/${name}`, content);
      else Deno.writeFileSync(`${directory}/${name}`, content);
    }
    run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

function read(path: string, options: { column?: string; separator?: string } = {}): (string | null)[] {
  const [input] = findInputs([path], "text");
  const batches = readDocuments(input!, { column: "text", separator: "", ...options });
  return Array.from(batches).flatMap((batch) => batch.texts);
}

Deno.test("findInputs() expands globs in the order of the names and takes each file once", () =>
  withFiles(
    { "b.txt": "b", "a.txt": "a", "c.jsonl": "{}", "sub/d.txt": "d", "sub/deep/e.txt": "e" },
    (dir) => {
      const names = (...patterns: string[]) =>
        findInputs(patterns.map((pattern) => `${dir}/${pattern}`), "text").map(({ path }) =>
          path.slice(dir.length + 1)
        );
      assertEquals(names("*.txt"), ["a.txt", "b.txt"]);
      assertEquals(names("b.txt", "*.txt"), ["b.txt", "a.txt"]);
      assertEquals(names("?.jsonl"), ["c.jsonl"]);
      assertEquals(names("*/*.txt"), ["sub/d.txt"]);
      assertEquals(names("**/*.txt"), ["a.txt", "b.txt", "sub/d.txt", "sub/deep/e.txt"]);
    },
  ));

Deno.test("findInputs() explains what it cannot read", () =>
  withFiles({ "empty.txt": "", "a.csv": "x", "sub/a.txt": "a" }, (dir) => {
    const fails = (name: string, message: string) =>
      assertThrows(() => findInputs([`${dir}/${name}`], "text"), UserError, message.replace("DIR", dir));
    fails("missing.txt", 'Cannot read "DIR/missing.txt": there is no such file');
    fails("empty.txt", 'Cannot read "DIR/empty.txt": it is empty');
    fails("a.csv", 'Cannot read "DIR/a.csv": its name should end in .parquet, .jsonl, .txt');
    fails("sub", 'Cannot read "DIR/sub": it is a directory; name its files, such as');
    fails("*.parquet", 'Cannot find input: no file matches "DIR/*.parquet"');
    fails("nowhere/*.txt", 'Cannot find input: no file matches "DIR/nowhere/*.txt"');
  }));

Deno.test("readDocuments() takes a .txt file as one document", () =>
  withFiles(
    { "a.txt": "\ufeffone\n\ntwo\n" },
    (dir) => assertEquals(read(`${dir}/a.txt`), ["one\n\ntwo\n"]),
  ));

Deno.test("readDocuments() splits a .txt file at the separator", () =>
  withFiles({ "a.txt": "one\n\ntwo\n\n\n\nthree\n\n" }, (dir) => {
    assertEquals(read(`${dir}/a.txt`, { separator: "\n\n" }), ["one", "two", "", "three"]);
  }));

Deno.test("readDocuments() splits at separators and characters that lie across reads", () => {
  const parts = Array.from({ length: 400 }, (_, i) => "é👍".repeat(i * 7)); // about 3 MB
  withFiles({ "a.txt": parts.join("<|endoftext|>") }, (dir) => {
    assertEquals(read(`${dir}/a.txt`, { separator: "<|endoftext|>" }), parts);
  });
});

Deno.test("readDocuments() reads a field of each jsonl line", () =>
  withFiles({ "a.jsonl": '{"text":"one"}\r\n\n{"text":null,"x":1}\n{"text":"l\\ud800"}' }, (dir) => {
    assertEquals(read(`${dir}/a.jsonl`), ["one", null, "l\ufffd"]);
  }));

Deno.test("readDocuments() names file and line of a broken jsonl line", () =>
  withFiles({
    "broken.jsonl": '{"text":"one"}\n{"text":"tw',
    "field.jsonl": '{"text":"one"}\n{"body":"two","id":2}\n',
    "number.jsonl": '{"text":1}\n',
  }, (dir) => {
    const fails = (name: string, message: string) =>
      assertThrows(() => read(`${dir}/${name}`), UserError, message.replace("DIR", dir));
    fails("broken.jsonl", "Cannot read DIR/broken.jsonl:2: Unterminated string in JSON");
    fails(
      "field.jsonl",
      'DIR/field.jsonl:2: it has no field "text"; choose one with --column, it has: body, id',
    );
    fails("number.jsonl", 'DIR/number.jsonl:1: field "text" is 1, should be a text');
  }));
