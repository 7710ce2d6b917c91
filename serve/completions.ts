// POST /v1/completions: lets any client of OpenAI's completions API talk to a model. What POST /v1/chat/completions shares with it
// is here too: how texts are written, whole or piece by piece.
import type { Context } from "hono";
import { UserError } from "../base/errors.ts";
import { type CompletionRequest, misfit, parseRequest, type Prompt } from "./completion_request.ts";
import { MOST_TEXTS } from "../model/generate.ts";
import type { Model, Order } from "./model.ts";
import { Refusal } from "./refusal.ts";
import { StopStrings } from "../model/stop_strings.ts";
import { Told, type ToldToken } from "./told.ts";

/** stop: the model ended the text, or a stop string came; length: max_tokens are written. */
export type FinishReason = "stop" | "length";
type Usage = { prompt_tokens: number; completion_tokens: number; total_tokens: number };

/** Who is told about the texts of a request: their pieces, some maybe empty, their ends, the end of all, or an error. */
type Reader = {
  onText(index: number, piece: Piece): void;
  onEnd(index: number, reason: FinishReason): void;
  onDone(usage: Usage): void;
  onError(error: Refusal): void;
};

/** A piece of a text, and what is told of its tokens where that was asked for. */
export type Piece = { text: string; logprobs: ToldToken[] | null };

/** A text to write: what was asked to go on with, its tokens, and a seed. */
type Text = { asked: Prompt; prompt: number[]; seed: number };

/** How texts are written, beside their prompts. ends: the tokens that end them. */
export type Settings = Omit<CompletionRequest, "prompts"> & { ends: readonly number[] };

/** How one of the two words its answers: what they are called, and a text or a piece of it. begins: the first piece of a stream. */
export type Wording = {
  id: string;
  object: string;
  chunk: string;
  whole(index: number, piece: Piece, reason: FinishReason | null): unknown;
  piece(index: number, piece: Piece, reason: FinishReason | null): unknown;
  begins?(index: number): unknown;
};

const WORDING: Wording = {
  id: "cmpl",
  object: "text_completion",
  chunk: "text_completion",
  whole: choice,
  piece: choice,
};

/**
 * Answers a request for texts: at once when they are whole, or piece by piece.
 *
 * @internal since `deno doc --lint` takes Context, a type of the package hono, for a private one
 */
export async function completions(c: Context, model: Model): Promise<Response> {
  const { prompts, ...request } = parseRequest(await bodyOf(c), model.name);
  const texts = prompts.map((asked) => ({ asked, prompt: tokensOf(asked, model) }));
  return await reply(c, model, { ...request, ends: model.ends }, texts, WORDING);
}

/**
 * Answers with n texts of each prompt: each is what it would be alone, with a seed of its own.
 *
 * @internal as completions()
 */
export async function reply(
  c: Context,
  model: Model,
  settings: Settings,
  prompts: Omit<Text, "seed">[],
  wording: Wording,
): Promise<Response> {
  const { n, seed, stream } = settings;
  const texts = prompts.flatMap((prompt) =>
    Array.from({ length: n }, (_, i) => ({ ...prompt, seed: seed + i }))
  );
  return await (stream ? streamed : atOnce)(c, model, settings, texts, wording);
}

/** The tokens that the model reads: of a text with what the tokenizer begins texts with; tokens are read as they are. */
function tokensOf(prompt: Prompt, model: Model): number[] {
  const { block_size, vocab_size } = model;
  const tokens = typeof prompt === "string" ? encoded(prompt, model) : prompt;
  if (tokens.length > block_size) throw tooLong("prompt", tokens.length, block_size);
  const unknown = typeof prompt === "string" ? undefined : prompt.find((id) => id >= vocab_size);
  if (unknown === undefined) return tokens;
  throw misfit("prompt", `holds the token ${unknown}, the model knows those below ${vocab_size}`);
}

