// A process may be killed and a machine may lose power before any change of any file, and the system may refuse each: what is
// then on the disk is whole under its final names, pointers are true, and the next start goes on and cleans up.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { openTokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { open } from "../ffi/library.ts";
import { loadModel, saveModel } from "../model/checkpoint.ts";
import { init, type LlamaConfig } from "../model/llama.ts";
import { openRun } from "../model/run_directory.ts";
import { listCheckpoints, settle } from "../runtime/checkpoint.ts";
import { Parameters } from "../runtime/optim.ts";
import { readSums, requireSums, SUMS } from "../runtime/sums.ts";
import { readTrainerState, type TrainerState } from "../runtime/trainer_state.ts";
import { train, type TrainConfig } from "../train.ts";
import { crashes, failing, inEach, type State, unsynced } from "./disk.ts";
import { checkpointOf, dataset, freshPath, list, metrics, ROOT, SMALL } from "./testing.ts";

open("cpu", { threads: 1 });

/** Runs without what it prints, which is told to `hear`. */
async function quietly<T>(work: () => T, hear: (line: string) => void = () => {}): Promise<Awaited<T>> {
  const { log } = console;
  console.log = hear;
  try {
    return await work();
  } finally {
    console.log = log;
  }
}

// ---- training

const STEPS = 3, KEEP = 2; // a checkpoint after each step
const EVERY_STEP = Array.from({ length: STEPS }, (_, i) => i + 1);

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

/** Checkpoints that are neither among the newest nor the best. */
function superfluous(run: string, state: TrainerState | undefined): string[] {
  return listCheckpoints(run).slice(0, -KEEP).filter((name) => name !== checkpointOf(state?.best_step ?? 0));
}

/** What a start has to leave: pointers to the newest and the best, nothing temporary, and no more checkpoints than wanted. */
function requireSettled(run: string, state: TrainerState | undefined): void {
  const pointer = (file: string) =>
    isFile(`${run}/${file}`) ? Deno.readTextFileSync(`${run}/${file}`) : undefined;
  assertEquals(pointer("latest"), state && `checkpoints/${checkpointOf(state.step)}\n`);
  assertEquals(
    pointer("best"),
    state?.best_step ? `checkpoints/${checkpointOf(state.best_step)}\n` : undefined,
  );
  assertEquals(superfluous(run, state), []);
  assertEquals(list(`${run}/checkpoints`), listCheckpoints(run));
  assertEquals(list(run).filter((file) => /tmp/.test(file)), []);
}

/** Flags of a run, and all ways in which it could end. */
async function watchedRun(): Promise<{ flags: string[]; whole: string; changes: number; states: State[] }> {
  const root = freshPath(), whole = `${root}/run`;
  Deno.mkdirSync(root);
  const flags = [`--data_dir=${await dataset({ words: 500 })}`, ...SMALL, `--max_iters=${STEPS}`];
  flags.push("--save_interval=1", "--eval_interval=1", "--eval_batches=1", `--keep_checkpoints=${KEEP}`);
  flags.push("--sample_interval=1", "--sample_tokens=5");
  let said = 0;
  const hear = (line: string) => said = Number(/^saved .*step_(\d+)$/.exec(line)?.[1] ?? said);
  const work = () => train([...flags, `--out_dir=${whole}`]);
  const result = await quietly(() => crashes(root, work, () => said), hear);
  return { flags, whole, ...result };
}

/** Steps whose samples are in a run. */
function sampled(run: string): number[] {
  const path = `${run}/samples.jsonl`, text = isFile(path) ? Deno.readTextFileSync(path) : "";
  return text.split("\n").filter((line) => line.endsWith("}")).map((line) => JSON.parse(line).step);
}

