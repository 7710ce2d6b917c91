import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import type { Source } from "../read/inputs.ts";
import { parsePartName, partName, partStarts, takePart } from "./parts.ts";

function source(pattern: string, weight: number | null, ...bytes: number[]): Source {
  return {
    pattern,
    weight,
    inputs: bytes.map((bytes, i) => ({ name: `${pattern}${i}`, bytes, version: "" })),
  };
}

/** Names of the files of every part. */
function cut(sources: Source[], count: number): string[][][] {
  return Array.from({ length: count }, (_, i) => {
    const { sources: own } = takePart(sources, { index: i + 1, count });
    return own.map(({ inputs }) => inputs.map(({ name }) => name));
  });
}

Deno.test("partStarts() cuts where the bytes are balanced and leaves no part empty", () => {
  assertEquals(partStarts([1, 1, 1, 1], 2), [0, 2]);
  assertEquals(partStarts([1, 1, 1, 1, 1, 1, 1], 3), [0, 2, 5]);
  assertEquals(partStarts([9, 1, 1, 1, 6], 2), [0, 1]);
  assertEquals(partStarts([1, 1, 100], 3), [0, 1, 2]);
  assertEquals(partStarts([100, 1, 1], 3), [0, 1, 2]);
  assertEquals(partStarts([0, 0, 0, 0], 2), [0, 2]); // sizes that are not known
});

Deno.test("partStarts() leaves the largest part at most one file above the even share", () => {
  let state = 7;
  const next = (below: number) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % 65521 % below;
  for (let round = 0; round < 200; round++) {
    const bytes = Array.from({ length: 1 + next(40) }, () => 1 + next(1000));
    const count = 1 + next(bytes.length), starts = partStarts(bytes, count);
    assertEquals(starts.length, count);
    const sizes = starts.map((start, i) => bytes.slice(start, starts[i + 1]).reduce((a, b) => a + b, 0));
    assert(
      starts.every((start, i) => start < (starts[i + 1] ?? bytes.length)),
      `${starts} of ${bytes.length}`,
    );
    const even = bytes.reduce((a, b) => a + b, 0) / count;
    assert(Math.max(...sizes) <= even + Math.max(...bytes), `${sizes}`);
  }
});

Deno.test("takePart() cuts sources without weights as one list, and every source of a mix", () => {
  assertEquals(cut([source("a", null, 5, 5, 5), source("b", null, 5)], 2), [[["a0", "a1"]], [["a2", "b0"]]]);
  assertEquals(cut([source("a", 0.8, 5, 5, 5, 5), source("b", 0.2, 7, 7)], 2), [
    [["a0", "a1"], ["b0"]],
    [["a2", "a3"], ["b1"]],
  ]);
});

Deno.test("takePart() describes the inputs of all parts alike", () => {
  const sources = [source("a", null, 5, 6, 7)];
  const [one, two] = [1, 2].map((index) => takePart(sources, { index, count: 2 }).part);
  assertEquals({ ...one, index: 2 }, two);
  assertEquals([one!.files, one!.bytes], [3, 18]);
  assert(one!.sha256 !== takePart([source("a", null, 5, 7, 6)], { index: 1, count: 2 }).part.sha256);
});

Deno.test("takePart() wants a file for every part", () => {
  const advice = "and every part needs one; use --shard I/";
  assertThrows(
    () => takePart([source("a*", null, 5, 5), source("b", null, 5)], { index: 1, count: 4 }),
    UserError,
    `Cannot take part 1 of 4 of "a* b": it has 3 input files, ${advice}3 or less`,
  );
  assertThrows(
    () => takePart([source("a*", 1, 5, 5), source("b", 1, 5)], { index: 2, count: 2 }),
    UserError,
    `Cannot take part 2 of 2 of "b": it has 1 input file, ${advice}1 or less`,
  );
});

Deno.test("parsePartName() reads what partName() writes, and nothing else", () => {
  assertEquals(partName({ index: 3, count: 12 }), "part_3_of_12");
  assertEquals(parsePartName("part_3_of_12"), { index: 3, count: 12 });
  for (const name of ["part_3", "part_3_of_12.tmp", "my_part_3_of_12", "train_000000.bin"]) {
    assertEquals(parsePartName(name), undefined);
  }
});
