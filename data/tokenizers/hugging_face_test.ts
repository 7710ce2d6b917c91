import { assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { askPython, checksum, checksumsOf, python, randomTexts, TEXTS, TOKENIZERS } from "./testing.ts";
import { withFiles } from "../testing.ts";
import { TokenBuffer } from "./token_buffer.ts";
import { openTokenizer, type Tokenizer } from "../tokenizer.ts";

/** Opens a tokenizer.json with its end of text. */
async function open(json: unknown, eos_token = "<|endoftext|>"): Promise<Tokenizer> {
  let tokenizer: Tokenizer | undefined;
  await withFiles({ "tokenizer.json": json, "tokenizer_config.json": { eos_token } }, async (directory) => {
    tokenizer = await openTokenizer(directory);
  });
  return tokenizer!;
}

for (const [name, json] of TOKENIZERS) {
  const added = json.added_tokens as { id: number; content: string; special: boolean }[];
  const tokenizer = await open(json, added.find(({ special }) => special)!.content);

  Deno.test(`${name} gives the ids of Python's tokenizers`, () => {
    const checksums = checksumsOf(name);
    for (const [i, text] of TEXTS.entries()) {
      assertEquals(checksum(tokenizer.encode(text)), checksums[i], JSON.stringify(text));
    }
  });

  Deno.test(`${name} decodes an id that it lacks as nothing, as transformers does`, () => {
    const ids = tokenizer.encode("one 👍 two"), lacking = tokenizer.vocab_size + 3;
    assertEquals([tokenizer.decode([lacking]), tokenizer.decode([lacking, 1e6])], ["", ""]);
    const mixed = Array.from(ids).flatMap((id) => [lacking, id]), text = tokenizer.decode(ids);
    const stream = tokenizer.stream();
    assertEquals(tokenizer.decode(mixed), text);
    assertEquals(mixed.map((id) => stream.write(id)).join("") + stream.end(), text);
    assertThrows(() => tokenizer.decode([-1]), RangeError, "Cannot decode token -1");
  });

  Deno.test({
    name: `${name} gives the ids and texts of Python's tokenizers for random text (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: async () => {
      const texts = randomTexts(1500, Math.floor(Math.random() * 2 ** 32));
      const { ids, decoded } = await askPython<{ ids: number[][]; decoded: string[] }>(
        `
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_str(json.dumps(argument["json"]))
tokenizer.encode_special_tokens = True
ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in argument["texts"]]
mixed = [[m for id in i for m in (id, 5000)] for i in ids]
print(json.dumps(dict(ids=ids, decoded=[tokenizer.decode(i, skip_special_tokens=False) for i in mixed])))`,
        { json, texts },
      );
      for (const [i, text] of texts.entries()) {
        assertEquals(Array.from(tokenizer.encode(text)), ids[i], JSON.stringify(text));
        const mixed = ids[i]!.flatMap((id) => [id, 5000]); // an id that none of them has
        assertEquals(tokenizer.decode(mixed), decoded[i], JSON.stringify(text));
      }
    },
  });
}

const gpt2Like = TOKENIZERS.get("gpt2_like")! as {
  model: { vocab: Record<string, number>; merges: [string, string][] };
  [key: string]: unknown;
};
const SPECIAL: Record<string, number> = { "<|endoftext|>": 400, "<|im_start|>": 401 }; // its tokens that text never becomes

/** A tokenizer.json like that of GPT-2 with some parts replaced. */
function changed(parts: Record<string, unknown>, model: Record<string, unknown> = {}): unknown {
  return { ...gpt2Like, ...parts, model: { ...gpt2Like.model, ...model } };
}

function cutBy(...pretokenizers: Record<string, unknown>[]): unknown {
  return changed({ pre_tokenizer: { type: "Sequence", pretokenizers } });
}

const BYTE_LEVEL = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
const SPLIT = { type: "Split", behavior: "Isolated", invert: false };
const FLAGS = { special: false, single_word: false, lstrip: false, rstrip: false, normalized: false };

const UNSUPPORTED: [string, unknown, string][] = [
  [
    "WordPiece",
    changed({ pre_tokenizer: null }, { type: "WordPiece" }),
    "its model is WordPiece, should be BPE",
  ],
  ["Unigram", { model: { type: "Unigram", vocab: [["a", -1]] } }, "its model is Unigram, should be BPE"],
  [
    "other BPE",
    changed({ pre_tokenizer: null }),
    "no ByteLevel and its model no byte_fallback, should have one",
  ],
  ["dropout", changed({}, { dropout: 0.1 }), "its model has dropout 0.1, should have none"],
  [
    "a suffix",
    changed({}, { end_of_word_suffix: "</w>" }),
    'has end_of_word_suffix "</w>", should have none',
  ],
  ["NFKC", changed({ normalizer: { type: "NFKC" } }), "its normalizer has NFKC, should have NFC or none"],
  [
    "Punctuation",
    cutBy({ type: "Punctuation" }, BYTE_LEVEL),
    "has Punctuation, should have Split, Digits and ByteLevel",
  ],
  ["ByteLevel first", cutBy(BYTE_LEVEL, { type: "Digits" }), "ends with Digits, should end with ByteLevel"],
  [
    "a blank before every piece",
    cutBy({ type: "Digits" }, { type: "ByteLevel" }),
    "has add_prefix_space behind Digits, should have ByteLevel alone",
  ],
  [
    "MergedWithNext",
    cutBy({ ...SPLIT, pattern: { String: "a" }, behavior: "MergedWithNext" }, BYTE_LEVEL),
    "a Split with behavior MergedWithNext, should be Isolated or Removed",
  ],
  [
    "an atomic group",
    cutBy({ ...SPLIT, pattern: { Regex: "(?>a+)b" } }, BYTE_LEVEL),
    "which are not supported",
  ],
  [
    "a possessive quantifier",
    cutBy({ ...SPLIT, pattern: { Regex: "a++b" } }, BYTE_LEVEL),
    "which are not supported",
  ],
  [
    "an unknown property",
    cutBy({ ...SPLIT, pattern: { Regex: "\\p{Foo}" } }, BYTE_LEVEL),
    "has the pattern \\p{Foo}",
  ],
  [
    "an added token by words",
    changed({ added_tokens: [{ ...FLAGS, id: 402, content: "x", single_word: true }] }),
    'its added token "x" has single_word, should not have it',
  ],
  [
    "a merge of no tokens",
    changed({}, { merges: [["a", "Ġ?"]] }),
    'its merge 0 is ["a","Ġ?"], should be two tokens',
  ],
  [
    "a huge id",
    changed({}, { vocab: { a: 99999999 } }),
    "has the id 99999999, should have none above 16777216",
  ],
  [
    "an unknown byte",
    changed({}, { vocab: { a: 0 }, merges: [], unk_token: "a" }),
    "its vocabulary lacks byte 0 and it has an unk_token, should have all bytes",
  ],
  [
    "added_tokens that are no list",
    changed({ added_tokens: {} }),
    "a part of it is not of the kind that it has",
  ],
  [
    "an added token without a text",
    changed({ added_tokens: [{}] }),
    "a part of it is not of the kind that it has",
  ],
  [
    "NFKC before characters",
    { ...TOKENIZERS.get("gemma_like")!, normalizer: { type: "NFKC" } },
    "its normalizer has NFKC, should have Prepend or Replace",
  ],
  [
    "a regular expression before characters",
    {
      ...TOKENIZERS.get("gemma_like")!,
      normalizer: { type: "Replace", pattern: { Regex: " " }, content: "▁" },
    },
    "its normalizer has a Replace of a regular expression, should have one of a text",
  ],
];

for (const [name, json, message] of UNSUPPORTED) {
  Deno.test(`openTokenizer() refuses a tokenizer.json with ${name}`, async () => {
    const error = await assertRejects(() => open(json), UserError, message);
    assertMatch(
      error.message,
      /^Cannot use ".*\/tokenizer\.json": .*; supported are byte-level BPE .* and BPE with/,
    );
  });
}

Deno.test("openTokenizer() says what is wrong with a file that is no tokenizer.json", async () => {
  const files = {
    "{": "Cannot read",
    "[]": "should be an object",
    "{}": "no model with a vocab",
    '{"model":3}': "model",
  };
  for (const [text, message] of Object.entries(files)) {
    await withFiles({ "tokenizer.json": text }, async (directory) => {
      await assertRejects(() => openTokenizer(directory), UserError, message);
    });
  }
});

Deno.test("openTokenizer() says when no token ends a text", async () => {
  const message = 'beside it is "</s>", should be a token of the vocabulary, since it goes between documents';
  await assertRejects(() => open(gpt2Like, "</s>"), UserError, message);
});

Deno.test("openTokenizer() takes the path of a tokenizer.json, and a usual end of text without configuration", () =>
  withFiles({ "tokenizer.json": gpt2Like }, async (directory) => {
    const tokenizer = await openTokenizer(`${directory}/tokenizer.json`);
    assertEquals([tokenizer.name, tokenizer.eot], [`${directory}/tokenizer.json`, 400]);
    assertEquals(JSON.parse(tokenizer.files()["tokenizer_config.json"]!).eos_token, "<|endoftext|>");
  }));

/** Opens a tokenizer.json, given as text or value, with a tokenizer_config.json. */
async function openWith(json: unknown, config: unknown): Promise<Tokenizer> {
  let tokenizer: Tokenizer | undefined;
  await withFiles({ "tokenizer.json": json, "tokenizer_config.json": config }, async (directory) => {
    tokenizer = await openTokenizer(directory);
  });
  return tokenizer!;
}

/** A post_processor that puts tokens of gpt2Like before a text and behind it. */
function template(before: string[], behind: string[] = [], ids = SPECIAL): unknown {
  const special = (id: string) => ({ SpecialToken: { id, type_id: 0 } });
  return {
    type: "TemplateProcessing",
    single: [...before.map(special), { Sequence: { id: "A", type_id: 0 } }, ...behind.map(special)],
    pair: [],
    special_tokens: Object.fromEntries(
      [...before, ...behind].map((id) => [id, { id, ids: [ids[id]], tokens: [id] }]),
    ),
  };
}

const [END, START] = ["<|endoftext|>", "<|im_start|>"], BYTES = { type: "ByteLevel", trim_offsets: false };

Deno.test("a tokenizer begins documents and prompts with what its post_processor adds, and is handed on as it is", async () => {
  for (
    const post_processor of [template([START]), { type: "Sequence", processors: [BYTES, template([START])] }]
  ) {
    const text = `${JSON.stringify(changed({ post_processor }), null, 1)}\n\n`;
    const tokenizer = await openWith(text, { eos_token: { content: END }, model_max_length: 7 });
    assertEquals([tokenizer.bos, tokenizer.eot], [401, 400]);
    assertEquals([tokenizer.prompt("ab"), tokenizer.prompt("")], [[401, ...tokenizer.encode("ab")], [401]]);
    const { "tokenizer.json": json, "tokenizer_config.json": config } = tokenizer.files();
    assertEquals(json, text);
    assertEquals(JSON.parse(config!), {
      ...{ eos_token: END, model_max_length: 7, tokenizer_class: "PreTrainedTokenizerFast" },
      ...{ bos_token: START, add_bos_token: true, add_eos_token: false },
    });
  }
});

Deno.test("a tokenizer that adds nothing begins documents with the end of text, and prompts where it is handed on", async () => {
  const part = (post_processor: unknown) => `"post_processor":${JSON.stringify(post_processor)}`;
  for (const post_processor of [null, BYTES, template([]), { type: "Sequence", processors: [BYTES] }]) {
    const text = JSON.stringify(changed({ post_processor, truncation: { max_length: 4 } }));
    const tokenizer = await openWith(text, { eos_token: END }), ids = Array.from(tokenizer.encode("ab"));
    assertEquals([tokenizer.bos, tokenizer.eot, tokenizer.prompt("ab"), tokenizer.prompt("")], [
      400,
      400,
      ids,
      [400],
    ]);
    const { "tokenizer.json": json, "tokenizer_config.json": config } = tokenizer.files();
    const own = JSON.parse(json!);
    assertEquals(own.post_processor.single, [
      { SpecialToken: { id: END, type_id: 0 } },
      { Sequence: { id: "A", type_id: 0 } },
    ]);
    assertEquals(
      json,
      text.replace(part(post_processor), part(own.post_processor)).replace('{"max_length":4}', "null"),
    );
    const again = await openWith(json, config);
    assertEquals([again.bos, again.eot, again.prompt("ab")], [400, 400, [400, ...ids]]);
    assertEquals(again.files(), { "tokenizer.json": json!, "tokenizer_config.json": config! });
  }
  const { post_processor: _, ...without } = gpt2Like, end = await openWith(without, { eos_token: END });
  assertEquals((await openWith(end.files()["tokenizer.json"], { eos_token: END })).prompt("a")[0], 400);
});

Deno.test("a tokenizer can be handed on to begin texts as they were trained on", async () => {
  const tokenizer = await openWith(changed({ post_processor: template([START]) }), { eos_token: END });
  const files = tokenizer.files(tokenizer.eot);
  const other = await openWith(files["tokenizer.json"], files["tokenizer_config.json"]);
  assertEquals([other.bos, other.prompt("")], [400, [400]]);
  assertEquals(JSON.parse(files["tokenizer_config.json"]!).bos_token, END);
  const message = "Cannot begin texts with token 5: the tokenizer has 401 for it and ends them with 400";
  assertThrows(() => tokenizer.files(5), UserError, message);
});

Deno.test("openTokenizer() refuses what a post_processor adds beside one token before the text", async () => {
  const cases: [unknown, string][] = [
    [
      template([START, END]),
      "its post_processor begins texts with <|im_start|> <|endoftext|>, should add one token",
    ],
    [{ type: "TemplateProcessing" }, "a part of it is not of the kind that it has in every tokenizer.json"],
    [template([START], [END]), "its post_processor ends texts with <|endoftext|>, should add nothing there"],
    [
      { type: "RobertaProcessing", sep: [END, 400], cls: [START, 401] },
      "its post_processor has RobertaProcessing",
    ],
    [
      template([START], [], { ...SPECIAL, [START]: 3 }),
      "its post_processor has <|im_start|> as 3, its vocabulary as 401, should be the same",
    ],
  ];
  for (const [post_processor, message] of cases) {
    await assertRejects(() => openWith(changed({ post_processor }), { eos_token: END }), UserError, message);
  }
});

Deno.test("a tokenizer.json may have its vocabulary in any order, escapes, and merges as texts", () => {
  const { vocab, merges } = gpt2Like.model, reversed = Object.fromEntries(Object.entries(vocab).reverse());
  const json = changed({}, { vocab: reversed, merges: merges.map((pair) => pair.join(" ")) });
  const escape = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const text = JSON.stringify(json, null, 2).replace(/[^\n -~]/g, escape);
  return withFiles({ "tokenizer.json": text }, async (directory) => {
    const tokenizer = await openTokenizer(directory), same = await open(gpt2Like);
    for (const text of TEXTS) assertEquals(tokenizer.encode(text), same.encode(text));
  });
});

Deno.test("added tokens have the ids that tokenizers gives them, whatever the file says", async () => {
  const added = [["a", 7], ["<one>", 900], ["<two>", 900]].map(([content, id]) => ({
    ...FLAGS,
    content,
    id,
  }));
  const tokenizer = await open(changed({ added_tokens: added }), "<one>"), [a] = tokenizer.encode("a");
  assertEquals(Array.from(tokenizer.encode("a<one><two>")), [a, 400, 401]);
  assertEquals([tokenizer.eot, tokenizer.vocab_size, tokenizer.decode([401])], [400, 402, "<two>"]);
});

Deno.test("an id between the tokens gives no text", async () => {
  const vocab: Record<string, number> = { ...gpt2Like.model.vocab, "<one>": 500 },
    added = { ...FLAGS, content: "<one>", id: 500 };
  const tokenizer = await open(changed({ added_tokens: [added] }, { vocab }), "<one>"), a = vocab.a!;
  assertEquals([tokenizer.eot, tokenizer.vocab_size, tokenizer.decode([a, 450, 500])], [500, 501, "a<one>"]);
});

Deno.test("a tokenizer of the library streams the text that it decodes", async () => {
  for (const name of ["llama2_like", "mistral_like", "gemma_like"]) {
    const tokenizer = await open(TOKENIZERS.get(name), "</s>"), stream = tokenizer.stream();
    const text = "one 👍 𝄞é\n  two\n\n three ꙮ", ids = tokenizer.encode(text);
    assertEquals(Array.from(ids, (id) => stream.write(id)).join("") + stream.end(), text, name);
    assertEquals(tokenizer.decode(ids), text, name);
  }
});

Deno.test("encodeUtf8() takes text from the middle of bytes and appends", async () => {
  const tokenizer = await open(TOKENIZERS.get("qwen_like")), out = new TokenBuffer();
  const utf8 = new TextEncoder(), bytes = utf8.encode(TEXTS.join(""));
  for (let i = 0, from = 0; i < TEXTS.length; i++) {
    const to = from + utf8.encode(TEXTS[i]).length, start = out.length;
    tokenizer.encodeUtf8(bytes, from, to, out);
    assertEquals(out.ids.slice(start, out.length), tokenizer.encode(TEXTS[i]!), JSON.stringify(TEXTS[i]));
    from = to;
  }
});
