// Every call of a training step: what it computes, the bytes it has to move and how often a micro-step makes it. kernels.ts
// times them; roofline.ts works out what they should take on cards that are not at hand.
import * as k from "../ffi/kernels.ts";
import { copyToDevice, UNARY } from "../ffi/library.ts";
import type { Address } from "../runtime/tensor.ts";
import type { Shape } from "./shapes.ts";

/** Where a case takes its arrays from. */
export type Arrays = {
  act: (n: number) => Address; // n activations, standard normal
  f32: (n: number) => Address; // n floats, standard normal
  ids: (n: number, below: number) => Address; // n int32
  bytes: (n: number) => Address;
};

/** One call to time. */
export type Case = {
  op: string; // "qkv wgrad"
  shape: string;
  flops: number;
  bytes: number; // each input read once, each output written once
  count: number; // calls in a micro-step; 0 for those of the optimizer, once a step, and for others
  product?: [m: number, n: number, k: number]; // of a linear: (m, k) times (k, n)
  make: (a: Arrays) => () => void; // takes arrays and returns the call on them
};

/** A model's shape with the widths that follow from it. act: bytes of an activation, 2 or 4; recompute as in train.ts. */
export type Sizes = Shape & { head_chunk: number; act: number; recompute?: "none" | "norm_swiglu" };

/** The cases of a model, in the order of kernels.h. */
export function allCases(s: Sizes, copy_bytes: number): Case[] {
  return [
    ...memoryCases(copy_bytes, s.act),
    ...embeddingCases(s),
    ...normCases(s),
    ...headCases(s),
    ...linearCases(s),
    ...activationCases(s),
    ...unfusedCases(s),
    ...lossCases(s),
    ...optimizerCases(s),
  ];
}

/** The calls of a step of one micro-step, the optimizer's among them. */
export function stepCases(s: Sizes): Case[] {
  const once = optimizerCases(s).map((c) => ({ ...c, count: 1 }));
  return [...allCases(s, 4).filter(({ count }) => count > 0), ...once];
}

/** Elements of all weights. */
export function weightCount({ n_layer: L, n_embd: C, n_inner: F, V, ...s }: Sizes): number {
  const width = (1 + 2 * s.n_kv_head / s.n_head) * C;
  return L * (width * C + C * C + 3 * C * F + 2 * C) + C + padded(V) * C;
}

function padded(V: number): number {
  return Math.ceil(V / 64) * 64;
}

/** What the card can copy is what every other figure in bytes is held against. A CPU copies by one thread, so there all multiply. */
function memoryCases(bytes: number, act: number): Case[] {
  const n = Math.ceil(bytes / 4), isCpu = act === 4;
  return [{
    op: "copy",
    shape: `${(4 * n / 1e6).toFixed(0)} MB`,
    flops: 0,
    bytes: (isCpu ? 12 : 8) * n,
    count: 0,
    make: (a) => {
      const dst = a.f32(n), src = a.f32(n);
      return () => isCpu ? k.mul(dst, dst, src, BigInt(n)) : k.copy_async(dst, src, BigInt(4 * n));
    },
  }];
}

function embeddingCases({ B, T, n_embd: C, V, act }: Sizes): Case[] {
  const N = B * T, rows = padded(V), shape = `(${V}, ${C}) at ${N}`;
  return [
    {
      op: "embedding forward",
      shape,
      flops: 0,
      bytes: 2 * act * N * C,
      count: 1,
      make: (a) => {
        const out = a.act(N * C), ids = a.ids(N, V), w = a.act(rows * C);
        return () => k.embedding_forward(out, ids, w, N, rows, C);
      },
    },
    {
      op: "embedding backward",
      shape,
      flops: 0,
      bytes: (act + 8) * N * C, // adds to float rows
      count: 1,
      make: (a) => {
        const dw = a.f32(rows * C), dout = a.act(N * C), ids = a.ids(N, V);
        return () => k.embedding_backward(dw, dout, ids, N, rows, C, 1);
      },
    },
  ];
}

