import { crc32, zstdCompressSync } from "node:zlib";
import { assertEquals, assertThrows } from "@std/assert";
import { type PageHeader, parquetMetadata } from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { UserError } from "../../base/errors.ts";
import type { ReportBad } from "./utf8.ts";
import { FileBytes } from "./bytes.ts";
import { readParquet, type Skip } from "./parquet.ts";
import { assertRefused, refuse, textsOf } from "./testing.ts";
import { withFiles } from "../testing.ts";

const fixtures = new URL("../../tests/fixtures/", import.meta.url).pathname;
const python = Deno.env.get("LOAM_PYTHON");
const NO_KEYS = "which cannot be read; write it again without encryption";
const ADVICE = "the file is truncated or corrupt, fetch it again";

/** The text of row i, as tests/fixtures/make_fixtures.py has it; "" for null. */
function expected(i: number): string {
  if (i % 11 === 5 || i % 13 === 7) return "";
  if (i === 3) return "\ufeffbegins with a byte-order mark";
  if (i === 17) return "stands for what was no text: \ufffd";
  return `Größe ${i % 40} 👍. `.repeat(i % 7 + 1);
}

const rows = Array.from({ length: 300 }, (_, i) => expected(i));

type ReadSome = {
  column?: string;
  reportBad?: ReportBad;
  skip?: Skip;
};

/** The texts of a file. */
async function texts(
  path: string,
  { column = "text", reportBad = refuse, skip = { left: 0 } }: ReadSome = {},
): Promise<string[]> {
  const source = new FileBytes(path, Deno.statSync(path).size);
  return (await Array.fromAsync(readParquet(source, column, reportBad, skip))).flatMap(textsOf);
}

const FILES = ["", "_zstd", "_gzip", "_brotli", "_lz4", "_none", "_required"].map((kind) =>
  `texts${kind}.parquet`
);

for (const file of FILES) {
  Deno.test(`readParquet() reads every row of ${file} in order`, async () => {
    assertEquals(await texts(fixtures + file), rows);
    assertEquals(await texts(fixtures + file, { column: "name" }), rows.map((_, i) => `row ${i}`));
    assertEquals(await texts(fixtures + file, { column: "lang" }), rows.map(() => "en"));
  });
}

/** Reads the files of tests/fixtures/parquet/make_parquet.py; gives how many there are. */
async function compareWithArrow(directory: string): Promise<number> {
  const lines = Deno.readTextFileSync(`${directory}/expected.jsonl`).trim().split("\n");
  const parts: [string[], (string | null)[]][] = lines.map((line) => JSON.parse(line));
  for (const [files, expected] of parts) {
    for (const file of files) {
      assertEquals(await texts(`${directory}/${file}`), expected.map((text) => text ?? ""), file);
    }
  }
  return parts.flatMap(([files]) => files).length;
}

Deno.test("readParquet() reads what pyarrow reads, whoever wrote the file", async () => {
  assertEquals(await compareWithArrow(`${fixtures}parquet`), 25);
});

Deno.test({
  name:
    "readParquet() reads what pyarrow reads for every encoding, page version and compression (LOAM_PYTHON)",
  ignore: python === undefined,
  fn: () =>
    withFiles({}, async (directory) => {
      const args = [`${fixtures}parquet/make_parquet.py`, directory];
      const { success, stderr } = await new Deno.Command(python!, { args }).output();
      assertEquals(success, true, new TextDecoder().decode(stderr));
      const names = Array.from(Deno.readDirSync(directory), ({ name }) => name);
      assertEquals(
        names.filter((name) => /^arrow_.*_(null|required)\.parquet$/.test(name)).length,
        4 * 2 * 6 * 2,
      );
      assertEquals(await compareWithArrow(directory) >= 96 + 13 + 27, true); // more where other writers are installed
    }),
});

