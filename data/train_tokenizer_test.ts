import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { openDataset } from "./bins.ts";
import { documentsOf, jsonl, readAll, ROOT, runPrepare } from "./prepare/testing.ts";
import { inDirectory } from "./testing.ts";
import { openTokenizer } from "./tokenizer.ts";
import { parseOptions } from "./train_tokenizer/train_options.ts";
import { trainTokenizer } from "./train_tokenizer.ts";
import type { Trained } from "./train_tokenizer/train_summary.ts";

const python = Deno.env.get("LOAM_PYTHON");

/** How a tokenizer was trained by Hugging Face's library, and what came of it. */
type Case = {
  pattern: string;
  vocab_size: number;
  min_frequency: number;
  special_tokens: string[];
  max_token_length?: number;
  /** In the order of their ids, as in tokenizer.json. */
  tokens: string[];
  merges: string[];
  /** Of the texts. */
  ids: number[][];
};

// By tests/oracle/train_tokenizer.py
const [{ documents, texts }, ...cases] = Deno.readTextFileSync(`${ROOT}tests/golden/trained_tokenizers.jsonl`)
  .trimEnd().split("\n").map((line) => JSON.parse(line)) as [
    { documents: string[]; texts: string[] },
    ...Case[],
  ];

/** Trains on documents, in dir/corpus.jsonl, into dir/tokenizer. lines: what it reported. */
async function train(
  dir: string,
  documents: string[],
  ...flags: string[]
): Promise<Trained & { lines: string[] }> {
  jsonl(`${dir}/corpus.jsonl`, documents);
  const lines: string[] = [];
  const options = parseOptions(["--train", `${dir}/corpus.jsonl`, "--out", `${dir}/tokenizer`, ...flags]);
  return { ...await trainTokenizer(options, (line) => lines.push(line)), lines };
}

function flagsOf(
  { pattern, vocab_size, min_frequency, special_tokens, max_token_length }: Case,
): string[] {
  const more = special_tokens.slice(1).join(",");
  return [
    `--pattern=${pattern}`,
    `--vocab_size=${vocab_size}`,
    `--min_frequency=${min_frequency}`,
    ...(more === "" ? [] : [`--special_tokens=${more}`]),
    ...(max_token_length === undefined ? [] : [`--max_token_length=${max_token_length}`]),
  ];
}

/** Tokens by id and merges of dir/tokenizer/tokenizer.json. */
function modelOf(dir: string): Pick<Case, "tokens" | "merges"> {
  const { vocab, merges } = JSON.parse(Deno.readTextFileSync(`${dir}/tokenizer/tokenizer.json`)).model;
  const tokens = Object.keys(vocab).sort((a, b) => vocab[a] - vocab[b]);
  assertEquals(tokens.map((token) => vocab[token]), tokens.map((_, id) => id));
  return { tokens, merges };
}

for (const golden of cases) {
  Deno.test(`trainTokenizer() makes the tokens and merges of Hugging Face's trainer: ${golden.pattern}`, () =>
    inDirectory(async (dir) => {
      const { lines } = await train(dir, documents, ...flagsOf(golden));
      assertEquals(modelOf(dir), { tokens: golden.tokens, merges: golden.merges });
      const made = golden.tokens.length.toLocaleString("en-US"),
        wanted = golden.vocab_size.toLocaleString("en-US");
      const warning =
        `warning: made ${made} of ${wanted} tokens: no two tokens stand together ${golden.min_frequency} ` +
        "times in a word and make one below --max_token_length=1024; give more text or --min_frequency=1";
      assertEquals(lines, golden.tokens.length < golden.vocab_size ? [warning] : []);

      const tokenizer = await openTokenizer(`${dir}/tokenizer`);
      assertEquals([tokenizer.vocab_size, tokenizer.eot], [golden.tokens.length, 0]);
      assertEquals(texts.map((text) => Array.from(tokenizer.encode(text))), golden.ids);
      assertEquals(golden.ids.map((ids) => tokenizer.decode(ids)), texts);
    }));
}

Deno.test("prepare encodes with a trained tokenizer, and what it wrote decodes to the text", () =>
  inDirectory(async (dir) => {
    await train(dir, documents, ...flagsOf(cases[0]!));
    await runPrepare(
      "--input",
      `${dir}/corpus.jsonl`,
      "--tokenizer",
      `${dir}/tokenizer`,
      "--out",
      `${dir}/out`,
      "--val_fraction=0.3",
    );
    const dataset = openDataset(`${dir}/out`);
    const found = [...await documentsOf(dataset, "train"), ...await documentsOf(dataset, "val")];
    assertEquals(found.sort(), documents.toSorted());
    assertEquals([dataset.vocab_size, dataset.eot], [450, 0]);
  }));

