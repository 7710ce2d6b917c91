import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { ChatTemplate } from "../chat_template.ts";
import { chatCases } from "../testing.ts";
import { openTokenizer } from "../tokenizer.ts";
import { RenderedEncoder } from "./rendered.ts";

const GOLDEN = new URL("../../tests/golden/chat/", import.meta.url).pathname;

Deno.test("RenderedEncoder gives the ids and the mask of transformers' apply_chat_template()", async () => {
  for (const name of ["bytes", "characters"]) {
    const encoder = new RenderedEncoder(await openTokenizer(`${GOLDEN}/${name}`));
    const { bos_token, eos_token } = JSON.parse(
      Deno.readTextFileSync(`${GOLDEN}/${name}/tokenizer_config.json`),
    );
    for (const each of chatCases().filter(({ tokenizer }) => tokenizer === name)) {
      const source = Deno.readTextFileSync(`${GOLDEN}/${each.template}.jinja`);
      const template = new ChatTemplate(source, { bos_token, eos_token });
      const { ids, mask } = encoder.encode(template.renderWithSpans(each.messages, each.options));
      assertEquals(Array.from(ids), each.ids, each.template);
      assertEquals(mask.join(""), each.mask, each.template);
    }
  }
});

Deno.test("RenderedEncoder takes the special tokens of tokenizers that have names", async () => {
  const encoder = new RenderedEncoder(await openTokenizer("bytes"));
  const { ids, mask } = encoder.encode({ text: "a<|endoftext|>é<|endoftext|>\n", spans: [[14, 28]] });
  assertEquals([...ids], [97, 256, 0xc3, 0xa9, 256, 10]);
  assertEquals([...mask], [0, 0, 1, 1, 1, 0]);
});

Deno.test("RenderedEncoder takes a token for the assistant's that holds a part of its words", async () => {
  const encoder = new RenderedEncoder(await openTokenizer("gpt2"));
  const text = "one two", ids = (await openTokenizer("gpt2")).encode(text); // "one", " two"
  assertEquals(ids.length, 2);
  for (
    const [from, to, mask] of [[4, 7, "01"], [3, 4, "01"], [2, 4, "11"], [0, 3, "10"], [0, 0, "00"]] as const
  ) {
    assertEquals(encoder.encode({ text, spans: [[from, to]] }).mask.join(""), mask, `${from} to ${to}`);
  }
});

Deno.test("RenderedEncoder composes characters where the tokenizer does, and knows the places of what follows", async () => {
  const tokenizer = await openTokenizer(`${GOLDEN}/bytes`), encoder = new RenderedEncoder(tokenizer);
  const text = "u\u0308u\u0308\nHo", { ids, mask } = encoder.encode({ text, spans: [[5, 7]] });
  assertEquals([...ids], [...tokenizer.encode("üü\nHo")]);
  const own = Array.from(ids).filter((_, i) => mask[i] === 1);
  assertEquals(tokenizer.decode(own), "Ho");
});

Deno.test("RenderedEncoder refuses special tokens that take in the blanks around them", async () => {
  const tokenizer = await openTokenizer("bytes");
  const added = [{ id: 256, content: "<|end|>", special: true, rstrip: true }];
  assertThrows(
    () => new RenderedEncoder({ ...tokenizer, written: { ...tokenizer.written, added } }),
    UserError,
    'Cannot encode conversations with "bytes": its token <|end|> has rstrip, should not have it',
  );
});
