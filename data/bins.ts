// Token bins: a dataset is a directory of shards in llm.c's format and a meta.json. A shard is a header of 256 int32
// (magic, version, number of tokens, zeros) and then the tokens, all little-endian. Also read: llm.c's own directories,
// which have no meta.json, and nanoGPT's train.bin and val.bin, which have no header either (uint16 all the way), with the
// meta.pkl that names the characters of its first example.
import { basename, join } from "node:path";
import { UserError } from "../base/errors.ts";
import { isFile, noDirectory, sha256OfFile } from "../base/files.ts";
import { damaged, type Meta, readMeta, verifyMeta } from "./meta.ts";
import { openTokenizer, type Tokenizer } from "./tokenizer.ts";
import { openMetaPkl } from "./tokenizers/nano_gpt.ts";
import { orMistake } from "../base/system_error.ts";

/** Bytes at the head of a shard: int32[256]. */
export const HEADER_BYTES = 1024;
/** Magic number and version at the head of a shard, by the bytes of one token. */
const SHARD_KINDS = { 2: [20240520, 1], 4: [20240801, 7] } as const;
const MAGICS: readonly number[] = [20240520, 20240801];
const GPT_2 = { tokenizer: "gpt2", vocab_size: 50257, bos: 50256, eot: 50256 };
const LLAMA_3_BOS = 128_000; // <|begin_of_text|>, which llm.c's scripts put between documents, and nothing else

/** In the byte that a mask has for a token: it is trained on. */
export const TRAINED = 1;
/** And: it is the first of a conversation. */
export const BEGINS = 2;

/** A file of tokens. */
export type Shard = {
  /** Where the file is. */
  path: string;
  /** Tokens in it. */
  tokens: number;
  /** Bytes before the first token. */
  header_bytes: number;
  /** Bytes of one token, little-endian. */
  token_bytes: 2 | 4;
  /** Of conversations, the file with a byte for each token: TRAINED, BEGINS. Other tokens are all trained on. */
  mask?: string;
};

/** A dataset that can be trained on. */
export type Dataset = {
  /** The directory it was opened from; of a mix, what it was opened as. */
  dir: string;
  /** Where it comes from. */
  format: "loam" | "llm.c" | "nanoGPT" | "mix";
  /** What its files do not say and is taken for granted; dtype is that of the tokens. */
  assumed: readonly ("dtype" | "tokenizer" | "vocab_size" | "eot")[];
  /** What openTokenizer() takes; null if it is not known. */
  tokenizer: string | null;
  /** One more than the largest id that may occur. */
  vocab_size: number;
  /** Id that documents begin with. */
  bos: number;
  /** Id of the end-of-text token: behind each document, or between two where it is bos too. */
  eot: number;
  /** Shards to train on. */
  train: Shard[];
  /** Shards to evaluate on. */
  val: Shard[];
  /** UTF-8 text in the documents of val; undefined where it is not known, as of llm.c's and nanoGPT's. */
  val_bytes?: number | undefined;
  /** The chat template of a dataset of conversations, or of a mix with some. */
  template?: string;
  /** Identifies the data: SHA-256 by file name, as meta.json has it. Empty for llm.c's and nanoGPT's. */
  sha256: Record<string, string>;
};

/** Something that llm.c's and nanoGPT's files do not say. */
export type Assumed = Dataset["assumed"][number];

/** Bytes of one token on disk for a vocabulary. */
export function tokenBytes(vocab_size: number): 2 | 4 {
  return vocab_size > 65_535 ? 4 : 2;
}

/**
 * Bits per byte of text that a loss on the val split is: nats a token / ln 2 * tokens / bytes. tokens are all of the split, with
 * those that begin and end documents. Undefined where the bytes are not known, and of conversations, whose loss is of some tokens.
 */
export function bitsPerByte(loss: number, { val, val_bytes }: Dataset): number | undefined {
  if (!val_bytes || val.some(({ mask }) => mask !== undefined)) return undefined;
  return loss / Math.LN2 * tokensIn(val) / val_bytes;
}

