// What the library refuses, and what kernels.h promises beyond what the ops in runtime/ use. Values are tested there.
import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { KernelError, UserError } from "../base/errors.ts";
import * as k from "./kernels.ts";
import {
  allocate,
  allocateHost,
  BF16,
  copyToDevice,
  copyToHost,
  F32,
  libraryExists,
  open,
  tokenSource,
} from "./library.ts";

open("cpu", { threads: 2 });

const header = Deno.readTextFileSync(new URL("../kernels.h", import.meta.url));

/** Names and kinds of the parameters of a function of kernels.h. */
function parametersOf(name: string): { name: string; isPointer: boolean; isLong: boolean }[] {
  const list = new RegExp(`^int ${name}\\(([^)]*)\\);`, "ms").exec(header)![1]!;
  return list.split(",").map((parameter) => ({
    name: /\w+$/.exec(parameter.trim())![0],
    isPointer: parameter.includes("*"),
    isLong: parameter.includes("64_t"),
  }));
}

// Valid sizes, which may not be below 1. Everything else that is not an address may be 0: accumulate, pos, types, betas.
const SIZES: Record<string, number> = {
  B: 1,
  T: 2,
  N: 2,
  C: 8,
  V: 4,
  V_stride: 4,
  H: 2,
  K: 1,
  D: 32, // the smallest that attention takes on a GPU
  T_max: 4,
  IN: 3,
  OUT: 5,
  F: 4,
  n: 8,
  group: 1,
  stride: 8,
  columns: 3,
  dst_stride: 4,
  src_stride: 5,
  bytes: 32,
};
const OPTIONAL = [
  "rmsnorm_backward out",
  "linear_forward residual",
  "linear_forward_bf16 residual",
  "rope starts",
  "attention_forward starts",
  "attention_backward starts",
  "gram add",
  "swiglu_backward h",
]; // addresses that may be 0
const UNUSED = /^(split_master|join_master|adamw|muon_update) (rest|ties)$/; // by the CPU library

/** Arguments that a function accepts, each address in zeroed memory of its own. */
function validArguments(name: string): (number | bigint)[] {
  return parametersOf(name).map(({ name, isPointer, isLong }) => {
    const size = SIZES[name] ?? 0;
    return isPointer ? allocate(4096) : isLong ? BigInt(size) : size;
  });
}

const functions = k as unknown as Record<string, (...args: (number | bigint)[]) => void>;

for (const library of ["cpu", "emu"] as const) {
  Deno.test({
    name:
      `every function refuses sizes below 1 and the address 0 where it is not optional, by name (${library})`,
    ignore: !libraryExists(library),
    sanitizeResources: false, // libraries stay loaded
    fn: () => {
      open(library, { threads: 2 });
      for (const name of Object.keys(functions)) {
        const valid = validArguments(name);
        functions[name]!(...valid);
        parametersOf(name).forEach((parameter, i) => {
          const call = (value: number | bigint) => () => functions[name]!(...valid.with(i, value));
          const refuses = (value: number | bigint, text: string) =>
            assertThrows(call(value), KernelError, `${name}: ${text}`).message;
          if (parameter.isPointer) {
            const argument = `${name} ${parameter.name}`;
            if (OPTIONAL.includes(argument) || library === "cpu" && UNUSED.test(argument)) call(0n)();
            else refuses(0n, `the address of ${parameter.name} is 0`);
          } else if (parameter.name in SIZES) {
            for (const size of [0, -1]) {
              const message = refuses(
                parameter.isLong ? BigInt(size) : size,
                `${parameter.name} must be at least 1 (`,
              );
              assert(message.includes(`${parameter.name}=${size}`), message);
            }
          }
        });
      }
      open("cpu", { threads: 2 });
    },
  });
}

/** A new block with these values. */
function floats(...values: number[]): bigint {
  const address = allocate(4 * values.length);
  copyToDevice(address, Float32Array.from(values));
  return address;
}

function ints(...values: number[]): bigint {
  const address = allocate(4 * values.length);
  copyToDevice(address, Int32Array.from(values));
  return address;
}

