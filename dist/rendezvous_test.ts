import { assertEquals, assertRejects } from "@std/assert";
import { TransientError, UserError } from "../base/errors.ts";
import { type Meeting, share } from "./rendezvous.ts";

const SECRET = Uint8Array.from({ length: 128 }, (_, i) => 7 * i);

/** A port of this machine that nothing listens at. */
function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return (listener.addr as Deno.NetAddr).port;
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

function meeting(rank: number, world_size: number, port: number, timeout_s = 20): Meeting {
  return { rank, world_size, job: "a", address: "127.0.0.1", ports: [port], timeout_s };
}

const join = (m: Meeting) => share(m.rank === 0 ? SECRET.slice() : new Uint8Array(128), m);

Deno.test("share() gives rank 0's bytes to all ranks, whatever the order they come in", async () => {
  for (const delays of [[0, 50, 0, 20], [300, 0, 0, 50]]) { // of each rank, ms
    const port = freePort();
    const all = await Promise.all(delays.map(async (ms, rank) => {
      await pause(ms);
      return await join(meeting(rank, delays.length, port));
    }));
    assertEquals(all, Array(4).fill(SECRET));
  }
  assertEquals(await join(meeting(0, 1, 1)), SECRET); // alone: opens no port
  const port = freePort(), month_s = 30 * 86400; // more than a timer counts to
  const first = join(meeting(0, 2, port, month_s));
  await pause(50);
  assertEquals(await Promise.all([first, join(meeting(1, 2, port, month_s))]), [SECRET, SECRET]);
});

Deno.test("share() drops connections that are none of ours", async () => {
  const port = freePort(), first = join(meeting(0, 2, port));
  const say = async (...bytes: number[]) => {
    const connection = await Deno.connect({ hostname: "127.0.0.1", port });
    await connection.write(Uint8Array.from(bytes));
    return connection;
  };
  await pause(50);
  const open = [
    await say(...new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n")),
    await say(0x6c, 0x6f), // and then nothing
  ];
  assertEquals(await open[0]!.read(new Uint8Array(1)), null); // no byte of the secret
  assertEquals(await Promise.all([first, join(meeting(1, 2, port))]), [SECRET, SECRET]);
  for (const connection of open) connection.close();
});

Deno.test("share() tells jobs apart that have the same port in mind, and finds the one that rank 0 took", async () => {
  const port = freePort(), ports = [port, port + 1, port + 2];
  const of = (job: string, rank: number, world_size = 2, timeout_s = 20) =>
    join({ ...meeting(rank, world_size, port, timeout_s), job, ports });
  const [first, other] = [of("1.0", 0), of("1.1", 0)]; // which takes the next port
  const refused = await assertRejects(
    () => join({ ...meeting(1, 2, port, 0.3), job: "2.0" }),
    TransientError,
    "rank 0 of another job listens there",
  );
  assertEquals(refused.message.includes(`for rank 0 at 127.0.0.1:${port} (`), true, refused.message);
  await assertRejects(
    () => join({ ...meeting(1, 3, port, 0.3), job: "1.0" }), // of a job of three
    TransientError,
    "rank 0 of another job listens there",
  );
  assertEquals(await Promise.all([other, of("1.1", 1), first, of("1.0", 1)]), Array(4).fill(SECRET));
});

Deno.test("share() reaches rank 0 over IPv6", async () => {
  const port = freePort(), v6 = (rank: number) => ({ ...meeting(rank, 2, port, 5), address: "::1" });
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
  } catch {
    return console.log("no IPv6 here: not tested");
  }
  assertEquals(await Promise.all([join(v6(0)), join(v6(1))]), [SECRET, SECRET]);
  await assertRejects(() => join(v6(1)), TransientError, `for rank 0 at [::1]:${port} (`);
});

Deno.test("share() says which rank waited for which", async () => {
  const port = freePort();
  const first = assertRejects(() => join(meeting(0, 3, port, 1)), UserError);
  await join(meeting(1, 3, port, 1));
  assertEquals(
    (await first).message,
    `Cannot start 3 ranks: rank 0 waited 1 s at port ${port} for rank 2; look at what those ranks printed, or allow more ` +
      "with --dist_timeout_s",
  );
  const alone = await assertRejects(
    () => join(meeting(1, 2, port, 0.3)),
    UserError,
    "rank 1 waited 0.3 s for rank 0 at",
  );
  assertEquals(alone.message.includes("Connection refused"), true, alone.message);
});

Deno.test("share() takes no bytes from a program that is not rank 0, and waits for no answer for ever", async () => {
  const talks = async (connection: Deno.Conn) => await connection.write(new Uint8Array(200).fill(0x41));
  const isSilent = () => Promise.resolve();
  for (
    const [answer, reason] of [[talks, "another program listens"], [isSilent, "no answer"]] as const
  ) {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const connections: Deno.Conn[] = [], { port } = listener.addr as Deno.NetAddr;
    const serving = (async () => {
      for await (const connection of listener) {
        connections.push(connection);
        await answer(connection);
      }
    })();
    await assertRejects(() => join(meeting(1, 2, port, 0.3)), UserError, reason);
    listener.close();
    await serving;
    for (const connection of connections) connection.close();
  }
});

Deno.test("share() waits no longer for a connection than for an answer", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0, tcpBacklog: 1 }); // takes two, and drops what others send
  const { port } = listener.addr as Deno.NetAddr;
  const waiting = [await Deno.connect({ port }), await Deno.connect({ port })], began = performance.now();
  await assertRejects(() => join(meeting(1, 2, port, 0.3)), UserError, "waited 0.3 s for rank 0");
  assertEquals(performance.now() - began < 5000, true);
  for (const connection of waiting) connection.close();
});

Deno.test("share() names a port that is taken", async () => {
  using taken = Deno.listen({ hostname: "0.0.0.0", port: 0 });
  const { port } = taken.addr as Deno.NetAddr;
  await assertRejects(
    () => join(meeting(0, 2, port)),
    UserError,
    `Cannot listen at port ${port} for the other ranks: `,
  );
});
