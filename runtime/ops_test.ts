// Every op against the float64 reference and against finite differences, on odd shapes; then causality, wrong shapes, values
// that are not finite, equal bits, and the same tests on every instruction set. What ops do together is in tape_test.ts.
import { assert, assertEquals, assertThrows } from "@std/assert";
import * as k from "../ffi/kernels.ts";
import { libraryExists, open } from "../ffi/library.ts";
import {
  add,
  attention,
  bias,
  cachedAttention,
  concat,
  crossEntropy,
  dropout,
  embedding,
  feedForward,
  gelu,
  geluTanh,
  layernorm,
  linear,
  linearCrossEntropy,
  logsumexp,
  mean,
  mul,
  normLinear,
  qkNorm,
  reluSquared,
  rmsnorm,
  rope,
  scale,
  sigmoid,
  slice,
  softcap,
  softmax,
  swiglu,
  swigluLinear,
} from "./ops.ts";
import * as ref from "./testing_reference.ts";
import { backward, beginMasks, checkpoint, endStep, noGrad } from "./tape.ts";
import { Parameters } from "./optim.ts";
import { fixed, param, type Tensor, tensor, writeFloats } from "./tensor.ts";
import {
  assertClose,
  checkGrad,
  close,
  compareAttention,
  forwardBackward,
  gradient,
  headSize,
  integers,
  leaf,
  normal,
  normalWeight,
  openTestDevice,
  philox,
  plus,
  rotations,
  rounding,
  startsOf,
  tokens,
  type Values,
  weight,
} from "./testing.ts";

const device = openTestDevice();
const EPS = 1e-6; // of rmsnorm

function heads({ H, K, D }: { H: number; K: number; D: number }) {
  return { n_head: H, n_kv_head: K, head_dim: D };
}

// ---- each op against float64

Deno.test("embedding() agrees with float64", () => {
  for (const [B, T, V, C] of [[1, 1, 1, 1], [2, 17, 11, 7], [3, 65, 50, 33], [1, 130, 7, 96]] as const) {
    const w = normalWeight([V, C], 1), ids = integers(B * T, V, 2), dout = normal(B * T * C, 3);
    const { out, grads } = forwardBackward(() => embedding(tokens([B, T], ids), w.t), [w.t], dout);
    close(out, ref.embedding(ids, w.values, C), 0, "out");
    close(grads[0]!, ref.embeddingBackward(dout, ids, V, C), B * T / V, "dw");
  }
});

Deno.test("rmsnorm() agrees with float64", () => {
  // One value has its own size as rms: dx is what eps leaves of a difference, so eps must not be tiny there.
  for (
    const [N, C, eps] of [[1, 1, 1], [17, 7, EPS], [65, 33, EPS], [130, 96, EPS], [3, 1025, EPS]] as const
  ) {
    const x = leaf([N, C], 1), w = normalWeight([C], 2), dout = normal(N * C, 3);
    const { out, grads } = forwardBackward(() => rmsnorm(x.t, w.t, eps), [x.t, w.t], dout);
    const { dx, dw } = ref.rmsnormBackward(dout, x.values, w.values, eps);
    close(out, ref.rmsnorm(x.values, w.values, eps), C, "out");
    close(grads[0]!, dx, C, "dx", 2); // rstd, then mean(g * n)
    close(grads[1]!, dw, N, "dw", 2);
  }
});

Deno.test("rmsnorm() agrees with float64 on very small and very large rows", () => {
  const C = 40, w = normalWeight([C], 1), dout = normal(3 * C, 2), scales = [1e-9, 1e-3, 1e15];
  const values = normal(3 * C, 3).map((x, i) => x * scales[Math.floor(i / C)]!);
  const x = tensor([3, C], values, true), read = x.toArray();
  const { out, grads } = forwardBackward(() => rmsnorm(x, w.t, EPS), [x], dout);
  const expected = ref.rmsnorm(read, w.values, EPS), { dx } = ref.rmsnormBackward(dout, read, w.values, EPS);
  for (let row = 0; row < 3; row++) {
    const part = (all: ref.Numbers) => Array.from(all).slice(row * C, row * C + C);
    close(part(out), part(expected), C, `out of row ${row}`);
    close(part(grads[0]!), part(dx), C, `dx of row ${row}`, 2);
  }
});

Deno.test("linear() agrees with float64, with and without a residual", () => {
  for (const [N, IN, OUT] of [[1, 1, 1], [17, 13, 7], [65, 40, 33], [3, 300, 130], [130, 96, 65]] as const) {
    for (const hasResidual of [false, true]) {
      const x = leaf([1, N, IN], 1), w = normalWeight([OUT, IN], 2), r = leaf([1, N, OUT], 3);
      const dout = normal(N * OUT, 4), inputs = hasResidual ? [x.t, w.t, r.t] : [x.t, w.t];
      const { out, grads } = forwardBackward(
        () => linear(x.t, w.t, hasResidual ? r.t : undefined),
        inputs,
        dout,
      );
      const { dx, dw } = ref.linearBackward(dout, x.values, w.values, IN);
      close(out, ref.linear(x.values, w.values, IN, hasResidual ? r.values : undefined), IN, "out");
      close(grads[0]!, dx, OUT, "dx");
      close(grads[1]!, dw, N, "dw");
      if (hasResidual) assertEquals(grads[2], dout, "dresidual");
    }
  }
});

Deno.test("linear() with an adapter agrees with float64, and with the weight w + scale B A", () => {
  for (const [N, IN, OUT, R] of [[1, 1, 1, 1], [17, 13, 7, 3], [65, 40, 33, 16], [130, 96, 65, 8]] as const) {
    const x = leaf([1, N, IN], 1), w = normalWeight([OUT, IN], 2), r = leaf([1, N, OUT], 3), scale = 1.75;
    const A = normalWeight([R, IN], 4), B = normalWeight([OUT, R], 5), dout = normal(N * OUT, 6);
    const { out, grads } = forwardBackward(
      () => linear(x.t, w.t, r.t, { A: A.t, B: B.t, scale }),
      [x.t, w.t, r.t, A.t, B.t],
      dout,
    );
    const of = (n: number, f: (i: number) => number) => Float64Array.from({ length: n }, (_, i) => f(i));
    const sum = (n: number, f: (i: number) => number) => of(n, f).reduce((all, value) => all + value, 0);
    const whole = of(OUT * IN, (i) => {
      const [row, column] = [Math.floor(i / IN), i % IN];
      return w.values[i]! + scale * sum(R, (k) => B.values[row * R + k]! * A.values[k * IN + column]!);
    });
    const { dx, dw } = ref.linearBackward(dout, x.values, whole, IN);
    const dA = of(
      R * IN,
      (i) => scale * sum(OUT, (o) => B.values[o * R + Math.floor(i / IN)]! * dw[o * IN + i % IN]!),
    );
    const dB = of(
      OUT * R,
      (i) => scale * sum(IN, (k) => dw[Math.floor(i / R) * IN + k]! * A.values[i % R * IN + k]!),
    );
    const parts = 2 * R; // w + scale B A has so many more roundings than w
    close(out, ref.linear(x.values, whole, IN, r.values), IN * parts, "out", 2);
    close(grads[0]!, dx, OUT * parts, "dx", 2);
    close(grads[1]!, dw, N, "dw");
    assertEquals(grads[2], dout, "dresidual");
    close(grads[3]!, dA, N * OUT, "dA", 2);
    close(grads[4]!, dB, N * IN, "dB", 2);
  }
});

Deno.test("linear() of few rows agrees with float64, and each row gets what it gets alone (float32)", () => {
  for (const [IN, OUT] of [[1, 1], [7, 5], [33, 2], [96, 50], [160, 25]] as const) {
    const w = normalWeight([OUT, IN], 1), x = normal(9 * IN, 2), residual = normal(9 * OUT, 3);
    const run = (row: number, N: number, hasResidual: boolean) => {
      const part = (values: Values, width: number) =>
        tensor([N, width], values.slice(row * width, (row + N) * width));
      return noGrad(() => linear(part(x, IN), w.t, hasResidual ? part(residual, OUT) : undefined).toArray());
    };
    for (const hasResidual of [false, true]) {
      const alone = Array.from({ length: 8 }, (_, row) => Array.from(run(row, 1, hasResidual)));
      for (let N = 1; N <= 9; N++) {
        const out = run(0, N, hasResidual), added = hasResidual ? residual.slice(0, N * OUT) : undefined;
        close(out, ref.linear(x.slice(0, N * IN), w.values, IN, added), IN, `out of ${N} rows`);
        if (device.act === "f32" && N <= 8) assertEquals(Array.from(out), alone.slice(0, N).flat());
      }
    }
    endStep();
  }
});

