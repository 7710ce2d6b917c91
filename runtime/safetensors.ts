// safetensors.ts: reads and writes model.safetensors, the format Hugging Face keeps weights in.
//
// A file is: 8 bytes, the length of the header, little-endian; the header, JSON padded with spaces to a multiple of 8;
// then the bytes of all tensors, one after the other, little-endian, row-major. The header maps every name to
// { dtype, shape, data_offsets: [begin, end] }, counted from the end of the header, and "__metadata__" to strings.

import { createHash } from "node:crypto";
import { basename, dirname } from "node:path";
import { UserError } from "../base/errors.ts";
import { isObject } from "../base/json.ts";
import { isFile, OutFile } from "../base/files.ts";
import { orMistake } from "../base/system_error.ts";

const BYTES_PER_ELEMENT: Record<Dtype, number> = { F32: 4, BF16: 2, F16: 2, I32: 4 };
const MAX_HEADER_BYTES = 100_000_000; // the limit of the reference implementation

/** The element types that loam reads and writes. */
export type Dtype = "F32" | "BF16" | "F16" | "I32";

/** A tensor to write. bytes() is called once, in its turn, so that one staging buffer can serve all tensors. */
export type Entry = {
  name: string;
  dtype: Dtype;
  shape: readonly number[];
  bytes: () => Uint8Array | Iterable<Uint8Array>;
};

/** Where a tensor lies: offset (from the start of the file) and length in bytes. */
export type TensorInfo = { dtype: Dtype; shape: number[]; offset: number; length: number };

/** An inspected file. read() returns the bytes of a tensor, or its bytes from `begin` up to `end`; in `into` if there is one. */
export type SafetensorsFile = {
  path: string;
  metadata: Record<string, string>;
  tensors: Map<string, TensorInfo>;
  read: (
    name: string,
    begin?: number,
    end?: number,
    into?: Uint8Array<ArrayBuffer>,
  ) => Uint8Array<ArrayBuffer>;
};

/**
 * Writes tensors in the given order, and returns when they are on the disk: the sha256 of the file, summed up while it is
 * written. Memory: one tensor, or one chunk of it. Throws UserError where the file cannot be written, for example because the
 * disk is full.
 */
export function writeSafetensors(
  path: string,
  entries: Entry[],
  metadata: Record<string, string> = {},
): string {
  const hash = createHash("sha256"), header = encodeHeader(entries, metadata);
  using file = new OutFile(path, "create");
  const write = (bytes: Uint8Array) => {
    file.write(bytes);
    hash.update(bytes);
  };
  write(header);
  for (const entry of entries) {
    const bytes = entry.bytes(), chunks = bytes instanceof Uint8Array ? [bytes] : bytes;
    let missing = byteLength(entry);
    for (const chunk of chunks) {
      write(chunk);
      missing -= chunk.length;
    }
    if (missing !== 0) throw new Error(`internal: ${entry.name} is ${missing} bytes short of its shape`);
  }
  file.sync();
  return hash.digest("hex");
}

/**
 * Opens a file and checks all of its header against its size; reads no tensor yet.
 * Throws UserError where the file is missing, cut short, damaged, or holds an element type loam does not read.
 */
export function readSafetensors(path: string): SafetensorsFile {
  const { header, start, size } = readHeader(path);
  const { __metadata__: metadata = {}, ...described } = header;
  if (!isObject(metadata)) throw unreadable(path, "its __metadata__ is not an object");

  const tensors = new Map(
    Object.entries(described).map(([name, value]) => [name, tensorInfo(path, name, value, start)]),
  );
  let end = start;
  for (const [name, t] of [...tensors].sort(([, a], [, b]) => a.offset - b.offset || a.length - b.length)) {
    if (t.offset !== end) {
      throw unreadable(path, `${name} begins at byte ${t.offset}, but the one before ends at ${end}`);
    }
    end += t.length;
  }
  if (end !== size) throw unreadable(path, `it has ${size} bytes, but its header promises ${end}`);

  function read(
    name: string,
    begin = 0,
    end?: number,
    into?: Uint8Array<ArrayBuffer>,
  ): Uint8Array<ArrayBuffer> {
    const t = tensors.get(name);
    if (!t) throw new UserError(`Cannot read ${name} of ${path}: the file has no tensor of that name`);
    using file = openForReading(path);
    return readAt(file, path, t.offset + begin, (end ?? t.length) - begin, into);
  }
  return { path, metadata: metadata as Record<string, string>, tensors, read };
}

/** What lists the tensors of a model that lies in several files. */
export const INDEX = "model.safetensors.index.json";

