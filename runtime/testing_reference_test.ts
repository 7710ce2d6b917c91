import { assertEquals } from "@std/assert";
import { assertClose, integers, startsOf, uniform } from "./testing.ts";
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

Deno.test("attention() and rope() of the reference keep documents apart as if each were alone", () => {
  const begins = [0, 2, 3, 7], T = 9, H = 2, K = 1, D = 4, width = (H + 2 * K) * D;
  const qkv = random(T * width, 1), dout = random(T * H * D, 2), table = random(T * D, 3);
  const size = { B: 1, T, H, K, D, starts: startsOf(T, begins) };
  const alone = begins.map((from, i) => {
    const to = begins[i + 1] ?? T, size = { B: 1, T: to - from, H, K, D };
    const rows = qkv.slice(from * width, to * width);
    return {
      turned: ref.rope(rows, table, size),
      out: ref.attention(rows, size),
      dqkv: ref.attentionBackward(dout.slice(from * H * D, to * H * D), rows, size),
    };
  });
  const joined = (key: "turned" | "out" | "dqkv") => alone.flatMap((document) => Array.from(document[key]));
  assertEquals(Array.from(ref.rope(qkv, table, size)), joined("turned"));
  assertEquals(Array.from(ref.attention(qkv, size)), joined("out"));
  assertEquals(Array.from(ref.attentionBackward(dout, qkv, size)), joined("dqkv"));
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

Deno.test("element-wise functions of the reference are PyTorch's, and so are their slopes", () => {
  const x = [-4, -1, 0.5, 2]; // torch 2.13 in float64
  const published: [name: string, a: number, values: number[], slopes: number[]][] = [
    ["gelu", 1, [-0.000126684967332, -0.158655253931, 0.345731230637, 1.9544997361], [
      -0.000503649661226,
      -0.0833154705877,
      0.867495124656,
      1.08523180108,
    ]],
    ["geluTanh", 1, [-7.02459481923e-05, -0.158808009392, 0.345714009825, 1.95459769409], [
      -0.000335123197122,
      -0.0829640838458,
      0.867369903535,
      1.08609925662,
    ]],
    ["reluSquared", 1, [0, 0, 0.25, 4], [0, 0, 1, 4]],
    ["sigmoid", 1, [0.0179862099621, 0.26894142137, 0.622459331202, 0.880797077978], [
      0.0176627062133,
      0.196611933241,
      0.235003712202,
      0.104993585404,
    ]],
    ["softcap", 30, [-3.97646365173, -0.999629794165, 0.499953708847, 1.99704229507], [
      0.982430818696,
      0.998889711416,
      0.999722273654,
      0.995568691191,
    ]],
    ["scale", 3, [-12, -3, 1.5, 6], [3, 3, 3, 3]],
  ];
  for (const [name, a, values, slopes] of published) {
    const { f, slope } = ref.unary(name, a);
    assertClose(x.map(f), values, { rtol: 1e-10, atol: 1e-13 }, name);
    assertClose(x.map(slope), slopes, { rtol: 1e-10, atol: 1e-13 }, `slope of ${name}`);
  }
});

Deno.test("layernorm() of the reference is PyTorch's, and has the gradient of finite differences", () => {
  const x = [1, 2, 4, 8.5], w = [1, -2, 0.5, 3], b = [0, 1, 2, 3], exact = { rtol: 1e-12, atol: 0 };
  const published = [-0.9981143826863047, 2.3018883252430062, 2.0216981387540502, 7.816986803399123];
  assertClose(ref.layernorm(x, w, b, 1e-5), published, exact);
  checkBackward(
    (x, w, b) => ref.layernorm(x, w, b, 1e-2),
    (dout, x, w) => {
      const { dx, dw, db } = ref.layernormBackward(dout, x, w, 1e-2);
      return [dx, dw, db];
    },
    15,
    5,
    5,
  );
});

Deno.test("softmax and logsumexp of the reference have the gradients of finite differences", () => {
  checkBackward((x) => ref.softmaxRows(x, 5), (dout, x) => [ref.softmaxBackward(dout, x, 5)], 15);
  checkBackward(
    (x) => ref.logsumexp(x, 5, 3),
    (dout, x) => [ref.softmaxRows(x, 5, 3).map((p, i) => p * dout[Math.floor(i / 5)]!)],
    15,
  );
});
