import { assertEquals } from "@std/assert";
import { inDirectory } from "../testing.ts";
import type { Encoded, EncodedSplit } from "./encode.ts";
import type { Recipe } from "../meta.ts";
import { Run } from "./run.ts";

/** Documents of these lengths in tokens, each token three bytes of text. */
function split(...lengths: number[]): EncodedSplit {
  let end = 0;
  const ends = Uint32Array.from(lengths, (length) => end += length);
  return { ids: new Uint16Array(end), mask: new Uint8Array(), ends, bytes: 3 * end };
}

const RECIPE = { token_bytes: 2, options: { shard_tokens: 100 } } as unknown as Recipe; // what a Run needs of it

Deno.test("Run adds up blocks, and keeps the extremes of their fractions", () =>
  inDirectory((dir) => {
    using run = new Run(dir, RECIPE);
    const first: Encoded = {
      documents: 4,
      ...{ empty: 1, bad: 2, cut: 3, too_long: 4 },
      train: split(5, 2),
      val: split(3),
      smallest: 0.2,
      largest: 0.9,
    };
    assertEquals(run.add(first, 50), { read: 50, documents: 4, text: 30, tokens: 10 });
    const second: Encoded = {
      documents: 2,
      ...{ empty: 0, bad: 1, cut: 1, too_long: 1 },
      train: split(1),
      val: split(4),
      smallest: 0.3,
      largest: 0.4,
    };
    assertEquals(run.add(second, 7), { read: 7, documents: 2, text: 15, tokens: 5 });
    assertEquals(run.counts, {
      documents: 6,
      read: 57,
      ...{ empty: 1, bad: 3, cut: 4, too_long: 5 },
      train: { documents: 3, tokens: 8, bytes: 24 },
      val: { documents: 2, tokens: 7, bytes: 21 },
      smallest: 0.2,
      largest: 0.9,
    });
    assertEquals(run.work(), { read: 57, documents: 6, text: 45, tokens: 15 });
  }));
