// Turns text into a dataset of token bins: reads documents from parquet, jsonl or text files, encodes them, and writes
// shards and meta.json. One pass, one thread, memory bounded whatever the size of the input.
import { runMain, UserError } from "../ffi/errors.ts";
import { tokenBytes } from "./bins.ts";
import { type Batch, findInputs, type Input, readDocuments } from "./documents.ts";
import { textFraction } from "./hash.ts";
import type { Meta, SplitSize } from "./meta.ts";
import { DEMO, HELP, parseOptions, type PrepareOptions } from "./options.ts";
import { type Progress, showProgress } from "./progress.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";
import { DatasetWriter } from "./writer.ts";

if (import.meta.main) await runMain(() => main(Deno.args));

/** The command line: prepares what the flags say and prints a summary. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) return console.log(HELP);
  const options = parseOptions(args);
  if (options.inputs === DEMO.inputs) requireDemoCorpus();
  const start = performance.now();
  const { meta, empty } = await prepare(options, showProgress);
  console.log(summary(options.out, meta, empty, (performance.now() - start) / 1000));
}

/** The demo corpus is made by another task, since this one may not start programs. */
function requireDemoCorpus(): void {
  const path = DEMO.inputs[0]!;
  try {
    Deno.statSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(
      `Cannot read "${path}": the demo corpus is not there yet; write it with: deno task demo-corpus, ` +
        `or name your own text: deno task prepare --input FILES --out DIR`,
    );
  }
}

/** What prepare() wrote. */
export interface Prepared {
  meta: Meta;
  /** Documents without text, which were skipped. */
  empty: number;
}

/**
 * Writes a dataset.
 *
 * @param show Starts the progress display for so many bytes of input.
 * @throws {UserError} for input, options and places that cannot be used. Nothing is left behind then.
 */
export async function prepare(
  options: PrepareOptions,
  show: (totalBytes: number) => Progress,
): Promise<Prepared> {
  const inputs = findInputs(options.inputs, options.column);
  const tokenizer = await openTokenizer(options.tokenizer);
  using writer = new DatasetWriter(options.out, { ...options, vocab_size: tokenizer.vocab_size });
  const counts: Counts = { train: emptySplit(), val: emptySplit(), empty: 0, smallest: 1, largest: 0 };

  /** Writes one document to the split that its text decides; returns the number of tokens. */
  function add(text: string | null): number {
    if (text === null || text === "") {
      counts.empty++;
      return 0;
    }
    const place = textFraction(text, options.seed);
    counts.smallest = Math.min(counts.smallest, place);
    counts.largest = Math.max(counts.largest, place);
    const split = place < options.val_fraction ? "val" : "train";
    const ids = tokenizer.encode(text);
    writer.append(split, tokenizer.eot, ids);
    counts[split].documents += 1;
    counts[split].tokens += 1 + ids.length; // the end-of-text token and the document
    counts[split].bytes += utf8Bytes(text);
    return 1 + ids.length;
  }

  const progress = show(inputs.reduce((sum, { bytes }) => sum + bytes, 0));
  try {
    for (const { texts, bytes } of batches(inputs, options)) {
      let tokens = 0;
      for (const text of texts) tokens += add(text);
      await progress.advance(bytes, tokens);
    }
  } finally {
    await progress.stop();
  }
  checkSplit(counts, options);
  const description = describe(inputs, options, tokenizer, counts);
  const meta = writer.finish(description, description.tokenizer === "." ? tokenizer.files() : {});
  return { meta, empty: counts.empty };
}

interface Counts {
  train: SplitSize;
  val: SplitSize;
  empty: number;
  /** Extremes of textFraction() over the documents. */
  smallest: number;
  largest: number;
}

function emptySplit(): SplitSize {
  return { documents: 0, tokens: 0, bytes: 0 };
}

/** The documents of all files, up to the limit. */
function* batches(inputs: Input[], options: PrepareOptions): Generator<Batch> {
  let left = options.limit ?? Infinity;
  for (const input of inputs) {
    for (const { texts, bytes } of readDocuments(input, options)) {
      yield { texts: texts.slice(0, left), bytes };
      left -= texts.length;
      if (left <= 0) return;
    }
  }
}

/** Bytes of a text in UTF-8. */
function utf8Bytes(text: string): number {
  let bytes = text.length;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0x80) bytes += unit < 0x800 || (unit & 0xf800) === 0xd800 ? 1 : 2; // each half of a pair counts 2
  }
  return bytes;
}

/** The contents of meta.json, but for the shards. */
function describe(
  inputs: Input[],
  { column, separator, val_fraction, seed, limit, shard_tokens }: PrepareOptions,
  { name, vocab_size, eot }: Tokenizer,
  { train, val }: Counts,
): Omit<Meta, "shards"> {
  return {
    format: "loam-bins",
    version: 1,
    tokenizer: name === "gpt2" || name === "bytes" ? name : ".",
    vocab_size,
    eot,
    token_bytes: tokenBytes(vocab_size),
    train,
    val,
    inputs: inputs.map(({ path, bytes }) => ({ name: path, bytes })),
    options: { column, separator, val_fraction, seed, limit, shard_tokens },
  };
}

/** Throws if a split got no documents, naming a val_fraction that gives both some. */
function checkSplit(
  { train, val, empty, smallest, largest }: Counts,
  { inputs, val_fraction, limit }: PrepareOptions,
): void {
  const documents = train.documents + val.documents, name = inputs.join(" ");
  if (documents === 0) {
    throw new UserError(
      `Cannot prepare "${name}": it has no documents${
        empty > 0 ? `, ${empty} were empty` : ""
      }; give files with text`,
    );
  }
  if (train.documents > 0 && val.documents > 0) return;
  if (smallest === largest && limit !== null && documents + empty >= limit) {
    throw new UserError(
      `Cannot split "${name}" into train and val: --limit=${limit} leaves one document only; use a larger --limit`,
    );
  }
  if (smallest === largest) {
    throw new UserError(
      `Cannot split "${name}" into train and val: it has one document only; give more, or say what separates ` +
        `the documents of a .txt file, such as --separator='\\n\\n'`,
    );
  }
  throw new UserError(
    `Cannot split the ${documents} documents of "${name}" with --val_fraction=${val_fraction}: ` +
      `none is left for ${val.documents === 0 ? "val" : "train"}; ` +
      `use more input or --val_fraction=${between(smallest, largest)}`,
  );
}

/** The shortest decimal number above a and up to b. */
function between(a: number, b: number): number {
  for (let scale = 100;; scale *= 10) {
    const number = Math.floor(a * scale + 1) / scale;
    if (number <= b) return number;
  }
}

function summary(out: string, meta: Meta, empty: number, seconds: number): string {
  const count = (n: number) => n.toLocaleString("en-US");
  const line = (split: "train" | "val") => {
    const { documents, tokens, bytes } = meta[split];
    const shards = meta.shards.filter(({ file }) => file.startsWith(split)).length;
    return `  ${split.padEnd(5)}  ${count(documents)} documents, ${count(tokens)} tokens, ` +
      `${(bytes / tokens).toFixed(2)} bytes per token, ${shards} shard${shards === 1 ? "" : "s"}`;
  };
  const total = meta.train.tokens + meta.val.tokens;
  return [
    `${out}: ${count(total)} tokens (${meta.tokenizer}, vocabulary ${count(meta.vocab_size)}) in ` +
    `${seconds.toFixed(1)} s, ${count(Math.round(total / seconds))} tokens/s`,
    line("train"),
    line("val"),
    ...(empty > 0 ? [`  skipped ${count(empty)} documents without text`] : []),
  ].join("\n");
}
