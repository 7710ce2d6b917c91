// Writes tokens with a model, one after the other, keeping keys and values of earlier tokens in a cache.
import { UserError } from "../base/errors.ts";
import { copyToDevice, sample, type Sampling } from "../ffi/library.ts";

import { endStep, noGrad } from "../runtime/tape.ts";
import { empty, fixed, rows, type Tensor } from "../runtime/tensor.ts";
import { forward, type KVCache, type Llama, type LlamaConfig, logits } from "./llama.ts";

export type { Sampling };

/** How to go on with a text. */
export type GenerateOptions = Sampling & {
  max_new_tokens: number;
  seed: number; // the same seed writes the same text
  stop?: readonly number[]; // tokens of which each ends the text, not yielded
};

/**
 * Continues prompt (at least one token id). Yields each new token as it is chosen. Text longer than block_size goes on from
 * its last half block. Uses step memory, so it may not run inside a training step.
 */
export function* generate(
  m: Llama,
  c: LlamaConfig,
  prompt: readonly number[],
  o: GenerateOptions,
): Generator<number> {
  const random = randomNumbers(o.seed);
  const tokens = [...prompt];
  const cache = cacheFor(c);
  cache.pos = 0;
  let fresh = tokens.slice(-c.block_size); // tokens that the cache does not hold yet
  for (let n = 0; n < o.max_new_tokens; n++) {
    const next = choose(lastLogits(m, c, fresh, cache), c, o, random());
    endStep();
    if (o.stop?.includes(next)) return;
    yield next;
    tokens.push(next);
    fresh = [next];
    if (cache.pos === c.block_size) {
      cache.pos = 0;
      fresh = tokens.slice(-Math.ceil(c.block_size / 2));
    }
  }
}

/** Logits (V padded) of the token that follows `fresh`, which continue what the cache holds; in step memory. */
export function lastLogits(m: Llama, c: LlamaConfig, fresh: readonly number[], cache?: KVCache): Tensor {
  return noGrad(() => {
    const T = fresh.length;
    const idx = empty([1, T], "i32");
    copyToDevice(idx.address, Int32Array.from(fresh));
    const hidden = forward(m, idx, c, cache ? { cache } : {});
    return logits(m, rows(hidden, T - 1, 1));
  });
}

/** One cache a configuration, kept for the life of the process: (1, K, block_size, D) keys and values a layer. */
function cacheFor(c: LlamaConfig): KVCache {
  let cache = caches.get(c);
  if (!cache) {
    const shape = [1, c.n_kv_head, c.block_size, c.head_dim];
    const layer = () => ({ k: fixed(shape, "act", "cache"), v: fixed(shape, "act", "cache") });
    cache = { pos: 0, layers: Array.from({ length: c.n_layer }, layer) };
    caches.set(c, cache);
  }
  return cache;
}
const caches = new WeakMap<LlamaConfig, KVCache>();

/** A token drawn from logits (V padded) by 32 random bits. Throws UserError when a logit is not finite. */
export function choose(logits: Tensor, c: LlamaConfig, o: Sampling, random: number): number {
  const token = sample(logits.address, c.vocab_size, o, random);
  if (token >= 0) return token;
  throw new UserError(
    "Cannot choose a token: the model's logits are not finite, its weights are damaged; use an earlier checkpoint",
  );
}

/** 32 random bits after the other, whole numbers from 0, from a 32-bit seed (splitmix32). */
export function randomNumbers(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = state + 0x9e3779b9 | 0;
    let z = state ^ state >>> 16;
    z = Math.imul(z, 0x21f0aaad);
    z ^= z >>> 15;
    z = Math.imul(z, 0x735a2d97);
    z ^= z >>> 15;
    return z >>> 0;
  };
}
