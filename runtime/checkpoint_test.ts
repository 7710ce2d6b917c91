import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { basename } from "node:path";
import { UserError } from "../base/errors.ts";
import { crashes, failing, inEach, unsynced } from "../tests/disk.ts";
import { freshPath } from "../tests/testing.ts";
import {
  type CheckpointContent,
  listCheckpoints,
  loadCheckpoint,
  loadTensors,
  momentsFiles,
  resolveCheckpoint,
  runOfCheckpoint,
  saveCheckpoint,
  type SavedTensor,
  settle,
} from "./checkpoint.ts";
import { readSafetensors, toFloat32, writeSafetensors } from "./safetensors.ts";
import { readSums, requireSums } from "./sums.ts";
import { fixed, readFloats, type Tensor, writeFloats } from "./tensor.ts";
import { companies, openTestDevice } from "./testing.ts";
import { readTrainerState } from "./trainer_state.ts";

openTestDevice();

const CHUNK_BYTES = 64; // so that a tensor takes several

/** A float32 tensor that stays, of these values. */
function floats(...values: number[]): Tensor {
  const t = fixed([values.length], "f32", "constants");
  writeFloats(t.address, Float32Array.from(values), "f32");
  return t;
}

/** It as it is saved, or a range of it. */
function saved(name: string, t: Tensor, from = 0, to = t.size): SavedTensor {
  return {
    name,
    shape: t.shape.slice(),
    address: t.address + BigInt(4 * from),
    dtype: "f32",
    range: { from, to },
  };
}

const numbers = (n: number, factor: number) => Array.from({ length: n }, (_, i) => factor * (i + 1) / 8);
const weights = floats(...numbers(50, 1)), moments = floats(...numbers(101, -1)); // 4 and 7 chunks, the last ones not full

/** A checkpoint after a step, of which a rank saves its part; `best` is the step of the best one. */
function content(step: number, best: number | null, rank = 0, world_size = 1): CheckpointContent {
  const part = (n: number) => Math.floor(101 * n / world_size);
  const val_loss = best === null ? null : 2 + (step - best), best_val_loss = best === null ? null : 2;
  return {
    model: [saved("w", weights)],
    optimizer: [saved("m", moments, part(rank), part(rank + 1))],
    files: { "config.json": `{"step": ${step}}\n` },
    state: {
      ...{
        step,
        updates: step,
        skipped: 0,
        skipped_row: 0,
        tokens: step,
        order: "",
        samples: step,
        val_loss,
        best_val_loss,
        best_step: best,
      },
      ...{ tokenizer: null, data: {}, config: {}, versions: {} },
    },
  };
}

function save(run: string, step: number, best: number | null, keep = 2): Promise<string> {
  return saveCheckpoint(run, content(step, best), keep, undefined, CHUNK_BYTES);
}

/** Saves without the time of syncs. */
function put(run: string, step: number, best: number | null): Promise<string> {
  return unsynced(() => save(run, step, best));
}

Deno.test("saveCheckpoint() and loadTensors() take a tensor in chunks, from each type of float", async () => {
  const run = freshPath(), directory = await save(run, 1, null);
  const file = readSafetensors(`${directory}/optimizer.safetensors`);
  assertEquals([...toFloat32(file.read("m"), "F32")], numbers(101, -1));
  const path = `${run}/types.safetensors`, values = numbers(50, 1); // which float16 and bfloat16 have all
  const bits = new Uint32Array(Float32Array.from(values).buffer);
  const types = {
    F32: new Uint8Array(bits.buffer),
    BF16: new Uint8Array(Uint16Array.from(bits, (bits) => bits >>> 16).buffer),
    F16: new Uint8Array(Float16Array.from(values).buffer),
  };
  for (const [dtype, bytes] of Object.entries(types) as [keyof typeof types, Uint8Array][]) {
    writeSafetensors(path, [{ name: "w", dtype, shape: [50], bytes: () => bytes }]);
    const t = floats(...new Array(50).fill(0));
    loadTensors(path, [saved("w", t)], CHUNK_BYTES);
    assertEquals([...readFloats(t.address, 50, "f32")], values, dtype);
    loadTensors(
      path,
      [saved("w", t, 30, 49)].map((part) => ({ ...part, address: t.address })),
      CHUNK_BYTES,
    );
    assertEquals(
      [...readFloats(t.address, 50, "f32")],
      [...values.slice(30, 49), ...values.slice(19)],
      dtype,
    );
  }
});

Deno.test("listCheckpoints() knows that a million steps are more than 999,999", async () => {
  const run = freshPath();
  for (const step of [999_999, 1_000_000, 1_000_001]) await put(run, step, null);
  assertEquals(listCheckpoints(run), ["step_1000000", "step_1000001"]);
  assertEquals(Deno.readTextFileSync(`${run}/latest`), "checkpoints/step_1000001\n");
});

