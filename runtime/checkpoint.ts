// Checkpoints. Each is a Hugging Face model directory (config.json, model.safetensors, tokenizer) with three files beside
// it: optimizer.safetensors (float32 master weights where they differ, m, v; where it would be large several files with a part
// each, of several ranks at least one of each), trainer_state.json, and SHA256SUMS of all of them. It is written under a temporary name, synced, and renamed; `latest` then names it. A kill at any moment leaves the
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
import type { Parameters, Range } from "./optim.ts";
import {
  type Dtype,
  type Entry,
  INDEX,
  readSafetensors,
  type SafetensorsFile,
  toFloat32,
  weightsIn,
  writeSafetensors,
} from "./safetensors.ts";
import { release, take } from "./memory.ts";
import { beginCheck, SUMS, type Sums, writeSums } from "./sums.ts";
import { type Address, bytesPerElement, readFloats } from "./tensor.ts";
import { checkpointName, json, type TrainerState } from "./trainer_state.ts";

/** Elements of the model under the name and shape they have on disk. */
export type SavedTensor = {
  name: string;
  shape: number[];
  range?: Range; // of elements that this process holds, where others hold the rest
} & (Stretch | Masters);

/** A contiguous range of device memory. */
export type Stretch = {
  address: Address; // of its first element, or of element `from`
  dtype: "act" | "f32";
};

/** float32 master weights of parameters, from an element on, which lie in memory taken apart. */
export type Masters = { masters: Parameters; element: number };

/** What a checkpoint holds. */
export type CheckpointContent = {
  model: SavedTensor[];
  optimizer: SavedTensor[];
  files: Record<string, string>; // config.json, tokenizer.json, ...
  state: TrainerState;
};

/** What is large: a smaller checkpoint is written before a Worker would have started, and has one file of moments a rank. */
export const LARGE_BYTES: number = 1 << 26;

const FILES = 8; // of large moments: so many cores, which go on from them, sum them up at a time
const CHUNK_BYTES = 1 << 24; // staging between device and file; a multiple of 32: masters go by eights

/** Staging the other way, in bytes: what stays in a processor's cache until it is converted. */
export const READ_BYTES: number = 1 << 21;

const MODEL = "model.safetensors";
const ADAPTERS = "adapter_model.safetensors"; // the weights of a checkpoint whose base lies elsewhere

/** The file with the weights that a directory has, where they are in one file. */
export function weightsFile(directory: string): string {
  const adapters = `${directory}/${ADAPTERS}`;
  return isFile(adapters) ? adapters : `${directory}/${MODEL}`;
}

/** Which of several ranks a process is. */
export type Place = {
  /** This process, from 0. */
  rank: number;
  /** How many there are. */
  world_size: number;
};

/** What ranks that save one checkpoint together need of each other. */
export type Company = Place & {
  /** Waits until all ranks are here. */
  barrier(): Promise<void>;
  /** The sums of numbers (at most 8) over all ranks. */
  sum(...values: number[]): Promise<number[]>;
};

/** A process on its own. */
export const ALONE: Company = {
  rank: 0,
  world_size: 1,
  barrier: () => Promise.resolve(),
  sum: (...values) => Promise.resolve(values),
};

/**
 * Writes runDir/checkpoints/step_000123 and moves `latest` (and `best`) to it, then removes all but the newest `keep`
 * checkpoints and the best. Returns its path. Throws UserError when it cannot be written, or a value is not finite; the
 * previous ones stay as they are.
 * Of several ranks all call it: each writes files with its ranges of the optimizer's tensors, rank 0 everything else.
 */
export async function saveCheckpoint(
  runDir: string,
  content: CheckpointContent,
  keep: number,
  company: Company = ALONE,
  chunk_bytes: number = CHUNK_BYTES,
  large_bytes: number = LARGE_BYTES,
): Promise<string> {
  requireSavable(runDir, content);
  const { state } = content, staging = new Uint8Array(chunk_bytes);
  const part = partOf(content, company, large_bytes)
    .map((file) => ({ ...file, tensors: entries(file.tensors, staging) }));
  await makeRoom(runDir, state, company);
  const sums = await sumsOfAll(writePart(runDir, state, part, company), company);
  if (company.rank === 0) publish(runDir, content, keep, sums);
  await company.barrier();
  return pathOf(runDir, state);
}

/** Throws UserError unless all values of a checkpoint are finite. */
function requireSavable(runDir: string, { model, optimizer, state }: CheckpointContent): void {
  requireAllFinite(pathOf(runDir, state), [...model, ...optimizer]);
}

