// GET /openapi.json: every route and every field with its unit. The tests hold the answers against it.
import { KEYS, LISTED, STATES } from "./types.ts";

/** A JSON schema. */
export type Schema = Record<string, unknown>;

// ---- schemas of values

const number = (description: string, limits: Schema = {}): Schema => ({
  type: "number",
  ...limits,
  description,
});
const whole = (description: string, limits: Schema = {}): Schema => ({
  type: "integer",
  ...limits,
  description,
});
const flag = (description: string): Schema => ({ type: "boolean", default: false, description });
const text = (description: string): Schema => ({ type: "string", description });
const list = (items: Schema, description?: string): Schema => ({
  type: "array",
  items,
  ...(description ? { description } : {}),
});

/** Null where the value is not known, or not finite. */
const maybe = (schema: Schema): Schema => ({ ...schema, type: [schema.type, "null"] });

/** All properties are there, and no others. */
const object = (properties: Record<string, Schema>, description?: string): Schema => ({
  type: "object",
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
  ...(description ? { description } : {}),
});

const STATE: Schema = {
  type: "string",
  enum: STATES,
  description:
    "running: a trainer is at work; stalled: it is there, but no step came for 10 times the median step " +
    "(at least 30 s; 10 min before the first step); stopped: by a signal, say; finished: max_iters is reached; " +
    "failed: over an error, or its process was killed",
};
const AGE_S = number("Seconds since the last step was written");

const SAMPLE = { step: whole("After which step"), text: text("What the model wrote") };

const STATS_FIELDS = {
  run: text("Name of the run"),
  state: STATE,
  error: maybe(text("Why it failed, in one line; null unless it did")),
  health: object({
    level: {
      enum: ["good", "warn", "bad"],
      description: "bad: it has failed, stands still or computes nothing; warn: worth a look",
    },
    text: text("What is wrong first, then how loss, gradient norm and speed are, and the time left"),
  }, "Whether the run does well, in one sentence"),
  started: maybe(text("When the process began that trains the run, or trained it last; ISO 8601")),
  ended_at: maybe(text("When that process ended, where it could still say so; ISO 8601")),
  age_s: AGE_S,
  device: maybe(text("Device that trains it")),
  model: maybe(text("Size of the model, to print")),
  parameters: maybe(whole("Trainable values")),
  step: whole("Optimizer steps done"),
  max_iters: maybe(whole("Steps after which the run ends")),
  epoch: maybe(number("Passes over the training data so far, with a fraction")),
  tokens: maybe(whole("Tokens trained on so far")),
  loss: maybe(number("Mean training cross entropy of the last step, nats a token")),
  trend: maybe(
    object({
      is: {
        enum: ["falling", "flat", "rising"],
        description: "flat: within its noise, or from 0.1% lower to 2% higher",
      },
      change: number("Relative; -0.02 is 2% lower"),
      steps: whole("Steps between the two"),
    }, "Mean loss of the last tenth of the steps against the tenth before; null before 50 steps"),
  ),
  val_loss: maybe(
    number("Mean cross entropy over the evaluation windows when last measured, nats a token"),
  ),
  val_bpb: maybe(
    number("The same in bits per byte of text; null where the dataset does not say its bytes"),
  ),
  best_val_loss: maybe(number("The least val_loss so far")),
  best_step: maybe(whole("Step of best_val_loss")),
  lr: maybe(number("Learning rate of the last step")),
  grad_norm: maybe(number("Norm of the gradient of the last step, before clipping")),
  tokens_per_sec: maybe(number("Tokens per second in the last step")),
  step_ms: maybe(number("Milliseconds that the last step took")),
  mfu: maybe(
    number("Model FLOPs utilization in the last step, 0 to 1: FLOPs of the model over the device's peak"),
  ),
  memory_bytes: maybe(number("CPU: resident memory of the trainer; GPU: peak of allocated memory")),
  memory: maybe({
    type: "object",
    additionalProperties: { type: "number" },
    description: "Bytes by what they are used for",
  }),
  ranks: maybe(object({
    slowest: whole("The rank whose own work took longest"),
    step_ms: list(
      { type: "number" },
      "Milliseconds of each one's own work in a step, without waiting for the others",
    ),
    memory_bytes: list({ type: "number" }, "As memory_bytes above, of each"),
  }, "The processes that train together, in order of their numbers; null for one")),
  skipped: whole("Updates left out because loss or gradient norm was not finite"),
  elapsed_s: number("Seconds spent in steps, by all processes that trained the run"),
  eta_s: maybe(
    number(
      "Seconds until max_iters is reached, evaluation, samples and checkpoints included; null unless the run is running",
    ),
  ),
  bad_lines: whole("Lines of metrics.jsonl that could not be read"),
  checkpoint: maybe(text("Name of the newest checkpoint")),
  sample: maybe(object(SAMPLE, "The latest sample")),
  gpu: maybe(object({
    utilization: maybe(number("Share of the time in which it was busy, 0 to 1")),
    power_w: maybe(number("Watts")),
    temperature_c: maybe(number("Degrees Celsius")),
  }, "What the graphics card of this machine reports")),
  versions: {
    type: "object",
    additionalProperties: { type: "string" },
    description: "Of the programs that train",
  },
  config: {
    type: "object",
    description: "Variables of the run, as in its config.json; home directories read ~",
  },
};
const STATS = object(STATS_FIELDS);

