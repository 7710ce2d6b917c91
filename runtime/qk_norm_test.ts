// QK-norm against float64 and finite differences, and next to the ops around it.
import { assert, assertEquals, assertThrows } from "@std/assert";
import { attention, rope } from "./ops.ts";
import { qkNorm } from "./qk_norm.ts";
import * as ref from "./testing_reference.ts";
import { noGrad } from "./tape.ts";
import { tensor } from "./tensor.ts";
import {
  checkGrad,
  close,
  forwardBackward,
  headSize,
  leaf,
  normal,
  normalWeight,
  openTestDevice,
  rotations,
} from "./testing.ts";

openTestDevice();
const EPS = 1e-6;

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

Deno.test("qkNorm() before rope() and attention() has the gradients that finite differences give", () => {
  const D = headSize(8), heads = { n_head: 2, n_kv_head: 1, head_dim: D }, table = rotations(5, D);
  checkGrad(
    (qkv, q_norm, k_norm) => attention(rope(qkNorm(qkv, q_norm, k_norm, heads, EPS), table.t, heads), heads),
    [2, 5, 4 * D],
    { weight: [D] },
    { weight: [D] },
  );
});

Deno.test("qkNorm() gives the same with and without a tape, whatever the length", () => {
  const D = headSize(8), heads = { n_head: 2, n_kv_head: 1, head_dim: D };
  const q = normalWeight([D], 1), k = normalWeight([D], 2);
  for (const T of [3, 1, 7]) {
    const values = normal(T * 4 * D, T), shape = [1, T, 4 * D];
    const taped = forwardBackward(
      () => {
        return qkNorm(tensor(shape, values, true), q.t, k.t, heads, EPS);
      },
      [],
      normal(values.length, 5),
    );
    const out = noGrad(() => qkNorm(tensor(shape, values), q.t, k.t, heads, EPS).toArray());
    assertEquals(out, taped.out);
    assert(out.every(Number.isFinite));
  }
});

Deno.test("qkNorm() names the shapes that do not fit", () => {
  const heads = { n_head: 2, n_kv_head: 1, head_dim: 32 }, w = normalWeight([32], 1).t;
  const qkv = leaf([1, 3, 96], 2).t;
  assertThrows(
    () => qkNorm(qkv, w, w, heads, EPS),
    RangeError,
    "qkNorm: qkv must be (B, T, 128) and q_norm and k_norm (32) for 2 + 2 * 1 heads of 32, but they are (1,3,96), (32) and (32)",
  );
  const computed = leaf([32], 3).t;
  assertThrows(
    () => qkNorm(leaf([1, 3, 128], 2).t, computed, w, heads, EPS),
    TypeError,
    "must be parameters",
  );
});
