// Whether the kernels of a training step are right on the GPU that is open. Each runs twice at a small, awkward shape: both
// runs must give the same bits, and what the CPU library gives for the same inputs, but for rounding.
import { KernelError } from "../base/errors.ts";
import { check, type Symbols, UNARY } from "../ffi/library.ts";

type Kind = "act" | "f32" | "f64" | "i32";

/** An array that kernels read (values), write (n values, NaN before), or both. */
type Operand = { kind: Kind; values: ArrayLike<number>; isResult: boolean };

/** A call of one kernel, or of one that reads what the other wrote. */
type Case = { kernels: string; operands: Operand[]; call: Call };
type Call = (s: Symbols, ...addresses: bigint[]) => number;

/** What each result may differ by, relative to its norm: one rounding to bfloat16 is 0.002, and float sums err less than 1e-5. */
const TOLERANCE: Record<Kind, number> = { act: 0.01, f32: 1e-4, f64: 1e-5, i32: 0 };

// ---- operands

const bits = new Uint32Array(1), float = new Float32Array(bits.buffer);

/** The bfloat16 next to x, as its 16 bits. */
function toBf16(x: number): number {
  float[0] = x;
  return Number.isNaN(x) ? 0x7fff : (bits[0]! + 0x7fff + ((bits[0]! >> 16) & 1)) >>> 16;
}

function fromBf16(half: number): number {
  bits[0] = half << 16;
  return float[0]!;
}

let state = 1;

/** n numbers of mean 0 and variance 1 that bfloat16 has too, so that both libraries begin with the same. */
function normal(n: number): number[] {
  return Array.from({ length: n }, () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += (state = (state * 48271) % 2147483647) / 2147483647;
    return fromBf16(toBf16(sum));
  });
}

const given = (kind: Kind, values: ArrayLike<number>): Operand => ({ kind, values, isResult: false });
const changed = (kind: Kind, values: ArrayLike<number>): Operand => ({ kind, values, isResult: true });
const result = (kind: Kind, n: number): Operand => changed(kind, new Float64Array(n).fill(NaN));
const act = (n: number) => given("act", normal(n));
const f32 = (n: number) => given("f32", normal(n));
const ids = (n: number, below: number) => given("i32", Array.from({ length: n }, (_, i) => (i * 7) % below));

/** Bits of n floats of both signs: halfway between two of bfloat16, next to that, or one of those. */
function masters(n: number): number[] {
  return Array.from({ length: n }, (_, i) => (i % 2 << 31) + 0x3f000000 + 0x4000 * i + (i % 3 - 1));
}

// ---- the kernels of a step

function kernel(kernels: string, operands: Operand[], call: Call): Case {
  return { kernels, operands, call };
}

/** begins: where documents begin in each row of the batch; without any, they are not told apart. */
function attentionCase(D: number, begins: number[]): Case {
  const B = 2, T = 67, H = 4, K = 2, qkv = B * T * (H + 2 * K) * D, out = B * T * H * D, stats = B * H * T;
  const starts = Array.from({ length: B * T }, (_, i) => Math.max(0, ...begins.filter((t) => t <= i % T)));
  return kernel(
    `attention_forward or attention_backward of heads of ${D}${
      begins.length > 0 ? " and several documents" : ""
    }`,
    [
      result("act", out),
      result("f32", stats),
      result("act", qkv),
      act(qkv),
      act(out),
      f32(stats),
      given("i32", starts),
    ],
    (s, out, lse, dqkv, qkv, dout, scratch, starts) => {
      const from = begins.length > 0 ? starts! : 0n;
      return s.attention_forward(out!, lse!, qkv!, from, B, T, H, K, D) ||
        s.attention_backward(dqkv!, scratch!, dout!, out!, lse!, qkv!, from, B, T, H, K, D);
    },
  );
}

function ropeCase(inverse: number): Case {
  const B = 2, T = 33, H = 3, K = 1, D = 64;
  const turns = Array.from({ length: T * D }, (_, i) => i % D < D / 2 ? 0.6 : 0.8); // cosines, sines
  return kernel(
    "rope",
    [changed("act", normal(B * T * (H + 2 * K) * D)), given("f32", turns)],
    (s, qkv, table) => s.rope(qkv!, table!, 0n, B, T, 0, H, K, D, inverse),
  );
}

