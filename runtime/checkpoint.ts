// Checkpoints. Each is a Hugging Face model directory (config.json, model.safetensors, tokenizer) with two files beside it:
// optimizer.safetensors (float32 master weights where they differ, m, v) and trainer_state.json. It is written under a
// temporary name, synced, and renamed; `latest` then names it. A kill at any moment leaves the previous one whole.
import { UserError } from "../ffi/errors.ts";
import { isFile, sha256OfFile, writeAtomic, writeSynced } from "../ffi/files.ts";
import { BF16, copyToDevice, copyToHost, F32 } from "../ffi/library.ts";
import * as k from "../ffi/kernels.ts";
import { readSafetensors, type SafetensorsFile, writeSafetensors } from "./safetensors.ts";
import { release, take } from "./memory.ts";
import { type Address, bytesPerElement } from "./tensor.ts";

/** A contiguous range of device memory under the name and shape it has on disk. */
export type SavedTensor = { name: string; shape: number[]; address: Address; dtype: "act" | "f32" };

/** What a run needs to go on, beside the tensors. */
export type TrainerState = {
  step: number; // optimizer steps done
  updates: number; // of these, applied
  skipped: number;
  skipped_row: number;
  val_loss: number | null; // measured at this step
  best_val_loss: number | null; // of all checkpoints up to this one
  best_step: number | null;
  tokenizer: string | null; // of the data; null where it is not known
  data: Record<string, string>; // sha256 of each shard
  config: Record<string, unknown>; // of the run
  versions: Record<string, string>;
  sha256: Record<string, string>; // of each .safetensors file here
};

export type CheckpointContent = {
  model: SavedTensor[];
  optimizer: SavedTensor[];
  files: Record<string, string>; // config.json, tokenizer.json, ...
  state: Omit<TrainerState, "sha256">;
};

const CHUNK_BYTES = 1 << 24; // staging between device and file

/**
 * Writes runDir/checkpoints/step_000123 and moves `latest` (and `best`) to it, then removes all but the newest `keep`
 * checkpoints and the best. Returns its path. Throws UserError when it cannot be written; the previous ones stay as they are.
 */
export function saveCheckpoint(runDir: string, content: CheckpointContent, keep: number): string {
  const parent = `${runDir}/checkpoints`, name = checkpointName(content.state.step);
  const temporary = `${parent}/.tmp_${name}_${Deno.pid}`, final = `${parent}/${name}`;
  try {
    Deno.mkdirSync(temporary, { recursive: true });
    const sha256 = {
      "model.safetensors": writeTensors(`${temporary}/model.safetensors`, content.model),
      "optimizer.safetensors": writeTensors(`${temporary}/optimizer.safetensors`, content.optimizer),
    };
    const state: TrainerState = { ...content.state, sha256 };
    for (const [file, text] of Object.entries(content.files)) writeSynced(`${temporary}/${file}`, text);
    writeSynced(`${temporary}/trainer_state.json`, json(state));
    removeIfThere(final); // a step that is trained again after a resume from further back
    Deno.renameSync(temporary, final);
    syncDirectory(parent);
    point(runDir, "latest", name);
    if (state.best_step === state.step) point(runDir, "best", name);
    prune(parent, keep, state.best_step === null ? "" : checkpointName(state.best_step));
    return final;
  } catch (error) {
    removeIfThere(temporary);
    if (error instanceof Deno.errors.NotCapable) throw error;
    const earlier = listCheckpoints(runDir).at(-1);
    throw new UserError(
      `Cannot save checkpoint ${final}: ${(error as Error).message}; free some space and ` +
        (earlier
          ? `go on from ${earlier}, which is whole: --resume=${runDir}`
          : "start again, none was saved before"),
    );
  }
}

function checkpointName(step: number): string {
  return `step_${String(step).padStart(6, "0")}`;
}

