// Files, where Deno's own functions do not promise enough: checksums in bounded memory, writes that survive a crash.
import { createHash } from "node:crypto";
import { UserError } from "./errors.ts";

/** Hexadecimal sha256 of a file, read in pieces. */
export function sha256OfFile(path: string): string {
  const hash = createHash("sha256"), buffer = new Uint8Array(1 << 20);
  using file = Deno.openSync(path);
  for (let n = file.readSync(buffer); n !== null; n = file.readSync(buffer)) {
    hash.update(buffer.subarray(0, n));
  }
  return hash.digest("hex");
}

/** Writes a text file and waits until it is on the disk. */
export function writeSynced(path: string, text: string): void {
  using file = Deno.openSync(path, { write: true, create: true, truncate: true });
  writeText(file, path, text);
  file.syncSync();
}

/** Writes all of a text. Throws UserError naming the file when it cannot, for example because the disk is full. */
export function writeText(file: Deno.FsFile, path: string, text: string): void {
  const bytes = new TextEncoder().encode(text);
  try {
    for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
  } catch (error) {
    throw new UserError(`Cannot write ${path}: ${(error as Error).message}`);
  }
}

/** Replaces a small text file in one step. */
export function writeAtomic(path: string, text: string): void {
  const temporary = `${path}.${Deno.pid}.tmp`;
  writeSynced(temporary, text);
  Deno.renameSync(temporary, path);
}

/** Whether path names a file that is there. */
export function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return false;
  }
}