const RUNS = object({
  runs: list(object({
    name: text("Name of the run, for ?run="),
    ...Object.fromEntries(LISTED.map((name) => [name, STATS_FIELDS[name]])),
    preset: maybe(text("Preset that it was configured with")),
  })),
});

const HISTORY = object({
  run: text("Name of the run"),
  series: {
    type: "object",
    additionalProperties: object({
      step: list({ type: "integer" }, "Ascending"),
      value: list({ type: ["number", "null"] }, "Value at each step; null where it was not finite"),
      mean: list(
        { type: ["number", "null"] },
        "Of the stretch of steps that a point stands for, the last one of that before it; the value itself if for no other",
      ),
    }),
    description: "By key",
  },
});

const LOG = object({ run: text("Name of the run"), lines: list({ type: "string" }, "Oldest first") });

const SAMPLES = object({
  run: text("Name of the run"),
  samples: list(object(SAMPLE), "Those in the last 64 kB of samples.jsonl, the oldest first"),
});

const HEALTH = object({
  healthy: { type: "boolean", description: "Whether no run is stalled or has failed" },
  reason: maybe(text("Which run it is, and why; null where all are well")),
  runs: list(object({ name: text("Name of the run"), state: STATE, age_s: AGE_S })),
});

const FAILURE = object({
  error: object({
    message: text("One sentence"),
    type: text("invalid_request_error, requests (too many) or server_error, as OpenAI's API has them"),
    param: maybe(text("The field of a request to /v1 that does not fit")),
    code: maybe(text("What it is, for programs; such as model_not_found")),
  }),
});

const MODEL = object({
  id: text("Name of the model"),
  object: { const: "model" },
  created: whole("Seconds since 1970"),
  owned_by: { const: "loam" },
});
const MODELS = object({ object: { const: "list" }, data: list(MODEL) });

// ---- completions, as OpenAI has them

const TOKENS: Schema = { type: "array", items: { type: "integer", minimum: 0 }, minItems: 1 };

/** Fields of requests of both kinds. */
const SHARED = {
  temperature: number("0: always the likeliest token", { minimum: 0, maximum: 2, default: 1 }),
  top_p: { type: "number", exclusiveMinimum: 0, maximum: 1, default: 1 },
  seed: whole("The same seed writes the same text; a random one if left out"),
  stop: {
    anyOf: [{ type: "string" }, { type: "array", items: { type: "string" }, maxItems: 4 }],
    description: "The text ends before the first of these",
  },
  stream: flag("Pieces as server-sent events, the last one is [DONE]"),
  stream_options: {
    type: "object",
    properties: { include_usage: { type: "boolean", description: "Counts as the last piece but one" } },
  },
  user: text("Not used"),
};

const COMPLETION_REQUEST: Schema = {
  type: "object",
  properties: {
    model: text("Name of the model; may be left out"),
    prompt: {
      anyOf: [
        { type: "string" },
        TOKENS,
        { type: "array", items: { type: "string" }, minItems: 1, maxItems: 32 },
        { type: "array", items: TOKENS, minItems: 1, maxItems: 32 },
      ],
      description:
        "Texts or tokens to go on with; none writes a document from its start. Before a text stands the token with " +
        "which the tokenizer begins texts, tokens are read as they are",
    },
    n: whole(
      "Texts of each prompt; 32 of all prompts at most. The second has the seed after that of the first",
      { minimum: 1, maximum: 32, default: 1 },
    ),
    max_tokens: whole("At least 1, or 0 with echo", { minimum: 0, maximum: 4096, default: 16 }),
    logprobs: whole("Tell the probability of each token, and so many of the likeliest in its place", {
      minimum: 0,
      maximum: 5,
    }),
    echo: flag("Begin the text with its prompt, whose tokens logprobs tells of too"),
    ...SHARED,
  },
  description: "best_of, suffix, logit_bias and penalties are refused unless they ask for nothing",
};

