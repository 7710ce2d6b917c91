// GET /events: server-sent events of a run. A client that does not read loses events; it never costs the server memory.
import type { Change, Run } from "./runs.ts";
import { withoutHome } from "./stats.ts";
import type { Line } from "./table.ts";

const POLL_MS = 500; // how often a watched run directory is read
const HEARTBEAT_MS = 15_000; // proxies close connections that are silent for long
const RECONNECT_MS = 2000; // what clients wait when the connection is lost
const MOST_BYTES = 1 << 18; // waiting for one client

/** The connections of all runs. While there are any, it reads their directories twice a second. */
export class Events {
  readonly #clients = new Map<Client, { run: Run; listener: (change: Change) => void }>();
  #timers: ReturnType<typeof setInterval>[] = [];

  /** Connections now. */
  get count(): number {
    return this.#clients.size;
  }

  /**
   * The body of an answer, about a run that has just been refreshed. since: the last step that the client knows; undefined if
   * it wants only what is to come.
   */
  stream(run: Run, since: number | undefined): ReadableStream<Uint8Array<ArrayBuffer>> {
    const client = new Client();
    client.push(encode(`retry: ${RECONNECT_MS}\n${encodeState(run)}`));
    if (since !== undefined) client.push(encode(missedSince(run, since)));
    this.#join(client, run);
    return new ReadableStream({
      pull: async (controller) => {
        const chunks = await client.take();
        chunks.forEach((chunk) => controller.enqueue(chunk));
        if (client.ended) controller.close();
      },
      cancel: () => this.#leave(client),
    }, { highWaterMark: 0 });
  }

  /** Ends all connections after what waits for them. */
  close(): void {
    for (const client of [...this.#clients.keys()]) {
      client.end();
      this.#leave(client);
    }
  }

  #join(client: Client, run: Run): void {
    const listener = (change: Change) => client.push(encodeOnce(run, change));
    run.listeners.add(listener);
    this.#clients.set(client, { run, listener });
    if (this.#timers.length > 0) return;
    this.#timers = [setInterval(() => this.#poll(), POLL_MS), setInterval(() => this.#beat(), HEARTBEAT_MS)];
  }

  #leave(client: Client): void {
    const { run, listener } = this.#clients.get(client) ?? {};
    if (run && listener) run.listeners.delete(listener);
    this.#clients.delete(client);
    if (this.#clients.size === 0) this.#timers.splice(0).forEach(clearInterval);
  }

  #poll(): void {
    const watched = new Set(Array.from(this.#clients.values(), ({ run }) => run));
    for (const run of watched) run.refresh().catch(() => {}); // whoever asks for it next is told
  }

  #beat(): void {
    for (const client of this.#clients.keys()) client.push(HEARTBEAT);
  }
}

/** What waits for one connection. */
class Client {
  ended = false;
  #waiting: Uint8Array<ArrayBuffer>[] = [];
  #bytes = 0;
  #wake: () => void = () => {};

  /** Adds a chunk, or drops all that waits, leaving the word that the client missed something. */
  push(chunk: Uint8Array<ArrayBuffer>): void {
    const isFull = this.#bytes + chunk.length > MOST_BYTES;
    this.#waiting = isFull ? [RESYNC] : [...this.#waiting, chunk];
    this.#bytes = isFull ? RESYNC.length : this.#bytes + chunk.length;
    this.#wake();
  }

  end(): void {
    this.ended = true;
    this.#wake();
  }

  /** Resolves to all that waits, once there is any or the end has come. */
  async take(): Promise<Uint8Array<ArrayBuffer>[]> {
    while (this.#waiting.length === 0 && !this.ended) {
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
    this.#bytes = 0;
    return this.#waiting.splice(0);
  }
}

/** What a client that knows a step missed; the word to read the history again where that is too much. */
function missedSince(run: Run, since: number): string {
  const last = run.table.last("step");
  if (since > last) return encodeReset(last);
  const lines = run.table.linesAfter(since);
  return lines ? encodeSteps(lines) : RESYNC_TEXT;
}

/** The bytes of a change, which all clients of a run share. */
function encodeOnce(run: Run, change: Change): Uint8Array<ArrayBuffer> {
  const bytes = encoded.get(change) ?? encode(encodeChange(run, change));
  encoded.set(change, bytes);
  return bytes;
}
const encoded = new WeakMap<Change, Uint8Array<ArrayBuffer>>();

function encodeChange(run: Run, change: Change): string {
  switch (change.kind) {
    case "steps":
      return encodeSteps(change.lines);
    case "reset":
      return encodeReset(change.after);
    case "resync":
      return RESYNC_TEXT;
    case "sample":
      return `event: sample\ndata: ${JSON.stringify(change.sample)}\n\n`;
    case "state":
      return encodeState(run);
  }
}

function encodeSteps(lines: Line[]): string {
  return lines.map(({ step, text }) => `event: step\nid: ${step}\ndata: ${text}\n\n`).join("");
}

function encodeReset(after: number): string {
  return `event: reset\ndata: ${JSON.stringify({ after })}\n\n`;
}

function encodeState({ state, error, facts }: Run): string {
  const data = { state, started: facts.started ?? null, error: withoutHome(error) };
  return `event: state\ndata: ${JSON.stringify(data)}\n\n`;
}

function encode(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

const RESYNC_TEXT = "event: resync\ndata: {}\n\n";
const RESYNC = encode(RESYNC_TEXT), HEARTBEAT = encode(": still here\n\n");
