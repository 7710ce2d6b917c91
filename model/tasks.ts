// How well a model does on tasks (data/tasks.ts): which choice it finds likeliest, and how likely it finds texts. Tokens, windows
// and scores are those of lm-eval.
import { UserError } from "../base/errors.ts";
import { BLANKS, rstrip } from "../data/chat_template.ts";
import { GPT_2_VOCABULARY, readTasks, type Task } from "../data/tasks.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { copyToDevice, device, logprobs } from "../ffi/library.ts";
import { ALONE } from "../runtime/checkpoint.ts";
import { release } from "../runtime/memory.ts";
import type { StepMetrics } from "../runtime/metrics.ts";
import { embedding, type LayerCache } from "../runtime/ops.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { empty, rows, type Tensor } from "../runtime/tensor.ts";
import { forward, type Llama, type LlamaConfig, logits, paddedVocab } from "./llama.ts";

/** What a task gave. A standard error of one question is NaN. */
export type Score = {
  task: string;
  n: number; // questions or texts
  acc?: number; // share of the questions whose right choice has the highest probability
  acc_stderr?: number;
  acc_norm?: number; // the same with the logarithm of each divided by the characters of the choice; of a .bin by its tokens
  acc_norm_stderr?: number;
  word_perplexity?: number; // of the texts; words are what white space separates
  byte_perplexity?: number; // bytes of UTF-8
  bits_per_byte?: number;
};

/** The metrics of a score. */
export const METRICS = ["acc", "acc_norm", "word_perplexity", "byte_perplexity", "bits_per_byte"] as const;

/** Who shares the work, such as Ranks: this process, of how many, and the sums of numbers over all of them. */
export type Sharing = {
  rank: number;
  world_size: number;
  sum: (...values: number[]) => Promise<number[]>;
};

/** Tokens, and those behind them whose probability is asked for. */
export type Pair = { context: number[]; continuation: number[] };

/** What is scored together: the choices of a question, or a window of a text. */
export type Unit = { pairs: Pair[]; tally: (logprobs: number[]) => number[] };

/** A task in tokens of a model. */
export type PreparedTask = {
  name: string;
  units: Unit[];
  cut: number; // contexts that lost their beginning, since they are longer than block_size
  score: (sums: number[]) => Score; // from the sums over the tallies of all units
};

/**
 * The tasks of a run in tokens: eval_tasks are files with commas between their names. None where it is never evaluated. Throws
 * UserError as readTasks() and prepareTask(), and where the tokenizer is not known.
 */
export function tasksOf(
  { eval_tasks, eval_interval, eval_only }: { eval_tasks: string; eval_interval: number; eval_only: boolean },
  tokenizer: Tokenizer | undefined,
  c: LlamaConfig,
): PreparedTask[] {
  if (eval_tasks === "" || !eval_only && eval_interval === 0) return [];
  if (tokenizer) return readTasks(eval_tasks.split(",")).map((task) => prepareTask(task, tokenizer, c));
  throw new UserError(
    `Cannot evaluate on ${eval_tasks}: the tokenizer of the data is not known; leave --eval_tasks out`,
  );
}

/** Tokenizes a task for a model. Throws UserError for what does not fit into it, and for tokens of another vocabulary. */
export function prepareTask(task: Task, tokenizer: Tokenizer, c: LlamaConfig): PreparedTask {
  if (task.kind === "texts") return ofTexts(task.name, task.items.map(({ text }) => text), tokenizer, c);
  if (task.kind === "questions") {
    const questions = task.items.map(({ place, context, choices, target_delimiter, label }) => {
      const pairs = choices.map((choice) => pairOf(tokenizer, context, target_delimiter + choice));
      return { place, pairs, tally: tallyOf(label, choices.map((choice) => [...choice].length)) };
    });
    return ofQuestions(task.name, questions, c);
  }
  if (tokenizer.vocab_size !== GPT_2_VOCABULARY) {
    throw new UserError(
      `Cannot evaluate on ${task.name}.bin: it holds GPT-2's tokens, of ${GPT_2_VOCABULARY}, the model's tokenizer has ` +
        `${tokenizer.vocab_size}; use JSON lines, which are for any tokenizer`,
    );
  }
  const questions = task.items.map(({ place, context, choices, label }) => {
    const pairs = choices.map((continuation) => ({ context, continuation }));
    return { place, pairs, tally: tallyOf(label, choices.map(({ length }) => length)) };
  });
  return ofQuestions(task.name, questions, c);
}

