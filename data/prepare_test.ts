import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { verifyDataset } from "./bins.ts";
import { documentsOf, fails, jsonl, readAll } from "./prepare/testing.ts";
import { inDirectory } from "./testing.ts";
import { ROOT, runMerge, runPrepare, runTask, runTaskIn, TEXTS, writeTokenizer } from "./prepare/testing.ts";

const fixtures = `${ROOT}tests/fixtures/`;

for (const tokenizer of ["gpt2", "bytes"]) {
  Deno.test(`prepare() keeps every document whole with ${tokenizer}`, () =>
    inDirectory(async (dir) => {
      jsonl(`${dir}/a.jsonl`, TEXTS);
      const flags = [`--tokenizer=${tokenizer}`, "--val_fraction=0.3", "--shard_tokens=500"];
      const { meta } = await runPrepare("--input", `${dir}/a.jsonl`, "--out", `${dir}/out`, ...flags);
      const dataset = verifyDataset(`${dir}/out`);
      const train = await documentsOf(dataset, "train"), val = await documentsOf(dataset, "val");
      assertEquals([...train, ...val].toSorted(), TEXTS.toSorted());
      assert(dataset.train.length > 1);
      assertEquals([meta.train.documents, meta.val.documents], [train.length, val.length]);
      assertEquals(meta.train.tokens, dataset.train.reduce((sum, { tokens }) => sum + tokens, 0));
      assertEquals(meta.train.bytes, new TextEncoder().encode(train.join("")).length);
      const { size, mtime } = Deno.statSync(`${dir}/a.jsonl`);
      assertEquals(meta.inputs, [{
        name: `${dir}/a.jsonl`,
        bytes: size,
        version: mtime!.toISOString(),
      }]);
    }));
}

Deno.test("prepare prints no name or value of an input that steers a terminal or begins a line", () =>
  inDirectory(async (dir) => {
    const file = `${dir}/a\x1b[2J\nerror: forged.jsonl`, flags = ["--tokenizer=bytes", "--val_fraction=0.3"];
    jsonl(file, TEXTS);
    Deno.writeTextFileSync(file, '\n{"text":["\x9b\u202e"]}\n', { append: true });
    const shown = `${dir}/a\\u001b[2J\\nerror: forged.jsonl:${
      TEXTS.length + 1
    }: field "text" is ["\\u009b\\u202e"]`;
    for (const skip of [[], ["--skip_bad"]]) {
      const { out, error } = await runTask("--input", dir, "--out", `${dir}/out`, ...flags, ...skip);
      assertStringIncludes(out + error, shown);
      // deno-lint-ignore no-control-regex
      assertEquals(/[\x1b\x9b\u202e]|^error: forged/m.test(out + error), false, out + error);
    }
  }));

Deno.test("prepare() splits by the text of a document, not by its place", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    jsonl(`${dir}/b.jsonl`, TEXTS.toReversed());
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
    const flags = ["--input", `${fixtures}texts.parquet`, "--val_fraction=0.2"];
    for (const out of ["one", "two"]) await runPrepare(...flags, "--out", `${dir}/${out}`);
    assertEquals(readAll(`${dir}/one`), readAll(`${dir}/two`));
  }));

Deno.test("prepare() reads parquet, jsonl and text together and counts what has no text", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, ["one", "", "two"]);
    Deno.writeTextFileSync(`${dir}/b.txt`, "three\n---\nfour");
    const inputs = [`${fixtures}texts_zstd.parquet`, `${dir}/*.*`];
    const flags = ["--val_fraction=0.2", "--split_on=\\n---\\n"];
    const { meta } = await runPrepare("--input", ...inputs, "--out", `${dir}/out`, ...flags);
    assertEquals(meta.left_out, { empty: 48 + 1, duplicates: 0, bad: 0 }); // rows of the parquet file, and one line
    assertEquals(meta.train.documents + meta.val.documents, 300 - 48 + 4);
    assertEquals(meta.options.split_on, "\n---\n");
  }));

Deno.test("prepare() reads no more documents than --limit", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    const flags = ["--limit=20", "--val_fraction=.5"];
    const { meta } = await runPrepare("--input", `${dir}/a.jsonl`, "--out", `${dir}/out`, ...flags);
    assertEquals(meta.train.documents + meta.val.documents, 20);
  }));