/** The answer to a prompt of more tokens than the model reads. */
export function tooLong(param: "prompt" | "messages", tokens: number, most: number): Refusal {
  const [what, have] = param === "prompt" ? ["prompt", "has"] : ["messages", "have"];
  return new Refusal(400, `The ${what} ${have} ${tokens} tokens, the model reads ${most} at most`, {
    param,
    code: "context_length_exceeded",
  });
}

/** The tokens of a text; a tokenizer of characters may lack one. */
function encoded(prompt: string, { tokenizer }: Model): number[] {
  try {
    return tokenizer.prompt(prompt);
  } catch (error) {
    throw error instanceof UserError ? new Refusal(400, error.message, { param: "prompt" }) : error;
  }
}

/**
 * The JSON that a request holds.
 *
 * @internal as completions()
 */
export async function bodyOf(c: Context): Promise<unknown> {
  if (!/^application\/json\b/i.test(c.req.header("Content-Type") ?? "")) { // which pages from elsewhere cannot send
    throw new Refusal(415, "The body must be JSON, with Content-Type: application/json");
  }
  try {
    return await c.req.json();
  } catch {
    throw new Refusal(400, "The body is not JSON");
  }
}

/** The answer once the texts are whole. A client that goes away ends them. */
async function atOnce(
  c: Context,
  model: Model,
  settings: Settings,
  texts: Text[],
  wording: Wording,
): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>();
  const pieces = texts.map((): Piece[] => []), choices: unknown[] = [];
  const stop = write(model, settings, texts, {
    onText: (index, piece) => pieces[index]!.push(piece),
    onEnd: (index, reason) => choices[index] = wording.whole(index, whole(pieces[index]!), reason),
    onDone: (usage) => resolve(c.json({ ...answer(model, wording, wording.object), choices, usage })),
    onError: reject,
  });
  const leave = () => {
    stop();
    reject(new Refusal(400, "The client went away"));
  };
  if (c.req.raw.signal.aborted) leave();
  else c.req.raw.signal.addEventListener("abort", leave);
  return await promise.finally(() => c.req.raw.signal.removeEventListener("abort", leave));
}

/** The answer as server-sent events, as OpenAI's: pieces of text, the reasons of their ends, [DONE]. */
function streamed(
  c: Context,
  model: Model,
  settings: Settings,
  texts: Text[],
  wording: Wording,
): Response {
  const encoder = new TextEncoder(), head = answer(model, wording, wording.chunk), { begins } = wording;
  let stop: () => void;
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      const send = (data: unknown) => controller.enqueue(encoder.encode(`data: ${JSON.stringify(data)}\n\n`));
      const close = () => {
        controller.enqueue(encoder.encode("data: [DONE]\n\n"));
        controller.close();
      };
      const sendChoice = (choice: unknown) => send({ ...head, choices: [choice] });
      stop = write(model, settings, texts, {
        onText: (index, piece) => {
          if (piece.text || piece.logprobs?.length) sendChoice(wording.piece(index, piece, null));
        },
        onEnd: (index, reason) => sendChoice(wording.piece(index, NOTHING, reason)),
        onDone: (usage) => {
          if (settings.include_usage) send({ ...head, choices: [], usage });
          close();
        },
        onError: (refusal) => {
          send(refusal.body());
          close();
        },
      });
      if (begins) texts.forEach((_, index) => sendChoice(begins(index)));
    },
    cancel: () => stop(),
  });
  const headers = { "Content-Type": "text/event-stream", "Cache-Control": "no-store, no-transform" };
  return c.body(body, 200, headers);
}

/**
 * Has the texts of a request written, up to MOST_TEXTS at a time, the next where one ends, so that others come between them. Returns
 * what ends that.
 */
