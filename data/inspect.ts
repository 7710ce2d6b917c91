// The command line of `deno task data`, which shows what a dataset holds, and checks it.
import { parseArgs } from "@std/cli/parse-args";
import { asTyped } from "../base/command.ts";
import { runMain, UserError } from "../base/errors.ts";
import { meantFlag } from "../base/suggest.ts";
import { type Dataset, openDataset } from "./bins.ts";
import { documentText, inspectDataset, type Split } from "./inspect/inspect_dataset.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";

const HELP = `Show what a dataset holds, and check it

  deno task data                            the demo: data/demo
  deno task data --dir data/c4              counts, lengths of documents, frequent tokens, checksums
  deno task data --dir data/c4 --doc 123    the text of one document

  --dir DIR          a dataset of ours, llm.c's or nanoGPT's                          (data/demo)
  --doc NUMBER       show this document, counted from 0
  --split NAME       where --doc counts: train or val                                 (train)
  --tokenizer NAME   decodes a dataset that does not name its tokenizer: gpt2, cl100k,
                     o200k, bytes, or a directory with tokenizer.json`;

type Options = {
  dir: string;
  /** Number of the document to show; null for everything about the dataset. */
  doc: number | null;
  split: Split;
  /** "" if none is named. */
  tokenizer: string;
};

if (import.meta.main) await runMain((args) => main(args));

/** The command line. Throws UserError, so that the exit code is 1, also for a dataset in which something is wrong. */
export async function main(args: string[], print: (text: string) => void = console.log): Promise<void> {
  if (args.includes("--help")) return print(asTyped(HELP));
  const options = parseOptions(args);
  const { dataset, tokenizer } = await openNamed(options.dir, options.tokenizer);
  if (options.doc === null) inspectDataset(dataset, tokenizer, print);
  else print(documentText(dataset, tokenizer, options.split, options.doc));
}

function parseOptions(args: string[]): Options {
  const names = ["dir", "doc", "split", "tokenizer"] as const;
  const flags = parseArgs(args, { string: names, unknown: refuseFlag });
  for (const name of names) {
    if (flags[name] === "") {
      throw new UserError(`Cannot use --${name}: it needs a value, such as --${name}=...`);
    }
  }
  const { dir = "data/demo", doc, split = "train", tokenizer = "" } = flags;
  if (doc !== undefined && !(/^\d+$/.test(doc) && Number.isSafeInteger(Number(doc)))) {
    throw new UserError(`Cannot use --doc=${doc}: it should be the number of a document, from 0`);
  }
  if (split !== "train" && split !== "val") {
    throw new UserError(`Cannot use --split=${split}: it should be train or val`);
  }
  if (flags.split !== undefined && doc === undefined) {
    throw new UserError(`Cannot use --split=${split} alone: it says where --doc counts; add --doc=0`);
  }
  return { dir, doc: doc === undefined ? null : Number(doc), split, tokenizer };
}

/** Called with each argument that is no known flag. */
function refuseFlag(arg: string, name?: string): boolean {
  if (name === undefined) {
    throw new UserError(`Cannot read the argument ${arg}: a dataset is named with --dir ${arg}`);
  }
  const known = ["dir", "doc", "split", "tokenizer", "help"];
  throw new UserError(`Cannot use ${arg.split("=")[0]}: there is no such flag; ${meantFlag(name, known)}`);
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
