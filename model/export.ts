// deno task export: writes a model for other programs: one GGUF file for llama.cpp, or a directory for transformers. It reads
// the files of a checkpoint piece by piece, and neither loads the compiled library nor runs the model.
import { basename, dirname } from "node:path";
import { runMain, UserError } from "../base/errors.ts";
import {
  isDirectory,
  isFile,
  makeDirectory,
  rename,
  syncDirectory,
  TEMPORARY,
  tryToRemove,
} from "../base/files.ts";
import { help, type Ranges, readFlags, requireRanges } from "../base/flags.ts";
import { formatBytes, formatCount } from "../base/format.ts";
import { orMistake } from "../base/system_error.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { runOfCheckpoint, writeModelFiles } from "../runtime/checkpoint.ts";
import { type Dtype, type Entry, fromFloat32, toFloat32 } from "../runtime/safetensors.ts";
import { json, readJson } from "../runtime/trainer_state.ts";
import { endsOf, openModel, type StoredModel, tokenizerFor } from "./checkpoint.ts";
import {
  type Architecture,
  ARCHITECTURES,
  encodeValues,
  ggufName,
  type GgufTensor,
  type GgufType,
  headsOf,
  interleave,
  isGguf,
  modelSettings,
  ropeFactors,
  typeOf,
  writeGguf,
} from "./gguf.ts";
import { ggufTokenizer } from "./gguf_tokenizer.ts";
import { adapterNames, adapterTensors, type FileTensor, hfShape, hfTensors, requireWeights } from "./hf.ts";

/** The flags of export. */
export const defaults = {
  checkpoint: "", // a run directory, one of its checkpoints, or a model directory of Hugging Face's
  format: "gguf", // gguf: one file for llama.cpp; hf: a directory for transformers
  merge: false, // LoRA: the adapters go into their base, as they do in gguf; format is hf then, unless given
  dtype: "", // of matrices: f32, bf16, f16, and of gguf q8_0; "" = as they are
  out: "", // the file or directory to write
  overwrite: false, // in place of an earlier one
};

/** What exportModel() is asked for, as the flags of the command. */
export type Options = typeof defaults;

const ranges: Ranges<Options> = { format: ["gguf", "hf"], dtype: ["", "f32", "bf16", "f16", "q8_0"] };

/** A model as its files have it. */
type Source = StoredModel & {
  json: Record<string, unknown>; // config.json
  tokenizer: Tokenizer;
  tensors: Pick<FileTensor, "name" | "shape">[];
};

/** The command line: writes what the flags ask for. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./export.ts", { with: { type: "text" } });
    return console.log(help("Write a model for llama.cpp or transformers", defaults, source));
  }
  console.log(await exportModel(readFlags(args, defaults, { ranges })));
}

/** Writes a model as options ask for; returns what to say of it. Throws UserError where it cannot be written so. */
export async function exportModel(options: Partial<Options>): Promise<string> {
  const o = { ...defaults, ...(options.merge ? { format: "hf" } : {}), ...options };
  if (!o.checkpoint) throw new UserError("Cannot export: name a model with --checkpoint=runs/...");
  requireRanges(o, ranges);
  if (o.format === "hf" && o.dtype === "q8_0") {
    throw new UserError(
      "Cannot use dtype q8_0 with format hf: it must be f32, bf16 or f16; q8_0 is one of gguf",
    );
  }
  const example = o.format === "gguf" ? "model.gguf" : "model-hf";
  if (!o.out) throw new UserError(`Cannot export: name what to write with --out=${example}`);
  o.out = o.out.replace(/(?<=.)\/+$/, "");
  if (o.format === "gguf") requireFree(o);
  else requireFreeDirectory(o);
  const source = await openSource(o.checkpoint);
  requireMerge(source, o);
  const type = (o.dtype || storedType(source)) as GgufType;
  return o.format === "gguf" ? exportGguf(source, type, o) : exportHF(source, type, o);
}

/** Adapters are merged where that is asked for, or a file has no place for them; else they are PEFT's as they are. */
function requireMerge({ directory, config }: Source, { format, merge }: Options): void {
  if (merge && !config.lora) {
    throw new UserError(`Cannot merge ${directory}: it has no adapters; leave --merge out`);
  }
  if (config.lora && format === "hf" && !merge) {
    throw new UserError(
      `Cannot export ${directory} as it is: it holds adapters, which PEFT loads from there; add --merge to write the whole model`,
    );
  }
}

