// Writes tokens with a model, one after the other, keeping keys and values of earlier tokens in a cache.
import { UserError } from "../base/errors.ts";
import { copyToDevice } from "../ffi/library.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { empty, fixed, rows } from "../runtime/tensor.ts";
import { forward, type KVCache, type Llama, type LlamaConfig, logits } from "./llama.ts";

/** How to choose tokens. */
export type GenerateOptions = {
  max_new_tokens: number;
  temperature: number; // 0 = always the likeliest token
  top_k: number; // keep only the k likeliest; 0 = all
  top_p: number; // keep the likeliest that make up this probability together; 1 = all
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
    const next = choose(lastLogits(m, c, fresh, cache), o, random());
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

/** Logits (V) of the token that follows `fresh`, which continue what the cache holds. */
export function lastLogits(
  m: Llama,
  c: LlamaConfig,
  fresh: readonly number[],
  cache?: KVCache,
): Float32Array {
  const values = noGrad(() => {
    const T = fresh.length;
    const idx = empty([1, T], "i32");
    copyToDevice(idx.address, Int32Array.from(fresh));
    const hidden = forward(m, idx, c, cache ? { cache } : {});
    return logits(m, rows(hidden, T - 1, 1)).toArray().subarray(0, c.vocab_size);
  });
  endStep();
  return values;
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

/**
 * Picks a token: u in [0, 1) chooses among those that temperature, top_k and top_p leave, likeliest first. Throws UserError
 * when a logit is not finite.
 */
export function choose(
  logits: Float32Array,
  { temperature, top_k, top_p }: Pick<GenerateOptions, "temperature" | "top_k" | "top_p">,
  u: number,
): number {
  if (!logits.every(Number.isFinite)) {
    throw new UserError(
      "Cannot choose a token: the model's logits are not finite, its weights are damaged; use an earlier checkpoint",
    );
  }
  if (temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const kept = largest(logits, top_k > 0 ? Math.min(top_k, logits.length) : logits.length);
  const weights = kept.map((id) => Math.exp((logits[id]! - logits[kept[0]!]!) / temperature));
  const total = weights.reduce((a, b) => a + b);
  let nucleus = 0, count = 0; // the likeliest tokens that make up top_p of the probability
  while (count < kept.length && nucleus < top_p * total) nucleus += weights[count++]!;
  let rest = u * nucleus;
  for (let i = 0; i < count; i++) {
    rest -= weights[i]!;
    if (rest < 0) return kept[i]!;
  }
  return kept[count - 1]!;
}

/** Places of the k largest values, largest first; of equal ones the earlier places. */
function largest(values: Float32Array, k: number): number[] {
  const threshold = values.toSorted()[values.length - k]!; // a typed array sorts by value, 20 times as fast as by callback
  const places: number[] = [];
  values.forEach((value, i) => {
    if (value >= threshold) places.push(i);
  });
  return places.sort((a, b) => values[b]! - values[a]! || a - b).slice(0, k);
}

/** Uniform numbers in [0, 1) from a 32-bit seed (splitmix32). */
export function randomNumbers(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = state + 0x9e3779b9 | 0;
    let z = state ^ state >>> 16;
    z = Math.imul(z, 0x21f0aaad);
    z ^= z >>> 15;
    z = Math.imul(z, 0x735a2d97);
    z ^= z >>> 15;
    return (z >>> 0) / 2 ** 32;
  };
}
