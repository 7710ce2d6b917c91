// A Worker that sums up files: each message is a path, each answer its sha256, or why it cannot be read.
import { sha256OfFile } from "./files.ts";
import { type Failed, failedBy, workerScope } from "./worker_scope.ts";

/** An answer. */
export type Summed = { sha256: string } | Failed;

const worker = workerScope();

worker.onmessage = ({ data }: MessageEvent<string>) => {
  try {
    worker.postMessage({ sha256: sha256OfFile(data) } satisfies Summed);
  } catch (error) {
    worker.postMessage(failedBy(error) satisfies Summed);
  }
};