function read(address: bigint, n: number): number[] {
  const values = new Float32Array(n);
  copyToHost(values, address);
  return [...values];
}

/** Values between -1 and 1 without a pattern. */
function some(n: number, seed = 1): number[] {
  return Array.from({ length: n }, (_, i) => Math.fround(Math.sin(12.9898 * (i + seed * 1000))));
}

// ---- sizes that do not fit together

Deno.test("attention refuses heads that do not fit together", () => {
  const at = allocate(1 << 16),
    wrong = (f: () => void, message: string) => assertThrows(f, KernelError, message);
  for (const [H, K] of [[3, 2], [1, 2]] as const) {
    const message = `H=${H} is not a multiple of K=${K} (B=1 T=2 D=8)`;
    wrong(() => k.attention_forward(at, at, at, 0n, 1, 2, H, K, 8), `attention_forward: ${message}`);
    wrong(
      () => k.attention_backward(at, at, at, at, at, at, 0n, 1, 2, H, K, 8),
      `attention_backward: ${message}`,
    );
    wrong(() => k.attention_cached(at, at, at, at, 1, 2, 0, 4, H, K, 8), `attention_cached: ${message}`);
  }
  for (const D of [4, 7, 12, 264]) {
    const message = `attention_forward: D=${D} must be a multiple of 8 up to 256`;
    wrong(() => k.attention_forward(at, at, at, 0n, 1, 2, 2, 1, D), message);
  }
  for (const pos of [-1, 3, 100]) {
    const message = `attention_cached: pos=${pos} and T=2 do not fit into a cache of T_max=4`;
    wrong(() => k.attention_cached(at, at, at, at, 1, 2, pos, 4, 2, 1, 8), message);
  }
});

Deno.test("rope refuses odd heads and places before the first", () => {
  const at = allocate(4096);
  for (const [pos, D] of [[0, 7], [-1, 8]] as const) {
    assertThrows(() => k.rope(at, at, 0n, 1, 2, pos, 2, 1, D, 0), KernelError, `pos=${pos} H=2 K=1 D=${D}`);
  }
});

Deno.test("token ids and targets outside the vocabulary are named with their place", () => {
  const at = allocate(4096), outside = "must be at least 0 and less than V=4";
  for (const id of [4, -1, 2 ** 31 - 1]) {
    const ids = ints(0, 3, id), message = `ids[2]=${id} ${outside}`;
    assertThrows(
      () => k.embedding_forward(at, ids, at, 3, 4, 8),
      KernelError,
      `embedding_forward: ${message}`,
    );
    assertThrows(
      () => k.embedding_backward(at, at, ids, 3, 4, 8, 0),
      KernelError,
      `embedding_backward: ${message}`,
    );
  }
  const call = () => k.cross_entropy(at, at, ints(-1, 4), 2, 4, 4, 1, 1);
  assertThrows(call, KernelError, "cross_entropy: targets[1]=4 must be less than V=4");
  assertThrows(
    () => k.cross_entropy(at, at, ints(0, 0), 2, 4, 3, 1, 1),
    KernelError,
    "V_stride=3 must be at least V=4",
  );
});

Deno.test("convert refuses types that it does not know", () => {
  const at = allocate(4096), x = allocate(4096);
  assertThrows(
    () => k.convert(at, x, 2, F32, 8n),
    KernelError,
    "convert: types must be 0 (f32) or 1 (bf16), but dst is 2",
  );
});

// ---- promises of kernels.h

Deno.test("convert() rounds to the nearest bfloat16, ties to even, and keeps what is not finite", () => {
  const tie = 2 ** -8; // half of the last bit of a bfloat16 near 1
  const values = [
    1,
    1 + tie,
    1 + 3 * tie,
    1 + 1.01 * tie,
    -1 - tie,
    3.4e38,
    Infinity,
    -Infinity,
    NaN,
    -0,
    1.1 * 2 ** -133,
  ];
  const expected = [
    1,
    1,
    1 + 4 * tie,
    1 + 2 * tie,
    -1,
    Infinity,
    Infinity,
    -Infinity,
    NaN,
    -0,
    2 ** -133,
  ];
  const half = allocate(64), back = allocate(64);
  k.convert(half, floats(...values), BF16, F32, 11n);
  k.convert(back, half, F32, BF16, 11n);
  assertEquals(read(back, 11), expected.map(Math.fround));
  k.convert(back, half, BF16, BF16, 11n);
  k.convert(half, back, F32, BF16, 1n);
  assertEquals(read(half, 1), [1]);
});

