// Keeps two programs from writing one directory at a time. The operating system holds the lock for as long as the file is
// open, so that it ends with the program however that ends: a lock file that a crash left behind keeps nobody out.
import { join } from "node:path";
import { UserError } from "../../base/errors.ts";
import { exists, isFile, makeDirectory, remove } from "../../base/files.ts";
import { oneLine } from "../../base/visible.ts";

const NAME = "prepare.lock";

/** The right to write in a directory, until it is disposed of. */
export class DirectoryLock implements Disposable {
  readonly #dir: string;
  readonly #file: Deno.FsFile;
  readonly #created: boolean; // the directory was not there before

  private constructor(dir: string, file: Deno.FsFile, created: boolean) {
    this.#dir = dir;
    this.#file = file;
    this.#created = created;
  }

  /**
   * Makes a directory where there is none, and locks it. Throws UserError if it cannot be written, or another program
   * holds the lock.
   */
  static take(dir: string): DirectoryLock {
    try {
      const created = !exists(dir);
      makeDirectory(dir);
      const file = openLocked(join(dir, NAME));
      if (file !== undefined) return new DirectoryLock(dir, file, created);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      const reason = (error as Error).message.replace(/ \(os error .*/, "");
      throw new UserError(`Cannot write to "${dir}": ${reason}; choose another --out`);
    }
    throw new UserError(
      `Cannot write to "${dir}": another deno task prepare is writing there; wait for it to end, or choose another --out`,
    );
  }

  /** Also removes the directory, if it was made for this lock and stayed empty. */
  [Symbol.dispose](): void {
    using _ = this.#file; // closed last, whatever fails
    Deno.removeSync(join(this.#dir, NAME));
    if (this.#created && Deno.readDirSync(this.#dir)[Symbol.iterator]().next().done) {
      remove(this.#dir);
    }
  }
}

/** Opens a file that nobody else has locked; undefined if it is locked. */
function openLocked(path: string): Deno.FsFile | undefined {
  const file = Deno.openSync(path, { write: true, create: true });
  if (tryLock(file, path) && isFile(path)) return file; // one that is gone was that of a program which has just ended
  file.close();
  return undefined;
}

/** Some network file systems cannot lock: better to write there without a lock than not at all. */
function tryLock(file: Deno.FsFile, path: string): boolean {
  try {
    return file.tryLockSync(true);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const reason = (error as Error).message;
    console.error(
      oneLine(`warning: cannot lock "${path}": ${reason}; see that only one prepare writes there`),
    );
    return true;
  }
}
