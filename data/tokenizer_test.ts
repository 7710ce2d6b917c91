import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { gpt2Scanner as pieceEnd } from "./scanners.ts";
import { TokenBuffer } from "./token_buffer.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";

const fixtures = new URL("../tests/fixtures/", import.meta.url).pathname;
const python = Deno.env.get("LOAM_PYTHON");

const gpt2 = await openTokenizer("gpt2");
const bytes = await openTokenizer("bytes");
const golden: { text: string; ids: number[] }[] = Deno.readTextFileSync(`${fixtures}gpt2.jsonl`).trim().split(
  "\n",
)
  .map((line) => JSON.parse(line));

/** Runs with a directory that holds the tokenizer's files, its configuration changed. */
async function withFiles(
  tokenizer: Tokenizer,
  change: (config: Record<string, unknown>) => void,
  run: (directory: string) => Promise<void>,
): Promise<void> {
  const directory = Deno.makeTempDirSync();
  try {
    const files = tokenizer.files();
    const config = JSON.parse(files["tokenizer_config.json"]!);
    change(config);
    Deno.writeTextFileSync(`${directory}/tokenizer.json`, files["tokenizer.json"]!);
    Deno.writeTextFileSync(`${directory}/tokenizer_config.json`, JSON.stringify(config));
    await run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

Deno.test("gpt2 encodes as tiktoken does", () => {
  for (const { text, ids } of golden) assertEquals(Array.from(gpt2.encode(text)), ids, JSON.stringify(text));
});

Deno.test("gpt2 appends the ids of UTF-8 bytes to a buffer", () => {
  const text = new TextEncoder().encode("--Größe 👍--"), out = new TokenBuffer();
  out.push(gpt2.eot);
  gpt2.encodeUtf8(text, 2, text.length - 2, out);
  assertEquals(Array.from(out.ids.subarray(0, out.length)), [gpt2.eot, ...gpt2.encode("Größe 👍")]);
});

Deno.test("gpt2 decodes what it encodes", () => {
  for (const { text, ids } of golden) assertEquals(gpt2.decode(ids), text);
});

Deno.test("gpt2 encodes a piece the same way again from its cache", () => {
  const text = "unbelievabilities unbelievabilities";
  assertEquals(gpt2.encode(text), gpt2.encode(text));
  assertEquals(gpt2.decode(gpt2.encode(text)), text);
});

Deno.test("gpt2 encodes a piece of a million letters", () => {
  const text = "ACGTTGCA".repeat(125_000);
  assertEquals(gpt2.decode(gpt2.encode(text)), text);
});

Deno.test("pieceEnd() cuts where GPT-2's pattern does", () => {
  const S = "\\p{White_Space}", N = "\\P{White_Space}"; // what \s and \S mean in the pattern's own language
  const pattern = new RegExp(
    `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${S}\\p{L}\\p{N}]+|${S}+(?!${N})|${S}+`,
    "gu",
  );
  const parts = [
    "a",
    "Z",
    "é",
    "中",
    "1",
    "٣",
    "'",
    "s",
    "ll",
    "ve",
    "re",
    " ",
    " ",
    "\n",
    "\u00a0",
    "\u0085",
    "\ufeff",
    "!",
    "👍",
  ];
  let state = 1;
  for (let n = 0; n < 2000; n++) {
    let text = "";
    for (let k = 0; k < 12; k++) {
      text += parts[(state = Math.imul(state, 1103515245) + 12345 >>> 0) % parts.length];
    }
    const utf8 = new TextEncoder().encode(text);
    const pieces: string[] = [];
    for (let i = 0; i < utf8.length;) {
      const end = pieceEnd(utf8, i, utf8.length);
      pieces.push(new TextDecoder("utf-8", { ignoreBOM: true }).decode(utf8.subarray(i, end)));
      i = end;
    }
    assertEquals(pieces, text.match(pattern)!, JSON.stringify(text));
  }
});

Deno.test("bytes encodes UTF-8", () => {
  assertEquals(Array.from(bytes.encode("aé")), [97, 0xc3, 0xa9]);
  assertEquals([bytes.vocab_size, bytes.eot], [257, 256]);
  assertEquals(bytes.decode([97, 0xc3, 0xa9, 256]), "aé<|endoftext|>");
});

for (const tokenizer of [gpt2, bytes]) {
  const { name, eot } = tokenizer;

  Deno.test(`${name} takes the text of a special token for text`, () => {
    const ids = tokenizer.encode("a<|endoftext|>b");
    assertEquals(ids.includes(eot), false);
    assertEquals(tokenizer.decode(ids), "a<|endoftext|>b");
  });

  Deno.test(`${name} encodes a lone surrogate as U+FFFD`, () => {
    assertEquals(tokenizer.encode("a\ud800b"), tokenizer.encode("a\ufffdb"));
  });

  Deno.test(`${name} streams characters only when they are whole`, () => {
    const stream = tokenizer.stream();
    const written = Array.from(tokenizer.encode("👍 né"), (id) => stream.write(id)).concat(stream.end());
    assertEquals(written.join(""), "👍 né");
    assertEquals(written.some((text) => text.includes("\ufffd")), false);
  });

  Deno.test(`${name} says which ids it has when asked to decode another`, () => {
    assertThrows(
      () => tokenizer.decode([eot + 1]),
      RangeError,
      `Cannot decode token ${eot + 1}: the ids of tokenizer "${name}" are 0 to ${eot}`,
    );
  });

  Deno.test(`${name} is recognised in a directory with its files`, () =>
    withFiles(tokenizer, () => {}, async (directory) => {
      assertEquals((await openTokenizer(directory)).name, name);
    }));

  Deno.test(`${name} gives the same ids when its files are read by Hugging Face's library`, () =>
    withFiles(tokenizer, (config) => delete config.loam_tokenizer, async (directory) => {
      const other = await openTokenizer(directory);
      assertEquals([other.name, other.vocab_size, other.eot], [directory, tokenizer.vocab_size, eot]);
      for (const { text } of golden) {
        if (/[\u0085\ufeff]/.test(text)) continue; // its \s is JavaScript's, not Unicode's
        assertEquals(other.encode(text), tokenizer.encode(text), JSON.stringify(text));
        assertEquals(other.decode(other.encode(text)), text);
      }
      const stream = other.stream();
      const written = Array.from(other.encode("one\n👍 two\nthree"), (id) => stream.write(id));
      assertEquals(written.join("") + stream.end(), "one\n👍 two\nthree");
    }));

  Deno.test({
    name: `${name} gives the same ids in transformers and tokenizers (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: () =>
      withFiles(tokenizer, () => {}, async (directory) => {
        const texts = golden.map(({ text }) => text).filter((text) => !text.includes("<|endoftext|>"));
        Deno.writeTextFileSync(`${directory}/texts.json`, JSON.stringify(texts));
        const script = `
import json, sys
from tokenizers import Tokenizer
from transformers import AutoTokenizer
texts = json.load(open(sys.argv[1] + "/texts.json"))
a, b = AutoTokenizer.from_pretrained(sys.argv[1]), Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
ids = [a(text)["input_ids"] for text in texts]
print(json.dumps({"ids": ids, "same": ids == [b.encode(text).ids for text in texts],
                  "decoded": [a.decode(i) for i in ids], "eos": a.eos_token_id, "size": len(a)}))`;
        const { stdout } = await new Deno.Command(python!, { args: ["-c", script, directory] }).output();
        const result = JSON.parse(new TextDecoder().decode(stdout));
        assertEquals(result.ids, texts.map((text) => Array.from(tokenizer.encode(text))));
        assertEquals([result.same, result.eos, result.size], [true, eot, tokenizer.vocab_size]);
        assertEquals(result.decoded, texts);
      }),
  });
}

Deno.test("openTokenizer() names the tokenizers there are", async () => {
  await assertRejects(
    () => openTokenizer("gpt3"),
    UserError,
    'Cannot open tokenizer "gpt3": it is neither bytes, gpt2, cl100k, o200k nor a tokenizer.json or a directory',
  );
});

Deno.test("openTokenizer() says when a directory names no end-of-text token", () =>
  withFiles(bytes, (config) => {
    delete config.loam_tokenizer;
    config.eos_token = "</s>";
  }, async (directory) => {
    await assertRejects(
      () => openTokenizer(directory),
      UserError,
      'the eos_token in tokenizer_config.json beside it is "</s>", should be a token of the vocabulary',
    );
  }));
