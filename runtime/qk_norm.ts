// QK-norm: rmsnorm of each query and key head. The kernel of rmsnorm takes whole rows, so heads are sorted by kind (queries of
// all tokens, then keys, then values), the first two kinds are normalised as rows of D, and all are put back in place. To sort
// is to look rows up in a table, which is what the forward kernel of embedding() does.
import * as k from "../ffi/kernels.ts";
import { copyToDevice } from "../ffi/library.ts";
import { type Block, release, take } from "./memory.ts";
import type { Heads } from "./ops.ts";
import { claim, give, grad, isRecording, record } from "./tape.ts";
import { type Address, bytesPerElement, empty, fixed, type Tensor } from "./tensor.ts";

/**
 * Divides each query and each key head by its root mean square and scales it by q_norm or k_norm, so that attention scores stay
 * bounded; values stay as they are. Call it before rope(). qkv (B, T, (H + 2K) * D), q_norm and k_norm (D) -> the shape of qkv
 */
export function qkNorm(qkv: Tensor, q_norm: Tensor, k_norm: Tensor, heads: Heads, eps: number): Tensor {
  checkShapes(qkv, q_norm, k_norm, heads);
  const { n_head: H, n_kv_head: K, head_dim: D } = heads, N = qkv.size / qkv.shape.at(-1)!;
  const order = orders(N, heads), head = D * bytesPerElement("act");
  const kinds = [{ w: q_norm, from: 0, n: N * H }, { w: k_norm, from: N * H, n: N * K }]; // counted in heads
  const values = { at: BigInt(N * (H + K) * head), bytes: BigInt(N * K * head) };
  const sorted = (x: Address) => lookUp(take(qkv.bytes), x, order.sort, D);

  const out = empty(qkv.shape), rstd = take(4 * N * (H + K)); // 1 / rms of each head
  const x = sorted(qkv.address), y = take(qkv.bytes);
  for (const { w, from, n } of kinds) {
    const at = BigInt(from * head);
    k.rmsnorm_forward(y.address + at, rstd.address + BigInt(4 * from), x.address + at, w.address, n, D, eps);
  }
  k.copy_async(y.address + values.at, x.address + values.at, values.bytes);
  lookUp(out.buf.block, y.address, order.unsort, D);
  release(y);
  release(x);

  return record("qkNorm", out, [qkv, q_norm, k_norm], () => {
    const x = sorted(qkv.address), dy = sorted(grad(out)), dx = take(qkv.bytes);
    for (const { w, from, n } of kinds) {
      const at = BigInt(from * head), add = claim(w);
      k.rmsnorm_backward(
        dx.address + at,
        grad(w),
        0n,
        dy.address + at,
        x.address + at,
        w.address,
        rstd.address + BigInt(4 * from),
        n,
        D,
        0,
        add,
      );
    }
    k.copy_async(dx.address + values.at, dy.address + values.at, values.bytes);
    release(dy);
    release(x);
    give(qkv, lookUp(take(qkv.bytes), dx.address, order.unsort, D));
    release(dx);
  });
}

/** Fills out with the heads of x in the given order. */
function lookUp(out: Block, x: Address, order: Tensor, D: number): Block {
  k.embedding_forward(out.address, order.address, x, order.size, order.size, D);
  return out;
}

/** sort: for each place among the sorted heads, where in qkv the head is; unsort: the other way round. */
type Orders = { sort: Tensor; unsort: Tensor };

/** The orders for N tokens. Those of training stay; the lengths of generated text are many and theirs are made anew. */
function orders(N: number, heads: Heads): Orders {
  const known = kept.get(heads)?.get(N);
  if (known) return known;
  const { n_head: H, n_kv_head: K } = heads, row = H + 2 * K;
  const sort = new Int32Array(N * row), unsort = new Int32Array(N * row);
  let place = 0;
  for (const [from, n] of [[0, H], [H, K], [H + K, K]] as const) {
    for (let token = 0; token < N; token++) {
      for (let h = from; h < from + n; h++) {
        sort[place] = token * row + h;
        unsort[token * row + h] = place++;
      }
    }
  }
  const made = { sort: onDevice(sort), unsort: onDevice(unsort) };
  if (isRecording()) kept.set(heads, (kept.get(heads) ?? new Map<number, Orders>()).set(N, made));
  return made;
}
const kept = new WeakMap<Heads, Map<number, Orders>>();

function onDevice(ids: Int32Array<ArrayBuffer>): Tensor {
  const t = isRecording() ? fixed([ids.length], "i32", "constants") : empty([ids.length], "i32");
  copyToDevice(t.address, ids);
  return t;
}

function checkShapes(qkv: Tensor, q_norm: Tensor, k_norm: Tensor, heads: Heads): void {
  const { n_head: H, n_kv_head: K, head_dim: D } = heads, width = (H + 2 * K) * D;
  if (qkv.shape.length !== 3 || qkv.shape[2] !== width || q_norm.size !== D || k_norm.size !== D) {
    throw new RangeError(
      `qkNorm: qkv must be (B, T, ${width}) and q_norm and k_norm (${D}) for ${H} + 2 * ${K} heads of ${D}, but they are ` +
        `(${qkv.shape}), (${q_norm.shape}) and (${k_norm.shape})`,
    );
  }
  if (!q_norm.buf.init || !k_norm.buf.init) {
    throw new TypeError("qkNorm: q_norm and k_norm must be parameters");
  }
}
