// deno task chat: a conversation with a model, typed in a terminal or read from stdin. Answers go to stdout, all else to stderr.
import { setImmediate } from "node:timers/promises";
import { runMain, UserError } from "../base/errors.ts";
import { between, each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { lines } from "../base/lines.ts";
import { visible } from "../base/visible.ts";
import type { Message } from "../data/chat_template.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { loadModel, tokenizerFor, WEIGHT_TYPES, type WeightType } from "./checkpoint.ts";
import { type Conversations, NO_TEMPLATE, openConversations } from "./conversations.ts";
import { openDevice } from "./device.ts";
import { begin, step, type Text } from "./generate.ts";
import type { Llama, LlamaConfig } from "./llama.ts";
import { print } from "./sample.ts";
import { StopStrings } from "./stop_strings.ts";

const defaults = {
  checkpoint: "", // a run directory, one of its checkpoints, its best (RUN/best), or a model directory of Hugging Face
  system: "", // the message of the system with which a conversation begins; "" = none
  max_new_tokens: 1000, // of an answer, which is shorter where the model ends it or its context is full
  temperature: 0.8, // 0 = always the likeliest token
  top_k: 50, // 0 = all tokens
  top_p: 1, // of the likeliest tokens only so many that their probabilities add up to this; 1 = all
  seed: 1, // the same seed and the same messages give the same answers
  device: "", // "" = cuda if it answers, else cpu
  dtype: "auto", // of weights on a CPU: float32, bfloat16 (half the memory), or auto = bfloat16 where the files are
};

type Options = typeof defaults;

const ranges: Ranges<Options> = {
  ...each(whole(0), "top_k", "seed"),
  max_new_tokens: whole(1),
  temperature: between(0),
  top_p: between(0, 1, 0), // without 0
  dtype: WEIGHT_TYPES,
};

const COMMANDS = `/reset         forget what was said
/system TEXT   begin anew with this message of the system; without TEXT with none
/exit          leave, as Ctrl-D does, and Ctrl-C where no answer is being written
A line that ends in \\ goes on in the next one; so does all between """ and """.`;

/** The command line: answers what is typed until its end. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./chat.ts", { with: { type: "text" } });
    return console.log(`${help("Talk to a trained model", defaults, source)}\n\n${COMMANDS}`);
  }
  const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
  if (!o.checkpoint) throw new UserError("Cannot chat: name a model with --checkpoint=runs/...");
  openDevice(o.device);
  const { model, config, directory } = loadModel(o.checkpoint, { dtype: o.dtype as WeightType });
  const tokenizer = await tokenizerFor("chat", directory, config),
    conversations = openConversations(directory, tokenizer);
  if (!conversations.isOwn) console.error(`note: ${NO_TEMPLATE}`);
  const chat = new Chat(model, config, tokenizer, conversations, o);
  if (Deno.stdin.isTerminal()) return await talk(chat);
  for await (const message of messagesIn(lines(Deno.stdin.readable))) {
    if (await hear(chat, message) === "exit") return;
  }
}

/** Answers a person, who may take back what cannot be answered. */
async function talk(chat: Chat): Promise<void> {
  const ask = (isOpen: boolean) => say(isOpen ? "... " : "> ");
  Deno.addSignalListener("SIGINT", () => {
    chat.isStopped = true;
    if (!chat.isAnswering) leave();
  });
  console.error("/help says what there is beside messages");
  for await (const message of messagesIn(lines(Deno.stdin.readable), ask)) {
    try {
      if (await hear(chat, message) === "exit") break;
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      console.error(visible(error.message));
    }
  }
  leave();
}

/** Ends the program, though stdin is being read. */
function leave(): never {
  console.error();
  Deno.exit();
}

function say(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(text));
}

/** What was typed: a message, or as it stands a command. */
export type Typed = { text: string; isQuoted: boolean };

/**
 * The messages in lines, one in each; a line that ends in a backslash goes on in the next one, and so does all between
 * """ and """. ask is called before each line is read; isOpen: it goes on with a message.
 */
