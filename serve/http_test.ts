// What is expected of a server here is what RFC 9112 says of HTTP/1.1, and where that leaves a choice, what curl and browsers
// need.
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Hono } from "hono";
import { Connection } from "./http.ts";
import { LIMITS, listen, type Listening } from "./listen.ts";
import { RawClient, statusOf } from "./testing.ts";

const TEXT = "A text that is long enough to be worth compressing. ".repeat(50);

/** A server that says what it was asked, and has a long text and a stream. */
function serve(): Listening {
  const hono = new Hono();
  hono.get("/long", (c) => c.text(TEXT));
  hono.get("/stream", (c) => {
    const body = ReadableStream.from(["one", "two"].map((text) => new TextEncoder().encode(text)));
    return c.body(body, 200, { "Content-Type": "text/event-stream" });
  });
  hono.all("*", async (c) => {
    const { pathname, search } = new URL(c.req.url);
    return c.json([c.req.method, pathname + search, await c.req.text(), c.req.header("X") ?? null]);
  });
  return listen({ hono, close() {} }, { hostname: "127.0.0.1", port: 0, flag: "--port" });
}

/** The whole answer to a request that ends the connection. */
async function ask(url: string, text: string): Promise<string> {
  using client = new RawClient(url);
  return await (await client.send(text)).receive();
}

/** Status and body of each answer on a connection; those in chunks are not taken apart. */
function answersIn(text: string): [number, string][] {
  const answers: [number, string][] = [];
  for (let rest = text; rest !== "";) {
    const [head = "", ...more] = rest.split("\r\n\r\n"), body = more.join("\r\n\r\n");
    const length = Number(/^content-length: (\d+)$/im.exec(head)?.[1] ?? body.length);
    answers.push([Number(/^HTTP\/1\.1 (\d{3}) \w/.exec(head)?.[1]), body.slice(0, length)]);
    rest = body.slice(length);
  }
  return answers;
}

const END = "Host: a\r\nConnection: close\r\n\r\n";

Deno.test("requests are read as RFC 9112 writes them", async () => {
  const server = serve(), { host } = new URL(server.url);
  const cases: [string, unknown[]][] = [
    [`GET /a?b=c HTTP/1.1\r\n${END}`, ["GET", "/a?b=c", "", null]],
    [`\r\n\r\nGET / HTTP/1.1\r\nx:  spaces \t\r\n${END}`, ["GET", "/", "", "spaces"]], // 2.2, 5.1
    [`GET / HTTP/1.1\r\nX:\r\n${END}`, ["GET", "/", "", ""]],
    [`GET / HTTP/1.1\r\nX: 1\r\nX: 2\r\n${END}`, ["GET", "/", "", "1, 2"]],
    [`GET / HTTP/1.1\nX: 1\n${END.replaceAll("\r", "")}`, ["GET", "/", "", "1"]], // 2.2
    [`GET http://${host}/a HTTP/1.1\r\n${END}`, ["GET", "/a", "", null]], // 3.2.2
    [`POST / HTTP/1.1\r\nContent-Length: 5\r\n${END}hello`, ["POST", "/", "hello", null]],
    [`PUT / HTTP/1.1\r\nContent-Length: 0\r\n${END}`, ["PUT", "/", "", null]],
    [`GET / HTTP/1.1\r\nContent-Length: 5\r\n${END}hello`, ["GET", "/", "", null]],
    [
      `POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n${END}` +
      `3;name=value\r\nhel\r\n0A \r\nlo, world!\r\n00\r\nTrailer: x\r\n\r\n`, // 7.1
      ["POST", "/", "hello, world!", null],
    ],
    ["GET / HTTP/1.0\r\nHost: a\r\n\r\n", ["GET", "/", "", null]], // closes without being told to
  ];
  for (const [request, expected] of cases) {
    const [answer, ...more] = answersIn(await ask(server.url, request));
    assertEquals([answer?.[0], JSON.parse(answer?.[1] ?? ""), more], [200, expected, []], request);
  }
  await server.close();
});

