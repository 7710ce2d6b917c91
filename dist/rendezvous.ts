// How ranks find each other before NCCL can: rank 0 listens at MASTER_ADDR:MASTER_PORT and hands a few bytes, NCCL's unique
// id, to every other rank. They may come in any order and late; a connection that is none of ours, on either side, is dropped.
// Whose it is says the greeting: another job on the same machine may have the same port in mind.
import { hash } from "node:crypto";
import { TransientError, UserError } from "../base/errors.ts";

/** Where to meet, and who. */
export type Meeting = {
  /** This process, from 0. */
  rank: number;
  /** How many ranks there are. */
  world_size: number;
  /** A name that no other job has; "" where nothing gives it one. */
  job: string;
  /** Host that rank 0 runs on. */
  address: string;
  /** TCP ports: rank 0 listens at the first one that is free. */
  ports: number[];
  /** How long to wait for the others; 0 = for ever. */
  timeout_s: number;
};

const MAGIC_BYTES = new TextEncoder().encode("loam"), OTHER_BYTES = new TextEncoder().encode("othr"); // to a rank of another job
const RETRY_MS = 200;
const MOST_MS = 2 ** 31 - 1; // that a timer waits, 24 days: it calls at once where it is asked for more
const HELLO_MS = 5000; // for a connection to say which rank it is, and for rank 0 to answer

/**
 * The bytes that rank 0 passes, on every rank. Throws TransientError if the port is taken, or ranks do not come in time:
 * the message says which waited for which.
 */
export async function share(
  bytes: Uint8Array<ArrayBuffer>,
  meeting: Meeting,
): Promise<Uint8Array<ArrayBuffer>> {
  if (meeting.world_size === 1) return bytes;
  if (meeting.rank === 0) {
    await serve(bytes, meeting);
    return bytes;
  }
  return await ask(bytes.length, meeting);
}

// ---- rank 0

async function serve(bytes: Uint8Array<ArrayBuffer>, meeting: Meeting): Promise<void> {
  const { world_size, timeout_s } = meeting, missing = new Set<number>();
  for (let rank = 1; rank < world_size; rank++) missing.add(rank);
  using listener = listen(meeting.ports);
  const timer = timeout_s > 0
    ? setTimeout(() => closeQuietly(listener), Math.min(timeout_s * 1000, MOST_MS))
    : undefined;
  try {
    while (missing.size > 0) {
      const connection = await listener.accept();
      greet(connection, bytes, meeting, missing).then(() => {
        if (missing.size === 0) closeQuietly(listener); // ends the wait for one more
      });
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted)) throw error;
    if (missing.size === 0) return;
    throw new TransientError(
      `Cannot start ${world_size} ranks: rank 0 waited ${timeout_s} s at port ${
        (listener.addr as Deno.NetAddr).port
      } for rank ${[...missing].join(", ")}; ` +
        "look at what those ranks printed, or allow more with --dist_timeout_s",
    );
  } finally {
    clearTimeout(timer);
  }
}

/** Of IPv6 and IPv4 alike, where the system has both. */
function listen(ports: number[]): Deno.Listener {
  let reason = "";
  for (const port of ports) {
    for (const hostname of ["::", "0.0.0.0"]) {
      try {
        return Deno.listen({ hostname, port });
      } catch (error) {
        if (error instanceof Deno.errors.NotCapable) throw error;
        reason = (error as Error).message;
        if (error instanceof Deno.errors.AddrInUse) break;
      }
    }
  }
  throw new TransientError(
    `Cannot listen at port ${
      span(ports)
    } for the other ranks: ${reason}; set MASTER_PORT to a port that is free, under ` +
      "torchrun --master-port to one below it",
  );
}

/** "29501 to 29508" */
function span(ports: number[]): string {
  return ports.length > 1 ? `${ports[0]} to ${ports.at(-1)}` : `${ports[0]}`;
}

