import { assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { environment } from "../../base/testing.ts";
import { gzipSync } from "node:zlib";
import { READ_ALL, readBlocks } from "./documents.ts";
import { fetchJson, type Patience, probeUrl, UrlBytes } from "./http.ts";
import { findSources } from "./inputs.ts";
import { followed } from "./redirects.ts";
import { assertRefused, textsOf } from "./testing.ts";
import { type Answer, ranged, type Request, type Server, withServer } from "./testing_server.ts";

const fixtures = new URL("../../tests/fixtures/", import.meta.url).pathname;
const HASTY: Patience = { retry_ms: 1, silence_ms: 10_000 };
const HASTIER: Patience = { retry_ms: 1, silence_ms: 150 };

/** Bytes that all differ from those around them. */
const file = Uint8Array.from({ length: 100_000 }, (_, i) => i * 31 + (i >> 8));

async function readAll(url: UrlBytes, from = 0, to = url.size): Promise<Uint8Array> {
  const chunks: number[] = [];
  for await (const chunk of url.read(from, to)) chunks.push(...chunk);
  return Uint8Array.from(chunks);
}

async function open(url: string, patience = HASTY): Promise<UrlBytes> {
  return new UrlBytes(url, await probeUrl(url, patience), patience);
}

// ---- bytes

Deno.test("probeUrl() asks for size, version and ranges", async () => {
  const answers: [Answer, unknown][] = [
    [ranged(file, { path: "", headers: new Headers({ range: "bytes=0-0" }) }), {
      bytes: 100_000,
      version: '"v1"',
      ranges: true,
    }],
    [{ headers: { "last-modified": "today" }, body: file }, {
      bytes: 100_000,
      version: "today",
      ranges: false,
    }],
    [{ headers: { "content-length": "" }, body: file }, { bytes: 0, version: "", ranges: false }],
  ];
  for (const [answer, info] of answers) {
    await withServer(() => answer, async ({ url, requests }) => {
      assertEquals(await probeUrl(`${url}/a.txt`, HASTY), info);
      assertEquals([requests.length, requests[0]!.path, requests[0]!.headers.get("range")], [
        1,
        "/a.txt",
        "bytes=0-0",
      ]);
      assertEquals(requests[0]!.headers.get("accept-encoding"), "identity"); // compressed, ranges would be of something else
    });
  }
});

Deno.test("UrlBytes reads the bytes that it is asked for and no others", () =>
  withServer((request) => ranged(file, request), async (server) => {
    const url = await open(`${server.url}/a`);
    assertEquals(url.size, 100_000);
    assertEquals(await readAll(url), file);
    assertEquals(await readAll(url, 5, 5000), file.subarray(5, 5000));
    assertEquals(await readAll(url, 99_999), file.subarray(99_999));
    assertEquals(await readAll(url, 7, 7), new Uint8Array());
    assertEquals(server.sent, 1 + 100_000 + 4995 + 1);
  }));

Deno.test("UrlBytes goes on at the byte where a connection broke", () =>
  withServer((request, n) => ({ ...ranged(file, request), cut: n % 3 === 0 ? 0 : 9000 }), async (server) => {
    const url = await open(`${server.url}/a`);
    assertEquals(await readAll(url), file);
    assertEquals(server.sent, 1 + 100_000); // nothing twice
  }));

Deno.test("UrlBytes tries again after errors that pass, at most five times in a row", async () => {
  const failures: [Answer, string][] = [
    [{ status: 503 }, "the server says 503 Service Unavailable"],
    [{ status: 429, headers: { "retry-after": "0" } }, "the server says 429 Too Many Requests"],
    [{ silent: true }, "nothing came for 0.15 s"],
  ];
  for (const [failure, reason] of failures) {
    let broken = 4;
    await withServer((request) => broken-- > 0 ? failure : ranged(file, request), async (server) => {
      const url = await open(`${server.url}/a`, failure.silent ? HASTIER : HASTY);
      broken = 4;
      assertEquals(await readAll(url), file);
      broken = 5;
      const requests = server.requests.length;
      await assertRefused(
        () => readAll(url),
        `Cannot read "${server.url}/a": ${reason}, and 5 tries in a row failed; check the network and run the same command again`,
      );
      assertEquals(server.requests.length - requests, 5);
    });
  }
});

Deno.test("UrlBytes waits as long as the server asks", async () => {
  let first = true;
  await withServer((request) => {
    const busy = first;
    first = false;
    return busy ? { status: 429, headers: { "retry-after": "1" } } : ranged(file, request);
  }, async (server) => {
    const start = performance.now();
    await open(`${server.url}/a`);
    assertEquals(performance.now() - start >= 1000, true);
  });
});

Deno.test("probeUrl() says that a server cannot be reached", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 }), { port } = listener.addr;
  listener.close();
  await assertRefused(
    () => probeUrl(`http://127.0.0.1:${port}/a`, HASTY),
    `Cannot read "http://127.0.0.1:${port}/a": client error (Connect): tcp connect error: Connection refused (os error 111), ` +
      "and 5 tries in a row failed; check the network and run the same command again",
  );
});

