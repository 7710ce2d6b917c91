import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { byteLevelFiles } from "../data/tokenizers/byte_level_files.ts";
import { ByteStrings } from "../data/tokenizers/byte_strings.ts";
import { characterTokenizer } from "../data/tokenizers/character_level.ts";
import { PATTERNS } from "../data/tokenizers/scanners.ts";
import { withFiles } from "../data/testing.ts";
import { TOKENIZERS, withPieces } from "../data/tokenizers/testing.ts";
import { CUTS } from "../data/train_tokenizer/train_options.ts";
import { type GgufTokenizer, ggufTokenizer } from "./gguf_tokenizer.ts";

type Json = {
  model: Record<string, unknown>;
  added_tokens: { id: number; content: string; special: boolean }[];
};

/** The settings for the files of a tokenizer, without "tokenizer." before their names. */
async function settingsOf(
  files: Record<string, unknown>,
  { rows, ends = [] }: { rows: number; ends?: number[] },
): Promise<{ values: Record<string, unknown>; rest: GgufTokenizer }> {
  let rest: GgufTokenizer | undefined;
  await withFiles(files, async (directory) => {
    rest = ggufTokenizer(directory, await openTokenizer(directory), rows, ends);
  });
  const values = Object.entries(rest!.settings).map((
    [key, { value }],
  ) => [key.replace("tokenizer.", ""), value]);
  return { values: Object.fromEntries(values), rest: rest! };
}

/** The files of one of the small tokenizers, changed. */
function small(name: string, change: (json: Json) => void = () => {}): Record<string, unknown> {
  const json = structuredClone(TOKENIZERS.get(name)) as Json;
  change(json);
  const eos_token = json.added_tokens.find(({ special }) => special)!.content;
  return { "tokenizer.json": json, "tokenizer_config.json": { eos_token } };
}

Deno.test("each way to cut text has llama.cpp's name", async () => {
  const names = {
    ...{
      gpt2_like: "gpt-2",
      llama3_like: "llama-bpe",
      phi4_like: "dbrx",
      qwen_like: "qwen2",
      qwen35_like: "qwen35",
    },
    ...{ smollm_like: "smollm", deepseek_like: "deepseek-v3", superbpe_like: "superbpe", few_bytes: "gpt-2" },
  };
  for (const [name, pre] of Object.entries(names)) {
    const { values } = await settingsOf(small(name), { rows: 600 });
    assertEquals([values["ggml.model"], values["ggml.pre"]], ["gpt2", pre], name);
  }
  const plain = small("llama3_like", ({ model }) => model.ignore_merges = false);
  assertEquals((await settingsOf(plain, { rows: 600 })).values["ggml.pre"], "smaug-bpe");
});

Deno.test("whole pieces may go before merges where merges make every token anyway", async () => {
  const { values } = await settingsOf(small("gpt_oss_like"), { rows: 600 });
  assertEquals(values["ggml.pre"], "gpt-4o");
  const files = small("gpt_oss_like", ({ model }) => (model.merges as string[][]).splice(1, 1)); // two blanks and two
  await withFiles(files, async (directory) => {
    const tokenizer = await openTokenizer(directory);
    assertThrows(
      () => ggufTokenizer(directory, tokenizer, 600, []),
      UserError,
      'its model has ignore_merges, which llama.cpp has not with the cuts of gpt-4o, and no merges make its token "ĠĠĠĠ"',
    );
  });
});

Deno.test("every tokenizer that loam trains has a name", async () => {
  const tokens = new ByteStrings(257, 258), special = { "<|endoftext|>": 257 };
  for (let byte = 0; byte < 256; byte++) tokens.push(Uint8Array.of(byte));
  tokens.push(new TextEncoder().encode("th"));
  const merges: [number, number][] = [[0x74, 0x68]],
    names = { llama3: "smaug-bpe", o200k: "gpt-4o", qwen: "qwen2", gpt2: "gpt-2" };
  assertEquals(Object.keys(names), [...CUTS]);
  for (const pattern of CUTS) {
    const files = byteLevelFiles({
      name: null,
      tokens,
      special,
      eot: 257,
      merges,
      pattern: PATTERNS[pattern],
    });
    const { values } = await settingsOf(files, { rows: 258 });
    assertEquals([values["ggml.pre"], values["ggml.merges"]], [names[pattern], ["t h"]]);
  }
});

