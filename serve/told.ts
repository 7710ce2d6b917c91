// What a completion says of its tokens, as OpenAI's API does: the probability of each, and of the likeliest in its place.
import type { Tokenizer } from "../data/tokenizer.ts";
import type { Logprobs } from "../model/generate.ts";

/** A token. Of the first one of a prompt nothing is known: null. */
export type ToldToken = {
  token: string;
  logprob: number | null;
  top: Record<string, number> | null; // the likeliest in its place, and itself
  offset: number; // where it begins in the text
};

/** Collects what is told of the tokens of a text. */
export class Told {
  #tokens: ToldToken[] = [];
  #names = new Map<number, string>();

  /** Reads tokens with this tokenizer. */
  constructor(readonly tokenizer: Tokenizer) {}

  /** Adds a token that begins at an offset of the text. name: what it reads as, if not by itself. */
  add(token: number, offset: number, told: Logprobs | undefined, name = this.#nameOf(token)): void {
    const top = told ? this.#topOf(token, told) : null;
    this.#tokens.push({ token: name, logprob: told?.target ?? null, top, offset });
  }

  /** What was not taken yet, of tokens that begin before the end of the text so far. */
  take(end: number): ToldToken[] {
    return this.#tokens.splice(0, this.#tokens.filter(({ offset }) => offset < end).length);
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