function pathOf(runDir: string, { step }: TrainerState): string {
  return `${runDir}/checkpoints/${checkpointName(step)}`;
}

/** A file that a rank writes. */
export type Part<T> = { file: string; tensors: T[]; metadata: Record<string, string> };

/** The files that a rank writes: rank 0 the weights, then each its ranges of the optimizer's tensors. */
export function partOf(
  { model, optimizer, files }: Omit<CheckpointContent, "state">,
  company: Place,
  large_bytes: number,
): Part<SavedTensor>[] {
  const file = "adapter_config.json" in files ? ADAPTERS : MODEL;
  const weights = company.rank === 0 ? [{ file, tensors: model, metadata: {} }] : [];
  return [...weights, ...momentsOf(optimizer, company, large_bytes)];
}

/** Makes the directory in which all ranks write their parts, for which they wait. */
export async function makeRoom(runDir: string, state: TrainerState, company: Company): Promise<void> {
  if (company.rank === 0) {
    saving(runDir, state, company, ({ temporary }) => {
      removeTree(temporary); // left by a kill
      makeDirectory(temporary);
    });
  }
  await company.barrier();
}

/** Writes the files of a rank; uses no device and waits for nobody. Returns their sums. */
export function writePart(runDir: string, state: TrainerState, part: Part<Entry>[], place: Place): Sums {
  return saving(runDir, state, place, ({ temporary }) =>
    new Map(part.map(({ file, tensors, metadata }) => [
      file,
      writeSafetensors(`${temporary}/${file}`, tensors, metadata),
    ])));
}

/** The sums of the files of all ranks, on each; they have written them then. */
export async function sumsOfAll(own: Sums, company: Company): Promise<Sums> {
  const sums: Sums = new Map(own);
  for (const file of momentsAmong([...own.keys()])) {
    sums.set(file, hexOf(await company.sum(...wordsOf(own.get(file) ?? NOT_ITS_OWN))));
  }
  return sums;
}

/**
 * Adds the small files to the parts of all ranks, gives the checkpoint its name, moves `latest` (and `best`) to it and removes
 * older ones. For rank 0; uses no device and waits for nobody. Returns its path.
 */
export function publish(
  runDir: string,
  { files, state }: Pick<CheckpointContent, "files" | "state">,
  keep: number,
  sums: Sums,
): string {
  return saving(runDir, state, ALONE, ({ temporary, final }) => {
    finishCheckpoint(runDir, temporary, final, { files, state }, keep, sums);
    return final;
  });
}