Deno.test("prepare() takes a tokenizer from a directory and puts it beside the dataset", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    await writeTokenizer(`${dir}/tokenizer`);
    const flags = [`--tokenizer=${dir}/tokenizer`, "--val_fraction=.3"];
    const { meta } = await runPrepare("--input", `${dir}/a.jsonl`, "--out", `${dir}/out`, ...flags);
    assertEquals([meta.tokenizer, meta.vocab_size], [".", 257]);
    const dataset = verifyDataset(`${dir}/out`);
    assertEquals(dataset.tokenizer, `${dir}/out`);
    const documents = [...await documentsOf(dataset, "train"), ...await documentsOf(dataset, "val")];
    assertEquals(documents.toSorted(), TEXTS.toSorted());
  }));

Deno.test("deno task prepare says what a directory gave, and takes its own dataset there for no input", () =>
  inDirectory(async (dir) => {
    for (const name of ["train-0.JSONL", "train-1.ndjson", "test-0.jsonl"]) jsonl(`${dir}/${name}`, TEXTS);
    Deno.writeTextFileSync(`${dir}/dataset_infos.json`, '{\n "default": {}\n}\n');
    await writeTokenizer(`${dir}/tokenizer`);
    const flags = ["--input", dir, "--val_fraction=.3", "--out", `${dir}/ds`, `--tokenizer=${dir}/tokenizer`];
    const first = await runTask(...flags);
    const said = [
      `${dir}: 2 files (1 .jsonl, 1 .ndjson)`,
      `${dir}: left out 1 of split test (--split reads them)`,
      `${dir}: left out 1 dataset_infos.json, 1 tokenizer.json, 1 tokenizer_config.json`,
      "",
    ];
    assertEquals([first.code, first.error.split("\n")], [0, said]);
    const meta = JSON.parse(Deno.readTextFileSync(`${dir}/ds/meta.json`));
    assertEquals(meta.train.documents + meta.val.documents, 100);
    const again = await runTask(...flags);
    assertMatch(again.out, /, finished before; nothing to do\n/);
    assertEquals([again.code, again.error.split("\n")], [0, said]);
    assertEquals((await runTask(...flags, "--overwrite", "--seed=2")).code, 0);
  }));

Deno.test("prepare() cuts a plain text that is one document in two, as nanoGPT does", () =>
  inDirectory(async (dir) => {
    const lines = Array.from({ length: 999 }, (_, i) => `Line ${i} of a play.\n`).join("");
    const texts: [string, string[], number, string][] = [ // where Python's data[int(n * 0.9):] begins
      [lines, [], 17883, " play.\nLin"],
      [lines, ["--val_fraction=0.25"], 14902, "a play.\nLi"],
      [`${"aé".repeat(99)}aa`, [], 268, "éaéa"], // 269 of 299 bytes end in the middle of a character
    ];
    for (const [text, flags, at, begins] of texts) {
      Deno.writeTextFileSync(`${dir}/a.txt`, text);
      const out = `${dir}/${at}`,
        args = ["--input", `${dir}/a.txt`, "--tokenizer=bytes", "--out", out, ...flags];
      const { meta } = await runPrepare(...args);
      assertEquals([meta.train.documents, meta.train.bytes, meta.val.documents], [1, at, 1]);
      const [train] = await documentsOf(verifyDataset(out), "train"),
        [val] = await documentsOf(verifyDataset(out), "val");
      assertEquals(train! + val!, text);
      assertEquals(val!.slice(0, begins.length), begins);
      assertEquals((await runPrepare(...args)).work, null); // finished
    }
  }));

Deno.test("prepare() takes --val_fraction=0 for no val", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    Deno.writeTextFileSync(`${dir}/a.txt`, "one text");
    for (const file of ["a.jsonl", "a.txt"]) {
      const { meta } = await runPrepare(
        "--input",
        `${dir}/${file}`,
        "--val_fraction=0",
        "--out",
        `${dir}/${file}.out`,
      );
      assertEquals([meta.train.documents, meta.val.documents], [file === "a.txt" ? 1 : 50, 0]);
      assertEquals(meta.shards.map(({ file }) => file), ["train_000000.bin"]);
    }
    await runPrepare("--input", `${dir}/a.jsonl`, "--val_fraction=0", "--out", `${dir}/parts`, "--shard=1/1");
    assertEquals(runMerge("--out", `${dir}/parts`).val, { documents: 0, tokens: 0, bytes: 0 });
  }));