function ofQuestions(
  name: string,
  questions: (Unit & { place: string })[],
  { block_size }: LlamaConfig,
): PreparedTask {
  for (const { place, pairs } of questions) {
    for (const [i, { continuation: { length } }] of pairs.entries()) {
      if (length > 0 && length <= block_size) continue;
      const should = `should have from 1 to ${block_size}, the model's block_size`;
      throw new UserError(
        `Cannot evaluate on ${place}: choice ${i} has ${length} tokens behind the context, ${should}`,
      );
    }
  }
  const n = questions.length,
    isCut = (pair: Pair) => pair.context.length + pair.continuation.length > block_size + 1;
  const cut = questions.filter(({ pairs }) => pairs.some(isCut)).length,
    stderr = (p: number) => Math.sqrt(p * (1 - p) / (n - 1));
  const score = ([sum = NaN, norms = NaN]: number[]) => {
    const acc = sum / n, acc_norm = norms / n;
    return { task: name, n, acc, acc_stderr: stderr(acc), acc_norm, acc_norm_stderr: stderr(acc_norm) };
  };
  return { name, units: questions, cut, score };
}

function ofTexts(
  name: string,
  texts: string[],
  tokenizer: Tokenizer,
  { block_size }: LlamaConfig,
): PreparedTask {
  const units = texts.flatMap((text) =>
    windows(Array.from(tokenizer.encode(text)), tokenizer.bos, block_size)
  )
    .map((pair) => ({ pairs: [pair], tally: (logprobs: number[]) => logprobs }));
  const total = (size: (text: string) => number) => texts.reduce((sum, text) => sum + size(text), 0);
  const blanks = new RegExp(`[${BLANKS}]+`); // as lm-eval, which is in Python, has them
  const words = total((text) => text.split(blanks).length),
    bytes = total((text) => new TextEncoder().encode(text).length);
  const score = ([sum = NaN]: number[]) => ({
    task: name,
    n: texts.length,
    word_perplexity: Math.exp(-sum / words),
    byte_perplexity: Math.exp(-sum / bytes),
    bits_per_byte: -sum / bytes / Math.LN2,
  });
  return { name, units, cut: 0, score };
}

/** What there is to warn of: contexts that the model does not see whole. */
export function cutsOf(tasks: readonly PreparedTask[], { block_size }: LlamaConfig): string[] {
  return tasks.filter(({ cut }) => cut > 0).map(({ name, cut }) =>
    `the model sees ${block_size} tokens: ${cut} contexts of ${name} lose their beginning`
  );
}

/** A context and what follows it in tokens. Blanks at the end of the context belong to the word behind them. */
function pairOf(tokenizer: Tokenizer, context: string, continuation: string): Pair {
  const end = rstrip(context).length,
    before = context.slice(0, end),
    behind = context.slice(end) + continuation;
  if (before === "") return { context: [tokenizer.bos], continuation: Array.from(tokenizer.encode(behind)) };
  const tokens = tokenizer.prompt(before);
  return { context: tokens, continuation: tokenizer.prompt(before + behind).slice(tokens.length) };
}

/**
 * A text in stretches of block_size tokens, of which the last may be shorter. The model sees block_size tokens before the last of
 * each, where there are so many: it begins behind the start of a text, and each token counts once.
 */
function windows(tokens: number[], start: number, block_size: number): Pair[] {
  return Array.from({ length: Math.ceil(tokens.length / block_size) }, (_, i) => {
    const from = i * block_size, to = Math.min(from + block_size, tokens.length);
    const context = i === 0 ? [start] : tokens.slice(to - block_size - 1, from);
    return { context, continuation: tokens.slice(from, to) };
  });
}

/** Whether the right choice of a question is the likeliest, and the likeliest for its length. The first of equal ones counts. */
function tallyOf(label: number, lengths: number[]): Unit["tally"] {
  return (logprobs) => {
    if (!logprobs.every(Number.isFinite)) return [NaN, NaN];
    const norms = logprobs.map((logprob, i) => logprob / lengths[i]!);
    return [logprobs, norms].map((values) => Number(values.indexOf(Math.max(...values)) === label));
  };
}

