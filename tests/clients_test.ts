// What programs of others make of the server: clients from npm, where LOAM_NPM_CLIENTS names a directory whose node_modules has
// openai, ai, @ai-sdk/openai-compatible and @langchain/openai, and lm-eval, where LOAM_PYTHON has it.
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { createApp } from "../serve/app.ts";
import { listen, type Listening } from "../serve/listen.ts";
import { Model } from "../serve/model.ts";
import { dataset, freshPath, SMALL, succeed } from "./testing.ts";

const NPM = Deno.env.get("LOAM_NPM_CLIENTS"), PYTHON = Deno.env.get("LOAM_PYTHON");

/** A server with a model that has learned a little. */
async function serving(...flags: string[]): Promise<{ checkpoint: string; model: Model; server: Listening }> {
  const run = freshPath(), length = ["--max_iters=40", "--save_interval=40", "--block_size=64", ...flags];
  await succeed("train", `--data_dir=${await dataset()}`, `--out_dir=${run}`, ...SMALL, ...length);
  const model = await Model.load(run, "cpu"), app = createApp({ runs: [], model });
  const server = listen(app, { hostname: "127.0.0.1", port: 0, flag: "--port" });
  return { checkpoint: `${run}/checkpoints/step_000040`, model, server };
}

async function printed(command: string, args: string[], env: Record<string, string> = {}): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(command, { args, env, stdin: "null" }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

Deno.test({
  name: "openai, ai and langchain from npm get what the server writes (LOAM_NPM_CLIENTS)",
  ignore: !NPM,
  async fn() {
    const { model, server } = await serving("--block_size=256");
    const post = async (route: string, body: Record<string, unknown>) => {
      const headers = { "Content-Type": "application/json" };
      const response = await fetch(`${server.url}v1/${route}`, {
        method: "POST",
        headers,
        body: JSON.stringify({ max_tokens: 12, ...body }),
      });
      return await response.json();
    };
    const ask = async (body: Record<string, unknown>) => (await post("completions", body)).choices;
    const script = new URL("npm_clients.mjs", import.meta.url).pathname;
    const args = ["run", "-A", "-q", "--no-config", script, NPM!, server.url, model.name];
    const got = JSON.parse(await printed(Deno.execPath(), args));
    const asked = { prompt: "On", temperature: 0.9, seed: 4 };
    assertEquals([got.models.length, got.models[0].id, got.model], [1, model.name, got.models[0]]);
    assertEquals(got.whole, await ask({ ...asked, logprobs: 2, echo: true }));
    assertEquals(got.several, await ask({ ...asked, prompt: ["On", "There"], n: 2 }));
    assertEquals(got.streamed, (await ask(asked))[0].text);
    const type = "invalid_request_error",
      gone = { status: 404, type, param: "model", code: "model_not_found" };
    assertEquals(got.refused, [{ status: 400, type, param: "temperature", code: null }, gone, gone]);
    const greedy = (await ask({ prompt: "On", temperature: 0 }))[0];
    assertEquals([got.langchain, got.langchainStreamed], [greedy.text, greedy.text]);
    const framed = "user:\nOn\n\nassistant:\n"; // how the SDK puts a prompt, and where it ends the answer
    const chat = (await ask({ prompt: framed, temperature: 0, stop: "\nuser:" }))[0];
    assertEquals(got.sdk, { text: chat.text, finishReason: chat.finish_reason, tokens: 12 });
    assertEquals(got.sdkStreamed, chat.text);

    const messages = [{ role: "system", content: "Be kind" }, { role: "user", content: "Hi" }];
    const answer = async (body: Record<string, unknown>) => {
      return (await post("chat/completions", { messages, ...body })).choices[0];
    };
    const talked = await answer({ temperature: 0.9, seed: 4, logprobs: true, top_logprobs: 2 });
    assertEquals(got.chat, [talked]);
    assertEquals([got.chatStreamed, got.chatTools.completion_tokens], [talked.message.content, 12]);
    assertEquals(got.chatRefused, { status: 400, type, param: "messages", code: null });
    const likeliest = await answer({ temperature: 0 }), { content } = likeliest.message;
    assertEquals(got.sdkChat, { text: content, finishReason: likeliest.finish_reason, tokens: 12 });
    assertEquals(got.sdkChatStreamed, content);
    assertEquals([got.langchainChat, got.langchainChatStreamed], [content, content]);
    await server.close();
    model.close();
  },
});

Deno.test({
  name: "lm-eval's local-completions scores texts as transformers does with the same weights (LOAM_PYTHON)",
  ignore: !PYTHON,
  async fn() {
    const { checkpoint, model, server } = await serving();
    const script = new URL("oracle/lm_eval_scores.py", import.meta.url).pathname;
    const env = { HF_HUB_OFFLINE: "1", TRANSFORMERS_VERBOSITY: "error" };
    const args = [script, checkpoint, `${server.url}v1/completions`, model.name];
    type Scores = { loglikelihood: [number, boolean][]; rolling: number[]; written: string[] };
    const { ours, theirs }: { ours: Scores; theirs: Scores } = JSON.parse(await printed(PYTHON!, args, env));
    ours.loglikelihood.forEach(([score, isGreedy], i) => {
      assertAlmostEquals(score, theirs.loglikelihood[i]![0], 1e-3);
      assertEquals(isGreedy, theirs.loglikelihood[i]![1]);
    });
    assertEquals(new Set(ours.loglikelihood.map(([, isGreedy]) => isGreedy)).size, 2); // some are, some are not
    ours.rolling.forEach((score, i) => assertAlmostEquals(score, theirs.rolling[i]!, 1e-3));
    assertEquals(ours.written, theirs.written);
    assert(ours.written.every((text) => text.length > 0));
    await server.close();
    model.close();
  },
});
