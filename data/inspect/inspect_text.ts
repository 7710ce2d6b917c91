// The words and tables of `deno task data`.
import { formatCount } from "../../base/format.ts";
import { type Assumed, type Dataset, type Shard, tokensIn } from "../bins.ts";
import type { Lengths } from "./lengths.ts";
import type { Tally } from "./scan.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { oneLine, visible } from "../../base/visible.ts";

const BAR = 40; // characters
const FREQUENT = 20; // tokens are listed
const SHOWN = 160; // characters of a document

/** What kind of dataset it is, in one line. */
export function heading(dataset: Dataset): string {
  const { dir, format, tokenizer, vocab_size, bos, eot, assumed, template } = dataset;
  const bins =
    { "loam": "loam's bins", "llm.c": "llm.c's bins", "nanoGPT": "nanoGPT's bins", "mix": "a mix" }[format];
  const mark = (what: Assumed) => assumed.includes(what) ? " (assumed)" : "";
  const name = tokenizer === null ? "not known (name it with --tokenizer)" : tokenizer + mark("tokenizer");
  return oneLine(
    `${dir}: ${bins}${template === undefined ? "" : " of conversations"}${
      assumed.includes("dtype") ? " of uint16 (assumed)" : ""
    }, tokenizer ${name}, ` +
      `vocabulary ${formatCount(vocab_size)}${mark("vocab_size")}, ${
        bos === eot ? "" : `begin of text ${bos}, `
      }end of text ${eot}${mark("eot")}`,
  );
}

/** A shard and how its checksum compares, where meta.json has one. */
export function shardLine(file: string, tokens: number, actual?: string, expected?: string): string {
  const size = `${oneLine(file)}  ${formatCount(tokens)} tokens`;
  if (expected === undefined) return `  -      ${size}  no checksum to compare`;
  if (actual === expected) return `  ok     ${size}  sha256 ${expected.slice(0, 16)}`;
  return `  WRONG  ${size}  sha256 is ${actual}, meta.json says ${oneLine(expected)}`;
}

/** How fast shards were read. */
export function rate(shards: Shard[], ms: number): string {
  const bytes = shards.reduce((sum, shard) => sum + shard.header_bytes + shard.tokens * shard.token_bytes, 0);
  const mb = (bytes / 1e6).toFixed(1), mb_per_sec = (bytes / ms / 1000).toFixed(0);
  return `  ${mb} MB read in ${(ms / 1000).toFixed(2)} s, ${mb_per_sec} MB/s`;
}

/** Documents, tokens and their ratios, by split. */
export function splitTable(
  dataset: Dataset,
  tallies: Record<"train" | "val", Tally>,
  bytesPerToken: (split: "train" | "val") => number | null,
): string {
  const isChat = dataset.template !== undefined;
  const rows = (["train", "val"] as const).map((split) => {
    const shards = dataset[split], { lengths } = tallies[split], bytes = bytesPerToken(split);
    const tokens = tokensIn(shards);
    return [
      split,
      formatCount(lengths.count),
      formatCount(tokens),
      lengths.count === 0 ? "-" : (lengths.sum / lengths.count).toFixed(1),
      bytes === null ? "-" : bytes.toFixed(3),
      ...isChat ? [tokens === 0 ? "-" : `${(100 * tallies[split].trained / tokens).toFixed(1)}%`] : [],
      formatCount(shards.length),
    ];
  });
  const trained = isChat ? ["trained on"] : [];
  return columns([
    ["", "documents", "tokens", "tokens/document", "bytes/token", ...trained, "shards"],
    ...rows,
  ]);
}

/** Bars of the lengths by powers of two, and percentiles. */
export function histogram(lengths: Lengths): string {
  if (lengths.count === 0) return "  there are no documents";
  const octaves = lengths.octaves(), most = Math.max(...octaves);
  const first = octaves.findIndex((count) => count > 0);
  const rows = octaves.map((count, octave) => [
    octaveName(octave),
    formatCount(count),
    "█".repeat(Math.round(count / most * BAR)) || (count > 0 ? "▏" : ""),
  ]).slice(first);
  const at = (share: number) => `${share * 100}% ${formatCount(lengths.quantile(share))}`;
  return `${bars(rows)}\n  least ${formatCount(lengths.least)}, ${
    [0.05, 0.25, 0.5, 0.75, 0.95, 0.99].map(at).join(", ")
  }, ` +
    `most ${formatCount(lengths.most)}, mean ${(lengths.sum / lengths.count).toFixed(1)}`;
}

function octaveName(octave: number): string {
  if (octave < 2) return `${octave}`;
  return `${formatCount(2 ** (octave - 1))} to ${formatCount(2 ** octave - 1)}`;
}

/** The ids that occur most, with their share and text, and how many of the vocabulary occur at all. */
export function frequentTokens(counts: Float64Array, tokenizer: Tokenizer | null): string {
  const total = counts.reduce((a, b) => a + b, 0);
  const occurring = Array.from(counts.keys()).filter((id) => counts[id]! > 0);
  const frequent = occurring.sort((a, b) => counts[b]! - counts[a]! || a - b).slice(0, FREQUENT);
  const rows = frequent.map((id) => [
    `${id}`,
    formatCount(counts[id]!),
    `${(100 * counts[id]! / total).toFixed(2)}%`,
    tokenizer ? quoted(tokenizer.decode([id])) : "",
  ]);
  const share = (100 * occurring.length / counts.length).toFixed(1);
  return `${bars(rows)}\n  ${formatCount(occurring.length)} of ${
    formatCount(counts.length)
  } ids occur (${share}%)`;
}

/** The beginning of a document. ids: its first tokens. */
export function documentLine(
  n: number,
  tokens: number,
  ids: Uint32Array,
  tokenizer: Tokenizer | null,
): string {
  const text = tokenizer ? tokenizer.decode(ids) : ids.slice(0, 20).join(" ");
  const cut = ids.length < tokens || text.length > SHOWN ? " ..." : "";
  return `  ${n}  ${formatCount(tokens)} tokens  ${quoted(text.slice(0, SHOWN).toWellFormed())}${cut}`;
}

/** A text in one line, between quotation marks, without the characters that steer a terminal. */
function quoted(text: string): string {
  return visible(JSON.stringify(text));
}

/** Rows as columns: the first to the left, the others to the right. */
function columns(rows: string[][]): string {
  const widths = widthsOf(rows);
  return rows.map((row) =>
    "  " + row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)).join("  ")
  ).join("\n");
}

/** Rows as columns: the last to the left, the others to the right. */
function bars(rows: string[][]): string {
  const widths = widthsOf(rows);
  return rows.map((row) =>
    "  " + row.map((cell, i) => i === row.length - 1 ? cell : cell.padStart(widths[i]!)).join("  ").trimEnd()
  ).join("\n");
}

function widthsOf(rows: string[][]): number[] {
  return (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
}
