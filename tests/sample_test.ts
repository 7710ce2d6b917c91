// What deno task sample prints: the text of a trained model and nothing else.
import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import settings from "../deno.json" with { type: "json" };
import {
  copy,
  dataset,
  errorLine,
  freshPath,
  modelDirectory,
  refuse,
  ROOT,
  run,
  Running,
  SMALL,
  succeed,
  VOCABULARY,
} from "./testing.ts";

/** A model that has learned to write short sentences and to end them. */
let trained: Promise<string> | undefined;
function model(): Promise<string> {
  return trained ??= (async () => {
    const out = freshPath();
    const flags = ["--max_iters=300", "--save_interval=300", "--batch_size=16", "--block_size=32"];
    await succeed("train", `--data_dir=${await dataset()}`, `--out_dir=${out}`, ...SMALL, ...flags);
    return out;
  })();
}

async function sample(...flags: string[]): Promise<string> {
  return await succeed("sample", "--device=cpu", "--checkpoint", await model(), ...flags);
}

Deno.test("sample continues the prompt in words of the training text and stops at the end of the text", async () => {
  const text = await sample("--prompt", "Once upon", "--max_new_tokens=1000", "--temperature=0.7");
  assertMatch(text, /^Once upon[A-Za-z ]*\.\n$/); // one sentence, with its full stop: documents are no longer
  const words = text.slice(0, -2).split(" "), known = words.filter((word) => VOCABULARY.includes(word));
  assert(known.length >= 0.6 * words.length, text);
});

Deno.test("sample begins a document where there is no prompt", async () => {
  assertMatch(await sample("--max_new_tokens=1000", "--temperature=0.7"), /^[A-Za-z ]+\.\n$/);
});

Deno.test("sample prints the same text for the same seed and another for another", async () => {
  const flags = ["--prompt=the ", "--temperature=1.5", "--max_new_tokens=60"];
  const first = await sample(...flags, "--seed=5");
  assertEquals(await sample(...flags, "--seed=5"), first);
  assertNotEquals(await sample(...flags, "--seed=6"), first);
});

Deno.test("sample writes the same text from bfloat16 weights in memory as from the same values in float32", async () => {
  const out = freshPath(),
    flags = ["--device=cpu", "--prompt=long", "--temperature=0", "--max_new_tokens=60"];
  await succeed("export", "--checkpoint", await model(), "--format=hf", "--dtype=bf16", `--out=${out}`);
  const texts = ["auto", "bfloat16", "float32"].map((dtype) =>
    succeed("sample", `--checkpoint=${out}`, `--dtype=${dtype}`, ...flags)
  );
  const [auto, bfloat16, float32] = await Promise.all(texts);
  assertEquals([auto, bfloat16], [float32, float32]);
});

Deno.test("sample at temperature 0 or with --top_k=1 is the same for every seed", async () => {
  const first = await sample("--prompt=long", "--temperature=0", "--seed=1");
  assertEquals(await sample("--prompt=long", "--temperature=0", "--seed=2"), first);
  assertEquals(await sample("--prompt=long", "--temperature=2", "--top_k=1", "--seed=3"), first);
  assertEquals(await sample("--prompt=long", "--temperature=2", "--top_p=0.0001", "--seed=4"), first);
});

Deno.test("sample --num_samples and --prompt_file print texts one below the other, each as alone", async () => {
  const file = freshPath(), flags = ["--max_new_tokens=30", "--temperature=1"];
  Deno.writeTextFileSync(file, "Once upon\n\n");
  const alone = [];
  for (const prompt of ["Once upon", ""]) {
    for (const seed of [4, 5]) alone.push(await sample(`--prompt=${prompt}`, `--seed=${seed}`, ...flags));
  }
  assert(new Set(alone).size > 2);
  const together = await sample("--prompt_file", file, "--num_samples=2", "--seed=4", ...flags);
  assertEquals(together, alone.join("---\n"));
});

Deno.test("sample refuses a file without prompts, one that is missing, and two kinds of prompt", async () => {
  const empty = freshPath(), flags = ["--device=cpu", "--checkpoint", await model()];
  Deno.writeTextFileSync(empty, "");
  assertMatch(
    await refuse("sample", ...flags, "--prompt_file", empty),
    /holds no prompt; write one on each line/,
  );
  assertMatch(
    await refuse("sample", ...flags, "--prompt_file=/nonexistent/prompts"),
    /\/nonexistent\/prompts/,
  );
  assertMatch(
    await refuse("sample", ...flags, "--prompt=a", "--prompt_file", empty),
    /^Cannot sample from both/,
  );
  assertMatch(await refuse("sample", ...flags, "--num_samples=0"), /num_samples/);
});

