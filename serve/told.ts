// What a completion says of its tokens, as OpenAI's API does: the probability of each, and of the likeliest in its place.
import type { Tokenizer } from "../data/tokenizer.ts";
import type { Logprobs } from "../model/generate.ts";

/** OpenAI's logprobs object: an entry for each token. null: of the first token of a prompt nothing is known. */
export type ToldTokens = {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[]; // where the token begins in the text
};

/** Collects what is told of the tokens of a text. */
export class Told {
  #tokens = empty();
  #names = new Map<number, string>();

  /** Reads tokens with this tokenizer. */
  constructor(readonly tokenizer: Tokenizer) {}

  /** Adds a token that begins at an offset of the text. name: what it reads as, if not by itself. */
  add(token: number, offset: number, told: Logprobs | undefined, name = this.#nameOf(token)): void {
    const { tokens, token_logprobs, top_logprobs, text_offset } = this.#tokens;
    tokens.push(name);
    token_logprobs.push(told?.target ?? null);
    top_logprobs.push(told ? this.#topOf(token, told) : null);
    text_offset.push(offset);
  }

  /** What was not taken yet, of tokens that begin before the end of the text so far. */
  take(end: number): ToldTokens {
    const all = this.#tokens, n = all.text_offset.filter((offset) => offset < end).length;
    this.#tokens = part(all, n, all.tokens.length);
    return part(all, 0, n);
  }

  /** The likeliest tokens, and the one that is there. Of two that read alike the likelier is told. */
  #topOf(token: number, { target, ids, values }: Logprobs): Record<string, number> {
    const top = new Map<string, number>();
    [...ids, token].forEach((id, i) => {
      const name = this.#nameOf(id);
      if (!top.has(name)) top.set(name, values[i] ?? target);
    });
    return Object.fromEntries(top);
  }

  /** The text of a token; of one that is part of a character, or of none, its id. */
  #nameOf(id: number): string {
    const known = this.#names.get(id);
    if (known !== undefined) return known;
    const text = this.tokenizer.decode([id]),
      name = text === "" || text.includes("\uFFFD") ? `token_id:${id}` : text;
    this.#names.set(id, name);
    return name;
  }
}

function empty(): ToldTokens {
  return { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
}

function part(
  { tokens, token_logprobs, top_logprobs, text_offset }: ToldTokens,
  from: number,
  to: number,
): ToldTokens {
  return {
    tokens: tokens.slice(from, to),
    token_logprobs: token_logprobs.slice(from, to),
    top_logprobs: top_logprobs.slice(from, to),
    text_offset: text_offset.slice(from, to),
  };
}

/** What pieces of a text tell, one after the other. */
export function joined(pieces: ToldTokens[]): ToldTokens {
  return {
    tokens: pieces.flatMap(({ tokens }) => tokens),
    token_logprobs: pieces.flatMap(({ token_logprobs }) => token_logprobs),
    top_logprobs: pieces.flatMap(({ top_logprobs }) => top_logprobs),
    text_offset: pieces.flatMap(({ text_offset }) => text_offset),
  };
}
