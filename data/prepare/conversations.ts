// From a line with a conversation to its tokens and which of them are trained on, as an encoder does it.
import { Buffer } from "node:buffer";
import { dirname } from "node:path";
import { UserError } from "../../base/errors.ts";
import { isFile, lookedIn } from "../../base/files.ts";
import { ChatTemplate, DEFAULT_TEMPLATE, type Rendered } from "../chat_template.ts";
import { endOfLine, parseConversation } from "../read/conversations.ts";
import { type Tokenizer, tokenizerFile, VOCABULARIES } from "../tokenizer.ts";
import { type EncodedConversation, RenderedEncoder } from "../tokenizers/rendered.ts";

/** What decides how conversations are encoded: the flags of the same names. */
export type ChatOptions = {
  /** Where the tokenizer is from, whose chat template is used. */
  tokenizer: string;
  /** File of another chat template; "" for the tokenizer's. */
  chat_template: string;
  /** Field with the messages. */
  column: string;
  /** Tokens that a conversation may have, less one that is only predicted; null for any number. */
  block_size: number | null;
  /** Refuse longer ones. */
  no_cut: boolean;
  /** What the template takes for today, as in 2026-11-30. */
  date: string;
  /** Leave out and count what cannot be read. */
  skip_bad: boolean;
};

/** The chat template of what a tokenizer's name stands for. Throws UserError if a file cannot be read or is none. */
export function openTemplate(
  { tokenizer, chat_template }: Pick<ChatOptions, "tokenizer" | "chat_template">,
): ChatTemplate {
  const isGiven = chat_template !== "";
  if (isGiven && !isFile(chat_template)) {
    throw new UserError(`Cannot read "${chat_template}": there is no such file${lookedIn(chat_template)}`);
  }
  const given = isGiven ? [Deno.readTextFileSync(chat_template), `"${chat_template}"`] as const : [] as const;
  if (!Object.hasOwn(VOCABULARIES, tokenizer) && !tokenizer.endsWith(".pkl")) {
    return ChatTemplate.read(dirname(tokenizerFile(tokenizer)), ...given);
  }
  const [source = DEFAULT_TEMPLATE, name] = given;
  return new ChatTemplate(source, { bos_token: "<|endoftext|>", eos_token: "<|endoftext|>" }, name);
}

/** A conversation in tokens, and the bytes of its text. */
export type Encoded = EncodedConversation & { bytes: number };

/** Encodes conversations. */
export class ConversationEncoder {
  #counts = { cut: 0, too_long: 0 };
  readonly #template: ChatTemplate;
  readonly #options: ChatOptions;
  readonly #encoder: RenderedEncoder;

  /** Throws UserError for a template or a tokenizer that cannot be used. */
  constructor(tokenizer: Tokenizer, options: ChatOptions) {
    this.#template = openTemplate(options);
    this.#options = options;
    this.#encoder = new RenderedEncoder(tokenizer);
  }

  /**
   * The conversation of the document text[from, to): a line and its place. The arrays hold until the next call. Undefined for one
   * that is left out because it is too long. Throws UserError that names the place for one that is none.
   */
  encode(text: Uint8Array, from: number, to: number): Encoded | undefined {
    const end = endOfLine(text, from), place = utf8.decode(text.subarray(end + 1, to));
    const { messages, tools } = parseConversation(
      utf8.decode(text.subarray(from, end)),
      this.#options.column,
      place,
    );
    const rendered = named(place, () => {
      const now = new Date(`${this.#options.date}T00:00`);
      return this.#template.renderWithSpans(messages, { now, ...tools && { tools } });
    });
    if (!rendered.text.isWellFormed()) {
      throw new UserError(
        `Cannot read ${place}: it has half of a character (a surrogate alone); write the whole one`,
      );
    }
    if (rendered.spans.length === 0) {
      throw new UserError(`Cannot read ${place}: its template gives nothing of an assistant to train on`);
    }
    const { ids, mask } = this.#encoder.encode(rendered);
    const whole = { ids, mask, bytes: Buffer.byteLength(rendered.text) },
      most = (this.#options.block_size ?? Infinity) + 1;
    return ids.length <= most ? whole : this.#cut(whole, rendered, most, place);
  }

  /**
   * How many conversations since the last call lost their end, because they were too long, and how many were left out, since
   * their first answer is too long already.
   */
  takeCounts(): { cut: number; too_long: number } {
    const counts = this.#counts;
    this.#counts = { cut: 0, too_long: 0 };
    return counts;
  }

  /** What of a conversation fits, up to the end of an answer. */
  #cut({ ids, mask }: Encoded, { text, spans }: Rendered, most: number, place: string): Encoded | undefined {
    if (this.#options.no_cut) {
      throw new UserError(
        `Cannot read ${place}: it has ${ids.length} tokens, ${most} fit into a window of --block_size=${
          most - 1
        }; ` +
          "use a larger one, or leave --no_cut out",
      );
    }
    let end = 0, answers = 0;
    for (let i = 1; i <= most; i++) {
      if (mask[i - 1] === 0 || mask[i] === 1) continue;
      end = i;
      answers++;
    }
    if (answers === 0) return void this.#counts.too_long++;
    this.#counts.cut++;
    const bytes = Buffer.byteLength(text.slice(0, spans[answers - 1]![1]));
    return { ids: ids.subarray(0, end), mask: mask.subarray(0, end), bytes };
  }
}

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** Runs what may refuse a conversation, and says of which place it was. */
function named<T>(place: string, render: () => T): T {
  try {
    return render();
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    throw new UserError(
      `Cannot read ${place}: ${error.message.replace("Cannot render a conversation: ", "")}`,
    );
  }
}