Deno.test("resolveCheckpoint() follows latest and best of a run, as runOfCheckpoint() does", async () => {
  const run = freshPath();
  for (const step of [1, 2, 3]) await put(run, step, step === 1 ? null : 2);
  assertEquals(
    ["", "/latest", "/best", "/best/"].map((path) => resolveCheckpoint(run + path)),
    [3, 3, 2, 2].map((step) => `${run}/checkpoints/step_00000${step}`),
  );
  assertEquals(["", "/", "/latest", "/best/"].map((path) => runOfCheckpoint(run + path)), Array(4).fill(run));
  Deno.removeSync(`${run}/checkpoints/step_000003`, { recursive: true }); // by hand
  assertEquals(resolveCheckpoint(`${run}/latest`), `${run}/checkpoints/step_000002`);
});

Deno.test("resolveCheckpoint() says that a run has no best, and that one has no checkpoint at all", async () => {
  const run = freshPath(), empty = freshPath();
  await put(run, 1, null);
  const { message } = assertThrows(() => resolveCheckpoint(`${run}/best`), UserError);
  assertEquals(
    message,
    `Cannot find ${run}/best: the run has evaluated no checkpoint that is there; take the newest: ${run}`,
  );
  Deno.mkdirSync(empty);
  Deno.writeTextFileSync(`${empty}/run.json`, "{}");
  assertMatch(
    assertThrows(() => resolveCheckpoint(`${empty}/latest`), UserError).message,
    /^Cannot find a checkpoint in .*: its run has saved none; wait for one/,
  );
});

/** Saves a checkpoint of several ranks, without the time of syncs. */
async function putTogether(
  run: string,
  step: number,
  world_size: number,
  large_bytes?: number,
): Promise<string> {
  const saves = () =>
    Promise.all(
      companies(world_size).map((company) =>
        saveCheckpoint(
          run,
          content(step, null, company.rank, world_size),
          2,
          company,
          CHUNK_BYTES,
          large_bytes,
        )
      ),
    );
  return (await unsynced(saves))[0]!;
}

Deno.test("loadCheckpoint() takes any range from the files of any number of ranks, and reads no others", async () => {
  const w = floats(...numbers(50, 0)), ranges = [[0, 101], [0, 14], [13, 44], [43, 101], [100, 101]] as const;
  const load = async (directory: string, from: number, to: number, shape = [101]) => {
    const m = floats(...new Array(to - from).fill(0)), tensor = { ...saved("m", moments, from, to), shape };
    const sums = readSums(directory)!;
    await loadCheckpoint(directory, [saved("w", w)], [{ ...tensor, address: m.address }], sums, CHUNK_BYTES);
    return [...readFloats(m.address, to - from, "f32")];
  };
  const usual = [[1, undefined, 1], [2, undefined, 2], [3, undefined, 3], [7, undefined, 7]] as const;
  const large = [[1, 8, 8], [2, 8, 8], [3, 8, 9], [7, 8, 14], [1, 100, 4], [2, 101, 4], [2, 102, 2]] as const; // of 404 bytes
  for (const [world_size, large_bytes, n] of [...usual, ...large]) {
    const directory = await putTogether(freshPath(), 1, world_size, large_bytes);
    const command = new Deno.Command("sha256sum", { args: ["-c", "SHA256SUMS"], cwd: directory });
    const printed = new TextDecoder().decode((await command.output()).stdout);
    assertEquals(printed.match(/: OK$/gm)?.length, 3 + n);
    const places = momentsFiles(directory).map((path) => readSafetensors(path).metadata.m ?? "0 of 101");
    if (world_size === 1) { // masters go by eights
      assertEquals(places.map((place) => Number.parseInt(place) % 8), Array(n).fill(0), `${places}`);
    }
    for (const [from, to] of ranges) {
      assertEquals(await load(directory, from, to), numbers(101, -1).slice(from, to));
    }
  }
  const directory = await putTogether(freshPath(), 1, 3), paths = momentsFiles(directory);
  assertEquals([...readFloats(w.address, 50, "f32")], numbers(50, 1));
  await assertRejects(
    () => load(directory, 0, 101, [1, 101]),
    UserError,
    `Cannot load ${directory}: the files of its optimizer lack 101 elements of m of shape (1,101)`,
  );
  const bytes = Deno.readFileSync(paths[1]!);
  Deno.writeFileSync(paths[1]!, bytes.map((byte, i) => i === bytes.length - 1 ? byte ^ 1 : byte));
  await load(directory, 0, 33);
  await load(directory, 67, 101);
  const damaged = `Cannot load ${paths[1]}: its sha256 is not the one in SHA256SUMS`;
  await assertRejects(() => load(directory, 0, 34), UserError, damaged);
  Deno.removeSync(paths[2]!);
  await assertRejects(() => load(directory, 0, 1), UserError, `Cannot read ${paths[2]}: `);
});

Deno.test("loadCheckpoint() finds each byte of a file that was changed", async () => {
  const directory = await put(freshPath(), 1, null), sums = readSums(directory);
  const w = floats(...numbers(50, 1)), m = floats(...numbers(101, 1));
  for (const path of [`${directory}/model.safetensors`, momentsFiles(directory)[0]!]) {
    const whole = Deno.readFileSync(path);
    for (let at = 0; at < whole.length; at += 3) {
      Deno.writeFileSync(path, whole.map((byte, i) => i === at ? byte ^ 1 : byte));
      await assertRejects(
        () => loadCheckpoint(directory, [saved("w", w)], [saved("m", m)], sums),
        UserError,
        `${path}: `,
      );
    }
    Deno.writeFileSync(path, whole);
  }
});

