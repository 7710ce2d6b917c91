import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { Hono } from "hono";
import { createApp } from "./app.ts";
import { LIMITS, type Limits, listen } from "./listen.ts";
import { FakeRun, RawClient, statusOf } from "./testing.ts";

const HOST = { hostname: "127.0.0.1", flag: "--port" };

Deno.test("listen() answers until it is closed, and ends what lasts", async () => {
  using fake = new FakeRun(1);
  const server = listen(createApp({ runs: [fake.run()] }), { ...HOST, port: 0 });
  assertMatch(server.url, /^http:\/\/127\.0\.0\.1:\d+\/$/);
  assertEquals((await (await fetch(`${server.url}stats`)).json()).step, 1);
  const events = await fetch(`${server.url}events`);
  const [, text] = await Promise.all([server.close(), events.text()]);
  assertMatch(text, /^retry: 2000\nevent: state\n/);
  await assertRejects(() => fetch(`${server.url}stats`), TypeError);
});

Deno.test("listen() on a port that is taken names it and one that is free", async () => {
  const app = createApp({ runs: [] }), server = listen(app, { ...HOST, port: 0 });
  const port = Number(new URL(server.url).port);
  const error = assertThrows(() => listen(app, { ...HOST, port }), UserError);
  assertMatch(
    error.message,
    /^Cannot serve on port \d+: another program does already; choose another, such as --port=\d+$/,
  );
  const free = Number(/=(\d+)$/.exec(error.message)![1]);
  await listen(app, { ...HOST, port: free }).close();
  await server.close();
});

Deno.test("listen() on an address of another machine says so", () => {
  const elsewhere = { hostname: "203.0.113.1", port: 0, flag: "--port" }; // set aside for documentation
  const { state } = Deno.permissions.querySync({ name: "net", host: elsewhere.hostname });
  const failure = state === "granted" ? UserError : Deno.errors.NotCapable;
  assertThrows(() => listen(createApp({ runs: [] }), elsewhere), failure);
});

Deno.test("the dashboard's data are compressed, live events are not", async () => {
  using fake = new FakeRun(3000);
  const server = listen(createApp({ runs: [fake.run()] }), { ...HOST, port: 0 });
  const encodingOf = async (path: string) => {
    using client = new RawClient(server.url);
    await client.send(`GET ${path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n`);
    return /^content-encoding: (.*)\r$/im.exec(await client.receive("\r\n\r\n"))?.[1];
  };
  assertEquals(await encodingOf("/stats/history"), "gzip");
  assertEquals(await encodingOf("/uplot.js"), "gzip");
  assertEquals(await encodingOf("/events"), undefined);
  await server.close();
});

// ---- clients that never come to an end

const GET = "GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n";
const HALF_HEADER = "GET /stats HTTP/1.1\r\nHost: local";
const HALF_BODY = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
const HALF_CHUNK =
  "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{";
const SHORT: Limits = { ...LIMITS, header_ms: 200, body_ms: 200, idle_ms: 200, write_ms: 200 };

Deno.test("a request that does not come to its end in time is refused, and one that does not begin is hung up on", async () => {
  using fake = new FakeRun(1);
  const server = listen(createApp({ runs: [fake.run()] }), { ...HOST, port: 0 }, SHORT);
  const late = /^HTTP\/1\.1 408 Request Timeout\r\n[^]*"The request did not come to its end in time"/;
  const cases: [string, RegExp][] = [
    ["", /^$/],
    ["\r\n", /^$/],
    [GET, /^HTTP\/1\.1 200 OK\r\n[^]*\}$/],
    [HALF_HEADER, late],
    [HALF_BODY, late],
    [HALF_CHUNK, late],
    [GET + HALF_HEADER, /^HTTP\/1\.1 200 OK\r\n[^]*HTTP\/1\.1 408/],
  ];
  await Promise.all(cases.map(async ([sent, expected]) => {
    using client = new RawClient(server.url);
    await client.send(sent);
    assertMatch(await client.receive(), expected, sent);
  }));
  await server.close();
});

Deno.test("a request has its time as a whole: byte by byte does not lengthen it", async () => {
  const server = listen(createApp({ runs: [] }), { ...HOST, port: 0 }, SHORT);
  for (const begin of [HALF_HEADER, HALF_BODY]) {
    using client = new RawClient(server.url);
    await client.send(begin);
    let drops = 0;
    const dripping = setInterval(() => {
      drops++;
      client.send("x");
    }, 20);
    assertMatch(await client.receive(), /^HTTP\/1\.1 408/);
    assert(drops < 100, `${drops}`); // 10, and fewer where the machine is busy
    clearInterval(dripping);
  }
  await server.close();
});