/** Does a part of the saving. Throws UserError, which says where to go on from; what is half-written goes then. */
function saving<T>(
  runDir: string,
  { step }: TrainerState,
  { rank }: Place,
  act: (paths: { temporary: string; final: string }) => T,
): T {
  const parent = `${runDir}/checkpoints`, name = checkpointName(step);
  const temporary = `${parent}/${HALF}${name}`, final = `${parent}/${name}`;
  try {
    return act({ temporary, final });
  } catch (error) {
    if (rank === 0) tryToRemove(temporary);
    if (error instanceof Deno.errors.NotCapable || error instanceof KernelError) throw error;
    if (error instanceof NotFinite) throw error;
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

/** Eight numbers that a sha256 is made of, which sum() can carry. */
function wordsOf(sha256: string): number[] {
  return Array.from({ length: 8 }, (_, i) => parseInt(sha256.slice(8 * i, 8 * i + 8), 16));
}

const NOT_ITS_OWN = "0".repeat(64);

function hexOf(words: number[]): string {
  return words.map((word) => word.toString(16).padStart(8, "0")).join("");
}

/** Adds the small files, gives the checkpoint its name, and removes older ones. */
function finishCheckpoint(
  runDir: string,
  temporary: string,
  final: string,
  { files, state }: Pick<CheckpointContent, "files" | "state">,
  keep: number,
  sums: Sums,
): void {
  const parent = dirname(final), texts = { ...files, "trainer_state.json": json(state) };
  for (const [file, text] of Object.entries(texts)) sums.set(file, writeSynced(`${temporary}/${file}`, text));
  writeSums(temporary, sums);
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

/** So many of the newest checkpoints stay at least. */
export const LEAST_KEPT = 2; // only a later step, which the next checkpoint is saved after, shows that the weights of one compute
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
  if (isFile(weightsFile(path)) || isFile(`${path}/${INDEX}`)) return path;
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
  return isFile(weightsFile(clean)) ? clean.replace(/\/checkpoints\/[^/]+$/, "") : clean;
}

/** Fills tensors from a file. Every tensor must be there with the same shape. Throws UserError naming file, tensor and difference. */
export function loadTensors(path: string, tensors: SavedTensor[], chunk_bytes: number = READ_BYTES): void {
  const weights = weightsIn(path);
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
  tensor: SavedTensor,
  piece: Uint8Array<ArrayBuffer>,
): void {
  const { name, range, shape } = tensor, stored = file.tensors.get(name)!.dtype, size = sizeOf(stored);
  const { from, to } = range ?? whole(shape);
  for (let begin = from * size; begin < to * size; begin += piece.length) { // bytes of the stored tensor
    const read = file.read(name, begin, Math.min(to * size, begin + piece.length), piece);
    put(read, stored, tensor, begin / size - from);
  }
}

/** Bytes of a stored element of a float type. */
function sizeOf(stored: Dtype): number {
  return stored === "F32" ? 4 : 2;
}

/** Puts stored elements into those of a tensor that this process holds, from the first'th on, as the type that they have there. */
function put(read: Uint8Array<ArrayBuffer>, stored: Dtype, t: SavedTensor, first: number): void {
  const bytes = stored === "F16" ? new Uint8Array(toFloat32(read, stored).buffer) : read;
  const from = stored === "BF16" ? 2 : 4, to = bytesOfElement(t), n = bytes.length / from; // bytes of an element now, and there
  const convert = (target: Address) => {
    if (from === to) return copyToDevice(target, bytes);
    const staging = take(bytes.length);
    copyToDevice(staging.address, bytes);
    k.convert(target, staging.address, to === 2 ? BF16 : F32, from === 2 ? BF16 : F32, BigInt(n));
    release(staging);
  };
  if (!("masters" in t)) return convert(t.address + BigInt(to * first));
  const values = take(4 * n);
  convert(values.address);
  t.masters.setMasters(t.element + first, n, values.address);
  release(values);
}

// ---- the optimizer's part of a rank

const MOMENTS = "optimizer.safetensors";
const MOMENTS_PART = /^optimizer-(\d{5,})-of-(\d{5,})\.safetensors$/;
const PLACE = /^(\d+) of ([\d,]+)$/; // of a vector in its tensor, in the metadata; see momentsOf()

/** A file of moments: optimizer.safetensors, or of several optimizer-00001-of-00002.safetensors. */
function momentsFile(i: number, files: number): string {
  const number = (n: number) => `${n}`.padStart(5, "0");
  return files === 1 ? MOMENTS : `optimizer-${number(i + 1)}-of-${number(files)}.safetensors`;
}

/**
 * What this rank writes of the optimizer's tensors, in files of about the same size. Of a tensor that other files have more of
 * one has a vector, whose place is in the metadata: "3 of 4,5" for its element 3 and those behind it.
 */
function momentsOf(
  tensors: SavedTensor[],
  { rank, world_size }: Place,
  large_bytes: number,
): Part<SavedTensor>[] {
  const share = tensors.reduce((sum, t) => sum + bytesOf({ ...t, range: whole(t.shape) }), 0) / world_size;
  const n = Math.max(1, Math.min(Math.ceil(FILES / world_size), Math.floor(share / large_bytes))); // the same on all
  const own_bytes = tensors.reduce((sum, t) => sum + bytesOf(t), 0);
  return Array.from({ length: n }, (_, i) => {
    const metadata: Record<string, string> = {};
    let bytes = 0; // of what this rank has of the tensors before
    const held = tensors.flatMap((t) => {
      const { from, to } = t.range ?? whole(t.shape);
      const splitAt = (bytes_before: number) => { // an element; masters go by eights
        const elements = Math.max(0, bytes_before - bytes) / bytesOfElement(t);
        return Math.min(to, from + 8 * Math.ceil(elements / 8));
      };
      const first = splitAt(own_bytes * i / n), end = splitAt(own_bytes * (i + 1) / n);
      bytes += bytesOf(t);
      if (end - first === whole(t.shape).to) return [t];
      if (end > first) metadata[t.name] = `${first} of ${t.shape}`;
      const shape = [end - first];
      return end > first ? [{ ...cut(t, first, end), shape, range: whole(shape) }] : [];
    });
    return { file: momentsFile(rank * n + i, world_size * n), tensors: held, metadata };
  });
}

/** What this process holds of a tensor from an element up to another one. */
function cut(t: SavedTensor, from: number, to: number): SavedTensor {
  const range = { from, to }, skipped = from - (t.range?.from ?? 0);
  if ("masters" in t) return { ...t, range, element: t.element + skipped };
  return { ...t, range, address: t.address + BigInt(skipped * bytesPerElement(t.dtype)) };
}

/** The files in which a checkpoint has the optimizer's tensors, whether they are there or not. */
export function momentsFiles(directory: string): string[] {
  return momentsAmong(namesIn(directory)).map((name) => `${directory}/${name}`);
}

/** The names of all files of moments, of which some are among others. */
function momentsAmong(names: string[]): string[] {
  const [name = MOMENTS] = names.filter((name) => MOMENTS_PART.test(name)).sort();
  const files = Number(MOMENTS_PART.exec(name)?.[2] ?? 1);
  return Array.from({ length: files }, (_, i) => momentsFile(i, files));
}

/**
 * Fills weights and the optimizer's tensors, or their ranges, from a checkpoint of any number of ranks. Reads only the files in
 * which something of them lies, and compares the sha256 of these meanwhile. Throws UserError for what is damaged, of which
 * something may be in memory then, for what is missing, and as loadTensors().
 */
export async function loadCheckpoint(
  directory: string,
  model: SavedTensor[],
  moments: SavedTensor[],
  sums: Sums | undefined,
  chunk_bytes: number = READ_BYTES,
): Promise<void> {
  const path = weightsFile(directory), weights = weightsIn(path); // first: that it was cut short says more than its sum
  const parts = momentsFiles(directory).map((path) => ({ path, tensors: partsIn(path, moments) }));
  const files = [...parts, { path, tensors: model }]; // the larger ones first: what is read here their sums find in memory
  const wanted = files.filter(({ tensors }) => tensors.length > 0);
  const endCheck = beginCheck(wanted.map(({ path }) => path), sums);
  try {
    requireTensors(path, weights, model); // first: a weight says more than its moments
    requireComplete(directory, moments, parts.flatMap(({ tensors }) => tensors));
    for (const { path, tensors } of wanted) loadTensors(path, tensors, chunk_bytes);
  } catch (error) {
    await endCheck(); // what is damaged may name other tensors
    await beginCheck(parts.map(({ path }) => path), sums)();
    throw error;
  }
  await endCheck();
}

function requireComplete(directory: string, wanted: SavedTensor[], found: SavedTensor[]): void {
  const elements = new Map<string, number>();
  for (const t of found) elements.set(t.name, (elements.get(t.name) ?? 0) + lengthOf(t));
  for (const t of wanted) {
    const missing = lengthOf(t) - (elements.get(t.name) ?? 0);
    if (missing === 0) continue;
    throw new UserError(
      `Cannot load ${directory}: the files of its optimizer lack ${missing} elements of ${t.name} of shape (${t.shape}); ` +
        "use another checkpoint",
    );
  }
}

function lengthOf({ range, shape }: SavedTensor): number {
  const { from, to } = range ?? whole(shape);
  return to - from;
}

/** What a file has of tensors or their ranges, as ranges of what is in it; of optimizer.safetensors all that is wanted. */
function partsIn(path: string, tensors: SavedTensor[]): SavedTensor[] {
  const file = readSafetensors(path);
  if (basename(path) === MOMENTS) return tensors;
  return tensors.flatMap((t) => {
    const found = file.tensors.get(t.name), place = PLACE.exec(file.metadata[t.name] ?? "");
    if (!found || (place?.[2] ?? `${found.shape}`) !== `${t.shape}`) return [];
    const start = Number(place?.[1] ?? 0), { from, to } = t.range ?? whole(t.shape);
    const first = Math.max(from, start), end = Math.min(to, start + whole(found.shape).to);
    if (first >= end) return [];
    return [{ ...cut(t, first, end), shape: found.shape, range: { from: first - start, to: end - start } }];
  });
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
  const model = MODEL, names = [...Object.keys(files), model];
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
  if ("masters" in tensor) return; // where one is not finite its weight is not, and that is looked at too
  const { name, address, dtype, range, shape } = tensor;
  const { from, to } = range ?? whole(shape), isBF16 = bytesPerElement(dtype) === 2;
  const index = from < to ? findNonFinite(address, isBF16 ? BF16 : F32, to - from) : -1;
  if (index < 0) return;
  const [value] = readFloats(address + BigInt((isBF16 ? 2 : 4) * index), 1, dtype);
  throw new NotFinite(`${cannot}: element ${from + index} of ${name} (${shape}) is ${value}; ${advice}`);
}

class NotFinite extends UserError {}

const LOWER_RATE = "lower the learning rate, or find the first bad value with --debug";

function requireAllFinite(what: string, tensors: SavedTensor[]): void {
  for (const tensor of tensors) requireFinite(`Cannot save ${what}`, tensor, LOWER_RATE);
}

/**
 * A copy of tensors in memory of this process: the bytes of each, or of its range. buffers: memory of an earlier copy, which is
 * used again where it is of the same sizes.
 */
export function copyOf(
  tensors: SavedTensor[],
  buffers: Uint8Array<ArrayBuffer>[],
): Uint8Array<ArrayBuffer>[] {
  return tensors.map((t, i) => {
    const bytes = bytesOf(t), old = buffers[i];
    const copy = old?.length === bytes ? old : new Uint8Array(bytes);
    if (!("masters" in t)) copyToHost(copy, t.address);
    else {
      let at = 0;
      for (const piece of fromDevice(t, new Uint8Array(READ_BYTES))) {
        copy.set(piece, at);
        at += piece.length;
      }
    }
    return copy;
  });
}

/** The bytes that a tensor, or its range, has on disk. */
export function bytesOf(t: SavedTensor): number {
  return lengthOf(t) * bytesOfElement(t);
}

/** The files of a rank, of copies in the order of copyOf(). As they are written UserError is thrown at a value that is not finite. */
export function partOfCopies(
  runDir: string,
  state: TrainerState,
  part: Part<Described>[],
  copies: Uint8Array<ArrayBuffer>[],
  pause: () => void = () => {},
): Part<Entry>[] {
  let at = 0;
  return part.map(({ tensors, metadata, file }) => ({
    file,
    metadata,
    tensors: tensors.map((t) => {
      const copy = copies[at++]!, place = PLACE.exec(metadata[t.name] ?? "");
      const what = (index: number) =>
        `element ${Number(place?.[1] ?? 0) + index} of ${t.name} (${place?.[2] ?? t.shape})`;
      const pieces = () => finitePieces(copy, t.dtype, `Cannot save ${pathOf(runDir, state)}`, what, pause);
      return { ...t, bytes: pieces };
    }),
  }));
}

function* finitePieces(
  bytes: Uint8Array<ArrayBuffer>,
  dtype: Dtype,
  cannot: string,
  what: (index: number) => string,
  pause: () => void,
): Generator<Uint8Array> {
  const size = sizeOf(dtype);
  for (let at = 0; at < bytes.length; at += READ_BYTES) {
    const piece = bytes.subarray(at, at + READ_BYTES), index = nonFiniteIn(piece, size);
    if (index >= 0) {
      const [value] = toFloat32(piece.slice(size * index, size * (index + 1)), dtype);
      throw new NotFinite(`${cannot}: ${what(at / size + index)} is ${value}; ${LOWER_RATE}`);
    }
    yield piece;
    pause();
  }
}

/** Place of the first element of 2 or 4 bytes whose exponent bits are all ones, or -1. */
function nonFiniteIn({ buffer, byteOffset, length }: Uint8Array<ArrayBuffer>, size: number): number {
  const isHalf = size === 2, exponent = isHalf ? 0x7f80 : 0x7f800000, n = length / size;
  const bits = isHalf ? new Uint16Array(buffer, byteOffset, n) : new Int32Array(buffer, byteOffset, n);
  for (let i = 0; i < n; i++) if ((bits[i]! & exponent) === exponent) return i;
  return -1;
}

/** Name, type and shape of a tensor as they are on disk. */
export type Described = Pick<Entry, "name" | "dtype" | "shape">;

/** A tensor as it is on disk. */
export function describeTensor(t: SavedTensor): Described {
  return { name: t.name, dtype: bytesOfElement(t) === 2 ? "BF16" : "F32", shape: t.shape };
}

/** The tensors as writeSafetensors() wants them; they share one staging buffer. */
function entries(tensors: SavedTensor[], staging = new Uint8Array(CHUNK_BYTES)): Entry[] {
  return tensors.map((t) => ({
    ...describeTensor(t),
    bytes: () => fromDevice(t, staging),
  }));
}

function* fromDevice(t: SavedTensor, staging: Uint8Array<ArrayBuffer>): Generator<Uint8Array> {
  const { from, to } = t.range ?? whole(t.shape), bytes = (to - from) * bytesOfElement(t);
  for (let begin = 0; begin < bytes; begin += staging.length) {
    const chunk = staging.subarray(0, Math.min(staging.length, bytes - begin));
    if ("masters" in t) {
      const values = take(chunk.length);
      t.masters.getMasters(t.element + begin / 4, chunk.length / 4, values.address);
      copyToHost(chunk, values.address);
      release(values);
    } else copyToHost(chunk, t.address + BigInt(begin));
    yield chunk;
  }
}

function bytesOfElement(t: SavedTensor): number {
  return "masters" in t ? 4 : bytesPerElement(t.dtype);
}

function whole(shape: number[]): Range {
  return { from: 0, to: shape.reduce((a, b) => a * b, 1) };
}
