// The command line of `deno task data`, which shows what a dataset holds, and checks it.
import { runMain, UserError } from "../base/errors.ts";
import { help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { type Dataset, openDataset } from "./bins.ts";
import { documentText, inspectDataset, type Split } from "./inspect/inspect_dataset.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";

const defaults = {
  dir: "data/demo", // a dataset of ours, llm.c's or nanoGPT's
  doc: null as number | null, // show this document, counted from 0
  split: "train" as Split, // where --doc counts: train or val
  tokenizer: "", // decodes a dataset that does not name its tokenizer: gpt2, cl100k, o200k, bytes,
  // or a directory with tokenizer.json
};

const ranges: Ranges<typeof defaults> = { doc: whole(0), split: ["train", "val"] };

const USAGE = `Show what a dataset holds, and check it

  deno task data                            the demo: data/demo
  deno task data --dir data/c4              counts, lengths of documents, frequent tokens, checksums
  deno task data --dir data/c4 --doc 123    the text of one document`;

if (import.meta.main) await runMain((args) => main(args));

/** The command line. Throws UserError, so that the exit code is 1, also for a dataset in which something is wrong. */
export async function main(args: string[], print: (text: string) => void = console.log): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./inspect.ts", { with: { type: "text" } });
    return print(help(USAGE, defaults, source));
  }
  const options = parseOptions(args);
  const { dataset, tokenizer } = await openNamed(options.dir, options.tokenizer);
  if (options.doc === null) inspectDataset(dataset, tokenizer, print);
  else print(documentText(dataset, tokenizer, options.split, options.doc));
}

function parseOptions(args: string[]): typeof defaults {
  const given = readFlags(args, defaults, { ranges });
  if (given.split !== undefined && given.doc === undefined) {
    throw new UserError(`Cannot use --split=${given.split} alone: it says where --doc counts; add --doc=0`);
  }
  return { ...defaults, ...given };
}

/** Opens a dataset with the tokenizer that it names, or that the user does. tokenizer: null if neither does. */
async function openNamed(
  dir: string,
  name: string,
): Promise<{ dataset: Dataset; tokenizer: Tokenizer | null }> {
  const dataset = openDataset(dir);
  if (name === "" || name === dataset.tokenizer) {
    return { dataset, tokenizer: dataset.tokenizer === null ? null : await openTokenizer(dataset.tokenizer) };
  }
  if (dataset.format === "loam") {
    throw new UserError(
      `Cannot decode "${dir}" with tokenizer ${name}: its meta.json says ${dataset.tokenizer}; leave --tokenizer out`,
    );
  }
  const tokenizer = await openTokenizer(name);
  // Of GPT-2's tokens it is only assumed that they are GPT-2's; llm.c's Llama 3 data has an end of text of its own.
  if (dataset.tokenizer === null) return { dataset: { ...dataset, tokenizer: name }, tokenizer };
  const { vocab_size, eot } = tokenizer; // nothing else stands between documents
  return { dataset: { ...dataset, tokenizer: name, vocab_size, bos: eot, eot }, tokenizer };
}
