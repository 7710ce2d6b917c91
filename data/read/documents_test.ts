import { gzipSync, zstdCompressSync } from "node:zlib";
import { assertEquals, assertNotEquals } from "@std/assert";
import type { Block } from "./block.ts";
import { checkStarts, READ_ALL, readBlocks, type ReadCounts, type ReadOptions } from "./documents.ts";
import { findSources, type Source } from "./inputs.ts";
import { Random } from "./shuffle.ts";
import { assertRefused, textsOf } from "./testing.ts";
import { withFiles } from "../testing.ts";

const fixtures = new URL("../../tests/fixtures/", import.meta.url).pathname;

type ReadSome = Partial<ReadOptions> & {
  skip?: number;
  counts?: ReadCounts;
};

/** The texts that readBlocks() gives. */
async function read(
  patterns: string[],
  { skip, counts = { bad: 0, duplicates: 0 }, ...options }: ReadSome = {},
): Promise<string[]> {
  const all = { ...READ_ALL, ...options }, sources = await findSources(patterns, all);
  const blocks = await Array.fromAsync(readBlocks(sources, all, counts, skip), moved);
  for (const { ends } of blocks) assertNotEquals(ends.length, 0);
  checkRead(sources, blocks.reduce((sum, block) => sum + block.read, 0), all, skip);
  return blocks.flatMap(textsOf);
}

/** A block in the hands of another thread: its buffers are gone for whoever made it. */
function moved(block: Block): Block {
  return structuredClone(block, { transfer: [block.text.buffer, block.ends.buffer] });
}

/** What is read to the end is counted whole. */
function checkRead(sources: Source[], read: number, { limit }: ReadOptions, skip = 0): void {
  const bytes = sources.flatMap(({ inputs }) => inputs).reduce((sum, input) => sum + input.bytes, 0);
  if (limit === null && skip === 0 && sources[0]?.weight === null) assertEquals(read, bytes);
}

function jsonLines(texts: (string | null)[]): string {
  return texts.map((text) => `${JSON.stringify({ text })}\n`).join("");
}

/** Documents of 0 to 400 bytes that say which they are. */
function documents(name: string, n: number): string[] {
  const random = new Random(n);
  return Array.from(
    { length: n },
    (_, i) => i % 9 === 4 ? "" : `${name} ${i} ${"x".repeat(random.below(400))}`,
  );
}

Deno.test("readBlocks() reads sources one behind the other, whatever they are", () =>
  withFiles({
    "a.jsonl": jsonLines(["one", null, "two"]),
    "b.jsonl.gz": gzipSync(jsonLines(["three", ""])),
    "c.json.zst": zstdCompressSync(jsonLines(["four"])),
    "d.txt": "five\n\nsix\n",
    "e.txt.gz": gzipSync("seven\n\neight"),
    "f.txt.zst": zstdCompressSync("nine"),
  }, async (dir) => {
    const texts = ["one", "", "two", "three", "", "four", "five", "six", "seven", "eight", "nine"];
    assertEquals(await read([dir], { split_on: "blank_line" }), texts);
    const rows = await read([`${fixtures}texts.parquet`]);
    assertEquals(rows.length, 300);
    assertEquals(await read([`${dir}/f*`, `${fixtures}texts.parquet`, `${dir}/a*`]), [
      "nine",
      ...rows,
      "one",
      "",
      "two",
    ]);
  }));

Deno.test("readBlocks() takes as many documents as the limit says, over all sources", () =>
  withFiles(
    { "a.jsonl": jsonLines(["one", null, "two"]), "b.jsonl": jsonLines(["three", "four"]) },
    async (dir) => {
      const texts = ["one", "", "two", "three", "four"];
      for (let limit = 1; limit <= 6; limit++) {
        assertEquals(await read([dir], { limit }), texts.slice(0, limit));
      }
      const weighted = [`${dir}/a.jsonl:1`, `${dir}/b.jsonl:1`];
      for (let limit = 1; limit <= 4; limit++) {
        assertEquals(await read(weighted, { limit }), ["one", "three", "", "two"].slice(0, limit));
      }
    },
  ));

