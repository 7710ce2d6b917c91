import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { bitsPerByte, openDataset, readTokens, shardHeader, tokenBytes, verifyDataset } from "./bins.ts";
import { jsonl, runPrepare, TEXTS } from "./prepare/testing.ts";
import { inDirectory } from "./testing.ts";

/** Bytes of a shard in llm.c's format. */
function shard(token_bytes: 2 | 4, tokens: number[]): Uint8Array {
  const body = token_bytes === 2 ? Uint16Array.from(tokens) : Uint32Array.from(tokens);
  return Uint8Array.from([...shardHeader(token_bytes, tokens.length), ...new Uint8Array(body.buffer)]);
}

/** Writes a dataset of shards with these tokens, as prepare does. */
function writeDataset(dir: string, shards: Record<string, number[]>, vocab_size = 300): void {
  for (const [file, tokens] of Object.entries(shards)) {
    Deno.writeFileSync(`${dir}/${file}`, shard(tokenBytes(vocab_size), tokens));
  }
  const size = { documents: 2, tokens: 8, bytes: 6 };
  const meta = {
    format: "loam-bins",
    version: 1,
    tokenizer: ".", // which may have any vocabulary
    vocab_size,
    eot: vocab_size - 1,
    token_bytes: tokenBytes(vocab_size),
    train: size,
    val: size,
    inputs: [],
    options: {},
    shards: Object.entries(shards).map(([file, { length }]) => ({
      file,
      tokens: length,
      sha256: sha256OfFile(`${dir}/${file}`),
    })),
  };
  Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify(meta));
}

const SHARDS = {
  "train_000000.bin": [299, 0, 1, 2],
  "train_000001.bin": [299, 3, 4, 5, 299, 6, 7, 8],
  "val_000000.bin": [299, 7, 8],
};

for (const vocab_size of [300, 65_535, 65_536]) {
  const token_bytes = vocab_size > 65_535 ? 4 : 2;
  Deno.test(`openDataset() reads shards and meta.json of ${vocab_size} ids`, () =>
    inDirectory((dir) => {
      writeDataset(dir, SHARDS, vocab_size);
      const dataset = verifyDataset(dir), header_bytes = 1024;
      assertEquals(dataset, {
        dir,
        format: "loam",
        assumed: [],
        tokenizer: dir,
        vocab_size,
        bos: vocab_size - 1, // where meta.json does not say it
        eot: vocab_size - 1,
        train: [
          { path: `${dir}/train_000000.bin`, tokens: 4, header_bytes, token_bytes },
          { path: `${dir}/train_000001.bin`, tokens: 8, header_bytes, token_bytes },
        ],
        val: [{ path: `${dir}/val_000000.bin`, tokens: 3, header_bytes, token_bytes }],
        val_bytes: 6,
        sha256: Object.fromEntries(
          Object.keys(SHARDS).map((file) => [file, sha256OfFile(`${dir}/${file}`)]),
        ),
      });
      assertEquals(Array.from(readTokens(dataset.train[1]!, 0, 8)), SHARDS["train_000001.bin"]);
      assertEquals(Array.from(readTokens(dataset.train[0]!, 1, 3)), [0, 1, 2]);
    }));
}

Deno.test("bitsPerByte() spreads a loss in nats a token over the bytes of the val split, where they are known", () =>
  inDirectory((dir) => {
    writeDataset(dir, SHARDS);
    const dataset = openDataset(dir); // 3 tokens of val, 6 bytes
    assertEquals(bitsPerByte(4 * Math.log(2), dataset), 2);
    for (const val_bytes of [undefined, 0]) {
      assertEquals(bitsPerByte(1, { ...dataset, val_bytes }), undefined);
    }
    const masked = dataset.val.map((shard) => ({ ...shard, mask: "val_000000.mask" }));
    assertEquals(bitsPerByte(1, { ...dataset, val: masked }), undefined);
    const meta = JSON.parse(Deno.readTextFileSync(`${dir}/meta.json`));
    for (const val of [undefined, {}, { bytes: "6" }]) {
      Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify({ ...meta, val }));
      assertEquals(openDataset(dir).val_bytes, undefined);
    }
  }));

