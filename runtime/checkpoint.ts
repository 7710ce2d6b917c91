// Checkpoints. Each is a Hugging Face model directory (config.json, model.safetensors, tokenizer) with three files beside
// it: optimizer.safetensors (float32 master weights where they differ, m, v), trainer_state.json, and SHA256SUMS of all of
// them. It is written under a temporary name, synced, and renamed; `latest` then names it. A kill at any moment leaves the
// previous one whole.
import { basename, dirname } from "node:path";
import { KernelError, UserError } from "../base/errors.ts";
import {
  isDirectory,
  isFile,
  makeDirectory,
  noDirectory,
  removeTemporary,
  removeTree,
  rename,
  syncDirectory,
  tryToRemove,
  writeAtomic,
  writeSynced,
} from "../base/files.ts";
import { BF16, copyToDevice, copyToHost, F32, findNonFinite } from "../ffi/library.ts";
import * as k from "../ffi/kernels.ts";
import type { Range } from "./optim.ts";
import {
  createSafetensors,
  type Entry,
  fillSafetensors,
  INDEX,
  readSafetensors,
  type SafetensorsFile,
  toFloat32,
  writeSafetensors,
} from "./safetensors.ts";
import { release, take } from "./memory.ts";
import { requireSum, SUMS, type Sums, writeSums } from "./sums.ts";
import { type Address, bytesPerElement, readFloats } from "./tensor.ts";
import { checkpointName, json, type TrainerState } from "./trainer_state.ts";

/** A contiguous range of device memory under the name and shape it has on disk. */
export type SavedTensor = {
  name: string;
  shape: number[];
  address: Address; // of its first element, or of element `from`
  dtype: "act" | "f32";
  range?: Range; // of elements that this process holds, where others hold the rest
};

/** What a checkpoint holds. */
export type CheckpointContent = {
  model: SavedTensor[];
  optimizer: SavedTensor[];
  files: Record<string, string>; // config.json, tokenizer.json, ...
  state: TrainerState;
};

const CHUNK_BYTES = 1 << 24; // staging between device and file; a multiple of 4

/** Staging the other way, in bytes: what stays in a processor's cache until it is converted. */
export const READ_BYTES: number = 1 << 21;

/** What ranks that save one checkpoint together need of each other. */
export type Company = {
  /** This process, from 0. */
  rank: number;
  /** Waits until all ranks are here. */
  barrier(): Promise<void>;
};

const ALONE: Company = { rank: 0, barrier: () => Promise.resolve() };

/**
 * Writes runDir/checkpoints/step_000123 and moves `latest` (and `best`) to it, then removes all but the newest `keep`
 * checkpoints and the best. Returns its path. Throws UserError when it cannot be written, or a value is not finite; the
 * previous ones stay as they are.
 * Of several ranks all call it: each writes its ranges of the optimizer's tensors, rank 0 everything else.
 */
export async function saveCheckpoint(
  runDir: string,
  content: CheckpointContent,
  keep: number,
  company: Company = ALONE,
  chunk_bytes: number = CHUNK_BYTES,
): Promise<string> {
  const parent = `${runDir}/checkpoints`, name = checkpointName(content.state.step);
  const temporary = `${parent}/${HALF}${name}`, final = `${parent}/${name}`;
  const model = `${temporary}/model.safetensors`, optimizer = `${temporary}/optimizer.safetensors`;
  const isFirst = company.rank === 0, moments = entries(content.optimizer, chunk_bytes);
  requireAllFinite(final, [...content.model, ...content.optimizer]);
  try {
    if (isFirst) {
      removeTree(temporary); // left by a kill
      makeDirectory(temporary);
      writeSafetensors(model, entries(content.model, chunk_bytes));
      createSafetensors(optimizer, moments);
    }
    await company.barrier();
    fillSafetensors(optimizer, moments);
    await company.barrier();
    if (isFirst) {
      finishCheckpoint(runDir, temporary, final, content, keep);
    }
    await company.barrier();
    return final;
  } catch (error) {
    if (isFirst) tryToRemove(temporary);
    if (error instanceof Deno.errors.NotCapable || error instanceof KernelError) throw error;
    const { message } = error as Error, earlier = listCheckpoints(runDir).at(-1);
    const isFull = /no space|too large|quota/i.test(message);
    throw new UserError(
      `Cannot save checkpoint ${final}: ${message}; ${isFull ? "free some space" : "mend that"} and ` +
        (earlier
          ? `go on from ${earlier}, which is whole: --resume=${runDir}`
          : `start again with --out_dir=${runDir} --resume=auto, none was saved before`),
    );
  }
}

