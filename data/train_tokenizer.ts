// deno task tokenizer: trains a byte-level BPE tokenizer. Counts the words of all documents, learns which tokens to merge
// from these counts, and writes the files from which openTokenizer() and Hugging Face's libraries read the tokenizer.
import { formatBytes, formatCount } from "../base/format.ts";
import { join } from "node:path";
import { oneLine } from "../base/visible.ts";
import { runMain, UserError } from "../base/errors.ts";
import { isFile, remove, rename, syncDirectory, writeSynced } from "../base/files.ts";
import { bpeMerges } from "./train_tokenizer/bpe_trainer.ts";
import { byteCharacters, byteLevelFiles } from "./tokenizers/byte_level_files.ts";
import { ByteStrings } from "./tokenizers/byte_strings.ts";
import { checkStarts, readBlocks, type ReadCounts } from "./read/documents.ts";
import { findSources, type Source } from "./read/inputs.ts";
import { DirectoryLock } from "./prepare/lock.ts";
import { orMistake } from "../base/system_error.ts";
import { PATTERNS } from "./tokenizers/scanners.ts";
import { END_OF_TEXT, helpText, parseOptions, type TrainOptions } from "./train_tokenizer/train_options.ts";
import { type Trained, trainSummary } from "./train_tokenizer/train_summary.ts";
import { TrainingText } from "./train_tokenizer/training_text.ts";
import { WORD_LIMITS, type WordLimits } from "./train_tokenizer/word_counts.ts";

const REPORT_MS = 5_000;

if (import.meta.main) await runMain(main);

/** The command line: trains as the flags say and prints a summary. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) return console.log(await helpText());
  const start = performance.now(), options = parseOptions(args);
  const trained = await trainTokenizer(options, (line) => console.error(oneLine(line)));
  console.log(await trainSummary(options, trained, (performance.now() - start) / 1000));
}

/**
 * Trains a tokenizer and writes it to options.out. Throws UserError for input, options and places that cannot be
 * used. Nothing is left behind then.
 *
 * @param report Is told how far it is, and warned.
 * @param limits How many words there is room for.
 */
export async function trainTokenizer(
  options: TrainOptions,
  report: (line: string) => void,
  limits: WordLimits = WORD_LIMITS,
): Promise<Trained> {
  const { out, special_tokens, pattern } = options;
  const sources = await findSources(options.train, { ...options, report });
  await checkStarts(sources, options);
  using _lock = DirectoryLock.take(out);
  refuseToReplace(out, options.overwrite);
  const text = new TrainingText(PATTERNS[pattern], limits), counts: ReadCounts = { bad: 0, duplicates: 0 };
  await readText(text, sources, options, counts, report);
  if (text.words.size === 0) {
    throw new UserError(`Cannot train on "${options.train.join(" ")}": it has no text; give files with text`);
  }
  const { tokens, merges } = learn(text, options, report);
  const special = Object.fromEntries(special_tokens.map((token, id) => [token, id]));
  const eot = special[END_OF_TEXT]!;
  const files = byteLevelFiles({ name: null, tokens, special, eot, merges, pattern: PATTERNS[pattern] });
  orMistake(`Cannot write to "${out}"`, () => writeTokenizer(out, files));
  return { text, counts, vocab_size: tokens.length };
}

function refuseToReplace(out: string, overwrite: boolean): void {
  const other = ["meta.json", "config.json"].find((name) => isFile(join(out, name))); // of a dataset, of a model
  if (other !== undefined) {
    throw new UserError(
      `Cannot write to "${out}": it holds a ${other === "meta.json" ? "dataset" : "model"} (${other}), ` +
        `should be a directory for the tokenizer alone; choose another --out`,
    );
  }
  if (overwrite || !isFile(join(out, "tokenizer.json"))) return;
  throw new UserError(
    `Cannot write to "${out}": it holds a tokenizer (tokenizer.json); choose another --out, ` +
      `or replace it with --overwrite`,
  );
}

