import { assertEquals, assertLess } from "@std/assert";
import { createApp } from "./app.ts";
import { Events } from "./events.ts";
import { listen } from "./listen.ts";
import { FakeRun, metricsAt, statusOf } from "./testing.ts";

type Event = { event?: string; id?: string; data?: string };

/** Reads server-sent events one by one, as their specification has it; comments are left out. */
async function* eventsOf(body: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<Event, undefined> {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop()!;
    for (const block of blocks) {
      const fields = block.split("\n").map((line) =>
        /^(\w*): ?(.*)$/.exec(line)!.slice(1) as [string, string]
      );
      const event: Event = Object.fromEntries(fields);
      if (event.event) yield event;
    }
  }
  return undefined;
}

/** The next events of a stream, in short: [event, id or data]. */
async function take(stream: AsyncGenerator<Event, undefined>, count: number): Promise<string[][]> {
  const taken = [];
  while (taken.length < count) {
    const { value } = await stream.next();
    if (!value) break;
    taken.push([value.event!, value.id ?? value.data!]);
  }
  return taken;
}

const state = (
  state: string,
  started = "2026-01-02T03:04:05.000Z",
) => ["state", JSON.stringify({ state, started, error: null })];

Deno.test("GET /events sends the state, then each step as it stands in metrics.jsonl", async () => {
  using fake = new FakeRun(3);
  const { hono, close } = createApp({ runs: [fake.run()] });
  const response = await hono.request("/events");
  assertEquals(response.headers.get("Content-Type"), "text/event-stream");
  assertEquals(response.headers.get("Cache-Control"), "no-store, no-transform");
  const stream = eventsOf(response.body!);
  assertEquals(await take(stream, 1), [state("stopped")]);
  fake.steps(4, 5);
  const { value } = await stream.next();
  assertEquals([value?.event, value?.id, value?.data], ["step", "4", JSON.stringify(metricsAt(4))]);
  assertEquals(await take(stream, 1), [["step", "5"]]);
  fake.sample(5, "line\nline");
  assertEquals(await take(stream, 1), [["sample", JSON.stringify({ step: 5, text: "line\nline" })]]);
  close();
  assertEquals(await take(stream, 1), []);
});

Deno.test("GET /events goes on after the Last-Event-ID, or after since", async () => {
  using fake = new FakeRun(5);
  const { hono, close } = createApp({ runs: [fake.run()] });
  const ask = async (headers: Record<string, string>, query = "") =>
    eventsOf((await hono.request(`/events${query}`, { headers })).body!);
  assertEquals(await take(await ask({ "Last-Event-ID": "3" }), 3), [state("stopped"), ["step", "4"], [
    "step",
    "5",
  ]]);
  assertEquals(await take(await ask({}, "?since=4"), 2), [state("stopped"), ["step", "5"]]);
  assertEquals(await take(await ask({ "Last-Event-ID": "4" }, "?since=0"), 2), [state("stopped"), [
    "step",
    "5",
  ]]);
  assertEquals(await take(await ask({ "Last-Event-ID": "9" }), 2), [state("stopped"), [
    "reset",
    '{"after":5}',
  ]]);
  close();
});

Deno.test("GET /events has a client that is far behind read the history again", async () => {
  using fake = new FakeRun(5000);
  const { hono, close } = createApp({ runs: [fake.run()] });
  const response = await hono.request("/events", { headers: { "Last-Event-ID": "100" } });
  const stream = eventsOf(response.body!);
  assertEquals(await take(stream, 2), [state("finished"), ["resync", "{}"]]);
  close();
});

