import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import type { Dataset } from "./bins.ts";
import { type Mix, openData, partsOf } from "./mix.ts";
import { CYCLE } from "./order.ts";

/** A dataset that needs no files. */
function fake(dir: string, fields: Partial<Dataset> = {}): Dataset {
  const shard = (file: string) => ({
    path: `${dir}/${file}`,
    tokens: 9,
    header_bytes: 1024,
    token_bytes: 2 as const,
  });
  return {
    dir,
    format: "loam",
    assumed: [],
    tokenizer: "gpt2",
    vocab_size: 50257,
    bos: 50256,
    eot: 50256,
    train: [shard("train_000000.bin")],
    val: [shard("val_000000.bin")],
    sha256: { "train_000000.bin": `${dir}1`, "val_000000.bin": `${dir}2` },
    ...fields,
  };
}

function refuse(data_dir: string, message: string, open: (dir: string) => Dataset = fake): void {
  assertEquals(assertThrows(() => openData(data_dir, open), UserError).message, message);
}

Deno.test("openData() opens a single directory as it is", () => {
  const dataset = fake("data/c4");
  assertEquals(openData("data/c4", () => dataset), dataset);
  assertEquals(partsOf(dataset), [{ dataset, slots: CYCLE }]);
});

Deno.test("openData() joins datasets to one whose checksums cover all of them", () => {
  const mix = openData("data/a:3,data/b:1", fake);
  assert("parts" in mix);
  assertEquals(partsOf(mix).map(({ dataset, slots }) => [dataset.dir, slots]), [["data/a", 7500], [
    "data/b",
    2500,
  ]]);
  const { dir, format, tokenizer, vocab_size, eot, train, val, sha256 }: Mix = mix;
  assertEquals([dir, format], ["data/a:3,data/b:1", "mix"]);
  assertEquals([tokenizer, vocab_size, eot], ["gpt2", 50257, 50256]);
  assertEquals(train.map(({ path }) => path), ["data/a/train_000000.bin", "data/b/train_000000.bin"]);
  assertEquals(val.map(({ path }) => path), ["data/a/val_000000.bin", "data/b/val_000000.bin"]);
  assertEquals(sha256, {
    "data/a/train_000000.bin": "data/a1",
    "data/a/val_000000.bin": "data/a2",
    "data/b/train_000000.bin": "data/b1",
    "data/b/val_000000.bin": "data/b2",
  });
});

Deno.test("openData() knows the bytes of a mix where those of each part with a val split are known", () => {
  const bytes: Record<string, number> = { "data/a": 30, "data/b": 12 };
  const open = (dir: string) => fake(dir, { val_bytes: bytes[dir], ...dir === "data/d" && { val: [] } });
  assertEquals(openData("data/a:3,data/b:1", open).val_bytes, 42);
  assertEquals(openData("data/a:3,data/d:1", open).val_bytes, 30);
  assertEquals(openData("data/a:3,data/c:1", open).val_bytes, undefined);
});

Deno.test("openData() takes a name with a colon or a comma for a directory if there is one", () => {
  const dir = Deno.makeTempDirSync();
  try {
    for (const name of ["snap:2024", "a:1,b:2"]) Deno.mkdirSync(`${dir}/${name}`);
    const dirsOf = (data_dir: string) => partsOf(openData(data_dir, fake)).map(({ dataset }) => dataset.dir);
    assertEquals(dirsOf(`${dir}/a:1,b:2`), [`${dir}/a:1,b:2`]);
    assertEquals(dirsOf(`${dir}/snap:2024`), [`${dir}/snap:2024`]);
    assertEquals(dirsOf(`${dir}/snap:2024:3,data/b:1`), [`${dir}/snap:2024`, "data/b"]);
    const how = "it should be a directory and a weight above 0, such as data/fineweb:0.8,data/code:0.2";
    refuse(`${dir}/snap:2024,data/b:1`, `Cannot mix in "${dir}/snap:2024": ${how}`);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

Deno.test("openData() says how a mix is written", () => {
  const how = "it should be a directory and a weight above 0, such as data/fineweb:0.8,data/code:0.2";
  refuse("data/a:1,data/b", `Cannot mix in "data/b": ${how}`);
  refuse("data/a:1,", `Cannot mix in "": ${how}`);
  for (const weight of ["", "0", "-1", "half", "1e-3", "0.0"]) {
    refuse(`data/a:1,data/b:${weight}`, `Cannot mix in "data/b:${weight}": ${how}`);
  }
  refuse(
    "data/a:1,data/b:0.00001",
    'Cannot mix in "data/b" with weight 0.00001: that is less than one of 10000 windows; use a larger weight',
  );
  refuse(
    "data/a:0.00001,data/b:1",
    'Cannot mix in "data/a" with weight 0.00001: that is less than one of 10000 windows; use a larger weight',
  );
  refuse("data/a:1,data/a/:1", 'Cannot mix in "data/a/" twice: name it once, with the sum of the weights');
});

Deno.test("openData() refuses datasets whose ids do not mean the same", () => {
  const refuseB = (fields: Partial<Dataset>, what: string) =>
    refuse(
      "data/a:1,data/b:1",
      `Cannot mix "data/a" and "data/b": ${what}; prepare both with the same --tokenizer`,
      (dir) => fake(dir, dir === "data/b" ? fields : {}),
    );
  refuseB({ tokenizer: "bytes", vocab_size: 257, eot: 256 }, "tokenizer is gpt2 and bytes");
  refuseB({ tokenizer: null }, "tokenizer is gpt2 and null");
  refuseB({ vocab_size: 50300 }, "vocab_size is 50257 and 50300");
  refuseB({ eot: 0 }, "eot is 50256 and 0");
  refuseB({ bos: 1 }, "the token that documents begin with is 50256 and 1");
  refuseB({ eot: 50257 }, "eot is 50256 and 50257");
});

Deno.test("openData() compares the tokenizer.json of datasets that hold their own", () => {
  const dir = Deno.makeTempDirSync();
  try {
    for (
      const [name, text] of [["a", '{"model":1,"post_processor":{}}'], ["b", '{"model":1}'], [
        "c",
        '{"model":2}',
      ]]
    ) {
      Deno.mkdirSync(`${dir}/${name}`);
      Deno.writeTextFileSync(`${dir}/${name}/tokenizer.json`, text!);
    }
    const open = (dir: string) => fake(dir, { tokenizer: dir });
    assert("parts" in openData(`${dir}/a:1,${dir}/b:1`, open));
    assertThrows(
      () => openData(`${dir}/a:1,${dir}/c:1`, open),
      UserError,
      `tokenizer is ${dir}/a and ${dir}/c; prepare both`,
    );
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});