Deno.test("openDataset() refuses what prepare has not finished", () =>
  inDirectory((dir) => {
    const refuse = (message: string) =>
      assertEquals(assertThrows(() => openDataset(dir), UserError).message, message);
    const interrupted =
      `Cannot use "${dir}": preparing it was interrupted; run again: deno task prepare --out ${dir} ...`;
    Deno.writeTextFileSync(`${dir}/meta.json.tmp`, "");
    refuse(interrupted);
    Deno.removeSync(`${dir}/meta.json.tmp`);
    Deno.mkdirSync(`${dir}/unfinished`);
    Deno.writeFileSync(`${dir}/train_000000.bin`, shard(2, [1])); // moved up, when a crash came before meta.json
    Deno.writeFileSync(`${dir}/val_000000.bin`, shard(2, [1]));
    refuse(interrupted);
    Deno.removeSync(`${dir}/unfinished`);
    for (const part of ["part_1_of_2", "part_2_of_2"]) Deno.mkdirSync(`${dir}/${part}`);
    assertThrows(
      () => openDataset(dir),
      UserError,
      `Cannot use "${dir}": it has parts (part_1_of_2, ...) but no meta.json; when all of them are prepared, run: deno task prepare --merge --out ${dir}`,
    );
    for (const part of ["part_1_of_2", "part_2_of_2"]) Deno.removeSync(`${dir}/${part}`);
    Deno.mkdirSync(`${dir}/part_11_of_12`);
    assertThrows(() => openDataset(dir), UserError, "it has parts (part_11_of_12, ...) but no meta.json");
  }));

Deno.test("openDataset() names the command that makes a dataset where there is none", () =>
  inDirectory((dir) => {
    assertThrows(
      () => openDataset(dir),
      UserError,
      `make a dataset: deno task prepare --input FILES --out ${dir}`,
    );
    assertThrows(
      () => openDataset(`${dir}/no`),
      UserError,
      `Cannot open dataset "${dir}/no": there is no such directory`,
    );
  }));

Deno.test("openDataset() finds a shard of the wrong size", () =>
  inDirectory((dir) => {
    writeDataset(dir, SHARDS);
    const path = `${dir}/train_000001.bin`;
    Deno.truncateSync(path, 1030);
    assertThrows(
      () => openDataset(dir),
      UserError,
      `Cannot use "${path}": it has 1030 bytes, its header with 8 tokens says 1040; ` +
        "write the dataset again: deno task prepare --overwrite ...",
    );
    Deno.writeFileSync(path, shard(2, [1, 2]));
    assertThrows(() => openDataset(dir), UserError, "it has 2 tokens, meta.json says 8");
    Deno.writeFileSync(path, Uint8Array.of(...shard(2, [1, 2, 3, 4, 5, 6, 7, 8]), 9, 9));
    assertThrows(() => openDataset(dir), UserError, "it has 1042 bytes, its header with 8 tokens says 1040");
    Deno.removeSync(path);
    assertThrows(() => openDataset(dir), UserError, "the file is missing");
  }));

Deno.test("openDataset() refuses a directory that is called like a shard", () =>
  inDirectory((dir) => {
    Deno.mkdirSync(`${dir}/train.bin`);
    assertThrows(
      () => openDataset(dir),
      UserError,
      `Cannot read "${dir}/train.bin": Is a directory (os error 21)`,
    );
  }));

Deno.test("openDataset() refuses shards and meta.json of another kind", () =>
  inDirectory((dir) => {
    writeDataset(dir, SHARDS);
    Deno.writeFileSync(`${dir}/val_000000.bin`, new Uint8Array(1030));
    assertThrows(() => openDataset(dir), UserError, "it begins with 0 0, should be 20240520 1 or 20240801 7");
    const later = shard(2, [299, 7, 8]);
    later[4] = 2; // the version
    Deno.writeFileSync(`${dir}/val_000000.bin`, later);
    assertThrows(() => openDataset(dir), UserError, "it begins with 20240520 2, should be 20240520 1 or");
    Deno.writeTextFileSync(`${dir}/meta.json`, '{"format":"loam-bins","version":2}');
    assertThrows(() => openDataset(dir), UserError, "its format is loam-bins 2, should be loam-bins 1");
    Deno.writeTextFileSync(`${dir}/meta.json`, '{"format":');
    assertThrows(() => openDataset(dir), UserError, 'meta.json": Unexpected end of JSON input');
  }));

