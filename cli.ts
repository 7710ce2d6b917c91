// The command line of the binary: `loam train ...` does what `deno task train ...` does. A subcommand's modules are loaded
// when it is asked for.
import loam from "./deno.json" with { type: "json" };
import { completions } from "./completions.ts";
import { asTyped, SUBCOMMANDS } from "./base/command.ts";
import { UserError } from "./base/errors.ts";
import { meant } from "./base/suggest.ts";

type Main = (args: string[]) => unknown;
type Name = typeof SUBCOMMANDS[number] | "completions";

const subcommands: Record<Name, { what: string; load: () => Main | Promise<Main> }> = {
  prepare: {
    what: "Turn parquet, jsonl or text into token bins",
    load: async () => (await import("./data/prepare.ts")).main,
  },
  tokenizer: {
    what: "Train a tokenizer on your own text",
    load: async () => (await import("./data/train_tokenizer.ts")).main,
  },
  data: {
    what: "Show what a dataset holds, and check it",
    load: async () => (await import("./data/inspect.ts")).main,
  },
  download: {
    what: "Fetch a model from the Hugging Face hub, to train or sample",
    load: async () => (await import("./model/download.ts")).main,
  },
  train: { what: "Train a model", load: async () => (await import("./train.ts")).train },
  sample: {
    what: "Write text with a trained model",
    load: async () => (await import("./model/sample.ts")).main,
  },
  chat: {
    what: "Talk to a trained model in the terminal",
    load: async () => (await import("./model/chat.ts")).main,
  },
  eval: {
    what: "Score models on tasks: multiple choice, perplexity of texts",
    load: async () => (await import("./model/eval.ts")).main,
  },
  export: {
    what: "Write a model for llama.cpp (GGUF) or transformers",
    load: async () => (await import("./model/export.ts")).main,
  },
  serve: {
    what: "Show runs in a browser, or let others talk to a model",
    load: async () => (await import("./serve.ts")).serve,
  },
  runs: {
    what: "List the runs with step, loss, speed and state",
    load: async () => (await import("./serve/list.ts")).main,
  },
  doctor: {
    what: "Say what is installed here and what to do about what is missing",
    load: async () => (await import("./tools/doctor.ts")).main,
  },
  completions: { what: "Print completions for bash, zsh or fish", load: () => printCompletions },
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
    await (await subcommands[found].load())(args);
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
    ...names.map((name) => line(name, subcommands[name].what)),
    "",
    "Each has --help. From text to a model that writes:",
    "",
    "  loam prepare --input corpus.txt --out data/corpus",
    "  loam train --data_dir=data/corpus --out_dir=runs/corpus",
    "  loam sample --checkpoint=runs/corpus",
  ].join("\n");
}

function printCompletions(args: string[]): void {
  const descriptions = names.map((name) => [name, subcommands[name].what] as const);
  console.log(completions(args, descriptions));
}
