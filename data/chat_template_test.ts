import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { ChatTemplate, DEFAULT_TEMPLATE, type Message } from "./chat_template.ts";
import { type ChatCase, chatCases, inDirectory } from "./testing.ts";

const GOLDEN = new URL("../tests/golden/chat/", import.meta.url).pathname;

const CASES = chatCases();

const SPECIAL: Record<string, Record<string, string>> = {
  bytes: { bos_token: "<|endoftext|>", eos_token: "<|endoftext|>" },
  characters: { bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>" },
};

function templateOf({ tokenizer, template }: ChatCase): ChatTemplate {
  return new ChatTemplate(Deno.readTextFileSync(`${GOLDEN}/${template}.jinja`), SPECIAL[tokenizer]!);
}

const HI: Message[] = [{ role: "user", content: "Hi" }, { role: "assistant", content: "Ho" }];

Deno.test("ChatTemplate.render() gives the text of transformers' apply_chat_template()", () => {
  for (const each of CASES) {
    assertEquals(templateOf(each).render(each.messages, each.options), each.text, each.template);
  }
});

Deno.test("ChatTemplate.renderWithSpans() gives what transformers takes for the assistant's, with tags or without", () => {
  for (const each of CASES) {
    const { text, spans } = templateOf(each).renderWithSpans(each.messages, each.options);
    const characters = Array.from(each.text), ofPython: string[] = [];
    let end = -1;
    for (const [from, to] of each.spans) { // which transformers has in characters, two where one follows on the other
      const words = characters.slice(from, to).join("");
      if (words === "") continue;
      if (from === end) ofPython[ofPython.length - 1] += words;
      else ofPython.push(words);
      end = to;
    }
    assertEquals(text, each.text);
    assertEquals(spans.map(([from, to]) => text.slice(from, to)), ofPython, each.template);
  }
});

Deno.test("ChatTemplate refuses a call that the template leaves out", () => {
  const tool_calls = [{ type: "function", function: { name: "weather", arguments: "{}" } }];
  const called: Message = { role: "assistant", content: "", tool_calls };
  const template = new ChatTemplate(DEFAULT_TEMPLATE, { eos_token: "<eos>" });
  for (const calling of [called, { ...called, tool_calls: [{ name: "weather" }] }]) {
    assertThrows(
      () => template.renderWithSpans([HI[0]!, calling]),
      UserError,
      "Cannot render a conversation: its template leaves out the call of weather",
    );
  }
  template.renderWithSpans([HI[0]!, { ...called, content: "weather()" }]);
  template.renderWithSpans([HI[0]!, { ...called, tool_calls: [] }]);
});

Deno.test("renderWithSpans() refuses a text with the marks that it puts around what the assistant wrote", () => {
  const template = new ChatTemplate(DEFAULT_TEMPLATE, { eos_token: "<eos>" });
  assertThrows(
    () => template.renderWithSpans([{ role: "user", content: "\uFDD0\uFDD1Hi\uFDD1\uFDD0" }, HI[1]!]),
    UserError,
    "Cannot render a conversation: it has U+FDD0 or U+FDD1, which are no characters",
  );
});

Deno.test("the default template ends each turn with the end-of-text token, and tells what the assistant wrote", () => {
  const template = new ChatTemplate(DEFAULT_TEMPLATE, { eos_token: "<eos>" });
  const text = "<|im_start|>user\nHi<eos>\n<|im_start|>assistant\nHo<eos>\n";
  assertEquals(template.renderWithSpans(HI), { text, spans: [[47, 54]] });
  assertEquals(
    template.render(HI.slice(0, 1), { add_generation_prompt: true }),
    "<|im_start|>user\nHi<eos>\n<|im_start|>assistant\n",
  );
});

Deno.test("ChatTemplate.read() takes chat_template.jinja, then tokenizer_config.json's, then its own", () =>
  inDirectory((dir) => {
    const config = (json: unknown) =>
      Deno.writeTextFileSync(`${dir}/tokenizer_config.json`, JSON.stringify(json));
    const rendered = () => ChatTemplate.read(dir).render(HI);
    assertThrows(
      rendered,
      UserError,
      "there is none, and no eos_token in tokenizer_config.json for one of loam's own",
    );
    config({ eos_token: { content: "<e>" } });
    assertEquals(rendered(), "<|im_start|>user\nHi<e>\n<|im_start|>assistant\nHo<e>\n");
    assertEquals(ChatTemplate.read(dir).source, DEFAULT_TEMPLATE);
    config({ eos_token: "<e>", chat_template: "{{ messages[0].content + eos_token }}" });
    assertEquals(rendered(), "Hi<e>");
    config({ chat_template: [{ name: "rag", template: "" }, { name: "default", template: "of a list" }] });
    assertEquals(rendered(), "of a list");
    Deno.writeTextFileSync(`${dir}/chat_template.jinja`, "{{ messages[1].content }}\n");
    assertEquals(rendered(), "Ho");
    Deno.removeSync(`${dir}/chat_template.jinja`);
    config({ chat_template: 7 });
    assertThrows(rendered, UserError, "its chat_template is 7, should be a text, or a list with one of name");
    config({ eos_token: "<e>", chat_template: [null] });
    assertThrows(rendered, UserError, "its chat_template is [null], should be a text, or a list with one of");
    assertEquals(ChatTemplate.read(dir, "{{ eos_token }} instead").render(HI), "<e> instead");
  }));

Deno.test("ChatTemplate says what is wrong with a template, and why it refuses a conversation", () => {
  const make = (source: string) => new ChatTemplate(source, {}, '"a.jinja"');
  assertThrows(
    () => make("{% if %}"),
    UserError,
    'Cannot use "a.jinja": it is not the Jinja of chat templates: ',
  );
  assertThrows(
    () => make("{% generation %}{% generation %}"),
    UserError,
    'Cannot use "a.jinja": its {% generation %} and {% endgeneration %} do not alternate',
  );
  assertThrows(
    () => make("{{ raise_exception('no ' ~ messages[0].role) }}").render(HI),
    UserError,
    'Cannot render a conversation: "a.jinja" says: no user',
  );
  assertThrows(
    () =>
      make("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}").renderWithSpans(HI),
    UserError,
    'Cannot find message 2 in what "a.jinja" makes of the conversation: the text before it changes with what follows; ' +
      "put {% generation %} and {% endgeneration %} around the assistant's words in the template",
  );
  assertThrows(
    () =>
      make("{% for m in messages if m.role != 'critic' %}{{ m.content }}{% endfor %}").render([...HI, {
        role: "critic",
        content: "Hm",
      }]),
    UserError,
    'Cannot render a conversation: its template leaves out the role "critic"',
  );
  const blankOnly = "{% for m in messages %}" +
    "{{ m.content if m.role == 'user' else m.content + '\\n' if loop.last else '\\n-' }}{% endfor %}";
  assertThrows(
    () => make(blankOnly).renderWithSpans([...HI, { role: "user", content: "Hm" }]),
    UserError,
    "its own text changes with what follows",
  );
  const lastOnly =
    "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '-' }}{% endfor %}";
  assertThrows(
    () => make(lastOnly).renderWithSpans([...HI, { role: "user", content: "Hm" }]),
    UserError,
    "Cannot find message 2 in what",
  );
});

Deno.test("strftime_now() of a template tells the time that it is given, in Python's words", () => {
  const now = new Date(2026, 0, 9, 7, 5, 3),
    template = (format: string) => new ChatTemplate(`{{ strftime_now("${format}") }}`, {});
  assertEquals(template("%d %b %Y, %A %a %B %m %H:%M:%S 100%%").hasTime, true);
  assertEquals(
    template("%d %b %Y, %A %a %B %m %H:%M:%S 100%%").render(HI, { now }),
    "09 Jan 2026, Friday Fri January 01 07:05:03 100%",
  );
  assertThrows(() => template("%Q").render(HI, { now }), UserError, "strftime_now() does not know %Q");
});

Deno.test("range() of a template counts as Python's", () => {
  const text = "{{ range(3) | join(',') }} {{ range(2, 5) | join(',') }} {{ range(5, 0, -2) | join(',') }}";
  assertEquals(new ChatTemplate(text, {}).render(HI), "0,1,2 2,3,4 5,3,1");
});