Deno.test("a client that does not take its answer is hung up on", async () => {
  const hono = new Hono(), ended: Promise<void>[] = [];
  hono.get("/:kind", (c) => {
    ended.push((c.env as { completed: Promise<void> }).completed);
    const body = ReadableStream.from(Array(64).fill(new Uint8Array(1 << 20))); // more than any socket holds
    const type = c.req.param("kind") === "stream" ? "text/event-stream" : "text/plain";
    return c.body(body, 200, { "Content-Type": type });
  });
  const server = listen({ hono, close() {} }, { ...HOST, port: 0 }, SHORT);
  for (const kind of ["stream", "text"]) {
    using client = new RawClient(server.url);
    await client.send(`GET /${kind} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    await client.receive("HTTP/1.1 200 OK");
    await ended.pop();
  }
  await server.close();
});

Deno.test("a client that leaves ends what it asked for", async () => {
  const hono = new Hono(), left: PromiseWithResolvers<string> = Promise.withResolvers();
  hono.get("/wait", async (c) => {
    const { signal } = c.req.raw;
    if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve));
    left.resolve("aborted");
    return c.text("");
  });
  hono.get("/stream", (c) => {
    const body = new ReadableStream({ cancel: () => stream.resolve("cancelled") });
    return c.body(body, 200, { "Content-Type": "text/event-stream" });
  });
  const stream: PromiseWithResolvers<string> = Promise.withResolvers();
  const server = listen({ hono, close() {} }, { ...HOST, port: 0 });
  for (const path of ["/wait", "/stream"]) {
    using client = new RawClient(server.url);
    await client.send(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
  }
  assertEquals(await Promise.all([left.promise, stream.promise]), ["aborted", "cancelled"]);
  await server.close();
});

Deno.test("whoever comes when all places are taken gets that of the connection that waits longest", async () => {
  using fake = new FakeRun(1);
  const app = createApp({ runs: [fake.run()] });
  for (const limits of [{ per_client: 4 }, { connections: 4 }]) {
    for (const begin of ["", HALF_HEADER, HALF_BODY, HALF_CHUNK]) {
      const server = listen(app, { ...HOST, port: 0 }, { ...LIMITS, ...limits });
      const slow: RawClient[] = [];
      for (let i = 0; i < 20; i++) {
        slow.push(await new RawClient(server.url).send(begin));
        using client = new RawClient(server.url);
        assertMatch(await (await client.send(GET)).receive("}"), /^HTTP\/1\.1 200/);
      }
      assertEquals(await slow[0]!.receive(), ""); // the oldest one is gone
      slow.forEach((client) => client[Symbol.dispose]());
      await server.close();
    }
  }
});

Deno.test("while all places are answered, others are told so, and /healthz has a place yet", async () => {
  using fake = new FakeRun(1);
  const app = createApp({ runs: [fake.run()] });
  const server = listen(app, { ...HOST, port: 0 }, { ...LIMITS, per_client: 4 });
  const following = await Promise.all(Array.from({ length: 4 }, () => fetch(`${server.url}events`)));
  for (let i = 0; i < 20; i++) { // more than there are places to spare
    assertEquals((await getHealth(server.url))[0], 200);
    using client = new RawClient(server.url);
    const answer = await (await client.send(GET)).receive();
    assertMatch(
      answer,
      /^HTTP\/1\.1 503 [^]*retry-after: 1\r\n[^]*"The server has no place for another connection"/,
    );
  }
  await Promise.all(following.map(({ body }) => body!.cancel()));
  while (true) { // until the server has noticed
    using client = new RawClient(server.url);
    if (/^HTTP\/1\.1 200/.test(await (await client.send(GET)).receive("}"))) break;
  }
  await server.close();
});

/** Status and text of GET /healthz on a connection of its own. */
async function getHealth(url: string): Promise<[number, string]> {
  using client = new RawClient(url);
  const text =
    await (await client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
      .receive();
  return [Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1]), text];
}

Deno.test("300 half-sent bodies keep nobody from an answer", async () => {
  using fake = new FakeRun(1);
  const server = listen(createApp({ runs: [fake.run()] }), { ...HOST, port: 0 });
  const slow = await Promise.all(
    Array.from({ length: 300 }, () => new RawClient(server.url).send(HALF_BODY)),
  );
  assertEquals(await statusOf(`${server.url}stats`), 200);
  assertEquals((await getHealth(server.url))[0], 200);
  slow.forEach((client) => client[Symbol.dispose]());
  await server.close();
});
