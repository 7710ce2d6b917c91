// What conversations cost prepare: --chat beside plain text of the same content, by turns, with templates that have
// {% generation %} and one that has not: deno run -P=bench bench/prepare_chat.ts --sample=c4_validation_2k.parquet
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";
import { ChatTemplate, DEFAULT_TEMPLATE, type Message } from "../data/chat_template.ts";
import { prepare } from "../data/prepare.ts";
import { documentOf } from "../data/read/block.ts";
import { READ_ALL, readBlocks } from "../data/read/documents.ts";
import { findSources } from "../data/read/inputs.ts";
import { parseCommand } from "../data/prepare/options.ts";
import { median } from "./median.ts";
import { type Head, reportHead, saveReport, warnOfLoad } from "./report.ts";

const defaults = {
  sample: "", // a parquet file with a column text, of which conversations are made
  mb: 10, // of text in each corpus; more than the sample has comes again
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
export type Report = Head & { conversations: number; rates: Rate[] };

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
  if (o.sample === "") {
    throw new UserError("Cannot time prepare: --sample is missing, a parquet file with a column text");
  }
  const args = Deno.args.map((arg) => arg.replace(/=.*\//, "=")); // without the directories of this machine
  const head = reportHead("deno run -P=bench bench/prepare_chat.ts", args), rates: Rate[] = [];
  warnOfLoad(head.load_before);
  const dir = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_prepare_chat_" });
  try {
    const conversations = await makeConversations(o);
    const lines = conversations.map((messages) => JSON.stringify({ messages }));
    Deno.writeTextFileSync(`${dir}/chat.jsonl`, lines.join("\n"));
    for (const [name, source] of [["with generation", DEFAULT_TEMPLATE], ["without", UNMARKED]] as const) {
      const template = new ChatTemplate(source, { eos_token: "<|endoftext|>" });
      const texts = conversations.map((messages) => template.render(messages));
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
    const report: Report = { ...head, conversations: conversations.length, rates };
    console.log(`every figure is in ${saveReport(report, `prepare_chat-${head.date}`, o.json)}`);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

/** Conversations of one to four turns: a document each, cut between sentences into questions and longer answers. */
async function makeConversations({ sample, mb }: Options): Promise<Message[][]> {
  const sources = await findSources([sample], { column: "text", split: "", out: "", report: () => {} });
  const texts: string[] = [], utf8 = new TextDecoder();
  for await (const block of readBlocks(sources, READ_ALL, { bad: 0, duplicates: 0 })) {
    for (let d = 0; d < block.ends.length; d++) texts.push(utf8.decode(documentOf(block, d)));
  }
  const conversations: Message[][] = [];
  for (let i = 0, made = 0; made < 1e6 * mb; i++) {
    const text = texts[i % texts.length]!, sentences = text.split(/(?<=[.!?\n]) ?/), messages: Message[] = [];
    const size = Math.ceil(sentences.length / (1 + i % 4)); // of a turn
    for (let at = 0; at < sentences.length; at += size) {
      messages.push({ role: "user", content: sentences[at]! });
      messages.push({ role: "assistant", content: sentences.slice(at + 1, at + size).join(" ") });
    }
    conversations.push(messages);
    made += text.length;
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
