import { freePort } from "../tests/testing.ts";
import { assertEquals, assertMatch } from "@std/assert";
import { ServerBeside } from "./beside.ts";
import { FakeRun, statusOf } from "./testing.ts";

/** Waits until a condition holds. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** Runs an act with the list of what is printed to stderr meanwhile; returns the list. */
async function warnings(act: (printed: string[]) => Promise<void>): Promise<string[]> {
  const printed: string[] = [], { error } = console;
  console.error = (text: string) => printed.push(text);
  await act(printed).finally(() => console.error = error);
  return printed;
}

Deno.test("ServerBeside serves a run while it is written, and shows its end", async () => {
  using fake = new FakeRun(3, { config: { max_iters: 100 } });
  fake.start(3);
  const port = freePort(), lines: string[] = [];
  let events: Promise<string>;
  {
    await using server = new ServerBeside();
    server.serve(fake.dir, port, (line) => lines.push(line));
    await until(() => lines.length > 0);
    assertEquals(lines, [`serving at http://127.0.0.1:${port}/`]);
    fake.steps(4, 5);
    const { step, state, run } = await (await fetch(`http://127.0.0.1:${port}/stats`)).json();
    assertEquals([run, step, state], ["fake", 5, "running"]);
    events = (await fetch(`http://127.0.0.1:${port}/events`)).text();
    await statusOf(`http://127.0.0.1:${port}/stats`); // by now it listens to events
    fake.steps(6, 100);
    fake.stop(); // as the log of a trainer, which is closed before the server
  }
  assertMatch(await events, /event: step\nid: 6\n[^]*event: step\nid: 100\n[^]*"finished"/);
});

Deno.test("ServerBeside that ends at once disturbs nobody", async () => {
  using fake = new FakeRun(1);
  assertEquals(
    await warnings(async () => {
      await using server = new ServerBeside();
      server.serve(fake.dir, freePort(), () => {});
    }),
    [],
  );
});

Deno.test("ServerBeside warns once when its port is taken", async () => {
  using fake = new FakeRun(1);
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const [line, ...more] = await warnings(async (printed) => {
    await using server = new ServerBeside();
    server.serve(fake.dir, taken.addr.port, () => {});
    await until(() => printed.length > 0);
  });
  assertMatch(
    line!,
    /^warning: Cannot serve on port \d+: .* --serve_port=\d+; training goes on without the server$/,
  );
  assertEquals(more, []);
});

Deno.test("ServerBeside warns once when its Worker crashes", async () => {
  using fake = new FakeRun(1);
  const script = `data:text/javascript,self.onmessage = () => setTimeout(() => { throw new Error("crash") })`;
  const [line, ...more] = await warnings(async (printed) => {
    await using server = new ServerBeside(new URL(script));
    server.serve(fake.dir, 1, () => {});
    await until(() => printed.length > 0);
  });
  assertMatch(line!, /^warning: .*crash; training goes on without the server$/);
  assertEquals(more, []);
});

Deno.test("ServerBeside warns when the log takes no line, and training goes on", async () => {
  using fake = new FakeRun(1);
  const port = freePort();
  const lines = await warnings(async (printed) => {
    await using server = new ServerBeside();
    server.serve(fake.dir, port, () => {
      throw new Error("No space left on device");
    });
    await until(() => printed.length > 0);
    assertEquals((await (await fetch(`http://127.0.0.1:${port}/stats`)).json()).step, 1);
  });
  assertEquals(lines, [
    `warning: Cannot log that the server is at http://127.0.0.1:${port}/: No space left on device; training goes on`,
  ]);
});
