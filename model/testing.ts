// What the tests of the model share.
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { type AdamW, Parameters } from "../runtime/optim.ts";
import { backward, endStep, noGrad } from "../runtime/tape.ts";
import { fixed, type Tensor, writeFloats } from "../runtime/tensor.ts";
import { headSize } from "../runtime/testing.ts";
import { forward, init, type KVCache, type Llama, type LlamaConfig, logits, paddedVocab } from "./llama.ts";

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

/** A small model and its shape. Its attention is far from even, so that a wrong key is noticed. A device must be open. */
export function unevenModel(vocab_size: number): { model: Llama; config: LlamaConfig } {
  const config: LlamaConfig = {
    vocab_size,
    n_layer: 2,
    n_embd: 32,
    n_head: 4,
    n_kv_head: 2,
    head_dim: headSize(8),
    n_inner: 48,
    block_size: 24,
    rope_theta: 10000,
    norm_eps: 1e-6,
    tie_word_embeddings: false,
  };
  const model = init(config);
  new Parameters(model, { seed: 3, train: false });
  for (const { qkv_proj } of model.layers) multiply(qkv_proj, 12);
  return { model, config };
}

/** Multiplies a weight by a number. */
export function multiply(w: Tensor, by: number): void {
  writeFloats(w.address, w.toArray().map((x) => by * x), "act");
}

/** Logits (B * T, V) of token ids (B, T), without the padding of the vocabulary. Ends the step. */
export function allLogits(model: Llama, c: LlamaConfig, idx: Tensor): Float32Array {
  const padded = noGrad(() => logits(model, forward(model, idx, c)).toArray());
  endStep();
  const V = c.vocab_size, P = paddedVocab(c);
  return Float32Array.from({ length: idx.size * V }, (_, i) => padded[Math.floor(i / V) * P + i % V]!);
}

/**
 * Takes steps at the learning rates of a golden, each on what one function returns, and compares loss and gradient norm with those
 * that the other one reads by name, losses and grad_norms with this suffix: n steps may differ by n times 1e-5 and 1e-4 of the norm.
 */
export function followSteps(
  optimizer: AdamW,
  loss: () => Tensor,
  floats: (name: string) => Float32Array,
  suffix = "",
): void {
  const losses = floats(`losses${suffix}`), norms = floats(`grad_norms${suffix}`);
  floats("learning_rates").forEach((rate, step) => {
    const l = loss();
    optimizer.addLoss(l, 1, true);
    backward(l);
    optimizer.step(rate);
    endStep();
    const result = optimizer.result(), norm = norms[step]!;
    assertAlmostEquals(result.loss, losses[step]!, 1e-5 * (1 + step), `loss of step ${step}`);
    assertAlmostEquals(result.grad_norm, norm, 1e-4 * norm * (1 + step), `norm of step ${step}`);
  });
}

/** A cache of one row that holds block_size positions, and none yet. */
export function emptyCache(c: LlamaConfig): KVCache {
  const heads = () => [fixed([c.n_kv_head, c.block_size, c.head_dim], "act", "cache")];
  return { pos: [0], layers: Array.from({ length: c.n_layer }, () => ({ k: heads(), v: heads() })) };
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
