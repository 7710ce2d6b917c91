import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { DEMO, helpText, parseCommand, type PrepareOptions, settle } from "./options.ts";

const required = ["--input", "a.parquet", "--out", "data/a"];

/** The options of a command line that prepares. */
function parse(args: string[]): PrepareOptions {
  const command = parseCommand(args);
  assert("prepare" in command);
  return command.prepare;
}

Deno.test("parseCommand() means the demo when no input is named", () => {
  assertEquals(parse([]), { ...parse(required), ...DEMO });
  assertEquals(parse([]).input === DEMO.input, true);
  const options = parse(["--tokenizer=gpt2", "--overwrite"]);
  assertEquals(options, { ...parse(required), ...DEMO, tokenizer: "gpt2", overwrite: true });
});

Deno.test("parseCommand() takes inputs after --input, repeated and as plain words", () => {
  const { input } = parse(["--input", "a.txt", "b.txt", "--input=c.txt", "--out", "data/a", "d.txt"]);
  assertEquals(input, ["a.txt", "b.txt", "c.txt", "d.txt"]);
});

Deno.test("parseCommand() takes what follows -- as if it were not there", () => {
  const { input, overwrite } = parse(["--", "--input=a.txt", "--out=data/a", "--", "b.txt", "--overwrite"]);
  assertEquals([input, overwrite], [["a.txt", "b.txt"], true]);
});

Deno.test("parseCommand() has the documented defaults", () => {
  assertEquals(parse(required), {
    input: ["a.parquet"],
    split: "",
    out: "data/a",
    column: "text",
    split_on: "",
    limit: null,
    dedup: "",
    shuffle_docs: null,
    skip_bad: false,
    chat: false,
    chat_template: "",
    block_size: null,
    no_cut: false,
    date: "",
    tokenizer: "gpt2",
    val_fraction: null,
    seed: 1337,
    shard_tokens: 100_000_000,
    overwrite: false,
    workers: navigator.hardwareConcurrency,
    shard: null,
  });
});

Deno.test("parseCommand() reads every flag", () => {
  const reading = ["--column=body", "--split_on=\\n--\\n", "--dedup=exact", "--shuffle_docs=7", "--skip_bad"];
  const rest = ["--tokenizer", "bytes", "--val_fraction=.1", "--seed", "0", "--workers=3", "--shard=2/8"];
  assertEquals(
    parse([
      ...required,
      ...reading,
      ...rest,
      "--limit=10",
      "--split=test",
      "--shard_tokens=1000",
      "--overwrite",
      ...["--chat", "--chat_template=a.jinja", "--block_size=128", "--no_cut", "--date=2026-02-28"],
    ]),
    {
      input: ["a.parquet"],
      split: "test",
      out: "data/a",
      column: "body",
      split_on: "\n--\n",
      limit: 10,
      dedup: "exact",
      shuffle_docs: 7,
      skip_bad: true,
      chat: true,
      chat_template: "a.jinja",
      block_size: 128,
      no_cut: true,
      date: "2026-02-28",
      tokenizer: "bytes",
      val_fraction: 0.1,
      seed: 0,
      shard_tokens: 1000,
      overwrite: true,
      workers: 3,
      shard: { index: 2, count: 8 },
    },
  );
});

Deno.test("settle() cuts one plain text in two, and sends other documents whole to train or val", () => {
  const settled = (names: string[], ...flags: string[]) => {
    const inputs = names.map((name) => ({ name, bytes: 1, version: "" }));
    const { by_position, val_fraction } = settle(parse([...required, ...flags]), [{
      pattern: "",
      weight: null,
      inputs,
    }]);
    return [by_position, val_fraction];
  };
  assertEquals(settled(["a.txt"]), [true, 0.1]);
  assertEquals(settled(["http://host/A.TXT.gz?x=1"]), [true, 0.1]);
  assertEquals(settled(["a.txt"], "--val_fraction=0"), [true, 0]);
  assertEquals(settled(["a.txt"], "--split_on=line"), [false, 0.005]);
  assertEquals(settled(["a.txt", "b.txt"]), [false, 0.005]);
  assertEquals(settled(["a.jsonl"]), [false, 0.005]);
  assertEquals(settled(["a.txt"], "--shard=1/1"), [false, 0.005]);
});

Deno.test("parseCommand() takes --merge with --out and --overwrite alone", () => {
  assertEquals(parseCommand(["--merge", "--out=data/a"]), { merge: { out: "data/a", overwrite: false } });
  assertEquals(parseCommand(["--out", "data/a", "--overwrite", "--merge"]), {
    merge: { out: "data/a", overwrite: true },
  });
  const mistakes: [string[], string][] = [
    [["--merge"], "Cannot merge: --out is missing, such as --out data/c4"],
    [
      ["--merge", "--out=a", "--shard=1/2"],
      "Cannot use --shard with --merge: the parts have it already; leave it out",
    ],
    [
      ["--merge", "--out=a", "--input", "a.txt"],
      "Cannot use --input with --merge: the parts have it already; leave it out",
    ],
    [
      ["--merge", "--out=a", "b.txt"],
      "Cannot use --input with --merge: the parts have it already; leave it out",
    ],
  ];
  for (const [args, message] of mistakes) {
    assertEquals(assertThrows(() => parseCommand(args), UserError).message, message);
  }
});