Deno.test("trainTokenizer() trains on the documents that are not held out", () =>
  inDirectory(async (dir) => {
    const many = Array.from({ length: 100 }, (_, i) => i === 99 ? "zqzqzqzq" : "aab");
    const { text } = await train(dir, many, "--vocab_size=300");
    assertEquals(modelOf(dir).merges, ["a a", "aa b"]);
    assertEquals(text.sample.map((bytes) => new TextDecoder().decode(bytes)), ["zqzqzqzq"]);
  }));

Deno.test("trainTokenizer() writes a tokenizer of single bytes when it is told to", () =>
  inDirectory(async (dir) => {
    const { lines } = await train(dir, ["aaaa"], "--vocab_size=257");
    assertEquals([modelOf(dir).merges, lines], [[], []]);
    const tokenizer = await openTokenizer(`${dir}/tokenizer`);
    assertEquals(tokenizer.decode(tokenizer.encode("aé👍")), "aé👍");
    assertEquals(tokenizer.encode("aé👍").length, 7);
  }));

Deno.test("trainTokenizer() replaces a tokenizer only with --overwrite", () =>
  inDirectory(async (dir) => {
    await train(dir, ["aaaa"], "--vocab_size=258");
    const before = readAll(`${dir}/tokenizer`);
    const error = await assertRejects(() => train(dir, ["bbbb"], "--vocab_size=258"), UserError);
    assertEquals(
      error.message,
      `Cannot write to "${dir}/tokenizer": it holds a tokenizer (tokenizer.json); choose another --out, ` +
        "or replace it with --overwrite",
    );
    assertEquals(readAll(`${dir}/tokenizer`), before);
    await train(dir, ["bbbb"], "--vocab_size=258", "--overwrite");
    assertEquals(modelOf(dir).merges, ["b b"]);
    assertEquals(Object.keys(readAll(`${dir}/tokenizer`)), ["tokenizer.json", "tokenizer_config.json"]);
  }));

Deno.test("trainTokenizer() does not write into a dataset or a model", () =>
  inDirectory(async (dir) => {
    for (const [name, what] of [["meta.json", "dataset"], ["config.json", "model"]] as const) {
      Deno.mkdirSync(`${dir}/tokenizer`, { recursive: true });
      Deno.writeTextFileSync(`${dir}/tokenizer/${name}`, "{}");
      const error = await assertRejects(() => train(dir, ["aaaa"], "--overwrite"), UserError);
      assertEquals(
        error.message,
        `Cannot write to "${dir}/tokenizer": it holds a ${what} (${name}), should be a directory for the tokenizer ` +
          "alone; choose another --out",
      );
      Deno.removeSync(`${dir}/tokenizer`, { recursive: true });
    }
  }));

Deno.test("trainTokenizer() stops reading where there is no room for more words, and says so", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/corpus.jsonl`, ["aa aa", "aa bb", "cc cc cc"]);
    const lines: string[] = [];
    const options = parseOptions([
      "--train",
      `${dir}/corpus.jsonl`,
      "--out",
      `${dir}/tokenizer`,
      "--vocab_size=258",
    ]);
    const { text } = await trainTokenizer(options, (line) => lines.push(line), { words: 3, bytes: 100 });
    assertEquals(text.documents, 2);
    assertEquals(lines, [
      "warning: stopped reading at document 3: 3 different words are as many as there is room for; " +
      "to have all of several inputs among them, give them weights",
    ]);
    assertEquals(modelOf(dir).merges, ["a a"]);
  }));

Deno.test("trainTokenizer() refuses input without text and leaves nothing behind", () =>
  inDirectory(async (dir) => {
    const error = await assertRejects(() => train(dir, ["", ""]), UserError);
    assertEquals(
      error.message,
      `Cannot train on "${dir}/corpus.jsonl": it has no text; give files with text`,
    );
    assertEquals(Object.keys(readAll(dir)), ["corpus.jsonl"]);
  }));

Deno.test("trainTokenizer() says in one line what the operating system refuses", () =>
  inDirectory(async (dir) => {
    Deno.mkdirSync(`${dir}/tokenizer/tokenizer.json.tmp`, { recursive: true });
    const error = await assertRejects(() => train(dir, documents), UserError);
    const path = `${dir}/tokenizer/tokenizer.json.tmp`;
    assertEquals(
      error.message,
      `Cannot write ${path}: Is a directory (os error 21): open '${path}'`,
    );
  }));

/** Runs deno task tokenizer as a program. */
async function runTask(...args: string[]): Promise<{ code: number; out: string; error: string }> {
  const { tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}deno.json`));
  const command = [...tasks.tokenizer.command.split(" ").slice(1), ...args];
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args: command, cwd: ROOT })
    .output();
  return { code, out: new TextDecoder().decode(stdout), error: new TextDecoder().decode(stderr) };
}

