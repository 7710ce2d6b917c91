import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { verifyDataset } from "../bins.ts";
import { parseCommand } from "./options.ts";
import { prepare } from "../prepare.ts";
import { fails, interrupt, jsonl, readAll, runPrepare, TEXTS, writeTokenizer } from "./testing.ts";
import { inDirectory, names } from "../testing.ts";

/** More than five blocks of documents. */
function blocks(path: string): void {
  const text = "Words that come again and again. ".repeat(1500); // 50 kB
  jsonl(path, Array.from({ length: 120 }, (_, i) => `${i} ${text}`).flatMap((text, i) => [text, "", `${i}`]));
}

/** Small shards, so that there is a commit after every block. */
const FLAGS = ["--tokenizer=bytes", "--val_fraction=0.2", "--shard_tokens=200000", "--workers=1"];

function copy(from: string, to: string): void {
  Deno.mkdirSync(to);
  for (const { name } of Deno.readDirSync(from)) Deno.copyFileSync(`${from}/${name}`, `${to}/${name}`);
}

Deno.test("prepare() goes on after any block and ends with the same files", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    const input = ["--input", `${dir}/a.jsonl`, ...FLAGS];
    await runPrepare(...input, "--out", `${dir}/whole`);
    const whole = readAll(`${dir}/whole`);
    for (const n of [1, 2, 3]) {
      const out = `${dir}/${n}`;
      await interrupt(n, ...input, "--out", out);
      assertEquals(names(out), ["unfinished"]);
      const { work } = await runPrepare(...input, "--out", out);
      assert(work!.documents_before > 0);
      assertEquals(readAll(out), whole);
    }
  }));

Deno.test("prepare() goes on when it is interrupted again and again, with any number of workers", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    const input = ["--input", `${dir}/a.jsonl`, ...FLAGS];
    await runPrepare(...input, "--out", `${dir}/whole`);
    for (const workers of [2, 1, 3]) {
      await interrupt(1, ...input, "--out", `${dir}/out`, `--workers=${workers}`);
    }
    await runPrepare(...input, "--out", `${dir}/out`);
    assertEquals(readAll(`${dir}/out`), readAll(`${dir}/whole`));
  }));

Deno.test("prepare() goes on with a mix, shuffled and without duplicates, to the same files", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    blocks(`${dir}/b.jsonl`);
    const input = ["--input", `${dir}/a.jsonl:0.6`, `${dir}/b.jsonl:0.4`, ...FLAGS];
    const flags = [...input, "--shuffle_docs=3", "--dedup=exact"];
    const { meta } = await runPrepare(...flags, "--out", `${dir}/whole`);
    assert(meta.left_out.duplicates > 0);
    await interrupt(2, ...flags, "--out", `${dir}/out`);
    await runPrepare(...flags, "--out", `${dir}/out`);
    assertEquals(readAll(`${dir}/out`), readAll(`${dir}/whole`));
  }));

