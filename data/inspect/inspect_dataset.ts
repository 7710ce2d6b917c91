// What `deno task data` finds out about a dataset. Reads every shard once, in bounded memory.
import { formatCount } from "../../base/format.ts";
import { createHash } from "node:crypto";
import { relative } from "node:path";
import { UserError } from "../../base/errors.ts";
import { oneLine, visible } from "../../base/visible.ts";
import { type Dataset, maskName, type Shard, tokensIn } from "../bins.ts";
import {
  documentLine,
  frequentTokens,
  heading,
  histogram,
  rate,
  shardLine,
  splitTable,
} from "./inspect_text.ts";
import { readWholeMeta, type SplitSize } from "../meta.ts";
import {
  chunksOf,
  findDocument,
  findOutside,
  locate,
  masksOf,
  type Range,
  readRange,
  Tally,
} from "./scan.ts";
import type { Tokenizer } from "../tokenizer.ts";

/** The parts of a dataset. */
export type Split = "train" | "val";

const FIRST_DOCUMENTS = 3; // are shown,
const SHOWN_TOKENS = 160; // so many of each at most
const DECODED = 1 << 18; // tokens that bytes per token is measured on where no meta.json says it

/**
 * Prints what a dataset holds, as it is read. Throws UserError at the end, if a checksum or a count is not that of
 * meta.json, or an id is not of the vocabulary.
 */
export function inspectDataset(
  dataset: Dataset,
  tokenizer: Tokenizer | null,
  print: (text: string) => void,
): void {
  const meta = dataset.format === "loam" ? readWholeMeta(dataset.dir) : null;
  print(heading(dataset));
  print("\nshards");
  const start = performance.now(), wrong: string[] = [];
  const train = readSplit(dataset, "train", meta, print, wrong);
  const val = readSplit(dataset, "val", meta, print, wrong);
  print(rate([...dataset.train, ...dataset.val], performance.now() - start));

  const bytes = (split: Split) => bytesPerToken(dataset, split, meta, tokenizer);
  print(`\n${splitTable(dataset, { train, val }, bytes)}`);
  if (!meta && tokenizer) print(`bytes/token: of the first ${formatCount(DECODED)} tokens, decoded`);
  print(`\ntokens per document, train\n${histogram(train.lengths)}`);
  print(`\nmost frequent tokens, train\n${frequentTokens(train.counts, tokenizer)}`);
  print(`\nfirst documents, train\n${firstDocuments(dataset, tokenizer, train.lengths.count)}`);
  if (wrong.length === 0) return;
  const next = meta
    ? "write the dataset again: deno task prepare --overwrite ..."
    : "copy it again, or name the tokenizer that made it with --tokenizer";
  throw new UserError(`Cannot use "${dataset.dir}": ${wrong.join(", ")}; ${next}`);
}

/** Reads the shards of a split, prints a line for each, and adds to `wrong` what is wrong with them. */
function readSplit(
  dataset: Dataset,
  split: Split,
  meta: Record<Split, SplitSize> | null,
  print: (text: string) => void,
  wrong: string[],
): Tally {
  const tally = new Tally(dataset.vocab_size, dataset);
  for (const shard of dataset[split]) {
    const file = relative(dataset.dir, shard.path), expected = dataset.sha256[file];
    const { ids, mask } = readShard(shard, tally, expected !== undefined);
    print(shardLine(file, shard.tokens, ids, expected));
    if (ids !== expected) wrong.push(`${file} has another SHA-256 than meta.json says`);
    const maskFile = maskName(file);
    if (mask !== dataset.sha256[maskFile]) wrong.push(`${maskFile} has another SHA-256 than meta.json says`);
  }
  tally.endSplit();
  const differs = (what: string, found: number, said: number) => {
    if (found !== said) {
      wrong.push(`${split} has ${formatCount(found)} ${what}, meta.json says ${formatCount(said)}`);
    }
  };
  if (meta) {
    differs("documents", tally.lengths.count, meta[split].documents);
    differs("tokens", tokensIn(dataset[split]), meta[split].tokens);
    const { trained } = meta[split];
    if (trained !== undefined) differs("tokens that are trained on", tally.trained, trained);
  }
  if (tally.outside > 0) wrong.push(outsideText(dataset, split, tally.outside));
  return tally;
}

