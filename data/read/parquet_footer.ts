// What the footer of a parquet file says about a text column, checked before anything of the file is read.
import { type FileMetaData, parquetMetadata, parquetSchema, type RowGroup, type SchemaTree } from "hyparquet";
import { UserError } from "../../base/errors.ts";
import { ByteReader, type ByteSource } from "./bytes.ts";
import type { ColumnKind } from "./parquet_page.ts";

/** A text column of a file. */
export type TextColumn = {
  /** Rows of the file. */
  rows: number;
  /** Its part in each row group. */
  chunks: ColumnChunk[];
};

/** The part of a column in one row group. */
export type ColumnChunk = ColumnKind & {
  /** Rows of the row group. */
  rows: number;
  /** First byte of its pages in the file. */
  start: number;
  /** Behind their last byte. */
  end: number;
  /** All rows are null and no page is needed. */
  allNull: boolean;
};

const MAGIC = 0x31524150; // "PAR1", at both ends of the file,
const ENCRYPTED_MAGIC = 0x45524150; // or "PARE", if its footer is encrypted
const FOOTER_GUESS = 1 << 16; // bytes; a second request fetches what is longer

/**
 * Finds a text column at the top level of a parquet file. Throws UserError if the file is not parquet, is truncated
 * or corrupt, or has no such column.
 */
export async function openTextColumn(source: ByteSource, name: string): Promise<TextColumn> {
  const footer = await readFooter(source);
  const { metadata, root } = parsed(source, () => {
    const metadata = parquetMetadata(footer.buffer, { geoparquet: false }); // true may go on forever on damage
    return { metadata, root: parquetSchema(metadata) };
  });
  const leaf = findTextColumn(source, root, name);
  return parsed(source, () => placeColumn(source, metadata, leaf));
}

/** The footer with its length and magic. */
async function readFooter(source: ByteSource): Promise<Uint8Array<ArrayBuffer>> {
  const { size } = source, tail = await readBytes(source, Math.max(0, size - FOOTER_GUESS), size);
  if (size < 12 || uint32(tail, tail.length - 4) !== MAGIC) throw await notParquet(source);
  const length = uint32(tail, tail.length - 8) + 8;
  if (length > size - 4) {
    throw brokenParquet(source, `its footer has ${length - 8} bytes, the file has ${size}`);
  }
  return length <= tail.length ? tail.slice(-length) : await readBytes(source, size - length, size);
}

async function notParquet(source: ByteSource): Promise<UserError> {
  const head = await readBytes(source, 0, Math.min(4, source.size));
  const magic = head.length === 4 ? uint32(head, 0) : undefined;
  if (magic === MAGIC) {
    return brokenParquet(source, "it begins like parquet but does not end with a footer and PAR1");
  }
  if (magic === ENCRYPTED_MAGIC) return encrypted(source, "it");
  return new UserError(`Cannot read "${source.name}": it is not a parquet file, which begins with PAR1`);
}

function encrypted(source: ByteSource, what: string): UserError {
  return new UserError(
    `Cannot read "${source.name}": ${what} is encrypted, which cannot be read; write it again without encryption`,
  );
}

async function readBytes(source: ByteSource, from: number, to: number): Promise<Uint8Array<ArrayBuffer>> {
  const reader = new ByteReader(source.read(from, to));
  const bytes = (await reader.peek(to - from)).slice();
  await reader.close();
  return bytes;
}

function uint32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

/** What a parser gives; where it stumbles over damage, an error for the user. */
function parsed<T>(source: ByteSource, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw brokenParquet(source, `footer: ${(error as Error).message}`);
  }
}

function findTextColumn(source: ByteSource, root: SchemaTree, name: string): SchemaTree {
  const column = root.children.find((child) => child.element.name === name);
  if (column !== undefined && (isText(column) || isNull(column))) return column;
  const columns = root.children.map((child) => `${child.element.name} (${typeOf(child)})`).join(", ");
  throw new UserError(
    column === undefined
      ? `Cannot read "${source.name}": it has no column "${name}"; choose one with --column, it has: ${columns}`
      : `Cannot read "${source.name}": column "${name}" is ${typeOf(column)}, should be text; ` +
        `choose another with --column, it has: ${columns}`,
  );
}

function isText(column: SchemaTree): boolean {
  const { element } = column;
  const annotated = element.converted_type === "UTF8" || element.logical_type?.type === "STRING";
  return isSingle(column) && element.type === "BYTE_ARRAY" && annotated;
}

/** Whether a column has no type, as writers give one without a value, however other parts of the same data have it. */
function isNull(column: SchemaTree): boolean {
  return isSingle(column) && column.element.logical_type?.type === "NULL";
}

function isSingle({ element, children }: SchemaTree): boolean {
  return children.length === 0 && element.repetition_type !== "REPEATED";
}

function typeOf(column: SchemaTree): string {
  const { type, converted_type, logical_type } = column.element;
  if (isText(column)) return "text";
  return (logical_type?.type ?? converted_type ?? type ?? "nested").toLowerCase();
}

function placeColumn(source: ByteSource, metadata: FileMetaData, leaf: SchemaTree): TextColumn {
  const chunks = metadata.row_groups.map((group, index) => placeChunk(source, group, index, leaf));
  const rows = chunks.reduce((sum, chunk) => sum + chunk.rows, 0);
  if (rows !== Number(metadata.num_rows)) {
    throw brokenParquet(source, `its row groups have ${rows} rows, its footer says ${metadata.num_rows}`);
  }
  return { rows, chunks };
}

function placeChunk(
  source: ByteSource,
  group: RowGroup,
  index: number,
  leaf: SchemaTree,
): ColumnChunk {
  const { element, path } = leaf;
  const rows = Number(group.num_rows);
  if (!(rows >= 0)) throw brokenParquet(source, `row group ${index} has ${rows} rows`);
  const { meta_data, crypto_metadata } =
    group.columns.find((column) => column.meta_data?.path_in_schema.join(".") === path.join(".")) ?? {};
  if (crypto_metadata !== undefined) throw encrypted(source, `column "${element.name}"`);
  if (meta_data === undefined) {
    throw brokenParquet(source, `row group ${index} lacks column "${element.name}"`);
  }
  const { dictionary_page_offset, data_page_offset, total_compressed_size, codec } = meta_data;
  const start = Math.min(Number(dictionary_page_offset || data_page_offset), Number(data_page_offset));
  const end = start + Number(total_compressed_size);
  if (rows > 0 && !(start >= 4 && start <= end && end <= source.size)) {
    throw brokenParquet(source, `row group ${index} stands at bytes ${start} to ${end} of ${source.size}`);
  }
  return { rows, start, end, codec, nullable: element.repetition_type !== "REQUIRED", allNull: isNull(leaf) };
}

/** The error for a file that is not what it says. */
export function brokenParquet(
  source: ByteSource,
  what: string,
  advice = "the file is truncated or corrupt, fetch it again",
): UserError {
  return new UserError(`Cannot read "${source.name}": ${what}; ${advice}`);
}
