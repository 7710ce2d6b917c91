// The text column of a parquet file, page by page, so that memory stays bounded however large the row groups are (pandas
// writes up to a million rows in one) and nothing of the other columns is read. hyparquet decodes; this file walks row
// groups and pages, and explains what is wrong.
import { parquetMetadata, parquetSchema } from "hyparquet";
import type { FileMetaData, PageHeader, RowGroup, SchemaTree } from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { UserError } from "../ffi/errors.ts";
import { type Block, BlockBuilder, DOCUMENT_BYTES, type ReportBad } from "./block.ts";
import { ByteReader, type ByteSource } from "./bytes.ts";
import { type ColumnKind, decodePage, NO_VALUES, rowsOf, type Values } from "./parquet_page.ts";

/** Documents that need not be read because they are dropped anyway; readers that can pass over some count them off. */
export interface Skip {
  left: number;
}

/**
 * Checks that a parquet file is whole and has the text column, without reading the data.
 *
 * @throws {UserError} if it is not.
 */
export async function checkParquet(source: ByteSource, column: string): Promise<void> {
  textColumn(source, await readFooter(source), column);
}

/**
 * The texts of a column in the order of the file. Null is an empty document.
 *
 * @param skip Row groups that lie in it are passed over.
 * @throws {UserError} if the file is not parquet, is truncated, or has no such text column.
 */
export async function* readParquet(
  source: ByteSource,
  column: string,
  reportBad: ReportBad,
  skip: Skip,
): AsyncGenerator<Block> {
  const metadata = await readFooter(source), builder = new BlockBuilder();
  const schemaPath = textColumn(source, metadata, column), fileRows = Number(metadata.num_rows);
  let row = 0; // of the file
  const pass = (rows: number) => {
    builder.read += share(source.size, row + rows, fileRows) - share(source.size, row, fileRows);
    row += rows;
  };
  for (const [index, group] of metadata.row_groups.entries()) {
    const firstRow = row, groupRows = Number(group.num_rows);
    if (groupRows <= skip.left && builder.documents === 0) { // documents in the builder are not counted off yet
      skip.left -= groupRows;
      pass(groupRows);
      continue;
    }
    for await (const { values, bad } of readGroup(source, index, group, schemaPath, reportBad)) {
      appendValues(builder, values, (i) => `row ${row + i} of "${source.name}"`, reportBad);
      pass(values.starts.length + bad);
      if (builder.full) yield builder.take();
    }
    if (row !== firstRow + groupRows) {
      throw broken(
        source,
        `row group ${index} has ${row - firstRow} values in its pages, should have ${groupRows}`,
      );
    }
  }
  yield builder.take();
}

/** The bytes that so many of a file's rows stand for. */
function share(bytes: number, rows: number, fileRows: number): number {
  return Math.round(bytes * rows / fileRows);
}

/** Appends each value as a document, but for those that are too long. */
function appendValues(
  builder: BlockBuilder,
  { bytes, starts, ends }: Values,
  nameOf: (i: number) => string,
  reportBad: ReportBad,
): void {
  for (let i = 0; i < starts.length; i++) {
    const length = ends[i]! - starts[i]!;
    if (length > DOCUMENT_BYTES) {
      reportBad(
        `Cannot read ${
          nameOf(i)
        }: it has ${length} bytes, the limit for one document is ${DOCUMENT_BYTES}; split it`,
        1,
      );
      continue;
    }
    builder.append(bytes.subarray(starts[i], ends[i]));
    builder.end();
  }
}

// ---- footer: schema and the places of the columns

const MAGIC = 0x31524150; // "PAR1", at both ends of the file
const FOOTER_GUESS = 1 << 16; // bytes; a second request fetches what is longer

async function readFooter(source: ByteSource): Promise<FileMetaData> {
  const { size } = source;
  let tail = await readBytes(source, Math.max(0, size - FOOTER_GUESS), size);
  if (size < 12 || uint32(tail, tail.length - 4) !== MAGIC) throw await notParquet(source);
  const length = uint32(tail, tail.length - 8) + 8; // with its length and magic
  if (length > size - 4) throw broken(source, `its footer has ${length - 8} bytes, the file has ${size}`);
  if (length > tail.length) tail = await readBytes(source, size - length, size);
  try {
    return parquetMetadata(tail.slice(-length).buffer);
  } catch (error) {
    throw broken(source, `footer: ${(error as Error).message}`);
  }
}

async function notParquet(source: ByteSource): Promise<UserError> {
  const head = await readBytes(source, 0, Math.min(4, source.size));
  return head.length === 4 && uint32(head, 0) === MAGIC
    ? broken(source, "it begins like parquet but does not end with a footer and PAR1")
    : new UserError(`Cannot read "${source.name}": it is not a parquet file, which begins with PAR1`);
}

async function readBytes(source: ByteSource, from: number, to: number): Promise<Uint8Array<ArrayBuffer>> {
  const reader = new ByteReader(source.read(from, to));
  const bytes = await reader.peek(to - from);
  await reader.close();
  return bytes;
}

