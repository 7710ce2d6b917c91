import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { isLoopback, requireToken } from "./access.ts";
import { createApp } from "./app.ts";
import { FakeRun } from "./testing.ts";

const TOKEN = "0123456789abcdef";

/** Status of an answer, and its sentence where it is a failure. */
async function answer(response: Response): Promise<[number, string?]> {
  if (response.ok) return [response.status];
  const { error } = await response.json();
  assertMatch(error.message, /^[^\n.][^\n]*[^\n.]$/, "one sentence without a period");
  return [response.status, error.message];
}

Deno.test("isLoopback() knows the addresses of this machine", () => {
  for (const name of ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"]) {
    assert(isLoopback(name), name);
  }
  for (
    const name of ["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.evil.com", "localhost.evil.com", "1270.0.0.1", ""]
  ) {
    assert(!isLoopback(name), name);
  }
});

Deno.test("requireToken() wants a token beyond this machine, and one that is hard to guess", () => {
  assertEquals(requireToken("127.0.0.1", undefined), undefined);
  assertEquals(requireToken("127.0.0.1", ""), undefined);
  assertEquals(requireToken("127.0.0.1", TOKEN), TOKEN);
  assertEquals(requireToken("0.0.0.0", TOKEN), TOKEN);
  for (const hostname of ["0.0.0.0", "::", "192.168.1.2"]) {
    const error = assertThrows(() => requireToken(hostname, ""), UserError, "without a token");
    assertStringIncludes(error.message, "LOAM_TOKEN");
  }
  assertThrows(() => requireToken("127.0.0.1", "short"), UserError, "it has 5 characters and must have 16");
  for (const token of ["pässword-of-16-characters", "a token of many words", TOKEN + "\n"]) {
    assertThrows(() => requireToken("127.0.0.1", token), UserError, "which headers do not carry", token);
  }
});

Deno.test("without a token the server answers under the names of this machine only", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()] });
  for (const host of ["localhost:8000", "127.0.0.1:8000", "[::1]:8000"]) {
    assertEquals((await hono.request(`http://${host}/stats`)).status, 200);
  }
  for (const host of ["evil.com", "evil.com:8000", "192.168.1.2:8000"]) {
    const [status, message] = await answer(await hono.request(`http://${host}/stats`));
    assertEquals([status, message?.includes("localhost")], [403, true]);
  }
});

Deno.test("with a token every answer about runs needs it, whatever the name", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()], token: TOKEN });
  const paths = [
    "/stats",
    "/runs",
    "/log",
    "/events",
    "/metrics",
    "/healthz",
    "/openapi.json",
    "/v1/models",
    "/none",
  ];
  for (const path of [...paths, "/stats/history"]) {
    const response = await hono.request(`http://gpu-box:8000${path}`);
    assertEquals(response.headers.get("WWW-Authenticate"), "Bearer");
    assertEquals((await answer(response))[0], 401, path);
  }
  assertEquals((await hono.request("http://gpu-box:8000/v1/completions", { method: "POST" })).status, 401);
  const ask = async (headers: Record<string, string>, query = "") =>
    (await hono.request(`http://gpu-box:8000/stats${query}`, { headers })).status;
  assertEquals(await ask({ Authorization: `Bearer ${TOKEN}` }), 200);
  assertEquals(await ask({ Authorization: `bearer  ${TOKEN}` }), 200);
  assertEquals(await ask({}, `?token=${TOKEN}`), 200);
  for (const wrong of ["", "x", TOKEN + "x", TOKEN.slice(1), TOKEN.toUpperCase(), "\u{1f642}"]) {
    const header = encodeURIComponent(wrong);
    assertEquals(await ask({ Authorization: `Bearer ${header}` }), 401, wrong);
    assertEquals(await ask({ Authorization: header }), 401, wrong);
    assertEquals(await ask({}, `?token=${header}`), 401, wrong);
  }
  assertEquals(await ask({ Authorization: TOKEN }), 401);
  assertEquals(await ask({ Cookie: `loam=${TOKEN}` }), 401);
});

Deno.test("a browser that came with ?token= goes on with a cookie, which is not the token", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()], token: TOKEN });
  const page = await hono.request(`http://gpu-box:8000/?token=${TOKEN}`);
  assertEquals([page.status, page.headers.get("Location")], [303, "/"]);
  const link = await hono.request(`http://gpu-box:8000/?run=a&token=${TOKEN}&compare=b`);
  assertEquals(link.headers.get("Location"), "/?run=a&compare=b");
  const cookie = page.headers.get("Set-Cookie")!;
  assertMatch(cookie, /^loam_[0-9a-f]{8}=[0-9a-f]{64}; Path=\/; HttpOnly; SameSite=Lax$/);
  assert(!cookie.includes(TOKEN));
  const headers = { Cookie: cookie.split(";")[0]! };
  assertEquals((await hono.request("http://gpu-box:8000/stats", { headers })).status, 200);
  const forged = { Cookie: headers.Cookie.replace(/=.*/, `=${"0".repeat(64)}`) };
  assertEquals((await hono.request("http://gpu-box:8000/stats", { headers: forged })).status, 401);
  const data = await hono.request(`http://gpu-box:8000/stats?token=${TOKEN}`);
  assertEquals([data.status, data.headers.get("Set-Cookie")], [200, cookie]);
  assertEquals((await hono.request("http://gpu-box:8000/stats?token=wrong")).headers.get("Set-Cookie"), null);
});

