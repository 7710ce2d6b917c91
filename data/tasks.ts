// What a model is evaluated on: questions with choices, and texts. In JSON lines, or in llm.c's format for HellaSwag, which holds
// GPT-2's tokens.
import { basename } from "node:path";
import { UserError } from "../base/errors.ts";
import { isFile, lookedIn } from "../base/files.ts";
import { isObject, show } from "../base/json.ts";
import { orMistake } from "../base/system_error.ts";

/** A question: which of its choices goes on with the context. */
export type Question = {
  /** File and line, for messages. */
  place: string;
  /** What the model has read; "" is the start of a text. */
  context: string;
  /** What may follow, two at least. */
  choices: string[];
  /** Stands between the context and a choice, and does not count to the length of a choice. */
  target_delimiter: string;
  /** The right choice, from 0. */
  label: number;
};

/** A question in ids of GPT-2's tokens. */
export type TokenQuestion = Pick<Question, "place" | "label"> & { context: number[]; choices: number[][] };

/** A text, of which every token counts. */
export type Passage = {
  /** File and line, for messages. */
  place: string;
  /** All of it. */
  text: string;
};

/** Questions or texts that have one score. */
export type Task =
  & { name: string }
  & (
    | { kind: "questions"; items: Question[] }
    | { kind: "token questions"; items: TokenQuestion[] }
    | { kind: "texts"; items: Passage[] }
  );

const SHOWN = 60; // characters of a value in a message

/** Tokens that the ids of llm.c's files are of. */
export const GPT_2_VOCABULARY = 50257;

/**
 * The tasks in files: JSON lines {"context", "choices", "label"} or {"text"}, each with a "task" or else the name of its file, or
 * llm.c's .bin. Throws UserError that names file and line for what is none, and for two tasks of one name.
 */
export function readTasks(paths: readonly string[]): Task[] {
  const tasks = paths.flatMap((path) => {
    if (!isFile(path)) throw new UserError(`Cannot read "${path}": there is no such file${lookedIn(path)}`);
    const bytes = orMistake(`Cannot read "${path}"`, () => Deno.readFileSync(path));
    return path.endsWith(".bin") ? [readEvalBin(path, bytes)] : readLines(path, bytes);
  });
  const names = tasks.map(({ name }) => name), again = names.find((name, i) => names.indexOf(name) < i);
  if (again === undefined) return tasks;
  throw new UserError(`Cannot evaluate on two tasks that are called ${again}: give one another name`);
}

// ---- JSON lines

function readLines(path: string, bytes: Uint8Array): Task[] {
  const tasks = new Map<string, Task>(), own = basename(path).replace(/\.\w+$/, "");
  for (const [i, line] of new TextDecoder().decode(bytes).split("\n").entries()) {
    if (line.trim() === "") continue;
    const place = `"${path}", line ${i + 1}`, row = parse(place, line), name = row.task ?? own;
    if (typeof name !== "string" || name === "") throw wrong(place, "task", name, "a name");
    const item = "choices" in row ? question(place, row) : passage(place, row);
    const kind = "text" in item ? "texts" : "questions", task = tasks.get(name) ?? { name, kind, items: [] };
    if (task.kind !== kind) {
      throw unusable(place, `it is one of ${kind}, the task ${name} began with ${task.kind}`);
    }
    (task.items as typeof item[]).push(item); // of its kind
    tasks.set(name, task);
  }
  if (tasks.size > 0) return [...tasks.values()];
  throw unusable(`"${path}"`, `it is empty; ${LINES}`);
}

const LINES =
  'each line should be {"context": "...", "choices": ["...", "..."], "label": 0} or {"text": "..."}';

function parse(place: string, line: string): Record<string, unknown> {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch (error) {
    throw unusable(place, `${(error as Error).message.replace(/ \(line .*/, "")}; ${LINES}`);
  }
  if (isObject(row) && ("choices" in row || "text" in row)) return row;
  const what = isObject(row)
    ? `its fields are ${Object.keys(row).join(", ") || "none"}`
    : `it is ${show(row, SHOWN)}`;
  throw unusable(place, `${what}; ${LINES}`);
}