/** Reads all of a model but its tensors. */
async function openSource(path: string): Promise<Source> {
  const stored = openModel(path), { directory, config, base } = stored;
  const json = readJson(`${base?.path ?? directory}/config.json`);
  if (json.model_type === "loam") {
    throw new UserError(
      `Cannot export ${directory}: its model_type is loam, a model/llama.ts that was edited, which neither llama.cpp nor ` +
        `transformers computes (${json.note}); sample and serve run it`,
    );
  }
  if (!isFile(`${directory}/tokenizer.json`)) {
    throw new UserError(
      `Cannot export ${directory}: it has no tokenizer.json, without which nobody can give it text; put that of its data there`,
    );
  }
  const tokenizer = await tokenizerFor("export", directory, config);
  const tensors = hfTensors(config).map((t) => ({ name: t.hf, shape: hfShape(t) }));
  const adapters = adapterTensors(config).map((t) => ({ name: t.hf, shape: hfShape(t) }));
  requireWeights(directory, stored.weights, [...tensors, ...adapters], config);
  return { ...stored, json, tokenizer, tensors };
}

/** The type of most of the weights. */
function storedType({ weights }: Source): GgufType {
  const { dtype } = weights.get("model.embed_tokens.weight")!.tensors.get("model.embed_tokens.weight")!;
  return ({ F32: "f32", BF16: "bf16", F16: "f16" } as Record<string, GgufType>)[dtype]!;
}

const PIECE = 1 << 22; // elements of a tensor that are in memory at a time

/**
 * The values of a tensor, with its adapter merged, some of its rows at a time: `rows` if that is given, else as many as are in a
 * piece.
 */
function* floatsOf(
  source: Source,
  { name, shape }: Source["tensors"][number],
  rows?: number,
): Generator<Float32Array<ArrayBuffer>> {
  const { weights } = source, addAdapter = adapterOf(source, name);
  const file = weights.get(name)!, { dtype, length } = file.tensors.get(name)!;
  const cols = shape[1] ?? 1, row = cols * (dtype === "F32" ? 4 : 2); // bytes
  const step = row * (rows ?? Math.max(1, Math.floor(PIECE / cols)));
  for (let begin = 0; begin < length; begin += step) {
    const values = toFloat32(file.read(name, begin, Math.min(length, begin + step)), dtype);
    addAdapter?.(values, begin / row);
    yield values;
  }
}

/** What adds alpha / rank B A to values of a weight from a row on, in float64, so that each is rounded once; undefined without one. */
function adapterOf({ config, weights }: Source, name: string) {
  const names = adapterNames(name);
  if (!config.lora || !weights.has(names.A)) return undefined;
  const { rank, alpha } = config.lora;
  const read = (name: string) => {
    const file = weights.get(name)!;
    return toFloat32(file.read(name), file.tensors.get(name)!.dtype);
  };
  const A = read(names.A), B = read(names.B);
  const cols = A.length / rank, sum = new Float64Array(cols);
  return (values: Float32Array, first: number): void => {
    for (let row = 0; row < values.length / cols; row++) {
      sum.fill(0);
      for (let k = 0; k < rank; k++) {
        const b = alpha / rank * B[(first + row) * rank + k]!;
        for (let c = 0; c < cols; c++) sum[c]! += b * A[k * cols + c]!;
      }
      for (let c = 0; c < cols; c++) values[row * cols + c]! += sum[c]!;
    }
  };
}

/** Says of a value that a type cannot hold which it is. Others than the RangeError of fromFloat32() go on. */
function encode<T>(values: Float32Array, type: string, { name }: { name: string }, run: () => T): T {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof RangeError && /^\d+$/.test(error.message))) throw error;
    const value = values[Number(error.message)]!;
    throw new UserError(
      Number.isFinite(value)
        ? `Cannot export ${name}: it has ${value}, too large for ${type}; use --dtype=f32`
        : `Cannot export ${name}: it has ${value}, should have finite numbers alone; use another checkpoint`,
    );
  }
}

// ---- gguf

/** Refuses to write over anything but, with --overwrite, another GGUF file. */
function requireFree({ out, overwrite }: Options): void {
  if (isDirectory(out)) {
    throw new UserError(
      `Cannot write ${out}: it is a directory, should be a file; use --out=${out}/model.gguf`,
    );
  }
  if (isFile(out) && !isGguf(out)) {
    throw new UserError(`Cannot write ${out}: it is there already and no GGUF file; choose another --out`);
  }
  if (isFile(out) && !overwrite) {
    throw new UserError(
      `Cannot write ${out}: it is there already; add --overwrite to write another in its place`,
    );
  }
}

