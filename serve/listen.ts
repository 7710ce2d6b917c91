// Opens the port, and shares it fairly: no number of clients, however slow, keeps others from their answers for long.
import { UserError } from "../base/errors.ts";
import { HEALTH } from "./access.ts";
import type { App } from "./app.ts";
import { type Asked, Connection, type Deadlines } from "./http.ts";
import { Refusal, report } from "./refusal.ts";

/** Where to listen. */
export type Address = {
  hostname: string;
  port: number; // 0: any that is free
  flag: string; // that chooses another port
};

/** An app that can be reached. */
export type Listening = { url: string; close: () => Promise<void> };

/** What clients may use up. */
export type Limits = Deadlines & {
  connections: number;
  per_client: number; // connections from one address
};

/** The limits of a server that has a process to itself. */
export const LIMITS: Limits = {
  header_ms: 10_000,
  body_ms: 20_000,
  idle_ms: 15_000,
  write_ms: 30_000,
  connections: 512,
  per_client: 256,
};

const SPARE = 16; // connections beyond the limits, which may ask for /healthz only
const GRACE_MS = 2000; // for answers that are under way
const PAUSE_MS = 100; // until connections are accepted again
const WARN_MS = 60_000;
const TRIES = 20; // ports to look at for one that is free

/** Serves an app until close(). Throws UserError if the port is taken or the address is not one of this machine. */
export function listen(app: App, address: Address, limits: Limits = LIMITS): Listening {
  const listener = open(address), server = new Server(app, listener, limits);
  const { hostname } = address, host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return { url: `http://${host}:${listener.addr.port}/`, close: () => server.close() };
}

type Client = {
  connection: Connection;
  address: string;
  waits_since: number | undefined; // for a request; undefined while one is answered
  isSpare: boolean;
};

/** The connections of a listener. Whoever has no place left gets the one that has waited longest for a request. */
class Server {
  readonly #app: App;
  readonly #listener: Deno.TcpListener;
  readonly #limits: Limits;
  readonly #clients = new Map<Client, Promise<void>>(); // each with its end
  readonly #accepting: Promise<void>;
  #isClosing = false;
  #warned = -Infinity;

  constructor(app: App, listener: Deno.TcpListener, limits: Limits) {
    this.#app = app;
    this.#listener = listener;
    this.#limits = limits;
    this.#accepting = this.#accept();
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    this.#listener.close();
    this.#app.close();
    const all = [...this.#clients.keys()];
    for (const client of all) if (client.waits_since !== undefined) client.connection.close();
    const impatience = setTimeout(() => all.forEach(({ connection }) => connection.close()), GRACE_MS);
    await Promise.all([this.#accepting, ...this.#clients.values()]);
    clearTimeout(impatience);
  }

  async #accept(): Promise<void> {
    while (!this.#isClosing) {
      try {
        this.#admit(await this.#listener.accept());
      } catch (error) {
        if (this.#isClosing) return;
        this.#makeRoom(error as Error); // no file descriptor is left, or a client was gone before it was accepted
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      }
    }
  }

  #admit(tcp: Deno.TcpConn): void {
    const { connections, per_client } = this.#limits, address = tcp.remoteAddr.hostname;
    const all = [...this.#clients.keys()], own = all.filter((client) => client.address === address);
    const rivals = own.length >= per_client ? own : all.length >= connections ? all : undefined;
    const isSpare = rivals !== undefined && !closeWaiting(rivals);
    if (isSpare && all.filter((client) => client.isSpare).length >= SPARE) return tcp.close();
    const connection = new Connection(tcp, this.#limits), waits_since = performance.now();
    const client: Client = { connection, address, waits_since, isSpare };
    this.#clients.set(client, this.#serve(client));
  }

  /** Closes some connections that wait, so that files can be opened too. */
  #makeRoom({ message }: Error): void {
    for (let i = 0; i < SPARE; i++) closeWaiting([...this.#clients.keys()]);
    if (performance.now() - this.#warned < WARN_MS) return;
    this.#warned = performance.now();
    report(
      `warning: Cannot take more than ${this.#clients.size} connections: ${message}; those that wait are closed`,
    );
  }

  /** Answers requests until the client leaves. */
  async #serve(client: Client): Promise<void> {
    const { connection } = client;
    try {
      let asked: Asked | undefined;
      do {
        client.waits_since = performance.now();
        asked = await connection.read(({ url }) => {
          if (client.isSpare && new URL(url).pathname !== HEALTH) {
            throw new Refusal(503, CROWDED, { headers: { "Retry-After": "1" } });
          }
        });
        client.waits_since = undefined;
        if (asked) await this.#answer(connection, asked);
      } while (asked?.keeps && !client.isSpare && !this.#isClosing);
    } catch (error) {
      if (error instanceof Refusal) await connection.refuse(error).catch(() => {});
      else if (!connection.gone.aborted) report(error);
    } finally {
      connection.close();
      this.#clients.delete(client);
    }
  }

  async #answer(connection: Connection, asked: Asked): Promise<void> {
    const { promise: completed, resolve } = Promise.withResolvers<void>();
    try {
      await connection.answer(
        asked,
        await this.#app.hono.fetch(requestOf(asked, connection.gone), { completed }),
      );
    } finally {
      resolve();
    }
  }
}

const CROWDED = "The server has no place for another connection";

/** Closes the connection that has waited longest for a request; false if none waits. */
function closeWaiting(clients: Client[]): boolean {
  const waiting = clients.filter(({ waits_since }) => waits_since !== undefined);
  const longest = waiting.reduce<Client | undefined>(
    (a, b) => a && a.waits_since! <= b.waits_since! ? a : b,
    undefined,
  );
  if (!longest) return false;
  longest.waits_since = undefined; // it is deleted a moment later
  longest.connection.close();
  return true;
}

/** The request as the app takes it. What HEAD asks for is what GET does, without its body. */
function requestOf({ method, url, headers, body }: Asked, signal: AbortSignal): Request {
  try {
    const isGet = method === "GET" || method === "HEAD";
    return new Request(url, { method: isGet ? "GET" : method, headers, body: isGet ? null : body, signal });
  } catch {
    throw new Refusal(501, `${method} is not a method of this server`); // such as CONNECT
  }
}

function open({ hostname, port, flag }: Address): Deno.TcpListener {
  try {
    return Deno.listen({ hostname, port });
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    if (!(error instanceof Deno.errors.AddrInUse)) {
      throw new UserError(`Cannot serve on ${hostname} port ${port}: ${(error as Error).message}`);
    }
    const free = freePort(hostname, port + 1), advice = free ? `, such as ${flag}=${free}` : " with " + flag;
    throw new UserError(
      `Cannot serve on port ${port}: another program does already; choose another${advice}`,
    );
  }
}

function freePort(hostname: string, from: number): number | undefined {
  for (let port = from; port < Math.min(from + TRIES, 65536); port++) {
    try {
      Deno.listen({ hostname, port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) return undefined;
    }
  }
  return undefined;
}