/** Adds all documents, or as many as there is room for. */
async function readText(
  text: TrainingText,
  sources: Source[],
  options: TrainOptions,
  counts: ReadCounts,
  report: (line: string) => void,
): Promise<void> {
  const total = sources.flatMap(({ inputs }) => inputs).reduce((sum, { bytes }) => sum + bytes, 0);
  const show = atTimes(report);
  let read = 0;
  for await (const block of readBlocks(sources, { ...options, shuffle_docs: null, dedup: "" }, counts)) {
    if (!text.add(block)) {
      const words = formatCount(text.words.size), document = formatCount(text.documents + 1);
      report(
        `warning: stopped reading at document ${document}: ${words} different words are as many as there is room for; ` +
          `to have all of several inputs among them, give them weights`,
      );
      return;
    }
    read += block.read;
    show(() =>
      `read ${formatBytes(read)} of ${formatBytes(total)}, ${formatCount(text.words.size)} different words`
    );
  }
}

/** Learns merges until there are vocab_size tokens, or no more pair to merge. */
function learn(
  { words }: TrainingText,
  { vocab_size, special_tokens, min_frequency, max_token_length }: TrainOptions,
  report: (line: string) => void,
): { tokens: ByteStrings; merges: [number, number][] } {
  const tokens = new ByteStrings(vocab_size, 8 * vocab_size), merges: [number, number][] = [];
  const alphabet = bytesInOrder(), first = special_tokens.length; // the token of alphabet[0]
  for (const token of special_tokens) tokens.push(new TextEncoder().encode(token));
  for (const byte of alphabet) tokens.push(Uint8Array.of(byte));
  const show = atTimes(report);
  if (tokens.length < vocab_size) {
    const tokenOf = Uint8Array.from(alphabet, (_, byte) => alphabet.indexOf(byte));
    for (const pair of bpeMerges(words, tokenOf, min_frequency, max_token_length)) {
      const [left, right] = [first + pair[0], first + pair[1]];
      merges.push([left, right]);
      tokens.push(Uint8Array.from([...tokens.at(left), ...tokens.at(right)]));
      if (tokens.length === vocab_size) break;
      show(() => `${formatCount(tokens.length)} of ${formatCount(vocab_size)} tokens`);
    }
  }
  if (tokens.length < vocab_size) {
    const made = `${formatCount(tokens.length)} of ${formatCount(vocab_size)} tokens`;
    const advice = min_frequency > 1 ? "give more text or --min_frequency=1" : "give more text";
    report(
      `warning: made ${made}: no two tokens stand together ${min_frequency} times in a word and make one ` +
        `below --max_token_length=${max_token_length}; ${advice}`,
    );
  }
  return { tokens, merges };
}

/** The bytes in the order of the characters that stand for them, which is that of their ids in Hugging Face's trainer. */
function bytesInOrder(): number[] {
  const characters = byteCharacters();
  return characters.map((_, byte) => byte).sort((a, b) => characters[a]! < characters[b]! ? -1 : 1);
}

/** Replaces the files of a tokenizer once both are on the disk. Without tokenizer.json the directory holds none. */
function writeTokenizer(out: string, files: ReturnType<typeof byteLevelFiles>): void {
  const path = join(out, "tokenizer.json"), config = join(out, "tokenizer_config.json");
  try {
    writeSynced(`${path}.tmp`, files["tokenizer.json"]);
    writeSynced(`${config}.tmp`, files["tokenizer_config.json"]);
    if (isFile(path)) remove(path);
    syncDirectory(out);
    rename(`${config}.tmp`, config);
    syncDirectory(out);
    rename(`${path}.tmp`, path);
    syncDirectory(out);
  } catch (error) {
    for (const file of [path, config]) if (isFile(`${file}.tmp`)) remove(`${file}.tmp`);
    throw error;
  }
}

/** Reports at times, not each time. */
function atTimes(report: (line: string) => void): (line: () => string) => void {
  let last = performance.now();
  return (line) => {
    if (performance.now() - last < REPORT_MS) return;
    last = performance.now();
    report(line());
  };
}
