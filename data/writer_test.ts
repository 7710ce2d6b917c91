import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { sha256OfFile } from "../ffi/files.ts";
import { openDataset, readTokens, tokenBytes, verifyDataset } from "./bins.ts";
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

Deno.test("DatasetWriter leaves what openDataset() refuses when it is interrupted", () =>
  withDirectory((dir) => {
    writeDataset(dir);
    Deno.renameSync(`${dir}/meta.json`, `${dir}/meta.json.tmp`);
    assertThrows(() => openDataset(dir), UserError, `Cannot use "${dir}": preparing it was interrupted`);
    writeDataset(dir, { overwrite: true }); // and preparing again clears it away
    assertEquals(names(dir).includes("meta.json.tmp"), false);
  }));