const FINISH_REASON: Schema = {
  enum: ["stop", "length", null],
  description: "Why the text ends; null in a piece of a stream",
};
const USAGE = object({
  prompt_tokens: whole("With the token that begins a text"),
  completion_tokens: whole("Tokens written"),
  total_tokens: whole("Their sum"),
});

/** The answers of one of the two: what they are called, and a text. */
const answers = (name: string, choice: Record<string, Schema>): Schema =>
  object({
    id: text("Different for each answer"),
    object: { const: name },
    created: whole("Seconds since 1970"),
    model: text("Name of the model"),
    choices: list(
      object({ index: whole("Which of the texts: those of the first prompt come first"), ...choice }),
    ),
    usage: USAGE,
  });

/** An answer of POST /v1/completions. */
export const COMPLETION: Schema = answers("text_completion", {
  text: text("What the model wrote"),
  logprobs: maybe(object({
    tokens: list({ type: "string" }, "What each reads as; of a part of a character token_id: and its id"),
    token_logprobs: list(
      { type: ["number", "null"] },
      "Natural logarithms; null for the first of a prompt",
    ),
    top_logprobs: list({ type: ["object", "null"] }, "The likeliest tokens, and the one that is there"),
    text_offset: list(whole("Where it begins in the text")),
  })),
  finish_reason: FINISH_REASON,
});

// ---- conversations, as OpenAI has them

const CHAT_REQUEST: Schema = {
  type: "object",
  properties: {
    model: text("Name of the model; may be left out"),
    messages: {
      ...list({
        type: "object",
        properties: {
          role: text("system, user, assistant, tool, or whatever else the template knows"),
          content: {
            anyOf: [
              { type: ["string", "null"] },
              list({ type: "object", properties: { type: { const: "text" }, text: { type: "string" } } }),
            ],
            description: "A text, or parts of one. What else a message has is for the template",
          },
        },
        required: ["role"],
      }, "The conversation so far; the assistant is next"),
      minItems: 1,
    },
    tools: list(
      { type: "object" },
      "Functions of which the template tells the model; what it writes of them is text of the answer",
    ),
    n: whole("Answers; each has a seed of its own", { minimum: 1, maximum: 32, default: 1 }),
    max_completion_tokens: whole("Of an answer, which ends before where its context is full", {
      minimum: 1,
      maximum: 4096,
      default: 4096,
    }),
    max_tokens: whole("The same by its earlier name", { minimum: 1, maximum: 4096 }),
    logprobs: flag("Tell the probability of each token"),
    top_logprobs: whole("And of so many of the likeliest in its place", {
      minimum: 0,
      maximum: 20,
      default: 0,
    }),
    ...SHARED,
  },
  required: ["messages"],
  description:
    "tool_choice, response_format, logit_bias and penalties are refused unless they ask for nothing",
};

const TOLD_TOKEN = {
  token: text("What it reads as; of a part of a character token_id: and its id"),
  logprob: number("Natural logarithm of its probability"),
  bytes: {
    type: ["array", "null"],
    items: { type: "integer" },
    description: "UTF-8; null for a part of a character",
  },
};

/** An answer of POST /v1/chat/completions. */
export const CHAT_COMPLETION: Schema = answers("chat.completion", {
  message: object({
    role: { const: "assistant" },
    content: text("What the model wrote"),
    refusal: { type: "null" },
  }),
  logprobs: maybe(object({
    content: list(object({ ...TOLD_TOKEN, top_logprobs: list(object(TOLD_TOKEN), "The likeliest") })),
    refusal: { type: "null" },
  })),
  finish_reason: FINISH_REASON,
});

// ---- parameters and answers

const query = (name: string, schema: Schema, description: string): Schema => ({
  name,
  in: "query",
  schema,
  description,
});
const RUN = query(
  "run",
  { type: "string" },
  "Name of a run; if left out the first that was named, or of those found in directories the one written last",
);