Deno.test("deno task tokenizer trains, prints a summary, and refuses to do it again", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/corpus.jsonl`, documents);
    const args = ["--train", `${dir}/corpus.jsonl`, "--vocab_size", "300", "--out", `${dir}/tokenizer`];
    const { code, out, error } = await runTask(...args);
    assertEquals({ code, error }, { code: 0, error: "" });
    assertMatch(
      out,
      /^\S+: 300 tokens \(pattern llama3\) in \d+\.\d s\n {2}20 documents, \d\.\d kB, \d+ different words\n {2}\d\.\d\d bytes per token on \d\.\d kB of the text \(of 100 documents one would be held out\); gpt2: \d\.\d\d\n$/,
    );
    const again = await runTask(...args);
    assertEquals([again.code, again.out], [1, ""]);
    assertMatch(again.error, /^error: Cannot write to [^\n]+\n$/);
  }));

Deno.test("deno task tokenizer says which directories it may write to", () =>
  inDirectory(async (dir) => {
    jsonl(`${dir}/corpus.jsonl`, documents);
    const { code, error } = await runTask("--train", `${dir}/corpus.jsonl`, "--out", "/var/tokenizer");
    assertEquals(code, 1);
    assertMatch(error, /^error: Requires write access to "\/var\/tokenizer": [^\n]+\n$/);
  }));

// ---- live

/** What tests/oracle/train_tokenizer.py answers. */
async function ask<T>(args: string[], input: unknown): Promise<T> {
  const command = new Deno.Command(python!, {
    args: [`${ROOT}tests/oracle/train_tokenizer.py`, ...args],
    stdin: "piped",
    stdout: "piped",
  });
  const child = command.spawn(), writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(JSON.stringify(input)));
  await writer.close();
  const { code, stdout } = await child.output();
  assertEquals(code, 0);
  return JSON.parse(new TextDecoder().decode(stdout));
}

/** Documents of words from all planes of Unicode, of which some come often. */
function unicodeDocuments(n: number): string[] {
  let state = 7;
  const next = (below: number) => (state = Math.imul(state, 1664525) + 1013904223 >>> 0) % 65521 % below;
  const character = () =>
    String.fromCodePoint(next(next(3) === 0 ? 0x110000 : next(2) === 0 ? 0x3000 : 0x80));
  const words = Array.from(
    { length: 500 },
    () => Array.from({ length: 1 + next(8) }, character).join("").toWellFormed(),
  );
  return Array.from(
    { length: n },
    () =>
      Array.from({ length: 1 + next(60) }, () => words[next(1 + next(words.length))]).join(
        [" ", "", "\n", "'"][next(4)],
      ),
  );
}

for (const pattern of ["llama3", "o200k", "qwen", "gpt2"]) {
  Deno.test({
    name:
      `trainTokenizer() makes the tokens and merges of Hugging Face's trainer on Unicode of all planes: ${pattern} (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: () =>
      inDirectory(async (dir) => {
        const documents = unicodeDocuments(600), trainedOn = documents.filter((_, i) => i % 100 !== 99);
        const request = { pattern, vocab_size: 3000, min_frequency: 2, special_tokens: ["<|endoftext|>"] };
        const { tokens, merges, ids } = await ask<Case>([], {
          ...request,
          documents: trainedOn,
          texts: documents,
        });
        await train(dir, documents, ...flagsOf({ ...request, tokens, merges, ids }));
        assertEquals(modelOf(dir), { tokens, merges });
        const tokenizer = await openTokenizer(`${dir}/tokenizer`);
        assertEquals(documents.map((text) => Array.from(tokenizer.encode(text))), ids);
      }),
  });
}

