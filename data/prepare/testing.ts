// What the tests of prepare share: directories, input and comparisons.
import { assert, assertEquals, assertRejects } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { type Dataset, readTokens } from "../bins.ts";
import { merge } from "./merge.ts";
import type { Meta } from "../meta.ts";
import { parseCommand } from "./options.ts";
import { prepare, type Prepared } from "../prepare.ts";
import { openTokenizer } from "../tokenizer.ts";

/** The repository, with a slash behind it. */
export const ROOT: string = new URL("../..", import.meta.url).pathname;

/** Fifty short documents. */
export const TEXTS: string[] = Array.from(
  { length: 50 },
  (_, i) => `Document ${i}. ` + "More of it, <|endoftext|> too. ".repeat(i % 5),
);

/** Prepares on this thread, unless --workers says otherwise. */
export function runPrepare(...args: string[]): Promise<Prepared> {
  const command = parseCommand(["--workers=1", ...args]);
  assert("prepare" in command);
  return prepare(
    command.prepare,
    () => ({ advance: () => Promise.resolve(), stop: () => Promise.resolve() }),
  );
}

/** Prepares until so many blocks are written, then stops as if killed. */
export async function interrupt(n: number, ...args: string[]): Promise<void> {
  const command = parseCommand(["--workers=1", ...args]);
  assert("prepare" in command);
  let left = n;
  const show = () => ({
    advance: () => --left === 0 ? Promise.reject(new Error("killed")) : Promise.resolve(),
    stop: () => Promise.resolve(),
  });
  await assertRejects(() => prepare(command.prepare, show), Error, "killed");
}

/** Merges the parts in a directory. */
export function runMerge(...args: string[]): Meta {
  const command = parseCommand(["--merge", ...args]);
  assert("merge" in command);
  return merge(command.merge);
}

/** Runs deno task prepare as a program. */
export function runTask(...args: string[]): Promise<{ code: number; out: string; error: string }> {
  return runTaskIn(ROOT, ...args);
}

/** Runs it in another directory than the repository. */
export async function runTaskIn(
  cwd: string,
  ...args: string[]
): Promise<{ code: number; out: string; error: string }> {
  const command = ["run", "-q", "-P=prepare", `${ROOT}data/prepare.ts`, ...args];
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args: command, cwd }).output();
  return { code, out: new TextDecoder().decode(stdout), error: new TextDecoder().decode(stderr) };
}

/** Checks that preparing into dir/out fails with one line and leaves the directory as it was. */
export async function fails(dir: string, args: string[], message: string): Promise<void> {
  const before = readAll(dir);
  const error = await assertRejects(() => runPrepare(...args, "--out", `${dir}/out`), UserError);
  assertEquals(error.message.replaceAll(dir, "DIR"), message);
  assertEquals(error.message.includes("\n"), false);
  assertEquals(readAll(dir), before);
}

/** Writes one text a line. */
export function jsonl(path: string, texts: string[]): void {
  Deno.writeTextFileSync(path, texts.map((text) => JSON.stringify({ text })).join("\n"));
}

/** The documents of a split, decoded; each begins with bos, and ends with eot if that is another token. */
export async function documentsOf(dataset: Dataset, split: "train" | "val"): Promise<string[]> {
  const tokenizer = await openTokenizer(dataset.tokenizer!);
  const ids = dataset[split].flatMap((shard) => Array.from(readTokens(shard, 0, shard.tokens)));
  const { bos, eot } = dataset, documents: number[][] = [];
  assertEquals(ids[0], bos);
  for (const id of ids) {
    if (id === bos) documents.push([]);
    else documents.at(-1)!.push(id);
  }
  if (bos !== eot) { for (const document of documents) assertEquals(document.pop(), eot); }
  return documents.map((document) => tokenizer.decode(document));
}

/** Contents by path of all files below a directory, sorted; a byte is a character. */
export function readAll(dir: string): Record<string, string> {
  const found: Record<string, string> = {}, latin1 = new TextDecoder("latin1");
  const visit = (below: string) => {
    const entries = Array.from(Deno.readDirSync(`${dir}/${below}`)).sort((a, b) => a.name < b.name ? -1 : 1);
    for (const { name, isDirectory } of entries) {
      if (isDirectory) visit(`${below}${name}/`);
      else found[below + name] = latin1.decode(Deno.readFileSync(`${dir}/${below}${name}`));
    }
  };
  visit("");
  return found;
}

/** Writes the files of a tokenizer of 257 ids that is no named one. */
export async function writeTokenizer(dir: string): Promise<void> {
  Deno.mkdirSync(dir, { recursive: true });
  for (const [name, text] of Object.entries((await openTokenizer("bytes")).files())) {
    Deno.writeTextFileSync(`${dir}/${name}`, text.replace("loam_tokenizer", "other_key"));
  }
}