for (const kind of ["dictionary", "deltas"]) {
  Deno.test(`readParquet() gives 300 texts of a megabyte in a page of ${kind} one by one`, async () => {
    const path = `${fixtures}parquet/repeated_${kind}.parquet`, { size } = Deno.statSync(path);
    let documents = 0;
    for await (const { text, ends } of readParquet(new FileBytes(path, size), "text", refuse, { left: 0 })) {
      assertEquals(text.buffer.byteLength <= 4 << 20, true, `${text.buffer.byteLength} bytes at once`);
      assertEquals(text.length, 1_000_000 * ends.length);
      for (const end of ends) assertEquals([text[end - 1_000_000], text[end - 1]], [0x61, 0x61]);
      documents += ends.length;
    }
    assertEquals(documents, 300);
  });
}

Deno.test("readParquet() leaves pages of more than 1 GB alone", async () => {
  const small = new Uint8Array(4), bytes = 2 ** 30 + 1;
  await withFiles({ "a.parquet": parquetOf([small], 1, [], bytes) }, async (directory) => {
    const path = `${directory}/a.parquet`, bad: number[] = [];
    await assertRefused(
      () => texts(path),
      `Cannot read "${path}": row group 0, page at byte 4: it has 1073741825 bytes, the limit is 1073741824; ` +
        "write it again with smaller pages",
    );
    assertEquals(await texts(path, { reportBad: (_, documents) => bad.push(documents) }), []);
    assertEquals(bad, [1]);
  });
});

Deno.test("readParquet() reads texts of 0 to 3,000,000 bytes", async () => {
  const lengths = [0, 1, 70_000, 3_000_000, 5, 0, 1_100_000, 2];
  const long = lengths.map((length, i) => `${i} `.repeat(length).slice(0, length));
  assertEquals(await texts(`${fixtures}long.parquet`), long);
});

Deno.test("readParquet() counts the bytes of the file", async () => {
  const path = `${fixtures}texts.parquet`, { size } = Deno.statSync(path);
  const blocks = await Array.fromAsync(readParquet(new FileBytes(path, size), "text", refuse, { left: 0 }));
  assertEquals(blocks.reduce((sum, { read }) => sum + read, 0), size);
});

Deno.test("readParquet() passes over the row groups that are skipped whole", async () => {
  for (const [skip, left, from] of [[119, 119, 0], [120, 0, 120], [200, 80, 120], [400, 100, 300]] as const) {
    const toSkip = { left: skip };
    assertEquals(await texts(`${fixtures}texts.parquet`, { skip: toSkip }), rows.slice(from));
    assertEquals(toSkip.left, left);
  }
});

Deno.test("readParquet() lists the columns when the one asked for cannot be used", async () => {
  const path = `${fixtures}texts.parquet`;
  const columns = "id (int64), text (text), name (text), lang (text), tags (list), raw (byte_array)";
  await assertRefused(
    () => texts(path, { column: "txt" }),
    `Cannot read "${path}": it has no column "txt"; choose one with --column, it has: ${columns}`,
  );
  for (const [column, type] of [["id", "int64"], ["tags", "list"], ["raw", "byte_array"]] as const) {
    await assertRefused(
      () => texts(path, { column }),
      `Cannot read "${path}": column "${column}" is ${type}, should be text; ` +
        `choose another with --column, it has: ${columns}`,
    );
  }
});

Deno.test("readParquet() reads no rows where there are none", async () => {
  await withFiles({ "a.parquet": parquetOf([], 0) }, async (directory) => {
    assertEquals(await texts(`${directory}/a.parquet`), []);
  });
});

Deno.test("readParquet() refuses a text of more than 256 MB", async () => {
  const length = (256 << 20) + 1, page = new Uint8Array(4 + length).fill(0x61);
  new DataView(page.buffer).setUint32(0, length, true);
  await withFiles({ "a.parquet": parquetOf([page], 1) }, async (directory) => {
    const path = `${directory}/a.parquet`;
    await assertRefused(
      () => texts(path),
      `Cannot read row 0 of "${path}": it has 268435457 bytes, the limit for one document is 268435456; split it`,
    );
    assertEquals(await texts(path, { reportBad: () => {} }), []);
  });
});

