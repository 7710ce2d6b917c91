import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../ffi/errors.ts";
import { DEMO, parseOptions } from "./options.ts";

const required = ["--input", "a.parquet", "--out", "data/a"];

Deno.test("parseOptions() means the demo when no input is named", () => {
  assertEquals(parseOptions([]), DEMO);
  assertEquals(parseOptions(["--tokenizer=gpt2", "--overwrite"]), {
    ...DEMO,
    tokenizer: "gpt2",
    overwrite: true,
  });
});

Deno.test("parseOptions() takes inputs after --input, repeated and as plain words", () => {
  const { inputs } = parseOptions(["--input", "a.txt", "b.txt", "--input=c.txt", "--out", "data/a", "d.txt"]);
  assertEquals(inputs.toSorted(), ["a.txt", "b.txt", "c.txt", "d.txt"]);
});

Deno.test("parseOptions() has the documented defaults", () => {
  assertEquals(parseOptions(required), {
    inputs: ["a.parquet"],
    out: "data/a",
    column: "text",
    separator: "",
    tokenizer: "gpt2",
    val_fraction: 0.005,
    seed: 1337,
    limit: null,
    shard_tokens: 100_000_000,
    overwrite: false,
  });
});

Deno.test("parseOptions() reads every flag", () => {
  const flags = [
    "--column=body",
    "--separator=\\n\\n",
    "--tokenizer",
    "bytes",
    "--val_fraction=.1",
    "--seed",
    "0",
  ];
  assertEquals(parseOptions([...required, ...flags, "--limit=10", "--shard_tokens=1000", "--overwrite"]), {
    inputs: ["a.parquet"],
    out: "data/a",
    column: "body",
    separator: "\n\n",
    tokenizer: "bytes",
    val_fraction: 0.1,
    seed: 0,
    limit: 10,
    shard_tokens: 1000,
    overwrite: true,
  });
});

const mistakes: [string[], string][] = [
  [["--colum=body"], "Cannot use --colum: there is no such flag; did you mean --column?"],
  [
    ["--val-fraction", "0.1"],
    "Cannot use --val-fraction: there is no such flag; did you mean --val_fraction?",
  ],
  [["--limit=abc"], "Cannot use --limit=abc: it should be a whole number of at least 1"],
  [["--limit=0"], "Cannot use --limit=0: it should be a whole number of at least 1"],
  [["--limit=1.5"], "Cannot use --limit=1.5: it should be a whole number of at least 1"],
  [["--seed=-1"], "Cannot use --seed=-1: it should be a whole number from 0 to 2147483647"],
  [["--shard_tokens=2e9"], "Cannot use --shard_tokens=2e9: it should be a whole number from 1 to 1000000000"],
  [["--val_fraction=2"], "Cannot use --val_fraction=2: it should be a number above 0 and below 1"],
  [["--val_fraction=0"], "Cannot use --val_fraction=0: it should be a number above 0 and below 1"],
  [["--val_fraction"], "Cannot use --val_fraction: it needs a value, such as --val_fraction=..."],
  [["--out", ""], "Cannot use --out: it needs a value, such as --out=..."],
  [["--seed", ""], "Cannot use --seed: it needs a value, such as --seed=..."],
  [["--input", ""], "Cannot use --input: it needs a file, such as --input corpus.parquet"],
  [["--input="], "Cannot use --input: it needs a file, such as --input corpus.parquet"],
];

for (const [args, message] of mistakes) {
  Deno.test(`parseOptions() explains ${args.join(" ")}`, () => {
    assertEquals(assertThrows(() => parseOptions([...required, ...args]), UserError).message, message);
  });
}

Deno.test("parseOptions() wants input and output together", () => {
  assertThrows(
    () => parseOptions(["--out=data/a"]),
    UserError,
    'Cannot prepare "data/a": --input is missing',
  );
  assertThrows(() => parseOptions(["--input=a.txt"]), UserError, 'Cannot prepare "a.txt": --out is missing');
});
