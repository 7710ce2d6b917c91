// Decompression: of whole files while they are read, and of the pages of parquet files.
import { pipeline, Readable, type Transform } from "node:stream";
import {
  brotliDecompressSync,
  constants,
  createGunzip,
  createZstdDecompress,
  gunzipSync,
  zstdDecompressSync,
} from "node:zlib";
import { compressors } from "hyparquet-compressors";
import { UserError } from "../../base/errors.ts";
import { ByteReader, type Chunks } from "./bytes.ts";
import { decompressLz4, decompressLz4Hadoop } from "./lz4.ts";

// ---- files

/** How a file is compressed; "" if it is not. */
export type Compression = "" | "gz" | "zst";

const CHUNK_BYTES = 1 << 18;
const WINDOW_LOG_MAX = 31; // what zstd --long=31 makes, for which it takes 2 GB; where a file needs less, that is all
const ZSTD_MAGIC = 0xfd2fb528, SKIPPABLE_MAGIC = 0x184d2a5; // the latter without its last four bits

/**
 * The content of a file. One that is several compressed files one behind the other is read to its end. Throws
 * UserError if the file is truncated or corrupt.
 *
 * @param name Of the file, for messages.
 */
export function decompress(chunks: Chunks, compression: Compression, name: string): Chunks {
  if (compression === "gz") return through(chunks, createGunzip({ chunkSize: CHUNK_BYTES }), name);
  if (compression === "zst") {
    const params = { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG_MAX };
    return through(zstdParts(chunks, name), createZstdDecompress({ chunkSize: CHUNK_BYTES, params }), name);
  }
  return chunks;
}

async function* through(
  chunks: Chunks,
  transform: Transform,
  name: string,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  pipeline(Readable.from(copies(chunks)), transform, () => {}); // what fails, fails in the loop below too
  try {
    for await (const chunk of transform) yield plain(chunk);
  } catch (error) {
    if (error instanceof UserError) throw error;
    const reason = (error as Error).message;
    throw new UserError(
      `Cannot decompress "${name}": ${reason}; the file is truncated or corrupt, fetch it again`,
    );
  }
}

/** The same bytes, where Node.js gives a Buffer, whose slice() is no copy but a view. */
function plain({ buffer, byteOffset, length }: Uint8Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(buffer as ArrayBuffer, byteOffset, length);
}

/** Copies, since a stream asks for the next chunk before it is done with one. */
async function* copies(chunks: Chunks): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  for await (const chunk of chunks) yield chunk.slice();
}

/**
 * The headers, blocks and checksums of zstd frames one by one. Deno's decompressor takes the first frame in a chunk for the
 * last and a frame that breaks off for a whole one (2.9); given in parts and counted here, neither goes unnoticed.
 */
async function* zstdParts(chunks: Chunks, name: string): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = new ByteReader(chunks);
  const take = async (bytes: number) => {
    const part = await reader.peek(bytes);
    if (part.length < bytes) throw new Error("unexpected end of file");
    reader.skip(bytes);
    return part;
  };
  try {
    while ((await reader.peek(1)).length > 0) {
      const magic = uint32(await reader.peek(4));
      if (magic >>> 4 === SKIPPABLE_MAGIC) {
        for (let left = 8 + uint32((await reader.peek(8)).subarray(4)); left > 0; left -= CHUNK_BYTES) {
          await take(Math.min(left, CHUNK_BYTES));
        }
        continue;
      }
      if (magic !== ZSTD_MAGIC) throw new Error("no zstd frame where one should begin");
      const descriptor = (await reader.peek(5))[4] ?? 0;
      const header = await take(zstdHeaderBytes(descriptor)), window = zstdWindow(header);
      if (window > 2 ** WINDOW_LOG_MAX) {
        throw new UserError(
          `Cannot decompress "${name}": its window has ${window} bytes, should be at most ${
            2 ** WINDOW_LOG_MAX
          }; ` +
            "compress it again with zstd --long=31 or less",
        );
      }
      yield header;
      for (let last = false; !last;) {
        const [a = 0, b = 0, c = 0] = await reader.peek(3);
        const block = a | b << 8 | c << 16, repeated = (block >> 1 & 3) === 1; // one byte, many times
        last = (block & 1) === 1;
        yield take(3 + (repeated ? 1 : block >> 3));
      }
      if (descriptor & 4) yield take(4); // checksum
    }
  } finally {
    await reader.close();
  }
}