/** With --recompute=norm_swiglu, train.ts's default: backward writes the normalised rows again. */
function normCases({ B, T, n_layer, n_embd: C, act, recompute }: Sizes): Case[] {
  const N = B * T, shape = `(${N}, ${C})`, count = 2 * n_layer + 1;
  const forward = (a: Arrays) => {
    const out = a.act(N * C), rstd = a.f32(N), x = a.act(N * C), w = a.act(C);
    k.rmsnorm_forward(out, rstd, x, w, N, C, 1, C, 1e-6);
    return { out, rstd, x, w };
  };
  return [
    {
      op: "rmsnorm forward",
      shape,
      flops: 0,
      bytes: 2 * act * N * C,
      count,
      make: (a) => {
        const { out, rstd, x, w } = forward(a);
        return () => k.rmsnorm_forward(out, rstd, x, w, N, C, 1, C, 1e-6);
      },
    },
    {
      op: "rmsnorm backward",
      shape,
      flops: 0,
      bytes: (recompute === "none" ? 4 : 5) * act * N * C, // dout and x; dx, which it adds to; out
      count,
      make: (a) => {
        const { out, rstd, x, w } = forward(a), dx = a.act(N * C), dw = a.f32(C), dout = a.act(N * C);
        const again = recompute === "none" ? 0n : out;
        return () => k.rmsnorm_backward(dx, dw, again, dout, x, w, rstd, N, C, 1, C, 1, 1);
      },
    },
  ];
}

/** What works on heads: rope and attention. */
function headCases({ B, T, n_layer, n_embd: C, n_head: H, n_kv_head: K, act }: Sizes): Case[] {
  const N = B * T, D = C / H, width = (H + 2 * K) * D, shape = `(${B}, ${T}, ${H}+2*${K}, ${D})`;
  const causal = 2 * B * H * D * T * (T + 1); // two products over the lower triangle
  const rope = (inverse: 0 | 1) => (a: Arrays) => {
    const qkv = a.act(N * width), table = a.f32(T * D);
    copyToDevice(table, rotations(T, D));
    return () => k.rope(qkv, table, 0n, B, T, 0, H, K, D, inverse);
  };
  const attention = (a: Arrays) => {
    const out = a.act(N * C), lse = a.f32(B * H * T), qkv = a.act(N * width);
    k.attention_forward(out, lse, qkv, 0n, B, T, H, K, D);
    return { out, lse, qkv };
  };
  return [
    {
      op: "rope forward",
      shape,
      flops: 0,
      bytes: 2 * act * N * (H + K) * D,
      count: n_layer,
      make: rope(0),
    },
    {
      op: "rope backward",
      shape,
      flops: 0,
      bytes: 2 * act * N * (H + K) * D,
      count: n_layer,
      make: rope(1),
    },
    {
      op: "attention forward",
      shape,
      flops: causal,
      bytes: act * N * (width + C) + 4 * B * H * T,
      count: n_layer,
      make: (a) => {
        const { out, lse, qkv } = attention(a);
        return () => k.attention_forward(out, lse, qkv, 0n, B, T, H, K, D);
      },
    },
    {
      op: "attention backward",
      shape,
      flops: 2.5 * causal, // five products, as everybody counts; a kernel may repeat some
      bytes: act * N * (2 * width + 2 * C) + 8 * B * H * T,
      count: n_layer,
      make: (a) => {
        const { out, lse, qkv } = attention(a);
        const dqkv = a.act(N * width), delta = a.f32(B * H * T), dout = a.act(N * C);
        return () => k.attention_backward(dqkv, delta, dout, out, lse, qkv, 0n, B, T, H, K, D);
      },
    },
  ];
}

/** Cosines, then sines of p * 10000^(-2j/D): a true rotation, so that turning the same array many times keeps its size. */
function rotations(T: number, D: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: T * D }, (_, i) => {
    const angle = Math.floor(i / D) * 10000 ** (-2 * (i % (D / 2)) / D);
    return i % D < D / 2 ? Math.cos(angle) : Math.sin(angle);
  });
}

function linearCases(s: Sizes): Case[] {
  const { B, T, n_layer: L, n_embd: C, n_inner: F } = s, N = B * T;
  const width = (1 + 2 * s.n_kv_head / s.n_head) * C, chunk = Math.min(N, s.head_chunk);
  return [
    ...linear("qkv", N, C, width, L, s.act),
    ...linear("o", N, C, C, L, s.act, true),
    ...linear("gate_up", N, C, 2 * F, L, s.act),
    ...linear("down", N, F, C, L, s.act, true),
    ...linear("head", chunk, C, padded(s.V), N / chunk, s.act),
  ];
}

