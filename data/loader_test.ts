import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { allocateHost, copyToHost, open as openDevice, tokenSource } from "../ffi/library.ts";
import { type Dataset, openDataset, readTokens, type Shard } from "./bins.ts";
import { Loader, type LoaderOptions, type Position, type TokenSource } from "./loader.ts";
import { openData } from "./mix.ts";
import { inDirectory } from "./testing.ts";
import { openTokenizer } from "./tokenizer.ts";

openDevice("cpu", { threads: 1 });

/** A dataset of shards with these token counts; token t of the whole is t % 256. Also what reads it without files. */
function fakeDataset(...counts: number[]): { dataset: Dataset; source: TokenSource; memory: Int32Array } {
  const memory = new Int32Array(4096); // address a is memory[a / 4]
  const starts = counts.map((_, i) => counts.slice(0, i).reduce((sum, count) => sum + count, 0));
  const number = (path: string) => Number(path.slice("data/fake/shard_".length));
  const shards: Shard[] = counts.map((tokens, i) => ({
    path: `data/fake/shard_${i}`,
    tokens,
    header_bytes: 0,
    token_bytes: 2,
  }));
  const token = (shard: number, t: number) => {
    assert(t < counts[shard]!, `token ${t} of shard ${shard} with ${counts[shard]}`);
    return (starts[shard]! + t) % 256;
  };
  const source: TokenSource = {
    open: (path) => ({ handle: number(path), tokens: counts[number(path)]! }),
    gather(x, y, handle, start, T) {
      for (let t = 0; t < T; t++) {
        memory[Number(x) / 4 + t] = token(handle, Number(start) + t);
        memory[Number(y) / 4 + t] = token(handle, Number(start) + t + 1);
      }
    },
    mask() {},
    starts() {},
  };
  const dataset: Dataset = {
    dir: "data/fake",
    format: "loam",
    tokenizer: "bytes",
    vocab_size: 257,
    bos: 256,
    eot: 256,
    train: shards,
    val: shards,
    sha256: {},
    assumed: [],
  };
  return { dataset, source, memory };
}

function makeLoader(counts: number[], options: Partial<LoaderOptions> = {}): Loader {
  const { dataset, source } = fakeDataset(...counts);
  return new Loader(source, dataset, {
    split: "train",
    batch_size: 2,
    block_size: 4,
    vocab_size: 257,
    ...options,
  });
}

function position(options: Partial<Position> = {}): Position {
  return { seed: 1, sample: 0, micro: 0, ...options };
}

/** The windows of the step that begins with a sample, as texts. */
function windowsFrom(loader: Loader, sample: number, accumulation: number): string[] {
  return Array.from({ length: accumulation }, (_, micro) => {
    const windows = loader.trainWindows(position({ sample, micro }));
    return windows.map((window) => loader.placeOf(window));
  }).flat();
}

Deno.test("Loader counts windows of block_size + 1 tokens within shards", () => {
  assertEquals(makeLoader([5]).n_windows, 1);
  assertEquals(makeLoader([8]).n_windows, 1);
  assertEquals(makeLoader([9]).n_windows, 2);
  assertEquals(makeLoader([9, 4, 13]).n_windows, 5);
});

Deno.test("Loader.trainBatch() writes x and y, y one token ahead", () => {
  const { dataset, source, memory } = fakeDataset(9, 3, 13);
  const loader = new Loader(source, dataset, {
    split: "train",
    batch_size: 5,
    block_size: 4,
    vocab_size: 257,
  });
  loader.trainBatch(0n, 400n, position());
  const x = Array.from(memory.subarray(0, 20)), y = Array.from(memory.subarray(100, 120));
  assertEquals(y, x.map((token) => token + 1));
  const rows = [0, 4, 8, 12, 16].map((i) => x.slice(i, i + 4).join());
  assertEquals(rows.toSorted(), ["0,1,2,3", "12,13,14,15", "16,17,18,19", "20,21,22,23", "4,5,6,7"]);
});

