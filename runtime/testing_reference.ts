// What every op computes, forward and backward, in float64 and plain loops: the definition that kernels are tested against.
// Arrays are row-major as in kernels.h; dx is the gradient of x. testing_reference_test.ts checks each backward by finite differences.

/** Values of any precision. */
export type Numbers = ArrayLike<number>;

/** Heads of attention: qkv is (B, T, H + 2K, D). starts (B, T): the place in its row where the document of each token begins; all 0 if absent. */
export type HeadSizes = { B: number; T: number; H: number; K: number; D: number; starts?: Numbers };

/** The gradients of an input and of a weight, in their shapes. */
export type Gradients = { dx: Float64Array; dw: Float64Array };

/** out (N, C) = w (V, C) at ids (N). */
export function embedding(ids: Numbers, w: Numbers, C: number): Float64Array {
  return Float64Array.from({ length: ids.length * C }, (_, i) => w[ids[Math.floor(i / C)]! * C + i % C]!);
}

/** dw (V, C) = the sum of the rows of dout (N, C) by their ids (N). */
export function embeddingBackward(dout: Numbers, ids: Numbers, V: number, C: number): Float64Array {
  const dw = new Float64Array(V * C);
  for (let i = 0; i < dout.length; i++) dw[ids[Math.floor(i / C)]! * C + i % C]! += dout[i]!;
  return dw;
}

/** out = x * w / sqrt(mean(x^2) + eps) over the last axis. x (N, C), w (C) */
export function rmsnorm(x: Numbers, w: Numbers, eps: number): Float64Array {
  const C = w.length, r = rstd(x, C, eps);
  return Float64Array.from({ length: x.length }, (_, i) => x[i]! * r[Math.floor(i / C)]! * w[i % C]!);
}

/** With n = x * rstd and g = dout * w: dx = rstd * (g - n * mean(g * n)), dw = sum over rows of dout * n. */
export function rmsnormBackward(dout: Numbers, x: Numbers, w: Numbers, eps: number): Gradients {
  const C = w.length, r = rstd(x, C, eps);
  const dx = new Float64Array(x.length), dw = new Float64Array(C);
  r.forEach((rstd, row) => {
    const at = row * C;
    let mean = 0; // of g * n
    for (let c = 0; c < C; c++) mean += dout[at + c]! * w[c]! * x[at + c]! * rstd / C;
    for (let c = 0; c < C; c++) {
      const n = x[at + c]! * rstd;
      dx[at + c] = rstd * (dout[at + c]! * w[c]! - n * mean);
      dw[c]! += dout[at + c]! * n;
    }
  });
  return { dx, dw };
}

/** 1 / sqrt(mean(x^2) + eps) of each row. */
function rstd(x: Numbers, C: number, eps: number): Float64Array {
  const r = new Float64Array(x.length / C);
  for (let i = 0; i < x.length; i++) r[Math.floor(i / C)]! += x[i]! ** 2 / C;
  return r.map((mean) => 1 / Math.sqrt(mean + eps));
}

/** out (N, OUT) = x (N, IN) w^T (+ residual), w (OUT, IN). */
export function linear(x: Numbers, w: Numbers, IN: number, residual?: Numbers): Float64Array {
  const N = x.length / IN, OUT = w.length / IN, out = new Float64Array(N * OUT);
  for (let n = 0; n < N; n++) {
    for (let o = 0; o < OUT; o++) {
      let sum = residual?.[n * OUT + o] ?? 0;
      for (let i = 0; i < IN; i++) sum += x[n * IN + i]! * w[o * IN + i]!;
      out[n * OUT + o] = sum;
    }
  }
  return out;
}

/** dx = dout w, dw = dout^T x; the gradient of the residual is dout itself. */
export function linearBackward(dout: Numbers, x: Numbers, w: Numbers, IN: number): Gradients {
  const N = x.length / IN, OUT = w.length / IN;
  const dx = new Float64Array(N * IN), dw = new Float64Array(OUT * IN);
  for (let n = 0; n < N; n++) {
    for (let o = 0; o < OUT; o++) {
      const d = dout[n * OUT + o]!;
      for (let i = 0; i < IN; i++) {
        dx[n * IN + i]! += d * w[o * IN + i]!;
        dw[o * IN + i]! += d * x[n * IN + i]!;
      }
    }
  }
  return { dx, dw };
}

