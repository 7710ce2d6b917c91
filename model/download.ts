// deno task download: fetches a model from the Hugging Face hub. Its files lie under a temporary name until all are there and are
// what the hub says they are; a download that was interrupted goes on at the byte where it stopped.
import { createHash, type Hash } from "node:crypto";
import { basename, dirname } from "node:path";
import { runMain, UserError } from "../base/errors.ts";
import {
  isDirectory,
  isFile,
  makeDirectory,
  OutFile,
  readPieces,
  removeTree,
  rename,
  syncDirectory,
  writeSynced,
} from "../base/files.ts";
import { help, readFlags } from "../base/flags.ts";
import { formatBytes } from "../base/format.ts";
import { fetchJson, type JsonPage, type Patience, probeUrl, UrlBytes } from "../data/read/http.ts";
import { type HubModel, modelFileUrl, modelInfoUrl, modelListUrl, parseModelUrl } from "../data/read/hub.ts";
import { INDEX, readIndex } from "../runtime/safetensors.ts";
import { SUMS } from "../runtime/sums.ts";
import { readJson } from "../runtime/trainer_state.ts";
import { configFromHF } from "./hf_config.ts";

const defaults = {
  model: [] as string[], // hf://OWNER/NAME or hf://OWNER/NAME@REVISION; a plain word is one, too
  out: "", // "" = models/OWNER/NAME, which --init_from=hf://OWNER/NAME means
};

/** The command line: fetches the named models. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./download.ts", { with: { type: "text" } });
    return console.log(help("Fetch a model from the Hugging Face hub, for --init_from", defaults, source));
  }
  const { model, out } = { ...defaults, ...readFlags(args, defaults, { words: "model" }) };
  if (model.length !== 1) {
    throw new UserError(
      `Cannot download: ${model.length} models are named, should be one: deno task download hf://OWNER/NAME`,
    );
  }
  await download(model[0]!, out || directoryOf(model[0]!), console.log);
}

/** The directory in which a model of the hub lies after it was downloaded. Throws UserError for an address of another kind. */
export function directoryOf(url: string): string {
  const { name, revision } = parseModelUrl(url);
  return `models/${name}${revision === "main" ? "" : `@${revision.replaceAll("/", "_")}`}`;
}

/**
 * Fetches config.json, weights and tokenizer of a model to a directory, which is there as a whole or not at all. Throws UserError
 * for a model that loam does not compute, a file that is not what the hub says, and what network and disk refuse.
 */
export async function download(
  url: string,
  directory: string,
  print: (line: string) => void,
  patience?: Patience,
): Promise<void> {
  if (isDirectory(directory)) {
    return print(`${directory} is there already; remove it to download it again`);
  }
  const named = parseModelUrl(url), model = { ...named, revision: await commitOf(named, patience) };
  const files = await filesOf(model, patience), temporary = temporaryOf(directory, model.revision);
  if (!files.has("config.json")) throw noModel(url, "it has no config.json");
  makeDirectory(temporary);
  const sums = new Map<string, string>();
  const fetchFile = async (name: string) =>
    sums.set(name, await downloadFile(model, files.get(name)!, `${temporary}/${name}`, print, patience));

  await fetchFile("config.json");
  configFromHF(readJson(`${temporary}/config.json`), `config.json of ${url}`); // before gigabytes come
  for (const name of SMALL) if (files.has(name)) await fetchFile(name);
  if (files.has("model.safetensors")) await fetchFile("model.safetensors");
  else if (files.has(INDEX)) {
    await fetchFile(INDEX);
    const shards = new Set(readIndex(`${temporary}/${INDEX}`).values());
    for (const name of Array.from(shards).sort()) {
      if (!files.has(name)) throw noModel(url, `it has no ${name}, which its ${INDEX} names`);
      await fetchFile(name);
    }
  } else throw noModel(url, notSafetensors(files));

  const lines = Array.from(sums, ([name, sha256]) => `${sha256}  ${name}\n`);
  writeSynced(`${temporary}/${SUMS}`, lines.join(""));
  syncDirectory(temporary);
  rename(temporary, directory);
  syncDirectory(dirname(directory));
  print(`${directory}: ${named.name} at commit ${model.revision}`);
}