/**
 * The tensors of a model directory by name, each with the file that holds it: model.safetensors, or the shards that
 * model.safetensors.index.json lists. Reads headers only. Throws UserError as readSafetensors(), and where the index and the
 * shards do not agree.
 */
export function readWeights(directory: string): Map<string, SafetensorsFile> {
  const path = `${directory}/model.safetensors`;
  if (!isFile(path) && isFile(`${directory}/${INDEX}`)) return readShards(`${directory}/${INDEX}`);
  return weightsIn(path);
}

/** The tensors of one file by name, each with the file. */
export function weightsIn(path: string): Map<string, SafetensorsFile> {
  const file = readSafetensors(path);
  return new Map(Array.from(file.tensors.keys(), (name) => [name, file]));
}

/**
 * The names of the files beside an index, by the tensors that they hold. Throws UserError where it lists none, or something
 * else.
 */
export function readIndex(path: string): Map<string, string> {
  const index = parseJson(Deno.readFileSync(path)), map = isObject(index) ? index.weight_map : undefined;
  if (!isObject(map)) throw unreadable(path, "it has no weight_map");
  const files = new Map<string, string>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== "string" || basename(file) !== file) {
      throw unreadable(
        path,
        `its weight_map has ${JSON.stringify(file)}, should have names of files beside it`,
      );
    }
    files.set(name, file);
  }
  if (files.size === 0) throw unreadable(path, "its weight_map is empty");
  return files;
}

function readShards(path: string): Map<string, SafetensorsFile> {
  const shards = new Map<string, SafetensorsFile>(), weights = new Map<string, SafetensorsFile>();
  for (const [name, file] of readIndex(path)) {
    if (!shards.has(file)) shards.set(file, readShard(`${dirname(path)}/${file}`));
    weights.set(name, shards.get(file)!);
  }
  for (const [name, shard] of weights) {
    if (!shard.tensors.has(name)) {
      throw unreadable(shard.path, `it has no ${name}, which ${INDEX} expects there`);
    }
  }
  for (const shard of shards.values()) {
    const extra = shard.tensors.keys().find((name) => weights.get(name) !== shard);
    if (extra) throw unreadable(shard.path, `it has ${extra}, which ${INDEX} does not expect there`);
  }
  return weights;
}

function readShard(path: string): SafetensorsFile {
  if (isFile(path)) return readSafetensors(path);
  throw new UserError(`Cannot read ${path}: there is no such file, ${INDEX} names it; put it there`);
}

/** The elements of a floating-point tensor as float32. F32 is returned as a view of the same bytes. */
export function toFloat32(bytes: Uint8Array<ArrayBuffer>, dtype: Dtype): Float32Array<ArrayBuffer> {
  const { buffer, byteOffset } = bytes;
  const n = bytes.length / BYTES_PER_ELEMENT[dtype];
  if (dtype === "F32") return new Float32Array(buffer, byteOffset, n);
  if (dtype === "F16") return new Float32Array(new Float16Array(buffer, byteOffset, n));
  if (dtype !== "BF16") {
    throw new TypeError(`Cannot convert ${dtype} to float32: it should be F32, BF16 or F16`);
  }
  const high = new Uint16Array(buffer, byteOffset, n);
  const bits = new Uint32Array(n);
  for (let i = 0; i < n; i++) bits[i] = high[i]! << 16; // bfloat16 is the upper half of a float32
  return new Float32Array(bits.buffer);
}

/**
 * float32 values as the bytes of an element type, rounded to the nearest and half to even. Throws RangeError, whose message is
 * the index, for the first that is not finite, or too large for the type.
 */
export function fromFloat32(
  values: Float32Array<ArrayBuffer>,
  dtype: Exclude<Dtype, "I32">,
): Uint8Array<ArrayBuffer> {
  const { buffer, byteOffset, length } = values;
  const half = dtype === "F16" ? new Float16Array(values) : undefined, stored = half ?? values;
  for (let i = 0; i < length; i++) if (!Number.isFinite(stored[i])) throw new RangeError(`${i}`);
  if (dtype === "F32") return new Uint8Array(buffer, byteOffset, 4 * length);
  if (half) return new Uint8Array(half.buffer);
  const bits = new Uint32Array(buffer, byteOffset, length), high = new Uint16Array(length);
  for (let i = 0; i < length; i++) high[i] = (bits[i]! + 0x7fff + (bits[i]! >>> 16 & 1)) >>> 16;
  const largest = high.findIndex((upper) => (upper & 0x7f80) === 0x7f80);
  if (largest >= 0) throw new RangeError(`${largest}`);
  return new Uint8Array(high.buffer);
}

