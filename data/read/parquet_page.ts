// The values of a text column in one page of a parquet file, one after the other as places in the page, so that nothing is
// made per value and a page of a few bytes that stands for gigabytes takes no memory.
import { crc32 } from "node:zlib";
import type { PageHeader } from "hyparquet";
import { decompressPage } from "./compression.ts";

/** A value: bytes[start .. end); null has no bytes. The next one may overwrite them. */
export type Value = {
  /** What the value lies in. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Its first byte. */
  start: number;
  /** Behind its last byte. */
  end: number;
};

/** No text. */
export const NULL: Readonly<Value> = { bytes: new Uint8Array(), start: 0, end: 0 };

/** The rows of a page one by one; each call gives the next. Throws Error where there is none. */
export type NextValue = () => Readonly<Value>;

/** What the pages of a column chunk point to: entry i is bytes[starts[i] .. ends[i]). */
export type Dictionary = {
  /** All entries. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Where each entry begins. */
  starts: Uint32Array;
  /** Where each entry ends. */
  ends: Uint32Array;
};

/** How a column is stored. */
export type ColumnKind = {
  /** Compression of its pages, as the metadata has it, such as SNAPPY. */
  codec: string;
  /** Values may be null. */
  nullable: boolean;
};

/**
 * Rows of a page, of which none is in a dictionary.
 *
 * @internal since `deno doc --lint` takes PageHeader, a type of the package hyparquet, for a private one
 */
export function rowsOf({ data_page_header, data_page_header_v2 }: PageHeader): number {
  return data_page_header?.num_values ?? data_page_header_v2?.num_rows ?? 0;
}

/**
 * Decodes a dictionary page. Throws Error if the page is not what its header says.
 *
 * @param bytes What follows its header; not kept.
 * @internal since `deno doc --lint` takes PageHeader, a type of the package hyparquet, for a private one
 */
export function decodeDictionary(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  { codec }: ColumnKind,
): Dictionary {
  checkSum(bytes, header);
  const page = decompressPage(bytes, codec, header.uncompressed_page_size),
    n = header.dictionary_page_header?.num_values ?? 0;
  if (!(4 * n <= page.length)) throw new Error(`${n} values are in ${page.length} bytes`);
  const starts = new Uint32Array(n), ends = new Uint32Array(n), next = plainValues(page, 0);
  for (let i = 0; i < n; i++) {
    const { start, end } = next();
    starts[i] = start;
    ends[i] = end;
  }
  return { bytes: codec === "UNCOMPRESSED" ? page.slice() : page, starts, ends };
}

/**
 * Opens a data page. Throws Error if the page is not what its header says.
 *
 * @param bytes What follows its header, which must stay as it is while values are read.
 * @param dictionary Of the same column chunk, if it has one.
 * @internal since `deno doc --lint` takes PageHeader, a type of the package hyparquet, for a private one
 */
export function openPage(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  column: ColumnKind,
  dictionary: Dictionary | undefined,
): NextValue {
  checkSum(bytes, header);
  return header.type === "DATA_PAGE"
    ? openVersion1(bytes, header, column, dictionary)
    : openVersion2(bytes, header, column, dictionary);
}

function checkSum(bytes: Uint8Array, { crc }: PageHeader): void {
  if (crc !== undefined && crc32(bytes) !== crc >>> 0) {
    throw new Error(`its checksum is ${crc32(bytes)}, should be ${crc >>> 0}`);
  }
}

/** Definition levels, after their length, and values, compressed together. */
function openVersion1(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  { codec, nullable }: ColumnKind,
  dictionary: Dictionary | undefined,
): NextValue {
  const page = decompressPage(bytes, codec, header.uncompressed_page_size);
  const { encoding, definition_level_encoding } = header.data_page_header!;
  if (!nullable) return valuesOf(page, 0, encoding, dictionary);
  if (definition_level_encoding !== "RLE") {
    throw new Error(`its definition levels are ${definition_level_encoding}, which cannot be read`);
  }
  const end = 4 + uint32(page, 0);
  return withNulls(new HybridReader(page, 4, end, 1), valuesOf(page, end, encoding, dictionary));
}

/** Levels, never compressed, and values. */
function openVersion2(
  bytes: Uint8Array<ArrayBuffer>,
  header: PageHeader,
  { codec, nullable }: ColumnKind,
  dictionary: Dictionary | undefined,
): NextValue {
  const { encoding, is_compressed, repetition_levels_byte_length: from, definition_levels_byte_length } =
    header
      .data_page_header_v2!;
  const to = from + definition_levels_byte_length, rest = bytes.subarray(to);
  const page = is_compressed ? decompressPage(rest, codec, header.uncompressed_page_size - to) : rest;
  const values = valuesOf(page, 0, encoding, dictionary);
  return nullable ? withNulls(new HybridReader(bytes, from, to, 1), values) : values;
}

/** The next value where the level is 1, null where it is 0. */
function withNulls(levels: HybridReader, values: NextValue): NextValue {
  return () => levels.next() === 0 ? NULL : values();
}