/** Every kernel that a training step queues. Sizes are not multiples of what a block, a tile or a warp takes. */
function cases(): Case[] {
  const N = 67, C = 264, V = 50, F = 88, IN = 72, OUT = 136, n = 5003;
  const rows = 5, columns = 4099, stride = 4160; // of logits
  const control = [1e-3, 2.5, 1, 0.5, 3, 0, 0, 0.271, 0.142625, ...Array<number>(7).fill(0)]; // CONTROL_* of kernels.h
  return [
    kernel("init_normal", [result("f32", n)], (s, dst) => s.init_normal(dst!, BigInt(n), 0.02, 7n, 5n)),
    kernel(
      "embedding_forward",
      [result("act", N * C), ids(N, V), act(V * C)],
      (s, out, ids, weight) => s.embedding_forward(out!, ids!, weight!, N, V, C),
    ),
    kernel(
      "embedding_backward",
      [changed("f32", normal(V * C)), act(N * C), ids(N, V - 3)],
      (s, dweight, dout, ids) => s.embedding_backward(dweight!, dout!, ids!, N, V, C, 1),
    ),
    kernel(
      "rmsnorm_forward",
      [result("act", N * C), result("f32", N), act(N * C), act(C)],
      (s, out, rstd, x, weight) => s.rmsnorm_forward(out!, rstd!, x!, weight!, N, C, 1, C, 1e-6),
    ),
    kernel(
      "rmsnorm_backward",
      [
        changed("act", normal(N * C)),
        changed("f32", normal(C)),
        result("act", N * C),
        act(N * C),
        act(N * C),
        act(C),
        f32(N),
      ],
      (s, dx, dweight, out, dout, x, weight, rstd) =>
        s.rmsnorm_backward(dx!, dweight!, out!, dout!, x!, weight!, rstd!, N, C, 1, C, 1, 1),
    ),
    kernel(
      "layernorm_forward",
      [result("act", N * C), result("f32", 2 * N), act(N * C), act(C), act(C)],
      (s, out, stats, x, weight, bias) => s.layernorm_forward(out!, stats!, x!, weight!, bias!, N, C, 1e-6),
    ),
    kernel(
      "layernorm_backward",
      [
        result("act", N * C),
        changed("f32", normal(C)),
        changed("f32", normal(C)),
        act(N * C),
        act(N * C),
        act(C),
        f32(2 * N),
      ],
      (s, dx, dweight, dbias, dout, x, weight, stats) =>
        s.layernorm_backward(dx!, dweight!, dbias!, dout!, x!, weight!, stats!, N, C, 1, 1),
    ),
    ...[0, 1].map(ropeCase),
    ...[32, 64, 128].flatMap((D) => [attentionCase(D, []), attentionCase(D, [5, 64, 66])]),
    kernel(
      "linear_forward",
      [result("act", N * OUT), act(N * IN), act(OUT * IN), act(N * OUT)],
      (s, out, x, weight, residual) => s.linear_forward(out!, x!, weight!, residual!, N, IN, OUT),
    ),
    kernel(
      "linear_dgrad",
      [changed("act", normal(N * IN)), act(N * OUT), act(OUT * IN)],
      (s, dx, dout, weight) => s.linear_dgrad(dx!, dout!, weight!, N, IN, OUT, 1),
    ),
    kernel(
      "linear_wgrad",
      [changed("f32", normal(OUT * IN)), act(N * OUT), act(N * IN)],
      (s, dweight, dout, x) => s.linear_wgrad(dweight!, dout!, x!, N, IN, OUT, 1),
    ),
    kernel(
      "gram",
      [result("act", N * N), result("act", N * N), act(N * IN)],
      (s, sum, product, x) =>
        s.gram(product!, x!, 0n, N, IN, 1, 1, 0) || s.gram(sum!, x!, product!, N, IN, 0, 0.5, -2),
    ),
    kernel(
      "swiglu_forward",
      [result("act", N * F), act(N * 2 * F)],
      (s, h, gate_up) => s.swiglu_forward(h!, gate_up!, N, F),
    ),
    kernel(
      "swiglu_backward",
      [result("act", N * 2 * F), result("act", N * F), act(N * F), act(N * 2 * F)],
      (s, dgate_up, h, dh, gate_up) => s.swiglu_backward(dgate_up!, h!, dh!, gate_up!, N, F),
    ),
    kernel(
      "add",
      [result("act", n), act(n), act(n)],
      (s, out, a, b) => s.add(out!, a!, b!, BigInt(n)),
    ),
    ...Object.values(UNARY).flatMap((kind) => [
      kernel(
        "unary_forward",
        [result("act", n), act(n)],
        (s, out, x) => s.unary_forward(out!, x!, kind, 1.5, BigInt(n)),
      ),
      kernel(
        "unary_backward",
        [result("act", n), act(n), act(n)],
        (s, dx, dout, x) => s.unary_backward(dx!, dout!, x!, kind, 1.5, BigInt(n)),
      ),
    ]),
    kernel(
      "mul",
      [result("act", n), act(n), act(n)],
      (s, out, a, b) => s.mul(out!, a!, b!, BigInt(n)),
    ),
    kernel(
      "dropout",
      [result("act", n), act(n)],
      (s, out, x) => s.dropout(out!, x!, BigInt(n), 0.25, 7n),
    ),
    kernel(
      "bias_forward",
      [result("act", N * C), act(N * C), act(C)],
      (s, out, x, bias) => s.bias_forward(out!, x!, bias!, N, C),
    ),
    kernel(
      "bias_backward",
      [changed("f32", normal(C)), act(N * C)],
      (s, dbias, dout) => s.bias_backward(dbias!, dout!, N, C, 1),
    ),
    kernel(
      "copy_columns",
      [changed("act", normal(N * C)), act(N * F)],
      (s, dst, src) => s.copy_columns(dst!, src!, N, F, C, F, 1),
    ),
    kernel(
      "softmax_forward",
      [result("act", N * C), act(N * C)],
      (s, out, x) => s.softmax_forward(out!, x!, N, C),
    ),
    kernel(
      "softmax_backward",
      [result("act", N * C), act(N * C), act(N * C)],
      (s, dx, dout, out) => s.softmax_backward(dx!, dout!, out!, N, C),
    ),
    kernel(
      "logsumexp_forward",
      [result("act", rows), result("f32", rows), act(rows * stride)],
      (s, out, lse, x) => s.logsumexp_forward(out!, lse!, x!, rows, columns, stride),
    ),
    kernel(
      "logsumexp_backward",
      [
        result("act", rows * stride),
        act(rows),
        given("f32", Array<number>(rows).fill(8)),
        act(rows * stride),
      ],
      (s, dx, dout, lse, x) => s.logsumexp_backward(dx!, dout!, lse!, x!, rows, columns, stride),
    ),
    kernel(
      "cross_entropy",
      [changed("act", normal(rows * stride)), result("f32", rows), given("i32", [0, 4098, -1, 17, 4095])],
      (s, logits, losses, targets) =>
        s.cross_entropy(logits!, losses!, targets!, rows, columns, stride, 0.25, 1),
    ),
    kernel(
      "sum_scaled",
      [changed("f32", [2]), given("f32", normal(n).map(Math.abs))],
      (s, out, x) => s.sum_scaled(out!, x!, n, 0.5, 1),
    ),
    kernel(
      "grad_sumsq",
      [changed("f64", [2]), f32(n)],
      (s, sumsq, grad) => s.grad_sumsq(sumsq!, grad!, BigInt(n), 1),
    ),
    kernel(
      "step_control",
      [changed("f32", control), given("f64", [9.5])],
      (s, control, sumsq) => s.step_control(control!, sumsq!, 1, 0.9, 0.95),
    ),
    kernel(
      "split_master or join_master",
      [result("i32", n), result("act", n), given("i32", masters(n)), f32(n), f32(n)],
      (s, joined, weight, master, rest, ties) =>
        s.split_master(weight!, rest!, ties!, master!, BigInt(n)) ||
        s.join_master(joined!, weight!, rest!, ties!, BigInt(n)),
    ),
    kernel(
      "adamw",
      [
        result("act", n),
        changed("f32", normal(n).map((w) => w * 1.001)), // masters, which bfloat16 lacks
        changed("f32", normal(n)),
        changed("f32", normal(n).map(Math.abs)),
        f32(n),
        given("f32", control),
        f32(n), // for rest and ties
        f32(n),
      ],
      (s, weight, master, m, v, grad, control, rest, ties) =>
        s.split_master(weight!, rest!, ties!, master!, BigInt(n)) ||
        s.adamw(weight!, rest!, ties!, m!, v!, grad!, control!, BigInt(n), 0.9, 0.95, 1e-8, 0.1) ||
        s.join_master(master!, weight!, rest!, ties!, BigInt(n)),
    ),
    kernel(
      "muon_momentum or normalize",
      [
        result("act", n),
        changed("f32", normal(n)),
        changed("f32", normal(n)),
        given("f32", control),
        given("f64", [9.5]),
      ],
      (s, out, m, grad, control, sumsq) =>
        s.muon_momentum(m!, grad!, control!, BigInt(n), 0.95) || s.normalize(out!, grad!, sumsq!, BigInt(n)),
    ),
    kernel(
      "muon_update",
      [
        result("act", n),
        changed("f32", normal(n).map((w) => w * 1.001)), // masters, which bfloat16 lacks
        act(n),
        given("f32", control),
        f32(n), // for rest and ties
        f32(n),
      ],
      (s, weight, master, direction, control, rest, ties) =>
        s.split_master(weight!, rest!, ties!, master!, BigInt(n)) ||
        s.muon_update(weight!, rest!, ties!, direction!, control!, BigInt(n), 0.2, 0.1) ||
        s.join_master(master!, weight!, rest!, ties!, BigInt(n)),
    ),
  ];
}