function encodeHeader(entries: Entry[], metadata: Record<string, string>): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: "pt", ...metadata } };
  let end = 0;
  for (const entry of entries) {
    const begin = end;
    end += byteLength(entry);
    if (entry.name in header) throw new Error(`internal: two tensors are called ${entry.name}`);
    header[entry.name] = { dtype: entry.dtype, shape: entry.shape, data_offsets: [begin, end] };
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(json.length / 8) * 8;
  const bytes = new Uint8Array(8 + padded).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(json, 8);
  return bytes;
}

function readHeader(path: string): { header: Record<string, unknown>; start: number; size: number } {
  using file = openForReading(path);
  const { size } = file.statSync();
  if (size < 8) throw unreadable(path, `it has ${size} bytes, but a safetensors file has at least 8`);
  const length = Number(new DataView(readAt(file, path, 0, 8).buffer).getBigUint64(0, true));
  if (8 + length > size) {
    throw unreadable(path, `it has ${size} bytes, but its header alone would end at ${8 + length}`);
  }
  if (length > MAX_HEADER_BYTES) {
    throw unreadable(path, `its header has ${length} bytes, more than ${MAX_HEADER_BYTES}`);
  }
  const bytes = readAt(file, path, 8, length), header = parseJson(bytes);
  if (!isObject(header)) throw unreadable(path, "its header is not a JSON object");
  const twice = firstKeyTwice(new TextDecoder().decode(bytes));
  if (twice !== undefined) throw unreadable(path, `its header has ${twice} twice`);
  return { header, start: 8 + length, size };
}

/** The first key that an object of a JSON text has twice, of which JSON.parse() takes one: as it stands there, with quotes. */
function firstKeyTwice(json: string): string | undefined {
  const open: Set<string>[] = [], colon = /\s*:/y; // open: keys of the objects, none of the lists, around what comes next
  for (let at = 0; at < json.length; at++) {
    if (json[at] === "{" || json[at] === "[") open.push(new Set());
    else if (json[at] === "}" || json[at] === "]") open.pop();
    else if (json[at] === '"') {
      const begin = at;
      while (json[++at] !== '"') if (json[at] === "\\") at++;
      colon.lastIndex = at + 1;
      if (!colon.test(json)) continue; // a value
      const text = json.slice(begin, at + 1), key: string = JSON.parse(text), keys = open.at(-1)!;
      if (keys.has(key)) return text;
      keys.add(key);
    }
  }
  return undefined;
}

/** The value that the bytes spell, or undefined where they are not JSON. */
function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return undefined;
  }
}

function tensorInfo(path: string, name: string, value: unknown, start: number): TensorInfo {
  const { dtype, shape, data_offsets: span } = isObject(value) ? value : {};
  if (!isSizes(shape) || !isSizes(span) || span.length !== 2) {
    throw unreadable(path, `the shape or the data_offsets of ${name} are not lists of sizes`);
  }
  if (typeof dtype !== "string" || !Object.hasOwn(BYTES_PER_ELEMENT, dtype)) {
    const known = Object.keys(BYTES_PER_ELEMENT).join(", ");
    throw new UserError(`Cannot read ${path}: ${name} has dtype ${dtype}, and should have one of ${known}`);
  }
  const info = { dtype: dtype as Dtype, shape, offset: start + span[0]!, length: span[1]! - span[0]! };
  if (info.length !== byteLength(info)) {
    throw unreadable(
      path,
      `${name} spans ${info.length} bytes, but ${dtype} (${shape}) needs ${byteLength(info)}`,
    );
  }
  return info;
}

function elements({ shape }: { shape: readonly number[] }): number {
  return shape.reduce((n, size) => n * size, 1);
}

function byteLength(t: { dtype: Dtype; shape: readonly number[] }): number {
  return elements(t) * BYTES_PER_ELEMENT[t.dtype];
}

function openForReading(path: string): Deno.FsFile {
  return orMistake(`Cannot read ${path}`, () => Deno.openSync(path));
}

/** Reads exactly `length` bytes: one read call may return fewer. */
function readAt(
  file: Deno.FsFile,
  path: string,
  offset: number,
  length: number,
  into = new Uint8Array(length),
): Uint8Array<ArrayBuffer> {
  const bytes = into.subarray(0, length);
  orMistake(`Cannot read ${path}`, () => {
    file.seekSync(offset, Deno.SeekMode.Start);
    for (let done = 0; done < length;) {
      const n = file.readSync(bytes.subarray(done));
      if (n === null) {
        throw unreadable(path, `it has ${offset + done} bytes, but ${offset + length} are needed`);
      }
      done += n;
    }
  });
  return bytes;
}

function unreadable(path: string, what: string): UserError {
  return new UserError(
    `Cannot read ${path}: ${what}; it was cut short or damaged: copy it again, or use another checkpoint`,
  );
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);
}
