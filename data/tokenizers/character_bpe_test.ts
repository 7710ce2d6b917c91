import { assert, assertEquals } from "@std/assert";
import type { AddedToken } from "./added_tokens.ts";
import { characterBpe } from "./character_bpe.ts";
import { libraryBpe } from "./library_bpe.ts";
import { TEXTS, TOKENIZERS } from "./testing.ts";
import { TokenBuffer } from "./token_buffer.ts";
import type { Json } from "./tokenizer_file.ts";

const KINDS = ["llama2_joining", "mistral_joining", "metaspace_always", "gemma_joining", "crossing"];
const addedOf = (json: Json) => json.added_tokens as AddedToken[];

/** A tokenizer.json with some parts replaced. */
function changed(name: string, parts: Json, model: Json = {}): Json {
  const json = TOKENIZERS.get(name)!;
  return { ...json, ...parts, model: { ...json.model as Json, ...model } };
}

Deno.test("characterBpe() takes what sentencepiece makes, and nothing of which a step is another", () => {
  for (const name of KINDS) {
    const json = TOKENIZERS.get(name)!;
    assert(characterBpe(json, addedOf(json)), name);
  }
  const name = "mistral_joining",
    { vocab } = TOKENIZERS.get(name)!.model as { vocab: Record<string, number> };
  const metaspace = { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false };
  const replace = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const without = (token: string) =>
    Object.fromEntries(Object.entries(vocab).filter(([other]) => other !== token));
  const others: Json[] = [
    changed(name, {}, { dropout: 0.1 }),
    changed(name, {}, { ignore_merges: true }),
    changed(name, {}, { end_of_word_suffix: "</w>" }),
    changed(name, {}, { continuing_subword_prefix: "##" }),
    changed(name, {}, { vocab: without("<0x0A>") }),
    changed(name, {}, { merges: [], vocab: without("▁") }),
    changed(name, {}, { merges: [["a", "▁?"]] }),
    changed(name, { pre_tokenizer: { ...metaspace, split: true } }),
    changed(name, { pre_tokenizer: { ...metaspace, replacement: "_" } }),
    changed(name, { pre_tokenizer: { type: "Metaspace", replacement: "▁", add_prefix_space: true } }),
    changed(name, { normalizer: replace }), // and Metaspace behind it
    changed(name, { normalizer: { ...replace, content: "_" }, pre_tokenizer: null }),
    changed(name, { normalizer: null, pre_tokenizer: null }),
    changed(name, { normalizer: { type: "Sequence", normalizers: [replace] }, pre_tokenizer: null }),
  ];
  for (const [i, json] of others.entries()) {
    assertEquals(characterBpe(json, addedOf(json)), undefined, `${i}`);
  }
  for (const flag of ["normalized", "single_word", "lstrip", "rstrip"]) {
    const added = [{ id: 1000, content: "ab", special: false, [flag]: true }];
    assertEquals(characterBpe(changed(name, {}), added), undefined, flag);
  }
});

Deno.test("characterBpe() gives a long text the ids that its parts would have in one piece", () => {
  const text = `Texts:${TEXTS.join(" ")}`,
    bytes = new TextEncoder().encode(text),
    one = TOKENIZERS.get("mistral_joining")!;
  // A pair of two words that no text has keeps it from cutting text into pieces.
  const { vocab, merges } = one.model as { vocab: Record<string, number>; merges: string[][] };
  const more = { "⌘": 1000, "⌘▁": 1001, "⌘▁⌘": 1002 };
  const never = { vocab: { ...vocab, ...more }, merges: [...merges, ["⌘", "▁"], ["⌘▁", "⌘"]] };
  const whole = changed("mistral_joining", {}, never);
  const ids = [one, whole].map((json) => {
    const out = new TokenBuffer();
    characterBpe(json, addedOf(json))!(bytes, 0, bytes.length, out);
    return Array.from(out.ids.subarray(0, out.length));
  });
  assert(!text.includes("⌘"));
  assertEquals(ids[0], ids[1]);
  assertEquals(libraryBpe(one, {}).decode(ids[0]!), text);
});
