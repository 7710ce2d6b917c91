import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { freshPath } from "../tests/testing.ts";
import {
  ALONE,
  type CheckpointContent,
  type Company,
  listCheckpoints,
  loadCheckpoint,
  partOfCopies,
  saveCheckpoint,
} from "./checkpoint.ts";
import { Saver } from "./saver.ts";
import { readSums } from "./sums.ts";
import { fixed, readFloats, type Tensor, writeFloats } from "./tensor.ts";
import { companies, openTestDevice } from "./testing.ts";

openTestDevice();

const N = 1000;

/** A tensor that stays, of one value. */
function constant(value: number): Tensor {
  const t = fixed([10, 100], "f32", "constants");
  fill(t, value);
  return t;
}

function fill(t: Tensor, value: number): void {
  writeFloats(t.address, new Float32Array(N).fill(value), "f32");
}

const w = constant(1), m = constant(2), v = constant(3);

function content(step: number): CheckpointContent {
  const saved = (name: string, { address, shape }: Tensor) => ({
    name,
    shape: shape.slice(),
    address,
    dtype: "f32" as const,
  });
  const counts = { step, updates: step, skipped: 0, skipped_row: 0, tokens: step, order: "", samples: step };
  const best = { val_loss: null, best_val_loss: null, best_step: null };
  return {
    model: [saved("w", w)],
    optimizer: [saved("m", m), saved("v", v)],
    files: { "config.json": "{}\n" },
    state: { ...counts, ...best, tokenizer: null, data: {}, config: {}, versions: {} },
  };
}

Deno.test("Saver writes the values of the moment, the same bytes as saveCheckpoint(), one checkpoint at a time", async () => {
  const run = freshPath(), other = freshPath(), told: string[] = [];
  {
    await using saver = new Saver(ALONE, (path) => told.push(path), 0);
    await saver.prepare(content(1));
    for (const step of [1, 2, 3]) {
      fill(w, step);
      await saveCheckpoint(other, content(step), 3, ALONE, undefined, 0);
      await saver.save(run, content(step), 3);
      assertEquals(told.length, step - 1); // the one before is whole, this one has not been told of
      fill(w, 1000);
    }
    await saver.finish();
    await saver.look(0);
  }
  const names = ["step_000001", "step_000002", "step_000003"];
  assertEquals(told, names.map((name) => `${run}/checkpoints/${name}`));
  for (const name of names) {
    const [here, there] = [run, other].map((dir) => `${dir}/checkpoints/${name}`) as [string, string];
    assertEquals(readSums(here), readSums(there));
    await loadCheckpoint(here, content(1).model, content(1).optimizer, readSums(here));
    assertEquals(readFloats(w.address, 1, "f32")[0], Number(name.slice(-1)));
  }
  assertEquals(Deno.readTextFileSync(`${run}/latest`), "checkpoints/step_000003\n");
});

Deno.test("Saver waits for the last checkpoint at its end, and leaves small ones to saveCheckpoint()", async () => {
  const run = freshPath(), told: string[] = [];
  {
    await using saver = new Saver(ALONE, (path) => told.push(path), 0);
    await saver.prepare(content(1));
    await saver.save(run, content(1), 3);
    assertEquals(told, []);
  }
  assertEquals(listCheckpoints(run), ["step_000001"]);
  await using small = new Saver(ALONE, (path) => told.push(path));
  await small.prepare(content(2));
  await small.save(run, content(2), 3);
  assertEquals(told.map((path) => path.slice(-1)), ["1", "2"]);
});

Deno.test("Saver rests while it writes beside training, and no longer once somebody waits", async () => {
  const run = freshPath(), FOREVER = 1e9;
  for (const wait of [(saver: Saver) => saver.finish(), (saver: Saver) => saver[Symbol.asyncDispose]()]) {
    await using saver = new Saver(ALONE, () => {}, 0, FOREVER);
    await saver.prepare(content(1));
    for (const step of [1, 2]) {
      await saver.save(run, content(step), 3); // of the second one the first is waited for
      await new Promise((resolve) => setTimeout(resolve, 50));
      assertEquals([listCheckpoints(run).length, saver.hasWritten], [step - 1, false]);
    }
    await wait(saver);
    assertEquals(listCheckpoints(run), ["step_000001", "step_000002"]);
    Deno.removeSync(run, { recursive: true });
  }
});