Deno.test("readBlocks() gives the same documents behind those that are skipped, with any options", () => {
  const texts = documents("a", 200), again = documents("b", 100).concat(texts.slice(50, 80));
  const lines = jsonLines(texts);
  return withFiles(
    { "a.jsonl": `${lines.slice(0, 5000)}\n{broken\n`, "b.jsonl": jsonLines(again) },
    async (dir) => {
      const plain = [`${dir}/*`, `${fixtures}texts.parquet`],
        weighted = [`${dir}/*:0.7`, `${fixtures}texts.parquet:0.3`];
      const runs: [string[], ReadSome][] = [
        [plain, {}],
        [plain, { limit: 450 }],
        [plain, { dedup: "exact" }],
        [plain, { shuffle_docs: 3, limit: 500 }],
        [weighted, {}],
        [weighted, { dedup: "exact", shuffle_docs: 1 }],
      ];
      for (const [patterns, options] of runs) {
        const counts = { bad: 0, duplicates: 0 };
        const all = await read(patterns, { ...options, skip_bad: true, counts });
        for (const skip of [0, 1, 77, 200, 330, 449, 450, 10_000]) {
          const again = { bad: 0, duplicates: 0 };
          assertEquals(
            await read(patterns, { ...options, skip_bad: true, skip, counts: again }),
            all.slice(skip),
          );
          assertEquals(again, counts);
        }
      }
      const parquet = [`${fixtures}texts.parquet`, `${fixtures}texts_gzip.parquet`]; // passes over row groups
      for (const limit of [null, 290, 310]) {
        const all = await read(parquet, { limit });
        for (const skip of [1, 119, 120, 121, 250, 300, 301, 425, 600]) {
          assertEquals(await read(parquet, { limit, skip }), all.slice(skip));
        }
      }
    },
  );
});

Deno.test("readBlocks() gives each text once with dedup, and counts the others", () =>
  withFiles({
    "a.jsonl": jsonLines(["one", "", "two", "one", null]),
    "b.jsonl": jsonLines(["three", "two", "", "four"]),
  }, async (dir) => {
    const counts = { bad: 0, duplicates: 0 };
    assertEquals(await read([dir], { dedup: "exact", counts }), ["one", "", "two", "", "three", "", "four"]);
    assertEquals(counts, { bad: 0, duplicates: 2 });
    assertEquals(await read([dir], { dedup: "exact", limit: 7 }), ["one", "", "two", "", "three"]);
  }));

Deno.test("readBlocks() mixes by weight in bytes, until a source has none left", () => {
  const a = documents("a", 3000), b = documents("b", 3000);
  return withFiles({ "a.jsonl": jsonLines(a), "b.jsonl": jsonLines(b) }, async (dir) => {
    const mixed = await read([`${dir}/a.jsonl:3`, `${dir}/b.jsonl:1`]);
    const ofA = mixed.filter((text) => text.startsWith("a")),
      ofB = mixed.filter((text) => text.startsWith("b"));
    const bytes = (texts: string[]) => texts.join("").length;
    assertEquals(Math.abs(bytes(ofA) - 3 * bytes(ofB)) < 2000, true);
    assertEquals(ofA, a.filter((text) => text !== "")); // to its end
    assertEquals(ofB, b.filter((text) => text !== "").slice(0, ofB.length));
    assertEquals(mixed.slice(0, 2), [a[0], b[0]]); // ties go to the first
  });
});

Deno.test("readBlocks() depends on the documents, not on how they are stored", async () => {
  const rows = await read([`${fixtures}texts.parquet`]), other = documents("a", 500);
  await withFiles({
    "a.jsonl": jsonLines(other),
    "rows.jsonl": jsonLines(rows),
    "rows.jsonl.zst": zstdCompressSync(jsonLines(rows)),
  }, async (dir) => {
    const stored = [
      `${fixtures}texts.parquet`,
      `${fixtures}texts_lz4.parquet`,
      `${dir}/rows.jsonl`,
      `${dir}/rows.jsonl.zst`,
    ];
    const sequences = await Promise.all(
      stored.map((rows) => read([`${rows}:2`, `${dir}/a.jsonl:1`], { dedup: "exact", shuffle_docs: 5 })),
    );
    for (const sequence of sequences) assertEquals(sequence, sequences[0]);
  });
});

Deno.test("readBlocks() shuffles files and documents by the seed", () => {
  const names = Array.from({ length: 20 }, (_, i) => `${i}`.padStart(2, "0"));
  const files = Object.fromEntries(names.map((name) => [`${name}.jsonl`, jsonLines(documents(name, 50))]));
  return withFiles(files, async (dir) => {
    const inOrder = await read([dir]), one = await read([dir], { shuffle_docs: 1 });
    assertEquals(one.toSorted(), inOrder.toSorted());
    assertNotEquals(one, inOrder);
    assertEquals(await read([dir], { shuffle_docs: 1 }), one);
    assertNotEquals(await read([dir], { shuffle_docs: 2 }), one);
    const first = await read([dir], { shuffle_docs: 1, limit: 100 }); // of the first two files in their shuffled order
    const came = new Set(first.filter((text) => text !== "").map((text) => text.slice(0, 2)));
    assertEquals(came.size, 2);
    assertNotEquals([...came].sort(), ["00", "01"]);
  });
});

