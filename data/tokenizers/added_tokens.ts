// Tokens that are looked for in the text itself, before it is cut into pieces: "added_tokens" of tokenizer.json.

/** A token that is looked for in text. */
export type AddedToken = {
  /** Its number in the vocabulary. */
  id: number;
  /** How it is written in text. */
  content: string;
  /** A control token. Its text in a document stays text. */
  special: boolean;
};

/** Special tokens by how they are written, as added tokens. */
export function specialTokens(ids: Record<string, number>): AddedToken[] {
  return Object.entries(ids).map(([content, id]) => ({ id, content, special: true }));
}

/**
 * Added tokens with the ids that tokenizers gives them, whatever the file says: that of the token in the vocabulary, or else
 * the next one behind the vocabulary and the added tokens before it.
 */
export function withIds<T extends AddedToken>(
  added: T[],
  vocabularySize: number,
  idOf: (token: string) => number | undefined,
): T[] {
  const ids = new Map<string, number>();
  let next = vocabularySize;
  return added.map((token) => {
    const id = ids.get(token.content) ?? idOf(token.content) ?? next;
    ids.set(token.content, id);
    next = Math.max(next, id + 1);
    return { ...token, id };
  });
}

/** Finds added tokens in UTF-8 text: the leftmost, of those the longest. */
export class AddedTokens {
  /** After next(): the first byte of the token. */
  start = 0;
  /** After next(): behind its last byte. */
  end = 0;
  /** After next(): its id. */
  id = 0;

  // By first byte, the longest first. Special tokens are among them, since their text hides others that overlap it.
  readonly #byFirst: ({ bytes: Uint8Array; id: number; special: boolean }[] | undefined)[] = [];
  readonly #begins = new Uint8Array(256); // 1 for bytes with which a token begins
  #begin = -1; // the one with which all begin, if there is one

  /** tokens: special ones are not found, but hide others that overlap them. */
  constructor(tokens: AddedToken[]) {
    if (tokens.every(({ special }) => special)) return; // nothing to find
    const utf8 = new TextEncoder();
    for (const { id, content, special } of tokens) {
      const bytes = utf8.encode(content);
      if (bytes.length > 0) (this.#byFirst[bytes[0]!] ??= []).push({ bytes, id, special });
    }
    for (const list of this.#byFirst) list?.sort((a, b) => b.bytes.length - a.bytes.length);
    this.#byFirst.forEach((_, byte) => this.#begins[byte] = 1);
    const first = this.#begins.indexOf(1);
    if (first === this.#begins.lastIndexOf(1)) this.#begin = first;
  }

  /** Whether there are any to be found. */
  get any(): boolean {
    return this.#byFirst.length > 0;
  }

  /** Finds the first token in bytes[from, to) and sets start, end and id; false if there is none. */
  next(bytes: Uint8Array, from: number, to: number): boolean {
    for (let i = from; i < to;) {
      if (this.#begin >= 0) {
        const next = bytes.subarray(i, to).indexOf(this.#begin); // which is faster than to look at each byte here
        if (next < 0) return false;
        i += next;
      }
      const token = this.#begins[bytes[i]!] === 0 ? undefined : this.#at(bytes, i, to);
      if (token === undefined) {
        i++;
        continue;
      }
      const end = i + token.bytes.length;
      if (!token.special) {
        this.start = i;
        this.end = end;
        this.id = token.id;
        return true;
      }
      i = end;
    }
    return false;
  }

  #at(
    bytes: Uint8Array,
    i: number,
    to: number,
  ): { bytes: Uint8Array; id: number; special: boolean } | undefined {
    return this.#byFirst[bytes[i]!]!.find((token) => standsAt(token.bytes, bytes, i, to));
  }
}

function standsAt(token: Uint8Array, bytes: Uint8Array, i: number, to: number): boolean {
  if (i + token.length > to) return false;
  for (let k = 1; k < token.length; k++) if (bytes[i + k] !== token[k]) return false;
  return true;
}
