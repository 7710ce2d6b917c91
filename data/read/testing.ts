// For the tests of the reader: texts to read, documents as strings to compare with, whole messages.
import { assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { type Block, documentOf } from "./block.ts";
import { Random } from "./shuffle.ts";
import type { TextInput } from "./text.ts";

/** The texts of a block, "" for null. */
export function textsOf(block: Block): string[] {
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  return Array.from(block.ends, (_, d) => utf8.decode(documentOf(block, d)));
}

/** A text that comes in chunks of so many bytes, or of 1 to 5. */
export function input(text: string | Uint8Array, chunkBytes?: number): TextInput {
  const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text,
    random = new Random(bytes.length);
  function* chunks() {
    const buffer = new Uint8Array(chunkBytes ?? 5); // used again for each, as by files
    for (let at = 0; at < bytes.length;) {
      const part = bytes.subarray(at, at + (chunkBytes ?? 1 + random.below(5)));
      buffer.set(part);
      yield buffer.subarray(0, part.length);
      at += part.length;
    }
  }
  return { name: "a.txt", chunks: chunks(), takeRead: () => 0 };
}

/** Zeros, with text before and after. */
export function long(before: string, zeros: number, after: string): TextInput {
  const utf8 = new TextEncoder();
  function* chunks() {
    yield utf8.encode(before);
    for (let left = zeros; left > 0; left -= 1 << 20) yield new Uint8Array(Math.min(left, 1 << 20));
    yield utf8.encode(after);
  }
  return { name: "a.txt", chunks: chunks(), takeRead: () => 0 };
}

/** What readers call that may leave out nothing. */
export function refuse(message: string): never {
  throw new UserError(message);
}

/** Checks that something fails with a UserError of exactly this message. */
export async function assertRefused(run: () => Promise<unknown>, message: string): Promise<void> {
  assertEquals((await assertRejects(run, UserError)).message, message);
}
