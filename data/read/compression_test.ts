import { gzipSync, zstdCompressSync } from "node:zlib";
import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { concatenate } from "./bytes.ts";
import { type Compression, decompress } from "./compression.ts";
import { decompressLz4, decompressLz4Hadoop } from "./lz4.ts";
import { assertRefused } from "./testing.ts";

const text = Array.from({ length: 60_000 }, (_, i) => `line ${i}\n`).join(""); // more than one block of zstd
const first = new TextEncoder().encode(text.slice(0, 300_000)),
  second = new TextEncoder().encode(text.slice(300_000));

const compress: Record<"gz" | "zst", (bytes: Uint8Array) => Uint8Array> = {
  gz: gzipSync,
  zst: zstdCompressSync,
};

/** The bytes in chunks of so many, in a buffer that is used again for each, as by files. */
function* chunksOf(bytes: Uint8Array, n: number): Generator<Uint8Array<ArrayBuffer>> {
  const buffer = new Uint8Array(n);
  for (let at = 0; at < bytes.length; at += n) {
    const part = bytes.subarray(at, at + n);
    buffer.set(part);
    yield buffer.subarray(0, part.length);
  }
}

async function read(bytes: Uint8Array, compression: Compression, chunkBytes = 1000): Promise<string> {
  const utf8 = new TextDecoder();
  let text = "";
  for await (const chunk of decompress(chunksOf(bytes, chunkBytes), compression, `a.${compression}`)) {
    assertEquals(Object.getPrototypeOf(chunk), Uint8Array.prototype); // no Buffer
    text += utf8.decode(chunk, { stream: true });
  }
  return text + utf8.decode();
}

for (const kind of ["gz", "zst"] as const) {
  const one = compress[kind](first), both = concatenate(one, compress[kind](second));

  Deno.test(`decompress() reads .${kind}, also several one behind the other`, async () => {
    const short = concatenate(compress[kind](first.subarray(0, 9)), compress[kind](first.subarray(9, 17)));
    for (const chunkBytes of [1000, 1 << 20]) assertEquals(await read(both, kind, chunkBytes), text);
    for (const chunkBytes of [1, 1000]) assertEquals(await read(short, kind, chunkBytes), text.slice(0, 17));
  });

  Deno.test(`decompress() says that a .${kind} file is truncated or corrupt`, async () => {
    const corrupt = both.slice().fill(0, one.length / 2, one.length / 2 + 20);
    for (const bytes of [both.slice(0, -1), both.slice(0, one.length + 3), one.slice(0, 50), corrupt]) {
      const { message } = await read(bytes, kind).then(() => new Error("it was read"), (error) => error);
      const reason = /^Cannot decompress "a\.\w+": (.*); the file is truncated or corrupt, fetch it again$/
        .exec(message);
      assertEquals(reason !== null, true, message);
    }
    await assertRefused(
      () => read(both.slice(0, -1), kind),
      `Cannot decompress "a.${kind}": unexpected end of file; the file is truncated or corrupt, fetch it again`,
    );
    const notCompressed = kind === "gz" ? "incorrect header check" : "no zstd frame where one should begin";
    await assertRefused(
      () => read(first, kind),
      `Cannot decompress "a.${kind}": ${notCompressed}; the file is truncated or corrupt, fetch it again`,
    );
  });

  Deno.test(`decompress() passes on what goes wrong while .${kind} is read`, async () => {
    function* broken() {
      yield one.slice(0, 20) as Uint8Array<ArrayBuffer>;
      throw new UserError("the network is down");
    }
    const readAll = async () => {
      for await (const _ of decompress(broken(), kind, "a"));
    };
    await assertRefused(readAll, "the network is down");
  });

  Deno.test(`decompress() lets go of .${kind} when nobody reads on`, async () => {
    let closed = false;
    async function* endless() {
      try {
        while (true) yield await Promise.resolve(one as Uint8Array<ArrayBuffer>);
      } finally {
        closed = true;
      }
    }
    for await (const _ of decompress(endless(), kind, "a")) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
    assertEquals(closed, true);
  });
}

