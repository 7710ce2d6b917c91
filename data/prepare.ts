// Turns text into a dataset of token bins: reads documents from parquet, jsonl or text files, encodes them, and writes
// shards and meta.json. One pass, one thread, memory bounded whatever the size of the input.
import { runMain, UserError } from "../ffi/errors.ts";
import { type Meta, type SplitSize, tokenBytes } from "./bins.ts";
import { findInputs, type Input, readDocuments } from "./documents.ts";
import { textFraction } from "./hash.ts";
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
  const progress = show(inputs.reduce((sum, { bytes }) => sum + bytes, 0));
  const counts: Counts = { train: emptySplit(), val: emptySplit(), empty: 0, smallest: 1, largest: 0 };
  try {
    await encodeAll(inputs, options, tokenizer, writer, progress, counts);
  } finally {
    await progress.stop();
  }
  checkSplit(counts, options);
  const own = tokenizer.name === "gpt2" || tokenizer.name === "bytes";
  const { column, separator, val_fraction, seed, limit, shard_tokens } = options;
  const meta = writer.finish({
    format: "loam-bins",
    version: 1,
    tokenizer: own ? tokenizer.name : ".",
    vocab_size: tokenizer.vocab_size,
    eot: tokenizer.eot,
    token_bytes: tokenBytes(tokenizer.vocab_size),
    train: counts.train,
    val: counts.val,
    inputs: inputs.map(({ path, bytes }) => ({ name: path, bytes })),
    options: { column, separator, val_fraction, seed, limit, shard_tokens },
  }, own ? {} : tokenizer.files());
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

async function encodeAll(
  inputs: Input[],
  options: PrepareOptions,
  tokenizer: Tokenizer,
  writer: DatasetWriter,
  progress: Progress,
  counts: Counts,
): Promise<void> {
  let left = options.limit ?? Infinity;
  for (const input of inputs) {
    for (const { texts, bytes } of readDocuments(input, options)) {
      let tokens = 0;
      for (const text of texts.slice(0, left)) tokens += encodeOne(text, options, tokenizer, writer, counts);
      left -= texts.length;
      await progress.advance(bytes, tokens);
      if (left <= 0) return;
    }
  }
}

/** Writes one document to the split that its text decides; returns the number of tokens. */
function encodeOne(
  text: string | null,
  { seed, val_fraction }: PrepareOptions,
  tokenizer: Tokenizer,
  writer: DatasetWriter,
  counts: Counts,
): number {
  if (text === null || text === "") {
    counts.empty++;
    return 0;
  }
  const place = textFraction(text, seed);
  counts.smallest = Math.min(counts.smallest, place);
  counts.largest = Math.max(counts.largest, place);
  const split = place < val_fraction ? "val" : "train";
  const ids = tokenizer.encode(text);
  writer.append(split, tokenizer.eot, ids);
  const size = counts[split];
  size.documents += 1;
  size.tokens += ids.length + 1; // and the end-of-text token
  size.bytes += utf8Bytes(text);
  return ids.length + 1;
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

/** Throws if a split got no documents, naming a val_fraction that gives both some. */
function checkSplit(
  { train, val, empty, smallest, largest }: Counts,
  { inputs, val_fraction }: PrepareOptions,
): void {
  const documents = train.documents + val.documents, name = inputs.join(" ");
  if (documents === 0) {
    throw new UserError(
      `Cannot prepare "${name}": it has no documents, ${empty} were empty; give files with text`,
    );
  }
  if (train.documents > 0 && val.documents > 0) return;
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
