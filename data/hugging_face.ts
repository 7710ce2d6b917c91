// Any tokenizer that Hugging Face's tokenizer.json describes, run by @huggingface/tokenizers. Slower than our own (about
// 1 MB/s), so it is for vocabularies we do not have ourselves.
import { Tokenizer as Engine } from "@huggingface/tokenizers";
import { UserError } from "../ffi/errors.ts";
import type { TokenBuffer } from "./token_buffer.ts";
import type { TextStream, Tokenizer } from "./tokenizer.ts";

type Json = Record<string, unknown>;

/**
 * The tokenizer that the parsed tokenizer.json and tokenizer_config.json of a directory describe.
 *
 * @throws {UserError} if the library cannot read it or the configuration names no end-of-text token.
 */
export function huggingFaceTokenizer(directory: string, json: Json, config: Json): Tokenizer {
  const engine = open(directory, json, config);
  // An engine that knows no special tokens: their text inside a document stays text.
  const added = (json.added_tokens ?? []) as { special?: boolean }[];
  const plain = open(directory, { ...json, added_tokens: added.filter((token) => !token.special) }, config);
  const vocab_size = Math.max(...ids(engine)) + 1;

  function decode(ids: Iterable<number>): string {
    const list = Array.from(ids);
    return list.length === 0 ? "" : engine.decode(list, { clean_up_tokenization_spaces: false });
  }

  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  const encode = (text: string): number[] =>
    plain.encode(text.toWellFormed(), { add_special_tokens: false }).ids;

  function encodeUtf8(bytes: Uint8Array, from: number, to: number, out: TokenBuffer): void {
    const ids = encode(utf8.decode(bytes.subarray(from, to)));
    out.reserve(ids.length);
    out.ids.set(ids, out.length);
    out.length += ids.length;
  }

  return {
    name: directory,
    vocab_size,
    eot: endOfText(directory, engine, config),
    encode: (text) => Uint32Array.from(encode(text)),
    encodeUtf8,
    decode,
    stream: () => textStream(decode),
    files: () => ({
      "tokenizer.json": `${JSON.stringify(json)}\n`,
      "tokenizer_config.json": `${JSON.stringify(config, null, 2)}\n`,
    }),
  };
}

function open(directory: string, json: Json, config: Json): Engine {
  try {
    return new Engine(json, config);
  } catch (error) {
    throw new UserError(`Cannot use "${directory}/tokenizer.json": ${(error as Error).message}`);
  }
}

function* ids(engine: Engine): Generator<number> {
  yield* engine.get_vocab().values();
  yield* engine.get_added_tokens_decoder().keys();
}

/** Id of eos_token, which is a text or an object with the text in `content`. */
function endOfText(directory: string, engine: Engine, config: Json): number {
  const eos = config.eos_token as string | { content?: string } | null | undefined;
  const text = typeof eos === "string" ? eos : eos?.content;
  const id = text === undefined ? undefined : engine.token_to_id(text);
  if (id === undefined) {
    throw new UserError(
      `Cannot use "${directory}/tokenizer_config.json": its eos_token is ${JSON.stringify(eos ?? null)}, ` +
        `should be a token of the vocabulary, since it goes between documents`,
    );
  }
  return id;
}

/** Decodes everything anew for each id, since a decoder may treat a token by what stands around it. */
function textStream(decode: (ids: number[]) => string): TextStream {
  let ids: number[] = []; // since the last text that was whole
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
      if (fresh.endsWith("\n")) { // a line is a safe place to start over, so that long texts stay cheap
        ids = [];
        shown = "";
      }
      return fresh;
    },
    end: () => take(true),
  };
}
