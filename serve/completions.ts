// POST /v1/completions: lets any client of OpenAI's completions API talk to a model.
import type { Context } from "hono";
import { type CompletionRequest, parseRequest } from "./completion_request.ts";
import type { Model, Order } from "./model.ts";
import { Refusal } from "./refusal.ts";
import { StopStrings } from "./stop.ts";

/** stop: the model ended the text, or a stop string came; length: max_tokens are written. */
type FinishReason = "stop" | "length";
type Usage = { prompt_tokens: number; completion_tokens: number; total_tokens: number };

/** Who is told about a text: its pieces, some maybe empty, then its end or an error. */
type Reader = {
  onText(text: string): void;
  onEnd(reason: FinishReason, usage: Usage): void;
  onError(error: Refusal): void;
};

/** Answers a request for a text: at once when it is whole, or piece by piece. */
export async function completions(c: Context, model: Model): Promise<Response> {
  const request = parseRequest(await bodyOf(c), model.name);
  const prompt = [model.tokenizer.eot, ...model.tokenizer.encode(request.prompt)]; // documents begin with end-of-text
  if (prompt.length > model.block_size) {
    throw new Refusal(
      400,
      `The prompt has ${prompt.length} tokens, the model reads ${model.block_size} at most`,
    );
  }
  return request.stream ? streamed(c, model, request, prompt) : await whole(c, model, request, prompt);
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

/** The answer once the text is whole. A client that goes away ends it. */
async function whole(
  c: Context,
  model: Model,
  request: CompletionRequest,
  prompt: number[],
): Promise<Response> {
  const { promise, resolve, reject } = Promise.withResolvers<Response>();
  let text = "";
  const order = orderOf(model, request, prompt, {
    onText: (piece) => text += piece,
    onEnd: (reason, usage) => resolve(c.json({ ...answer(model, text, reason), usage })),
    onError: reject,
  });
  const leave = () => {
    model.cancel(order);
    reject(new Refusal(400, "The client went away"));
  };
  model.write(order);
  if (c.req.raw.signal.aborted) leave();
  else c.req.raw.signal.addEventListener("abort", leave);
  return await promise.finally(() => c.req.raw.signal.removeEventListener("abort", leave));
}

/** The answer as server-sent events, as OpenAI's: pieces of text, the reason of the end, [DONE]. */
function streamed(c: Context, model: Model, request: CompletionRequest, prompt: number[]): Response {
  const encoder = new TextEncoder(), head = answer(model, "", null);
  let order: Order;
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      const send = (data: unknown) => controller.enqueue(encoder.encode(`data: ${JSON.stringify(data)}\n\n`));
      const close = () => {
        controller.enqueue(encoder.encode("data: [DONE]\n\n"));
        controller.close();
      };
      order = orderOf(model, request, prompt, {
        onText: (text) => {
          if (text) send({ ...head, choices: [choice(text, null)] });
        },
        onEnd: (reason, usage) => {
          send({ ...head, choices: [choice("", reason)] });
          if (request.include_usage) send({ ...head, choices: [], usage });
          close();
        },
        onError: ({ message }) => {
          send({ error: { message } });
          close();
        },
      });
      model.write(order);
    },
    cancel: () => model.cancel(order),
  });
  const headers = { "Content-Type": "text/event-stream", "Cache-Control": "no-store, no-transform" };
  return c.body(body, 200, headers);
}

/** An order whose tokens become text for a reader, up to a stop string. */
function orderOf(model: Model, request: CompletionRequest, prompt: number[], reader: Reader): Order {
  const text = model.tokenizer.stream(), stops = new StopStrings(request.stop);
  const { max_tokens, temperature, top_p, seed } = request;
  let n = 0;
  const end = (reason: FinishReason) =>
    reader.onEnd(reason, {
      prompt_tokens: prompt.length,
      completion_tokens: n,
      total_tokens: prompt.length + n,
    });
  const order: Order = {
    prompt,
    options: { max_new_tokens: max_tokens, temperature, top_p, top_k: 0, seed, stop: model.tokenizer.eot },
    onToken(token) {
      n++;
      reader.onText(stops.write(text.write(token)));
      if (!stops.stopped) return;
      model.cancel(order);
      end("stop");
    },
    onEnd() {
      reader.onText(stops.write(text.end()) + stops.end());
      end(n === max_tokens && !stops.stopped ? "length" : "stop");
    },
    onError: reader.onError,
  };
  return order;
}

/** OpenAI's text_completion object. */
function answer(model: Model, text: string, reason: FinishReason | null) {
  return {
    id: `cmpl-${crypto.randomUUID()}`,
    object: "text_completion",
    created: Math.floor(Date.now() / 1000),
    model: model.name,
    choices: [choice(text, reason)],
  };
}

function choice(text: string, finish_reason: FinishReason | null) {
  return { index: 0, text, logprobs: null, finish_reason };
}
