// How ranks find each other before NCCL can: rank 0 listens at MASTER_ADDR:MASTER_PORT and hands a few bytes, NCCL's unique
// id, to every other rank. They may come in any order and late; a connection that is none of ours, on either side, is dropped.
import { TransientError, UserError } from "../base/errors.ts";

/** Where to meet, and who. */
export type Meeting = {
  /** This process, from 0. */
  rank: number;
  /** How many ranks there are. */
  world_size: number;
  /** Host that rank 0 runs on. */
  address: string;
  /** TCP port that rank 0 listens at. */
  port: number;
  /** How long to wait for the others; 0 = for ever. */
  timeout_s: number;
};

const MAGIC = 0x6c6f616d; // "loam"
const MAGIC_BYTES = new Uint8Array(Uint32Array.of(MAGIC).buffer);
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
  const { world_size, port, timeout_s } = meeting, missing = new Set<number>();
  for (let rank = 1; rank < world_size; rank++) missing.add(rank);
  using listener = listen(port);
  const timer = timeout_s > 0
    ? setTimeout(() => listener.close(), Math.min(timeout_s * 1000, MOST_MS))
    : undefined;
  try {
    while (missing.size > 0) {
      const connection = await listener.accept();
      greet(connection, bytes, world_size, missing).then(() => {
        if (missing.size === 0) closeQuietly(listener); // ends the wait for one more
      });
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted)) throw error;
    if (missing.size === 0) return;
    throw new TransientError(
      `Cannot start ${world_size} ranks: rank 0 waited ${timeout_s} s at port ${port} for rank ${
        [...missing].join(", ")
      }; ` +
        "look at what those ranks printed, or allow more with --dist_timeout_s",
    );
  } finally {
    clearTimeout(timer);
  }
}

function listen(port: number): Deno.Listener {
  try {
    return Deno.listen({ hostname: "0.0.0.0", port });
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new TransientError(
      `Cannot listen at port ${port} for the other ranks: ${
        (error as Error).message
      }; set MASTER_PORT to a port that is free, under torchrun --master-port to one below it`,
    );
  }
}

/** Answers a rank that says which it is. */
async function greet(
  connection: Deno.Conn,
  bytes: Uint8Array<ArrayBuffer>,
  world_size: number,
  missing: Set<number>,
): Promise<void> {
  using _ = { [Symbol.dispose]: () => closeQuietly(connection) };
  const timer = setTimeout(() => closeQuietly(connection), HELLO_MS);
  try {
    const [magic, size, rank] = new Uint32Array((await readAll(connection, 12)).buffer);
    if (magic !== MAGIC || size !== world_size || !missing.has(rank!)) return;
    await writeAll(connection, Uint8Array.of(...MAGIC_BYTES, ...bytes));
    missing.delete(rank!);
  } catch {
    // it left, or said too little: no rank of ours, or one that will try again
  } finally {
    clearTimeout(timer);
  }
}

// ---- other ranks

async function ask(length: number, meeting: Meeting): Promise<Uint8Array<ArrayBuffer>> {
  const { rank, world_size, address, port, timeout_s } = meeting, began = performance.now();
  const hello = new Uint8Array(Uint32Array.of(MAGIC, world_size, rank).buffer);
  for (let reason = "";;) {
    try {
      return await request(meeting, hello, length);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) {
        throw new UserError(
          `Cannot reach rank 0 at ${address}:${port}: this program may not connect there; start the ranks with: ` +
            "deno task train:dist",
        );
      }
      reason = (error as Error).message;
    }
    if (timeout_s > 0 && performance.now() - began > timeout_s * 1000) {
      throw new TransientError(
        `Cannot start ${world_size} ranks: rank ${rank} waited ${timeout_s} s for rank 0 at ${address}:${port} (${reason}); ` +
          "set MASTER_ADDR and MASTER_PORT to where rank 0 runs, or allow more with --dist_timeout_s",
      );
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Says hello to what listens there, and returns what rank 0 hands out. */
async function request(
  { address, port, timeout_s }: Meeting,
  hello: Uint8Array,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const patience = new AbortController(), { signal } = patience;
  const timer = setTimeout(() => patience.abort(), Math.min(HELLO_MS, 1000 * timeout_s || HELLO_MS));
  try {
    using connection = await Deno.connect({ hostname: address, port, signal }); // a host that is off lets it wait for minutes
    signal.addEventListener("abort", () => closeQuietly(connection));
    await writeAll(connection, hello);
    const magic = await readAll(connection, MAGIC_BYTES.length);
    if (magic.some((byte, i) => byte !== MAGIC_BYTES[i])) throw new Error("another program listens there");
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
