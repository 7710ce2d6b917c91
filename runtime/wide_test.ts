// Sizes beyond the first pass of each loop of a kernel: more rows than blocks, more columns than a warp or a block takes at once,
// more values than a grid has threads. ops_test.ts has the small odd shapes.
import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { KernelError } from "../base/errors.ts";
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  BF16,
  CONTROL,
  copyToDevice,
  copyToHost,
  device,
  F32,
  findNonFinite,
  free,
  open,
  synchronizeNow,
} from "../ffi/library.ts";
import {
  add,
  bias,
  concat,
  dropout,
  embedding,
  gelu,
  layernorm,
  linear,
  logsumexp,
  rmsnorm,
  rope,
  slice,
  softmax,
  swiglu,
} from "./ops.ts";
import * as ref from "./testing_reference.ts";
import { endStep } from "./tape.ts";
import { readFloats, tensor, writeFloats } from "./tensor.ts";
import {
  assertClose,
  close,
  compareAttention,
  forwardBackward,
  integers,
  leaf,
  normal,
  normalWeight,
  openTestDevice,
  plus,
  rotations,
  tokens,
  type Values,
} from "./testing.ts";

openTestDevice();

const BIAS1 = 7, BIAS2 = 8; // CONTROL_BIAS1 and CONTROL_BIAS2 of kernels.h

Deno.test("rmsnorm() of many wide rows", () => { // 8 columns a lane, 256 a pass; more than 32 blocks of partial sums
  const N = 700, C = 520, x = leaf([N, C], 1), w = normalWeight([C], 2), dout = normal(N * C, 3);
  const { out, grads } = forwardBackward(() => rmsnorm(x.t, w.t, 1e-6), [x.t, w.t], dout);
  const { dx, dw } = ref.rmsnormBackward(dout, x.values, w.values, 1e-6);
  close(out, ref.rmsnorm(x.values, w.values, 1e-6), C, "out");
  close(grads[0]!, dx, C, "dx", 2);
  close(grads[1]!, dw, N, "dw", 2);
});

Deno.test("layernorm() and bias() of many wide rows", () => { // more than 256 parts of sums, 32 columns a block
  const N = 700, C = 520, x = leaf([N, C], 1), w = normalWeight([C], 2), b = normalWeight([C], 3);
  const dout = normal(N * C, 4), { dx, dw, db } = ref.layernormBackward(dout, x.values, w.values, 1e-5);
  const { out, grads } = forwardBackward(() => layernorm(x.t, w.t, b.t, 1e-5), [x.t, w.t, b.t], dout);
  close(out, ref.layernorm(x.values, w.values, b.values, 1e-5), C, "out", 2);
  close(grads[0]!, dx, C, "dx", 3);
  close(grads[1]!, dw, N, "dw", 2);
  close(grads[2]!, db, N, "db");
  const y = leaf([N, C], 1), added = forwardBackward(() => bias(y.t, b.t), [y.t, b.t], dout);
  close(added.out, y.values.map((y, i) => y + b.values[i % C]!), 1, "out of bias");
  assertEquals(added.grads[0], dout);
  assertEquals(added.grads[1]!.length, C);
});

Deno.test("softmax() and logsumexp() of rows wider than a block's first pass", () => {
  const N = 3, C = 2100, V = 2090, dout = normal(N * C, 2); // the largest lie in the last pass
  const values = normal(N * C, 1).map((x, i) => x + i % C / 1000),
    x = tensor([N, C], values, true),
    read = x.toArray();
  const { out, grads } = forwardBackward(() => softmax(x), [x], dout);
  close(out, ref.softmaxRows(read, C), C, "out", 2);
  close(grads[0]!, ref.softmaxBackward(dout, read, C), C, "dx", 3);
  const y = tensor([N, C], values, true), d = dout.slice(0, N);
  const lse = forwardBackward(() => logsumexp(y, V), [y], d);
  close(lse.out, ref.logsumexp(read, C, V), V, "out of logsumexp");
  const p = ref.softmaxRows(read, C, V);
  close(lse.grads[0]!, p.map((p, i) => p * d[Math.floor(i / C)]!), V, "dx of logsumexp", 3);
});

