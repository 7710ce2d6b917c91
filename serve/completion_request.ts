// What a client asks of POST /v1/completions and /v1/chat/completions: the fields of OpenAI's API that are supported, checked one
// by one.
import type { Message } from "../data/chat_template.ts";
import { isObject } from "../base/json.ts";
import { Refusal } from "./refusal.ts";

/** What is asked of texts of either kind. */
export type Asked = {
  n: number; // texts of each prompt
  max_tokens: number | undefined; // of a chat, where nothing is said: as many as there is room for
  temperature: number;
  top_p: number;
  seed: number;
  stop: string[];
  logprobs: number | undefined; // tell the probability of each token, and so many of the likeliest in its place
  stream: boolean;
  include_usage: boolean; // at the end of a stream
};

/** Texts to write. */
export type CompletionRequest = Asked & {
  prompts: Prompt[];
  max_tokens: number;
  echo: boolean; // begin the text with its prompt
};

/** Answers to write: of a conversation, in which the assistant is next. */
export type ChatRequest = Asked & {
  messages: Message[];
  tools: unknown[] | undefined; // that the template tells the model of
};

/** A text to go on with, or its tokens. */
export type Prompt = string | number[];

/** How many tokens may be written, in each text. */
export const MOST_TOKENS = 4096;

const MOST_TEXTS = 32;
const MOST_STOPS = 4, MOST_STOP_LENGTH = 256; // 4 is OpenAI's
const MOST_LOGPROBS = 5, MOST_TOP_LOGPROBS = 20; // OpenAI's

const MOST_SHOWN = 80; // characters of what was sent, in a message

/** The fields of one of the two: those that are read, those that are not, and those that may say but this, which asks for nothing. */
type Fields = { supported: string[]; ignored: string[]; neutral: Record<string, unknown> };

const SUPPORTED = "temperature top_p n seed stop stream".split(" "), IGNORED = ["stream_options", "user"];
const NEUTRAL = { presence_penalty: 0, frequency_penalty: 0, logit_bias: null };

const TEXT: Fields = {
  supported: ["model", "prompt", "max_tokens", "logprobs", "echo", ...SUPPORTED],
  ignored: IGNORED,
  neutral: { best_of: 1, suffix: null, ...NEUTRAL },
};
const CHAT: Fields = {
  supported: [
    ...["model", "messages", "tools", "max_completion_tokens", "max_tokens", "logprobs", "top_logprobs"],
    ...SUPPORTED,
  ],
  ignored: [...IGNORED, "metadata", "store", "parallel_tool_calls"],
  neutral: { tool_choice: "auto", response_format: { type: "text" }, ...NEUTRAL },
};

/** Reads the body of a request for the model of this name. Throws Refusal naming the field that does not fit. */
export function parseRequest(body: unknown, model: string): CompletionRequest {
  const fields = fieldsOf(body, TEXT, model, '{"prompt": "Once upon a time", "max_tokens": 50}');
  const prompts = promptsOf(fields.prompt), echo = booleanOf(fields, "echo"), { logprobs } = fields;
  return {
    ...askedOf(fields, prompts.length),
    prompts,
    max_tokens: numberOf(fields, "max_tokens", 16, echo ? 0 : 1, MOST_TOKENS, Number.isInteger),
    logprobs: (logprobs ?? undefined) === undefined
      ? undefined
      : numberOf(fields, "logprobs", 0, 0, MOST_LOGPROBS, Number.isInteger),
    echo,
  };
}

/** The same for a conversation. */
export function parseChatRequest(body: unknown, model: string): ChatRequest {
  const fields = fieldsOf(body, CHAT, model, '{"messages": [{"role": "user", "content": "Hello"}]}');
  const limit = ["max_completion_tokens", "max_tokens"].find((name) =>
    (fields[name] ?? undefined) !== undefined
  );
  const top = numberOf(fields, "top_logprobs", 0, 0, MOST_TOP_LOGPROBS, Number.isInteger);
  const tells = booleanOf(fields, "logprobs");
  if (top > 0 && !tells) throw misfit("top_logprobs", "needs logprobs to be true");
  return {
    ...askedOf(fields, 1),
    messages: messagesOf(fields.messages),
    tools: toolsOf(fields.tools),
    max_tokens: limit === undefined
      ? undefined
      : numberOf(fields, limit, 1, 1, MOST_TOKENS, Number.isInteger),
    logprobs: tells ? top : undefined,
  };
}

/** The fields of a body, all of which are known. */
function fieldsOf(body: unknown, known: Fields, model: string, example: string): Record<string, unknown> {
  if (!isObject(body)) throw new Refusal(400, `The body must be a JSON object, such as ${example}`);
  for (const [name, value] of Object.entries(body)) requireSupported(name, value, known);
  if (body.model !== undefined && body.model !== model) throw noModel(shown(body.model), model);
  return body;
}