Deno.test("GET /events tells when a resumed run goes on after an earlier step, and when it ends", async () => {
  using fake = new FakeRun(8);
  const { hono, close } = createApp({ runs: [fake.run()] });
  const stream = eventsOf((await hono.request("/events")).body!);
  await take(stream, 1);
  fake.start(5);
  fake.append("metrics.jsonl", JSON.stringify({ ...metricsAt(6), step_ms: 1 }) + "\n");
  assertEquals(await take(stream, 2), [["reset", '{"after":5}'], ["step", "6"]]);
  const { value } = await stream.next();
  assertEquals([value?.event, JSON.parse(value!.data!).state], ["state", "running"]);
  fake.stop();
  const { value: end } = await stream.next();
  assertEquals([end?.event, JSON.parse(end!.data!).state], ["state", "stopped"]);
  close();
});

Deno.test("Events forgets a client that goes away, and stops reading when none is left", async () => {
  using fake = new FakeRun(1);
  const run = fake.run(), events = new Events();
  await run.refresh();
  const { setInterval, clearInterval } = globalThis, timers = new Set<Parameters<typeof clearInterval>[0]>();
  globalThis.setInterval = ((...args: Parameters<typeof setInterval>) => {
    const timer = setInterval(...args);
    timers.add(timer);
    return timer;
  }) as typeof setInterval;
  globalThis.clearInterval = (timer) => {
    timers.delete(timer);
    clearInterval(timer);
  };
  try {
    const streams = [events.stream(run, undefined), events.stream(run, undefined)];
    assertEquals([events.count, run.listeners.size, timers.size], [2, 2, 2]);
    await streams[0]!.cancel();
    assertEquals([events.count, run.listeners.size, timers.size], [1, 1, 2]);
    await streams[1]!.cancel();
    assertEquals([events.count, run.listeners.size, timers.size], [0, 0, 0]);
  } finally {
    [globalThis.setInterval, globalThis.clearInterval] = [setInterval, clearInterval];
    for (const timer of timers) clearInterval(timer);
  }
});

Deno.test("Events keeps a bounded amount for a client that does not read, and tells it that it missed some", async () => {
  using fake = new FakeRun(1);
  const run = fake.run(), events = new Events();
  await run.refresh();
  const stream = events.stream(run, undefined);
  for (let step = 1; step < 20_100; step += 100) { // the last steps come after it has been full
    fake.steps(step + 1, step + 100);
    await run.refresh();
  }
  events.close();
  let bytes = 0;
  const kinds = new Set<string>();
  const [counted, read] = stream.tee();
  for await (const chunk of counted) bytes += chunk.length;
  for await (const { event } of eventsOf(read)) kinds.add(event!);
  assertLess(bytes, 300_000); // of 5 MB
  assertEquals([...kinds], ["resync", "step"]);
});

Deno.test("200 stalled clients do not grow memory, and keep nobody else waiting", async () => {
  using fake = new FakeRun(1);
  const run = fake.run(), app = createApp({ runs: [run] });
  const server = listen(app, { hostname: "127.0.0.1", port: 0, flag: "--port" });
  const { hostname, port, host } = new URL(server.url);
  const request = new TextEncoder().encode(`GET /events HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
  const stalled = await Promise.all(Array.from({ length: 200 }, async () => {
    const connection = await Deno.connect({ hostname, port: Number(port) });
    await connection.write(request);
    return connection; // and never reads
  }));
  const reader = eventsOf((await fetch(`${server.url}events`)).body!);
  await take(reader, 1);
  while (run.listeners.size < 201) await new Promise((resolve) => setTimeout(resolve, 10));
  const before = Deno.memoryUsage().rss, text = "x".repeat(200_000);
  for (let step = 1; step <= 50; step++) { // 2 GB in all, were they sent
    fake.sample(step, text);
    await run.refresh();
    const [event, data] = (await take(reader, 1))[0]!;
    assertEquals([event, JSON.parse(data!).step], ["sample", step]);
  }
  assertLess(Deno.memoryUsage().rss - before, 200e6); // 50 MB here
  const status = await statusOf(`${server.url}stats`);
  assertEquals(status, 200);
  for (const connection of stalled) connection.close();
  await reader.return(undefined);
  while (run.listeners.size > 0) await new Promise((resolve) => setTimeout(resolve, 10));
  await server.close();
});