Deno.test("readBlocks() says how to leave out what cannot be read, and counts it then", () =>
  withFiles({ "a.jsonl": '{"text":"one"}\n{"text":2}\n{"tex\n{"text":"four"}\n' }, async (dir) => {
    const counts: ReadCounts = { bad: 0, duplicates: 0 };
    assertEquals(await read([dir], { skip_bad: true, counts }), ["one", "four"]);
    const first_bad =
      `Cannot read ${dir}/a.jsonl:2: field "text" is 2, should be a text; choose another with --column`;
    assertEquals(counts, { bad: 2, duplicates: 0, first_bad });
    await assertRefused(
      () => read([dir]),
      `Cannot read ${dir}/a.jsonl:2: field "text" is 2, should be a text; choose another with --column, ` +
        "or leave it out with --skip_bad",
    );
  }));

Deno.test("readBlocks() counts all rows of pages that cannot be read", async () => {
  const path = `${fixtures}texts_zstd.parquet`, bytes = Deno.readFileSync(path), whole = await read([path]);
  const magic = [0x28, 0xb5, 0x2f, 0xfd]; // of a frame of zstd
  const frames = Array.from(bytes.keys()).filter((at) => magic.every((byte, i) => bytes[at + i] === byte));
  for (const at of frames.slice(0, frames.length >> 1)) bytes.fill(0, at, at + 4);
  await withFiles({ "a.parquet": bytes }, async (dir) => {
    const counts: ReadCounts = { bad: 0, duplicates: 0 };
    const left = await read([dir], { skip_bad: true, counts });
    assertEquals(counts.bad, whole.length - left.length);
    assertEquals(counts.bad > frames.length / 2, true, `${counts.bad} rows of ${frames.length} frames`);
  });
});

Deno.test("readBlocks() refuses a file of 2 GB as one document", () =>
  withFiles({ "a.txt": "", "b.txt": "b" }, async (dir) => {
    Deno.truncateSync(`${dir}/a.txt`, 2 ** 31);
    await assertRefused(
      () => read([dir]),
      `Cannot read "${dir}/a.txt" as one document: it has more than 268435456 bytes, the limit for one document; ` +
        "say where documents end, such as with --split_on=blank_line, or leave it out with --skip_bad",
    );
  }));

Deno.test("readBlocks() says when a file has become shorter", () =>
  withFiles({ "a.txt": "a text" }, async (dir) => {
    const sources = await findSources([dir], READ_ALL), counts = { bad: 0, duplicates: 0 };
    Deno.truncateSync(`${dir}/a.txt`, 2);
    await assertRefused(
      () => Array.fromAsync(readBlocks(sources, READ_ALL, counts)),
      `Cannot read "${dir}/a.txt": it ends at byte 2, it had 6 when it was opened; prepare again once nobody writes to it`,
    );
  }));

Deno.test("checkStarts() finds mistakes at the beginning of each text file, and nothing else", () =>
  withFiles({
    "a.jsonl": jsonLines(documents("a", 3000)), // 600 kB
    "b.jsonl.gz": gzipSync(jsonLines(["one"])),
    "long.jsonl": jsonLines(["x".repeat(1 << 20)]),
    "cut.txt": `${"x".repeat((1 << 14) - 1)}é`, // a character across the end of what is looked at
    "late.jsonl": `${jsonLines(documents("a", 3000))}oops`,
    "blank.jsonl": "\n\n",
    "wrong/list.json": "[\n{}\n]",
    "wrong/pretty.json": '{\n  "text": "a"\n}',
    "wrong/field.jsonl.gz": gzipSync('{"body": "a"}'),
    "wrong/latin1.txt": Uint8Array.of(0x61, 0xe9),
    "wrong/no.txt.gz": "not gzip",
  }, async (dir) => {
    const check = async (name: string, skip_bad = false) =>
      await checkStarts(await findSources([`${dir}/${name}`], READ_ALL), { ...READ_ALL, skip_bad });
    await check("*.*");
    await check("wrong", true);
    const advice = "each line should be one JSON object, or leave it out with --skip_bad";
    const mistakes: [string, string][] = [
      ["list.json", `Cannot read DIR/list.json:1: Unexpected end of JSON input; ${advice}`],
      [
        "pretty.json",
        `Cannot read DIR/pretty.json:1: Expected property name or '}' in JSON at position 1; ${advice}`,
      ],
      [
        "field.jsonl.gz",
        'Cannot read DIR/field.jsonl.gz:1: it has no field "text" but body; choose one with --column, or leave it out with --skip_bad',
      ],
      [
        "latin1.txt",
        'Cannot read "DIR/latin1.txt": its byte 1 is 0xe9, which is not UTF-8 there; convert it with iconv -f ENCODING -t UTF-8, or leave it out with --skip_bad',
      ],
      [
        "no.txt.gz",
        'Cannot decompress "DIR/no.txt.gz": incorrect header check; the file is truncated or corrupt, fetch it again',
      ],
    ];
    for (const [name, message] of mistakes) {
      await assertRefused(() => check(`wrong/${name}`), message.replace("DIR", `${dir}/wrong`));
    }
  }));
