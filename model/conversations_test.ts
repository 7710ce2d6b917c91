import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { DEFAULT_TEMPLATE } from "../data/chat_template.ts";
import { chatCases } from "../data/testing.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { copy } from "../tests/testing.ts";
import { type Conversations, openConversations } from "./conversations.ts";

const GOLDEN = new URL("../tests/golden/chat/", import.meta.url).pathname;

/** A directory with a tokenizer of the goldens, and with one of their templates or another one. */
function directoryWith(tokenizer: string, template?: string): string {
  const directory = copy(`${GOLDEN}${tokenizer}`), path = `${directory}/chat_template.jinja`;
  if (template) {
    Deno.writeTextFileSync(
      path,
      template.includes("{") ? template : Deno.readTextFileSync(`${GOLDEN}${template}.jinja`),
    );
  }
  return directory;
}

async function conversationsWith(tokenizer: string, template?: string): Promise<Conversations> {
  const directory = directoryWith(tokenizer, template);
  return openConversations(directory, await openTokenizer(directory));
}

Deno.test("a conversation's prompt has the ids of transformers' apply_chat_template()", async () => {
  const asked = chatCases().filter(({ options }) => options.add_generation_prompt);
  assertEquals(asked.length, 7);
  for (const { tokenizer, template, messages, options, ids } of asked) {
    assertEquals(
      (await conversationsWith(tokenizer, template)).prompt(messages, options.tools),
      ids,
      template,
    );
  }
});

Deno.test("an answer ends with the tokens of generation_config.json, the tokenizer and the template", async () => {
  const cases: [string, string | undefined, number[], string[]][] = [
    ["bytes", undefined, [0], []], // ChatML, with <|endoftext|>
    ["bytes", DEFAULT_TEMPLATE, [0], []], // a model that was trained on it
    ["bytes", "chatml", [0, 2], []], // <|im_end|>
    ["bytes", "llama3", [0, 5], []], // <|eot_id|>
    ["characters", "llama2", [2], []], // </s>, which is its eos_token
    ["characters", "chatml", [2], ["<|im_end|>"]], // which is no token there
    ["bytes", "{{ messages[-1].content }}", [0], []],
  ];
  for (const [tokenizer, template, ends, stops] of cases) {
    const conversations = await conversationsWith(tokenizer, template);
    assertEquals([conversations.ends, conversations.stops], [ends, stops], `${tokenizer} ${template}`);
    assertEquals(conversations.isOwn, template !== undefined);
  }
  const directory = directoryWith("bytes", "chatml");
  Deno.writeTextFileSync(`${directory}/generation_config.json`, '{"eos_token_id": [5, 2]}');
  assertEquals(openConversations(directory, await openTokenizer(directory)).ends, [5, 2]);
});

Deno.test("what a template refuses or passes over is said with its reason", async () => {
  const conversations = await conversationsWith("characters", "llama2"),
    user = { role: "user", content: "Hi" };
  assertThrows(() => conversations.prompt([user, user]), UserError, "Roles must alternate");
  const qwen = await conversationsWith("bytes", "qwen3"),
    developer = { role: "developer", content: "Be brief." };
  const message = 'Cannot render a conversation: its template leaves out the role "developer"';
  assertThrows(() => qwen.prompt([developer, user]), UserError, message);
  assertThrows(() => openConversations(directoryWith("bytes", "{% if %}"), null!), UserError, "Cannot use");
});
