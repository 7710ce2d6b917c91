// Asks a server for texts with clients from npm, and prints what each gives as JSON. tests/clients_test.ts runs it:
// deno run -A --no-config tests/npm_clients.mjs DIR URL MODEL, where DIR holds node_modules.
import { createRequire } from "node:module";

const [directory, url, model] = Deno.args, require = createRequire(`file://${directory}/`);
const { default: OpenAI } = require("openai"), { generateText, streamText } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { ChatOpenAI, OpenAI: LangChain } = require("@langchain/openai");

const asked = { model, prompt: "On", max_tokens: 12, temperature: 0.9, seed: 4 };
const baseURL = `${url}v1`, openai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

/** What a promise is refused with: status and what OpenAI's API says of it. */
async function refusal(promise) {
  try {
    await promise;
  } catch ({ status, type, param, code }) {
    return { status, type, param, code };
  }
}

async function joined(pieces, textOf) {
  let text = "";
  for await (const piece of pieces) text += textOf(piece);
  return text;
}

const sdk = createOpenAICompatible({ name: "loam", baseURL }).completionModel(model);
const sdkAsked = { model: sdk, prompt: "On", maxOutputTokens: 12, temperature: 0, seed: 4, maxRetries: 0 };
const langchain = new LangChain({
  model,
  maxTokens: 12,
  temperature: 0,
  apiKey: "none",
  maxRetries: 0,
  configuration: { baseURL },
});

const messages = [{ role: "system", content: "Be kind" }, { role: "user", content: "Hi" }];
const chatAsked = { model, messages, max_completion_tokens: 12, temperature: 0.9, seed: 4 };
const tools = [{ type: "function", function: { name: "weather", description: "Tells it", parameters: {} } }];
const provider = createOpenAICompatible({ name: "loam", baseURL });
const sdkChat = {
  ...sdkAsked,
  model: provider.chatModel(model),
  prompt: undefined,
  messages,
  allowSystemInMessages: true,
};
const langchainChat = new ChatOpenAI({
  ...{ model, maxTokens: 12, temperature: 0, apiKey: "none", maxRetries: 0, configuration: { baseURL } },
});

console.log(JSON.stringify({
  models: (await openai.models.list()).data,
  model: await openai.models.retrieve(model),
  whole: (await openai.completions.create({ ...asked, logprobs: 2, echo: true })).choices,
  several: (await openai.completions.create({ ...asked, prompt: ["On", "There"], n: 2 })).choices,
  streamed: await joined(
    await openai.completions.create({ ...asked, stream: true }),
    ({ choices }) => choices[0].text,
  ),
  refused: [
    await refusal(openai.completions.create({ ...asked, temperature: 3 })),
    await refusal(openai.completions.create({ ...asked, model: "gpt-4" })),
    await refusal(openai.models.retrieve("gpt-4")),
  ],
  sdk: (({ text, finishReason, usage }) => ({ text, finishReason, tokens: usage.outputTokens }))(
    await generateText(sdkAsked),
  ),
  sdkStreamed: await joined(streamText(sdkAsked).textStream, (text) => text),
  chat: (await openai.chat.completions.create({ ...chatAsked, logprobs: true, top_logprobs: 2 })).choices,
  chatTools: (await openai.chat.completions.create({ ...chatAsked, tools })).usage,
  chatStreamed: await joined(
    await openai.chat.completions.create({ ...chatAsked, stream: true }),
    ({ choices }) => choices[0].delta.content ?? "",
  ),
  chatRefused: await refusal(openai.chat.completions.create({ ...chatAsked, messages: [{ content: "Hi" }] })),
  sdkChat: (({ text, finishReason, usage }) => ({ text, finishReason, tokens: usage.outputTokens }))(
    await generateText(sdkChat),
  ),
  sdkChatStreamed: await joined(streamText(sdkChat).textStream, (text) => text),
  langchainChat: (await langchainChat.invoke(messages)).content,
  langchainChatStreamed: await joined(await langchainChat.stream(messages), ({ content }) => content),
  langchain: await langchain.invoke("On"),
  langchainStreamed: await joined(await langchain.stream("On"), (text) => text),
}));
