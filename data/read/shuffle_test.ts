import { assertEquals, assertNotEquals } from "@std/assert";
import { type Block, BlockBuilder } from "./block.ts";
import { Random, shuffled, shuffleDocuments } from "./shuffle.ts";
import { textsOf } from "./testing.ts";

/** Documents "0", "1", ... in blocks of so many. */
async function* numbers(n: number, perBlock: number): AsyncGenerator<Block> {
  const builder = new BlockBuilder();
  for (let i = 0; i < n; i++) {
    builder.appendString(String(i));
    builder.end();
    builder.read += 2;
    if (builder.documents === perBlock) yield await Promise.resolve(builder.take());
  }
  yield builder.take();
}

async function shuffle(n: number, seed: number, pool_bytes: number, perBlock = 10): Promise<number[]> {
  const blocks = await Array.fromAsync(shuffleDocuments(numbers(n, perBlock), seed, pool_bytes));
  assertEquals(blocks.reduce((sum, { read }) => sum + read, 0), 2 * n);
  return blocks.flatMap(textsOf).map(Number);
}

const inOrder = (numbers: number[]) => numbers.toSorted((a, b) => a - b);

Deno.test("shuffleDocuments() gives each document once, in an order that depends on the seed alone", async () => {
  const order = await shuffle(1000, 1, 4000);
  assertEquals(inOrder(order), Array.from({ length: 1000 }, (_, i) => i));
  assertNotEquals(order, inOrder(order));
  assertEquals(await shuffle(1000, 1, 4000, 7), order); // other blocks
  assertNotEquals(await shuffle(1000, 2, 4000), order);
});

Deno.test("shuffleDocuments() moves documents as far as the pool is large", async () => {
  const moved = (order: number[]) =>
    order.reduce((sum, i, place) => sum + Math.abs(place - i), 0) / order.length;
  const small = moved(await shuffle(2000, 1, 2000)), large = moved(await shuffle(2000, 1, 1e6));
  assertEquals(small > 20 && small < 200, true, `${small}`);
  assertEquals(large > 600 && large < 730, true, `${large}`); // a third of them all
});

Deno.test("shuffleDocuments() takes documents that are larger than the pool", async () => {
  assertEquals(inOrder(await shuffle(10, 1, 1)), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

Deno.test("shuffled() gives every order about as often", () => {
  const counts = new Map<string, number>();
  for (let seed = 0; seed < 6000; seed++) {
    const order = shuffled(["a", "b", "c"], seed).join("");
    counts.set(order, (counts.get(order) ?? 0) + 1);
  }
  assertEquals([...counts.keys()].sort(), ["abc", "acb", "bac", "bca", "cab", "cba"]);
  for (const count of counts.values()) assertEquals(Math.abs(count - 1000) < 150, true, `${count}`);
});

Deno.test("Random gives whole numbers below n", () => {
  const random = new Random(5), counts = [0, 0, 0];
  for (let i = 0; i < 3000; i++) counts[random.below(3)]!++;
  for (const count of counts) assertEquals(Math.abs(count - 1000) < 150, true, `${count}`);
});
