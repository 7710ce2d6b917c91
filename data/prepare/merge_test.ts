import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { readTokens, type Shard, verifyDataset } from "../bins.ts";
import { fails, jsonl, readAll, runMerge, runPrepare, runTask, TEXTS } from "./testing.ts";
import { inDirectory } from "../testing.ts";
import { writeTokenizer } from "./testing.ts";

const FLAGS = ["--tokenizer=bytes", "--val_fraction=0.3", "--shard_tokens=300"];

/** Five files of documents, of different sizes. */
function files(dir: string): string[] {
  const paths = [3, 8, 5, 20, 14].map((n, i) => ({ path: `${dir}/${i}.jsonl`, n }));
  let from = 0;
  for (const { path, n } of paths) jsonl(path, TEXTS.slice(from, from += n));
  return ["--input", ...paths.map(({ path }) => path)];
}

async function prepareParts(n: number, ...flags: string[]): Promise<void> {
  for (let i = 1; i <= n; i++) await runPrepare(...flags, `--shard=${i}/${n}`);
}

/** All tokens of a split. */
function tokens(shards: Shard[]): number[] {
  return shards.flatMap((shard) => Array.from(readTokens(shard, 0, shard.tokens)));
}

Deno.test("merged parts are a dataset of the same documents in the same order", () =>
  inDirectory(async (dir) => {
    const input = [...files(dir), ...FLAGS], out = `${dir}/out`;
    const { meta: whole } = await runPrepare(...input, "--out", `${dir}/whole`);
    await prepareParts(3, ...input, "--out", out);
    const before = readAll(out);
    const meta = runMerge("--out", out);
    const { "meta.json": _, ...rest } = readAll(out);
    assertEquals(rest, before); // nothing was moved
    const { shards: _shards, ...counts } = meta, { shards: _whole, ...wanted } = whole;
    assertEquals(counts, wanted);
    assert(meta.shards.some(({ file }) => file === "part_2_of_3/train_000001.bin"));
    const a = verifyDataset(`${dir}/whole`), b = verifyDataset(out);
    for (const split of ["train", "val"] as const) assertEquals(tokens(b[split]), tokens(a[split]), split);
  }));

Deno.test("merged parts of a mix name their input by source, as the whole does", () =>
  inDirectory(async (dir) => {
    for (const [i, name] of ["a0", "a1", "a2", "b0", "b1"].entries()) {
      jsonl(`${dir}/${name}.jsonl`, TEXTS.slice(10 * i, 10 * i + 10));
    }
    const input = ["--input", `${dir}/a*.jsonl:0.8`, `${dir}/b*.jsonl:0.2`, ...FLAGS], out = `${dir}/out`;
    await prepareParts(2, ...input, "--out", out);
    const { inputs, sources } = runMerge("--out", out);
    assertEquals(inputs.map(({ name }) => name.slice(dir.length + 1, -6)), ["a0", "a1", "a2", "b0", "b1"]);
    assertEquals(sources, [{ weight: 0.8, files: 3 }, { weight: 0.2, files: 2 }]);
    verifyDataset(out);
  }));

Deno.test("merging again changes nothing", () =>
  inDirectory(async (dir) => {
    const input = [...files(dir), ...FLAGS], out = `${dir}/out`;
    await prepareParts(2, ...input, "--out", out);
    const meta = runMerge("--out", out), before = readAll(out);
    assertEquals(runMerge("--out", out), meta);
    await prepareParts(2, ...input, "--out", out);
    assertEquals(readAll(out), before);
  }));

Deno.test("merged parts of a tokenizer of files have its files beside them", () =>
  inDirectory(async (dir) => {
    await writeTokenizer(`${dir}/tokenizer`);
    const input = [
      ...files(dir),
      "--val_fraction=0.3",
      `--tokenizer=${dir}/tokenizer`,
      "--out",
      `${dir}/out`,
    ];
    await prepareParts(2, ...input);
    runMerge("--out", `${dir}/out`);
    assertEquals(verifyDataset(`${dir}/out`).tokenizer, `${dir}/out`);
    const all = readAll(`${dir}/out`);
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
      assertEquals(all[name], all[`part_1_of_2/${name}`]);
    }
  }));

Deno.test("a part may have no documents for val, but all of them together need some", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS.slice(0, 2));
    jsonl(`${dir}/b.jsonl`, TEXTS.slice(2));
    const input = ["--input", `${dir}/*.jsonl`];
    await prepareParts(2, ...input, "--val_fraction=0.05", "--out", `${dir}/few`);
    assertEquals(runMerge("--out", `${dir}/few`).val.documents > 0, true);
    await prepareParts(2, ...input, "--val_fraction=0.001", "--out", `${dir}/none`);
    refused(
      dir,
      "none",
      "of 50 documents none is left for val with --val_fraction=0.001; prepare the parts with another",
    );
  }));

/** Merging a directory fails with one line and changes nothing. */
function refused(dir: string, out: string, message: string, ...flags: string[]): void {
  const before = readAll(dir);
  const error = assertThrows(() => runMerge("--out", `${dir}/${out}`, ...flags), UserError);
  assertEquals(error.message.replaceAll(dir, "DIR"), `Cannot merge "DIR/${out}": ${message}`);
  assertEquals(readAll(dir), before);
}

