// Random access to a file through one buffer that reads ahead, for formats that hop forward in small steps.

const READ_AHEAD = 1 << 20;

/** An open file of which a part is in memory. Close it with `using`. */
export class FileWindow implements Disposable {
  readonly path: string;
  /** Bytes in the file. */
  readonly size: number;
  readonly #file: Deno.FsFile;
  #buffer = new Uint8Array(READ_AHEAD);
  #start = 0; // place of the buffer's first byte in the file
  #length = 0; // bytes in the buffer

  constructor(path: string) {
    this.path = path;
    this.#file = Deno.openSync(path);
    this.size = this.#file.statSync().size;
  }

  /** Bytes [start, start + length) of the file; a view that the next call may overwrite. */
  bytes(start: number, length: number): Uint8Array<ArrayBuffer> {
    if (start < this.#start || start + length > this.#start + this.#length) this.#fill(start, length);
    return this.#buffer.subarray(start - this.#start, start - this.#start + length);
  }

  /** The same as a DataView. */
  view(start: number, length: number): DataView<ArrayBuffer> {
    const { buffer, byteOffset } = this.bytes(start, length);
    return new DataView(buffer, byteOffset, length);
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }

  #fill(start: number, length: number): void {
    if (length > this.#buffer.length) this.#buffer = new Uint8Array(length);
    this.#file.seekSync(start, Deno.SeekMode.Start);
    this.#start = start;
    this.#length = 0;
    while (this.#length < length) {
      const n = this.#file.readSync(this.#buffer.subarray(this.#length));
      if (n === null) {
        throw new RangeError(`bytes ${start} to ${start + length} are past the end of the file`);
      }
      this.#length += n;
    }
  }
}
