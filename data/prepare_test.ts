import { assert, assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { type Dataset, readTokens, verifyDataset } from "./bins.ts";
import type { Meta } from "./meta.ts";
import { parseOptions } from "./options.ts";
import { prepare } from "./prepare.ts";
import { openTokenizer } from "./tokenizer.ts";

const root = new URL("../", import.meta.url).pathname;
const fixtures = `${root}tests/fixtures/`;
const silent = () => ({ advance: () => Promise.resolve(), stop: () => Promise.resolve() });

/** Runs in an empty directory. */
async function inDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = Deno.makeTempDirSync({ dir: "/tmp" }); // which the permission set "prepare" may write to
  try {
    await run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

function runPrepare(...args: string[]): Promise<{ meta: Meta; empty: number }> {
  return prepare(parseOptions(args), silent);
}

/** The documents of a split, decoded; each begins with the end-of-text token. */
async function documentsOf(dataset: Dataset, split: "train" | "val"): Promise<string[]> {
  const tokenizer = await openTokenizer(dataset.tokenizer!);
  const ids = dataset[split].flatMap((shard) => Array.from(readTokens(shard, 0, shard.tokens)));
  assertEquals(ids[0], dataset.eot);
  const documents: number[][] = [];
  for (const id of ids) {
    if (id === dataset.eot) documents.push([]);
    else documents.at(-1)!.push(id);
  }
  return documents.map((document) => tokenizer.decode(document));
}

function jsonl(path: string, texts: string[]): void {
  Deno.writeTextFileSync(path, texts.map((text) => JSON.stringify({ text })).join("\n"));
}

const texts = Array.from(
  { length: 50 },
  (_, i) => `Document ${i}. ` + "More of it, <|endoftext|> too. ".repeat(i % 5),
);

for (const tokenizer of ["gpt2", "bytes"]) {
  Deno.test(`prepare() keeps every document whole with ${tokenizer}`, () =>
    inDirectory(async (dir) => {
      jsonl(`${dir}/a.jsonl`, texts);
      const flags = [`--tokenizer=${tokenizer}`, "--val_fraction=0.3", "--shard_tokens=500"];
      const { meta } = await runPrepare("--input", `${dir}/a.jsonl`, "--out", `${dir}/out`, ...flags);
      const dataset = verifyDataset(`${dir}/out`);
      const train = await documentsOf(dataset, "train"), val = await documentsOf(dataset, "val");
      assertEquals([...train, ...val].toSorted(), texts.toSorted());
      assert(dataset.train.length > 1);
      assertEquals([meta.train.documents, meta.val.documents], [train.length, val.length]);
      assertEquals(meta.train.tokens, dataset.train.reduce((sum, { tokens }) => sum + tokens, 0));
      assertEquals(meta.train.bytes, new TextEncoder().encode(train.join("")).length);
      assertEquals(meta.inputs, [{ name: `${dir}/a.jsonl`, bytes: Deno.statSync(`${dir}/a.jsonl`).size }]);
    }));
}

Deno.test("prepare() splits by the text of a document, not by its place", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, texts);
    jsonl(`${dir}/b.jsonl`, texts.toReversed());
    const flags = ["--tokenizer=bytes", "--val_fraction=0.3"];
    const val = async (file: string, ...more: string[]) => {
      await runPrepare("--input", `${dir}/${file}`, "--out", `${dir}/out`, "--overwrite", ...flags, ...more);
      return (await documentsOf(verifyDataset(`${dir}/out`), "val")).toSorted();
    };
    const first = await val("a.jsonl");
    assertEquals(await val("b.jsonl"), first);
    assert((await val("a.jsonl", "--seed=1")).join() !== first.join());
  }));

Deno.test("prepare() writes the same files again from the same input", () =>
  inDirectory(async (dir) => {
    const one = await runPrepare(
      "--input",
      `${fixtures}texts.parquet`,
      "--out",
      `${dir}/one`,
      "--val_fraction=0.2",
    );
    const two = await runPrepare(
      "--input",
      `${fixtures}texts.parquet`,
      "--out",
      `${dir}/two`,
      "--val_fraction=0.2",
    );
    assertEquals(one, two);
  }));

Deno.test("prepare() reads parquet, jsonl and text together and counts what has no text", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, ["one", "", "two"]);
    Deno.writeTextFileSync(`${dir}/b.txt`, "three\n---\nfour");
    const inputs = [`${fixtures}texts_zstd.parquet`, `${dir}/*.*`];
    const flags = ["--val_fraction=0.2", "--separator=\\n---\\n"];
    const { meta, empty } = await runPrepare("--input", ...inputs, "--out", `${dir}/out`, ...flags);
    assertEquals(empty, 48 + 1); // rows of the parquet file without text, and one line
    assertEquals(meta.train.documents + meta.val.documents, 300 - 48 + 4);
    assertEquals(meta.options.separator, "\n---\n");
  }));

Deno.test("prepare() reads no more documents than --limit", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, texts);
    const { meta } = await runPrepare(
      "--input",
      `${dir}/a.jsonl`,
      "--out",
      `${dir}/out`,
      "--limit=20",
      "--val_fraction=.5",
    );
    assertEquals(meta.train.documents + meta.val.documents, 20);
  }));

