// deno task data: shows what a dataset holds, and checks it. Reads every shard once, in bounded memory.
import { createHash } from "node:crypto";
import { relative } from "node:path";
import { parseArgs } from "@std/cli/parse-args";
import { nearest, runMain, UserError } from "../ffi/errors.ts";
import { type Dataset, openDataset, type Shard } from "./bins.ts";
import { readMeta, type SplitSize } from "./meta.ts";
import {
  decodeKnown,
  documentLine,
  frequentTokens,
  heading,
  histogram,
  number,
  shardLine,
  splitTable,
} from "./inspect_text.ts";
import { chunksOf, findDocument, findOutside, locate, type Range, readRange, Tally } from "./scan.ts";
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

const FIRST_DOCUMENTS = 3; // are shown,
const SHOWN_TOKENS = 160; // so many of each at most
const DECODED = 1 << 18; // tokens that bytes per token is measured on where no meta.json says it

type Split = "train" | "val";

interface Options {
  dir: string;
  /** Number of the document to show; null for everything about the dataset. */
  doc: number | null;
  split: Split;
  /** "" if none is named. */
  tokenizer: string;
}

if (import.meta.main) await runMain(() => main(Deno.args));

/** The command line. Throws UserError, so that the exit code is 1, also for a dataset in which something is wrong. */
export async function main(args: string[], print: (text: string) => void = console.log): Promise<void> {
  if (args.includes("--help")) return print(HELP);
  const options = parseOptions(args);
  const { dataset, tokenizer } = await openNamed(options.dir, options.tokenizer);
  if (options.doc === null) inspect(dataset, tokenizer, print);
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
  const flag = nearest(name, ["dir", "doc", "split", "tokenizer", "help"]);
  throw new UserError(`Cannot use ${arg.split("=")[0]}: there is no such flag; did you mean --${flag}?`);
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
  const { vocab_size, eot } = dataset.tokenizer === null ? dataset : tokenizer;
  return { dataset: { ...dataset, tokenizer: name, vocab_size, eot }, tokenizer };
}

// ---- everything about a dataset

/** Prints what a dataset holds, as it is read. Throws UserError at the end if something is wrong with it. */
function inspect(dataset: Dataset, tokenizer: Tokenizer | null, print: (text: string) => void): void {
  const meta = dataset.format === "loam" ? readMeta(dataset.dir) : null;
  const wrong: string[] = [];
  print(heading(dataset));
  print("\nshards");
  const start = performance.now();
  const [train, val] = (["train", "val"] as const).map((split) => {
    const tally = new Tally(dataset.vocab_size, dataset.eot);
    for (const shard of dataset[split]) {
      const { line, ok } = readShard(dataset, shard, tally);
      print(line);
      if (!ok) wrong.push(`${relative(dataset.dir, shard.path)} has another SHA-256 than meta.json says`);
    }
    tally.endSplit();
    if (meta) wrong.push(...differences(split, meta[split], tally));
    if (tally.outside > 0) wrong.push(outsideText(dataset, split, tally.outside));
    return tally;
  }) as [Tally, Tally];
  print(rate(dataset, performance.now() - start));

  print(
    `\n${splitTable(dataset, { train, val }, (split) => bytesPerToken(dataset, split, meta, tokenizer))}`,
  );
  if (!meta && tokenizer) print(`bytes/token: of the first ${number(DECODED)} tokens, decoded`);
  print(`\ntokens per document, train\n${histogram(train.lengths)}`);
  print(`\nmost frequent tokens, train\n${frequentTokens(train.counts, tokenizer)}`);
  print(`\nfirst documents, train\n${firstDocuments(dataset, tokenizer, train.lengths.count)}`);
  if (wrong.length === 0) return;
  const next = meta
    ? "write the dataset again: deno task prepare --overwrite ..."
    : "copy it again, or name the tokenizer that made it with --tokenizer";
  throw new UserError(`Cannot use "${dataset.dir}": ${wrong.join(", ")}; ${next}`);
}

