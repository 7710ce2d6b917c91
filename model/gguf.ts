// gguf.ts: a model as one GGUF file (version 3), as llama.cpp and what is built on it run. The words of Hugging Face in, the
// words of llama.cpp out: names of tensors, settings, and for some architectures the rows of queries and keys in another order.
//
// A file is: "GGUF", the version, the counts of tensors and of settings; each setting as its key, its type and its value; each
// tensor as its name, its shape with the innermost size first, its type and where it begins; then the tensors, each from a
// multiple of 32 bytes on. All numbers are little-endian.
import { OutFile } from "../base/files.ts";
import { orMistake } from "../base/system_error.ts";
import { fromFloat32 } from "../runtime/safetensors.ts";
import type { Family, LlamaConfig } from "./llama.ts";
import { ropeFrequencies } from "./rope.ts";

/** A setting of a GGUF file. Whole numbers are unsigned. */
export type Setting =
  | { type: "u32" | "f32"; value: number }
  | { type: "bool"; value: boolean }
  | { type: "string"; value: string }
  | { type: "strings"; value: readonly string[] }
  | { type: "i32s" | "f32s"; value: ArrayLike<number> };

/** Settings by their keys, in the order of the file. */
export type Settings = Record<string, Setting>;

/** How the elements of a tensor are stored. */
export type GgufType = "f32" | "f16" | "bf16" | "q8_0";

/** A tensor to write. pieces() is called once, in its turn, and gives all of its bytes. */
export type GgufTensor = {
  name: string;
  shape: readonly number[];
  type: GgufType;
  pieces: () => Iterable<Uint8Array>;
};

/** For each type its number in ggml, how many elements are stored together, and in how many bytes. */
const TYPES: Record<GgufType, { id: number; elements: number; bytes: number }> = {
  f32: { id: 0, elements: 1, bytes: 4 },
  f16: { id: 1, elements: 1, bytes: 2 },
  bf16: { id: 30, elements: 1, bytes: 2 },
  q8_0: { id: 8, elements: 32, bytes: 34 },
};

/** general.file_type of a file whose matrices are of a type. */
const FILE_TYPES: Record<GgufType, number> = { f32: 0, f16: 1, q8_0: 7, bf16: 32 };

const MAGIC = "GGUF", ALIGNMENT = 32;

/**
 * Writes a file, and returns its size in bytes when it is on the disk. Memory: the header, and one piece of a tensor. Throws
 * UserError that calls the file `name` where it cannot be written.
 */
export function writeGguf(path: string, settings: Settings, tensors: GgufTensor[], name = path): number {
  const header = encodeHeader(settings, tensors);
  let end = header.length;
  using file = new OutFile(path, "create", name);
  file.write(header);
  for (const tensor of tensors) {
    const length = byteLength(tensor);
    let missing = length;
    for (const piece of tensor.pieces()) {
      file.write(piece);
      missing -= piece.length;
    }
    if (missing !== 0) throw new Error(`internal: ${tensor.name} is ${missing} bytes short of its shape`);
    file.write(new Uint8Array(aligned(length) - length));
    end += aligned(length);
  }
  file.sync();
  return end;
}

/** Whether a file is one in this format. Throws UserError where it cannot be read. */
export function isGguf(path: string): boolean {
  return orMistake(`Cannot read ${path}`, () => {
    using file = Deno.openSync(path);
    const magic = new Uint8Array(MAGIC.length);
    return file.readSync(magic) === MAGIC.length && new TextDecoder().decode(magic) === MAGIC;
  });
}

