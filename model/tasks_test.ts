import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import type { Task, TokenQuestion } from "../data/tasks.ts";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { device } from "../ffi/library.ts";
import { flopsOf } from "../runtime/tape.ts";
import { writeFloats } from "../runtime/tensor.ts";
import { integers, openTestDevice, tokens } from "../runtime/testing.ts";
import {
  type Pair,
  type PreparedTask,
  prepareTask,
  rowsOf,
  scoresInWords,
  scoreTasks,
  type Sharing,
  taskMetrics,
} from "./tasks.ts";
import { allLogits, multiply, unevenModel } from "./testing.ts";

openTestDevice();

// Of the tokenizer "bytes" a token is a byte, and 256 begins a text.
const { model, config: c } = unevenModel(257), bytes = await openTokenizer("bytes"), START = 256;
multiply(model.lm_head!, 12); // so that no token is about as likely as another one
const CLOSE = device.act === "f32" ? 1e-3 : 2 ** -8; // behind a cache attention adds up in another order
const idsOf = (text: string) => Array.from(new TextEncoder().encode(text));

/** The logarithm of the probability of the last n of some ids, from the logits of a pass of their own, in float64. */
function logprob(ids: number[], n: number): number {
  const inputs = ids.slice(0, -1),
    all = allLogits(model, c, tokens([1, inputs.length], inputs)),
    V = c.vocab_size;
  let sum = 0;
  for (let t = inputs.length - n; t < inputs.length; t++) {
    const row = Float64Array.from(all.subarray(t * V, (t + 1) * V));
    sum += row[ids[t + 1]!]! - Math.log(row.reduce((total, x) => total + Math.exp(x), 0));
  }
  return sum;
}

/** What scoreTasks() hands the tally of each unit, in the order of the task, and the score. */
async function logprobsOf(task: PreparedTask, ranks?: Sharing) {
  const found: (number[] | undefined)[] = task.units.map(() => undefined);
  const units = task.units.map((unit, i) => ({
    ...unit,
    tally: (logprobs: number[]) => unit.tally(found[i] = logprobs),
  }));
  const [score] = (await scoreTasks(model, c, [{ ...task, units }], ranks))!;
  return { found, score: score! };
}

const question = (context: string, choices: string[], label: number) => (
  { place: `"f", line 1`, context, choices, target_delimiter: " ", label }
);
const QUESTIONS = {
  name: "q",
  kind: "questions" as const,
  items: [
    question("", ["be", "not to be"], 0),
    question("The sky is  ", ["blue", "square", "é"], 1), // its blanks belong to the choice
    question("So long and wide a context that it loses its beginning", ["yes", "no"], 1),
    ...Array.from({ length: 20 }, (_, i) => question("x".repeat(i), ["a", "bc", "def"], i % 3)), // more than a pass of few
  ],
};

Deno.test("scoreTasks() finds the probability of each choice as one pass over it alone does, cut on the left", async () => {
  const { found, score } = await logprobsOf(prepareTask(QUESTIONS, bytes, c));
  let acc = 0, norm = 0;
  for (const [i, { context, choices, label }] of QUESTIONS.items.entries()) {
    const expected = choices.map((choice) => {
      const text = `${context} ${choice}`, n = idsOf(text).length - idsOf(context.trimEnd()).length;
      return logprob([START, ...idsOf(text)].slice(-c.block_size - 1), n);
    });
    expected.forEach((value, k) =>
      assertAlmostEquals(found[i]![k]!, value, CLOSE * Math.abs(value), `${i} ${k}`)
    );
    const best = (values: number[]) => values.indexOf(Math.max(...values));
    acc += Number(best(expected) === label);
    norm += Number(best(expected.map((value, k) => value / [...choices[k]!].length)) === label);
  }
  const n = QUESTIONS.items.length, stderr = (p: number) => Math.sqrt(n / (n - 1) * p * (1 - p) / n);
  assertEquals([score.task, score.n, score.acc, score.acc_norm], ["q", n, acc / n, norm / n]);
  assertAlmostEquals(score.acc_stderr!, stderr(acc / n), 1e-12);
  assertAlmostEquals(score.acc_norm_stderr!, stderr(norm / n), 1e-12);
  assert(acc !== norm && acc > 0);
  assertEquals(prepareTask(QUESTIONS, bytes, c).cut, 1);
});