Deno.test("openDataset() names the field of meta.json that is missing or wrong", () =>
  inDirectory((dir) => {
    writeDataset(dir, SHARDS);
    const path = `${dir}/meta.json`, meta = JSON.parse(Deno.readTextFileSync(path));
    const refuse = (contents: unknown, what: string) => {
      Deno.writeTextFileSync(path, JSON.stringify(contents));
      assertEquals(
        assertThrows(() => openDataset(dir), UserError).message,
        `Cannot use "${path}": ${what}; write the dataset again: deno task prepare --overwrite ...`,
      );
    };
    refuse(null, "it is null, should be an object");
    refuse([], "it is [], should be an object");
    refuse(
      { ...meta, tokenizer: undefined },
      'tokenizer is missing, should be gpt2, cl100k, o200k, bytes or "."',
    );
    refuse({ ...meta, vocab_size: undefined }, "vocab_size is missing, should be a whole number above 0");
    refuse({ ...meta, vocab_size: "300" }, 'vocab_size is "300", should be a whole number above 0');
    refuse({ ...meta, eot: 300 }, "eot is 300, should be an id below vocab_size 300");
    refuse({ ...meta, bos: 1.5 }, "bos is 1.5, should be an id below vocab_size 300");
    refuse({ ...meta, shards: undefined }, "shards is missing, should be a list");
    const shards = [{ file: "train_000000.bin" }];
    refuse(
      { ...meta, shards },
      'shards[0] is {"file":"train_000000.bin"}, should be an object with file, tokens and sha256',
    );
  }));

Deno.test("openDataset() refuses a vocab_size that is not the tokenizer's", () =>
  inDirectory((dir) => {
    writeDataset(dir, { "train_000000.bin": [256, 5], "val_000000.bin": [256] }, 257);
    const path = `${dir}/meta.json`, meta = JSON.parse(Deno.readTextFileSync(path));
    const write = (tokenizer: string) => Deno.writeTextFileSync(path, JSON.stringify({ ...meta, tokenizer }));
    write("bytes");
    assertEquals(openDataset(dir).vocab_size, 257);
    write("gpt2");
    assertThrows(
      () => openDataset(dir),
      UserError,
      `Cannot use "${path}": vocab_size is 257, should be 50257, which is that of tokenizer gpt2; `,
    );
  }));

Deno.test("verifyDataset() finds a changed byte", () =>
  inDirectory((dir) => {
    writeDataset(dir, SHARDS);
    const bytes = Deno.readFileSync(`${dir}/val_000000.bin`);
    bytes[1025]! ^= 1;
    Deno.writeFileSync(`${dir}/val_000000.bin`, bytes);
    openDataset(dir);
    assertThrows(() => verifyDataset(dir), UserError, `Cannot use "${dir}/val_000000.bin": its SHA-256 is `);
  }));

Deno.test("verifyDataset() finds every changed character of meta.json, and takes one that was written by hand", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/a.jsonl`, TEXTS.slice(0, 9));
    await runPrepare(
      "--input",
      `${dir}/a.jsonl`,
      "--out",
      `${dir}/out`,
      "--tokenizer=bytes",
      "--val_fraction=0.3",
    );
    const path = `${dir}/out/meta.json`, text = Deno.readTextFileSync(path);
    const { meta_sha256, ...meta } = JSON.parse(text);
    const shards = meta.shards.map((shard: object) => ({ ...shard, sha256: "" })); // which the shards show
    assertEquals(meta_sha256, sha256OfText(JSON.stringify({ ...meta, shards })));
    verifyDataset(`${dir}/out`);
    for (let at = 0; at < text.length; at++) {
      if (/\s/.test(text[at]!)) continue; // between values it means nothing
      const other = String.fromCharCode(text.charCodeAt(at) ^ 1);
      Deno.writeTextFileSync(path, text.slice(0, at) + other + text.slice(at + 1));
      assertThrows(() => verifyDataset(`${dir}/out`), UserError, `Cannot use "`, text.slice(at - 9, at + 9));
    }
    Deno.writeTextFileSync(path, JSON.stringify(meta));
    verifyDataset(`${dir}/out`);
    for (const file of ["../train_000000.bin", "/etc/passwd", "a/b.bin", ""]) {
      const shards = [{ ...meta.shards[0], file }];
      Deno.writeTextFileSync(path, JSON.stringify({ ...meta, shards }));
      assertThrows(() => openDataset(`${dir}/out`), UserError, "shards[0] is ");
    }
  }));

function sha256OfText(text: string): string {
  const { stdout } = new Deno.Command("sh", { args: ["-c", 'printf %s "$0" | sha256sum', text] })
    .outputSync();
  return new TextDecoder().decode(stdout).slice(0, 64);
}