/** Names of the whole checkpoints of a run, oldest first. */
export function listCheckpoints(runDir: string): string[] {
  try {
    return Array.from(Deno.readDirSync(`${runDir}/checkpoints`), (entry) => entry.name)
      .filter((name) => /^step_\d+$/.test(name)).sort((a, b) => Number(a.slice(5)) - Number(b.slice(5)));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}

/** Whether a directory already holds a training run. */
export function holdsRun(dir: string): boolean {
  return isFile(`${dir}/metrics.jsonl`) || isFile(`${dir}/config.json`) || listCheckpoints(dir).length > 0;
}

/** The directory that holds the weights: path itself, or the newest checkpoint of the run at path. */
export function resolveCheckpoint(path: string): string {
  if (isFile(`${path}/model.safetensors`)) return path;
  const newest = listCheckpoints(path).at(-1);
  if (newest) return `${path}/checkpoints/${newest}`;
  throw new UserError(
    holdsRun(path)
      ? `Cannot find a checkpoint in ${path}: its run ended before it saved one; remove it and train again`
      : `Cannot find a checkpoint in ${path}: it must hold model.safetensors, or be a run directory with checkpoints/; ` +
        `train one with: deno task train --out_dir=${path}`,
  );
}

/** The run directory of a path given to --resume: a run, or one of its checkpoints. */
export function runOfCheckpoint(path: string): string {
  const clean = path.replace(/\/+$/, "");
  return isFile(`${clean}/model.safetensors`) ? clean.replace(/\/checkpoints\/[^/]+$/, "") : clean;
}

/** Reads trainer_state.json of a checkpoint. Throws UserError when it is missing or not one. */
export function readTrainerState(checkpoint: string): TrainerState {
  const path = `${checkpoint}/trainer_state.json`, state = readJson(path);
  const missing = ["step", "config", "sha256"].filter((key) => !(key in state));
  if (missing.length === 0) return state as TrainerState;
  throw new UserError(`Cannot read ${path}: it has no ${missing.join(" and no ")}; use another checkpoint`);
}

/** Reads a JSON file of a run or checkpoint. Throws UserError naming the file when it is missing or not JSON. */
export function readJson(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(`Cannot read ${path}: there is no such file; use another checkpoint`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // says the same as any other value below
  }
  if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  throw new UserError(`Cannot read ${path}: it is not a JSON object; use another checkpoint`);
}

/**
 * Fills tensors from a file of a checkpoint. Every tensor must be there with the same shape. expectedSha256, where the
 * checkpoint has one, is compared first. Throws UserError naming file, tensor and difference.
 */
export function loadTensors(path: string, tensors: SavedTensor[], expectedSha256?: string): void {
  const file = readSafetensors(path);
  if (expectedSha256 && sha256OfFile(path) !== expectedSha256) {
    throw new UserError(
      `Cannot load ${path}: its sha256 is not the one in trainer_state.json, the file is damaged; use another checkpoint`,
    );
  }
  for (const tensor of tensors) {
    const found = file.tensors.get(tensor.name);
    if (!found) {
      throw new UserError(`Cannot load ${path}: it has no tensor ${tensor.name} of shape (${tensor.shape})`);
    }
    if (`${found.shape}` !== `${tensor.shape}`) {
      throw new UserError(
        `Cannot load ${path}: ${tensor.name} is (${found.shape}), the model wants (${tensor.shape})`,
      );
    }
    loadTensor(file, tensor);
  }
}

function loadTensor(file: SafetensorsFile, { name, address, dtype }: SavedTensor): void {
  const { dtype: stored, length } = file.tensors.get(name)!;
  if (stored === "F16" || stored === "I32") {
    throw new UserError(`Cannot load ${file.path}: ${name} is ${stored}, it must be F32 or BF16`);
  }
  const from = stored === "BF16" ? 2 : 4, to = bytesPerElement(dtype);
  for (let begin = 0; begin < length; begin += CHUNK_BYTES) {
    const bytes = file.read(name, begin, Math.min(length, begin + CHUNK_BYTES));
    const target = address + BigInt(begin / from * to);
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

/** Writes the tensors and returns the sha256 of the file. */
function writeTensors(path: string, tensors: SavedTensor[]): string {
  const staging = new Uint8Array(CHUNK_BYTES);
  writeSafetensors(
    path,
    tensors.map((t) => ({
      name: t.name,
      dtype: bytesPerElement(t.dtype) === 2 ? "BF16" : "F32",
      shape: t.shape,
      bytes: () => fromDevice(t, staging),
    })),
  );
  return sha256OfFile(path);
}

function* fromDevice(t: SavedTensor, staging: Uint8Array<ArrayBuffer>): Generator<Uint8Array> {
  const bytes = t.shape.reduce((a, b) => a * b, 1) * bytesPerElement(t.dtype);
  for (let begin = 0; begin < bytes; begin += CHUNK_BYTES) {
    const chunk = staging.subarray(0, Math.min(CHUNK_BYTES, bytes - begin));
    copyToHost(chunk, t.address + BigInt(begin));
    yield chunk;
  }
}

function point(runDir: string, pointer: "latest" | "best", name: string): void {
  writeAtomic(`${runDir}/${pointer}`, `checkpoints/${name}\n`);
}

function syncDirectory(path: string): void {
  if (Deno.build.os === "windows") return; // directories cannot be opened there
  using directory = Deno.openSync(path);
  directory.syncSync();
}

function prune(parent: string, keep: number, best: string): void {
  for (const entry of Array.from(Deno.readDirSync(parent))) {
    if (entry.name.startsWith(".tmp_")) removeIfThere(`${parent}/${entry.name}`); // left by a kill
  }
  const names = listCheckpoints(parent.replace(/\/checkpoints$/, ""));
  for (const name of names.slice(0, Math.max(0, names.length - Math.max(1, keep)))) {
    if (name !== best) removeIfThere(`${parent}/${name}`);
  }
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** A value as the text of a JSON file. */
export function json(value: unknown): string {
  return JSON.stringify(value, null, 2) + "\n";
}
