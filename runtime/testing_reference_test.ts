import { assertClose, integers, uniform } from "./testing.ts";
import * as ref from "./testing_reference.ts";

type Values = Float64Array<ArrayBuffer>;

/**
 * Compares gradients with central differences of <f(x), dout>, element by element. In float64 the step 1e-5 leaves errors of
 * about 1e-10 (h^2 from the third derivative, 1e-16 / h from rounding).
 */
function checkBackward(
  f: (...x: Values[]) => ref.Numbers,
  gradients: (dout: Values, ...x: Values[]) => ref.Numbers[],
  ...sizes: number[]
): void {
  const x = sizes.map((n, i) => random(n, 1 + i)), dout = random(f(...x).length, 0), h = 1e-5;
  const loss = (x: Values[]) => Array.from(f(...x)).reduce((sum, y, i) => sum + y * dout[i]!, 0);
  gradients(dout, ...x).forEach((actual, i) => {
    const moved = (j: number, step: number) => x.with(i, x[i]!.with(j, x[i]![j]! + step));
    const expected = x[i]!.map((_, j) => (loss(moved(j, h)) - loss(moved(j, -h))) / (2 * h));
    assertClose(actual, expected, { rtol: 1e-7, atol: 1e-7 }, `gradient of input ${i}`);
  });
}

/** Numbers between -2 and 2. */
function random(n: number, seed: number): Values {
  const u = uniform(seed);
  return Float64Array.from({ length: n }, () => 4 * u() - 2);
}

Deno.test("embedding() of the reference has the gradient of finite differences", () => {
  const ids = [4, 0, 4, 2], V = 5, C = 3;
  checkBackward((w) => ref.embedding(ids, w, C), (dout) => [ref.embeddingBackward(dout, ids, V, C)], V * C);
});

Deno.test("rmsnorm() of the reference has the gradient of finite differences", () => {
  checkBackward(
    (x, w) => ref.rmsnorm(x, w, 1e-2),
    (dout, x, w) => {
      const { dx, dw } = ref.rmsnormBackward(dout, x, w, 1e-2);
      return [dx, dw];
    },
    15,
    5,
  );
});

Deno.test("linear() of the reference has the gradient of finite differences", () => {
  checkBackward(
    (x, w, residual) => ref.linear(x, w, 5, residual),
    (dout, x, w) => {
      const { dx, dw } = ref.linearBackward(dout, x, w, 5);
      return [dx, dw, dout];
    },
    15,
    20,
    12,
  );
});

Deno.test("rope() of the reference has the gradient of finite differences", () => {
  const size = { B: 2, T: 3, H: 2, K: 1, D: 4 }, table = random(5 * size.D, 9);
  checkBackward(
    (qkv) => ref.rope(qkv, table, size, 2),
    (dout) => [ref.rope(dout, table, size, 2, true)],
    2 * 3 * 4 * 4,
  );
});

Deno.test("attention() of the reference has the gradient of finite differences", () => {
  for (const [H, K] of [[1, 1], [2, 1], [6, 2]] as const) {
    const size = { B: 2, T: 4, H, K, D: 2 };
    checkBackward(
      (qkv) => ref.attention(qkv, size),
      (dout, qkv) => [ref.attentionBackward(dout, qkv, size)],
      2 * 4 * (H + 2 * K) * 2,
    );
  }
});

Deno.test("swiglu() of the reference has the gradient of finite differences", () => {
  checkBackward((x) => ref.swiglu(x, 3), (dout, x) => [ref.swigluBackward(dout, x, 3)], 4 * 6);
});

Deno.test("linearCrossEntropy() of the reference has the gradient of finite differences", () => {
  const targets = [1, -1, ...integers(2, 5, 3)], grad_scale = 0.5;
  checkBackward(
    (x, w) => [ref.linearCrossEntropy(x, w, targets, { V: 5, grad_scale }).loss],
    (dout, x, w) => {
      const { dx, dw } = ref.linearCrossEntropy(x, w, targets, { V: 5, grad_scale });
      return [dx, dw].map((g) => g.map((value) => value * dout[0]! / grad_scale));
    },
    4 * 3,
    6 * 3,
  );
});
