// From lines of conversations to a model: the chat template goes through the dataset into checkpoints and exports, where
// transformers makes the tokens and the mask of it that the model was trained on.
import { assert, assertEquals, assertMatch } from "@std/assert";
import { openDataset, readTokens, TRAINED } from "../data/bins.ts";
import { checkpointOf, freshPath, list, refuse, run, SMALL, succeed } from "./testing.ts";

const GOLDEN = new URL("golden/chat", import.meta.url).pathname;
const PYTHON = Deno.env.get("LOAM_PYTHON");
const SHORT = [...SMALL, "--max_iters=3", "--save_interval=3", "--head_dim=16"];

const CHATS = Array.from({ length: 12 }, (_, i) => ({
  messages: [
    { role: "user", content: `What is the capital of ${i}?` },
    { role: "assistant", content: `The capital is Zürich. `.repeat(1 + i % 3) },
    ...(i % 2 === 0 ? [{ role: "user", content: "Why?" }, { role: "assistant", content: "日本語" }] : []),
  ],
}));

/** A dataset of conversations and the checkpoint of a run on it. */
async function trained(): Promise<{ data: string; checkpoint: string; said: string }> {
  const [data, out] = [freshPath(), freshPath()], file = `${data}.jsonl`;
  Deno.writeTextFileSync(file, CHATS.map((row) => JSON.stringify(row)).join("\n"));
  const flags = [`--tokenizer=${GOLDEN}/bytes`, `--chat_template=${GOLDEN}/chatml_marked.jinja`];
  await succeed("prepare", "--chat", `--input=${file}`, `--out=${data}`, ...flags, "--val_fraction=0");
  const said = await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SHORT);
  return { data, said, checkpoint: `${out}/checkpoints/${checkpointOf(3)}` };
}

Deno.test("the chat template of a dataset is in the checkpoint, in its GGUF, and in what is trained from it", async () => {
  const { checkpoint, said } = await trained(), name = "chat_template.jinja";
  assertMatch(said, /^documents are kept apart: attention and positions begin anew in each conversation$/m);
  assertMatch(said, /^conversations: the loss is that of what the assistant says$/m);
  const source = Deno.readTextFileSync(`${GOLDEN}/chatml_marked.jinja`);
  assertEquals(Deno.readTextFileSync(`${checkpoint}/${name}`), source);

  const gguf = `${freshPath()}.gguf`;
  await succeed("export", `--checkpoint=${checkpoint}`, `--out=${gguf}`);
  const text = new TextDecoder().decode(Deno.readFileSync(gguf).subarray(0, 1 << 16));
  assert(text.includes("tokenizer.chat_template") && text.includes(source));

  const [plain, out] = [freshPath(), freshPath()];
  Deno.writeTextFileSync(`${plain}.txt`, CHATS.map((_, i) => `The capital of ${i} is Zürich.\n`).join(""));
  const flags = ["--split_on=line", "--val_fraction=0", `--tokenizer=${checkpoint}`];
  await succeed("prepare", `--input=${plain}.txt`, `--out=${plain}`, ...flags);
  const shape = SHORT.filter((flag) => !/--n_|--head_dim/.test(flag));
  await succeed("train", `--data_dir=${plain}`, `--out_dir=${out}`, `--init_from=${checkpoint}`, ...shape);
  assertEquals(Deno.readTextFileSync(`${out}/checkpoints/${checkpointOf(3)}/${name}`), source);

  const run = checkpoint.replace(/\/checkpoints.*/, "");
  await succeed("train", `--resume=${run}`, `--data_dir=${plain}`, "--max_iters=6");
  assertEquals(Deno.readTextFileSync(`${run}/checkpoints/${checkpointOf(6)}/${name}`), source);
});

Deno.test("train refuses to evaluate on windows in which nothing is trained on: their loss of 0 would be the best", async () => {
  const [data, out] = [freshPath(), freshPath()], file = `${data}.jsonl`;
  const rows = Array.from(
    { length: 8 },
    (_, i) => ({ prompt: `${i} ${"why? ".repeat(200)}`, completion: "So." }),
  );
  Deno.writeTextFileSync(file, rows.map((row) => JSON.stringify(row)).join("\n"));
  await succeed(
    "prepare",
    "--chat",
    `--input=${file}`,
    `--out=${data}`,
    "--tokenizer=bytes",
    "--val_fraction=0.4",
  );
  const flags = [`--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, "--max_iters=1", "--eval_interval=1"];
  assertEquals(
    await refuse("train", ...flags, "--eval_batches=2"),
    `Cannot evaluate on ${data}: no token in the first 2 batches of its val split is trained on; ` +
      "use a larger --block_size than 16 or more --eval_batches, or --eval_interval=0 for no val_loss",
  );
  assertEquals(list(out), []);
  const { code, stdout, stderr } = await run("train", ...flags, "--eval_batches=1000");
  assertEquals(code, 0, stderr);
  assertMatch(stdout, /val [1-9]/);
  assertMatch(stderr, /^warning: no token of step 1 is trained on: .*\n$/);
});

const APPLY = `
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids, mask = [], []
for row in json.loads(sys.argv[2]):
    out = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
    ids += out["input_ids"]
    mask += out["assistant_masks"]
print(json.dumps([ids, mask]))
`;

Deno.test({
  name:
    "transformers makes the tokens and the mask of the dataset with the checkpoint's tokenizer (LOAM_PYTHON)",
  ignore: !PYTHON,
  async fn() {
    const { data, checkpoint } = await trained(), [shard] = openDataset(data).train;
    const args = ["-c", APPLY, checkpoint, JSON.stringify(CHATS)];
    const { code, stdout, stderr } = await new Deno.Command(PYTHON!, { args, stdin: "null" }).output();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    const [ids, mask] = JSON.parse(new TextDecoder().decode(stdout));
    assertEquals([...readTokens(shard!, 0, shard!.tokens)], ids);
    assertEquals(Array.from(Deno.readFileSync(shard!.mask!), (byte) => byte & TRAINED), mask);
  },
});