Deno.test("sample shows what steers a terminal to a terminal, and writes the text as it is to a file", async () => {
  const flags = [
    "--device=cpu",
    `--checkpoint=${await model()}`,
    "--max_new_tokens=0",
    "--prompt=a\x1b[31mb\r\u202ec",
  ];
  assertEquals((await run("sample", ...flags)).stdout, "a\x1b[31mb\r\u202ec\n");
  const task = settings.tasks.sample.command, quoted = flags.map((flag) => `'${flag}'`).join(" ");
  const args = ["-qec", `${task} ${quoted}`, "/dev/null"];
  const { stdout } = await new Deno.Command("script", { args, cwd: ROOT, stdin: "null" }).output();
  assertStringIncludes(new TextDecoder().decode(stdout), "a\\u001b[31mb\\u000d\\u202ec\r\n"); // \r\n is the terminal's
});

Deno.test("sample writes past block_size and through characters of several bytes", async () => {
  const prompt = "wörld € 🧵 ".repeat(8); // longer than block_size by itself
  const flags = ["--device=cpu", `--checkpoint=${await model()}`, "--temperature=3", "--top_k=0"];
  const { code, stdout, stderr } = await run("sample", ...flags, "--prompt", prompt, "--max_new_tokens=200");
  assert(stdout.startsWith(prompt), stdout);
  const note = "warning: the prompt has 129 tokens, the model sees the last 32 of them (its block_size)\n"; // of 16 bytes each
  assertEquals({ code, stderr }, { code: 0, stderr: note });
  const fits = "x".repeat(31); // and the start of the document
  assertEquals(await sample("--prompt", fits, "--max_new_tokens=0"), fits + "\n");
});

Deno.test("sample shows nothing for a token that the model has and its tokenizer lacks", async () => {
  const padded = await modelDirectory({ vocab_size: 512 }), flags = ["--temperature=5", "--top_k=0"];
  const text = await succeed("sample", "--device=cpu", `--checkpoint=${padded}`, "--prompt=ab", ...flags);
  assert(text.startsWith("ab"), text);
  assert(text.length < 90, text); // of the 100 tokens half are lacked
});

Deno.test("sample takes a run, a checkpoint, and a copy of one without the optimizer", async () => {
  const run = await model(), checkpoint = `${run}/checkpoints/step_000300`;
  const alone = copy(checkpoint);
  for (const file of ["optimizer.safetensors", "trainer_state.json", "generation_config.json"]) {
    Deno.removeSync(`${alone}/${file}`);
  }
  const [first, ...others] = await Promise.all([run, checkpoint, alone].map((path) => {
    return succeed("sample", "--device=cpu", `--checkpoint=${path}`, "--prompt=time");
  }));
  for (const text of others) assertEquals(text, first);
});

Deno.test("sample ends without a word when nobody reads on", async () => {
  const flags = ["--device=cpu", "--temperature=3", "--top_k=0", "--max_new_tokens=1_000_000"];
  const running = new Running("sample", `--checkpoint=${await model()}`, "--prompt=a\n", ...flags);
  await running.line("a");
  await running.close();
  const { code, stderr } = await running.end();
  assertEquals({ code, stderr }, { code: 0, stderr: "" });
});

Deno.test("sample says in one line that its text cannot be written", async () => {
  const script = 'exec "$0" task -q sample "$@" >/dev/full', flags = ["--device=cpu", "--max_new_tokens=1"];
  const { code, stderr } = await new Deno.Command("sh", {
    args: ["-c", script, Deno.execPath(), `--checkpoint=${await model()}`, ...flags],
    cwd: ROOT,
    stdin: "null",
  }).output();
  assertEquals(code, 1);
  assertMatch(errorLine(new TextDecoder().decode(stderr)), /^Cannot write the text: No space left on device/);
});

Deno.test("sample refuses flags that make no sense", async () => {
  const cases = [
    ["--top_k=-1", "Cannot use --top_k=-1: it should be a whole number of at least 0"],
    ["--top_k=1.5", "Cannot use --top_k=1.5: it should be a whole number of at least 0"],
    ["--max_new_tokens=-5", "Cannot use --max_new_tokens=-5: it should be a whole number of at least 0"],
    ["--seed=0.5", "Cannot use --seed=0.5: it should be a whole number of at least 0"],
    ["--temperature=-1", "Cannot use --temperature=-1: it should be a number of at least 0"],
    ["--top_p=0", "Cannot use --top_p=0: it should be a number above 0 to 1"],
    ["--top_p=1.1", "Cannot use --top_p=1.1: it should be a number above 0 to 1"],
    ["--temperature=warm", "Cannot use --temperature=warm: it should be a number of at least 0"],
    ["--device=tpu", 'Cannot use device "tpu": it must be cpu or cuda'],
    ["--tempreature=1", "Cannot use --tempreature: there is no such flag; did you mean --temperature?"],
    ["Once", "Cannot read the argument Once: flags are given as --name=value, such as --checkpoint=Once"],
  ] as const;
  for (const [flag, message] of cases) {
    assertEquals(await refuse("sample", "--checkpoint=runs/none", flag), message);
  }
  assertEquals(await refuse("sample"), "Cannot sample: name a model with --checkpoint=runs/...");
});