// ---- running and comparing

type Bytes =
  | Float32Array<ArrayBuffer>
  | Float64Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>;

function encode({ kind, values }: Operand, cpu: boolean): Bytes {
  if (kind === "i32") return Int32Array.from(values);
  if (kind === "f64") return Float64Array.from(values);
  return kind === "f32" || cpu ? Float32Array.from(values) : Uint16Array.from(values, toBf16);
}

function decode(kind: Kind, data: Bytes): Float64Array {
  return Float64Array.from(data, kind === "act" && data instanceof Uint16Array ? fromBf16 : (x) => x);
}

/** The results of a case, as they lie in memory. */
function run({ operands, call }: Case, s: Symbols, cpu: boolean): Bytes[] {
  const data = operands.map((operand) => encode(operand, cpu));
  const sizes = data.map(({ byteLength }) => (byteLength + 255) & ~255), address = new BigUint64Array(1);
  check(s.mem_alloc(address, BigInt(sizes.reduce((a, b) => a + b))), s);
  let next = address[0]!;
  const addresses = sizes.map((size) => (next += BigInt(size)) - BigInt(size));
  const copy = (array: Bytes) => new Uint8Array(array.buffer); // the library counts in bytes
  data.forEach((array, i) =>
    check(s.copy_to_device(addresses[i]!, copy(array), BigInt(array.byteLength)), s)
  );
  check(call(s, ...addresses), s);
  data.forEach((array, i) => check(s.copy_to_host(copy(array), addresses[i]!, BigInt(array.byteLength)), s));
  check(s.mem_free(address[0]!), s);
  return data.filter((_, i) => operands[i]!.isResult);
}

