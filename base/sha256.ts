// Checksums of several files at a time.
import { isFile, sha256OfFile } from "./files.ts";
import type { Summed } from "./sha256_worker.ts";
import { errorOf } from "./worker_scope.ts";

const MANY_BYTES = 1 << 28; // that take longer than it takes to start a Worker

/**
 * sha256OfFile() of several files, in Workers where there is much to read: each sums up one at a time, as many as there are
 * cores. Throws UserError where the system refuses one.
 */
export async function sha256OfFiles(paths: string[]): Promise<string[]> {
  const sizes = new Map(paths.map((path) => [path, isFile(path) ? Deno.statSync(path).size : 0]));
  const bytes = sizes.values().reduce((sum, size) => sum + size, 0);
  if (bytes < MANY_BYTES) return paths.map(sha256OfFile);
  const largestFirst = [...sizes.keys()].sort((a, b) => sizes.get(b)! - sizes.get(a)!);
  const sums = new Map<string, string>(),
    workers = Math.min(navigator.hardwareConcurrency, largestFirst.length);
  const ends = await Promise.allSettled(
    Array.from({ length: workers }, () => sumInWorker(largestFirst, sums)),
  );
  for (const end of ends) if (end.status === "rejected") throw end.reason;
  return paths.map((path) => sums.get(path)!);
}

/** Takes paths, first ones first, until there are no more, and puts the sha256 of each into `sums`. */
async function sumInWorker(paths: string[], sums: Map<string, string>): Promise<void> {
  const worker = new Worker(new URL("./sha256_worker.ts", import.meta.url), { type: "module" });
  try {
    for (let path = paths.shift(); path !== undefined; path = paths.shift()) {
      const { promise, resolve, reject } = Promise.withResolvers<Summed>();
      worker.onmessage = ({ data }: MessageEvent<Summed>) => resolve(data);
      worker.onerror = (event) => {
        event.preventDefault();
        reject(new Error(`A Worker failed: ${event.message}`));
      };
      worker.postMessage(path);
      const answer = await promise;
      if ("error" in answer) throw errorOf(answer);
      sums.set(path, answer.sha256);
    }
  } finally {
    worker.terminate();
  }
}