// ---- encodings

/** The values that begin at a place in a page. Nothing is looked at before it is asked for: of nulls there need be nothing. */
function valuesOf(
  page: Uint8Array<ArrayBuffer>,
  at: number,
  encoding: string,
  dictionary: Dictionary | undefined,
): NextValue {
  switch (encoding) {
    case "PLAIN":
      return plainValues(page, at);
    case "PLAIN_DICTIONARY":
    case "RLE_DICTIONARY":
      return dictionaryValues(page, at, dictionary);
    case "DELTA_LENGTH_BYTE_ARRAY":
      return deltaLengthValues(page, at);
    case "DELTA_BYTE_ARRAY":
      return deltaValues(page, at);
    default:
      throw new Error(`its encoding is ${encoding}, which cannot be read`);
  }
}

/** Each value after its length. */
function plainValues(bytes: Uint8Array<ArrayBuffer>, at: number): NextValue {
  const value: Value = { bytes, start: at, end: at };
  return () => {
    value.start = value.end + 4;
    value.end = value.start + uint32(bytes, value.end);
    if (value.end > bytes.length) {
      throw new Error(`a value ends at byte ${value.end} of ${bytes.length}`);
    }
    return value;
  };
}

/** Indexes into the dictionary, after their number of bits. */
function dictionaryValues(page: Uint8Array, at: number, dictionary: Dictionary | undefined): NextValue {
  const { starts, ends } = dictionary ?? {}, value: Value = { ...NULL, ...dictionary };
  const indexes = new HybridReader(page, at + 1, page.length, page[at] ?? 0);
  return () => {
    if (starts === undefined || ends === undefined) {
      throw new Error("its values are in a dictionary that cannot be read");
    }
    const index = indexes.next();
    if (index >= starts.length) {
      throw new Error(`a value has index ${index} in a dictionary of ${starts.length}`);
    }
    value.start = starts[index]!;
    value.end = ends[index]!;
    return value;
  };
}

/** The lengths of all values, then the values. */
function deltaLengthValues(bytes: Uint8Array<ArrayBuffer>, at: number): NextValue {
  const value: Value = { bytes, start: 0, end: 0 };
  let lengths: DeltaReader | undefined;
  return () => {
    if (lengths === undefined) {
      lengths = new DeltaReader(bytes, at);
      value.end = lengths.end;
    }
    value.start = value.end;
    value.end += lengths.next();
    if (!(value.end >= value.start && value.end <= bytes.length)) {
      throw new Error(`a value is at bytes ${value.start} to ${value.end} of ${bytes.length}`);
    }
    return value;
  };
}

/** The lengths of what each value shares with the one before, those of the rests, then the rests. */
function deltaValues(page: Uint8Array<ArrayBuffer>, at: number): NextValue {
  const value: Value = { bytes: new Uint8Array(1024), start: 0, end: 0 };
  let prefixes: DeltaReader | undefined, suffixes: DeltaReader, from: number;
  return () => {
    if (prefixes === undefined) {
      prefixes = new DeltaReader(page, at);
      suffixes = new DeltaReader(page, prefixes.end);
      from = suffixes.end;
    }
    const prefix = prefixes.next(), suffix = suffixes.next(), end = prefix + suffix;
    if (!(prefix >= 0 && prefix <= value.end && suffix >= 0 && from + suffix <= page.length)) {
      throw new Error(
        `a value is ${prefix} of ${value.end} bytes and ${suffix} of the ${page.length - from} that are left`,
      );
    }
    if (end > value.bytes.length) { // no value is longer than all rests together, which are in the page
      const longer = new Uint8Array(Math.min(2 * end, page.length));
      longer.set(value.bytes.subarray(0, prefix));
      value.bytes = longer;
    }
    value.bytes.set(page.subarray(from, from + suffix), prefix);
    value.end = end;
    from += suffix;
    return value;
  };
}

// ---- numbers

/** Numbers of so many bits in bytes[at .. end): runs of one number, and groups of eight that are packed. */
class HybridReader {
  readonly #bytes: Uint8Array;
  readonly #end: number;
  readonly #bits: number;
  readonly #run: { left: number; packed: boolean; number: number } = { left: 0, packed: false, number: 0 };
  readonly #packed: PackedBits;
  #at: number; // of the next run

  constructor(bytes: Uint8Array, at: number, end: number, bits: number) {
    if (bits > 32 || end > bytes.length) {
      throw new Error(`its numbers of ${bits} bits end at byte ${end} of ${bytes.length}`);
    }
    this.#bytes = bytes;
    this.#at = at;
    this.#end = end;
    this.#bits = bits;
    this.#packed = new PackedBits(bytes);
  }

