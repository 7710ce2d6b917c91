// Runs attention of one library with each size of heads and compares it with float64.
// deno run --allow-ffi --allow-read --allow-env tests/emu/attention_check.ts build/libloam_emu.so
// Exit code 0: right, and no bank conflicts. Used by mutants.ts, one process for each planted fault.

const B = 1, T = 193, H = 4, K = 2; // three tiles of 64 or four of 48, and a row; two query heads for each key head
const heads = H + 2 * K;

const library = Deno.dlopen(Deno.args[0]!, {
  device_open: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  device_info: { parameters: ["buffer", "i32"], result: "i32" },
  last_error: { parameters: ["buffer", "i32"], result: "i32" },
  mem_alloc: { parameters: ["buffer", "i64"], result: "i32" },
  copy_to_device: { parameters: ["u64", "buffer", "i64"], result: "i32" },
  copy_to_host: { parameters: ["buffer", "u64", "i64"], result: "i32" },
  attention_forward: {
    parameters: ["u64", "u64", "u64", "u64", "i32", "i32", "i32", "i32", "i32"],
    result: "i32",
  },
  attention_backward: {
    parameters: ["u64", "u64", "u64", "u64", "u64", "u64", "u64", "i32", "i32", "i32", "i32", "i32"],
    result: "i32",
  },
}).symbols;

function text(fill: (buffer: Uint8Array<ArrayBuffer>) => number): string {
  const bytes = new Uint8Array(4096);
  fill(bytes);
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}

function stop(reason: string): never {
  console.log(reason);
  Deno.exit(1);
}

function check(code: number): void {
  if (code !== 0) stop(text((buffer) => library.last_error(buffer, buffer.length)));
}

type Data = Uint16Array<ArrayBuffer> | Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>;

/** Device memory that holds a copy of data. */
function upload(data: Data): bigint {
  const address = new BigUint64Array(1);
  check(library.mem_alloc(address, BigInt(data.byteLength)));
  check(library.copy_to_device(address[0]!, data, BigInt(data.byteLength)));
  return address[0]!;
}

/** Device memory where every element is NaN: what a kernel forgets to write shows. */
const unwritten = (data: Data) => upload(data.fill(data instanceof Uint16Array ? 0xffff : NaN) as Data);

const bits = new Uint32Array(1), float = new Float32Array(bits.buffer);
function fromBf16(h: number): number {
  bits[0] = h << 16;
  return float[0]!;
}
function toBf16(x: number): number {
  float[0] = x;
  return (bits[0]! + 0x7fff + ((bits[0]! >> 16) & 1)) >>> 16;
}

let state = 1;
/** Bfloat16 numbers, roughly normal, always the same. */
function random(n: number): Uint16Array<ArrayBuffer> {
  return Uint16Array.from({ length: n }, () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += (state = (state * 48271) % 2147483647) / 2147483647;
    return toBf16(sum);
  });
}

/** out (T, H, D) and dqkv (T, heads, D) in float64, the plain way; token t sees those from starts[t] on. */
function reference(
  D: number,
  qkv: Float64Array,
  dout: Float64Array,
  starts: Int32Array,
): { out: Float64Array; dqkv: Float64Array } {
  const out = new Float64Array(T * H * D), dqkv = new Float64Array(T * heads * D), scale = 1 / Math.sqrt(D);
  const dot = (a: Float64Array, i: number, b: Float64Array, j: number) => {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += a[i + d]! * b[j + d]!;
    return sum;
  };
  const add = (a: Float64Array, i: number, b: Float64Array, j: number, factor: number) => {
    for (let d = 0; d < D; d++) a[i + d]! += factor * b[j + d]!;
  };
  for (let h = 0; h < H; h++) {
    const k = Math.floor(h / (H / K));
    const q_at = (t: number) => (t * heads + h) * D;
    const k_at = (t: number) => (t * heads + H + k) * D;
    const v_at = (t: number) => (t * heads + H + K + k) * D;
    for (let i = 0; i < T; i++) {
      const o = (i * H + h) * D;
      const p = Array.from(
        { length: i + 1 },
        (_, j) => j < starts[i]! ? 0 : Math.exp(scale * dot(qkv, q_at(i), qkv, k_at(j))),
      );
      const sum = p.reduce((a, b) => a + b);
      p.forEach((e, j) => add(out, o, qkv, v_at(j), e / sum));
      const delta = dot(out, o, dout, o);
      p.forEach((e, j) => {
        const ds = e / sum * (dot(dout, o, qkv, v_at(j)) - delta) * scale;
        add(dqkv, q_at(i), qkv, k_at(j), ds);
        add(dqkv, k_at(j), qkv, q_at(i), ds);
        add(dqkv, v_at(j), dout, o, e / sum);
      });
    }
  }
  return { out, dqkv };
}

/** Stops unless the device array has a relative L2 error below a few bfloat16 roundings. */
function compare(name: string, address: bigint, want: Float64Array): void {
  const got = new Uint16Array(want.length);
  check(library.copy_to_host(got, address, BigInt(got.byteLength)));
  let error = 0, norm = 0;
  want.forEach((w, i) => {
    error += (fromBf16(got[i]!) - w) ** 2;
    norm += w ** 2;
  });
  const relative = Math.sqrt(error / norm);
  if (!(relative < 2 ** -7)) stop(`${name}: relative error ${relative}`); // NaN stops, too
}

/** Compares what the kernels for heads of D write with float64; begins: where documents begin, if they are kept apart. */
function compareAttention(D: number, begins?: number[]): void {
  const starts = Int32Array.from(
    { length: T },
    (_, t) => Math.max(0, ...begins?.filter((b) => b <= t) ?? []),
  );
  const starts_at = begins ? upload(starts) : 0n, what = begins ? `documents, D=${D}` : `D=${D}`;
  const qkv = random(B * T * heads * D), dout = random(B * T * H * D);
  const want = reference(D, Float64Array.from(qkv, fromBf16), Float64Array.from(dout, fromBf16), starts);
  const qkv_at = upload(qkv), dout_at = upload(dout);
  const out_at = unwritten(new Uint16Array(B * T * H * D)),
    dqkv_at = unwritten(new Uint16Array(B * T * heads * D));
  const lse_at = unwritten(new Float32Array(B * H * T)), delta_at = unwritten(new Float32Array(B * H * T));
  check(library.attention_forward(out_at, lse_at, qkv_at, starts_at, B, T, H, K, D));
  compare(`attention_forward, ${what}`, out_at, want.out);
  check(
    library.attention_backward(dqkv_at, delta_at, dout_at, out_at, lse_at, qkv_at, starts_at, B, T, H, K, D),
  );
  compare(`attention_backward, ${what}`, dqkv_at, want.dqkv);
}

check(library.device_open(0, 0, 0, new Uint8Array(1), new Uint8Array(1)));
for (const D of [32, 64, 128]) {
  compareAttention(D);
  compareAttention(D, [1, 30, 47, 63, 65, 150, T - 1]); // in a tile, where one of 48 or of 64 ends, and one token
}
const info = JSON.parse(text((buffer) => library.device_info(buffer, buffer.length)));
if (info.bank_conflicts !== 0) stop(`${info.bank_conflicts} bank conflicts`);
console.log(`right, no bank conflicts, seed ${info.seed}`);
Deno.exit(0);
