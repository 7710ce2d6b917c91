import { assert, assertAlmostEquals, assertEquals, assertLess, assertThrows } from "@std/assert";
import {
  ARCHITECTURES,
  encodeHeader,
  encodeValues,
  ggufName,
  headsOf,
  interleave,
  modelSettings,
  ropeFactors,
  type Settings,
  typeOf,
  writeGguf,
} from "./gguf.ts";
import { hfTensors } from "./hf.ts";
import type { Family, LlamaConfig } from "./llama.ts";
import { GPT_270M } from "./testing.ts";

type Part = number | string | readonly [bytes: number, value: number];

/** Bytes written out: numbers as they are, texts in ASCII, [n, value] little-endian in n bytes. */
function bytesOf(...parts: Part[]): number[] {
  return parts.flatMap((part) => {
    if (typeof part === "number") return [part];
    if (typeof part === "string") return Array.from(part, (letter) => letter.charCodeAt(0));
    return Array.from({ length: part[0] }, (_, i) => Math.floor(part[1] / 256 ** i) % 256);
  });
}

Deno.test("encodeHeader() writes the settings and tensors of the GGUF specification, byte by byte", () => {
  const settings: Settings = {
    "a.u": { type: "u32", value: 258 },
    "a.f": { type: "f32", value: 1.5 },
    "a.b": { type: "bool", value: true },
    "a.s": { type: "string", value: "hi" },
    "a.l": { type: "strings", value: ["x", "yz"] },
    "a.i": { type: "i32s", value: [1, -1] },
    "a.v": { type: "f32s", value: [-2] },
  };
  const tensors = [
    { name: "w", shape: [3, 32], type: "q8_0" as const },
    { name: "v", shape: [5], type: "f32" as const },
  ];
  const text = (text: string): Part[] => [[8, text.length], text]; // a text has its length before it
  const expected = bytesOf(
    ...["GGUF", [4, 3], [8, 2], [8, 7]] as Part[],
    ...[...text("a.u"), [4, 4], [4, 258]] as Part[],
    ...[...text("a.f"), [4, 6], 0, 0, 0xc0, 0x3f] as Part[],
    ...[...text("a.b"), [4, 7], 1] as Part[],
    ...[...text("a.s"), [4, 8], ...text("hi")] as Part[],
    ...[...text("a.l"), [4, 9], [4, 8], [8, 2], ...text("x"), ...text("yz")] as Part[],
    ...[...text("a.i"), [4, 9], [4, 5], [8, 2], 1, 0, 0, 0, 255, 255, 255, 255] as Part[],
    ...[...text("a.v"), [4, 9], [4, 6], [8, 1], 0, 0, 0, 0xc0] as Part[],
    ...[...text("w"), [4, 2], [8, 32], [8, 3], [4, 8], [8, 0]] as Part[], // the innermost size first; 3 blocks of 34 bytes
    ...[...text("v"), [4, 1], [8, 5], [4, 0], [8, 128]] as Part[], // 102 bytes, rounded up to 32
  );
  const whole = Math.ceil(expected.length / 32) * 32;
  assertEquals([...encodeHeader(settings, tensors)], [
    ...expected,
    ...Array(whole - expected.length).fill(0),
  ]);
});

Deno.test("writeGguf() begins each tensor at a multiple of 32 bytes and says the size of the file", () => {
  const path = Deno.makeTempFileSync(),
    header = encodeHeader({}, [
      { name: "a", shape: [3], type: "f32" },
      { name: "b", shape: [2], type: "f16" },
    ]);
  const size = writeGguf(path, {}, [
    {
      name: "a",
      shape: [3],
      type: "f32",
      pieces: () => [Uint8Array.of(1, 2, 3, 4, 5), new Uint8Array(7).fill(9)],
    },
    { name: "b", shape: [2], type: "f16", pieces: () => [Uint8Array.of(6, 7, 8, 9)] },
  ]);
  const written = Deno.readFileSync(path), data = new Uint8Array(64);
  data.set([1, 2, 3, 4, 5, 9, 9, 9, 9, 9, 9, 9]);
  data.set([6, 7, 8, 9], 32);
  assertEquals([...written], [...header, ...data]);
  assertEquals(size, written.length);
  const short = { name: "a", shape: [3], type: "f32" as const, pieces: () => [new Uint8Array(8)] };
  assertThrows(() => writeGguf(path, {}, [short]), Error, "internal: a is 4 bytes short of its shape");
  Deno.removeSync(path);
});