Deno.test("copy_async(), fill_zero() and init_constant() touch what they are told to", () => {
  const a = floats(1, 2, 3, 4, 5), b = floats(0, 0, 0, 0, 0);
  k.copy_async(b + 4n, a, 12n);
  k.fill_zero(a + 4n, 8n);
  assertEquals([read(a, 5), read(b, 5)], [[1, 0, 0, 4, 5], [0, 1, 2, 3, 0]]);
  k.init_constant(b, 3n, -2);
  assertEquals(read(b, 5), [-2, -2, -2, 3, 0]);
});

Deno.test("sum_scaled() and grad_sumsq() overwrite or add", () => {
  const x = floats(1, 2, 3), out = floats(10), sumsq = allocate(8), total = new Float64Array(1);
  k.sum_scaled(out, x, 3, 0.5, 1);
  assertEquals(read(out, 1), [13]);
  k.sum_scaled(out, x, 3, 0.5, 0);
  assertEquals(read(out, 1), [3]);
  k.grad_sumsq(sumsq, x, 3n, 0);
  k.grad_sumsq(sumsq, x, 2n, 1);
  copyToHost(total, sumsq);
  assertEquals(total[0], 14 + 5);
});

Deno.test("grad_sumsq() adds up in double, however long the gradient is", () => {
  const n = 1_000_003, x = allocate(4 * n), sumsq = allocate(8), total = new Float64Array(1);
  k.init_constant(x, BigInt(n), Math.fround(1e-3));
  k.grad_sumsq(sumsq, x, BigInt(n), 0);
  copyToHost(total, sumsq);
  assertAlmostEquals(total[0]!, n * Math.fround(1e-3) ** 2, 1e-12);
});

Deno.test("float weights are their own masters", () => {
  const weight = floats(NaN, NaN), master = floats(1, 2), m = floats(0, 0), v = floats(0, 0);
  const control = floats(...Array(16).fill(1)); // learning rate, scale and bias corrections
  k.split_master(weight, 0n, 0n, master, 2n);
  k.adamw(weight, 0n, 0n, m, v, floats(4, -4), control, 2n, 0, 0, 0, 0); // a step of the gradient's sign
  k.join_master(master, weight, 0n, 0n, 2n);
  assertEquals([read(weight, 2), read(master, 2)], [[0, 3], [0, 3]]);
});

Deno.test("add() may write over either input", () => {
  const [a, b] = [floats(1, 2), floats(10, 20)];
  k.add(a, a, b, 2n);
  k.add(b, a, b, 2n);
  k.add(b, b, b, 2n);
  assertEquals([read(a, 2), read(b, 2)], [[11, 22], [42, 84]]);
});

Deno.test("embedding_backward() overwrites or adds", () => {
  const dweight = floats(NaN, NaN, NaN), dout = floats(1, 2, 4);
  k.embedding_backward(dweight, dout, ints(2, 0, 2), 3, 3, 1, 0);
  assertEquals(read(dweight, 3), [2, 0, 5]);
  k.embedding_backward(dweight, dout, ints(2, 0, 2), 3, 3, 1, 1);
  assertEquals(read(dweight, 3), [4, 0, 10]);
});

Deno.test("linear_dgrad() and linear_wgrad() overwrite or add", () => {
  const dout = floats(1, 2), w = floats(3, 4), x = floats(5, 6); // N=2 OUT=1 IN=1 and the like
  const dx = floats(NaN, NaN), dw = floats(NaN);
  k.linear_dgrad(dx, dout, w, 2, 1, 1, 0);
  k.linear_dgrad(dx, dout, w, 2, 1, 1, 1);
  k.linear_wgrad(dw, dout, x, 2, 1, 1, 0);
  k.linear_wgrad(dw, dout, x, 2, 1, 1, 1);
  assertEquals([read(dx, 2), read(dw, 1)], [[6, 12], [2 * (5 + 12)]]);
});