Deno.test("prepare() refuses to go on with anything else, and says what differs", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    jsonl(`${dir}/b.jsonl`, TEXTS);
    await writeTokenizer(`${dir}/tokenizer`);
    const input = ["--input", `${dir}/a.jsonl`];
    await interrupt(2, ...input, ...FLAGS, "--out", `${dir}/out`);
    const line = (what: string) =>
      `Cannot go on in "DIR/out": it holds an interrupted prepare, and ${what}; ` +
      "give what was given then, choose another --out, or start over with --overwrite";
    const refused = (what: string, ...flags: string[]) =>
      fails(dir, [...input, ...FLAGS, ...flags], line(what));
    await refused("limit is not given there and 9 here", "--limit=9");
    await refused(
      "column is text there and body here, seed is 1337 there and 1 here",
      "--column=body",
      "--seed=1",
    );
    await refused('input "DIR/b.jsonl" is new', `${dir}/b.jsonl`);
    await refused("tokenizer is bytes there and gpt2 here", "--tokenizer=gpt2");
    const files = await runPrepare(
      ...input,
      "--out",
      `${dir}/files`,
      "--val_fraction=0.2",
      "--limit=40",
      `--tokenizer=${dir}/tokenizer`,
    );
    const sha256 = files.meta.tokenizer_sha256.slice(0, 12);
    await refused(
      `tokenizer is bytes there and a tokenizer.json of SHA-256 ${sha256}... here`,
      `--tokenizer=${dir}/tokenizer`,
    );
    const then = Deno.statSync(`${dir}/a.jsonl`).mtime!, now = new Date(then.getTime() + 1000);
    Deno.utimeSync(`${dir}/a.jsonl`, now, now);
    await refused(`input "DIR/a.jsonl" is of ${then.toISOString()} there and ${now.toISOString()} here`);
    Deno.writeTextFileSync(`${dir}/a.jsonl`, '\n{"text": "more"}', { append: true });
    const bytes = Deno.statSync(`${dir}/a.jsonl`).size;
    await refused(`input "DIR/a.jsonl" has ${bytes - 17} bytes there and ${bytes} here`);

    await runPrepare(...input, ...FLAGS, "--out", `${dir}/out`, "--overwrite");
    await runPrepare(...input, ...FLAGS, "--out", `${dir}/whole`);
    assertEquals(readAll(`${dir}/out`), readAll(`${dir}/whole`));
  }));

Deno.test("prepare() refuses to replace a finished dataset by another, and says what differs", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    const input = ["--input", `${dir}/a.jsonl`, "--val_fraction=0.3"];
    const first = await runPrepare(...input, "--out", `${dir}/out`);
    const again = await runPrepare(...input, "--out", `${dir}/out`);
    assertEquals(again, { dir: `${dir}/out`, meta: first.meta, work: null });
    await fails(
      dir,
      [...input, "--tokenizer=bytes", "--limit=20"],
      'Cannot write to "DIR/out": it holds a finished dataset, and tokenizer is gpt2 there and bytes here, ' +
        "limit is not given there and 20 here; choose another --out, or replace it with --overwrite",
    );
    Deno.writeTextFileSync(`${dir}/out/notes.txt`, "kept");
    await runPrepare(...input, "--tokenizer=bytes", "--limit=20", "--out", `${dir}/out`, "--overwrite");
    assertEquals(verifyDataset(`${dir}/out`).vocab_size, 257);
    assertEquals(names(`${dir}/out`), ["meta.json", "notes.txt", "train_000000.bin", "val_000000.bin"]);
  }));

Deno.test("prepare() keeps the old dataset whole until the new one is done, whose interruption it goes on from", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    jsonl(`${dir}/b.jsonl`, TEXTS);
    const out = ["--out", `${dir}/out`], old = ["--input", `${dir}/b.jsonl`, "--val_fraction=0.3", ...out];
    await runPrepare(...old);
    const before = readAll(`${dir}/out`);
    const flags = ["--input", `${dir}/a.jsonl`, ...FLAGS, ...out, "--overwrite"];
    await interrupt(2, ...flags);
    const { work } = await runPrepare(...old); // finished, whatever else is going on
    assertEquals(work, null);
    for (const [name, content] of Object.entries(before)) assertEquals(readAll(`${dir}/out`)[name], content);
    const { work: rest } = await runPrepare(...flags);
    assert(rest!.documents_before > 0);
    await runPrepare("--input", `${dir}/a.jsonl`, ...FLAGS, "--out", `${dir}/whole`);
    assertEquals(readAll(`${dir}/out`), readAll(`${dir}/whole`));
  }));

