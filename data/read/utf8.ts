// Text in another encoding than UTF-8, which is refused where it shows: a repair would destroy it.
import { Buffer, isUtf8 } from "node:buffer";
import { UserError } from "../../base/errors.ts";
import { type Chunks, concatenate } from "./bytes.ts";

/** Called with what cannot be read and how many documents that is. Throws unless they may be left out. */
export type ReportBad = (message: string, documents: number) => void;

/** Throws UserError for what cannot be read, with the advice that holds for all of it. */
export function refuseBad(message: string): never {
  throw new UserError(`${message}, or leave it out with --skip_bad`);
}

/** A text behind the byte-order mark that it may have. */
export type Marked = {
  /** Bytes of the mark. */
  mark: 0 | 3;
  /** The text behind the mark. */
  chunks: AsyncGenerator<Uint8Array<ArrayBuffer>>;
};

const MARKS: [string, number[]][] = [ // longest first
  ["UTF-32", [0xff, 0xfe, 0, 0]],
  ["UTF-32", [0, 0, 0xfe, 0xff]],
  ["UTF-16", [0xff, 0xfe]],
  ["UTF-16", [0xfe, 0xff]],
  ["UTF-8", [0xef, 0xbb, 0xbf]],
];

/** Takes the byte-order mark off a text; undefined if it says another encoding, which is reported. */
export async function behindMark(
  name: string,
  chunks: Chunks,
  reportBad: ReportBad,
): Promise<Marked | undefined> {
  const iterator = Symbol.iterator in chunks ? chunks[Symbol.iterator]() : chunks[Symbol.asyncIterator]();
  let start = new Uint8Array();
  while (start.length < 4) { // the longest mark
    const { done, value } = await iterator.next();
    if (done) break;
    start = concatenate(start, value);
  }
  const [encoding, bytes] = MARKS.find(([, bytes]) => bytes.every((byte, i) => start[i] === byte)) ?? [];
  if (encoding !== undefined && encoding !== "UTF-8") {
    await iterator.return?.();
    const what = `it begins with the byte-order mark of ${encoding} (${bytes!.map(hex).join(" ")})`;
    reportBad(
      `Cannot read "${name}": ${what}, should be UTF-8; convert it with iconv -f ${encoding} -t UTF-8`,
      1,
    );
    return undefined;
  }
  const mark = encoding === undefined ? 0 : 3;
  async function* rest() {
    try {
      if (start.length > mark) yield start.subarray(mark);
      for (let next; !(next = await iterator.next()).done;) yield next.value;
    } finally {
      await iterator.return?.();
    }
  }
  return { mark, chunks: rest() };
}

/** Where the first byte is that is not UTF-8; -1 if all are. */
export function firstInvalid(bytes: Uint8Array): number {
  if (isUtf8(bytes)) return -1;
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes); // with U+FFFD for what is not
  for (let i = 0, at = 0;; i++, at += 3) {
    const next = text.indexOf("\ufffd", i);
    at += Buffer.byteLength(text.slice(i, next));
    if (bytes[at] !== 0xef || bytes[at + 1] !== 0xbf || bytes[at + 2] !== 0xbd) return at; // else it stands there itself
    i = next;
  }
}

/** What to say of a text that is not UTF-8. */
export function notUtf8(what: string, at: number, byte: number): string {
  const is = byte === 0 ? "as in UTF-16 or in what is no text" : "which is not UTF-8 there";
  return `Cannot read ${what}: its byte ${at} is ${
    hex(byte)
  }, ${is}; convert it with iconv -f ENCODING -t UTF-8`;
}

function hex(byte: number): string {
  return `0x${byte.toString(16).padStart(2, "0")}`;
}
