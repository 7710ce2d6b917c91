// What deno task chat prints: answers to stdout, and nothing else there.
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { Message } from "../data/chat_template.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { loadModel } from "../model/checkpoint.ts";
import { openConversations } from "../model/conversations.ts";
import { generate } from "../model/generate.ts";
import { openTestDevice } from "../runtime/testing.ts";
import { chatModelDirectory, refuse, ROOT, runTyping, taskArgs, terminalArgs } from "./testing.ts";

openTestDevice();

/** A model by chance, whose conversations have a template of the goldens where one is named. */
async function modelWith(template?: string, block_size = 512): Promise<string> {
  return await chatModelDirectory(template, { block_size });
}

const MOST = 12; // tokens of an answer
const FLAGS = ["--device=cpu", "--temperature=0", `--max_new_tokens=${MOST}`];

async function chat(directory: string, typed: string, ...flags: string[]) {
  const { code, stdout, stderr } = await runTyping(
    typed,
    "chat",
    `--checkpoint=${directory}`,
    ...FLAGS,
    ...flags,
  );
  return { code, stdout, stderr };
}

/** What a model answers to each message of a conversation, each time reading all of it anew. */
async function answersTo(directory: string, said: Message[][]): Promise<string> {
  const { model, config } = loadModel(directory), tokenizer = await openTokenizer(directory);
  const { prompt, ends: stop } = openConversations(directory, tokenizer);
  const options = { temperature: 0, top_k: 0, top_p: 1, seed: 1, max_new_tokens: MOST, stop };
  let answers = "";
  for (const conversation of said) {
    const messages: Message[] = [];
    for (const message of conversation) {
      messages.push(message);
      if (message.role !== "user" || conversation[messages.length]?.role === "assistant") continue;
      const content = tokenizer.decode(generate(model, config, prompt(messages), options));
      messages.push({ role: "assistant", content });
      answers += `${content}\n`;
    }
  }
  return answers;
}

const user = (content: string) => ({ role: "user", content });

Deno.test("chat answers the lines of stdin, each in view of those before, as if it read all anew each time", async () => {
  const directory = await modelWith("llama3"), system = { role: "system", content: "Be\nkind" };
  const typed = 'Hi\nWho\\\nare you\n\n/reset\nHi\n/system Be\\\nkind\nHi\n"""\n/exit\n"""\nHi\n/exit\nHi\n';
  const said = [[user("Hi"), user("Who\nare you")], [user("Hi")], [
    system,
    user("Hi"),
    user("/exit"),
    user("Hi"),
  ]];
  const stdout = await answersTo(directory, said);
  assertEquals(await chat(directory, typed), { code: 0, stdout, stderr: "" });
  assertEquals(new Set(stdout.trimEnd().split("\n")).size, 5); // the first of two conversations is the same
  const flag = await chat(directory, "Hi\n", "--system", "Be\nkind");
  assertEquals(flag.stdout, await answersTo(directory, [[system, user("Hi")]]));
});

Deno.test("chat forgets the oldest turns where a conversation no longer fits, and says so", async () => {
  const directory = await modelWith("chatml", 128),
    typed = ["What is the capital of France? ".repeat(4), "And then", "What else"].map(user); // the first is long
  const { code, stdout, stderr } = await chat(directory, typed.map(({ content }) => `${content}\n`).join(""));
  assertEquals(code, 0);
  assertEquals(stderr, "note: the oldest 2 messages are forgotten: the model reads 128 tokens at most\n");
  const [first, second] = (await answersTo(directory, [typed.slice(0, 2)])).split("\n");
  const left = [typed[1]!, { role: "assistant", content: second! }, typed[2]!];
  assertEquals(stdout, `${first}\n${second}\n${await answersTo(directory, [left])}`);
});

Deno.test("chat ends an answer where the context is full, and refuses a message that does not fit", async () => {
  const directory = await modelWith("chatml", 48);
  const full = await chat(directory, "Hi there\n", "--max_new_tokens=1000");
  assertEquals(full.stderr, "note: the answer ends here, since the model reads 48 tokens at most\n");
  const long = await chat(directory, `${"x".repeat(50)}\n`);
  const message =
    "error: Cannot answer: the message has \\d+ tokens with all around it, the model reads 48 at most\\n";
  assertMatch(long.stderr, new RegExp(`^${message}$`));
  assertEquals([long.code, long.stdout], [1, ""]);
});

