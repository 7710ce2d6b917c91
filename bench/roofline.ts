// The least time in which a card could do a micro-step, by its peak and bandwidth alone: computed, measured on no card.
//   deno run bench/roofline.ts
//
// Each call takes the larger of flops / peak and bytes / bandwidth, one after the other, nothing between them; the optimizer
// is spread over 32 micro-steps.
import { table } from "../base/format.ts";
import { measureModel } from "../model/plan.ts";
import { allCases, type Case } from "./cases.ts";
import { modelOf, SHAPES } from "./shapes.ts";

/** TFLOP/s of dense bfloat16 products with float sums, and TB/s, that floors assume; peak: what MFU is counted against. */
type Card = { name: string; tflops: number; tb_per_sec: number; peak: number; from: string };

const CARDS: Card[] = [
  {
    name: "H100 SXM",
    tflops: 798,
    tb_per_sec: 3.0,
    peak: 989.4,
    from: "8192^3 product and large copy, measured",
  },
  {
    name: "H200 SXM",
    tflops: 790,
    tb_per_sec: 4.3,
    peak: 989.4,
    from: "8192^3 product and large copy, measured",
  },
  { name: "RTX 5090", tflops: 209.5, tb_per_sec: 1.6, peak: 209.5, from: "NVIDIA's peak; 90% of 1.79 TB/s" },
  { name: "RTX 5090 at 400 W", tflops: 170, tb_per_sec: 1.6, peak: 209.5, from: "published cuBLAS figures" },
  { name: "A100 SXM", tflops: 270, tb_per_sec: 1.8, peak: 312, from: "published figures" },
];

const ACCUMULATION = 32; // train.ts's gradient_accumulation_steps

/** ms of the products, attention's too, and of the rest, for one micro-step. */
export function floor(
  cases: Case[],
  { tflops, tb_per_sec }: Pick<Card, "tflops" | "tb_per_sec">,
): Record<"products" | "rest", number> {
  const ms = { products: 0, rest: 0 };
  for (const { op, flops, bytes, count } of cases) {
    const perStep = op === "adamw" || op === "grad_sumsq";
    const calls = perStep ? 1 / ACCUMULATION : count;
    ms[flops ? "products" : "rest"] += calls * Math.max(flops / tflops / 1e9, bytes / tb_per_sec / 1e9);
  }
  return ms;
}

if (import.meta.main) {
  const s = { ...SHAPES["gpt-270m"]!, head_chunk: 2048, act: 2 }, tokens = s.B * s.T;
  const cases = allCases(s, 0);
  const flops = measureModel(modelOf(s)).flops_per_token;
  console.log(
    `gpt-270m, B=${s.B} T=${s.T}, ${(flops / 1e9).toFixed(4)} GFLOP a token. Computed, not measured.`,
  );
  console.log(table([
    [
      "card",
      "TFLOP/s",
      "TB/s",
      "products ms",
      "rest ms",
      "micro-step ms",
      "tok/s at most",
      "MFU",
      "limits from",
    ],
    ...CARDS.map((card) => {
      const { products, rest } = floor(cases, card), ms = products + rest, tok_per_sec = tokens / ms * 1000;
      return [
        card.name,
        `${card.tflops}`,
        `${card.tb_per_sec}`,
        products.toFixed(1),
        rest.toFixed(1),
        ms.toFixed(1),
        `${Math.round(tok_per_sec)}`,
        `${(100 * flops * tok_per_sec / card.peak / 1e12).toFixed(0)}%`,
        card.from,
      ];
    }),
  ]));
}
