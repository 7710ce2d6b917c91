// Checksums of several files at a time.
import { isFile, sha256OfShared, type SharedFiles } from "./files.ts";
import type { SharedSums } from "./sha256_worker.ts";
import { ask } from "./worker_scope.ts";

const MANY_BYTES = 1 << 28; // that take longer than it takes to start a Worker

/**
 * Begins to sum up files, the largest ones first, in Workers where there is much to read: as many as cores, since a disk keeps some waiting. Call what
 * is returned for the sha256 of each; this thread helps them then. That throws UserError where the system refuses a file.
 */
export function beginSums(paths: string[]): () => Promise<string[]> {
  const sizes = new Map(paths.map((path) => [path, isFile(path) ? Deno.statSync(path).size : 0]));
  const bytes = sizes.values().reduce((sum, size) => sum + size, 0);
  const largestFirst = [...sizes.keys()].sort((a, b) => sizes.get(b)! - sizes.get(a)!);
  const shared = { paths: largestFirst, taken: new Int32Array(new SharedArrayBuffer(4)) };
  const helpers = bytes < MANY_BYTES ? 0 : Math.min(navigator.hardwareConcurrency, largestFirst.length);
  const others = Promise.allSettled(Array.from({ length: helpers }, () => sumUpInWorker(shared)));
  return async () => {
    const own = await Promise.allSettled([Promise.try(sha256OfShared, shared)]);
    const sums = [...own, ...await others].map((end) => {
      if (end.status === "rejected") throw end.reason;
      return end.value;
    });
    return paths.map((path) => sums.find((some) => some.has(path))!.get(path)!);
  };
}

async function sumUpInWorker(shared: SharedFiles): Promise<Map<string, string>> {
  const worker = new Worker(new URL("./sha256_worker.ts", import.meta.url), { type: "module" });
  try {
    return (await ask<SharedSums>(worker, shared)).sums;
  } finally {
    worker.terminate();
  }
}
