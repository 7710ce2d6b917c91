// What prepare prints when it is done.
import { formatCount } from "../../base/format.ts";
import type { Meta } from "../meta.ts";
import { oneLine } from "../../base/visible.ts";

const FEW_DOCUMENTS = 10; // of val: a single odd one among them moves its loss

/** What a run of prepare did. */
export type RunWork = {
  /** How long it took. */
  seconds: number;
  /** Tokens that this run encoded. */
  tokens: number;
  /** Bytes of text that it encoded. */
  text: number;
  /** Documents that an interrupted run had done before. */
  documents_before: number;
  /** What was said of the first document that cannot be read, undefined if there was none. */
  first_bad: string | undefined;
};

/** After a run that wrote a dataset. */
export function runSummary(
  dir: string,
  meta: Meta,
  { seconds, tokens, text, documents_before, first_bad }: RunWork,
): string {
  const rates = `${(text / seconds / 1e6).toFixed(1)} MB/s of text, ${
    formatCount(tokens / seconds)
  } tokens/s`;
  const before = documents_before > 0
    ? [`  went on behind ${formatCount(documents_before)} documents that were done before`]
    : [];
  const bad = first_bad === undefined ? [] : [`  the first that cannot be read: ${oneLine(first_bad)}`];
  return [`${head(dir, meta)} in ${seconds.toFixed(1)} s, ${rates}`, ...splits(meta), ...bad, ...before].join(
    "\n",
  );
}

/** After a run that found the dataset finished. */
export function finishedSummary(dir: string, meta: Meta): string {
  return [`${head(dir, meta)}, finished before; nothing to do`, ...splits(meta)].join("\n");
}

/** After parts became one dataset. */
export function mergeSummary(dir: string, meta: Meta): string {
  return [`${head(dir, meta)}, merged`, ...splits(meta)].join("\n");
}

function head(dir: string, { tokenizer, vocab_size, train, val }: Meta): string {
  const tokens = formatCount(train.tokens + val.tokens);
  return oneLine(`${dir}: ${tokens} tokens (${tokenizer}, vocabulary ${formatCount(vocab_size)})`);
}

function splits(meta: Meta): string[] {
  const { empty, duplicates, bad, too_long = 0 } = meta.left_out, { cut = 0 } = meta;
  const left_out = [
    ...(empty > 0 ? [`${formatCount(empty)} without text`] : []),
    ...(duplicates > 0 ? [`${formatCount(duplicates)} duplicates`] : []),
    ...(bad > 0 ? [`${formatCount(bad)} that cannot be read`] : []),
    ...(too_long > 0 ? [`${formatCount(too_long)} whose first answer is too long`] : []),
  ];
  const lines = [splitLine(meta, "train"), splitLine(meta, "val")];
  if (left_out.length > 0) lines.push(`  left out  ${left_out.join(", ")}`);
  if (cut > 0) {
    const { block_size } = meta.options;
    lines.push(`  cut       ${formatCount(cut)} behind an answer, to the block_size of ${block_size}`);
  }
  const few = meta.val.documents;
  if (few > 0 && few < FEW_DOCUMENTS && meta.options.by_position !== true) {
    lines.push(
      `  warning: val_loss will depend on ${few === 1 ? "one document" : `${few} documents`} alone; ` +
        "use a larger --val_fraction",
    );
  }
  return lines;
}

function splitLine(meta: Meta, split: "train" | "val"): string {
  const { documents, tokens, bytes, trained } = meta[split];
  const shards = meta.shards.filter(({ file }) => file.split("/").at(-1)!.startsWith(split)).length;
  const ratio = tokens === 0 ? "" : `, ${(bytes / tokens).toFixed(2)} bytes per token`;
  const what = trained === undefined ? "documents" : "conversations";
  const share = trained === undefined || tokens === 0
    ? ""
    : `, ${Math.round(100 * trained / tokens)}% trained on`;
  return `  ${split.padEnd(5)}  ${formatCount(documents)} ${what}, ${
    formatCount(tokens)
  } tokens${share}${ratio}, ` +
    `${shards} shard${shards === 1 ? "" : "s"}`;
}