/** Files beside the weights that are of use here, as far as a model has them. */
const SMALL = [
  ...["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
  ...["chat_template.jinja", "LICENSE", "README.md"],
];

/** Where a download lies until it is whole, those of other commits removed. */
function temporaryOf(directory: string, commit: string): string {
  const parent = dirname(directory),
    begin = `.${basename(directory)}.`,
    own = `${begin}${commit.slice(0, 12)}.tmp`;
  if (isDirectory(parent)) {
    for (const { name } of Array.from(Deno.readDirSync(parent))) {
      if (name.startsWith(begin) && name.endsWith(".tmp") && name !== own) removeTree(`${parent}/${name}`);
    }
  }
  return `${parent}/${own}`;
}

/** The commit that a revision stands for now: all files are of one. */
async function commitOf(model: HubModel, patience: Patience | undefined): Promise<string> {
  const url = modelInfoUrl(model),
    { value } = await fetchJson(url, patience),
    { sha } = value as { sha?: unknown };
  if (typeof sha === "string" && /^[0-9a-f]{40}$/.test(sha)) return sha;
  throw new UserError(`Cannot read "${url}": it has no sha, the commit of the model; check HF_ENDPOINT`);
}

/** A file as the hub lists it. oid: the sha1 that git gives it; lfs: of large files the sha256. */
type HubFile = { type: string; path: string; size: number; oid: string; lfs?: { oid: string } };

/** The files of a model, but for those in folders, by name. */
async function filesOf(model: HubModel, patience: Patience | undefined): Promise<Map<string, HubFile>> {
  const files = new Map<string, HubFile>();
  for (let list: string | undefined = modelListUrl(model); list !== undefined;) {
    const page: JsonPage = await fetchJson(list, patience);
    for (const file of page.value as HubFile[]) if (file.type === "file") files.set(file.path, file);
    list = page.next;
  }
  return files;
}

/** Downloads a file, or what of it is not there yet; returns its sha256. Throws UserError if it is not what the hub lists. */
async function downloadFile(
  model: HubModel,
  listed: HubFile,
  path: string,
  print: (line: string) => void,
  patience: Patience | undefined,
): Promise<string> {
  const { path: name, size, oid, lfs } = listed;
  const url = modelFileUrl(model, name), part = `${path}.part`, isWhole = isFile(path);
  let hashes = hashesOf(listed), done = 0;
  const add = (bytes: Uint8Array) => {
    for (const hash of hashes) hash.update(bytes);
    done += bytes.length;
  };
  const there = isWhole ? path : part;
  if (isFile(there)) readPieces(there, add);
  if (!isWhole) {
    const info = size > 0 ? await probeUrl(url, patience) : undefined, start = performance.now();
    if (done > size || done > 0 && !info?.ranges) { // nothing to go on from
      removeTree(part);
      [hashes, done] = [hashesOf(listed), 0];
    }
    const before = done;
    using file = new OutFile(part, "append");
    for await (const chunk of info && done < size ? new UrlBytes(url, info, patience).read(done, size) : []) {
      file.write(chunk);
      add(chunk);
    }
    file.sync();
    const rate = formatBytes(1000 * (done - before) / (performance.now() - start));
    print(`  ${name}: ${formatBytes(size)}${before > 0 ? ` from byte ${before} on` : ""}, ${rate}/s`);
  }
  const [sha256, blob] = hashes.map((hash) => hash.digest("hex")) as [string, string?];
  const [kind, is, should] = lfs ? ["sha256", sha256, lfs.oid] : ["sha1 in git", blob, oid];
  if (is !== should) {
    removeTree(there);
    throw new UserError(
      `Cannot download "${url}": the ${kind} of what came is ${is}, the hub says ${should}; run the same command again`,
    );
  }
  if (!isWhole) rename(part, path);
  return sha256;
}

/** Of the bytes of a file, and, where the hub lists that alone, as git hashes it. */
function hashesOf({ size, lfs }: HubFile): Hash[] {
  return [createHash("sha256"), ...lfs ? [] : [createHash("sha1").update(`blob ${size}\0`)]];
}

function notSafetensors(files: Map<string, HubFile>): string {
  const other = files.keys().find((name) => /\.(bin|pt|pth|gguf)$/.test(name));
  return `it has no model.safetensors${other ? `, but ${other}, which loam does not read` : ""}`;
}

function noModel(url: string, what: string): UserError {
  return new UserError(
    `Cannot download "${url}": ${what}; name another model or revision with its weights in safetensors`,
  );
}

if (import.meta.main) await runMain(main);
