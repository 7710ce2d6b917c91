// deno task eval against lm-eval (tests/golden/lm_eval, and live where LOAM_PYTHON has it), and what it refuses.
import { assert, assertAlmostEquals, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { readTasks } from "../data/tasks.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { open } from "../ffi/library.ts";
import { loadModel } from "../model/checkpoint.ts";
import { prepareTask, type Score, scoreTasks } from "../model/tasks.ts";
import {
  dataset,
  emptyDirectory,
  freshPath,
  list,
  metrics,
  refuse,
  resultOf,
  ROOT,
  run,
  SMALL,
  succeed,
  VOCABULARY,
} from "./testing.ts";

open("cpu", { threads: 2 });

const GOLDEN = decodeURIComponent(new URL("tests/golden/lm_eval", ROOT).pathname),
  PYTHON = Deno.env.get("LOAM_PYTHON");
const CHOICES = `${GOLDEN}/choices.jsonl`, TEXTS = `${GOLDEN}/texts.jsonl`;
type Golden = Record<string, Omit<Score, "task"> & { logprobs: number[][] }>;
const golden: Golden = JSON.parse(Deno.readTextFileSync(`${GOLDEN}/scores.json`));

/** The logarithms of probabilities that a model gives what is scored in files, by task: of each question's choices, of each text. */
async function logprobsOf(checkpoint: string, ...files: string[]): Promise<Record<string, number[][]>> {
  const { model, config, directory } = loadModel(checkpoint), tokenizer = await openTokenizer(directory);
  const found: Record<string, number[][]> = {};
  for (const task of readTasks(files)) {
    const items = found[task.name] = [] as number[][];
    for (const item of task.items) { // one at a time: a text has several units
      const prepared = prepareTask({ ...task, items: [item] } as typeof task, tokenizer, config),
        sums: number[] = [];
      const units = prepared.units.map((unit) => ({
        ...unit,
        tally: (logprobs: number[]) =>
          logprobs.map((value, i) => sums[i] = (sums[i] ?? 0) + value).slice(0, 0),
      }));
      await scoreTasks(model, config, [{ ...prepared, units }]);
      items.push(sums);
    }
  }
  return found;
}

function near(actual: number[][], expected: number[][]): void {
  assertEquals(actual.map(({ length }) => length), expected.map(({ length }) => length));
  actual.forEach((row, i) =>
    row.forEach((value, k) => assertAlmostEquals(value, expected[i]![k]!, 1e-3, `${i}, ${k}`))
  );
}

Deno.test("eval gives the scores of lm-eval's hf backend, and each choice and text its probability", async () => {
  const { stdout, stderr, code } = await run(
    "eval",
    "--checkpoint",
    GOLDEN,
    CHOICES,
    TEXTS,
    "--device=cpu",
    "--json",
  );
  assertEquals([code, stderr], [
    0,
    `warning: ${GOLDEN}: the model sees 48 tokens: 8 contexts of choices lose their beginning\n`,
  ]);
  const { results }: { results: (Score & { checkpoint: string })[] } = JSON.parse(stdout);
  assertEquals(results.map(({ checkpoint, task }) => [checkpoint, task]), [[GOLDEN, "choices"], [
    GOLDEN,
    "texts",
  ]]);
  for (const { checkpoint: _, task, ...scores } of results) {
    const { logprobs: _, ...expected } = golden[task]!;
    assertEquals(Object.keys(scores).sort(), Object.keys(expected).sort());
    for (const [name, value] of Object.entries(expected)) {
      assertAlmostEquals(scores[name as keyof typeof scores]!, value, 1e-3 * Math.max(1, value), name);
    }
  }
  const found = await logprobsOf(GOLDEN, CHOICES, TEXTS);
  for (const [task, { logprobs }] of Object.entries(golden)) near(found[task]!, logprobs);
});

let trained: Promise<string> | undefined;
/** A model of loam's, whose tokenizer puts a token before each text. */
function model(): Promise<string> {
  return trained ??= (async () => {
    const out = freshPath(),
      flags = ["--max_iters=40", "--save_interval=40", "--eval_interval=40", "--block_size=32"];
    await succeed("train", `--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL, ...flags);
    return out;
  })();
}

Deno.test({
  name: "eval gives a model of loam's the probabilities that lm-eval gives it (LOAM_PYTHON)",
  ignore: !PYTHON,
  async fn() {
    const checkpoint = loadModel(await model()).directory,
      script = decodeURIComponent(new URL("tests/oracle/lm_eval_tasks.py", ROOT).pathname);
    const args = [script, checkpoint, CHOICES, TEXTS];
    const { code, stdout, stderr } = resultOf(
      await new Deno.Command(PYTHON!, { args, stdin: "null" }).output(),
    );
    assertEquals(code, 0, stderr);
    const expected: Record<string, number[][]> = JSON.parse(stdout.trimEnd().split("\n").at(-1)!);
    const found = await logprobsOf(checkpoint, CHOICES, TEXTS);
    for (const task of ["choices", "texts"]) near(found[task]!, expected[task]!);
  },
});

Deno.test("train --eval_tasks scores the model where it is evaluated, as eval scores the checkpoint", async () => {
  const out = freshPath(), questions = `${out}-q.jsonl`, texts = `${out}-t.jsonl`;
  const choices = ["cloth", "day", "loom"], one = { context: "a small ", choices, label: 2 };
  Deno.writeTextFileSync(
    questions,
    [0, 1, 2].map((label) => JSON.stringify({ ...one, label }) + "\n").join(""),
  );
  Deno.writeTextFileSync(texts, '{"text": "Once upon a time there was cloth."}');
  const flags = [
    ...SMALL,
    "--max_iters=4",
    "--eval_interval=2",
    "--save_interval=4",
    "--bf16_gemm=false",
    "--tensorboard",
  ];
  const tasks = `--eval_tasks=${questions},${texts}`, data = `--data_dir=${await dataset()}`;
  const stdout = await succeed("train", data, `--out_dir=${out}`, ...flags, tasks);
  const lines = metrics(out) as unknown as Record<string, unknown>[];
  assertEquals(lines.map((line) => "tasks" in line), [false, true, false, true]);
  const found = lines[3]!.tasks as Record<string, Record<string, number>>, [q, t] = Object.keys(found);
  const { acc, acc_norm } = found[q!]!, bits = found[t!]!.bits_per_byte!;
  assertEquals(Object.keys(found[t!]!), ["word_perplexity", "byte_perplexity", "bits_per_byte"]);
  assertEquals([acc, acc_norm, lines[3]!.task_acc_norm], [1 / 3, 1 / 3, 1 / 3]); // one and the same question: it has one answer
  const said = `${q} acc 0.3333, acc_norm 0.3333; ${t} bits_per_byte ${bits.toFixed(4)}\n`;
  assertStringIncludes(stdout, `tasks after step 4: ${said}`);
  const { results } = JSON.parse(
    await succeed("eval", "--checkpoint", out, questions, texts, "--json", "--device=cpu"),
  );
  assertAlmostEquals(results[1].bits_per_byte, bits, 1e-5 * bits);
  assert(found[t!]!.bits_per_byte! < (lines[1]!.tasks as typeof found)[t!]!.bits_per_byte!); // it learns
  const [events] = list(out).filter((name) => name.startsWith("events."));
  assertStringIncludes(
    new TextDecoder("latin1").decode(Deno.readFileSync(`${out}/${events}`)),
    `tasks/${t}/bits_per_byte`,
  );
  assertStringIncludes(await succeed("train", `--resume=${out}`, "--eval_only"), `\ntasks ${said}`);
});

Deno.test("train --eval_tasks refuses what it cannot score before it begins, as --dry_run does, and needs no val split", async () => {
  const data = await dataset(),
    out = freshPath(),
    flags = [`--data_dir=${data}`, `--out_dir=${out}`, ...SMALL];
  const refused = async (...more: string[]) => {
    const args = [...flags, "--eval_interval=2", "--max_iters=2", ...more],
      message = await refuse("train", ...args);
    assertEquals(await refuse("train", ...args, "--dry_run"), message);
    return message;
  };
  assertStringIncludes(
    await refused(`--eval_tasks=${out}.jsonl`),
    `Cannot read "${out}.jsonl": there is no such file`,
  );
  const why = "choice 0 has 25 tokens behind the context, should have from 1 to 16, the model's block_size";
  Deno.writeTextFileSync(
    `${out}.jsonl`,
    JSON.stringify({ context: "a", choices: ["b".repeat(24), "c"], label: 0 }),
  );
  assertEquals(
    await refused(`--eval_tasks=${out}.jsonl`),
    `Cannot evaluate on "${out}.jsonl", line 1: ${why}`,
  );
  Deno.writeTextFileSync(`${out}.jsonl`, JSON.stringify({ context: "a", choices: ["b"], label: 0 }));
  assertStringIncludes(await refused(`--eval_tasks=${out}.jsonl`), "should be a list of at least two texts");
  assertEquals(list(out), []);
  const none = freshPath(), text = `${none}.txt`;
  Deno.writeTextFileSync(text, "So much of a text. ".repeat(100));
  await succeed("prepare", "--input", text, "--tokenizer=bytes", "--out", none, "--val_fraction=0");
  const short = JSON.stringify({ context: "a", choices: ["b", "c"], label: 0 }),
    long = { task: "long", context: "a".repeat(16) };
  Deno.writeTextFileSync(
    `${out}.jsonl`,
    `${short}\n${JSON.stringify({ ...long, choices: ["b", "c"], label: 0 })}`,
  );
  const planned = await succeed(
    "train",
    ...flags,
    `--eval_tasks=${out}.jsonl`,
    "--eval_interval=2",
    "--dry_run",
  );
  const name = out.split("/").at(-1)!;
  assertMatch(
    planned,
    new RegExp(
      `^tasks {2}${name}, long: 2 questions or stretches of text at each evaluation\n {7}the model sees 16 tokens: 1 contexts of long lose`,
      "m",
    ),
  );
  Deno.writeTextFileSync(`${out}.jsonl`, short);
  await succeed(
    "train",
    ...flags,
    `--data_dir=${none}`,
    "--eval_interval=2",
    "--max_iters=2",
    `--eval_tasks=${out}.jsonl`,
  );
  assertEquals(metrics(out).map((line) => ["tasks" in line, "val_loss" in line]), [[false, false], [
    true,
    false,
  ]]);
});

Deno.test("eval finds of llm.c's file for HellaSwag what it finds of the same questions in JSON, and wants GPT-2's tokens", async () => {
  const out = freshPath(),
    lines = `${out}.jsonl`,
    bin = `${emptyDirectory()}/h.bin`,
    gpt2 = await openTokenizer("gpt2"),
    words = VOCABULARY;
  const data = await dataset({ words: 5000, tokenizer: "gpt2" });
  await succeed(
    "train",
    `--data_dir=${data}`,
    `--out_dir=${out}`,
    ...SMALL,
    "--max_iters=3",
    "--save_interval=3",
  );
  const questions = Array.from({ length: 50 }, (_, i) => {
    const word = (k: number) => words[(7 * i + 3 * k + i * k) % words.length]!;
    return {
      context: `Once ${word(0)}`,
      choices: [1, 2, 3, 4].map((k) => `${word(k)} ${word(k + 4)}`),
      label: i % 4,
    };
  });
  Deno.writeTextFileSync(lines, questions.map((question) => JSON.stringify(question)).join("\n"));
  const examples = questions.map(({ context, choices, label }, i) => { // as write_evalfile() of llm.c
    const parts = [context, ...choices.map((choice) => ` ${choice}`)].map((text) => [...gpt2.encode(text)]);
    const rest = [i, label, 4, ...parts.flatMap((ids) => [ids.length, ...ids])];
    return [65535, 2 * (rest.length + 2), ...rest];
  });
  const header = Int32Array.of(
    20240522,
    1,
    50,
    2 * Math.max(...examples.map(({ length }) => length)),
    ...Array(252).fill(0),
  );
  Deno.writeFileSync(
    bin,
    new Uint8Array(await new Blob([header, Uint16Array.from(examples.flat())]).arrayBuffer()),
  );
  const { results } = JSON.parse(
    await succeed("eval", "--checkpoint", out, lines, bin, "--json", "--device=cpu"),
  );
  const refused = await run("eval", "--checkpoint", GOLDEN, bin, "--device=cpu");
  assertEquals([results[1].task, results[1].n, results[1].acc], ["h", 50, results[0].acc]);
  assert(results[0].acc > 0 && results[0].acc < 1);
  assertStringIncludes(
    refused.stderr,
    "h.bin: it holds GPT-2's tokens, of 50257, the model's tokenizer has 300",
  );
});

Deno.test("eval has a column for each model and takes the first of each task", async () => {
  const own = await model(),
    flags = ["--checkpoint", GOLDEN, "--checkpoint", own, "--device=cpu", "--limit=3"];
  const { code, stdout } = await run("eval", ...flags, TEXTS, CHOICES);
  assertEquals(code, 0);
  const [head, ...lines] = stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/));
  assertEquals(head, ["task", "n", "metric", GOLDEN, own]);
  const metrics = [
    "texts word_perplexity",
    "texts byte_perplexity",
    "texts bits_per_byte",
    "choices acc",
    "choices acc_norm",
  ];
  assertEquals(lines.map(([task, , metric]) => `${task} ${metric}`), metrics);
  assert(lines.every((line) => line.length === 5 && line[1] === "3"), stdout);
  assert(
    lines.slice(3).every((line) => line.slice(3).every((cell) => /^[01]\.\d{4} ± 0\.\d{4}$/.test(cell))),
    stdout,
  );
  const texts = readTasks([TEXTS])[0]!.items.slice(0, 3) as { text: string }[];
  const bytes = new TextEncoder().encode(texts.map(({ text }) => text).join("")).length;
  const sum = golden.texts!.logprobs.slice(0, 3).reduce((total, [logprob]) => total + logprob!, 0);
  assertEquals(lines[2]![3], (-sum / bytes / Math.log(2)).toFixed(4));
});

Deno.test("eval says what it cannot use", async () => {
  const own = await model(), file = `${freshPath()}.jsonl`;
  Deno.writeTextFileSync(file, '{"context": "a", "choices": ["b"], "label": 0}\n');
  const refused = async (...args: string[]) => await refuse("eval", "--device=cpu", ...args);
  assertEquals(await refused(file), "Cannot evaluate: name a model with --checkpoint=runs/...");
  const none = "name a file of tasks, such as deno task eval --checkpoint=a tasks.jsonl";
  assertEquals(await refused("--checkpoint=a"), `Cannot evaluate: ${none}`);
  assertEquals(
    await refused(`--checkpoint=${own}`, file),
    `Cannot evaluate on "${file}", line 1: choices is ["b"], should be a list of at least two texts that are not empty`,
  );
  assertStringIncludes(
    await refused(`--checkpoint=${own}`, CHOICES, "--limit=0"),
    "--limit=0: it should be a whole number of at least 1",
  );
  assertStringIncludes(
    await refused(`--checkpoint=${file}x`, CHOICES),
    `Cannot find a checkpoint in ${file}x`,
  );
  Deno.writeTextFileSync(file, JSON.stringify({ context: "a".repeat(1000), choices: ["b", "c"], label: 0 }));
  assertStringIncludes( // before the first model is scored, which would be warned of
    await refused(`--checkpoint=${own}`, `--checkpoint=${file}x`, file),
    `Cannot find a checkpoint in ${file}x`,
  );
});
