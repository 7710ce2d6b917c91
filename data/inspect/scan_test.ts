import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import type { Shard } from "../bins.ts";
import { chunksOf, type Ends, findDocument, findOutside, locate, readRange, Tally } from "./scan.ts";

const EOT = 99, ENDS = { bos: EOT, eot: EOT };

/** Writes shards of these tokens to a directory that is removed afterwards. */
function withShards(contents: number[][], run: (shards: Shard[]) => void, token_bytes: 2 | 4 = 2): void {
  const dir = Deno.makeTempDirSync();
  try {
    run(contents.map((tokens, i) => {
      const path = `${dir}/train_${i}.bin`, header_bytes = i % 2 === 0 ? 1024 : 0;
      const body = new (token_bytes === 2 ? Uint16Array : Uint32Array)(tokens);
      Deno.writeFileSync(
        path,
        new Uint8Array([...new Uint8Array(header_bytes), ...new Uint8Array(body.buffer)]),
      );
      return { path, tokens: tokens.length, header_bytes, token_bytes };
    }));
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

/** The documents of a split as findDocument() finds them, one after the other. */
function documentsOf(shards: Shard[], ends: Ends): number[][] {
  const documents: number[][] = [];
  for (let n = 0;; n++) {
    const found = findDocument(shards, ends, n);
    if ("documents" in found) {
      assertEquals(found.documents, n);
      return documents;
    }
    documents.push(Array.from(readRange(shards, found)));
  }
}

/** Lengths of the documents as Tally counts them. */
function lengthsOf(shards: Shard[], ends: Ends): { count: number; sum: number } {
  const tally = new Tally(100, ends);
  for (const shard of shards) for (const ids of chunksOf(shard)) tally.add(ids);
  tally.endSplit();
  return { count: tally.lengths.count, sum: tally.lengths.sum };
}

const splits: [string, number[][], number[][], bos?: number][] = [
  ["that begin with the end-of-text token", [[EOT, 1, 2, EOT, 3]], [[1, 2], [3]]],
  ["that end with it", [[1, 2, EOT, 3, EOT]], [[1, 2], [3]]],
  ["without it", [[1, 2, 3]], [[1, 2, 3]]],
  ["that are empty", [[EOT, EOT, 1, EOT, EOT, 2]], [[], [1], [], [2]]],
  ["that go on in the next shard", [[EOT, 1, 2], [3], [4, EOT, 5, EOT], [6]], [[1, 2, 3, 4], [5], [6]]],
  ["whose shards begin with it", [[EOT, 1], [EOT, 2]], [[1], [2]]],
  ["of an empty split", [[]], []],
  ["of a lone end-of-text token", [[EOT]], []],
  ["between two tokens", [[7, 1, 2, EOT, 7, EOT, 7, 3, EOT]], [[1, 2], [], [3]], 7],
  [
    "between two tokens of several shards",
    [[7, 1], [EOT], [7, 2, 3], [EOT, 7, 4], [EOT]],
    [[1], [2, 3], [4]],
    7,
  ],
];
for (const [what, shards, documents, bos = EOT] of splits) {
  for (const token_bytes of [2, 4] as const) {
    Deno.test(`findDocument() and Tally see documents ${what}, ${token_bytes}-byte tokens`, () =>
      withShards(shards, (shards) => {
        assertEquals(documentsOf(shards, { bos, eot: EOT }), documents);
        const { count, sum } = lengthsOf(shards, { bos, eot: EOT });
        assertEquals([count, sum], [documents.length, documents.flat().length]);
      }, token_bytes));
  }
}

Deno.test("chunksOf() reads all tokens and shows all bytes of a shard that is larger than its buffer", () => {
  const tokens = Array.from({ length: 2 ** 21 + 5 }, (_, i) => i % 65_536); // 4 MiB and a little
  withShards([tokens], ([shard]) => {
    let sum = 0, n = 0, bytes = 0;
    for (const ids of chunksOf(shard!, (chunk) => bytes += chunk.length)) {
      n += ids.length;
      for (const id of ids) sum += id;
    }
    assertEquals([n, bytes], [tokens.length, 1024 + 2 * tokens.length]);
    assertEquals(sum, tokens.reduce((a, b) => a + b));
  });
});

Deno.test("chunksOf() says when a shard is cut short while it is read", () =>
  withShards([[1, 2, 3]], ([shard]) => {
    Deno.truncateSync(shard!.path, 1028);
    assertThrows(
      () => [...chunksOf(shard!)],
      UserError,
      `Cannot use "${shard!.path}": it ended before its 3 tokens, while they were read; write`,
    );
  }));

Deno.test("Tally counts ids and those outside of the vocabulary, which findOutside() finds", () =>
  withShards([[EOT, 1, 1], [5, 100, 700, 1]], (shards) => {
    const tally = new Tally(100, ENDS);
    for (const shard of shards) for (const ids of chunksOf(shard)) tally.add(ids);
    assertEquals([tally.counts[1], tally.counts[5], tally.counts[EOT], tally.outside], [3, 1, 1, 2]);
    assertEquals(findOutside(shards, 100), { position: 4, id: 100 });
    assertEquals(findOutside(shards, 701), undefined);
    const { shard, token } = locate(shards, 4);
    assertEquals([shard, token], [shards[1], 1]);
  }));

Deno.test("readRange() reads over the borders of shards", () =>
  withShards([[1, 2, 3], [4], [], [5, 6]], (shards) => {
    assertEquals(Array.from(readRange(shards, { start: 0, end: 6 })), [1, 2, 3, 4, 5, 6]);
    assertEquals(Array.from(readRange(shards, { start: 2, end: 5 })), [3, 4, 5]);
    assertEquals(Array.from(readRange(shards, { start: 3, end: 3 })), []);
  }));
