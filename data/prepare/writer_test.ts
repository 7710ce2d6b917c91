import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { sha256OfFile, watchChanges } from "../../base/files.ts";
import { checkWritten, type Ids, ShardWriter, type Written } from "./writer.ts";
import { inDirectory, names } from "../testing.ts";

/** Documents of these lengths: 9 0, 9 1 1, 9 2 2 2, ... with 9 for the end-of-text token, counted in their length. */
function documents(...lengths: number[]): [Uint16Array<ArrayBuffer>, Uint32Array] {
  const ids = lengths.flatMap((length, d) => [9, ...new Array(length - 1).fill(d)]);
  let end = 0;
  return [Uint16Array.from(ids), Uint32Array.from(lengths, (length) => end += length)];
}

/** The tokens of a shard of uint16. */
function tokens(path: string): number[] {
  return Array.from(new Uint16Array(Deno.readFileSync(path).buffer, 1024));
}

const options = { token_bytes: 2, shard_tokens: 6 } as const;

Deno.test("ShardWriter ends a shard with the document that fills it, wherever appends begin and end", () =>
  inDirectory((dir) => {
    const lengths = [4, 1, 3, 2, 4, 13, 2, 2];
    for (const cuts of [[8], [1, 1, 1, 1, 1, 1, 1, 1], [3, 5], [5, 3]]) {
      using writer = new ShardWriter(dir, options);
      let from = 0;
      for (const n of cuts) writer.append("train", ...documents(...lengths.slice(from, from += n)));
      const shards = writer.finish();
      assertEquals(shards.map(({ tokens }) => tokens), [8, 6, 13, 4]);
      assertEquals(shards.map(({ file }) => file), names(dir));
      assertEquals(
        shards.map(({ sha256 }) => sha256),
        names(dir).map((name) => sha256OfFile(`${dir}/${name}`)),
      );
      assertEquals(tokens(`${dir}/train_000001.bin`).length, 6);
    }
  }));

Deno.test("ShardWriter writes llm.c's header byte for byte", () =>
  inDirectory((dir) => {
    using writer = new ShardWriter(dir, options);
    writer.append("val", Uint16Array.of(299, 7, 8), Uint32Array.of(3));
    writer.finish();
    const bytes = Deno.readFileSync(`${dir}/val_000000.bin`), header = new Int32Array(bytes.buffer, 0, 256);
    assertEquals([...header.subarray(0, 3)], [20240520, 1, 3]);
    assertEquals(header.subarray(3).every((word) => word === 0), true);
    assertEquals([...bytes.subarray(1024)], [43, 1, 7, 0, 8, 0]);
  }));

Deno.test("ShardWriter writes ids of 4 bytes behind the header that says so", () =>
  inDirectory((dir) => {
    using writer = new ShardWriter(dir, { token_bytes: 4, shard_tokens: 6 });
    writer.append("val", Uint32Array.of(70_000, 7), Uint32Array.of(2));
    writer.finish();
    const words = new Int32Array(Deno.readFileSync(`${dir}/val_000000.bin`).buffer);
    assertEquals([...words.subarray(0, 3), ...words.subarray(256)], [20240801, 7, 2, 70_000, 7]);
  }));

/** Appends to train and val, several times. */
function appendSome(writer: ShardWriter): void {
  for (let i = 0; i < 3; i++) {
    writer.append("train", ...documents(3, 2));
    writer.append("val", ...documents(2));
  }
}

Deno.test("ShardWriter goes on from its last commit and cuts off what came after", () =>
  inDirectory((parent) => {
    const whole = `${parent}/whole`, killed = `${parent}/killed`;
    for (const dir of [whole, killed]) Deno.mkdirSync(dir);
    {
      using writer = new ShardWriter(whole, options);
      for (let i = 0; i < 3; i++) appendSome(writer);
      writer.finish();
    }
    let written: Written | undefined;
    for (let i = 0; i < 3; i++) {
      using writer = new ShardWriter(killed, options, written);
      appendSome(writer);
      written = writer.commit();
      appendSome(writer); // lost
      if (i === 1) writer.finish(); // also when the shards got their names
    }
    using writer = new ShardWriter(killed, options, written);
    writer.finish();
    assertEquals(names(killed), names(whole));
    for (const name of names(whole)) {
      assertEquals(Deno.readFileSync(`${killed}/${name}`), Deno.readFileSync(`${whole}/${name}`), name);
    }
  }));

Deno.test("ShardWriter cuts off what came after its last commit also where nothing follows", () =>
  inDirectory((dir) => {
    let written: Written | undefined;
    {
      using writer = new ShardWriter(dir, options);
      writer.append("train", ...documents(3));
      written = writer.commit();
      writer.append("train", ...documents(2)); // lost
    }
    using writer = new ShardWriter(dir, options, written);
    writer.finish();
    assertEquals(tokens(`${dir}/train_000000.bin`), [9, 0, 0]);
  }));

