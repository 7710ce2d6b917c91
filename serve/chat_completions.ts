// POST /v1/chat/completions: the same for conversations, which the model's chat template turns into prompts.
import type { Context } from "hono";
import { UserError } from "../base/errors.ts";
import { type ChatRequest, MOST_TOKENS, parseChatRequest } from "./completion_request.ts";
import { bodyOf, reply, tooLong, type Wording } from "./completions.ts";
import type { Conversations } from "../model/conversations.ts";
import type { Model } from "./model.ts";
import { Refusal } from "./refusal.ts";
import type { ToldToken } from "./told.ts";

/**
 * Answers a request for the next message of a conversation: at once when it is whole, or piece by piece.
 *
 * @internal since `deno doc --lint` takes Context, a type of the package hono, for a private one
 */
export async function chatCompletions(c: Context, model: Model): Promise<Response> {
  const request = parseChatRequest(await bodyOf(c), model.name), { conversations, block_size } = model;
  if (conversations instanceof UserError) throw new Refusal(501, conversations.message);
  const prompt = promptOf(request, conversations), room = block_size - prompt.length;
  if (room < 1) throw tooLong("messages", prompt.length, block_size - 1);
  const settings = {
    ...request,
    echo: false,
    max_tokens: Math.min(request.max_tokens ?? MOST_TOKENS, room), // an answer ends where the context is full
    stop: [...request.stop, ...conversations.stops],
    ends: conversations.ends,
  };
  return await reply(c, model, settings, [{ asked: prompt, prompt }], wordingOf(request.logprobs ?? 0));
}

/** The tokens that the model reads. What the template refuses is the fault of who asks. */
function promptOf({ messages, tools }: ChatRequest, conversations: Conversations): number[] {
  try {
    return conversations.prompt(messages, tools);
  } catch (error) {
    throw error instanceof UserError ? new Refusal(400, error.message, { param: "messages" }) : error;
  }
}

/** How answers are worded. top: of how many of the likeliest tokens they tell. */
function wordingOf(top: number): Wording {
  return {
    id: "chatcmpl",
    object: "chat.completion",
    chunk: "chat.completion.chunk",
    whole: (index, { text, logprobs }, finish_reason) => ({
      index,
      message: { role: "assistant", content: text, refusal: null },
      logprobs: told(logprobs, top),
      finish_reason,
    }),
    piece: (index, { text, logprobs }, finish_reason) => ({
      index,
      delta: finish_reason === null ? { content: text } : {},
      logprobs: told(logprobs, top),
      finish_reason,
    }),
    begins: (index) => ({
      index,
      delta: { role: "assistant", content: "" },
      logprobs: null,
      finish_reason: null,
    }),
  };
}

/** What is told of tokens, as chats have it. */
function told(tokens: ToldToken[] | null, most: number) {
  if (!tokens) return null;
  const content = tokens.map(({ token, logprob, top }) => ({
    ...entry(token, logprob!),
    top_logprobs: Object.entries(top!).sort(([, a], [, b]) => b - a).slice(0, most)
      .map(([token, logprob]) => entry(token, logprob)),
  }));
  return { content, refusal: null };
}

/** A token that is a part of a character has no text of its own, and so no bytes that could be told. */
function entry(token: string, logprob: number) {
  const bytes = token.startsWith("token_id:") ? null : Array.from(new TextEncoder().encode(token));
  return { token, logprob, bytes };
}