Deno.test("the page and its files need no token, and say nothing of the runs", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()], token: TOKEN });
  for (const path of ["/", "/app.js", "/style.css", "/uplot.js", "/uplot.css"]) {
    const response = await hono.request(`http://gpu-box:8000${path}`), text = await response.text();
    assertEquals(response.status, 200, path);
    assert(!text.includes(fake.dir) && !text.includes(TOKEN));
  }
});

Deno.test("every answer has the security headers, failures too", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()], token: TOKEN });
  const headers = { Authorization: `Bearer ${TOKEN}` };
  for (
    const [path, options] of [["/", {}], ["/stats", { headers }], ["/stats", {}], ["/none", {
      headers,
    }]] as const
  ) {
    const response = await hono.request(path, options);
    const policy = response.headers.get("Content-Security-Policy")!;
    assertMatch(policy, /^default-src 'none'; script-src 'self'; style-src 'self';/);
    assert(!policy.includes("unsafe"));
    assertEquals(response.headers.get("X-Content-Type-Options"), "nosniff");
    assertEquals(response.headers.get("Referrer-Policy"), "no-referrer");
    assertEquals(response.headers.get("Cache-Control"), path === "/" ? "no-cache" : "no-store");
    assertEquals(response.headers.get("Access-Control-Allow-Origin"), null);
    await response.body?.cancel();
  }
});

Deno.test("pages from elsewhere may send nothing", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()] });
  for (const Origin of ["https://evil.com", "http://localhost:9999", "null"]) {
    const response = await hono.request("http://localhost:8000/v1/completions", {
      method: "POST",
      headers: { Origin },
    });
    assertEquals((await answer(response))[0], 403, Origin);
  }
  const headers = { Origin: "http://localhost:8000" };
  const response = await hono.request("http://localhost:8000/v1/completions", { method: "POST", headers });
  assertEquals((await answer(response))[0], 404); // no model, but let in
});

Deno.test("pages of an origin that was named may use the server, and need its token", async () => {
  using fake = new FakeRun(1);
  const origins = ["http://localhost:3000", "https://example.com"];
  const { hono } = createApp({ runs: [fake.run()], token: TOKEN, origins });
  const ask = async (Origin: string, more: Record<string, string>, method = "GET") => {
    const response = await hono.request("http://gpu-box:8000/stats", {
      method,
      headers: { Origin, ...more },
    });
    await response.body?.cancel();
    return [
      response.status,
      response.headers.get("Access-Control-Allow-Origin"),
      response.headers.get("Vary"),
    ];
  };
  const bearer = { Authorization: `Bearer ${TOKEN}` };
  const preflight = {
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization",
  };
  for (const origin of origins) {
    assertEquals(await ask(origin, bearer), [200, origin, "Origin"]);
    assertEquals(await ask(origin, {}), [401, origin, "Origin"]); // a page may read why
    assertEquals(await ask(origin, preflight, "OPTIONS"), [204, origin, "Origin"]);
    assertEquals((await ask(origin, bearer, "OPTIONS"))[0], 405); // is no preflight
  }
  for (const origin of ["http://localhost", "http://example.com", "https://example.com:3000", "null"]) {
    assertEquals(await ask(origin, bearer), [403, null, "Origin"]);
    assertEquals(await ask(origin, preflight, "OPTIONS"), [403, null, "Origin"]);
  }
  const response = await hono.request("http://gpu-box:8000/v1/completions", {
    method: "OPTIONS",
    headers: { Origin: origins[0]!, "Access-Control-Request-Method": "POST" },
  });
  assertEquals(response.headers.get("Access-Control-Allow-Methods"), "GET, HEAD, POST");
  assertEquals(
    response.headers.get("Access-Control-Allow-Headers"),
    "Authorization, Content-Type, Last-Event-ID",
  );
  assertEquals(response.headers.get("Access-Control-Allow-Credentials"), null); // no cookies
});

Deno.test("an address without end is refused", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()] });
  assertEquals((await answer(await hono.request(`/stats?run=${"x".repeat(5000)}`)))[0], 414);
});

Deno.test("the server works on a limited number of requests at a time", async () => {
  using fake = new FakeRun(1);
  const run = fake.run(), { hono } = createApp({ runs: [run] });
  const { promise, resolve } = Promise.withResolvers<void>();
  run.refresh = () => promise; // a disk that does not answer
  const waiting = Array.from({ length: 256 }, () => hono.request("/stats"));
  const response = await hono.request("/stats");
  assertEquals([response.status, response.headers.get("Retry-After")], [503, "1"]);
  resolve();
  await Promise.all(waiting);
  assertEquals((await hono.request("/openapi.json")).status, 200);
});

Deno.test("a request counts until its client has the answer or is gone, but not where it follows a run", async () => {
  using fake = new FakeRun(1);
  const { hono, close } = createApp({ runs: [fake.run()] });
  const { promise: completed, resolve } = Promise.withResolvers<void>();
  const ask = async (path: string) => (await hono.request(path, {}, { completed })).status;
  for (const path of ["/stats", "/events"]) {
    for (let i = 0; i < 200; i++) assertEquals(await ask(path), 200);
  }
  for (let i = 200; i < 256; i++) assertEquals(await ask("/none"), 404);
  assertEquals(await ask("/stats"), 503);
  resolve();
  await new Promise((resolve) => setTimeout(resolve, 0));
  assertEquals(await ask("/stats"), 200);
  close();
});
