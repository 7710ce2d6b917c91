// Turns text into a dataset of token bins: reads documents from parquet, jsonl or text files, encodes them on several threads,
// and writes shards and meta.json, in an order that depends on inputs and options alone. What is done is committed every few
// seconds in DIR/unfinished, where the next run goes on; DIR gets the dataset when it is whole.
import { formatCount } from "../base/format.ts";
import { join } from "node:path";
import { explain, runMain, UserError } from "../base/errors.ts";
import { lookedIn, sha256OfFile } from "../base/files.ts";
import { oneLine } from "../base/visible.ts";
import type { Block } from "./read/block.ts";
import { checkStarts, readBlocks, type ReadCounts } from "./read/documents.ts";
import { type ChatOptions, openTemplate } from "./prepare/conversations.ts";
import { BlockEncoder, type Encoded } from "./prepare/encode.ts";
import { type Encoders, oneEncoder, workerEncoders } from "./prepare/encoders.ts";
import { findSources, type Source } from "./read/inputs.ts";
import { DirectoryLock } from "./prepare/lock.ts";
import { merge } from "./prepare/merge.ts";
import type { Meta, Part } from "./meta.ts";
import {
  DEMO,
  helpText,
  parseCommand,
  type PrepareOptions,
  settle,
  type SettledOptions,
} from "./prepare/options.ts";
import { partName, takePart } from "./prepare/parts.ts";
import { type Progress, showProgress, type Task } from "./prepare/progress.ts";
import { describe } from "./prepare/recipe.ts";
import { takeUp } from "./prepare/resume.ts";
import { Run } from "./prepare/run.ts";
import { splitMistake } from "./prepare/split_check.ts";
import { finishedSummary, mergeSummary, runSummary, type RunWork } from "./prepare/summary.ts";
import { orMistake } from "../base/system_error.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";

const MUCH_BYTES = 16 << 20; // of input, that a worker more is worth its start for

if (import.meta.main) await runMain(main);

/** The command line: prepares or merges what the flags say and prints a summary. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) return console.log(await helpText());
  const command = parseCommand(args);
  if ("merge" in command) {
    const { out } = command.merge;
    return console.log(mergeSummary(out, orMistake(`Cannot merge "${out}"`, () => merge(command.merge))));
  }
  const options = command.prepare;
  if (options.input === DEMO.input) requireDemoCorpus();
  const { dir, meta, work } = await prepare(options, showProgress, (line) => console.error(oneLine(line)));
  console.log(work === null ? finishedSummary(dir, meta) : runSummary(dir, meta, work));
}

/** The demo corpus is made by another task: this one may not use the network. */
function requireDemoCorpus(): void {
  const path = DEMO.input[0]!;
  try {
    Deno.statSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(
      `Cannot read "${path}": the demo corpus is not there yet${
        lookedIn(path)
      }; name your own text: deno task prepare --input FILES --out DIR`,
    );
  }
}

/** What prepare() wrote. */
export type Prepared = {
  /** Where the dataset is. */
  dir: string;
  /** What it holds. */
  meta: Meta;
  /** null if the dataset was finished already. */
  work: RunWork | null;
};

/**
 * Writes a dataset, or goes on writing the one that an interrupted run of the same recipe left. Throws UserError for
 * inputs, options and places that cannot be used. What was committed stays, to go on with.
 *
 * @param show Starts the progress display.
 * @param report Told in a line what a directory among the inputs gave, and what in it is left out.
 */
export async function prepare(
  given: PrepareOptions,
  show: (task: Task) => Progress,
  report: (line: string) => void = () => {},
): Promise<Prepared> {
  const start = performance.now();
  const template = given.chat ? openTemplate(given) : undefined;
  const chat = template ? { ...given, date: given.date || today() } : null;
  const { sources, part } = await ownSources(given, report), options = settle(given, sources, chat);
  if (options.by_position && options.val_fraction > 0) {
    const percent = +(100 * options.val_fraction).toPrecision(6);
    report(
      `${sources[0]!.pattern}: one document, the last ${percent}% of it are val (--val_fraction, --split_on)`,
    );
  }
  const bytes = sources.flatMap(({ inputs }) => inputs).reduce((sum, { bytes }) => sum + bytes, 0);
  using workers = options.workers > 1
    ? workerEncoders(options.tokenizer, options, options.workers, bytes >= MUCH_BYTES)
    : undefined;
  const tokenizer = await openTokenizer(options.tokenizer);
  await checkStarts(sources, options, chat ? conversationCheck(tokenizer, chat) : undefined);
  const recipe = describe(sources, part, tokenizer, options, template);
  const dir = options.shard === null ? options.out : join(options.out, partName(options.shard));
  using _lock = DirectoryLock.take(dir);
  const refused = `Cannot prepare "${dir}"`;
  const before = orMistake(refused, () => takeUp(dir, recipe, options.overwrite));
  if ("finished" in before) return { dir, meta: before.finished, work: null };
  using run = orMistake(refused, () => new Run(dir, recipe, before.state));
  const { tokens, text, documents } = run.work(); // before this run
  try {
    const encoders = workers ?? oneEncoder(tokenizer, options);
    const counts = await encodeAll(
      run,
      sources,
      encoders,
      options,
      show({ bytes, limit: options.limit, before: run.work() }),
    );
    if (part === null) refuseEmptySplit(run, counts, options);
    const meta = run.publish(counts, tokenizer), all = run.work();
    const seconds = (performance.now() - start) / 1000;
    const { first_bad } = counts, work = { tokens: all.tokens - tokens, text: all.text - text };
    return { dir, meta, work: { ...work, seconds, documents_before: documents, first_bad } };
  } catch (error) {
    throw run.explain(error);
  }
}

