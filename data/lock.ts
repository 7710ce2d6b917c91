// Keeps two programs from writing one directory at a time. The operating system holds the lock for as long as the file is
// open, so that it ends with the program however that ends: a lock file that a crash left behind keeps nobody out.
import { join } from "node:path";
import { isFile } from "../ffi/files.ts";

const NAME = "prepare.lock";

/** The right to write in a directory, until it is disposed of. */
export class DirectoryLock implements Disposable {
  readonly #path: string;
  readonly #file: Deno.FsFile;

  private constructor(path: string, file: Deno.FsFile) {
    this.#path = path;
    this.#file = file;
  }

  /** Locks a directory that is there; undefined if it is locked already. */
  static take(dir: string): DirectoryLock | undefined {
    const path = join(dir, NAME);
    const file = Deno.openSync(path, { write: true, create: true });
    // A file that is gone by now was that of a program which has just ended, and would keep nobody out.
    if (file.tryLockSync(true) && isFile(path)) return new DirectoryLock(path, file);
    file.close();
    return undefined;
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.#path);
    this.#file.close();
  }
}
