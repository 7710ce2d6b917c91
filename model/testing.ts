// What the tests of the model share.
import { assertEquals } from "@std/assert";
import { endStep, noGrad } from "../runtime/tape.ts";
import type { Tensor } from "../runtime/tensor.ts";
import { forward, type Llama, type LlamaConfig, logits, paddedVocab } from "./llama.ts";

/** The preset gpt-270m with the GPT-2 vocabulary, written out, as published figures and memory plans count it. */
export const GPT_270M: LlamaConfig = {
  vocab_size: 50257,
  n_layer: 24,
  n_embd: 1024,
  n_head: 16,
  n_kv_head: 4,
  head_dim: 64,
  n_inner: 2816,
  block_size: 2048,
  rope_theta: 10000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};

/** Logits (B * T, V) of token ids (B, T), without the padding of the vocabulary. Ends the step. */
export function allLogits(model: Llama, c: LlamaConfig, idx: Tensor): Float32Array {
  const padded = noGrad(() => logits(model, forward(model, idx, c)).toArray());
  endStep();
  const V = c.vocab_size, P = paddedVocab(c);
  return Float32Array.from({ length: idx.size * V }, (_, i) => padded[Math.floor(i / V) * P + i % V]!);
}

/** Largest difference, relative to the largest magnitude of the expected values; infinite where a value is not finite. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assertEquals(actual.length, expected.length);
  let difference = 0, magnitude = 0;
  for (let i = 0; i < actual.length; i++) {
    if (!Number.isFinite(actual[i])) return Infinity;
    difference = Math.max(difference, Math.abs(actual[i]! - expected[i]!));
    magnitude = Math.max(magnitude, Math.abs(expected[i]!));
  }
  return difference / magnitude;
}