/** How many tokens some shards hold. */
export function tokensIn(shards: Shard[]): number {
  return shards.reduce((sum, { tokens }) => sum + tokens, 0);
}

/**
 * Opens a dataset and checks that each shard has the size that its header and meta.json say. Reads no tokens. Throws
 * UserError if the directory holds no dataset, an unfinished one, or a damaged shard.
 */
export function openDataset(dir: string): Dataset {
  const files = listFiles(dir);
  if (files.includes("meta.json")) return openWithMeta(dir, readMeta(dir));
  refuseUnfinished(dir, files);
  const bins = files.filter((file) => file.endsWith(".bin")).map((file) => join(dir, file));
  const train = bins.filter((path) => basename(path).includes("train")).map((path) => openShard(path));
  const val = bins.filter((path) => basename(path).includes("val")).map((path) => openShard(path));
  const [first] = train;
  if (first === undefined || val.length === 0) {
    throw new UserError(
      `Cannot use "${dir}": it has neither meta.json nor a train and a val .bin file; make a dataset: ` +
        `deno task prepare --input FILES --out ${dir}`,
    );
  }
  refuseMixedKinds(first, [...train, ...val]);
  const shards = { dir, train, val, sha256: {} };
  if (first.header_bytes === 0) return openNanoGPT(shards, files);
  const format = "llm.c" as const, assumed = ["tokenizer", "vocab_size", "eot"] as const;
  return first.token_bytes === 2 ? { ...shards, format, assumed, ...GPT_2 } : {
    ...shards,
    format,
    assumed,
    tokenizer: null,
    vocab_size: 128_256,
    bos: LLAMA_3_BOS,
    eot: LLAMA_3_BOS,
  };
}

/** nanoGPT's bins: of the characters that a meta.pkl beside them names, or else of GPT-2's tokens. */
function openNanoGPT(shards: Pick<Dataset, "dir" | "train" | "val" | "sha256">, files: string[]): Dataset {
  const format = "nanoGPT" as const;
  if (!files.includes("meta.pkl")) {
    return { ...shards, format, assumed: ["dtype", "tokenizer", "vocab_size", "eot"], ...GPT_2 };
  }
  const tokenizer = join(shards.dir, "meta.pkl"), { vocab_size, bos, eot } = openMetaPkl(tokenizer);
  return { ...shards, format, assumed: ["dtype"], tokenizer, vocab_size, bos, eot };
}

/**
 * Opens a dataset and compares the SHA-256 of each shard with meta.json, and that of meta.json with what it says
 * itself. Throws UserError as openDataset(), and if a shard is not what prepare wrote.
 */
export function verifyDataset(dir: string): Dataset {
  const dataset = openDataset(dir);
  if (dataset.format === "loam") verifyMeta(dir);
  for (const [file, sha256] of Object.entries(dataset.sha256)) {
    requireShard(dir, file, sha256OfFile(join(dir, file)), sha256);
  }
  return dataset;
}

/** Throws UserError unless the SHA-256 of a shard is what it should be. */
export function requireShard(dir: string, file: string, actual: string, sha256: string): void {
  if (actual !== sha256) {
    throw damaged(join(dir, file), `its SHA-256 is ${actual}, should be ${sha256}`);
  }
}

/** Reads tokens [start, start + n) of a shard. Throws UserError if the file cannot be read or ends before them. */
export function readTokens(
  { path, tokens, header_bytes, token_bytes }: Shard,
  start: number,
  n: number,
): Uint32Array {
  const bytes = new Uint8Array(n * token_bytes), from = header_bytes + start * token_bytes;
  orMistake(`Cannot read "${path}"`, () => {
    using file = Deno.openSync(path);
    file.seekSync(from, Deno.SeekMode.Start);
    for (let done = 0; done < bytes.length;) {
      const read = file.readSync(bytes.subarray(done));
      if (read === null) {
        throw damaged(
          path,
          `it ends at byte ${file.statSync().size}, should have ${header_bytes + tokens * token_bytes}`,
        );
      }
      done += read;
    }
  });
  return Uint32Array.from(token_bytes === 2 ? new Uint16Array(bytes.buffer) : new Uint32Array(bytes.buffer));
}

