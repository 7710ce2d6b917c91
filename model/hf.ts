// The weights of a model under the names of Hugging Face, so that a checkpoint is a directory that transformers (and llama.cpp,
// vLLM, ...) load as it is. Two differences to bridge: loam keeps q, k, v (and gate, up) stacked in one matrix, and pads
// the vocabulary to a multiple of 64 rows. RoPE already uses the half-split pairs of Hugging Face: nothing is permuted.
import { Buffer } from "node:buffer";
import { UserError } from "../base/errors.ts";
import { requireTensors } from "../runtime/checkpoint.ts";
import type { SafetensorsFile } from "../runtime/safetensors.ts";
import type { Tensor } from "../runtime/tensor.ts";
import { ownSettings } from "./hf_config.ts";
import { type LlamaConfig, VARIANT } from "./llama.ts";

/** One Hugging Face tensor: `rows` rows from `row` on of our tensor at the dot path `ours`. cols is 0 for a vector. */
export type HFTensor = { hf: string; ours: string; row: number; rows: number; cols: number };

/** Every tensor of model.safetensors in file order: 9 per layer and what its family has more, and 2 (tied) or 3. */
export function hfTensors(config: LlamaConfig): HFTensor[] {
  const { vocab_size: V, n_embd: C, n_inner: F, head_dim: D } = config;
  const Q = config.n_head * D, K = config.n_kv_head * D;
  const layers = Array.from({ length: config.n_layer }, (_, i) => {
    const hf = `model.layers.${i}`, ours = `layers.${i}`;
    return [
      { hf: `${hf}.input_layernorm.weight`, ours: `${ours}.input_layernorm`, row: 0, rows: C, cols: 0 },
      { hf: `${hf}.self_attn.q_proj.weight`, ours: `${ours}.qkv_proj`, row: 0, rows: Q, cols: C },
      { hf: `${hf}.self_attn.k_proj.weight`, ours: `${ours}.qkv_proj`, row: Q, rows: K, cols: C },
      { hf: `${hf}.self_attn.v_proj.weight`, ours: `${ours}.qkv_proj`, row: Q + K, rows: K, cols: C },
      ...(config.family === "qwen2"
        ? [
          { hf: `${hf}.self_attn.q_proj.bias`, ours: `${ours}.qkv_bias`, row: 0, rows: Q, cols: 0 },
          { hf: `${hf}.self_attn.k_proj.bias`, ours: `${ours}.qkv_bias`, row: Q, rows: K, cols: 0 },
          { hf: `${hf}.self_attn.v_proj.bias`, ours: `${ours}.qkv_bias`, row: Q + K, rows: K, cols: 0 },
        ]
        : []),
      ...(config.family === "qwen3"
        ? [
          { hf: `${hf}.self_attn.q_norm.weight`, ours: `${ours}.q_norm`, row: 0, rows: D, cols: 0 },
          { hf: `${hf}.self_attn.k_norm.weight`, ours: `${ours}.k_norm`, row: 0, rows: D, cols: 0 },
        ]
        : []),
      { hf: `${hf}.self_attn.o_proj.weight`, ours: `${ours}.o_proj`, row: 0, rows: C, cols: Q },
      {
        hf: `${hf}.post_attention_layernorm.weight`,
        ours: `${ours}.post_attention_layernorm`,
        row: 0,
        rows: C,
        cols: 0,
      },
      { hf: `${hf}.mlp.gate_proj.weight`, ours: `${ours}.gate_up_proj`, row: 0, rows: F, cols: C },
      { hf: `${hf}.mlp.up_proj.weight`, ours: `${ours}.gate_up_proj`, row: F, rows: F, cols: C },
      { hf: `${hf}.mlp.down_proj.weight`, ours: `${ours}.down_proj`, row: 0, rows: C, cols: F },
    ];
  });
  const tensors = [
    { hf: "model.embed_tokens.weight", ours: "embed_tokens", row: 0, rows: V, cols: C }, // without the padding
    ...layers.flat(),
    { hf: "model.norm.weight", ours: "norm", row: 0, rows: C, cols: 0 },
  ];
  // A tied lm_head is left out: transformers takes embed_tokens for it.
  if (!config.tie_word_embeddings) {
    tensors.push({ hf: "lm_head.weight", ours: "lm_head", row: 0, rows: V, cols: C });
  }
  return tensors;
}

/**
 * The tensors of adapter_model.safetensors under the names of PEFT: of each matrix that is a part of one of ours, its rows of B,
 * and A, which the parts share and the file has for each of them.
 */
export function adapterTensors(config: LlamaConfig): HFTensor[] {
  const { lora } = config;
  return hfTensors(config).flatMap(({ hf, ours, row, rows, cols }) => {
    const [layer, name] = ours.split(/\.(?=\w+$)/);
    if (!lora?.targets.some((target) => target === name)) return [];
    const { A, B } = adapterNames(hf), own = `${layer}.lora.${name}`;
    return [
      { hf: A, ours: `${own}.A`, row: 0, rows: lora.rank, cols },
      { hf: B, ours: `${own}.B`, row, rows, cols: lora.rank },
    ];
  });
}

/** What PEFT calls the adapter of a matrix. */
export function adapterNames(hf: string): { A: string; B: string } {
  const path = `base_model.model.${hf.replace(/\.weight$/, "")}`;
  return { A: `${path}.lora_A.weight`, B: `${path}.lora_B.weight` };
}

/** The shape on disk: [rows, cols], or [rows] for a vector. */
export function hfShape(tensor: HFTensor): number[] {
  return tensor.cols === 0 ? [tensor.rows] : [tensor.rows, tensor.cols];
}

