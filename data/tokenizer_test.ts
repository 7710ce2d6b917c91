import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { UserError } from "../base/errors.ts";
import { withFiles } from "./testing.ts";
import { askPython, python, TEXTS } from "./tokenizers/testing.ts";
import { openTokenizer, type Tokenizer, VOCABULARIES } from "./tokenizer.ts";

for (const name of Object.keys(VOCABULARIES)) {
  const tokenizer = await openTokenizer(name), { eot, vocab_size } = tokenizer;

  Deno.test(`${name} is as VOCABULARIES says`, () => {
    assertEquals([tokenizer.name, vocab_size], [name, VOCABULARIES[name]!]);
    assertEquals(tokenizer.decode([eot]), "<|endoftext|>");
  });

  Deno.test(`${name} takes the text of a special token for text`, () => {
    const ids = tokenizer.encode("a<|endoftext|>b<|endofprompt|>");
    assertEquals(Array.from(ids).filter((id) => tokenizer.decode([id]).startsWith("<|end")), []);
    assertEquals(tokenizer.decode(ids), "a<|endoftext|>b<|endofprompt|>");
  });

  Deno.test(`${name} begins documents and prompts with the end of text, in its directory too`, () =>
    withFiles(tokenizer.files(), async (directory) => {
      const same = await openTokenizer(directory);
      for (const { bos, prompt } of [tokenizer, same]) {
        assertEquals([bos, prompt("a b"), prompt("")], [eot, [eot, ...tokenizer.encode("a b")], [eot]]);
      }
    }));

  Deno.test(`${name} of an earlier directory, which begins no text with a token, does not either`, () => {
    const files = tokenizer.files(), { post_processor } = JSON.parse(files["tokenizer.json"]!);
    const json = files["tokenizer.json"]!.replace(JSON.stringify(post_processor), "null");
    const sha256 = createHash("sha256").update(json).digest("hex");
    const config = files["tokenizer_config.json"]!.replace(/[0-9a-f]{64}/, sha256);
    return withFiles({ "tokenizer.json": json, "tokenizer_config.json": config }, async (directory) => {
      const old = await openTokenizer(directory);
      assertEquals([old.name, old.bos, old.prompt("a b"), old.prompt("")], [
        name,
        eot,
        Array.from(tokenizer.encode("a b")),
        [eot],
      ]);
      assertEquals(old.files(), files);
    });
  });

  Deno.test(`${name} encodes a lone surrogate as U+FFFD`, () => {
    assertEquals(tokenizer.encode("a\ud800b"), tokenizer.encode("a\ufffdb"));
  });

  Deno.test(`${name} decodes bytes that are not UTF-8 as U+FFFD, by the longest beginnings of characters`, () => {
    const [first, second] = tokenizer.encode("中").length > 1
      ? tokenizer.encode("中")
      : tokenizer.encode("\u0897");
    assertEquals(tokenizer.decode([first!, ...tokenizer.encode("a")]), "\ufffda");
    assertEquals(tokenizer.decode([second!]).replaceAll("\ufffd", ""), "");
  });

  Deno.test(`${name} streams characters only when they are whole`, () => {
    const stream = tokenizer.stream();
    const written = Array.from(tokenizer.encode("👍 né"), (id) => stream.write(id)).concat(stream.end());
    assertEquals(written.join(""), "👍 né");
    assertEquals(written.some((text) => text.includes("\ufffd")), false);
  });

  Deno.test(`${name} decodes an id that it lacks as nothing, and no number that is no id`, () => {
    const [first, ...rest] = tokenizer.encode("né 👍"), lacking = [vocab_size, vocab_size + 1e6];
    assertEquals(tokenizer.decode(lacking), "");
    assertEquals(tokenizer.decode([first!, ...rest.flatMap((id) => [...lacking, id])]), "né 👍");
    for (const id of [-1, 0.5, NaN]) {
      assertThrows(() => tokenizer.decode([id]), RangeError, `Cannot decode token ${id}`);
    }
  });

  Deno.test(`${name} is recognised in a directory with its files`, () =>
    withFiles(tokenizer.files(), async (directory) => {
      assertEquals((await openTokenizer(directory)).name, name);
    }));

  Deno.test(`${name} is another tokenizer when its tokenizer.json was changed`, () => {
    const { "tokenizer.json": json, ...config } = tokenizer.files();
    return withFiles({ "tokenizer.json": `${json}\n`, ...config }, async (directory) => {
      assertEquals((await openTokenizer(directory)).name, directory);
    });
  });

  Deno.test({
    name: `${name} gives the same ids in transformers and tokenizers (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: () =>
      withFiles(tokenizer.files(), async (directory) => {
        const texts = TEXTS.filter((text) => !text.includes("<|endoftext|>"));
        const result = await askPython<Record<string, unknown>>(
          `
from tokenizers import Tokenizer
from transformers import AutoTokenizer
a, b = AutoTokenizer.from_pretrained(argument["directory"]), Tokenizer.from_file(argument["directory"] + "/tokenizer.json")
ids = [a(text)["input_ids"] for text in argument["texts"]] # begins with eos
same = ids == [b.encode(text).ids for text in argument["texts"]]
print(json.dumps(dict(ids=ids, same=same, decoded=[a.decode(i) for i in ids], eos=a.eos_token_id)))`,
          { directory, texts },
        );
        assertEquals(result.ids, texts.map((text) => tokenizer.prompt(text)));
        assertEquals([result.same, result.eos], [true, eot]);
        assertEquals(result.decoded, texts.map((text) => `<|endoftext|>${text}`));
      }),
  });
}

Deno.test("bytes encodes UTF-8", async () => {
  const bytes: Tokenizer = await openTokenizer("bytes");
  assertEquals(Array.from(bytes.encode("aé")), [97, 0xc3, 0xa9]);
  assertEquals([bytes.vocab_size, bytes.eot], [257, 256]);
  assertEquals(bytes.decode([97, 0xc3, 0xa9, 256]), "aé<|endoftext|>");
});

Deno.test("openTokenizer() names the tokenizers there are", async () => {
  const message = 'Cannot open tokenizer "gpt3": it is neither bytes, gpt2, cl100k, o200k ' +
    `nor a tokenizer.json or a directory that holds one in ${Deno.cwd()}`;
  await assertRejects(() => openTokenizer("gpt3"), UserError, message);
  await assertRejects(
    () => openTokenizer("no/tokenizer.json"),
    UserError,
    'Cannot open tokenizer "no/tokenizer.json"',
  );
});
