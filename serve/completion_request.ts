// What a client asks of POST /v1/completions: the fields of OpenAI's API that are supported, checked one by one.
import { Refusal } from "./refusal.ts";

/** Texts to write. */
export type CompletionRequest = {
  prompts: Prompt[];
  n: number; // texts of each prompt
  max_tokens: number;
  temperature: number;
  top_p: number;
  seed: number;
  stop: string[];
  logprobs: number | undefined; // tell the probability of each token, and so many of the likeliest in its place
  echo: boolean; // begin the text with its prompt
  stream: boolean;
  include_usage: boolean; // at the end of a stream
};

/** A text to go on with, or its tokens. */
export type Prompt = string | number[];

const MOST_TOKENS = 4096; // to write, in each text
const MOST_TEXTS = 32;
const MOST_STOPS = 4, MOST_STOP_LENGTH = 256; // 4 is OpenAI's
const MOST_LOGPROBS = 5; // OpenAI's

const MOST_SHOWN = 80; // characters of what was sent, in a message

/** Fields that clients send though they ask for nothing by it: this value is accepted and no other. */
const NEUTRAL: Record<string, unknown> = {
  best_of: 1,
  suffix: null,
  presence_penalty: 0,
  frequency_penalty: 0,
  logit_bias: null,
};
const SUPPORTED = "model prompt max_tokens temperature top_p n seed stop logprobs echo stream".split(" ");
const KNOWN = [...SUPPORTED, "stream_options", "user"];

/** Reads the body of a request for the model of this name. Throws Refusal naming the field that does not fit. */
export function parseRequest(body: unknown, model: string): CompletionRequest {
  if (typeof body !== "object" || body === null || Array.isArray(body)) {
    throw new Refusal(
      400,
      'The body must be a JSON object, such as {"prompt": "Once upon a time", "max_tokens": 50}',
    );
  }
  const fields = body as Record<string, unknown>;
  for (const [name, value] of Object.entries(fields)) requireSupported(name, value);
  if (fields.model !== undefined && fields.model !== model) {
    throw noModel(shown(fields.model), model);
  }
  const prompts = promptsOf(fields.prompt), echo = booleanOf(fields, "echo"), { logprobs } = fields;
  return {
    prompts,
    n: numberOf(fields, "n", 1, 1, Math.floor(MOST_TEXTS / prompts.length), Number.isInteger),
    max_tokens: numberOf(fields, "max_tokens", 16, echo ? 0 : 1, MOST_TOKENS, Number.isInteger),
    temperature: numberOf(fields, "temperature", 1, 0, 2),
    top_p: numberOf(fields, "top_p", 1, Number.MIN_VALUE, 1),
    seed: numberOf(fields, "seed", randomSeed(), -(2 ** 53), 2 ** 53, Number.isInteger),
    stop: stopOf(fields.stop),
    logprobs: (logprobs ?? undefined) === undefined
      ? undefined
      : numberOf(fields, "logprobs", 0, 0, MOST_LOGPROBS, Number.isInteger),
    echo,
    stream: booleanOf(fields, "stream"),
    include_usage: booleanOf(optionsOf(fields.stream_options), "include_usage"),
  };
}

function requireSupported(name: string, value: unknown): void {
  const isNeutral = Object.hasOwn(NEUTRAL, name);
  if (isNeutral ? value === null || value === NEUTRAL[name] : KNOWN.includes(name)) return;
  const what = isNeutral ? `${name} other than ${JSON.stringify(NEUTRAL[name])}` : name.slice(0, MOST_SHOWN);
  throw new Refusal(400, `There is no ${what} here: ${SUPPORTED.join(", ")} are supported`, {
    param: name.slice(0, MOST_SHOWN),
  });
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
