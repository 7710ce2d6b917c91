// Writes the shards of a dataset in a directory of its own, so that a kill at any moment loses only what came after the last
// commit(): the shard that grows is NAME.bin.tmp, and gets its name when its header, its tokens and its checksum are done.
import { join } from "node:path";
import { UserError } from "../../base/errors.ts";
import { isFile, OutFile, removeTree, rename, sha256OfFile, syncDirectory } from "../../base/files.ts";
import { HEADER_BYTES, maskName, shardHeader } from "../bins.ts";
import type { Meta } from "../meta.ts";

/** The two parts of a dataset. */
export const SPLITS = ["train", "val"] as const;
/** One of them. */
export type Split = typeof SPLITS[number];

/** Token ids as they stand on disk. */
export type Ids = Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;

/** How to write shards. */
export type WriterOptions = {
  /** Bytes of one id. */
  token_bytes: 2 | 4;
  /** Tokens after which a shard ends, with the document that is being written. */
  shard_tokens: number;
  /** Whether each shard has a mask beside it. */
  masks?: boolean;
};

/** What is on the disk, by split. */
export type Written = Record<Split, {
  /** Those that have their names. */
  shards: Meta["shards"];
  /** Tokens in the one that grows; null if there is none. */
  open: number | null;
}>;

const NO_MASK = new Uint8Array();

/** Shards that are being written. Declare it with `using`, which closes the files. */
export class ShardWriter implements Disposable {
  readonly #dir: string;
  readonly #splits: Record<Split, SplitWriter>;

