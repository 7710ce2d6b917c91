import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import {
  ChatTemplate,
  DEFAULT_TEMPLATE,
  type Message,
  type RenderOptions,
  type TextSpan,
} from "./chat_template.ts";
import { type ChatCase, chatCases, inDirectory } from "./testing.ts";
import { randomNumbers } from "./tokenizers/testing.ts";

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

/** The spans by definition: what a message adds behind the text of those before it, as far as the text of all goes on with it. */
function byPrefixes(
  template: ChatTemplate,
  messages: Message[],
  options: RenderOptions,
): TextSpan[] | string {
  const of = (n: number, add_generation_prompt: boolean) =>
    template.render(messages.slice(0, n), { ...options, add_generation_prompt });
  const text = template.render(messages, options), spans: TextSpan[] = [];
  for (const [i, { role }] of messages.entries()) {
    if (role !== "assistant") continue;
    const before = of(i, true), upTo = of(i + 1, false);
    let from = before.length;
    if (!text.startsWith(before)) return "the text before it changes with what follows";
    while (from < upTo.length && !text.startsWith(upTo.slice(from), before.length)) from++;
    if (upTo.slice(from).trim() === "") return "its own text changes with what follows";
    spans.push([before.length, before.length + upTo.length - from]);
  }
  return spans;
}

/** A conversation by chance: now and then with a system message, tools, thoughts, blanks, and many turns. */
function conversationOf(random: (below: number) => number): Message[] {
  const some = <T>(...of: T[]): T => of[random(of.length)]!;
  const text = () =>
    some("a", " b\n", "\uFDD1", "<think>\nHm.\n</think>\n\nc", "d </think> e", "f".repeat(random(40)), "");
  const messages: Message[] = random(3) === 0 ? [{ role: "system", content: "s" }] : [];
  for (let turns = 1 + random(6); turns > 0; turns--) {
    messages.push({ role: "user", content: text() });
    const tool_calls = [{ type: "function", function: { name: "t", arguments: { a: 1 } } }];
    for (let calls = some(0, 0, 0, 1, 2); calls > 0; calls--) {
      messages.push({ role: "assistant", content: "", tool_calls }, { role: "tool", content: text() });
    }
    messages.push({ role: "assistant", content: text() });
  }
  return random(4) === 0 ? messages.slice(0, -1) : messages;
}

const EACH = "{% for m in messages %}";
const PLAIN =
  "{{ '<' + m.role + '>' + m.content + '|' }}{{ m.tool_calls[0].function.name if m.tool_calls }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}";

