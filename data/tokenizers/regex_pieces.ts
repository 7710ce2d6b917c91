// Cutting text into pieces by regular expressions, for patterns without a scanner. Slower, since it needs a string.
import type { Bpe } from "./bpe.ts";

/** How one expression cuts: its matches and what is between them are pieces of their own. */
export type Cut = {
  /** With the flag u, and without g and y. */
  regex: RegExp;
  /** The pieces that stay; the others are dropped from the text. */
  keep: "all" | "matches" | "gaps";
};

/** Cuts text by the first expression, its pieces by the second, and so on, and encodes the pieces of the last. */
export class RegexPieces {
  readonly #cutters: Cutter[];
  readonly #bpe: Bpe;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  // The text that is being encoded, how far it is, and where the ids go.
  #bytes = new Uint8Array(0);
  #at = 0;
  #ascii = false;
  #ids = new Uint32Array(0);
  #n = 0;

  /** Takes one expression at least. */
  constructor(cuts: Cut[], bpe: Bpe) {
    this.#cutters = cuts.map((cut) => new Cutter(cut));
    this.#bpe = bpe;
  }

  /** Writes the ids of bytes[from, to) to ids at n, where there is room for to - from, and returns the new n. */
  encode(bytes: Uint8Array, from: number, to: number, ids: Uint32Array, n: number): number {
    const text = this.#utf8.decode(bytes.subarray(from, to));
    this.#bytes = bytes as Uint8Array<ArrayBuffer>;
    this.#at = from;
    this.#ascii = text.length === to - from;
    this.#ids = ids as Uint32Array<ArrayBuffer>;
    this.#n = n;
    this.#cut(0, text);
    return this.#n;
  }

  #cut(depth: number, text: string): void {
    const cutter = this.#cutters[depth]!, isLast = depth === this.#cutters.length - 1;
    for (let from = 0; from < text.length;) {
      const end = cutter.end(text, from);
      if (!cutter.keeps) this.#at += this.#utf8Length(text, from, end);
      else if (isLast) this.#encodePiece(this.#utf8Length(text, from, end));
      else this.#cut(depth + 1, text.slice(from, end));
      from = end;
    }
  }

  #encodePiece(length: number): void {
    const end = this.#at + length;
    this.#n = this.#bpe.encode(this.#bytes, this.#at, end, this.#ids, this.#n);
    this.#at = end;
  }

  /** Bytes of text[from, to) in UTF-8. */
  #utf8Length(text: string, from: number, to: number): number {
    let length = to - from;
    if (this.#ascii) return length;
    for (let i = from; i < to; i++) {
      const unit = text.charCodeAt(i);
      if (unit >= 0x80) length += unit < 0x800 || (unit & 0xf800) === 0xd800 ? 1 : 2; // each half of a pair counts 2
    }
    return length;
  }
}

/** Finds the pieces into which one expression cuts a text. */
class Cutter {
  /** After end(): whether the piece stays. */
  keeps = true;
  readonly #here: RegExp; // matches at lastIndex only
  readonly #further: RegExp; // finds the next match
  readonly #keepsMatches: boolean;
  readonly #keepsGaps: boolean;

  constructor({ regex, keep }: Cut) {
    this.#here = new RegExp(regex.source, "uy");
    this.#further = new RegExp(regex.source, "ug");
    this.#keepsMatches = keep !== "gaps";
    this.#keepsGaps = keep !== "matches";
  }

  /** Where the piece ends that begins at text[from]. */
  end(text: string, from: number): number {
    this.#here.lastIndex = from;
    if (this.#here.test(text)) {
      if (this.#here.lastIndex > from) {
        this.keeps = this.#keepsMatches;
        return this.#here.lastIndex;
      }
      this.#further.lastIndex = from + (text.codePointAt(from)! > 0xffff ? 2 : 1); // an empty match cuts, and that is all
    } else this.#further.lastIndex = from;
    this.keeps = this.#keepsGaps;
    return this.#further.exec(text)?.index ?? text.length;
  }
}