/** What a rank saves: its part of m and v. */
function contentOf({ rank, world_size }: Company, step: number): CheckpointContent {
  const { model, optimizer, ...rest } = content(step), part = (n: number) => Math.floor(N * n / world_size);
  const range = { from: part(rank), to: part(rank + 1) };
  const own = [m, v].map(({ address }, i) => (
    { ...optimizer[i]!, address: address + BigInt(4 * range.from), dtype: "f32" as const, range }
  ));
  return { ...rest, model, optimizer: own };
}

Deno.test("Savers of several ranks publish a checkpoint once all have said that their parts are written", async () => {
  const run = freshPath(), other = freshPath(), told: string[] = [], ranks = companies(3);
  const savers = ranks.map((company) => new Saver(company, (path) => told.push(path), 0));
  const all = (f: (saver: Saver, rank: Company) => unknown) =>
    Promise.all(savers.map((saver, i) => f(saver, ranks[i]!)));
  const said = () => savers.filter(({ hasWritten }) => hasWritten).length;
  await all((saver, rank) => saver.prepare(contentOf(rank, 1)));
  for (const step of [1, 2, 3]) {
    fill(w, step), fill(m, -step);
    await Promise.all(
      companies(3).map((rank) => saveCheckpoint(other, contentOf(rank, step), 3, rank, undefined, 0)),
    );
    await all((saver, rank) => saver.save(run, contentOf(rank, step), 3));
    fill(w, 1000), fill(m, 1000);
    if (step === 1) {
      while (said() < 3) {
        await all((saver) => saver.look(2)); // what they said of a step before
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      assertEquals([listCheckpoints(run), told], [[], []]);
      await all((saver) => saver.look(3));
      assertEquals(said(), 0);
      await all((saver) => saver.look(3)); // what they said before that
    } // else save() and finish() wait for all
  }
  await all((saver) => saver.finish());
  await all((saver) => saver[Symbol.asyncDispose]());
  const names = ["step_000001", "step_000002", "step_000003"];
  assertEquals(told, names.map((name) => `${run}/checkpoints/${name}`)); // by one rank
  for (const name of names) {
    const [here, there] = [run, other].map((dir) => `${dir}/checkpoints/${name}`) as [string, string];
    assertEquals(readSums(here), readSums(there));
    await loadCheckpoint(here, content(1).model, content(1).optimizer, readSums(here));
    assertEquals(
      [w, m].map(({ address }) => readFloats(address, N, "f32").at(-1)),
      [1, -1].map((sign) => sign * Number(name.at(-1))),
    );
  }
});

Deno.test("Savers of several ranks write while training waits where one has no memory for a copy", async () => {
  const run = freshPath(), told: string[] = [], ranks = companies(2);
  const sum = (...values: number[]) => ranks[1]!.sum(...(values[0] === 1 ? [0] : values)); // it says that it has not
  const savers = [ranks[0]!, { ...ranks[1]!, sum }].map((company) =>
    new Saver(company, (path) => told.push(path), 0)
  );
  await Promise.all(savers.map((saver, i) => saver.prepare(contentOf(ranks[i]!, 1))));
  await Promise.all(savers.map((saver, i) => saver.save(run, contentOf(ranks[i]!, 1), 3)));
  assertEquals(told, [`${run}/checkpoints/step_000001`]);
});

Deno.test("Saver publishes nothing that is not finite, and says of it what saveCheckpoint() says; the earlier one stays", async () => {
  const run = freshPath(), told: string[] = [];
  await using saver = new Saver(ALONE, (path) => told.push(path.slice(-1)), 0);
  await saver.prepare(content(1));
  await saver.save(run, content(1), 3);
  for (
    const [tensor, name, at, value] of [[w, "w", 0, NaN], [m, "m", 999, Infinity], [
      v,
      "v",
      500,
      -Infinity,
    ]] as const
  ) {
    const before = readFloats(tensor.address, 1, "f32");
    writeFloats(tensor.address + BigInt(4 * at), new Float32Array([value]), "f32");
    await saver.save(run, content(2), 3);
    writeFloats(tensor.address + BigInt(4 * at), before, "f32"); // it is the copy that counts
    const why =
      `Cannot save ${run}/checkpoints/step_000002: element ${at} of ${name} (10,100) is ${value}; ` +
      "lower the learning rate, or find the first bad value with --debug";
    const { message } = await assertRejects(() => saver.finish(), UserError);
    assertEquals(message, why);
    assertEquals(Array.from(Deno.readDirSync(`${run}/checkpoints`), (entry) => entry.name), ["step_000001"]);
    assertEquals(Deno.readTextFileSync(`${run}/latest`), "checkpoints/step_000001\n");
  }
  await saver.save(run, content(2), 3);
  await saver.finish();
  assertEquals(told, ["1", "2"]);
});

Deno.test("partOfCopies() names the element of the whole tensor, in any piece and of both types", () => {
  const run = "run", { state } = content(1), n = 600_000; // more than a piece
  const [f32, bf16] = [new Float32Array(n).fill(3e38), new Uint16Array(2 * n).fill(0x7f7f)]; // the largest are finite
  const copies = [bf16, f32].map(({ buffer }) => new Uint8Array(buffer)), shape = [n];
  const write = () => {
    const part = partOfCopies(run, state, [
      { file: "model.safetensors", tensors: [{ name: "w", dtype: "BF16", shape: [2 * n] }], metadata: {} },
      {
        file: "optimizer.safetensors",
        tensors: [{ name: "m", dtype: "F32", shape }],
        metadata: { m: `5 of 2,${n}` },
      },
    ], copies);
    return part.flatMap(({ tensors }) => tensors).map(({ bytes }) =>
      Array.from(bytes() as Iterable<Uint8Array>, (b) => b.length)
    );
  };
  assertEquals(write(), [[1 << 21, 4 * n - (1 << 21)], [1 << 21, 4 * n - (1 << 21)]]);
  f32[n - 1] = -Infinity;
  assertThrows(write, UserError, `: element ${n + 4} of m (2,${n}) is -Infinity; `);
  bf16[2 * n - 1] = 0xff80;
  assertThrows(write, UserError, `: element ${2 * n - 1} of w (${2 * n}) is -Infinity; `);
  bf16[1] = 0x7fc0;
  assertThrows(write, UserError, `: element 1 of w (${2 * n}) is NaN; `);
});

Deno.test("Saver says what made a save fail at the next look; the earlier one stays", async () => {
  const run = freshPath();
  await using saver = new Saver(ALONE, () => {}, 0);
  await saver.prepare(content(1));
  await saver.save(run, content(1), 3);
  await saver.finish();
  Deno.writeTextFileSync(`${run}/checkpoints/.tmp_step_000002`, "");
  Deno.mkdirSync(`${run}/checkpoints/step_000002/in the way`, { recursive: true });
  await saver.save(run, content(2), 3);
  await saver.look(0); // not known yet
  const why = `Cannot save checkpoint ${run}/checkpoints/step_000002: Cannot rename `;
  const { message } = await assertRejects(() => saver.finish(), UserError, why);
  assert(message.endsWith(`go on from step_000002, which is whole: --resume=${run}`), message);
  await saver.finish();
  await saver.save(run, content(3), 3);
  while (!listCheckpoints(run).includes("step_000003")) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await saver.save(run, content(2), 3);
  await assertRejects(
    async () => {
      for (;;) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        await saver.look(0);
      }
    },
    UserError,
    why,
  );
});
