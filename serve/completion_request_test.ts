import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { parseRequest } from "./completion_request.ts";
import { Refusal } from "./refusal.ts";

Deno.test("parseRequest() has OpenAI's defaults", () => {
  const { seed, ...request } = parseRequest({}, "c4");
  assert(Number.isInteger(seed));
  assertEquals(request, {
    prompts: [""],
    n: 1,
    max_tokens: 16,
    temperature: 1,
    top_p: 1,
    stop: [],
    logprobs: undefined,
    echo: false,
    stream: false,
    include_usage: false,
  });
});

Deno.test("parseRequest() reads every field that is supported", () => {
  const body = {
    model: "c4",
    prompt: ["Once"],
    n: 3,
    max_tokens: 50,
    temperature: 0,
    top_p: 0.5,
    seed: 7,
    stop: "\n",
    logprobs: 5,
    echo: true,
    stream: true,
    stream_options: { include_usage: true },
  };
  assertEquals(parseRequest(body, "c4"), {
    prompts: ["Once"],
    n: 3,
    max_tokens: 50,
    temperature: 0,
    top_p: 0.5,
    seed: 7,
    stop: ["\n"],
    logprobs: 5,
    echo: true,
    stream: true,
    include_usage: true,
  });
  assertEquals(parseRequest({ stop: ["a", "b", "c", "d"], max_tokens: null }, "c4").stop, [
    "a",
    "b",
    "c",
    "d",
  ]);
});

Deno.test("parseRequest() accepts what asks for nothing", () => {
  const neutral = {
    ...{ n: 1, best_of: 1, echo: false, logprobs: null, suffix: null, presence_penalty: 0 },
    ...{ frequency_penalty: 0, logit_bias: null, user: "someone" },
  };
  assertEquals(parseRequest({ ...neutral, prompt: "a" }, "c4").prompts, ["a"]);
});

Deno.test("parseRequest() takes the four kinds of prompts that OpenAI's API has", () => {
  const cases: [unknown, unknown[]][] = [
    [null, [""]],
    ["a", ["a"]],
    [["a", "", "b"], ["a", "", "b"]],
    [[5, 0, 7], [[5, 0, 7]]],
    [[[5], [0, 7]], [[5], [0, 7]]],
  ];
  for (const [prompt, prompts] of cases) assertEquals(parseRequest({ prompt }, "c4").prompts, prompts);
  assertEquals(parseRequest({ prompt: Array(16).fill("a"), n: 2 }, "c4").n, 2);
});

Deno.test("parseRequest() names the field that does not fit, and what would", () => {
  const cases: [unknown, number, RegExp][] = [
    [null, 400, /^The body must be a JSON object/],
    [[], 400, /^The body must be a JSON object/],
    ["text", 400, /^The body must be a JSON object/],
    [{ model: "gpt-4" }, 404, /^There is no model "gpt-4": here is c4/],
    [
      { best_of: 2 },
      400,
      /^There is no best_of other than 1 here: model, prompt, max_tokens,.* are supported/,
    ],
    [{ n: 0 }, 400, /^n must be a whole number from 1 to 32, not 0/],
    [{ n: 33 }, 400, /^n must be a whole number from 1 to 32, not 33/],
    [{ n: 2, prompt: Array(17).fill("a") }, 400, /^n must be a whole number from 1 to 1, not 2/],
    [
      { prompt: Array(33).fill("a") },
      400,
      /^prompt must be a text or a list of tokens, or a list of up to 32 of these/,
    ],
    [{ prompt: ["a", 1] }, 400, /^prompt must be/],
    [{ prompt: ["a", [1]] }, 400, /^prompt must be/],
    [{ prompt: [[]] }, 400, /^prompt must be/],
    [{ prompt: [1, -1] }, 400, /^prompt must be/],
    [{ prompt: [1, 0.5] }, 400, /^prompt must be/],
    [{ prompt: [[[1]]] }, 400, /^prompt must be/],
    [{ echo: 1 }, 400, /^echo must be true or false, not 1/],
    [{ logprobs: 6 }, 400, /^logprobs must be a whole number from 0 to 5, not 6/],
    [{ logprobs: true }, 400, /^logprobs must be a whole number from 0 to 5, not true/],
    [{ echo: true, max_tokens: -1 }, 400, /^max_tokens must be a whole number from 0 to 4096, not -1/],
    [{ messages: [] }, 400, /^There is no messages here/],
    [{ __proto__x: 1 }, 400, /^There is no __proto__x here/],
    [JSON.parse('{"__proto__": 1}'), 400, /^There is no __proto__ here: model,/],
    [{ constructor: 1 }, 400, /^There is no constructor here: model,/],
    [{ ["k".repeat(1000)]: 1 }, 400, /^There is no k{80} here/],
    [{ model: "m".repeat(1000) }, 404, /^There is no model "m{80}": here is c4$/],
    [{ temperature: [[1]] }, 400, /^temperature must be .*, not a list$/],
    [{ stream: {} }, 400, /^stream must be true or false, not an object$/],
    [{ prompt: [] }, 400, /^prompt must be/],
    [{ prompt: 5 }, 400, /^prompt must be/],
    [{ max_tokens: 0 }, 400, /^max_tokens must be a whole number from 1 to 4096, not 0/],
    [{ max_tokens: 1.5 }, 400, /^max_tokens must/],
    [{ max_tokens: 1e9 }, 400, /^max_tokens must/],
    [{ max_tokens: "5" }, 400, /^max_tokens must.*not "5"/],
    [{ temperature: -1 }, 400, /^temperature must be a number from 0 to 2, not -1/],
    [{ temperature: 3 }, 400, /^temperature must/],
    [{ top_p: 0 }, 400, /^top_p must be a number above 0 to 1, not 0/],
    [{ seed: 0.5 }, 400, /^seed must be a whole number/],
    [{ stop: ["a", "b", "c", "d", "e"] }, 400, /^stop must/],
    [{ stop: "" }, 400, /^stop must/],
    [{ stop: [1] }, 400, /^stop must/],
    [{ stream: "yes" }, 400, /^stream must be true or false, not "yes"/],
    [{ stream_options: { include_usage: 1 } }, 400, /^include_usage must be true or false/],
    [{ stream_options: 5 }, 400, /^stream_options must/],
  ];
  for (const [body, status, sentence] of cases) {
    const error = assertThrows(() => parseRequest(body, "c4"), Refusal, "", JSON.stringify(body));
    assertEquals(error.status, status);
    assertMatch(error.message, sentence);
    const named = /^There is no model/.test(error.message)
      ? "model"
      : /^(?:There is no )?(\w+) /.exec(error.message)![1]!;
    assertEquals(error.param, named === "The" ? null : named);
  }
});