/** Turns the pairs (j, j + D/2) of the first H + K heads by the angle in row pos + t - starts of table (rows, D): cosines, sines. */
export function rope(
  qkv: Numbers,
  table: Numbers,
  { T, H, K, D, starts }: HeadSizes,
  pos = 0,
  inverse = false,
): Float64Array {
  const out = Float64Array.from(qkv), heads = H + 2 * K, half = D / 2;
  for (let i = 0; i < qkv.length; i++) {
    const j = i % D, head = Math.floor(i / D) % heads, token = Math.floor(i / (D * heads));
    const row = (pos + token % T - (starts?.[token] ?? 0)) * D;
    if (head >= H + K || j >= half) continue; // values stay; the second half is written with the first
    const a = qkv[i]!, b = qkv[i + half]!, cos = table[row + j]!;
    const sin = (inverse ? -1 : 1) * table[row + half + j]!;
    out[i] = a * cos - b * sin;
    out[i + half] = b * cos + a * sin;
  }
  return out;
}

/** out (B, T, H, D): each query attends to the keys of its document up to its own position, softmax(q k^T / sqrt(D)) v. */
export function attention(qkv: Numbers, size: HeadSizes): Float64Array {
  const out = new Float64Array(size.B * size.T * size.H * size.D);
  forEachQuery(size, (at) => {
    attentionWeights(qkv, size, at).forEach((p, s) => {
      for (let d = 0; d < size.D; d++) out[at.out + d]! += p * qkv[at.v(s) + d]!;
    });
  });
  return out;
}

/** With dp = dout v^T: dscore = p * (dp - sum(p * dp)), which goes to q and k; dv = p^T dout. */
export function attentionBackward(dout: Numbers, qkv: Numbers, size: HeadSizes): Float64Array {
  const { D } = size, dqkv = new Float64Array(qkv.length);
  forEachQuery(size, (at) => {
    const p = attentionWeights(qkv, size, at), dp = p.map((_, s) => dot(dout, at.out, qkv, at.v(s), D));
    const delta = dot(p, 0, dp, 0, p.length);
    p.forEach((p, s) => {
      const dscore = p * (dp[s]! - delta) / Math.sqrt(D);
      for (let d = 0; d < D; d++) {
        dqkv[at.q + d]! += dscore * qkv[at.k(s) + d]!;
        dqkv[at.k(s) + d]! += dscore * qkv[at.q + d]!;
        dqkv[at.v(s) + d]! += p * dout[at.out + d]!;
      }
    });
  });
  return dqkv;
}

/** Places in qkv and out of one query, and of the keys and values that its head reads at position s; it sees those from..t. */
type QueryPlace = {
  from: number;
  t: number;
  q: number;
  out: number;
  k: (s: number) => number;
  v: (s: number) => number;
};

function forEachQuery({ B, T, H, K, D, starts }: HeadSizes, visit: (at: QueryPlace) => void): void {
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      const place = (t: number, head: number) => ((b * T + t) * (H + 2 * K) + head) * D;
      const kv = Math.floor(h * K / H), k = (s: number) => place(s, H + kv);
      const v = (s: number) => place(s, H + K + kv);
      for (let t = 0; t < T; t++) {
        visit({ from: starts?.[b * T + t] ?? 0, t, q: place(t, h), out: ((b * T + t) * H + h) * D, k, v });
      }
    }
  }
}

/** softmax over the positions from..t; 0 before. */
function attentionWeights(qkv: Numbers, { D }: HeadSizes, at: QueryPlace): Float64Array {
  return softmax(
    Float64Array.from(
      { length: at.t + 1 },
      (_, s) => s < at.from ? -Infinity : dot(qkv, at.q, qkv, at.k(s), D) / Math.sqrt(D),
    ),
  );
}

/** h (N, F) = silu(gate) * up; a row of gate_up (N, 2F) is F gates, then F ups. */
export function swiglu(gate_up: Numbers, F: number): Float64Array {
  return Float64Array.from({ length: gate_up.length / 2 }, (_, i) => {
    const at = Math.floor(i / F) * 2 * F + i % F, gate = gate_up[at]!;
    return gate * sigmoid(gate) * gate_up[at + F]!;
  });
}

