// What conversations cost prepare: --chat beside plain text of the same content, by turns, with templates that have
// {% generation %} and one that has not: deno run -P=bench bench/prepare_chat.ts
import { runMain } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";
import { ChatTemplate, DEFAULT_TEMPLATE, type Message } from "../data/chat_template.ts";
import { prepare } from "../data/prepare.ts";
import { parseCommand } from "../data/prepare/options.ts";
import { median } from "./median.ts";
import { type Head, reportHead, saveReport, warnOfLoad } from "./report.ts";

const defaults = {
  mb: 30, // of text in each corpus
  rounds: 5, // turns of each side
  tokenizer: "gpt2", // its end of text ends the turns
  workers: `1,${navigator.hardwareConcurrency}`,
  json: "", // where the results go; "" = bench/results/prepare_chat-<date>.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = { ...each(whole(1), "mb", "rounds") };

/** ChatML as most models have it. */
const UNMARKED = "{%- for message in messages %}\n" +
  "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}" +
  "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}";

/** MB/s of text. */
type Rate = { template: string; workers: number; text: number[]; chat: number[]; ratio: number };

/** What is in the JSON file. */
export type Report = Head & { text_bytes: number; conversations: number; rates: Rate[] };

if (import.meta.main) {
  await runMain(async (args) => {
    const source = Deno.readTextFileSync(import.meta.filename!);
    if (args.includes("--help")) {
      return console.log(help("Time prepare --chat against plain text", defaults, source));
    }
    await main({ ...defaults, ...readFlags(args, defaults, { ranges }) });
  });
}

async function main(o: Options): Promise<void> {
  const head = reportHead("deno run -P=bench bench/prepare_chat.ts", Deno.args), rates: Rate[] = [];
  warnOfLoad(head.load_before);
  const dir = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_prepare_chat_" });
  try {
    const conversations = makeConversations(1e6 * o.mb);
    const lines = conversations.map((messages) => JSON.stringify({ messages }));
    Deno.writeTextFileSync(`${dir}/chat.jsonl`, lines.join("\n"));
    let text_bytes = 0;
    for (const [name, source] of [["with generation", DEFAULT_TEMPLATE], ["without", UNMARKED]] as const) {
      const template = new ChatTemplate(source, { eos_token: "<|endoftext|>" });
      const texts = conversations.map((messages) => template.render(messages));
      text_bytes = texts.reduce((sum, text) => sum + text.length, 0);
      Deno.writeTextFileSync(`${dir}/text.jsonl`, texts.map((text) => JSON.stringify({ text })).join("\n"));
      Deno.writeTextFileSync(`${dir}/template.jinja`, source);
      for (const workers of o.workers.split(",").map(Number)) {
        const flags = [
          `--tokenizer=${o.tokenizer}`,
          `--workers=${workers}`,
          `--out=${dir}/out`,
          "--overwrite",
        ];
        const text: number[] = [], chat: number[] = [];
        for (let round = 0; round < o.rounds; round++) {
          text.push(await rateOf(`--input=${dir}/text.jsonl`, ...flags));
          chat.push(
            await rateOf(
              "--chat",
              `--chat_template=${dir}/template.jinja`,
              `--input=${dir}/chat.jsonl`,
              ...flags,
            ),
          );
          Deno.removeSync(`${dir}/out`, { recursive: true });
        }
        rates.push({ template: name, workers, text, chat, ratio: median(chat) / median(text) });
      }
    }
    const shown = rates.map(({ template, workers, text, chat, ratio }) => [
      template,
      `${workers}`,
      ...[text, chat].map((side) => median(side).toFixed(1)),
      `${ratio.toFixed(2)}x`,
    ]);
    console.log(table([["template", "workers", "text MB/s", "chat MB/s", "ratio"], ...shown]));
    const report: Report = { ...head, text_bytes, conversations: conversations.length, rates };
    console.log(`every figure is in ${saveReport(report, `prepare_chat-${head.date}`, o.json)}`);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

/** Conversations of one to four turns from the demo's text, each piece of which is numbered, so that few are alike. */
function makeConversations(bytes: number): Message[][] {
  const pieces = Deno.readTextFileSync("data/demo.txt").split("\n").filter((line) => line.length > 40);
  const conversations: Message[][] = [];
  for (let i = 0, made = 0; made < bytes;) {
    const messages: Message[] = [];
    for (let turn = 0; turn <= conversations.length % 4; turn++) {
      const [question, answer] = [
        `${i}: ${pieces[i++ % pieces.length]}`,
        pieces.slice(i % pieces.length).slice(0, 4).join(" "),
      ];
      messages.push({ role: "user", content: question }, { role: "assistant", content: `${answer} ${i}` });
      made += question.length + answer.length;
    }
    conversations.push(messages);
  }
  return conversations;
}

/** MB/s of text of one run of prepare. */
async function rateOf(...args: string[]): Promise<number> {
  const command = parseCommand(args);
  if (!("prepare" in command)) throw new Error("internal: it merges");
  const show = () => ({ advance: () => Promise.resolve(), stop: () => Promise.resolve() });
  const { work } = await prepare(command.prepare, show);
  return work!.text / work!.seconds / 1e6;
}