/** How far x is from y, relative to the norm of y; NaN where one is not finite. */
function distance(x: Float64Array, y: Float64Array): number {
  let error = 0, norm = 0;
  x.forEach((value, i) => {
    error += (value - y[i]!) ** 2;
    norm += y[i]! ** 2;
  });
  return Math.sqrt(error / norm);
}

/** What is wrong with one run of a case, its first and its second result being a and b; undefined where nothing is. */
function complaint(kind: Kind, a: Bytes, b: Bytes, expected: Bytes): string | undefined {
  const far = distance(decode(kind, a), decode(kind, expected));
  if (!Number.isFinite(far)) return "writes what is not finite, or nothing";
  if (far > TOLERANCE[kind]) {
    return `differs from the CPU's by ${far.toPrecision(2)} of its result, rounding by at most ${
      TOLERANCE[kind]
    }`;
  }
  const again = new Uint8Array(b.buffer);
  return new Uint8Array(a.buffer).some((byte, i) => byte !== again[i])
    ? "gives other bits when it runs again"
    : undefined;
}

/**
 * The kernels of gpu that are wrong, by name, and what is; cpu is the CPU library, opened beside it. One that does not run is
 * the last: behind it a GPU runs none.
 */
export function wrongKernels(gpu: Symbols, cpu: Symbols): string[] {
  const wrong: string[] = [];
  state = 1;
  for (const kernel of cases()) {
    const kinds = kernel.operands.filter(({ isResult }) => isResult).map(({ kind }) => kind);
    try {
      const first = run(kernel, gpu, false),
        second = run(kernel, gpu, false),
        expected = run(kernel, cpu, true);
      const complaints = kinds.map((kind, i) => complaint(kind, first[i]!, second[i]!, expected[i]!));
      const what = complaints.find((text) => text !== undefined);
      if (what) wrong.push(`${kernel.kernels} ${what}`);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      return [...wrong, `${kernel.kernels} does not run: ${error.message}`];
    }
  }
  return wrong;
}
