// The text column of a parquet file, page by page, so that memory stays bounded however large the row groups are (pandas
// writes up to a million rows in one) and nothing of the other columns is read. hyparquet parses; this file walks row
// groups and pages, and says where one cannot be read.
import type { PageHeader } from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { UserError } from "../../base/errors.ts";
import { type Block, BlockBuilder, DOCUMENT_BYTES } from "./block.ts";
import { ByteReader, type ByteSource } from "./bytes.ts";
import { brokenParquet, type ColumnChunk, openTextColumn } from "./parquet_footer.ts";
import { decodeDictionary, type Dictionary, type NextValue, NULL, openPage, rowsOf } from "./parquet_page.ts";
import { notUtf8, type ReportBad } from "./utf8.ts";

/** Bytes that a page may have. Writers aim at a megabyte, fastparquet at 500. */
const PAGE_BYTES = 1 << 30;

/** Documents that need not be read because they are dropped anyway; readers that can pass over some count them off. */
export type Skip = {
  /** How many are still to be passed over. */
  left: number;
};

/**
 * The texts of a column in the order of the file. Null is an empty document. Throws UserError as openTextColumn(),
 * and for pages that cannot be read.
 *
 * @param skip Row groups that lie in it are passed over.
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
  let row = 0, counted = 0; // rows of the file that were read, and its bytes that stand for those in blocks
  const take = (): Block => {
    const read = fileRows === 0 ? source.size : Math.round(source.size * row / fileRows);
    builder.read += read - counted;
    counted = read;
    return builder.takeValid(reportEncoding);
  };
  for (const [index, chunk] of chunks.entries()) {
    const groupEnd = row + chunk.rows;
    if (chunk.rows <= skip.left && builder.documents === 0) { // those in the builder are not counted off yet
      skip.left -= chunk.rows;
      row = groupEnd;
      continue;
    }
    const reportRows = (rows: number, what: string, advice?: string): void => {
      row += rows;
      reportBad(brokenParquet(source, `row group ${index}${what}`, advice).message, rows);
    };
    for await (const { at, rows, open } of readPages(source, chunk)) {
      const pageEnd = row + rows;
      try {
        for (const next = open(); row < pageEnd; row++) {
          const { bytes, start, end } = next();
          if (end - start > DOCUMENT_BYTES) {
            reportBad(tooLong(nameOf(row), end - start), 1);
            continue;
          }
          builder.append(bytes.subarray(start, end));
          builder.end(row);
          if (builder.full) yield take();
        }
      } catch (error) {
        if (error instanceof UserError) throw error;
        const advice = error instanceof PageTooLarge ? "write it again with smaller pages" : undefined;
        reportRows(pageEnd - row, `, page at byte ${at}: ${(error as Error).message}`, advice);
      }
    }
    const missing = groupEnd - row;
    if (missing > 0) {
      reportRows(missing, ` has ${chunk.rows - missing} values in its pages, should have ${chunk.rows}`);
    }
  }
  yield take();
}

function tooLong(name: string, length: number): string {
  return `Cannot read ${name}: it has ${length} bytes, the limit for one document is ${DOCUMENT_BYTES}; split it`;
}

// ---- pages

/** A page with rows. */
type Page = {
  /** Where it begins in the file. */
  at: number;
  rows: number;
  /** Until the next page is asked for. Throws Error if it cannot be read. */
  open: () => NextValue;
};

/**
 * The pages of a column chunk that have rows. One that cannot be opened stands for a dictionary that cannot be read, or for
 * all rows that are left behind a page without a header.
 */
async function* readPages(source: ByteSource, chunk: ColumnChunk): AsyncGenerator<Page> {
  const { start, end, rows } = chunk;
  if (chunk.allNull) return yield { at: start, rows, open: () => () => NULL };
  const reader = new ByteReader(source.read(start, end));
  let dictionary: Dictionary | undefined;
  try {
    for (let at = start, left = rows; left > 0 && at < end;) {
      const next = await readHeader(reader, end - at, left).catch((error) => error as Error);
      if (next instanceof UserError) throw next;
      if (next instanceof Error) return yield unreadable(at, left, next);
      const { header, size } = next,
        bytes = (await reader.peek(size)).subarray(size - header.compressed_page_size);
      if (header.type === "DICTIONARY_PAGE") {
        try {
          dictionary = decodeDictionary(bytes, header, chunk);
        } catch (error) {
          yield unreadable(at, 0, error);
        }
      } else if (rowsOf(header) > 0) {
        yield { at, rows: rowsOf(header), open: () => openPage(bytes, header, chunk, dictionary) };
      }
      reader.skip(size);
      at += size;
      left -= rowsOf(header);
    }
  } finally {
    await reader.close();
  }
}

function unreadable(at: number, rows: number, error: unknown): Page {
  return {
    at,
    rows,
    open: () => {
      throw error;
    },
  };
}

/** A page that is left alone. */
class PageTooLarge extends Error {}

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
    const larger = Math.max(header.compressed_page_size, header.uncompressed_page_size);
    if (larger > PAGE_BYTES) throw new PageTooLarge(`it has ${larger} bytes, the limit is ${PAGE_BYTES}`);
    const inPage = rowsOf(header); // damage can make it anything
    if (!Number.isInteger(inPage) || inPage < 0 || inPage > rows) {
      throw new Error(`it has ${inPage} rows, ${rows} are left`);
    }
    return { header, size };
  }
}