Deno.test("deno task prepare says how one text is cut, and that few documents of val say little", () =>
  inDirectory(async (dir) => {
    Deno.writeTextFileSync(`${dir}/a.txt`, "one text, ".repeat(100));
    const one = await runTask("--input", `${dir}/a.txt`, "--tokenizer=bytes", "--out", `${dir}/one`);
    assertEquals(
      one.error,
      `${dir}/a.txt: one document, the last 10% of it are val (--val_fraction, --split_on)\n`,
    );
    assertEquals([one.code, one.out.includes("warning")], [0, false]);
    jsonl(`${dir}/a.jsonl`, TEXTS);
    const few = await runTask("--input", `${dir}/a.jsonl`, "--val_fraction=.06", "--out", `${dir}/few`);
    assertMatch(
      few.out,
      /\n {2}val {4}3 documents,.*\n {2}warning: val_loss will depend on 3 documents alone; use a larger --val_fraction\n$/,
    );
  }));

// ---- mistakes

Deno.test("prepare() stops at a broken line and leaves nothing where nothing was committed", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    Deno.writeTextFileSync(`${dir}/a.jsonl`, '\n{"text": oops}\n', { append: true });
    await fails(
      dir,
      ["--input", `${dir}/a.jsonl`],
      'Cannot read DIR/a.jsonl:51: Unexpected token \'o\', "{"text": oops}" is not valid JSON; ' +
        "each line should be one JSON object, or leave it out with --skip_bad",
    );
  }));

Deno.test("prepare() says in one line what the operating system refuses", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    Deno.mkdirSync(`${dir}/out`);
    Deno.writeTextFileSync(`${dir}/out/unfinished`, "no directory");
    await fails(
      dir,
      ["--input", `${dir}/a.jsonl`],
      "Cannot prepare \"DIR/out\": Not a directory (os error 20): readdir 'DIR/out/unfinished'",
    );
  }));

Deno.test("prepare() names a fraction that gives both splits documents", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS.slice(0, 10));
    const input = ["--input", `${dir}/a.jsonl`];
    const none = (fraction: number, split: string) =>
      `Cannot split the 10 documents of "DIR/a.jsonl" with --val_fraction=${fraction}: none is left for ${split}; ` +
      "use more input or --val_fraction=0.08";
    await fails(dir, input, none(0.005, "val"));
    await fails(dir, [...input, "--val_fraction=0.999"], none(0.999, "train"));
    await runPrepare(...input, "--out", `${dir}/out`, "--val_fraction=0.08");
  }));

Deno.test("prepare() says that one document cannot be split", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, ["all one\n\ndocument"]);
    await fails(
      dir,
      ["--input", `${dir}/a.jsonl`],
      'Cannot split "DIR/a.jsonl" into train and val: it has one document only; give more, or say where ' +
        "the documents of a .txt file end, such as --split_on=blank_line",
    );
    jsonl(`${dir}/same.jsonl`, ["one", "one", "one"]);
    await fails(
      dir,
      ["--input", `${dir}/same.jsonl`],
      'Cannot split "DIR/same.jsonl" into train and val: its 3 documents are all the same; give more, or say where ' +
        "the documents of a .txt file end, such as --split_on=blank_line",
    );
    Deno.writeTextFileSync(`${dir}/a.txt`, "short");
    await fails(
      dir,
      ["--input", `${dir}/a.txt`, "--val_fraction=0.9"],
      'Cannot split "DIR/a.txt", one document, with --val_fraction=0.9: nothing is left for train; ' +
        "use --val_fraction=0.1, or 0 for no val",
    );
  }));

Deno.test("prepare() says that --limit leaves one document only", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
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
    Deno.writeTextFileSync(`${dir}/bad.jsonl`, '{"text": ""}\n7\n8\n');
    await fails(
      dir,
      ["--input", `${dir}/bad.jsonl`, "--skip_bad"],
      'Cannot prepare "DIR/bad.jsonl": it has no documents, 1 were empty, 2 cannot be read (the first: ' +
        "Cannot read DIR/bad.jsonl:2: it is 7; each line should be one JSON object); give files with text",
    );
  }));

// ---- the command line

