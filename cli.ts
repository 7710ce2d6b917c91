// The command line of the binary: `loam train ...` does what `deno task train ...` does. A subcommand's modules are loaded
// when it is asked for.
import loam from "./deno.json" with { type: "json" };
import { completions } from "./completions.ts";
import { asTyped, SUBCOMMANDS } from "./base/command.ts";
import { UserError } from "./base/errors.ts";
import { meant } from "./base/suggest.ts";

type Main = (args: string[]) => unknown;
type Name = typeof SUBCOMMANDS[number] | "completions";

/** What each does, and the module whose main() does it. */
const subcommands: Record<Name, [what: string, load: () => Promise<{ main: Main }>]> = {
  prepare: ["Turn parquet, jsonl or text into token bins", () => import("./data/prepare.ts")],
  tokenizer: ["Train a tokenizer on your own text", () => import("./data/train_tokenizer.ts")],
  data: ["Show what a dataset holds, and check it", () => import("./data/inspect.ts")],
  download: [
    "Fetch a model from the Hugging Face hub, to train or sample",
    () => import("./model/download.ts"),
  ],
  train: ["Train a model", async () => ({ main: (await import("./train.ts")).train })],
  sample: ["Write text with a trained model", () => import("./model/sample.ts")],
  chat: ["Talk to a trained model in the terminal", () => import("./model/chat.ts")],
  eval: ["Score models on tasks: multiple choice, perplexity of texts", () => import("./model/eval.ts")],
  export: ["Write a model for llama.cpp (GGUF) or transformers", () => import("./model/export.ts")],
  serve: [
    "Show runs in a browser, or let others talk to a model",
    async () => ({ main: (await import("./serve.ts")).serve }),
  ],
  runs: ["List the runs with step, loss, speed and state", () => import("./serve/list.ts")],
  doctor: [
    "Say what is installed here and what to do about what is missing",
    () => import("./tools/doctor.ts"),
  ],
  completions: ["Print completions for bash, zsh or fish", () => Promise.resolve({ main: printCompletions })],
};

const names: Name[] = [...SUBCOMMANDS, "completions"];

/** Runs the subcommand that the first argument names. Throws UserError where there is none of that name. */
export async function main([name, ...args]: string[]): Promise<void> {
  if (name === undefined || name === "--help") return console.log(help());
  if (name === "--version") {
    return console.log(`loam ${loam.version} (Deno ${Deno.version.deno}, ${Deno.build.target})`);
  }
  const found = names.find((known) => known === name);
  if (found === undefined) {
    throw new UserError(
      `Cannot run ${name}: there is no such subcommand; ${meant(name, [...names, "--help", "--version"])}`,
    );
  }
  try {
    const [, load] = subcommands[found];
    await (await load()).main(args);
  } catch (error) {
    if (error instanceof UserError) error.message = asTyped(error.message); // of its own kind, which exitCodeOf() tells apart
    throw error;
  }
}

function help(): string {
  const line = (name: string, what: string) => `  loam ${name.padEnd(12)} ${what}`;
  return [
    `loam ${loam.version} trains Llama-style language models`,
    "",
    ...names.map((name) => line(name, subcommands[name][0])),
    "",
    "Each has --help. From text to a model that writes:",
    "",
    "  loam prepare --input corpus.txt --out data/corpus",
    "  loam train --data_dir=data/corpus --out_dir=runs/corpus",
    "  loam sample --checkpoint=runs/corpus",
  ].join("\n");
}

function printCompletions(args: string[]): void {
  const descriptions = names.map((name) => [name, subcommands[name][0]] as const);
  console.log(completions(args, descriptions));
}