Deno.test("element-wise ops, dropout(), slice() and concat() of more than a grid's first block", () => {
  const N = 300, C = 136, x = leaf([N, C], 1), dout = normal(N * C, 2), { f, slope } = ref.unary("gelu");
  const { out, grads } = forwardBackward(
    () => gelu(concat([slice(x.t, 0, 64), slice(x.t, 64, 72)])),
    [x.t],
    dout,
  );
  close(out, Float64Array.from(x.values, f), 8, "out");
  close(grads[0]!, Float64Array.from(x.values, (x, i) => dout[i]! * slope(x)), 8, "dx");
  const y = leaf([N * C], 1), dropped = forwardBackward(() => dropout(y.t, 0.5), [y.t], dout);
  dropped.out.forEach((value, i) => {
    assertEquals([value, dropped.grads[0]![i]], value ? [2 * y.values[i]!, 2 * dout[i]!] : [0, 0]);
  });
});

Deno.test("embedding() of more places than a block has threads", () => {
  const N = 600,
    V = 7,
    C = 16,
    w = normalWeight([V, C], 1),
    ids = integers(N, V - 1, 2),
    dout = normal(N * C, 3);
  ids[300] = ids[590] = V - 1; // neither is in the first block
  const { grads } = forwardBackward(() => embedding(tokens([1, N], ids), w.t), [w.t], dout);
  close(grads[0]!, ref.embeddingBackward(dout, ids, V, C), N / V, "dw");
});

Deno.test("embedding() of rows that several threads share by columns", () => {
  const N = 300, V = 5, C = 70, w = normalWeight([V, C], 1), ids = integers(N, V, 2), dout = normal(N * C, 3);
  const { grads } = forwardBackward(() => embedding(tokens([1, N], ids), w.t), [w.t], dout);
  close(grads[0]!, ref.embeddingBackward(dout, ids, V, C), N / V, "dw");
});

Deno.test("embedding() names a negative id, and one behind the vocabulary", () => {
  if (device.library === "cpu") return;
  const w = normalWeight([7, 16], 1);
  for (const id of [-1, 7]) {
    embedding(tokens([1, 1], [id]), w.t);
    assertThrows(() => synchronizeNow(), KernelError, `token ${id} at row 0 is outside the vocabulary of 7`);
  }
});

