import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { verifyDataset } from "../bins.ts";
import type { SplitOptions } from "./encode.ts";
import { workerEncoders } from "./encoders.ts";
import { documentsOf, interrupt, jsonl, readAll, runPrepare } from "./testing.ts";
import { inDirectory } from "../testing.ts";

/** More than three blocks of documents of all kinds. */
function manyBlocks(path: string): void {
  const long = "Tokens come and go, naïve 🧵 and 中文 too. ".repeat(2000); // 100 kB
  jsonl(
    path,
    Array.from({ length: 60 }, (_, i) => [`${i} ${long.slice(i * 1000).toWellFormed()}`, "", `short ${i}`])
      .flat(),
  );
}

for (const tokenizer of ["gpt2", "bytes"]) {
  Deno.test(`prepare() writes the same files with 1, 2 and 3 workers and ${tokenizer}`, () =>
    inDirectory(async (dir) => {
      manyBlocks(`${dir}/a.jsonl`);
      const flags = [`--tokenizer=${tokenizer}`, "--val_fraction=0.2", "--shard_tokens=200000"];
      const input = ["--input", `${dir}/a.jsonl`, ...flags];
      for (const n of [1, 2, 3]) await runPrepare(...input, "--out", `${dir}/${n}`, `--workers=${n}`);
      const one = readAll(`${dir}/1`);
      assert(Object.keys(one).length > 4, Object.keys(one).join());
      assertEquals(readAll(`${dir}/2`), one);
      assertEquals(readAll(`${dir}/3`), one);
    }));
}

Deno.test("an error in a worker reaches the user as its own line", () =>
  inDirectory(async (dir) => {
    using encoders = workerEncoders(`${dir}/gone`, { val_fraction: 0.3, seed: 1 }, 2);
    for (let i = 0; i < 3; i++) {
      const block = { text: Uint8Array.of(65), ends: Uint32Array.of(1), read: 1 };
      await assertRejects(() => encoders.encode(block), UserError, `Cannot open tokenizer "${dir}/gone"`);
    }
  }));

Deno.test("a bug in a worker keeps its stack", async () => {
  using encoders = workerEncoders("bytes", null as unknown as SplitOptions, 2);
  const block = { text: Uint8Array.of(65), ends: Uint32Array.of(1), read: 1 };
  const error = await assertRejects(() => encoders.encode(block), Error);
  assertMatch(error.message, /TypeError.*\n.*BlockEncoder/);
});

Deno.test("a worker that breaks down fails its blocks, and those that come later", async () => {
  const { Worker } = globalThis, workers: Worker[] = [];
  globalThis.Worker = class extends Worker {
    constructor(...args: ConstructorParameters<typeof Worker>) {
      super(...args);
      workers.push(this);
    }
  };
  using encoders = workerEncoders("bytes", { val_fraction: 0.3, seed: 1 }, 1);
  const encode = () => encoders.encode({ text: Uint8Array.of(65), ends: Uint32Array.of(1), read: 1 });
  const first = encode();
  globalThis.Worker = Worker;
  workers[0]!.dispatchEvent(new ErrorEvent("error", { message: "out of memory", cancelable: true }));
  for (const block of [first, encode()]) {
    await assertRejects(() => block, Error, "An encoder failed: out of memory");
  }
  workers[0]!.dispatchEvent(new MessageEvent("message", { data: { error: "late", isUserError: true } })); // is not fatal
});

// ---- every pair of options that decide which documents come and in which order

const FLAGS: Record<string, string[]> = {
  limit: ["--limit=100"],
  dedup: ["--dedup=exact"],
  shuffle_docs: ["--shuffle_docs=3"],
  skip_bad: ["--skip_bad"],
  shard: ["--shard=1/2"],
  weights: [],
  split_on: ["--split_on=blank_line"],
};
const PAIRS = Object.keys(FLAGS).flatMap((a, i, all) => all.slice(i).map((b) => a === b ? [a] : [a, b]));

for (const pair of [[], ...PAIRS]) {
  const options = pair.join(" and ") || "none of them";
  Deno.test(`prepare() ends with the same files with more workers and when interrupted, with ${options}`, () =>
    inDirectory(async (dir) => {
      const kind = pair.includes("split_on") ? "txt" : "jsonl";
      const files = ["a1", "a2", "b1", "b2"].map((name) => `${dir}/${name}.${kind}`);
      const mixed = pair.includes("weights") || pair.includes("shuffle_docs"), own = textsOf(mixed);
      for (const file of files) writeDocuments(file, own, pair.includes("skip_bad"));
      const input = pair.includes("weights") ? [`${dir}/a*:1`, `${dir}/b*:1`] : [`${dir}/*`];
      const flags = ["--tokenizer=bytes", "--val_fraction=0.2", "--shard_tokens=20000"];
      const all = ["--input", ...input, ...flags, ...pair.flatMap((name) => FLAGS[name]!)];

      const { dir: part } = await runPrepare(...all, "--out", `${dir}/1`);
      const place = part.slice(`${dir}/1`.length), one = readAll(part); // place: that of a --shard
      if (pair.length < 2) {
        await runPrepare(...all, "--out", `${dir}/3`, "--workers=3");
        assertEquals(readAll(`${dir}/3${place}`), one, "3 workers");
      }
      const before = pair.length < 2 ? 3 : 1; // starting a worker takes longer than its work
      await interrupt(1, ...all, "--out", `${dir}/again`, `--workers=${before}`);
      const { work } = await runPrepare(...all, "--out", `${dir}/again`, "--workers=2");
      assert(work!.documents_before > 0);
      assertEquals(readAll(`${dir}/again${place}`), one, "interrupted");

      if (pair.includes("weights") || pair.includes("shuffle_docs") && pair.includes("limit")) return;
      const dataset = verifyDataset(part), count = pair.includes("shard") ? 2 : 4; // files
      const documents = [...await documentsOf(dataset, "train"), ...await documentsOf(dataset, "val")];
      let texts = Array.from({ length: count }, () => own).flat();
      if (pair.includes("split_on")) texts = texts.filter((text) => text !== "");
      if (pair.includes("limit")) texts = texts.slice(0, 100);
      if (pair.includes("dedup")) texts = [...new Set(texts)];
      assertEquals(documents.toSorted(), texts.filter((text) => text !== "").toSorted());
    }));
}

/** Documents, some of them twice. A file is a block; where documents of several are mixed, two files of 0.4 MB and a half are. */
function textsOf(mixed: boolean): string[] {
  const text = "Words that come again and again, naïve 🧵 and 中文. ".repeat(mixed ? 350 : 35);
  return Array.from({ length: 20 }, (_, i) => [`${i % 17} ${text}`, "", `short ${i}`]).flat();
}

function writeDocuments(path: string, texts: string[], bad: boolean): void {
  if (path.endsWith(".txt")) return Deno.writeTextFileSync(path, texts.join("\n\n"));
  jsonl(path, texts);
  if (bad) Deno.writeTextFileSync(path, `oops\n${Deno.readTextFileSync(path)}\n{"text": 7}\n`);
}