Deno.test("UrlBytes refuses a file that changes", () =>
  withServer(
    (request, n) => ({ ...ranged(file, request, n < 4 ? '"v1"' : '"v2"'), cut: 30_000 }),
    async (server) => {
      const url = await open(`${server.url}/a`);
      await assertRefused(
        () => readAll(url),
        `Cannot read "${server.url}/a": it has changed on the server: its version is "v2", was "v1" at the start; ` +
          "prepare again with --overwrite",
      );
    },
  ));

Deno.test("UrlBytes refuses a file whose size changes on a server that tells no version", () =>
  withServer(
    (request, n) => ({ ...ranged(n < 4 ? file : file.subarray(0, 90_000), request, ""), cut: 30_000 }),
    async (server) => {
      const url = await open(`${server.url}/a`);
      await assertRefused(
        () => readAll(url),
        `Cannot read "${server.url}/a": it has changed on the server: its size is 90000, was 100000 at the start; ` +
          "prepare again with --overwrite",
      );
    },
  ));

Deno.test("UrlBytes reads from a server that sends no parts, and passes over what it has when it goes on", () =>
  withServer((_, n) => ({ body: file, ...n === 2 ? { cut: 40_000 } : {} }), async (server) => {
    const url = await open(`${server.url}/a`);
    assertEquals(await readAll(url), file);
    assertEquals(server.requests.length, 3);
    await assertRefused(
      () => readAll(url, 10, 20),
      `Cannot read "${server.url}/a": its server does not send parts of a file and its size, which parquet needs; ` +
        "download the file and name that",
    );
  }));

Deno.test("UrlBytes reads a file whose size the server does not say", () =>
  withServer(() => ({ body: file, headers: { "content-length": "" } }), async (server) => {
    const url = await open(`${server.url}/a`);
    assertEquals(url.size, Infinity);
    assertEquals(await readAll(url), file);
  }));

Deno.test("probeUrl() says why a server refuses", async () => {
  const answers: [Answer, string][] = [
    [{ status: 404 }, "the server says 404 Not Found; check the address"],
    [{ status: 403 }, "the server says 403 Forbidden; it needs a login, so download the file and name that"],
    [{ status: 416 }, "it is empty"],
    [{ body: new Uint8Array() }, "it is empty"],
    [{ status: 302, headers: { location: "/a" } }, "it redirects more than 10 times; check the address"],
  ];
  for (const [answer, message] of answers) {
    await withServer(() => answer, async ({ url }) => {
      await assertRefused(() => probeUrl(`${url}/a`, HASTY), `Cannot read "${url}/a": ${message}`);
    });
  }
  await withServer(
    () => ({ status: 401 }),
    async ({ url }) => {
      using _ = environment({ HF_ENDPOINT: url, HF_TOKEN: "" });
      await assertRefused(
        () => probeUrl(`${url}/a`, HASTY),
        `Cannot read "${url}/a": the server says 401 Unauthorized; ` +
          "check the address, or set HF_TOKEN to a token that may read it",
      );
    },
  );
});

Deno.test("HF_TOKEN goes to the hub and to no other server", () =>
  withServer((request) => ranged(file, request, '"other"'), (storage) =>
    withServer(
      () => ({ status: 302, headers: { location: `${storage.url}/stored`, "x-linked-etag": '"linked"' } }),
      async (hub) => {
        using _ = environment({ HF_ENDPOINT: hub.url, HF_TOKEN: "secret" });
        const url = `${hub.url}/a.txt`, info = await probeUrl(url, HASTY);
        assertEquals(info, { bytes: 100_000, version: '"linked"', ranges: true });
        assertEquals(await readAll(new UrlBytes(url, info, HASTY)), file);
        await probeUrl(`${storage.url}/a.txt`, HASTY);
        const tokens = ({ requests }: Server) => requests.map(({ headers }) => headers.get("authorization"));
        assertEquals(tokens(hub), ["Bearer secret", "Bearer secret"]);
        assertEquals(tokens(storage), [null, null, null]);
      },
    )));

