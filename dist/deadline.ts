// A deadline for calls of NCCL and MPI that wait for other ranks on this thread, on which no timer runs meanwhile.
import { TRY_AGAIN } from "../base/errors.ts";
import { endAfter } from "../ffi/library.ts";

/** Which rank waits, among how many, and how long; timeout_s 0 = for ever. */
export type Waiting = { rank: number; world_size: number; timeout_s: number };

/**
 * Calls f. Where it has not returned in time, the process ends with one line of what waited for whom. A device must be open.
 * grace_s: so much later than the line says.
 */
export function within<T>(
  what: string,
  { rank, world_size, timeout_s }: Waiting,
  f: () => T,
  grace_s = 0,
): T {
  endAfter(
    timeout_s === 0 ? 0 : 1000 * (timeout_s + grace_s),
    TRY_AGAIN,
    lineOf(what, { rank, world_size, timeout_s }),
  );
  try {
    return f();
  } finally {
    if (standing) endAfter(Math.max(1, standing.end_ms - performance.now()), TRY_AGAIN, standing.line);
    else endAfter(0, 0, "");
  }
}

let standing: { end_ms: number; line: string } | undefined; // of queueing()

/**
 * Ends the process in the same way where what it returns is not disposed of in time: for work that is queued behind what waits for
 * others, as a queue that is full stops this thread. Calls of within() have their own time meanwhile.
 */
export function queueing(what: string, waiting: Waiting, grace_s: number): Disposable {
  const ms = 1000 * (waiting.timeout_s + grace_s), line = lineOf(what, waiting);
  if (waiting.timeout_s > 0) {
    standing = { end_ms: performance.now() + ms, line };
    endAfter(ms, TRY_AGAIN, line);
  }
  return {
    [Symbol.dispose]: () => {
      standing = undefined;
      endAfter(0, 0, "");
    },
  };
}

function lineOf(what: string, { rank, world_size, timeout_s }: Waiting): string {
  const others = world_size === 2 ? `rank ${1 - rank}` : `the other ${world_size - 1} ranks`;
  return `error: rank ${rank}: ${what} has waited ${timeout_s} s (--dist_timeout_s) for ${others}; look at what they ` +
    "printed, and start again with --resume=auto";
}
