import { assertEquals } from "@std/assert";
import { BlockBuilder } from "./block.ts";
import { textsOf } from "./test_documents.ts";

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

Deno.test("BlockBuilder encodes strings with room for what they need, and U+FFFD for half a character", () => {
  for (const text of ["", "ascii", "é".repeat(100), "中".repeat(100), "👍".repeat(100), "a\ud800b\udc00"]) {
    const builder = new BlockBuilder(1);
    builder.appendString(text);
    builder.end();
    assertEquals(textsOf(builder.take()), [text.toWellFormed()]);
  }
});

Deno.test("BlockBuilder puts U+FFFD where documents are not UTF-8, also where they are only together", () => {
  const builder = new BlockBuilder();
  for (const bytes of [[0x61, 0xff], [0xc3], [0xa9], [], [0xc3, 0xa9], [0xa9]]) {
    builder.append(Uint8Array.from(bytes));
    builder.end();
  }
  builder.read = 3;
  const block = builder.take();
  assertEquals(textsOf(block), ["a\ufffd", "\ufffd", "\ufffd", "", "é", "\ufffd"]);
  assertEquals(block.read, 3);
  builder.append(Uint8Array.of(0xc3)); // both together would be é
  builder.end();
  builder.append(Uint8Array.of(0xa9));
  builder.end();
  assertEquals(textsOf(builder.take()), ["\ufffd", "\ufffd"]);
});