Deno.test("followed() follows no redirect from one kind of network into another", async () => {
  // 93.184.216.34 is public; RFC 1918, 3927, 4193, 4291 and 6598 say what the others are.
  const refused: [string, string, string][] = [
    ["http://93.184.216.34/a", "http://127.0.0.1/b", "loopback"],
    ["http://93.184.216.34/a", "http://0x7f.1/b", "loopback"],
    ["http://93.184.216.34/a", "http://2130706433/b", "loopback"],
    ["http://93.184.216.34/a", "http://0.0.0.0/b", "loopback"],
    ["http://93.184.216.34/a", "http://[::1]:8080/b", "loopback"],
    ["http://93.184.216.34/a", "http://[::ffff:127.0.0.1]/b", "loopback"],
    ["http://93.184.216.34/a", "//localhost/b", "loopback"],
    ["http://93.184.216.34/a", "http://LOCALHOST./b", "loopback"],
    ["http://93.184.216.34/a", "http://a.localhost/b", "loopback"],
    ["http://93.184.216.34/a", "http://169.254.169.254/latest/meta-data/", "link-local"],
    ["http://93.184.216.34/a", "http://[fe80::1]/b", "link-local"],
    ["http://93.184.216.34/a", "http://10.1.2.3/b", "private"],
    ["http://93.184.216.34/a", "http://172.31.0.1/b", "private"],
    ["http://93.184.216.34/a", "http://192.168.1.1/b", "private"],
    ["http://93.184.216.34/a", "http://100.64.0.1/b", "private"],
    ["http://93.184.216.34/a", "http://[fd12::1]/b", "private"],
    ["http://127.0.0.1/a", "http://192.168.1.1/b", "private"],
    ["http://10.1.2.3/a", "http://169.254.169.254/b", "link-local"],
    ["http://10.1.2.3/a", "http://127.0.0.1/b", "loopback"],
  ];
  for (const [named, location, reach] of refused) {
    await assertRefused(
      () => followed({ named, from: "http://93.184.216.34/hop", location, token: false }),
      `Cannot read "${named}": it redirects to "${location}", which is a ${reach} address; if that is what you want, name it yourself`,
    );
  }
  const fine: [string, string, string][] = [
    ["http://93.184.216.34/a", "https://93.184.216.35/b", "https://93.184.216.35/b"],
    ["http://93.184.216.34/a", "/b?c", "http://93.184.216.34/b?c"],
    ["http://93.184.216.34/a", "http://172.32.0.1/b", "http://172.32.0.1/b"],
    ["http://127.0.0.1:1/a", "http://127.0.0.1:2/b", "http://127.0.0.1:2/b"],
    ["http://127.0.0.1:1/a", "http://localhost:2/b", "http://localhost:2/b"],
    ["http://10.1.2.3/a", "http://192.168.1.1/b", "http://192.168.1.1/b"],
    ["http://10.1.2.3/a", "http://93.184.216.34/b", "http://93.184.216.34/b"],
  ];
  for (const [named, location, to] of fine) {
    assertEquals(await followed({ named, from: named, location, token: false }), to);
  }
});

Deno.test("followed() goes from https to http without a token only", async () => {
  const step = {
    named: "https://93.184.216.34/a",
    from: "https://93.184.216.34/b",
    location: "http://93.184.216.34/c",
  };
  assertEquals(await followed({ ...step, token: false }), step.location);
  await assertRefused(
    () => followed({ ...step, token: true }),
    `Cannot read "${step.named}": it redirects to "${step.location}", should stay with https where a token is sent; ` +
      "check the address, or unset HF_TOKEN",
  );
});

Deno.test("nothing but http is read where a server redirects to it, at any hop", async () => {
  const here = import.meta.url, no = "should be an address of http or https; check the address";
  const locations = [
    [here, no],
    ["FILE:///etc/passwd", no],
    ["data:text/plain,secret", no],
    ["hf://datasets/o/n/a.txt", no],
    ["http://169.254.169.254/a", "which is a link-local address; if that is what you want, name it yourself"],
    ["http://[", "which is no address; check the address"],
  ] as const;
  for (const [location, why] of locations) {
    for (const hops of [1, 3]) {
      const answer = (_: Request, n: number): Answer => ({
        status: 302,
        headers: { location: n % hops === 0 ? location : "/next" },
      });
      await withServer(answer, async ({ url, requests }) => {
        const message = `Cannot read "${url}/a.txt": it redirects to "${location}", ${why}`;
        await assertRefused(() => probeUrl(`${url}/a.txt`, HASTY), message);
        await assertRefused(() => fetchJson(`${url}/a.txt`, HASTY), message);
        await assertRefused(
          () => readAll(new UrlBytes(`${url}/a.txt`, { bytes: 9, version: "" }, HASTY)),
          message,
        );
        assertEquals(requests.length, 3 * hops);
      });
    }
    const body = new TextEncoder().encode("[]");
    await withServer(
      () => ({ body, headers: { link: `<${location}>; rel="next"` } }),
      ({ url }) =>
        assertRefused(
          () => fetchJson(`${url}/list`, HASTY),
          `Cannot read "${url}/list": it redirects to "${location}", ${why}`,
        ),
    );
  }
});

