import { assertEquals } from "@std/assert";
import { BlockBuilder } from "./block.ts";
import { textsOf } from "./testing.ts";

const utf8 = new TextEncoder();

Deno.test("BlockBuilder collects documents, empty ones too, and is empty again once they are taken", () => {
  const builder = new BlockBuilder(1);
  for (const text of ["one", "", "three é"]) {
    builder.append(utf8.encode(text));
    builder.end();
  }
  builder.read = 7;
  assertEquals([builder.documents, builder.bytes, builder.open], [3, 11, 0]);
  const block = builder.take();
  assertEquals(textsOf(block), ["one", "", "three é"]);
  assertEquals([...block.ends, block.read], [3, 3, 11, 7]);
  assertEquals(builder.take(), { text: new Uint8Array(), ends: new Uint32Array(), read: 0 });
});

Deno.test("BlockBuilder keeps the open document for the next block, and can cut it", () => {
  const builder = new BlockBuilder();
  builder.append(utf8.encode("one"));
  builder.end();
  builder.append(utf8.encode("two, "));
  assertEquals(textsOf(builder.take()), ["one"]);
  builder.append(utf8.encode("three"));
  assertEquals([builder.open, builder.openAt(9), builder.openAt(10), builder.openAt(-1)], [
    10,
    101,
    undefined,
    undefined,
  ]);
  builder.cut(8);
  builder.end();
  assertEquals(textsOf(builder.take()), ["two, thr"]);
});

Deno.test("BlockBuilder is full at a megabyte or at 65,536 documents", () => {
  const builder = new BlockBuilder();
  builder.append(new Uint8Array(1 << 20));
  assertEquals(builder.full, false); // the document is open
  builder.end();
  assertEquals(builder.full, true);
  builder.take();
  for (let i = 1; i <= 65_536; i++) {
    assertEquals(builder.full, false);
    builder.end();
  }
  assertEquals(builder.full, true);
});

Deno.test("BlockBuilder encodes strings with room for what they need", () => {
  for (const text of ["", "ascii", "é".repeat(100), "中".repeat(100), "👍".repeat(100)]) {
    const builder = new BlockBuilder(1);
    builder.appendString(text);
    builder.end();
    assertEquals(textsOf(builder.take()), [text]);
  }
});

Deno.test("BlockBuilder leaves out documents that are not UTF-8, also where they are only together", () => {
  const builder = new BlockBuilder(), reported: number[][] = [];
  const takeValid = () => builder.takeValid((...bad) => reported.push(bad));
  for (const [i, bytes] of [[0x61, 0xff], [0xc3], [0xa9], [], [0xc3, 0xa9], [0xa9]].entries()) {
    builder.append(Uint8Array.from(bytes));
    builder.end(10 + i);
  }
  builder.read = 3;
  const block = takeValid();
  assertEquals([textsOf(block), block.read], [["", "é"], 3]);
  assertEquals(reported.splice(0), [[10, 1, 0xff], [11, 0, 0xc3], [12, 0, 0xa9], [15, 0, 0xa9]]);
  builder.append(Uint8Array.of(0xc3)); // both together would be é
  builder.end(1);
  builder.append(Uint8Array.of(0xa9));
  builder.end(2);
  assertEquals(textsOf(takeValid()), []);
  assertEquals(reported, [[1, 0, 0xc3], [2, 0, 0xa9]]);
});
