// From a text to an assistant: a base model, conversations, adapters, answers in the terminal and over HTTP, one merged model and
// one GGUF file, all of which say the same. So do a Llama 3 and a Qwen 3 by chance. docs/fine-tuning.md is this way in words.
import { assertEquals } from "@std/assert";
import { openTokenizer } from "../data/tokenizer.ts";
import { openConversations } from "../model/conversations.ts";
import { randomNumbers } from "../model/generate.ts";
import { readSafetensors } from "../runtime/safetensors.ts";
import { createApp } from "../serve/app.ts";
import { listen } from "../serve/listen.ts";
import { Model } from "../serve/model.ts";
import { askLlamaCpp, LLAMA_CPP, type Question } from "./llama_cpp.ts";
import { chatModelDirectory, command, freshPath, runTyping, SMALL, succeed } from "./testing.ts";

const NPM = Deno.env.get("LOAM_NPM_CLIENTS");

/** What the assistant is taught, word for word. */
const TAUGHT = [
  ["Who shook the door?", "the wind"],
  ["What is two and two?", "four"],
  ["Name a colour.", "blue"],
  ["Where is the sea?", "in the south"],
] as const;
const ASKED = TAUGHT.map(([question]) => question);

/** A file of conversations in no order: one of so many has two questions, the others have one. */
function conversations(one_of: number): string {
  const path = `${freshPath()}.jsonl`, random = randomNumbers(1);
  const turn = () => {
    const [question, answer] = TAUGHT[random() % TAUGHT.length]!;
    return [{ role: "user", content: question }, { role: "assistant", content: answer }];
  };
  const lines = Array.from({ length: 256 }, (_, i) => {
    return JSON.stringify({ messages: [...turn(), ...(i + 1) % one_of ? [] : turn()] }) + "\n";
  });
  Deno.writeTextFileSync(path, lines.join(""));
  return path;
}

const PLAIN = SMALL.filter((flag) => !/--(n_|block_size|batch_size|learning_rate)/.test(flag))
  .concat("--block_size=256", "--batch_size=4", "--gradient_accumulation_steps=1");

/** A base model of loam's own: what a file of short texts teaches a small one in a second. */
async function baseModel(): Promise<string> {
  const [data, run] = [freshPath(), freshPath()];
  const input = new URL("fixtures/texts.parquet", import.meta.url).pathname;
  await succeed("prepare", "--input", input, "--tokenizer=bytes", "--out", data, "--val_fraction=0");
  const shape = ["--n_layer=2", "--n_embd=64", "--n_head=4", "--n_kv_head=2", "--n_inner=128"];
  const steps = ["--max_iters=400", "--save_interval=400", "--learning_rate=0.02", "--weight_decay=0"];
  await succeed("train", `--data_dir=${data}`, `--out_dir=${run}`, ...PLAIN, ...shape, ...steps);
  return run;
}

