import { assertEquals } from "@std/assert";
import { type Block, BlockBuilder } from "./block.ts";
import { interleave, type Stream } from "./interleave.ts";
import { textsOf } from "./testing.ts";

/** A stream of these texts, each a block of its own, that notes when it is let go of. */
function stream(weight: number, texts: string[], ended: number[]): Stream {
  async function* blocks(): AsyncGenerator<Block> {
    const builder = new BlockBuilder();
    try {
      for (const text of texts) {
        builder.appendString(text);
        builder.end();
        builder.read = 1;
        yield await Promise.resolve(builder.take());
      }
    } finally {
      ended.push(weight);
    }
  }
  return { weight, blocks: blocks() };
}

async function take(
  streams: [weight: number, texts: string[]][],
  limit: number | null,
  dedup: "" | "exact" = "",
): Promise<{ texts: string[]; read: number; ended: number[]; duplicates: number }> {
  const ended: number[] = [];
  let duplicates = 0;
  const all = streams.map(([weight, texts]) => stream(weight, texts, ended));
  const blocks = await Array.fromAsync(interleave(all, { limit, dedup }, () => duplicates++));
  const read = blocks.reduce((sum, { read }) => sum + read, 0);
  return { texts: blocks.flatMap(textsOf), read, ended, duplicates };
}

Deno.test("interleave() takes bytes in proportion to weights, and lets go of all streams at the end of one", async () => {
  const long = ["aaaaaaaa", "AAAAAAAA"], short = ["b", "c", "d", "e", "f", "g", "h"];
  // Shares of a and b, bytes over weights: 8/2 0, then b comes until it has 4 too; of equal shares the first is next.
  const expected = { texts: ["aaaaaaaa", "b", "c", "d", "e", "AAAAAAAA", "f", "g", "h"], duplicates: 0 };
  assertEquals(await take([[2, long], [1, short]], null), { ...expected, read: 9, ended: [1, 2] });
});

Deno.test("interleave() lets go of all streams at the limit, which counts duplicates", async () => {
  const texts = ["x", "", "x", "", "y", "z"];
  const { ended, ...taken } = await take([[1, texts]], 5, "exact");
  assertEquals(taken, { texts: ["x", "", "", "y"], read: 5, duplicates: 1 });
  assertEquals(ended, [1]);
});
