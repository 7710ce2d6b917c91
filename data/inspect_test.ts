import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import settings from "../deno.json" with { type: "json" };
import { UserError } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { shardHeader } from "./bins.ts";
import { main } from "./inspect.ts";
import { inDirectory } from "./testing.ts";

const ROOT = new URL("../", import.meta.url);
const EOT = 256;

/** What the command prints. */
async function output(...args: string[]): Promise<string> {
  const lines: string[] = [];
  await main(args, (text) => lines.push(text));
  return lines.join("\n");
}

/** What the command prints before it fails, and the message of its failure. */
async function failure(...args: string[]): Promise<{ text: string; message: string }> {
  const lines: string[] = [];
  const { message } = await assertRejects(() => main(args, (text) => lines.push(text)), UserError);
  return { text: lines.join("\n"), message };
}

function bytes(...documents: string[]): number[] {
  return documents.flatMap((text) => [EOT, ...new TextEncoder().encode(text)]);
}

function write(path: string, token_bytes: 2 | 4, tokens: number[], header = true): void {
  const body = new (token_bytes === 2 ? Uint16Array : Uint32Array)(tokens);
  const head = header ? shardHeader(token_bytes, tokens.length) : new Uint8Array(0);
  Deno.writeFileSync(path, new Uint8Array([...head, ...new Uint8Array(body.buffer)]));
}

const SHARDS = {
  "train_000000.bin": bytes("To be, or not to be", "that is the question:"),
  "train_000001.bin": bytes("Größe"),
  "val_000000.bin": bytes("Whether 'tis nobler"),
};

/** Writes a dataset of bytes as prepare does. */
function writeDataset(dir: string, shards: Record<string, number[]> = SHARDS): void {
  for (const [file, tokens] of Object.entries(shards)) write(`${dir}/${file}`, 2, tokens);
  const sizeOf = (split: string) => {
    const tokens = Object.entries(shards).flatMap(([file, tokens]) => file.startsWith(split) ? tokens : []);
    const documents = tokens.filter((id) => id === EOT).length;
    return { documents, tokens: tokens.length, bytes: tokens.length - documents };
  };
  const meta = {
    format: "loam-bins",
    version: 1,
    tokenizer: "bytes",
    vocab_size: 257,
    eot: EOT,
    token_bytes: 2,
    train: sizeOf("train"),
    val: sizeOf("val"),
    left_out: { empty: 0, duplicates: 0, bad: 0 },
    inputs: [],
    options: {},
    shards: Object.entries(shards).map(([file, { length }]) => ({
      file,
      tokens: length,
      sha256: sha256OfFile(`${dir}/${file}`),
    })),
  };
  Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify(meta));
}

Deno.test("data shows what a dataset holds", () =>
  inDirectory(async (dir) => {
    writeDataset(dir);
    const sha = (file: string) => sha256OfFile(`${dir}/${file}`).slice(0, 16);
    const text = (await output("--dir", dir)).replace(/\S+ s, \S+ MB\/s/, "TIME");
    const expected = `${dir}: loam's bins, tokenizer bytes, vocabulary 257, end of text 256

shards
  ok     train_000000.bin  42 tokens  sha256 ${sha("train_000000.bin")}
  ok     train_000001.bin  8 tokens  sha256 ${sha("train_000001.bin")}
  ok     val_000000.bin  20 tokens  sha256 ${sha("val_000000.bin")}
  0.0 MB read in TIME

         documents  tokens  tokens/document  bytes/token  shards
  train          3      50             15.7        0.940       2
  val            1      20             19.0        0.950       1

tokens per document, train
    4 to 7  1  ████████████████████
   8 to 15  0
  16 to 31  2  ████████████████████████████████████████
  least 7, 5% 7, 25% 7, 50% 19, 75% 21, 95% 21, 99% 21, most 21, mean 15.7

most frequent tokens, train
   32  8  16.00%  " "`;
    assertEquals(text.slice(0, expected.length), expected);
    assertStringIncludes(text, '\n  116  6  12.00%  "t"\n');
    assertStringIncludes(text, "\n  21 of 257 ids occur (8.2%)\n");
    const documents = `
first documents, train
  0  19 tokens  "To be, or not to be"
  1  21 tokens  "that is the question:"
  2  7 tokens  "Größe"`;
    assert(text.endsWith(documents), text);
  }));

Deno.test("data cuts long documents and quotes what steers a terminal", () =>
  inDirectory(async (dir) => {
    const train = bytes("x".repeat(1000), "a\x1b[31m\x9b2J\x7f\n");
    writeDataset(dir, { "train_000000.bin": train, "val_000000.bin": bytes("v") });
    const text = await output("--dir", dir);
    assertStringIncludes(text, `\n  0  1,000 tokens  "${"x".repeat(160)}" ...\n`);
    assertStringIncludes(text, '\n  1  12 tokens  "a\\u001b[31m\\u009b2J\\u007f\\n"');
  }));

