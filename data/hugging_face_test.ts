import { assert, assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import {
  askPython,
  checksum,
  checksumsOf,
  python,
  randomTexts,
  TEXTS,
  TOKENIZERS,
  withFiles,
} from "./test_tokenizers.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";

const LIBRARY = ["llama2_like", "gemma_like", "unigram", "word_piece"]; // what our own encoder is not for

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
print(json.dumps(dict(ids=ids, decoded=[tokenizer.decode(i, skip_special_tokens=False) for i in ids])))`,
        { json, texts },
      );
      for (const [i, text] of texts.entries()) {
        assertEquals(Array.from(tokenizer.encode(text)), ids[i], JSON.stringify(text));
        assertEquals(tokenizer.decode(ids[i]!), decoded[i], JSON.stringify(text));
      }
    },
  });
}
void assert;
void assertRejects;
void UserError;
void LIBRARY;
