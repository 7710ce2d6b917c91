// Token files go both ways between loam, llm.c, modded-nanogpt and nanoGPT. Their files: fixtures written from the descriptions
// of the formats (fixtures/formats/make_formats.py). Their programs: readers written here from the same descriptions, with the
// checks that the programs make.
import { assert, assertAlmostEquals, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { openDataset, readTokens, type Shard } from "../data/bins.ts";
import { openData } from "../data/mix.ts";
import { Loader } from "../data/loader.ts";
import { findDocument, readRange } from "../data/inspect/scan.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { allocateHost, copyToHost, libraryExists, open, tokenSource } from "../ffi/library.ts";
import { dataset, freshPath, metrics, refuse, SMALL, succeed } from "./testing.ts";

open("cpu", { threads: 1 });

const FORMATS = new URL("fixtures/formats/", import.meta.url).pathname;

// GPT-2's ids, as in make_formats.py
const HELLO = [15496, 11, 995, 0], WORLD = [464, 995, 13], THE = [1169, 262], EOT = 50256;

const TO_BE = "To be, or not to be:\nthat is the question. Größe 中文 👍\n"; // twenty times in nanogpt_char

// ---- theirs read by us

/** All tokens of each shard. */
function contents(shards: Shard[]): number[][] {
  return shards.map((shard) => Array.from(readTokens(shard, 0, shard.tokens)));
}

/** All documents of a split. */
function documentsOf(shards: Shard[], eot: number): number[][] {
  const documents: number[][] = [];
  for (let n = 0;; n++) {
    const found = findDocument(shards, { bos: eot, eot }, n);
    if ("documents" in found) return documents;
    documents.push(Array.from(readRange(shards, found)));
  }
}

Deno.test("openDataset() reads the shards of llm.c and modded-nanogpt", async () => {
  const { format, tokenizer, vocab_size, eot, train, val } = openDataset(`${FORMATS}fineweb`);
  assertEquals([format, tokenizer, vocab_size, eot], ["llm.c", "gpt2", 50257, EOT]);
  assertEquals(contents(train), [
    [...THE, EOT, ...HELLO, EOT, ...WORLD, EOT, ...HELLO.slice(0, 2)],
    [...HELLO.slice(2), EOT, ...WORLD],
  ]);
  assertEquals(contents(val), [[EOT, ...WORLD, EOT, ...HELLO, EOT]]);
  assertEquals(documentsOf(train, eot), [THE, HELLO, WORLD, HELLO, WORLD]);
  const gpt2 = await openTokenizer(tokenizer!);
  assertEquals(gpt2.decode(contents(train)[0]!.slice(2, 8)), "<|endoftext|>Hello, world!<|endoftext|>");
});

Deno.test("openDataset() reads llm.c's Llama 3 tokens as uint32", () => {
  const { format, tokenizer, vocab_size, eot, train, val } = openDataset(`${FORMATS}llama3`);
  assertEquals([format, tokenizer, vocab_size, eot], ["llm.c", null, 128_256, 128_000]);
  const hello = [9906, 11, 1917, 0];
  assertEquals(contents(train), [[128_000, ...hello, 128_000, 128_255, ...hello]]);
  assertEquals(contents(val), [[128_000, ...hello]]);
  assertEquals(documentsOf(train, eot), [hello, [128_255, ...hello]]);
});

Deno.test("openDataset() reads nanoGPT's files without a header", () => {
  const { format, tokenizer, vocab_size, eot, train, val } = openDataset(`${FORMATS}nanogpt`);
  assertEquals([format, tokenizer, vocab_size, eot], ["nanoGPT", "gpt2", 50257, EOT]);
  assertEquals(contents(train), [[...HELLO, EOT, ...WORLD, EOT, ...THE, EOT]]);
  assertEquals(contents(val), [[...WORLD, EOT]]);
  assertEquals(documentsOf(train, eot), [HELLO, WORLD, THE]);
});

Deno.test("openDataset() reads nanoGPT's characters by the meta.pkl beside them", async () => {
  const { format, tokenizer, vocab_size, assumed, train, val } = openDataset(`${FORMATS}nanogpt_char`);
  const text = TO_BE.repeat(20), cut = 20 * 54 * 0.9; // characters
  assertEquals([format, tokenizer, assumed], ["nanoGPT", `${FORMATS}nanogpt_char/meta.pkl`, ["dtype"]]);
  assertEquals(vocab_size, new Set(text).size + 1); // and an end of text, which the data does not have
  const characters = await openTokenizer(tokenizer!),
    parts = [train, val].map((shards) => characters.decode(contents(shards)[0]!));
  const mix = openData(
    `${FORMATS}nanogpt_char:1,${changed("nanogpt_char", "none", (bytes) => bytes)}:1`,
    openDataset,
  );
  assertEquals([mix.vocab_size, mix.assumed], [vocab_size, assumed]); // a copy of it has the same characters
  assertEquals(parts, [Array.from(text).slice(0, cut).join(""), Array.from(text).slice(cut).join("")]);
});

Deno.test("a model of nanoGPT's characters is trained, sampled and handed on with these characters", async () => {
  const out = freshPath(), data = `${FORMATS}nanogpt_char`;
  const flags = [
    "--max_iters=80",
    "--save_interval=80",
    "--eval_interval=80",
    "--eval_batches=1",
    "--sample_interval=80",
  ];
  const log = await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, ...flags);
  const n = new Set(TO_BE).size;
  assertStringIncludes(
    log,
    `data ${data}: nanoGPT bins of uint16 (assumed), tokenizer ${data}/meta.pkl, vocab_size ${
      n + 1
    }, eot ${n}; ` +
      "972 train and 108 val tokens\n",
  );
  assertAlmostEquals(metrics(out)[0]!.loss!, Math.log(n + 1), 0.05);
  const config = JSON.parse(Deno.readTextFileSync(`${out}/checkpoints/step_000080/config.json`));
  assertEquals([config.vocab_size, config.eos_token_id], [n + 1, n]);
  const text = await succeed(
    "sample",
    `--checkpoint=${out}`,
    "--prompt=be",
    "--temperature=0",
    "--max_new_tokens=20",
  );
  assertEquals(text.slice(0, 2), "be");
  assert(Array.from(text.trimEnd()).every((character) => TO_BE.includes(character)), text);
  const unknown = await refuse("sample", `--checkpoint=${out}`, "--prompt=¿be");
  assertEquals(
    unknown,
    `Cannot encode the character U+00BF: it is none of the ${n} that the tokenizer has; leave it out of the text`,
  );
});

