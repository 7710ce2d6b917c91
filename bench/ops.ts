// deno task bench: times every kernel of a training step, forward and backward, at the shapes of a preset.
//   deno task bench --preset=tiny --filter=attention
import { runMain, UserError } from "../ffi/errors.ts";
import * as k from "../ffi/kernels.ts";
import { BF16, copyToDevice, device, F32, synchronizeNow } from "../ffi/library.ts";
import { openDevice, requireDevice } from "../model/device.ts";
import { presets } from "../model/presets.ts";
import { parseOverrides } from "../runtime/config.ts";
import { permanent } from "../runtime/memory.ts";
import { type Address, bytesPerElement } from "../runtime/tensor.ts";

const GPT_270M = { n_embd: 1024, n_head: 16, n_kv_head: 4, n_inner: 2816, block_size: 2048, batch_size: 4 }; // train.ts
const VOCABULARIES = [65, 50257]; // the demo's and GPT-2's
const HEAD_CHUNK = 1024; // rows whose logits exist at a time, as in train.ts

/** Memory for n float32 values, all zero. */
function floats(n: number): Address {
  return permanent(4 * n, "constants").address;
}

/** n standard normal activations. */
function normal(n: number): Address {
  const values = floats(n);
  k.init_normal(values, BigInt(n), 1, 1n, 0n);
  if (device.act === "f32") return values;
  const half = permanent(2 * n, "constants").address;
  k.convert(half, values, BF16, F32, BigInt(n));
  return half;
}

function filled(values: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>): Address {
  const address = floats(values.length);
  copyToDevice(address, values);
  return address;
}

/** Median of at least 5 calls in ms, after 2 that warm up. */
function median(call: () => void): { ms: number; calls: number } {
  const times: number[] = [];
  for (let total = 0; times.length < 7 || total < 200 && times.length < 200;) {
    const t0 = performance.now();
    call();
    synchronizeNow();
    times.push(performance.now() - t0);
    total += times.at(-1)!;
  }
  const sorted = times.slice(2).sort((a, b) => a - b);
  return { ms: sorted[sorted.length >> 1]!, calls: sorted.length };
}

type Work = { flops: number } | { bytes: number }; // floating-point operations, or bytes that have to move
let filter = "";

/** Times one call and prints a line, if the filter lets it. */
function time(name: string, shape: string, work: Work, call: () => void): void {
  if (!name.includes(filter)) return;
  const { ms, calls } = median(call);
  const [amount, unit] = "flops" in work ? [work.flops, "GFLOP/s"] : [work.bytes, "GB/s"];
  const rate = (amount / ms / 1e6).toFixed(1);
  const cells = [
    name.padEnd(24),
    shape.padEnd(30),
    ms.toFixed(3).padStart(9),
    "ms",
    rate.padStart(8),
    unit.padEnd(7),
  ];
  console.log(cells.join(" "), `median of ${calls}`);
}

function timeLinear(name: string, N: number, IN: number, OUT: number, hasResidual = false): void {
  const x = normal(N * IN), w = normal(OUT * IN), out = normal(N * OUT);
  const dx = normal(N * IN), dw = floats(OUT * IN), residual = hasResidual ? normal(N * OUT) : 0n;
  const shape = `(${N}, ${IN}) x (${OUT}, ${IN})`, work = { flops: 2 * N * IN * OUT };
  time(`${name} forward`, shape, work, () => k.linear_forward(out, x, w, residual, N, IN, OUT));
  time(`${name} dgrad`, shape, work, () => k.linear_dgrad(dx, out, w, N, IN, OUT, 0));
  time(`${name} wgrad`, shape, work, () => k.linear_wgrad(dw, out, x, N, IN, OUT, 1));
}

type Sizes = { B: number; T: number; C: number; H: number; K: number; F: number }; // as in kernels.h

function timeNorm({ B, T, C }: Sizes): void {
  const N = B * T, rows = `(${N}, ${C})`, act = bytesPerElement("act");
  const x = normal(N * C),
    y = normal(N * C),
    dx = normal(N * C),
    w = normal(C),
    dw = floats(C),
    rstd = floats(N);
  const forward = () => k.rmsnorm_forward(y, rstd, x, w, N, C, 1e-6);
  const backward = () => k.rmsnorm_backward(dx, dw, 0n, y, x, w, rstd, N, C, 0, 1);
  time("rmsnorm forward", rows, { bytes: 2 * act * N * C }, forward);
  time("rmsnorm backward", rows, { bytes: 3 * act * N * C }, backward);
  time("add", rows, { bytes: 3 * act * N * C }, () => k.add(dx, x, y, BigInt(N * C)));
}

