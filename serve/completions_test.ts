// A model that is trained in a moment answers as OpenAI's API does.
import { assert, assertAlmostEquals, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { characterTokenizer } from "../data/tokenizers/character_level.ts";
import { UserError } from "../base/errors.ts";
import { copy, dataset, freshPath, modelDirectory, SMALL, succeed } from "../tests/testing.ts";
import { type App, createApp } from "./app.ts";
import { listen } from "./listen.ts";
import { Model } from "./model.ts";
import { COMPLETION } from "./openapi.ts";
import { violations } from "./testing_schema.ts";
import { statusOf } from "./testing.ts";

const run = freshPath();
await succeed(
  "train",
  `--data_dir=${await dataset()}`,
  `--out_dir=${run}`,
  ...SMALL,
  "--max_iters=30",
  "--save_interval=30",
);
const model = await Model.load(run, "cpu");
const app = createApp({ runs: [], model });
Deno.test.afterAll(() => model.close());

/** The model repeats itself without end at this temperature. */
const LONG = { prompt: "On", max_tokens: 4096, temperature: 0 };

/** Keeps the model's Worker from hearing anything, so that no text ends, until the end of the block. */
function pause(): Disposable {
  const { worker } = model, { postMessage } = worker;
  worker.postMessage = () => {};
  return { [Symbol.dispose]: () => worker.postMessage = postMessage };
}

/** Collects what is printed to stderr, until it is read. */
function capture(): { text(): string } {
  const { error } = console, printed: string[] = [];
  console.error = (what: unknown) => printed.push(what instanceof Error ? what.stack! : String(what));
  return {
    text() {
      console.error = error;
      return printed.map((line) => `${line}\n`).join("");
    },
  };
}

/** OpenAI's logprobs object: an entry of each list for each token. */
type ToldTokens = {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[];
};

/** What pieces of a text tell, one after the other. */
function joined(pieces: ToldTokens[]): ToldTokens {
  return {
    tokens: pieces.flatMap(({ tokens }) => tokens),
    token_logprobs: pieces.flatMap(({ token_logprobs }) => token_logprobs),
    top_logprobs: pieces.flatMap(({ top_logprobs }) => top_logprobs),
    text_offset: pieces.flatMap(({ text_offset }) => text_offset),
  };
}

type Completion = {
  model: string;
  choices: { index: number; text: string; logprobs: ToldTokens | null; finish_reason: string | null }[];
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number };
  error?: { message: string };
};

function post({ hono }: App, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const options = { method: "POST", body: text, headers: { "Content-Type": "application/json", ...headers } };
  return Promise.resolve(hono.request("/v1/completions", options));
}

async function complete(body: unknown): Promise<Completion> {
  const response = await post(app, body);
  assertEquals(response.status, 200);
  return await response.json();
}

/** The objects of a stream, without the [DONE] that must be its end. */
async function streamed(body: Record<string, unknown>): Promise<Completion[]> {
  const response = await post(app, { ...body, stream: true });
  assertEquals(response.headers.get("Content-Type"), "text/event-stream");
  const events = (await response.text()).split("\n\n");
  assertEquals(events.splice(-2), ["data: [DONE]", ""]);
  return events.map((event) => JSON.parse(event.replace(/^data: /, "")));
}

Deno.test("a completion is what the document says, and counts its tokens", async () => {
  const completion = await complete({ ...LONG, prompt: "Once", max_tokens: 12 });
  assertEquals(violations(completion, COMPLETION), []);
  const [choice] = completion.choices;
  assert(choice!.text.length > 0);
  assertEquals(completion.usage, { prompt_tokens: 5, completion_tokens: 12, total_tokens: 17 }); // bytes, and the start
  assertEquals([choice!.finish_reason, completion.model], ["length", run.split("/").at(-1)]);
});