Deno.test("q8_0 has a scale in float16 and the nearest multiples of it, half away from zero", () => {
  // The largest is 127 steps of 0.25, so that each value is exact: 0.125 is half a step, -0.375 one and a half.
  const values = new Float32Array(64);
  values.set([31.75, -31.75, 0.125, -0.125, 0.375, -0.375, 0.1, 1, -0.3]);
  const bytes = encodeValues(values, "q8_0"), view = new DataView(bytes.buffer);
  assertEquals(bytes.length, 68);
  assertEquals([...bytes.subarray(0, 2)], [0x00, 0x34]); // 0.25 in float16
  assertEquals(Array.from({ length: 10 }, (_, i) => view.getInt8(2 + i)), [
    127,
    -127,
    1,
    -1,
    2,
    -2,
    0,
    4,
    -1,
    0,
  ]);
  assertEquals(bytes.subarray(34), new Uint8Array(34)); // nothing but zeros: their scale is 0 and nothing is divided by it
});

Deno.test("q8_0 of random blocks is off by half a step at most, by float64", () => {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  const values = Float32Array.from({ length: 32 * 50 }, (_, i) => next() * 10 ** (i / 32 % 9 - 5));
  const bytes = encodeValues(values, "q8_0"), view = new DataView(bytes.buffer);
  for (let block = 0; block < 50; block++) {
    const exact = Array.from(values.subarray(32 * block, 32 * block + 32)),
      most = Math.max(...exact.map(Math.abs));
    const scale = view.getFloat16(34 * block, true);
    assertLess(Math.abs(scale - most / 127), most / 127 * 2 ** -10 + 2 ** -25); // half a unit of float16
    exact.forEach((value, i) => {
      assertAlmostEquals(view.getInt8(34 * block + 2 + i), value / (most / 127), 0.5001);
    });
  }
});

Deno.test("encodeValues() refuses what is not finite or too large, by its index", () => {
  const index = (value: number, type: "f32" | "f16" | "bf16" | "q8_0") => {
    const values = new Float32Array(32);
    values[5] = value;
    try {
      return void encodeValues(values, type);
    } catch (error) {
      return (error as RangeError).message;
    }
  };
  for (const type of ["f32", "f16", "bf16", "q8_0"] as const) {
    assertEquals([NaN, Infinity, -Infinity].map((value) => index(value, type)), ["5", "5", "5"], type);
  }
  assertEquals([index(65519, "f16"), index(65520, "f16")], [undefined, "5"]);
  assertEquals([index(3.38e38, "bf16"), index(3.4e38, "bf16")], [undefined, "5"]);
  assertEquals([index(8e6, "q8_0"), index(9e6, "q8_0")], [undefined, "5"]);
});

Deno.test("typeOf() keeps vectors in float32, and rows of no whole blocks in float16", () => {
  assertEquals(typeOf([64], "q8_0"), "f32");
  assertEquals(typeOf([64], "bf16"), "f32");
  assertEquals(typeOf([48, 64], "q8_0"), "q8_0");
  assertEquals(typeOf([64, 48], "q8_0"), "f16");
  assertEquals(typeOf([64, 48], "bf16"), "bf16");
});

Deno.test("interleave() takes the rows of the halves of a head by turns", () => {
  const rows = Float32Array.of(10, 11, 20, 21, 30, 31, 40, 41, 50, 51, 60, 61);
  assertEquals([...interleave(rows, 2)], [10, 11, 40, 41, 20, 21, 50, 51, 30, 31, 60, 61]);
  assertEquals([...interleave(Float32Array.of(1, 2, 3, 4), 1)], [1, 3, 2, 4]);
});

Deno.test("every tensor of a model has a name in llama.cpp, and only queries and keys are put in order", () => {
  const config = { ...GPT_270M, n_layer: 11, tie_word_embeddings: false }, llama = ARCHITECTURES.llama;
  const names = hfTensors(config).map(({ hf }) => [ggufName(hf), headsOf(hf, config, llama)]);
  assertEquals(new Set(names.map(String)).size, 11 * 9 + 3);
  assertEquals(names.slice(0, 10), [
    ["token_embd.weight", undefined],
    ["blk.0.attn_norm.weight", undefined],
    ["blk.0.attn_q.weight", 16],
    ["blk.0.attn_k.weight", 4],
    ["blk.0.attn_v.weight", undefined],
    ["blk.0.attn_output.weight", undefined],
    ["blk.0.ffn_norm.weight", undefined],
    ["blk.0.ffn_gate.weight", undefined],
    ["blk.0.ffn_up.weight", undefined],
    ["blk.0.ffn_down.weight", undefined],
  ]);
  assertEquals(names.slice(-3).map(([name]) => name), [
    "blk.10.ffn_down.weight",
    "output_norm.weight",
    "output.weight",
  ]);
  assertEquals(ggufName("model.layers.3.self_attn.k_proj.bias"), "blk.3.attn_k.bias");
  assertEquals(ggufName("layers.3.q_norm"), undefined);
  assertEquals(headsOf("model.layers.3.self_attn.q_proj.weight", config, ARCHITECTURES.qwen2), undefined);
});

