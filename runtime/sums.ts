// SHA256SUMS, the checksums of all files of a checkpoint, which is written last. `sha256sum -c SHA256SUMS` reads it too.
import { basename } from "node:path";
import { UserError } from "../base/errors.ts";
import { isFile, sha256OfFile, writeSynced } from "../base/files.ts";
import { beginSums } from "../base/sha256.ts";

/** Its name. */
export const SUMS = "SHA256SUMS";

/** What a run can go on without: it has a checksum of its own, which its reader compares (model/choices.ts). */
export const KERNELS = "kernels.json";

/** Sha256 by file name. */
export type Sums = Map<string, string>;

/** Writes the checksums of the files of a directory, which their writers know. */
export function writeSums(directory: string, sums: Sums): void {
  const lines = [...sums].sort(([a], [b]) => a < b ? -1 : 1).map(([name, sha256]) => `${sha256}  ${name}\n`);
  writeSynced(`${directory}/${SUMS}`, lines.join(""));
}

/**
 * Reads the checksums of a directory; undefined where it has none and is no checkpoint of a run, but a model from
 * elsewhere. Throws UserError if the file is damaged, or missing beside a trainer_state.json.
 */
export function readSums(directory: string): Sums | undefined {
  const path = `${directory}/${SUMS}`;
  if (!isFile(path)) {
    if (!isFile(`${directory}/trainer_state.json`)) return undefined;
    throw new UserError(
      `Cannot load ${directory}: it has no ${SUMS}; if an earlier version of loam wrote it, use its weights after: ` +
        `(cd ${directory} && sha256sum * > ${SUMS}); else use another checkpoint`,
    );
  }
  const sums: Sums = new Map();
  for (const [i, line] of Deno.readTextFileSync(path).split(/\n(?!$)/).entries()) {
    const [, sha256, name] = /^([0-9a-f]{64}) [ *]([^/\n]+)\n?$/.exec(line) ?? [];
    if (!sha256 || !name || sums.has(name)) {
      throw new UserError(
        `Cannot read ${path}: line ${i + 1} is no checksum of a file; use another checkpoint`,
      );
    }
    sums.set(name, sha256);
  }
  return sums;
}

/**
 * Compares files of a directory with their checksums, all but KERNELS. Throws UserError naming the file that is missing, damaged, or
 * in none of the lines.
 *
 * @param which Whether the file of that name is compared; it must be there.
 */
export function requireSums(directory: string, sums: Sums, which: (name: string) => boolean): void {
  for (const { name } of Deno.readDirSync(directory)) {
    if (sums.has(name) || name === KERNELS || !which(name) || !/\.(json|safetensors)$/.test(name)) continue;
    throw new UserError(
      `Cannot load ${directory}/${name}: ${SUMS} has no line for it, one of them is damaged; use another checkpoint`,
    );
  }
  for (const [name, sha256] of sums) {
    if (name !== KERNELS && which(name)) requireSum(`${directory}/${name}`, sha256);
  }
}

/** Throws UserError unless a file has the sha256 that SHA256SUMS states. */
export function requireSum(path: string, sha256: string | undefined): void {
  if (!isFile(path)) {
    throw new UserError(`Cannot read ${path}: there is no such file; use another checkpoint`);
  }
  if (sha256OfFile(path) !== sha256) throw damaged(path);
}

/**
 * Begins requireSum() of several files that are there, beside this thread where they are large. What is returned says how it ended.
 * Does nothing without sums.
 */
export function beginCheck(paths: string[], sums: Sums | undefined): () => Promise<void> {
  if (!sums) return () => Promise.resolve();
  const end = beginSums(paths);
  return async () => {
    for (const [i, sha256] of (await end()).entries()) {
      if (sha256 !== sums.get(basename(paths[i]!))) throw damaged(paths[i]!);
    }
  };
}

function damaged(path: string): UserError {
  return new UserError(
    `Cannot load ${path}: its sha256 is not the one in ${SUMS}, the file is damaged; use another checkpoint`,
  );
}
