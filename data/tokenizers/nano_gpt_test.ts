import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { openTokenizer } from "../tokenizer.ts";
import { openMetaPkl } from "./nano_gpt.ts";
import { askPython, python } from "./testing.ts";
import { withFiles } from "../testing.ts";

const formats = new URL("../../tests/fixtures/formats/", import.meta.url).pathname;

/** The text of formats/nanogpt_char, and its characters by their ids: Python sorts them by code point, as Array.from splits them. */
const TEXT = "To be, or not to be:\nthat is the question. Größe 中文 👍\n";
const CHARACTERS = [...new Set(TEXT)].sort((a, b) => a.codePointAt(0)! - b.codePointAt(0)!);

/** Its ids. */
const ids = (text: string) => Array.from(text, (character) => CHARACTERS.indexOf(character));

for (const file of ["nanogpt_char/meta.pkl", ...[2, 3, 5].map((n) => `pickles/protocol_${n}.pkl`)]) {
  Deno.test(`openMetaPkl() reads the characters of ${file}`, () => {
    const tokenizer = openMetaPkl(formats + file);
    assertEquals([tokenizer.vocab_size, tokenizer.eot], [CHARACTERS.length + 1, CHARACTERS.length]);
    assertEquals(Array.from(tokenizer.encode(TEXT)), ids(TEXT));
    assertEquals(tokenizer.decode([...ids(TEXT), tokenizer.eot, 500]), `${TEXT}<|endoftext|>`);
    assertEquals([tokenizer.prompt("To"), tokenizer.prompt("")], [ids("To"), ids("\n")]); // as nanoGPT's sample.py begins
    const stream = tokenizer.stream();
    assertEquals(ids("中👍").map((id) => stream.write(id)), ["中", "👍"]);
  });
}

Deno.test("openMetaPkl() reads ids of two bytes", () => {
  for (const n of [2, 4]) {
    const tokenizer = openMetaPkl(`${formats}pickles/large_${n}.pkl`);
    assertEquals(tokenizer.vocab_size, 301);
    assertEquals(Array.from(tokenizer.encode("\u4e00\u4f2b\u4eff")), [0, 299, 255]);
  }
});

Deno.test("openMetaPkl() refuses in one line what is no meta.pkl, and runs nothing", () => {
  const messages: [string, string][] = [
    ["protocol_0", "it is no pickle of protocol 2 to 5"],
    ["protocol_1", "it is no pickle of protocol 2 to 5"],
    ["call", "it has more than dicts, texts and whole numbers (opcode 0x93 at byte 324)"],
    ["list", "it has more than dicts, texts and whole numbers (opcode 0x5d at byte 11)"],
    ["size_alone", "it has no dicts stoi and itos"],
    [
      "other_size",
      `its vocab_size is 65, stoi has ${CHARACTERS.length} and itos ${CHARACTERS.length} entries`,
    ],
    ["swapped", "itos has no character 0 of which stoi has the id"],
    ["words", 'it has "the", should have single characters'],
  ];
  for (const [name, message] of messages) {
    const path = `${formats}pickles/${name}.pkl`;
    assertEquals(
      assertThrows(() => openMetaPkl(path), UserError).message,
      `Cannot use "${path}": ${message}; should be what nanoGPT's prepare.py writes: vocab_size, stoi and itos`,
    );
  }
});

Deno.test("openMetaPkl() ends with a line wherever a meta.pkl is cut or damaged", async () => {
  for (const file of ["nanogpt_char/meta.pkl", "pickles/protocol_2.pkl"]) {
    const bytes = Deno.readFileSync(formats + file);
    await withFiles({}, (directory) => {
      const path = `${directory}/meta.pkl`,
        read = (changed: Uint8Array) => {
          Deno.writeFileSync(path, changed);
          return openMetaPkl(path);
        };
      for (let n = 0; n < bytes.length; n++) {
        assertThrows(() => read(bytes.subarray(0, n)), UserError, `Cannot use "${path}": `);
        for (const byte of [0, 0x28, 0x75, bytes[n]! ^ 0x80]) {
          const changed = bytes.slice();
          changed[n] = byte;
          try {
            read(changed);
          } catch (error) {
            assertEquals([error instanceof UserError, (error as Error).message.includes("\n")], [
              true,
              false,
            ]);
          }
        }
      }
      return Promise.resolve();
    });
  }
});

Deno.test("a tokenizer of characters is the same from its files, and says which character it lacks", async () => {
  const tokenizer = openMetaPkl(`${formats}nanogpt_char/meta.pkl`);
  await withFiles(tokenizer.files(), async (directory) => {
    const again = await openTokenizer(directory);
    assertEquals([again.vocab_size, again.eot], [tokenizer.vocab_size, tokenizer.eot]);
    assertEquals(again.encode(TEXT), tokenizer.encode(TEXT));
    assertEquals(again.files(), tokenizer.files());
    assertEquals(
      assertThrows(() => again.encode("to ¿be"), UserError).message,
      `Cannot encode the character U+00BF: it is none of the ${CHARACTERS.length} that the tokenizer has; leave it out of the text`,
    );
  });
});

Deno.test({
  name: "transformers encodes and decodes with the files of a tokenizer of characters (LOAM_PYTHON)",
  ignore: python === undefined,
  fn: () =>
    withFiles(openMetaPkl(`${formats}nanogpt_char/meta.pkl`).files(), async (directory) => {
      const result = await askPython(
        `
from transformers import AutoTokenizer
t = AutoTokenizer.from_pretrained(argument["directory"])
ids = t(argument["text"])["input_ids"]
print(json.dumps(dict(ids=ids, text=t.decode(ids, skip_special_tokens=True), eos=t.eos_token_id, size=len(t))))`,
        { directory, text: TEXT },
      );
      assertEquals(result, {
        ids: ids(TEXT),
        text: TEXT,
        eos: CHARACTERS.length,
        size: CHARACTERS.length + 1,
      });
    }),
});