/** A parameter as a model declares it: its dot path, and its shape without padding. */
export type Declared = { name: string; shape: readonly number[] };

/** That of each of some parameters. */
export function declaredBy(parameters: { name: string; tensor: Tensor }[]): Declared[] {
  return parameters.map(({ name, tensor }) => ({ name, shape: unpaddedShape(tensor) }));
}

/** The shape of a parameter as files have it, without the rows that pad a vocabulary. */
export function unpaddedShape(tensor: Tensor): number[] {
  const init = tensor.buf.init!;
  const rows = "rows" in init && init.rows ? init.rows : tensor.shape[0]!;
  return [rows, ...tensor.shape.slice(1)];
}

/** One tensor of model.safetensors: elements of our parameter `ours` from element `first` on. */
export type FileTensor = { name: string; shape: number[]; ours: string; first: number };

/**
 * The tensors that hold all that a model declares. What its family has in transformers has its name there; what was added to
 * model/llama.ts, or has another shape, its own dot path.
 */
export function fileTensors(declared: Declared[], config: LlamaConfig): FileTensor[] {
  const own = new Map(notInHF(declared, config).map(({ name, shape }) => [name, shape]));
  const known = new Set(declared.map(({ name }) => name));
  return [
    ...allTensors(config).filter(({ ours }) => known.has(ours) && !own.has(ours)).map((t) => (
      { name: t.hf, shape: hfShape(t), ours: t.ours, first: t.row * Math.max(1, t.cols) }
    )),
    ...Array.from(own, ([name, shape]) => ({ name, shape: [...shape], ours: name, first: 0 })),
  ];
}

function allTensors(config: LlamaConfig): HFTensor[] {
  return [...hfTensors(config), ...adapterTensors(config)];
}

/** The parameters that the model's family has not in transformers, or not in this shape. */
function notInHF(declared: Declared[], config: LlamaConfig): Declared[] {
  const parts = Map.groupBy(allTensors(config), ({ ours }) => ours);
  return declared.filter(({ name, shape }) => {
    const all = parts.get(name) ?? [], rows = Math.max(...all.map((t) => t.row + t.rows));
    return `${shape}` !== `${hfShape({ ...all[0]!, rows })}` || all.length === 0;
  });
}

/** What keeps a model from being that of transformers: parameters that only one of the two has, and settings of its own. */
export function differences(declared: Declared[], config: LlamaConfig): string[] {
  const here = new Set(declared.map(({ name }) => name));
  const missing = hfTensors(config).filter(({ ours }) => !here.has(ours)).map(({ hf }) => `no ${hf}`);
  return [
    ...notInHF(declared, config).map(({ name }) => name),
    ...missing,
    ...ownSettings(config),
    ...VARIANT ? [VARIANT] : [],
  ];
}

// ---- weights

/** Tensors that the files of old models have beside the weights: RoPE's, which follow from config.json. */
const HARMLESS_TENSOR = /(^|\.)rotary_emb\.inv_freq$/;

/**
 * Throws UserError where the files of a model do not hold exactly the weights that it declares: one is missing, of another
 * shape, or loam would not compute with it. `directory` is named in errors. Reads headers, and of a tied model both ends of
 * the tie where the files have both.
 */
export function requireWeights(
  directory: string,
  weights: Map<string, SafetensorsFile>,
  wanted: Pick<FileTensor, "name" | "shape">[],
  config: LlamaConfig,
): void {
  requireTensors(directory, weights, wanted);
  requireSharedAs(weights, config);
  const names = new Set(wanted.map(({ name }) => name));
  for (const [name, file] of weights) {
    if (names.has(name) || HARMLESS_TENSOR.test(name)) continue;
    if (name === "lm_head.weight" && config.tie_word_embeddings) {
      const embedding = "model.embed_tokens.weight";
      if (areSame(file, name, weights.get(embedding)!, embedding)) continue;
      throw new UserError(
        `Cannot load ${file.path}: lm_head.weight is not model.embed_tokens.weight, but tie_word_embeddings is true in ` +
          "config.json; set it to false there, if the two are meant to differ",
      );
    }
    throw new UserError(
      `Cannot load ${file.path}: it has ${name} (${
        file.tensors.get(name)!.shape
      }), which loam does not compute with`,
    );
  }
}

/** Throws UserError where adapters of matrices that are stacked here do not share their A. */
function requireSharedAs(weights: Map<string, SafetensorsFile>, config: LlamaConfig): void {
  const first = new Map<string, string>(); // names in the file, by ours
  for (const { hf, ours } of adapterTensors(config)) {
    const file = weights.get(hf), one = first.get(ours) ?? hf;
    if (!file || !ours.endsWith(".A")) continue;
    first.set(ours, one);
    if (one === hf || areSame(file, one, file, hf)) continue;
    throw new UserError(
      `Cannot load ${file.path}: ${hf} is not ${one}, but loam adapts these matrices together, with one A; merge them into ` +
        "the base with PEFT",
    );
  }
}

/** Whether two tensors of the same shape have the same bytes. */
function areSame(fileA: SafetensorsFile, a: string, fileB: SafetensorsFile, b: string): boolean {
  const { length } = fileA.tensors.get(a)!, piece = 1 << 24;
  if (fileB.tensors.get(b)!.length !== length) return false;
  for (let begin = 0; begin < length; begin += piece) {
    const end = Math.min(length, begin + piece);
    if (!Buffer.from(fileA.read(a, begin, end).buffer).equals(fileB.read(b, begin, end))) return false;
  }
  return true;
}