function timeAttention({ B, T, C, H, K }: Sizes): void {
  const N = B * T, D = C / H, qkv = normal(N * (H + 2 * K) * D), dqkv = normal(N * (H + 2 * K) * D);
  const y = normal(N * C), dy = normal(N * C), lse = floats(B * H * T), delta = floats(B * H * T);
  const angles = Array.from(
    { length: T * D / 2 },
    (_, i) => Math.floor(2 * i / D) * 10000 ** (-2 * (i % (D / 2)) / D),
  );
  const table = filled(Float32Array.from({ length: T * D }, (_, i) => {
    const angle = angles[Math.floor(i / D) * D / 2 + i % (D / 2)]!;
    return i % D < D / 2 ? Math.cos(angle) : Math.sin(angle);
  }));
  const rope = () => k.rope(qkv, table, B, T, 0, H, K, D, 0);
  const forward = () => k.attention_forward(y, lse, qkv, B, T, H, K, D);
  const backward = () => k.attention_backward(dqkv, delta, dy, y, lse, qkv, B, T, H, K, D);
  const heads = `(${B}, ${T}, ${H} + 2*${K}, ${D})`, causal = 2 * B * H * D * T * (T + 1);
  time("rope", heads, { bytes: 2 * bytesPerElement("act") * N * (H + K) * D }, rope);
  forward(); // backward reads its results
  time("attention forward", heads, { flops: causal }, forward);
  time("attention backward", heads, { flops: 2.5 * causal }, backward);
}

function timeSwiglu({ B, T, F }: Sizes): void {
  const N = B * T, gate_up = normal(2 * N * F), dgate_up = normal(2 * N * F), h = normal(N * F);
  const shape = `(${N}, 2*${F})`, bytes = bytesPerElement("act") * N * F;
  time("swiglu forward", shape, { bytes: 3 * bytes }, () => k.swiglu_forward(h, gate_up, N, F));
  time(
    "swiglu backward",
    shape,
    { bytes: 5 * bytes },
    () => k.swiglu_backward(dgate_up, 0n, h, gate_up, N, F),
  );
}

/** Embedding, head and the optimizer's share of them. */
function timeVocabulary({ B, T, C }: Sizes, V: number): void {
  const N = B * T, n = Math.min(N, HEAD_CHUNK), padded = Math.ceil(V / 64) * 64, size = padded * C;
  const act = bytesPerElement("act"), rows = `(${V}, ${C})`;
  const w = normal(size),
    dw = floats(size),
    out = normal(N * C),
    logits = normal(n * padded),
    losses = floats(n);
  const ids = filled(Int32Array.from({ length: N }, (_, i) => (i * 7919) % V));
  const embed = () => k.embedding_forward(out, ids, w, N, padded, C);
  const embedBackward = () => k.embedding_backward(dw, out, ids, N, padded, C, 1);
  const loss = () => k.cross_entropy(logits, losses, ids, n, V, padded, 1 / N, 1);
  time("embedding forward", rows, { bytes: 2 * act * N * C }, embed);
  time("embedding backward", rows, { bytes: (act + 8) * N * C }, embedBackward);
  timeLinear("head", n, C, padded);
  time("cross_entropy", `(${n}, ${V})`, { bytes: 2 * act * n * padded }, loss);

  const master = device.act === "f32" ? w : floats(size), m = floats(size), v = floats(size);
  const sumsq = floats(2), control = floats(16), count = BigInt(size);
  k.step_control(control, sumsq, 1, 0.9, 0.95); // a control block of zeros would have adamw skip
  const adamw = () => k.adamw(w, master, m, v, dw, control, count, 0.9, 0.95, 1e-8, 0.1);
  time("grad_sumsq", rows, { bytes: 4 * size }, () => k.grad_sumsq(sumsq, dw, count, 0));
  time("adamw", rows, { bytes: (act === 4 ? 28 : 30) * size }, adamw);
}

await runMain(() => {
  const defaults = { preset: "small", filter: "", device: "", threads: 0 };
  const { preset, threads, ...options } = { ...defaults, ...parseOverrides(Deno.args, defaults) };
  if (!Object.hasOwn(presets, preset)) {
    const names = Object.keys(presets).join(", ");
    throw new UserError(`Cannot time preset ${preset}: there is none of that name, only ${names}`);
  }
  filter = options.filter;
  requireDevice(options.device);
  const { library, name, isa, arch, act, blas, threads: used } = openDevice(options.device, { threads });
  console.log(`${name}, ${library}, ${act}, ${arch ?? `${isa}, ${used} threads, BLAS ${blas}`}`);

  const p = { ...GPT_270M, ...presets[preset as keyof typeof presets] };
  const { block_size: T, batch_size: B, n_embd: C, n_head: H, n_kv_head: K, n_inner: F } = p;
  const sizes = { B, T, C, H, K, F }, N = B * T, D = C / H;
  console.log(`${preset}: B=${B} T=${T} C=${C} H=${H} K=${K} D=${D} F=${F}`);
  timeNorm(sizes);
  timeLinear("qkv", N, C, (H + 2 * K) * D);
  timeAttention(sizes);
  timeLinear("o + residual", N, C, C, true);
  timeLinear("gate_up", N, C, 2 * F);
  timeSwiglu(sizes);
  timeLinear("down + residual", N, F, C, true);
  for (const V of VOCABULARIES) timeVocabulary(sizes, V);
});