Deno.test("merging names parts that are missing, unfinished, or of another number", () =>
  inDirectory(async (dir) => {
    const input = [...files(dir), ...FLAGS, "--out", `${dir}/out`];
    refused(dir, "out", "there is no such directory");
    Deno.mkdirSync(`${dir}/empty`);
    const make = "make them: deno task prepare --shard 1/8 --out DIR/empty --input FILES";
    refused(dir, "empty", `it has no parts; ${make}`);
    await runPrepare(...input, "--shard=3/4");
    await runPrepare(...input, "--shard=1/4");
    refused(dir, "out", "part_2_of_4, part_4_of_4 are missing; prepare with --shard 2/4");
    await runPrepare(...input, "--shard=2/4");
    refused(dir, "out", "part_4_of_4 is missing; prepare with --shard 4/4");
    Deno.mkdirSync(`${dir}/out/part_4_of_4/unfinished`, { recursive: true });
    refused(dir, "out", "part_4_of_4 is not finished; run its prepare with --shard 4/4 to the end");
    Deno.mkdirSync(`${dir}/out/part_1_of_2`);
    const error = assertThrows(() => runMerge("--out", `${dir}/out`), UserError).message;
    assert(/it has part_\d_of_\d and part_\d_of_\d; remove those that are not wanted$/.test(error), error);
  }));

Deno.test("merging names what parts differ in", () =>
  inDirectory(async (dir) => {
    const input = files(dir), out = ["--out", `${dir}/out`];
    const differ = (what: string) =>
      refused(
        dir,
        "out",
        `part_1_of_2 and part_2_of_2 (there and here) differ: ${what}; prepare one of them again with --overwrite`,
      );
    await runPrepare(...input, ...FLAGS, ...out, "--shard=1/2");
    const second = (flags: string[], ...inputs: string[]) =>
      runPrepare(
        ...(inputs.length > 0 ? inputs : input),
        ...FLAGS,
        ...flags,
        ...out,
        "--shard=2/2",
        "--overwrite",
      );
    await second(["--limit=9", "--seed=3"]);
    differ("limit is not given there and 9 here, seed is 1337 there and 3 here");
    await second(["--tokenizer=gpt2"]);
    differ("tokenizer is bytes there and gpt2 here");
    await second([], ...input.slice(0, -1));
    const bytes = (paths: string[]) => paths.reduce((sum, path) => sum + Deno.statSync(path).size, 0);
    const [all, fewer] = [bytes(input.slice(1)), bytes(input.slice(1, -1))];
    differ(`the input is 5 files of ${all} bytes there and 4 of ${fewer} here`);
    await second([], "--input", ...input.slice(1).toReversed());
    differ("the list of input files has other names or another order");
  }));

Deno.test("merging notices parts that are in each other's place", () =>
  inDirectory(async (dir) => {
    const input = [...files(dir), ...FLAGS, "--out", `${dir}/out`];
    await prepareParts(2, ...input);
    const path = (i: number) => `${dir}/out/part_${i}_of_2`;
    for (const [from, to] of [[1, 3], [2, 1], [3, 2]] as const) Deno.renameSync(path(from), path(to));
    refused(dir, "out", "part_1_of_2 is part 2 of 2 by its meta.json; prepare it again");
  }));

Deno.test("merging does not replace another dataset, unless told to", () =>
  inDirectory(async (dir) => {
    const input = [...files(dir), ...FLAGS, "--out", `${dir}/out`];
    await runPrepare(...input);
    const advice = "choose another --out, or remove the parts that are there";
    Deno.renameSync(`${dir}/out`, `${dir}/old`);
    await prepareParts(2, ...input);
    for (const { name } of Deno.readDirSync(`${dir}/old`)) {
      Deno.copyFileSync(`${dir}/old/${name}`, `${dir}/out/${name}`);
    }
    const names = Object.keys(readAll(`${dir}/old`)).join(", ");
    refused(dir, "out", `it holds another dataset (${names}); move it away, or replace it with --overwrite`);
    await fails(
      dir,
      [...input.slice(0, -2), "--overwrite", "--shard=1/3"],
      `Cannot write part_1_of_3 to "DIR/out": it holds part_1_of_2; ${advice}`,
    );
    runMerge("--out", `${dir}/out`, "--overwrite");
    verifyDataset(`${dir}/out`);
    const left = Object.keys(readAll(`${dir}/out`)).filter((name) => !name.startsWith("part_"));
    assertEquals(left, ["meta.json"]);
  }));

Deno.test("deno task prepare --merge prints a summary", () =>
  inDirectory(async (dir) => {
    const input = [...files(dir), ...FLAGS, "--out", `${dir}/out`];
    await prepareParts(2, ...input);
    const { code, out, error } = await runTask("--merge", "--out", `${dir}/out`);
    assertEquals([code, error], [0, ""]);
    const [first, train, val, ...rest] = out.split("\n");
    assertEquals(rest, [""]);
    assert(/\/out: [\d,]+ tokens \(bytes, vocabulary 257\), merged$/.test(first!), first);
    assert(/^ {2}train {2}\d+ documents, .* \d+ shards$/.test(train!), train);
    assert(/^ {2}val {4}\d+ documents, .* \d+ shards?$/.test(val!), val);
  }));
