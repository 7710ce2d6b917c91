// What the tokenizers have in common whose tokens are byte strings: encoding piece by piece, and decoding.
import type { AddedToken } from "./added_tokens.ts";
import type { Bpe } from "./bpe.ts";
import { beginning } from "./post_processor.ts";
import type { Scanner } from "./scanners.ts";
import { TokenBuffer } from "./token_buffer.ts";
import type { TextStream, Tokenizer } from "./types.ts";

/** Writes the ids of bytes[from, to) to ids at n, where there is room for to - from, and returns the new n. */
export type EncodeSegment = (
  bytes: Uint8Array,
  from: number,
  to: number,
  ids: Uint32Array,
  n: number,
) => number;

/** What makes a tokenizer whose tokens are byte strings. */
export type ByteLevelOptions = Pick<Tokenizer, "name" | "vocab_size" | "eot" | "encodeUtf8" | "files"> & {
  /** The tokens that are found where they are written out. */
  added: readonly AddedToken[];
  /** Whether text is brought to Unicode's form NFC first. */
  composes?: boolean;
  /** The id that the tokenizer begins a text with by itself, undefined if there is none. */
  start: number | undefined;
  /** The bytes of an id below vocab_size: none for one that stands for nothing, the text of a special token. */
  bytesOf(id: number): Uint8Array;
};

/** A tokenizer whose tokens are byte strings. */
export function byteLevelTokenizer(
  { bytesOf, start, added, composes = false, ...options }: ByteLevelOptions,
): Tokenizer {
  const { vocab_size, eot } = options, nothing = new Uint8Array(0);
  const encode = (text: string) => encodeText(text, options.encodeUtf8);

  function checkedBytesOf(id: number): Uint8Array {
    requireId(id);
    return id < vocab_size ? bytesOf(id) : nothing;
  }

  function stream(): TextStream {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true }); // keeps the bytes of a character that is not complete
    return {
      write: (id) => utf8.decode(checkedBytesOf(id), { stream: true }),
      end: () => utf8.decode(),
    };
  }

  return {
    ...options,
    ...beginning(start, { eot, encode }),
    written: { added, composes, widthOf: (id) => checkedBytesOf(id).length },
    encode,
    stream,
    decode(ids) {
      const text = stream();
      let result = "";
      for (const id of ids) result += text.write(id);
      return result + text.end();
    },
  };
}

/** Throws RangeError for a number that is the id of no token in any vocabulary. */
export function requireId(id: number): void {
  if (Number.isInteger(id) && id >= 0) return;
  throw new RangeError(`Cannot decode token ${id}: an id should be a whole number of at least 0`);
}

/** The ids of a text by a function for UTF-8. A lone surrogate becomes U+FFFD. */
export function encodeText(text: string, encodeUtf8: Tokenizer["encodeUtf8"]): Uint32Array {
  const bytes = new TextEncoder().encode(text), out = new TokenBuffer();
  encodeUtf8(bytes, 0, bytes.length, out);
  return out.ids.slice(0, out.length);
}

/** Encoding of text that the first scanner cuts, the second cuts what the first leaves whole, and so on. */
export function scanPieces([scanner, ...finer]: Scanner[], bpe: Bpe): EncodeSegment {
  if (scanner === undefined) return (bytes, from, to, ids, n) => bpe.encode(bytes, from, to, ids, n);
  if (finer.length === 0) {
    return (bytes, from, to, ids, n) => {
      while (from < to) {
        const end = scanner(bytes, from, to);
        n = bpe.encode(bytes, from, end, ids, n);
        from = end;
      }
      return n;
    };
  }
  const encodePiece = scanPieces(finer, bpe);
  return (bytes, from, to, ids, n) => {
    while (from < to) {
      const end = scanner(bytes, from, to);
      n = encodePiece(bytes, from, end, ids, n);
      from = end;
    }
    return n;
  };
}

/** The same for a whole document. */
export function appendTo(encode: EncodeSegment): Tokenizer["encodeUtf8"] {
  return (bytes, from, to, out) => {
    out.reserve(to - from); // no text has more ids than bytes
    out.length = encode(bytes, from, to, out.ids, out.length);
  };
}