Deno.test("readParquet() refuses a text that is not UTF-8, or leaves it out", async () => {
  const path = `${fixtures}latin1.parquet`, reported: [string, number][] = [];
  const line = (row: number, at: number, byte: string) =>
    `Cannot read row ${row} of "${path}": its byte ${at} is ${byte}, which is not UTF-8 there; ` +
    "convert it with iconv -f ENCODING -t UTF-8";
  await assertRefused(() => texts(path), line(1, 4, "0xe8"));
  assertEquals(await texts(path, { reportBad: (...bad) => reported.push(bad) }), ["caffè", "caf"]);
  assertEquals(reported, [[line(1, 4, "0xe8"), 1], [line(3, 0, "0xe9"), 1]]);
});

/**
 * A parquet file with a column "text" and one row group, written out in Thrift's compact protocol.
 *
 * @param pages Contents of plain pages of one row each, which are compressed with zstd.
 * @param more Fields of the column chunk behind its metadata.
 * @param claimed Bytes that each page says it has, if not as many as it does.
 */
function parquetOf(
  pages: Uint8Array<ArrayBuffer>[],
  rows: number,
  more: number[] = [],
  claimed?: number,
): Uint8Array<ArrayBuffer> {
  const chunk = Uint8Array.from(pages.flatMap((page) => {
    const content = zstdCompressSync(page);
    const header = [0x15, 0, 0x15, ...zigzag(claimed ?? page.length), 0x15, ...zigzag(content.length)];
    return [...header, 0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0, ...content];
  }));
  const text = [4, ...new TextEncoder().encode("text")], ZSTD = 12, BYTE_ARRAY = 12, UTF8 = 0;
  const schema = [0x48, ...text, 0x15, 2, 0, 0x15, BYTE_ARRAY, 0x25, 0, 0x18, ...text, 0x25, UTF8, 0]; // root and column
  const sizes = [
    0x16,
    ...zigzag(rows),
    0x16,
    ...zigzag(chunk.length),
    0x16,
    ...zigzag(chunk.length),
    0x26,
    ...zigzag(4),
  ];
  const column = [0x15, BYTE_ARRAY, 0x19, 5, 0x19, 0x18, ...text, 0x15, ZSTD, ...sizes, 0];
  const group = [0x19, 0x1c, 0x26, 0, 0x1c, ...column, ...more, 0, 0x16, 0, 0x16, ...zigzag(rows), 0];
  const footer = [0x15, 2, 0x19, 0x2c, ...schema, 0x16, ...zigzag(rows), 0x19, 0x1c, ...group, 0];
  const magic = new TextEncoder().encode("PAR1");
  return Uint8Array.of(...magic, ...chunk, ...footer, footer.length, 0, 0, 0, ...magic);
}

/** An integer of at least 0 as Thrift writes it: doubled, seven bits in each byte, the lowest first. */
function zigzag(n: number): number[] {
  const bytes = [];
  for (n *= 2; n >= 0x80; n = Math.floor(n / 0x80)) bytes.push(n % 0x80 | 0x80);
  return [...bytes, n];
}