/** Answers a rank that says which it is. */
async function greet(
  connection: Deno.Conn,
  bytes: Uint8Array<ArrayBuffer>,
  meeting: Meeting,
  missing: Set<number>,
): Promise<void> {
  using _ = { [Symbol.dispose]: () => closeQuietly(connection) };
  const timer = setTimeout(() => closeQuietly(connection), HELLO_MS);
  try {
    const hello = await readAll(connection, HELLO_BYTES), [rank] = new Uint32Array(hello.buffer, 4, 1);
    if (!isEqual(hello.subarray(0, 4), MAGIC_BYTES)) return;
    if (!isEqual(hello, helloOf({ ...meeting, rank: rank! }))) return await writeAll(connection, OTHER_BYTES);
    if (!missing.has(rank!)) return;
    await writeAll(connection, Uint8Array.of(...MAGIC_BYTES, ...bytes));
    missing.delete(rank!);
  } catch {
    // it left, or said too little: no rank of ours, or one that will try again
  } finally {
    clearTimeout(timer);
  }
}

const HELLO_BYTES = 28;

/** What a rank says of itself: "loam", its number, how many there are, and the job. */
function helloOf({ rank, world_size, job }: Meeting): Uint8Array<ArrayBuffer> {
  const numbers = new Uint8Array(Uint32Array.of(rank, world_size).buffer);
  return Uint8Array.of(...MAGIC_BYTES, ...numbers, ...hash("sha256", job, "buffer").subarray(0, 16));
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

// ---- other ranks

async function ask(length: number, meeting: Meeting): Promise<Uint8Array<ArrayBuffer>> {
  const { rank, world_size, ports, timeout_s } = meeting, began = performance.now();
  const address = meeting.address.includes(":") ? `[${meeting.address}]` : meeting.address;
  for (let attempt = 0, reason = "";; attempt++) {
    const port = ports[attempt % ports.length]!;
    try {
      return await request(meeting, port, length);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) {
        throw new UserError(
          `Cannot reach rank 0 at ${address}:${port}: this program may not connect there; start the ranks with: ` +
            "deno run -q -P=train --allow-ffi --allow-net train.ts",
        );
      }
      const why = (error as Error).message, isRefused = error instanceof Deno.errors.ConnectionRefused;
      if (!(isRefused && reason)) reason = why; // of several ports the one where something answers says more
    }
    if (port !== ports.at(-1)) continue;
    if (timeout_s > 0 && performance.now() - began > timeout_s * 1000) {
      throw new TransientError(
        `Cannot start ${world_size} ranks: rank ${rank} waited ${timeout_s} s for rank 0 at ${address}:${
          span(ports)
        } (${reason}); ` +
          "set MASTER_ADDR and MASTER_PORT to where rank 0 runs, or allow more with --dist_timeout_s",
      );
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Says hello to what listens there, and returns what rank 0 hands out. */
async function request(
  meeting: Meeting,
  port: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const { address, timeout_s } = meeting, patience = new AbortController(), { signal } = patience;
  const timer = setTimeout(() => patience.abort(), Math.min(HELLO_MS, 1000 * timeout_s || HELLO_MS));
  try {
    using connection = await Deno.connect({ hostname: address, port, signal }); // a host that is off lets it wait for minutes
    signal.addEventListener("abort", () => closeQuietly(connection));
    await writeAll(connection, helloOf(meeting));
    const magic = await readAll(connection, MAGIC_BYTES.length);
    if (isEqual(magic, OTHER_BYTES)) throw new Error("rank 0 of another job listens there");
    if (!isEqual(magic, MAGIC_BYTES)) throw new Error("another program listens there");
    return await readAll(connection, length);
  } catch (error) {
    throw signal.aborted ? new Error("no answer from there") : error;
  } finally {
    clearTimeout(timer);
  }
}

// ---- bytes

async function readAll(connection: Deno.Conn, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length;) { // a read may bring less than was asked for
    const n = await connection.read(bytes.subarray(done));
    if (n === null) throw new Error(`the connection ended after ${done} of ${length} bytes`);
    done += n;
  }
  return bytes;
}

async function writeAll(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

function closeQuietly(resource: { close(): void }): void {
  try {
    resource.close();
  } catch {
    // closed already
  }
}