Deno.test("rmsnorm_backward() writes the forward result again, and overwrites or adds", () => {
  const N = 5,
    C = 37,
    x = floats(...some(N * C)),
    w = floats(...some(C, 2)),
    dout = floats(...some(N * C, 3));
  const block = () => allocate(4 * N * C),
    [out, rstd, again, dx, dw] = [block(), block(), block(), block(), block()];
  k.rmsnorm_forward(out, rstd, x, w, N, C, 1, C, 1e-6);
  k.rmsnorm_backward(dx, dw, again, dout, x, w, rstd, N, C, 1, C, 0, 0);
  assertEquals(read(again, N * C), read(out, N * C));
  const first = [read(dx, N * C), read(dw, C)];
  k.rmsnorm_backward(dx, dw, 0n, dout, x, w, rstd, N, C, 1, C, 1, 1);
  [read(dx, N * C), read(dw, C)].forEach((sum, which) =>
    sum.forEach((value, i) => assertAlmostEquals(value, 2 * first[which]![i]!, 1e-5))
  );
  const junk = floats(...Array(N * C).fill(NaN));
  k.rmsnorm_backward(junk, dw, 0n, dout, x, w, rstd, N, C, 1, C, 0, 0);
  assertEquals([read(junk, N * C), read(dw, C)], first);
});

Deno.test("gradients of biases and layernorm, and copied columns, overwrite or add", () => {
  const dout = floats(1, 2, 3, 4), db = floats(NaN, NaN), dw = floats(NaN, NaN), dx = allocate(16);
  for (const add of [0, 1]) k.bias_backward(db, dout, 2, 2, add);
  assertEquals(read(db, 2), [8, 12]);
  const x = floats(-1, 1, 3, 5), w = floats(1, 1), stats = floats(0, 1, 4, 1); // means 0 and 4, deviations 1
  for (const add of [0, 1]) k.layernorm_backward(dx, dw, db, dout, x, w, stats, 2, 2, add, add);
  assertEquals([read(dw, 2), read(db, 2)], [[2 * (-1 - 3), 2 * (2 + 4)], [8, 12]]);
  const wide = floats(NaN, NaN, 7, NaN, NaN, 7);
  for (const add of [0, 1]) k.copy_columns(wide, dout, 2, 2, 3, 2, add);
  assertEquals(read(wide, 6), [2, 4, 7, 6, 8, 7]);
});

Deno.test("logsumexp_backward() writes 0 to columns that are padding", () => {
  const x = floats(1, 2, 99, 3, 4, 99),
    dx = floats(...Array(6).fill(NaN)),
    lse = floats(0, 0),
    out = floats(0, 0);
  k.logsumexp_forward(out, lse, x, 2, 2, 3);
  k.logsumexp_backward(dx, floats(1, 2), lse, x, 2, 2, 3);
  const p = 1 / (1 + Math.E); // of the smaller one
  read(dx, 6).forEach((d, i) => assertAlmostEquals(d, [p, 1 - p, 0, 2 * p, 2 - 2 * p, 0][i]!, 1e-6));
});

Deno.test("swiglu_backward() writes the forward result again, and may write over its input", () => {
  const N = 3, F = 21, gate_up = floats(...some(2 * N * F)), dh = floats(...some(N * F, 2));
  const [h, again, d] = [allocate(4 * N * F), allocate(4 * N * F), allocate(8 * N * F)] as const;
  k.swiglu_forward(h, gate_up, N, F);
  k.swiglu_backward(d, 0n, dh, gate_up, N, F);
  k.swiglu_backward(gate_up, again, dh, gate_up, N, F);
  assertEquals(read(again, N * F), read(h, N * F));
  assertEquals(read(gate_up, 2 * N * F), read(d, 2 * N * F));
});

