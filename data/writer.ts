// Writes a dataset so that an interruption at any moment leaves the old one whole, or one that openDataset() refuses:
// until finish() every file has a name that ends in .tmp, and meta.json gets its name last.
import { join } from "node:path";
import { UserError } from "../ffi/errors.ts";
import { sha256OfFile } from "../ffi/files.ts";
import { HEADER_BYTES, shardHeader, tokenBytes } from "./bins.ts";
import { DirectoryLock } from "./lock.ts";
import type { Meta } from "./meta.ts";

const BUFFERED_TOKENS = 1 << 18;
const OUR_FILES = /^(train|val)_\d{6}\.bin$|^tokenizer(_config)?\.json$/; // and meta.json

/** The two parts of a dataset. */
export type Split = "train" | "val";

/** How to write a dataset. */
export interface WriterOptions {
  /** Ids must be below this. */
  vocab_size: number;
  /** Tokens after which a shard ends, with the document that is being written. */
  shard_tokens: number;
  /** Replace the dataset that stands in the directory. */
  overwrite: boolean;
}

/** A dataset that is being written. Declare it with `using`: what has not been finished is removed. */
export class DatasetWriter implements Disposable {
  readonly #dir: string;
  readonly #options: WriterOptions;
  readonly #created: boolean; // the directory was not there before
  readonly #lock: DirectoryLock;
  readonly #open: Partial<Record<Split, ShardWriter>> = {};
  readonly #shards: Record<Split, Meta["shards"]> = { train: [], val: [] };
  #finished = false;

  /**
   * @throws {UserError} if the directory cannot be written, another writer is at work in it, or it holds a dataset that may
   * not be replaced.
   */
  constructor(dir: string, options: WriterOptions) {
    this.#dir = dir;
    this.#options = options;
    const { created, lock } = lockDirectory(dir);
    this.#created = created;
    this.#lock = lock;
    try {
      if (!options.overwrite) refuseDataset(dir);
      this.#removeUnfinished();
    } catch (error) {
      lock[Symbol.dispose]();
      throw error;
    }
  }

