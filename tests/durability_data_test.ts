// What prepare, its merge and the tokenizer's trainer write may end at any moment and be refused at any: what stands under a
// final name is whole, and the same command ends with the same files as if nothing had happened.
import { createHash } from "node:crypto";
import { assert, assertEquals } from "@std/assert";
import { openDataset, verifyDataset } from "../data/bins.ts";
import { jsonl, readAll, runMerge, runPrepare, TEXTS, writeTokenizer } from "../data/prepare/testing.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { parseOptions } from "../data/train_tokenizer/train_options.ts";
import { trainTokenizer } from "../data/train_tokenizer.ts";
import { UserError } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { crashes, failing, inEach, unsynced } from "./disk.ts";
import { freshPath } from "./testing.ts";

/** Work on a directory `out`, what it ends with, and what of `out` can be used, if anything. */
type Case = {
  name: string;
  before?: (out: string) => unknown; // what is there
  work: (out: string) => unknown;
  use: (out: string) => unknown; // throws UserError where nothing is of use
  replaces?: boolean; // all that was there
  refused?: boolean;
};

/** Checks all moments at which the work of a case may end, and all changes that the system may refuse. */
function check({ name, before, work: given, use, replaces = false, refused = true }: Case): void {
  const work = async (out: string) => {
    try {
      await given(out);
    } finally {
      await new Promise((resolve) => setTimeout(resolve, 0)); // Deno ends what listened for signals, some at a time
    }
  };
  const may = refused ? "be killed, lose power and be refused any change" : "be killed and lose power";
  Deno.test(`${name} may ${may}`, async () => {
    const fresh = async () => {
      const root = freshPath();
      Deno.mkdirSync(root);
      if (before) await unsynced(() => before(`${root}/out`));
      return root;
    };
    const whole = await fresh(), useful = [contentOf(whole, use)];
    let said = 0;
    const finish = async () => {
      await work(`${whole}/out`);
      said = 1;
    };
    const { changes, states } = await crashes(whole, finish, () => said);
    const expected = checksums(whole);
    if (replaces) {
      const empty = freshPath();
      Deno.mkdirSync(empty);
      await unsynced(() => work(`${empty}/out`));
      assertEquals(expected, checksums(empty)); // nothing is left of what was there
    }
    useful.push(contentOf(whole, use));
    assert(changes >= 7 && states.length >= 5, `${changes} changes, ${states.length} states`);
    await inEach(states, async (root, { said }) => {
      const found = contentOf(root, use);
      if (said) assertEquals(found, useful[1]);
      assert(found === undefined || useful.includes(found), `a mixture: ${found}`);
      await work(`${root}/out`);
      assertEquals(checksums(root), expected);
    });

    for (const error of refused ? ["full", "broken"] as const : []) {
      for (let number = 1, reached = true; reached; number++) {
        const root = await fresh(), result = await failing(number, error, () => work(`${root}/out`));
        reached = result.reached;
        const story = `${error} at change ${number}: ${result.failed}`;
        if (result.failed) {
          assert(result.failed instanceof UserError, story);
          assertEquals(result.failed.message.includes("\n"), false, story);
        }
        const found = contentOf(root, use);
        assert(found === undefined || useful.includes(found), `${story}: a mixture: ${found}`);
        await unsynced(() => work(`${root}/out`));
        assertEquals(checksums(root), expected, story);
        Deno.removeSync(root, { recursive: true });
      }
    }
  });
}

/** SHA-1 by path of all files below a directory. */
function checksums(dir: string): Record<string, string> {
  const sha1 = (text: string) => createHash("sha1").update(text).digest("hex");
  return Object.fromEntries(Object.entries(readAll(dir)).map(([path, text]) => [path, sha1(text)]));
}

/** What `out` holds, where it can be used. */
function contentOf(root: string, use: (out: string) => unknown): string | undefined {
  try {
    return JSON.stringify(use(`${root}/out`)).replaceAll(root, "");
  } catch (error) {
    if (error instanceof UserError) return undefined;
    throw error;
  }
}

const input = freshPath();
Deno.mkdirSync(input);
jsonl(`${input}/a.jsonl`, TEXTS);
jsonl(`${input}/b.jsonl`, TEXTS.map((text) => text.toUpperCase().slice(3)));
// Two blocks, the first of which ends with a document of a megabyte and with a commit.
jsonl(`${input}/long.jsonl`, [...TEXTS.slice(0, 5), "long ".repeat(1 << 18), ...TEXTS.slice(5)]);
await writeTokenizer(`${input}/files`);
const flags = ["--tokenizer=bytes", "--val_fraction=0.3", "--shard_tokens=1000"];
const from = (...files: string[]) => [...flags, "--input", ...files.map((file) => `${input}/${file}.jsonl`)];

check({
  name: "prepare in two blocks",
  work: (out) => runPrepare(...from("long"), "--out", out),
  use: verifyDataset,
  refused: false, // as the next one
});

const messages = (text: string) => [{ role: "user", content: text }, { role: "assistant", content: text }];
Deno.writeTextFileSync(
  `${input}/chat.jsonl`,
  TEXTS.slice(0, 9).map((text) => `${JSON.stringify({ messages: messages(text) })}\n`).join(""),
);

check({
  name: "prepare of conversations, with masks,",
  work: (out) => runPrepare(...from("chat"), "--chat", "--shard_tokens=1500", "--out", out),
  use: verifyDataset,
});

/** What is there for a program that does not compare checksums. */
function dataset(out: string): unknown {
  const { train, val } = openDataset(out), meta = Deno.readTextFileSync(`${out}/meta.json`);
  return [meta, ...[...train, ...val].map(({ path }) => sha256OfFile(path))];
}

check({
  name: "prepare over another dataset",
  before: (out) => runPrepare(...from("b"), "--shard_tokens=300", "--out", out), // of more shards
  work: (out) => runPrepare(...from("a"), "--out", out, "--overwrite"),
  use: dataset,
  replaces: true,
});

check({
  name: "merge",
  before: async (out) => {
    for (const shard of ["1/2", "2/2"]) {
      await runPrepare(...from("a", "b"), `--tokenizer=${input}/files`, "--out", out, `--shard=${shard}`);
    }
  },
  work: (out) => runMerge("--out", out),
  use: verifyDataset,
});

/** Trains a tokenizer on one of the files. */
function tokenizer(out: string, file: string): Promise<unknown> {
  const flags = ["--train", `${input}/${file}.jsonl`, "--out", out, "--vocab_size=280", "--overwrite"];
  if (file === "b") flags.push("--special_tokens=<|other|>"); // so that both files differ
  return trainTokenizer(parseOptions(flags), () => {});
}

check({
  name: "the tokenizer's trainer over another tokenizer",
  before: (out) => tokenizer(out, "b"),
  work: (out) => tokenizer(out, "a"),
  use: (out) => {
    const files = readAll(out), whole = files["tokenizer.json"];
    if (whole === undefined) throw new UserError("no tokenizer");
    return [whole, files["tokenizer_config.json"]];
  },
  replaces: true,
});

Deno.test("the tokenizers of these tests differ and can be opened", async () => {
  const paths = ["a", "b"].map((file) => ({ file, path: freshPath() }));
  for (const { file, path } of paths) await tokenizer(path, file);
  const [a, b] = await Promise.all(paths.map(({ path }) => openTokenizer(path)));
  assert(JSON.stringify(a!.files()) !== JSON.stringify(b!.files()));
});
