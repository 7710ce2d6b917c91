// Tokenizers that are not byte-level BPE, by the library @huggingface/tokenizers.
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { encodeText } from "./byte_level.ts";
import type { TextStream, Tokenizer } from "./tokenizer.ts";

type Json = Record<string, unknown>;

/** Encoding and decoding for the parsed tokenizer.json and tokenizer_config.json. */
export function libraryTokenizer(
  json: Json,
  config: Json,
): Pick<Tokenizer, "encode" | "encodeUtf8" | "decode" | "stream"> {
  const library = new Library(json, config);
  // One that knows no special tokens: their text inside a document stays text.
  const added = (json.added_tokens ?? []) as { special?: boolean }[];
  const plain = new Library({ ...json, added_tokens: added.filter((token) => !token.special) }, config);
  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  const encodeUtf8: Tokenizer["encodeUtf8"] = (bytes, from, to, out) => {
    const text = utf8.decode(bytes.subarray(from, to));
    const { ids } = plain.encode(text, { add_special_tokens: false });
    out.reserve(ids.length);
    out.ids.set(ids, out.length);
    out.length += ids.length;
  };

  function decode(ids: Iterable<number>): string {
    const list = Array.from(ids);
    return list.length === 0 ? "" : library.decode(list, { clean_up_tokenization_spaces: false });
  }

  return {
    encode: (text) => encodeText(text, encodeUtf8),
    encodeUtf8,
    decode,
    stream: () => textStream(decode),
  };
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
