// LZ4 blocks, which no zlib of Node.js reads: sequences of literal bytes and matches with what came before.

/**
 * The content of a block. Throws Error if the block is corrupt or its content is longer.
 *
 * @param length Bytes that the content should have; it may have fewer.
 */
export function decompressLz4(bytes: Uint8Array, length: number): Uint8Array<ArrayBuffer> {
  const content = new Uint8Array(length);
  return content.subarray(0, decompressInto(content, 0, bytes));
}

/**
 * The content of blocks that Hadoop wrote, each behind the lengths of its content and itself, or of one block without
 * them, as older writers have it under the same name. Throws Error as decompressLz4().
 */
export function decompressLz4Hadoop(bytes: Uint8Array, length: number): Uint8Array<ArrayBuffer> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), blocks: [number, number][] = [];
  let at = 0, total = 0;
  while (at + 8 <= bytes.length && total <= length) {
    const size = view.getUint32(at + 4), from = at + 8;
    total += view.getUint32(at);
    at = from + size;
    blocks.push([from, at]);
  }
  if (at !== bytes.length || total !== length) return decompressLz4(bytes, length);
  const content = new Uint8Array(length);
  let end = 0;
  for (const [from, to] of blocks) end = decompressInto(content, end, bytes.subarray(from, to));
  return content.subarray(0, end);
}

/** Writes the content of a block from a place on, and returns where it ends. */
function decompressInto(content: Uint8Array, start: number, bytes: Uint8Array): number {
  let at = 0, end = start;
  const lengthOf = (nibble: number) => { // 15 and more goes on in the bytes that follow
    let length = nibble;
    for (let byte = nibble === 15 ? 255 : 0; byte === 255; length += byte) byte = bytes[at++] ?? NaN;
    return length;
  };
  while (at < bytes.length) {
    const token = bytes[at++]!, literals = lengthOf(token >>> 4);
    if (!(at + literals <= bytes.length && end + literals <= content.length)) {
      throw new Error(
        `lz4: ${literals} bytes at byte ${at} of ${bytes.length}, ${content.length - end} are left`,
      );
    }
    for (const to = at + literals; at < to;) content[end++] = bytes[at++]!;
    if (at === bytes.length) break; // the last sequence has no match
    const offset = bytes[at]! | bytes[at + 1]! << 8;
    at += 2;
    const length = 4 + lengthOf(token & 15);
    if (!(offset > 0 && offset <= end - start && end + length <= content.length && at <= bytes.length)) {
      throw new Error(`lz4: ${length} bytes from ${offset} back, there are ${end - start}`);
    }
    for (let from = end - offset, to = end + length; end < to;) content[end++] = content[from++]!; // may overlap
  }
  return end;
}
