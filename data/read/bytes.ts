// The bytes of an input, wherever it is: read in order from any place, or looked at through a window that moves forward.
import { UserError } from "../../base/errors.ts";
import { orMistake } from "../../base/system_error.ts";

/** Something with bytes to read. */
export type ByteSource = {
  /** For messages. */
  readonly name: string;
  /** Bytes in it. */
  readonly size: number;
  /** Bytes [from, to), in chunks that stay as they are until the next one is asked for. */
  read(from: number, to: number): Chunks;
};

/** Bytes in order, piece by piece. */
export type Chunks = Iterable<Uint8Array<ArrayBuffer>> | AsyncIterable<Uint8Array<ArrayBuffer>>;

const CHUNK_BYTES = 1 << 18;

/** A local file. */
export class FileBytes implements ByteSource {
  /** Its path. */
  readonly name: string;
  /** Bytes in it. */
  readonly size: number;

  /** size: bytes that the file has. */
  constructor(path: string, size: number) {
    this.name = path;
    this.size = size;
  }

  /** Bytes [from, to) of the file. Throws UserError if the file has become shorter than it was. */
  *read(from: number, to: number): Generator<Uint8Array<ArrayBuffer>> {
    const attempt = <T>(action: () => T) => orMistake(`Cannot read "${this.name}"`, action);
    using file = attempt(() => Deno.openSync(this.name));
    attempt(() => file.seekSync(from, Deno.SeekMode.Start));
    const buffer = new Uint8Array(Math.min(CHUNK_BYTES, to - from));
    while (from < to) {
      const n = attempt(() => file.readSync(buffer.subarray(0, to - from)));
      if (n === null) {
        throw new UserError(
          `Cannot read "${this.name}": it ends at byte ${from}, it had ${this.size} when it was opened; ` +
            `prepare again once nobody writes to it`,
        );
      }
      yield buffer.subarray(0, n);
      from += n;
    }
  }
}

/** The bytes of a and then those of b. */
export function concatenate(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** A window on chunks of bytes that moves forward. */
export class ByteReader {
  readonly #chunks: Iterator<Uint8Array> | AsyncIterator<Uint8Array>;
  #buffer = new Uint8Array();
  #start = 0; // the window is #buffer[#start .. #end)
  #end = 0;

  /** chunks: may be overwritten when the next one is asked for. */
  constructor(chunks: Chunks) {
    this.#chunks = Symbol.iterator in chunks ? chunks[Symbol.iterator]() : chunks[Symbol.asyncIterator]();
  }

  /** The next n bytes, or as many as there are; a view that the next call may overwrite. */
  async peek(n: number): Promise<Uint8Array<ArrayBuffer>> {
    while (this.#end - this.#start < n) {
      const { done, value } = await this.#chunks.next();
      if (done) break;
      this.#add(value, n);
    }
    return this.#buffer.subarray(this.#start, Math.min(this.#start + n, this.#end));
  }

  /** Moves past n bytes that peek() has shown. */
  skip(n: number): void {
    this.#start += n;
  }

  /** Lets go of what the chunks come from. */
  async close(): Promise<void> {
    await this.#chunks.return?.();
  }

  #add(chunk: Uint8Array, wanted: number): void {
    const old = this.#buffer, length = this.#end - this.#start;
    if (this.#end + chunk.length > old.length) {
      const needed = Math.max(length + chunk.length, wanted);
      if (needed > old.length) this.#buffer = new Uint8Array(Math.max(needed, 2 * old.length));
      this.#buffer.set(old.subarray(this.#start, this.#end));
      this.#start = 0;
      this.#end = length;
    }
    this.#buffer.set(chunk, this.#end);
    this.#end += chunk.length;
  }
}
