// Times one of prepare's encoders on the documents of files; bench/prepare.ts runs it. Prints one line of JSON.
//
//   deno run -P=bench bench/encode.ts TOKENIZER PASSES FILE...
import type { Block } from "../data/read/block.ts";
import { READ_ALL, readBlocks } from "../data/read/documents.ts";
import { BlockEncoder } from "../data/prepare/encode.ts";
import { findSources } from "../data/read/inputs.ts";
import { openTokenizer } from "../data/tokenizer.ts";

const [name, passes, ...files] = Deno.args;
const sources = await findSources(files, READ_ALL), blocks: Block[] = [];
for await (const block of readBlocks(sources, READ_ALL, { bad: 0, duplicates: 0 })) blocks.push(block);

const encoder = new BlockEncoder(await openTokenizer(name!), { val_fraction: 0.005, seed: 1337 });
const text = new TextEncoder().encode("The vocabulary is loaded.");
encoder.encode({ text, ends: Uint32Array.of(text.length) });
const seconds: number[] = [];
let tokens = 0;
for (let pass = 0; pass < Number(passes); pass++) {
  const start = performance.now();
  tokens = 0;
  for (const block of blocks) {
    const { train, val, documents, empty } = encoder.encode(block);
    tokens += train.ids.length + val.ids.length - (documents - empty); // without the end-of-text tokens
  }
  seconds.push((performance.now() - start) / 1000);
}
const bytes = blocks.reduce((sum, { text }) => sum + text.length, 0);
console.log(JSON.stringify({ bytes, tokens, seconds, version: Deno.version.deno }));
