// Mistakes of the person at the keyboard, and files that were damaged: one line that names what is wrong, exit code 1,
// and nothing written.
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import settings from "../deno.json" with { type: "json" };
import { mistakeOf } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { chooseDevice, open } from "../ffi/library.ts";
import { meantFlag } from "../base/suggest.ts";
import { train, variables } from "../train.ts";
import {
  copy,
  dataset,
  errorLine,
  freshPath,
  list,
  modelDirectory,
  refuse,
  ROOT,
  run,
  runWithoutStdout,
  SMALL,
  succeed,
  sum,
} from "./testing.ts";

open("cpu", { threads: 1 });

let shared: Promise<{ text: string; data: string; finished: string }> | undefined;

/** A text, a dataset of it and a finished run on that, which no test changes. */
function given(): Promise<{ text: string; data: string; finished: string }> {
  return shared ??= (async () => {
    const data = await dataset(), finished = freshPath();
    const flags = [`--data_dir=${data}`, ...SMALL, "--max_iters=2", "--save_interval=2"];
    await succeed("train", `--out_dir=${finished}`, ...flags);
    return { text: `${data}.txt`, data, finished };
  })();
}

/** Training refuses the flags, leaves no run directory, and says why. */
async function refuseToTrain(...flags: string[]): Promise<string> {
  const out = freshPath(), { data } = await given();
  const line = await refuse("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, ...flags);
  assertEquals(list(out), []);
  return line;
}

/** A copy of the dataset or the run after change() worked on it. */
async function damaged(what: "data" | "finished", change: (dir: string) => void): Promise<string> {
  const dir = copy((await given())[what]);
  change(dir);
  return dir;
}

const LAST = "checkpoints/step_000002";

// ---- variables

const mistakes: [string, string][] = [
  ["--max_itres=3", "Cannot use --max_itres: there is no such flag; did you mean --max_iters?"],
  [
    "max_iters=3",
    "Cannot read the argument max_iters=3: flags are given as --name=value, such as --max_iters=3",
  ],
  ["--max_iters", "Cannot use --max_iters: it needs a value, such as --max_iters=100000"],
  ["--max_iters=abc", "Cannot use --max_iters=abc: it should be a whole number of at least 1"],
  ["--max_iters=", "Cannot use --max_iters: it needs a value, such as --max_iters=100000"],
  ["--max_iters=0", "Cannot use --max_iters=0: it should be a whole number of at least 1"],
  ["--max_iters=2.5", "Cannot use --max_iters=2.5: it should be a whole number of at least 1"],
  ["--learning_rate=nan", "Cannot use --learning_rate=nan: it should be a number of at least 0"],
  ["--learning_rate=-1", "Cannot use --learning_rate=-1: it should be a number of at least 0"],
  ["--learning_rate=1e999", "Cannot use --learning_rate=1e999: it should be a number of at least 0"],
  [
    "--learning_rate=1e-5",
    "Cannot use min_lr 0.0003: it is above learning_rate 0.00001, which falls to it; set --min_lr too",
  ],
  ["--schedule=cos", "Cannot use --schedule=cos: it should be cosine, wsd, linear or constant"],
  [
    "--cooldown_iters=5",
    "Cannot use cooldown_iters 5 with schedule cosine: only wsd has a cooldown; set --schedule=wsd or --cooldown_iters=0",
  ],
  ["--eps=0", "Cannot use --eps=0: it should be a number of at least 1e-30"],
  ["--beta1=1", "Cannot use --beta1=1: it should be a number from 0 to 0.999999"],
  ["--seed=1.5", "Cannot use --seed=1.5: it should be a whole number of at least 0"],
  ["--threads=100000", "Cannot use --threads=100000: it should be a whole number from 0 to 1024"],
  ["--rope_theta=0", "Cannot use --rope_theta=0: it should be a number of at least 1"],
  ["--norm_eps=-1", "Cannot use --norm_eps=-1: it should be a number of at least 1e-12"],
  ["--head_chunk=0", "Cannot use --head_chunk=0: it should be a whole number of at least 1"],
  ["--keep_checkpoints=0", "Cannot use --keep_checkpoints=0: it should be a whole number of at least 1"],
  ["--bf16_gemm=yes", "Cannot use --bf16_gemm=yes: it should be auto, true or false"],
  ["--preset=smal", "Cannot use preset smal: there is none of that name; did you mean small?"],
  ["--debug=all", "Cannot use --debug=all: it should be check, tape or profile"],
  ["--device=tpu", 'Cannot use device "tpu": it must be cpu or cuda'],
  [
    "--eval_only",
    "Cannot evaluate without a model: name one with --resume=runs/... or --init_from=DIRECTORY",
  ],
  [
    "--init_from=hf://nobody/nothing@v1",
    "Cannot begin with the weights in models/nobody/nothing@v1: there is no such directory in " +
    `${ROOT.pathname.replace(/\/$/, "")}; fetch them: ` +
    "deno task download hf://nobody/nothing@v1",
  ],
  ["--n_layer=0", "Cannot use --n_layer=0: it should be a whole number from 1 to 10000"],
  [
    "--n_head=5",
    "Cannot build the model: n_embd 32 is not divisible by n_head 5; set head_dim or change one of them",
  ],
  [
    "--n_kv_head=3",
    "Cannot build the model: n_head 4 is not divisible by n_kv_head 3; " +
    "each key/value head serves the same number of query heads",
  ],
  [
    "--head_dim=7",
    "Cannot build the model: head_dim 7 must be a multiple of 8 up to 256; it is n_embd 32 / n_head 4 unless set",
  ],
  [
    "--head_dim=1000",
    "Cannot build the model: head_dim 1000 must be a multiple of 8 up to 256; it is n_embd 32 / n_head 4 unless set",
  ],
  ["--seed=1e300", "Cannot use --seed=1e300: it should be a whole number from 0 to 9007199254740991"],
  ["--n_layer=4294967296", "Cannot use --n_layer=4294967296: it should be a whole number from 1 to 10000"],
  ["--n_embd=4294967296", "Cannot use --n_embd=4294967296: it should be a whole number from 1 to 1048576"],
];

Deno.test("train refuses a mistake with one line and exit code 1", async () => {
  const [flag, message] = mistakes[0]!;
  assertEquals(await refuseToTrain(flag), message);
});

for (const [flag, message] of mistakes) {
  Deno.test(`train ${flag} is refused in one line`, async () => {
    const out = freshPath(), { data } = await given();
    const { mistake, printed } = await mistakeIn([`--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, flag]);
    assertEquals([mistake, printed, list(out)], [message, [], []]);
  });
}

/** What train() in this process is refused with, and what it printed until then. */
async function mistakeIn(args: string[]): Promise<{ mistake: string | undefined; printed: unknown[] }> {
  const { log } = console, printed: unknown[] = [];
  console.log = (text: unknown) => printed.push(text);
  try {
    return { mistake: await train(args).then(() => "", mistakeOf), printed };
  } finally {
    console.log = log;
  }
}

const ODD_NUMBERS = ["-0", "-1", "0.5", "1e300", "4294967296"];
const ODD_TEXTS = ["", "x".repeat(300), "/etc/passwd", "/dev/null", "..", "a:0.5,b:", "é\n"];

Deno.test("train answers each variable's odd values with a plan or one line", async () => {
  const { data } = await given(), names = Object.entries(variables);
  let plans = 0;
  for (const [name, value] of names) {
    for (const odd of typeof value === "string" ? ODD_TEXTS : ODD_NUMBERS) {
      const args = [`--data_dir=${data}`, ...SMALL, "--max_iters=2", "--dry_run", `--${name}=${odd}`];
      const { mistake, printed } = await mistakeIn(args);
      assert(mistake !== undefined && !mistake.includes("\n"), `--${name}=${odd}`);
      if (printed.length > 0) plans++;
    }
  }
  assert(names.length > 40 && plans > 0);
});

Deno.test("meantFlag() knows what other programs call the variables of train", () => {
  const train = Object.keys(variables);
  const expected: Record<string, string> = {
    lr: "did you mean --learning_rate?",
    LR: "did you mean --learning_rate?",
    "learning-rate": "did you mean --learning_rate?",
    steps: "did you mean --max_iters?",
    out: "did you mean --out_dir?",
    data: "did you mean --data_dir?",
    ckpt: "did you mean --resume?",
    from_pretrained: "did you mean --init_from?",
    batch: "did you mean --batch_size?",
    model: "did you mean --preset?",
    "max-grad-norm": "did you mean --grad_clip?",
    hidden_size: "did you mean --n_embd?",
    dropout: "see --help",
  };
  for (const [name, advice] of Object.entries(expected)) assertEquals(meantFlag(name, train), advice, name);
  const sentences: Record<string, RegExp> = {
    epochs: /counted in steps: set --max_iters to /,
    gpu: /--device=cuda/,
    cpu: /--device=cpu/,
    wandb: /--tensorboard/,
    tokenizer: /prepare --tokenizer/,
    dtype: /--bf16_gemm/,
  };
  for (const [name, advice] of Object.entries(sentences)) {
    assertEquals(advice.test(meantFlag(name, train)), true, `${name}: ${meantFlag(name, train)}`);
  }
});

Deno.test("train --blas=nonsense lists the libraries there are", async () => {
  const line = await refuseToTrain("--blas=nonsense");
  assertMatch(line, /^Cannot open device cpu: .*"nonsense" is not known; choose auto, builtin, onednn, mkl/);
});

Deno.test({
  name: "train and sample --device=cuda say what is missing: the library or the driver",
  ignore: chooseDevice().name === "cuda",
  async fn() {
    const expected =
      /^Cannot open (\S+libloam_cuda\.\w+: it is not built; run: deno task build|device cuda: .*driver)/;
    assertMatch(await refuseToTrain("--device=cuda"), expected);
    const { finished } = await given();
    assertMatch(await refuse("sample", `--checkpoint=${finished}`, "--device=cuda"), expected);
  },
});

Deno.test("train names the flag that lets it write elsewhere", async () => {
  const { data } = await given(), out = "/loam_elsewhere";
  const line = await refuse("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--max_iters=1");
  assertStringIncludes(line, `Requires write access to "${out}": `);
  assertStringIncludes(line, `deno run -q -P=train --allow-write="${out}" train.ts ...`);
  assertEquals(list(out), []);
});

Deno.test("train names an out_dir that cannot be made", async () => {
  const { data } = await given(), out = `${data}/meta.json/run`;
  const line = await refuse("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--max_iters=1");
  assertMatch(line, /^Cannot write to \S+\/meta\.json\/run: .*; choose another --out_dir$/);
});

for (const name of ["config.json", "run.json", "owner.json", "metrics.jsonl", "samples.jsonl", "log.txt"]) {
  Deno.test(`train names the ${name} that it cannot write, and keeps what is in its place`, async () => {
    const { data } = await given(), out = freshPath(), kept = `${out}/${name}/kept`;
    Deno.mkdirSync(kept, { recursive: true });
    const flags = [...SMALL, "--max_iters=1", "--sample_interval=1", "--sample_tokens=1"];
    const { code, stderr } = await run("train", `--data_dir=${data}`, `--out_dir=${out}`, ...flags);
    assertEquals(code, 1);
    assertMatch(errorLine(stderr), new RegExp(`^Cannot (write|rename) .*${name}.*: .*directory`, "i"));
    assert(Deno.statSync(kept).isDirectory);
  });
}

Deno.test("a path that is too long for the system is an error of one line", async () => {
  const { data } = await given(), long = `/tmp/${"a".repeat(256)}`;
  const commands: [Parameters<typeof run>[0], ...string[]][] = [
    ["train", `--data_dir=${data}`, `--out_dir=${long}`, ...SMALL],
    ["train", `--data_dir=${long}`, ...SMALL],
    ["train", `--resume=${long}`],
    ["sample", `--checkpoint=${long}`],
    ["prepare", "--input", long, "--out", freshPath()],
    ["prepare", "--input", `${data}.txt`, "--out", long, "--split_on=blank_line"],
    ["prepare", "--input", `${data}.txt`, "--out", freshPath(), "--tokenizer", long, "--split_on=blank_line"],
    ["runs", long],
    ["serve", "--run", long],
  ];
  for (const [task, ...args] of commands) {
    assertMatch(await refuse(task, ...args), /^Cannot .*(name too long|a{256})/, args.join(" "));
  }
});

Deno.test({
  name: "every command has one line where stdout is a file on a full disk",
  ignore: Deno.build.os !== "linux",
  fn: async () => {
    const { data, finished } = await given(), tasks = `${freshPath()}.jsonl`;
    Deno.writeTextFileSync(tasks, '{"text": "Once upon a time"}');
    const commands: [Parameters<typeof run>[0], ...string[]][] = [
      ["train", "--dry_run", `--data_dir=${data}`],
      ["sample", `--checkpoint=${finished}`],
      ["eval", `--checkpoint=${finished}`, tasks],
      ["runs", finished],
      ["prepare", "--help"],
      ["serve", "--help"],
    ];
    for (const [task, ...args] of commands) {
      const { code, stderr } = await runWithoutStdout(task, ...args);
      assertMatch(errorLine(stderr), /No space left on device/, task);
      assertEquals(code, 1);
    }
  },
});

Deno.test("a reader that leaves early, such as head, ends no command with an error", async () => {
  const { finished } = await given();
  for (const [task, args] of [["runs", [finished]], ["sample", [`--checkpoint=${finished}`]]] as const) {
    const command = [...settings.tasks[task].command.split(" ").slice(1), ...args];
    const script = '{ "$@"; echo "code $?" >&2; } | true';
    const options = { args: ["-c", script, "sh", Deno.execPath(), ...command], cwd: ROOT };
    const { stderr } = await new Deno.Command("sh", options).output();
    assertEquals(new TextDecoder().decode(stderr), "code 0\n");
  }
});

// ---- prepare

/** Preparing refuses the flags and leaves nothing behind; TEXT stands for a file of 200 documents, OUT for --out. */
async function refuseToPrepare(flags: string[]): Promise<string> {
  const { text } = await given(), out = freshPath();
  const filled = flags.map((flag) => flag.replace("TEXT", text).replace("OUT", out));
  const line = await refuse("prepare", ...filled);
  assertEquals(list(out), []);
  return line.replaceAll(text, "TEXT").replaceAll(out, "OUT");
}

const split = ["--input", "TEXT", "--split_on=blank_line", "--val_fraction=0.2"];
const preparations: [string[], string][] = [
  [[...split], 'Cannot prepare "TEXT": --out is missing, such as --out data/c4'],
  [
    [...split, "--out=OUT", "--worker=2"],
    "Cannot use --worker: there is no such flag; did you mean --workers?",
  ],
  [
    [...split, "--out=OUT", "--shard=3/2"],
    "Cannot use --shard=3/2: it should be I/N with I from 1 to N, such as 1/8",
  ],
  [
    [...split, "--out=OUT", "--shard=2/3"],
    'Cannot take part 2 of 3 of "TEXT": it has 1 input file, and every part needs one; use --shard I/1 or less',
  ],
  [["--merge", "--out=OUT"], 'Cannot merge "OUT": there is no such directory'],
  [
    ["--merge", ...split, "--out=OUT"],
    "Cannot use --input with --merge: the parts have it already; leave it out",
  ],
  [
    [...split.slice(0, 3), "--out=OUT", "--limit=1"],
    'Cannot split "TEXT" into train and val: --limit=1 leaves one document only; use a larger --limit',
  ],
  [[...split, "--out=TEXT/data"], 'Cannot write to "TEXT/data": Not a directory; choose another --out'],
];

for (const [flags, message] of preparations) {
  Deno.test(`prepare ${flags.join(" ")} is refused in one line`, async () =>
    assertEquals(await refuseToPrepare(flags), message));
}

Deno.test("train names parts that are not merged", async () => {
  const { text } = await given(), out = freshPath();
  await succeed("prepare", ...split.map((flag) => flag.replace("TEXT", text)), "--out", out, "--shard=1/1");
  assertEquals(
    await refuseToTrain(`--data_dir=${out}`),
    `Cannot use "${out}": it has parts (part_1_of_1, ...) but no meta.json; when all of them are prepared, run: ` +
      `deno task prepare --merge --out ${out}`,
  );
  await succeed("prepare", "--merge", "--out", out);
  const run = freshPath();
  await succeed("train", `--data_dir=${out}`, `--out_dir=${run}`, ...SMALL, "--max_iters=2");
});

Deno.test("a file in the place of a directory is not said to be missing", async () => {
  const { data } = await given(), file = `${data}/meta.json`, is = `it is a file, should be a directory`;
  const commands: [Parameters<typeof run>[0], ...string[]][] = [
    ["train", `--data_dir=${file}`, ...SMALL],
    ["train", `--resume=${file}`],
    ["sample", `--checkpoint=${file}`],
    ["prepare", "--merge", `--out=${file}`],
  ];
  for (const command of commands) {
    const line = await refuse(...command);
    assertStringIncludes(line, is, command.join(" "));
    assertEquals(line.includes(`--out_dir=${file}`), false, line); // where no run can be
  }
});

// ---- data

Deno.test("train names a data_dir that is missing or holds no dataset, and the command that makes one", async () => {
  const missing = freshPath();
  const prepare = (dir: string) => `deno task prepare --input FILES --out ${dir}`;
  assertEquals(
    await refuseToTrain(`--data_dir=${missing}`),
    `Cannot open dataset "${missing}": there is no such directory; make it: ${prepare(missing)}`,
  );
  const { finished } = await given();
  assertEquals(
    await refuseToTrain(`--data_dir=${finished}`),
    `Cannot use "${finished}": it has neither meta.json nor a train and a val .bin file; make a dataset: ${
      prepare(finished)
    }`,
  );
});

Deno.test("train names a bin that was cut short, with its size and the right one", async () => {
  const data = await damaged("data", (dir) => Deno.truncateSync(`${dir}/train_000000.bin`, 2000));
  const line = await refuseToTrain(`--data_dir=${data}`);
  assertMatch(
    line,
    /^Cannot use "\S+\/train_000000\.bin": it has 2000 bytes, its header with \d+ tokens says \d+; /,
  );
});

Deno.test("train stops at a token that the vocabulary lacks, and names it", async () => {
  const data = await damaged("data", (dir) => {
    const path = `${dir}/train_000000.bin`, bytes = Deno.readFileSync(path);
    new Uint16Array(bytes.buffer, 1024).fill(300); // behind the header
    Deno.writeFileSync(path, bytes);
    const meta = JSON.parse(Deno.readTextFileSync(`${dir}/meta.json`)); // with checksums that fit
    for (const shard of meta.shards) shard.sha256 = sha256OfFile(`${dir}/${shard.file}`);
    Deno.writeTextFileSync(`${dir}/meta.json`, JSON.stringify(meta));
  });
  const { code, stderr } = await run("train", `--data_dir=${data}`, `--out_dir=${freshPath()}`, ...SMALL);
  assertEquals(code, 1);
  assertMatch(
    errorLine(stderr),
    /^Cannot use "\S+\/train_000000\.bin": token \d+ is 300, should be below vocab_size 257; write the dataset /,
  );
});

Deno.test("train names the split and the length of data that is shorter than block_size", async () => {
  const { data } = await given();
  const { train, val } = JSON.parse(Deno.readTextFileSync(`${data}/meta.json`));
  assertStringIncludes(
    await refuseToTrain("--block_size=50000"),
    `block_size 50000 from the train split of "${data}": its longest shard has ${train.tokens} tokens`,
  );
  assertStringIncludes(
    await refuseToTrain(`--block_size=${val.tokens}`, "--eval_interval=1"),
    `the val split of "${data}": its longest shard has ${val.tokens} tokens, a window needs ${
      val.tokens + 1
    }`,
  );
});

// ---- runs and checkpoints

Deno.test("train starts no run where there is one, and names the way on", async () => {
  const { finished } = await given(), before = list(finished);
  const line = await refuseToTrain(`--out_dir=${finished}`);
  assertEquals(
    line,
    `Cannot start a run in ${finished}: it already holds one; choose another --out_dir, or go on with --resume=${finished}`,
  );
  assertEquals(list(finished), before);
});

Deno.test("a run that saved no checkpoint can be neither resumed nor overwritten, and both say so", async () => {
  const { data } = await given(), out = freshPath();
  await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--max_iters=1");
  assertEquals(
    await refuseToTrain(`--out_dir=${out}`),
    `Cannot start a run in ${out}: it already holds one that saved no checkpoint; choose another --out_dir, or begin it anew with --resume=auto`,
  );
  assertEquals(
    await refuse("train", `--resume=${out}`),
    `Cannot find a checkpoint in ${out}: its run has saved none; wait for one if it is still training, else ` +
      "train again with another --out_dir",
  );
});

Deno.test("train --resume and sample name a path without a checkpoint", async () => {
  const { data } = await given();
  for (const path of [freshPath(), data]) {
    const why = path === data
      ? "it must hold model.safetensors, or be a run directory with checkpoints/"
      : "there is no such directory";
    const message =
      `Cannot find a checkpoint in ${path}: ${why}; train one with: deno task train --out_dir=${path}`;
    assertEquals(await refuse("train", `--resume=${path}`), message);
    assertEquals(await refuse("sample", `--checkpoint=${path}`), message);
  }
});

Deno.test("sample says what a model directory lacks, and train leaves it alone", async () => {
  const whole = await modelDirectory();
  const cases: [string | null, string][] = [
    [null, "a config.json but no model.safetensors; put that there too"],
    [
      "model-00001-of-00002.safetensors",
      "model-00001-of-00002.safetensors but not model.safetensors.index.json, which lists such files; put that there too",
    ],
    [
      "pytorch_model-00001-of-00002.bin",
      "pytorch_model-00001-of-00002.bin but no model.safetensors; convert it: python3 -c " +
      "\"import transformers as t; [c.from_pretrained('DIR').save_pretrained('DIR-safetensors') " +
      'for c in (t.AutoModelForCausalLM, t.AutoTokenizer)]"',
    ],
  ];
  for (const [name, what] of cases) {
    const model = copy(whole), weights = `${model}/model.safetensors`;
    if (name) Deno.renameSync(weights, `${model}/${name}`);
    else Deno.removeSync(weights);
    const line = await refuse("sample", `--checkpoint=${model}`);
    assertEquals(line.replaceAll(model, "DIR"), `Cannot load the model in DIR: it has ${what}`);
    const files = list(model), config = Deno.readTextFileSync(`${model}/config.json`);
    assertEquals(
      await refuseToTrain(`--out_dir=${model}`),
      `Cannot start a run in ${model}: its config.json is not that of a run, but of a model maybe; choose another --out_dir`,
    );
    assertEquals([list(model), Deno.readTextFileSync(`${model}/config.json`)], [files, config]);
  }
});

Deno.test("train --resume refuses a model that is no run", async () => {
  const { finished } = await given(), model = copy(`${finished}/${LAST}`);
  assertEquals(
    await refuse("train", `--resume=${model}`),
    `Cannot resume ${model}: it is a model, not a run; it has no checkpoints/ with optimizer state`,
  );
});

Deno.test("train --resume says what differs in the architecture", async () => {
  const { finished } = await given();
  const line = await refuse("train", `--resume=${finished}`, "--n_layer=3", "--block_size=32");
  assertEquals(
    line,
    `Cannot resume ${finished}/${LAST}: n_layer is 2 there and 3 here, block_size is 16 there and 32 here; ` +
      "leave these variables out, or start a new run with another out_dir",
  );
  assertEquals(
    await refuse("train", `--resume=${finished}`, `--out_dir=${freshPath()}`),
    `Cannot set out_dir with --resume: the run in ${finished} keeps its own; leave --out_dir out`,
  );
});

Deno.test("train --resume names the vocabularies when the data is of another tokenizer", async () => {
  const { finished, data } = await given(), other = await dataset({ tokenizer: "gpt2" });
  assertEquals(
    await refuse("train", `--resume=${finished}`, `--data_dir=${other}`),
    `Cannot resume ${finished}/${LAST}: its vocab_size is 257, that of the data is 50257; ` +
      `use data of the same tokenizer, such as --data_dir=${data}`,
  );
});

Deno.test("train --resume and sample name a weights file that was cut short", async () => {
  const run = await damaged(
    "finished",
    (dir) => Deno.truncateSync(`${dir}/${LAST}/model.safetensors`, 30_000),
  );
  const expected = /^Cannot read \S+\/model\.safetensors: it has 30000 bytes, but its header promises \d+; /;
  assertMatch(await refuse("train", `--resume=${run}`), expected);
  assertMatch(await refuse("sample", `--checkpoint=${run}`), expected);
});

for (const file of ["model", "optimizer"]) {
  Deno.test(`one flipped bit in ${file}.safetensors is noticed`, async () => {
    const run = await damaged("finished", (dir) => flipBit(`${dir}/${LAST}/${file}.safetensors`, 20_000));
    assertEquals(
      await refuse("train", `--resume=${run}`),
      `Cannot load ${run}/${LAST}/${file}.safetensors: its sha256 is not the one in SHA256SUMS, ` +
        "the file is damaged; use another checkpoint",
    );
  });
}

Deno.test("one flipped bit in a shard is noticed, unless nothing is to be verified", async () => {
  const data = await damaged("data", (dir) => flipBit(`${dir}/train_000000.bin`, 1024 + 2 * 100));
  const sum = sha256OfFile(`${data}/train_000000.bin`);
  assertStringIncludes(
    await refuseToTrain(`--data_dir=${data}`),
    `Cannot use "${data}/train_000000.bin": its SHA-256 is ${sum}, should be `,
  );
  const out = freshPath(), flags = [`--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--max_iters=1"];
  await succeed("train", ...flags, "--verify_data=false");
});

function flipBit(path: string, position: number): void {
  const bytes = Deno.readFileSync(path);
  bytes[position]! ^= 1;
  Deno.writeFileSync(path, bytes);
}

Deno.test("each file that a checkpoint lacks is named", async () => {
  for (const file of ["model.safetensors", "optimizer.safetensors", "config.json", "trainer_state.json"]) {
    const run = await damaged("finished", (dir) => Deno.removeSync(`${dir}/${LAST}/${file}`));
    assertStringIncludes(await refuse("train", `--resume=${run}`), `Cannot read ${run}/${LAST}/${file}: `);
  }
});

Deno.test("a trainer_state.json that was changed is refused", async () => {
  const state = `${LAST}/trainer_state.json`;
  const change = (from: RegExp, to: string, sums: boolean) =>
    damaged("finished", (dir) => {
      const text = Deno.readTextFileSync(`${dir}/${state}`);
      assertMatch(text, from);
      Deno.writeTextFileSync(`${dir}/${state}`, text.replace(from, to));
      if (sums) sum(`${dir}/${LAST}`);
    });
  const digit = await change(/"learning_rate": 0.01/, '"learning_rate": 0.81', false);
  assertEquals(
    await refuse("train", `--resume=${digit}`),
    `Cannot load ${digit}/${state}: its sha256 is not the one in SHA256SUMS, the file is damaged; use another checkpoint`,
  );
  const step = await change(/"step": 2/, '"step": 1', true);
  assertEquals(
    await refuse("train", `--resume=${step}`),
    `Cannot read ${step}/${state}: step is 1, but the directory is called step_000002; use another checkpoint`,
  );
  const key = await change(/"learning_rate": 0.01/, '"learning_rats": 0.01', true);
  assertEquals(
    await refuse("train", `--resume=${key}`),
    `Cannot resume ${key}/${LAST}: in its trainer_state.json config has learning_rats, which is no variable of ` +
      "train.ts; go on with the train.ts that wrote it",
  );
  const lost = await change(/"learning_rate": 0.01,/, "", true);
  const message =
    `Cannot resume ${lost}/${LAST}: in its trainer_state.json config.learning_rate is missing, ` +
    "should be a number; set it: --learning_rate=0.0003";
  assertEquals(await refuse("train", `--resume=${lost}`), message);
  await succeed("train", `--resume=${lost}`, "--learning_rate=0.01", "--max_iters=3");
  const older = await change(/"schedule": "cosine",([^]*?)"cooldown_iters": 0,/, "$1", true);
  assertEquals(
    await refuse("train", `--resume=${older}`),
    `Cannot resume ${older}/${LAST}: in its trainer_state.json config lacks schedule, cooldown_iters; ` +
      "set them: --schedule=cosine --cooldown_iters=0",
  );
  const type = await change(/"learning_rate": 0.01/, '"learning_rate": "0.01"', true);
  assertStringIncludes(
    await refuse("train", `--resume=${type}`),
    'config.learning_rate is "0.01", should be a number',
  );
  const range = await change(/"beta1": 0.9/, '"beta1": 1.9', true);
  assertEquals(
    await refuse("train", `--resume=${range}`),
    "Cannot use --beta1=1.9: it should be a number from 0 to 0.999999",
  );
});

Deno.test("a checkpoint without SHA256SUMS is used neither to go on nor to sample", async () => {
  const run = await damaged("finished", (dir) => Deno.removeSync(`${dir}/${LAST}/SHA256SUMS`));
  const expected =
    `Cannot load ${run}/${LAST}: it has no SHA256SUMS; if an earlier version of loam wrote it, use its ` +
    `weights after: (cd ${run}/${LAST} && sha256sum * > SHA256SUMS); else use another checkpoint`;
  assertEquals(await refuse("train", `--resume=${run}`), expected);
  assertEquals(await refuse("sample", `--checkpoint=${run}`), expected);
});

Deno.test("sample compares what it reads with SHA256SUMS", async () => {
  for (const file of ["model.safetensors", "config.json", "tokenizer.json"]) {
    const run = await damaged("finished", (dir) => flipBit(`${dir}/${LAST}/${file}`, 200));
    assertStringIncludes(await refuse("sample", `--checkpoint=${run}`), `${run}/${LAST}/${file}`);
  }
});

Deno.test("weights of other shapes than config.json says are named", async () => {
  const run = await damaged("finished", (dir) => {
    const path = `${dir}/${LAST}/config.json`;
    Deno.writeTextFileSync(
      path,
      Deno.readTextFileSync(path).replace('"intermediate_size": 48', '"intermediate_size": 64'),
    );
    sum(`${dir}/${LAST}`);
  });
  assertEquals(
    await refuse("sample", `--checkpoint=${run}`),
    `Cannot load ${run}/${LAST}/model.safetensors: model.layers.0.mlp.gate_proj.weight is (48,32), the model wants (64,32)`,
  );
});
