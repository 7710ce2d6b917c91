import { assert, assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { freshPath } from "../tests/testing.ts";
import { type CheckpointContent, listCheckpoints, loadCheckpoint, saveCheckpoint } from "./checkpoint.ts";
import { Saver } from "./saver.ts";
import { readSums } from "./sums.ts";
import { fixed, readFloats, type Tensor, writeFloats } from "./tensor.ts";
import { openTestDevice } from "./testing.ts";

openTestDevice();

const ALONE = { rank: 0, world_size: 1, barrier: () => Promise.resolve(), sum: () => Promise.resolve([]) };
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
    await using saver = new Saver((path) => told.push(path), 0);
    saver.prepare(content(1), ALONE);
    for (const step of [1, 2, 3]) {
      fill(w, step);
      await saveCheckpoint(other, content(step), 3);
      await saver.save(run, content(step), 3, ALONE);
      assertEquals(told.length, step - 1); // the one before is whole, this one has not been told of
      fill(w, 1000);
    }
    await saver.finish();
    saver.look();
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

Deno.test("Saver waits for the last checkpoint at its end, and leaves small ones and several ranks to saveCheckpoint()", async () => {
  const run = freshPath(), told: string[] = [];
  {
    await using saver = new Saver((path) => told.push(path), 0);
    await saver.save(run, content(1), 3, ALONE);
    assertEquals(told, []);
  }
  assertEquals(listCheckpoints(run), ["step_000001"]);
  await using small = new Saver((path) => told.push(path));
  await small.save(run, content(2), 3, ALONE);
  await using ranks = new Saver((path) => told.push(path), 0);
  await ranks.save(run, content(3), 3, { ...ALONE, rank: 1, world_size: 2, sum: () => Promise.resolve([0]) })
    .catch(() => {});
  assertEquals(told.map((path) => path.slice(-1)), ["1", "2"]);
});

Deno.test("Saver says what made a save fail at the next look, and at once what is not finite; the earlier one stays", async () => {
  const run = freshPath();
  await using saver = new Saver(() => {}, 0);
  await saver.save(run, content(1), 3, ALONE);
  await saver.finish();
  fill(m, NaN);
  await assertRejects(() => saver.save(run, content(2), 3, ALONE), UserError, "is NaN");
  fill(m, 2);
  Deno.writeTextFileSync(`${run}/checkpoints/.tmp_step_000002`, "");
  Deno.mkdirSync(`${run}/checkpoints/step_000002/in the way`, { recursive: true });
  await saver.save(run, content(2), 3, ALONE);
  saver.look(); // not known yet
  const why = `Cannot save checkpoint ${run}/checkpoints/step_000002: Cannot rename `;
  const { message } = await assertRejects(() => saver.finish(), UserError, why);
  assert(message.endsWith(`go on from step_000002, which is whole: --resume=${run}`), message);
  await saver.finish();
  await saver.save(run, content(3), 3, ALONE);
  while (!listCheckpoints(run).includes("step_000003")) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await saver.save(run, content(2), 3, ALONE);
  await assertRejects(
    async () => {
      for (;;) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        saver.look();
      }
    },
    UserError,
    why,
  );
});