/** The settings of a model that begin so, without that beginning. */
function settingsOf(change: Partial<LlamaConfig>, start: string): Record<string, unknown> {
  const config = { ...GPT_270M, ...change }, options = { title: "a", type: "f32" as const };
  const settings = modelSettings(config, ARCHITECTURES[config.family ?? "llama"], options);
  return Object.fromEntries(
    Object.entries(settings).filter(([key]) => key.startsWith(start)).map(([key, { value }]) => [
      key.slice(start.length),
      value,
    ]),
  );
}

Deno.test("the scaling of RoPE is said as llama.cpp computes it", () => {
  const original_max_position_embeddings = 512,
    yarn = { rope_type: "yarn" as const, factor: 4, original_max_position_embeddings };
  const start = "llama.rope.scaling.";
  assertEquals(settingsOf({}, start), {});
  assertEquals(settingsOf({ rope_scaling: { rope_type: "linear", factor: 3 } }, start), {
    type: "linear",
    factor: 3,
  });
  const plain = { type: "yarn", factor: 4, original_context_length: 512 };
  assertEquals(settingsOf({ rope_scaling: yarn }, start), plain);
  const more = settingsOf(
    { rope_scaling: { ...yarn, attention_factor: 2, beta_fast: 16, beta_slow: 2 } },
    start,
  );
  const { attn_factor, ...rest } = more;
  assertEquals(rest, { ...plain, yarn_beta_fast: 16, yarn_beta_slow: 2 });
  assertAlmostEquals(attn_factor as number, 2 / (1 + 0.1 * Math.log(4)), 1e-12);
  const refused = (change: Partial<LlamaConfig>) =>
    assertThrows(() => settingsOf(change, start), RangeError).message;
  assertEquals(
    refused({ rope_scaling: { ...yarn, truncate: false } }),
    "its truncate is false, which llama.cpp has not in YaRN",
  );
  const llama3 = { rope_type: "llama3" as const, factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const rope_scaling = { ...llama3, original_max_position_embeddings };
  assertEquals(settingsOf({ rope_scaling }, start), {});
  assertEquals(
    refused({ rope_scaling, family: "qwen2" }),
    "its rope_type is llama3, which llama.cpp has not in qwen2",
  );
});

Deno.test("ropeFactors() are 1 for pairs that turn often and the factor for those that turn seldom", () => {
  const llama3 = { rope_type: "llama3" as const, factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const rope_scaling = { ...llama3, original_max_position_embeddings: 8192 };
  const factors = ropeFactors({ ...GPT_270M, rope_theta: 500000, rope_scaling })!;
  assertEquals(factors.length, 32);
  factors.forEach((factor, j) => {
    const turns = 8192 / (2 * Math.PI) * 500000 ** (-2 * j / 64),
      kept = Math.min(1, Math.max(0, (turns - 1) / 3));
    assertAlmostEquals(factor, 1 / (kept + (1 - kept) / 8), 1e-5); // in float64
  });
  assert(
    factors[0] === 1 && Math.abs(factors[31]! - 8) < 1e-6 &&
      factors.some((factor) => factor > 1.1 && factor < 7.9),
  );
  assertEquals(ropeFactors(GPT_270M), undefined);
  assertEquals(ropeFactors({ ...GPT_270M, rope_scaling: { rope_type: "linear", factor: 2 } }), undefined);
});

Deno.test("each family has its architecture, the length of its texts and its layers without positions", () => {
  const about = (family: Family, change: Partial<LlamaConfig> = {}) => {
    const { name } = ARCHITECTURES[family];
    return [name, settingsOf({ family, ...change }, `${name}.`).context_length];
  };
  assertEquals(about("llama", { max_position_embeddings: 4096 }), ["llama", 4096]);
  assertEquals(about("mistral", { max_position_embeddings: 4096, sliding_window: 2048 }), ["llama", 2048]);
  assertEquals([about("qwen2"), about("qwen3")], [["qwen2", 2048], ["qwen3", 2048]]);
  assertEquals(about("smollm3", { n_layer: 5, no_rope_layers: [1, 1, 1, 0, 1] }), ["smollm3", 2048]);
  assertThrows(
    () => about("smollm3", { n_layer: 3, no_rope_layers: [1, 0, 1] }),
    RangeError,
    "its no_rope_layers are 1,0,1, should have 0 for each fourth layer alone",
  );
  assertEquals(["q_norm", "k_norm"].map((part) => ggufName(`model.layers.0.self_attn.${part}.weight`)), [
    "blk.0.attn_q_norm.weight",
    "blk.0.attn_k_norm.weight",
  ]);
});