const json = (description: string, schema: Schema): Schema => ({
  description,
  content: { "application/json": { schema } },
});
const other = (description: string, type: string): Schema => ({
  description,
  content: { [type]: { schema: { type: "string" } } },
});

/** A route that takes GET: its answer, its parameters, and what else it may answer. */
const get = (summary: string, answer: Schema, parameters: Schema[] = [], failures: Schema = {}): Schema => ({
  get: { summary, parameters, responses: { 200: answer, ...failures, default: json("A failure", FAILURE) } },
});

/** A route that takes POST: what the model is asked for, and its answer. */
const ask = (summary: string, request: Schema, answer: Schema): Schema => ({
  post: {
    summary,
    requestBody: { required: true, content: { "application/json": { schema: request } } },
    responses: {
      200: json(
        "As OpenAI's; where stream is true, server-sent events, with usage where stream_options asks for it",
        answer,
      ),
      429: json("9 requests are under way; Retry-After says when to try again", FAILURE),
      default: json("A failure", FAILURE),
    },
  },
});

const EVENTS =
  "One event a step (id: the step, data: its line of metrics.jsonl). Besides: state when it changes and first " +
  "of all (data: state, started, error); sample (data: step, text); reset when a resumed run goes on after an earlier step (data: " +
  "after); resync when the client was too slow, and has to read the history again. A comment every 15 s.";

/** The document. */
export const OPENAPI = {
  openapi: "3.1.0",
  info: {
    title: "loam",
    version: "1",
    description:
      "Training runs as their directories show them, and texts from their models. Where the server was " +
      "started with LOAM_TOKEN, requests carry it as Authorization: Bearer or ?token=.",
  },
  components: {
    securitySchemes: {
      bearer: { type: "http", scheme: "bearer" },
      query: { type: "apiKey", in: "query", name: "token" },
    },
  },
  security: [{}, { bearer: [] }, { query: [] }],
  paths: {
    "/stats": get("A run as it stands", json("The last step and what is known of the run", STATS), [RUN]),
    "/stats/history": get("What a run has measured", json("Points of each key", HISTORY), [
      query("key", list({ type: "string", enum: KEYS }), "What; repeat it for several (loss)"),
      query(
        "points",
        { type: "integer", minimum: 2, maximum: 20000, default: 1000 },
        "Points of each key at most, 20000 of all keys; between the first and the last they keep the extremes of equal stretches",
      ),
      query("since", { type: "integer", minimum: 0, default: 0 }, "Only later steps"),
      query("until", { type: "integer", minimum: 0 }, "Only steps up to this one"),
      RUN,
    ]),
    "/runs": get("All runs", json("One object a run", RUNS)),
    "/log": get("The end of a run's log.txt", json("Lines; home directories read ~", LOG), [
      query("lines", { type: "integer", minimum: 1, maximum: 1000, default: 100 }, "How many at most"),
      RUN,
    ]),
    "/samples": get("What the model wrote while it trained", json("Samples", SAMPLES), [RUN]),
    "/events": get("A run live", other(EVENTS, "text/event-stream"), [
      RUN,
      query("since", { type: "integer", minimum: 0 }, "Sends the steps after this one first"),
      {
        name: "Last-Event-ID",
        in: "header",
        schema: { type: "integer" },
        description: "The same, as browsers say it",
      },
    ]),
    "/metrics": get("All runs for Prometheus", other("Text format 0.0.4", "text/plain")),
    "/healthz": get("Whether training goes on", json("No run is stalled or has failed", HEALTH), [
      query(
        "run",
        { type: "string" },
        "Name of a run; if left out all that were named, and those found in directories that are stalled",
      ),
    ], { 503: json("A run is stalled or has failed", HEALTH) }),
    "/openapi.json": get("This document", json("OpenAPI 3.1", { type: "object" })),
    "/": get(
      "The dashboard; the page of /prompt where there is a model and no run",
      other("A page; its files lie beside it", "text/html"),
    ),
    "/v1/models": get("The model of the routes below", json("As OpenAI's", MODELS)),
    "/v1/models/{name}": get("The model of this name", json("As OpenAI's", MODEL), [
      { name: "name", in: "path", required: true, schema: { type: "string" }, description: "Of the model" },
    ]),
    "/v1/completions": ask("A text by the model", COMPLETION_REQUEST, COMPLETION),
    "/v1/chat/completions": ask("What the model answers in a conversation", CHAT_REQUEST, CHAT_COMPLETION),
  },
};