  /** Appends one document: the end-of-text token, then its ids. */
  append(split: Split, eot: number, ids: Uint32Array): void {
    const shard = this.#open[split] ??= this.#nextShard(split);
    shard.append(eot);
    for (const id of ids) shard.append(id);
    if (shard.tokens >= this.#options.shard_tokens) this.#closeShard(split);
  }

  /**
   * Gives all files their names and returns the contents of meta.json.
   *
   * @param meta Contents of meta.json; the shards are added.
   * @param extra Contents by name of other files, such as tokenizer.json.
   */
  finish(meta: Omit<Meta, "shards">, extra: Record<string, string>): Meta {
    this.#closeShard("train");
    this.#closeShard("val");
    const shards = [...this.#shards.train, ...this.#shards.val];
    const whole: Meta = { ...meta, shards };
    const path = (name: string) => join(this.#dir, name);
    // From here on meta.json.tmp marks the directory as unfinished.
    Deno.writeTextFileSync(path("meta.json.tmp"), `${JSON.stringify(whole, null, 2)}\n`);
    const names = fileNames(this.#dir);
    if (names.includes("meta.json")) Deno.removeSync(path("meta.json"));
    for (const name of names) if (OUR_FILES.test(name)) Deno.removeSync(path(name));
    for (const { file } of shards) Deno.renameSync(path(`${file}.tmp`), path(file));
    for (const [name, text] of Object.entries(extra)) Deno.writeTextFileSync(path(name), text);
    Deno.renameSync(path("meta.json.tmp"), path("meta.json"));
    this.#finished = true;
    return whole;
  }

  [Symbol.dispose](): void {
    if (!this.#finished) {
      this.#open.train?.abandon();
      this.#open.val?.abandon();
      this.#removeUnfinished();
    }
    this.#lock[Symbol.dispose]();
    if (this.#created && fileNames(this.#dir).length === 0) Deno.removeSync(this.#dir);
  }

  #nextShard(split: Split): ShardWriter {
    const file = `${split}_${String(this.#shards[split].length).padStart(6, "0")}.bin`;
    return new ShardWriter(join(this.#dir, `${file}.tmp`), file, this.#options.vocab_size);
  }

  #closeShard(split: Split): void {
    const shard = this.#open[split];
    if (shard === undefined) return;
    delete this.#open[split];
    this.#shards[split].push(shard.close());
  }

  /** Also removes what an interrupted run left. */
  #removeUnfinished(): void {
    for (const name of fileNames(this.#dir)) {
      const final = name.endsWith(".tmp") ? name.slice(0, -4) : "";
      if (final === "meta.json" || OUR_FILES.test(final)) Deno.removeSync(join(this.#dir, name));
    }
  }
}

/** One shard under its temporary name. */
class ShardWriter {
  tokens = 0;
  readonly #path: string;
  readonly #name: string;
  readonly #vocab_size: number;
  readonly #file: Deno.FsFile;
  readonly #buffer: Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;
  #buffered = 0;

  constructor(path: string, name: string, vocab_size: number) {
    this.#path = path;
    this.#name = name;
    this.#vocab_size = vocab_size;
    this.#buffer = new (tokenBytes(vocab_size) === 2 ? Uint16Array : Uint32Array)(BUFFERED_TOKENS);
    this.#file = Deno.openSync(path, { write: true, create: true, truncate: true });
    this.#write(new Uint8Array(HEADER_BYTES)); // the count is known at the end
  }

  append(id: number): void {
    if (id >= this.#vocab_size) {
      throw new Error(`internal: token ${id} in a vocabulary of ${this.#vocab_size}`);
    }
    this.#buffer[this.#buffered++] = id;
    this.tokens++;
    if (this.#buffered === BUFFERED_TOKENS) this.#flush();
  }

  close(): Meta["shards"][number] {
    this.#flush();
    this.#file.seekSync(0, Deno.SeekMode.Start);
    this.#write(shardHeader(tokenBytes(this.#vocab_size), this.tokens));
    this.#file.close();
    return { file: this.#name, tokens: this.tokens, sha256: sha256OfFile(this.#path) };
  }

  /** Closes the file as it is. */
  abandon(): void {
    this.#file.close();
  }

  #flush(): void {
    const { buffer, BYTES_PER_ELEMENT } = this.#buffer;
    this.#write(new Uint8Array(buffer, 0, this.#buffered * BYTES_PER_ELEMENT));
    this.#buffered = 0;
  }

  #write(bytes: Uint8Array): void {
    try {
      for (let done = 0; done < bytes.length;) done += this.#file.writeSync(bytes.subarray(done));
    } catch (error) {
      throw new UserError(`Cannot write "${this.#path}": ${(error as Error).message}`); // such as a full disk
    }
  }
}

/** Makes a directory that can be written to, and by this writer only. created: it was not there before. */
function lockDirectory(dir: string): { created: boolean; lock: DirectoryLock } {
  const { created, lock } = makeDirectory(dir);
  if (lock !== undefined) return { created, lock };
  throw new UserError(
    `Cannot write to "${dir}": another deno task prepare is writing there; wait for it to end, or choose another --out`,
  );
}

function makeDirectory(dir: string): { created: boolean; lock: DirectoryLock | undefined } {
  try {
    const created = !exists(dir);
    Deno.mkdirSync(dir, { recursive: true });
    return { created, lock: DirectoryLock.take(dir) };
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const reason = (error as Error).message.replace(/ \(os error .*/, "");
    throw new UserError(`Cannot write to "${dir}": ${reason}; choose another --out`);
  }
}

function refuseDataset(dir: string): void {
  const old = fileNames(dir).filter((name) => name === "meta.json" || name.endsWith(".bin")).sort();
  if (old.length === 0) return;
  throw new UserError(
    `Cannot write to "${dir}": it holds a dataset (${old[0]}${old.length > 1 ? ", ..." : ""}); ` +
      `choose another --out, or replace it with --overwrite`,
  );
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function fileNames(dir: string): string[] {
  return Array.from(Deno.readDirSync(dir), (entry) => entry.name);
}