/** Steps of the checkpoints of a run, all of which are whole, that latest and best name, and that temporary ones are of. */
async function look(
  run: string,
): Promise<{ steps: number[]; latest: number | null; best: number | null; temporary: string[] }> {
  const steps: number[] = [];
  for (const name of listCheckpoints(run)) {
    const directory = `${run}/checkpoints/${name}`, sums = readSums(directory)!;
    requireSums(directory, sums, () => true);
    const parts = momentsFiles(directory).map((path) => basename(path));
    assertEquals([...sums.keys()], ["config.json", "model.safetensors", ...parts, "trainer_state.json"]);
    const m = floats(...new Array(101).fill(0)), w = floats(...new Array(50).fill(0));
    await loadCheckpoint(directory, [saved("w", w)], [saved("m", m)], sums);
    assertEquals([...readFloats(m.address, 101, "f32")], numbers(101, -1));
    steps.push(readTrainerState(directory).step);
  }
  const pointer = (name: string) => {
    try {
      return Number(/^checkpoints\/step_(\d+)\n$/.exec(Deno.readTextFileSync(`${run}/${name}`))![1]);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return null;
      throw error;
    }
  };
  const names = [run, `${run}/checkpoints`].flatMap((directory) => {
    try {
      return Array.from(Deno.readDirSync(directory), ({ name }) => name);
    } catch {
      return [];
    }
  });
  const [latest, best] = [pointer("latest"), pointer("best")];
  for (const step of [latest, best]) {
    assert(step === null || steps.includes(step), `a pointer names ${step} of ${steps}`);
  }
  return { steps, latest, best, temporary: names.filter((name) => name.includes("tmp")) };
}

Deno.test("saveCheckpoint() by two ranks may end at any moment, and settle() finishes what follows", async () => {
  const keep = 2;
  const root = freshPath(), run = `${root}/run`;
  Deno.mkdirSync(run, { recursive: true });
  const best = [1, 1, 1, 4, 4, 4];
  let said = 0;
  const { changes, states } = await crashes(root, async () => {
    for (let step = 1; step <= 6; said = step++) {
      await Promise.all(
        companies(2).map((company) =>
          saveCheckpoint(run, content(step, best[step - 1]!, company.rank, 2), keep, company, CHUNK_BYTES)
        ),
      );
    }
  }, () => said);
  assert(changes > 200 && states.length > 200, `${changes} changes, ${states.length} states`);
  const stepsAt = new Set<number>();
  await inEach(states, async (root, { said }) => {
    const run = `${root}/run`, before = await look(run), step = before.steps.at(-1);
    assert(
      (step ?? 0) >= said && (before.latest ?? 0) >= said,
      `${JSON.stringify(before)} after ${said} was saved`,
    );
    settle(run, step ? content(step, best[step - 1]!).state : undefined, keep);
    const { steps, latest, best: is, temporary } = await look(run);
    assertEquals({ latest, is }, { latest: step ?? null, is: step ? best[step - 1]! : null });
    assertEquals(temporary, []);
    assertEquals(steps.at(-1), step);
    assert(steps.filter((step) => step !== is).length <= keep, `${steps}`);
    for (const n of [step!, step! - 1].slice(0, keep)) {
      assert(!(n >= 1) || steps.includes(n), `${n} is gone of ${steps}`);
    }
    stepsAt.add(step ?? 0);
  });
  assertEquals([...stepsAt].sort(), [0, 1, 2, 3, 4, 5, 6]);
  assertEquals(await look(run), { steps: [4, 5, 6], latest: 6, best: 4, temporary: [] });
});

Deno.test("saveCheckpoint() says what the system refuses at any moment, and leaves the earlier ones whole", async () => {
  for (const error of ["full", "broken"] as const) {
    for (let number = 1, reached = true; reached; number++) {
      const run = freshPath();
      for (const step of [1, 2]) await put(run, step, 1);
      const result = await failing(number, error, () => save(run, 3, 1));
      reached = result.reached;
      const { steps, latest, best } = await look(run);
      assert(steps.includes(1) && (steps.includes(2) || steps.includes(3)), `${steps}`);
      assert(latest !== null && latest >= 2 && best === 1, `latest ${latest}, best ${best}`);
      if (result.failed) {
        assert(result.failed instanceof UserError, String(result.failed));
        assertEquals(result.failed.message.includes("\n"), false);
      }
      const newest = listCheckpoints(run).at(-1)!;
      settle(run, readTrainerState(`${run}/checkpoints/${newest}`), 2);
      if (newest !== "step_000003") await put(run, 3, 1);
      assertEquals(await look(run), { steps: [1, 2, 3], latest: 3, best: 1, temporary: [] });
      Deno.removeSync(run, { recursive: true });
    }
  }
});
