import { assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { FileBytes } from "./bytes.ts";
import { readParquet } from "./parquet.ts";
import { textsOf, withFiles } from "./test_documents.ts";

const fixtures = new URL("../tests/fixtures/", import.meta.url).pathname;

/** The text of row i, as tests/fixtures/make_fixtures.py has it. */
function expected(i: number): string | null {
  if (i % 11 === 5) return null;
  if (i % 13 === 7) return "";
  if (i === 3) return "\ufeffbegins with a byte-order mark";
  if (i === 17) return "one \ufffd byte that is not UTF-8";
  return `Größe ${i % 40} 👍. `.repeat(i % 7 + 1);
}

/** The texts of a file, "" for null. */
async function texts(path: string, column = "text"): Promise<string[]> {
  const source = new FileBytes(path, Deno.statSync(path).size);
  const blocks = await Array.fromAsync(readParquet(source, column, fail, { left: 0 }));
  return blocks.flatMap(textsOf);
}

function fail(message: string): never {
  throw new UserError(message);
}

/** A parquet file with an optional column "text" and one row group, all without rows. */
function parquetWithoutRows(): Uint8Array<ArrayBuffer> {
  const text = [4, 0x74, 0x65, 0x78, 0x74]; // length and letters
  const schema = [0x48, ...text, 0x15, 2, 0, 0x15, 12, 0x25, 2, 0x18, ...text, 0x25, 0, 0]; // root; byte array, UTF8
  const column = [0x15, 12, 0x19, 5, 0x19, 0x18, ...text, 0x15, 0, 0x16, 0, 0x16, 0, 0x16, 0, 0x26, 0, 0];
  const group = [0x19, 0x1c, 0x26, 0, 0x1c, ...column, 0, 0x16, 0, 0x16, 0, 0];
  const footer = [0x15, 2, 0x19, 0x2c, ...schema, 0x16, 0, 0x19, 0x1c, ...group, 0]; // Thrift's compact protocol
  const magic = [0x50, 0x41, 0x52, 0x31];
  return Uint8Array.of(...magic, ...footer, footer.length, 0, 0, 0, ...magic);
}

/** Runs with a changed copy of a fixture. */
async function withCopy(
  change: (bytes: Uint8Array<ArrayBuffer>) => Uint8Array,
  run: (path: string) => Promise<unknown>,
): Promise<void> {
  const bytes = change(Deno.readFileSync(`${fixtures}texts.parquet`));
  await withFiles({ "a.parquet": bytes }, async (directory) => {
    await run(`${directory}/a.parquet`);
  });
}

for (const file of ["texts.parquet", "texts_zstd.parquet"]) {
  Deno.test(`readParquet() reads every row of ${file} in order`, async () => {
    assertEquals(await texts(fixtures + file), Array.from({ length: 300 }, (_, i) => expected(i) ?? ""));
  });
}

Deno.test("readParquet() lists the columns when the one asked for is not there", async () => {
  await assertRejects(
    () => texts(`${fixtures}texts.parquet`, "txt"),
    UserError,
    'texts.parquet": it has no column "txt"; choose one with --column, ' +
      "it has: id (int64), text (text), tags (list), raw (byte_array)",
  );
});

Deno.test("readParquet() refuses columns that are not text", async () => {
  for (const [column, type] of [["id", "int64"], ["tags", "list"], ["raw", "byte_array"]] as const) {
    await assertRejects(
      () => texts(`${fixtures}texts.parquet`, column),
      UserError,
      `column "${column}" is ${type}, should be text`,
    );
  }
});

Deno.test("readParquet() reads no rows where there are none", async () => {
  await withCopy(parquetWithoutRows, async (path) => assertEquals(await texts(path), []));
});

Deno.test("readParquet() says that a file is truncated", async () => {
  await withCopy((bytes) => bytes.slice(0, 5000), (path) =>
    assertRejects(
      () => texts(path),
      UserError,
      `Cannot read "${path}": it begins like parquet but does not end with a footer and PAR1; ` +
        "the file is truncated or corrupt, fetch it again",
    ));
});

Deno.test("readParquet() says that a file is not parquet", async () => {
  await withCopy(() => new TextEncoder().encode("<html>404</html>"), (path) =>
    assertRejects(
      () => texts(path),
      UserError,
      `Cannot read "${path}": it is not a parquet file, which begins with PAR1`,
    ));
});

Deno.test("readParquet() turns damage anywhere in the file into a UserError or other text, never into a crash", async () => {
  const size = Deno.statSync(`${fixtures}texts.parquet`).size;
  for (let at = 4; at < size; at += 97) {
    await withCopy((bytes) => bytes.fill(0xff, at, at + 8), async (path) => {
      try {
        await texts(path);
      } catch (error) {
        if (!(error instanceof UserError)) throw new Error(`damage at byte ${at}`, { cause: error });
      }
    });
  }
});
