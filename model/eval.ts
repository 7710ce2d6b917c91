// deno task eval: scores models on tasks of one's own, on this machine. The table goes to stdout, all else to stderr.
import { runMain, UserError } from "../base/errors.ts";
import { help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";
import { oneLine, visible } from "../base/visible.ts";
import { readTasks, type Task } from "../data/tasks.ts";
import { free } from "../ffi/library.ts";
import { resolveCheckpoint } from "../runtime/checkpoint.ts";
import { loadModel, storedConfig, tokenizerFor, WEIGHT_TYPES, type WeightType } from "./checkpoint.ts";
import { openDevice, requireDevice } from "./device.ts";
import { cutsOf, METRICS, type PreparedTask, prepareTask, type Score, scoreTasks } from "./tasks.ts";

const defaults = {
  checkpoint: [] as string[], // run directories, checkpoints or model directories of Hugging Face: each has a column
  tasks: [] as string[], // files of tasks, also as plain words: JSON lines, or llm.c's .bin
  limit: null as number | null, // so many questions or texts of each task, the first ones
  json: false, // {"results": [...]} with all digits
  device: "", // "" = cuda if it answers, else cpu
  dtype: "auto", // of weights on a CPU: float32, bfloat16 (half the memory), or auto = bfloat16 where the files are
};

const ranges: Ranges<typeof defaults> = { limit: whole(1), dtype: WEIGHT_TYPES };

const USAGE = `Score models on tasks: questions with choices, and texts

  deno task eval --checkpoint runs/a --checkpoint runs/b questions.jsonl hellaswag_val.bin

A line of JSON is a question, {"context": "The sky is", "choices": ["blue", "square"], "label": 0}, or {"text": "..."}; with
"task": "..." it belongs to another task than the one that is called like the file.`;

/** A score, and the model that it is of. */
type Result = Score & { checkpoint: string };

/** The command line: prints the scores. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./eval.ts", { with: { type: "text" } });
    return console.log(help(USAGE, defaults, source));
  }
  const o = { ...defaults, ...readFlags(args, defaults, { ranges, words: "tasks" }) };
  if (o.checkpoint.length === 0) {
    throw new UserError("Cannot evaluate: name a model with --checkpoint=runs/...");
  }
  if (o.tasks.length === 0) {
    throw new UserError(
      `Cannot evaluate: name a file of tasks, such as deno task eval --checkpoint=${
        o.checkpoint[0]
      } tasks.jsonl`,
    );
  }
  const tasks = readTasks(o.tasks).map((task) =>
    ({ ...task, items: task.items.slice(0, o.limit ?? Infinity) }) as Task
  );
  requireDevice(o.device);
  const prepared = new Map<string, PreparedTask[]>(); // of all models before the first is scored, which may take hours
  for (const checkpoint of o.checkpoint) prepared.set(checkpoint, await prepare(checkpoint, tasks));
  openDevice(o.device);
  const results: Result[] = [];
  for (const [checkpoint, tasks] of prepared) {
    results.push(...await evaluate(checkpoint, tasks, o.dtype as WeightType));
  }
  console.log(o.json ? visible(JSON.stringify({ results })) : tableOf(results));
}

/** Tasks in tokens of a model that is not loaded yet. */
async function prepare(checkpoint: string, tasks: Task[]): Promise<PreparedTask[]> {
  const directory = resolveCheckpoint(checkpoint), config = storedConfig(directory);
  const tokenizer = await tokenizerFor("evaluate", directory, config);
  return tasks.map((task) => prepareTask(task, tokenizer, config));
}

/** Loads a model, scores it and frees its weights. Warns of contexts that it cannot see whole. */
async function evaluate(checkpoint: string, tasks: PreparedTask[], dtype: WeightType): Promise<Result[]> {
  const { model, config, parameters } = loadModel(checkpoint, { dtype });
  for (const text of cutsOf(tasks, config)) console.error(`warning: ${oneLine(`${checkpoint}: ${text}`)}`);
  const scores = await scoreTasks(model, config, tasks);
  free(parameters.weights.address);
  return scores!.map((score) => ({ checkpoint, ...score }));
}

/** A line for each metric of each task, with a column for each model. */
function tableOf(results: Result[]): string {
  const checkpoints = [...new Set(results.map(({ checkpoint }) => checkpoint))];
  const lines = [...Map.groupBy(results, ({ task }) => task)].flatMap(([task, scores]) =>
    METRICS.filter((metric) => scores[0]![metric] !== undefined)
      .map((metric) => [task, `${scores[0]!.n}`, metric, ...scores.map((score) => cell(score, metric))])
  );
  return table([["task", "n", "metric", ...checkpoints], ...lines].map((line) => line.map(oneLine)));
}

function cell(score: Score, metric: typeof METRICS[number]): string {
  const stderr = metric === "acc"
    ? score.acc_stderr
    : metric === "acc_norm"
    ? score.acc_norm_stderr
    : undefined;
  return score[metric]!.toFixed(4) +
    (stderr === undefined || Number.isNaN(stderr) ? "" : ` ± ${stderr.toFixed(4)}`);
}

if (import.meta.main) await runMain(main);
