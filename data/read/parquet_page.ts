// The values of a text column in one page of a parquet file, as places in the page, so that nothing is made per value.
import { crc32 } from "node:zlib";
import type { PageHeader } from "hyparquet";
import { deltaBinaryUnpack, deltaByteArray } from "hyparquet/src/delta.js";
import { readVarInt } from "hyparquet/src/thrift.js";
import { decompressPage } from "./compression.ts";

/** Value i is bytes[starts[i] .. ends[i]); null has no bytes. */
export interface Values {
  bytes: Uint8Array<ArrayBuffer>;
  starts: Uint32Array;
  ends: Uint32Array;
}

/** No values. */
export const NO_VALUES: Values = {
  bytes: new Uint8Array(),
  starts: new Uint32Array(),
  ends: new Uint32Array(),
};

/** How a column is stored. */
export interface ColumnKind {
  /** Compression of its pages, as the metadata has it, such as SNAPPY. */
  codec: string;
  /** Values may be null. */
  nullable: boolean;
}

/** Rows of a page, of which none is in a dictionary. */
export function rowsOf({ data_page_header, data_page_header_v2 }: PageHeader): number {
  return data_page_header?.num_values ?? data_page_header_v2?.num_rows ?? 0;
}

/**
 * Decodes a page.
 *
 * @param bytes What follows its header.
 * @param dictionary What was decoded from the dictionary page of the same column chunk, if it has one.
 * @returns Entries of a dictionary page, rows of a data page, nothing of any other.
 * @throws {Error} if the page is not what its header says.
 */
export function decodePage(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  column: ColumnKind,
  dictionary: Values | undefined,
): Values {
  if (header.crc !== undefined && crc32(bytes) !== header.crc >>> 0) {
    throw new Error(`its checksum is ${crc32(bytes)}, should be ${header.crc >>> 0}`);
  }
  const { num_values = 0 } = header.dictionary_page_header ?? {};
  switch (header.type) {
    case "DICTIONARY_PAGE":
      return plainValues(decompressPage(bytes, column.codec, header.uncompressed_page_size), 0, num_values);
    case "DATA_PAGE":
      return dataPage(bytes, header, column, dictionary);
    case "DATA_PAGE_V2":
      return dataPageV2(bytes, header, column, dictionary);
    default:
      return NO_VALUES;
  }
}

/** Version 1: definition levels, after their length, and values, compressed together. */
function dataPage(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  { codec, nullable }: ColumnKind,
  dictionary: Values | undefined,
): Values {
  const page = decompressPage(bytes, codec, header.uncompressed_page_size);
  const { num_values, encoding } = header.data_page_header!;
  if (!nullable) return decodeValues(page, 0, num_values, encoding, dictionary);
  const levelsEnd = 4 + uint32(page, 0);
  const levels = readHybrid(page, 4, levelsEnd, 1, num_values);
  return spread(levels, decodeValues(page, levelsEnd, count(levels), encoding, dictionary));
}

/** Version 2: definition levels, never compressed, and values. */
function dataPageV2(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  { codec, nullable }: ColumnKind,
  dictionary: Values | undefined,
): Values {
  const { num_rows, encoding, definition_levels_byte_length: levelsEnd, is_compressed } = header
    .data_page_header_v2!;
  const rest = bytes.slice(levelsEnd);
  const page = is_compressed ? decompressPage(rest, codec, header.uncompressed_page_size - levelsEnd) : rest;
  if (!nullable) return decodeValues(page, 0, num_rows, encoding, dictionary);
  const levels = readHybrid(bytes, 0, levelsEnd, 1, num_rows);
  return spread(levels, decodeValues(page, 0, count(levels), encoding, dictionary));
}

/** n values that begin at a place in a page. */
function decodeValues(
  page: Uint8Array<ArrayBuffer>,
  at: number,
  n: number,
  encoding: string,
  dictionary: Values | undefined,
): Values {
  switch (encoding) {
    case "PLAIN":
      return plainValues(page, at, n);
    case "PLAIN_DICTIONARY":
    case "RLE_DICTIONARY":
      return dictionaryValues(page, at, n, dictionary);
    case "DELTA_LENGTH_BYTE_ARRAY":
      return deltaLengthValues(page, at, n);
    case "DELTA_BYTE_ARRAY":
      return deltaValues(page, at, n);
    default:
      throw new Error(`its encoding is ${encoding}, which cannot be read`);
  }
}

/** Each value after its length. */
function plainValues(bytes: Uint8Array<ArrayBuffer>, at: number, n: number): Values {
  if (4 * n > bytes.length - at) throw new Error(`${n} values are in ${bytes.length - at} bytes`);
  const values = room(bytes, n);
  for (let i = 0; i < n; i++) {
    const start = at + 4;
    at = start + uint32(bytes, at);
    values.starts[i] = start;
    values.ends[i] = at;
  }
  return inside(values, at);
}

