// Files, where Deno's own functions do not promise enough: checksums in bounded memory, and changes that survive a crash. Every
// change of a file or directory that the next start relies on goes through here, where a test can stop it at any point.
import { createHash } from "node:crypto";
import { dirname, isAbsolute } from "node:path";
import { orMistake } from "./system_error.ts";

/** A change that is about to be made to the disk. */
export type Change = {
  kind: "create" | "write" | "truncate" | "sync" | "rename" | "remove" | "mkdir" | "syncDirectory";
  path: string;
  /** Of rename: the new path. */
  to?: string;
  /** Of write: how much. */
  bytes?: number;
};

/**
 * Is told of each change before it is made, and may throw in its place; of a write it may return how many bytes are written now,
 * after which the rest is a change of its own.
 */
export type Watcher = (change: Change) => number | void;

let watcher: Watcher | undefined;
let syncs = true;

/** Has changes watched until the end of the block: `using _ = watchChanges(...)`. Nothing is synced then. For tests. */
export function watchChanges(watch: Watcher): Disposable {
  [watcher, syncs] = [watch, false];
  return { [Symbol.dispose]: () => [watcher, syncs] = [undefined, true] };
}

/** Makes a change. Throws UserError, which begins with `failure`, where the system refuses it. */
function make<T>(failure: string, change: Change, action: () => T): T {
  return orMistake(failure, () => {
    watcher?.(change);
    return action();
  });
}

const MODES = {
  create: { write: true, create: true, truncate: true },
  append: { append: true, create: true },
  change: { write: true },
};

/**
 * A file that is being written. Declare it with `using`. Its methods throw UserError naming the file where the system refuses, for
 * example because the disk is full.
 */
export class OutFile implements Disposable {
  /** For what changes nothing: locks, sizes. */
  readonly file: Deno.FsFile;
  readonly #failure: string;