/** Templates of which a part of the conversation is not what all of it begins with, or not in an obvious way. */
const ODD = [
  `${EACH}{{ '*' if loop.last }}${PLAIN}`,
  `${EACH}{{ '*' if loop['last'] }}${PLAIN}`,
  `${EACH}{{ '*' if loop.revindex0 == 2 }}${PLAIN}`,
  `${EACH}{{ loop.nextitem.role }}${PLAIN}`,
  `${EACH}{{ loop.previtem.role }}${PLAIN}`,
  `${EACH}{% set l = loop %}{{ l.length }}${PLAIN}`,
  `${EACH}{{ '!' if add_generation_prompt }}${PLAIN}`,
  `${EACH}{{ '!' if m.role == 'tool' and messages[loop.index0 + 1].role != 'tool' }}${PLAIN}`,
  `${EACH}{{ '<' + m.role + '>' + m.content }}{{ '|' if not loop.last }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}`,
  `${EACH}{{ m.role + ':' + m.content }}{% if loop.last and add_generation_prompt %}assistant:{% endif %}{% endfor %}`,
  `{{ messages | length }}${EACH}${PLAIN}`,
  `{{ messages[-1].role }}${EACH}${PLAIN}`,
  `{% set all = messages %}{{ all | length }}${EACH}${PLAIN}`,
  `{% set of = {'all': messages} %}{{ of.all | length }}${EACH}${PLAIN}`,
  `{% set rest = messages[1:] %}{{ rest[0].role }}${EACH}${PLAIN}`,
  `{% set rest = messages[1:] %}{% set rest = rest[1:] %}{% for m in rest %}${PLAIN}`,
  `{% if messages[1:] %}.{% endif %}${EACH}${PLAIN}`,
  `{% for m in messages %}{{ m.role[0] }}{% endfor %}${EACH}${PLAIN}`,
  `{% for m in messages[1:] %}${PLAIN}{{ messages[-1].role }}`,
  `{% for m in messages if m.role != 'tool' %}${PLAIN}`,
  `{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}${PLAIN}`,
  `{% macro n() %}{{ messages | length }}{% endmacro %}${EACH}{{ n() }}${PLAIN}`,
  `{% macro n() %}{{ m.content }}{% endmacro %}${EACH}${PLAIN}{{ n() }}`,
  `{% macro n(of) %}{{ of | length }}{% endmacro %}{{ n(messages) }}${EACH}${PLAIN}`,
  `${EACH}{% set x = m.content %}${PLAIN}{{ x }}`,
  `{% set ns = namespace(n=0) %}${EACH}{% set ns.n = ns.n + 1 %}${PLAIN}{{ ns.n if add_generation_prompt }}`,
  `${EACH}{% set m = {'role': 'assistant' if m.role == 'user' else 'user', 'content': m.content} %}${PLAIN}`,
  `{% for m in messages[-2:] %}${PLAIN}`,
  `${EACH}${PLAIN}{% set x = 1 %}{{ x }}`,
  `${EACH}${PLAIN}{{ '</s>' if not add_generation_prompt }}`,
  `{% if add_generation_prompt is not defined %}{% set add_generation_prompt = false %}{% endif %}${EACH}${PLAIN}`,
  `{% for m in (messages[1:] if messages[0].role == 'system' else messages) %}${PLAIN}`,
  `{% for m in (messages[1:] if messages | length > 4 else messages) %}${PLAIN}`,
  `{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}${EACH}{{ messages[0].content }}${PLAIN}`,
];

Deno.test("renderWithSpans() gives what the text of each message adds to that of those before it, for any template", () => {
  const random = randomNumbers(7), golden = ["chatml", "llama2", "llama3", "qwen3"];
  const sources = golden.map((name) => Deno.readTextFileSync(`${GOLDEN}/${name}.jinja`));
  let same = 0;
  for (const source of [...sources, ...ODD]) {
    const template = new ChatTemplate(source, SPECIAL.characters!);
    for (let i = 0; i < 20; i++) {
      const messages = conversationOf(random), options = { add_generation_prompt: random(4) === 0 };
      const of = <T>(render: () => T): T | string => {
        try {
          return render();
        } catch (error) {
          return (error as Error).message;
        }
      };
      const expected = of(() => byPrefixes(template, messages, options));
      const spans = of(() => template.renderWithSpans(messages, options).spans);
      if (String(expected).includes("leaves out")) continue; // which is asked of the whole alone
      if (typeof expected === "string") assertStringIncludes(String(spans), expected, source);
      else assertEquals(spans, expected, `${source}\n${JSON.stringify(messages)}`);
      same += Number(typeof expected !== "string");
    }
  }
  assert(same > 200, `only ${same} of them have spans`);
});

Deno.test("renderWithSpans() renders a long conversation once, unless its template looks at what follows", () => {
  const golden = (name: string) => Deno.readTextFileSync(`${GOLDEN}/${name}.jinja`);
  const renderings = (source: string, messages: Message[]) => {
    let count = 0;
    const template = new ChatTemplate(`{{ strftime_now('') }}${source}`, SPECIAL.characters!);
    template.renderWithSpans(messages, {
      get now() {
        return count++, new Date(0);
      },
    });
    return count;
  };
  const long = Array.from({ length: 50 }, () => HI).flat(), system = { role: "system", content: "Be kind." };
  for (const source of [golden("chatml"), `${EACH}${PLAIN}`]) {
    assertEquals(renderings(source, long), 1, source);
  }
  for (const name of ["llama2", "llama3"]) assertEquals(renderings(golden(name), [system, ...long]), 1, name);
  assert(renderings(`${EACH}{{ '' if loop.last }}${PLAIN}`, HI) > 1);
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