/** What texts of both kinds are asked for. */
function askedOf(fields: Record<string, unknown>, prompts: number): Omit<Asked, "max_tokens" | "logprobs"> {
  return {
    n: numberOf(fields, "n", 1, 1, Math.floor(MOST_TEXTS / prompts), Number.isInteger),
    temperature: numberOf(fields, "temperature", 1, 0, 2),
    top_p: numberOf(fields, "top_p", 1, Number.MIN_VALUE, 1),
    seed: numberOf(fields, "seed", randomSeed(), -(2 ** 53), 2 ** 53, Number.isInteger),
    stop: stopOf(fields.stop),
    stream: booleanOf(fields, "stream"),
    include_usage: booleanOf(optionsOf(fields.stream_options), "include_usage"),
  };
}

function requireSupported(name: string, value: unknown, { supported, ignored, neutral }: Fields): void {
  const isNeutral = Object.hasOwn(neutral, name),
    asks = JSON.stringify(value) !== JSON.stringify(neutral[name]);
  if (isNeutral ? value === null || !asks : supported.includes(name) || ignored.includes(name)) return;
  const what = isNeutral ? `${name} other than ${JSON.stringify(neutral[name])}` : name.slice(0, MOST_SHOWN);
  throw new Refusal(400, `There is no ${what} here: ${supported.join(", ")} are supported`, {
    param: name.slice(0, MOST_SHOWN),
  });
}

/** Messages, each with a role and a text, which may come in parts. What else they have is for the template. */
function messagesOf(value: unknown): Message[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw misfit("messages", 'must be a list such as [{"role": "user", "content": "Hello"}]');
  }
  return value.map((message, i) => {
    const what = `messages[${i}]`;
    if (!isObject(message) || typeof message.role !== "string") {
      throw misfit("messages", `must be of objects with a role; ${what} is ${shown(message)}`);
    }
    return { ...message, role: message.role, content: contentOf(message.content, `${what}.content`) };
  });
}

function contentOf(value: unknown, what: string): string {
  if (typeof value === "string") return value;
  if (value === undefined || value === null) return ""; // of a message that calls tools
  const parts = Array.isArray(value) ? value : [value];
  return parts.map((part) => {
    if (isObject(part) && part.type === "text" && typeof part.text === "string") return part.text;
    const kind = isObject(part) && typeof part.type === "string"
      ? `one of type ${shown(part.type)}`
      : shown(part);
    throw misfit("messages", `must have texts, or parts of type "text"; in ${what} is ${kind}`);
  }).join("");
}

function toolsOf(value: unknown): unknown[] | undefined {
  if (value === undefined || value === null) return undefined;
  if (Array.isArray(value) && value.every(isObject)) return value;
  throw misfit("tools", "must be a list of objects");
}

/** The answer to whoever asks for a model that is not here. */
export function noModel(asked: string, model: string | undefined): Refusal {
  const here = model === undefined ? "none is here" : `here is ${model}`;
  return new Refusal(404, `There is no model ${asked}: ${here}`, { param: "model", code: "model_not_found" });
}

/** A text, tokens, or a list of one of them. */
function promptsOf(value: unknown): Prompt[] {
  if (value === undefined || value === null) return [""];
  if (typeof value === "string" || isTokens(value)) return [value];
  if (Array.isArray(value) && value.length > 0 && value.length <= MOST_TEXTS) {
    if (value.every((prompt) => typeof prompt === "string") || value.every(isTokens)) return value;
  }
  throw misfit("prompt", `must be a text or a list of tokens, or a list of up to ${MOST_TEXTS} of these`);
}

function isTokens(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);
}

function stopOf(value: unknown): string[] {
  const stop = typeof value === "string" ? [value] : value ?? [];
  const fits = (text: unknown) => typeof text === "string" && text !== "" && text.length <= MOST_STOP_LENGTH;
  if (Array.isArray(stop) && stop.length <= MOST_STOPS && stop.every(fits)) return stop;
  throw misfit(
    "stop",
    `must be a text of 1 to ${MOST_STOP_LENGTH} characters, or a list of up to ${MOST_STOPS}`,
  );
}

function optionsOf(value: unknown): Record<string, unknown> {
  if (typeof (value ?? {}) === "object") return (value ?? {}) as Record<string, unknown>;
  throw misfit("stream_options", 'must be an object, such as {"include_usage": true}');
}

function numberOf(
  fields: Record<string, unknown>,
  name: string,
  fallback: number,
  least: number,
  most: number,
  fits: (value: number) => boolean = Number.isFinite,
): number {
  const value = fields[name] ?? fallback;
  if (typeof value === "number" && value >= least && value <= most && fits(value)) return value;
  const kind = fits === Number.isInteger ? "a whole number" : "a number";
  const from = least === Number.MIN_VALUE ? "above 0" : `from ${least}`;
  throw misfit(name, `must be ${kind} ${from} to ${most}, not ${shown(value)}`);
}

function booleanOf(fields: Record<string, unknown>, name: string): boolean {
  const value = fields[name] ?? false;
  if (typeof value === "boolean") return value;
  throw misfit(name, `must be true or false, not ${shown(value)}`);
}

/** The answer to a field that does not fit. */
export function misfit(param: string, what: string): Refusal {
  return new Refusal(400, `${param} ${what}`, { param });
}

/** A value in a message, which must not be as long as a body. */
function shown(value: unknown): string {
  if (typeof value === "object" && value !== null) return Array.isArray(value) ? "a list" : "an object";
  return JSON.stringify(typeof value === "string" ? value.slice(0, MOST_SHOWN) : value);
}

function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0]!;
}