Deno.test("Loader writes where the documents of each window begin, where it is asked to", () => {
  const dir = Deno.makeTempDirSync(), path = `${dir}/train_0.bin`, bos = 7;
  try {
    Deno.writeFileSync(path, new Uint8Array(Uint16Array.of(7, 1, 7, 7, 2, 3, 4, 7, 5, 6, 7, 8, 9).buffer));
    const shard = { path, tokens: 13, header_bytes: 0, token_bytes: 2 } as const;
    const dataset = { ...fakeDataset(9).dataset, train: [shard], val: [shard], bos };
    const options = { split: "val", batch_size: 2, block_size: 4, vocab_size: 257 } as const;
    const loader = new Loader(tokenSource, dataset, options);
    const [x, y, starts] = [1, 2, 3].map(() => allocateHost(32)) as [bigint, bigint, bigint];
    const read = () => {
      const values = new Int32Array(8);
      copyToHost(values, starts);
      return [...values];
    };
    loader.evalBatch(x, y, 0, starts); // 7 1 7 7, then 2 3 4 7
    assertEquals(read(), [0, 0, 2, 3, 0, 0, 0, 3]);
    loader.evalBatch(x, y, 1); // is not asked to
    assertEquals(read(), [0, 0, 2, 3, 0, 0, 0, 3]);
    const train = new Loader(tokenSource, dataset, { ...options, split: "train", batch_size: 1 });
    const expected: Record<number, number[]> = { 0: [0, 0, 2, 3], 4: [0, 0, 0, 3], 8: [0, 0, 2, 2] };
    for (let sample = 0; sample < 3; sample++) {
      train.trainBatch(x, y, position({ sample }), starts);
      assertEquals(read().slice(0, 4), expected[train.trainWindows(position({ sample }))[0]!.start]);
    }
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

Deno.test("Loader opens only the shards that hold a window", () => {
  const { dataset, source } = fakeDataset(9, 4, 0, 13), opened: string[] = [];
  const open: TokenSource["open"] = (path, ...sizes) => {
    opened.push(path.slice(-1));
    return source.open(path, ...sizes);
  };
  const options = { split: "train", batch_size: 2, block_size: 4, vocab_size: 257 } as const;
  const loader = new Loader({ ...source, open }, dataset, options);
  assertEquals([loader.n_windows, opened.join()], [5, "0,3"]);
});

/** Every window of the shards with these token counts. */
function allWindows(
  counts: number[],
  block_size: number,
  name = (shard: number) => `shard_${shard}`,
): string[] {
  return counts.flatMap((tokens, shard) =>
    Array.from({ length: Math.max(0, Math.floor((tokens - 1) / block_size)) }, (_, w) => {
      const start = w * block_size;
      return `${name(shard)} tokens ${start} to ${start + block_size}`;
    })
  );
}

/** The samples of the run in the order of their numbers. */
function samples(loader: Loader, count: number, accumulation: number): string[] {
  const places: string[] = [];
  while (places.length < count) places.push(...windowsFrom(loader, places.length, accumulation));
  return places.slice(0, count);
}

for (const accumulation of [1, 2, 3, 7]) {
  Deno.test(`Loader.trainWindows() reads each window once per epoch, ${accumulation} micro-steps`, () => {
    const sizes = [[6], [10], [62], [9, 4, 13], [35, 5, 2, 71, 8], [401, 3, 250]];
    for (const counts of sizes) {
      const expected = allWindows(counts, 4).sort(), n = expected.length, epochs = 3;
      const loader = makeLoader(counts, { batch_size: 3 });
      const places = samples(loader, epochs * n, accumulation);
      for (let epoch = 0; epoch < epochs; epoch++) {
        assertEquals(
          places.slice(epoch * n, (epoch + 1) * n).sort(),
          expected,
          `${counts}, epoch ${epoch}`,
        );
      }
    }
  });
}

Deno.test("Loader.trainWindows() reads each window once per epoch though the batch changes in the middle of it", () => {
  const counts = [35, 5, 2, 71, 8], all = allWindows(counts, 4).sort(), n = all.length;
  const settings = [1, 2, 3, 5].flatMap((batch_size) =>
    [1, 2, 3, 6].map((accumulation) => ({ loader: makeLoader(counts, { batch_size }), accumulation }))
  );
  for (const before of settings) {
    for (const after of settings) {
      const places: string[] = [];
      while (places.length < 3 * n) {
        const { loader, accumulation } = places.length < n / 2 ? before : after;
        places.push(...windowsFrom(loader, places.length, accumulation));
      }
      for (const epoch of [0, 1, 2]) assertEquals(places.slice(epoch * n, (epoch + 1) * n).sort(), all);
    }
  }
});

Deno.test("Loader.order() changes with what the order of the windows depends on, and with nothing else", () => {
  const datasets = { a: [4001, 99], b: [777] }, mix = (dir: string) => mixLoader(datasets, dir);
  const same = [mix("a:0.7,b:0.3"), mix("a:7,b:3"), mixLoader(datasets, "a:0.7,b:0.3", { batch_size: 7 })];
  assertEquals(new Set(same.map((loader) => loader.order(1))).size, 1);
  const others = [
    mix("a:0.6,b:0.4"),
    mix("b:0.3,a:0.7"),
    mixLoader({ ...datasets, b: [778] }, "a:0.7,b:0.3"),
  ];
  others.push(mixLoader(datasets, "a:0.7,b:0.3", { block_size: 5 }));
  const { dataset, source } = fakeDataset(41), options = same[0]!.options;
  const [one, other] = ["1", "2"].map((sum) =>
    new Loader(source, { ...dataset, sha256: { "train_000000.bin": sum } }, options).order(1)
  );
  assert(one !== other); // other contents
  const orders = [...others.map((loader) => loader.order(1)), same[0]!.order(1), same[0]!.order(2)];
  assertEquals(new Set(orders).size, orders.length);
});

Deno.test("Loader.trainWindows() takes another order in each epoch and for each seed", () => {
  const loader = makeLoader([41, 81], { batch_size: 30 }); // 10 + 20 windows
  const order = (step: number, seed: number) =>
    loader.trainWindows(position({ sample: 30 * step, seed })).map((window) => loader.placeOf(window)).join();
  assertEquals(new Set([order(0, 1), order(1, 1), order(0, 2)]).size, 3);
});

Deno.test("Loader.trainWindows() gives a step the same windows however micro-steps share them", () => {
  const one = (batch_size: number) => makeLoader([4001], { batch_size });
  const mix = (batch_size: number) => mixLoader({ a: [4001, 99], b: [777] }, "a:0.7,b:0.3", { batch_size });
  for (const loader of [one, mix]) {
    for (const step of [0, 3, 4999]) { // 8 samples a step: the last ends a cycle and more
      const expected = windowsFrom(loader(8), 8 * step, 1);
      assertEquals(expected.length, 8);
      assertEquals(windowsFrom(loader(1), 8 * step, 8), expected);
      assertEquals(windowsFrom(loader(2), 8 * step, 4), expected);
    }
  }
});

Deno.test("Loader.trainWindows() goes on into the next epoch within a batch", () => {
  const loader = makeLoader([13], { batch_size: 2 }); // 3 windows
  const places = samples(loader, 6, 1);
  assertEquals(new Set(places.slice(0, 3)).size, 3);
  assertEquals(new Set(places.slice(3)).size, 3);
});

Deno.test("Loader.evalBatch() reads in file order and says how many rows count", () => {
  const { dataset, source, memory } = fakeDataset(21);
  const loader = new Loader(source, dataset, { split: "val", batch_size: 2, block_size: 4, vocab_size: 257 });
  assertEquals(loader.n_evalBatches, 3);
  assertEquals(loader.evalBatch(0n, 400n, 0), 2);
  assertEquals(Array.from(memory.subarray(0, 8)), [0, 1, 2, 3, 4, 5, 6, 7]);
  assertEquals(loader.evalBatch(0n, 400n, 2), 1);
  assertEquals(Array.from(memory.subarray(0, 8)), [16, 17, 18, 19, 16, 17, 18, 19]);
  assertThrows(() => loader.evalBatch(0n, 400n, 3), RangeError, "Cannot read batch 3: there are 3");
});

Deno.test("Loader says when no shard holds a window", () => {
  assertThrows(
    () => makeLoader([3, 4]),
    UserError,
    'Cannot read windows of block_size 4 from the train split of "data/fake": its longest shard has 4 tokens, ' +
      "a window needs 5; use a smaller --block_size or prepare more text",
  );
  assertThrows(() => makeLoader([4], { split: "val" }), UserError, "prepare with a larger --val_fraction");
  assertThrows(() => mixLoader({ a: [9], b: [4] }, "a:1,b:1"), UserError, 'the train split of "b"');
});

Deno.test("Loader says when the data has more ids than the model", () => {
  assertThrows(
    () => makeLoader([9], { vocab_size: 256 }),
    UserError,
    'Cannot train on "data/fake": its vocab_size is 257, the model\'s is 256; ' +
      "train a new model on it, or use data of the model's tokenizer",
  );
});

Deno.test("Loader names the file and the place of a token that the vocabulary lacks", () => {
  const dir = Deno.makeTempDirSync();
  try {
    Deno.writeFileSync(
      `${dir}/train.bin`,
      new Uint8Array(Uint16Array.of(1, 2, 3, 4, 5, 6, 999, 8, 9).buffer),
    );
    Deno.writeFileSync(`${dir}/val.bin`, new Uint8Array(Uint16Array.of(1, 2, 257, 4, 5).buffer));
    const dataset = { ...openDataset(dir), vocab_size: 257 };
    const [x, y] = [allocateHost(32), allocateHost(32)];
    const loader = (split: "train" | "val") =>
      new Loader(tokenSource, dataset, { split, batch_size: 2, block_size: 4, vocab_size: 257 });
    const train = loader("train"), steps = [0, 1, 2, 3].map((step) => position({ sample: 2 * step }));
    const begins = (step: Position) => train.trainWindows(step)[0]!.start;
    assertThrows(
      () => train.trainBatch(x, y, steps.find((step) => begins(step) === 4)!),
      UserError,
      `Cannot use "${dir}/train.bin": token 6 is 999, should be below vocab_size 257; write the dataset again: `,
    );
    assertThrows(() => loader("val").evalBatch(x, y, 0), UserError, `${dir}/val.bin": token 2 is 257, `);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

Deno.test("Loader.decodeWindow() shows the text of a window", async () => {
  const dir = Deno.makeTempDirSync();
  try {
    for (const file of ["train.bin", "val.bin"]) { // nanoGPT's format
      Deno.writeFileSync(
        `${dir}/${file}`,
        new Uint8Array(Uint16Array.from(new TextEncoder().encode("To be or not")).buffer),
      );
    }
    const dataset = { ...openDataset(dir), vocab_size: 257 };
    assertEquals(readTokens(dataset.train[0]!, 0, 2), Uint32Array.of(84, 111));
    const { source } = fakeDataset(1);
    const open = () => ({ handle: 0, tokens: 12 });
    const options: LoaderOptions = { split: "train", batch_size: 1, block_size: 5, vocab_size: 257 };
    const loader = new Loader({ ...source, open }, dataset, options);
    assertEquals(loader.decodeWindow({ shard: 0, start: 5 }, await openTokenizer("bytes")), " or no");
    assertEquals(loader.placeOf({ shard: 0, start: 5 }), "train.bin tokens 5 to 10");
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

// ---- mixes

/** Datasets of shards with these token counts by directory. onGather is told the place of the shard and the token of each row. */
function mixLoader(
  datasets: Record<string, number[]>,
  data_dir: string,
  options: Partial<LoaderOptions> = {},
  onGather: (shard: number, start: number) => void = () => {},
): Loader {
  const fake = (dir: string): Dataset => {
    const { dataset } = fakeDataset(...datasets[dir]!);
    const shards = dataset.train.map((shard, i) => ({ ...shard, path: `${dir}/shard_${i}` }));
    return { ...dataset, dir, train: shards, val: shards };
  };
  let handles = 0;
  const source: TokenSource = {
    open: () => ({ handle: handles++, tokens: 0 }),
    gather: (_x, _y, handle, start) => onGather(handle, Number(start)),
    mask() {},
    starts() {},
  };
  const defaults = { split: "train", batch_size: 2, block_size: 4, vocab_size: 257 } as const;
  return new Loader(source, openData(data_dir, fake), { ...defaults, ...options });
}

Deno.test("Loader.trainWindows() goes through each dataset of a mix by itself", () => {
  const datasets = { a: [400, 3, 1207], b: [62, 35], c: [9] };
  const loader = mixLoader(datasets, "a:0.5,b:0.3,c:0.2", { batch_size: 5 });
  const places = samples(loader, 20_000, 2); // two cycles
  for (const [dir, share] of [["a", 0.5], ["b", 0.3], ["c", 0.2]] as const) {
    const own = places.filter((place) => place.startsWith(`${dir}/`));
    assertEquals(own.length, share * 20_000);
    const expected = allWindows(datasets[dir], 4, (shard) => `${dir}/shard_${shard}`).sort();
    const n = expected.length, epochs = Math.floor(own.length / n);
    assert(epochs >= 20);
    for (let epoch = 0; epoch < epochs; epoch++) {
      const windows = own.slice(epoch * n, (epoch + 1) * n).sort();
      if (windows.join() !== expected.join()) assertEquals(windows, expected, `${dir}, epoch ${epoch}`);
    }
  }
});

Deno.test("Loader.trainWindows() takes the datasets of a mix in orders of their own", () => {
  const loader = mixLoader({ a: [401], b: [401] }, "a:1,b:1");
  const places = samples(loader, 1000, 1);
  const [a, b] = ["a/", "b/"].map((dir) =>
    places.filter((place) => place.startsWith(dir)).slice(0, 100).map((place) => place.slice(dir.length))
  );
  assertEquals(a!.toSorted(), b!.toSorted()); // an epoch of each
  assert(a!.join() !== b!.join());
});

Deno.test("Loader.trainWindows() has exact proportions over every cycle of a mix", () => {
  const loader = mixLoader({ a: [4001], b: [999], c: [77] }, "a:1,b:1,c:1", { batch_size: 100 });
  for (const cycle of [0, 1, 7]) {
    const count = { a: 0, b: 0, c: 0 };
    for (let step = 0; step < 100; step++) {
      for (const window of loader.trainWindows(position({ sample: 100 * (100 * cycle + step) }))) {
        count[loader.placeOf(window)[0] as "a" | "b" | "c"]++;
      }
    }
    assertEquals(count, { a: 3334, b: 3333, c: 3333 });
  }
});

Deno.test("Loader.trainBatch() reads the windows of trainWindows() from the shards of a mix", () => {
  const read: string[] = [], shards = ["a/shard_0", "a/shard_1", "b/shard_0"];
  const loader = mixLoader({ a: [90, 55], b: [21] }, "a:1,b:1", { batch_size: 8 }, (shard, start) => {
    read.push(`${shards[shard]} tokens ${start} to ${start + 4}`);
  });
  for (const sample of [0, 8, 10_000]) loader.trainBatch(0n, 0n, position({ sample }));
  const windows = [0, 8, 10_000].flatMap((sample) => loader.trainWindows(position({ sample })));
  assertEquals(read, windows.map((window) => loader.placeOf(window)));
});

Deno.test("Loader.evalBatch() takes windows of the datasets of a mix in turn, all of them once", () => {
  const read: string[] = [];
  const loader = mixLoader({ a: [9], b: [17, 9] }, "a:9,b:1", { split: "val", batch_size: 3 }, (...place) => {
    read.push(place.join("-"));
  });
  const rows = Array.from({ length: loader.n_evalBatches }, (_, i) => loader.evalBatch(0n, 0n, i));
  assertEquals([loader.n_windows, rows], [8, [3, 3, 2]]);
  assertEquals(read.slice(0, 8).join(" "), "0-0 1-0 0-4 1-4 1-8 1-12 2-0 2-4");
  assertEquals(read.slice(8), ["2-4"]); // fills the last batch
});

Deno.test("Loader names and decodes windows of a mix with the dataset they are from", async () => {
  const dir = Deno.makeTempDirSync();
  try {
    const texts = { poem: "To be or not", code: "x = (a + b) * c" };
    for (const [name, text] of Object.entries(texts)) {
      Deno.mkdirSync(`${dir}/${name}`);
      const bytes = new Uint8Array(Uint16Array.from(new TextEncoder().encode(text)).buffer); // nanoGPT's format
      for (const file of ["train.bin", "val.bin"]) Deno.writeFileSync(`${dir}/${name}/${file}`, bytes);
    }
    const open = (dir: string): Dataset => ({
      ...openDataset(dir),
      tokenizer: "bytes",
      vocab_size: 120,
      bos: 0,
      eot: 0,
    });
    const mix = openData(`${dir}/poem:1,${dir}/code:1`, open);
    const [x, y] = [allocateHost(20), allocateHost(20)];
    const options: LoaderOptions = { split: "train", batch_size: 1, block_size: 5, vocab_size: 120 };
    const loader = new Loader(tokenSource, mix, options);
    const tokenizer = await openTokenizer("bytes");
    assertEquals(loader.decodeWindow({ shard: 0, start: 5 }, tokenizer), " or no");
    assertEquals(loader.decodeWindow({ shard: 1, start: 5 }, tokenizer), "a + b)");
    assertEquals(loader.placeOf({ shard: 1, start: 5 }), `${dir}/code/train.bin tokens 5 to 10`);
    assertThrows(
      () => {
        for (let sample = 0; sample < 30; sample++) loader.trainBatch(x, y, position({ sample }));
      },
      UserError,
      `Cannot use "${dir}/code/train.bin": token 0 is 120, should be below vocab_size 120`,
    );
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
});

function readI32(address: bigint, length: number): Int32Array {
  const values = new Int32Array(length);
  copyToHost(values, address);
  return values;
}

/** Conversations of one byte a token: the tokens 1, 2, 3, ... and the mask that is given, by shard. */
function withMasks(dir: string, ...masks: number[][]): Dataset {
  const shards = masks.map((mask, i): Shard => {
    const path = `${dir}/${i}.bin`;
    Deno.writeFileSync(path, new Uint8Array(Uint16Array.from(mask, (_, t) => t + 1).buffer));
    Deno.writeFileSync(`${dir}/${i}.mask`, Uint8Array.from(mask));
    return { path, tokens: mask.length, header_bytes: 0, token_bytes: 2, mask: `${dir}/${i}.mask` };
  });
  const { dataset } = fakeDataset();
  return { ...dataset, dir, train: shards, val: shards, template: "" };
}

const OPTIONS = { split: "train", batch_size: 2, block_size: 3, vocab_size: 257 } as const;

Deno.test("Loader has no target where a mask says that a token is not trained on", () =>
  inDirectory((dir) => {
    const x = allocateHost(24), y = allocateHost(24);
    const masks = [[2, 0, 1, 1, 0, 1, 0, 2], [3, 1, 0, 0, 0, 0, 0]]; // windows begin at 0, 3 and 0, 3
    const loader = new Loader(tokenSource, withMasks(dir, ...masks), { ...OPTIONS, split: "val" });
    assertEquals(loader.n_windows, 4);
    const batches = [0, 1].map((i) => {
      assertEquals(loader.evalBatch(x, y, i), 2);
      return [x, y].map((address) => Array.from(readI32(address, 6)));
    });
    assertEquals(batches, [
      [[1, 2, 3, 4, 5, 6], [-1, 3, 4, -1, 6, -1]],
      [[1, 2, 3, 4, 5, 6], [2, -1, -1, -1, -1, -1]],
    ]);
    assertEquals([0, 1].map((i) => loader.evalWeight(i)), [3 / 3, 1 / 3]);
    const starts = allocateHost(24), begins = withMasks(dir, [2, 0, 3, 1, 2, 2, 0, 0]);
    new Loader(tokenSource, { ...begins, bos: 2 }, { ...OPTIONS, split: "val" }).evalBatch(x, y, 0, starts);
    assertEquals(Array.from(readI32(starts, 6)), [0, 0, 2, 0, 1, 2]);
  }));

Deno.test("Loader.lossScale() makes the mean of micro-steps that of the tokens that are trained on, or 0", () =>
  inDirectory((dir) => {
    const mask = [2, 0, 1, 1, /**/ 0, 1, 0, /**/ 0, 0, 0, /**/ 1, 1, 1]; // of the windows 2, 1, 0 and 3 tokens
    const loader = new Loader(tokenSource, withMasks(dir, mask), { ...OPTIONS, batch_size: 1 });
    const counts = [2, 1, 0, 3], seen: number[] = [];
    for (let sample = 0; sample < 4; sample++) {
      const { start } = loader.trainWindows(position({ sample }))[0]!;
      seen.push(start / 3);
      const own = counts[start / 3]!;
      assertEquals(loader.lossScale(position({ sample }), 1), own === 0 ? 0 : 3 / own);
      if (sample % 2 === 0) continue;
      const both = counts[seen[sample - 1]!]! + own;
      assertEquals(loader.lossScale(position({ sample: sample - 1 }), 2), 3 / both);
    }
    assertEquals(seen.toSorted(), [0, 1, 2, 3]);
    const plain = new Loader(tokenSource, { ...withMasks(dir, mask), train: loaderShards(dir) }, OPTIONS);
    assertEquals([1, 3].map((n) => plain.lossScale(position(), n)), [1, 1 / 3]);
    assertEquals(plain.evalWeight(0), 2);
  }));

/** The same file without its mask. */
function loaderShards(dir: string): Shard[] {
  return [{ path: `${dir}/0.bin`, tokens: 13, header_bytes: 0, token_bytes: 2 }];
}

Deno.test("Loader counts what is trained on in windows of any length, over the ends of what it reads at a time", () =>
  inDirectory((dir) => {
    const mask = Array.from({ length: (1 << 20) + 777 }, (_, i) => i % 7 === 0 || i % 1000 < 9 ? 1 : 2);
    const dataset = withMasks(dir, mask);
    for (const block_size of [1023, 99_991, (1 << 20) + 500]) {
      const loader = new Loader(tokenSource, dataset, { ...OPTIONS, batch_size: 1, block_size });
      for (let sample = 0; sample < loader.n_windows; sample += 100) {
        const { start } = loader.trainWindows(position({ sample }))[0]!;
        const trained = mask.slice(start + 1, start + block_size + 1).filter((byte) => byte & 1).length;
        assertEquals(loader.lossScale(position({ sample }), 1), block_size / trained);
      }
    }
  }));

Deno.test("Loader trains on all of a text that is mixed with conversations", () =>
  inDirectory((dir) => {
    const x = allocateHost(24),
      y = allocateHost(24),
      open = (name: string) => {
        Deno.mkdirSync(name, { recursive: true });
        const dataset = withMasks(name, [2, 0, 0, 1]);
        if (name.endsWith("chat")) return dataset;
        const { template: _, ...text } = dataset, shards = text.train.map(({ mask: _, ...shard }) => shard);
        return { ...text, train: shards, val: shards };
      };
    const mix = openData(`${dir}/chat:0.5,${dir}/text:0.5`, open);
    assertEquals(mix.template, "");
    const loader = new Loader(tokenSource, mix, OPTIONS);
    loader.evalBatch(x, y, 0);
    assertEquals(Array.from(readI32(y, 6)), [-1, -1, 4, 2, 3, 4]);
    assertEquals(loader.evalWeight(0), 4 / 3);
    const trained = loader.trainWindows(position()).map(({ shard }) => shard === 0 ? 1 : 3);
    assertEquals(loader.lossScale(position(), 1), 6 / (trained[0]! + trained[1]!));
    assertThrows(
      () => openData(`${dir}/chat:0.5,${dir}/other_chat:0.5`, (name) => ({ ...open(name), template: name })),
      UserError,
      `Cannot mix "${dir}/chat" and "${dir}/other_chat": their conversations have different chat templates; ` +
        "prepare both with one: --chat_template",
    );
  }));
