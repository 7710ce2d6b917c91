// A model by chance with a tokenizer and a template of tests/golden/chat answers as OpenAI's API does.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { chatCases } from "../data/testing.ts";
import { chatModelDirectory, modelDirectory } from "../tests/testing.ts";
import { type App, createApp } from "./app.ts";
import { Model } from "./model.ts";
import { CHAT_COMPLETION } from "./openapi.ts";
import { violations } from "./testing_schema.ts";

/** A model whose conversations have this template of the goldens. */
async function modelWith(template: string): Promise<Model> {
  return await Model.load(await chatModelDirectory(template, { block_size: 512 }), "cpu");
}

const model = await modelWith("qwen3"), app = createApp({ runs: [], model });
Deno.test.afterAll(() => model.close());

const golden = chatCases();
const { messages, ids } = golden.find(({ template, options }) =>
  template === "qwen3" && options.add_generation_prompt
)!;
const HI = { messages: [{ role: "user", content: "Hi" }] };

type Told = { token: string; logprob: number; bytes: number[] | null; top_logprobs?: Told[] };
type Choice = {
  index: number;
  message: { role: string; content: string };
  delta: { role?: string; content?: string };
  logprobs: { content: Told[] } | null;
  finish_reason: string | null;
};
type Answer = {
  id: string;
  object: string;
  choices: Choice[];
  usage?: Record<string, number>;
  error?: { message: string; type: string; param: string | null; code: string | null };
};

function post(body: unknown, path = "chat/completions", { hono }: App = app): Promise<Response> {
  const options = {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
  };
  return Promise.resolve(hono.request(`/v1/${path}`, options));
}

async function ask(body: unknown): Promise<Answer> {
  const response = await post(body);
  assertEquals(response.status, 200);
  return await response.json();
}

async function streamed(body: Record<string, unknown>): Promise<Answer[]> {
  const events = (await (await post({ ...body, stream: true })).text()).split("\n\n");
  assertEquals(events.splice(-2), ["data: [DONE]", ""]);
  return events.map((event) => JSON.parse(event.replace(/^data: /, "")));
}

/** What POST /v1/completions writes behind the tokens of a conversation. */
async function written(prompt: number[], more: Record<string, unknown>) {
  const answer = await (await post({ prompt, ...more }, "completions")).json();
  return { ...answer.choices[0], usage: answer.usage };
}

Deno.test("an answer is the text behind the tokens that transformers makes of the conversation", async () => {
  const asked = { max_tokens: 12, seed: 3, temperature: 0.7 }, { text, usage } = await written(ids, asked);
  const answer = await ask({ ...asked, messages, model: model.name });
  assertEquals(violations(answer, CHAT_COMPLETION), []);
  assertEquals(answer.choices, [{
    index: 0,
    message: { role: "assistant", content: text, refusal: null },
    logprobs: null,
    finish_reason: "length",
  } as unknown as Choice]);
  assertEquals([answer.usage, answer.object], [usage, "chat.completion"]);
  assertMatch(answer.id, /^chatcmpl-/);
  const { max_tokens: max_completion_tokens, ...rest } = asked;
  assertEquals((await ask({ ...rest, max_completion_tokens, messages })).choices, answer.choices);
});

Deno.test("n answers have a seed each, and a stream has their pieces, first of all the role", async () => {
  const asked = { ...HI, max_tokens: 12, seed: 5, temperature: 1.5 };
  const alone = [await ask(asked), await ask({ ...asked, seed: 6 })].map(({ choices }) =>
    choices[0]!.message.content
  );
  assert(alone[0] !== alone[1]);
  const together = await ask({ ...asked, n: 2 });
  assertEquals(together.choices.map(({ message }) => message.content), alone);
  const pieces = await streamed({ ...asked, n: 2, stream_options: { include_usage: true } });
  const { choices, usage } = pieces.pop()!;
  assertEquals([choices, usage], [[], together.usage]);
  assert(pieces.every(({ object }) => object === "chat.completion.chunk"));
  alone.forEach((text, index) => {
    const own = pieces.flatMap(({ choices }) => choices).filter((choice) => choice.index === index);
    assertEquals(own[0]!.delta, { role: "assistant", content: "" });
    assertEquals(own.map(({ delta }) => delta.content ?? "").join(""), text);
    assertEquals([own.at(-1)!.delta, own.at(-1)!.finish_reason], [{}, "length"]);
    assert(own.slice(0, -1).every(({ finish_reason }) => finish_reason === null));
  });
});

Deno.test("an answer ends with the template's end of a turn, with a stop string, and where the context is full", async () => {
  const chats = model.conversations as { ends: readonly number[] }, { ends } = chats;
  const asked = { ...HI, max_tokens: 12, temperature: 0 },
    whole = (await ask(asked)).choices[0]!.message.content;
  assertEquals(ends, [256, 2]); // of config.json, and <|im_end|>
  const { logprobs } = (await ask({ ...asked, logprobs: true })).choices[0]!;
  const third = logprobs!.content[2]!.token, [id] = model.tokenizer.encode(third);
  chats.ends = [id!];
  const ended = (await ask(asked)).choices[0]!;
  chats.ends = ends;
  assertEquals([ended.finish_reason, whole.startsWith(ended.message.content + third)], ["stop", true]);
  const { message, finish_reason } = (await ask({ ...asked, stop: [third] })).choices[0]!;
  assertEquals([message.content, finish_reason], [whole.slice(0, whole.indexOf(third)), "stop"]);
  const full = await ask({ messages: HI.messages, temperature: 0 });
  assertEquals([full.usage!.total_tokens, full.choices[0]!.finish_reason], [512, "length"]);
});