// ---- running the model

const TOKENS_AT_ONCE = 4096; // of a pass, filled up to the longest
const ROWS_AT_ONCE = 256; // whose logits are in memory together
const ROUND_UP = 16; // tokens, on a GPU: it chooses how to multiply for each shape that it meets

/**
 * The scores of a model on tasks. Ranks share the passes. Undefined when isAsked(), which all ranks call after each of theirs,
 * tells them to stop.
 */
export async function scoreTasks(
  model: Llama,
  c: LlamaConfig,
  tasks: readonly PreparedTask[],
  ranks: Sharing = ALONE,
  isAsked: () => Promise<boolean> = () => Promise.resolve(false),
): Promise<Score[] | undefined> {
  const scores: Score[] = [];
  for (const { units, score } of tasks) {
    const passes = passesOf(units, c.block_size), sums = [0, 0];
    for (let first = 0; first < passes.length; first += ranks.world_size) {
      const pass = passes[first + ranks.rank] ?? [];
      const alike = Map.groupBy(pass.flatMap(({ rows }) => rows), ({ pairs }) => pairs.length);
      const logprobs = new Map([...alike.values()].flatMap((rows) => logLikelihoods(model, c, rows)));
      for (const { unit: { pairs, tally } } of pass) {
        tally(pairs.map((pair) => logprobs.get(pair)!)).forEach((value, i) => sums[i]! += value);
      }
      if (await isAsked()) return undefined;
    }
    scores.push(score(await ranks.sum(...sums)));
  }
  return scores;
}

/** Scores as metrics.jsonl has them, with the mean acc_norm of all tasks of questions. */
export function taskMetrics(scores: readonly Score[]): Pick<StepMetrics, "tasks" | "task_acc_norm"> {
  const known = (score: Score) =>
    METRICS.flatMap((metric) => score[metric] === undefined ? [] : [[metric, score[metric]]]);
  const norms = scores.flatMap(({ acc_norm }) => acc_norm ?? []);
  return {
    tasks: Object.fromEntries(scores.map((score) => [score.task, Object.fromEntries(known(score))])),
    ...norms.length > 0 && { task_acc_norm: norms.reduce((a, b) => a + b) / norms.length },
  };
}

/** "hellaswag acc 0.2500, acc_norm 0.2600; texts bits_per_byte 1.2000" */
export function scoresInWords(scores: readonly Score[]): string {
  const metrics = ["acc", "acc_norm", "bits_per_byte"] as const;
  return scores.map((score) => {
    const known = metrics.flatMap((metric) =>
      score[metric] === undefined ? [] : `${metric} ${score[metric].toFixed(4)}`
    );
    return `${score.task} ${known.join(", ")}`;
  }).join("; ");
}

/** Pairs of one context, which a model reads once for all of them. */
export type Row = { context: number[]; pairs: Pair[] };

/** The pairs of a unit by their contexts, of which one that is too long has lost its beginning: as many as each pair leaves room for. */
export function rowsOf({ pairs }: Unit, block_size: number): Row[] {
  const contextOf = ({ context, continuation }: Pair) =>
    context.slice(-(block_size + 1 - continuation.length));
  return [...Map.groupBy(pairs, (pair) => contextOf(pair).join()).values()]
    .map((pairs) => ({ context: contextOf(pairs[0]!), pairs }));
}

/** A unit, and what of it the model reads. */
type Work = { unit: Unit; rows: Row[] };

/** Units of about the same length together, as many as a pass takes; the longest first. */
function passesOf(units: readonly Unit[], block_size: number): Work[][] {
  const works = units.map((unit) => ({ unit, rows: rowsOf(unit, block_size) }));
  const longest = ({ rows }: Work) =>
    Math.max(
      ...rows.flatMap(({ context, pairs }) =>
        pairs.map(({ continuation }) => context.length + continuation.length)
      ),
    );
  const passes: Work[][] = [];
  let room = 0; // rows that the last pass still takes
  for (const work of works.toSorted((a, b) => longest(b) - longest(a))) {
    if (work.rows.length > room) {
      passes.push([]);
      room = Math.max(work.rows.length, Math.floor(TOKENS_AT_ONCE / longest(work)));
    }
    passes.at(-1)!.push(work);
    room -= work.rows.length;
  }
  return passes;
}

