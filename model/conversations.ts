// How a model talks: the template of its conversations, and what ends an answer.
import { UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { ChatTemplate, DEFAULT_TEMPLATE, type Message } from "../data/chat_template.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { RenderedEncoder } from "../data/tokenizers/rendered.ts";
import { endsOf } from "./checkpoint.ts";

/** What to say of a model whose template is not its own. */
export const NO_TEMPLATE =
  "the model has no chat template, so that conversations are in ChatML, which it may not know";

/** The conversations of a model. */
export type Conversations = {
  /** The tokens of a conversation in which the assistant is next. Throws UserError where the template cannot say it. */
  prompt(messages: Message[], tools?: unknown[]): number[];
  /** Tokens of which each ends an answer. */
  ends: readonly number[];
  /** Texts that do, where the template ends an answer with what is no token. */
  stops: readonly string[];
  /** Whether the template is the model's own, and not ChatML for want of one. */
  isOwn: boolean;
};

/** The conversations of the model in a directory. Throws UserError where its template or its tokens are not of the usual kind. */
export function openConversations(
  directory: string,
  tokenizer: Tokenizer,
  template = ChatTemplate.read(directory),
): Conversations {
  const encoder = new RenderedEncoder(tokenizer);
  const end = endOfAnswer(template), tokens = tokensAtStart(end, tokenizer);
  return {
    prompt(messages, tools) {
      const text = template.render(messages, { add_generation_prompt: true, ...tools && { tools } });
      return Array.from(encoder.encode({ text, spans: [] }).ids);
    },
    ends: [...new Set([...endsOf(directory, tokenizer), ...tokens])],
    stops: tokens.length > 0 || end === "" ? [] : [end],
    isOwn: template.source !== DEFAULT_TEMPLATE || isFile(`${directory}/chat_template.jinja`), // it was trained on that
  };
}

/**
 * The tokens that end a text or an answer of the model in a directory, which may have a template that does not work. source: of
 * another template in its place.
 */
export function allEnds(directory: string, tokenizer: Tokenizer, source?: string): readonly number[] {
  try {
    return openConversations(directory, tokenizer, ChatTemplate.read(directory, source)).ends;
  } catch (error) {
    if (error instanceof UserError) return endsOf(directory, tokenizer);
    throw error;
  }
}

/** What a template puts behind an answer. */
function endOfAnswer(template: ChatTemplate): string {
  const answer = "the answer",
    turns = [{ role: "user", content: "a question" }, { role: "assistant", content: answer }];
  return template.render(turns).split(answer).at(-1)!.trim();
}

/** The tokens, written out, with which a text begins. */
function tokensAtStart(text: string, { written }: Tokenizer): number[] {
  return written.added.filter(({ content }) => text.startsWith(content)).map(({ id }) => id);
}
