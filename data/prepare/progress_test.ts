import { assertEquals } from "@std/assert";
import { Meter } from "./progress.ts";

const nothing = { read: 0, documents: 0, text: 0, tokens: 0 };

Deno.test("Meter says how far it is, how fast, and how much time is left", () => {
  let now = 0;
  const meter = new Meter({ bytes: 200e6, limit: null, before: nothing }, () => now);
  assertEquals(meter.text(), "0% of 200.0 MB, 0.0 MB/s, 0.00M tokens/s");
  now = 10_000;
  meter.add({ read: 50e6, documents: 1000, text: 120e6, tokens: 30e6 });
  assertEquals(meter.text(), "25% of 200.0 MB, 12.0 MB/s, 3.00M tokens/s, 30 s left");
});

Deno.test("Meter counts only this run's work in rates and the time that is left", () => {
  let now = 0;
  const before = { read: 100e6, documents: 5000, text: 500e6, tokens: 100e6 };
  const meter = new Meter({ bytes: 200e6, limit: null, before }, () => now);
  now = 10_000;
  meter.add({ read: 50e6, documents: 1000, text: 100e6, tokens: 20e6 });
  assertEquals(meter.text(), "75% of 200.0 MB, 10.0 MB/s, 2.00M tokens/s, 10 s left");
});

Deno.test("Meter is done with the limit or the bytes, whichever comes first", () => {
  const meter = new Meter({ bytes: 100, limit: 10, before: nothing });
  meter.add({ ...nothing, read: 1, documents: 5 });
  assertEquals(meter.share(), 0.5);
  meter.add({ ...nothing, read: 89 });
  assertEquals(meter.share(), 0.9);
  meter.add({ ...nothing, read: 89 });
  assertEquals(meter.share(), 1);
});
