import { gzipSync, zstdCompressSync } from "node:zlib";
import { assertEquals } from "@std/assert";
import { UserError } from "../../ffi/errors.ts";
import { concatenate } from "./bytes.ts";
import { type Compression, decompress } from "./compression.ts";
import { assertRefused } from "./test_documents.ts";

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