Deno.test("linear() and embedding() of a bfloat16 weight give the bits of a float32 weight of these values (float32)", () => {
  if (device.act !== "f32") return;
  for (const [IN, OUT] of [[1, 1], [7, 5], [33, 50], [160, 25]] as const) {
    const toBf16 = (x: number) => Math.round(x * 16) / 16,
      values = normal(OUT * IN, 1).map(toBf16); // few bits
    const vector = normal(IN, 5),
      half = frozenHalf(
        { w: param([OUT, IN], { value: 0 }), norm: param([IN], { value: 1 }) },
        (name) => name === "w" ? values : vector,
      );
    const w = weight([OUT, IN], values),
      x = normal(11 * IN, 2),
      residual = normal(11 * OUT, 3),
      ids = [OUT - 1, 0];
    const run = (w: Tensor, from: number, to: number) =>
      noGrad(() => {
        const rows = tensor([to - from, IN], x.slice(from * IN, to * IN));
        return linear(rows, w, tensor([to - from, OUT], residual.slice(from * OUT, to * OUT))).toArray();
      });
    const alone = Array.from({ length: 11 }, (_, row) => Array.from(run(w, row, row + 1))).flat();
    for (const N of [1, 2, 5, 8]) {
      assertEquals(Array.from(run(half.w, 0, N)), alone.slice(0, N * OUT), `${N} rows`);
    }
    close(run(half.w, 0, 11), alone, IN, "11 rows");
    assertEquals(embedding(tokens([2], ids), half.w).toArray(), embedding(tokens([2], ids), w).toArray());
    assertEquals(half.norm.toArray(), vector, "vectors stay float32");
    const rows = tensor([11, IN], x, true), dout = normal(11 * OUT, 4);
    const { grads: [dx] } = forwardBackward(() => linear(rows, half.w), [rows], dout);
    close(dx!, ref.linearBackward(dout, x, values, IN).dx, OUT, "dx");
    endStep();
  }
});

/** A model whose matrices are bfloat16, and not trained. */
function frozenHalf<T>(model: T, valuesOf: (name: string) => Float32Array<ArrayBuffer>): T {
  const load = (name: string, at: bigint) => writeFloats(at, valuesOf(name), "f32");
  new Parameters(model, { seed: 0, train: false, half: true, load });
  return model;
}

Deno.test("rope() turns each row of the batch from a position of its own", () => {
  const B = 3, T = 2, H = 3, K = 1, D = 8, width = (H + 2 * K) * D, pos = [4, 0, 7], table = rotations(9, D);
  const qkv = leaf([B, T, width], 1), dout = normal(B * T * width, 2);
  const { out, grads } = forwardBackward(() => rope(qkv.t, table.t, heads({ H, K, D }), pos), [qkv.t], dout);
  const expected = (values: Values, inverse: boolean) =>
    pos.flatMap((pos, b) =>
      Array.from(
        ref.rope(
          values.slice(b * T * width, (b + 1) * T * width),
          table.values,
          { B: 1, T, H, K, D },
          pos,
          inverse,
        ),
      )
    );
  close(out, expected(qkv.values, false), 2, "out");
  close(grads[0]!, expected(dout, true), 2, "dqkv");
});

Deno.test("rope() agrees with float64 and turns back what it turned", () => {
  for (const [B, T, H, K, D] of [[1, 1, 1, 1, 2], [2, 17, 3, 1, 8], [2, 65, 4, 2, 40], [1, 130, 2, 2, 64]]) {
    const size = { B: B!, T: T!, H: H!, K: K!, D: D! }, width = (H! + 2 * K!) * D!;
    const table = rotations(T! + 5, D!), qkv = leaf([B!, T!, width], 1), dout = normal(B! * T! * width, 2);
    for (const pos of [0, 5]) {
      const x = tensor(qkv.t.shape, qkv.values, true);
      const { out, grads } = forwardBackward(() => rope(x, table.t, heads(size), pos), [x], dout);
      close(out, ref.rope(qkv.values, table.values, size, pos), 2, "out");
      close(grads[0]!, ref.rope(dout, table.values, size, pos, true), 2, "dqkv");
    }
  }
});

const HEAD_SIZES = [8, 32, 40, 64, 128].filter((D) => headSize(D) === D);
const HEADS = HEAD_SIZES.flatMap((D) => [[2, 2], [2, 1], [6, 2]].map(([H, K]) => ({ H: H!, K: K!, D })));
const GROUP_OF_3 = HEAD_SIZES.map((D) => ({ H: 3, K: 1, D })); // enough for the longest, as the time grows with T²

Deno.test("attention() agrees with float64 for head groups of 1, 2, 3 and every length of block", () => {
  for (const T of [1, 17, 65, 130]) {
    for (const { H, K, D } of T === 130 ? GROUP_OF_3 : HEADS.filter(({ H }) => T < 65 || H === 6)) {
      compareAttention({ B: T === 130 ? 1 : 2, T, H, K, D });
    }
  }
  compareAttention({ B: 2, T: 67, H: 8, K: 4, D: headSize(8) }); // key heads enough for two threads
});

/** Documents that begin where a tile does, beside it and at random, one of them of one token, and the last token. */
function documents(T: number): number[] {
  const begins = [[0, 1, 2, 63, 64, 65, T - 1], [...integers(3, T, T), 16, 128, T - 2]];
  return startsOf(T, ...begins.map((row) => row.filter((t) => t >= 0 && t < T)));
}

Deno.test("attention() within documents agrees with float64, wherever they begin", () => {
  for (const T of [1, 17, 65]) {
    for (const { H, K, D } of GROUP_OF_3) compareAttention({ B: 2, T, H, K, D, starts: documents(T) });
  }
  for (const D of HEAD_SIZES) compareAttention({ B: 2, T: 197, H: 1, K: 1, D, starts: documents(197) });
  const D = headSize(8), T = 261;
  compareAttention({ B: 1, T, H: 2, K: 1, D, starts: startsOf(T, [200]) }); // whole tiles are of other documents
});

Deno.test("attention() of a document amid others has the bits of the document alone where tiles align", () => {
  const D = headSize(8), H = { n_head: 2, n_kv_head: 1, head_dim: D }, width = 4 * D;
  const n = 70, before = device.library === "cpu" ? 128 : 384, T = before + n + 30; // tiles have 32 to 128 rows
  const values = normal(T * width, 1), own = values.slice(before * width, (before + n) * width);
  const run = (T: number, values: Values, starts?: number[]) =>
    noGrad(() => attention(tensor([1, T, width], values), H, starts && tokens([1, T], starts)).toArray());
  const out = run(T, values, startsOf(T, [0, 5, before - 1, before, before + n]));
  assertEquals(out.slice(before * 2 * D, (before + n) * 2 * D), run(n, own));
  endStep();
});

Deno.test("rope() begins anew in each document", () => {
  const B = 2, T = 65, H = 3, K = 1, D = 8, table = rotations(T + 4, D), starts = documents(T);
  const size = { B, T, H, K, D, starts }, qkv = leaf([B, T, (H + 2 * K) * D], 1);
  const dout = normal(qkv.values.length, 2), places = tokens([B, T], starts);
  const { out, grads } = forwardBackward(() => rope(qkv.t, table.t, heads(size), 4, places), [qkv.t], dout);
  close(out, ref.rope(qkv.values, table.values, size, 4), 2, "out");
  close(grads[0]!, ref.rope(dout, table.values, size, 4, true), 2, "dqkv");
  const x = tensor(qkv.t.shape, qkv.values); // each row from a position of its own
  assertEquals(noGrad(() => rope(x, table.t, heads(size), [4, 4], places).toArray()), out);
  endStep();
});

Deno.test("attention() agrees with float64 where one key takes all the weight", () => {
  const D = headSize(8), size = { B: 1, T: 70, H: 1, K: 1, D };
  const values = normal(70 * 3 * D, 1).map((x) => Math.fround(16 * x)); // scores of hundreds
  const out = noGrad(() => attention(tensor([1, 70, 3 * D], values), heads(size)).toArray());
  close(out, ref.attention(values, size), 256 ** 2, "out", 2); // exp() turns the rounding of a score, 256 u, into a factor
  endStep();
});