/** Gives up a dataset that lacks a split: no other run can make more of it. */
function refuseEmptySplit(run: Run, counts: ReadCounts, options: SettledOptions): void {
  const mistake = splitMistake(run.counts, counts, options);
  if (mistake === undefined) return;
  run.discard();
  throw mistake;
}

/** The day, in local time. */
function today(): string {
  const now = new Date();
  return new Date(now.getTime() - 60_000 * now.getTimezoneOffset()).toISOString().slice(0, 10);
}

/** What this run reads. */
async function ownSources(
  options: PrepareOptions,
  report: (line: string) => void,
): Promise<{ sources: Source[]; part: Part | null }> {
  const { input, shard } = options, sources = await findSources(input, { ...options, report });
  if (input === DEMO.input) { // which are written anew, perhaps with the same text, before each run
    for (const input of sources[0]!.inputs) input.version = sha256OfFile(input.name);
  }
  return shard === null ? { sources, part: null } : takePart(sources, shard);
}

/** What looks at the first lines of each file, so that a template that does not fit them shows before there is work to lose. */
function conversationCheck(tokenizer: Tokenizer, conversations: ChatOptions): (block: Block) => void {
  const encoder = new BlockEncoder(tokenizer, { val_fraction: 0, seed: 0, conversations });
  return (block) => void encoder.encode(block);
}

/** Reads, encodes and writes the documents that the run has not got yet. Counts what reader and encoders left out. */
async function encodeAll(
  run: Run,
  sources: Source[],
  encoders: Encoders,
  options: SettledOptions,
  progress: Progress,
): Promise<ReadCounts> {
  const counts: ReadCounts = { bad: 0, duplicates: 0 };
  using _signals = commitOnSignal(run, progress);
  try {
    const blocks = readBlocks(sources, options, counts, run.counts.documents);
    for await (const { encoded, read } of encodeInOrder(blocks, encoders)) {
      await progress.advance(run.add(encoded, read));
    }
  } finally {
    await progress.stop();
  }
  const { bad, first_bad = run.first_bad } = counts;
  return { ...counts, bad: bad + run.counts.bad, first_bad };
}

/** Passes blocks through encoders, as many at a time as these have room for. */
async function* encodeInOrder(
  blocks: AsyncGenerator<Block>,
  encoders: Encoders,
): AsyncGenerator<{ encoded: Encoded; read: number }> {
  const waiting: { encoded: Promise<Encoded>; read: number; bytes: number }[] = []; // the order of reading
  let bytes = 0; // of text in them
  const next = async () => {
    const { encoded, read, bytes: size } = waiting.shift()!;
    bytes -= size;
    return { encoded: await encoded, read };
  };
  for await (const block of blocks) {
    const size = block.text.length;
    bytes += size;
    waiting.push({ encoded: encoders.encode(block), read: block.read, bytes: size });
    while (bytes > encoders.room) yield await next();
  }
  while (waiting.length > 0) yield await next();
}

/** SIGINT and SIGTERM commit what is written and end the program. */
function commitOnSignal(run: Run, progress: Progress): Disposable {
  async function stop(signal: Deno.Signal, code: number): Promise<void> {
    const said = commit(run); // between two blocks, since a block is written in one go
    await progress.stop();
    console.error(`${signal}: ${said}`);
    Deno.exit(code);
  }
  const onInterrupt = () => stop("SIGINT", 130), onTerminate = () => stop("SIGTERM", 143);
  Deno.addSignalListener("SIGINT", onInterrupt);
  Deno.addSignalListener("SIGTERM", onTerminate);
  return {
    [Symbol.dispose]() {
      Deno.removeSignalListener("SIGINT", onInterrupt);
      Deno.removeSignalListener("SIGTERM", onTerminate);
    },
  };
}

/** Commits, or says why that is impossible: the last commit point stays then. */
function commit(run: Run): string {
  try {
    run.commit();
    const documents = formatCount(run.counts.documents);
    return `stopped with ${documents} documents done; the same command goes on behind them`;
  } catch (error) {
    return explain(run.explain(error));
  }
}