Deno.test("chat says which template it takes for a model without one, and what a template refuses", async () => {
  const directory = await modelWith();
  const { stdout, stderr } = await chat(directory, "Hi\n");
  assertEquals(
    stderr,
    "note: the model has no chat template, so that conversations are in ChatML, which it may not know\n",
  );
  assertEquals(stdout, await answersTo(directory, [[user("Hi")]]));
  const strict = await modelWith("llama2"), refused = await chat(strict, "/system Be kind\n/system\n/what\n");
  assertEquals([refused.code, refused.stdout], [1, ""]);
  assertMatch(
    refused.stderr,
    /^error: Cannot do \/what: there are \/reset, \/system TEXT, \/exit and \/help; .*"""\/what"""\n$/,
  );
  const pasted = await chat(strict, `/${"x".repeat(1000)}\n`);
  assertMatch(pasted.stderr, /^error: Cannot do \/x{79}\.\.\.: there are .*"""\/x{79}\.\.\."""\n$/);
});

Deno.test("chat refuses flags that make no sense", async () => {
  assertEquals(await refuse("chat"), "Cannot chat: name a model with --checkpoint=runs/...");
  assertMatch(await refuse("chat", "--checkpoint=runs/none"), /runs\/none/);
  for (
    const flag of [
      "--max_new_tokens=0",
      "--temperature=-1",
      "--top_p=0",
      "--seed=x",
      "--dtype=int4",
      "--systen=a",
    ]
  ) {
    assertMatch(
      await refuse("chat", "--checkpoint=runs/none", flag),
      new RegExp(`^Cannot use ${flag.split("=")[0]}`),
    );
  }
});

/** A terminal with chat in it. */
class Terminal implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #keys: WritableStreamDefaultWriter<Uint8Array>;
  readonly #shown: ReadableStreamDefaultReader<string>;
  #text = "";

  constructor(directory: string, ...flags: string[]) {
    const words = [Deno.execPath(), ...taskArgs("chat", [`--checkpoint=${directory}`, ...FLAGS, ...flags])];
    this.#child = new Deno.Command("script", {
      args: terminalArgs(words),
      cwd: ROOT,
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#keys = this.#child.stdin.getWriter();
    this.#shown = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  /** Types a text; returns what is shown from then until another one is. */
  async type(keys: string, until: string): Promise<string> {
    await this.#keys.write(new TextEncoder().encode(keys));
    while (!this.#text.includes(until)) {
      const { value, done } = await this.#shown.read();
      if (done) break;
      this.#text += value;
    }
    const end = this.#text.indexOf(until) + until.length, shown = this.#text.slice(0, end);
    assertStringIncludes(shown, until);
    this.#text = this.#text.slice(end);
    return shown.replaceAll("\r\n", "\n");
  }

  /** The exit code, once it has ended. */
  async end(): Promise<number> {
    return (await this.#child.status).code;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#keys.close().catch(() => {});
    await this.#shown.cancel();
    await this.#child.status;
  }
}

Deno.test("chat asks in a terminal, and Ctrl-C ends an answer first and the conversation then", async () => {
  const directory = await modelWith("llama2", 8192);
  await using terminal = new Terminal(directory, "--max_new_tokens=1000000");
  await terminal.type("", "\n> ");
  await terminal.type("/help\n", "\n> ");
  assertStringIncludes(await terminal.type("/what\n", "\n> "), "Cannot do /what");
  await terminal.type("Hi\\\n", "... ");
  await terminal.type("there\n", "\n");
  await terminal.type("", "a"); // which it writes again and again
  await terminal.type("\x03", "\n> ");
  assertStringIncludes(await terminal.type("/exit\n", "\n"), "/exit");
  assertEquals(await terminal.end(), 0);
});

Deno.test("Ctrl-C where nothing is being written leaves, and so does Ctrl-D, after a refusal too", async () => {
  const directory = await modelWith("llama2", 48);
  for (const key of ["\x03", "\x04"]) {
    await using terminal = new Terminal(directory);
    await terminal.type("", "\n> ");
    const refused = await terminal.type(`${"x".repeat(60)}\n`, "\n> ");
    assertStringIncludes(refused, "Cannot answer: the message has ");
    await terminal.type(key, "\n");
    assertEquals(await terminal.end(), 0);
  }
});