/** Everything of a file before its first tensor. */
export function encodeHeader(settings: Settings, tensors: Omit<GgufTensor, "pieces">[]): Uint8Array {
  const out = new Bytes(), entries = Object.entries(settings);
  out.raw(new TextEncoder().encode(MAGIC));
  out.u32(3);
  out.u64(tensors.length);
  out.u64(entries.length);
  for (const [key, setting] of entries) {
    out.string(key);
    out.setting(setting);
  }
  let offset = 0;
  for (const tensor of tensors) {
    out.string(tensor.name);
    out.u32(tensor.shape.length);
    for (const size of tensor.shape.toReversed()) out.u64(size);
    out.u32(TYPES[tensor.type].id);
    out.u64(offset);
    offset += aligned(byteLength(tensor));
  }
  out.raw(new Uint8Array(aligned(out.length) - out.length));
  return out.all();
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

function byteLength({ shape, type }: Omit<GgufTensor, "pieces">): number {
  return shape.reduce((n, size) => n * size, 1) / TYPES[type].elements * TYPES[type].bytes;
}

/** Bytes that grow at their end. */
class Bytes {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  #utf8 = new TextEncoder();
  length = 0;

  /** Makes room for n more bytes, and returns where they begin. */
  #take(n: number): number {
    if (this.length + n > this.#bytes.length) {
      const larger = new Uint8Array(2 * (this.length + n));
      larger.set(this.#bytes);
      [this.#bytes, this.#view] = [larger, new DataView(larger.buffer)];
    }
    this.length += n;
    return this.length - n;
  }

  raw(bytes: Uint8Array): void {
    const at = this.#take(bytes.length); // may replace #bytes
    this.#bytes.set(bytes, at);
  }

  u32(value: number): void {
    const at = this.#take(4);
    this.#view.setUint32(at, value, true);
  }

  u64(value: number): void {
    const at = this.#take(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  f32(value: number): void {
    const at = this.#take(4);
    this.#view.setFloat32(at, value, true);
  }

  string(text: string): void {
    const bytes = this.#utf8.encode(text);
    this.u64(bytes.length);
    this.raw(bytes);
  }

  setting(setting: Setting): void {
    const { type, value } = setting, scalars = { u32: 4, f32: 6, bool: 7, string: 8 };
    if (type === "strings" || type === "i32s" || type === "f32s") {
      this.u32(9);
      this.u32({ i32s: 5, f32s: 6, strings: 8 }[type]);
      this.u64(value.length);
    } else this.u32(scalars[type]);
    switch (setting.type) {
      case "u32":
        return this.u32(setting.value);
      case "f32":
        return this.f32(setting.value);
      case "bool":
        return this.raw(Uint8Array.of(setting.value ? 1 : 0));
      case "string":
        return this.string(setting.value);
      case "strings":
        return setting.value.forEach((text) => this.string(text));
      case "i32s":
        return this.raw(new Uint8Array(Int32Array.from(setting.value).buffer));
      case "f32s":
        return this.raw(new Uint8Array(Float32Array.from(setting.value).buffer));
    }
  }

  all(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }
}

// ---- elements

/** Values as they are stored: of q8_0 whole blocks. Throws RangeError as fromFloat32(). */
export function encodeValues(values: Float32Array<ArrayBuffer>, type: GgufType): Uint8Array {
  if (type === "q8_0") return quantize(values);
  return fromFloat32(values, ({ f32: "F32", f16: "F16", bf16: "BF16" } as const)[type]);
}

/**
 * Blocks of 32 values: a scale, float16, that makes the largest of them 127, then each value in steps of it, rounded to the
 * nearest and half away from zero. All in float32, as ggml computes it.
 */
function quantize(values: Float32Array<ArrayBuffer>): Uint8Array {
  const n = values.length / 32, bytes = new Uint8Array(34 * n), view = new DataView(bytes.buffer);
  for (let block = 0; block < n; block++) {
    let most = 0;
    for (let i = 0; i < 32; i++) {
      const size = Math.abs(values[32 * block + i]!);
      if (!(size <= 127 * 65504)) throw new RangeError(`${32 * block + i}`); // whose scale float16 has not; NaN too
      if (size > most) most = size;
    }
    const scale = Math.fround(most / 127), inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    view.setFloat16(34 * block, scale, true);
    for (let i = 0; i < 32; i++) {
      const steps = Math.fround(values[32 * block + i]! * inverse), whole = Math.trunc(steps);
      const away = Math.abs(steps - whole) >= 0.5 ? Math.sign(steps) : 0; // exact: whole is near to steps
      view.setInt8(34 * block + 2 + i, whole + away);
    }
  }
  return bytes;
}

/** The type in which a tensor is stored in a file of a type: vectors are float32, and what has no whole blocks is float16. */
export function typeOf(shape: readonly number[], type: GgufType): GgufType {
  if (shape.length === 1) return "f32";
  return type === "q8_0" && shape.at(-1)! % 32 !== 0 ? "f16" : type;
}

// ---- names

/**
 * What a model is for llama.cpp. permutes: it turns pairs of neighbours, not Hugging Face's halves of a head, so that the rows
 * of queries and keys go into that order.
 */
export type Architecture = { name: string; permutes: boolean };

/** By the family of a model. */
export const ARCHITECTURES: Readonly<Record<Family, Architecture>> = {
  llama: { name: "llama", permutes: true },
  mistral: { name: "llama", permutes: true },
  qwen2: { name: "qwen2", permutes: false },
  qwen3: { name: "qwen3", permutes: false },
  smollm3: { name: "smollm3", permutes: true },
};

const NAMES: Record<string, string> = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

/** llama.cpp's name of one of Hugging Face's tensors, undefined where it is not known. */
export function ggufName(name: string): string | undefined {
  const [, layer, part = "", kind] = /^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(name) ?? [];
  const known = NAMES[part];
  return known && `${layer === undefined ? "" : `blk.${layer}.`}${known}.${kind}`;
}

/** How many rows of a tensor, and of how many heads, are put into another order; undefined for those that stay as they are. */
export function headsOf(name: string, config: LlamaConfig, { permutes }: Architecture): number | undefined {
  if (!permutes) return undefined;
  if (/\.self_attn\.q_proj\.(weight|bias)$/.test(name)) return config.n_head;
  if (/\.self_attn\.k_proj\.(weight|bias)$/.test(name)) return config.n_kv_head;
  return undefined;
}

/** The D rows of a head, those of the two halves by turns: 0, D/2, 1, D/2 + 1, ... cols is 1 for a vector. */
export function interleave(head: Float32Array<ArrayBuffer>, cols: number): Float32Array<ArrayBuffer> {
  const D = head.length / cols, out = new Float32Array(head.length);
  for (let row = 0; row < D; row++) {
    const to = row < D / 2 ? 2 * row : 2 * (row - D / 2) + 1;
    out.set(head.subarray(row * cols, (row + 1) * cols), to * cols);
  }
  return out;
}

/**
 * The settings that say what a model computes. `title` is what it is called. Throws RangeError saying what llama.cpp does not
 * compute.
 */
export function modelSettings(
  config: LlamaConfig,
  { name }: Architecture,
  { title, type }: { title: string; type: GgufType },
): Settings {
  const { n_layer, no_rope_layers, sliding_window, block_size, max_position_embeddings } = config;
  if (no_rope_layers?.some((turns, i) => turns !== ((i + 1) % 4 === 0 ? 0 : 1))) {
    throw new RangeError(
      `its no_rope_layers are ${no_rope_layers}, should have 0 for each fourth layer alone`,
    );
  }
  // Mistral attends to all tokens of a text within its window, as llama.cpp always does here.
  const longest = sliding_window === undefined ? max_position_embeddings ?? block_size : block_size;
  return {
    "general.architecture": string(name),
    "general.type": string("model"),
    "general.name": string(title),
    "general.file_type": u32(FILE_TYPES[type]),
    "general.quantization_version": u32(2),
    [`${name}.vocab_size`]: u32(config.vocab_size),
    [`${name}.context_length`]: u32(longest),
    [`${name}.embedding_length`]: u32(config.n_embd),
    [`${name}.block_count`]: u32(n_layer),
    [`${name}.feed_forward_length`]: u32(config.n_inner),
    [`${name}.attention.head_count`]: u32(config.n_head),
    [`${name}.attention.head_count_kv`]: u32(config.n_kv_head),
    [`${name}.attention.key_length`]: u32(config.head_dim),
    [`${name}.attention.value_length`]: u32(config.head_dim),
    [`${name}.attention.layer_norm_rms_epsilon`]: f32(config.norm_eps),
    [`${name}.rope.dimension_count`]: u32(config.head_dim),
    [`${name}.rope.freq_base`]: f32(config.rope_theta),
    ...ropeSettings(config, name),
  };
}

const u32 = (value: number): Setting => ({ type: "u32", value });
const f32 = (value: number): Setting => ({ type: "f32", value });
const string = (value: string): Setting => ({ type: "string", value });

/** What llama.cpp computes of the scaling of RoPE by itself; that of Llama 3 is a tensor, see ropeFactors(). */
function ropeSettings(config: LlamaConfig, name: string): Settings {
  const { rope_scaling: s } = config, key = `${name}.rope.scaling`;
  if (s === undefined) return {};
  if (s.rope_type === "llama3") {
    if (name === "llama") return {};
    throw new RangeError(`its rope_type is llama3, which llama.cpp has not in ${name}`);
  }
  const settings: Settings = { [`${key}.type`]: string(s.rope_type), [`${key}.factor`]: f32(s.factor) };
  if (s.rope_type === "linear") return settings;
  if (s.truncate === false) throw new RangeError("its truncate is false, which llama.cpp has not in YaRN");
  const usual = 0.1 * Math.log(s.factor) + 1, more = ropeFrequencies(config).scale / usual; // llama.cpp has the usual scale
  return {
    ...settings,
    [`${key}.original_context_length`]: u32(s.original_max_position_embeddings),
    ...more !== 1 && { [`${key}.attn_factor`]: f32(more) },
    ...s.beta_fast !== undefined && { [`${key}.yarn_beta_fast`]: f32(s.beta_fast) },
    ...s.beta_slow !== undefined && { [`${key}.yarn_beta_slow`]: f32(s.beta_slow) },
  };
}

/** By how much Llama 3 slows each of its D/2 pairs down, which llama.cpp reads from a tensor; undefined for other models. */
export function ropeFactors({ rope_scaling, ...config }: LlamaConfig): Float32Array<ArrayBuffer> | undefined {
  if (rope_scaling?.rope_type !== "llama3") return undefined;
  const plain = ropeFrequencies(config).frequencies,
    slow = ropeFrequencies({ ...config, rope_scaling }).frequencies;
  return Float32Array.from(plain, (frequency, j) => frequency / slow[j]!);
}
