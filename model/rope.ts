// Rotary positions: how far a query or key turns at each position. Each of its D/2 pairs of channels has a frequency, and models
// made for longer texts than their first training had lower some of them. All in float32, as transformers computes it.
import { copyToDevice } from "../ffi/library.ts";
import { fixed, type Tensor } from "../runtime/tensor.ts";

/** How the frequencies of a model differ from theta^(-2j/D), in the words of config.json. */
export type RopeScaling =
  | { rope_type: "linear"; factor: number }
  | {
    rope_type: "llama3";
    factor: number;
    low_freq_factor: number;
    high_freq_factor: number;
    original_max_position_embeddings: number;
  }
  | {
    rope_type: "yarn";
    factor: number;
    original_max_position_embeddings: number;
    attention_factor?: number;
    mscale?: number;
    mscale_all_dim?: number;
    beta_fast?: number;
    beta_slow?: number;
    truncate?: boolean;
  };

/** What a LlamaConfig says of positions. */
export type Rotary = { head_dim: number; block_size: number; rope_theta: number; rope_scaling?: RopeScaling };

const { fround } = Math;

/** Radians a token of each of the D/2 pairs, and what cosines and sines are multiplied by. */
export function ropeFrequencies(
  { head_dim: D, rope_theta, rope_scaling: s }: Omit<Rotary, "block_size">,
): { frequencies: number[]; scale: number } {
  const plain = Array.from({ length: D / 2 }, (_, j) => fround(1 / fround(rope_theta ** fround(2 * j / D))));
  if (s === undefined) return { frequencies: plain, scale: 1 };
  if (s.rope_type === "linear") return { frequencies: plain.map((f) => fround(f / s.factor)), scale: 1 };

  // Pairs that turn often in the text of the first training stay as they are, those that turn seldom slow down, by `factor`,
  // and between the two it is some of both.
  const turns = plain.map((f) => s.original_max_position_embeddings * f / (2 * Math.PI));
  const mixed = (f: number, kept: number) => fround(kept * f + (1 - kept) * f / s.factor);
  if (s.rope_type === "llama3") {
    const { low_freq_factor: low, high_freq_factor: high } = s;
    const kept = (n: number) => clamp((n - low) / (high - low));
    return { frequencies: plain.map((f, j) => mixed(f, kept(turns[j]!))), scale: 1 };
  }
  const pairOf = (n: number) =>
    // which turns n times, as a fraction
    D * Math.log(s.original_max_position_embeddings / (n * 2 * Math.PI)) / (2 * Math.log(rope_theta));
  const ends = [pairOf(s.beta_fast ?? 32), pairOf(s.beta_slow ?? 1)] as const;
  const [first, last] = s.truncate === false ? ends : [Math.floor(ends[0]), Math.ceil(ends[1])];
  const from = Math.max(first, 0), to = Math.min(last, D - 1), width = to === from ? 0.001 : to - from;
  return {
    frequencies: plain.map((f, j) => mixed(f, 1 - clamp((j - from) / width))),
    scale: s.attention_factor ?? yarnScale(s.factor, s.mscale, s.mscale_all_dim),
  };
}

/** YaRN's correction of attention scores that spread over a longer text. */
function yarnScale(factor: number, mscale: number | undefined, mscale_all_dim: number | undefined): number {
  const scale = (m: number) => factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1;
  return mscale && mscale_all_dim ? scale(mscale) / scale(mscale_all_dim) : scale(1);
}

function clamp(x: number): number {
  return Math.min(1, Math.max(0, x));
}

/** Cosines then sines of each pair's angle at each position: (block_size, D), made once a configuration, for rope(). */
export function ropeTable(c: Rotary): Tensor {
  const known = tables.get(c);
  if (known) return known;
  const D = c.head_dim,
    values = new Float32Array(c.block_size * D),
    { frequencies, scale } = ropeFrequencies(c);
  for (let p = 0; p < c.block_size; p++) {
    for (let j = 0; j < D / 2; j++) {
      const angle = fround(p * frequencies[j]!);
      values[p * D + j] = scale * Math.cos(angle);
      values[p * D + D / 2 + j] = scale * Math.sin(angle);
    }
  }
  const table = fixed([c.block_size, D], "f32", "constants");
  copyToDevice(table.address, values);
  tables.set(c, table);
  return table;
}
const tables = new WeakMap<Rotary, Tensor>();
