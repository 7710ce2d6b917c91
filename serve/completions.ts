// POST /v1/completions: lets any client of OpenAI's completions API talk to a model.
import type { Context } from "hono";
import { UserError } from "../base/errors.ts";
import { type CompletionRequest, misfit, parseRequest, type Prompt } from "./completion_request.ts";
import { MOST_TEXTS } from "../model/generate.ts";
import type { Model, Order } from "./model.ts";
import { Refusal } from "./refusal.ts";
import { StopStrings } from "../model/stop_strings.ts";
import { joined, Told, type ToldTokens } from "./told.ts";

/** stop: the model ended the text, or a stop string came; length: max_tokens are written. */
type FinishReason = "stop" | "length";
type Usage = { prompt_tokens: number; completion_tokens: number; total_tokens: number };

/** Who is told about the texts of a request: their pieces, some maybe empty, their ends, the end of all, or an error. */
type Reader = {
  onText(index: number, piece: Piece): void;
  onEnd(index: number, reason: FinishReason): void;
  onDone(usage: Usage): void;
  onError(error: Refusal): void;
};

/** A piece of a text, and what is told of its tokens where that was asked for. */
type Piece = { text: string; logprobs: ToldTokens | null };

/** A text to write: what was asked to go on with, its tokens, and a seed. */
type Text = { asked: Prompt; prompt: number[]; seed: number };

/**
 * Answers a request for texts: at once when they are whole, or piece by piece.
 *
 * @internal since `deno doc --lint` takes Context, a type of the package hono, for a private one
 */
export async function completions(c: Context, model: Model): Promise<Response> {
  const request = parseRequest(await bodyOf(c), model.name), { n, seed } = request;
  // Each is what it would be alone; of the n texts of a prompt each has a seed of its own.
  const texts = request.prompts.flatMap((asked) => {
    const prompt = tokensOf(asked, model);
    return Array.from({ length: n }, (_, i) => ({ asked, prompt, seed: seed + i }));
  });
  return request.stream ? streamed(c, model, request, texts) : await atOnce(c, model, request, texts);
}

/** The tokens that the model reads: of a text with what the tokenizer begins texts with; tokens are read as they are. */
function tokensOf(prompt: Prompt, model: Model): number[] {
  const { block_size, vocab_size } = model;
  const tokens = typeof prompt === "string" ? encoded(prompt, model) : prompt;
  if (tokens.length > block_size) {
    throw new Refusal(400, `The prompt has ${tokens.length} tokens, the model reads ${block_size} at most`, {
      param: "prompt",
      code: "context_length_exceeded",
    });
  }
  const unknown = typeof prompt === "string" ? undefined : prompt.find((id) => id >= vocab_size);
  if (unknown === undefined) return tokens;
  throw misfit("prompt", `holds the token ${unknown}, the model knows those below ${vocab_size}`);
}

/** The tokens of a text; a tokenizer of characters may lack one. */
function encoded(prompt: string, { tokenizer }: Model): number[] {
  try {
    return tokenizer.prompt(prompt);
  } catch (error) {
    throw error instanceof UserError ? new Refusal(400, error.message, { param: "prompt" }) : error;
  }
}

async function bodyOf(c: Context): Promise<unknown> {
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
  request: CompletionRequest,
  texts: Text[],
): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>();
  const pieces = texts.map((): Piece[] => []), choices: ReturnType<typeof choice>[] = [];
  const stop = write(model, request, texts, {
    onText: (index, piece) => pieces[index]!.push(piece),
    onEnd: (index, reason) => choices[index] = choice(index, whole(pieces[index]!), reason),
    onDone: (usage) => resolve(c.json({ ...answer(model, choices), usage })),
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
function streamed(c: Context, model: Model, request: CompletionRequest, texts: Text[]): Response {
  const encoder = new TextEncoder(), head = answer(model, []);
  let stop: () => void;
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      const send = (data: unknown) => controller.enqueue(encoder.encode(`data: ${JSON.stringify(data)}\n\n`));
      const close = () => {
        controller.enqueue(encoder.encode("data: [DONE]\n\n"));
        controller.close();
      };
      stop = write(model, request, texts, {
        onText: (index, piece) => {
          if (piece.text || piece.logprobs?.tokens.length) {
            send({ ...head, choices: [choice(index, piece, null)] });
          }
        },
        onEnd: (index, reason) => send({ ...head, choices: [choice(index, NOTHING, reason)] }),
        onDone: (usage) => {
          if (request.include_usage) send({ ...head, usage });
          close();
        },
        onError: (refusal) => {
          send(refusal.body());
          close();
        },
      });
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
function write(model: Model, request: CompletionRequest, texts: Text[], reader: Reader): () => void {
  const { n } = request, prompts = texts.filter((_, index) => index % n === 0);
  const prompt_tokens = prompts.reduce((sum, { prompt }) => sum + prompt.length, 0);
  const orders = new Set<Order>();
  let begun = 0, ended = 0, completion_tokens = 0;
  const stop = () => orders.forEach((order) => model.cancel(order));
  const begin = () => {
    const index = begun++, text = texts[index];
    if (!text) return;
    const order = orderOf(model, request, text, {
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
  request: CompletionRequest,
  { asked, prompt, seed }: Text,
  reader: {
    onText(piece: Piece): void;
    onEnd(reason: FinishReason, tokens: number): void;
    onError(error: Refusal): void;
  },
): Order {
  const { tokenizer } = model, { max_tokens, temperature, top_p, logprobs, echo } = request;
  const text = tokenizer.stream(), stops = new StopStrings(request.stop), told = new Told(tokenizer);
  let tokens = 0, length = 0, given = 0; // written tokens; characters of all tokens, and of those that were given away
  const give = (piece: string, isEnd = false) => {
    given += piece.length;
    const end = isEnd && !stops.stopped ? Infinity : given;
    reader.onText({ text: piece, logprobs: logprobs === undefined ? null : told.take(end) });
  };
  const order: Order = {
    prompt,
    options: {
      ...{ max_new_tokens: max_tokens, temperature, top_p, top_k: 0, seed, stop: model.ends, echo },
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

/** OpenAI's text_completion object. */
function answer(model: Model, choices: ReturnType<typeof choice>[]) {
  return {
    id: `cmpl-${crypto.randomUUID()}`,
    object: "text_completion",
    created: Math.floor(Date.now() / 1000),
    model: model.name,
    choices,
  };
}

const NOTHING: Piece = { text: "", logprobs: null };

function whole(pieces: Piece[]): Piece {
  const told = pieces.flatMap(({ logprobs }) => logprobs ?? []);
  return {
    text: pieces.map(({ text }) => text).join(""),
    logprobs: told.length > 0 ? joined(told) : null,
  };
}

function choice(index: number, { text, logprobs }: Piece, finish_reason: FinishReason | null) {
  return { index, text, logprobs, finish_reason };
}