function write(model: Model, settings: Settings, texts: Text[], reader: Reader): () => void {
  const { n } = settings, prompts = texts.filter((_, index) => index % n === 0);
  const prompt_tokens = prompts.reduce((sum, { prompt }) => sum + prompt.length, 0);
  const orders = new Set<Order>();
  let begun = 0, ended = 0, completion_tokens = 0;
  const stop = () => orders.forEach((order) => model.cancel(order));
  const begin = () => {
    const index = begun++, text = texts[index];
    if (!text) return;
    const order = orderOf(model, settings, text, {
      onText: (piece) => reader.onText(index, piece),
      onEnd: (reason, tokens) => {
        orders.delete(order);
        completion_tokens += tokens;
        reader.onEnd(index, reason);
        if (++ended < texts.length) return begin();
        reader.onDone({ prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens });
      },
      onError: (refusal) => {
        orders.delete(order);
        stop();
        orders.clear();
        reader.onError(refusal);
      },
    });
    model.write(order, index > 0);
    orders.add(order);
  };
  while (begun < Math.min(MOST_TEXTS, texts.length)) begin();
  return stop;
}

/** An order whose tokens become text up to a stop string. */
function orderOf(
  model: Model,
  settings: Settings,
  { asked, prompt, seed }: Text,
  reader: {
    onText(piece: Piece): void;
    onEnd(reason: FinishReason, tokens: number): void;
    onError(error: Refusal): void;
  },
): Order {
  const { tokenizer } = model, { max_tokens, temperature, top_p, logprobs, echo, ends } = settings;
  const text = tokenizer.stream(), stops = new StopStrings(settings.stop), told = new Told(tokenizer);
  let tokens = 0, length = 0, given = 0; // written tokens; characters of all tokens, and of those that were given away
  const give = (piece: string, isEnd = false) => {
    given += piece.length;
    const end = isEnd && !stops.stopped ? Infinity : given;
    reader.onText({ text: piece, logprobs: logprobs === undefined ? null : told.take(end) });
  };
  const order: Order = {
    prompt,
    options: {
      ...{ max_new_tokens: max_tokens, temperature, top_p, top_k: 0, seed, stop: ends, echo },
      ...logprobs !== undefined && { logprobs },
    },
    onEcho(of) {
      const written = tokenizer.decode(prompt), shown = typeof asked === "string" ? asked : written;
      const stream = tokenizer.stream();
      prompt.forEach((token, i) => {
        const isAdded = i === 0 && shown !== written; // what the tokenizer begins texts with
        told.add(token, length, of[i - 1], isAdded ? "" : undefined);
        if (!isAdded) length += stream.write(token).length;
      });
      length = shown.length;
      give(shown);
    },
    onToken(token, of) {
      tokens++;
      if (of) told.add(token, length, of);
      const piece = text.write(token);
      length += piece.length;
      give(stops.write(piece));
      if (!stops.stopped) return;
      model.cancel(order);
      reader.onEnd("stop", tokens);
    },
    onEnd() {
      give(stops.write(text.end()) + stops.end(), true);
      reader.onEnd(tokens === max_tokens && !stops.stopped ? "length" : "stop", tokens);
    },
    onError: reader.onError,
  };
  return order;
}

/** The head of an answer, or of each piece of one. */
function answer(model: Model, { id }: Wording, object: string) {
  return {
    id: `${id}-${crypto.randomUUID()}`,
    object,
    created: Math.floor(Date.now() / 1000),
    model: model.name,
  };
}

const NOTHING: Piece = { text: "", logprobs: null };

function whole(pieces: Piece[]): Piece {
  const told = pieces.flatMap(({ logprobs }) => logprobs === null ? [] : [logprobs]);
  return {
    text: pieces.map(({ text }) => text).join(""),
    logprobs: told.length > 0 ? told.flat() : null,
  };
}

function choice(index: number, { text, logprobs }: Piece, finish_reason: FinishReason | null) {
  return { index, text, logprobs: logprobs && inColumns(logprobs), finish_reason };
}

/** OpenAI's logprobs object. */
function inColumns(tokens: ToldToken[]) {
  return {
    tokens: tokens.map(({ token }) => token),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map(({ top }) => top),
    text_offset: tokens.map(({ offset }) => offset),
  };
}
