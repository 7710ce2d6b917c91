// The text column of a parquet file, page by page, so that memory stays bounded however large the row groups are (pandas
// writes up to a million rows in one) and nothing of the other columns is read. hyparquet parses; this file walks row
// groups and pages, and says where one cannot be read.
import type { PageHeader } from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { UserError } from "../../ffi/errors.ts";
import { type Block, BlockBuilder, DOCUMENT_BYTES, type ReportBad } from "./block.ts";
import { ByteReader, type ByteSource } from "./bytes.ts";
import { brokenParquet, type ColumnChunk, openTextColumn } from "./parquet_footer.ts";
import { notUtf8 } from "./utf8.ts";
import { decodePage, NO_VALUES, rowsOf, type Values } from "./parquet_page.ts";

/** Documents that need not be read because they are dropped anyway; readers that can pass over some count them off. */
export interface Skip {
  left: number;
}

/**
 * The texts of a column in the order of the file. Null is an empty document.
 *
 * @param skip Row groups that lie in it are passed over.
 * @throws {UserError} as openTextColumn(), and for pages that cannot be read.
 */
export async function* readParquet(
  source: ByteSource,
  column: string,
  reportBad: ReportBad,
  skip: Skip,
): AsyncGenerator<Block> {
  const { chunks, rows: fileRows } = await openTextColumn(source, column), builder = new BlockBuilder();
  const nameOf = (row: number) => `row ${row} of "${source.name}"`;
  const reportEncoding = (row: number, at: number, byte: number) =>
    reportBad(notUtf8(nameOf(row), at, byte), 1);
  let row = 0; // of the file
  const advance = (rows: number) => {
    builder.read += share(source.size, row + rows, fileRows) - share(source.size, row, fileRows);
    row += rows;
  };
  for (const [index, chunk] of chunks.entries()) {
    const groupEnd = row + chunk.rows;
    if (chunk.rows <= skip.left && builder.documents === 0) { // those in the builder are not counted off yet
      skip.left -= chunk.rows;
      advance(chunk.rows);
      continue;
    }
    for await (const { values, bad } of readPages(source, chunk, index, reportBad)) {
      appendValues(builder, values, row, nameOf, reportBad);
      advance(values.starts.length + bad);
      if (builder.full) yield builder.takeValid(reportEncoding);
    }
    const missing = groupEnd - row;
    if (missing > 0) {
      const what = `row group ${index} has ${
        chunk.rows - missing
      } values in its pages, should have ${chunk.rows}`;
      reportBad(brokenParquet(source, what).message, missing);
      advance(missing);
    }
  }
  yield builder.takeValid(reportEncoding);
}

/** The bytes that so many of a file's rows stand for. */
function share(bytes: number, rows: number, fileRows: number): number {
  return Math.round(bytes * rows / fileRows);
}

/** Appends each value as a document, but for those that are too long. row: number of the first. */
function appendValues(
  builder: BlockBuilder,
  { bytes, starts, ends }: Values,
  row: number,
  nameOf: (row: number) => string,
  reportBad: ReportBad,
): void {
  for (let i = 0; i < starts.length; i++) {
    const length = ends[i]! - starts[i]!;
    if (length > DOCUMENT_BYTES) {
      const what = `it has ${length} bytes, the limit for one document is ${DOCUMENT_BYTES}; split it`;
      reportBad(`Cannot read ${nameOf(row + i)}: ${what}`, 1);
      continue;
    }
    builder.append(bytes.subarray(starts[i], ends[i]));
    builder.end(row + i);
  }
}

// ---- pages

/** What a data page holds, or the number of rows that cannot be read. */
interface Page {
  values: Values;
  bad: number;
}

/** The data pages of a column chunk. */
async function* readPages(
  source: ByteSource,
  chunk: ColumnChunk,
  index: number,
  reportBad: ReportBad,
): AsyncGenerator<Page> {
  const { start, end } = chunk, reader = new ByteReader(source.read(start, end));
  const bad = (at: number, error: unknown, rows: number): Page => {
    const what = `row group ${index}, page at byte ${at}: ${(error as Error).message}`;
    reportBad(brokenParquet(source, what).message, rows);
    return { values: NO_VALUES, bad: rows };
  };
  let dictionary: Values | undefined;
  try {
    for (let at = start, left = chunk.rows; at < end;) {
      let header: PageHeader, size: number;
      try {
        ({ header, size } = await readHeader(reader, end - at, left));
      } catch (error) {
        if (error instanceof UserError) throw error;
        yield bad(at, error, left); // where the next page begins is not known
        return;
      }
      const bytes = (await reader.peek(size)).slice(size - header.compressed_page_size); // a dictionary is kept
      try {
        const values = decodePage(bytes, header, chunk, dictionary);
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
    const inPage = rowsOf(header); // damage can make it anything
    if (!Number.isInteger(inPage) || inPage < 0 || inPage > rows) {
      throw new Error(`it has ${inPage} rows, ${rows} are left`);
    }
    return { header, size };
  }
}
