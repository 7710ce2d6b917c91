// Device memory: what stays for the life of the process, and the memory of one training step.
//
// Step memory is one arena. Every block is placed by first fit in an endless row of offsets, so where it lies depends only on
// what was taken and released before it in the same step: after the first step nothing allocates and addresses repeat. Where
// the arena does not reach yet, a block gets memory of its own; at the end of the step the arena grows to the furthest offset.
import { allocate, free as freeDeviceMemory } from "../ffi/library.ts";
import type { Address } from "../ffi/symbols.ts";

/** A range of device memory. */
export type Block = { readonly address: Address; readonly bytes: number };

/** What memory is used for, as shown by --dry_run. "step" holds activations, their gradients and logits. */
export type MemoryKind = "weights" | "gradients" | "optimizer" | "inputs" | "constants" | "cache" | "step";

const bytesByKind = new Map<MemoryKind, number>();

/** Bytes allocated so far for each kind of memory; of step memory, the most that a step has needed. */
export function memoryByKind(): Record<string, number> {
  return Object.fromEntries(furthest > 0 ? [...bytesByKind, ["step", furthest]] : bytesByKind);
}

/** Memory for the life of the process, filled with zeros. Throws KernelError when the device has too little. */
export function permanent(bytes: number, kind: Exclude<MemoryKind, "step">): Block {
  const address = allocate(bytes);
  bytesByKind.set(kind, (bytesByKind.get(kind) ?? 0) + bytes);
  return { address, bytes };
}

// ---- step memory

type Gap = { begin: number; end: number }; // free offsets, in bytes

let gaps: Gap[] = [{ begin: 0, end: Infinity }]; // in order, never touching
let furthest = 0; // largest end of a block in any step so far
let arena: Block = { address: 0n, bytes: 0 };
const taken = new Map<Block, number>(); // offset of each block in use
const watching: Set<Block>[] = []; // by the calls of takenBy() in progress

/** A block of step memory with undefined contents. It is free again by release() or at releaseAll(). */
export function take(bytes: number): Block {
  const size = Math.max(256, Math.ceil(bytes / 256) * 256);
  const i = gaps.findIndex((gap) => gap.end - gap.begin >= size), gap = gaps[i]!;
  const offset = gap.begin;
  gap.begin += size;
  if (gap.begin === gap.end) gaps.splice(i, 1);
  furthest = Math.max(furthest, offset + size);
  const inArena = offset + size <= arena.bytes;
  const block = { address: inArena ? arena.address + BigInt(offset) : allocate(size), bytes: size };
  taken.set(block, offset);
  for (const blocks of watching) blocks.add(block);
  return block;
}

/** Makes a block of step memory free. */
export function release(block: Block): void {
  const offset = taken.get(block);
  if (offset === undefined) {
    throw new Error(`internal: a block of ${block.bytes} bytes was released that is not in use`);
  }
  taken.delete(block);
  for (const blocks of watching) blocks.delete(block);
  if (offset + block.bytes > arena.bytes) freeDeviceMemory(block.address);
  const next = gaps.findIndex((gap) => gap.begin > offset), end = offset + block.bytes;
  const before = gaps[next - 1], after = gaps[next]!;
  if (before?.end === offset && after.begin === end) {
    before.end = after.end;
    gaps.splice(next, 1);
  } else if (before?.end === offset) before.end = end;
  else if (after.begin === end) after.begin = offset;
  else gaps.splice(next, 0, { begin: offset, end });
}

/** Takes back all step memory, and lets the arena grow to what was needed. */
export function releaseAll(): void {
  for (const block of [...taken.keys()]) release(block);
  if (furthest <= arena.bytes) return;
  if (arena.bytes > 0) freeDeviceMemory(arena.address);
  arena = { address: allocate(furthest), bytes: furthest };
}

/** Runs f and returns its result with the blocks that it took and did not release. */
export function takenBy<T>(f: () => T): { result: T; blocks: Set<Block> } {
  const blocks = new Set<Block>();
  watching.push(blocks);
  try {
    return { result: f(), blocks };
  } finally {
    watching.pop();
  }
}

/** Runs f with memory of its own, which is forgotten at its end: for a plan. */
export function withOwnMemory<T>(f: () => T): T {
  const kinds = [...bytesByKind], blocks = [...taken], before = { gaps, furthest, arena };
  forgetMemory();
  try {
    return f();
  } finally {
    forgetMemory();
    for (const [kind, bytes] of kinds) bytesByKind.set(kind, bytes);
    for (const [block, offset] of blocks) taken.set(block, offset);
    ({ gaps, furthest, arena } = before);
  }
}

/** Forgets all memory without freeing it: for a plan, and for tests that open another device. */
export function forgetMemory(): void {
  bytesByKind.clear();
  taken.clear();
  gaps = [{ begin: 0, end: Infinity }];
  furthest = 0;
  arena = { address: 0n, bytes: 0 };
}