/** Counts the tokens of a shard and compares its checksum. */
function readShard(dataset: Dataset, shard: Shard, tally: Tally): { line: string; ok: boolean } {
  const file = relative(dataset.dir, shard.path), expected = dataset.sha256[file];
  const hash = expected === undefined ? undefined : createHash("sha256");
  for (const ids of chunksOf(shard, (bytes) => hash?.update(bytes))) tally.add(ids);
  const actual = hash?.digest("hex");
  return { line: shardLine(file, shard.tokens, actual, expected), ok: actual === expected };
}

/** What meta.json says of a split that is not so. */
function differences(
  split: Split,
  { documents, tokens }: SplitSize,
  { lengths, counts, outside }: Tally,
): string[] {
  const found = { documents: lengths.count, tokens: counts.reduce((a, b) => a + b, outside) };
  return Object.entries({ documents, tokens })
    .filter(([what, said]) => said !== found[what as keyof typeof found])
    .map(([what, said]) =>
      `${split} has ${number(found[what as keyof typeof found])} ${what}, meta.json says ${number(said)}`
    );
}

function outsideText({ dir, vocab_size, ...shards }: Dataset, split: Split, count: number): string {
  const first = findOutside(shards[split], vocab_size)!,
    { shard, token } = locate(shards[split], first.position);
  return `${
    number(count)
  } tokens of ${split} are not below vocab_size ${vocab_size}, the first is ${first.id} ` +
    `at token ${token} of ${relative(dir, shard.path)}`;
}

function rate({ train, val }: Dataset, ms: number): string {
  const bytes = [...train, ...val].reduce(
    (sum, shard) => sum + shard.header_bytes + shard.tokens * shard.token_bytes,
    0,
  );
  return `  ${(bytes / 1e6).toFixed(1)} MB read in ${(ms / 1000).toFixed(2)} s, ${
    (bytes / ms / 1000).toFixed(0)
  } MB/s`;
}

/** Bytes of text by token, end-of-text tokens included; null without tokens or where nothing says how to decode them. */
function bytesPerToken(
  dataset: Dataset,
  split: Split,
  meta: Record<Split, SplitSize> | null,
  tokenizer: Tokenizer | null,
): number | null {
  const tokens = dataset[split].reduce((sum, shard) => sum + shard.tokens, 0);
  if (tokens === 0) return null;
  if (meta) return meta[split].bytes / tokens;
  if (!tokenizer) return null;
  const ids = readRange(dataset[split], { start: 0, end: Math.min(tokens, DECODED) });
  const text = decodeKnown(tokenizer, ids.filter((id) => id !== dataset.eot));
  return new TextEncoder().encode(text).length / ids.length;
}

function firstDocuments(dataset: Dataset, tokenizer: Tokenizer | null, documents: number): string {
  const numbers = Array.from({ length: Math.min(documents, FIRST_DOCUMENTS) }, (_, i) => i);
  return numbers.map((n) => {
    const { start, end } = findDocument(dataset.train, dataset.eot, n) as Range; // there are as many
    const ids = readRange(dataset.train, { start, end: Math.min(end, start + SHOWN_TOKENS) });
    return documentLine(n, end - start, ids, tokenizer);
  }).join("\n");
}

// ---- one document

function documentText(dataset: Dataset, tokenizer: Tokenizer | null, split: Split, n: number): string {
  const { dir, eot } = dataset, shards = dataset[split];
  if (!tokenizer) {
    throw new UserError(
      `Cannot decode document ${n} of "${dir}": its files do not name their tokenizer; name it with --tokenizer`,
    );
  }
  const found = findDocument(shards, eot, n);
  if ("documents" in found) {
    const range = found.documents === 0 ? "" : `, from 0 to ${found.documents - 1}`;
    throw new UserError(
      `Cannot show document ${n} of the ${split} split of "${dir}": it has ${
        number(found.documents)
      } documents${range}`,
    );
  }
  const tokens = found.end - found.start;
  if (tokens === 0) return `${split} document ${n}: empty`;
  const { shard, token } = locate(shards, found.start);
  const text = decodeKnown(tokenizer, readRange(shards, found));
  return `${split} document ${n}: ${number(tokens)} tokens from token ${token} of ${
    relative(dir, shard.path)
  }\n\n${text}`;
}
