// Hashes for shuffling and splitting: plain 32-bit integer arithmetic, so the same everywhere. Not for secrets.

/** Spreads the bits of a 32-bit integer over all of them (the finalizer of MurmurHash3). */
export function mix(x: number): number {
  x = Math.imul(x ^ x >>> 16, 0x85ebca6b);
  x = Math.imul(x ^ x >>> 13, 0xc2b2ae35);
  return x ^ x >>> 16;
}

/** A number in [0, 1) that depends on a text and a seed and on nothing else. */
export function textFraction(text: string, seed: number): number {
  let hash = mix(seed + 1);
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193); // FNV-1a
  return (mix(hash) >>> 0) / 2 ** 32;
}
