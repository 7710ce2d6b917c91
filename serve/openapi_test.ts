// Holds the document against the routes, and the answers against the document.
import { assert, assertEquals } from "@std/assert";
import { createApp } from "./app.ts";
import { ASSETS } from "./assets.ts";
import { OPENAPI } from "./openapi.ts";
import { type Schema, violations } from "./testing_schema.ts";
import { FakeRun } from "./testing.ts";

type Operation = { responses: Record<string, { content: Record<string, { schema: Schema }> }> };

const paths = OPENAPI.paths as unknown as Record<string, Record<string, Operation>>;

Deno.test("violations() finds what is missing, too much or of another type", () => {
  const schema: Schema = {
    type: "object",
    properties: { a: { type: ["integer", "null"] } },
    required: ["a"],
  };
  assertEquals(violations({ a: 1 }, schema), []);
  assertEquals(violations({ a: null, b: 2 }, schema), []);
  assertEquals(violations({ a: 1.5 }, schema), ["$.a is not integer,null"]);
  assertEquals(violations({}, schema), ["$.a is missing"]);
  assertEquals(violations({ a: 1, b: 2 }, { ...schema, additionalProperties: false }), [
    "$.b is not in the document",
  ]);
  assertEquals(violations([{ a: "x" }], { type: "array", items: schema }), ["$[0].a is not integer,null"]);
});

Deno.test("the document has every route, and no other", () => {
  const { hono } = createApp({ runs: [] });
  const routes = hono.routes.filter(({ method }) => method !== "ALL")
    .map(({ method, path }) => `${method.toLowerCase()} ${path.replace(/:(\w+)/, "{$1}")}`)
    .filter((route) => route === "get /" || !(route.slice(4) in ASSETS));
  const documented = Object.entries(paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`)
  );
  assertEquals([...new Set(routes)].sort(), documented.sort());
});

Deno.test("every answer is as the document says", async () => {
  using live = new FakeRun(25, { name: "live" });
  using fresh = new FakeRun(0, { name: "fresh" });
  live.start(25);
  live.sample(20, "Once");
  const { hono, close } = createApp({ runs: [live.run(), fresh.run()] });
  const asked = [
    "/stats",
    "/stats?run=fresh",
    "/runs",
    "/stats/history?key=loss&key=val_loss",
    "/log",
    "/samples",
    "/healthz",
  ];
  for (const path of [...asked, "/v1/models", "/openapi.json", "/", "/metrics", "/events"]) {
    const response = await hono.request(path), { pathname } = new URL(path, "http://localhost");
    const { content } = paths[pathname]!.get!.responses[response.status]!;
    const type = response.headers.get("Content-Type")!.split(";")[0]!;
    assert(type in content, `${path} answers ${type}, the document has ${Object.keys(content)}`);
    if (type === "application/json") {
      assertEquals(violations(await response.json(), content[type]!.schema), [], path);
    } else await response.body?.cancel();
  }
  Deno.utimeSync(`${live.dir}/metrics.jsonl`, 1, 1);
  const stalled = await hono.request("/healthz");
  const { schema } = paths["/healthz"]!.get!.responses[503]!.content["application/json"]!;
  assertEquals(violations(await stalled.json(), schema), []);
  close();
});

Deno.test("every failure is as the document says", async () => {
  using fake = new FakeRun(1);
  const { hono } = createApp({ runs: [fake.run()] });
  const { schema } = paths["/stats"]!.get!.responses.default!.content["application/json"]!;
  for (const path of ["/stats?run=x", "/nope", "/stats/history?points=x"]) {
    assertEquals(violations(await (await hono.request(path)).json(), schema), [], path);
  }
});

Deno.test("every field of an answer is described", () => {
  const undescribed: string[] = [];
  const visit = (schema: Schema & { description?: string }, place: string) => {
    for (const [name, inner] of Object.entries(schema.properties ?? {})) {
      const { description, items } = inner as { description?: string; items?: Schema };
      if (!description && !items && !("const" in inner) && inner.type !== "null" && !inner.properties) {
        undescribed.push(`${place}.${name}`);
      }
      visit(inner, `${place}.${name}`);
      if (items) visit(items, `${place}.${name}[]`);
    }
  };
  for (const [path, methods] of Object.entries(paths)) {
    for (const { responses } of Object.values(methods)) {
      for (const { content } of Object.values(responses)) {
        for (const { schema } of Object.values(content)) visit(schema, path);
      }
    }
  }
  assertEquals(undescribed, []);
});
