// What the byte-level tokenizers ("bytes" and "gpt2") share: decoding, and the files that Hugging Face reads them from.
import { TokenBuffer } from "./token_buffer.ts";
import type { Tokenizer } from "./tokenizer.ts";

const END_OF_TEXT = "<|endoftext|>";

/** What makes a byte-level tokenizer. Ids 0 .. n_tokens - 1 stand for byte strings; n_tokens is the end of text. */
export interface ByteLevelOptions {
  name: string;
  n_tokens: number;
  encodeUtf8: (bytes: Uint8Array, from: number, to: number, out: TokenBuffer) => void;
  bytesOf: (id: number) => Uint8Array;
  /** Pairs of ids that merge, in the order of the ids that they make. */
  merges: () => [number, number][];
  /** Text is cut by GPT-2's pattern before merging. */
  splitsWords: boolean;
}

/** A tokenizer whose tokens are byte strings. */
export function byteLevelTokenizer(options: ByteLevelOptions): Tokenizer {
  const { name, n_tokens, encodeUtf8 } = options;
  const endOfText = new TextEncoder().encode(END_OF_TEXT);

  function encode(text: string): Uint32Array {
    const bytes = new TextEncoder().encode(text); // a lone surrogate becomes U+FFFD
    const out = new TokenBuffer();
    encodeUtf8(bytes, 0, bytes.length, out);
    return out.ids.slice(0, out.length);
  }

  function bytesOf(id: number): Uint8Array {
    if (Number.isInteger(id) && id >= 0 && id < n_tokens) return options.bytesOf(id);
    if (id === n_tokens) return endOfText;
    throw new RangeError(`Cannot decode token ${id}: the ids of tokenizer "${name}" are 0 to ${n_tokens}`);
  }

  function stream(): { write(id: number): string; end(): string } {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true }); // keeps the bytes of a character that is not complete
    return {
      write: (id) => utf8.decode(bytesOf(id), { stream: true }),
      end: () => utf8.decode(),
    };
  }

  function decode(ids: Iterable<number>): string {
    const text = stream();
    let result = "";
    for (const id of ids) result += text.write(id);
    return result + text.end();
  }

  return {
    name,
    vocab_size: n_tokens + 1,
    eot: n_tokens,
    encode,
    encodeUtf8,
    decode,
    stream,
    files: () => huggingFaceFiles(options),
  };
}

/** tokenizer.json and tokenizer_config.json for Hugging Face's tokenizers and transformers. */
function huggingFaceFiles(
  { name, n_tokens, bytesOf, merges, splitsWords }: ByteLevelOptions,
): Record<string, string> {
  const characters = byteCharacters();
  const written = Array.from(
    { length: n_tokens },
    (_, id) => Array.from(bytesOf(id), (byte) => characters[byte]).join(""),
  );
  const byteLevel = {
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: false,
    use_regex: splitsWords,
  };
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [{
      id: n_tokens,
      content: END_OF_TEXT,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    }],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries([...written, END_OF_TEXT].map((token, id) => [token, id])),
      merges: merges().map(([left, right]) => `${written[left]} ${written[right]}`),
    },
  };
  const config = {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: END_OF_TEXT,
    eos_token: END_OF_TEXT,
    unk_token: END_OF_TEXT,
    add_prefix_space: false,
    clean_up_tokenization_spaces: false,
    loam_tokenizer: name,
  };
  return {
    "tokenizer.json": `${JSON.stringify(tokenizer)}\n`,
    "tokenizer_config.json": `${JSON.stringify(config, null, 2)}\n`,
  };
}

/** The printable character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them. */
function byteCharacters(): string[] {
  const printable = (byte: number) =>
    byte >= 0x21 && byte <= 0x7e || byte >= 0xa1 && byte <= 0xac || byte >= 0xae;
  let others = 0;
  return Array.from(
    { length: 256 },
    (_, byte) => String.fromCharCode(printable(byte) ? byte : 0x100 + others++),
  );
}