Deno.test("prepare() refuses a directory with the bins of another program or with parts", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    const flags = ["--input", `${dir}/a.jsonl`, "--val_fraction=0.3"];
    Deno.mkdirSync(`${dir}/out/part_2_of_3`, { recursive: true });
    const advice = "choose another --out, or remove the parts that are there";
    await fails(dir, flags, `Cannot write the whole to "DIR/out": it holds part_2_of_3; ${advice}`);
    await fails(
      dir,
      [...flags, "--shard=1/1"],
      `Cannot write part_1_of_1 to "DIR/out": it holds part_2_of_3; ${advice}`,
    );
    Deno.removeSync(`${dir}/out/part_2_of_3`);
    for (const name of ["train.bin", "val.bin"]) Deno.writeTextFileSync(`${dir}/out/${name}`, "..");
    await fails(
      dir,
      flags,
      'Cannot write to "DIR/out": it holds a dataset (train.bin, ...); choose another --out, or replace it with --overwrite',
    );
  }));

Deno.test("prepare() finishes what was killed while the files were moved up, whatever had moved", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    await writeTokenizer(`${dir}/tokenizer`);
    const input = ["--input", `${dir}/a.jsonl`, "--val_fraction=0.3"];
    const flags = [...input, "--shard_tokens=300", `--tokenizer=${dir}/tokenizer`];
    await runPrepare(...flags, "--out", `${dir}/whole`);
    const whole = readAll(`${dir}/whole`), files = names(`${dir}/whole`);
    const shards = files.filter((name) => name !== "meta.json");
    await runPrepare(...input, "--shard_tokens=10", "--out", `${dir}/old`);
    assert(names(`${dir}/old`).length > files.length); // it has shards that none replaces
    for (let moved = 0; moved <= shards.length; moved++) {
      const out = `${dir}/${moved}`;
      copy(`${dir}/old`, out);
      if (moved > 0) Deno.removeSync(`${out}/meta.json`); // this comes first
      copy(`${dir}/whole`, `${out}/unfinished`);
      for (const name of shards.slice(0, moved)) {
        Deno.renameSync(`${out}/unfinished/${name}`, `${out}/${name}`);
      }
      const { work } = await runPrepare(...flags, "--out", out);
      assertEquals(work, null);
      assertEquals(readAll(out), whole, `${moved} moved`);
      assertEquals(names(out), files);
    }
  }));

Deno.test("prepare() removes the empty directory that a kill at the very end leaves", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS);
    const flags = ["--input", `${dir}/a.jsonl`, "--val_fraction=0.3", "--out", `${dir}/out`];
    await runPrepare(...flags);
    Deno.mkdirSync(`${dir}/out/unfinished`);
    const { work } = await runPrepare(...flags);
    assertEquals(work, null);
    assertEquals(names(`${dir}/out`), ["meta.json", "train_000000.bin", "val_000000.bin"]);
  }));

Deno.test("prepare() refuses an unfinished dataset that was damaged, and starts over with --overwrite", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    const flags = ["--input", `${dir}/a.jsonl`, ...FLAGS];
    await interrupt(2, ...flags, "--out", `${dir}/out`);
    Deno.truncateSync(`${dir}/out/unfinished/train_000001.bin`, 5000);
    const size = 1024 +
      2 *
        JSON.parse(Deno.readTextFileSync(`${dir}/out/unfinished/state.json`)).written.train.shards[1].tokens;
    await fails(
      dir,
      flags,
      `Cannot go on in "DIR/out/unfinished": train_000001.bin has 5000 bytes, state.json says ${size}; ` +
        "start over with --overwrite",
    );
    await interrupt(2, ...flags, "--out", `${dir}/out`, "--overwrite");
    const path = `${dir}/out/unfinished/state.json`, text = Deno.readTextFileSync(path);
    Deno.writeTextFileSync(
      path,
      text.replace(/"documents":(\d)/, (_, digit) => `"documents":${(Number(digit) + 1) % 10}`),
    );
    await fails(
      dir,
      flags,
      'Cannot go on with "DIR/out/unfinished/state.json": it is no state that this loam wrote; start over with --overwrite',
    );
    Deno.writeTextFileSync(path, "{}");
    await fails(
      dir,
      flags,
      'Cannot go on with "DIR/out/unfinished/state.json": it is no state that this loam wrote; start over with --overwrite',
    );
    const { work } = await runPrepare(...flags, "--out", `${dir}/out`, "--overwrite");
    assertEquals(work!.documents_before, 0);
    verifyDataset(`${dir}/out`);
  }));