Deno.test("data --doc shows what steers a terminal", () =>
  inDirectory(async (dir) => {
    const train = bytes("a\n\t\x1b[31mred\r\x9b2J\x7f\u202e");
    writeDataset(dir, { "train_\x1b[7m0.bin": train, "val_000000.bin": bytes("v") });
    assertEquals(
      await output("--dir", dir, "--doc=0"),
      "train document 0: 20 tokens from token 1 of train_\\u001b[7m0.bin\n\n" +
        "a\n\t\\u001b[31mred\\u000d\\u009b2J\\u007f\\u202e",
    );
    assertStringIncludes(await output("--dir", dir), "train_\\u001b[7m0.bin  21 tokens");
  }));

Deno.test("data --doc shows one document", () =>
  inDirectory(async (dir) => {
    writeDataset(dir);
    assertEquals(
      await output("--dir", dir, "--doc", "1"),
      "train document 1: 21 tokens from token 21 of train_000000.bin\n\nthat is the question:",
    );
    assertEquals(
      await output("--dir", dir, "--doc=2"),
      "train document 2: 7 tokens from token 1 of train_000001.bin\n\nGröße",
    );
    assertStringIncludes(await output("--dir", dir, "--doc=0", "--split=val"), "\n\nWhether 'tis nobler");
    const { message } = await failure("--dir", dir, "--doc=3");
    assertEquals(
      message,
      `Cannot show document 3 of the train split of "${dir}": it has 3 documents, from 0 to 2`,
    );
  }));

Deno.test("data marks the shards whose checksum is wrong and fails at the end", () =>
  inDirectory(async (dir) => {
    writeDataset(dir);
    const was = sha256OfFile(`${dir}/train_000000.bin`);
    write(`${dir}/train_000000.bin`, 2, bytes("To be; or not to be", "that is the question:"));
    const is = sha256OfFile(`${dir}/train_000000.bin`), { text, message } = await failure("--dir", dir);
    assertStringIncludes(
      text,
      `\n  WRONG  train_000000.bin  42 tokens  sha256 is ${is}, meta.json says ${was}\n  ok     train_000001.bin`,
    );
    assertStringIncludes(text, "To be; or not to be");
    assertEquals(
      message,
      `Cannot use "${dir}": train_000000.bin has another SHA-256 than meta.json says; ` +
        "write the dataset again: deno task prepare --overwrite ...",
    );
  }));

Deno.test("data names the size that meta.json lacks", () =>
  inDirectory(async (dir) => {
    writeDataset(dir);
    const meta = JSON.parse(Deno.readTextFileSync(`${dir}/meta.json`));
    delete meta.val.bytes;
    Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify(meta));
    const { message } = await failure("--dir", dir);
    assertEquals(
      message,
      `Cannot use "${dir}/meta.json": val is {"documents":1,"tokens":20}, should be an object with the numbers documents, ` +
        "tokens, bytes; write the dataset again: deno task prepare --overwrite ...",
    );
  }));

Deno.test("data finds ids outside of the vocabulary and counts that differ from meta.json", () =>
  inDirectory(async (dir) => {
    writeDataset(dir, { ...SHARDS, "val_000000.bin": [EOT, 65, 300, 66, 900] });
    const meta = JSON.parse(Deno.readTextFileSync(`${dir}/meta.json`));
    meta.train.documents = 4;
    Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify(meta));
    assertEquals(
      (await failure("--dir", dir)).message,
      `Cannot use "${dir}": train has 3 documents, meta.json says 4, 2 tokens of val are not below vocab_size 257, ` +
        "the first is 300 at token 2 of val_000000.bin; write the dataset again: deno task prepare --overwrite ...",
    );
    assertStringIncludes(await output("--dir", dir, "--doc=0", "--split=val"), "\n\nAB"); // the rest is shown
  }));

Deno.test("data reads nanoGPT's files, whose documents end with the end-of-text token", () =>
  inDirectory(async (dir) => {
    const [hello, world, eot] = [15496, 995, 50256];
    write(`${dir}/train.bin`, 2, [hello, eot, hello, world, eot], false);
    write(`${dir}/val.bin`, 2, [hello, eot], false);
    const text = await output("--dir", dir);
    assertStringIncludes(
      text,
      "nanoGPT's bins of uint16 (assumed), tokenizer gpt2 (assumed), vocabulary 50,257 (assumed), end of text 50256 (assumed)",
    );
    assertStringIncludes(text, "\n  -      train.bin  5 tokens  no checksum to compare\n");
    assertStringIncludes(text, "\n  train          2       5              1.5        3.200       1\n"); // 16 bytes
    assertStringIncludes(text, "\nbytes/token: of the first 262,144 tokens, decoded\n");
    assertStringIncludes(text, '\n  1  2 tokens  "Hello world"');
  }));

