// A tokenizer of single characters, as nanoGPT's first example has it.
import { specialTokens } from "./added_tokens.ts";
import { PLAIN_BPE } from "./byte_level_files.ts";
import { UserError } from "../../base/errors.ts";
import { byteLevelTokenizer } from "./byte_level.ts";
import { codePointAt, widthAt } from "./characters.ts";
import { configOf } from "./post_processor.ts";
import type { Tokenizer } from "./types.ts";
import type { Json } from "./tokenizer_file.ts";

const END_OF_TEXT = "<|endoftext|>";

/**
 * The tokenizer whose ids are the places of characters in a list; the end of text has the id behind the last. Throws
 * RangeError if one of them is not a character.
 */
export function characterTokenizer(name: string, characters: readonly string[]): Tokenizer {
  const utf8 = new TextEncoder(), ids = new Map<number, number>();
  for (const [id, character] of characters.entries()) {
    const codePoint = character.codePointAt(0);
    if (
      codePoint === undefined || String.fromCodePoint(codePoint) !== character || !character.isWellFormed()
    ) {
      throw new RangeError(`it has ${JSON.stringify(character)}, should have single characters`);
    }
    ids.set(codePoint, id);
  }
  const texts = [...characters, END_OF_TEXT].map((text) => utf8.encode(text)), eot = characters.length;
  const tokenizer = byteLevelTokenizer({
    name,
    vocab_size: texts.length,
    eot,
    start: undefined, // nanoGPT's texts have no token between them
    added: specialTokens({ [END_OF_TEXT]: eot }),
    bytesOf: (id) => texts[id]!,
    encodeUtf8(bytes, from, to, out) {
      out.reserve(to - from);
      while (from < to) {
        const codePoint = bytes[from]! < 0x80 ? bytes[from]! : codePointAt(bytes, from),
          id = ids.get(codePoint);
        if (id === undefined) throw unknown(codePoint, characters.length);
        out.ids[out.length++] = id;
        from += widthAt(bytes, from);
      }
    },
    files: () => ({
      "tokenizer.json": `${JSON.stringify(tokenizerJson(characters))}\n`,
      "tokenizer_config.json": `${
        JSON.stringify({ ...configOf(END_OF_TEXT, END_OF_TEXT), add_bos_token: false }, null, 2)
      }\n`,
    }),
  });
  const newline = ids.get(0x0a); // with which nanoGPT begins texts from nothing: no other token is known there
  return newline === undefined
    ? tokenizer
    : { ...tokenizer, prompt: (text) => text === "" ? [newline] : tokenizer.prompt(text) };
}

function unknown(codePoint: number, n: number): UserError {
  const hex = codePoint.toString(16).toUpperCase().padStart(4, "0");
  return new UserError(
    `Cannot encode the character U+${hex}: it is none of the ${n} that the tokenizer has; leave it out of the text`,
  );
}

/** BPE without merges, which takes a text apart into characters. */
function tokenizerJson(characters: readonly string[]): Json {
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [{ id: characters.length, content: END_OF_TEXT, ...flags }],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: "Fuse" },
    model: {
      ...PLAIN_BPE,
      vocab: Object.fromEntries([...characters, END_OF_TEXT].map((text, id) => [text, id])),
      merges: [],
    },
  };
}

/**
 * The characters of a tokenizer.json that was made here, undefined for any other.
 *
 * @param whole Gives all of the file: json may lack its long lists.
 */
export function charactersOf(json: Json, whole: () => Json): string[] | undefined {
  const isPlain = json.pre_tokenizer === null && json.normalizer === null && json.post_processor === null;
  if (!isPlain || (json.decoder as Json | null)?.type !== "Fuse") return undefined;
  const { vocab, merges } = whole().model as { vocab: Record<string, number>; merges?: unknown[] };
  if (merges?.length !== 0) return undefined;
  const texts: string[] = [], entries = Object.entries(vocab);
  for (const [text, id] of entries) texts[id] = text;
  return texts.length === entries.length && texts.pop() === END_OF_TEXT ? texts : undefined;
}
