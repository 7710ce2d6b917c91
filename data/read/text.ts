// Documents in plain text: the whole of it, its lines, its paragraphs, or the parts between separators.
import { type Block, BlockBuilder, DOCUMENT_BYTES } from "./block.ts";
import { type Chunks, concatenate } from "./bytes.ts";
import { behindMark, notUtf8, type ReportBad } from "./utf8.ts";

/** A file of text that is being read. */
export type TextInput = {
  /** For messages. */
  name: string;
  /** Its bytes, decompressed. */
  chunks: Chunks;
  /** Bytes as stored that were read since the last call. */
  takeRead(): number;
};

const NEWLINE = 0x0a, RETURN = 0x0d, SPACE = 0x20, TAB = 0x09;

/**
 * The documents of a plain text. A byte-order mark at its start is dropped, and where a separator ends the text no document
 * follows.
 *
 * @param split_on "" if the whole text is one document, "line", "blank_line", or the text between documents.
 */
export async function* readText(
  { name, chunks, takeRead }: TextInput,
  split_on: string,
  reportBad: ReportBad,
): AsyncGenerator<Block> {
  const text = await behindMark(name, chunks, reportBad);
  if (text === undefined) return;
  const builder = new BlockBuilder();
  const splitter = new Splitter(builder, split_on, text.mark, (number) => {
    const which = split_on === "" ? `"${name}" as one document` : `document ${number} of "${name}"`;
    reportBad(
      `Cannot read ${which}: it has more than ${DOCUMENT_BYTES} bytes, the limit for one document; ` +
        `say where documents end, such as with --split_on=blank_line`,
      1,
    );
  });
  for await (const chunk of text.chunks) {
    splitter.push(chunk);
    builder.read += takeRead();
    if (builder.full) yield take();
  }
  splitter.finish();
  builder.read += takeRead();
  yield take();

  function take(): Block {
    const report = (start: number, at: number, byte: number) =>
      reportBad(notUtf8(`"${name}"`, start + at, byte), 1);
    return builder.takeValid(report, { zeros: false });
  }
}

/** Cuts bytes that come in chunks into the documents of a builder. */
class Splitter {
  readonly #builder: BlockBuilder;
  readonly #mode: "whole" | "line" | "blank_line" | "text";
  readonly #separator: Uint8Array;
  readonly #tooLong: (number: number) => void;
  #rest = new Uint8Array(); // the last bytes, which may begin a separator
  #number = 1; // of the open document
  #at: number; // of the text: the next byte to append
  #start: number; // of the text: where the open document begins
  #dropping = false; // the open document is too long
  #lineHasText = false; // blank_line: the open line is more than spaces
  #textEnd = 0; // blank_line: where the last line with text ends in the open document

  /**
   * @param start Bytes of the text before those that are pushed.
   * @param tooLong Called with the number, from 1, of a document that is too long and therefore left out.
   */
  constructor(builder: BlockBuilder, split_on: string, start: number, tooLong: (number: number) => void) {
    this.#at = this.#start = start;
    const lines = split_on === "line" || split_on === "blank_line";
    this.#builder = builder;
    this.#mode = split_on === "" ? "whole" : lines ? split_on : "text";
    this.#separator = new TextEncoder().encode(lines ? "\n" : split_on);
    this.#tooLong = tooLong;
  }

  push(chunk: Uint8Array<ArrayBuffer>): void {
    const separator = this.#separator;
    if (separator.length === 0) return this.#append(chunk);
    const bytes = this.#rest.length === 0 ? chunk : concatenate(this.#rest, chunk);
    let at = 0;
    for (let end; (end = indexOf(bytes, separator, at)) >= 0; at = end + separator.length) {
      this.#append(bytes.subarray(at, end));
      this.#separate();
    }
    const restStart = Math.max(at, bytes.length - separator.length + 1);
    this.#append(bytes.subarray(at, restStart));
    this.#rest = bytes.slice(restStart);
  }

  finish(): void {
    this.#append(this.#rest);
    if (this.#mode === "blank_line") this.#endParagraph();
    else if (this.#mode === "whole" || this.#builder.open > 0) this.#end();
  }

  #append(bytes: Uint8Array): void {
    this.#at += bytes.length;
    if (this.#mode === "blank_line") this.#lineHasText ||= !isBlank(bytes);
    if (this.#dropping) return;
    this.#builder.append(bytes);
    if (this.#builder.open <= DOCUMENT_BYTES) return;
    this.#tooLong(this.#number);
    this.#builder.cut(0);
    this.#textEnd = 0;
    this.#dropping = true;
  }

  #separate(): void {
    if (this.#lineHasText) return this.#endLine();
    this.#at += this.#separator.length;
    if (this.#mode === "blank_line") return this.#endParagraph();
    if (this.#mode === "line") this.#builder.cut(this.#lineEnd());
    this.#end();
  }

  /** Ends a line of a paragraph, the newline of which belongs to it. */
  #endLine(): void {
    this.#textEnd = this.#lineEnd();
    this.#append(NEWLINE_BYTES);
    this.#lineHasText = false;
  }

  /** Ends a document at a blank line or at the end of the text. Several blank lines end one document. */
  #endParagraph(): void {
    if (this.#lineHasText) this.#textEnd = this.#lineEnd();
    this.#builder.cut(this.#textEnd);
    if (this.#textEnd > 0 || this.#dropping) this.#end();
    this.#start = this.#at;
    this.#textEnd = 0;
    this.#lineHasText = false;
  }

  /** Length of the open document without the return of a line that ends in return and newline. */
  #lineEnd(): number {
    const { open } = this.#builder;
    return this.#builder.openAt(open - 1) === RETURN ? open - 1 : open;
  }

  #end(): void {
    if (!this.#dropping) this.#builder.end(this.#start);
    this.#start = this.#at;
    this.#dropping = false;
    this.#number++;
  }
}

const NEWLINE_BYTES = Uint8Array.of(NEWLINE);

function isBlank(bytes: Uint8Array): boolean {
  for (const byte of bytes) if (byte !== SPACE && byte !== TAB && byte !== RETURN) return false;
  return true;
}

/** Where needle, of at least a byte, begins in bytes at or after a place; -1 if it does not. */
function indexOf(bytes: Uint8Array, needle: Uint8Array, from: number): number {
  for (let at = from;; at++) {
    at = bytes.indexOf(needle[0]!, at);
    if (at < 0 || at + needle.length > bytes.length) return -1;
    let i = 1;
    while (i < needle.length && bytes[at + i] === needle[i]) i++;
    if (i === needle.length) return at;
  }
}
