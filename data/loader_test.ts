import { assert, assertEquals, assertThrows } from "@std/assert";
import { KernelError, UserError } from "../ffi/errors.ts";
import { type Dataset, openDataset, readTokens, type Shard } from "./bins.ts";
import { Loader, type LoaderOptions, permute, type Position, type TokenSource } from "./loader.ts";
import { openTokenizer } from "./tokenizer.ts";

/** A dataset of shards with these token counts; token t of the whole is t % 256. Also what reads it without files. */
function fakeDataset(...counts: number[]): { dataset: Dataset; source: TokenSource; memory: Int32Array } {
  const memory = new Int32Array(4096); // address a is memory[a / 4]
  const starts = counts.map((_, i) => counts.slice(0, i).reduce((sum, count) => sum + count, 0));
  const shards: Shard[] = counts.map((tokens, i) => ({
    path: `shard_${i}`,
    tokens,
    header_bytes: 0,
    token_bytes: 2,
  }));
  const token = (shard: number, t: number) => {
    assert(t < counts[shard]!, `token ${t} of shard ${shard} with ${counts[shard]}`);
    return (starts[shard]! + t) % 256;
  };
  const source: TokenSource = {
    open: (path) => ({ handle: Number(path.slice(6)), tokens: counts[Number(path.slice(6))]! }),
    gather(x, y, handle, start, T) {
      for (let t = 0; t < T; t++) {
        memory[Number(x) / 4 + t] = token(handle, Number(start) + t);
        memory[Number(y) / 4 + t] = token(handle, Number(start) + t + 1);
      }
    },
  };
  const dataset: Dataset = {
    dir: "data/fake",
    format: "loam",
    tokenizer: "bytes",
    vocab_size: 257,
    eot: 256,
    train: shards,
    val: shards,
    sha256: {},
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
  return { seed: 1, step: 0, micro: 0, gradient_accumulation_steps: 1, rank: 0, world_size: 1, ...options };
}

/** The windows of all micro-steps and ranks of a step, as texts. */
function windowsOfStep(loader: Loader, step: number, accumulation: number, world_size: number): string[] {
  const places: string[] = [];
  for (let micro = 0; micro < accumulation; micro++) {
    for (let rank = 0; rank < world_size; rank++) {
      const at = position({ step, micro, gradient_accumulation_steps: accumulation, rank, world_size });
      places.push(...loader.trainWindows(at).map((window) => loader.placeOf(window)));
    }
  }
  return places;
}

Deno.test("permute() gives each number once, whatever n is", () => {
  for (const n of [1, 2, 3, 4, 5, 16, 17, 100, 257, 1000]) {
    const order = Array.from({ length: n }, (_, i) => permute(i, n, 7, 3));
    assertEquals(order.toSorted((a, b) => a - b), Array.from({ length: n }, (_, i) => i));
  }
});

Deno.test("permute() gives the same order everywhere, and others for other seeds and epochs", () => {
  const order = (seed: number, epoch: number) =>
    Array.from({ length: 10 }, (_, i) => permute(i, 10, seed, epoch));
  assertEquals(order(1337, 0), [0, 6, 7, 9, 2, 4, 8, 1, 5, 3]); // resuming old runs depends on it
  const orders = [order(1337, 0), order(1337, 1), order(1338, 0), order(1337 + 2 ** 32, 0)].map(String);
  assertEquals(new Set(orders).size, 4);
});

Deno.test("permute() moves every number to every place about equally often", () => {
  const n = 8, rounds = 8000, counts = Array.from({ length: n * n }, () => 0);
  for (let seed = 0; seed < rounds; seed++) {
    for (let i = 0; i < n; i++) counts[i * n + permute(i, n, seed, 0)]!++;
  }
  // Chi-squared with 49 degrees of freedom is below 86 in 999 of 1000 cases.
  const expected = rounds / n;
  const chi2 = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
  assert(chi2 < 86, `chi-squared ${chi2}`);
});

Deno.test("permute() leaves neighbours unrelated", () => {
  const n = 10_000, order = Array.from({ length: n }, (_, i) => permute(i, n, 5, 0));
  const near = order.filter((w, i) => i > 0 && Math.abs(w - order[i - 1]!) <= 10).length;
  assert(near < 50, `${near} of ${n} neighbours are still within 10`); // 20 by chance
});

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

Deno.test("Loader.trainWindows() reads each window once per epoch, in another order each time", () => {
  const loader = makeLoader([41, 81]); // 10 + 20 windows, 15 steps
  const epoch = (first: number) =>
    Array.from({ length: 15 }, (_, i) => windowsOfStep(loader, first + i, 1, 1)).flat();
  assertEquals(new Set(epoch(0)).size, 30);
  assertEquals(epoch(0).toSorted(), epoch(15).toSorted());
  assert(epoch(0).join() !== epoch(15).join());
});

Deno.test("Loader.trainWindows() gives a step the same windows however ranks and micro-steps share them", () => {
  const loader = makeLoader([4001]);
  const expected = windowsOfStep(loader, 3, 4, 1).toSorted();
  assertEquals(new Set(expected).size, 8);
  assertEquals(windowsOfStep(loader, 3, 2, 2).toSorted(), expected);
  assertEquals(windowsOfStep(loader, 3, 1, 4).toSorted(), expected);
});

Deno.test("Loader.trainWindows() goes on into the next epoch within a batch", () => {
  const loader = makeLoader([13], { batch_size: 2 }); // 3 windows
  const places = [0, 1, 2].flatMap((step) => windowsOfStep(loader, step, 1, 1));
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
    const source: TokenSource = {
      open: () => ({ handle: 0, tokens: 9 }),
      gather: () => {
        throw new KernelError("data_gather: why");
      },
    };
    const loader = (split: "train" | "val") =>
      new Loader(source, dataset, { split, batch_size: 2, block_size: 4, vocab_size: 257 });
    const train = loader("train"), steps = [0, 1, 2, 3].map((step) => position({ step }));
    const begins = (step: Position) => train.trainWindows(step)[0]!.start;
    assertThrows(
      () => train.trainBatch(0n, 400n, steps.find((step) => begins(step) === 4)!),
      UserError,
      `Cannot use "${dir}/train.bin": token 6 is 999, should be below vocab_size 257; write the dataset again: `,
    );
    assertThrows(() => loader("val").evalBatch(0n, 400n, 0), UserError, `${dir}/val.bin": token 2 is 257, `);
    assertThrows( // another failure stays as it is
      () => train.trainBatch(0n, 400n, steps.find((step) => begins(step) === 0)!),
      KernelError,
      "data_gather: why",
    );
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