Deno.test("tokens, their kinds and merges are those of tokenizer.json, and the model's other rows are padding", async () => {
  const files = small("gpt2_like", (json) => {
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    json.added_tokens = [{ id: 400, content: "<end>", special: true, ...flags }];
    json.added_tokens.push(
      { id: 401, content: "<tool>", special: false, ...flags } as Json["added_tokens"][number],
    );
  });
  const { model } = files["tokenizer.json"] as {
    model: { vocab: Record<string, number>; merges: string[][] };
  };
  const { values } = await settingsOf(files, { rows: 404 });
  const tokens = values["ggml.tokens"] as string[],
    types = Array.from(values["ggml.token_type"] as Int32Array);
  assertEquals(
    tokens.slice(0, 400),
    Object.keys(model.vocab).toSorted((a, b) => model.vocab[a]! - model.vocab[b]!),
  );
  assertEquals(tokens.slice(400), ["<end>", "<tool>", "[PAD402]", "[PAD403]"]);
  assertEquals(types, [...Array(400).fill(1), 3, 4, 5, 5]); // normal, control, user-defined, unused
  assertEquals(values["ggml.merges"], model.merges.map((pair) => [pair].flat().join(" ")));
  assertEquals([values["ggml.bos_token_id"], values["ggml.eos_token_id"], values["ggml.add_bos_token"]], [
    400,
    400,
    false,
  ]);
});

Deno.test("bytes begin with their end of text, and have a merge that never applies", async () => {
  const tokenizer = await openTokenizer("bytes"),
    { values, rest } = await settingsOf(tokenizer.files(), { rows: 257, ends: [256] });
  const tokens = values["ggml.tokens"] as string[];
  assertEquals([tokens.length, tokens[65], tokens[32], tokens[10], tokens[256]], [
    257,
    "A",
    "Ġ",
    "Ċ",
    "<|endoftext|>",
  ]);
  assertEquals(values["ggml.merges"], ["<|endoftext|> <|endoftext|>"]);
  assertEquals([values["ggml.bos_token_id"], values["ggml.eos_token_id"], values["ggml.add_bos_token"]], [
    256,
    256,
    true,
  ]);
  assertEquals([values["ggml.add_eos_token"], "ggml.eot_token_id" in values, rest.notes], [false, false, []]);
});

Deno.test("characters are joined from their bytes by merges, each byte with the next", async () => {
  const files = characterTokenizer("characters", ["a", "é", "€", "¬", " "]).files();
  const { values, rest } = await settingsOf(files, { rows: 6 });
  // é is C3 A9, € is E2 82 AC, ¬ is C2 AC; the byte 82 is written Ĥ, a blank Ġ.
  assertEquals(values["ggml.tokens"], ["a", "Ã©", "âĤ¬", "Â¬", "Ġ", "<|endoftext|>"]);
  assertEquals(values["ggml.merges"], ["Ã ©", "â Ĥ", "âĤ ¬", "Â ¬"]);
  assertEquals([values["ggml.pre"], values["ggml.add_bos_token"]], ["gpt-2", false]);
  assertEquals(rest.notes, [
    "llama.cpp leaves characters that the tokenizer lacks out of a prompt; loam refuses them",
  ]);
});

Deno.test("what llama.cpp does otherwise is said", async () => {
  const notes = async (files: Record<string, unknown>) => (await settingsOf(files, { rows: 600 })).rest.notes;
  assertEquals(await notes(small("gpt2_like")), []);
  assertEquals(await notes(small("qwen_like")), [
    "llama.cpp does not compose characters: give it text in Unicode's form NFC",
  ]);
  assertEquals(await notes(small("few_bytes")), [
    "the vocabulary lacks bytes, which llama.cpp leaves out of a prompt in other places",
  ]);
  assertEquals((await notes(small("gpt_oss_like"))).map((note) => note.slice(0, 26)), [
    "words of capitals and smal",
  ]);
});

Deno.test("a second end of text and a chat template go along", async () => {
  const files = { ...small("gpt2_like"), "chat_template.jinja": "{{ messages }}" };
  const { values } = await settingsOf(files, { rows: 401, ends: [400, 7] });
  assertEquals([values["ggml.eos_token_id"], values["ggml.eot_token_id"], values.chat_template], [
    400,
    7,
    "{{ messages }}",
  ]);
  const template = {
    ...small("gpt2_like"),
    "tokenizer_config.json": { eos_token: "<|endoftext|>", chat_template: "{{ a }}" },
  };
  assertEquals((await settingsOf(template, { rows: 401 })).values.chat_template, "{{ a }}");
});