/** The T + 1 tokens of every window of the train split, as the native library gathers them for an evaluation. */
function gatherWindows(dir: string, T: number): number[][] {
  const data = openDataset(dir);
  const options = { split: "train", batch_size: 1, block_size: T, vocab_size: data.vocab_size } as const;
  const loader = new Loader(tokenSource, data, options);
  const x = allocateHost(8 * T), y = x + BigInt(4 * T), both = new Int32Array(2 * T);
  return Array.from({ length: loader.n_windows }, (_, i) => {
    loader.evalBatch(x, y, i);
    copyToHost(both, x); // on the CPU host memory is device memory
    assertEquals(both.subarray(1, T), both.subarray(T, 2 * T - 1));
    return [...both.subarray(0, T), both[2 * T - 1]!];
  });
}

for (const format of ["fineweb", "llama3", "nanogpt", "nanogpt_char"]) {
  Deno.test({
    name: `Loader gathers windows from the files in ${format}`,
    ignore: !libraryExists("cpu"),
    fn: () => {
      const T = 2, { train } = openDataset(`${FORMATS}${format}`);
      const windows = contents(train).flatMap((tokens) =>
        Array.from(
          { length: Math.floor((tokens.length - 1) / T) },
          (_, w) => tokens.slice(w * T, w * T + T + 1),
        )
      );
      assertEquals(gatherWindows(`${FORMATS}${format}`, T), windows);
    },
  });
}

/** A copy of the fixtures of a format in which a file was changed. */
function changed(
  format: string,
  file: string,
  change: (bytes: Uint8Array<ArrayBuffer>) => Uint8Array,
): string {
  const dir = freshPath();
  Deno.mkdirSync(dir);
  for (const { name } of Deno.readDirSync(`${FORMATS}${format}`)) {
    const bytes = Deno.readFileSync(`${FORMATS}${format}/${name}`);
    Deno.writeFileSync(`${dir}/${name}`, name === file ? change(bytes) : bytes);
  }
  return dir;
}

/** Sets a word of the header. */
function header(place: number, value: number): (bytes: Uint8Array<ArrayBuffer>) => Uint8Array {
  return (bytes) => {
    new DataView(bytes.buffer).setInt32(4 * place, value, true);
    return bytes;
  };
}