Deno.test("requests follow one another on a connection, however they are cut", async () => {
  const server = serve();
  const post = "POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
  const texts = `GET /a HTTP/1.1\r\nHost: a\r\n\r\n${post}GET /c HTTP/1.1\r\n${END}`;
  const expected = [["GET", "/a", "", null], ["POST", "/b", "hi", null], ["GET", "/c", "", null]];
  const bodies = (text: string) => answersIn(text).map(([, body]) => JSON.parse(body));
  assertEquals(bodies(await ask(server.url, texts)), expected);
  using client = new RawClient(server.url);
  for (const byte of texts) await client.send(byte);
  assertEquals(bodies(await client.receive()), expected);
  await server.close();
});

Deno.test("what is not HTTP, or can be read in two ways, is refused with one sentence", async () => {
  const server = serve(), host = "Host: a\r\n\r\n";
  const cases: [string, number, RegExp][] = [
    ["\x16\x03\x01 a TLS client\r\n\r\n", 400, /^The request is not HTTP/],
    [`GET /\r\n${host}`, 400, /^The request is not HTTP/],
    [`GET / HTTP/2.0\r\n${host}`, 400, /^The request is not HTTP/],
    [`GET /a b HTTP/1.1\r\n${host}`, 400, /^The request is not HTTP/],
    [`G@T / HTTP/1.1\r\n${host}`, 400, /^The request is not HTTP/],
    [`GET a HTTP/1.1\r\n${host}`, 400, /^The target is not a path/],
    [`CONNECT a:80 HTTP/1.1\r\n${host}`, 400, /^The target is not a path/],
    [`TRACE / HTTP/1.1\r\n${host}`, 501, /^TRACE is not a method/],
    ["GET / HTTP/1.1\r\n\r\n", 400, /^The Host is not the name of a server/],
    ["GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, /^host stands in the header twice/i],
    ...["", "[", "a b", "a/b", "b@a", "a?", "a#", "a:b", "127.0.0.1:99999"].map((
      name,
    ): [string, number, RegExp] => [
      `GET / HTTP/1.1\r\nHost: ${name}\r\n\r\n`,
      400,
      /^The Host is not the name of a server|^The target is not a path/,
    ]),
    [`GET / HTTP/1.1\r\nX : 1\r\n${host}`, 400, /^A line of the header/], // 5.1
    [`GET / HTTP/1.1\r\nX: 1\r\n folded\r\n${host}`, 400, /^A line of the header/], // 5.2
    [`GET / HTTP/1.1\r\nX: a\0b\r\n${host}`, 400, /^A line of the header/],
    [`GET / HTTP/1.1\r\nX: a\rb\r\n${host}`, 400, /^A line of the header/],
    [`POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n${host}`, 400, /twice/],
    [
      `POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n${host}`,
      400,
      /^Transfer-Encoding/,
    ], // 6.3
    [`POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n${host}`, 400, /^Transfer-Encoding/],
    ...["-1", "+1", "1, 1", "0x1", "1e1", "9".repeat(20)].map((length): [string, number, RegExp] => [
      `POST / HTTP/1.1\r\nContent-Length: ${length}\r\n${host}`,
      400,
      /^Content-Length is not a number/,
    ]),
    [`POST / HTTP/1.1\r\nContent-Length: 262145\r\n${host}`, 413, /^The body is larger than 262144 bytes/],
    [`POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${host}40001\r\n`, 413, /^The body is larger/],
    [
      `POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${host}${
        `10000\r\n${"x".repeat(65536)}\r\n`.repeat(5)
      }`,
      413,
      /^The body is larger/,
    ],
    [`POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${host}-1\r\n`, 400, /^The body is not in chunks/],
    [`POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${host}\r\n`, 400, /^The body is not in chunks/],
    [
      `POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${host}2\r\nabc\r\n`,
      400,
      /^A chunk of the body is longer/,
    ],
    [`GET / HTTP/1.1\r\nX: ${"x".repeat(20_000)}\r\n${host}`, 431, /^The header is larger than 16384 bytes/],
    ["x".repeat(20_000), 431, /^The header is larger/],
  ];
  for (const [request, status, sentence] of cases) {
    const [answer, ...more] = answersIn(await ask(server.url, request));
    assertEquals([answer?.[0], more], [status, []], request.slice(0, 100));
    assertMatch(JSON.parse(answer![1]).error.message, sentence);
  }
  assertEquals(await statusOf(server.url), 200);
  await server.close();
});

Deno.test("HEAD is answered as GET is, without the body", async () => {
  const server = serve();
  for (const path of ["/", "/long", "/stream"]) {
    for (const coding of ["identity", "gzip"]) {
      const headersOf = async (method: string) => {
        using client = new RawClient(server.url);
        await client.send(`${method} ${path} HTTP/1.1\r\nAccept-Encoding: ${coding}\r\n${END}`);
        const [head, ...body] = (await client.receive()).split("\r\n\r\n");
        return [head!.replace(/^date: .*$/im, ""), body.join("") !== ""] as const;
      };
      const [get, hasBody] = await headersOf("GET");
      assertEquals([await headersOf("HEAD"), hasBody], [[get, false], true], `${path} ${coding}`);
    }
  }
  await server.close();
});

Deno.test("a client that waits for leave to send its body gets it", async () => {
  const server = serve();
  using client = new RawClient(server.url);
  await client.send(`POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n${END}`);
  assertEquals(await client.receive("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  await client.send("hi");
  assertMatch(await client.receive(), /\r\n\r\n\["POST","\/","hi",null\]$/);
  await server.close();
});

Deno.test("a stream comes in chunks, to HTTP/1.0 without", async () => {
  const server = serve();
  const [, chunked] = (await ask(server.url, `GET /stream HTTP/1.1\r\n${END}`)).split(/\r\n\r\n(.*)/s);
  assertEquals(chunked, "3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n");
  const [head, plain] = (await ask(server.url, "GET /stream HTTP/1.0\r\nHost: a\r\n\r\n")).split("\r\n\r\n");
  assertEquals([plain, /transfer-encoding|content-length/i.test(head!)], ["onetwo", false]);
  assertMatch(head!, /^connection: close$/im); // its end is that of the text
  await server.close();
});

Deno.test("long texts are compressed for clients that say they read it", async () => {
  const server = serve();
  const cases: [string, boolean][] = [
    ["gzip", true],
    ["deflate, gzip;q=0.5", true],
    ["br, GZIP , *;q=0", true],
    ["gzip;q=0", false],
    ["gzip; q=0.000, br", false],
    ["xgzip", false],
    ["identity", false],
  ];
  for (const [coding, isCompressed] of cases) {
    const head = await ask(server.url, `HEAD /long HTTP/1.1\r\nAccept-Encoding: ${coding}\r\n${END}`);
    assertEquals(/^content-encoding: gzip\r$/im.test(head), isCompressed, coding);
    assertMatch(head, /^vary: Accept-Encoding\r$/im);
  }
  const response = await fetch(`${server.url}long`); // asks for gzip, and unpacks it
  assertEquals(await response.text(), TEXT);
  await server.close();
});

Deno.test("a client that is found to have left when it is written to has left", async () => {
  const reset = {
    read: () => new Promise(() => {}),
    write: () => Promise.reject(new Error("Broken pipe")),
    close() {},
  };
  const connection = new Connection(reset as unknown as Deno.Conn, LIMITS);
  const asked = { method: "GET", headers: new Headers(), isOld: false, keeps: true };
  await assertRejects(() => connection.answer(asked, new Response("text")), Error, "Broken pipe");
  assert(connection.gone.aborted); // then it is no news for the terminal
});
