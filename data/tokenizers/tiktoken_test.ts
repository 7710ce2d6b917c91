import { Tokenizer as Library } from "@huggingface/tokenizers";
import cl100kRanks from "gpt-tokenizer/data/cl100k_base.tiktoken" with { type: "text" };
import o200kRanks from "gpt-tokenizer/data/o200k_base.tiktoken" with { type: "text" };
import gpt2Ranks from "gpt-tokenizer/data/r50k_base.tiktoken" with { type: "text" };
import { assertEquals } from "@std/assert";
import { askPython, checksum, checksumsOf, python, randomTexts, TEXTS } from "./testing.ts";
import { withFiles } from "../testing.ts";
import { openTokenizer, VOCABULARIES } from "../tokenizer.ts";

const TEXT = "Größe, don't: 12345 \n\n  中文 HTTPServer 👍";

// deno-fmt-ignore
const ENCODINGS = {
  gpt2: {
    base: "r50k_base", ranks: gpt2Ranks, tokens: 50256, eot: 50256, special: {},
    ids: [8642, 9101, 39683, 68, 11, 836, 470, 25, 17031, 2231, 220, 628, 220, 220, 40792, 23877, 229, 38288, 18497, 50169, 235],
  },
  cl100k: {
    base: "cl100k_base", ranks: cl100kRanks, tokens: 100256, eot: 100257,
    special: { "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276 },
    ids: [6600, 80040, 11, 1541, 956, 25, 220, 4513, 1774, 4815, 220, 73958, 17161, 10339, 5592, 62904, 235],
  },
  o200k: {
    base: "o200k_base", ranks: o200kRanks, tokens: 199998, eot: 199999, special: { "<|endofprompt|>": 200018 },
    ids: [3193, 52715, 11, 4128, 25, 220, 7633, 2548, 1202, 220, 83711, 21929, 6444, 160433],
  },
};

for (const [name, { base, ranks, tokens, eot, special, ids }] of Object.entries(ENCODINGS)) {
  const tokenizer = await openTokenizer(name);
  const lines = ranks.trim().split("\n");

  Deno.test(`${name} encodes as tiktoken does`, () => {
    assertEquals(Array.from(tokenizer.encode(TEXT)), ids);
    const checksums = checksumsOf(name);
    for (const [i, text] of TEXTS.entries()) {
      assertEquals(checksum(tokenizer.encode(text)), checksums[i], JSON.stringify(text));
    }
  });

  Deno.test(`${name} decodes what it encodes`, () => {
    for (const text of [...TEXTS, ...randomTexts(300, 1)]) {
      assertEquals(tokenizer.decode(tokenizer.encode(text)), text);
    }
  });

  Deno.test(`${name} has the tokens of its rank file, one a line in the order of the ids`, () => {
    for (let id = 0; id < lines.length; id += 97) {
      const [base64, rank] = lines[id]!.split(" "), bytes = Uint8Array.fromBase64(base64!);
      assertEquals(tokenizer.decode([id]), new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
      assertEquals(Number(rank), id);
    }
    assertEquals(lines.length, tokens);
  });

  Deno.test(`${name} has tiktoken's special tokens, and ids that give no text`, () => {
    const all = { "<|endoftext|>": eot, ...special };
    assertEquals([tokenizer.eot, tokenizer.vocab_size], [eot, VOCABULARIES[name]!]);
    const unused = [];
    for (let id = tokens; id < tokenizer.vocab_size; id++) {
      const text = tokenizer.decode([id]);
      if (text === "") unused.push(id);
      else assertEquals(Object.entries(all).find(([content]) => content === text)?.[1], id);
    }
    assertEquals(unused.length, tokenizer.vocab_size - tokens - Object.keys(all).length);
  });

  Deno.test(`${name} gives the same ids when its files are read as any tokenizer.json`, () => {
    const files = tokenizer.files(), config = { eos_token: "<|endoftext|>" };
    return withFiles(
      { "tokenizer.json": files["tokenizer.json"], "tokenizer_config.json": config },
      async (directory) => {
        const other = await openTokenizer(directory);
        assertEquals([other.name, other.vocab_size, other.eot], [directory, tokenizer.vocab_size, eot]);
        for (const text of TEXTS) {
          assertEquals(other.encode(text), tokenizer.encode(text), JSON.stringify(text));
        }
      },
    );
  });

  Deno.test(`${name} gives the same ids when its files are read by Hugging Face's library`, () => {
    const files = tokenizer.files();
    const library = new Library(
      JSON.parse(files["tokenizer.json"]!),
      JSON.parse(files["tokenizer_config.json"]!),
    );
    for (const text of TEXTS) {
      if (/[\u0085\ufeff\u017f]|<\|endof/.test(text)) {
        continue; // where its patterns are JavaScript's, and special tokens
      }
      assertEquals([eot, ...tokenizer.encode(text)], library.encode(text).ids, JSON.stringify(text));
    }
  });

  Deno.test({
    name: `${name} gives tiktoken's ids for random text of every plane (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: async () => {
      const texts = randomTexts(3000, Math.floor(Math.random() * 2 ** 32));
      const theirs = await askPython<number[][]>(
        `
import base64, tiktoken, tiktoken_ext.openai_public as openai
ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in argument["ranks"])}
openai.load_tiktoken_bpe = lambda *_, **__: ranks
encoding = tiktoken.Encoding(**getattr(openai, argument["base"])())
print(json.dumps([encoding.encode_ordinary(text) for text in argument["texts"]]))`,
        { base, ranks: lines, texts },
      );
      for (const [i, text] of texts.entries()) {
        assertEquals(Array.from(tokenizer.encode(text)), theirs[i], JSON.stringify(text));
      }
    },
  });

  Deno.test({
    name: `${name} gives tiktoken's pieces around every code point (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: async () => {
      const texts: string[] = []; // of 1024 code points each, every one between others that patterns treat differently
      for (let start = 0; start < 0x110000; start += 1024) {
        let text = "";
        for (let point = start; point < start + 1024; point++) {
          if (point < 0xd800 || point > 0xdfff) {
            text += `a${String.fromCodePoint(point)}B 1${String.fromCodePoint(point)} \n`;
          }
        }
        texts.push(text);
      }
      const theirs = await askPython<string[]>(
        `
import base64, tiktoken, tiktoken_ext.openai_public as openai
ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in argument["ranks"])}
openai.load_tiktoken_bpe = lambda *_, **__: ranks
encoding = tiktoken.Encoding(**getattr(openai, argument["base"])())
def checksum(ids):
    hash = 0x811C9DC5
    for id in ids: hash = (hash ^ id) * 0x01000193 & 0xFFFFFFFF
    return f"{hash:08x}"
print(json.dumps([checksum(encoding.encode_ordinary(text)) for text in argument["texts"]]))`,
        { base, ranks: lines, texts },
      );
      for (const [i, text] of texts.entries()) {
        assertEquals(checksum(tokenizer.encode(text)), theirs[i], `code points from ${i * 1024}`);
      }
    },
  });
}
