// Writes byte-level tokenizers as the two files from which Hugging Face's tokenizers and transformers load them.
import { hash } from "node:crypto";
import type { ByteStrings } from "./byte_strings.ts";
import { PieceTable } from "./piece_table.ts";
import { beginWith, configOf } from "./post_processor.ts";
import { PATTERNS } from "./scanners.ts";

/** A byte-level tokenizer. */
export type ByteLevelFiles = {
  /** The name by which openTokenizer() knows it without the files; null if there is none. */
  name: string | null;
  /** Byte strings of the ids from 0 on. */
  tokens: ByteStrings;
  /** Ids of the special tokens. */
  special: Record<string, number>;
  /** Id of the end of text, which is one of them. It begins every text too. */
  eot: number;
  /** Pairs of ids that join, the first rank first. */
  merges: [number, number][];
  /** The regular expression by which text is cut into pieces, null if it is not. */
  pattern: string | null;
};

/** Contents of tokenizer.json and of tokenizer_config.json, where transformers finds out what special tokens are for. */
export function byteLevelFiles(
  tokenizer: ByteLevelFiles,
): Record<"tokenizer.json" | "tokenizer_config.json", string> {
  const { name, special, eot } = tokenizer, tokens = Object.keys(special);
  const endOfText = tokens.find((text) => special[text] === eot)!;
  const json = `${JSON.stringify(tokenizerJson(tokenizer, endOfText))}\n`;
  const config = {
    ...configOf(endOfText, endOfText),
    unk_token: endOfText,
    additional_special_tokens: tokens.filter((text) => text !== endOfText),
    add_prefix_space: false,
    clean_up_tokenization_spaces: false,
    ...name !== null && {
      loam_tokenizer: name,
      loam_tokenizer_sha256: hash("sha256", json),
    },
  };
  return {
    "tokenizer.json": json,
    "tokenizer_config.json": `${JSON.stringify(config, null, 2)}\n`,
  };
}

function tokenizerJson(
  { tokens, special, eot, merges, pattern }: ByteLevelFiles,
  endOfText: string,
): Record<string, unknown> {
  const characters = byteCharacters();
  const written = Array.from(
    { length: tokens.length },
    (_, id) => Array.from(tokens.at(id), (byte) => characters[byte]).join(""),
  );
  const byteLevel = {
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: false,
    use_regex: pattern === PATTERNS.gpt2, // which ByteLevel has built in
  };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: Object.entries(special).map(([content, id]) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: pattern === null || pattern === PATTERNS.gpt2
      ? byteLevel
      : { type: "Sequence", pretokenizers: [split(pattern), byteLevel] },
    post_processor: beginWith({ token: endOfText, id: eot }),
    decoder: byteLevel,
    model: {
      ...PLAIN_BPE,
      vocab: { ...Object.fromEntries(written.map((token, id) => [token, id])), ...special },
      merges: merges.map(([left, right]) => `${written[left]} ${written[right]}`),
    },
  };
}

/** The settings of a BPE model that does nothing beside merging, as tokenizer.json has them, but for its vocabulary and merges. */
export const PLAIN_BPE = {
  type: "BPE",
  dropout: null,
  unk_token: null,
  continuing_subword_prefix: null,
  end_of_word_suffix: null,
  fuse_unk: false,
  byte_fallback: false,
  ignore_merges: false,
};

function split(pattern: string): Record<string, unknown> {
  return { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
}

/**
 * The pairs that make the tokens when neighbours join by OpenAI's rule: for each token the two that it consists of before
 * it is joined itself. Joining these pairs only, in the order of the tokens, gives the same ids for every text, since what
 * happens to the bytes of a token before they become it does not depend on what stands around them.
 */
export function mergesOf(tokens: ByteStrings): [number, number][] {
  const table = new PieceTable(tokens, 0), { bytes } = tokens;
  const find = (from: number, to: number) => table.token(table.find(bytes, from, to));
  const merges: [number, number][] = [];
  for (let id = 0; id < tokens.length; id++) {
    const to = tokens.start(id + 1);
    const cuts = Array.from({ length: to - tokens.start(id) + 1 }, (_, i) => tokens.start(id) + i);
    if (cuts.length <= 2) continue;
    for (;;) {
      let least = id, at = 0;
      for (let i = 1; i + 1 < cuts.length; i++) {
        const join = find(cuts[i - 1]!, cuts[i + 1]!);
        if (join >= 0 && join < least) {
          least = join;
          at = i;
        }
      }
      if (least === id) break;
      cuts.splice(at, 1);
    }
    if (cuts.length !== 3) {
      throw new Error(`internal: token ${id} is made of ${cuts.length - 1} earlier tokens, should be 2`);
    }
    merges.push([find(cuts[0]!, cuts[1]!), find(cuts[1]!, to)]);
  }
  return merges;
}

/** The printable character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them. */
export function byteCharacters(): string[] {
  const printable = (byte: number) =>
    byte >= 0x21 && byte <= 0x7e || byte >= 0xa1 && byte <= 0xac || byte >= 0xae;
  let others = 0;
  return Array.from(
    { length: 256 },
    (_, byte) => String.fromCharCode(printable(byte) ? byte : 0x100 + others++),
  );
}
