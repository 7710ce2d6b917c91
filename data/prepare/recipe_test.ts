import { assertEquals } from "@std/assert";
import type { Recipe } from "../meta.ts";
import { differences } from "./recipe.ts";

const recipe: Recipe = {
  tokenizer: "gpt2",
  tokenizer_sha256: "",
  vocab_size: 50257,
  bos: 50256,
  eot: 50256,
  token_bytes: 2,
  inputs: [
    { name: "a.txt", bytes: 100, version: "2026-01-01T00:00:00.000Z" },
    { name: "b.txt", bytes: 200, version: "2026-01-02T00:00:00.000Z" },
  ],
  sources: [{ weight: null, files: 2 }],
  options: { column: "text", limit: null, skip_bad: false, seed: 1337 },
  part: null,
};
const [a, b] = recipe.inputs as [Recipe["inputs"][number], Recipe["inputs"][number]];

/** What differs when the recipe becomes another. */
function changed(to: Partial<Recipe>): string[] {
  return differences(recipe, { ...recipe, ...to });
}

Deno.test("differences() finds none between equal recipes, whatever the order of their keys", () => {
  assertEquals(differences(recipe, structuredClone(recipe)), []);
  assertEquals(
    differences(recipe, { ...recipe, options: { seed: 1337, skip_bad: false, limit: null, column: "text" } }),
    [],
  );
});

Deno.test("differences() names options with both values", () => {
  assertEquals(changed({ options: { ...recipe.options, limit: 5, seed: 1 } }), [
    "limit is not given there and 5 here",
    "seed is 1337 there and 1 here",
  ]);
});

Deno.test("differences() allows to turn skip_bad on and not off", () => {
  const on = { ...recipe, options: { ...recipe.options, skip_bad: true } };
  assertEquals(differences(recipe, on), []);
  assertEquals(differences(on, recipe), ["skip_bad is true there and false here"]);
});

Deno.test("differences() tells tokenizers apart by name, and files of one by content", () => {
  assertEquals(changed({ tokenizer: "bytes" }), ["tokenizer is gpt2 there and bytes here"]);
  const file = { ...recipe, tokenizer: ".", tokenizer_sha256: "0123456789abcdef" };
  assertEquals(differences(file, { ...file }), []);
  assertEquals(differences(file, { ...file, tokenizer_sha256: "fedcba9876543210" }), [
    "tokenizer is a tokenizer.json of SHA-256 0123456789ab... there and a tokenizer.json of SHA-256 fedcba987654... here",
  ]);
});

Deno.test("differences() names the token that documents begin with, which earlier recipes do not say", () => {
  const { bos: _, ...earlier } = recipe,
    what = "the token that documents begin with is 50256 there and 7 here";
  assertEquals(changed({ bos: 7 }), [what]);
  assertEquals(differences(earlier, recipe), []);
  assertEquals(differences(earlier, { ...recipe, bos: 7 }), [what]);
});

Deno.test("differences() names inputs that changed, came, went and moved", () => {
  const c = { name: "c.txt", bytes: 1, version: "" };
  assertEquals(changed({ inputs: [a, { ...b, bytes: 300 }] }), [
    'input "b.txt" has 200 bytes there and 300 here',
  ]);
  assertEquals(changed({ inputs: [{ ...a, version: "2026-03-01T00:00:00.000Z" }, b] }), [
    'input "a.txt" is of 2026-01-01T00:00:00.000Z there and 2026-03-01T00:00:00.000Z here',
  ]);
  assertEquals(changed({ inputs: [a, b, c] }), ['input "c.txt" is new']);
  assertEquals(changed({ inputs: [b] }), ['input "a.txt" is missing here']);
  assertEquals(changed({ inputs: [b, a] }), ['input 1 is "a.txt" there and "b.txt" here']);
  const many = Array.from({ length: 9 }, (_, i) => ({ ...c, name: `${i}.txt` }));
  assertEquals(changed({ inputs: [a, b, ...many] }), [
    'input "0.txt" is new',
    'input "1.txt" is new',
    'input "2.txt" is new',
    "and 6 more inputs",
  ]);
});

Deno.test("differences() names weights and parts", () => {
  const weighted = [{ weight: 0.8, files: 1 }, { weight: 0.2, files: 1 }];
  assertEquals(changed({ sources: weighted }), [
    "the mix of inputs is none there and 0.8 of 1 files and 0.2 of 1 files here",
  ]);
  const part = { index: 1, count: 4, files: 9, bytes: 9, sha256: "" };
  assertEquals(changed({ part }), ["the number of parts is 1 there and 4 here"]);
});

Deno.test("differences() names what a dataset of an older loam does not say", () => {
  assertEquals(differences({ tokenizer: "gpt2", options: {} }, { ...recipe, inputs: [] }), [
    "column is not given there and text here",
    "skip_bad is not given there and false here",
    "seed is not given there and 1337 here",
  ]);
});