Deno.test("train may be killed or lose power before any change of a file, and goes on", async () => {
  const { flags, whole, changes, states } = await watchedRun();
  assert(changes > 300 && states.length > 300, `${changes} changes, ${states.length} states`);
  const config: TrainConfig = JSON.parse(Deno.readTextFileSync(`${whole}/config.json`));
  const left = new Map<string, State>(); // by what an end left to do: the last state of each kind

  await inEach(states, async (root, state) => {
    const run = `${root}/run`, saved = requireWhole(run), step = saved?.step ?? 0;
    assert(step >= state.said, `step ${step} is left after ${state.said} was saved`);
    const steps = isFile(`${run}/metrics.jsonl`)
      ? Deno.readTextFileSync(`${run}/metrics.jsonl`).split("\n")
      : [];
    assertEquals(
      steps.slice(0, step).map((line) => JSON.parse(line).step),
      EVERY_STEP.slice(0, step),
    );
    for (const what of unsettled(run, saved)) {
      left.set(`${what} ${step === STEPS ? "at" : "before"} the end`, state);
    }
    await quietly(async () => {
      using _log = await openRun({ ...config, out_dir: run, resume: "auto" }, saved);
      settle(run, saved, KEEP);
    });
    requireSettled(run, saved);
  });

  const kinds = ["latest", "best", "sample", "checkpoints", "temporary"];
  for (const kind of kinds) {
    assert(left.keys().some((what) => what.startsWith(kind)), `no end left ${kind} to do`);
  }
  await inEach([...new Set(left.values())], async (root) => {
    const run = `${root}/run`;
    await quietly(() => train([...flags, `--out_dir=${run}`, "--resume=auto"]));
    requireSettled(run, requireWhole(run));
    assertEquals(sampled(run), EVERY_STEP);
    const losses = (run: string) => metrics(run).map(({ step, loss, val_loss }) => [step, loss, val_loss]);
    assertEquals(losses(run), losses(whole));
    for (const file of ["model.safetensors", "optimizer.safetensors"]) {
      const [is, should] = [run, whole].map((run) =>
        Deno.readFileSync(`${run}/checkpoints/${checkpointOf(STEPS)}/${file}`)
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
    ...(superfluous(run, state).length > 0 ? ["checkpoints"] : []),
    ...(temporary ? ["temporary"] : []),
  ];
}

Deno.test("a run's log says which change the system refuses, and the next process goes on", async () => {
  const config = {
    out_dir: "",
    resume: "auto",
    data_dir: "",
    eval_only: false,
    tensorboard: true,
    quiet: true,
    save_interval: 1,
  };
  const metrics = { loss: 1, lr: 1, grad_norm: 1, tokens: 1, tokens_per_sec: 1, step_ms: 1, mfu: null };
  const work = (out_dir: string) =>
    quietly(async () => {
      using log = await openRun({ ...config, out_dir }, undefined);
      settle(out_dir, undefined, 1);
      log.step({ step: 1, ...metrics, memory_bytes: 1, skipped: 0 });
      log.sync();
      log.sample(1, "text");
    });
  for (const error of ["full", "broken"] as const) {
    for (let number = 1, reached = true; reached; number++) {
      const run = freshPath(), result = await failing(number, error, () => work(run));
      reached = result.reached;
      const failed = String(result.failed);
      if (result.failed) {
        assertMatch(failed, /^UserError: Cannot .*\(os error \d+\).*$/, `${error} at ${number}: ${failed}`);
      }
      assertEquals(list(run).filter((name) => name.includes("tmp")), [], `${error} at ${number}`);
      await unsynced(() => work(run));
      assertEquals(sampled(run), [1]);
      assertEquals(list(run).filter((name) => !name.startsWith("events.")), [
        "config.json",
        "log.txt",
        "metrics.jsonl",
        "samples.jsonl",
      ]);
    }
  }
});

// ---- a model without its run

Deno.test("saveModel() over another model may end at any moment and be refused any change, and leaves no mixture", async () => {
  const tokenizer = await openTokenizer("bytes");
  const c: LlamaConfig = {
    ...{
      vocab_size: tokenizer.vocab_size,
      n_layer: 1,
      n_embd: 16,
      n_head: 2,
      n_kv_head: 1,
      head_dim: 8,
      n_inner: 24,
    },
    ...{ block_size: 8, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: true },
  };
  const models = [1, 2].map((n) => {
    const config = { ...c, rope_theta: 1000 * n },
      parameters = new Parameters(init(config), { seed: n, train: false });
    return { save: (dir: string) => saveModel(dir, parameters, config, tokenizer), config };
  });
  const [old, fresh] = models as [typeof models[0], typeof models[0]], path = freshPath();
  const load = (dir: string) => {
    const { model, config } = loadModel(dir);
    return JSON.stringify([config, [...model.norm.toArray()], [...model.embed_tokens.toArray()]]);
  };
  const known = models.map(({ save }, i) => {
    save(`${path}/${i}`);
    return load(`${path}/${i}`);
  });
  assert(known[0] !== known[1]);

  const requireNoMixture = (dir: string, story: string) => {
    try {
      assert(known.includes(load(dir)), `a mixture ${story}`);
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      assertEquals(isFile(`${dir}/model.safetensors`), false, `${error.message} ${story}`);
    }
  };
  const root = freshPath(), names = list(`${path}/0`);
  Deno.mkdirSync(root);
  old.save(`${root}/model`);
  const { changes, states } = await crashes(root, () => fresh.save(`${root}/model`));
  assert(changes > 40 && states.length > 30, `${changes} changes, ${states.length} states`);
  await inEach(states, (root) => {
    requireNoMixture(`${root}/model`, "");
    fresh.save(`${root}/model`);
    assertEquals(load(`${root}/model`), known[1]);
    assertEquals(list(`${root}/model`), names);
  });
  for (const error of ["full", "broken"] as const) {
    for (let number = 1, reached = true; reached; number++) {
      const dir = freshPath();
      await unsynced(() => old.save(dir));
      const result = await failing(number, error, () => fresh.save(dir));
      reached = result.reached;
      if (result.failed) assertMatch(String(result.failed), /^UserError: Cannot .*$/);
      requireNoMixture(dir, `${error} at ${number}`);
      await unsynced(() => fresh.save(dir));
      assertEquals([load(dir), list(dir)], [known[1], names]);
    }
  }
});

// ---- no way around it

/** What changes files in other ways, and why it may. */
const ELSEWHERE: Record<string, { calls: string[]; because: string }> = {
  "base/files.ts": {
    calls: ["Deno.mkdirSync", "Deno.openSync", "Deno.removeSync", "Deno.renameSync"],
    because: "it is the place",
  },
  "tools/build.ts": {
    calls: ["Deno.mkdir", "Deno.remove", "Deno.rename", "Deno.writeTextFile"],
    because: "a library that is lost is compiled again",
  },
  "tools/compile.ts": { calls: ["Deno.remove"], because: "a program that is lost is compiled again" },
  "data/prepare/lock.ts": {
    calls: ["Deno.openSync", "Deno.removeSync"],
    because: "a lock is for living processes",
  },
  "runtime/metrics.ts": { calls: ["Deno.openSync"], because: "requireIdle() opens the log for its lock" },
  "dist/roll_call.ts": {
    calls: ["Deno.mkdirSync", "Deno.removeSync", "Deno.renameSync", "Deno.writeTextFileSync"],
    because: "ranks speak to each other there while they live",
  },
};

const CHANGES =
  /Deno\.((write|rename|remove|mkdir|truncate|create|copyFile|link|symlink|chmod|chown|utime|makeTemp)(?!SignalListener)\w*|open(Sync)?(?=\([^()]*(\([^()]*\))*[^()]*,))|node:fs|fs\/promises/g;

/** The sources that run for a user below a folder: no tests and no benchmarks. */
function programs(folder = ""): string[] {
  return Array.from(Deno.readDirSync(new URL(folder || ".", ROOT))).flatMap(({ name, isDirectory }) => {
    const path = folder + name;
    if (isDirectory) return NOT_OURS.test(path) ? [] : programs(`${path}/`);
    return name.endsWith(".ts") && !/_test\.ts$|^test(ing|_\w+)\.ts$/.test(name) ? [path] : [];
  });
}

const NOT_OURS = /^(tests|bench|offline|examples|build|runs|node_modules|\..*)$/;

Deno.test("every change of a file goes through base/files.ts", () => {
  const found: Record<string, string[]> = {};
  for (const file of programs()) {
    const calls = Deno.readTextFileSync(new URL(file, ROOT)).match(CHANGES);
    if (calls) found[file] = [...new Set(calls)].sort();
  }
  const allowed = Object.entries(ELSEWHERE).map(([file, { calls }]) => [file, calls]);
  assertEquals(found, Object.fromEntries(allowed));
});

Deno.test("the rule sees each way to change a file", () => {
  const changes = [
    'Deno.writeTextFileSync("a", "")',
    "await Deno.writeFile(path, bytes)",
    "Deno.rename(a, b)",
    "Deno.removeSync(a)",
    "Deno.openSync(path, { write: true })",
    "Deno.openSync(join(dir, NAME), OPTIONS)",
    "Deno.open(\n  path,\n  { append: true },\n)",
    "Deno.create(a)",
    "Deno.makeTempDirSync()",
    'import { writeFileSync } from "node:fs"',
  ];
  for (const change of changes) assert(change.match(CHANGES), change);
  for (
    const other of [
      "Deno.openSync(path)",
      "Deno.openSync(`${dir}/a`)",
      "Deno.removeSignalListener(a, b)",
      "Deno.readFile(a)",
    ]
  ) {
    assertEquals(other.match(CHANGES), null, other);
  }
});