function linear(
  name: string,
  N: number,
  IN: number,
  OUT: number,
  count: number,
  act: number,
  hasResidual = false,
): Case[] {
  const shape = `(${N}, ${IN}) x (${OUT}, ${IN})`, flops = 2 * N * IN * OUT;
  const moved = N * IN + OUT * IN + N * OUT;
  return [
    {
      op: `${name} forward`,
      shape,
      flops,
      bytes: act * (moved + (hasResidual ? N * OUT : 0)),
      count,
      product: [N, OUT, IN],
      make: (a) => {
        const out = a.act(N * OUT), x = a.act(N * IN), w = a.act(OUT * IN);
        const residual = hasResidual ? a.act(N * OUT) : 0n;
        return () => k.linear_forward(out, x, w, residual, N, IN, OUT);
      },
    },
    {
      op: `${name} dgrad`,
      shape,
      flops,
      bytes: act * moved,
      count,
      product: [N, IN, OUT],
      make: (a) => {
        const dx = a.act(N * IN), dout = a.act(N * OUT), w = a.act(OUT * IN);
        return () => k.linear_dgrad(dx, dout, w, N, IN, OUT, 0);
      },
    },
    {
      op: `${name} wgrad`,
      shape,
      flops,
      bytes: act * (N * IN + N * OUT) + 8 * OUT * IN, // adds to float sums, as in all micro-steps but the first
      count,
      product: [OUT, IN, N],
      make: (a) => {
        const dw = a.f32(OUT * IN), dout = a.act(N * OUT), x = a.act(N * IN);
        return () => k.linear_wgrad(dw, dout, x, N, IN, OUT, 1);
      },
    },
  ];
}

function activationCases({ B, T, n_layer, n_inner: F, act, recompute }: Sizes): Case[] {
  const N = B * T;
  return [
    {
      op: "swiglu forward",
      shape: `(${N}, 2*${F})`,
      flops: 0,
      bytes: 3 * act * N * F,
      count: n_layer,
      make: (a) => {
        const h = a.act(N * F), gate_up = a.act(N * 2 * F);
        return () => k.swiglu_forward(h, gate_up, N, F);
      },
    },
    {
      op: "swiglu backward",
      shape: `(${N}, 2*${F})`,
      flops: 0,
      bytes: (recompute === "none" ? 5 : 6) * act * N * F, // dh and gate_up; dgate_up and h again
      count: n_layer,
      make: (a) => {
        const [dgate_up, h, dh, gate_up] = [a.act(N * 2 * F), a.act(N * F), a.act(N * F), a.act(N * 2 * F)];
        const again = recompute === "none" ? 0n : h;
        return () => k.swiglu_backward(dgate_up, again, dh, gate_up, N, F);
      },
    },
  ];
}

