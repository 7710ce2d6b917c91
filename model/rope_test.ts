import { assertAlmostEquals, assertEquals, assertLess } from "@std/assert";
import { openTestDevice } from "../runtime/testing.ts";
import { ropeFrequencies, ropeTable } from "./rope.ts";

openTestDevice();

Deno.test("ropeTable() turns position p by p theta^(-2j/D), with the base of the configuration", () => {
  const D = 8, table = ropeTable({ head_dim: D, block_size: 4, rope_theta: 500 });
  const values = table.toArray();
  for (let p = 0; p < 4; p++) {
    for (let j = 0; j < D / 2; j++) {
      const angle = p * 500 ** (-2 * j / D);
      assertAlmostEquals(values[p * D + j]!, Math.cos(angle), 1e-6);
      assertAlmostEquals(values[p * D + D / 2 + j]!, Math.sin(angle), 1e-6);
    }
  }
});

Deno.test("ropeFrequencies() has the bits of transformers' float32", () => {
  // 1.0 / (theta ** (torch.arange(0, D, 2, dtype=torch.int64).float() / D)), of PyTorch 2.13
  const expected: [number, number, number[]][] = [
    [80, 500_000, [1, 0.720320463180542, 0.5188615322113037, 0.3737465739250183]],
    [128, 1_000_000, [1, 0.8058422207832336, 0.6493816375732422, 0.5232991576194763]],
  ];
  for (const [head_dim, rope_theta, first] of expected) {
    const { frequencies, scale } = ropeFrequencies({ head_dim, rope_theta });
    assertEquals([frequencies.slice(0, 4), frequencies.length, scale], [first, head_dim / 2, 1]);
  }
});

Deno.test("ropeFrequencies() slows down what turns seldom, as each kind of scaling has it", () => {
  const shape = { head_dim: 128, rope_theta: 500_000 }, plain = ropeFrequencies(shape).frequencies;
  const ratios = (rope_scaling: Parameters<typeof ropeFrequencies>[0]["rope_scaling"]) =>
    ropeFrequencies({ ...shape, ...(rope_scaling ? { rope_scaling } : {}) }).frequencies.map((f, j) =>
      f / plain[j]!
    );
  const near = (a: number[], b: number[]) => a.forEach((x, j) => assertLess(Math.abs(x / b[j]! - 1), 1e-6));
  near(ratios({ rope_type: "linear", factor: 4 }), plain.map(() => 1 / 4));

  // Llama 3.1's: a pair that turns more than 4 times in 8192 tokens stays, one that turns less than once is 8 times slower.
  const llama3 = ratios({
    ...{ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
    original_max_position_embeddings: 8192,
  });
  const turns = plain.map((f) => 8192 * f / (2 * Math.PI));
  near(llama3.slice(0, 29), Array(29).fill(1));
  near(llama3.slice(35), Array(29).fill(1 / 8));
  assertEquals(turns.findIndex((n) => n < 4), 29);
  assertEquals(turns.findIndex((n) => n < 1), 35);
  const kept = (turns[31]! - 1) / 3;
  near([llama3[31]!], [kept + (1 - kept) / 8]);
});
