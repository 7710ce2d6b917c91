import { assertEquals } from "@std/assert";
import { splitOf } from "./contents.ts";
import { type FindOptions, findSources } from "./inputs.ts";
import { assertRefused } from "./testing.ts";
import { withFiles } from "../testing.ts";

Deno.test("splitOf() finds the split that a file or its directory is named for", () => {
  const named: [string, string | undefined][] = [
    ["data/train-00000-of-00002.parquet", "train"],
    ["validation-00000-of-00001.parquet", "validation"],
    ["en/c4-validation.00000-of-00008.json.gz", "validation"],
    ["wikitext/wiki.test.txt", "test"],
    ["wiki_VAL.jsonl", "validation"],
    ["dev.jsonl", "validation"],
    ["train_sft-00000-of-00003.parquet", "train"],
    ["test/a/000.parquet", "test"],
    ["train/eval_000.jsonl", "test"],
    ["training/0.jsonl", "train"],
    ["a.jsonl", undefined],
    ["trains/contest.txt", undefined],
    ["latest_value.txt", undefined],
    ["train-set/a.txt", undefined],
  ];
  for (const [path, split] of named) assertEquals(splitOf(path), split, path);
});

/** The files that a pattern in a directory names, and what is reported, in which the directory is DIR. */
async function find(
  dir: string,
  pattern: string,
  options: Partial<FindOptions> = {},
): Promise<[string[], string[]]> {
  const lines: string[] = [], report = (line: string) => lines.push(line.replaceAll(dir, "DIR"));
  const [source] = await findSources([dir + pattern], { column: "text", report, ...options });
  return [source!.inputs.map(({ name }) => name.slice(dir.length + 1)), lines];
}

Deno.test("findSources() reads names in capitals and .ndjson, and says what of a directory is left out", () =>
  withFiles({
    "a.jsonl": "{}",
    "b.JSONL": "{}",
    "c.ndjson": "{}",
    "sub/D.Txt": "d",
    "e.json.GZ": "e",
    "f.Ndjson.zst": "f",
    "README.md": "no",
    "clean.py": "no",
    "sub/clean.py": "no",
    "Makefile": "no",
    "parquet": "no",
    "sub/dataset_infos.json": "{\n}",
    "tokenizer.json": "{\n}",
    ".git/x.txt": "hidden",
  }, async (dir) => {
    assertEquals(await find(dir, ""), [
      ["a.jsonl", "b.JSONL", "c.ndjson", "e.json.GZ", "f.Ndjson.zst", "sub/D.Txt"],
      [
        "DIR: 6 files (2 .jsonl, 1 .json.gz, 1 .ndjson, 1 .ndjson.zst, 1 .txt)",
        "DIR: left out 1 dataset_infos.json, 1 tokenizer.json",
        "DIR: left out 2 .py, 2 without ending, 1 .md, which cannot be read",
      ],
    ]);
    assertEquals(await find(dir, "/sub"), [["sub/D.Txt"], [
      "DIR/sub: 1 file (1 .txt)",
      "DIR/sub: left out 1 dataset_infos.json",
      "DIR/sub: left out 1 .py, which cannot be read",
    ]]);
    assertEquals(await find(dir, "/*.ndjson"), [["c.ndjson"], []]);
  }));

const SPLITS = {
  "data/train-0.jsonl": "{}",
  "data/train-1.jsonl": "{}",
  "data/validation-0.jsonl": "{}",
  "data/test-0.jsonl": "{}",
  "more.jsonl": "{}",
};

Deno.test("findSources() leaves out validation and test data, or reads the split that is asked for", () =>
  withFiles(SPLITS, async (dir) => {
    assertEquals(await find(dir, ""), [["data/train-0.jsonl", "data/train-1.jsonl", "more.jsonl"], [
      "DIR: 3 files (3 .jsonl)",
      "DIR: left out 1 of split test, 1 of split validation (--split reads them)",
    ]]);
    assertEquals(await find(dir, "", { split: "train" }), [["data/train-0.jsonl", "data/train-1.jsonl"], [
      "DIR: 2 files (2 .jsonl)",
      "DIR: left out 1 of no split, 1 of split test, 1 of split validation (--split reads them)",
    ]]);
    for (const split of ["validation", "val", "dev"]) {
      assertEquals((await find(dir, "", { split }))[0], ["data/validation-0.jsonl"]);
    }
    assertEquals(await find(dir, "/data/*"), [
      ["data/test-0.jsonl", "data/train-0.jsonl", "data/train-1.jsonl", "data/validation-0.jsonl"],
      ["DIR/data/*: reads all its splits, 2 train, 1 test, 1 validation; --split train reads one"],
    ]);
    assertEquals(await find(dir, "/data/*", { split: "test" }), [["data/test-0.jsonl"], []]);
    assertEquals(await find(dir, "/data/test-0.jsonl"), [["data/test-0.jsonl"], []]);
    await assertRefused(
      () => find(dir, "", { split: "extra" }),
      `Cannot find input: "${dir}" has no file of split extra, it has 2 of split train, 1 of no split, ` +
        "1 of split test, 1 of split validation; choose one, such as --split train",
    );
  }));

Deno.test("findSources() takes a split of any name, and no directory of test data alone", () =>
  withFiles({
    "train_sft-0.jsonl": "{}",
    "train_gen-0.jsonl": "{}",
    "test/a/test_gen.jsonl": "{}",
    "test/b.jsonl": "{}",
  }, async (dir) => {
    assertEquals((await find(dir, "", { split: "train_gen" }))[0], ["train_gen-0.jsonl"]);
    assertEquals((await find(dir, "", { split: "a" }))[0], ["test/a/test_gen.jsonl"]);
    assertEquals((await find(dir, "", { split: "train" }))[0], ["train_gen-0.jsonl", "train_sft-0.jsonl"]);
    assertEquals((await find(dir, "/test/b.jsonl"))[0], ["test/b.jsonl"]);
    assertEquals((await find(dir, "/test"))[0], ["test/b.jsonl"]); // its own name is not looked at
    await assertRefused(
      () => find(dir, "/test/a"),
      `Cannot find input: "${dir}/test/a" has no file of split train, it has 1 of split test; ` +
        "choose one, such as --split test",
    );
  }));

Deno.test("findSources() takes nothing that prepare writes to the directory of the dataset", () =>
  withFiles({
    "a.jsonl": "{}",
    "ds/train_000000.bin": "x",
    "ds/meta.json": "{\n}",
    "ds/tokenizer.json": "{\n}",
    "ds/unfinished/state.json": "{}",
    "ds/part_1_of_2/unfinished/x.json": "{}",
    "ds/notes.txt": "mine",
  }, async (dir) => {
    const lines = ["DIR: 2 files (1 .jsonl, 1 .txt)"];
    assertEquals(await find(dir, "", { out: `${dir}/ds` }), [["a.jsonl", "ds/notes.txt"], lines]);
    assertEquals(await find(dir, "/**", { out: `${dir}/./ds/` }), [["a.jsonl", "ds/notes.txt"], []]);
    assertEquals(await find(dir, "/ds", { out: `${dir}/ds` }), [["ds/notes.txt"], [
      "DIR/ds: 1 file (1 .txt)",
    ]]);
    const other = ["ds/notes.txt", "ds/part_1_of_2/unfinished/x.json"]; // of no dataset there
    assertEquals((await find(dir, "/ds", { out: dir }))[0], other);
  }));