Deno.test("rowsOf() has the context of a question's choices once, and one that a choice leaves less room for by itself", () => {
  const pairs = [3, 9, 4, 9].map((n, i): Pair => ({
    context: Array.from(integers(30, 9, 1)),
    continuation: Array.from(integers(n, 9, i)),
  }));
  const rows = (n: number, block_size: number) =>
    rowsOf({ pairs: pairs.slice(0, n), tally: () => [] }, block_size)
      .map(({ context, pairs: some }) => [context.length, some.map((pair) => pairs.indexOf(pair))]);
  assertEquals(rows(4, 38), [[30, [0, 1, 2, 3]]]); // 30 and 9, of which the last is not read
  assertEquals(rows(4, 32), [[30, [0]], [24, [1, 3]], [29, [2]]]);
  assertEquals(rows(1, 3), [[1, [0]]]);
});

Deno.test("scoreTasks() counts each token of a text once, behind as many as the model sees in stretches", async () => {
  const texts = ["a", "So long.", "0123456789".repeat(6) + " é"], B = c.block_size;
  const items = texts.map((text) => ({ place: "", text }));
  const { score } = await logprobsOf(prepareTask({ name: "t", kind: "texts", items }, bytes, c));
  let sum = 0;
  for (const text of texts) {
    const ids = idsOf(text);
    for (let to = B; to - B < ids.length; to += B) {
      const end = Math.min(to, ids.length), n = end - (to - B);
      sum += logprob([START, ...ids].slice(Math.max(0, end - B), end + 1), n); // B tokens before the last one
    }
  }
  const n_bytes = 1 + 8 + 63, words = 1 + 2 + 2;
  assertEquals([score.task, score.n, score.acc], ["t", 3, undefined]);
  assertAlmostEquals(score.bits_per_byte!, -sum / n_bytes / Math.log(2), 1e-3);
  assertAlmostEquals(score.byte_perplexity!, 2 ** score.bits_per_byte!, 1e-9 * score.byte_perplexity!);
  assertAlmostEquals(Math.log(score.word_perplexity!), -sum / words, 1e-3 * -sum / words);
});

Deno.test("scoreTasks() takes the tokens of llm.c's files as they are, and divides by their number", async () => {
  const items: TokenQuestion[] = Array.from({ length: 12 }, (_, i) => {
    const choices = [1, 2, 3, 4].map((n) => Array.from(integers(n, 257, 10 * i + n)));
    return { place: `example ${i}`, label: i % 4, context: Array.from(integers(3 + i % 2, 257, i)), choices };
  });
  const gpt2: Tokenizer = { ...bytes, vocab_size: 50257 },
    task: Task = { name: "h", kind: "token questions", items };
  const { found, score } = await logprobsOf(prepareTask(task, gpt2, c));
  let norm = 0;
  for (const [i, { context, choices, label }] of items.entries()) {
    const expected = choices.map((choice) => logprob([...context, ...choice], choice.length));
    expected.forEach((value, k) => assertAlmostEquals(found[i]![k]!, value, CLOSE * Math.abs(value)));
    const means = expected.map((value, k) => value / choices[k]!.length);
    norm += Number(means.indexOf(Math.max(...means)) === label);
  }
  assertEquals(score.acc_norm, norm / 12);
  const message = assertThrows(() => prepareTask(task, bytes, c), UserError).message;
  assertEquals(
    message,
    "Cannot evaluate on h.bin: it holds GPT-2's tokens, of 50257, the model's tokenizer has 257; use JSON lines, which are for any tokenizer",
  );
});

const isSlow = device.library !== "cpu"; // half a minute on the emulator

Deno.test("scoreTasks() on two ranks adds up to what one alone finds, and stops when it is asked to", {
  ignore: isSlow,
}, async () => {
  const task = prepareTask(
    { ...QUESTIONS, items: [...QUESTIONS.items, ...longQuestions()] },
    bytes,
    c,
  );
  const whole = await logprobsOf(task), sums: number[][] = [];
  const rank = (rank: number) => ({
    rank,
    world_size: 2,
    sum: (...values: number[]) => (sums.push(values), Promise.resolve(values)),
  });
  const [first, second] = [await logprobsOf(task, rank(0)), await logprobsOf(task, rank(1))];
  const counted = [first, second].map(({ found }) => found.map((logprobs) => Number(logprobs !== undefined)));
  assertEquals(counted[0]!.map((n, i) => n + counted[1]![i]!), task.units.map(() => 1)); // each question by one of them
  assert(counted.every((counts) => counts.includes(1)));
  const total = [0, 1].map((i) => sums[0]![i]! + sums[1]![i]!), { n, acc, acc_norm } = whole.score;
  assertEquals(total, [Math.round(acc! * n), Math.round(acc_norm! * n)]);
  assertEquals(await scoreTasks(model, c, [task], undefined, () => Promise.resolve(true)), undefined);
});