  next(): number {
    const run = this.#run;
    if (this.#bits === 0) return 0;
    while (run.left === 0) this.#nextRun();
    run.left--;
    return run.packed ? this.#packed.next(this.#bits) : run.number;
  }

  #nextRun(): void {
    const bits = this.#bits,
      run = this.#run,
      header = readVarint(this.#bytes, this.#at),
      length = Math.floor(header.number / 2);
    run.packed = header.number % 2 === 1;
    if (run.packed) {
      this.#packed.at = header.end;
      this.#packed.shift = 0;
      this.#at = header.end + length * bits;
      // The last run may have numbers that nobody asks for, whose bytes some writers leave out.
      run.left = Math.min(8 * length, Math.floor(8 * (this.#end - header.end) / bits));
    } else {
      this.#at = header.end + Math.ceil(bits / 8);
      run.left = length;
      run.number = uint32(this.#bytes, header.end) % 2 ** (8 * (this.#at - header.end));
    }
    if (header.end > this.#end || !run.packed && this.#at > this.#end) {
      throw new Error("it has too few numbers");
    }
  }
}

/** Whole numbers of 32 bits as differences, in blocks of groups that have a number of bits each. */
class DeltaReader {
  /** Where what follows them begins. */
  readonly end: number;
  readonly #bytes: Uint8Array;
  readonly #groups: number; // in a block
  readonly #perGroup: number;
  readonly #packed: PackedBits;
  #left: number; // numbers
  #next: number;
  #least = 0; // difference in the block
  #group: number; // of the block; the one that comes next
  #widths = 0; // place of the bits per number of each group of the block
  #at: number; // of the next group or block
  #leftInGroup = 0;
  #bits = 0;

  constructor(bytes: Uint8Array, at: number) {
    const block = readVarint(bytes, at),
      groups = readVarint(bytes, block.end),
      total = readVarint(bytes, groups.end);
    const first = readVarint(bytes, total.end);
    this.#bytes = bytes;
    this.#groups = this.#group = groups.number;
    this.#perGroup = block.number / groups.number;
    if (!(this.#perGroup >= 8 && this.#perGroup % 8 === 0)) {
      throw new Error(`it has blocks of ${block.number} numbers in ${groups.number} groups`);
    }
    this.#left = total.number;
    this.#next = zigzag(first.number);
    this.#at = first.end;
    this.#packed = new PackedBits(bytes);
    this.end = this.#findEnd();
  }

  next(): number {
    if (this.#left-- <= 0) throw new Error("it has too few lengths");
    const number = this.#next;
    if (this.#left > 0) {
      if (this.#leftInGroup === 0) this.#openGroup();
      this.#leftInGroup--;
      this.#next = (number + this.#least + this.#packed.next(this.#bits)) | 0; // wraps around, as the format wants it
    }
    return number;
  }

  #openGroup(): void {
    if (this.#group === this.#groups) {
      const least = readVarint(this.#bytes, this.#at);
      this.#least = zigzag(least.number);
      this.#widths = least.end;
      this.#at = least.end + this.#groups;
      this.#group = 0;
    }
    this.#bits = this.#bytes[this.#widths + this.#group++] ?? 0;
    this.#packed.at = this.#at;
    this.#packed.shift = 0;
    this.#at += this.#perGroup / 8 * this.#bits;
    this.#leftInGroup = this.#perGroup;
    if (this.#bits > 32 || this.#at > this.#bytes.length) {
      throw new Error(`its lengths of ${this.#bits} bits end at byte ${this.#at} of ${this.#bytes.length}`);
    }
  }

  /** Goes over all groups; those that only fill up the last block have a number of bits but no bytes. */
  #findEnd(): number {
    const start = this.#at;
    for (let left = this.#left - 1; left > 0; left -= this.#perGroup) this.#openGroup();
    const end = this.#at;
    this.#at = start;
    this.#group = this.#groups;
    this.#leftInGroup = 0;
    return end;
  }
}

/** Numbers side by side, lowest bits first, of at most 32 bits. */
class PackedBits {
  /** Place of the next number: of a byte, and of a bit in it. */
  at = 0;
  shift = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  next(bits: number): number {
    const { at, shift } = this, inFour = 32 - shift;
    let number = uint32(this.#bytes, at) >>> shift;
    if (bits > inFour) number |= this.#bytes[at + 4]! << inFour;
    this.at += shift + bits >>> 3;
    this.shift = shift + bits & 7;
    return bits === 32 ? number >>> 0 : number & 2 ** bits - 1;
  }
}

/** A number of at most ten bytes, seven bits in each, the lowest first. */
function readVarint(bytes: Uint8Array, at: number): { number: number; end: number } {
  let number = 0;
  for (let i = 0; i < 10; i++) {
    const byte = bytes[at + i];
    if (byte === undefined) throw new Error(`it ends at byte ${bytes.length}, within a number`);
    number += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) return { number, end: at + i + 1 };
  }
  throw new Error(`the number at byte ${at} has more than ten bytes`);
}

/** 0, -1, 1, -2, ... for 0, 1, 2, 3, ... */
function zigzag(number: number): number {
  return number % 2 === 0 ? number / 2 : -(number + 1) / 2;
}

/** Little-endian; bytes past the end count as 0. */
function uint32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 | bytes[at + 3]! << 24) >>> 0;
}
