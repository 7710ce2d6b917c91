// Sizes beyond the first pass of each loop of a kernel: more rows than blocks, more columns than a warp or a block takes at once,
// more values than a grid has threads. ops_test.ts has the small odd shapes.
import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { KernelError } from "../ffi/errors.ts";
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  copyToDevice,
  copyToHost,
  device,
  F32,
  findNonFinite,
  free,
  synchronizeNow,
} from "../ffi/library.ts";
import { add, attention, embedding, rmsnorm, rope, swiglu } from "./ops.ts";
import * as ref from "./reference.ts";
import { tensor } from "./tensor.ts";
import {
  close,
  forwardBackward,
  integers,
  leaf,
  normal,
  normalWeight,
  openTestDevice,
  plus,
  rotations,
  tokens,
} from "./testing.ts";

openTestDevice();

Deno.test("rmsnorm() of many wide rows", () => { // 8 columns a lane, 256 a pass; more than 32 blocks of partial sums
  const N = 700, C = 520, x = leaf([N, C], 1), w = normalWeight([C], 2), dout = normal(N * C, 3);
  const { out, grads } = forwardBackward(() => rmsnorm(x.t, w.t, 1e-6), [x.t, w.t], dout);
  const { dx, dw } = ref.rmsnormBackward(dout, x.values, w.values, 1e-6);
  close(out, ref.rmsnorm(x.values, w.values, 1e-6), C, "out");
  close(grads[0]!, dx, C, "dx", 2);
  close(grads[1]!, dw, N, "dw", 2);
});

Deno.test("embedding() of more places than a block has threads", () => {
  const N = 600, V = 7, C = 16, w = normalWeight([V, C], 1), ids = integers(N, V, 2), dout = normal(N * C, 3);
  const { grads } = forwardBackward(() => embedding(tokens([1, N], ids), w.t), [w.t], dout);
  close(grads[0]!, ref.embeddingBackward(dout, ids, V, C), N / V, "dw");
});

Deno.test("embedding() names a negative id", () => {
  if (device.library === "cpu") return;
  const w = normalWeight([7, 16], 1);
  embedding(tokens([1, 1], [-1]), w.t);
  assertThrows(() => synchronizeNow(), KernelError, "token -1 at row 0 is outside the vocabulary of 7");
});
Deno.test("cross_entropy() of rows wider than a block's first pass, with padding, and its gradient", () => {
  const V = 9000, V_stride = 9024, N = 3, targets = [5, 8999, 4096], scale = 0.5;
  const values = normal(N * V_stride, 1).map((x, i) => x + i % V_stride / 1000); // the largest lie in the last pass
  const x = tensor([N, V_stride], values),
    read = x.toArray(),
    losses = allocate(4 * N),
    loss = new Float32Array(N);
  k.cross_entropy(x.address, losses, tokens([N], targets).address, N, V, V_stride, scale, 1);
  copyToHost(loss, losses);
  free(losses);
  const gradients = x.toArray();
  for (const [n, target] of targets.entries()) {
    const row = Float64Array.from(read.subarray(n * V_stride, n * V_stride + V));
    const most = row.reduce((a, b) => Math.max(a, b)), sum = row.reduce((a, b) => a + Math.exp(b - most), 0);
    assertAlmostEquals(loss[n]!, most + Math.log(sum) - row[target]!, 1e-4);
    const wanted = Float64Array.from(
      { length: V_stride },
      (_, i) => i < V ? scale * (Math.exp(row[i]! - most) / sum - (i === target ? 1 : 0)) : 0,
    );
    close(gradients.subarray(n * V_stride, (n + 1) * V_stride), wanted, 1, `gradient of row ${n}`);
  }
});

Deno.test("grad_sumsq() and sum_scaled() of many", () => {
  const n = 1_300_001,
    x = allocate(4 * n),
    sumsq = allocate(8),
    total = new Float64Array(1),
    one = new Float32Array(1);
  k.init_constant(x, BigInt(n), 1);
  k.grad_sumsq(sumsq, x, BigInt(n), 0);
  copyToHost(total, sumsq);
  assertEquals(total[0], n);
  k.sum_scaled(sumsq, x, 3001, 1, 0);
  copyToHost(one, sumsq);
  assertEquals(one[0], 3001);
  free(x);
  free(sumsq);
});

Deno.test("add() of 12, swiglu() of large gates", () => {
  const a = leaf([12], 1), b = leaf([12], 2);
  close(
    forwardBackward(() => add(a.t, b.t), [a.t, b.t], normal(12, 3)).out,
    plus(a.values, b.values),
    1,
    "out",
  );
  const F = 16,
    values = normal(4 * 2 * F, 1).map((x) => 8 * x),
    x = tensor([4, 2 * F], values, true),
    dout = normal(4 * F, 2);
  const want = ref.swigluBackward(dout, x.toArray(), F); // before its gradient takes its place
  const { grads } = forwardBackward(() => swiglu(x), [x], dout);
  grads[0]!.forEach((g, i) => assertAlmostEquals(g, want[i]!, 0.02 * Math.abs(want[i]!) + 1e-4, `${i}`));
});

Deno.test("embedding() of rows wider than a block has columns", () => {
  const N = 5, V = 3, C = 2056, w = normalWeight([V, C], 1), ids = [2, 0, 2, 2, 1], dout = normal(N * C, 3);
  const { out, grads } = forwardBackward(() => embedding(tokens([1, N], ids), w.t), [w.t], dout);
  assertEquals(Array.from(out), Array.from(ref.embedding(ids, w.values, C)));
  close(grads[0]!, ref.embeddingBackward(dout, ids, V, C), N, "dw");
});

Deno.test("findNonFinite() looks at every value, and names the first", () => {
  const n = 600_001, x = allocate(4 * n), values = new Float32Array(n);
  copyToDevice(x, values);
  assertEquals(findNonFinite(x, F32, n), -1);
  values[n - 1] = NaN;
  copyToDevice(x, values);
  assertEquals(findNonFinite(x, F32, n), n - 1);
  values[300_000] = -Infinity;
  copyToDevice(x, values);
  assertEquals(findNonFinite(x, F32, n), 300_000);
  free(x);
});

Deno.test("attention() with heads of 128 that end inside a tile, and more heads than one group", () => {
  for (const T of [65, 129]) {
    const size = { B: 1, T, H: 4, K: 2, D: 128 },
      qkv = leaf([1, T, 8 * 128], 1),
      dout = normal(T * 4 * 128, 2);
    const heads = { n_head: 4, n_kv_head: 2, head_dim: 128 };
    const { out, grads } = forwardBackward(() => attention(qkv.t, heads), [qkv.t], dout);
    close(out, ref.attention(qkv.values, size), T + 128, `out of T=${T}`, 2);
    close(grads[0]!, ref.attentionBackward(dout, qkv.values, size), T + 128, `dqkv of T=${T}`, 3);
  }
});

Deno.test("rope() of more pairs than a block has threads", () => {
  const size = { B: 2, T: 9, H: 3, K: 2, D: 64 }, qkv = leaf([2, 9, 7 * 64], 1), table = rotations(9, 64);
  const dout = normal(2 * 9 * 7 * 64, 2), heads = { n_head: 3, n_kv_head: 2, head_dim: 64 };
  const { out, grads } = forwardBackward(() => rope(qkv.t, table.t, heads), [qkv.t], dout);
  close(out, ref.rope(qkv.values, table.values, size), 2, "out");
  close(grads[0]!, ref.rope(dout, table.values, size, 0, true), 2, "dqkv");
});
