// The text column of a parquet file, page by page, so that memory stays bounded however large the row groups are (pandas
// writes up to a million rows in one). hyparquet decodes; this file walks row groups and pages and explains what is wrong.
import { parquetMetadata, parquetSchema } from "hyparquet";
import type { FileMetaData, PageHeader, RowGroup, SchemaTree } from "hyparquet";
import { parquetHeader, readPage } from "hyparquet/src/column.js";
import { convert, DEFAULT_PARSERS } from "hyparquet/src/convert.js";
import type { ColumnDecoder } from "hyparquet/src/types.js";
import { compressors } from "hyparquet-compressors";
import { UserError } from "../ffi/errors.ts";
import { FileWindow } from "./old_file_window.ts";

/** Texts read at once, null where there is none, and the bytes of input that they took. */
export interface Batch {
  texts: (string | null)[];
  bytes: number;
}

/**
 * Checks that a parquet file is whole and has the text column, without reading the data.
 *
 * @throws {UserError} if it is not.
 */
export function checkParquet(path: string, column: string): void {
  using file = new FileWindow(path);
  textColumn(file, readFooter(file), column);
}

/**
 * The texts of a column in the order of the file.
 *
 * @throws {UserError} if the file is not parquet, is truncated or corrupt, or has no such text column.
 */
export function* readParquet(path: string, column: string): Generator<Batch> {
  using file = new FileWindow(path);
  const metadata = readFooter(file);
  const schemaPath = textColumn(file, metadata, column);
  const bytesPerRow = file.size / Number(metadata.num_rows);
  for (const [index, group] of metadata.row_groups.entries()) {
    if (Number(group.num_rows) === 0) continue; // it has no pages either
    let rows = 0;
    for (const texts of readGroup(file, index, group, schemaPath)) {
      rows += texts.length;
      yield { texts, bytes: texts.length * bytesPerRow };
    }
    if (rows !== Number(group.num_rows)) {
      throw broken(file, `row group ${index} has ${rows} values in its pages, should have ${group.num_rows}`);
    }
  }
}

// ---- footer: schema and the places of the columns

const MAGIC = 0x31524150; // "PAR1", at both ends of the file

function readFooter(file: FileWindow): FileMetaData {
  const { size } = file;
  if (size < 12 || file.view(0, 4).getUint32(0, true) !== MAGIC) {
    throw new UserError(`Cannot read "${file.path}": it is not a parquet file, which begins with PAR1`);
  }
  const end = file.view(size - 8, 8);
  const length = end.getUint32(0, true);
  if (end.getUint32(4, true) !== MAGIC || length > size - 12) {
    throw broken(file, "it begins like parquet but does not end with a footer and PAR1");
  }
  try {
    return parquetMetadata(file.bytes(size - 8 - length, length + 8));
  } catch (error) {
    throw broken(file, `footer: ${(error as Error).message}`);
  }
}

/** Root and leaf of the schema for a top-level text column. */
function textColumn(file: FileWindow, metadata: FileMetaData, name: string): SchemaTree[] {
  const root = parquetSchema(metadata);
  const column = root.children.find((child) => child.element.name === name);
  if (column !== undefined && isText(column)) return [root, column];
  const columns = root.children.map((child) => `${child.element.name} (${typeOf(child)})`).join(", ");
  throw new UserError(
    column === undefined
      ? `Cannot read "${file.path}": it has no column "${name}"; choose one with --column, it has: ${columns}`
      : `Cannot read "${file.path}": column "${name}" is ${typeOf(column)}, should be text; ` +
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

/** The texts of each data page of a row group. */
function* readGroup(
  file: FileWindow,
  index: number,
  group: RowGroup,
  schemaPath: SchemaTree[],
): Generator<(string | null)[]> {
  const leaf = schemaPath[1]!;
  const chunk = group.columns.find((column) =>
    column.meta_data?.path_in_schema.join(".") === leaf.path.join(".")
  );
  if (chunk?.meta_data === undefined) {
    throw broken(file, `row group ${index} lacks column "${leaf.element.name}"`);
  }
  const { meta_data } = chunk;
  const decoder: ColumnDecoder = {
    pathInSchema: meta_data.path_in_schema,
    type: meta_data.type,
    element: leaf.element,
    schemaPath,
    codec: meta_data.codec,
    parsers: { ...DEFAULT_PARSERS, stringFromBytes },
    compressors,
  };
  const { dictionary_page_offset, data_page_offset } = meta_data;
  const start = Math.min(Number(dictionary_page_offset || data_page_offset), Number(data_page_offset));
  const end = start + Number(meta_data.total_compressed_size);
  if (start < 4 || end > file.size) {
    throw broken(file, `row group ${index} stands at bytes ${start} to ${end} of ${file.size}`);
  }

  let dictionary: ReturnType<typeof convert> | undefined;
  for (let at = start; at < end;) {
    let texts: (string | null)[] = [];
    try {
      const { header, headerBytes } = pageHeader(file, at, end);
      const size = headerBytes + header.compressed_page_size;
      if (!(header.compressed_page_size >= 0) || at + size > end) throw new Error(`page of ${size} bytes`);
      const reader = { view: file.view(at, size), offset: headerBytes };
      const { data } = readPage(reader, header, decoder, dictionary, undefined, 0);
      if (header.type === "DICTIONARY_PAGE") dictionary = convert(data ?? [], decoder);
      else texts = data as (string | null)[];
      at += size;
    } catch (error) {
      throw broken(file, `row group ${index}, page at byte ${at}: ${(error as Error).message}`);
    }
    if (texts.length > 0) yield texts;
  }
}

/** The header of the page at a byte; its length is known only once it is parsed. */
function pageHeader(file: FileWindow, at: number, end: number): { header: PageHeader; headerBytes: number } {
  for (let guess = 4096;; guess *= 16) {
    const available = Math.min(guess, end - at);
    const reader = { view: file.view(at, available), offset: 0 };
    try {
      return { header: parquetHeader(reader), headerBytes: reader.offset };
    } catch (error) {
      if (available === end - at) throw error;
    }
  }
}

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true }); // a document may begin with U+FEFF

function stringFromBytes(bytes: Uint8Array): string {
  return utf8.decode(bytes);
}

function broken(file: FileWindow, what: string): UserError {
  return new UserError(
    `Cannot read "${file.path}": ${what}; the file is truncated or corrupt, fetch it again`,
  );
}