for (const max_token_length of [2, 3, 4, 7, 16, 33]) {
  Deno.test({
    name: `--max_token_length=${max_token_length} makes the tokens of Hugging Face's trainer (LOAM_PYTHON)`,
    ignore: python === undefined,
    fn: () =>
      inDirectory(async (dir) => {
        const runs = Array.from({ length: 99 }, (_, i) =>
          `${"=".repeat(i)} ${"ab".repeat(i % 23)}é${"é".repeat(i % 7)} the`);
        const documents = [...runs, ...unicodeDocuments(100)],
          trainedOn = documents.filter((_, i) =>
            i % 100 !== 99
          );
        const request = {
          pattern: "llama3",
          vocab_size: 900,
          min_frequency: 2,
          special_tokens: ["<|endoftext|>"],
        };
        const limited = { ...request, max_token_length };
        const { tokens, merges, ids } = await ask<Case>([], {
          ...limited,
          documents: trainedOn,
          texts: documents,
        });
        await train(dir, documents, ...flagsOf({ ...limited, tokens, merges, ids }));
        assertEquals(modelOf(dir), { tokens, merges });
        assert(
          Math.max(...merges.map((merge) => merge.length - 1)) <= Math.max(2, max_token_length - 1),
        );
      }),
  });
}

Deno.test("a tokenizer of the longest tokens that --max_token_length allows can be read", () =>
  inDirectory(async (dir) => {
    const text = "=".repeat(200_000); // 2, 4, 8, ... 32,768 and sums of these
    for (const [flags, longest] of [[[], 1023], [["--max_token_length=65535"], 65_534]] as const) {
      Deno.writeTextFileSync(`${dir}/a.txt`, text);
      const options = [
        "--train",
        `${dir}/a.txt`,
        "--out",
        `${dir}/tokenizer`,
        "--overwrite",
        "--vocab_size=300",
      ];
      await trainTokenizer(parseOptions([...options, "--min_frequency=1", ...flags]), () => {});
      const { tokens } = modelOf(dir), most = Math.max(...tokens.map((token) => token.length));
      assert(most <= longest && most > longest / 2, `${most}`);
      const tokenizer = await openTokenizer(`${dir}/tokenizer`), ids = tokenizer.encode(text);
      assertEquals(tokenizer.decode(ids), text);
      assertEquals(Math.max(...Array.from(ids, (id) => tokenizer.decode([id]).length)), most);
    }
  }));

Deno.test({
  name: "a trained tokenizer gives the same ids in tokenizers and transformers (LOAM_PYTHON)",
  ignore: python === undefined,
  fn: () =>
    inDirectory(async (dir) => {
      await train(dir, documents, ...flagsOf(cases[0]!));
      const plain = texts.filter((text) => !text.includes("<|")); // there it becomes a special token
      const tokenizer = await openTokenizer(`${dir}/tokenizer`);
      const loaded = await ask<Record<string, unknown>>(["--load", `${dir}/tokenizer`], plain);
      assert(plain.length > 1);
      assertEquals(loaded, {
        ids: plain.map((text) => Array.from(tokenizer.encode(text))),
        same: true,
        decoded: plain,
        size: 450,
        eos: ["<|endoftext|>", 0],
        special: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
      });
    }),
});

Deno.test("trainTokenizer() refuses text in another encoding, and says what of a directory it reads", () =>
  inDirectory(async (dir) => {
    Deno.mkdirSync(`${dir}/corpus`);
    jsonl(`${dir}/corpus/train.jsonl`, documents);
    jsonl(`${dir}/corpus/test.jsonl`, documents);
    Deno.writeFileSync(`${dir}/corpus/latin1.txt`, Uint8Array.of(0x63, 0x61, 0x66, 0xe9)); // "café"
    const lines: string[] = [], report = (line: string) => lines.push(line.replaceAll(dir, "DIR"));
    const flags = ["--train", `${dir}/corpus`, "--out", `${dir}/tokenizer`, "--vocab_size=300"];
    const error = await assertRejects(() => trainTokenizer(parseOptions(flags), report), UserError);
    const message = `Cannot read "${dir}/corpus/latin1.txt": its byte 3 is 0xe9, which is not UTF-8 there; ` +
      "convert it with iconv -f ENCODING -t UTF-8";
    assertEquals(error.message, `${message}, or leave it out with --skip_bad`);
    const said = [
      "DIR/corpus: 2 files (1 .jsonl, 1 .txt)",
      "DIR/corpus: left out 1 of split test (--split reads them)",
    ];
    assertEquals(lines.splice(0), said);
    const { text, counts } = await trainTokenizer(parseOptions([...flags, "--skip_bad"]), report);
    assertEquals([text.documents, counts], [documents.filter((text) => text !== "").length, {
      bad: 1,
      duplicates: 0,
      first_bad: message,
    }]);
  }));