Deno.test("scoreTasks() computes no more for questions of different kinds together than for each kind alone", async () => {
  const kinds = [
    question("y".repeat(10), ["ab", "cd"], 0),
    question("y".repeat(10), ["ab", "cd", "ef", "gh"], 0),
    question("y".repeat(99), ["a", "bc", "def"], 0), // loses its beginning, as much as each choice leaves no room for
  ];
  const flops = async (items: typeof kinds) => {
    const task = prepareTask({ name: "q", kind: "questions", items }, bytes, c);
    let scored;
    const n = flopsOf(() => scored = scoreTasks(model, c, [task])); // in one pass, which is before anything is waited for
    await scored;
    return n;
  };
  const alone = await Promise.all(kinds.map((kind) => flops([kind])));
  assert(alone.every((n) => n > 0));
  assertEquals(await flops(kinds), alone.reduce((sum, n) => sum + n));
});

/** Enough tokens for several passes. */
function longQuestions() {
  return Array.from(
    { length: 200 },
    (_, i) => question("y".repeat(20), ["a", "b", "c"].slice(0, 2 + i % 2), 0),
  );
}

Deno.test("prepareTask() refuses a choice that the model cannot see whole, and one that adds no token", () => {
  const refused = (choice: string, tokenizer = bytes) => {
    const items = [question("a", ["b", choice], 0)];
    return assertThrows(() => prepareTask({ name: "q", kind: "questions", items }, tokenizer, c), UserError)
      .message;
  };
  const why = "should have from 1 to 24, the model's block_size";
  assertEquals(
    refused("b".repeat(24)),
    `Cannot evaluate on "f", line 1: choice 1 has 25 tokens behind the context, ${why}`,
  );
  const swallows: Tokenizer = { ...bytes, prompt: (text) => text.endsWith("u") ? [1] : bytes.prompt(text) };
  assertEquals(
    refused("u", swallows),
    `Cannot evaluate on "f", line 1: choice 1 has 0 tokens behind the context, ${why}`,
  );
});

Deno.test("prepareTask() takes for blanks what lm-eval does, whose language is Python", () => {
  const pairOf = (context: string) => {
    const item = { place: "", context, choices: ["b", "c"], target_delimiter: " ", label: 0 };
    const { units } = prepareTask({ name: "a", kind: "questions", items: [item] }, bytes, c);
    return units[0]!.pairs[0]!;
  };
  for (const blank of [" ", "\x85", "\x1c", "\u3000"]) {
    assertEquals(pairOf(`a${blank}`), { context: [START, ...idsOf("a")], continuation: idsOf(`${blank} b`) });
  }
  assertEquals(pairOf("a\ufeff"), { context: [START, ...idsOf("a\ufeff")], continuation: idsOf(" b") });
  const wordsOf = (text: string) => {
    const { score } = prepareTask({ name: "a", kind: "texts", items: [{ place: "", text }] }, bytes, c);
    return 1 / Math.log(score([-1]).word_perplexity!);
  };
  const texts = ["hi there", "  lead", "one\x85two three", "a\ufeffb", "a\x1cb c"]; // len(re.split(r"\s+", text))
  texts.forEach((text, i) => assertAlmostEquals(wordsOf(text), [2, 2, 3, 1, 3][i]!, 1e-9, text));
});

Deno.test("the score of a model whose logits are not finite is none", async () => {
  const w = model.norm, values = w.toArray();
  writeFloats(w.address, values.map(() => NaN), "act");
  const { score } = await logprobsOf(prepareTask(QUESTIONS, bytes, c));
  writeFloats(w.address, values, "act");
  assertEquals([score.acc, score.acc_norm], [NaN, NaN]);
});

Deno.test("taskMetrics() has what metrics.jsonl has of scores, and the mean over tasks of questions", () => {
  const scores = [
    { task: "a", n: 4, acc: 0.25, acc_stderr: 0.25, acc_norm: 0.5, acc_norm_stderr: 0.29 },
    { task: "b", n: 2, word_perplexity: 30, byte_perplexity: 2, bits_per_byte: 1 },
    { task: "c", n: 4, acc: 1, acc_stderr: 0, acc_norm: 1, acc_norm_stderr: 0 },
  ];
  assertEquals(taskMetrics(scores), {
    tasks: {
      a: { acc: 0.25, acc_norm: 0.5 },
      b: { word_perplexity: 30, byte_perplexity: 2, bits_per_byte: 1 },
      c: { acc: 1, acc_norm: 1 },
    },
    task_acc_norm: 0.75,
  });
  assertEquals("task_acc_norm" in taskMetrics(scores.slice(1, 2)), false);
  assertEquals(scoresInWords(scores.slice(0, 2)), "a acc 0.2500, acc_norm 0.5000; b bits_per_byte 1.0000");
});
