// HTTP/1.1 on one connection: reads requests with small bodies, writes answers that may last. Deno.serve has no deadlines and
// ends with the first connection that finds no file descriptor left; node:http accepts none any more from then on.
import { STATUS_CODES } from "node:http";
import { Refusal, responseOf } from "./refusal.ts";

/** A request, read whole. */
export type Asked = {
  method: string;
  url: string;
  headers: Headers;
  body: Uint8Array<ArrayBuffer>;
  isOld: boolean; // HTTP/1.0
  keeps: boolean; // the connection, for another one
};

/** How long a client may take for what it has to do, in milliseconds. */
export type Deadlines = {
  header_ms: number; // from the first byte of a request to the end of its header
  body_ms: number; // from there to its end
  idle_ms: number; // without a request
  write_ms: number; // to take 16 kB of an answer
};

const MOST_HEADER = 1 << 14, MOST_BODY = 1 << 18; // bytes
const PIECE = 1 << 14; // bytes read or written at a time
const LEAST_GZIP = 1024; // bytes that are worth it
const LINGER_MS = 1000;

/** A connection whose bytes are read as they come, so that its end is noticed while it is answered. */
export class Connection {
  /** Aborts when the client has left. */
  readonly gone: AbortSignal;
  readonly #gone = new AbortController();
  readonly #tcp: Deno.Conn;
  readonly #deadlines: Deadlines;
  #buffer = new Uint8Array(PIECE);
  #begin = 0;
  #end = 0; // of what came and is not taken yet
  #came: () => void = () => {}; // more bytes, or their end
  #room: () => void = () => {};
  #isAwaited = false; // what comes
  #isOpen = true;

  /** Reads from tcp from now on; close() closes it. */
  constructor(tcp: Deno.Conn, deadlines: Deadlines) {
    this.gone = this.#gone.signal;
    this.#tcp = tcp;
    this.#deadlines = deadlines;
    this.#receive();
  }

  /** Ends it, whatever is under way. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#tcp.close();
    this.#gone.abort();
  }

  async #receive(): Promise<void> {
    try {
      while (true) {
        while (this.#waiting.length > MOST_HEADER && !this.#isAwaited) { // nobody needs so much yet
          await new Promise<void>((resolve) => this.#room = resolve);
        }
        this.#makeRoom();
        const n = await this.#tcp.read(this.#buffer.subarray(this.#end));
        if (n === null) break;
        this.#end += n;
        this.#came();
      }
    } catch {
      // it was reset, or closed here
    }
    this.#gone.abort(); // one that says no more is taken to have left, as other servers do
    this.#came();
  }

  /** Twice as large as what waits, so that bytes which come one by one are not copied again with each. */
  #makeRoom(): void {
    const waiting = this.#waiting;
    if (this.#end < this.#buffer.length && waiting.length > 0) return;
    const size = Math.max(PIECE, 2 * waiting.length);
    if (size !== this.#buffer.length || waiting.length > 0) {
      const other = new Uint8Array(size);
      other.set(waiting);
      this.#buffer = other;
    }
    [this.#begin, this.#end] = [0, waiting.length];
  }

  get #waiting(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(this.#begin, this.#end);
  }

  #take(n: number): Uint8Array<ArrayBuffer> {
    const taken = this.#waiting.slice(0, n);
    this.#begin += taken.length;
    if (this.#waiting.length <= MOST_HEADER) this.#room();
    return taken;
  }