Deno.test("UrlBytes waits twice as long before each try in a row", async () => {
  const { setTimeout } = globalThis, pauses: number[] = [];
  globalThis.setTimeout = ((action: () => void, ms: number) => {
    if (ms < 1000) pauses.push(ms); // the others wait for silence
    return setTimeout(action, ms);
  }) as typeof setTimeout;
  try {
    await withServer((request, n) => n === 1 ? ranged(file, request) : { status: 503 }, async ({ url }) => {
      const source = await open(`${url}/a`, { retry_ms: 2, silence_ms: 10_000 });
      await assertRejects(() => readAll(source), UserError, "5 tries in a row failed");
    });
  } finally {
    globalThis.setTimeout = setTimeout;
  }
  assertEquals(pauses, [2, 4, 8, 16]);
});

Deno.test("fetchJson() gives the address of what comes next", async () => {
  const body = new TextEncoder().encode('["é"]'), link = '<https://93.184.216.34/?b=1>; rel="next"';
  await withServer((_, n) => n === 1 ? { status: 503 } : { body, headers: { link } }, async ({ url }) => {
    assertEquals(await fetchJson(`${url}/a`, HASTY), { value: ["é"], next: "https://93.184.216.34/?b=1" });
  });
  await withServer(() => ({ body }), async ({ url }) => {
    assertEquals(await fetchJson(`${url}/a`, HASTY), { value: ["é"], next: undefined });
  });
  await withServer(() => ({ body: new TextEncoder().encode("<html>") }), ({ url }) =>
    assertRefused(
      () => fetchJson(`${url}/a`, HASTY),
      `Cannot read "${url}/a": Unexpected token '<', "<html>" is not valid JSON`,
    ));
});

// ---- documents

async function readUrl(url: string): Promise<string[]> {
  const sources = await findSources([url], { column: "text" });
  return (await Array.fromAsync(readBlocks(sources, READ_ALL, { bad: 0, duplicates: 0 }))).flatMap(textsOf);
}

Deno.test("readBlocks() reads the footer and the text column of a parquet URL, and no other column", () => {
  const parquet = Deno.readFileSync(`${fixtures}wide.parquet`);
  return withServer((request) => ranged(parquet, request), async (server) => {
    assertEquals(
      await readUrl(`${server.url}/wide.parquet`),
      Array.from({ length: 300 }, (_, i) => `text ${i}`),
    );
    const footer = 1 << 16, texts = 300 * 13; // 4 bytes of length and 5 to 8 of text
    const most = 1 + 2 * footer + texts + 3 * 100; // page headers
    assertEquals(server.sent > 2 * footer && server.sent < most, true, `${server.sent} of ${most}`);
    assertEquals(server.requests.length, 1 + 2 + 3); // one for each row group
  });
});

Deno.test("readBlocks() reads a compressed URL over connections that break", () => {
  const texts = Array.from({ length: 2000 }, (_, i) => `text ${i * i}`);
  const jsonl = gzipSync(texts.map((text) => `${JSON.stringify({ text })}\n`).join(""));
  return withServer(
    (request, n) => ({ ...ranged(jsonl, request), cut: n === 2 ? 5000 : jsonl.length }),
    async (server) => {
      assertEquals(await readUrl(`${server.url}/a.jsonl.gz`), texts);
      assertEquals(server.sent, 1 + jsonl.length);
    },
  );
});

const partial: Answer = {
  status: 206,
  headers: { "content-range": "bytes 0-0/*" },
  body: file.subarray(0, 1),
};
for (const [what, answer] of Object.entries({ "no parts": { body: file }, "no size": partial })) {
  Deno.test(`findSources() refuses parquet from a server that sends ${what}`, () =>
    withServer(() => answer, ({ url }) =>
      assertRefused(
        () => findSources([`${url}/a.parquet`], { column: "text" }),
        `Cannot read "${url}/a.parquet": its server does not send parts of a file and its size, which parquet needs; ` +
          "download the file and name that",
      )));
}
