// Files on web servers: their bytes by range requests, going on where a connection broke.
import { UserError } from "../../base/errors.ts";
import type { ByteSource } from "./bytes.ts";
import { credentials, isHub } from "./hub.ts";
import { followed } from "./redirects.ts";

/** How long to put up with a server. */
export type Patience = {
  /** Pause before the second try; twice as long before each one after. */
  retry_ms: number;
  /** A connection on which nothing comes for so long counts as broken. */
  silence_ms: number;
};

const PATIENCE: Patience = { retry_ms: 1000, silence_ms: 60_000 };
const TRIES = 5; // in a row without a byte
const LONGEST_PAUSE_MS = 600_000; // even if a server asks for more
const REDIRECTS = 10; // at most
const BUSY = [408, 425, 429, 500, 502, 503, 504]; // answers after which another try may succeed

/** Whether a name is a URL. */
export function isUrl(name: string): boolean {
  return /^(https?|hf):\/\//.test(name);
}

// ---- requests

/** What a server has at an address. */
export type UrlInfo = {
  /** Bytes of the file, 0 if the server does not say. */
  bytes: number;
  /** ETag or Last-Modified, "" if it has neither. */
  version: string;
  /** Whether the server can send a part of it. */
  ranges: boolean;
};

/**
 * Asks a server about a file, by requesting its first byte. Throws UserError if there is no such file, it may not be
 * read or is empty, or the server cannot be reached.
 */
export async function probeUrl(url: string, patience: Patience = PATIENCE): Promise<UrlInfo> {
  const retries = new Retries(url, patience);
  while (true) {
    const connection = new Connection(patience);
    try {
      const { status, total, version } = await connection.request(url, "bytes=0-0");
      if (status === 206) await connection.end();
      if (status === 416 || total === 0) throw new UserError(`Cannot read "${url}": it is empty`);
      return { bytes: total ?? 0, version, ranges: status === 206 };
    } catch (error) {
      await retries.pause(error);
    } finally {
      connection.close();
    }
  }
}

/** A part of a list. */
export type JsonPage = {
  /** The JSON that was sent. */
  value: unknown;
  /** Address of the next part, undefined for the last one. */
  next: string | undefined;
};

/**
 * Fetches JSON from a server that sends long lists in parts. Throws UserError if it may not be read, is not JSON, or
 * the server cannot be reached.
 */
export async function fetchJson(url: string, patience: Patience = PATIENCE): Promise<JsonPage> {
  const retries = new Retries(url, patience);
  while (true) {
    const connection = new Connection(patience);
    try {
      const { next } = await connection.request(url), utf8 = new TextDecoder();
      let text = "";
      for (let bytes; (bytes = await connection.next()) !== undefined;) {
        text += utf8.decode(bytes, { stream: true });
      }
      const value: unknown = JSON.parse(text);
      if (next === undefined) return { value, next };
      const token = "authorization" in credentials(url);
      return { value, next: await followed({ named: url, from: url, location: next, token }) };
    } catch (error) {
      if (error instanceof SyntaxError) throw new UserError(`Cannot read "${url}": ${error.message}`);
      await retries.pause(error);
    } finally {
      connection.close();
    }
  }
}

/** A file on a web server. */
export class UrlBytes implements ByteSource {
  /** Its URL. */
  readonly name: string;
  /** Infinity if the server does not say. */
  readonly size: number;
  readonly #version: string;
  readonly #patience: Patience;

  /** Takes what probeUrl() found. */
  constructor(url: string, { bytes, version }: { bytes: number; version: string }, patience = PATIENCE) {
    this.name = url;
    this.size = bytes || Infinity;
    this.#version = version;
    this.#patience = patience;
  }

  /**
   * Bytes [from, to) as they come. After a failure they go on where they stopped. Throws UserError if the server
   * fails again and again, the file has changed, or the server sends no parts and from is not 0.
   */
  async *read(from: number, to: number): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const retries = new Retries(this.name, this.#patience);
    for (let at = from; at < to;) {
      try {
        for await (const chunk of this.#stream(from, at, to)) {
          at += chunk.length;
          retries.reset();
          yield chunk;
        }
        if (to === Infinity) return;
        if (at < to) throw new Error(`the connection ended at byte ${at} of ${to}`);
      } catch (error) {
        await retries.pause(error);
      }
    }
  }

  /** Bytes [at, to) from one connection. from: where reading began. */
  async *#stream(from: number, at: number, to: number): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const connection = new Connection(this.#patience);
    try {
      const range = `bytes=${at}-${to === Infinity ? "" : to - 1}`;
      const { status, start, version, total = this.size } = await connection.request(this.name, range);
      if (version !== this.#version) throw changed(this.name, "version", version, this.#version);
      if (total !== this.size && this.size !== Infinity) throw changed(this.name, "size", total, this.size);
      if (status !== 206 && from > 0) throw noRanges(this.name);
      if (start > at) throw new Error(`the server sent bytes from ${start} on, should be ${at}`);
      let skip = at - start; // of a server that begins at 0 whatever one asks for
      for (let left = to - at; left > 0;) {
        const bytes = await connection.next();
        if (bytes === undefined) return;
        const chunk = bytes.subarray(skip, skip + left);
        skip = Math.max(0, skip - bytes.length);
        left -= chunk.length;
        if (left === 0 && status === 206) await connection.end();
        if (chunk.length > 0) yield chunk;
      }
    } finally {
      connection.close();
    }
  }
}

/** The beginning of an answer. */
type Answer = {
  status: number;
  /** Place in the file of the first byte that follows. */
  start: number;
  /** Bytes of the whole file, undefined if the server does not say. */
  total: number | undefined;
  /** ETag or Last-Modified, "" if it has neither. */
  version: string;
  /** Address of the next part of a list. */
  next: string | undefined;
};

