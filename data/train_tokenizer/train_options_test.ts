import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { helpText, parseOptions } from "./train_options.ts";

const GIVEN = ["--train", "corpus.txt", "--out", "data/tok"];

Deno.test("parseOptions() has defaults for all but --train and --out", () => {
  assertEquals(parseOptions(GIVEN), {
    train: ["corpus.txt"],
    split: "",
    out: "data/tok",
    vocab_size: 32000,
    special_tokens: ["<|endoftext|>"],
    pattern: "llama3",
    min_frequency: 2,
    max_token_length: 1024,
    column: "text",
    split_on: "",
    limit: null,
    skip_bad: false,
    overwrite: false,
  });
});

Deno.test("parseOptions() takes every flag, and plain words for files in their order", () => {
  const flags = [
    ...["a.txt", "--train=b.txt", "c.txt", "--out=x", "--vocab_size", "500", "--pattern", "gpt2"],
    ...["--special_tokens=<|im_start|>,<|im_end|>,<|im_start|>", "--min_frequency=1", "--column=body"],
    "--max_token_length=65535",
    ...["--split_on", "\\n--\\t", "--limit=7", "--split=dev", "--skip_bad", "--overwrite", "d.txt"],
  ];
  assertEquals(parseOptions(flags), {
    train: ["a.txt", "b.txt", "c.txt", "d.txt"],
    split: "dev",
    out: "x",
    vocab_size: 500,
    special_tokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    pattern: "gpt2",
    min_frequency: 1,
    max_token_length: 65535,
    column: "body",
    split_on: "\n--\t",
    limit: 7,
    skip_bad: true,
    overwrite: true,
  });
});

const SPECIAL = "should consist of letters, digits and signs of ASCII, such as <|im_start|>";
const MISTAKES: [string[], string][] = [
  [[], "Cannot train: --train is missing, such as --train corpus.txt"],
  [["--out=x"], "Cannot train: --train is missing, such as --train corpus.txt"],
  [["--train", "a.txt"], 'Cannot train on "a.txt": --out is missing, such as --out data/tokenizer'],
  [["--train=", "--out=x"], "Cannot use --train: it needs a value, such as --train=..."],
  [[...GIVEN, "--column="], "Cannot use --column: it needs a value, such as --column=text"],
  [[...GIVEN, "--vocabsize=9"], "Cannot use --vocabsize: there is no such flag; did you mean --vocab_size?"],
  [[...GIVEN, "-x"], "Cannot use -x: there is no such flag; see --help"],
  ...["1", "65536", "1k"].map((length): [string[], string] => [
    [...GIVEN, `--max_token_length=${length}`],
    `Cannot use --max_token_length=${length}: it should be a whole number from 2 to 65535`,
  ]),
  [
    [...GIVEN, `--special_tokens=<|${"a".repeat(65_533)}|>`],
    'Cannot use special token "<|aaaaaaaaaaaaaaaaaa...": it has 65537 characters, should have at most 65535',
  ],
  [
    [...GIVEN, "--vocab_size=256"],
    "Cannot use --vocab_size=256: it should be a whole number from 257 to 1000000",
  ],
  [
    [...GIVEN, "--vocab_size=257", "--special_tokens=<|a|>"],
    "Cannot use --vocab_size=257: it should be at least 258, for 256 bytes and 2 special tokens",
  ],
  [[...GIVEN, "--", "--limit=0"], "Cannot use --limit=0: it should be a whole number of at least 1"],
  [
    [...GIVEN, "--min_frequency=1.5"],
    "Cannot use --min_frequency=1.5: it should be a whole number of at least 1",
  ],
  [
    [...GIVEN, "--pattern=llama"],
    "Cannot use --pattern=llama: it should be llama3, o200k, qwen or gpt2",
  ],
  [[...GIVEN, "--special_tokens=<|é|>"], `Cannot use special token "<|é|>": it ${SPECIAL}`],
  [[...GIVEN, "--special_tokens=<|a|>,"], `Cannot use special token "": it ${SPECIAL}`],
  [
    [...GIVEN, "--special_tokens=<|a|>,pad"],
    'Cannot use special token "pad": it is one word in a text, which could become the same token; ' +
    "choose one of several words, such as <|im_start|>",
  ],
];

for (const [args, message] of MISTAKES) {
  Deno.test(`parseOptions() refuses ${args.join(" ") || "nothing"}`, () => {
    assertEquals(assertThrows(() => parseOptions(args), UserError).message, message);
  });
}

Deno.test("--help names every flag, in lines of at most 120 characters", async () => {
  const help = await helpText();
  for (const name of Object.keys(parseOptions(GIVEN))) assert(help.includes(`\n  --${name}=`), name);
  for (const line of help.split("\n")) assert(line.length <= 120, line);
});