  /** Waits for more bytes. False if none will come; Refusal 408 if none come until then. */
  async #more(until: number): Promise<boolean> {
    if (this.gone.aborted) return false;
    const { promise, resolve, reject } = Promise.withResolvers<boolean>();
    this.#came = () => resolve(!this.gone.aborted);
    const late = new Refusal(408, "The request did not come to its end in time");
    const timer = setTimeout(() => reject(late), Math.max(0, until - performance.now()));
    this.#isAwaited = true;
    this.#room();
    try {
      return await promise;
    } finally {
      this.#isAwaited = false;
      clearTimeout(timer);
    }
  }

  // ---- requests

  /**
   * The next request; undefined if none comes. onHeader is called with its header, before the body is read. Throws
   * Refusal if it is too slow, too large or not HTTP; the connection is of no use then.
   */
  async read(onHeader: (asked: Asked) => void): Promise<Asked | undefined> {
    if (!await this.#begins()) return undefined;
    const { header_ms, body_ms } = this.#deadlines, started = performance.now();
    let end;
    while ((end = endOfHeader(this.#waiting)) < 0 && this.#waiting.length <= MOST_HEADER) {
      if (!await this.#more(started + header_ms)) return undefined;
    }
    if (end < 0 || end > MOST_HEADER) {
      throw new Refusal(431, `The header is larger than ${MOST_HEADER} bytes`);
    }
    const asked = parseRequest(new TextDecoder("latin1").decode(this.#take(end)));
    onHeader(asked);
    if (/^100-continue$/i.test(asked.headers.get("Expect") ?? "")) {
      await this.#write(encode(`${HTTP} 100 Continue\r\n\r\n`));
    }
    const until = performance.now() + body_ms;
    const body = asked.headers.has("Transfer-Encoding")
      ? await this.#readChunks(until)
      : await this.#readBytes(lengthOf(asked.headers), until);
    return body && { ...asked, body };
  }

  /** Whether a request begins before the connection has been idle for too long. Empty lines before it count for nothing. */
  async #begins(): Promise<boolean> {
    const until = performance.now() + this.#deadlines.idle_ms;
    try {
      while (true) {
        const blank = this.#waiting.findIndex((byte) => byte !== CR && byte !== LF);
        this.#take(blank < 0 ? this.#waiting.length : blank);
        if (blank >= 0) return true;
        if (!await this.#more(until)) return false;
      }
    } catch {
      return false;
    }
  }

  /** The next n bytes of a body; undefined if the client leaves before. */
  async #readBytes(n: number, until: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    if (n > MOST_BODY) throw new Refusal(413, `The body is larger than ${MOST_BODY} bytes`);
    while (this.#waiting.length < n) if (!await this.#more(until)) return undefined;
    return this.#take(n);
  }

  async #readChunks(until: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    for (let length = 0;;) {
      const line = await this.#readLine(until), size = /^([0-9a-f]{1,8})[ \t]*(;.*)?$/i.exec(line ?? "")?.[1];
      if (line === undefined) return undefined;
      if (size === undefined) throw new Refusal(400, "The body is not in chunks, as Transfer-Encoding says");
      if (parseInt(size, 16) === 0) break;
      length += parseInt(size, 16);
      const chunk = await this.#readBytes(length > MOST_BODY ? length : parseInt(size, 16), until);
      const end = await this.#readLine(until);
      if (chunk === undefined || end === undefined) return undefined;
      if (end !== "") throw new Refusal(400, "A chunk of the body is longer than it says");
      chunks.push(chunk);
    }
    for (let line; (line = await this.#readLine(until)) !== "";) if (line === undefined) return undefined; // more headers
    return joined(...chunks);
  }

  async #readLine(until: number): Promise<string | undefined> {
    let end;
    while ((end = this.#waiting.indexOf(LF)) < 0) {
      if (this.#waiting.length > MOST_HEADER) {
        throw new Refusal(431, `A line is longer than ${MOST_HEADER} bytes`);
      }
      if (!await this.#more(until)) return undefined;
    }
    return new TextDecoder("latin1").decode(this.#take(end + 1)).replace(/\r?\n$/, "");
  }

  // ---- answers

  /** Writes an answer. Rejects if the client does not take it, or its body fails: the connection is of no use then. */
  async answer(asked: Omit<Asked, "url" | "body">, response: Response): Promise<void> {
    const headers = new Headers(response.headers),
      isStream = /^text\/event-stream/.test(headers.get("Content-Type") ?? "");
    headers.set("Date", new Date().toUTCString());
    headers.set("Connection", asked.keeps ? "keep-alive" : "close");
    if (isStream && !asked.isOld) headers.set("Transfer-Encoding", "chunked");
    const bytes = isStream ? undefined : await whole(response, asked.headers, headers);
    if (bytes && response.status !== 204) headers.set("Content-Length", String(bytes.length));
    const lines = [...headers].map(([name, value]) => `${name}: ${value}\r\n`).join("");
    const { status } = response,
      head = encode(`${HTTP} ${status} ${STATUS_CODES[status] ?? ""}\r\n${lines}\r\n`);
    if (asked.method === "HEAD") {
      if (isStream) await response.body?.cancel();
      await this.#write(head);
    } else if (bytes) await this.#write(joined(head, bytes));
    else await this.#writeStream(head, response.body!, asked.isOld);
  }

  async #writeStream(head: Uint8Array, body: ReadableStream<Uint8Array>, isOld: boolean): Promise<void> {
    const reader = body.getReader(), leave = () => reader.cancel().catch(() => {});
    const chunk = ({ length }: Uint8Array) => isOld ? ["", ""] : [`${length.toString(16)}\r\n`, "\r\n"];
    this.gone.addEventListener("abort", leave);
    try {
      if (this.gone.aborted) return;
      await this.#write(head);
      for (let piece; !(piece = await reader.read()).done;) {
        const [before = "", after = ""] = chunk(piece.value);
        if (piece.value.length > 0) await this.#write(joined(encode(before), piece.value, encode(after)));
      }
      if (!isOld) await this.#write(encode("0\r\n\r\n"));
    } finally {
      this.gone.removeEventListener("abort", leave);
      leave();
    }
  }

  /** Says why there is no answer, and waits a moment for the client to read it: bytes that nobody reads would reset the rest. */
  async refuse(refusal: Refusal): Promise<void> {
    const asked = { method: "GET", headers: new Headers(), isOld: true, keeps: false };
    await this.answer(asked, responseOf(refusal));
    await this.#tcp.closeWrite();
    const until = performance.now() + LINGER_MS;
    do this.#take(this.#waiting.length); while (await this.#more(until).catch(() => false));
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const timer = setTimeout(() => this.close(), this.#deadlines.write_ms);
      try {
        at += await this.#tcp.write(bytes.subarray(at, at + PIECE));
      } catch (error) {
        this.close(); // the client has left, whether that was read or not
        throw error;
      } finally {
        clearTimeout(timer);
      }
    }
  }
}

const HTTP = "HTTP/1.1", CR = 13, LF = 10;

/** Index behind the empty line that ends a header; -1 if it has not come. */
function endOfHeader(bytes: Uint8Array): number {
  for (let at = bytes.indexOf(LF); at >= 0; at = bytes.indexOf(LF, at + 1)) {
    if (bytes[at + 1] === LF) return at + 2;
    if (bytes[at + 1] === CR && bytes[at + 2] === LF) return at + 3;
  }
  return -1;
}

/** The header of a request, without its body. Throws Refusal for what is not HTTP, or could be read in two ways. */
export function parseRequest(text: string): Asked {
  const [first = "", ...lines] = text.split(/\r?\n/).slice(0, -2);
  const [, method, target, minor] = /^([!#$%&'*+.^_`|~\w-]+) ([!-~]+) HTTP\/1\.([01])$/.exec(first) ?? [];
  if (!method || !target) throw new Refusal(400, "The request is not HTTP/1.1");
  const headers = new Headers();
  for (const line of lines) {
    const [, name, value] = /^([!#$%&'*+.^_`|~\w-]+):[ \t]*([\t\x20-\x7e\xa0-\xff]*)$/.exec(line) ?? [];
    if (!name) throw new Refusal(400, "A line of the header is not NAME: VALUE");
    const isTwice = headers.has(name) && /^(host|content-length|transfer-encoding)$/i.test(name);
    if (isTwice) throw new Refusal(400, `${name} stands in the header twice`);
    headers.append(name, value!);
  }
  const coding = headers.get("Transfer-Encoding");
  if (coding !== null && (headers.has("Content-Length") || !/^chunked$/i.test(coding))) {
    throw new Refusal(400, "Transfer-Encoding must be chunked, and stand without Content-Length");
  }
  lengthOf(headers);
  const isOld = minor === "0",
    keeps = !isOld && !/(^|,)\s*close\s*(,|$)/i.test(headers.get("Connection") ?? "");
  return { method, url: urlOf(target, headers.get("Host")), headers, body: new Uint8Array(), isOld, keeps };
}

function urlOf(target: string, host: string | null): string {
  const isName = /^([\w.~-]+|\[[\da-f:.]+\])(:\d+)?$/i.test(host ?? "");
  const url = target.startsWith("/") && isName
    ? `http://${host}${target}`
    : /^http:\/\//i.test(target)
    ? target
    : "";
  if (URL.canParse(url)) return url;
  throw new Refusal(400, isName ? "The target is not a path" : "The Host is not the name of a server");
}

function lengthOf(headers: Headers): number {
  const text = headers.get("Content-Length") ?? "0";
  if (!/^\d{1,15}$/.test(text)) throw new Refusal(400, "Content-Length is not a number");
  return Number(text);
}

/** The body of an answer, compressed where that is worth it and the client can read it. */
async function whole(response: Response, asked: Headers, headers: Headers): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes.length < LEAST_GZIP) return bytes;
  headers.append("Vary", "Accept-Encoding");
  if (!/(^|,)\s*gzip\s*(,|;(?!\s*q=0(\.0*)?\s*(,|$))|$)/i.test(asked.get("Accept-Encoding") ?? "")) {
    return bytes;
  }
  headers.set("Content-Encoding", "gzip");
  const compressed = new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(compressed).arrayBuffer());
}

function joined(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function encode(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}