/** Writes a GGUF file under a temporary name, and gives it its own when it is on the disk; returns what to say. */
function exportGguf(source: Source, type: GgufType, { checkpoint, out }: Options): string {
  const { directory, config, tokenizer } = source, architecture = ARCHITECTURES[config.family ?? "llama"];
  const title = basename(runOfCheckpoint(checkpoint)) || "model", ends = endsOf(directory, tokenizer);
  const model = orRefused(directory, () => modelSettings(config, architecture, { title, type }));
  const { settings, pre, notes } = ggufTokenizer(directory, tokenizer, config.vocab_size, ends);
  const tensors = ggufTensors(source, type, architecture), temporary = `${out}.tmp`, parent = dirname(out);
  orMistake(`Cannot write ${out}`, () => makeDirectory(parent));
  try {
    const bytes = formatBytes(writeGguf(temporary, { ...model, ...settings }, tensors, out));
    rename(temporary, out);
    syncDirectory(parent);
    const what = `${architecture.name} of ${parametersOf(source)}, ${type}, ${bytes}, tokenizer ${pre}`;
    return [`${out}: ${what}`, ...notes.map((note) => `note: ${note}`)].join("\n");
  } catch (error) {
    tryToRemove(temporary);
    throw error;
  }
}

function ggufTensors(source: Source, type: GgufType, architecture: Architecture): GgufTensor[] {
  const { tensors, config } = source, factors = ropeFactors(config);
  const all = tensors.map((tensor): GgufTensor => {
    const name = ggufName(tensor.name), stored = typeOf(tensor.shape, type);
    if (name === undefined) throw new Error(`internal: ${tensor.name} has no name in llama.cpp`);
    const heads = headsOf(tensor.name, config, architecture), cols = tensor.shape[1] ?? 1;
    function* pieces() {
      for (const values of floatsOf(source, tensor, heads && tensor.shape[0]! / heads)) {
        const ordered = heads ? interleave(values, cols) : values;
        yield encode(ordered, stored, tensor, () => encodeValues(ordered, stored));
      }
    }
    return { name, shape: tensor.shape, type: stored, pieces };
  });
  if (factors) {
    const pieces = () => [encodeValues(factors, "f32")];
    all.push({ name: "rope_freqs.weight", shape: [factors.length], type: "f32", pieces });
  }
  return all;
}

/** Says of a model what llama.cpp does not compute. */
function orRefused<T>(directory: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UserError(
      `Cannot export ${directory} to GGUF: ${error.message}; --format=hf writes a directory for transformers instead`,
    );
  }
}

function parametersOf({ tensors }: Source): string {
  const sizes = tensors.map(({ shape }) => shape.reduce((a, b) => a * b));
  return `${formatCount(sizes.reduce((a, b) => a + b))} parameters`;
}

// ---- hf

/** The small files of a model that are copied as they are. */
const COPIED = [
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
];

/** Refuses a directory with anything in it but, with --overwrite, an earlier export. */
function requireFreeDirectory({ out, overwrite }: Options): void {
  if (isFile(out)) throw new UserError(`Cannot write ${out}: it is a file, should be a directory`);
  const all = isDirectory(out) ? Array.from(Deno.readDirSync(out), ({ name }) => name) : [];
  const names = all.filter((name) => !TEMPORARY.test(name)); // which a kill left, and writing removes
  const other = names.find((name) => ![...COPIED, "config.json", "model.safetensors"].includes(name));
  if (other !== undefined) {
    throw new UserError(
      `Cannot write ${out}: it has ${other}, which no export writes; choose another directory`,
    );
  }
  if (names.length > 0 && !overwrite) {
    throw new UserError(
      `Cannot write ${out}: it holds a model already; add --overwrite to write another in its place`,
    );
  }
}

/** Writes a directory that transformers opens; returns what to say. */
function exportHF(source: Source, type: GgufType, { out }: Options): string {
  const { directory, tensors } = source;
  const dtype = ({ f32: "F32", bf16: "BF16", f16: "F16" } as Record<string, Exclude<Dtype, "I32">>)[type]!;
  const torch_dtype = { F32: "float32", BF16: "bfloat16", F16: "float16" }[dtype];
  const copied = COPIED.filter((name) => isFile(`${directory}/${name}`));
  const gone = COPIED.filter((name) => !copied.includes(name)); // an earlier model in its place may have had them
  const files = Object.fromEntries(
    copied.map((name) => [name, Deno.readTextFileSync(`${directory}/${name}`)]),
  );
  const { dtype: _, ...config } = source.json; // transformers 5 has dtype, and reads torch_dtype too
  const entries = tensors.map((tensor): Entry => ({
    name: tensor.name,
    dtype,
    shape: tensor.shape,
    *bytes() {
      for (const values of floatsOf(source, tensor)) {
        yield encode(values, type, tensor, () => fromFloat32(values, dtype));
      }
    },
  }));
  files["config.json"] = json({ ...config, torch_dtype });
  orMistake(`Cannot write ${out}`, () => writeModelFiles(out, entries, files, gone));
  return `${out}: a model of ${parametersOf(source)}, ${type}, for transformers`;
}

if (import.meta.main) await runMain(main);