Deno.test("the same seed writes the same text, streamed or not; another one does not", async () => {
  const ask = async (seed: number) => (await complete({ prompt: ["On"], max_tokens: 40, seed })).choices[0]!;
  const { text, finish_reason } = await ask(1);
  assertEquals((await ask(1)).text, text);
  assert((await ask(2)).text !== text);
  const pieces = await streamed({ prompt: "On", max_tokens: 40, seed: 1 });
  assertEquals(pieces.map(({ choices }) => choices[0]!.text).join(""), text);
  assertEquals(pieces.at(-1)!.choices[0]!.finish_reason, finish_reason);
  assert(pieces.slice(0, -1).every(({ choices }) => choices[0]!.finish_reason === null));
  const [piece, usage] = (await streamed({ ...LONG, max_tokens: 1, stream_options: { include_usage: true } }))
    .slice(
      -2,
    );
  assertEquals([piece!.choices.length, usage!.choices, usage!.usage.completion_tokens], [1, [], 1]);
});

Deno.test("several prompts and n texts of each are what each would be alone, streamed or not", async () => {
  const prompts = ["On", "There was", ""], seeds = [5, 6], asked = { max_tokens: 12, seed: 5, stop: "n" };
  const alone: Completion[] = [];
  for (const prompt of prompts) {
    for (const seed of seeds) alone.push(await complete({ ...asked, prompt, seed }));
  }
  const expected = alone.map(({ choices: [choice] }, index) => ({ ...choice, index }));
  assert(new Set(expected.map(({ text }) => text)).size > 3);
  const together = await complete({ ...asked, prompt: prompts, n: 2 });
  assertEquals(violations(together, COMPLETION), []);
  assertEquals(together.choices, expected);
  const sum = (of: Completion[], key: keyof Completion["usage"]) =>
    of.reduce((n, { usage }) => n + usage[key], 0);
  const prompt_tokens = sum(alone.filter((_, i) => i % 2 === 0), "prompt_tokens"); // those of a prompt count once
  const completion_tokens = sum(alone, "completion_tokens");
  const usage = { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
  assertEquals(together.usage, usage);

  const pieces = await streamed({ ...asked, prompt: prompts, n: 2, stream_options: { include_usage: true } });
  assertEquals(pieces.pop()!.usage, usage);
  const choices = pieces.flatMap(({ choices }) => choices);
  expected.forEach(({ text, finish_reason }, index) => {
    const own = choices.filter((choice) => choice.index === index);
    assertEquals([own.map(({ text }) => text).join(""), own.at(-1)!.finish_reason], [text, finish_reason]);
  });
});

Deno.test("tokens are read as they are, so that a client may begin with its own", async () => {
  const asked = { max_tokens: 12, seed: 3 }, { eot } = model.tokenizer;
  const text = (await complete({ ...asked, prompt: "On" })).choices[0]!.text;
  const ids = [eot, 79, 110]; // O and n
  const { choices, usage } = await complete({ ...asked, prompt: ids });
  assertEquals([choices[0]!.text, usage.prompt_tokens], [text, 3]);
  const both = await complete({ ...asked, prompt: [ids, [79, 110]] });
  assertEquals([both.choices[0]!.text, both.usage.prompt_tokens], [text, 5]);
});

Deno.test("others come between the texts of a request, and who leaves has no more written", async () => {
  const stream = (await post(app, { ...LONG, max_tokens: 200, n: 20, stream: true })).body!.values();
  await stream.next();
  const finished: string[] = [];
  const other = complete({ ...LONG, max_tokens: 1 }).then(() => finished.push("other"));
  let text = "";
  const all = (async () => {
    for await (const chunk of { [Symbol.asyncIterator]: () => stream }) {
      text += new TextDecoder().decode(chunk);
    }
    finished.push("all");
  })();
  await Promise.all([other, all]);
  assertEquals(finished, ["other", "all"]);
  assertEquals(text.match(/"finish_reason":"length"/g)?.length, 20);
  const left = (await post(app, { ...LONG, n: 32, stream: true })).body!; // would take minutes
  await left.cancel();
  assertEquals((await complete({ ...LONG, max_tokens: 1 })).usage.completion_tokens, 1);
});

Deno.test("GET /v1/models/NAME has the model, and another name is refused as OpenAI's API does", async () => {
  const { data } = await (await app.hono.request("/v1/models")).json();
  const response = await app.hono.request(`/v1/models/${data[0].id}`);
  assertEquals([response.status, await response.json()], [200, data[0]]);
  const other = await app.hono.request("/v1/models/gpt-4");
  assertEquals([other.status, (await other.json()).error], [404, {
    message: `There is no model "gpt-4": here is ${data[0].id}`,
    type: "invalid_request_error",
    param: "model",
    code: "model_not_found",
  }]);
});

Deno.test("failures say what OpenAI's API says of them: type, param and code", async () => {
  const cases: [unknown, unknown[]][] = [
    [{ temperature: 3 }, [400, "invalid_request_error", "temperature", null]],
    [{ messages: [] }, [400, "invalid_request_error", "messages", null]],
    [{ model: "gpt-4" }, [404, "invalid_request_error", "model", "model_not_found"]],
    [{ prompt: "x".repeat(99) }, [400, "invalid_request_error", "prompt", "context_length_exceeded"]],
    ["{", [400, "invalid_request_error", null, null]],
  ];
  for (const [body, expected] of cases) {
    const response = await post(app, body), { error } = await response.json();
    assertEquals([response.status, error.type, error.param, error.code], expected);
  }
  using _ = pause();
  const bodies = (await Promise.all(Array.from({ length: 16 }, () => post(app, { ...LONG, stream: true }))))
    .map(({ body }) => body!);
  const busy = await post(app, LONG), { error } = await busy.json();
  assertEquals([busy.status, error.type, error.code], [429, "requests", "rate_limit_exceeded"]);
  for (const body of bodies) await body.cancel();
});

Deno.test("a text ends before its stop string, though it comes in pieces", async () => {
  const ask = { prompt: "On", max_tokens: 60, seed: 1 }, whole = (await complete(ask)).choices[0]!.text;
  const stop = whole.slice(2, 4), expected = whole.slice(0, whole.indexOf(stop));
  assertEquals(stop.length, 2);
  const { choices, usage } = await complete({ ...ask, stop });
  assertEquals(choices, [{ index: 0, text: expected, logprobs: null, finish_reason: "stop" }]);
  assertEquals(usage.completion_tokens, expected.length + 2); // bytes
  const pieces = await streamed({ ...ask, stop: ["~~~", stop] });
  assertEquals(pieces.map(({ choices }) => choices[0]!.text).join(""), expected);
  assertEquals(pieces.at(-1)!.choices[0]!.finish_reason, "stop");
  assertEquals((await complete({ ...LONG, max_tokens: 3 })).usage.completion_tokens, 3); // the next is not disturbed
});

Deno.test("logprobs tell the probability of each token, streamed or not, and the likeliest in its place", async () => {
  const ask = { prompt: "On", max_tokens: 12, temperature: 0, logprobs: 3 }, completion = await complete(ask);
  assertEquals(violations(completion, COMPLETION), []);
  const { text, logprobs } = completion.choices[0]!;
  assertEquals(logprobs!.tokens.join(""), text);
  assertEquals(logprobs!.text_offset, Array.from(text, (_, i) => i));
  logprobs!.token_logprobs.forEach((value, i) => {
    const top = logprobs!.top_logprobs[i]!, values = Object.values(top);
    assertEquals([values.length, value, top[text[i]!]], [3, Math.max(...values), value]); // greedy
    const sum = values.reduce((sum, value) => sum + Math.exp(value), 0);
    assert(values.every((value) => value <= 0) && sum <= 1 + 1e-6);
  });
  const pieces = (await streamed(ask)).flatMap(({ choices }) => choices);
  assertEquals(joined(pieces.flatMap(({ logprobs }) => logprobs ?? [])), logprobs);
  const hot = (await complete({ ...ask, temperature: 2, seed: 3, logprobs: 0 })).choices[0]!;
  assertEquals(
    hot.logprobs!.top_logprobs.map((top) => Object.keys(top!)),
    hot.logprobs!.tokens.map((token) => [token]),
  );
  assertEquals((await complete({ ...ask, logprobs: null })).choices[0]!.logprobs, null);
});

Deno.test("echo begins with the prompt, whose tokens are told of as if the model had written them", async () => {
  const ask = { max_tokens: 6, temperature: 0, logprobs: 2 },
    written = await complete({ ...ask, prompt: "On" });
  const whole = `On${written.choices[0]!.text}`;
  for (const prompt of [whole, [model.tokenizer.eot, ...new TextEncoder().encode(whole)]]) {
    const { choices, usage } = await complete({ ...ask, prompt, max_tokens: 0, echo: true });
    const { text, logprobs, finish_reason } = choices[0]!,
      start = typeof prompt === "string" ? "" : "<|endoftext|>";
    assertEquals([text, finish_reason, usage.completion_tokens], [start + whole, "length", 0]);
    assertEquals(logprobs!.tokens, [start, ...whole]);
    assertEquals([logprobs!.token_logprobs[0], logprobs!.top_logprobs[0]], [null, null]);
    assertEquals(logprobs!.text_offset.at(-1), text.length - 1);
    const { token_logprobs } = written.choices[0]!.logprobs!;
    token_logprobs.forEach((value, i) =>
      assertAlmostEquals(logprobs!.token_logprobs.slice(-6)[i]!, value!, 1e-4)
    );
  }
  const both = (await complete({ ...ask, prompt: ["On", ""], echo: true })).choices;
  assertEquals(both[0]!.text, whole);
  assertEquals(both[0]!.logprobs!.tokens.join(""), whole);
  assertEquals(both[1]!.logprobs!.tokens.length, 7);
  const pieces = await streamed({ ...ask, prompt: "On", echo: true });
  assertEquals(pieces.map(({ choices }) => choices[0]!.text).join(""), whole);
  assertEquals(pieces[0]!.choices[0]!.text, "On");
  assertEquals(
    (await complete({ ...ask, logprobs: null, prompt: "On", echo: true })).choices[0]!.text,
    whole,
  );
});

Deno.test("what a stop string cuts off is not told of", async () => {
  const ask = { prompt: "On", max_tokens: 40, temperature: 0, logprobs: 0 };
  const { text, logprobs } = (await complete(ask)).choices[0]!, stop = text.slice(3, 5);
  const expected = text.slice(0, text.indexOf(stop));
  const n = logprobs!.text_offset.filter((offset) => offset < expected.length).length;
  const { choices: [choice] } = await complete({ ...ask, stop });
  assertEquals([choice!.text, choice!.logprobs!.tokens], [expected, logprobs!.tokens.slice(0, n)]);
  const pieces = (await streamed({ ...ask, stop })).flatMap(({ choices }) => choices);
  assertEquals(joined(pieces.flatMap(({ logprobs }) => logprobs ?? [])), choice!.logprobs);
});

Deno.test("a token that the model has and its tokenizer lacks counts, and gives no text", async () => {
  const padded = await Model.load(await modelDirectory({ vocab_size: 512 }), "cpu");
  const response = await post(createApp({ runs: [], model: padded }), {
    prompt: "ab",
    max_tokens: 60,
    seed: 1,
  });
  padded.close();
  const { choices, usage } = await response.json() as Completion;
  assertEquals(usage.completion_tokens, 60);
  assert(choices[0]!.text.length < 45, choices[0]!.text); // about half of them are lacked
});

Deno.test("a text goes on beyond block_size, but its prompt must fit", async () => {
  const { usage } = await complete({ ...LONG, prompt: "x".repeat(15), max_tokens: 40 });
  assertEquals([usage.prompt_tokens, usage.completion_tokens], [16, 40]);
  const { error } = await (await post(app, { prompt: "x".repeat(16) })).json();
  assertEquals(error.message, "The prompt has 17 tokens, the model reads 16 at most");
});

Deno.test("what cannot be done is refused with one sentence", async () => {
  const cases: [unknown, number, RegExp, Record<string, string>?][] = [
    ["{", 400, /^The body is not JSON/],
    ["", 400, /^The body is not JSON/],
    [{ n: 33 }, 400, /^n must be a whole number from 1 to 32/],
    [{ prompt: [[65], [65, 257]] }, 400, /^prompt holds the token 257, the model knows those below 257$/],
    [{}, 415, /^The body must be JSON/, { "Content-Type": "text/plain" }],
    [{ model: "gpt-4" }, 404, /^There is no model "gpt-4"/],
  ];
  for (const [body, status, sentence, headers] of cases) {
    const response = await post(app, body, headers);
    assertEquals(response.status, status);
    assertMatch((await response.json()).error.message, sentence);
  }
});

Deno.test("eight texts are written, eight wait, and the next is told to come again", async () => {
  const server = listen(app, { hostname: "127.0.0.1", port: 0, flag: "--port" });
  const ask = (more: Record<string, unknown>) => {
    const body = JSON.stringify({ ...LONG, ...more }), headers = { "Content-Type": "application/json" };
    return fetch(`${server.url}v1/completions`, { method: "POST", headers, body });
  };
  {
    using _ = pause();
    const accepted = await Promise.all(Array.from({ length: 16 }, () => ask({ stream: true })));
    assertEquals(accepted.map(({ status }) => status), Array(16).fill(200));
    const refused = await ask({});
    assertEquals([refused.status, refused.headers.get("Retry-After")], [429, "5"]);
    await Promise.all([...accepted, refused].map(({ body }) => body!.cancel()));
  }
  while ((await (await ask({ max_tokens: 1 })).json()).error) {
    await new Promise((next) => setTimeout(next, 10));
  }
  await server.close();
});

Deno.test("a stream that is cancelled makes room at once", async () => {
  const stream = { ...LONG, stream: true };
  {
    using _ = pause();
    const streams = await Promise.all(Array.from({ length: 16 }, () => post(app, stream)));
    assertEquals((await post(app, stream)).status, 429);
    for (const { body } of streams) await body!.cancel();
  }
  const answers = await Promise.all(Array.from({ length: 8 }, () => post(app, { ...LONG, max_tokens: 1 })));
  assertEquals(answers.map(({ status }) => status), Array(8).fill(200));
});

Deno.test("a client that goes away ends its text, and the server answers others meanwhile", async () => {
  const server = listen(app, { hostname: "127.0.0.1", port: 0, flag: "--port" });
  const headers = { "Content-Type": "application/json" };
  for (const stream of [false, true]) {
    const { promise: cancelled, resolve } = Promise.withResolvers<void>();
    model.cancel = (order) => {
      Model.prototype.cancel.call(model, order);
      resolve();
    };
    const abort = new AbortController(), body = JSON.stringify({ ...LONG, stream });
    const text = fetch(`${server.url}v1/completions`, { method: "POST", headers, body, signal: abort.signal })
      .then((response) => response.text());
    text.catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 50)); // it is under way
    assertEquals(await statusOf(`${server.url}v1/models`), 200);
    abort.abort();
    await assertRejects(() => text);
    await cancelled;
    assertEquals((await complete({ ...LONG, max_tokens: 1 })).usage.completion_tokens, 1);
  }
  await server.close();
});

