// A process may be killed and a machine may lose power before any change of any file, and the system may refuse each: what is
// then on the disk is whole under its final names, pointers are true, and the next start goes on and cleans up.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { isFile } from "../ffi/files.ts";
import { openRun } from "../model/run_directory.ts";
import { listCheckpoints, settle } from "../runtime/checkpoint.ts";
import { readSums, requireSums, SUMS } from "../runtime/sums.ts";
import { readTrainerState, type TrainerState } from "../runtime/trainer_state.ts";
import { train, type TrainConfig } from "../train.ts";
import { crashes, freshPath, inEach, type State } from "./disk.ts";
import { dataset, list, metrics, SMALL } from "./helpers.ts";

/** Runs without what it prints. */
async function quietly<T>(work: () => T): Promise<Awaited<T>> {
  const { log } = console;
  console.log = () => {};
  try {
    return await work();
  } finally {
    console.log = log;
  }
}

// ---- training

/** The state of the newest checkpoint of a run, whose files all are what SHA256SUMS says; and its pointers are true. */
function requireWhole(run: string): TrainerState | undefined {
  const names = listCheckpoints(run),
    states = names.map((name) => {
      const dir = `${run}/checkpoints/${name}`;
      requireSums(dir, readSums(dir)!, () => true);
      assertEquals([...readSums(dir)!.keys()].sort(), list(dir).filter((name) => name !== SUMS));
      return readTrainerState(dir);
    });
  for (const pointer of ["latest", "best"]) {
    if (!isFile(`${run}/${pointer}`)) continue;
    const text = Deno.readTextFileSync(`${run}/${pointer}`);
    assertMatch(text, /^checkpoints\/step_\d+\n$/);
    assert(
      names.includes(text.trim().slice("checkpoints/".length)),
      `${pointer} names ${text.trim()}, there are ${names}`,
    );
  }
  return states.at(-1);
}

/** What a start has to leave: pointers to the newest and the best, nothing temporary, and no more checkpoints than wanted. */
function requireSettled(run: string, state: TrainerState | undefined, keep: number): void {
  const name = (step: number) => `step_${String(step).padStart(6, "0")}`;
  const pointer = (file: string) =>
    isFile(`${run}/${file}`) ? Deno.readTextFileSync(`${run}/${file}`) : undefined;
  assertEquals(pointer("latest"), state && `checkpoints/${name(state.step)}\n`);
  assertEquals(pointer("best"), state?.best_step ? `checkpoints/${name(state.best_step)}\n` : undefined);
  const kept = listCheckpoints(run).filter((n) => !state?.best_step || n !== name(state.best_step));
  assert(kept.length <= keep, `${kept} are kept`);
  assertEquals(list(`${run}/checkpoints`), listCheckpoints(run));
  assertEquals(list(run).filter((file) => /tmp/.test(file)), []);
}

/** Flags of a run of six steps with three checkpoints, and the run. */
async function runOfSix(): Promise<{ flags: string[]; whole: string; changes: number; states: State[] }> {
  const root = freshPath(), whole = `${root}/run`;
  Deno.mkdirSync(root);
  const flags = [
    `--data_dir=${await dataset({ words: 500 })}`,
    ...SMALL,
    "--max_iters=6",
    "--save_interval=2",
  ];
  flags.push("--eval_interval=2", "--eval_batches=1", "--keep_checkpoints=1", "--sample_interval=2");
  flags.push("--sample_tokens=5");
  const result = await quietly(() => crashes(root, () => train([...flags, `--out_dir=${whole}`])));
  return { flags, whole, ...result };
}

/** Steps whose samples are in a run. */
function sampled(run: string): number[] {
  const path = `${run}/samples.jsonl`, text = isFile(path) ? Deno.readTextFileSync(path) : "";
  return text.split("\n").filter((line) => line.endsWith("}")).map((line) => JSON.parse(line).step);
}

Deno.test("train may be killed or lose power before any change of a file, and goes on", async () => {
  const { flags, whole, changes, states } = await runOfSix();
  assert(changes > 300 && states.length > 300, `${changes} changes, ${states.length} states`);
  const config: TrainConfig = JSON.parse(Deno.readTextFileSync(`${whole}/config.json`));
  const left = new Map<string, State>(); // by what an end left to do: the last state of each kind

  await inEach(states, async (root, state) => {
    const run = `${root}/run`, saved = requireWhole(run), step = saved?.step ?? 0;
    const steps = isFile(`${run}/metrics.jsonl`)
      ? Deno.readTextFileSync(`${run}/metrics.jsonl`).split("\n")
      : [];
    assertEquals(
      steps.slice(0, step).map((line) => JSON.parse(line).step),
      [1, 2, 3, 4, 5, 6].slice(0, step),
    );
    for (const what of unsettled(run, saved)) {
      left.set(`${what} ${step === 6 ? "at" : "before"} the end`, state);
    }
    await quietly(async () => {
      using _log = await openRun({ ...config, out_dir: run, resume: "auto" }, saved);
      settle(run, saved, 1);
    });
    requireSettled(run, saved, 1);
  });

  const kinds = ["latest", "best", "sample", "checkpoints", "temporary"];
  for (const kind of kinds) {
    assert(left.keys().some((what) => what.startsWith(kind)), `no end left ${kind} to do`);
  }
  await inEach([...new Set(left.values())], async (root) => {
    const run = `${root}/run`;
    await quietly(() => train([...flags, `--out_dir=${run}`, "--resume=auto"]));
    requireSettled(run, requireWhole(run), 1);
    assertEquals(sampled(run), [2, 4, 6]);
    const losses = (run: string) => metrics(run).map(({ step, loss, val_loss }) => [step, loss, val_loss]);
    assertEquals(losses(run), losses(whole));
    for (const file of ["model.safetensors", "optimizer.safetensors"]) {
      const [is, should] = [run, whole].map((run) =>
        Deno.readFileSync(`${run}/checkpoints/step_000006/${file}`)
      );
      assertEquals(is, should);
    }
  });
});

/** What the end of a process left to do for the next start. */
function unsettled(run: string, state: TrainerState | undefined): string[] {
  const temporary = [...list(run), ...list(`${run}/checkpoints`)].some((name) => name.includes("tmp"));
  if (state === undefined) return temporary ? ["temporary"] : [];
  const names = (pointer: string) =>
    isFile(`${run}/${pointer}`) ? Deno.readTextFileSync(`${run}/${pointer}`) : "";
  return [
    ...(names("latest").includes(`_00000${state.step}`) ? [] : ["latest"]),
    ...(names("best").includes(`_00000${state.best_step}`) ? [] : ["best"]),
    ...(sampled(run).includes(state.step) ? [] : ["sample"]),
    ...(listCheckpoints(run).length > 1 ? ["checkpoints"] : []),
    ...(temporary ? ["temporary"] : []),
  ];
}
