// The Worker of a Saver: writes each checkpoint that it is sent, gives the memory back, and says what came of it. It leaves the
// cores to training: a tenth of one goes to it while all are busy, and all that nobody else wants.
import os from "node:os";
import { type Failed, failedBy, workerScope } from "../base/worker_scope.ts";
import { type CheckpointContent, type Described, entriesOf, writeCheckpoint } from "./checkpoint.ts";

/** What to save: writeCheckpoint() with the tensors of the model and then those of the optimizer in `copies`. */
export type ToSave = Pick<CheckpointContent, "files" | "state"> & {
  runDir: string;
  model: Described[];
  moments: Described[];
  copies: Uint8Array<ArrayBuffer>[];
  keep: number;
};

/** Memory to make and to touch, for the copies of the first checkpoint: bytes of each. */
export type ToMake = { sizes: number[] };

/** An answer; path is "" where memory was made. */
export type Saved = { path: string; copies: Uint8Array<ArrayBuffer>[] } | Failed;

const NICENESS = 10; // a weight of 110 against 1024

const worker = workerScope();
if (Deno.build.os === "linux") beNice(); // there it is of this thread alone, elsewhere of the process

worker.onmessage = async ({ data }: MessageEvent<ToSave | ToMake>) => {
  if ("sizes" in data) return give("", data.sizes.map((bytes) => new Uint8Array(bytes).fill(1))); // 0 might touch nothing
  const { runDir, copies, files, state, keep } = data;
  try {
    const model = entriesOf(data.model, copies),
      moments = entriesOf(data.moments, copies.slice(model.length));
    const path = await writeCheckpoint(runDir, { model, moments, metadata: {}, files, state }, keep);
    give(path, copies);
  } catch (error) {
    worker.postMessage(failedBy(error) satisfies Saved);
  }
};

function give(path: string, copies: Uint8Array<ArrayBuffer>[]): void {
  worker.postMessage({ path, copies } satisfies Saved, copies.map(({ buffer }) => buffer));
}

function beNice(): void {
  try {
    os.setPriority(0, NICENESS);
  } catch {
    // not allowed: it takes what it gets
  }
}