/** dgate_up (N, 2F) of dh (N, F), with the derivative silu'(gate) = s * (1 + gate * (1 - s)), s = sigmoid(gate). */
export function swigluBackward(dh: Numbers, gate_up: Numbers, F: number): Float64Array {
  const dgate_up = new Float64Array(gate_up.length);
  for (let i = 0; i < dh.length; i++) {
    const at = Math.floor(i / F) * 2 * F + i % F, gate = gate_up[at]!, s = sigmoid(gate);
    dgate_up[at] = dh[i]! * gate_up[at + F]! * s * (1 + gate * (1 - s));
    dgate_up[at + F] = dh[i]! * gate * s;
  }
  return dgate_up;
}

/** A function of one value, and its derivative. */
export type Unary = { f: (x: number) => number; slope: (x: number) => number };

/** The element-wise functions of ops.ts by name; a is the factor of scale() or the cap of softcap(). */
export function unary(name: string, a = 1): Unary {
  const normal = (x: number) => Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  const u = (x: number) => Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
  const functions: Record<string, Unary> = {
    scale: { f: (x) => a * x, slope: () => a },
    gelu: { f: (x) => x * normalBelow(x), slope: (x) => normalBelow(x) + x * normal(x) },
    geluTanh: {
      f: (x) => x * (1 + Math.tanh(u(x))) / 2,
      slope: (x) =>
        (1 + Math.tanh(u(x))) / 2 +
        x / 2 * (1 - Math.tanh(u(x)) ** 2) * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x * x),
    },
    reluSquared: { f: (x) => Math.max(x, 0) ** 2, slope: (x) => 2 * Math.max(x, 0) },
    sigmoid: { f: sigmoid, slope: (x) => sigmoid(x) * (1 - sigmoid(x)) },
    softcap: { f: (x) => a * Math.tanh(x / a), slope: (x) => 1 / Math.cosh(x / a) ** 2 },
  };
  return functions[name]!;
}

/** The normal distribution at x: the series x + x^3 / 3 + x^5 / (3 * 5) + ... times its density, which is all positive. */
function normalBelow(x: number): number {
  let term = Math.abs(x), sum = 0;
  for (let n = 3; term > 1e-18 * sum; n += 2) {
    sum += term;
    term *= x * x / n;
  }
  const half = sum * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  return 0.5 + Math.sign(x) * half;
}

/** out = (x - mean) / sqrt(variance + eps) * w + b over the last axis. x (N, C), w and b (C) */
export function layernorm(x: Numbers, w: Numbers, b: Numbers, eps: number): Float64Array {
  const C = w.length, { n } = normalised(x, C, eps);
  return n.map((n, i) => n * w[i % C]! + b[i % C]!);
}

/** With g = dout * w: dx = rstd * (g - mean(g) - n * mean(g * n)), dw = sum over rows of dout * n, db of dout. */
export function layernormBackward(
  dout: Numbers,
  x: Numbers,
  w: Numbers,
  eps: number,
): Gradients & { db: Float64Array } {
  const C = w.length, { n, rstd } = normalised(x, C, eps);
  const dx = new Float64Array(x.length), dw = new Float64Array(C), db = new Float64Array(C);
  for (let at = 0; at < x.length; at += C) {
    let g_mean = 0, gn_mean = 0;
    for (let c = 0; c < C; c++) {
      g_mean += dout[at + c]! * w[c]! / C;
      gn_mean += dout[at + c]! * w[c]! * n[at + c]! / C;
      dw[c]! += dout[at + c]! * n[at + c]!;
      db[c]! += dout[at + c]!;
    }
    for (let c = 0; c < C; c++) {
      dx[at + c] = rstd[at / C]! * (dout[at + c]! * w[c]! - g_mean - n[at + c]! * gn_mean);
    }
  }
  return { dx, dw, db };
}

/** (x - mean) * rstd of each row of C, and rstd of each. */
function normalised(x: Numbers, C: number, eps: number): { n: Float64Array; rstd: Float64Array } {
  const n = Float64Array.from(x), rstd = new Float64Array(x.length / C);
  for (let row = 0; row < rstd.length; row++) {
    const values = n.subarray(row * C, (row + 1) * C), mean = values.reduce((a, b) => a + b) / C;
    values.forEach((v, c) => values[c] = v - mean);
    rstd[row] = 1 / Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / C + eps);
    values.forEach((v, c) => values[c] = v * rstd[row]!);
  }
  return { n, rstd };
}

