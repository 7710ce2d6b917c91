// BPE over characters, with bytes for those that the vocabulary lacks, as sentencepiece makes it: the tokenizers of Llama 2,
// Mistral and Gemma. Their text is encoded by character_bpe.ts, and decoded by the library @huggingface/tokenizers, which also
// encodes for what is like them but for a step or two. Its ids are those of Python's tokenizers here; for Unigram, WordPiece and
// other normalizers they are not always (it breaks ties differently and has another Unicode).
import { Buffer } from "node:buffer";
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { type AddedToken, withIds } from "./added_tokens.ts";
import { encodeText, requireId } from "./byte_level.ts";
import { characterBpe } from "./character_bpe.ts";
import type { TextStream, Tokenizer } from "./types.ts";
import type { Json } from "./tokenizer_file.ts";

const NORMALIZERS = ["Prepend", "Replace"], PRE_TOKENIZERS = ["Metaspace", "Split"];

/** A normalizer or pre-tokenizer. */
type Step = {
  type: string;
  normalizers?: Step[];
  pretokenizers?: Step[];
  pattern?: { String?: string };
};

/** How the library encodes and decodes, and which ids it knows. */
export type LibraryBpe =
  & Pick<Tokenizer, "vocab_size" | "written" | "encode" | "encodeUtf8" | "decode" | "stream">
  & {
    /** The id of a token as it is written, undefined if there is none. */
    idOf(token: string): number | undefined;
  };

/**
 * Reads a tokenizer.json of BPE over characters, and the tokenizer_config.json that belongs to it. Throws RangeError
 * saying what the file has that is not supported, and what it should have.
 */
export function libraryBpe(json: Json, config: Json): LibraryBpe {
  checkSupported(json);
  const vocab = (json.model as Json).vocab as Record<string, number>, size = Object.keys(vocab).length;
  const idOf = (token: string) => Object.hasOwn(vocab, token) ? vocab[token] : undefined;
  const added = withIds((json.added_tokens ?? []) as AddedToken[], size, idOf);
  const encodeUtf8 = characterBpe(json, added) ?? libraryEncoding(json, config, added);
  let library: Library | undefined; // to decode
  let vocab_size = 0;
  const known = new Set([...Object.values(vocab), ...added.map(({ id }) => id)]);
  for (const id of known) vocab_size = Math.max(vocab_size, id + 1);

  function decode(ids: Iterable<number>): string {
    const list: number[] = [];
    for (const id of ids) {
      requireId(id);
      if (known.has(id)) list.push(id); // others would read as unk_token
    }
    library ??= new Library({ ...json, added_tokens: added }, config);
    return list.length === 0 ? "" : library.decode(list, { clean_up_tokenization_spaces: false });
  }

  return {
    vocab_size,
    written: { added, composes: false, widthOf: widths(vocab, vocab_size) },
    idOf: (token) => added.find(({ content }) => content === token)?.id ?? idOf(token),
    encode: (text) => encodeText(text, encodeUtf8),
    encodeUtf8,
    decode,
    stream: () => textStream(decode),
  };
}

/** Bytes of text that an id stands for: "▁" is a blank, "<0x0A>" a byte. */
function widths(vocab: Record<string, number>, vocab_size: number): (id: number) => number {
  let bytes: Uint16Array | undefined;
  return (id) => {
    if (bytes === undefined) {
      bytes = new Uint16Array(vocab_size);
      for (const [token, id] of Object.entries(vocab)) {
        bytes[id] = /^<0x[0-9A-F]{2}>$/.test(token) ? 1 : Buffer.byteLength(token.replaceAll("▁", " "));
      }
    }
    return bytes[id] ?? 0;
  };
}

/** Encoding by a library that knows no special tokens: their text inside a document stays text. */
function libraryEncoding(json: Json, config: Json, added: AddedToken[]): Tokenizer["encodeUtf8"] {
  const plain = new Library({ ...json, added_tokens: added.filter((token) => !token.special) }, config);
  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  return (bytes, from, to, out) => {
    const text = utf8.decode(bytes.subarray(from, to));
    const { ids } = plain.encode(text, { add_special_tokens: false });
    out.reserve(ids.length);
    out.ids.set(ids, out.length);
    out.length += ids.length;
  };
}

function checkSupported({ model, normalizer, pre_tokenizer }: Json): void {
  const { type, merges, byte_fallback } = model as Json;
  if ((type ?? "BPE") !== "BPE" || !Array.isArray(merges)) {
    throw new RangeError(`its model is ${type}, should be BPE`);
  }
  if (!byte_fallback) {
    throw new RangeError(
      "its pre_tokenizer has no ByteLevel and its model no byte_fallback, should have one of them",
    );
  }
  checkSteps("normalizer", normalizer as Step | null, NORMALIZERS);
  checkSteps("pre_tokenizer", pre_tokenizer as Step | null, PRE_TOKENIZERS);
}

function checkSteps(name: string, step: Step | null | undefined, supported: string[]): void {
  if (step === null || step === undefined) return;
  if (step.type === "Sequence") {
    for (const inner of step.normalizers ?? step.pretokenizers!) checkSteps(name, inner, supported);
    return;
  }
  if (!supported.includes(step.type)) {
    throw new RangeError(`its ${name} has ${step.type}, should have ${supported.join(" or ")}`);
  }
  if (step.pattern !== undefined && step.pattern.String === undefined) {
    throw new RangeError(`its ${name} has a ${step.type} of a regular expression, should have one of a text`);
  }
}

/** Decodes everything anew for each id, since a decoder may treat a token by what stands around it. */
function textStream(decode: (ids: number[]) => string): TextStream {
  let ids: number[] = []; // since the last line that was whole
  let shown = ""; // of the text of ids
  function take(complete: boolean): string {
    const text = decode(ids);
    if (!complete && text.endsWith("\ufffd")) return ""; // a character of which more bytes may come
    const fresh = text.slice(shown.length);
    shown = text;
    return fresh;
  }
  return {
    write(id) {
      ids.push(id);
      const fresh = take(false);
      if (fresh.endsWith("\n")) { // start over, so that long texts stay cheap, but not as at the beginning of a text
        ids = [id];
        shown = decode(ids);
      }
      return fresh;
    },
    end: () => take(true),
  };
}