/** Indexes into the dictionary, after their number of bits. */
function dictionaryValues(page: Uint8Array, at: number, n: number, dictionary: Values | undefined): Values {
  if (dictionary === undefined) throw new Error("its values are in a dictionary that cannot be read");
  const entries = dictionary.starts.length, values = room(dictionary.bytes, n);
  if (n === 0) return values;
  const indexes = readHybrid(page, at + 1, page.length, page[at] ?? 0, n);
  for (let i = 0; i < n; i++) {
    const index = indexes[i]!;
    if (index >= entries) throw new Error(`value ${i} has index ${index} in a dictionary of ${entries}`);
    values.starts[i] = dictionary.starts[index]!;
    values.ends[i] = dictionary.ends[index]!;
  }
  return values;
}

/** The lengths of all values, then the values. */
function deltaLengthValues(bytes: Uint8Array<ArrayBuffer>, at: number, n: number): Values {
  const values = room(bytes, n), lengths = new Int32Array(n);
  const reader = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length), offset: at };
  if (n > 0) deltaBinaryUnpack(reader, n, lengths);
  let end = reader.offset;
  for (let i = 0; i < n; i++) {
    if (lengths[i]! < 0) throw new Error(`value ${i} has ${lengths[i]} bytes`);
    values.starts[i] = end;
    values.ends[i] = end += lengths[i]!;
  }
  return inside(values, end);
}

/** Each value as what it shares with the one before and the rest. */
function deltaValues(page: Uint8Array<ArrayBuffer>, at: number, n: number): Values {
  const own = page.slice(at), parts: Uint8Array[] = new Array(n);
  if (n > 0) deltaByteArray({ view: new DataView(own.buffer), offset: 0 }, n, parts);
  const values = room(new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0)), n);
  let end = 0;
  for (let i = 0; i < n; i++) {
    values.bytes.set(parts[i]!, end);
    values.starts[i] = end;
    values.ends[i] = end += parts[i]!.length;
  }
  return values;
}

// ---- pieces

function room(bytes: Uint8Array<ArrayBuffer>, n: number): Values {
  return { bytes, starts: new Uint32Array(n), ends: new Uint32Array(n) };
}

/** The values, whose last byte is before `end`. */
function inside(values: Values, end: number): Values {
  if (end > values.bytes.length) {
    throw new Error(`its values have ${end} bytes, there are ${values.bytes.length}`);
  }
  return values;
}

function count(levels: Uint32Array): number {
  let defined = 0;
  for (const level of levels) defined += level;
  return defined;
}

/** A row for each level: the next value where it is 1, null where it is 0. */
function spread(levels: Uint32Array, values: Values): Values {
  if (values.starts.length === levels.length) return values;
  const rows = room(values.bytes, levels.length);
  for (let row = 0, i = 0; row < levels.length; row++) {
    if (levels[row] === 0) continue;
    rows.starts[row] = values.starts[i]!;
    rows.ends[row] = values.ends[i++]!;
  }
  return rows;
}

/**
 * n numbers of so many bits in bytes[at .. end): runs of one number, and groups of eight that are packed. hyparquet's own
 * reader believes the length of a run, and damage there can fill the memory.
 */
function readHybrid(bytes: Uint8Array, at: number, end: number, bits: number, n: number): Uint32Array {
  const numbers = new Uint32Array(n);
  if (bits === 0) return numbers;
  if (bits > 24 || end > bytes.length) {
    throw new Error(`its numbers of ${bits} bits end at byte ${end} of ${bytes.length}`);
  }
  const reader = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.length), offset: at };
  for (let done = 0, next; done < n; done = next) {
    const header = readVarInt(reader), packed = (header & 1) === 1;
    next = Math.min(n, done + (header >>> 1) * (packed ? 8 : 1));
    const length = Math.ceil((packed ? (next - done) * bits : bits) / 8);
    if (reader.offset + length > end) throw new Error(`it has ${done} numbers, should have ${n}`);
    if (packed) unpack(bytes, reader.offset, bits, numbers.subarray(done, next));
    else numbers.fill(uint32(bytes, reader.offset) % 2 ** (8 * length), done, next);
    reader.offset += length;
  }
  return numbers;
}

/** Fills numbers with those of so many bits that lie side by side from a place on, lowest bits first. */
function unpack(bytes: Uint8Array, at: number, bits: number, numbers: Uint32Array): void {
  const mask = 2 ** bits - 1;
  for (let i = 0; i < numbers.length; i++) {
    const bit = i * bits;
    numbers[i] = uint32(bytes, at + (bit >>> 3)) >>> (bit & 7) & mask;
  }
}

/** Little-endian; bytes past the end count as 0. */
function uint32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 | bytes[at + 3]! << 24) >>> 0;
}
