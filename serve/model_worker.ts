// The Worker that holds a model: the server answers others while it computes. Its first message names the model, later ones a text
// to go on with or one that nobody wants any more. Texts share each pass over the weights; it answers with their tokens.
import { explain, UserError } from "../base/errors.ts";
import { workerScope } from "../base/worker_scope.ts";
import { loadModel, type WeightType } from "../model/checkpoint.ts";
import { openDevice } from "../model/device.ts";
import {
  begin,
  end,
  type GenerateOptions,
  passes,
  type Step,
  step,
  type Telling,
  type Text,
} from "../model/generate.ts";
import type { Llama, LlamaConfig } from "../model/llama.ts";

/** The first message. */
export type Start = { checkpoint: string; device: string; dtype: WeightType };

/** Later messages: a text to go on with, by a number that no other one has, or one to leave off. */
export type Asked =
  | { kind: "write"; number: number; prompt: number[]; options: GenerateOptions & Telling }
  | { kind: "cancel"; number: number };

/** What happened to a text. */
export type News = Omit<Step, "text"> & { number: number };

/** What the Worker says. A text of a UserError is meant for the person at the terminal. */
export type Said =
  | { kind: "ready"; block_size: number; vocab_size: number }
  | { kind: "news"; news: News[] }
  | { kind: "error"; numbers: number[]; message: string; isUserError: boolean }; // of texts, which end; [] of all

const worker = workerScope(), turn = new MessageChannel();
const texts = new Map<number, Text>();
let model: Llama, config: LlamaConfig, isTurning = false;

worker.onmessage = ({ data }: MessageEvent<Start>) => {
  attempt([], () => {
    openDevice(data.device);
    ({ model, config } = loadModel(data.checkpoint, { dtype: data.dtype }));
    say({ kind: "ready", block_size: config.block_size, vocab_size: config.vocab_size });
  });
  worker.onmessage = ({ data }: MessageEvent<Asked>) => hear(data);
};

function hear(asked: Asked): void {
  if (asked.kind === "cancel") return leave(asked.number);
  const { number, prompt, options } = asked;
  attempt([number], () => {
    texts.set(number, begin(config, prompt, options));
    if (!isTurning) nextTurn();
  });
}

function nextTurn(): void {
  isTurning = true;
  turn.port2.postMessage(null);
}

/** Goes on with all texts by one token, and again after the messages that came meanwhile. */
turn.port1.onmessage = () => {
  for (const pass of passes([...texts.values()])) {
    attempt(pass.map(numberOf), () => {
      const news = step(model, config, pass).map(({ text, ...what }) => ({
        number: numberOf(text),
        ...what,
      }));
      for (const { number, isLast } of news) {
        if (isLast) leave(number);
      }
      say({ kind: "news", news });
    });
  }
  if (texts.size > 0) nextTurn();
  else isTurning = false;
};

function numberOf(text: Text): number {
  for (const [number, known] of texts) {
    if (known === text) return number;
  }
  throw new Error("internal: a text without a number");
}

function leave(number: number): void {
  const text = texts.get(number);
  if (text) end(config, text);
  texts.delete(number);
}

/** Texts over which something fails are left off, and no others. */
function attempt(numbers: number[], act: () => void): void {
  try {
    act();
  } catch (error) {
    numbers.forEach(leave);
    const isUserError = error instanceof UserError;
    say({ kind: "error", numbers, message: isUserError ? error.message : explain(error), isUserError });
  }
}

function say(what: Said): void {
  worker.postMessage(what);
}