Deno.test("cross_entropy() leaves the logits when no gradient is asked for", () => {
  const logits = [1, 2, 3, 99, 4, 5, 6, 99], at = floats(...logits), losses = allocate(8); // V=3, padded to 4
  k.cross_entropy(at, losses, ints(2, -1), 2, 3, 4, 1, 0);
  assertEquals(read(at, 8), logits);
  const [loss, none] = read(losses, 2);
  assertAlmostEquals(loss!, Math.log(Math.exp(-2) + Math.exp(-1) + 1), 1e-6);
  assertEquals(none, 0);
});

Deno.test("cross_entropy() takes logits of any size", () => {
  const at = floats(3e38, -3e38, 0, -Infinity, 0, 0, -500, 500, 0), losses = allocate(12);
  k.cross_entropy(at, losses, ints(0, 1, 0), 3, 3, 3, 1, 1);
  const [certain, half, hopeless] = read(losses, 3);
  assertAlmostEquals(half!, Math.log(2), 1e-6);
  assertEquals([certain, hopeless], [0, 1000]);
  assertEquals(read(at, 9), [0, 0, 0, 0, -0.5, 0.5, -1, 1, 0]);
});

Deno.test("exponentials are right as far as float reaches", () => {
  const at = floats(0, -30, -80, 0), losses = allocate(4), up = 1e30, h = allocate(4);
  k.cross_entropy(at, losses, ints(0), 1, 3, 4, 1, 1);
  const [, small, tiny] = read(at, 3);
  assertAlmostEquals(small! / Math.exp(-30), 1, 1e-6);
  assertAlmostEquals(tiny! / Math.exp(-80), 1, 1e-6);
  k.swiglu_forward(h, floats(-85, up), 1, 1); // -85 / (1 + e^85) * up
  assertAlmostEquals(read(h, 1)[0]! / (-85 / (1 + Math.exp(85)) * up), 1, 1e-5);
});

Deno.test("attention_forward() writes the logarithm of the softmax denominator", () => {
  const T = 70, D = 8, qkv = some(T * 3 * D), out = allocate(4 * T * D), lse = allocate(4 * T);
  k.attention_forward(out, lse, floats(...qkv), 0n, 1, T, 1, 1, D);
  read(lse, T).forEach((actual, t) => {
    let sum = 0;
    for (let s = 0; s <= t; s++) {
      let score = 0;
      for (let d = 0; d < D; d++) score += qkv[t * 3 * D + d]! * qkv[s * 3 * D + D + d]! / Math.sqrt(D);
      sum += Math.exp(score);
    }
    assertAlmostEquals(actual, Math.log(sum), 1e-5);
  });
});

Deno.test("attention_cached() writes keys and values of the new tokens and nothing else", () => {
  const [B, T, pos, T_max, H, K, D] = [2, 2, 1, 4, 2, 1, 8] as const, row = (H + 2 * K) * D;
  const qkv = some(B * T * row), marks = Array(B * K * T_max * D).fill(7);
  const [out, keys, values] = [allocate(4 * B * T * H * D), floats(...marks), floats(...marks)];
  k.attention_cached(out!, keys!, values!, floats(...qkv), B, T, pos, T_max, H, K, D);
  [keys, values].forEach((cache, which) => {
    const expected = marks.map((mark, i) => {
      const d = i % D, t = Math.floor(i / D) % T_max - pos, b = Math.floor(i / D / T_max);
      return t < 0 || t >= T ? mark : qkv[(b * T + t) * row + (H + which * K) * D + d]!;
    });
    assertEquals(read(cache!, marks.length), expected);
  });
});

// ---- token data

const HEADER = 6; // bytes

/** A file of tokens behind a header, removed at the end of the block. */
function tokenFile(
  tokens: Uint8Array<ArrayBuffer> | Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>,
): { path: string } & Disposable {
  const path = Deno.makeTempFileSync();
  Deno.writeFileSync(path, new Uint8Array(HEADER).fill(255));
  Deno.writeFileSync(path, new Uint8Array(tokens.buffer), { append: true });
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

/** Resident memory of this process that belongs to files, in bytes. */
function residentFileBytes(): number {
  // Deno grants nobody but --allow-all to read /proc by itself.
  const { stdout } = new Deno.Command("cat", { args: [`/proc/${Deno.pid}/status`] }).outputSync();
  const status = new TextDecoder().decode(stdout);
  return ["RssFile", "RssShmem"].reduce(
    (sum, name) => sum + 1024 * Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)![1]),
    0,
  );
}