const shorter = (bytes: Uint8Array) => bytes.subarray(0, bytes.length - 1);
const longer = (bytes: Uint8Array) => new Uint8Array([...bytes, 0, 0]);
const KINDS = "should be 20240520 1 or 20240801 7";
const refusals: [string, string, (bytes: Uint8Array<ArrayBuffer>) => Uint8Array, string][] = [
  ["fineweb", "fineweb_train_000001.bin", header(0, 20240522), `it begins with 20240522 1, ${KINDS}`], // its HellaSwag
  ["fineweb", "fineweb_train_000001.bin", header(1, 2), `it begins with 20240520 2, ${KINDS}`],
  [
    "fineweb",
    "fineweb_train_000001.bin",
    header(2, 13),
    "it has 1052 bytes, its header with 13 tokens says 1050",
  ],
  ["fineweb", "fineweb_train_000002.bin", shorter, "it has 1035 bytes, its header with 6 tokens says 1036"],
  ["fineweb", "fineweb_val_000000.bin", longer, "it has 1046 bytes, its header with 10 tokens says 1044"],
  ["fineweb", "fineweb_val_000000.bin", () => new Uint8Array(100), `it begins with 0 0, ${KINDS}`],
  ["llama3", "tiny_shakespeare_train.bin", header(1, 1), `it begins with 20240801 1, ${KINDS}`],
  [
    "llama3",
    "tiny_shakespeare_val.bin",
    header(0, 20240520),
    `it begins with 20240520 7, ${KINDS}`,
  ],
  ["nanogpt", "train.bin", shorter, "it has 23 bytes, which are no whole number of 2-byte tokens"],
  [
    "nanogpt",
    "val.bin",
    () => Deno.readFileSync(`${FORMATS}fineweb/fineweb_val_000000.bin`),
    'it has tokens of 2 bytes behind a header, "train.bin" has tokens of 2 bytes without a header',
  ],
  [
    "fineweb",
    "fineweb_val_000000.bin",
    () => Deno.readFileSync(`${FORMATS}llama3/tiny_shakespeare_val.bin`),
    'it has tokens of 4 bytes behind a header, "fineweb_train_000001.bin" has tokens of 2 bytes behind a header',
  ],
];
for (const [format, file, change, message] of refusals) {
  Deno.test(`openDataset() refuses a ${file} when ${message}`, () => {
    const dir = changed(format, file, change);
    assertEquals(
      assertThrows(() => openDataset(dir), UserError).message,
      `Cannot use "${dir}/${file}": ${message}; copy or write it again`,
    );
  });
}

Deno.test("openDataset() does not take a train.bin with llm.c's magic number for nanoGPT's", () => {
  const shard = Deno.readFileSync(`${FORMATS}fineweb/fineweb_val_000000.bin`);
  assertEquals(openDataset(changed("nanogpt", "none", (bytes) => bytes)).format, "nanoGPT");
  const dir = changed("nanogpt", "train.bin", () => header(1, 3)(shard));
  assertThrows(() => openDataset(dir), UserError, `"${dir}/train.bin": it begins with 20240520 3, ${KINDS}`);
});

// ---- ours read by them

/** The tokens behind a header of 256 int32, after the checks that are the same in all programs. */
function readShard(path: string, magic: number, version: number): { count: number; bytes: Uint8Array } {
  const file = Deno.readFileSync(path), words = new DataView(file.buffer);
  assertEquals(words.getInt32(0, true), magic);
  assertEquals(words.getInt32(4, true), version);
  return { count: words.getInt32(8, true), bytes: file.subarray(1024) };
}

/** Little-endian numbers, read byte by byte. */
function unpack(bytes: Uint8Array, size: 2 | 4): number[] {
  return Array.from({ length: bytes.length / size }, (_, i) => {
    let value = 0;
    for (let b = size - 1; b >= 0; b--) value = 256 * value + bytes[size * i + b]!;
    return value;
  });
}

/**
 * llm.c's loader without its shuffling: files in the order of their names, each of exactly 1024 + 2 n bytes and at least one
 * batch of all processes. Yields the B * T + 1 tokens of every batch of a process over one epoch.
 */
function* llmcBatches(
  paths: string[],
  B: number,
  T: number,
  rank: number,
  processes: number,
): Generator<number[]> {
  for (const path of paths.toSorted()) {
    const { count, bytes } = readShard(path, 20240520, 1);
    assert(count > 0);
    assertEquals(1024 + bytes.length, 1024 + 2 * count);
    assert(count >= processes * B * T + 1, `${path} has ${count} tokens`);
    const batchBytes = 2 * processes * B * T, samples = Math.floor((2 * count - 2) / batchBytes);
    for (let i = 0; i < samples; i++) {
      const offset = i * batchBytes + 2 * rank * B * T;
      yield unpack(bytes.subarray(offset, offset + 2 * (B * T + 1)), 2);
    }
  }
}