const mistakes: [string[], string][] = [
  [["--colum=body"], "Cannot use --colum: there is no such flag; did you mean --column?"],
  [
    ["--val-fraction", "0.1"],
    "Cannot use --val-fraction: there is no such flag; did you mean --val_fraction?",
  ],
  [["--limit=abc"], "Cannot use --limit=abc: it should be a whole number of at least 1"],
  [["--limit=0"], "Cannot use --limit=0: it should be a whole number of at least 1"],
  [
    ["--limit=9007199254740992"],
    "Cannot use --limit=9007199254740992: it should be a whole number from 1 to 9007199254740991",
  ],
  [["--limit=1.5"], "Cannot use --limit=1.5: it should be a whole number of at least 1"],
  [["--seed=-1"], "Cannot use --seed=-1: it should be a whole number from 0 to 2147483647"],
  [["--shuffle_docs=yes"], "Cannot use --shuffle_docs=yes: it should be a whole number from 0 to 2147483647"],
  [["--shard_tokens=2e9"], "Cannot use --shard_tokens=2e9: it should be a whole number from 1 to 1000000000"],
  [["--val_fraction=2"], "Cannot use --val_fraction=2: it should be a number from 0 to below 1"],
  [["--val_fraction=1"], "Cannot use --val_fraction=1: it should be a number from 0 to below 1"],
  [["--val_fraction=-0.1"], "Cannot use --val_fraction=-0.1: it should be a number from 0 to below 1"],
  [["--val_fraction"], "Cannot use --val_fraction: it needs a value, such as --val_fraction=..."],
  [["--overwrite=no"], "Cannot use --overwrite=no: it should be true or false"],
  [["--workers=0"], "Cannot use --workers=0: it should be a whole number from 1 to 256"],
  [["--dedup=fuzzy"], "Cannot use --dedup=fuzzy: it should be exact"],
  [["--shard=0/8"], "Cannot use --shard=0/8: it should be I/N with I from 1 to N, such as 1/8"],
  [["--shard=9/8"], "Cannot use --shard=9/8: it should be I/N with I from 1 to N, such as 1/8"],
  [["--shard=1of8"], "Cannot use --shard=1of8: it should be I/N with I from 1 to N, such as 1/8"],
  [["--shard=/8"], "Cannot use --shard=/8: it should be I/N with I from 1 to N, such as 1/8"],
  [["--out", ""], 'Cannot prepare "a.parquet": --out is missing, such as --out data/c4'],
  [["--seed", ""], "Cannot use --seed: it needs a value, such as --seed=1337"],
  [["--input", ""], "Cannot use --input: it needs a value, such as --input=..."],
  [["--input="], "Cannot use --input: it needs a value, such as --input=..."],
];

for (const [args, message] of mistakes) {
  Deno.test(`parseCommand() explains ${args.join(" ")}`, () => {
    assertEquals(assertThrows(() => parseCommand([...required, ...args]), UserError).message, message);
  });
}

Deno.test("parseCommand() wants input and output together", () => {
  assertThrows(
    () => parseCommand(["--out=data/a"]),
    UserError,
    'Cannot prepare "data/a": --input is missing',
  );
  assertThrows(() => parseCommand(["--input=a.txt"]), UserError, 'Cannot prepare "a.txt": --out is missing');
});

Deno.test("--help names every flag with its default and fits into 120 columns", async () => {
  const help = await helpText(), flags = Object.keys(parse(required)).concat("merge");
  for (const flag of flags) assert(help.includes(`\n  --${flag}=`), flag);
  for (const line of help.split("\n")) assert(line.length <= 120, line);
  assertMatch(help, /^ {2}--tokenizer=gpt2 {2,}gpt2, cl100k/m);
});

Deno.test("parseCommand() refuses to prepare the demo without a place for it", () => {
  assertThrows(() => parseCommand(["--out="]), UserError, 'Cannot prepare "": --input is missing');
});

Deno.test("parseCommand() refuses flags of conversations that have no use", () => {
  for (const flag of ["--chat_template=a", "--block_size=9", "--no_cut", "--date=2026-01-01"]) {
    const name = flag.split("=")[0];
    assertThrows(
      () => parse([...required, flag]),
      UserError,
      `Cannot use ${name} without --chat: it is for conversations; add --chat, or leave it out`,
    );
  }
  assertThrows(
    () => parse([...required, "--chat", "--no_cut"]),
    UserError,
    "Cannot use --no_cut without --block_size: give the one of training, such as --block_size=1024",
  );
  for (const date of ["today", "2026-13-01", "2026-02-31", "26-01-01"]) {
    assertThrows(
      () => parse([...required, "--chat", `--date=${date}`]),
      UserError,
      `Cannot use --date=${date}: it should be a day, such as 2026-11-30`,
    );
  }
});