  /** create: empties a file that is there; append: keeps it; change: it must be there. name: what errors call it. */
  constructor(readonly path: string, mode: keyof typeof MODES, name: string = path) {
    this.#failure = `Cannot write ${name}`;
    const open = () => Deno.openSync(path, MODES[mode]);
    this.file = mode === "change" || mode === "append" && isFile(path)
      ? orMistake(this.#failure, open)
      : make(this.#failure, { kind: "create", path }, open);
  }

  /** Writes all of a text or of bytes: one call of the system may take only a part (on Linux never more than 2 GiB). */
  write(content: string | Uint8Array): void {
    const all = typeof content === "string" ? new TextEncoder().encode(content) : content, { path } = this;
    orMistake(this.#failure, () => {
      for (let done = 0; done < all.length;) {
        const bytes = all.length - done, now = watcher?.({ kind: "write", path, bytes }) ?? bytes;
        done += this.file.writeSync(all.subarray(done, done + now));
      }
    });
  }

  /** Goes to a byte from the start of the file. */
  seek(offset: number): void {
    this.file.seekSync(offset, Deno.SeekMode.Start);
  }

  /** Cuts or extends the file to a size. */
  truncate(bytes: number): void {
    make(this.#failure, { kind: "truncate", path: this.path, bytes }, () => this.file.truncateSync(bytes));
  }

  /** Waits until the file is on the disk; its name is there after syncDirectory(). */
  sync(): void {
    make(this.#failure, { kind: "sync", path: this.path }, () => syncs && this.file.syncSync());
  }

  /** Closes the file; sync() it before if it is to be on the disk. */
  [Symbol.dispose](): void {
    this.file.close();
  }
}

/** Writes a text file and waits until it is on the disk; its name is there after syncDirectory(). Returns its sha256. */
export function writeSynced(path: string, text: string): string {
  using file = new OutFile(path, "create");
  file.write(text);
  file.sync();
  return createHash("sha256").update(text).digest("hex");
}

/** Replaces a small text file in one step that has happened on the disk when this returns. */
export function writeAtomic(path: string, text: string): void {
  const temporary = `${path}.${Deno.pid}.tmp`;
  try {
    writeSynced(temporary, text);
    rename(temporary, path);
  } catch (error) {
    tryToRemove(temporary);
    throw error;
  }
  syncDirectory(dirname(path));
}

/** Removes what is of no use any more because of an error, which is what the user has to hear of. */
export function tryToRemove(...paths: string[]): void {
  try {
    paths.forEach(removeTree);
  } catch {
    // the next start removes it
  }
}

/** Ends the names of files that writeAtomic() and others are writing. */
export const TEMPORARY = /\.\d+\.tmp$/;

/** Removes what writeAtomic() left in a directory, to which nobody else writes, when it was killed. */
export function removeTemporary(directory: string): void {
  for (const { name } of Array.from(Deno.readDirSync(directory))) {
    if (TEMPORARY.test(name)) removeTree(`${directory}/${name}`);
  }
}

/** Gives a file or directory another name, in place of a file or an empty directory that has it. */
export function rename(path: string, to: string): void {
  make(`Cannot rename ${path} to ${to}`, { kind: "rename", path, to }, () => Deno.renameSync(path, to));
}

/** Removes a file or an empty directory. Throws Deno.errors.NotFound where there is none. */
export function remove(path: string): void {
  Deno.lstatSync(path);
  make(`Cannot remove ${path}`, { kind: "remove", path }, () => Deno.removeSync(path));
}

/** Removes a file or a directory and all in it, if it is there. */
export function removeTree(path: string): void {
  let isDirectory: boolean;
  try {
    ({ isDirectory } = Deno.lstatSync(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  if (isDirectory) {
    for (const { name } of Array.from(Deno.readDirSync(path))) {
      removeTree(`${path}/${name}`);
    }
  }
  remove(path);
}

/** Makes a directory and those above it, and waits until their names are on the disk. What the system says is thrown as it is. */
export function makeDirectory(path: string): void {
  const missing: string[] = [];
  for (let at = path; !exists(at); at = dirname(at)) missing.unshift(at);
  if (missing.length > 0) watcher?.({ kind: "mkdir", path });
  Deno.mkdirSync(path, { recursive: true }); // says so where it is a file
  for (const made of missing) syncDirectory(dirname(made));
}

/** Waits until the names in a directory are on the disk. */
export function syncDirectory(path: string): void {
  if (Deno.build.os === "windows") return; // directories cannot be opened there
  make(`Cannot write to ${path}`, { kind: "syncDirectory", path }, () => {
    using directory = Deno.openSync(path);
    if (syncs) directory.syncSync();
  });
}

/** Hexadecimal sha256 of a file, read in pieces. Throws UserError where the system refuses. */
export function sha256OfFile(path: string): string {
  const hash = createHash("sha256");
  readPieces(path, (piece) => hash.update(piece));
  return hash.digest("hex");
}

/** Files that several threads sum up, each taking the next one that is left. */
export type SharedFiles = { paths: string[]; taken: Int32Array };

/** sha256OfFile() of files that nobody has taken yet, by path, until none is left. */
export function sha256OfShared({ paths, taken }: SharedFiles): Map<string, string> {
  const sums = new Map<string, string>();
  for (let i = Atomics.add(taken, 0, 1); i < paths.length; i = Atomics.add(taken, 0, 1)) {
    sums.set(paths[i]!, sha256OfFile(paths[i]!));
  }
  return sums;
}

/** Hands all bytes of a file over, at most 1 MiB at a time in one buffer. Throws UserError where the system refuses. */
export function readPieces(path: string, take: (piece: Uint8Array) => void): void {
  const buffer = new Uint8Array(1 << 20);
  orMistake(`Cannot read ${path}`, () => {
    using file = Deno.openSync(path);
    for (let n = file.readSync(buffer); n !== null; n = file.readSync(buffer)) take(buffer.subarray(0, n));
  });
}

/** The directory in which a relative path is looked for, to say that nothing is there: " in /home/me/loam"; "" for others. */
export function lookedIn(path: string): string {
  return isAbsolute(path) ? "" : ` in ${Deno.cwd()}`;
}

/** What to say of a path that should be a directory and is none. */
export function noDirectory(path: string): string {
  return isFile(path) ? "it is a file, should be a directory" : `there is no such directory${lookedIn(path)}`;
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

/** Whether there is a directory of that name. */
export function isDirectory(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return false;
  }
}

/** Whether there is anything of that name. What the system says is thrown as it is, unless nothing can be there. */
export function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return false;
    throw error;
  }
}