Deno.test("parquetHeader(), which hyparquet's index does not name, gives every field that is read here", () => {
  const sizes = [0x15, ...zigzag(100), 0x15, ...zigzag(50), 0x15, 9]; // and the checksum -5
  const common = { uncompressed_page_size: 100, compressed_page_size: 50, crc: -5 };
  const check = (bytes: number[], expected: Partial<PageHeader>) => {
    const placeOf = (some: number[]) => ({ view: new DataView(Uint8Array.from(some).buffer), offset: 0 });
    const place = placeOf(bytes), header = parquetHeader(place);
    assertEquals(JSON.parse(JSON.stringify(header)), { ...common, ...expected });
    assertEquals(place.offset, bytes.length); // where the content of the page begins
    for (let n = 0; n < bytes.length; n++) assertThrows(() => parquetHeader(placeOf(bytes.slice(0, n))));
  };
  const page = [0x1c, 0x15, ...zigzag(7), 0x15, ...zigzag(8), 0x15, ...zigzag(3), 0x15, ...zigzag(3), 0];
  check([0x15, 0, ...sizes, ...page, 0], {
    type: "DATA_PAGE",
    data_page_header: {
      num_values: 7,
      encoding: "RLE_DICTIONARY",
      definition_level_encoding: "RLE",
      repetition_level_encoding: "RLE",
    },
  });
  const counts = [0x15, ...zigzag(7), 0x15, ...zigzag(2), 0x15, ...zigzag(6)], lengths = [0x15, 8, 0x15, 2];
  check([0x15, ...zigzag(3), ...sizes, 0x4c, ...counts, 0x15, ...zigzag(6), ...lengths, 0x12, 0, 0], {
    type: "DATA_PAGE_V2",
    data_page_header_v2: {
      num_values: 7,
      num_nulls: 2,
      num_rows: 6,
      encoding: "DELTA_LENGTH_BYTE_ARRAY",
      definition_levels_byte_length: 4,
      repetition_levels_byte_length: 1,
      is_compressed: false,
    },
  });
  check([0x15, ...zigzag(2), ...sizes, 0x3c, 0x15, ...zigzag(9), 0x15, 0, 0, 0], {
    type: "DICTIONARY_PAGE",
    dictionary_page_header: { num_values: 9, encoding: "PLAIN" },
  });
});

// ---- damage

/** A page of the text column. */
type PlacedPage = {
  group: number;
  at: number;
  contentAt: number;
  end: number;
  header: PageHeader;
};

/** The pages of the text column of a file, found with hyparquet alone. */
function pagesOf(bytes: Uint8Array<ArrayBuffer>): PlacedPage[] {
  return parquetMetadata(bytes.buffer).row_groups.flatMap(({ columns }, group) => {
    const { dictionary_page_offset, data_page_offset, total_compressed_size } = columns[1]!.meta_data!;
    const start = Number(dictionary_page_offset ?? data_page_offset), pages: PlacedPage[] = [];
    for (let at = start; at < start + Number(total_compressed_size); at = pages.at(-1)!.end) {
      const reader = { view: new DataView(bytes.buffer), offset: at }, header = parquetHeader(reader);
      const contentAt = reader.offset, end = contentAt + header.compressed_page_size;
      pages.push({ group, at, contentAt, end, header });
    }
    return pages;
  });
}

/** Damages page n of the text column of a fixture; checks the message, and what is read without the bad rows. */
async function damagePage(
  file: string,
  n: number,
  damage: (bytes: Uint8Array<ArrayBuffer>, page: PlacedPage) => void,
  message: (page: PlacedPage, bytes: Uint8Array<ArrayBuffer>) => string,
  bad: { from: number; to: number },
): Promise<void> {
  const bytes = Deno.readFileSync(fixtures + file), page = pagesOf(bytes)[n]!;
  damage(bytes, page);
  await withFiles({ [file]: bytes }, async (directory) => {
    const path = `${directory}/${file}`, reported: [string, number][] = [];
    const where = `Cannot read "${path}": row group ${page.group}, page at byte ${page.at}`;
    await assertRefused(() => texts(path), `${where}: ${message(page, bytes)}; ${ADVICE}`);
    const left = await texts(path, { reportBad: (...bad) => reported.push(bad) });
    assertEquals(left, rows.toSpliced(bad.from, bad.to - bad.from));
    assertEquals(reported.reduce((sum, [, documents]) => sum + documents, 0), bad.to - bad.from);
  });
}