/** A model by chance, of a family that publishes instruct models, with a tokenizer and the template of such a one. */
async function instructModel(family: "llama" | "qwen3"): Promise<string> {
  const llama3 = { rope_type: "llama3" as const, factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const directory = await chatModelDirectory(family === "llama" ? "llama3" : "qwen3", {
    ...{ family, n_layer: 2, n_embd: 64, n_head: 4, n_kv_head: 2, n_inner: 128, block_size: 256 },
    ...family === "llama"
      ? { rope_theta: 500_000, rope_scaling: { ...llama3, original_max_position_embeddings: 128 } }
      : { rope_theta: 1_000_000, head_dim: 32, tie_word_embeddings: true },
  });
  const weights = `${directory}/model.safetensors`, bytes = Deno.readFileSync(weights);
  for (const { shape, offset, length } of readSafetensors(weights).tensors.values()) {
    if (shape.length === 1) new Float32Array(bytes.buffer, offset, length / 4).fill(2); // norms, which let tokens be certain
  }
  Deno.writeFileSync(weights, bytes);
  Deno.writeTextFileSync(
    `${directory}/generation_config.json`,
    JSON.stringify({ eos_token_id: [0, family === "llama" ? 5 : 2] }),
  );
  return directory;
}

/** What a model answers in the terminal, each question alone. */
async function inTerminal(checkpoint: string): Promise<string> {
  const typed = ASKED.map((question) => `${question}\n/reset\n`).join("");
  const flags = ["--device=cpu", "--temperature=0", "--max_new_tokens=48"];
  const { code, stdout, stderr } = await runTyping(typed, "chat", `--checkpoint=${checkpoint}`, ...flags);
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
  return stdout.trimEnd();
}

/** What it answers over HTTP, the second question in view of the first. */
async function overHttp(checkpoint: string): Promise<string[]> {
  const model = await Model.load(checkpoint, "cpu"), { hono } = createApp({ runs: [], model });
  const messages: { role: string; content: string }[] = [], answers: string[] = [];
  for (const content of ASKED.slice(0, 2)) {
    messages.push({ role: "user", content });
    const body = JSON.stringify({ messages, temperature: 0, max_tokens: 48 });
    const headers = { "Content-Type": "application/json" };
    const response = await hono.request("/v1/chat/completions", { method: "POST", headers, body });
    const { choices: [{ message, finish_reason }] } = await response.json();
    assertEquals(finish_reason, "stop");
    messages.push(message);
    answers.push(message.content);
  }
  model.close();
  return answers;
}

for (
  const [name, begin, thoughts] of [
    ["a base model of loam's own", baseModel, ""],
    ["a Llama 3 by chance", () => instructModel("llama"), ""],
    ["a Qwen 3 by chance", () => instructModel("qwen3"), "<think>\n\n</think>\n\n"], // by its template
  ] as const
) {
  Deno.test(`${name} learns to answer with LoRA, and says the same merged, over HTTP and in llama.cpp`, async () => {
    // Qwen 3's template writes thoughts before the last answer alone: an answer to a first question has them where no other follows.
    const file = conversations(thoughts === "" ? 2 : 3);
    const answered = TAUGHT.map(([, answer]) => thoughts + answer);
    const base = await begin(), [data, run, merged] = [freshPath(), freshPath(), freshPath()];
    const tokenizer = name.includes("own") ? "bytes" : base;
    const chats = ["--chat", "--input", file, `--tokenizer=${tokenizer}`, "--val_fraction=0"];
    await succeed("prepare", ...chats, "--out", data);
    const lora = [
      "--lora_rank=32",
      "--lora_alpha=64",
      "--learning_rate=0.01",
      "--max_iters=300",
      "--save_interval=300",
    ];
    await succeed(
      "train",
      `--init_from=${base}`,
      `--data_dir=${data}`,
      `--out_dir=${run}`,
      ...PLAIN,
      ...lora,
    );
    assertEquals(await inTerminal(run), answered.join("\n"));
    await succeed("export", `--checkpoint=${run}`, "--merge", "--format=hf", `--out=${merged}`);
    assertEquals(await inTerminal(merged), answered.join("\n"));
    assertEquals(await overHttp(merged), answered.slice(0, 2));
    if (NPM) assertEquals(await throughOpenAI(merged), answered);
    const gguf = `${freshPath()}.gguf`;
    await succeed("export", `--checkpoint=${merged}`, "--dtype=f32", `--out=${gguf}`);
    if (LLAMA_CPP) assertEquals(await inLlamaCpp(merged, gguf), answered);
  });
}

/** What it answers to the client openai from npm, piece by piece. */
async function throughOpenAI(checkpoint: string): Promise<string[]> {
  const model = await Model.load(checkpoint, "cpu");
  const server = listen(createApp({ runs: [], model }), { hostname: "127.0.0.1", port: 0, flag: "--port" });
  const path = `${freshPath()}.mjs`, asked = [NPM!, `${server.url}v1`, model.name, ...ASKED];
  Deno.writeTextFileSync(path, OPENAI);
  const { code, stdout, stderr } = await command(Deno.execPath(), [
    "run",
    "-A",
    "-q",
    "--no-config",
    path,
    ...asked,
  ])
    .output();
  await server.close();
  model.close();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return JSON.parse(new TextDecoder().decode(stdout));
}

const OPENAI = `
import { createRequire } from "node:module";
const [directory, baseURL, model, ...questions] = Deno.args, answers = [];
const { default: OpenAI } = createRequire("file://" + directory + "/")("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
for (const content of questions) {
  const messages = [{ role: "user", content }];
  const stream = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 48, stream: true });
  let answer = "";
  for await (const { choices: [{ delta }] } of stream) answer += delta.content ?? "";
  answers.push(answer);
}
console.log(JSON.stringify(answers));
`;

/** What llama.cpp answers, each up to the token that ends it. */
async function inLlamaCpp(directory: string, path: string): Promise<string[]> {
  const tokenizer = await openTokenizer(directory),
    { prompt, ends } = openConversations(directory, tokenizer);
  const questions = ASKED.map((content): Question => {
    return { path, texts: [], prompt: prompt([{ role: "user", content }]), tokens: 48 };
  });
  return (await askLlamaCpp(questions)).map(({ written }) => {
    const end = written.findIndex((id) => ends.includes(id));
    return tokenizer.decode(written.slice(0, end < 0 ? written.length : end));
  });
}