/** Adds the small files, gives the checkpoint its name, and removes older ones. */
function finishCheckpoint(
  runDir: string,
  temporary: string,
  final: string,
  { files, state }: CheckpointContent,
  keep: number,
): void {
  const parent = dirname(final);
  for (const [file, text] of Object.entries(files)) writeSynced(`${temporary}/${file}`, text);
  writeSynced(`${temporary}/trainer_state.json`, json(state));
  writeSums(temporary);
  syncDirectory(temporary);
  rename(temporary, final);
  syncDirectory(parent);
  settle(runDir, state, keep);
}

/**
 * Makes true what follows from the newest checkpoint of a run, also where an earlier process was killed before it had done so:
 * `latest` and `best` name checkpoints that are there, all but the newest `keep` (two at least) and the best are gone, and so is what was
 * half-written. state: that of the newest checkpoint; undefined for a run that has none. The caller holds the lock of the run.
 */
export function settle(runDir: string, state: TrainerState | undefined, keep: number): void {
  const parent = `${runDir}/checkpoints`, best_step = state?.best_step ?? null;
  point(runDir, "latest", state && checkpointName(state.step));
  point(runDir, "best", best_step === null ? undefined : checkpointName(best_step));
  for (const name of namesIn(parent)) {
    if (name.startsWith(HALF)) removeTree(`${parent}/${name}`);
  }
  removeTemporary(runDir);
  const old = listCheckpoints(runDir).slice(0, -Math.max(LEAST_KEPT, keep)).filter((name) =>
    best_step === null || name !== checkpointName(best_step)
  );
  for (const name of old) rename(`${parent}/${name}`, `${parent}/${HALF}${name}`); // never half a checkpoint under its name
  if (old.length > 0) syncDirectory(parent);
  for (const name of old) removeTree(`${parent}/${HALF}${name}`);
}

const LEAST_KEPT = 2; // only a later step, which the next checkpoint is saved after, shows that the weights of one compute
const HALF = ".tmp_"; // begins the name of a checkpoint that is being written or removed

/** Writes the file that names a checkpoint, unless it does already; removes it where it would name none. */
function point(runDir: string, pointer: "latest" | "best", name: string | undefined): void {
  const path = `${runDir}/${pointer}`, text = `checkpoints/${name}\n`;
  if (name === undefined || !listCheckpoints(runDir).includes(name)) return removeTree(path);
  if (!isFile(path) || Deno.readTextFileSync(path) !== text) writeAtomic(path, text);
}

/** Names of the whole checkpoints of a run, oldest first. */
export function listCheckpoints(runDir: string): string[] {
  return namesIn(`${runDir}/checkpoints`).filter((name) => /^step_\d+$/.test(name))
    .sort((a, b) => Number(a.slice(5)) - Number(b.slice(5)));
}