Deno.test("cachedAttention() agrees with attention over the whole sequence, in one piece and token by token", () => {
  const B = 2;
  for (
    const { H, K, D } of [{ H: 2, K: 2, D: headSize(8) }, { H: 6, K: 2, D: headSize(40) }, {
      H: 2,
      K: 1,
      D: 128,
    }]
  ) {
    for (const pieces of [[70], [65, 1, 1, 3], [1, 1, 17], [5, 70]]) {
      const T = pieces.reduce((a, b) => a + b), width = (H + 2 * K) * D, values = normal(B * T * width, 1);
      const expected = ref.attention(values, { B, T, H, K, D });
      const rows = () => [80, 75].map((T_max) => fixed([K, T_max, D], "act", "cache"));
      const cache = { k: rows(), v: rows() };
      let pos = 0;
      for (const n of pieces) {
        const part = (all: ref.Numbers, row: number) =>
          Array.from(all).filter((_, i) =>
            Math.floor(i / row) % T >= pos && Math.floor(i / row) % T < pos + n
          );
        const out = noGrad(() => {
          const qkv = tensor([B, n, width], part(values, width));
          return cachedAttention(qkv, heads({ H, K, D }), cache, [pos, pos]).toArray();
        });
        close(out, part(expected, H * D), T + D, `out at ${pos}`, 2);
        endStep();
        pos += n;
      }
    }
  }
});

Deno.test("swiglu() agrees with float64", () => {
  for (const [N, F] of [[1, 1], [17, 7], [65, 33], [130, 96]] as const) {
    const x = leaf([N, 2 * F], 1), dout = normal(N * F, 2);
    const { out, grads } = forwardBackward(() => swiglu(x.t), [x.t], dout);
    close(out, ref.swiglu(x.values, F), 4, "out"); // a few roundings each
    close(grads[0]!, ref.swigluBackward(dout, x.values, F), 4, "dgate_up");
  }
});

Deno.test("swiglu() is 0 for gates far below 0 and up * gate far above", () => {
  const x = tensor([3, 2], [-200, 2, 200, 2, 0, 2]);
  assertEquals([...noGrad(() => swiglu(x).toArray())].map(Math.abs), [0, 400, 0]);
  endStep();
});

Deno.test("add() agrees with float64", () => {
  for (const n of [1, 17, 12345]) {
    const a = leaf([n], 1), b = leaf([n], 2), dout = normal(n, 3);
    const { out, grads } = forwardBackward(() => add(a.t, b.t), [a.t, b.t], dout);
    close(out, plus(a.values, b.values), 1, "out");
    assertEquals(grads, [dout, dout]);
  }
});

/** Where the elements of heads from .. from + n of each token lie in N tokens of `row` heads. */
function placesOf(N: number, row: number, D: number, from: number, n: number): number[] {
  const all = Array.from({ length: N * row * D }, (_, i) => i), head = (i: number) => Math.floor(i / D) % row;
  return all.filter((i) => head(i) >= from && head(i) < from + n);
}

Deno.test("qkNorm() agrees with float64, and leaves values and their gradients alone", () => {
  for (const [B, T, H, K] of [[1, 1, 1, 1], [2, 17, 3, 1], [2, 5, 4, 2]] as const) {
    const D = headSize(8), heads = { n_head: H, n_kv_head: K, head_dim: D }, row = H + 2 * K;
    const qkv = leaf([B, T, row * D], 1), q = normalWeight([D], 2), k = normalWeight([D], 3);
    const dout = normal(qkv.t.size, 4), out = Float64Array.from(qkv.values), dqkv = Float64Array.from(dout);
    const dw = ([[0, H, q], [H, K, k]] as const).map(([from, n, w]) => {
      const places = placesOf(B * T, row, D, from, n), x = places.map((i) => qkv.values[i]!);
      const y = ref.rmsnorm(x, w.values, EPS);
      const { dx, dw } = ref.rmsnormBackward(places.map((i) => dout[i]!), x, w.values, EPS);
      places.forEach((i, j) => {
        out[i] = y[j]!;
        dqkv[i] = dx[j]!;
      });
      return dw;
    });
    const result = forwardBackward(() => qkNorm(qkv.t, q.t, k.t, heads, EPS), [qkv.t, q.t, k.t], dout);
    close(result.out, out, D, "out");
    close(result.grads[0]!, dqkv, D, "dqkv", 2);
    close(result.grads[1]!, dw[0]!, B * T * H, "dq_norm", 2);
    close(result.grads[2]!, dw[1]!, B * T * K, "dk_norm", 2);
  }
});

/** The element-wise ops with one input, by their names in the reference. */
const UNARY: [name: string, op: (x: Tensor) => Tensor, a?: number][] = [
  ["scale", (x) => scale(x, -0.75), -0.75],
  ["gelu", gelu],
  ["geluTanh", geluTanh],
  ["reluSquared", reluSquared],
  ["sigmoid", sigmoid],
  ["softcap", (x) => softcap(x, 5), 5],
];

Deno.test("element-wise ops agree with float64, also far from 0 and close to it", () => {
  for (const n of [1, 17, 1000]) { // 1000: eight elements a thread on a GPU
    for (const size of [1e-3, 1, 8]) {
      const values = normal(n, 1).map((x) => x * size), dout = normal(n, 2);
      for (const [name, op, a] of UNARY) {
        const x = tensor([n], values, true), read = x.toArray(), { f, slope } = ref.unary(name, a);
        const { out, grads } = forwardBackward(() => op(x), [x], dout), what = `of ${name} at size ${size}`;
        const stages = 1 + size / 2; // exp() turns the rounding of a value into a factor
        close(out, Float64Array.from(read, f), 8, `out ${what}`, stages); // a few roundings each
        close(grads[0]!, Float64Array.from(read, (x, i) => dout[i]! * slope(x)), 8, `dx ${what}`, stages);
      }
    }
  }
});

Deno.test("element-wise ops keep the digits of small results, and come to their ends far out", () => {
  const run = (
    op: (x: Tensor) => Tensor,
    x: number[],
  ) => [...noGrad(() => op(tensor([x.length], x)).toArray())];
  const tiny = [-3, 2 ** -20, -(2 ** -6)],
    few = { rtol: 1.5 * 2 ** (device.act === "f32" ? -21 : -8), atol: 0 };
  for (const [name, op, a] of UNARY) assertClose(run(op, tiny), tiny.map(ref.unary(name, a).f), few, name);
  const far = [-200, 200];
  assertEquals(run(sigmoid, far), [0, 1]);
  assertEquals(run((x) => softcap(x, 5), far), [-5, 5]);
  assertEquals([gelu, geluTanh, reluSquared].map((op) => run(op, far).map(Math.abs)), [
    [0, 200],
    [0, 200],
    [0, 40_000].map((x) => device.act === "f32" ? x : x && 39936), // 8 bits
  ]);
  endStep();
});

Deno.test("mul() agrees with float64, and is the square of one tensor given twice", () => {
  for (const n of [1, 17, 1000]) {
    const a = leaf([n], 1), b = leaf([n], 2), dout = normal(n, 3);
    const times = (x: ref.Numbers, y: ref.Numbers) => Float64Array.from(x, (x, i) => x * y[i]!);
    const { out, grads } = forwardBackward(() => mul(a.t, b.t), [a.t, b.t], dout);
    close(out, times(a.values, b.values), 1, "out");
    close(grads[0]!, times(dout, b.values), 1, "da");
    close(grads[1]!, times(dout, a.values), 1, "db");
    const x = leaf([n], 1), square = forwardBackward(() => mul(x.t, x.t), [x.t], dout);
    close(square.grads[0]!, times(dout, x.values).map((d) => 2 * d), 2, "gradient of the square");
  }
});

/** What dropout() multiplies n values with, given the key of the mask. */
function maskOf(n: number, rate: number, key: bigint): number[] {
  const low = Number(key & 0xffffffffn), high = Number(key >> 32n);
  return Array.from({ length: n }, (_, i) => {
    const word = philox([Math.floor(i / 4), 0, 0, 0], [low, high])[i % 4]!;
    return word < Math.fround(rate) * 2 ** 32 ? 0 : 1 / (1 - Math.fround(rate));
  });
}