/** One request and what comes back. */
class Connection {
  readonly #silence_ms: number;
  readonly #controller = new AbortController();
  #body: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>> | undefined;

  constructor({ silence_ms }: Patience) {
    this.#silence_ms = silence_ms;
  }

  /**
   * Asks for a file or a range of it, where the URL redirects to if that may be followed. A server may send the whole
   * file in any case. Throws UserError for answers that will not get better, Busy for those that may.
   */
  async request(url: string, range?: string): Promise<Answer> {
    let address = url, linked: string | null = null, token = false;
    for (let redirects = 0; redirects <= REDIRECTS; redirects++) {
      const { signal } = this.#controller;
      const login = credentials(address);
      token ||= "authorization" in login;
      const headers = { "accept-encoding": "identity", ...range && { range }, ...login };
      const response = await this.#timed(fetch(address, { headers, redirect: "manual", signal }));
      linked ??= response.headers.get("x-linked-etag"); // the hub's, where the servers it redirects to have their own
      const location = response.headers.get("location");
      if (response.status >= 300 && response.status < 400 && location !== null) {
        await response.body?.cancel();
        address = await followed({ named: url, from: address, location, token });
        continue;
      }
      this.#body = response.body?.getReader();
      if (BUSY.includes(response.status)) throw new Busy(response);
      if (!response.ok && response.status !== 416) throw refused(url, response);
      const { status, headers: got } = response;
      const version = linked ?? got.get("etag") ?? got.get("last-modified") ?? "";
      const next = /<([^>]+)>;\s*rel="next"/.exec(got.get("link") ?? "")?.[1];
      return { status, version, next, ...place(response) };
    }
    throw new UserError(`Cannot read "${url}": it redirects more than ${REDIRECTS} times; check the address`);
  }

  /** The next bytes, undefined at the end. */
  async next(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    if (this.#body === undefined) return undefined;
    return (await this.#timed(this.#body.read())).value;
  }

  /** Reads to the end of the answer, after which the connection can serve another request. */
  async end(): Promise<void> {
    while (await this.next() !== undefined);
  }

  /** Ends the connection if something is still to come. */
  close(): void {
    this.#body?.cancel().catch(() => {}); // of one that broke: nothing is left to end
    this.#controller.abort();
  }

  async #timed<T>(promise: Promise<T>): Promise<T> {
    const silence = new Error(`nothing came for ${this.#silence_ms / 1000} s`);
    const timer = setTimeout(() => this.#controller.abort(silence), this.#silence_ms);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Where the bytes of an answer are in the file, and how many that has. */
function place({ status, headers }: Response): { start: number; total: number | undefined } {
  const [, start, total] = /^bytes (\d+)-\d+\/(\d+)/.exec(headers.get("content-range") ?? "") ?? [];
  if (status === 206) {
    return { start: Number(start ?? 0), total: total === undefined ? undefined : Number(total) };
  }
  const length = headers.get("content-length");
  return { start: 0, total: length === null ? undefined : Number(length) };
}

// ---- failures

/** A server that asks for another try. */
class Busy extends Error {
  /** Pause that it asks for. */
  readonly pause_ms: number;

  constructor({ status, statusText, headers }: Response) {
    super(`the server says ${status} ${statusText}`);
    this.pause_ms = 1000 * Number(headers.get("retry-after") ?? 0) || 0; // which may also be a date
  }
}

/** Counts failures in a row. */
class Retries {
  readonly #url: string;
  readonly #patience: Patience;
  #failures = 0;

  constructor(url: string, patience: Patience) {
    this.#url = url;
    this.#patience = patience;
  }

  /** Call it when something has come. */
  reset(): void {
    this.#failures = 0;
  }

  /** Waits before the next try; throws if it makes no sense, or if there were enough. */
  async pause(error: unknown): Promise<void> {
    if (error instanceof UserError || error instanceof Deno.errors.NotCapable) throw error;
    if (++this.#failures === TRIES) {
      throw new UserError(
        `Cannot read "${this.#url}": ${reasonOf(error)}, and ${TRIES} tries in a row failed; ` +
          `check the network and run the same command again`,
      );
    }
    const pause_ms = this.#patience.retry_ms * 2 ** (this.#failures - 1);
    const asked_ms = error instanceof Busy ? Math.min(error.pause_ms, LONGEST_PAUSE_MS) : 0;
    await new Promise((resolve) => setTimeout(resolve, Math.max(pause_ms, asked_ms)));
  }
}

/** What went wrong, without fetch()'s wrapping. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  if (cause !== undefined) return reasonOf(cause);
  return message.replace(/^error sending request for url \(.*?\): /, "");
}

function refused(url: string, { status, statusText }: Response): UserError {
  const hint = status !== 401 && status !== 403
    ? "check the address"
    : isHub(url)
    ? "check the address, or set HF_TOKEN to a token that may read it"
    : "it needs a login, so download the file and name that";
  return new UserError(`Cannot read "${url}": the server says ${`${status} ${statusText}`.trim()}; ${hint}`);
}

function changed(url: string, what: string, is: string | number, was: string | number): UserError {
  return new UserError(
    `Cannot read "${url}": it has changed on the server: its ${what} is ${is || "unknown"}, ` +
      `was ${was || "unknown"} at the start; prepare again with --overwrite`,
  );
}

/** The error for a server that sends only whole files, or parts without the size of the whole, where that does not do. */
export function noRanges(url: string): UserError {
  return new UserError(
    `Cannot read "${url}": its server does not send parts of a file and its size, which parquet needs; download the file and name that`,
  );
}