Deno.test("Model.load() says what is wrong with a path", async () => {
  await assertRejects(() => Model.load(freshPath(), "cpu"), UserError, "Cannot find a checkpoint in");
  await assertRejects(
    () => Model.load(run, "tpu"),
    UserError,
    'Cannot use device "tpu": it must be cpu or cuda',
  );
});

Deno.test("a tokenizer that fails costs one text, and its message and stack stay in the terminal", async () => {
  const { stream } = model.tokenizer, printed = capture();
  for (const method of ["write", "end"] as const) {
    for (const asked of [LONG, { ...LONG, stream: true }]) {
      model.tokenizer.stream = () => {
        const inner = stream.call(model.tokenizer);
        const fail = () => {
          throw new RangeError("a secret");
        };
        return { write: (id) => inner.write(id), end: () => inner.end(), [method]: fail };
      };
      const response = await post(app, { ...asked, max_tokens: 20 }), text = await response.text();
      model.tokenizer.stream = stream;
      assertEquals(response.status, "stream" in asked ? 200 : 500, method);
      assertMatch(text, /"error":\{"message":"The server made a mistake: its terminal says more"/);
      assert(!/secret|\.ts/.test(text), text);
      assertEquals((await complete({ ...LONG, max_tokens: 3 })).usage.completion_tokens, 3);
    }
  }
  assertMatch(printed.text(), /RangeError: a secret\n +at /);
});

Deno.test("a character that the tokenizer lacks is a mistake of the one who asks", async () => {
  const { prompt } = model.tokenizer;
  model.tokenizer.prompt = characterTokenizer("", ["a", "b"]).prompt;
  const response = await post(app, { prompt: "a¿b" }), body = await response.json();
  model.tokenizer.prompt = prompt;
  assertEquals([response.status, body.error.param, body.error.message], [
    400,
    "prompt",
    "Cannot encode the character U+00BF: it is none of the 2 that the tokenizer has; leave it out of the text",
  ]);
});

Deno.test("an error in the model's Worker costs one text, and its stack stays in the terminal", async () => {
  const printed = capture(), { prompt } = model.tokenizer;
  model.tokenizer.prompt = () => [1e6]; // which no embedding has
  const whole = await post(app, LONG), streamed = await post(app, { ...LONG, stream: true });
  const texts = [await whole.text(), await streamed.text()];
  model.tokenizer.prompt = prompt;
  assertEquals([whole.status, streamed.status], [500, 200]);
  for (const text of texts) {
    assertMatch(text, /"error":\{"message":"The server made a mistake: its terminal says more"/);
    assert(!/\.ts|file:/.test(text), text);
  }
  assertMatch(printed.text(), /1000000/);
  assertEquals((await complete({ ...LONG, max_tokens: 3 })).usage.completion_tokens, 3);
});

Deno.test("a Worker that breaks down costs one text, and is replaced", async () => {
  const broken = await Model.load(run, "cpu"), server = createApp({ runs: [], model: broken });
  const printed = capture();
  const left = await post(server, { ...LONG, stream: true }); // it leaves before
  const current = (await post(server, { ...LONG, stream: true, n: 8 })).body!.values();
  const waiting = post(server, { ...LONG, max_tokens: 2 });
  await left.body!.cancel();
  await current.next();
  broken.worker.dispatchEvent(new ErrorEvent("error", { message: "out of memory", cancelable: true }));
  let text = "";
  for await (const chunk of current) text += new TextDecoder().decode(chunk);
  assertMatch(
    text,
    /"error":\{"message":"The model failed and is loaded again: ask once more"[^\n]*\n\ndata: \[DONE\]\n\n$/,
  );
  assertEquals((await (await waiting).json()).usage.completion_tokens, 2);
  assertEquals(printed.text(), "warning: the model failed: out of memory; it is loaded again\n");
  broken.close();
});

Deno.test("a Worker that breaks down and cannot be replaced says so from then on", async () => {
  const gone = copy(run), broken = await Model.load(gone, "cpu");
  const server = createApp({ runs: [], model: broken }), printed = capture();
  Deno.removeSync(gone, { recursive: true });
  broken.worker.dispatchEvent(new MessageEvent("messageerror"));
  for (let i = 0; i < 2; i++) {
    const response = await post(server, LONG), { error } = await response.json();
    assertEquals(response.status, 503);
    assertEquals(error.message, "The model failed and could not be loaded again: start the server again");
  }
  assertMatch(
    printed.text(),
    /^warning: the model failed: .*\nwarning: the model could not be loaded again: .*\n$/,
  );
  broken.close();
});