/** Bytes of a frame's header, by its fifth: magic and descriptor, window, dictionary, content size. */
function zstdHeaderBytes(descriptor: number): number {
  const single = descriptor >> 5 & 1;
  return 5 + (1 - single) + [0, 1, 2, 4][descriptor & 3]! + [single, 2, 4, 8][descriptor >> 6]!;
}

/** Bytes of what came before that a frame with this header may repeat. */
function zstdWindow(header: Uint8Array): number {
  const descriptor = header[4]!, window = header[5]!;
  if ((descriptor >> 5 & 1) === 0) return 2 ** (10 + (window >> 3)) * (1 + (window & 7) / 8);
  const size = header.subarray(5 + [0, 1, 2, 4][descriptor & 3]!); // all of a content that is one segment
  return size.reduceRight((sum, byte) => 256 * sum + byte, 0);
}

function uint32(bytes: Uint8Array): number {
  const [a = 0, b = 0, c = 0, d = 0] = bytes;
  return (a | b << 8 | c << 16 | d << 24) >>> 0;
}

// ---- pages

/**
 * The content of a parquet page, perhaps the bytes themselves. Throws Error if it cannot be decompressed or has
 * another length.
 *
 * @param codec As the metadata of a column has it, such as SNAPPY.
 * @param length Bytes of the content.
 */
export function decompressPage(
  bytes: Uint8Array<ArrayBuffer>,
  codec: string,
  length: number,
): Uint8Array<ArrayBuffer> {
  if (!(length >= 0)) throw new Error(`its header says that it has ${length} bytes`);
  if (length === 0) return new Uint8Array(); // of all nulls; codecs differ in what they make of nothing
  const page = plain(decompressWith(codec, bytes, length));
  if (page.length !== length) throw wrongLength(page.length, length);
  return page;
}

function decompressWith(codec: string, bytes: Uint8Array<ArrayBuffer>, length: number): Uint8Array {
  const limit = { maxOutputLength: length, chunkSize: Math.max(64, length) }; // in one piece, not in many and a copy
  switch (codec) {
    case "UNCOMPRESSED":
      return bytes;
    case "GZIP":
      return gunzipSync(bytes, limit);
    case "ZSTD":
      return decompressFrames(bytes, length);
    case "BROTLI":
      return brotliDecompressSync(bytes, limit);
    case "SNAPPY":
      if (snappyLength(bytes) !== length) throw wrongLength(snappyLength(bytes), length); // it goes by its own
      return compressors.SNAPPY!(bytes, length);
    case "LZ4":
      return decompressLz4Hadoop(bytes, length);
    case "LZ4_RAW":
      return decompressLz4(bytes, length);
    default:
      throw new Error(`it is compressed with ${codec}, which cannot be read`);
  }
}

/** The content of zstd frames one behind the other, of which Node.js reads the first only. */
function decompressFrames(bytes: Uint8Array<ArrayBuffer>, length: number): Uint8Array {
  let content: Uint8Array | undefined, done = 0;
  for (let at = 0; at < bytes.length;) {
    const left = length - done,
      options = { info: true, maxOutputLength: Math.max(1, left), chunkSize: Math.max(64, left) };
    const { buffer, engine } = zstdDecompressSync(bytes.subarray(at), options) as unknown as {
      buffer: Uint8Array;
      engine: { bytesWritten: number };
    };
    at += engine.bytesWritten;
    if (done === 0 && buffer.length === length) content = buffer;
    else (content ??= new Uint8Array(length)).set(buffer, done);
    done += buffer.length;
  }
  if (done !== length) throw wrongLength(done, length);
  return content!;
}

/** The length that stands before what snappy compressed, seven bits in each byte. */
function snappyLength(bytes: Uint8Array): number {
  let length = 0;
  for (let i = 0; i < 5; i++) {
    const byte = bytes[i] ?? 0;
    length += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) break;
  }
  return length;
}

function wrongLength(is: number, should: number): Error {
  return new Error(`it decompresses to ${is} bytes, its header says ${should}`);
}