Deno.test("cross_entropy() of rows wider than a block's first pass, with padding, and its gradient", () => {
  const N = 3, scale = 0.5;
  for (
    const [V, V_stride, shift, hidden] of [ // e^90 is no float; rows of 1103 are read one logit at a time
      [9000, 9024, 0, 0],
      [9000, 9024, 90, 0],
      [9000, 9024, -90, 0],
      [1101, 1103, 90, 0],
      [9000, 9024, 1.1e9, 0], // its product with LOG2E is rounded by 49
      [9000, 9024, 0, 4500], // columns of -Infinity, all that a thread reads at first
      [1101, 1103, 0, 520],
    ] as const
  ) {
    const targets = [hidden + 5, V - 1, V >> 1];
    const values = normal(N * V_stride, 1).map((x, i) =>
      // the largest lie in the last pass
      i % V_stride < hidden ? -Infinity : x + i % V_stride / 1000 + shift
    );
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
      const most = row.reduce((a, b) => Math.max(a, b)),
        sum = row.reduce((a, b) => a + Math.exp(b - most), 0);
      assertAlmostEquals(loss[n]!, most + Math.log(sum) - row[target]!, 1e-4);
      const wanted = Float64Array.from(
        { length: V_stride },
        (_, i) => i < V ? scale * (Math.exp(row[i]! - most) / sum - (i === target ? 1 : 0)) : 0,
      );
      close(
        gradients.subarray(n * V_stride, (n + 1) * V_stride),
        wanted,
        1,
        `gradient of row ${n} at ${shift}`,
      );
    }
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

/** A block with these values. */
function block(values: Values): bigint {
  const address = allocate(4 * values.length);
  copyToDevice(address, values);
  return address;
}

/** The n values of a block. */
function read(address: bigint, n: number): Values {
  const values = new Float32Array(n);
  copyToHost(values, address);
  return values;
}

/** n values from -1 to 1 without a pattern. */
function some(n: number, seed = 1): Values {
  return Float32Array.from({ length: n }, (_, i) => Math.sin(12.9898 * (i + seed * 1000)));
}

Deno.test("sum_scaled() and grad_sumsq() add up every block of values", () => {
  const n = 200_001, values = some(n).map((x, i) => x + Math.floor(i / 65536)); // each block of 65536 has another mean
  const x = block(values),
    out = block(Float32Array.of(100)),
    sumsq = allocate(8),
    total = new Float64Array(1);
  const sum = values.reduce((a, b) => a + b, 0), squares = values.reduce((a, b) => a + b * b, 0);
  k.sum_scaled(out, x, n, 0.5, 0);
  assertAlmostEquals(read(out, 1)[0]!, 0.5 * sum, 1e-6 * n);
  k.sum_scaled(out, x, n, 0.25, 1);
  assertAlmostEquals(read(out, 1)[0]!, 0.75 * sum, 1e-6 * n);
  for (const times of [1, 2]) {
    k.grad_sumsq(sumsq, x, BigInt(n), times - 1);
    copyToHost(total, sumsq);
    assertAlmostEquals(total[0]! / (times * squares), 1, 1e-6);
  }
  [x, out, sumsq].forEach(free);
});

Deno.test("fill_zero(), init_constant() and convert() of more than one thread's or block's part touch all and no more", () => {
  const n = 700_001,
    x = block(new Float32Array(n + 2).fill(7)),
    half = allocate(2 * n + 2),
    back = allocate(4 * n);
  k.fill_zero(x + 4n, BigInt(4 * n)); // 2.8 MB
  assertEquals(read(x, n + 2), new Float32Array(n + 2).fill(7, 0, 1).fill(7, n + 1));
  k.init_constant(x + 4n, BigInt(n), -3);
  assertEquals(read(x, n + 2), new Float32Array(n + 2).fill(-3).with(0, 7).with(n + 1, 7));
  const values = some(n).map((v) => Math.round(64 * v) / 64); // 7 bits: bfloat16 keeps them
  copyToDevice(x, values);
  k.convert(half, x, BF16, F32, BigInt(n));
  k.convert(back, half, F32, BF16, BigInt(n));
  assertEquals(read(back, n), values);
  [x, half, back].forEach(free);
});

Deno.test("adamw() of more values than one thread or grid takes at once agrees with float64", () => {
  const n = 300_001,
    [w, grad, m, v] = [1, 2, 3, 4].map((seed) => some(n, seed)) as [Values, Values, Values, Values];
  const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
  const control = new Float32Array(16), t = 3, learning_rate = Math.fround(0.01);
  control[CONTROL.learning_rate] = learning_rate;
  control[CONTROL.grad_scale] = 1;
  control[BIAS1] = 1 - 0.9 ** t;
  control[BIAS2] = 1 - 0.95 ** t;
  const state = { weight: Float64Array.from(w), m: Float64Array.from(m), v: Float64Array.from(v, Math.abs) };
  const at = { m: block(m), v: block(v.map(Math.abs)), grad: block(grad), control: block(control) };
  const master = block(w),
    weight = allocate(4 * n),
    rest = allocate(2 * n),
    ties = allocate(Math.ceil(n / 8));
  const { beta1, beta2, eps, weight_decay } = options, size = BigInt(n);
  k.split_master(weight, rest, ties, master, size);
  k.fill_zero(master, 4n * size);
  k.adamw(weight, rest, ties, at.m, at.v, at.grad, at.control, size, beta1, beta2, eps, weight_decay);
  k.join_master(master, weight, rest, ties, size);
  ref.adamw(state, Float64Array.from(grad), { ...options, t, learning_rate });
  const tolerance = { rtol: 2 ** -20, atol: 2 ** -22 };
  assertClose(read(master, n), state.weight, tolerance, "weights");
  if (device.act !== "f32") {
    assertClose(
      readFloats(weight, n, "act"),
      state.weight,
      { rtol: 2 ** -8, atol: 2 ** -22 },
      "bfloat16 weights",
    );
  }
  assertClose(read(at.m, n), state.m, tolerance, "m");
  assertClose(read(at.v, n), state.v, tolerance, "v");
  [master, weight, rest, ties, ...Object.values(at)].forEach(free);
});

Deno.test("init_normal() gives each element its own number, wherever its range begins", () => {
  const n = 5003, whole = allocate(4 * n), part = allocate(4 * n);
  k.init_normal(whole, BigInt(n), 0.5, 7n, 0n);
  const all = read(whole, n);
  for (const [offset, count] of [[1, 5000], [2, 1], [3, 3000], [4, 2001], [4999, 4]] as const) {
    k.init_normal(part, BigInt(count), 0.5, 7n, BigInt(offset));
    assertEquals(read(part, count), all.slice(offset, offset + count), `from ${offset}`);
  }
  [whole, part].forEach(free);
});

Deno.test("add(), swiglu() and rmsnorm()'s weight gradient of more rows than one thread takes", () => {
  const n = 40_001, a = leaf([n], 1), b = leaf([n], 2);
  const sum = forwardBackward(() => add(a.t, b.t), [a.t, b.t], normal(n, 3)).out;
  close(sum, plus(a.values, b.values), 1, "sum");
  const [N, F] = [400, 60], x = leaf([N, 2 * F], 4), dout = normal(N * F, 5);
  const { out, grads } = forwardBackward(() => swiglu(x.t), [x.t], dout);
  close(out, ref.swiglu(x.values, F), 4, "out");
  close(grads[0]!, ref.swigluBackward(dout, x.values, F), 4, "dgate_up");
  const C = 40, y = leaf([N, C], 6), w = normalWeight([C], 7), dy = normal(N * C, 8);
  const twice = forwardBackward(() => add(rmsnorm(y.t, w.t, 1e-6), rmsnorm(y.t, w.t, 1e-6)), [y.t, w.t], dy);
  const { dx, dw } = ref.rmsnormBackward(dy, y.values, w.values, 1e-6);
  close(twice.grads[0]!, dx.map((d) => 2 * d), C, "dx of two uses", 3);
  close(twice.grads[1]!, dw.map((d) => 2 * d), N, "dw of two uses", 3);
});

// ---- what only the CPU's products have: panels of 96 rows, 256 deep and up to 1024 columns, 512 rows of a weight gradient

const cpu = { ignore: device.library !== "cpu" };

Deno.test("linear() of more rows, columns and depth than one panel, with and without a residual", cpu, () => {
  const shapes = [[600, 20, 30], [3, 1100, 20], [20, 300, 1100], [230, 270, 140]] as const;
  for (const blas of ["", "builtin"]) {
    open("cpu", { threads: 2, blas });
    for (const [N, IN, OUT] of shapes) checkLinear(N, IN, OUT);
  }
  openTestDevice();
});

Deno.test(
  "linear_forward() of a prompt's rows is exact where every sum is a whole number, by float or bfloat16 weights",
  cpu,
  () => {
    const small = (n: number, seed: number) =>
      Float32Array.from({ length: n }, (_, i) => (i * i + seed * i) % 17 - 8);
    for (const [N, IN, OUT] of [[9, 1, 1], [65, 771, 50], [130, 33, 97], [256, 5, 3], [257, 9, 7]] as const) {
      const [x, w, residual] = [small(N * IN, 1), small(OUT * IN, 2), small(N * OUT, 3)];
      const at = {
        x: block(x),
        w: block(w),
        residual: block(residual),
        out: block(residual),
        half: allocate(2 * w.length),
      };
      k.convert(at.half, at.w, BF16, F32, BigInt(w.length));
      for (const add of [0n, at.residual, at.out]) {
        const expected = Float32Array.from(ref.linear(x, w, IN, add ? residual : undefined));
        const begin = () =>
          add === at.out ? copyToDevice(at.out, residual) : k.fill_zero(at.out, BigInt(4 * N * OUT));
        begin();
        k.linear_forward(at.out, at.x, at.w, add, N, IN, OUT);
        assertEquals(read(at.out, N * OUT), expected, `float, ${N} ${IN} ${OUT}`);
        begin();
        k.linear_forward_bf16(at.out, at.x, at.half, add, N, IN, OUT);
        assertEquals(read(at.out, N * OUT), expected, `bfloat16, ${N} ${IN} ${OUT}`);
      }
      Object.values(at).forEach(free);
    }
  },
);

function checkLinear(N: number, IN: number, OUT: number): void {
  const x = leaf([1, N, IN], 1),
    w = normalWeight([OUT, IN], 2),
    r = leaf([1, N, OUT], 3),
    dout = normal(N * OUT, 4);
  const { out, grads } = forwardBackward(() => linear(x.t, w.t, r.t), [x.t, w.t], dout);
  const { dx, dw } = ref.linearBackward(dout, x.values, w.values, IN),
    what = `of N=${N} IN=${IN} OUT=${OUT}`;
  close(out, ref.linear(x.values, w.values, IN, r.values), IN, `out ${what}`);
  close(grads[0]!, dx, OUT, `dx ${what}`);
  close(grads[1]!, dw, N, `dw ${what}`);
}

Deno.test("linear_wgrad() and linear_dgrad() overwrite or add over every block of rows", cpu, () => {
  const [N, IN, OUT] = [1100, 6, 5], x = some(N * IN, 1), dout = some(N * OUT, 2), w = some(OUT * IN, 3);
  const { dx, dw } = ref.linearBackward(dout, x, w, IN);
  const at = { x: block(x), dout: block(dout), w: block(w) };
  const [weight, input] = [
    block(new Float32Array(OUT * IN).fill(NaN)),
    block(new Float32Array(N * IN).fill(NaN)),
  ];
  for (const times of [1, 2, 3]) {
    k.linear_wgrad(weight, at.dout, at.x, N, IN, OUT, times > 1 ? 1 : 0);
    k.linear_dgrad(input, at.dout, at.w, N, IN, OUT, times > 1 ? 1 : 0);
    close(read(weight, OUT * IN), dw.map((d) => times * d), N, `dw ${times} times`, times);
    close(read(input, N * IN), dx.map((d) => times * d), OUT, `dx ${times} times`, times);
  }
  [weight, input, ...Object.values(at)].forEach(free);
});

Deno.test(
  "attention() of every number of rows in a strip, of wide heads, and of more heads than tasks",
  cpu,
  () => {
    const sizes = [
      ...[2, 3, 4, 5, 6, 67].map((T) => ({ B: 1, T, H: 2, K: 1, D: 24 })),
      { B: 4, T: 70, H: 4, K: 2, D: 8 },
      { B: 9, T: 3, H: 1, K: 1, D: 16 },
      { B: 1, T: 70, H: 2, K: 1, D: 256 },
      { B: 1, T: 193, H: 1, K: 1, D: 48 },
    ];
    sizes.forEach(compareAttention);
  },
);

Deno.test("add() of 12 and 16, swiglu() of large gates", () => {
  for (const n of [12, 16]) {
    const a = leaf([n], 1), b = leaf([n], 2);
    close(
      forwardBackward(() => add(a.t, b.t), [a.t, b.t], normal(n, 3)).out,
      plus(a.values, b.values),
      1,
      "out",
    );
  }
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
  for (const T of [65, 129]) compareAttention({ B: 1, T, H: 4, K: 2, D: 128 });
});

Deno.test("rope() of more pairs than a block has threads", () => {
  const size = { B: 2, T: 9, H: 3, K: 2, D: 64 }, qkv = leaf([2, 9, 7 * 64], 1), table = rotations(9, 64);
  const dout = normal(2 * 9 * 7 * 64, 2), heads = { n_head: 3, n_kv_head: 2, head_dim: 64 };
  const { out, grads } = forwardBackward(() => rope(qkv.t, table.t, heads), [qkv.t], dout);
  close(out, ref.rope(qkv.values, table.values, size), 2, "out");
  close(grads[0]!, ref.rope(dout, table.values, size, 0, true), 2, "dqkv");
});

// ---- what kernels do with memory that holds something already

/** A block of the device's act type. */
function acts(values: Values): bigint {
  const address = allocate(4 * values.length);
  writeFloats(address, values, "act");
  return address;
}

Deno.test("gradients are overwritten or added to, as a kernel is told", () => {
  const [N, C, V] = [3, 16, 5], [x, w, dout] = [1, 2, 3].map((seed) => acts(normal(C * C, seed)));
  const ids = tokens([N], [4, 0, 4]).address, rstd = allocate(4 * N), gradient = allocate(4 * C * C);
  k.rmsnorm_forward(gradient, rstd, x!, w!, N, C, 1, C, 1e-6);
  const [dx, dw] = [allocate(4 * C * C), allocate(4 * C)];
  const kernels: [string, size: number, "act" | "f32", at: bigint, run: (accumulate: number) => void][] = [
    ["embedding", V * C, "f32", gradient, (add) => k.embedding_backward(gradient, dout!, ids, N, V, C, add)],
    [
      "rmsnorm dx",
      N * C,
      "act",
      dx,
      (add) => k.rmsnorm_backward(dx, dw, 0n, dout!, x!, w!, rstd, N, C, 1, C, add, 0),
    ],
    [
      "rmsnorm dw",
      C,
      "f32",
      dw,
      (add) => k.rmsnorm_backward(dx, dw, 0n, dout!, x!, w!, rstd, N, C, 1, C, 0, add),
    ],
    ["linear dx", N * C, "act", gradient, (add) => k.linear_dgrad(gradient, dout!, w!, N, C, C, add)],
    ["linear dw", C * C, "f32", gradient, (add) => k.linear_wgrad(gradient, dout!, x!, N, C, C, add)],
  ];
  for (const [name, size, type, at, run] of kernels) {
    const from = (value: number, accumulate: number) => {
      writeFloats(at, new Float32Array(size).fill(value), type);
      run(accumulate);
      return readFloats(at, size, type);
    };
    const alone = from(0, 1);
    assert(alone.some((value) => Math.abs(value) > 0.1), name);
    assertEquals(from(64, 0), alone, `${name}, overwritten`);
    assertClose(
      from(64, 1),
      alone.map((value) => 64 + value),
      { rtol: 2 ** -8, atol: 0 },
      `${name}, added to`,
    );
  }
  [x!, w!, dout!, rstd, gradient, dx, dw].forEach(free);
});

Deno.test("backward writes the output again where it is asked to", () => {
  const [N, C] = [3, 16], [x, w, dout] = [1, 2, 3].map((seed) => acts(normal(2 * N * C, seed)));
  const [out, again, dx, dw] = [1, 2, 3, 4].map(() => allocate(8 * N * C)), rstd = allocate(4 * N);
  k.rmsnorm_forward(out!, rstd, x!, w!, N, C, 1, C, 1e-6);
  k.rmsnorm_backward(dx!, dw!, again!, dout!, x!, w!, rstd, N, C, 1, C, 0, 0);
  assertEquals(readFloats(again!, N * C, "act"), readFloats(out!, N * C, "act"), "rmsnorm");
  k.swiglu_forward(out!, x!, N, C);
  k.swiglu_backward(dx!, again!, dout!, x!, N, C);
  assertEquals(readFloats(again!, N * C, "act"), readFloats(out!, N * C, "act"), "swiglu");
  [x!, w!, dout!, out!, again!, dx!, dw!, rstd].forEach(free);
});

Deno.test("linear() adds up in float, whatever is added first", () => {
  const [N, IN] = [16, 1028]; // 257 is no bfloat16: a sum of parts of a quarter each would be 0
  const x = Float32Array.from({ length: N * IN }, (_, i) => {
    const place = i % IN;
    return place < 257 ? 1 : place >= IN - 256 ? -1 : 0;
  });
  const w = tensor([1, IN], new Float32Array(IN).fill(1));
  assertEquals([...linear(tensor([N, IN], x), w).toArray()], Array(N).fill(1));
  endStep();
});
