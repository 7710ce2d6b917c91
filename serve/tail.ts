// Follows a file of lines that a trainer appends to, cuts when a run is resumed, and leaves half-written when it is killed.

/** Some lines of a file. */
export type Slice = {
  restarted: boolean; // the file is another one, or shorter: these lines begin at its start
  lines: string[]; // whole ones
  more: boolean; // call next() again
};

const buffer = new Uint8Array(1 << 20); // so many bytes take about 10 ms to parse

/** Reads a growing file slice by slice. */
export class Tail {
  #offset = 0; // bytes read so far, to the end of a line
  #before = ""; // the last characters of these: a file that was cut and has grown again has others
  #identity = "";

  /** path: of the file, which need not be there yet. */
  constructor(readonly path: string) {}

  /** The next whole lines, at most a megabyte of them. A missing file is an empty one. */
  next(): Slice {
    using file = openRegular(this.path);
    const { identity, size } = file ? stateOf(file) : { identity: "", size: 0 };
    const restarted = this.#offset > 0 && (!file || size < this.#offset || identity !== this.#identity ||
      lastBefore(file, this.#offset) !== this.#before);
    if (restarted) this.#offset = 0;
    this.#identity = identity;
    if (!file || size === this.#offset) return { restarted, lines: [], more: false };
    const bytes = readAt(file, this.#offset), more = bytes.length === buffer.length;
    const end = bytes.lastIndexOf(LINE_FEED);
    if (end >= 0) this.#offset += end + 1;
    else if (more) this.#offset += bytes.length; // no line of metrics is so long: garbage
    const lines = end < 0 ? [] : textOf(bytes.subarray(0, end)).split("\n");
    this.#before = lastBefore(file, this.#offset);
    return { restarted, lines, more };
  }
}

const LINE_FEED = 10;

function stateOf(file: Deno.FsFile): { identity: string; size: number } {
  const { ino, birthtime, size } = file.statSync(); // a number of a removed file is given again
  return { identity: `${ino} ${birthtime?.getTime()}`, size };
}

function readAt(file: Deno.FsFile, offset: number, most: number = buffer.length): Uint8Array<ArrayBuffer> {
  file.seekSync(offset, Deno.SeekMode.Start);
  let n = 0;
  while (n < most) {
    const read = file.readSync(buffer.subarray(n, most));
    if (read === null) break;
    n += read;
  }
  return buffer.subarray(0, n);
}

/** What stands before a byte of a file: 64 bytes, which in metrics hold times that are never equal by chance. */
function lastBefore(file: Deno.FsFile, offset: number): string {
  const from = Math.max(0, offset - 64);
  return textOf(readAt(file, from, offset - from));
}

/** The last lines of a text file, from its last 64 kB; none where it is missing. */
export function lastLines(path: string, count: number): string[] {
  using file = openRegular(path);
  if (!file) return [];
  const { size } = file.statSync(), from = Math.max(0, size - (1 << 16));
  const bytes = readAt(file, from), whole = from === 0 ? 0 : bytes.indexOf(LINE_FEED) + 1;
  return textOf(bytes.subarray(whole)).replace(/\n$/, "").split("\n").slice(-count);
}

/** The text of a small file; undefined where it is missing. */
export function readSmall(path: string): string | undefined {
  using file = openRegular(path);
  return file && textOf(readAt(file, 0));
}

/**
 * Opens a file to read, unless it is missing, no ordinary file, or the path leads elsewhere by a symbolic link. Throws where
 * no file descriptor is left: then it is not known whether it is there.
 */
export function openRegular(path: string): Deno.FsFile | undefined {
  try {
    if (Deno.realPathSync(path) !== path || !Deno.lstatSync(path).isFile) return undefined;
    return Deno.openSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable || isOutOfFiles(error)) throw error;
    return undefined; // not there yet, or not any more
  }
}

/** Whether an error says that the process, or the machine, has no file descriptor left. */
export function isOutOfFiles(error: unknown): boolean {
  return /^E[MN]FILE$/.test(String((error as { code?: unknown } | null)?.code));
}

function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