Deno.test("deno task prepare refuses text in another encoding, and says what --skip_bad left out", () =>
  inDirectory(async (dir) => {
    const files: [string, string, string][] = [ // as iconv writes them
      ["latin1.txt", "caf\xe9 au lait\nthe\n\nna\xefve\n", "its byte 3 is 0xe9, which is not UTF-8 there"],
      ["shift_jis.txt", "one\n\x93\xfa\x96\x7b\x8c\xea\n", "its byte 4 is 0x93, which is not UTF-8 there"],
      [
        "utf16.txt",
        "\xff\xfel\0i\0n\0e\0\n\0",
        "it begins with the byte-order mark of UTF-16 (0xff 0xfe), should be UTF-8",
      ],
      [
        "latin1.jsonl",
        '{"text": "one"}\n{"text": "caf\xe9"}\n',
        "its byte 29 is 0xe9, which is not UTF-8 there",
      ],
    ];
    for (const [name, text] of files) {
      Deno.writeFileSync(`${dir}/${name}`, Uint8Array.from(text, (byte) => byte.charCodeAt(0)));
    }
    const flags = ["--split_on=line", "--tokenizer=bytes", "--val_fraction=0.4", "--out", `${dir}/out`];
    for (const [name, , what] of files) {
      const { code, out, error } = await runTask("--input", `${dir}/${name}`, ...flags);
      assertEquals([code, out], [1, ""]);
      const place = name.endsWith("l") ? `${dir}/${name}:2` : `"${dir}/${name}"`;
      const encoding = name === "utf16.txt" ? "UTF-16" : "ENCODING";
      assertEquals(
        error,
        `error: Cannot read ${place}: ${what}; convert it with iconv -f ${encoding} -t UTF-8, ` +
          "or leave it out with --skip_bad\n",
      );
    }
    jsonl(`${dir}/texts.jsonl`, TEXTS);
    const { code, out, error } = await runTask("--input", dir, ...flags, "--skip_bad");
    assertEquals([code, error], [0, `${dir}: 5 files (3 .txt, 2 .jsonl)\n`]);
    const meta = JSON.parse(Deno.readTextFileSync(`${dir}/out/meta.json`));
    assertEquals([meta.train.documents + meta.val.documents, meta.left_out], [1 + 1 + 1 + 50, {
      empty: 1,
      duplicates: 0,
      bad: 5,
    }]);
    assertMatch(
      out,
      /\n {2}left out {2}1 without text, 5 that cannot be read\n {2}the first that cannot be read: Cannot read .*latin1\.jsonl:2: its byte 29 /,
    );
  }));

Deno.test("deno task prepare prints one line and exits with 1 for a mistake, and a summary otherwise", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, [...TEXTS, "", ""]);
    const input = ["--input", `${dir}/a.jsonl`, "--out", `${dir}/out`];
    const mistake = await runTask(...input, "--tokenizer", "gpt3");
    assertEquals([mistake.code, mistake.out], [1, ""]);
    assertMatch(mistake.error, /^error: Cannot open tokenizer "gpt3": .*\n$/);

    const { code, out, error } = await runTask(...input, "--val_fraction=.3");
    assertEquals([code, error], [0, ""]);
    const [first, train, val, left_out, ...rest] = out.split("\n");
    assertMatch(
      first!,
      /\/out: 1,\d+ tokens \(gpt2, vocabulary 50,257\) in \d+\.\d s, \d+\.\d MB\/s of text, [\d,]+ tokens\/s$/,
    );
    assertMatch(train!, /^ {2}train {2}\d+ documents, [\d,]+ tokens, \d\.\d\d bytes per token, 1 shard$/);
    assertMatch(val!, /^ {2}val {4}\d+ documents, [\d,]+ tokens, \d\.\d\d bytes per token, 1 shard$/);
    assertEquals([left_out, ...rest], ["  left out  2 without text", ""]);

    const again = await runTask(...input, "--val_fraction=.3");
    assertEquals([again.code, again.error], [0, ""]);
    const [firstAgain, ...restAgain] = again.out.split("\n");
    assertMatch(
      firstAgain!,
      /\/out: 1,\d+ tokens \(gpt2, vocabulary 50,257\), finished before; nothing to do$/,
    );
    assertEquals(restAgain, [train, val, left_out, ""]);
  }));

Deno.test("deno task prepare alone leaves the demo as it is when the same corpus is written again", () =>
  inDirectory(async (dir) => {
    const path = `${dir}/data/demo.txt`, corpus = TEXTS.join("\n\n");
    Deno.mkdirSync(`${dir}/data`);
    const runs = [];
    for (const [text, time] of [[corpus, 1000], [corpus, 2000], [`${corpus}.`, 2000]] as const) {
      Deno.writeTextFileSync(path, text);
      Deno.utimeSync(path, time, time);
      const { out, error } = await runTaskIn(dir);
      runs.push(out + error);
    }
    assertMatch(runs[0]!, /^data\/demo: 3,\d+ tokens \(bytes, vocabulary 257\) in /);
    assertMatch(runs[1]!, /, finished before; nothing to do\n/);
    assertMatch(runs[2]!, /^error: Cannot write to "data\/demo": it holds a finished dataset, and input /);
  }));
