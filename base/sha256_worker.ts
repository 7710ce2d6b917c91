// A Worker that sums up files: each message is a path, each answer its sha256, or why it cannot be read.
import { explain, mistakeOf } from "./errors.ts";
import { sha256OfFile } from "./files.ts";
import { workerScope } from "./worker_scope.ts";

/** An answer. */
export type Summed = { sha256: string } | { error: string };

const worker = workerScope();

worker.onmessage = ({ data }: MessageEvent<string>) => {
  try {
    worker.postMessage({ sha256: sha256OfFile(data) } satisfies Summed);
  } catch (error) {
    worker.postMessage({ error: mistakeOf(error) ?? explain(error) } satisfies Summed);
  }
};