/** modded-nanogpt's loader: n tokens follow the header; a file is left when less than a batch and a token remain. */
function* moddedBatches(
  paths: string[],
  batch: number,
  rank: number,
  processes: number,
): Generator<number[]> {
  const local = batch / processes;
  for (const path of paths.toSorted()) {
    const { count, bytes } = readShard(path, 20240520, 1);
    const tokens = unpack(bytes.subarray(0, 2 * count), 2);
    assertEquals(tokens.length, count);
    for (let at = 0; at + batch + 1 < count; at += batch) {
      yield tokens.slice(at + rank * local, at + (rank + 1) * local + 1);
    }
  }
}

/** modded-nanogpt's documents: from each beginning-of-sequence token (50256) to the next. */
function moddedDocuments(path: string): number[][] {
  const { bytes } = readShard(path, 20240520, 1), tokens = unpack(bytes, 2);
  const begins = tokens.flatMap((token, i) => token === 50256 ? [i] : []);
  assertEquals(begins[0], 0);
  return begins.map((begin, i) => tokens.slice(begin + 1, begins[i + 1]));
}

/** A dataset of GPT-2 tokens in several train shards, by prepare. */
async function preparedShards(): Promise<{ data: string; paths: string[] }> {
  const text = freshPath() + ".txt", data = freshPath();
  const words = "Once upon a time there was one small loom that wove the long day into cloth".split(" ");
  const lines = Array.from(
    { length: 400 },
    (_, i) => words.slice(i % 9, i % 9 + 3 + i % 5).join(" ") + ` ${i}.`,
  );
  Deno.writeTextFileSync(text, lines.join("\n\n"));
  const flags = ["--split_on=blank_line", "--val_fraction=0.2", "--shard_tokens=900"];
  await succeed("prepare", "--input", text, "--out", data, ...flags);
  const paths = openDataset(data).train.map(({ path }) => path);
  assert(paths.length > 2);
  return { data, paths };
}

Deno.test("llm.c's loader reads our shards on any number of processes", async () => {
  const { data, paths } = await preparedShards(), B = 2, T = 16;
  for (const [rank, processes] of [[0, 1], [0, 3], [2, 3]] as const) {
    const expected = contents(openDataset(data).train).flatMap((tokens) => {
      const batches: number[][] = [], step = processes * B * T;
      for (let at = 0; at + step + 1 <= tokens.length; at += step) {
        batches.push(tokens.slice(at + rank * B * T, at + (rank + 1) * B * T + 1));
      }
      return batches;
    });
    assertEquals([...llmcBatches(paths, B, T, rank, processes)], expected);
  }
});

Deno.test({
  name: "llm.c's loader and ours cut the same shards into the same windows",
  ignore: !libraryExists("cpu"),
  fn: async () => {
    const { data, paths } = await preparedShards();
    for (const T of [16, 37]) assertEquals(gatherWindows(data, T), [...llmcBatches(paths, 1, T, 0, 1)]);
  },
});

Deno.test("modded-nanogpt's loaders read our shards and find each document at its first token", async () => {
  const { data, paths } = await preparedShards();
  const batches = [0, 1].map((rank) => [...moddedBatches(paths, 64, rank, 2)]);
  const first = contents(openDataset(data).train)[0]!;
  assertEquals(batches[0]![0], first.slice(0, 33));
  assertEquals(batches[1]![0], first.slice(32, 65));
  const gpt2 = await openTokenizer("gpt2");
  const texts = paths.flatMap((path) => moddedDocuments(path).map((ids) => gpt2.decode(ids)));
  assertEquals(texts, documentsOf(openDataset(data).train, EOT).map((ids) => gpt2.decode(ids)));
  assert(texts.every((text) => /^[a-zA-Z ]+ \d+\.$/.test(text)));
});

Deno.test("our shards of a small vocabulary have the same format", async () => {
  const data = await dataset({ tokenizer: "bytes" }), path = `${data}/train_000000.bin`;
  const { count, bytes } = readShard(path, 20240520, 1);
  assertEquals(bytes.length, 2 * count);
  assertEquals(unpack(bytes, 2), contents(openDataset(data).train)[0]);
});

Deno.test("train_llama3.py's loader reads our shards of a vocabulary that needs uint32", async () => {
  const data = await dataset({ tokenizer: "cl100k" }), path = `${data}/train_000000.bin`;
  const { count, bytes } = readShard(path, 20240801, 7);
  const tokens = unpack(bytes, 4);
  assertEquals(tokens.length, count);
  assertEquals(tokens, contents(openDataset(data).train)[0]);
  assert(tokens.includes(100_257)); // <|endoftext|>
});