function question(place: string, row: Record<string, unknown>): Question {
  const { context, choices, label, target_delimiter = " " } = row; // lm-eval's default
  const isChoice = (choice: unknown) => typeof choice === "string" && choice !== "";
  if (typeof context !== "string") throw wrong(place, "context", context, "a text");
  if (typeof target_delimiter !== "string") {
    throw wrong(place, "target_delimiter", target_delimiter, "a text");
  }
  if (!Array.isArray(choices) || choices.length < 2 || !choices.every(isChoice)) {
    throw wrong(place, "choices", choices, "a list of at least two texts that are not empty");
  }
  if (!Number.isInteger(label) || Number(label) < 0 || Number(label) >= choices.length) {
    throw wrong(place, "label", label, `the place of the right choice, from 0 to ${choices.length - 1}`);
  }
  return { place, context, choices, target_delimiter, label: Number(label) };
}

function passage(place: string, { text }: Record<string, unknown>): Passage {
  if (typeof text === "string" && text.trim() !== "") return { place, text };
  throw wrong(place, "text", text, "a text that is not empty");
}

function wrong(place: string, field: string, value: unknown, should: string): UserError {
  return unusable(place, `${field} is ${show(value, SHOWN)}, should be ${should}`);
}

function unusable(place: string, what: string): UserError {
  return new UserError(`Cannot evaluate on ${place}: ${what}`);
}

// ---- llm.c's evaluation files

const HEADER_INTS = 256, MAGIC = 20240522, VERSION = 1, BEGIN = 65535;

/**
 * int32[256]: magic, version, number of examples; then uint16s: of each example BEGIN, its bytes, its number, the label, the
 * number of choices, and for the context and each choice the number of tokens and the tokens.
 */
function readEvalBin(path: string, bytes: Uint8Array): Task {
  const broken = (what: string) => unusable(`"${path}"`, `${what}; copy or write it again`);
  const header = new Int32Array(HEADER_INTS);
  new Uint8Array(header.buffer).set(bytes.subarray(0, 4 * HEADER_INTS));
  const [magic, version, count] = header as unknown as [number, number, number];
  if (magic !== MAGIC || version !== VERSION) {
    throw broken(`it begins with ${magic} ${version}, should be ${MAGIC} ${VERSION}`);
  }
  const stream = new Uint16Array(bytes.slice(4 * HEADER_INTS, bytes.length - bytes.length % 2).buffer);
  let at = 0;
  const next = () => stream[at++] ?? NaN;
  const items: TokenQuestion[] = [];
  for (let i = 0; i < count; i++) {
    const place = `"${path}", example ${i}`, from = at;
    const tokens = () => {
      const length = next(), from = at;
      at += length;
      if (!(length > 0 && at <= stream.length)) throw broken(`example ${i} is not whole`);
      const ids = Array.from(stream.subarray(from, at));
      const beyond = ids.find((id) => id >= GPT_2_VOCABULARY);
      if (beyond === undefined) return ids;
      throw broken(`example ${i} has token ${beyond}, GPT-2's are below ${GPT_2_VOCABULARY}`);
    };
    const [begin, size, index, label, choices] = [next(), next(), next(), next(), next()];
    if (begin !== BEGIN || index !== i || !(label! < choices!) || choices! < 2) {
      throw broken(`example ${i} begins with ${[begin, size, index, label, choices]}`);
    }
    items.push({
      place,
      label: label!,
      context: tokens(),
      choices: Array.from({ length: choices! }, tokens),
    });
    if (2 * (at - from) !== size) throw broken(`example ${i} has ${2 * (at - from)} bytes, says ${size}`);
  }
  const wanted = 4 * HEADER_INTS + 2 * at;
  if (count < 1 || bytes.length !== wanted) {
    throw broken(`it has ${bytes.length} bytes, its ${count} examples have ${wanted}`);
  }
  return { name: basename(path, ".bin"), kind: "token questions", items };
}