for (const library of ["cpu", "emu"] as const) {
  /** A test of the token files of this library. gather: x and y of a window, as arrays; x and y: room for 2^18 ids. */
  const test = (
    name: string,
    f: (
      gather: (handle: number, start: number, T: number, V: number) => [number[], number[]],
      x: bigint,
      y: bigint,
    ) => void,
  ) =>
    Deno.test({
      name: `${name} (${library})`,
      ignore: !libraryExists(library),
      sanitizeResources: false, // libraries stay loaded
      fn: () => {
        open(library, { threads: 2 });
        const x = allocateHost(1 << 20), y = allocateHost(1 << 20);
        try {
          f(
            (handle, start, T, V) => {
              tokenSource.gather(x, y, handle, BigInt(start), T, V);
              return [x, y].map((address) => {
                const values = new Int32Array(T);
                copyToHost(values, address);
                return [...values];
              }) as [number[], number[]];
            },
            x,
            y,
          );
        } finally {
          open("cpu", { threads: 2 });
        }
      },
    });

  test("starts() finds the last beginning of a document up to each token", (_, ids, starts) => {
    copyToDevice(ids, Int32Array.of(5, 9, 9, 4, 9, 4, 4, 9));
    const found = (T: number, bos: number) => {
      const values = new Int32Array(T);
      tokenSource.starts(starts, ids, T, bos);
      copyToHost(values, starts);
      return [...values];
    };
    assertEquals(found(8, 9), [0, 1, 2, 2, 4, 4, 4, 7]);
    assertEquals(found(5, 5), [0, 0, 0, 0, 0]);
    assertEquals(found(5, 77), [0, 0, 0, 0, 0]);
    assertThrows(
      () => tokenSource.starts(starts, ids, 0, 9),
      KernelError,
      "document_starts: T must be at least 1",
    );
  });

  test("gather() reads every window of 2- and 4-byte tokens, up to the last possible place", (gather) => {
    const ids = [7, 65_535, 0, 3, 9, 12, 300];
    for (
      const [Type, tokenBytes, large] of [[Uint16Array, 2, 65_535], [Uint32Array, 4, 0xfffe_ffff]] as const
    ) {
      using file = tokenFile(Type.from(ids));
      const { handle, tokens } = tokenSource.open(file.path, HEADER, tokenBytes);
      assertEquals(tokens, 7);
      for (const T of [1, 2, 3, 6]) {
        for (let start = 0; start + T + 1 <= 7; start++) {
          const [x, y] = gather(handle, start, T, 65_536);
          assertEquals([x, y], [ids.slice(start, start + T), ids.slice(start + 1, start + T + 1)]);
        }
        const places = `tokens ${7 - T} to 7 are outside the 7 of "${file.path}"`;
        assertThrows(() => gather(handle, 7 - T, T, 65_536), KernelError, `data_gather: ${places}`);
      }
      for (const start of [-1, 7, 2 ** 40]) assertThrows(() => gather(handle, start, 1, 65_536), KernelError);
      assertThrows(() => gather(handle, 0, 7, 65_536), KernelError, "tokens 0 to 7 are outside the 7");
      tokenSource.close(handle);
      assertThrows(() => gather(handle, 0, 1, 65_536), KernelError, `handle ${handle} is not open`);

      using extreme = tokenFile(Type.from([large, 5])); // not negative, whatever its first bit
      const other = tokenSource.open(extreme.path, HEADER, tokenBytes).handle;
      assertThrows(
        () => gather(other, 0, 1, 65_535),
        UserError,
        `token 0 is ${large}, should be below vocab_size`,
      );
      tokenSource.close(other);
    }
  });

  test(
    "mask() takes the targets away that a mask does not name, and says where conversations begin",
    (gather, x, y) => {
      const ids = [1, 2, 3, 4, 5, 6, 7], mask = [2, 0, 1, 3, 0, 2, 1]; // bit 0: trained on, bit 1: begins
      using tokens = tokenFile(Uint16Array.from(ids));
      using masks = tokenFile(Uint8Array.from(mask));
      const ofTokens = tokenSource.open(tokens.path, HEADER, 2).handle;
      const { handle, tokens: n } = tokenSource.open(masks.path, HEADER, 1);
      assertEquals(n, 7);
      for (const T of [1, 2, 5, 6]) {
        for (let start = 0; start + T + 1 <= 7; start++) {
          gather(ofTokens, start, T, 100);
          tokenSource.mask(y, x, handle, BigInt(start), T);
          const [starts, targets] = [x, y].map((address) => {
            const values = new Int32Array(T);
            copyToHost(values, address);
            return [...values];
          });
          const window = Array.from({ length: T }, (_, t) => start + t);
          assertEquals(targets, window.map((t) => mask[t + 1]! & 1 ? ids[t + 1]! : -1));
          assertEquals(
            starts,
            window.map((t) => Math.max(0, mask.slice(0, t + 1).findLastIndex((byte) => byte & 2) - start)),
          );
        }
      }
      const [before] = gather(ofTokens, 0, 6, 100);
      tokenSource.mask(y, 0n, handle, 0n, 6); // leaves starts alone
      const after = new Int32Array(6);
      copyToHost(after, x);
      assertEquals([...after], before);
      const places = `tokens 1 to 7 are outside the 7 of "${masks.path}"`;
      assertThrows(() => tokenSource.mask(y, 0n, handle, 1n, 6), KernelError, `data_mask: ${places}`);
      const wrong = (which: number) => `handle ${which} is not open, or `;
      assertThrows(() => tokenSource.mask(y, 0n, ofTokens, 0n, 3), KernelError, `${wrong(ofTokens)}no mask`);
      assertThrows(() => tokenSource.gather(x, y, handle, 0n, 3, 9), KernelError, `${wrong(handle)}a mask`);
      for (const open of [handle, ofTokens]) tokenSource.close(open);
    },
  );

  test("gather() refuses a token that the vocabulary lacks, wherever in the window it is", (gather) => {
    for (const [Type, tokenBytes] of [[Uint16Array, 2], [Uint32Array, 4]] as const) {
      for (let place = 0; place < 6; place++) {
        using file = tokenFile(Type.from([1, 2, 3, 4, 5, 6].with(place, 100)));
        const { handle } = tokenSource.open(file.path, HEADER, tokenBytes);
        const refuses = (start: number, T: number, V: number) =>
          assertThrows(
            () => gather(handle, start, T, V),
            UserError,
            `Cannot use "${file.path}": token ${place} is 100, should be below vocab_size ${V}; write the dataset again`,
          );
        refuses(0, 5, 100);
        refuses(0, 5, 7);
        if (place > 0) refuses(place - 1, 1, 100); // the last of y
        if (place < 5) refuses(place, 1, 100); // the first of x
        gather(handle, 0, 5, 101);
        if (place < 4) gather(handle, place + 1, 1, 100);
        tokenSource.close(handle);
      }
    }
  });

  test("gather() says in one line that a file was cut short or written to since it was opened", (gather) => {
    using file = tokenFile(Uint16Array.from({ length: 5000 }, (_, i) => i));
    const { handle } = tokenSource.open(file.path, HEADER, 2), whole = Deno.readFileSync(file.path);
    const says = (start: number, what: string) =>
      assertThrows(() => gather(handle, start, 3, 5000), UserError, `Cannot use "${file.path}": ${what}`);
    Deno.truncateSync(file.path, HEADER + 2 * 4000 + 1);
    says(3999, "it ends at byte 8007, should have 10006 bytes: it was cut short while it was in use");
    says(4500, "it ends at byte 8007, should have 10006 bytes"); // wholly behind its end
    says(0, "it has 8007 bytes, should have 10006: its size changed while it was in use");
    Deno.writeFileSync(file.path, whole);
    Deno.utimeSync(file.path, 1, 1);
    says(0, "it was written to while it was in use");
    tokenSource.close(handle);
  });

  test("gather() notices a change of a file in its size alone, and in less than a second", (gather) => {
    using file = tokenFile(Uint16Array.of(1, 2, 3));
    const touch = (ms: number) => Deno.utimeSync(file.path, new Date(ms), new Date(ms));
    const says = (handle: number, what: string) => {
      assertThrows(() => gather(handle, 0, 2, 10), UserError, `Cannot use "${file.path}": ${what}`);
      tokenSource.close(handle);
    };
    touch(1_000_250);
    const first = tokenSource.open(file.path, HEADER, 2).handle;
    assertEquals(gather(first, 0, 2, 10), [[1, 2], [2, 3]]);
    touch(1_000_750);
    says(first, "it was written to while it was in use");
    const second = tokenSource.open(file.path, HEADER, 2).handle;
    Deno.writeFileSync(file.path, Uint8Array.of(4, 0), { append: true });
    touch(1_000_750);
    says(second, "it has 14 bytes, should have 12: its size changed while it was in use");
  });

  test("gather() goes on with a file that was removed or replaced by renaming", (gather) => {
    using file = tokenFile(Uint16Array.of(1, 2, 3));
    const { handle } = tokenSource.open(file.path, HEADER, 2);
    Deno.writeFileSync(`${file.path}.new`, new Uint8Array(3));
    Deno.renameSync(`${file.path}.new`, file.path);
    assertEquals(gather(handle, 0, 2, 10), [[1, 2], [2, 3]]);
    tokenSource.close(handle);
  });

  test("open() of a token file says which file is no file of whole tokens", () => {
    using file = tokenFile(Uint16Array.of(1));
    const says = (path: string, tokenBytes: number, what: string) =>
      assertThrows(
        () => tokenSource.open(path, HEADER, tokenBytes),
        UserError,
        `Cannot use "${path}": ${what}`,
      );
    says(file.path, 4, "it has 8 bytes, should have 6 of header and then tokens of 4 bytes");
    Deno.writeFileSync(file.path, new Uint8Array(HEADER));
    says(file.path, 2, "it has 6 bytes, should have 6 of header and then tokens of 2 bytes");
    says("/nowhere/x.bin", 2, "it does not open: No such file or directory");
    says("/tmp", 2, "it is no regular file");
    assertThrows(() => tokenSource.open(file.path, HEADER, 3), KernelError, "token_bytes=3 must be 2 or 4");
    assertThrows(() => tokenSource.open(file.path, -1, 2), KernelError, "header_bytes=-1 must be at least 0");
  });

  test("close() of a token file closes it, as a refusal does, and programs that are started never get it", () => {
    using file = tokenFile(Uint16Array.of(1, 2, 3));
    const isOpenIn = (pid: string) => { // Deno grants nobody but --allow-all to read /proc by itself
      const { stdout } = new Deno.Command("sh", { args: ["-c", `ls -l /proc/${pid}/fd`] }).outputSync();
      return new TextDecoder().decode(stdout).includes(file.path);
    };
    const { handle } = tokenSource.open(file.path, HEADER, 2);
    assertEquals([isOpenIn(`${Deno.pid}`), isOpenIn("self")], [true, false]);
    tokenSource.close(handle);
    assertEquals(isOpenIn(`${Deno.pid}`), false);
    assertThrows(() => tokenSource.open(file.path, HEADER, 4), UserError, "it has 12 bytes");
    assertEquals(isOpenIn(`${Deno.pid}`), false);
  });

  test("reading all of a large file leaves none of it in resident memory", (_, x, y) => {
    using file = tokenFile(new Uint16Array(0));
    const bytes = 64 << 20, T = 1 << 17;
    Deno.writeFileSync(file.path, new Uint8Array(bytes));
    const { handle, tokens } = tokenSource.open(file.path, 0, 2);
    tokenSource.gather(x, y, handle, 0n, T, 1);
    const before = residentFileBytes();
    for (let start = 0; start + T < tokens; start += T) tokenSource.gather(x, y, handle, BigInt(start), T, 1);
    const grown = residentFileBytes() - before;
    assert(grown < bytes / 8, `${grown} of ${bytes} bytes stayed`);
    tokenSource.close(handle);
  });
}