Deno.test("prepare() stops at bad input with what is done kept, and goes on with --skip_bad", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    const lines = Deno.readTextFileSync(`${dir}/a.jsonl`).split("\n");
    lines[249] = "oops";
    Deno.writeTextFileSync(`${dir}/a.jsonl`, lines.join("\n"));
    const flags = ["--input", `${dir}/a.jsonl`, ...FLAGS];
    const error = await assertRejects(() => runPrepare(...flags, "--out", `${dir}/out`), UserError);
    assertMatch(
      error.message,
      /a\.jsonl:250: .*; the first \d+ documents are done, the same command goes on behind them$/,
    );
    const { work, meta } = await runPrepare(...flags, "--out", `${dir}/out`, "--skip_bad");
    assert(work!.documents_before > 0);
    assertEquals(meta.left_out, { empty: 120, duplicates: 0, bad: 1 });
    await runPrepare(...flags, "--out", `${dir}/whole`, "--skip_bad");
    assertEquals(readAll(`${dir}/out`), readAll(`${dir}/whole`));
  }));

Deno.test("prepare() keeps what is done when a server loses a file, and goes on when it is there again", () =>
  inDirectory(async (dir) => {
    blocks(`${dir}/a.jsonl`);
    const bytes = Deno.readFileSync(`${dir}/a.jsonl`);
    let end = Infinity; // bytes from here on are gone
    await using server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
      const [from, to] = /bytes=(\d+)-(\d+)/.exec(request.headers.get("range")!)!.slice(1).map(Number);
      if (from! >= end) return new Response(null, { status: 404 });
      return new Response(bytes.slice(from, Math.min(to! + 1, end)), {
        status: 206,
        headers: { etag: '"1"', "content-range": `bytes ${from}-${to}/${bytes.length}` },
      });
    });
    const url = `http://127.0.0.1:${server.addr.port}/a.jsonl`, flags = ["--input", url, ...FLAGS];
    const { meta } = await runPrepare(...flags, "--out", `${dir}/whole`);
    assertEquals(meta.inputs, [{ name: url, bytes: bytes.length, version: '"1"' }]);
    end = 4_000_000;
    const error = await assertRejects(() => runPrepare(...flags, "--out", `${dir}/out`), UserError);
    assertMatch(
      error.message,
      /^Cannot read "http.*404.*; the first \d+ documents are done, the same command/,
    );
    end = Infinity;
    const { work } = await runPrepare(...flags, "--out", `${dir}/out`);
    assert(work!.documents_before > 0);
    assertEquals(readAll(`${dir}/out`), readAll(`${dir}/whole`));
  }));

Deno.test("prepare() names an input that is gone when its turn comes, and says what is done", () =>
  inDirectory(async (dir) => {
    for (const name of ["a", "b"]) jsonl(`${dir}/${name}.jsonl`, TEXTS);
    const command = parseCommand(
      [
        "--workers=1",
        "--input",
        `${dir}/a.jsonl`,
        `${dir}/b.jsonl`,
        "--shard_tokens=10",
        "--out",
        `${dir}/out`,
      ],
    );
    assert("prepare" in command);
    const show = () => ({
      advance: () => Promise.resolve(Deno.removeSync(`${dir}/b.jsonl`)),
      stop: () => Promise.resolve(),
    });
    const error = await assertRejects(() => prepare(command.prepare, show), UserError);
    assertEquals(
      error.message.replaceAll(dir, "DIR"),
      "Cannot read \"DIR/b.jsonl\": No such file or directory (os error 2): open 'DIR/b.jsonl'; " +
        "the first 50 documents are done, the same command goes on behind them",
    );
  }));
