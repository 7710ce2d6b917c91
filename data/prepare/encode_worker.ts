// A worker of prepare: opens the tokenizer that its first message names, then answers each block with its token ids, in order.
import { type Failed, failedBy, workerScope } from "../../base/worker_scope.ts";
import type { Block } from "../read/block.ts";
import { BlockEncoder, type Encoded, type SplitOptions } from "./encode.ts";
import { openTokenizer } from "../tokenizer.ts";

/** The first message to a worker; the others are blocks. */
export type Start = {
  /** What openTokenizer() takes. */
  tokenizer: string;
  /** Decide which documents go to val. */
  options: SplitOptions;
};

/** A message from a worker: the ids of a block, or what is in the way. */
export type Answer = { encoded: Encoded } | Failed;

const worker = workerScope();
let encoder: Promise<BlockEncoder>;

worker.onmessage = ({ data }: MessageEvent<Start>) => {
  encoder = openTokenizer(data.tokenizer).then((tokenizer) => new BlockEncoder(tokenizer, data.options));
  encoder.catch(() => {}); // reported with the first block
  worker.onmessage = answerBlock;
};

async function answerBlock({ data }: MessageEvent<Pick<Block, "text" | "ends">>): Promise<void> {
  try {
    const encoded = (await encoder).encode(data);
    const buffers = [encoded.train, encoded.val].flatMap(({ ids, mask, ends }) =>
      [ids, mask, ends].map(({ buffer }) => buffer)
    );
    worker.postMessage({ encoded } satisfies Answer, buffers);
  } catch (error) {
    worker.postMessage(failedBy(error) satisfies Answer);
  }
}
