import { assertEquals } from "@std/assert";
import { watchChanges } from "../../base/files.ts";
import { type Meta, metaText } from "../meta.ts";
import { inDirectory, names } from "../testing.ts";
import { publish } from "./publish.ts";

const SIZE = { documents: 1, tokens: 1, bytes: 1 };

/** A meta.json of these shards. */
function metaOf(tokenizer: string, ...shards: string[]): Meta {
  const meta: Partial<Meta> = {
    format: "loam-bins",
    version: 1,
    tokenizer,
    vocab_size: 257,
    eot: 256,
    train: SIZE,
    val: SIZE,
    left_out: { empty: 0, duplicates: 0, bad: 0 },
    shards: shards.map((file) => ({ file, tokens: 1, sha256: "" })),
  };
  return meta as Meta;
}

Deno.test("publish() changes nothing before what it stands on is on the disk", () =>
  inDirectory((dir) => {
    for (const name of ["train_000001.bin", "tokenizer.json", "meta.json", "notes.txt"]) { // of an older dataset
      Deno.writeTextFileSync(`${dir}/${name}`, "old");
    }
    Deno.mkdirSync(`${dir}/unfinished`);
    for (const name of ["val_000000.bin", "state.json"]) {
      Deno.writeTextFileSync(`${dir}/unfinished/${name}`, "");
    }
    const meta = metaOf(".", "val_000000.bin"), done: string[][] = [[]];
    {
      using _ = watchChanges(({ kind, path }) => {
        const what = `${kind} ${path.slice(dir.length).replace(/\.\d+\.tmp$/, ".tmp")}`;
        if (kind === "sync" || kind === "rename" || kind === "remove") {
          done.at(-1)!.push(what);
        }
        if (kind === "syncDirectory") done.push([what], []); // what stands between two may be in any order
      });
      publish(dir, meta, { "tokenizer.json": "new" });
    }
    assertEquals(done.map((changes) => changes.sort()).filter(({ length }) => length > 0), [
      [
        "rename /unfinished/meta.json.tmp",
        "sync /unfinished/meta.json.tmp",
        "sync /unfinished/tokenizer.json",
      ],
      ["syncDirectory /unfinished"],
      ["syncDirectory /unfinished"],
      ["remove /meta.json"],
      ["syncDirectory "],
      [
        "remove /train_000001.bin",
        "remove /unfinished/state.json",
        "rename /unfinished/tokenizer.json",
        "rename /unfinished/val_000000.bin",
      ],
      ["syncDirectory /unfinished"],
      ["syncDirectory "],
      ["remove /unfinished", "rename /unfinished/meta.json"],
      ["syncDirectory "],
    ]);
    assertEquals(names(dir), ["meta.json", "notes.txt", "tokenizer.json", "val_000000.bin"]);
    assertEquals(Deno.readTextFileSync(`${dir}/tokenizer.json`), "new");
    assertEquals(Deno.readTextFileSync(`${dir}/meta.json`), metaText(meta));
  }));

Deno.test("publish() of a dataset with a tokenizer of ours removes the one that was there", () =>
  inDirectory((dir) => {
    Deno.writeTextFileSync(`${dir}/tokenizer.json`, "old");
    Deno.mkdirSync(`${dir}/unfinished`);
    publish(dir, metaOf("bytes"), {});
    assertEquals(names(dir), ["meta.json"]);
  }));
