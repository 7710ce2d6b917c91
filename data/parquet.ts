// The text column of a parquet file, page by page, so that memory stays bounded however large the row groups are (pandas
// writes up to a million rows in one) and nothing of the other columns is read. hyparquet decodes; this file walks row
// groups and pages, and explains what is wrong.
import { parquetMetadata, parquetSchema } from "hyparquet";
import type { FileMetaData, PageHeader, RowGroup, SchemaTree } from "hyparquet";
import { parquetHeader, readPage } from "hyparquet/src/column.js";
import { DEFAULT_PARSERS } from "hyparquet/src/convert.js";
import type { ColumnDecoder } from "hyparquet/src/types.js";
import { compressors } from "hyparquet-compressors";
import { UserError } from "../ffi/errors.ts";
import { type Block, BlockBuilder, DOCUMENT_BYTES, type ReportBad } from "./block.ts";
import { ByteReader, type ByteSource } from "./bytes.ts";

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
  const metadata = await readFooter(source);
  const schemaPath = textColumn(source, metadata, column);
  const bytesPerRow = source.size / Number(metadata.num_rows);
  const builder = new BlockBuilder();
  let row = 0; // of the file
  for (const [index, group] of metadata.row_groups.entries()) {
    const groupRows = Number(group.num_rows);
    if (groupRows <= skip.left) {
      skip.left -= groupRows;
      builder.read += groupRows * bytesPerRow;
      row += groupRows;
      continue;
    }
    const groupEnd = row + groupRows;
    for await (const page of readGroup(source, index, group, schemaPath, reportBad)) {
      for (const value of page.values) {
        row++;
        if (value !== null && value.length > DOCUMENT_BYTES) {
          reportBad(
            `Cannot read row ${row - 1} of "${source.name}": it has ${value.length} bytes, ` +
              `the limit for one document is ${DOCUMENT_BYTES}`,
            1,
          );
          continue;
        }
        if (value !== null) builder.append(value);
        builder.end();
      }
      row += page.bad;
      builder.read += (page.values.length + page.bad) * bytesPerRow;
      if (builder.full) yield builder.take();
    }
    if (row !== groupEnd) {
      throw broken(
        source,
        `row group ${index} has ${row - groupEnd + groupRows} values in its pages, should have ${groupRows}`,
      );
    }
  }
  yield builder.take();
}

// ---- footer: schema and the places of the columns

const MAGIC = 0x31524150; // "PAR1", at both ends of the file
const FOOTER_GUESS = 1 << 19; // bytes that hold most footers

async function readFooter(source: ByteSource): Promise<FileMetaData> {
  const { size } = source;
  let tail = await readBytes(source, Math.max(0, size - FOOTER_GUESS), size);
  if (size < 12 || uint32(tail, tail.length - 4) !== MAGIC) throw await notParquet(source);
  const length = uint32(tail, tail.length - 8) + 8;
  if (length > size - 4) throw broken(source, `it ends with a footer of ${length} bytes, it has ${size}`);
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

type Value = Uint8Array<ArrayBuffer> | null;

/** What a page holds, or the number of rows that cannot be read. */
interface Page {
  values: Value[];
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
  const { decoder, start, end } = columnChunk(source, index, group, schemaPath);
  const reader = new ByteReader(source.read(start, end));
  let dictionary: Value[] | undefined;
  let rows = 0;
  const report = (at: number, error: unknown, bad: number): Page => {
    const message = `row group ${index}, page at byte ${at}: ${(error as Error).message}`;
    reportBad(broken(source, message).message, bad);
    return { values: [], bad };
  };
  try {
    for (let at = start; at < end;) {
      let header: PageHeader, size: number;
      try {
        ({ header, size } = await readHeader(reader, end - at));
      } catch (error) {
        if (error instanceof UserError) throw error;
        yield report(at, error, Number(group.num_rows) - rows); // where the next page begins is not known
        return;
      }
      const bytes = (await reader.peek(size)).slice(size - header.compressed_page_size); // no view reaches past it
      const inPage = rowsOf(header);
      try {
        const values = decodePage(bytes, header, decoder, dictionary);
        if (header.type === "DICTIONARY_PAGE") dictionary = values;
        else if (values.length > 0) yield { values, bad: 0 };
      } catch (error) {
        yield report(at, error, inPage);
      }
      rows += inPage;
      reader.skip(size);
      at += size;
    }
  } finally {
    await reader.close();
  }
}

/** How to decode the text column of a row group, and where it lies in the file. */
function columnChunk(
  source: ByteSource,
  index: number,
  group: RowGroup,
  schemaPath: SchemaTree[],
): { decoder: ColumnDecoder; start: number; end: number } {
  const leaf = schemaPath[1]!;
  const meta_data = group.columns.find((column) =>
    column.meta_data?.path_in_schema.join(".") === leaf.path.join(".")
  )?.meta_data;
  if (meta_data === undefined) throw broken(source, `row group ${index} lacks column "${leaf.element.name}"`);
  const decoder: ColumnDecoder = {
    pathInSchema: meta_data.path_in_schema,
    type: meta_data.type,
    element: leaf.element,
    schemaPath,
    codec: meta_data.codec,
    parsers: { ...DEFAULT_PARSERS, stringFromBytes: (bytes: Uint8Array) => bytes }, // no strings
    compressors,
  };
  const { dictionary_page_offset, data_page_offset } = meta_data;
  const start = Math.min(Number(dictionary_page_offset || data_page_offset), Number(data_page_offset));
  const end = start + Number(meta_data.total_compressed_size);
  if (start < 4 || end > source.size) {
    throw broken(source, `row group ${index} stands at bytes ${start} to ${end} of ${source.size}`);
  }
  return { decoder, start, end };
}

/** The header of the next page, and the bytes of both. The length of a header is known only once it is parsed. */
async function readHeader(
  reader: ByteReader,
  available: number,
): Promise<{ header: PageHeader; size: number }> {
  for (let guess = 4096;; guess *= 16) {
    const bytes = await reader.peek(Math.min(guess, available));
    const place = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length), offset: 0 };
    try {
      const header = parquetHeader(place);
      const size = place.offset + header.compressed_page_size;
      if (!(header.compressed_page_size >= 0) || size > available) throw new Error(`page of ${size} bytes`);
      return { header, size };
    } catch (error) {
      if (bytes.length === available) throw error;
    }
  }
}

/** Rows of a page, of which none is in a dictionary. */
function rowsOf({ data_page_header, data_page_header_v2 }: PageHeader): number {
  return data_page_header?.num_values ?? data_page_header_v2?.num_rows ?? 0;
}

/** The values of a data or dictionary page; throws if they are not what its header says. */
function decodePage(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  decoder: ColumnDecoder,
  dictionary: Value[] | undefined,
): Value[] {
  const place = { view: new DataView(bytes.buffer), offset: 0 };
  const { data } = readPage(place, header, decoder, dictionary, undefined, 0);
  const values = Array.from<unknown>(data ?? []), rows = rowsOf(header);
  if (header.type !== "DICTIONARY_PAGE" && values.length !== rows) {
    throw new Error(`it has ${values.length} values, should have ${rows}`);
  }
  if (!values.every(isValue)) throw new Error("a value is not in the dictionary");
  return values;
}

function isValue(value: unknown): value is Value {
  return value === null || value instanceof Uint8Array;
}

function broken(source: ByteSource, what: string): UserError {
  return new UserError(
    `Cannot read "${source.name}": ${what}; the file is truncated or corrupt, fetch it again`,
  );
}