Deno.test("data names what keeps it from decoding, and takes --tokenizer where the files name none", () =>
  inDirectory(async (dir) => {
    for (const split of ["train", "val"]) write(`${dir}/shakespeare_${split}.bin`, 4, [128_000, 72, 105]);
    const text = await output("--dir", dir);
    assertStringIncludes(
      text,
      "llm.c's bins, tokenizer not known (name it with --tokenizer), vocabulary 128,256",
    );
    assertStringIncludes(text, "\n  train          1       3              2.0            -       1\n");
    assertStringIncludes(text, '\n  0  2 tokens  "72 105"');
    assertEquals(
      (await failure("--dir", dir, "--doc=0")).message,
      `Cannot decode document 0 of "${dir}": its files do not name their tokenizer; name it with --tokenizer`,
    );
    assertStringIncludes(await output("--dir", dir, "--doc=0", "--tokenizer=bytes"), "\n\nHi");
  }));

Deno.test("data --tokenizer says what assumed GPT-2 tokens are, and may not contradict meta.json", () =>
  inDirectory(async (dir) => {
    for (const split of ["train", "val"]) write(`${dir}/${split}.bin`, 2, bytes("Hi", "Ho"), false);
    const text = await output("--dir", dir, "--tokenizer=bytes");
    assertStringIncludes(
      text,
      "tokenizer bytes (assumed), vocabulary 257 (assumed), end of text 256 (assumed)",
    );
    assertStringIncludes(text, '\n  1  2 tokens  "Ho"');
    writeDataset(dir);
    assertEquals(
      (await failure("--dir", dir, "--tokenizer=gpt2")).message,
      `Cannot decode "${dir}" with tokenizer gpt2: its meta.json says bytes; leave --tokenizer out`,
    );
    assertStringIncludes(await output("--dir", dir, "--tokenizer=bytes", "--doc=0"), "To be");
  }));

const mistakes: [string[], string][] = [
  [["--directory=x"], "Cannot use --directory: there is no such flag; did you mean --dir?"],
  [["data/c4"], "Cannot read the argument data/c4: flags are given as --name=value, such as --dir=data/c4"],
  [["--dir="], "Cannot use --dir: it needs a value, such as --dir=data/demo"],
  [["--doc=-1"], "Cannot use --doc=-1: it should be a whole number of at least 0"],
  [["--doc=two"], "Cannot use --doc=two: it should be a whole number of at least 0"],
  [["--doc=1", "--split=test"], "Cannot use --split=test: it should be train or val"],
  [["--split=val"], "Cannot use --split=val alone: it says where --doc counts; add --doc=0"],
];
for (const [args, message] of mistakes) {
  Deno.test(`data refuses ${args.join(" ")}`, async () => {
    assertEquals((await failure(...args)).message, message);
  });
}

Deno.test("data says when there is no dataset, no whole one, or a damaged one", () =>
  inDirectory(async (dir) => {
    const refuse = async (dir: string, message: string) =>
      assertStringIncludes((await failure("--dir", dir)).message, message);
    await refuse(
      `${dir}/none`,
      `Cannot open dataset "${dir}/none": there is no such directory; make it: deno task`,
    );
    Deno.mkdirSync(`${dir}/unfinished`);
    await refuse(dir, `Cannot use "${dir}": preparing it was interrupted; run again: deno task prepare`);
    writeDataset(dir);
    Deno.truncateSync(`${dir}/train_000001.bin`, 1030);
    await refuse(
      dir,
      `Cannot use "${dir}/train_000001.bin": it has 1030 bytes, its header with 8 tokens says 1040;`,
    );
  }));

Deno.test("the task data runs with the permissions of deno.json and exits with 1 for a damaged dataset", () =>
  inDirectory(async (dir) => {
    const run = async () => {
      const args = [...settings.tasks.data.command.split(" ").slice(1), "--dir", dir];
      const { code, stderr } = await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output();
      return { code, stderr: new TextDecoder().decode(stderr) };
    };
    writeDataset(dir);
    assertEquals(await run(), { code: 0, stderr: "" });
    write(`${dir}/val_000000.bin`, 2, bytes("Whether 'tis nobleR"));
    const { code, stderr } = await run();
    assertEquals(code, 1);
    assert(
      /^error: Cannot use "[^\n]+ has another SHA-256 than meta.json says; [^\n]+\n$/.test(stderr),
      stderr,
    );
  }));