/** splitmix64 (Steele et al. 2014) of a state, and the key that beginMasks() gives the first mask of a place by it. */
function splitmix(state: bigint): bigint {
  const wrap = (x: bigint) => x & 0xffffffffffffffffn;
  let z = wrap(state + 0x9e3779b97f4a7c15n);
  z = wrap((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = wrap((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

Deno.test("dropout() drops where the random words of its place say, forward and backward, on every device", () => {
  assertEquals(splitmix(0n), 0xe220a8397b1dcdafn); // the published first number
  const place = { seed: 3, sample: 64, micro: 1 };
  const first = splitmix(splitmix(splitmix(splitmix(3n) + 64n) + 1n) + 1n);
  for (const [n, rate] of [[1, 0.5], [1001, 0.1], [3000, 0.75]] as const) {
    const x = leaf([n], 1), dout = normal(n, 2), mask = maskOf(n, rate, first);
    beginMasks(place);
    const { out, grads } = forwardBackward(() => dropout(x.t, rate), [x.t], dout);
    close(out, x.values.map((x, i) => x * mask[i]!), 1, "out");
    close(grads[0]!, dout.map((d, i) => d * mask[i]!), 1, "dx");
    const dropped = out.filter((y) => y === 0).length;
    assert(
      n === 1 || Math.abs(dropped - n * rate) < 5 * Math.sqrt(n * rate * (1 - rate)),
      `${dropped} of ${n}`,
    );
  }
});

Deno.test("dropout() has another mask for each call and place, the same for the same, and drops nothing in noGrad()", () => {
  const x = () => tensor([64], Array(64).fill(1), true), place = { seed: 1, sample: 8, micro: 0 };
  const masksAt = (change: Partial<typeof place>) => {
    beginMasks({ ...place, ...change });
    const masks = [0, 1].map(() => dropout(x(), 0.5).toArray().join());
    endStep();
    return masks;
  };
  assertEquals(masksAt({}), masksAt({}));
  const places = [{}, { seed: 2 }, { sample: 16 }, { micro: 1 }];
  assertEquals(new Set(places.flatMap(masksAt)).size, 8);
  assertEquals(noGrad(() => dropout(x(), 0.5)).toArray(), x().toArray());
  assertEquals(dropout(x(), 0).toArray(), x().toArray());
  endStep();
});

Deno.test("dropout() in checkpoint() drops the same when backward runs it again", () => {
  const n = 200,
    dout = normal(n, 2),
    run = (f: (x: Tensor) => Tensor) => {
      const x = leaf([n], 1);
      beginMasks({ seed: 1, sample: 0, micro: 0 });
      return forwardBackward(() => dropout(f(x.t), 0.5), [x.t], dout);
    };
  const twice = (x: Tensor) => dropout(dropout(scale(x, 2), 0.25), 0.25);
  assertEquals(run((x) => checkpoint(twice, x)), run(twice));
});

// ---- ops on rows and columns

Deno.test("bias() agrees with float64", () => {
  for (const [N, C] of [[1, 1], [17, 7], [130, 96], [3, 1025]] as const) {
    const x = leaf([N, C], 1), b = normalWeight([C], 2), dout = normal(N * C, 3);
    const { out, grads } = forwardBackward(() => bias(x.t, b.t), [x.t, b.t], dout);
    close(out, Float64Array.from(x.values, (x, i) => x + b.values[i % C]!), 1, "out");
    assertEquals(grads[0], dout);
    const sums = Float64Array.from({ length: C }, (_, c) => {
      return dout.reduce((sum, d, i) => i % C === c ? sum + d : sum, 0);
    });
    close(grads[1]!, sums, N, "db");
  }
});

Deno.test("layernorm() agrees with float64, also of rows far from 0", () => {
  for (const [N, C, eps] of [[1, 2, 1], [17, 7, 1e-5], [130, 96, 1e-5], [3, 1025, 1e-5]] as const) {
    for (const shift of [0, 100]) {
      const values = normal(N * C, 1).map((x) => x + shift), x = tensor([N, C], values, true);
      const w = normalWeight([C], 2), b = normalWeight([C], 3), dout = normal(N * C, 4), read = x.toArray();
      const { out, grads } = forwardBackward(() => layernorm(x, w.t, b.t, eps), [x, w.t, b.t], dout);
      const { dx, dw, db } = ref.layernormBackward(dout, read, w.values, eps);
      const stages = device.act === "f32" ? 2 + shift / 2 : 2; // the mean is rounded to 2^-24 of its size
      close(out, ref.layernorm(read, w.values, b.values, eps), C, "out", stages);
      close(grads[0]!, dx, C, "dx", stages + 1);
      close(grads[1]!, dw, Math.max(N, C), "dw", stages); // of the mean of C values
      close(grads[2]!, db, N, "db");
    }
  }
});

Deno.test("softmax() agrees with float64, also where one value takes all", () => {
  for (const [N, C] of [[1, 1], [17, 7], [65, 96], [3, 1025]] as const) {
    for (const size of [1, 40]) {
      const x = tensor([N, C], normal(N * C, 1).map((x) => x * size), true), read = x.toArray();
      const dout = normal(N * C, 2), { out, grads } = forwardBackward(() => softmax(x), [x], dout);
      const stages = 2 + size / 8; // exp() turns the rounding of a value into a factor
      close(out, ref.softmaxRows(read, C), C, "out", stages);
      const expected = ref.softmaxBackward(dout, read, C), { rtol } = rounding(expected, C, stages + 1);
      assertClose(grads[0]!, expected, { rtol, atol: rtol }, "dx"); // small differences of what dout is, of size 1
    }
  }
});

Deno.test("logsumexp() agrees with float64, and leaves padding out", () => {
  for (const [N, C, V] of [[1, 1, 1], [17, 7, 7], [5, 96, 90], [3, 1088, 1025]] as const) {
    const values = normal(N * C, 1).map((x, i) => i % C < V ? 3 * x : 1000), x = tensor([N, C], values, true);
    const read = x.toArray(), dout = normal(N, 2);
    const { out, grads } = forwardBackward(() => logsumexp(x, V), [x], dout);
    close(out, ref.logsumexp(read, C, V), V, "out");
    const p = ref.softmaxRows(read, C, V);
    close(grads[0]!, p.map((p, i) => p * dout[Math.floor(i / C)]!), V, "dx", 3);
    assert(grads[0]!.every((d, i) => i % C < V || d === 0), "padding has no gradient");
  }
});

Deno.test("slice() and concat() move columns, and their gradients back", () => {
  const sizes: [N: number, widths: number[]][] = [[1, [1, 1]], [17, [3, 5, 2]], [65, [8, 16, 24]]];
  for (const [N, widths] of [...sizes, ...sizes]) { // the second time in memory that held other values
    const C = widths.reduce((a, b) => a + b), x = leaf([N, C], 1), dout = normal(N * C, 2);
    let from = 0;
    const cuts = widths.map((n) => ({ from: (from += n) - n, n }));
    const inOrder = () => concat(cuts.map(({ from, n }) => slice(x.t, from, n)));
    const { out, grads } = forwardBackward(inOrder, [x.t], dout);
    assertEquals([out, grads[0]], [x.values, dout]);

    const last = cuts.at(-1)!, y = leaf([N, C], 1), d = normal(N * last.n, 3);
    const part = forwardBackward(() => slice(y.t, last.from, last.n), [y.t], d);
    const inCut = (i: number) => i % C >= last.from;
    assertEquals(part.out, y.values.filter((_, i) => inCut(i)));
    let next = 0;
    assertEquals(part.grads[0], y.values.map((_, i) => inCut(i) ? d[next++]! : 0)); // the rest of it is 0
  }
});

// ---- losses

Deno.test("crossEntropy() agrees with float64, and gives padding columns no gradient", () => {
  for (const [N, C, V] of [[1, 1, 1], [17, 16, 11], [37, 64, 61]] as const) {
    const x = leaf([N, C], 1), targets = integers(N, V, 2).map((id, i) => i % 5 === 4 ? -1 : id);
    const loss = crossEntropy(x.t, tokens([N], targets), { vocab_size: V, grad_scale: 0.25 });
    const expected = ref.crossEntropy(Float64Array.from(x.values), targets, { V, grad_scale: 0.25 });
    assertClose(loss.toArray(), [expected.loss], { rtol: 1e-6, atol: 1e-6 }, "loss"); // float32 on every device
    backward(loss);
    close(gradient(x.t), expected.dlogits, V, "dlogits", 3);
    endStep();
  }
});

Deno.test("mean() of values, added to another loss, gives each its gradient", () => {
  const N = 37, V = 16, x = leaf([N, V], 1), y = leaf([N, 3], 2), targets = integers(N, V, 3);
  const ce = crossEntropy(x.t, tokens([N], targets), { vocab_size: V, grad_scale: 0.5 });
  const total = add(add(ce, mean(mul(y.t, y.t), 0.5)), mean(scale(x.t, 3), 0.5));
  const expected = ref.crossEntropy(Float64Array.from(x.values), targets, { V, grad_scale: 0.5 });
  const average = (values: ref.Numbers) => Array.from(values).reduce((a, b) => a + b, 0) / values.length;
  const value = expected.loss + average(y.values.map((y) => y * y)) + 3 * average(x.values);
  assertClose(total.toArray(), [value], { rtol: device.act === "f32" ? 1e-6 : 0.01, atol: 0 });
  backward(total);
  close(gradient(x.t), expected.dlogits.map((d) => d + 0.5 * 3 / (N * V)), V, "dx", 3);
  close(gradient(y.t), y.values.map((y) => y / (3 * N)), 1, "dy", 2); // 0.5 * 2 y / n
  endStep();
});

Deno.test("crossEntropy() and logsumexp() may read the same logits", () => {
  const N = 9,
    V = 16,
    x = leaf([N, V], 1),
    targets = integers(N, V, 3),
    options = { vocab_size: V, grad_scale: 1 };
  const ids = tokens([N], targets), lse = logsumexp(x.t);
  backward(add(crossEntropy(x.t, ids, options), mean(lse, 1)));
  const { dlogits } = ref.crossEntropy(Float64Array.from(x.values), targets, { V, grad_scale: 1 });
  const p = ref.softmaxRows(x.values, V);
  close(gradient(x.t), dlogits.map((d, i) => d + p[i]! / N), V, "dx", 3);
  endStep();
});

/** Loss and gradients of a head of V columns, padded to a multiple of 64. */
function headCase(N: number, C: number, V: number, targets: number[], head_chunk: number, grad_scale = 1) {
  const padded = Math.ceil(V / 64) * 64, x = leaf([1, N, C], 1), w = normalWeight([padded, C], 2);
  const y = linearCrossEntropy(x.t, w.t, tokens([1, N], targets), { vocab_size: V, head_chunk, grad_scale });
  const loss = y.toArray();
  backward(y);
  const result = { loss, dx: gradient(x.t), dw: gradient(w.t) };
  endStep();
  return { ...result, expected: ref.linearCrossEntropy(x.values, w.values, targets, { V, grad_scale }) };
}

/** Logits have size sqrt(C): exp() turns their rounding into so many roundings of the probabilities. */
function headStages(C: number): number {
  return 2 + Math.sqrt(C);
}

Deno.test("linearCrossEntropy() agrees with float64 whatever the chunk", () => {
  for (const [N, C, V] of [[1, 1, 1], [17, 7, 11], [37, 40, 61], [130, 33, 515]] as const) {
    for (const chunk of [1, 5, 16, N, 1000]) {
      const targets = integers(N, V, 3), { loss, dx, dw, expected } = headCase(N, C, V, targets, chunk, 0.25);
      const what = `of N=${N} C=${C} V=${V} chunk=${chunk}`;
      const { rtol } = rounding([expected.loss], C + N + V, 2);
      assertClose(loss, [expected.loss], { rtol, atol: 1e-6 }, `loss ${what}`); // of one column about 0
      close(dx, expected.dx, C + V, `dx ${what}`, headStages(C));
      close(dw, expected.dw, C + N, `dw ${what}`, headStages(C));
    }
  }
});

Deno.test("linearCrossEntropy() gives padding columns no gradient", () => {
  const C = 7, { dw } = headCase(17, C, 61, integers(17, 61, 3), 5);
  assert(dw.subarray(0, 61 * C).every((g) => g !== 0));
  assertEquals(dw.subarray(61 * C), new Float32Array(3 * C));
});

Deno.test("linearCrossEntropy() leaves out targets below 0 and still divides by all rows", () => {
  const targets = [3, -1, 5, -100, 7], C = 7;
  const { loss, dx, dw, expected } = headCase(5, C, 11, targets, 2);
  close(loss, [expected.loss], C, "loss", 2);
  close(dx, expected.dx, C, "dx", headStages(C));
  close(dw, expected.dw, C, "dw", headStages(C));
  for (const row of [1, 3]) assertEquals(dx.subarray(row * C, row * C + C), new Float32Array(C));
  const none = headCase(5, C, 11, [-1, -1, -1, -1, -1], 2);
  assertEquals([none.loss[0], ...none.dx, ...none.dw].every((value) => value === 0), true);
});

// ---- each op against finite differences

Deno.test("the gradient of each op is that of finite differences", () => {
  const frozen = normalWeight([7, 13], 3).t;
  const ids = tokens([2, 5], integers(10, 6, 1)), table = rotations(17, 8), H = { H: 6, K: 2, D: 8 };
  checkGrad((w) => embedding(ids, w), { weight: [6, 7] });
  checkGrad((x, w) => rmsnorm(x, w, EPS), [5, 33], { weight: [33] });
  checkGrad((x, w) => linear(x, w), [17, 13], { weight: [7, 13] });
  checkGrad((x, w, residual) => linear(x, w, residual), [17, 13], { weight: [7, 13] }, [17, 7]);
  checkGrad((x, A, B) => linear(x, frozen, undefined, { A, B, scale: 0.5 }), [17, 13], { weight: [3, 13] }, {
    weight: [7, 3],
  });
  checkGrad((qkv) => rope(qkv, table.t, heads(H)), [2, 17, 80]);
  checkGrad((qkv) => attention(qkv, heads(H)), [2, 17, 80]);
  const starts = tokens([2, 17], startsOf(17, [0, 1, 9, 16], [5])); // documents of 1, 8, 7 and 1 tokens, of 5 and 12
  checkGrad((qkv) => attention(rope(qkv, table.t, heads(H), 0, starts), heads(H), starts), [2, 17, 80]);
  checkGrad((x) => swiglu(x), [17, 14]);
  checkGrad((a, b) => add(a, b), [17, 3], [17, 3]);
  checkGrad((a, b) => mul(a, b), [17, 3], [17, 3]);
  for (const [name, op] of UNARY) if (name !== "reluSquared") checkGrad((x) => op(x), [17, 7]);
  checkGrad((x) => reluSquared(add(x, mul(x, x))), [17, 7]); // has no third derivative, but at few places
  checkGrad((x, b) => bias(x, b), [17, 7], { weight: [7] });
  checkGrad((x, w, b) => layernorm(x, w, b, EPS), [5, 33], { weight: [33] }, { weight: [33] });
  checkGrad((x) => softmax(x), [5, 33]);
  checkGrad((x) => swiglu(softmax(x)), [5, 34]); // which would write over what softmax() needs in backward
  checkGrad((x) => logsumexp(x, 30), [5, 33]);
  checkGrad((a, b) => concat([b, slice(a, 2, 3), slice(a, 0, 4)]), [5, 7], [5, 2]);
  checkGrad((x) => mean(mul(x, sigmoid(x)), 1), [17, 7]);
  checkGrad(
    (qkv, q, k) => attention(rope(qkNorm(qkv, q, k, heads(H), EPS), table.t, heads(H)), heads(H)),
    [2, 17, 80],
    { weight: [8] },
    { weight: [8] },
  );
  checkGrad((x) => crossEntropy(x, tokens([5], [3, -1, 0, 29, 7]), { vocab_size: 30, grad_scale: 1 }), [
    5,
    33,
  ]);
  const targets = tokens([17], [-1, ...integers(16, 61, 2)]),
    head = { vocab_size: 61, head_chunk: 5, grad_scale: 1 };
  checkGrad((x, w) => linearCrossEntropy(x, w, targets, head), [17, 7], { weight: [64, 7] });
});

// ---- fused ops against those they stand for

Deno.test("fused ops give the bits of the ops they stand for, whatever is kept for backward", () => {
  const N = 37, C = 24, F = 40, R = 8;
  const norm = normalWeight([C], 1).t,
    gate_up = normalWeight([2 * F, C], 2).t,
    down = normalWeight([C, F], 3).t;
  const adapter = (OUT: number, IN: number, seed: number) => ({
    ...{ A: normalWeight([R, IN], seed).t, B: normalWeight([OUT, R], seed + 1).t, scale: 0.5 },
  });
  const both = { gate_up_proj: adapter(2 * F, C, 6), down_proj: adapter(C, F, 8) };
  const parameters = [norm, gate_up, down, ...Object.values(both).flatMap(({ A, B }) => [A, B])];
  for (const low of [{}, both, { gate_up_proj: both.gate_up_proj }] as Partial<typeof both>[]) {
    const used = parameters.slice(0, 3).concat(Object.values(low).flatMap(({ A, B }) => [A, B]));
    const same = (fused: (x: Tensor) => Tensor, plain: (x: Tensor) => Tensor, what: string) => {
      const [actual, expected] = [fused, plain].map((f) => {
        parameters.forEach((w) => w.buf.gradIsEmpty = true);
        const x = leaf([1, N, C], 4).t, dout = normal(noGrad(() => f(x)).size, 5);
        return forwardBackward(() => f(x), [x, ...used], dout);
      });
      assertEquals(actual, expected, `${what}, adapters of ${Object.keys(low)}`);
    };
    const up = (x: Tensor) => linear(x, gate_up, undefined, low.gate_up_proj);
    for (const keep of [false, true]) {
      same(
        (x) => normLinear(x, norm, gate_up, EPS, keep, low.gate_up_proj),
        (x) => up(rmsnorm(x, norm, EPS)),
        `normLinear, keep ${keep}`,
      );
      same(
        (x) => swigluLinear(up(x), down, x, keep, low.down_proj),
        (x) => linear(swiglu(up(x)), down, x, low.down_proj),
        `swigluLinear, keep ${keep}`,
      );
    }
    same(
      (x) => feedForward(x, norm, gate_up, down, EPS, low),
      (x) => linear(swiglu(up(rmsnorm(x, norm, EPS))), down, x, low.down_proj),
      "feedForward",
    );
  }
});

Deno.test("swigluLinear() leaves an input without gradient as it is", () => {
  const gate_up = fixed([2, 6], "act", "inputs"), w = normalWeight([5, 3], 1).t, residual = leaf([2, 5], 2).t;
  writeFloats(gate_up.address, normal(12, 3), "act");
  const before = gate_up.toArray();
  forwardBackward(() => swigluLinear(gate_up, w, residual), [w], normal(10, 4));
  assertEquals(gate_up.toArray(), before);
});

// ---- causality

Deno.test("attention() sees nothing of later tokens, and sends no gradient to them", () => {
  const D = headSize(8), size = { B: 2, T: 130, H: 2, K: 1, D }, width = 4 * D, seen = 70; // tokens 0..69 of each row
  const early = (i: number, row: number) => Math.floor(i / row) % size.T < seen;
  const values = normal(2 * 130 * width, 1), other = normal(2 * 130 * width, 2);
  const run = (values: ref.Numbers) =>
    noGrad(() => attention(tensor([2, 130, width], values), heads(size)).toArray());
  const out = run(values), changed = run(values.map((x, i) => early(i, width) ? x : other[i]!));
  endStep();
  out.forEach((y, i) => early(i, 2 * D) && assertEquals(y, changed[i], `out[${i}]`));
  const equal = out.filter((y, i) => !early(i, 2 * D) && y === changed[i]).length;
  assert(equal < 0.05 * out.length, `${equal} of ${out.length} later values are the same`); // coarse ones meet by chance

  const qkv = tensor([2, 130, width], values, true),
    dout = normal(out.length, 3).map((d, i) => early(i, 2 * D) ? d : 0);
  const { grads } = forwardBackward(() => attention(qkv, heads(size)), [qkv], dout);
  grads[0]!.forEach((g, i) => early(i, width) || assertEquals(Math.abs(g), 0, `dqkv[${i}]`));
});

// ---- mistakes

Deno.test("every op names both shapes when they do not fit", () => {
  const H = { n_head: 4, n_kv_head: 2, head_dim: 8 }, head = { vocab_size: 70, head_chunk: 4, grad_scale: 1 };
  const x = tensor([2, 3, 6], normal(36, 1)), w = normalWeight([5, 7], 1).t, vector = normalWeight([7], 1).t;
  const qkv = tensor([2, 3, 64], normal(384, 1)), ids = tokens([2, 3], [0, 1, 2, 3, 4, 0]);
  const table = rotations(4, 8).t, cache = (...shape: number[]) => fixed(shape, "act", "cache");
  const cases: [() => Tensor, string][] = [
    [() => embedding(ids, vector), "embedding: w must be a matrix, but it is (7)"],
    [() => rmsnorm(x, vector, EPS), "rmsnorm: w must be (6) to scale x (2,3,6), but w is (7)"],
    [() => linear(x, vector), "linear: w must be a matrix, but it is (7)"],
    [() => linear(x, w), "linear: w must be (O, 6) to multiply x (2,3,6), but w is (5,7)"],
    [
      () => linear(tensor([2, 7], normal(14, 1)), w, undefined, { A: w, B: w, scale: 1 }),
      "linear: A must be (R,7) and B (5,R) for w (5,7), but they are (5,7) and (5,7)",
    ],
    [
      () => linear(tensor([2, 7], normal(14, 1)), w, x),
      "residual must be (2,5) to be added to x w^T, but it is (2,3,6)",
    ],
    [() => rope(x, table, H), "rope: qkv must be (B, T, 64) for 4 + 2 * 2 heads of 8, but it is (2,3,6)"],
    [() => rope(qkv, table, H, 2), "rope: table must be (>= 5, 8) for positions 2..4, but it is (4,8)"],
    [() => attention(x, H), "attention: qkv must be (B, T, 64) for 4 + 2 * 2 heads of 8, but it is (2,3,6)"],
    [
      () => attention(qkv, H, tokens([6], [0, 0, 0, 0, 0, 0])),
      "attention: starts must be (2,3), one for each token, but they are (6)",
    ],
    [
      () => rope(qkv, rotations(3, 8).t, H, 0, tokens([1, 3], [0, 0, 0])),
      "rope: starts must be (2,3), one for each token, but they are (1,3)",
    ],
    [
      () => swiglu(tensor([2, 3], normal(6, 1))),
      "swiglu: the last axis must be even to hold gates and ups, but x is (2,3)",
    ],
    [() => add(x, ids.view(6)), "add: b must be act, but it is i32 (6)"],
    [() => add(x, qkv), "add: a (2,3,6) and b (2,3,64) must have the same shape"],
    [
      () => normLinear(x, vector, w, EPS),
      "normLinear: x must be (..., 7) and norm (7) for w (5,7), but they are (2,3,6) and (7)",
    ],
    [
      () => swigluLinear(x, w, x),
      "swigluLinear: gate_up must be (..., 14) and residual (..., 5) for w (5,7), but they are (2,3,6) and (2,3,6)",
    ],
    [
      () => feedForward(x, normalWeight([6], 1).t, normalWeight([8, 6], 1).t, w, EPS),
      "feedForward: x must be (..., 6), norm (6) and down (6,4) for gate_up (8,6), but they are (2,3,6), (6) and (5,7)",
    ],
    [
      () => linearCrossEntropy(x, normalWeight([64, 6], 1).t, ids, head),
      "x must be (N, 6) with N targets and w at least (70, 6), but x is (2,3,6), targets (2,3), w (64,6)",
    ],
    [() => mul(x, qkv), "mul: a (2,3,6) and b (2,3,64) must have the same shape"],
    [() => softcap(x, 0), "softcap: cap must be above 0, but it is 0"],
    [() => dropout(x, 1), "dropout: rate must be at least 0 and below 1, but it is 1"],
    [() => bias(x, vector), "bias: b must be (6) to be added to x (2,3,6), but it is (7)"],
    [
      () => layernorm(x, normalWeight([6], 1).t, vector, EPS),
      "layernorm: w and b must be (6) to scale x (2,3,6), but they are (6) and (7)",
    ],
    [() => logsumexp(x, 7), "logsumexp: x (2,3,6) must have 7 columns at least"],
    [() => slice(x, 4, 3), "slice: x (2,3,6) must have the columns 4..6"],
    [() => slice(x, 0, 0), "slice: x (2,3,6) must have the columns 0..-1"],
    [() => concat([]), "concat: there must be a part at least"],
    [
      () => concat([x, tensor([2, 2, 6], normal(24, 1))]),
      "concat: parts must have equal sizes but for the last, but are (2,3,6) and (2,2,6)",
    ],
    [
      () => crossEntropy(x, ids, { vocab_size: 7, grad_scale: 1 }),
      "crossEntropy: logits must be (N, 7 or more) with N targets, but they are (2,3,6) and (2,3)",
    ],
    [
      () => qkNorm(x, vector, vector, H, EPS),
      "qkNorm: qkv must be (B, T, 64) for 4 + 2 * 2 heads of 8, but it is (2,3,6)",
    ],
    [
      () => qkNorm(qkv, normalWeight([8], 1).t, vector, H, EPS),
      "qkNorm: q_norm and k_norm must be (8) for heads of 8, but one is (7)",
    ],
    ...[cache(2, 4, 8), cache(1, 9, 8), cache(2, 9, 4)].map((k): [() => Tensor, string] => [
      () => cachedAttention(qkv, H, { k: [k, cache(2, 9, 8)], v: [k, cache(2, 9, 8)] }, [2, 0]),
      `cache must be (2, >= 5, 8) to go on from 2 with qkv (2,3,64), but keys are (${k.shape}) and values (${k.shape})`,
    ]),
    [
      () => cachedAttention(qkv, H, { k: [cache(2, 9, 8)], v: [cache(2, 9, 8)] }, [0, 0]),
      "cachedAttention: there are 1 keys for the 2 rows of qkv (2,3,64)",
    ],
    [() => rope(qkv, table, H, [0, 1, 0]), "rope: there are 3 positions for the 2 rows of qkv (2,3,64)"],
    [
      () => rope(qkv, table, H, [0, 2]),
      "rope: table must be (>= 5, 8) for positions 2..4, but it is (4,8)",
    ],
  ];
  for (const [op, message] of cases) {
    assertThrows(op, message.includes("i32") ? TypeError : RangeError, message);
  }
  endStep();
});

Deno.test("every op refuses tensors of the wrong kind", () => {
  const H = { n_head: 1, n_kv_head: 1, head_dim: 8 }, head = { vocab_size: 4, head_chunk: 4, grad_scale: 1 };
  const ids = tokens([2, 3], [0, 1, 2, 3, 4, 0]),
    x = tensor([2, 3], normal(6, 1), true),
    w = normalWeight([5, 3], 1).t;
  const norm = normalWeight([3], 1).t, computed = linear(x, w); // (2, 5)
  const kind = "must be computed by an op, but it is the parameter w";
  const cases: [() => Tensor, string][] = [
    [() => embedding(x, w), "embedding: ids must be i32, but they are act (2,3)"],
    [() => linear(ids, w), "linear: x must be act, but it is i32 (2,3)"],
    [
      () => linearCrossEntropy(x, w, x, head),
      "linearCrossEntropy: targets must be i32, but they are act (2,3)",
    ],
    [() => rmsnorm(norm, norm, EPS), `rmsnorm: x ${kind} (3)`],
    [() => linear(w, w), `linear: x ${kind} (5,3)`],
    [() => linear(x, w, normalWeight([2, 5], 1).t), `linear: residual ${kind} (2,5)`],
    [() => rope(normalWeight([1, 1, 24], 1).t, rotations(1, 8).t, H), `rope: qkv ${kind} (1,1,24)`],
    [() => attention(normalWeight([1, 1, 24], 1).t, H), `attention: qkv ${kind} (1,1,24)`],
    [() => swiglu(normalWeight([2, 4], 1).t), `swiglu: x ${kind} (2,4)`],
    [() => add(x, normalWeight([2, 3], 1).t), `add: b ${kind} (2,3)`],
    [() => mul(x, normalWeight([2, 3], 1).t), `mul: b ${kind} (2,3)`],
    [() => scale(mean(x, 1), 2), "scale: x must be act, but it is f32 (1)"], // a loss already has its gradient
    [() => add(mean(x, 1), x), "add: a must be act, but it is f32 (1)"],
    [
      () => bias(x, linear(x, norm.view(1, 3))),
      "bias: w must be a parameter, but it is a computed act tensor (2,1)",
    ],
    [() => crossEntropy(x, x, head), "crossEntropy: targets must be i32, but they are act (2,3)"],
    [() => linearCrossEntropy(norm, w, ids, head), `linearCrossEntropy: x ${kind} (3)`],
    [
      () => linear(tensor([2, 5], normal(10, 1)), computed),
      "linear: w must be a parameter, but it is a computed act tensor (2,5)",
    ],
  ];
  for (const [op, message] of cases) assertThrows(op, TypeError, message);
  endStep();
});

Deno.test("cachedAttention() has no backward pass and says so", () => {
  const D = headSize(8), H = { n_head: 1, n_kv_head: 1, head_dim: D };
  const qkv = tensor([1, 1, 3 * D], normal(3 * D, 1), true), cache = fixed([1, 2, D], "act", "cache");
  const y = cachedAttention(qkv, H, { k: [cache], v: [cache] }, [0]);
  assertThrows(() => backward(y), Error, "cachedAttention: there is no backward pass; use attention()");
  endStep();
});

// ---- values that are not finite

/** Places of a whose value is not finite. */
function nonFinite(a: Float32Array): number[] {
  return [...a.keys()].filter((i) => !Number.isFinite(a[i]!));
}

Deno.test("NaN and infinities reach every output that depends on them, and no other", () => {
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
  for (const bad of [NaN, Infinity, -Infinity]) {
    const planted = (shape: number[], at: number) => {
      const values = normal(shape.reduce((a, b) => a * b, 1), 1);
      values[at] = bad;
      return { t: tensor(shape, values), w: weight(shape, values) };
    };
    const w = normalWeight([7, 6], 2).t, norm = normalWeight([6], 3).t, x = planted([3, 6], 6 + 2).t; // row 1
    const run = (f: () => Tensor) => nonFinite(noGrad(() => f().toArray()));
    assertEquals(run(() => linear(x, w)), range(7, 14));
    assertEquals(run(() => linear(tensor([3, 6], normal(18, 4)), planted([7, 6], 6).w)), [1, 8, 15]);
    assertEquals(run(() => add(x, tensor([3, 6], normal(18, 4)))), [8]);
    assertEquals(run(() => swiglu(planted([3, 6], 6 + 4).t)), [3 + 1]); // an up
    assertEquals(run(() => embedding(tokens([3], [2, 0, 2]), planted([3, 6], 12).w)), [0, 12]);
    assertEquals(
      run(() => rope(planted([1, 1, 24], 1).t, rotations(1, 8).t, { n_head: 1, n_kv_head: 1, head_dim: 8 }))
        .length > 0,
      true,
    );
    if (Number.isNaN(bad)) { for (const [name, op] of UNARY) assertEquals(run(() => op(x)), [8], name); }
    assertEquals(run(() => mul(x, tensor([3, 6], normal(18, 4)))), [8]);
    assertEquals(run(() => slice(x, 2, 1)), [1]);
    assertEquals(run(() => layernorm(x, norm, norm, EPS)), range(6, 12));
    assertEquals(run(() => logsumexp(x)), bad === -Infinity ? [] : [1]); // e^-infinity is 0
    const rows = run(() => rmsnorm(x, norm, EPS));
    assertEquals(rows, Number.isNaN(bad) ? range(6, 12) : [8]); // an infinite rms makes the others 0
    const targets = tokens([3], [1, 2, 3]), head = { vocab_size: 7, head_chunk: 2, grad_scale: 1 };
    assertEquals(run(() => linearCrossEntropy(x, w, targets, head)), [0]);
    endStep();
  }
});

Deno.test("attention() hands NaN in a query, key or value on to all that read it", () => {
  const D = headSize(8), size = { n_head: 2, n_kv_head: 1, head_dim: D }, T = 130;
  for (const [head, readers] of [[0, [0]], [2, [0, 1]], [3, [0, 1]]] as const) {
    const values = normal(T * 4 * D, 1);
    values[66 * 4 * D + head * D] = NaN;
    const bad = new Set(nonFinite(noGrad(() => attention(tensor([1, T, 4 * D], values), size).toArray())));
    const last = head === 0 ? 66 : T - 1; // a query concerns its own row, keys and values those from there on
    for (let t = 66; t <= last; t++) {
      for (const h of readers) assert(bad.has((t * 2 + h) * D), `t ${t}, head ${h}, NaN in ${head}`);
    }
    assert(![...bad].some((i) => Math.floor(i / (2 * D)) < 60), "rows long before are as they were");
    endStep();
  }
});

// ---- equal bits

Deno.test("every op gives the same bits twice", () => {
  const D = headSize(40),
    H = { n_head: 6, n_kv_head: 2, head_dim: D },
    T = 70,
    C = 96,
    ids = tokens([2, T], integers(2 * T, 50, 1));
  const step = () => {
    const w = normalWeight([10 * D, C], 1).t,
      table = normalWeight([64, C], 2).t,
      norm = normalWeight([C], 3).t;
    const down = normalWeight([C, 3 * D], 4).t, out = normalWeight([C, 6 * D], 5).t;
    const x = embedding(ids, table); // (2, T, C)
    const y = attention(rope(linear(rmsnorm(x, norm, EPS), w), rotations(T, D).t, H), H); // (2, T, 6 * D)
    const z = add(linear(y, out, x), linear(swiglu(y), down));
    const loss = linearCrossEntropy(z, table, ids, { vocab_size: 50, head_chunk: 100, grad_scale: 1 });
    const value = loss.toArray();
    backward(loss);
    const results = [value, ...[w, table, norm, down, out].map(gradient)];
    endStep();
    return results;
  };
  assertEquals(step(), step());
});

// ---- the CPU's own products

/** Opens the CPU with matrix products of bfloat16 inputs for as long as f runs, where it has a unit for them. */
function withPairs(f: () => void): void {
  const opened = device.library === "cpu" ? open("cpu", { threads: 2, bf16_gemm: "auto" }) : undefined;
  if (!opened?.bf16_gemm) return;
  try {
    f();
  } finally {
    openTestDevice();
  }
}

/** Opens the CPU with its own products of floats, then of bfloat16 pairs where it has them; f may open it with other threads. */
function withOwnProducts(f: (reopen: (threads: number) => void, inputs: string) => void): void {
  if (device.library !== "cpu") return;
  const openFloats = (threads: number) => open("cpu", { threads, blas: "builtin" });
  try {
    openFloats(2);
    f(openFloats, "float");
  } finally {
    openTestDevice();
  }
  withPairs(() => f((threads) => open("cpu", { threads, bf16_gemm: true }), "bfloat16"));
}

Deno.test("linear() by the CPU's own product is exact where every sum is a whole number, for every edge of a block", () => {
  withOwnProducts((reopen, type) => {
    const small = (n: number, seed: number) => Float32Array.from(integers(n, 17, seed), (x) => x - 8);
    const edges = Array.from({ length: 70 }, (_, s) => [s + 1, s * 29 % 70 + 1, s * 43 % 70 + 1]);
    const rows = Array.from({ length: 24 }, (_, s) => [257 + s, 3 * s + 1, 70 - 3 * s]); // floats of fewer take another way
    const blocks = [[13, 600, 768], [300, 387, 129], [97, 33, 66], [31, 13, 4130], [1600, 5, 3]];
    const tall = Array.from({ length: 4 }, (_, s) => [2200 + s, 21, 30]); // rows enough for threads to share a gradient's depth
    const shapes = [...edges, ...rows, ...blocks, [13, 4130, 31], ...tall, [260, 384, 600]] as [
      number,
      number,
      number,
    ][];
    for (const [i, [N, IN, OUT]] of shapes.entries()) {
      reopen([1, 2, 6, 7][i % 4]!);
      const [x, w, residual, dout] = [
        small(N * IN, 1),
        small(OUT * IN, 2),
        small(N * OUT, 3),
        small(N * OUT, 4),
      ];
      const inputs = [tensor([N, IN], x, true), weight([OUT, IN], w)] as const;
      const r = tensor([N, OUT], residual, true), { dx, dw } = ref.linearBackward(dout, x, w, IN);
      const { out, grads } = forwardBackward(() => linear(...inputs, r), [...inputs], dout);
      const what = `of ${N} ${IN} ${OUT} by ${type} inputs`;
      assertEquals(out, Float32Array.from(ref.linear(x, w, IN, residual)), `out ${what}`);
      assertEquals(grads[0], Float32Array.from(dx), `dx ${what}`);
      assertEquals(grads[1], Float32Array.from(dw), `dw ${what}`);
      const { w: half } = frozenHalf({ w: param([OUT, IN], { value: 0 }) }, () => w);
      const [rows, more] = [tensor([N, IN], x, true), tensor([N, OUT], residual)];
      const same = forwardBackward(() => linear(rows, half, more), [rows], dout);
      assertEquals(same, { out, grads: [grads[0]!] }, `by weights of bfloat16, ${what}`);
    }
  });
});

/** gram() of whole numbers, whose sums are exact in float32: both triangles, of rows and of columns, alone and with another matrix. */
function checkGram(N: number, C: number): void {
  const [x, half] = [integers(N * C, 17, 1), integers(N * N, 17, 2)].map((ids) =>
    Float32Array.from(ids, (v) => v - 8)
  );
  const add = half!.map((_, at) => half![Math.max(at, at % N * N + Math.floor(at / N))]!); // a symmetric one
  const [from, base] = [tensor([N, C], x!), tensor([N, N], add)], out = tensor([N, N], add.map(() => NaN));
  for (const transposed of [0, 1]) {
    const at = (i: number, p: number) => transposed ? x![p * N + i]! : x![i * C + p]!;
    const product = add.map((_, e) =>
      Array(C).keys().reduce((sum, p) => sum + at(Math.floor(e / N), p) * at(e % N, p), 0)
    );
    for (const beta of [0, 3]) {
      k.gram(out.address, from.address, beta ? base.address : 0n, N, C, transposed, 0.5, beta);
      const what = `N=${N} C=${C} transposed=${transposed} beta=${beta}`;
      const expected = product.map((sum, e) => 0.5 * sum + beta * add[e]!);
      if (device.act === "f32") assertEquals(out.toArray(), expected, what);
      else close(out.toArray(), expected, 1, what);
    }
  }
  endStep();
}

const GRAMS = [[1, 5], [7, 1], [16, 3], [66, 40], [130, 9], [20, 800]] as const; // N beside the edges of tiles of any kind

Deno.test("gram() is exact where every sum is a whole number, of rows and of columns", () => {
  GRAMS.forEach(([N, C]) => checkGram(N, C));
  const x = tensor([2, 2], [1, 2, 3, 4]), { address } = x;
  const message = "out may be neither x nor add (N=2 C=2)";
  assertThrows(() => k.gram(address, address, 0n, 2, 2, 0, 1, 0), Error, message);
  endStep();
});

Deno.test("gram() by the CPU's own products likewise", () => {
  withOwnProducts((reopen) => {
    for (const threads of [1, 2, 6, 7]) {
      reopen(threads);
      GRAMS.forEach(([N, C]) => checkGram(N, C));
    }
  });
});

Deno.test("attention() of bfloat16 pairs agrees with float64 but for the rounding of P and dS", () => {
  withPairs(() => {
    for (
      const [T, H, K, D, apart] of [
        [1, 1, 1, 8, false],
        [17, 2, 1, 24, false],
        [66, 2, 2, 64, false],
        [131, 3, 1, 40, false],
        [131, 3, 1, 40, true],
        [197, 2, 2, 8, true],
        [65, 1, 1, 136, false],
        [67, 8, 4, 40, false], // key heads enough for two threads
      ] as const
    ) {
      const size = { B: 2, T, H, K, D, ...(apart ? { starts: documents(T) } : {}) };
      const starts = size.starts && tokens([2, T], size.starts),
        toBf16 = (x: number) => Math.round(x * 16) / 16; // few bits: exact
      const values = normal(2 * T * (H + 2 * K) * D, 1).map(toBf16),
        dout = normal(2 * T * H * D, 2).map(toBf16);
      const qkv = tensor([2, T, (H + 2 * K) * D], values, true);
      const { out, grads } = forwardBackward(() => attention(qkv, heads(size), starts), [qkv], dout);
      const rounded = (expected: ref.Numbers) => {
        const mean_square = Array.from(expected).reduce((sum, e) => sum + e * e, 0) / expected.length;
        return { rtol: 2 ** -7, atol: 2 ** -5 * Math.sqrt(mean_square) };
      };
      const expected = ref.attention(values, size), dqkv = ref.attentionBackward(dout, values, size);
      assertClose(out, expected, rounded(expected), `out of T=${T} D=${D}`);
      assertClose(grads[0]!, dqkv, rounded(dqkv), `dqkv of T=${T} D=${D}`);
    }
  });
});

Deno.test("the CPU's own products, but gradients over many rows, give the same bits for any number of threads", () => {
  withOwnProducts((reopen) => {
    const H = { n_head: 6, n_kv_head: 2, head_dim: 40 }, T = 130, C = 96;
    const runs = [1, 2, 3].map((threads) => {
      reopen(threads);
      const x = leaf([6, T, C], 1), w = normalWeight([10 * 40, C], 2), dout = normal(6 * T * 6 * 40, 3);
      return forwardBackward(() => attention(linear(x.t, w.t), H), [x.t, w.t], dout);
    });
    assertEquals(runs[1], runs[0]);
    assertEquals(runs[2], runs[0]);
  });
});

// ---- the same on every instruction set

Deno.test({
  name: "all of this holds on each instruction set with the built-in matrix product",
  ignore: device.library !== "cpu" || Deno.env.has("LOAM_ISA"), // set: this is one of the runs below
  fn: async () => {
    const known = ["portable", "avx2", "avx512"]; // each processor has those before its best
    const here = known.slice(0, 1 + known.indexOf(device.isa_best!));
    for (const LOAM_ISA of here.filter((isa) => isa === "portable" || libraryExists(`cpu_${isa}`))) {
      const args = ["test", "-q", "-P=test", "--no-check", "ops_test.ts", "wide_test.ts", "tape_test.ts"];
      if (LOAM_ISA === here.at(-1)) args.push("--filter=/[lL]inear|[hH]ead|finite|fused|bits|gradient/"); // the rest ran above
      const env = { LOAM_ISA, LOAM_BLAS: "builtin", NO_COLOR: "1" };
      const { success, stdout } = await new Deno.Command(Deno.execPath(), {
        args,
        env,
        cwd: import.meta.dirname!,
      }).output();
      assert(success, `LOAM_ISA=${LOAM_ISA} LOAM_BLAS=builtin:\n${new TextDecoder().decode(stdout)}`);
    }
  },
});