Deno.test("logprobs are those of a completion, in the words of chats", async () => {
  const asked = { max_tokens: 6, temperature: 0 },
    { logprobs } = await written(ids, { ...asked, logprobs: 3 });
  const answer = await ask({ ...asked, messages, logprobs: true, top_logprobs: 3 });
  assertEquals(violations(answer, CHAT_COMPLETION), []);
  const told = answer.choices[0]!.logprobs!.content;
  assertEquals(told.map(({ token }) => token), logprobs.tokens);
  assertEquals(told.map(({ logprob }) => logprob), logprobs.token_logprobs);
  told.forEach(({ token, logprob, bytes, top_logprobs }, i) => {
    assertEquals(bytes, token.startsWith("token_id:") ? null : [...new TextEncoder().encode(token)]);
    assertEquals([top_logprobs!.length, top_logprobs![0]!.token, top_logprobs![0]!.logprob], [
      3,
      token,
      logprob,
    ]); // greedy
    assertEquals(
      Object.fromEntries(top_logprobs!.map(({ token, logprob }) => [token, logprob])),
      logprobs.top_logprobs[i],
    );
  });
  assertEquals(
    (await ask({ ...asked, messages, logprobs: true })).choices[0]!.logprobs!.content[0]!.top_logprobs,
    [],
  );
});

Deno.test("tools, parts of texts and what else a message has go to the template", async () => {
  const { messages, options: { tools }, ids } = golden.find(({ template, options }) =>
    template === "qwen3" && options.tools
  )!;
  const asked = { messages, tools, max_tokens: 1, temperature: 0 }, { usage } = await ask(asked);
  const generation = [...model.tokenizer.encode("assistant\n")].length + 1; // <|im_start|>
  assertEquals(usage!.prompt_tokens, ids.length + generation);
  const whole = { role: "user", content: "Hi there" };
  const parts = { role: "user", content: [{ type: "text", text: "Hi " }, { type: "text", text: "there" }] };
  const [one, two] = [await ask({ messages: [whole], seed: 1 }), await ask({ messages: [parts], seed: 1 })];
  assertEquals(one.choices, two.choices);
});

Deno.test("what cannot be answered is refused as OpenAI's API does", async () => {
  const user = HI.messages[0], image = { type: "image_url", image_url: { url: "x" } };
  const cases: [unknown, string | null, string | null, RegExp][] = [
    [{}, "messages", null, /^messages must be a list such as \[\{"role": "user"/],
    [{ messages: [] }, "messages", null, /^messages must be a list/],
    [
      { messages: ["Hi"] },
      "messages",
      null,
      /^messages must be of objects with a role; messages\[0\] is "Hi"$/,
    ],
    [{ messages: [user, { content: "Hi" }] }, "messages", null, /messages\[1\] is an object$/],
    [{ messages: [{ role: "user", content: 5 }] }, "messages", null, /in messages\[0\]\.content is 5$/],
    [{ messages: [{ role: "user", content: [image] }] }, "messages", null, /is one of type "image_url"$/],
    [
      { messages: [{ role: "developer", content: "Be kind" }, user] },
      "messages",
      null,
      /leaves out the role "developer"$/,
    ],
    [
      { messages: [{ role: "user", content: "x".repeat(900) }] },
      "messages",
      "context_length_exceeded",
      /^The messages have \d+ tokens, the model reads 511 at most$/,
    ],
    [{ ...HI, top_logprobs: 2 }, "top_logprobs", null, /needs logprobs to be true/],
    [{ ...HI, logprobs: 2 }, "logprobs", null, /must be true or false, not 2/],
    [{ ...HI, tools: "all" }, "tools", null, /must be a list of objects/],
    [
      { ...HI, response_format: { type: "json_object" } },
      "response_format",
      null,
      /^There is no response_format other than \{"type":"text"\} here/,
    ],
    [{ ...HI, max_tokens: 0 }, "max_tokens", null, /from 1 to 4096/],
    [{ ...HI, prompt: "Hi" }, "prompt", null, /^There is no prompt here: model, messages, tools,/],
    [{ ...HI, model: "gpt-4" }, "model", "model_not_found", /^There is no model "gpt-4"/],
    [[], null, null, /^The body must be a JSON object, such as \{"messages"/],
  ];
  for (const [body, param, code, message] of cases) {
    const response = await post(body), { error } = await response.json() as Answer;
    assertMatch(error!.message, message);
    assertEquals([response.status, error!.type, error!.param, error!.code], [
      code === "model_not_found" ? 404 : 400,
      "invalid_request_error",
      param,
      code,
    ], error!.message);
  }
  assertEquals(
    (await post({ ...HI, max_tokens: 1, parallel_tool_calls: true, store: false, tool_choice: "auto" }))
      .status,
    200,
  );
});

Deno.test("a template with a reason is quoted, and one that is none costs no completions", async () => {
  const strict = await modelWith("llama2"), user = HI.messages[0];
  const refused = await post(
    { messages: [user, user] },
    "chat/completions",
    createApp({ runs: [], model: strict }),
  );
  assertEquals([refused.status, /says: Roles must alternate/.test(await refused.text())], [400, true]);
  strict.close();
  const directory = await modelDirectory();
  Deno.writeTextFileSync(`${directory}/chat_template.jinja`, "{% if %}");
  const broken = await Model.load(directory, "cpu"), app = createApp({ runs: [], model: broken });
  const chat = await post(HI, "chat/completions", app),
    text = await post({ max_tokens: 1 }, "completions", app);
  assertEquals([chat.status, text.status], [501, 200]);
  assertMatch((await chat.json()).error.message, /^Cannot use .*it is not the Jinja of chat templates/);
  await text.body!.cancel();
  broken.close();
});
