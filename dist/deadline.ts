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
  const others = world_size === 2 ? `rank ${1 - rank}` : `the other ${world_size - 1} ranks`;
  const line =
    `error: rank ${rank}: ${what} has waited ${timeout_s} s (--dist_timeout_s) for ${others}; look at what they ` +
    "printed, and start again with --resume=auto";
  endAfter(timeout_s === 0 ? 0 : 1000 * (timeout_s + grace_s), TRY_AGAIN, line);
  try {
    return f();
  } finally {
    endAfter(0, 0, "");
  }
}