/** Ops of edits, which no step has by itself: what one that is not fused with its neighbours costs. */
function unfusedCases({ B, T, n_embd: C, V, head_chunk, act }: Sizes): Case[] {
  const N = B * T, n = BigInt(N * C), rows = Math.min(N, head_chunk), stride = padded(V);
  /** passes: arrays (N, C) that are read or written. */
  const of = (op: string, passes: number, call: (x: Address[], a: Arrays) => () => void): Case => ({
    op,
    shape: `(${N}, ${C})`,
    flops: 0,
    bytes: passes * act * N * C,
    count: 0,
    make: (a) => call([a.act(N * C), a.act(N * C), a.act(N * C)], a),
  });
  const unary = Object.entries(UNARY).flatMap(([name, kind]) => [
    of(`${name} forward`, 2, ([y, x]) => () => k.unary_forward(y!, x!, kind, 1, n)),
    of(`${name} backward`, 3, ([dx, dy, x]) => () => k.unary_backward(dx!, dy!, x!, kind, 1, n)),
  ]);
  return [
    of("add", 3, ([out, x, y]) => () => k.add(out!, x!, y!, n)),
    of("mul", 3, ([out, x, y]) => () => k.mul(out!, x!, y!, n)),
    ...unary,
    of("dropout", 2, ([out, x]) => () => k.dropout(out!, x!, n, 0.1, 1n)),
    of("bias forward", 2, ([out, x], a) => {
      const b = a.act(C);
      return () => k.bias_forward(out!, x!, b, N, C);
    }),
    of("bias backward", 1, ([dout], a) => {
      const db = a.f32(C);
      return () => k.bias_backward(db, dout!, N, C, 1);
    }),
    of("layernorm forward", 2, ([out, x], a) => {
      const stats = a.f32(2 * N), w = a.act(C), b = a.act(C);
      return () => k.layernorm_forward(out!, stats, x!, w, b, N, C, 1e-5);
    }),
    of("layernorm backward", 3, ([dx, dout, x], a) => {
      const stats = a.f32(2 * N), w = a.act(C), dw = a.f32(C), db = a.f32(C);
      return () => k.layernorm_backward(dx!, dw, db, dout!, x!, w, stats, N, C, 1, 1);
    }),
    of("softmax forward", 2, ([out, x]) => () => k.softmax_forward(out!, x!, N, C)),
    of("softmax backward", 3, ([dx, dout, out]) => () => k.softmax_backward(dx!, dout!, out!, N, C)),
    of("slice of half the columns", 1, ([out, x]) => () => k.copy_columns(out!, x!, N, C / 2, C / 2, C, 0)),
    {
      op: "logsumexp forward",
      shape: `(${rows}, ${V})`,
      flops: 0,
      bytes: act * rows * stride,
      count: 0,
      make: (a) => {
        const out = a.act(rows), lse = a.f32(rows), x = a.act(rows * stride);
        return () => k.logsumexp_forward(out, lse, x, rows, V, stride);
      },
    },
  ];
}

function lossCases({ B, T, V, head_chunk, act }: Sizes): Case[] {
  const N = B * T, n = Math.min(N, head_chunk), stride = padded(V);
  return [
    {
      op: "cross_entropy",
      shape: `(${n}, ${V})`,
      flops: 0,
      bytes: 2 * act * n * stride,
      count: N / n,
      make: (a) => {
        const logits = a.act(n * stride), losses = a.f32(n), targets = a.ids(n, V);
        return () => k.cross_entropy(logits, losses, targets, n, V, stride, 1 / N, 1);
      },
    },
    {
      op: "sum_scaled",
      shape: `(${N})`,
      flops: 0,
      bytes: 4 * N,
      count: 1,
      make: (a) => {
        const out = a.f32(1), x = a.f32(N);
        return () => k.sum_scaled(out, x, N, 1 / N, 0);
      },
    },
  ];
}

function optimizerCases(s: Sizes): Case[] {
  const n = weightCount(s), shape = `(${n})`;
  return [
    {
      op: "grad_sumsq",
      shape,
      flops: 0,
      bytes: 4 * n,
      count: 0,
      make: (a) => {
        const sumsq = a.f32(2), grad = a.f32(n);
        return () => k.grad_sumsq(sumsq, grad, BigInt(n), 0);
      },
    },
    {
      op: "adamw",
      shape,
      flops: 0,
      bytes: (s.act === 4 ? 28 : 28.25) * n, // gradient; m, v and masters read and written, in 4 bytes or 4 and 1/8
      count: 0,
      make: (a) => {
        const weight = a.act(n), rest = a.bytes(2 * n), ties = a.bytes(Math.ceil(n / 8));
        const m = a.f32(n), v = a.f32(n), grad = a.f32(n);
        const control = a.f32(16), sumsq = a.f32(2);
        k.fill_zero(v, BigInt(4 * n)); // never negative
        copyToDevice(control, Float32Array.of(3e-4, ...Array(15).fill(0)));
        k.grad_sumsq(sumsq, grad, BigInt(n), 0);
        k.step_control(control, sumsq, 1, 0.9, 0.95); // without it the update would be a skipped one
        return () => k.adamw(weight, rest, ties, m, v, grad, control, BigInt(n), 0.9, 0.95, 1e-8, 0.1);
      },
    },
  ];
}
