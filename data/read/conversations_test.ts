import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { parseConversation } from "./conversations.ts";

const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });

function parse(row: unknown, column = "text") {
  return parseConversation(typeof row === "string" ? row : JSON.stringify(row), column, "a.jsonl:7");
}

Deno.test("parseConversation() reads the layouts of OpenAI, ShareGPT, and a prompt with its completion", () => {
  const messages = [user("Hi"), assistant("Ho")];
  const shareGPT = [{ from: "human", value: "Hi" }, { from: "gpt", value: "Ho" }];
  for (
    const row of [
      { id: 1, messages },
      { conversations: shareGPT },
      { conversations: messages },
      { messages: JSON.stringify(messages) },
      {
        messages: [
          { role: "user", content: [{ type: "text", text: "H" }, { type: "text", text: "i" }] },
          { role: "assistant", content: [{ type: "text", text: "Ho" }] },
        ],
      },
      { prompt: "Hi", completion: "Ho" },
      { prompt: [user("Hi")], completion: [assistant("Ho")], tools: null },
      { prompt: "Hi", completion: [assistant("Ho")], tools: [] },
    ]
  ) assertEquals(parse(row), { messages }, JSON.stringify(row));
  assertEquals(parse({ text: "no", chosen: messages }, "chosen"), { messages });
});

Deno.test("parseConversation() keeps what else a message has, roles that it does not know, a system text and tools", () => {
  const tool_calls = [{ function: { name: "f", arguments: { b: 1, a: 2 } } }];
  const messages = [user("Hi"), { role: "assistant", content: null, tool_calls }, {
    role: "tool",
    content: "3",
  }];
  assertEquals(parse({ messages, tools: [{ name: "f" }] }), {
    messages: [user("Hi"), { role: "assistant", content: "", tool_calls }, { role: "tool", content: "3" }],
    tools: [{ name: "f" }],
  });
  assertEquals(
    parse({ conversations: [{ from: "critic", value: "No", weight: 0 }], tools: '[{"name":"f"}]' }),
    {
      messages: [{ role: "critic", content: "No", weight: 0 }],
      tools: [{ name: "f" }],
    },
  );
  assertEquals(parse({ system: "Be kind", messages: [user("Hi")] }).messages[0], {
    role: "system",
    content: "Be kind",
  });
  const own = { system: "Be kind", messages: [{ role: "system", content: "Be brief" }] };
  assertEquals(parse(own).messages, own.messages);
});

Deno.test("parseConversation() says of what is none where it is, what it has and what it should have", () => {
  const refused = (row: unknown, message: string, column = "text") => {
    const { message: actual } = assertThrows(() => parse(row, column), UserError);
    assertEquals(actual, `Cannot read a.jsonl:7: ${message}`);
  };
  refused(
    { text: "x", id: 3 },
    "it has no messages, no conversations and no prompt with a completion but text, id; choose one with --column",
  );
  refused(
    { prompt: "x" },
    "it has no messages, no conversations and no prompt with a completion but prompt; choose one with --column",
  );
  refused({ messages: [] }, 'it has no field "chosen" but messages; choose one with --column', "chosen");
  refused({ messages: [] }, "messages is empty, should be at least one message");
  refused({ messages: "Hi" }, 'messages is "Hi", should be a list of messages');
  refused({ messages: { role: "user" } }, 'messages is {"role":"user"}, should be a list of messages');
  refused({ messages: ["Hi"] }, 'messages[0] is "Hi", should be an object with role and content');
  refused(
    { messages: [user("Hi"), { content: "Ho" }] },
    "the role of messages[1] is missing, should be a text",
  );
  refused({ messages: [{ role: "user" }] }, "the content of messages[0] is missing, should be a text");
  refused({ messages: [{ role: "user", content: 3 }] }, "the content of messages[0] is 3, should be a text");
  refused(
    { messages: [{ role: "user", content: [{ type: "image_url" }] }] },
    'the content of messages[0] is [{"type":"image_url"}], should be a text, or parts of type "text"',
  );
  refused({ conversations: [{ from: 1, value: "" }] }, "the role of conversations[0] is 1, should be a text");
  refused({ prompt: 1, completion: "x" }, "prompt is 1, should be a text or a list of messages");
  refused({ messages: [user("Hi")], system: 3 }, "system is 3, should be a text");
  refused({ messages: [user("Hi")], tools: "f" }, 'tools is "f", should be a list of functions');
  refused("[1]", "it is a list; each line should be one JSON object");
});