Deno.test("readParquet() says what is wrong with the ends of a file", async () => {
  const whole = Deno.readFileSync(`${fixtures}texts.parquet`), endsEarly = whole.slice(0, 5000);
  const longFooter = whole.slice(), badFooter = whole.slice();
  longFooter.set([0, 0, 1, 0], whole.length - 8);
  badFooter.fill(0xff, whole.length - 200, whole.length - 8);
  const cases: [Uint8Array, string][] = [
    [endsEarly, `it begins like parquet but does not end with a footer and PAR1; ${ADVICE}`],
    [longFooter, `its footer has 65536 bytes, the file has ${whole.length}; ${ADVICE}`],
    [badFooter, `footer: thrift unhandled type: 15; ${ADVICE}`],
    [new TextEncoder().encode("<html>404</html>"), "it is not a parquet file, which begins with PAR1"],
    [Uint8Array.of(1), "it is not a parquet file, which begins with PAR1"],
    [parquetOf([], 1), `row group 0 has 0 values in its pages, should have 1; ${ADVICE}`],
    [new TextEncoder().encode("PARE, secrets, PARE"), `it is encrypted, ${NO_KEYS}`],
    [parquetOf([], 1, [0x5c, 0x1c, 0, 0]), `column "text" is encrypted, ${NO_KEYS}`], // with the footer's key
  ];
  for (const [bytes, message] of cases) {
    await withFiles({ "a.parquet": bytes }, (directory) =>
      assertRefused(
        () => texts(`${directory}/a.parquet`),
        `Cannot read "${directory}/a.parquet": ${message}`,
      ));
  }
});

Deno.test("readParquet() finds a page with a wrong checksum and can go on behind it", () =>
  damagePage(
    "texts_gzip.parquet",
    3,
    (bytes, { end }) => bytes[end - 20]! ^= 1,
    ({ contentAt, end, header }, bytes) =>
      `its checksum is ${crc32(bytes.subarray(contentAt, end))}, should be ${header.crc! >>> 0}`,
    { from: 60, to: 80 },
  ));

Deno.test("readParquet() finds a page of another length than its header says", () =>
  damagePage(
    "texts.parquet",
    2,
    (bytes, { contentAt }) => bytes[contentAt]! ^= 1,
    ({ header: { uncompressed_page_size } }) =>
      `it decompresses to ${uncompressed_page_size ^ 1} bytes, its header says ${uncompressed_page_size}`,
    { from: 40, to: 60 },
  ));

Deno.test("readParquet() finds a page that cannot be decompressed", () =>
  damagePage(
    "texts_zstd.parquet",
    8,
    (bytes, { contentAt, end }) => bytes.fill(0, contentAt, end),
    () => "Zstd decompress error: Unknown frame descriptor",
    { from: 160, to: 180 },
  ));

Deno.test("readParquet() leaves out the pages whose dictionary cannot be read", () =>
  damagePage(
    "texts.parquet",
    6,
    (bytes, { contentAt }) => bytes[contentAt]! ^= 1,
    ({ header: { uncompressed_page_size } }) =>
      `it decompresses to ${uncompressed_page_size ^ 1} bytes, its header says ${uncompressed_page_size}`,
    { from: 120, to: 160 },
  ));

Deno.test("readParquet() leaves out the rest of a row group where a page has no header", () =>
  damagePage(
    "texts.parquet",
    3,
    (bytes, { at, contentAt }) => bytes.fill(0xff, at, contentAt),
    () => "thrift unhandled type: 15",
    { from: 60, to: 120 },
  ));

const SMALL = [
  "arrow_deltas_v2_lz4_null",
  "arrow_delta_lengths_v2_snappy_null",
  "made_v2_zstd",
  "made_lz4_hadoop",
];

for (const file of [...FILES, ...SMALL.map((name) => `parquet/${name}.parquet`)]) {
  Deno.test(`readParquet() turns damage anywhere in ${file} into a UserError or other text, never into a crash`, async () => {
    const whole = Deno.readFileSync(fixtures + file), places = Math.min(whole.length, 6000);
    for (let at = 4; at < places; at += whole.length < 2000 ? 3 : 61) {
      const bytes = whole.slice().fill([0xff, 0x80, 0x7f, 0][at & 3]!, at, at + 1 + at % 8);
      await withFiles({ [file]: bytes }, async (directory) => {
        try {
          await texts(`${directory}/${file}`);
        } catch (error) {
          if (!(error instanceof UserError)) throw new Error(`damage at byte ${at}`, { cause: error });
        }
      });
    }
  });
}