function uint32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

/** Root and leaf of the schema for a top-level text column. */
function textColumn(source: ByteSource, metadata: FileMetaData, name: string): SchemaTree[] {
  const root = parquetSchema(metadata);
  const column = root.children.find((child) => child.element.name === name);
  if (column !== undefined && isText(column)) return [root, column];
  const columns = root.children.map((child) => `${child.element.name} (${typeOf(child)})`).join(", ");
  throw new UserError(
    column === undefined
      ? `Cannot read "${source.name}": it has no column "${name}"; choose one with --column, it has: ${columns}`
      : `Cannot read "${source.name}": column "${name}" is ${typeOf(column)}, should be text; ` +
        `choose another with --column, it has: ${columns}`,
  );
}

function isText({ element, children }: SchemaTree): boolean {
  const annotated = element.converted_type === "UTF8" || element.logical_type?.type === "STRING";
  return children.length === 0 && element.repetition_type !== "REPEATED" && annotated;
}

function typeOf(column: SchemaTree): string {
  const { type, converted_type, logical_type } = column.element;
  if (isText(column)) return "text";
  return (logical_type?.type ?? converted_type ?? type ?? "nested").toLowerCase();
}

// ---- pages

/** What a data page holds, or the number of rows that cannot be read. */
interface Page {
  values: Values;
  bad: number;
}

/** The data pages of a row group. */
async function* readGroup(
  source: ByteSource,
  index: number,
  group: RowGroup,
  schemaPath: SchemaTree[],
  reportBad: ReportBad,
): AsyncGenerator<Page> {
  const { column, start, end } = columnChunk(source, index, group, schemaPath);
  const reader = new ByteReader(source.read(start, end));
  const bad = (at: number, error: unknown, rows: number): Page => {
    const where = `row group ${index}, page at byte ${at}`;
    reportBad(broken(source, `${where}: ${(error as Error).message}`).message, rows);
    return { values: NO_VALUES, bad: rows };
  };
  let dictionary: Values | undefined;
  try {
    for (let at = start, left = Number(group.num_rows); at < end;) {
      let header: PageHeader, size: number;
      try {
        ({ header, size } = await readHeader(reader, end - at, left));
      } catch (error) {
        if (error instanceof UserError) throw error;
        yield bad(at, error, left); // where the next page begins is not known
        return;
      }
      const bytes = (await reader.peek(size)).slice(size - header.compressed_page_size); // its dictionary outlives it
      try {
        const values = decodePage(bytes, header, column, dictionary);
        if (header.type === "DICTIONARY_PAGE") dictionary = values;
        else yield { values, bad: 0 };
      } catch (error) {
        yield bad(at, error, rowsOf(header));
      }
      reader.skip(size);
      at += size;
      left -= rowsOf(header);
    }
  } finally {
    await reader.close();
  }
}

/** How the text column of a row group is stored, and where in the file. */
function columnChunk(
  source: ByteSource,
  index: number,
  group: RowGroup,
  schemaPath: SchemaTree[],
): { column: ColumnKind; start: number; end: number } {
  const { element, path } = schemaPath[1]!;
  const meta_data = group.columns.find((column) =>
    column.meta_data?.path_in_schema.join(".") === path.join(".")
  )?.meta_data;
  if (meta_data === undefined) throw broken(source, `row group ${index} lacks column "${element.name}"`);
  const { dictionary_page_offset, data_page_offset, total_compressed_size, codec } = meta_data;
  const start = Math.min(Number(dictionary_page_offset || data_page_offset), Number(data_page_offset));
  const end = start + Number(total_compressed_size);
  if (start < 4 || end > source.size) {
    throw broken(source, `row group ${index} stands at bytes ${start} to ${end} of ${source.size}`);
  }
  return { column: { codec, nullable: element.repetition_type !== "REQUIRED" }, start, end };
}

/**
 * The header of the next page, and the bytes of both. The length of a header is known only once it is parsed.
 *
 * @param available Bytes of the column chunk that are left.
 * @param rows Rows of the row group that are left.
 */
async function readHeader(
  reader: ByteReader,
  available: number,
  rows: number,
): Promise<{ header: PageHeader; size: number }> {
  for (let guess = 4096;; guess *= 16) {
    const bytes = await reader.peek(Math.min(guess, available));
    const place = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length), offset: 0 };
    let header: PageHeader;
    try {
      header = parquetHeader(place);
    } catch (error) {
      if (bytes.length < available) continue;
      throw error;
    }
    const size = place.offset + header.compressed_page_size;
    if (!(header.compressed_page_size >= 0) || size > available) {
      throw new Error(`it has ${size} bytes, ${available} are left`);
    }
    if (rowsOf(header) > rows) throw new Error(`it has ${rowsOf(header)} rows, ${rows} are left`);
    return { header, size };
  }
}

function broken(source: ByteSource, what: string): UserError {
  return new UserError(
    `Cannot read "${source.name}": ${what}; the file is truncated or corrupt, fetch it again`,
  );
}
