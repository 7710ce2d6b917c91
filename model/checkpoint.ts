// A Llama as a checkpoint: which ranges of memory are which Hugging Face tensors, which files stand beside them, and back.
import { basename } from "node:path";
import type { Dataset } from "../data/bins.ts";
import { openTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { orMistake } from "../base/system_error.ts";
import {
  fillTensors,
  loadCheckpoint,
  momentsFiles,
  READ_BYTES,
  requireFinite,
  resolveCheckpoint,
  type SavedTensor,
  saveModelFiles,
  type Stretch,
  weightsFile,
} from "../runtime/checkpoint.ts";
import type { Saver } from "../runtime/saver.ts";
import { readSafetensors, readWeights, type SafetensorsFile, weightsIn } from "../runtime/safetensors.ts";
import { type AdamW, type LoadValues, Parameters, type Range } from "../runtime/optim.ts";
import { KERNELS, readSums, requireSum, requireSums, type Sums } from "../runtime/sums.ts";
import { bytesPerElement, named } from "../runtime/tensor.ts";
import { json, readJson, readTrainerState } from "../runtime/trainer_state.ts";
import { device } from "../ffi/library.ts";
import type { Ranks } from "../dist/ranks.ts";
import type { Log } from "../runtime/metrics.ts";
import { choicesNow, choicesText } from "./choices.ts";
import type { Outcome } from "./guard.ts";
import type { Progress, ProgressConfig } from "./progress.ts";
import { VERSIONS } from "./report.ts";
import { declaredBy, differences, fileTensors, requireWeights, unpaddedShape } from "./hf.ts";
import { configFromHF, configToHF, generationConfig } from "./hf_config.ts";
import { init, type Llama, type LlamaConfig } from "./llama.ts";
import {
  adapterFiles,
  type Base,
  baseOf,
  readAdapterConfig,
  requireBaseAt,
  requireSameBase,
} from "./lora.ts";
import { isAdapter, trainsOf } from "./trained.ts";

/** What is saved of a run, and read here of the variables of train.ts. */
export type RunToSave = {
  config: ProgressConfig & { out_dir: string; keep_checkpoints: number };
  c: LlamaConfig;
  base: Base | undefined; // of adapters
  dataset: Dataset;
  tokenizer: Tokenizer | undefined;
  optimizer: AdamW;
  ranks: Ranks;
  log: Log;
  progress: Progress;
  saver: Saver;
};

/** Makes ready what saveRun() needs in memory, beside the first steps. All ranks call it. */
export async function prepareToSave({ c, optimizer, saver }: RunToSave): Promise<void> {
  await saver.prepare({
    model: modelTensors(optimizer.parameters, c),
    optimizer: optimizerTensors(optimizer),
  });
}

/** Saves the checkpoint of a step, all ranks together; they may still be writing it when this returns. */
export async function saveRun(
  { config, c, base, dataset, tokenizer, optimizer, log, progress, saver }: RunToSave,
  { step, result: { updates, skipped, skipped_row }, val_loss }: Outcome,
): Promise<void> {
  const { best } = progress, choices = choicesNow(c.head_dim);
  if (val_loss !== undefined && val_loss < (best.val_loss ?? Infinity)) {
    [best.val_loss, best.step] = [val_loss, step];
  }
  const content = {
    model: modelTensors(optimizer.parameters, c),
    optimizer: optimizerTensors(optimizer),
    files: {
      ...modelFiles(optimizer.parameters, c, dataset, tokenizer, base),
      ...choices ? { [KERNELS]: choicesText(choices) } : {},
    },
    state: {
      step,
      updates,
      skipped,
      skipped_row,
      ...progress.consumed(step),
      val_loss: val_loss ?? null,
      best_val_loss: best.val_loss,
      best_step: best.step,
      tokenizer: dataset.tokenizer,
      data: dataset.sha256,
      config,
      versions: VERSIONS,
    },
  };
  log.sync();
  optimizer.gathered();
  await saver.save(config.out_dir, content, config.keep_checkpoints);
}

/**
 * What is saved of the weights: all, those of a Llama as Hugging Face tensors, row ranges of our stacked matrices; of LoRA the
 * adapters alone.
 */
export function modelTensors(parameters: Parameters, c: LlamaConfig): (SavedTensor & Stretch)[] {
  const offsets = new Map(parameters.slots.map(({ name, offset }) => [name, offset]));
  const saved = parameters.slots.filter(({ name }) => !c.lora || isAdapter(name));
  return fileTensors(declaredBy(saved), c).map(({ name, shape, ours, first }) => {
    const bytes = (offsets.get(ours)! + first) * bytesPerElement("act");
    return { name, shape, address: parameters.weights.address + BigInt(bytes), dtype: "act" };
  });
}

/**
 * Adam's moments, of what Muon updates the first one alone, and the float32 master weights where the weights are bfloat16, under
 * our own names, without padding: the ranges in `wanted`, which this rank must have. To save, its part of them: the other ranks
 * save theirs.
 */
export function optimizerTensors(optimizer: AdamW, wanted: Range = optimizer.parameters.part): SavedTensor[] {
  const p = optimizer.parameters;
  const kinds = p.rest ? ["master", "m", "v"] as const : ["m", "v"] as const;
  return kinds.flatMap((kind) =>
    p.trained.flatMap((slot) => {
      const shape = unpaddedShape(slot.tensor), size = shape.reduce((a, b) => a * b, 1);
      const from = Math.max(0, wanted.from - slot.offset), to = Math.min(size, wanted.to - slot.offset);
      const range = from < to ? { from, to } : { from: 0, to: 0 }, element = slot.offset + range.from;
      const saved = { name: `${kind}.${slot.name}`, shape, range };
      if (kind === "master") return { ...saved, masters: p, element };
      const address = kind === "m" ? optimizer.firstMomentAt(element) : optimizer.secondMomentAt(element);
      return address === undefined ? [] : { ...saved, address, dtype: "f32" as const };
    })
  );
}

/**
 * The small files of a model directory, or of adapters for a base, with those of its tokenizer if it has one. All say the same
 * of the tokens that the texts that it was trained on began and ended with.
 */
function modelFiles(
  parameters: Parameters,
  c: LlamaConfig,
  { bos, eot }: Pick<Tokenizer, "bos" | "eot">,
  tokenizer: Pick<Tokenizer, "files"> | undefined,
  base?: Base,
): Record<string, string> {
  const options = {
    bos_token_id: bos,
    eos_token_id: eot,
    dtype: device.act === "bf16" ? "bfloat16" as const : "float32" as const,
  };
  const files: Record<string, string> = {
    ...c.lora && base ? adapterFiles(c.lora, base) : {
      "config.json": json(configToHF(c, options, differences(declaredBy(parameters.slots), c))),
    },
    "generation_config.json": json(generationConfig(options)),
    ...tokenizer?.files(bos),
  };
  const name = "tokenizer_config.json", config = files[name];
  if (config === undefined) return files;
  return {
    ...files,
    [name]: json({ ...JSON.parse(config), model_max_length: c.max_position_embeddings ?? c.block_size }),
  };
}

/** The tokens that end a text of a model: as in transformers the eos_token_id that its files name, or else the tokenizer's. */
export function endsOf(directory: string, tokenizer: Pick<Tokenizer, "eot">): readonly number[] {
  for (const name of ["generation_config.json", "config.json"]) {
    const path = `${directory}/${name}`, { eos_token_id } = isFile(path) ? readJson(path) : {};
    if (eos_token_id === undefined || eos_token_id === null) continue;
    const ids = [eos_token_id].flat();
    if (ids.every((id): id is number => Number.isSafeInteger(id) && id as number >= 0)) return ids;
    throw new UserError(
      `Cannot use ${path}: eos_token_id is ${
        JSON.stringify(eos_token_id)
      }, and should be an id or a list of them`,
    );
  }
  return [tokenizer.eot];
}

/** The tokenizer in the directory of a model. Throws UserError, which says what cannot be done, where it is of another one. */
export async function tokenizerFor(
  doing: string,
  directory: string,
  { vocab_size }: LlamaConfig,
): Promise<Tokenizer> {
  const tokenizer = await openTokenizer(directory);
  if (tokenizer.vocab_size <= vocab_size) return tokenizer;
  throw new UserError(
    `Cannot ${doing}: the tokenizer in ${directory} has ${tokenizer.vocab_size} tokens, the model ${vocab_size}`,
  );
}

/** A model in files: what its config.json says and where its weights are. base: where those are that its adapters are for. */
export type StoredModel = {
  directory: string;
  config: LlamaConfig;
  weights: Map<string, SafetensorsFile>;
  sums: Sums | undefined;
  base?: Base;
};

/**
 * Opens a run directory, one of its checkpoints, or a Hugging Face directory of a class that loam computes. Reads headers, and
 * compares what has a checksum; readsAll = false: of small files alone, and no base, as for ranks whose weights are then compared
 * with the first one's. Throws UserError for what is missing, damaged or not computed.
 */
export function openModel(path: string, readsAll = true): StoredModel {
  const directory = resolveCheckpoint(path), sums = readSums(directory);
  if (sums) requireSums(directory, sums, (name) => /\.json$/.test(name) && isFile(`${directory}/${name}`));
  const adapter = readAdapterConfig(directory);
  const model = adapter && openModel(baseDirectory(directory, adapter.path), readsAll);
  const config = storedConfig(directory);
  const weights = adapter ? weightsIn(weightsFile(directory)) : readWeights(directory);
  if (sums && readsAll) {
    for (const { path } of new Set(weights.values())) requireSum(path, sums.get(basename(path)));
  }
  if (!model) return { directory, config, weights, sums };
  const both = { directory, config, weights: new Map([...model.weights, ...weights]), sums };
  if (!readsAll) return both;
  const base = baseOf(model.directory, model.weights, model.sums);
  requireSameBase(directory, base);
  return { ...both, base };
}

/** Where the model is that the adapters in a directory are for. */
function baseDirectory(directory: string, path: string): string {
  requireBaseAt(directory, path);
  const base = resolveCheckpoint(path);
  if (!readAdapterConfig(base)) return base;
  throw new UserError(`Cannot load ${directory}: its base in ${path} holds adapters itself`);
}

/** The model that the config.json of a directory describes, or of the base of its adapters. Throws UserError for what is not computed. */
export function storedConfig(directory: string): LlamaConfig {
  const adapter = readAdapterConfig(directory);
  if (!adapter) return configFromHF(readJson(`${directory}/config.json`), `${directory}/config.json`);
  return { ...storedConfig(baseDirectory(directory, adapter.path)), lora: adapter.lora };
}

/** What a model directory holds, in words. Throws UserError as weightsFor() at first. */
export function describeStored(stored: StoredModel): string {
  const { directory, config, weights } = stored;
  weightsFor(init(config), config, stored);
  const types = new Set(Array.from(weights, ([name, { tensors }]) => tensors.get(name)!.dtype));
  return `${directory}: ${config.family ?? "llama"}, weights of ${Array.from(types).join(" and ")}`;
}

/**
 * What gives Parameters the stored weights of a model, of which adapters may be new. Throws UserError where the files hold others
 * than the model declares, and then for a value that is not finite.
 */
export function weightsFor(model: Llama, c: LlamaConfig, stored: StoredModel): LoadValues {
  const { directory, weights } = stored;
  const declared = named(model).filter(([name]) => stored.config.lora || !isAdapter(name));
  const wanted = fileTensors(declaredBy(declared.map(([name, tensor]) => ({ name, tensor }))), c);
  requireWeights(directory, weights, wanted, c);
  const parts = Map.groupBy(wanted, ({ ours }) => ours), piece = new Uint8Array(READ_BYTES);
  return (name, address) => {
    if (!parts.has(name)) return false;
    const tensors = parts.get(name)!.map(({ name, shape, first }) => (
      { name, shape, address: address + BigInt(4 * first), dtype: "f32" as const }
    ));
    fillTensors(weights, tensors, piece);
    for (const tensor of tensors) {
      requireFinite(`Cannot load ${weights.get(tensor.name)!.path}`, tensor, "use another copy of the model");
    }
    return undefined;
  };
}

/** Whether the files hold nothing but bfloat16 for the matrices of a model, adapters aside. */
function isHalf({ weights }: StoredModel): boolean {
  return Array.from(weights, ([name, { tensors }]) => ({ name, ...tensors.get(name)! }))
    .filter(({ name, shape }) => shape.length > 1 && !/\.lora_[AB]\./.test(name))
    .every(({ dtype }) => dtype === "BF16");
}

/**
 * Whether the base of adapters is bfloat16 in the memory of a CPU while they train: where its files hold nothing else, and
 * products round their inputs anyway, so that it changes no bit.
 */
export function trainsOnHalf(c: LlamaConfig, stored: StoredModel): boolean {
  return c.lora !== undefined && device.bf16_gemm === true && isHalf(stored);
}

/** What matrices are in memory on a CPU; auto: bfloat16 where the files hold nothing else, so that no value is rounded. */
export type WeightType = "auto" | "float32" | "bfloat16";

/** What --dtype of sample, chat, eval and serve may be. */
export const WEIGHT_TYPES: readonly WeightType[] = ["auto", "float32", "bfloat16"];

/** Options of loadModel(). train: with gradients, for an AdamW; then weights are float32, or on a GPU bfloat16. */
export type LoadOptions = { train?: boolean; dtype?: WeightType };

/** A model in memory, and where it comes from. */
export type LoadedModel = { model: Llama; config: LlamaConfig; parameters: Parameters; directory: string };

/**
 * A model ready to run, from a run directory, one of its checkpoints, or a Hugging Face directory of a class that loam
 * computes; with `train` its parameters have gradients, for an AdamW. Throws UserError for what is missing, damaged or not
 * computed.
 */
export function loadModel(path: string, { train = false, dtype = "float32" }: LoadOptions = {}): LoadedModel {
  const stored = openModel(path), { directory, config } = stored, model = init(config);
  const load = weightsFor(model, config, stored);
  const half = !train && (dtype === "bfloat16" || dtype === "auto" && isHalf(stored));
  const trains = trainsOf(model, "");
  return {
    model,
    config,
    parameters: new Parameters(model, { seed: 0, train, trains, load, half }),
    directory,
  };
}

/**
 * Writes the weights, config.json and the files of the tokenizer to a directory, as loadModel() and Hugging Face's
 * transformers read it. Throws UserError when they cannot be written.
 */
export function saveModel(
  directory: string,
  parameters: Parameters,
  c: LlamaConfig,
  tokenizer: Pick<Tokenizer, "bos" | "eot" | "files">,
): void {
  if (isFile(`${directory}/trainer_state.json`)) {
    throw new UserError(
      `Cannot write ${directory}: it holds a checkpoint of a run; choose another directory`,
    );
  }
  if (c.lora) {
    throw new UserError(
      `Cannot write ${directory}: the model has adapters beside its weights; merge them: deno task export --merge`,
    );
  }
  orMistake(`Cannot write ${directory}`, () => {
    const files = modelFiles(parameters, c, tokenizer, tokenizer);
    saveModelFiles(directory, modelTensors(parameters, c), files);
  });
}

/** Puts weights and optimizer state of a checkpoint back into a run that goes on. The architecture must be the same. */
export async function resumeFrom(directory: string, c: LlamaConfig, optimizer: AdamW): Promise<void> {
  const stored = storedConfig(directory), state = readTrainerState(directory), p = optimizer.parameters;
  const saved: LlamaConfig = {
    ...stored,
    block_size: state.config.block_size as number,
    ...(c.max_position_embeddings === undefined
      ? {}
      : { max_position_embeddings: stored.max_position_embeddings ?? stored.block_size }),
  };
  if (saved.vocab_size !== c.vocab_size) {
    throw new UserError(
      `Cannot resume ${directory}: its vocab_size is ${saved.vocab_size}, that of the data is ${c.vocab_size}; ` +
        `use data of the same tokenizer, such as --data_dir=${state.config.data_dir}`,
    );
  }
  const keys = Object.keys({ ...saved, ...c }) as (keyof LlamaConfig)[];
  const different = keys.filter((key) => JSON.stringify(saved[key]) !== JSON.stringify(c[key]));
  if (different.length > 0) {
    const text = (value: unknown) => typeof value === "object" ? JSON.stringify(value) : `${value}`;
    const list = different.map((key) => `${key} is ${text(saved[key])} there and ${text(c[key])} here`).join(
      ", ",
    );
    throw new UserError(
      `Cannot resume ${directory}: ${list}; leave these variables out, or start a new run with another out_dir`,
    );
  }
  const sums = readSums(directory);
  const model = modelTensors(p, c), moments = optimizerTensors(optimizer, p.updated);
  await loadCheckpoint(directory, model, moments, sums);
  refuseMore(weightsFile(directory), model);
  for (const path of momentsFiles(directory)) refuseMore(path, moments);
  optimizer.restore(state);
}

/** Throws UserError naming a tensor in a file that is none of those wanted: the model would go on without it. */
function refuseMore(path: string, wanted: SavedTensor[]): void {
  const names = new Set(wanted.map(({ name }) => name)), { tensors } = readSafetensors(path);
  const more = tensors.keys().find((name) => !names.has(name));
  if (more === undefined) return;
  throw new UserError(
    `Cannot load ${path}: it has ${more} (${tensors.get(more)!.shape}), which the model lacks`,
  );
}
