// The Worker of a Saver: writes the part of a checkpoint that it is sent if it is finite, gives the memory back, and says what came of it; and
// publishes what all ranks have written. It leaves the cores to training: it gives way to all else and rests after each
// piece, until somebody waits for it.
import os from "node:os";
import { type Failed, failedBy, workerScope } from "../base/worker_scope.ts";
import {
  type CheckpointContent,
  type Described,
  type Part,
  partOfCopies,
  type Place,
  publish,
  writePart,
} from "./checkpoint.ts";
import type { Sums } from "./sums.ts";
import type { TrainerState } from "./trainer_state.ts";

/** Memory to make and to touch, for the copies of the first checkpoint: bytes of each. */
export type ToMake = { kind: "make"; sizes: number[] };

/**
 * What writePart() writes, with the tensors of its files in `copies`. After each piece it rests for `rests` times as long as that
 * took, unless the number in `hurry` is not 0.
 */
export type ToWrite = {
  kind: "write";
  runDir: string;
  state: TrainerState;
  part: Part<Described>[];
  place: Place;
  copies: Uint8Array<ArrayBuffer>[];
  rests: number;
  hurry: Int32Array<SharedArrayBuffer>;
};

/** What publish() takes. */
export type ToPublish = {
  kind: "publish";
  runDir: string;
  content: Pick<CheckpointContent, "files" | "state">;
  keep: number;
  sums: Sums;
};

/** An answer: what was made or written, or the path of what was published. */
export type Done = { copies: Uint8Array<ArrayBuffer>[]; sums: Sums; path: string };

const NICENESS = 10; // a weight of 110 against 1024
const PIECE_MS = 100; // a piece that took longer was held up, by the disk or as the process was stopped
const NOTHING: Done = { copies: [], sums: new Map(), path: "" };

const worker = workerScope();
if (Deno.build.os === "linux") beNice(); // there it is of this thread alone, elsewhere of the process

worker.onmessage = ({ data }: MessageEvent<ToMake | ToWrite | ToPublish>) => {
  try {
    const done = act(data);
    worker.postMessage(done, done.copies.map(({ buffer }) => buffer));
  } catch (error) {
    worker.postMessage(failedBy(error) satisfies Failed);
  }
};

function act(order: ToMake | ToWrite | ToPublish): Done {
  switch (order.kind) {
    case "make": // 0 might touch nothing
      return { ...NOTHING, copies: order.sizes.map((bytes) => new Uint8Array(bytes).fill(1)) };
    case "write": {
      const { runDir, state, place, copies } = order;
      const part = partOfCopies(runDir, state, order.part, copies, resting(order));
      return { ...NOTHING, copies, sums: writePart(runDir, state, part, place) };
    }
    case "publish":
      return { ...NOTHING, path: publish(order.runDir, order.content, order.keep, order.sums) };
  }
}

function resting({ rests, hurry }: ToWrite): () => void {
  let since = performance.now();
  return () => {
    Atomics.wait(hurry, 0, 0, rests * Math.min(performance.now() - since, PIECE_MS));
    since = performance.now();
  };
}

function beNice(): void {
  try {
    os.setPriority(0, NICENESS);
  } catch {
    // not allowed: it takes what it gets
  }
}