/** Counts the tokens of a shard. Returns its SHA-256, where that is wanted, and that of its mask, if it has one. */
function readShard(
  shard: Shard,
  tally: Tally,
  hashed: boolean,
): { ids: string | undefined; mask: string | undefined } {
  const hash = hashed ? createHash("sha256") : undefined;
  const ofMask = shard.mask === undefined ? undefined : createHash("sha256");
  const masks = masksOf(shard, (bytes) => ofMask?.update(bytes));
  for (const ids of chunksOf(shard, (bytes) => hash?.update(bytes))) {
    const { value } = masks.next();
    tally.add(ids, value || undefined);
  }
  masks.return(undefined); // which closes the file
  return { ids: hash?.digest("hex"), mask: ofMask?.digest("hex") };
}

function outsideText({ dir, vocab_size, ...shards }: Dataset, split: Split, count: number): string {
  const first = findOutside(shards[split], vocab_size)!; // there is one
  const { shard, token } = locate(shards[split], first.position);
  return `${formatCount(count)} tokens of ${split} are not below vocab_size ${vocab_size}, ` +
    `the first is ${first.id} at token ${token} of ${relative(dir, shard.path)}`;
}

/** Bytes of text by token, those between documents included; null without tokens or where nothing says how to decode them. */
function bytesPerToken(
  dataset: Dataset,
  split: Split,
  meta: Record<Split, SplitSize> | null,
  tokenizer: Tokenizer | null,
): number | null {
  const tokens = tokensIn(dataset[split]);
  if (tokens === 0) return null;
  if (meta) return meta[split].bytes / tokens;
  if (!tokenizer) return null;
  const ids = readRange(dataset[split], { start: 0, end: Math.min(tokens, DECODED) });
  const text = tokenizer.decode(ids.filter((id) => id !== dataset.eot && id !== dataset.bos));
  return new TextEncoder().encode(text).length / ids.length;
}

function firstDocuments(dataset: Dataset, tokenizer: Tokenizer | null, documents: number): string {
  const numbers = Array.from({ length: Math.min(documents, FIRST_DOCUMENTS) }, (_, i) => i);
  return numbers.map((n) => {
    const { start, end } = findDocument(dataset.train, dataset, n) as Range; // there are as many
    const ids = readRange(dataset.train, { start, end: Math.min(end, start + SHOWN_TOKENS) });
    return documentLine(n, end - start, ids, tokenizer);
  }).join("\n");
}

/**
 * A document of a split, decoded, below a line that says where it is. Throws UserError if there is no such document,
 * or nothing says how to decode it.
 */
export function documentText(dataset: Dataset, tokenizer: Tokenizer | null, split: Split, n: number): string {
  const { dir } = dataset, shards = dataset[split];
  if (!tokenizer) {
    throw new UserError(
      `Cannot decode document ${n} of "${dir}": its files do not name their tokenizer; name it with --tokenizer`,
    );
  }
  const found = findDocument(shards, dataset, n);
  if ("documents" in found) {
    const range = found.documents === 0 ? "" : `, from 0 to ${found.documents - 1}`;
    throw new UserError(
      `Cannot show document ${n} of the ${split} split of "${dir}": it has ${
        formatCount(found.documents)
      } documents${range}`,
    );
  }
  const tokens = found.end - found.start;
  if (tokens === 0) return `${split} document ${n}: empty`;
  const { shard, token } = locate(shards, found.start);
  const text = tokenizer.decode(readRange(shards, found));
  const file = oneLine(relative(dir, shard.path));
  return `${split} document ${n}: ${formatCount(tokens)} tokens from token ${token} of ${file}\n\n${
    visible(text)
  }`;
}
