import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { sha256OfFile } from "../ffi/files.ts";
import { openDataset, readTokens, shardHeader, tokenBytes, verifyDataset } from "./bins.ts";
import { DatasetWriter } from "./writer.ts";

function withDirectory(run: (directory: string) => void): void {
  const directory = Deno.makeTempDirSync();
  try {
    run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

/** Writes documents 1 2 3, 4 5, ... of a vocabulary to a dataset with small shards. */
function writeDataset(dir: string, { vocab_size = 300, overwrite = false, documents = 4 } = {}): void {
  using writer = new DatasetWriter(dir, { vocab_size, shard_tokens: 6, overwrite });
  const eot = vocab_size - 1;
  for (let i = 0; i < documents; i++) writer.append("train", eot, Uint32Array.of(i, i + 1, i + 2));
  writer.append("val", eot, Uint32Array.of(7, 8));
  const size = { documents, tokens: 4 * documents, bytes: 3 * documents };
  writer.finish({
    format: "loam-bins",
    version: 1,
    tokenizer: ".", // which may have any vocabulary
    vocab_size,
    eot,
    token_bytes: tokenBytes(vocab_size),
    train: size,
    val: { documents: 1, tokens: 3, bytes: 2 },
    inputs: [],
    options: {},
  }, {});
}

/** Bytes of a shard in llm.c's format. */
function shard(token_bytes: 2 | 4, tokens: number[]): Uint8Array {
  const body = token_bytes === 2 ? Uint16Array.from(tokens) : Uint32Array.from(tokens);
  return Uint8Array.from([...shardHeader(token_bytes, tokens.length), ...new Uint8Array(body.buffer)]);
}

function names(dir: string): string[] {
  return Array.from(Deno.readDirSync(dir), (entry) => entry.name).sort();
}

for (const vocab_size of [300, 65_535, 65_536]) {
  const token_bytes = vocab_size > 65_535 ? 4 : 2;
  Deno.test(`openDataset() reads what DatasetWriter wrote with ${vocab_size} ids`, () =>
    withDirectory((dir) => {
      writeDataset(dir, { vocab_size });
      const eot = vocab_size - 1;
      const dataset = verifyDataset(dir);
      assertEquals(names(dir), ["meta.json", "train_000000.bin", "train_000001.bin", "val_000000.bin"]);
      assertEquals(dataset, {
        dir,
        format: "loam",
        tokenizer: dir,
        vocab_size,
        eot,
        train: [
          { path: `${dir}/train_000000.bin`, tokens: 8, header_bytes: 1024, token_bytes },
          { path: `${dir}/train_000001.bin`, tokens: 8, header_bytes: 1024, token_bytes },
        ],
        val: [{ path: `${dir}/val_000000.bin`, tokens: 3, header_bytes: 1024, token_bytes }],
        sha256: Object.fromEntries(
          ["train_000000.bin", "train_000001.bin", "val_000000.bin"].map((
            file,
          ) => [file, sha256OfFile(`${dir}/${file}`)]),
        ),
      });
      assertEquals(Array.from(readTokens(dataset.train[1]!, 0, 8)), [eot, 2, 3, 4, eot, 3, 4, 5]);
      assertEquals(Array.from(readTokens(dataset.train[0]!, 5, 3)), [1, 2, 3]);
    }));
}

Deno.test("DatasetWriter writes llm.c's header byte for byte", () =>
  withDirectory((dir) => {
    writeDataset(dir);
    const bytes = Deno.readFileSync(`${dir}/val_000000.bin`);
    const header = new Int32Array(bytes.buffer, 0, 256);
    assertEquals([...header.subarray(0, 3)], [20240520, 1, 3]);
    assertEquals(header.subarray(3).every((word) => word === 0), true);
    assertEquals([...bytes.subarray(1024)], [43, 1, 7, 0, 8, 0]); // 299, 7, 8
  }));

Deno.test("DatasetWriter refuses to replace a dataset unless told to, and then replaces all of it", () =>
  withDirectory((dir) => {
    writeDataset(dir);
    assertThrows(
      () => writeDataset(dir),
      UserError,
      `Cannot write to "${dir}": it holds a dataset (meta.json, ...); choose another --out, or replace it with --overwrite`,
    );
    Deno.writeTextFileSync(`${dir}/notes.txt`, "kept");
    writeDataset(dir, { overwrite: true, documents: 2 });
    assertEquals(names(dir), ["meta.json", "notes.txt", "train_000000.bin", "val_000000.bin"]);
    verifyDataset(dir);
  }));

Deno.test("DatasetWriter leaves nothing behind when it is not finished", () =>
  withDirectory((parent) => {
    const dir = `${parent}/new`;
    {
      using writer = new DatasetWriter(dir, { vocab_size: 300, shard_tokens: 3, overwrite: false });
      writer.append("train", 299, Uint32Array.of(1, 2, 3));
      writer.append("val", 299, Uint32Array.of(1));
      assertEquals(names(dir), ["prepare.lock", "train_000000.bin.tmp", "val_000000.bin.tmp"]);
    }
    assertEquals(names(parent), []);
  }));

Deno.test("DatasetWriter keeps a second writer out until it is done, whatever that may overwrite", () =>
  withDirectory((parent) => {
    const dir = `${parent}/new`;
    {
      using writer = new DatasetWriter(dir, { vocab_size: 300, shard_tokens: 3, overwrite: false });
      writer.append("train", 299, Uint32Array.of(1, 2, 3));
      const before = names(dir);
      assertThrows(
        () => writeDataset(dir, { overwrite: true }),
        UserError,
        `Cannot write to "${dir}": another deno task prepare is writing there; wait for it to end, or choose another --out`,
      );
      assertEquals(names(dir), before);
    }
    writeDataset(dir);
    assertEquals(names(dir), ["meta.json", "train_000000.bin", "train_000001.bin", "val_000000.bin"]);
  }));

Deno.test("DatasetWriter takes over what a killed one left", () =>
  withDirectory((dir) => {
    for (const file of ["prepare.lock", "train_000007.bin.tmp"]) Deno.writeTextFileSync(`${dir}/${file}`, "");
    writeDataset(dir);
    assertEquals(names(dir), ["meta.json", "train_000000.bin", "train_000001.bin", "val_000000.bin"]);
  }));

Deno.test("DatasetWriter says what keeps it from writing", () =>
  withDirectory((dir) => {
    Deno.writeTextFileSync(`${dir}/file`, "");
    for (const out of [`${dir}/file`, `${dir}/file/out`]) {
      assertThrows(
        () => new DatasetWriter(out, { vocab_size: 300, shard_tokens: 6, overwrite: false }),
        UserError,
        `Cannot write to "${out}": `,
      );
    }
  }));

Deno.test("DatasetWriter refuses ids outside the vocabulary", () =>
  withDirectory((dir) => {
    using writer = new DatasetWriter(dir, { vocab_size: 300, shard_tokens: 6, overwrite: false });
    assertThrows(() => writer.append("train", 299, Uint32Array.of(300)), Error, "internal: token 300");
  }));

Deno.test("openDataset() refuses what an interrupted preparation left", () =>
  withDirectory((dir) => {
    writeDataset(dir);
    Deno.renameSync(`${dir}/meta.json`, `${dir}/meta.json.tmp`);
    assertThrows(
      () => openDataset(dir),
      UserError,
      `Cannot use "${dir}": preparing it was interrupted; run again: deno`,
    );
    writeDataset(dir, { overwrite: true }); // and preparing again clears it away
    assertEquals(names(dir).includes("meta.json.tmp"), false);
  }));

Deno.test("openDataset() names the command that makes a dataset where there is none", () =>
  withDirectory((dir) => {
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
  withDirectory((dir) => {
    writeDataset(dir);
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
    Deno.removeSync(path);
    assertThrows(() => openDataset(dir), UserError, "the file is missing");
  }));

Deno.test("openDataset() refuses shards and meta.json of another kind", () =>
  withDirectory((dir) => {
    writeDataset(dir);
    Deno.writeFileSync(`${dir}/val_000000.bin`, new Uint8Array(1030));
    assertThrows(() => openDataset(dir), UserError, "it begins with 0 0, should be 20240520 1 or 20240801 7");
    Deno.writeTextFileSync(`${dir}/meta.json`, '{"format":"loam-bins","version":2}');
    assertThrows(() => openDataset(dir), UserError, "its format is loam-bins 2, should be loam-bins 1");
    Deno.writeTextFileSync(`${dir}/meta.json`, '{"format":');
    assertThrows(() => openDataset(dir), UserError, 'meta.json": Unexpected end of JSON input');
  }));

Deno.test("openDataset() names the field of meta.json that is missing or wrong", () =>
  withDirectory((dir) => {
    writeDataset(dir);
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
    refuse({ ...meta, tokenizer: undefined }, 'tokenizer is missing, should be gpt2, bytes or "."');
    refuse({ ...meta, vocab_size: undefined }, "vocab_size is missing, should be a whole number above 0");
    refuse({ ...meta, vocab_size: "300" }, 'vocab_size is "300", should be a whole number above 0');
    refuse({ ...meta, eot: 300 }, "eot is 300, should be an id below vocab_size 300");
    refuse({ ...meta, shards: undefined }, "shards is missing, should be a list");
    const shards = [{ file: "train_000000.bin" }];
    refuse(
      { ...meta, shards },
      'shards[0] is {"file":"train_000000.bin"}, should be an object with file, tokens and sha256',
    );
  }));

Deno.test("openDataset() refuses a vocab_size that is not the tokenizer's", () =>
  withDirectory((dir) => {
    writeDataset(dir, { vocab_size: 257 });
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
  withDirectory((dir) => {
    writeDataset(dir);
    const bytes = Deno.readFileSync(`${dir}/val_000000.bin`);
    bytes[1025]! ^= 1;
    Deno.writeFileSync(`${dir}/val_000000.bin`, bytes);
    openDataset(dir);
    assertThrows(() => verifyDataset(dir), UserError, `Cannot use "${dir}/val_000000.bin": its SHA-256 is `);
  }));

Deno.test("openDataset() reads llm.c's directories", () =>
  withDirectory((dir) => {
    for (const name of ["fineweb_train_000002", "fineweb_train_000001", "fineweb_val_000000"]) {
      Deno.writeFileSync(`${dir}/${name}.bin`, shard(2, [50256, 5]));
    }
    const { format, tokenizer, vocab_size, train, val } = openDataset(dir);
    assertEquals([format, tokenizer, vocab_size, val.length], ["llm.c", "gpt2", 50257, 1]);
    assertEquals(train.map((shard) => shard.path.slice(-8)), ["0001.bin", "0002.bin"]);
  }));

Deno.test("openDataset() reads llm.c's Llama 3 tokens as uint32", () =>
  withDirectory((dir) => {
    Deno.writeFileSync(`${dir}/tiny_shakespeare_train.bin`, shard(4, [128_000, 128_001]));
    Deno.writeFileSync(`${dir}/tiny_shakespeare_val.bin`, shard(4, [128_000]));
    const { tokenizer, vocab_size, train } = openDataset(dir);
    assertEquals([tokenizer, vocab_size], [null, 128_256]);
    assertEquals(Array.from(readTokens(train[0]!, 0, 2)), [128_000, 128_001]);
  }));

Deno.test("openDataset() reads nanoGPT's files without a header", () =>
  withDirectory((dir) => {
    Deno.writeFileSync(`${dir}/train.bin`, new Uint8Array(Uint16Array.of(15496, 11, 995).buffer));
    Deno.writeFileSync(`${dir}/val.bin`, new Uint8Array(Uint16Array.of(0).buffer));
    const { format, train, val } = openDataset(dir);
    assertEquals([format, train[0]!.tokens, train[0]!.header_bytes, val[0]!.tokens], ["nanoGPT", 3, 0, 1]);
    assertEquals(Array.from(readTokens(train[0]!, 0, 3)), [15496, 11, 995]);
  }));
