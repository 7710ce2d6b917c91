import { assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { createApp } from "./app.ts";
import { listen } from "./listen.ts";
import { FakeRun } from "./testing.ts";

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

Deno.test("answers are compressed for clients that can read it, live events are not", async () => {
  using fake = new FakeRun(3000);
  const server = listen(createApp({ runs: [fake.run()] }), { ...HOST, port: 0 });
  const encodingOf = async (path: string) => {
    const { hostname, port } = new URL(server.url);
    using connection = await Deno.connect({ hostname, port: Number(port) });
    const request = `GET ${path} HTTP/1.1\r\nHost: ${hostname}\r\nAccept-Encoding: gzip\r\n\r\n`;
    await connection.write(new TextEncoder().encode(request));
    const bytes = new Uint8Array(4096), n = await connection.read(bytes);
    return /^content-encoding: (.*)$/im.exec(new TextDecoder().decode(bytes.subarray(0, n!)))?.[1]?.trim();
  };
  assertEquals(await encodingOf("/stats/history"), "gzip");
  assertEquals(await encodingOf("/uplot.js"), "gzip");
  assertEquals(await encodingOf("/events"), undefined);
  await server.close();
});
