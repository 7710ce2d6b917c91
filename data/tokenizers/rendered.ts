// Encodes rendered conversations: their special tokens are written out in the text, and what the assistant wrote is known by its
// place there. Gives the ids and the mask of transformers' apply_chat_template(), for which the text between special tokens is
// encoded as ever.
import { UserError } from "../../base/errors.ts";
import type { Rendered } from "../chat_template.ts";
import { AddedTokens } from "./added_tokens.ts";
import { normalizeNfc } from "./nfc.ts";
import { grown, TokenBuffer } from "./token_buffer.ts";
import type { Tokenizer } from "./types.ts";

/** A conversation in tokens. */
export type EncodedConversation = {
  /** Its ids. */
  ids: Uint32Array;
  /** For each id 1 where it holds something that the assistant wrote, else 0. */
  mask: Uint8Array;
};

/** Encodes rendered conversations with one tokenizer. */
export class RenderedEncoder {
  readonly #tokenizer: Tokenizer;
  readonly #added: AddedTokens;
  readonly #widths: Uint16Array; // of the ids that came already, less one: asking the tokenizer takes longer than all else
  readonly #ids = new TokenBuffer();
  #mask = new Uint8Array();
  #bytes = new Uint8Array();

  /** Throws UserError for a tokenizer whose special tokens take in the blanks around them, which is not done here. */
  constructor(tokenizer: Tokenizer) {
    const { name, written: { added } } = tokenizer;
    for (const token of added) {
      const flag = ["lstrip", "rstrip", "single_word"].find((flag) =>
        (token as Record<string, unknown>)[flag]
      );
      if (flag === undefined) continue;
      throw new UserError(
        `Cannot encode conversations with "${name}": its token ${token.content} has ${flag}, should not have it`,
      );
    }
    this.#tokenizer = tokenizer;
    this.#widths = new Uint16Array(tokenizer.vocab_size);
    this.#added = new AddedTokens(added.map((token) => ({ ...token, special: false })));
  }

  /** The ids of a conversation and which of them are the assistant's: views that hold until the next call. */
  encode({ text, spans }: Rendered): EncodedConversation {
    const marks = spans.flat(), { composes } = this.#tokenizer.written;
    let n = 0, at = 0;
    const places = [...marks, text.length].map((mark) => { // in bytes
      const part = text.slice(at, at = mark);
      return n = this.#append(composes ? normalizeNfc(part) : part, n);
    });
    this.#ids.length = 0;
    for (let from = 0; from < n;) {
      const found = this.#added.any && this.#added.next(this.#bytes, from, n);
      const { start, end, id } = this.#added, to = found ? start : n;
      if (to > from) this.#encodeText(from, to, places);
      if (found) this.#push(id, start, end, places);
      from = found ? end : n;
    }
    const { ids, length } = this.#ids;
    return { ids: ids.subarray(0, length), mask: this.#mask.subarray(0, length) };
  }

  /** Writes a text as UTF-8 to #bytes from n on; returns where it ends. */
  #append(text: string, n: number): number {
    const most = n + 3 * text.length; // that it may take
    if (most > this.#bytes.length) this.#bytes = grown(this.#bytes.subarray(0, n), 2 * most);
    return n + utf8.encodeInto(text, this.#bytes.subarray(n)).written;
  }

  /** Encodes text in which no token is written out. */
  #encodeText(from: number, to: number, places: number[]): void {
    const ids = this.#ids, first = ids.length;
    this.#tokenizer.encodeUtf8(this.#bytes, from, to, ids);
    this.#reserve();
    const near = spansAt(places, from, to);
    if (near.every((place) => place <= from || place >= to)) {
      this.#mask.fill(near.length > 0 ? 1 : 0, first, ids.length);
      return;
    }
    const end = this.#markFrom(from, first, near, from);
    if (end !== to) this.#markFrom(from + to - end, first, near, from); // the tokenizer begins the text with a blank
  }

  /** Marks the ids from the first on, of which the tokens begin at a byte; returns where the last ends. */
  #markFrom(at: number, first: number, near: number[], from: number): number {
    const mask = this.#mask, { ids, length } = this.#ids;
    for (let i = first, span = 0, width = 0; i < length; i++, at += width) {
      width = this.#widthOf(ids[i]!);
      while (near[span + 1]! <= at) span += 2;
      mask[i] = near[span]! < at + width && near[span + 1]! > from ? 1 : 0; // false behind the last span
    }
    return at;
  }

  #widthOf(id: number): number {
    const known = this.#widths[id]!;
    return known > 0 ? known - 1 : (this.#widths[id] = 1 + this.#tokenizer.written.widthOf(id)) - 1;
  }

  #push(id: number, from: number, to: number, places: number[]): void {
    this.#ids.push(id);
    this.#reserve();
    this.#mask[this.#ids.length - 1] = Number(spansAt(places, from, to).length > 0);
  }

  /** Makes room in the mask for each id. */
  #reserve(): void {
    if (this.#mask.length < this.#ids.length) this.#mask = grown(this.#mask, this.#ids.ids.length);
  }
}

const utf8 = new TextEncoder();

/** The spans that have a byte in common with [from, to): where they begin and end in turn, as places has it of all. */
function spansAt(places: number[], from: number, to: number): number[] {
  const near: number[] = [];
  for (let i = 0; i + 1 < places.length && places[i]! < to; i += 2) {
    if (places[i + 1]! > from) near.push(places[i]!, places[i + 1]!);
  }
  return near;
}