Deno.test("two tokens of one text are refused, since llama.cpp reads none such", async () => {
  const files = small("gpt2_like", ({ added_tokens }) => added_tokens[0]!.content = "[PAD402]");
  await withFiles(files, async (directory) => {
    const tokenizer = await openTokenizer(directory);
    assertThrows(
      () => ggufTokenizer(directory, tokenizer, 403, []),
      UserError,
      'its tokens 400 and 402 are both "[PAD402]", should be different',
    );
  });
});

Deno.test("BPE over characters has scores in the place of merges, and tokens for bytes", async () => {
  const files = small("llama2_like", (json) => withPieces(json, ["th", "▁t", "he", "▁th", "the", "▁the"]));
  const { vocab } = (files["tokenizer.json"] as { model: { vocab: Record<string, number> } }).model;
  const { values, rest } = await settingsOf(files, { rows: 440 });
  const types = values["ggml.token_type"] as Int32Array, scores = values["ggml.scores"] as Float32Array;
  assertEquals([values["ggml.model"], values["ggml.pre"], values["ggml.add_space_prefix"]], [
    "llama",
    "default",
    true,
  ]);
  assertEquals([values["ggml.unknown_token_id"], "ggml.merges" in values, rest.notes], [0, false, []]);
  assertEquals([...types.subarray(0, 4), types[vocab["<0xFF>"]!], types[vocab["▁the"]!], types[439]], [
    2,
    3,
    3,
    6,
    6,
    1,
    5,
  ]);
  // Pairs in order: t h, ▁ t, h e, ▁ th, ▁t h, t he, th e, ▁ the, ▁t he, ▁th e.
  const score = (text: string) => scores[vocab[text]!];
  assertEquals(["th", "▁t", "he", "▁th", "the", "▁the", "t"].map(score), [-0, -1, -2, -3, -5, -7, 0]);
});

Deno.test("merges of runs of blanks may be in several places, as those of Llama 2", async () => {
  const files = small("llama2_like", (json) => {
    withPieces(json, ["▁▁", "▁▁▁", "th"]);
    const { merges } = json.model as { merges: string[] };
    assertEquals(merges, ["▁ ▁", "▁ ▁▁", "▁▁ ▁", "t h"]);
    merges.push(...merges.splice(1, 1));
  });
  const { vocab } = (files["tokenizer.json"] as { model: { vocab: Record<string, number> } }).model;
  const { values, rest } = await settingsOf(files, { rows: 440 });
  const scores = values["ggml.scores"] as Float32Array;
  assertEquals(["▁▁", "▁▁▁", "th"].map((text) => scores[vocab[text]!]), [-0, -1, -2]);
  assertEquals(rest.notes, ["llama.cpp may cut a run of many blanks into others"]);
});

Deno.test("tokens may be called as what every object of JavaScript has", async () => {
  const name = "▁valueOf", pieces = Array.from(name, (_, i) => name.slice(0, i + 1)).slice(1);
  const files = small("llama2_like", (json) => withPieces(json, [...pieces, "e"]));
  const { values } = await settingsOf(files, { rows: 450 });
  assertEquals((values["ggml.tokens"] as string[]).includes(name), true);
});

Deno.test("how a text begins is said of BPE over characters", async () => {
  const prefix = async (
    name: string,
    change?: (json: Json & { pre_tokenizer: Record<string, unknown> }) => void,
  ) => {
    const { values, rest } = await settingsOf(small(name, change as (json: Json) => void), { rows: 430 });
    return [values["ggml.add_space_prefix"], rest.notes.length];
  };
  assertEquals(await prefix("gemma_like"), [false, 0]);
  assertEquals(await prefix("mistral_like"), [true, 1]);
  assertEquals(await prefix("mistral_like", (json) => json.pre_tokenizer.prepend_scheme = "never"), [
    false,
    0,
  ]);
});

Deno.test("BPE over characters whose merges scores cannot say is refused", async () => {
  const cases: [(merges: string[]) => void, string][] = [
    [
      (merges) => merges.splice(merges.indexOf("th e"), 1),
      'its merges lack "th" and "e", which llama.cpp joins',
    ],
    [
      (merges) => merges.push(...merges.splice(merges.indexOf("th e"), 1)),
      'its merges that make "the" are in several places',
    ],
  ];
  for (const [change, message] of cases) {
    const files = small("llama2_like", (json) => {
      withPieces(json, ["th", "he", "the", "▁the"]);
      change((json.model as { merges: string[] }).merges);
    });
    await withFiles(files, async (directory) => {
      const tokenizer = await openTokenizer(directory);
      assertThrows(() => ggufTokenizer(directory, tokenizer, 440, []), UserError, message);
    });
  }
});