/** softmax of each row of x (N, C), over its first V columns; 0 in the others. */
export function softmaxRows(x: Numbers, C: number, V = C): Float64Array {
  const out = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += C) out.set(softmax(Float64Array.from(x).subarray(at, at + V)), at);
  return out;
}

/** With p = softmax(x): dx = p * (dout - sum(p * dout)) in each row of C. */
export function softmaxBackward(dout: Numbers, x: Numbers, C: number): Float64Array {
  const p = softmaxRows(x, C);
  return p.map((p_i, i) => p_i * (dout[i]! - dot(p, i - i % C, dout, i - i % C, C)));
}

/** log(sum(e^x)) over the first V columns of each row of x (N, C). */
export function logsumexp(x: Numbers, C: number, V: number): Float64Array {
  return Float64Array.from({ length: x.length / C }, (_, n) => {
    const row = Array.from({ length: V }, (_, v) => x[n * C + v]!), top = Math.max(...row);
    return top + Math.log(row.reduce((sum, x) => sum + Math.exp(x - top), 0));
  });
}

/** V: columns that take part; the others are padding. grad_scale: what the gradients are multiplied by. */
export type HeadLoss = { V: number; grad_scale: number };

/**
 * Cross entropy of softmax(x w^T over its first V columns) at the targets, < 0 = no loss: the sum over rows / all N rows.
 * x (N, C), w (at least V, C), targets (N). The gradients are those of grad_scale * loss.
 */
export function linearCrossEntropy(
  x: Numbers,
  w: Numbers,
  targets: Numbers,
  options: HeadLoss,
): Gradients & { loss: number } {
  const C = x.length / targets.length, { loss, dlogits } = crossEntropy(linear(x, w, C), targets, options);
  return { loss, ...linearBackward(dlogits, x, w, C) };
}

/** The same of logits (N, at least V) that are there. */
export function crossEntropy(
  logits: Float64Array,
  targets: Numbers,
  { V, grad_scale }: HeadLoss,
): { loss: number; dlogits: Float64Array } {
  const N = targets.length, columns = logits.length / N, dlogits = new Float64Array(logits.length);
  let loss = 0;
  for (let n = 0; n < N; n++) {
    if (targets[n]! < 0) continue;
    const p = softmax(logits.subarray(n * columns, n * columns + V));
    loss -= Math.log(p[targets[n]!]!) / N;
    dlogits.set(p.map((p, v) => (p - (v === targets[n] ? 1 : 0)) * grad_scale / N), n * columns);
  }
  return { loss, dlogits };
}

/** A parameter and its first and second moments, each of the same length. */
export type AdamWState = { weight: Float64Array; m: Float64Array; v: Float64Array };
/** What an update follows from, beside its gradient. */
export type AdamWStep = {
  t: number; // updates so far, this one included
  learning_rate: number;
  beta1: number;
  beta2: number;
  eps: number;
  weight_decay: number;
};

/** One AdamW update in place, with the gradient already clipped. */
export function adamw({ weight, m, v }: AdamWState, grad: Numbers, o: AdamWStep): void {
  for (let i = 0; i < weight.length; i++) {
    m[i] = o.beta1 * m[i]! + (1 - o.beta1) * grad[i]!;
    v[i] = o.beta2 * v[i]! + (1 - o.beta2) * grad[i]! ** 2;
    const mean = m[i]! / (1 - o.beta1 ** o.t), variance = v[i]! / (1 - o.beta2 ** o.t);
    weight[i]! -= o.learning_rate * (mean / (Math.sqrt(variance) + o.eps) + o.weight_decay * weight[i]!);
  }
}

function softmax(scores: Float64Array): Float64Array {
  const top = scores.reduce((a, b) => Math.max(a, b)), p = scores.map((score) => Math.exp(score - top));
  const sum = p.reduce((a, b) => a + b);
  return p.map((e) => e / sum);
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

function dot(a: Numbers, a_at: number, b: Numbers, b_at: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[a_at + i]! * b[b_at + i]!;
  return sum;
}
