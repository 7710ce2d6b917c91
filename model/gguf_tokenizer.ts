// A tokenizer in the words of llama.cpp, which has the vocabulary and the merges of tokenizer.json but of the rest only what it
// has a name for: how text is cut before it is merged, tokenizer.ggml.pre. What it has no name for is refused.
import { UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { type AddedToken, withIds } from "../data/tokenizers/added_tokens.ts";
import { byteCharacters } from "../data/tokenizers/byte_level_files.ts";
import { charactersOf } from "../data/tokenizers/character_level.ts";
import { type PreTokenizer, readPreTokenizer } from "../data/tokenizers/pre_tokenizer.ts";
import { PATTERNS } from "../data/tokenizers/scanners.ts";
import { type Json, readTokenizerFile } from "../data/tokenizers/tokenizer_file.ts";
import { readJson } from "../runtime/trainer_state.ts";
import type { Settings } from "./gguf.ts";

/** The settings of a tokenizer, what its cuts are called there, and where llama.cpp does not do quite the same. */
export type GgufTokenizer = { settings: Settings; pre: string; notes: string[] };

/** Kinds of tokens, as llama.cpp numbers them. */
const NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6;

/** A merge that never applies: llama.cpp reads no vocabulary without any. */
const NO_MERGE = "<|endoftext|> <|endoftext|>";

const MIXED_CASE =
  "words of capitals and small letters beyond ASCII, and accents that are characters of their own, are cut " +
  "elsewhere by llama.cpp";

/** A token of line breaks and blanks behind them, byte by byte: no piece of text in llama.cpp is one. */
const TAIL = /[Ċč][Ġĉċ]+$/;

/** What llama.cpp calls a way to cut text; wholePieces: a piece that is a token is taken as it is, as ignore_merges says. */
const CUTS: { pre: string; patterns: string[]; wholePieces?: true; note?: string }[] = [
  { pre: "gpt-2", patterns: [PATTERNS.gpt2] },
  { pre: "llama-bpe", patterns: [PATTERNS.llama3], wholePieces: true },
  { pre: "smaug-bpe", patterns: [PATTERNS.llama3] }, // the same without wholePieces
  { pre: "dbrx", patterns: [PATTERNS.gpt4] },
  { pre: "dbrx", patterns: [PATTERNS.cl100k] }, // which alone leaves white space at the end of a text whole, see TAIL
  { pre: "qwen2", patterns: [PATTERNS.qwen] },
  { pre: "qwen35", patterns: [PATTERNS.qwen35] },
  { pre: "gpt-4o", patterns: [PATTERNS.o200k], note: MIXED_CASE },
  { pre: "smollm", patterns: [PATTERNS.digits, PATTERNS.gpt2] },
  {
    pre: "deepseek-v3",
    patterns: [
      String.raw`\p{N}{1,3}`,
      "[一-龥぀-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+" +
      "[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
  },
  { pre: "superbpe", patterns: [String.raw`\p{N}+`, String.raw`(?=(\d{3})+(?!\d))`] },
];

/**
 * The settings for the tokenizer of a model directory. Throws UserError saying what it has that llama.cpp cannot do.
 *
 * @param rows How many tokens the model has: those that the tokenizer lacks are called [PAD...], as llama.cpp's converter does.
 * @param ends The ids that end a text.
 */
export function ggufTokenizer(
  directory: string,
  tokenizer: Tokenizer,
  rows: number,
  ends: readonly number[],
): GgufTokenizer {
  const path = `${directory}/tokenizer.json`, json = readJson(path);
  const characters = charactersOf(readTokenizerFile(path).json, () => json);
  const { pre, tokens, more, notes } = characters
    ? ofCharacters(characters)
    : (json.model as Json).byte_fallback
    ? ofCharacterBpe(path, json)
    : ofByteLevel(path, json);
  const { texts, types } = listOf(path, tokens, rows);
  const other = ends.find((id) => id !== tokenizer.eot && id < rows), template = chatTemplate(directory);
  const settings: Settings = {
    "tokenizer.ggml.model": { type: "string", value: "gpt2" }, // byte-level BPE, unless `more` says otherwise
    "tokenizer.ggml.pre": { type: "string", value: pre },
    "tokenizer.ggml.tokens": { type: "strings", value: texts },
    "tokenizer.ggml.token_type": { type: "i32s", value: types },
    ...more(rows),
    "tokenizer.ggml.bos_token_id": { type: "u32", value: tokenizer.bos },
    "tokenizer.ggml.eos_token_id": { type: "u32", value: tokenizer.eot },
    ...other !== undefined && { "tokenizer.ggml.eot_token_id": { type: "u32", value: other } },
    "tokenizer.ggml.add_bos_token": { type: "bool", value: beginsTexts(tokenizer) },
    "tokenizer.ggml.add_eos_token": { type: "bool", value: false },
    ...template !== undefined && { "tokenizer.chat_template": { type: "string", value: template } },
  };
  return { settings, pre, notes };
}

/** A token as llama.cpp has it. */
type Token = { id: number; text: string; type: number };

/** What a kind of tokenizer has. more: its own settings, with as many of each list as the model has rows. */
type Vocabulary = { pre: string; tokens: Token[]; more: (rows: number) => Settings; notes: string[] };

/** Whether it begins every text with its bos. */
function beginsTexts({ bos, prompt, encode }: Tokenizer): boolean {
  const ids = prompt("a");
  return ids[0] === bos && ids.length > encode("a").length;
}

function chatTemplate(directory: string): string | undefined {
  const beside = `${directory}/chat_template.jinja`, config = `${directory}/tokenizer_config.json`;
  if (isFile(beside)) return Deno.readTextFileSync(beside);
  const { chat_template } = isFile(config) ? readJson(config) : {};
  return typeof chat_template === "string" ? chat_template : undefined;
}

/** The parts of model in tokenizer.json that are read here. */
type BpeModel = {
  vocab: Record<string, number>;
  merges: (string | [string, string])[];
  ignore_merges?: boolean;
  unk_token?: string | null;
};

/** Byte-level BPE has all that llama.cpp needs, if that has a name for how text is cut. */
function ofByteLevel(path: string, json: Json): Vocabulary {
  const model = json.model as BpeModel, vocab = idsOf(json);
  const { pre, patterns, note } = preOf(path, json);
  const tokens = [
    ...Array.from(vocab, ([text, id]) => ({ id, text, type: NORMAL })),
    ...addedOf(json),
  ];
  const notes = note === undefined ? [] : [note];
  if (patterns[0] === PATTERNS.cl100k && tokens.some(({ text }) => TAIL.test(text))) {
    notes.push("llama.cpp cuts a prompt that ends with a line break and blanks between them");
  }
  if (byteCharacters().some((byte) => !vocab.has(byte))) {
    notes.push("the vocabulary lacks bytes, which llama.cpp leaves out of a prompt in other places");
  }
  if (json.normalizer) {
    notes.push("llama.cpp does not compose characters: give it text in Unicode's form NFC");
  }
  return { pre, tokens, more: () => mergesOf(model.merges.map((pair) => [pair].flat().join(" "))), notes };
}

/** The vocabulary. Not as an object, which has a toString and more without any such token. */
function idsOf(json: Json): Map<string, number> {
  return new Map(Object.entries((json.model as BpeModel).vocab));
}

/** The added tokens of a tokenizer.json, which take the place of those of the vocabulary. */
function addedOf(json: Json): Token[] {
  const vocab = idsOf(json);
  return withIds((json.added_tokens ?? []) as AddedToken[], vocab.size, (text) => vocab.get(text))
    .map(({ id, content, special }) => ({ id, text: content, type: special ? CONTROL : USER_DEFINED }));
}

function mergesOf(merges: string[]): Settings {
  return { "tokenizer.ggml.merges": { type: "strings", value: merges.length > 0 ? merges : [NO_MERGE] } };
}

/** llama.cpp's name of the way in which a tokenizer cuts text. */
function preOf(path: string, json: Json): typeof CUTS[number] {
  const { pre_tokenizer } = json, model = json.model as BpeModel;
  const special = new Set(addedOf(json).map(({ text }) => text));
  const name = JSON.stringify((pre_tokenizer as PreTokenizer | null)?.type ?? null);
  if (!JSON.stringify(pre_tokenizer ?? null).includes('"ByteLevel"')) {
    throw refused(path, `its pre_tokenizer is ${name}, should be one of byte-level BPE`);
  }
  const { prefixBlank, cuts } = readPreTokenizer(pre_tokenizer as PreTokenizer);
  if (prefixBlank) throw refused(path, "its pre_tokenizer has add_prefix_space, which llama.cpp has not");
  if (model.merges.length === 0) return CUTS[0]!; // nothing is merged, wherever text is cut
  const patterns = cuts.map(({ pattern }) => pattern),
    isSame = (other: string[]) => `${other}` === `${patterns}`;
  const known = CUTS.filter(({ patterns }) => isSame(patterns));
  if (known.length === 0 || cuts.some(({ keep }) => keep !== "all")) {
    const cut = patterns.length === 0 ? "nowhere" : `by ${patterns.join(" and ")}`;
    throw refused(path, `its pre_tokenizer cuts text ${cut}, for which llama.cpp has no name`);
  }
  const found = known.find((entry) => (entry.wholePieces ?? false) === (model.ignore_merges ?? false));
  if (found) return found;
  const lost = unmerged(model, special); // without any, merges find the token of a whole piece by themselves
  if (lost === undefined) return known[0]!;
  throw refused(
    path,
    `its model has ignore_merges, which llama.cpp has not with the cuts of ${
      known[0]!.pre
    }, and no merges make its token ` +
      JSON.stringify(lost),
  );
}

/** The first token that its characters do not become by merges, the lowest rank first; undefined if all do. */
function unmerged({ vocab, merges }: BpeModel, special: Set<string>): string | undefined {
  const ranks = new Map(merges.map((pair, rank) => [[pair].flat().join(" "), rank]));
  return Object.keys(vocab).find((token) => {
    const parts = Array.from(token);
    while (parts.length > 1) {
      const each = parts.slice(1).map((right, i) => ranks.get(`${parts[i]} ${right}`) ?? Infinity);
      const least = each.reduce((a, b) => Math.min(a, b)), at = each.indexOf(least);
      if (least === Infinity) return !special.has(token);
      parts.splice(at, 2, parts[at]! + parts[at + 1]!);
    }
    return false;
  });
}

/**
 * Characters are the tokens of their bytes, which merges join: the first byte of a character with the next, and so on. No
 * character begins with what another goes on with, so that nothing else is joined.
 */
function ofCharacters(characters: readonly string[]): Vocabulary {
  const written = byteCharacters(), utf8 = new TextEncoder(), merges = new Set<string>();
  const tokens = characters.map((character, id) => {
    const bytes = Array.from(utf8.encode(character), (byte) => written[byte]!);
    for (let n = 1; n < bytes.length; n++) merges.add(`${bytes.slice(0, n).join("")} ${bytes[n]}`);
    return { id, text: bytes.join(""), type: NORMAL };
  });
  tokens.push({ id: characters.length, text: "<|endoftext|>", type: CONTROL });
  const notes = ["llama.cpp leaves characters that the tokenizer lacks out of a prompt; loam refuses them"];
  return { pre: CUTS[0]!.pre, tokens, more: () => mergesOf([...merges]), notes };
}

const BLANKS = /^▁+$/; // Llama 2's merges of these are in several places

/**
 * BPE over characters with a token for each byte, as sentencepiece makes it: what llama.cpp calls "llama". It has scores in the
 * place of merges, and joins those neighbours of which the token has the highest; merges do the same if they have every pair
 * that makes a token, and all pairs of one token behind those of another.
 */
function ofCharacterBpe(path: string, json: Json): Vocabulary {
  const { merges, unk_token } = json.model as BpeModel,
    vocab = idsOf(json),
    scores = new Map<string, number>();
  const pairs = new Set<string>(), pairOf = (left: string, right: string) => `${left} ${right}`;
  let last = "", hasRuns = false;
  for (const [rank, merge] of merges.entries()) {
    const [left, right] = (typeof merge === "string" ? merge.split(" ") : merge) as [string, string];
    const text = left + right;
    if (!scores.has(text)) scores.set(text, -rank);
    else if (text !== last && BLANKS.test(text)) hasRuns = true;
    else if (text !== last) {
      throw refused(
        path,
        `its merges that make ${JSON.stringify(text)} are in several places, should follow each other`,
      );
    }
    pairs.add(pairOf(left, right));
    last = text;
  }
  const added = addedOf(json), special = new Set(added.map(({ text }) => text));
  const tokens = Array.from(vocab, ([text, id]) => {
    const points = special.has(text) ? [] : Array.from(text);
    for (let n = 1; n < points.length; n++) {
      const left = points.slice(0, n).join(""), right = points.slice(n).join("");
      if (!vocab.has(left) || !vocab.has(right) || pairs.has(pairOf(left, right))) continue;
      const both = `${JSON.stringify(left)} and ${JSON.stringify(right)}`;
      throw refused(
        path,
        `its merges lack ${both}, which llama.cpp joins since the vocabulary has both together`,
      );
    }
    return { id, text, type: /^<0x[0-9A-F]{2}>$/.test(text) ? BYTE : NORMAL };
  });
  const bytes = tokens.filter(({ type }) => type === BYTE).length,
    unknown = unk_token ? vocab.get(unk_token) : undefined;
  if (bytes !== 256) throw refused(path, `its vocabulary has tokens of ${bytes} bytes, should have all 256`);
  for (const { id, text, type } of added) {
    const isUnknown = id === unknown;
    tokens.push({ id, text: text.replaceAll("▁", " "), type: isUnknown ? UNKNOWN : type });
  }
  const { prefix, notes } = prefixOf(json);
  if (hasRuns) notes.push("llama.cpp may cut a run of many blanks into others");
  const more = (rows: number): Settings => {
    const list = new Float32Array(rows);
    for (const [text, score] of scores) if (vocab.has(text)) list[vocab.get(text)!] = score;
    return {
      "tokenizer.ggml.model": { type: "string", value: "llama" },
      "tokenizer.ggml.scores": { type: "f32s", value: list },
      ...unknown !== undefined && { "tokenizer.ggml.unknown_token_id": { type: "u32", value: unknown } },
      "tokenizer.ggml.add_space_prefix": { type: "bool", value: prefix },
    };
  };
  return { pre: "default", tokens, more, notes };
}

/** Whether a text begins with a blank more: by a normalizer that prepends one, or by Metaspace where there is none yet. */
function prefixOf({ normalizer, pre_tokenizer }: Json): { prefix: boolean; notes: string[] } {
  type Step = { type: string; prepend_scheme?: string; add_prefix_space?: boolean; [steps: string]: unknown };
  const steps = (json: unknown): Step[] => {
    if (!json) return [];
    const step = json as Step, inner = step.normalizers ?? step.pretokenizers;
    return Array.isArray(inner) ? inner.flatMap(steps) : [step];
  };
  if (steps(normalizer).some(({ type }) => type === "Prepend")) return { prefix: true, notes: [] };
  const metaspace = steps(pre_tokenizer).find(({ type }) => type === "Metaspace");
  const scheme = metaspace?.prepend_scheme ?? (metaspace?.add_prefix_space === false ? "never" : "always");
  if (metaspace === undefined || scheme === "never") return { prefix: false, notes: [] };
  return { prefix: true, notes: ["llama.cpp puts a blank before a text that begins with one, too"] };
}

/** Texts and types by id. Ids that stand for nothing are called [PAD...]; each text is there once. */
function listOf(path: string, tokens: Token[], rows: number): { texts: string[]; types: Int32Array } {
  const texts = Array.from({ length: rows }, (_, id) => `[PAD${id}]`),
    types = new Int32Array(rows).fill(UNUSED);
  for (const { id, text, type } of tokens) [texts[id], types[id]] = [text, type];
  const ids = new Map<string, number>();
  for (const [id, text] of texts.entries()) {
    const earlier = ids.get(text);
    if (earlier !== undefined) {
      throw refused(
        path,
        `its tokens ${earlier} and ${id} are both ${JSON.stringify(text)}, should be different`,
      );
    }
    ids.set(text, id);
  }
  return { texts, types };
}

function refused(path: string, what: string): UserError {
  return new UserError(
    `Cannot export "${path}" to GGUF: ${what}; --format=hf writes a directory for transformers instead`,
  );
}
