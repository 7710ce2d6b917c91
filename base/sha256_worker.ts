// A Worker that sums up files: the message is what several share, the answer the sha256 of those that it took, or why one cannot be
// read.
import { sha256OfShared, type SharedFiles } from "./files.ts";
import { type Failed, failedBy, workerScope } from "./worker_scope.ts";

/** An answer. */
export type SharedSums = { sums: Map<string, string> };

const worker = workerScope();

worker.onmessage = ({ data }: MessageEvent<SharedFiles>) => {
  try {
    worker.postMessage({ sums: sha256OfShared(data) } satisfies SharedSums);
  } catch (error) {
    worker.postMessage(failedBy(error) satisfies Failed);
  }
};