Deno.test("ShardWriter.commit() syncs shards and then their names, and finish() syncs a shard before it is named", () =>
  inDirectory((dir) => {
    using writer = new ShardWriter(dir, options);
    writer.append("train", ...documents(3));
    writer.append("val", ...documents(2));
    const syncs: string[] = [];
    using _ = watchChanges(({ kind, path }) => {
      if (/sync|rename/.test(kind)) syncs.push(`${kind} ${path.slice(dir.length)}`);
    });
    writer.commit();
    const [train, val] = ["/train_000000.bin.tmp", "/val_000000.bin.tmp"];
    assertEquals(syncs.splice(0), [`sync ${train}`, `sync ${val}`, "syncDirectory "]);
    writer.finish();
    assertEquals(syncs, [
      ...[train, val].flatMap((path) => [`sync ${path}`, `rename ${path}`]),
      "syncDirectory ",
    ]);
  }));

Deno.test("ShardWriter without a commit to go on from removes what is there", () =>
  inDirectory((dir) => {
    for (const name of ["state.json", "train_000000.bin", "train_000001.bin.tmp"]) {
      Deno.writeTextFileSync(`${dir}/${name}`, "old");
    }
    using writer = new ShardWriter(dir, options);
    assertEquals(names(dir), []);
    writer.append("train", ...documents(2));
    assertEquals(names(dir), ["train_000000.bin.tmp"]);
  }));

Deno.test("checkWritten() refuses shards that are shorter than was committed", () =>
  inDirectory((dir) => {
    let written: Written | undefined;
    {
      using writer = new ShardWriter(dir, options);
      writer.append("train", ...documents(7, 5));
      written = writer.commit();
    }
    Deno.truncateSync(`${dir}/train_000001.bin.tmp`, 1030);
    const goOn = () => checkWritten(dir, 2, written!);
    const advice = "start over with --overwrite";
    assertThrows(
      goOn,
      UserError,
      `Cannot go on in "${dir}": train_000001.bin.tmp has 1030 bytes, state.json says 1034; ${advice}`,
    );
    Deno.removeSync(`${dir}/train_000000.bin`);
    assertThrows(goOn, UserError, `train_000000.bin has 0 bytes, state.json says 1038; ${advice}`);
  }));

Deno.test("ShardWriter names the shard that it cannot write", () =>
  inDirectory((dir) => {
    Deno.mkdirSync(`${dir}/train_000000.bin.tmp`);
    using writer = new ShardWriter(dir, options);
    Deno.mkdirSync(`${dir}/train_000000.bin.tmp`);
    const ids: Ids = Uint16Array.of(9);
    assertThrows(
      () => writer.append("train", ids, Uint32Array.of(1)),
      UserError,
      `Cannot write "${dir}/train_000000.bin": `,
    );
  }));

Deno.test("ShardWriter writes a mask beside each shard, and cuts it back with its shard", () =>
  inDirectory((parent) => {
    const masked = { ...options, masks: true }, whole = `${parent}/whole`, killed = `${parent}/killed`;
    for (const dir of [whole, killed]) Deno.mkdirSync(dir);
    const append = (writer: ShardWriter, first: number) => {
      const [ids, ends] = documents(3, 2, 4);
      writer.append("train", ids, ends, Uint8Array.from(ids, (_, i) => first + i));
    };
    {
      using writer = new ShardWriter(whole, masked);
      for (const first of [10, 30, 50]) append(writer, first);
      const shards = writer.finish();
      assertEquals(shards.map(({ tokens }) => tokens), [9, 9, 9]);
      for (const { file, mask_sha256 } of shards) {
        assertEquals(mask_sha256, sha256OfFile(`${whole}/${file.replace(".bin", ".mask")}`));
      }
      assertEquals([...Deno.readFileSync(`${whole}/train_000001.mask`)], [
        30,
        31,
        32,
        33,
        34,
        35,
        36,
        37,
        38,
      ]);
    }
    const larger = { ...masked, shard_tokens: 100 };
    let written: Written;
    {
      using writer = new ShardWriter(killed, larger);
      append(writer, 10);
      written = writer.commit();
      append(writer, 90); // lost
    }
    using writer = new ShardWriter(killed, larger, written);
    append(writer, 30);
    writer.finish();
    const both = [10, 30].flatMap((first) => Array.from({ length: 9 }, (_, i) => first + i));
    assertEquals([...Deno.readFileSync(`${killed}/train_000000.mask`)], both);
    assertThrows(
      () => checkWritten(killed, 2, { ...written, train: { shards: [], open: 19 } }, true),
      UserError,
      "train_000000.bin.tmp has 1060 bytes, state.json says 1062",
    );
  }));
