import { assert, assertEquals, assertThrows } from "@std/assert";
import { forgetMemory, memoryByKind, permanent, release, releaseAll, take, takenBy } from "./memory.ts";
import { memoryUse } from "../ffi/library.ts";
import { openTestDevice } from "./testing.ts";

openTestDevice();

/** Takes and releases in an order that leaves gaps; returns what lies where. */
function busyStep(): bigint[] {
  const a = take(1000), b = take(5000), c = take(300);
  release(b);
  const d = take(2000), e = take(2000); // both fit where b was
  release(a);
  release(d);
  const f = take(3000); // a's and d's places together
  const addresses = [a, b, c, d, e, f].map((block) => block.address);
  releaseAll();
  return addresses;
}

Deno.test("take() gives the same addresses in every step after the first", () => {
  forgetMemory();
  busyStep();
  const second = busyStep();
  assertEquals(busyStep(), second);
});

Deno.test("take() uses what was released, joined with free neighbours", () => {
  forgetMemory();
  busyStep();
  const [a, b, , d, e, f] = busyStep() as [bigint, bigint, bigint, bigint, bigint, bigint];
  assertEquals([d, e, f], [b, b + 2048n, a]); // sizes are rounded up to 256
  assertEquals(memoryByKind().step, 1024 + 5120 + 512);
});

Deno.test("releaseAll() keeps one arena, as large as the largest step", () => {
  forgetMemory();
  const before = memoryUse().now;
  for (const [bytes, kept] of [[1000, 1024], [3000, 3072], [2000, 3072], [70_000, 70_144]] as const) {
    take(bytes);
    releaseAll();
    assertEquals(memoryUse().now - before, kept);
  }
});

Deno.test("blocks in use never overlap", () => {
  forgetMemory();
  let state = 1;
  const random = (n: number) => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % n;
  for (let step = 0; step < 3; step++) {
    const live: { address: bigint; bytes: number }[] = [];
    for (let i = 0; i < 500; i++) {
      if (live.length > 0 && random(3) === 0) release(live.splice(random(live.length), 1)[0]!);
      else live.push(take(1 + random(10_000)));
      const sorted = live.toSorted((a, b) => Number(a.address - b.address));
      sorted.slice(1).forEach((next, j) =>
        assert(sorted[j]!.address + BigInt(sorted[j]!.bytes) <= next.address)
      );
    }
    releaseAll();
  }
});

Deno.test("release() refuses a block that is not in use", () => {
  const block = take(100);
  release(block);
  assertThrows(() => release(block), Error, "a block of 256 bytes was released that is not in use");
});

Deno.test("takenBy() lists the blocks that were not released, to the outer one too", () => {
  const { result, blocks } = takenBy(() => {
    release(take(100));
    return takenBy(() => take(200)).result;
  });
  assertEquals([...blocks], [result]);
  releaseAll();
});

Deno.test("permanent() is counted by kind and not taken back", () => {
  forgetMemory();
  permanent(1000, "weights");
  permanent(24, "weights");
  releaseAll();
  assertEquals(memoryByKind(), { weights: 1024 });
});

Deno.test("a block that is released between two free ones joins them", () => {
  forgetMemory();
  for (let round = 0; round < 2; round++) { // in the second one all lie in the arena
    const [a, b, c, d] = [take(1024), take(1024), take(1024), take(256)];
    for (const block of [a!, c!, b!]) release(block);
    const whole = take(3072);
    if (round === 1) assertEquals([whole.address, d!.address], [a!.address, a!.address + 3072n]);
    releaseAll();
  }
  assertEquals(memoryByKind().step, 3 * 1024 + 256);
});