  /** Goes on with what checkWritten() found on the disk; without `written`, begins. */
  constructor(dir: string, options: WriterOptions, written?: Written) {
    this.#dir = dir;
    removeOthers(dir, written);
    this.#splits = {
      train: new SplitWriter(dir, "train", options),
      val: new SplitWriter(dir, "val", options),
    };
    try {
      for (const split of SPLITS) this.#splits[split].goOn(written?.[split]);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Appends documents.
   *
   * @param ends Where each document ends in ids.
   * @param mask A byte for each of ids, where there are masks.
   */
  append(split: Split, ids: Ids, ends: Uint32Array, mask = NO_MASK): void {
    this.#splits[split].append(ids, ends, mask);
  }

  /** Shards that have been finished. */
  get shards(): number {
    return this.#splits.train.shards.length + this.#splits.val.shards.length;
  }

  /** Waits until everything is on the disk; returns what that is. */
  commit(): Written {
    const written = { train: this.#splits.train.sync(), val: this.#splits.val.sync() };
    syncDirectory(this.#dir);
    return written;
  }

  /** Ends the last shards; returns all of them, train first. Nothing may follow. */
  finish(): Meta["shards"] {
    for (const split of SPLITS) this.#splits[split].endShard();
    syncDirectory(this.#dir);
    return SPLITS.flatMap((split) => this.#splits[split].shards);
  }

  /** Closes the shards that are open; what is in them stays. */
  [Symbol.dispose](): void {
    for (const split of SPLITS) this.#splits[split].close();
  }
}

/**
 * Checks that a directory holds what was written, if perhaps more. Throws UserError naming a shard that is missing or
 * too short.
 */
export function checkWritten(dir: string, token_bytes: 2 | 4, written: Written, masks = false): void {
  for (const split of SPLITS) {
    const { shards, open } = written[split];
    for (const { file, tokens, mask_sha256 } of shards) {
      checkSize(dir, [file], HEADER_BYTES + tokens * token_bytes);
      if (mask_sha256 !== undefined) checkSize(dir, [maskName(file)], tokens);
    }
    if (open === null) continue;
    const name = shardName(split, shards.length), mask = maskName(name); // which it has if it ended after the last commit
    checkSize(dir, [`${name}.tmp`, name], HEADER_BYTES + open * token_bytes);
    if (masks) checkSize(dir, [`${mask}.tmp`, mask], open);
  }
}

function checkSize(dir: string, names: string[], wanted: number): void {
  const path = names.map((name) => join(dir, name)).find(isFile);
  const bytes = path === undefined ? 0 : Deno.statSync(path).size;
  if (bytes >= wanted) return;
  throw new UserError(
    `Cannot go on in "${dir}": ${
      names[0]
    } has ${bytes} bytes, state.json says ${wanted}; start over with --overwrite`,
  );
}

/** Removes what was written after the last commit, and what an earlier program left. */
function removeOthers(dir: string, written?: Written): void {
  const kept = new Set(written === undefined ? [] : ["state.json"]);
  for (const split of written === undefined ? [] : SPLITS) {
    const { shards, open } = written![split];
    for (const { file } of shards) kept.add(file).add(maskName(file));
    if (open === null) continue;
    const name = shardName(split, shards.length);
    for (const grows of [name, maskName(name)]) kept.add(grows).add(`${grows}.tmp`);
  }
  for (const { name } of Array.from(Deno.readDirSync(dir))) {
    if (!kept.has(name)) removeTree(join(dir, name));
  }
}

function shardName(split: Split, number: number): string {
  return `${split}_${String(number).padStart(6, "0")}.bin`;
}

/** The shards of one split. */
class SplitWriter {
  readonly shards: Meta["shards"] = [];
  readonly #dir: string;
  readonly #split: Split;
  readonly #options: WriterOptions;
  #file: OutFile | undefined; // the shard that grows
  #mask: OutFile | undefined; // beside it
  #tokens = 0; // in it

  constructor(dir: string, split: Split, options: WriterOptions) {
    this.#dir = dir;
    this.#split = split;
    this.#options = options;
  }

  goOn({ shards, open }: Written[Split] = { shards: [], open: null }): void {
    this.shards.push(...shards);
    if (open !== null) this.#reopen(open);
  }

  append(ids: Ids, ends: Uint32Array, mask: Uint8Array<ArrayBuffer>): void {
    for (let from = 0, document = 0; from < ids.length;) {
      const room = this.#options.shard_tokens - this.#tokens;
      while (document < ends.length && ends[document]! - from < room) document++;
      const to = ends[document++] ?? ids.length; // with the document that fills the shard
      this.#write(ids.subarray(from, to), mask.subarray(from, to));
      from = to;
      if (this.#tokens >= this.#options.shard_tokens) this.endShard();
    }
  }

  sync(): Written[Split] {
    this.#file?.sync();
    this.#mask?.sync();
    return { shards: [...this.shards], open: this.#file === undefined ? null : this.#tokens };
  }

  endShard(): void {
    if (this.#file === undefined) return;
    this.#file.seek(0);
    this.#file.write(shardHeader(this.#options.token_bytes, this.#tokens));
    this.sync();
    this.close();
    const file = this.#name, sha256 = this.#giveName(file);
    const mask = this.#options.masks ? { mask_sha256: this.#giveName(maskName(file)) } : {};
    this.shards.push({ file, tokens: this.#tokens, sha256, ...mask });
    this.#tokens = 0;
  }

  close(): void {
    this.#file?.[Symbol.dispose]();
    this.#mask?.[Symbol.dispose]();
    this.#file = this.#mask = undefined;
  }

  /** Of the shard that grows. */
  get #name(): string {
    return shardName(this.#split, this.shards.length);
  }

  #write({ buffer, byteOffset, byteLength, length }: Ids, mask: Uint8Array<ArrayBuffer>): void {
    const file = this.#file ?? this.#begin();
    file.write(new Uint8Array(buffer, byteOffset, byteLength));
    this.#mask?.write(mask);
    this.#tokens += length;
  }

  #begin(): OutFile {
    this.#file = this.#open(this.#name, "create");
    this.#file.write(new Uint8Array(HEADER_BYTES)); // the count is known at the end
    if (this.#options.masks) this.#mask = this.#open(maskName(this.#name), "create");
    return this.#file;
  }

  /** Opens a file that grows; errors name it as it will be called. */
  #open(name: string, mode: "create" | "change"): OutFile {
    const path = join(this.#dir, name);
    return new OutFile(`${path}.tmp`, mode, `"${path}"`);
  }

  /** Gives a file that is whole and on the disk its name; returns its SHA-256. */
  #giveName(name: string): string {
    const path = join(this.#dir, name), sha256 = sha256OfFile(`${path}.tmp`);
    rename(`${path}.tmp`, path);
    return sha256;
  }

  /** Cuts the shard that grew back to so many tokens, whether it got its name after the last commit or not. */
  #reopen(tokens: number): void {
    this.#file = this.#cutBack(this.#name, HEADER_BYTES + tokens * this.#options.token_bytes);
    if (this.#options.masks) this.#mask = this.#cutBack(maskName(this.#name), tokens);
    this.#tokens = tokens;
  }

  #cutBack(name: string, bytes: number): OutFile {
    const path = join(this.#dir, name);
    if (isFile(path)) rename(path, `${path}.tmp`);
    const file = this.#open(name, "change");
    file.truncate(bytes);
    file.seek(bytes);
    return file;
  }
}