/**
 * The tokenizer of a dataset, undefined if it is not known. template: of chats, where the dataset has none. Throws UserError as
 * openTokenizer(), and if the dataset was made with another.
 */
export async function tokenizerOf(dataset: Dataset, template?: string): Promise<Tokenizer | undefined> {
  const { dir, tokenizer: name, vocab_size, bos, eot } = dataset;
  if (name === null) return undefined;
  const tokenizer = withTemplate(await openTokenizer(name), dataset.template ?? template),
    starts = [tokenizer.bos, tokenizer.eot];
  const refuse = (what: string, is: number, should: number) => {
    throw new UserError(
      `Cannot use "${dir}": ${what} is ${is}, that of its tokenizer ${name} is ${should}; prepare it again with --overwrite`,
    );
  };
  if (tokenizer.vocab_size !== vocab_size) refuse("its vocab_size", vocab_size, tokenizer.vocab_size);
  if (tokenizer.eot !== eot) refuse("its eot", eot, tokenizer.eot);
  if (!starts.includes(bos)) refuse("its bos", bos, tokenizer.bos);
  return tokenizer;
}

/** A tokenizer whose files are also a chat template, if there is one: as which it is saved with a model. */
export function withTemplate(tokenizer: Tokenizer, template: string | undefined): Tokenizer {
  if (template === undefined) return tokenizer;
  return { ...tokenizer, files: (start) => ({ ...tokenizer.files(start), "chat_template.jinja": template }) };
}

/** The template of chats that was saved with a model. */
export function templateIn(directory: string): string | undefined {
  const path = `${directory}/chat_template.jinja`;
  return isFile(path) ? Deno.readTextFileSync(path) : undefined;
}

/** The header of a shard. */
export function shardHeader(token_bytes: 2 | 4, tokens: number): Uint8Array<ArrayBuffer> {
  const header = new Int32Array(HEADER_BYTES / 4);
  header.set([...SHARD_KINDS[token_bytes], tokens]);
  return new Uint8Array(header.buffer);
}

// ---- opening

/** The names in a directory, in order. */
function listFiles(dir: string): string[] {
  try {
    return Array.from(Deno.readDirSync(dir), (entry) => entry.name).sort();
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(
      `Cannot open dataset "${dir}": ${noDirectory(dir)}; make it: ` +
        `deno task prepare --input FILES --out ${dir}`,
    );
  }
}

/** Refuses a directory without meta.json in which prepare has work to do. */
function refuseUnfinished(dir: string, files: string[]): void {
  if (files.some((file) => file === "unfinished" || file.endsWith(".tmp"))) {
    throw new UserError(
      `Cannot use "${dir}": preparing it was interrupted; run again: deno task prepare --out ${dir} ...`,
    );
  }
  const part = files.find((file) => /^part_\d+_of_\d+$/.test(file));
  if (part !== undefined) {
    throw new UserError(
      `Cannot use "${dir}": it has parts (${part}, ...) but no meta.json; when all of them are prepared, run: ` +
        `deno task prepare --merge --out ${dir}`,
    );
  }
}

/** Refuses to take shards of several formats for one dataset. */
function refuseMixedKinds(first: Shard, shards: Shard[]): void {
  const kind = ({ token_bytes, header_bytes }: Shard) =>
    `tokens of ${token_bytes} bytes ${header_bytes === 0 ? "without" : "behind"} a header`;
  const other = shards.find((shard) => kind(shard) !== kind(first));
  if (other === undefined) return;
  throw foreign(other.path, `it has ${kind(other)}, "${basename(first.path)}" has ${kind(first)}`);
}