export async function* messagesIn(
  lines: AsyncIterable<string>,
  ask: (isOpen: boolean) => void = () => {},
): AsyncGenerator<Typed> {
  let text = "", isOpen = false;
  const typed = () => {
    const isQuoted = text.startsWith('"""');
    return { text: isQuoted ? text.replace(/^"""\n?|\n?"""\s*$/g, "") : text, isQuoted };
  };
  ask(isOpen);
  for await (const line of lines) {
    text += (isOpen ? "\n" : "") + line.replace(/\r$/, "");
    const isQuoted = text.startsWith('"""');
    isOpen = isQuoted ? !/"""\s*$/.test(text.slice(3)) : text.endsWith("\\");
    if (isOpen && !isQuoted) text = text.slice(0, -1);
    if (!isOpen) {
      yield typed();
      text = "";
    }
    ask(isOpen);
  }
  if (isOpen) yield typed();
}

/** Does what was typed. Throws UserError where it cannot be. */
async function hear(chat: Chat, { text, isQuoted }: Typed): Promise<"exit" | void> {
  if (text.trim() === "") return;
  if (isQuoted || !text.startsWith("/")) return await chat.answer(text);
  const [, command, rest] = /^(\S+)\s*([^]*)$/.exec(text)!;
  if (command === "/exit") return "exit";
  if (command === "/help") return console.error(COMMANDS);
  if (command === "/reset" && !rest) return chat.reset();
  if (command === "/system") return chat.reset(rest);
  const shown = text.length > 80 ? `${text.slice(0, 80)}...` : text;
  throw new UserError(
    `Cannot do ${shown}: there are /reset, /system TEXT, /exit and /help; for a message that begins with / write """${shown}"""`,
  );
}

/** A conversation with a model. */
class Chat {
  /** Whether an answer is being written. */
  isAnswering = false;
  /** Ends the answer. */
  isStopped = false;
  #system: string;
  #messages: Message[] = [];
  #earlier: Text | undefined; // what the model has read and written; its cache is gone on with

  constructor(
    readonly model: Llama,
    readonly config: LlamaConfig,
    readonly tokenizer: Tokenizer,
    readonly conversations: Conversations,
    readonly options: Options,
  ) {
    this.#system = options.system;
    this.reset();
  }

  /** Forgets all that was said but for the message of the system. */
  reset(system: string = this.#system): void {
    this.#system = system;
    this.#messages = system ? [{ role: "system", content: system }] : [];
  }

  /** Prints the answer to a message, which is forgotten where there is none: then UserError says why. */
  async answer(content: string): Promise<void> {
    this.#messages.push({ role: "user", content });
    this.isStopped = false;
    this.isAnswering = true;
    try {
      this.#messages.push({ role: "assistant", content: await this.#write(this.#prompt()) });
    } catch (error) {
      this.#messages.pop();
      throw error;
    } finally {
      this.isAnswering = false;
    }
  }

  /** Prints what the model writes behind a prompt until it is at its end or is stopped, and returns it. */
  async #write(prompt: number[]): Promise<string> {
    const { model, config, tokenizer, conversations: { ends, stops }, options } = this;
    const room = config.block_size - prompt.length;
    const text = this.#earlier = begin(config, prompt, {
      ...options,
      max_new_tokens: Math.min(options.max_new_tokens, room),
      seed: options.seed + this.#messages.length,
      stop: ends,
    }, this.#earlier);
    const stream = tokenizer.stream(), stopStrings = new StopStrings(stops);
    let answer = "", isLast = false;
    const write = (piece: string) => {
      print(piece);
      answer += piece;
    };
    while (!isLast && !stopStrings.stopped && !this.isStopped) {
      const [next] = step(model, config, [text]);
      if (next!.token !== undefined) write(stopStrings.write(stream.write(next!.token)));
      isLast = next!.isLast;
      await setImmediate(); // Ctrl-C comes in between
    }
    write(stopStrings.write(stream.end()) + stopStrings.end());
    print("\n");
    if (text.written === room && !stopStrings.stopped) {
      console.error(`note: the answer ends here, since the model reads ${config.block_size} tokens at most`);
    }
    return answer;
  }

  /** The tokens of the conversation, of which the oldest turns are dropped until there is room for an answer. */
  #prompt(): number[] {
    const { conversations, config: { block_size }, options } = this, messages = this.#messages;
    const room = Math.min(options.max_new_tokens, Math.ceil(block_size / 4)); // at least
    let dropped = 0;
    for (;;) {
      const prompt = conversations.prompt(messages), first = messages[0]!.role === "system" ? 1 : 0;
      const second = messages.findIndex(({ role }, i) => i > first && role === "user"); // turn
      if (second >= 0 && prompt.length + room > block_size) {
        dropped += messages.splice(first, second - first).length;
        continue;
      }
      if (dropped > 0) {
        console.error(
          `note: the oldest ${dropped} messages are forgotten: the model reads ${block_size} tokens at most`,
        );
      }
      if (prompt.length < block_size) return prompt;
      throw new UserError(
        `Cannot answer: the message has ${prompt.length} tokens with all around it, the model reads ${block_size} at most`,
      );
    }
  }
}

if (import.meta.main) await runMain(main);