function namesIn(directory: string): string[] {
  try {
    return Array.from(Deno.readDirSync(directory), (entry) => entry.name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}

/** Whether a directory already holds a training run. A config.json alone says nothing: each model has one. */
export function holdsRun(dir: string): boolean {
  return isFile(`${dir}/metrics.jsonl`) || isFile(`${dir}/run.json`) || listCheckpoints(dir).length > 0;
}

/** The directory that holds the weights: path itself, the newest checkpoint of the run at path, or what RUN/best names. */
export function resolveCheckpoint(given: string): string {
  const path = behindPointer(given);
  if (isFile(`${path}/model.safetensors`) || isFile(`${path}/${INDEX}`)) return path;
  const newest = listCheckpoints(path).at(-1);
  if (newest) return `${path}/checkpoints/${newest}`;
  throw new UserError(
    otherWeights(path) ??
      (holdsRun(path)
        ? `Cannot find a checkpoint in ${path}: its run has saved none; wait for one if it is still training, else ` +
          "train again with another --out_dir"
        : `Cannot find a checkpoint in ${path}: ${
          isDirectory(path)
            ? "it must hold model.safetensors, or be a run directory with checkpoints/"
            : noDirectory(path)
        }; ${
          isFile(path)
            ? "name a run, or a directory below its checkpoints/"
            : `train one with: deno task train --out_dir=${path}`
        }`),
  );
}

/** What to say of a directory that holds a model without the weights that are looked for; undefined for others. */
function otherWeights(path: string): string | undefined {
  const names = namesIn(path).sort(), cannot = `Cannot load the model in ${path}: it has`;
  if (!names.includes("config.json") || holdsRun(path)) return undefined;
  const shard = names.find((name) => name.endsWith(".safetensors"));
  if (shard) return `${cannot} ${shard} but not ${INDEX}, which lists such files; put that there too`;
  const pickled = names.find((name) => /^pytorch_model.*\.bin$/.test(name));
  if (!pickled) return `${cannot} a config.json but no model.safetensors; put that there too`;
  const convert = "import transformers as t; " +
    `[c.from_pretrained('${path}').save_pretrained('${path}-safetensors') for c in (t.AutoModelForCausalLM, t.AutoTokenizer)]`;
  return `${cannot} ${pickled} but no model.safetensors; convert it: python3 -c "${convert}"`;
}

/** The checkpoint that a run has at RUN/latest or RUN/best, which are files with its name; any other path as it is. */
function behindPointer(path: string): string {
  const run = runOfPointer(path), pointer = path.replace(/\/+$/, "");
  if (run === undefined) return path;
  const named = isFile(pointer) ? `${run}/${Deno.readTextFileSync(pointer).trim()}` : "";
  if (isDirectory(named)) return named;
  if (listCheckpoints(run).length === 0 || basename(pointer) === "latest") return run;
  throw new UserError(
    `Cannot find ${path}: the run has evaluated no checkpoint that is there; take the newest: ${run}`,
  );
}

/** The run of RUN/latest and RUN/best; undefined for other paths, such as that of a run which is called best. */
function runOfPointer(path: string): string | undefined {
  const run = /^(.+)\/(latest|best)\/*$/.exec(path)?.[1];
  return run !== undefined && holdsRun(run) ? run : undefined;
}

/** The run directory of a path given to --resume: a run, one of its checkpoints, or RUN/latest or RUN/best. */
export function runOfCheckpoint(path: string): string {
  const clean = (runOfPointer(path) ?? path).replace(/\/+$/, "");
  return isFile(`${clean}/model.safetensors`) ? clean.replace(/\/checkpoints\/[^/]+$/, "") : clean;
}

/**
 * Fills tensors from a file of a checkpoint. Every tensor must be there with the same shape. sums: those of the
 * directory, where it has some; they are compared first. Throws UserError naming file, tensor and difference.
 */
export function loadTensors(
  path: string,
  tensors: SavedTensor[],
  sums?: Sums,
  chunk_bytes: number = READ_BYTES,
): void {
  const file = readSafetensors(path);
  if (sums) requireSum(path, sums.get(basename(path)));
  const weights = new Map(Array.from(file.tensors.keys(), (name) => [name, file]));
  requireTensors(path, weights, tensors);
  fillTensors(weights, tensors, new Uint8Array(chunk_bytes));
}

/** Throws UserError naming the first tensor that is not there, of another shape, or not of floats. */
export function requireTensors(
  path: string,
  weights: Map<string, SafetensorsFile>,
  tensors: Pick<SavedTensor, "name" | "shape">[],
): void {
  for (const { name, shape } of tensors) {
    const file = weights.get(name), found = file?.tensors.get(name);
    if (!file || !found) {
      throw new UserError(`Cannot load ${path}: it has no tensor ${name} of shape (${shape})`);
    }
    if (`${found.shape}` !== `${shape}`) {
      throw new UserError(
        `Cannot load ${file.path}: ${name} is (${found.shape}), the model wants (${shape})`,
      );
    }
    if (found.dtype === "I32") {
      throw new UserError(`Cannot load ${file.path}: ${name} is ${found.dtype}, it must be F32, BF16 or F16`);
    }
  }
}

/** Fills tensors from the files that hold them, through `piece`; requireTensors() comes before. */
export function fillTensors(
  weights: Map<string, SafetensorsFile>,
  tensors: SavedTensor[],
  piece: Uint8Array<ArrayBuffer>,
): void {
  for (const tensor of tensors) loadTensor(weights.get(tensor.name)!, tensor, piece);
}

function loadTensor(
  file: SafetensorsFile,
  { name, address, dtype, range, shape }: SavedTensor,
  piece: Uint8Array<ArrayBuffer>,
): void {
  const stored = file.tensors.get(name)!.dtype, size = stored === "F32" ? 4 : 2, to = bytesPerElement(dtype);
  const wanted = range ?? whole(shape), first = wanted.from * size, end = wanted.to * size; // bytes of the stored tensor
  for (let begin = first; begin < end; begin += piece.length) {
    const read = file.read(name, begin, Math.min(end, begin + piece.length), piece);
    const target = address + BigInt((begin - first) / size * to);
    const bytes = stored === "F16" ? new Uint8Array(toFloat32(read, stored).buffer) : read;
    const from = stored === "BF16" ? 2 : 4; // bytes of an element now
    if (from === to) copyToDevice(target, bytes);
    else {
      const staging = take(bytes.length);
      copyToDevice(staging.address, bytes);
      k.convert(
        target,
        staging.address,
        to === 2 ? BF16 : F32,
        from === 2 ? BF16 : F32,
        BigInt(bytes.length / from),
      );
      release(staging);
    }
  }
}

// ---- writing

/**
 * Writes a model without its run to a directory: its tensors and its small files by name, as writeModelFiles(). Throws
 * UserError for a value that is not finite.
 */
export function saveModelFiles(
  directory: string,
  tensors: SavedTensor[],
  files: Record<string, string>,
): void {
  requireAllFinite(directory, tensors);
  writeModelFiles(directory, entries(tensors), files);
}

/**
 * Writes model.safetensors and the small files of a model to a directory. Of one that is there already model.safetensors goes
 * before the first new file gets its name and comes back last: a kill leaves no mixture of both. gone: names of other files
 * that go with it.
 */
export function writeModelFiles(
  directory: string,
  tensors: Entry[],
  files: Record<string, string>,
  gone: string[] = [],
): void {
  const model = "model.safetensors", names = [...Object.keys(files), model];
  const temporary = (name: string) => `${directory}/${name}.${Deno.pid}.tmp`;
  makeDirectory(directory);
  removeTemporary(directory);
  try {
    for (const [name, text] of Object.entries(files)) writeSynced(temporary(name), text);
    writeSafetensors(temporary(model), tensors);
    for (const old of [model, SUMS, ...gone]) removeTree(`${directory}/${old}`);
    syncDirectory(directory);
    for (const name of names) {
      if (name === model) syncDirectory(directory);
      rename(temporary(name), `${directory}/${name}`);
    }
    syncDirectory(directory);
  } catch (error) {
    tryToRemove(...names.map(temporary));
    throw error;
  }
}

/** Throws UserError naming the first value of a tensor that is not finite: nobody could go on with it. */
export function requireFinite(cannot: string, tensor: SavedTensor, advice: string): void {
  const { name, address, dtype, range, shape } = tensor;
  const { from, to } = range ?? whole(shape), isBF16 = bytesPerElement(dtype) === 2;
  const index = from < to ? findNonFinite(address, isBF16 ? BF16 : F32, to - from) : -1;
  if (index < 0) return;
  const [value] = readFloats(address + BigInt((isBF16 ? 2 : 4) * index), 1, dtype);
  throw new UserError(`${cannot}: element ${from + index} of ${name} (${shape}) is ${value}; ${advice}`);
}

function requireAllFinite(what: string, tensors: SavedTensor[]): void {
  const advice = "lower the learning rate, or find the first bad value with --debug";
  for (const tensor of tensors) requireFinite(`Cannot save ${what}`, tensor, advice);
}

/** The tensors as writeSafetensors() wants them; they share one staging buffer. */
function entries(tensors: SavedTensor[], chunk_bytes: number = CHUNK_BYTES): Entry[] {
  const staging = new Uint8Array(chunk_bytes);
  return tensors.map((t) => ({
    name: t.name,
    dtype: bytesPerElement(t.dtype) === 2 ? "BF16" : "F32",
    shape: t.shape,
    ...(t.range ? { range: t.range } : {}),
    bytes: () => fromDevice(t, staging),
  }));
}

function* fromDevice(t: SavedTensor, staging: Uint8Array<ArrayBuffer>): Generator<Uint8Array> {
  const { from, to } = t.range ?? whole(t.shape), bytes = (to - from) * bytesPerElement(t.dtype);
  for (let begin = 0; begin < bytes; begin += staging.length) {
    const chunk = staging.subarray(0, Math.min(staging.length, bytes - begin));
    copyToHost(chunk, t.address + BigInt(begin));
    yield chunk;
  }
}

function whole(shape: number[]): Range {
  return { from: 0, to: shape.reduce((a, b) => a * b, 1) };
}