Deno.test("prepare() takes a tokenizer from a directory and puts it beside the dataset", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, texts);
    const files = (await openTokenizer("bytes")).files();
    for (const [name, text] of Object.entries(files)) {
      Deno.writeTextFileSync(`${dir}/${name}`, text.replace("loam_tokenizer", "other_key"));
    }
    const { meta } = await runPrepare(
      "--input",
      `${dir}/a.jsonl`,
      "--out",
      `${dir}/out`,
      `--tokenizer=${dir}`,
      "--val_fraction=.3",
    );
    assertEquals([meta.tokenizer, meta.vocab_size], [".", 257]);
    const dataset = verifyDataset(`${dir}/out`);
    assertEquals(dataset.tokenizer, `${dir}/out`);
    const documents = [...await documentsOf(dataset, "train"), ...await documentsOf(dataset, "val")];
    assertEquals(documents.toSorted(), texts.toSorted());
  }));

/** Checks that preparing fails with one line and leaves the directory as it was. */
async function fails(dir: string, args: string[], message: string): Promise<void> {
  const before = Array.from(Deno.readDirSync(dir), (entry) => entry.name).sort();
  const error = await assertRejects(() => runPrepare(...args, "--out", `${dir}/out`), UserError);
  assertEquals(error.message.replaceAll(dir, "DIR"), message);
  assertEquals(error.message.includes("\n"), false);
  assertEquals(Array.from(Deno.readDirSync(dir), (entry) => entry.name).sort(), before);
}

Deno.test("prepare() stops at a broken line in the middle and leaves nothing half-written", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, texts);
    Deno.writeTextFileSync(`${dir}/a.jsonl`, '\n{"text": oops}\n', { append: true });
    await fails(
      dir,
      ["--input", `${dir}/a.jsonl`, "--shard_tokens=100"],
      'Cannot read DIR/a.jsonl:51: Unexpected token \'o\', "{"text": oops}" is not valid JSON; ' +
        "each line should be one JSON object",
    );
  }));

Deno.test("prepare() names a fraction that gives both splits documents", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, texts.slice(0, 10));
    const input = ["--input", `${dir}/a.jsonl`];
    const none = 'Cannot split the 10 documents of "DIR/a.jsonl" with --val_fraction=';
    await fails(dir, [...input], `${none}0.005: none is left for val; use more input or --val_fraction=0.2`);
    await fails(
      dir,
      [...input, "--val_fraction=0.999"],
      `${none}0.999: none is left for train; use more input or --val_fraction=0.2`,
    );
    await runPrepare(...input, "--out", `${dir}/out`, "--val_fraction=0.2");
  }));

Deno.test("prepare() says that one document cannot be split", () =>
  inDirectory(async (dir) => {
    Deno.writeTextFileSync(`${dir}/a.txt`, "all one\n\ndocument");
    await fails(
      dir,
      ["--input", `${dir}/a.txt`],
      'Cannot split "DIR/a.txt" into train and val: it has one document only; give more, or say what separates ' +
        "the documents of a .txt file, such as --separator='\\n\\n'",
    );
  }));

Deno.test("prepare() says that --limit leaves one document only", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, texts);
    await fails(
      dir,
      ["--input", `${dir}/a.jsonl`, "--limit=1"],
      'Cannot split "DIR/a.jsonl" into train and val: --limit=1 leaves one document only; use a larger --limit',
    );
  }));

Deno.test("prepare() says that there are no documents", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, ["", ""]);
    await fails(
      dir,
      ["--input", `${dir}/a.jsonl`],
      'Cannot prepare "DIR/a.jsonl": it has no documents, 2 were empty; give files with text',
    );
    Deno.writeTextFileSync(`${dir}/blank.jsonl`, "\n");
    await fails(
      dir,
      ["--input", `${dir}/blank.jsonl`],
      'Cannot prepare "DIR/blank.jsonl": it has no documents; give files with text',
    );
  }));

Deno.test("deno task prepare prints one line and exits with 1 for a mistake, and a summary otherwise", () =>
  inDirectory(async (dir) => {
    const run = async (...args: string[]) => {
      const command = ["run", "-q", "-P=prepare", `${root}data/prepare.ts`, ...args];
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args: command, cwd: root })
        .output();
      return { code, out: new TextDecoder().decode(stdout), error: new TextDecoder().decode(stderr) };
    };
    jsonl(`${dir}/a.jsonl`, texts);
    const mistake = await run("--input", `${dir}/a.jsonl`, "--out", `${dir}/out`, "--tokenizer", "gpt3");
    assertEquals(mistake, {
      code: 1,
      out: "",
      error:
        'error: Cannot open tokenizer "gpt3": it is neither "gpt2" nor "bytes" nor a directory with tokenizer.json\n',
    });
    const { code, out, error } = await run(
      "--input",
      `${dir}/a.jsonl`,
      "--out",
      `${dir}/out`,
      "--val_fraction=.3",
    );
    assertEquals([code, error], [0, ""]);
    const [first, train, val] = out.split("\n");
    assert(
      /^.*\/out: 1,\d+ tokens \(gpt2, vocabulary 50,257\) in \d+\.\d s, [\d,]+ tokens\/s$/.test(first!),
      first,
    );
    assert(
      /^ {2}train {2}\d+ documents, [\d,]+ tokens, \d\.\d\d bytes per token, 1 shard$/.test(train!),
      train,
    );
    assert(/^ {2}val {4}\d+ documents, [\d,]+ tokens, \d\.\d\d bytes per token, 1 shard$/.test(val!), val);
  }));
