// What the training of a tokenizer prints when it is done.
import { formatBytes, formatCount } from "../../base/format.ts";
import { TokenBuffer } from "../tokenizers/token_buffer.ts";
import { openTokenizer, type Tokenizer } from "../tokenizer.ts";
import type { TrainOptions } from "./train_options.ts";
import type { TrainingText } from "./training_text.ts";
import type { ReadCounts } from "../read/documents.ts";
import { oneLine } from "../../base/visible.ts";

/** What a tokenizer was trained on, and what came of it. */
export type Trained = {
  /** The text that was read. */
  text: TrainingText;
  /** Documents that were left out. */
  counts: ReadCounts;
  /** Tokens of the vocabulary. */
  vocab_size: number;
};

/** What came of it, with bytes per token beside those of gpt2. */
export async function trainSummary(
  { out, pattern }: TrainOptions,
  { text, counts, vocab_size }: Trained,
  seconds: number,
): Promise<string> {
  const own = bytesPerToken(await openTokenizer(out), text.sample);
  const gpt2 = bytesPerToken(await openTokenizer("gpt2"), text.sample);
  const where = text.heldOut ? "held out" : "of the text (of 100 documents one would be held out)";
  const lines = [
    `${oneLine(out)}: ${formatCount(vocab_size)} tokens (pattern ${pattern}) in ${seconds.toFixed(1)} s`,
    `  ${formatCount(text.documents)} documents, ${formatBytes(text.bytes)}, ${
      formatCount(text.words.size)
    } different words`,
    `  ${own} bytes per token on ${formatBytes(bytesOf(text.sample))} ${where}; gpt2: ${gpt2}`,
  ];
  if (counts.bad > 0) {
    lines.push(
      `  left out ${formatCount(counts.bad)} documents that cannot be read, the first: ${
        oneLine(counts.first_bad ?? "")
      }`,
    );
  }
  return lines.join("\n");
}

function bytesPerToken(tokenizer: Tokenizer, texts: Uint8Array[]): string {
  const out = new TokenBuffer();
  for (const text of texts) tokenizer.encodeUtf8(text, 0, text.length, out);
  return (bytesOf(texts) / out.length).toFixed(2);
}

function bytesOf(texts: Uint8Array[]): number {
  return texts.reduce((sum, { length }) => sum + length, 0);
}