Deno.test("decompress() passes over what zstd calls skippable frames", async () => {
  const skippable = Uint8Array.of(0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3);
  const bytes = concatenate(concatenate(skippable, zstdCompressSync(first)), skippable);
  for (const chunkBytes of [1000, 1]) {
    assertEquals(await read(bytes, "zst", chunkBytes), text.slice(0, 300_000));
  }
});

/** A zstd frame of one block that is not compressed, as RFC 8878 has it. header: what follows the magic number. */
function frame(header: number[], content: string): Uint8Array {
  const block = content.length << 3 | 1; // the last one
  const bytes = new TextEncoder().encode(content);
  return Uint8Array.of(
    0x28,
    0xb5,
    0x2f,
    0xfd,
    ...header,
    block & 255,
    block >> 8 & 255,
    block >> 16,
    ...bytes,
  );
}

Deno.test("decompress() reads zstd with windows of 1 kB to 2 GB", async () => {
  for (let log = 10; log <= 31; log++) {
    assertEquals(await read(frame([0, log - 10 << 3], `window ${log}`), "zst"), `window ${log}`);
  }
  for (
    const [window, bytes] of [[21 << 3 | 1, 2 ** 31 * 9 / 8], [22 << 3, 2 ** 32], [31 << 3, 2 ** 41]] as const
  ) {
    await assertRefused(
      () => read(frame([0, window], "text"), "zst"),
      `Cannot decompress "a.zst": its window has ${bytes} bytes, should be at most 2147483648; ` +
        "compress it again with zstd --long=31 or less",
    );
  }
  const sized = frame([0b1110_0000, 0, 0, 0, 0, 1, 0, 0, 0], "text"); // one segment of 2^32 bytes, and no window
  await assertRefused(
    () => read(sized, "zst"),
    'Cannot decompress "a.zst": its window has 4294967296 bytes, should be at most 2147483648; ' +
      "compress it again with zstd --long=31 or less",
  );
  const text = frame([0b0010_0000, 4], "text"); // one segment of 4 bytes
  assertEquals(await read(text, "zst"), "text");
});

// ---- LZ4

Deno.test("decompressLz4() reads literals and matches of every length, also with themselves", () => {
  const letters = (n: number) => Array.from({ length: n }, (_, i) => 97 + i % 26);
  const blocks: [number[], string][] = [
    [[0x00], ""],
    [[0x50, ...letters(5)], "abcde"],
    [[0x11, 0x61, 1, 0, 0x00], "aaaaaa"], // one literal, then 4 + 1 bytes from 1 back
    [[0x22, 0x61, 0x62, 2, 0, 0x10, 0x63], "ababababc"], // 4 + 2 from 2 back
    [[0xf0, 0, ...letters(15)], String.fromCharCode(...letters(15))],
    [[0xf0, 255, 3, ...letters(273)], String.fromCharCode(...letters(273))], // 15 + 255 + 3
    [[0x1f, 0x61, 1, 0, 255, 0, 0x00], "a".repeat(1 + 4 + 15 + 255)],
  ];
  for (const [block, text] of blocks) {
    const bytes = Uint8Array.from([9, 9, ...block, 9]).subarray(2, -1); // a view
    assertEquals(new TextDecoder().decode(decompressLz4(bytes, text.length)), text);
    assertEquals(decompressLz4(bytes, text.length + 1).length, text.length);
    if (text !== "") assertThrows(() => decompressLz4(bytes, text.length - 1));
  }
  for (const block of [[0x50, 97], [0x10, 97, 0, 0, 0], [0x10, 97, 2, 0, 0], [0x10, 97, 1], [0xf0]]) {
    assertThrows(() => decompressLz4(Uint8Array.from(block), 5));
  }
});

Deno.test("decompressLz4Hadoop() reads blocks behind their lengths, and one without", () => {
  const ab = [0x20, 0x61, 0x62], cd = [0x20, 0x63, 0x64];
  const decode = (block: number[], length: number) =>
    new TextDecoder().decode(decompressLz4Hadoop(Uint8Array.from(block), length));
  assertEquals(decode([0, 0, 0, 2, 0, 0, 0, 3, ...ab], 2), "ab");
  assertEquals(decode([0, 0, 0, 2, 0, 0, 0, 3, ...ab, 0, 0, 0, 2, 0, 0, 0, 3, ...cd], 4), "abcd");
  assertEquals(decode(ab, 2), "ab");
});
