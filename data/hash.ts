// Hashes for shuffling and splitting: plain 32-bit integer arithmetic, so the same everywhere. Not for secrets.

/** Spreads the bits of a 32-bit integer over all of them (the finalizer of MurmurHash3). */
export function mix(x: number): number {
  x = Math.imul(x ^ x >>> 16, 0x85ebca6b);
  x = Math.imul(x ^ x >>> 13, 0xc2b2ae35);
  return x ^ x >>> 16;
}

/** A number in [0, 1) that depends on bytes[from, to) and a seed and on nothing else. */
export function bytesFraction(bytes: Uint8Array, from: number, to: number, seed: number): number {
  return murmur3(bytes, from, to, seed) / 2 ** 32;
}

/** MurmurHash3_x86_32 of bytes[from, to): four bytes at a time, so that it costs little beside encoding them. */
export function murmur3(bytes: Uint8Array, from: number, to: number, seed: number): number {
  const words_end = to - (to - from) % 4;
  let hash = seed | 0;
  for (let i = from; i < words_end; i += 4) {
    const word = bytes[i]! | bytes[i + 1]! << 8 | bytes[i + 2]! << 16 | bytes[i + 3]! << 24;
    hash = rotate(hash ^ scramble(word), 13);
    hash = Math.imul(hash, 5) + 0xe6546b64 | 0;
  }
  let tail = 0;
  for (let i = to - 1; i >= words_end; i--) tail = tail << 8 | bytes[i]!;
  return mix(hash ^ scramble(tail) ^ to - from) >>> 0;
}

function scramble(word: number): number {
  return Math.imul(rotate(Math.imul(word, 0xcc9e2d51), 15), 0x1b873593);
}

function rotate(x: number, bits: number): number {
  return x << bits | x >>> 32 - bits;
}