function openWithMeta(dir: string, meta: Meta): Dataset {
  const hasMasks = meta.template !== undefined;
  const shards = meta.shards.map(({ file, tokens }) => {
    const shard = openShard(join(dir, file), tokens);
    return hasMasks ? { ...shard, mask: openMask(maskName(shard.path), tokens) } : shard;
  });
  const ofSplit = (split: string) => shards.filter((shard) => basename(shard.path).startsWith(split));
  return {
    dir,
    format: "loam",
    assumed: [],
    tokenizer: meta.tokenizer === "." ? dir : meta.tokenizer,
    vocab_size: meta.vocab_size,
    bos: meta.bos,
    eot: meta.eot,
    train: ofSplit("train_"),
    val: ofSplit("val_"),
    val_bytes: Number.isSafeInteger(meta.val?.bytes) ? meta.val.bytes : undefined,
    ...hasMasks && { template: meta.template! },
    sha256: Object.fromEntries(
      meta.shards.flatMap(({ file, sha256, mask_sha256 }) => [
        [file, sha256],
        ...mask_sha256 === undefined ? [] : [[maskName(file), mask_sha256]],
      ]),
    ),
  };
}

/** The file of the mask of a shard. */
export function maskName(shard: string): string {
  return shard.replace(/\.bin$/, ".mask");
}

/** Checks the size of a mask; returns its path. */
function openMask(path: string, tokens: number): string {
  const bytes = orMistake(`Cannot read "${path}"`, () => sizeOf(path));
  if (bytes === tokens) return path;
  throw damaged(path, `it has ${bytes} bytes, should have one for each of the ${tokens} tokens`);
}

/** Reads the header of a shard and checks the size of the file. tokens: what meta.json says, where there is one. */
function openShard(path: string, tokens?: number): Shard {
  const [bytes, magic, version, count] = orMistake(
    `Cannot read "${path}"`,
    () => [sizeOf(path), ...readHeader(path)] as const,
  );
  const refuse = tokens === undefined ? foreign : damaged;
  for (const token_bytes of [2, 4] as const) {
    const [wantedMagic, wantedVersion] = SHARD_KINDS[token_bytes];
    if (magic !== wantedMagic || version !== wantedVersion) continue;
    const wanted = HEADER_BYTES + count * token_bytes;
    if (bytes !== wanted) {
      throw refuse(path, `it has ${bytes} bytes, its header with ${count} tokens says ${wanted}`);
    }
    if (tokens !== undefined && tokens !== count) {
      throw refuse(path, `it has ${count} tokens, meta.json says ${tokens}`);
    }
    return { path, tokens: count, header_bytes: HEADER_BYTES, token_bytes };
  }
  const isNanoGPT = ["train.bin", "val.bin"].includes(basename(path)) && !MAGICS.includes(magic);
  if (tokens === undefined && isNanoGPT) return openHeaderless(path, bytes);
  throw refuse(path, `it begins with ${magic} ${version}, should be 20240520 1 or 20240801 7`);
}

/** nanoGPT's train.bin and val.bin: uint16 all the way. */
function openHeaderless(path: string, bytes: number): Shard {
  if (bytes % 2 === 1) {
    throw foreign(path, `it has ${bytes} bytes, which are no whole number of 2-byte tokens`);
  }
  return { path, tokens: bytes / 2, header_bytes: 0, token_bytes: 2 };
}

/** What to say of a file that another program wrote. */
function foreign(path: string, what: string): UserError {
  return new UserError(`Cannot use "${path}": ${what}; copy or write it again`);
}

function sizeOf(path: string): number {
  try {
    return Deno.statSync(path).size;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw damaged(path, "the file is missing");
  }
}

/** Magic, version and token count; zeros where the file is shorter. */
function readHeader(path: string): [number, number, number] {
  using file = Deno.openSync(path);
  const header = new Int32Array(3);
  file.readSync(new Uint8Array(header.buffer));
  return [header[0]!, header[1]!, header[2]!];
}
