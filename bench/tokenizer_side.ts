// The loam side of bench/tokenizer.ts. Prints one line of JSON.
//
//   deno run -P=bench bench/tokenizer_side.ts TOKENIZER PASSES SAMPLE
import type { Block } from "../data/read/block.ts";
import { READ_ALL, readBlocks } from "../data/read/documents.ts";
import { findSources } from "../data/read/inputs.ts";
import { TokenBuffer } from "../data/tokenizers/token_buffer.ts";
import { openTokenizer } from "../data/tokenizer.ts";

const [name, passes, sample] = Deno.args;
const blocks: Block[] = [];
const sources = await findSources([sample!], READ_ALL);
for await (const block of readBlocks(sources, READ_ALL, { bad: 0, duplicates: 0 })) blocks.push(block);
const bytes = blocks.reduce((sum, { text }) => sum + text.length, 0);

const before = Deno.memoryUsage().rss, start = performance.now();
const tokenizer = await openTokenizer(name!);
const open_ms = performance.now() - start, open_mb = (Deno.memoryUsage().rss - before) / 1e6;

const out = new TokenBuffer(), mb_per_sec: number[] = [];
for (let pass = 0; pass < Number(passes); pass++) {
  out.length = 0;
  const start = performance.now();
  for (const { text, ends } of blocks) {
    for (let d = 0; d < ends.length; d++) tokenizer.encodeUtf8(text, d > 0 ? ends[d - 1]! : 0, ends[d]!, out);
  }
  mb_per_sec.push(bytes / 1000 / (performance.now() - start));
}
console.log(JSON.stringify({ library: "loam", open_ms, open_mb, mb_per_sec, tokens: out.length }));