/**
 * The natural logarithm of the probability of each continuation, of contexts that have as many of them as one another. One with
 * several is read into a cache, all but its last token, and each of them behind it; that of one alone is read with it.
 */
function logLikelihoods(model: Llama, c: LlamaConfig, all: readonly Row[]): [Pair, number][] {
  const found: [Pair, number][] = [];
  const known = all.map(({ context, pairs }) => pairs.length > 1 ? context.length - 1 : 0); // tokens in the cache
  const read = (inputs: number[][], T: number, pos: number[], layers: LayerCache[]) => {
    const ids = new Int32Array(inputs.length * T); // what stands behind an input is not seen by it
    inputs.forEach((input, b) => ids.set(input, b * T));
    const cache = layers.length > 0 ? { cache: { pos, layers } } : {};
    return forward(model, onDevice([inputs.length, T], ids), c, cache).view(inputs.length * T, c.n_embd);
  };
  const step = device.library === "cpu" ? 1 : ROUND_UP;
  const lengthOf = (inputs: number[][]) =>
    Math.min(c.block_size, Math.ceil(Math.max(...inputs.map(({ length }) => length)) / step) * step);
  try {
    const contexts = all.map(({ context }, b) => context.slice(0, known[b])),
      hasCache = known.some((n) => n > 0);
    const layers = hasCache ? cachesOf(c, all) : [];
    if (hasCache) noGrad(() => read(contexts, lengthOf(contexts), known.map(() => 0), layers));
    for (let i = 0; i < all[0]!.pairs.length; i++) {
      const pairs = all.map(({ pairs }) => pairs[i]!);
      const tokens = all.map(({ context }, b) => [...context, ...pairs[b]!.continuation].slice(0, -1));
      const T = lengthOf(tokens.map((ids, b) => ids.slice(known[b])));
      const pos = known.map((n) => Math.min(n, c.block_size - T)); // a few tokens again rather than too many positions
      const places = tokens.flatMap(({ length }, b) => {
        const n = pairs[b]!.continuation.length;
        return Array.from({ length: n }, (_, t) => b * T + length - pos[b]! - n + t); // the row that predicts token t
      });
      const chosen = noGrad(() => {
        const hidden = read(tokens.map((ids, b) => ids.slice(pos[b])), T, pos, layers);
        return embedding(onDevice([places.length], Int32Array.from(places)), hidden); // (N, C)
      });
      const logs = logprobsAt(model, c, chosen, pairs.flatMap(({ continuation }) => continuation));
      for (const pair of pairs) {
        found.push([pair, logs.splice(0, pair.continuation.length).reduce((a, b) => a + b, 0)]);
      }
    }
    return found;
  } finally {
    endStep();
  }
}

/** Room for what a pass reads, in step memory. */
function cachesOf(c: LlamaConfig, all: readonly Row[]): LayerCache[] {
  const [context, continuation] = [
    all.map(({ context }) => context.length),
    all.flatMap(({ pairs }) => pairs.map(({ continuation }) => continuation.length)),
  ].map((lengths) => Math.max(...lengths)) as [number, number];
  const T_max = Math.min(c.block_size, context + continuation + ROUND_UP);
  const heads = () => all.map(() => empty([c.n_kv_head, T_max, c.head_dim]));
  return Array.from({ length: c.n_layer }, () => ({ k: heads(), v: heads() }));
}

/** The logarithm of the probability of each target, of hidden states (N, C). */
function logprobsAt(model: Llama, c: LlamaConfig, hidden: Tensor, targets: number[]): number[] {
  const logs: number[] = [];
  for (let row = 0; row < targets.length; row += ROWS_AT_ONCE) {
    const some = targets.slice(row, row + ROWS_AT_ONCE),
      values = noGrad(() => logits(model, rows(hidden, row, some.length)));
    logs.push(...logprobs(values.address, some, c.vocab_size, paddedVocab(c), 0).map(({ target }) => target));
    release(values.buf.block);
  }
  return logs;
}

function onDevice(shape: number[], ids: Int32Array<ArrayBuffer>): Tensor {
  const t = empty(shape, "i32");
  copyToDevice(t.address, ids);
  return t;
}
