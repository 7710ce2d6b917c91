// Opens the port.
import { UserError } from "../ffi/errors.ts";
import type { App } from "./app.ts";

/** Where to listen. */
export type Address = {
  hostname: string;
  port: number; // 0: any that is free
  flag: string; // that chooses another port
};

/** An app that can be reached. */
export type Listening = { url: string; close: () => Promise<void> };

const GRACE_MS = 2000; // for answers that are under way
const TRIES = 20; // ports to look at for one that is free

/**
 * Serves an app until close().
 *
 * @throws {UserError} if the port is taken or the address is not one of this machine.
 */
export function listen(app: App, address: Address): Listening {
  const abort = new AbortController(), server = open(app, address, abort.signal);
  const { hostname } = address, host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return {
    url: `http://${host}:${server.addr.port}/`,
    close: async () => {
      app.close();
      const impatience = setTimeout(() => abort.abort(), GRACE_MS);
      await server.shutdown();
      clearTimeout(impatience);
    },
  };
}

function open(app: App, address: Address, signal: AbortSignal): Deno.HttpServer<Deno.NetAddr> {
  const { hostname, port, flag } = address;
  try {
    const options = { hostname, port, signal, onListen: () => {}, automaticCompression: true };
    return Deno.serve(options, (request, info) => app.hono.fetch(request, info));
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
