import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { formatCount } from "../../base/format.ts";
import { BEGINS, openDataset, readTokens, TRAINED, verifyDataset } from "../bins.ts";
import type { Message } from "../chat_template.ts";
import { documentText, inspectDataset } from "../inspect/inspect_dataset.ts";
import { openTokenizer } from "../tokenizer.ts";
import { chatCases, inDirectory, names } from "../testing.ts";
import { fails, interrupt, readAll, runMerge, runPrepare } from "./testing.ts";

const GOLDEN = new URL("../../tests/golden/chat/", import.meta.url).pathname;

/** Writes one conversation a line. */
function conversations(path: string, rows: unknown[]): void {
  Deno.writeTextFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
}

const turn = (user: string, assistant: string): Message[] => [
  { role: "user", content: user },
  { role: "assistant", content: assistant },
];

/** The ids and the bytes of the masks of a split. */
function contents(dir: string, split: "train" | "val"): { ids: number[]; mask: number[] } {
  const shards = openDataset(dir)[split];
  return {
    ids: shards.flatMap((shard) => [...readTokens(shard, 0, shard.tokens)]),
    mask: shards.flatMap(({ mask }) => [...Deno.readFileSync(mask!)]),
  };
}

Deno.test("prepare --chat writes the ids and masks of transformers' apply_chat_template()", () =>
  inDirectory(async (dir) => {
    const cases = chatCases();
    for (const name of new Set(cases.map(({ tokenizer, template }) => `${tokenizer}/${template}`))) {
      const [tokenizer, template] = name.split("/") as [string, string];
      const own = cases.filter((each) => each.tokenizer === tokenizer && each.template === template)
        .filter(({ options }) => !options.add_generation_prompt);
      conversations(`${dir}/a.jsonl`, own.map(({ messages, options }) => ({ messages, ...options })));
      const flags = [`--tokenizer=${GOLDEN}/${tokenizer}`, `--chat_template=${GOLDEN}/${template}.jinja`];
      const out = `${dir}/${tokenizer}_${template}`;
      const { meta } = await runPrepare(
        "--chat",
        "--input",
        `${dir}/a.jsonl`,
        "--out",
        out,
        ...flags,
        "--val_fraction=0",
      );
      const { ids, mask } = contents(out, "train");
      assertEquals(ids, own.flatMap(({ ids }) => ids), name);
      assertEquals(mask.map((byte) => byte & TRAINED).join(""), own.map(({ mask }) => mask).join(""), name);
      const starts = own.flatMap(({ ids }) => ids.map((_, i) => i === 0 ? BEGINS : 0));
      assertEquals(mask.map((byte) => byte & BEGINS), starts);
      assertEquals(meta.train.trained, mask.filter((byte) => byte & TRAINED).length);
      assertEquals(meta.template, Deno.readTextFileSync(`${GOLDEN}/${template}.jinja`));
    }
  }));

Deno.test("prepare --chat with a tokenizer without a template writes ChatML and keeps it", () =>
  inDirectory(async (dir) => {
    conversations(`${dir}/a.jsonl`, [{ messages: turn("Hi", "Ho") }]);
    const flags = [
      "--chat",
      "--input",
      `${dir}/a.jsonl`,
      "--out",
      `${dir}/out`,
      "--tokenizer=bytes",
      "--val_fraction=0",
    ];
    const { meta } = await runPrepare(...flags);
    const { ids, mask } = contents(`${dir}/out`, "train"), tokenizer = await openTokenizer("bytes");
    const own = ids.filter((_, i) => mask[i]! & TRAINED);
    assertEquals(
      tokenizer.decode(ids),
      "<|im_start|>user\nHi<|endoftext|>\n<|im_start|>assistant\nHo<|endoftext|>\n",
    );
    assertEquals(own, [...tokenizer.encode("Ho"), tokenizer.eot]);
    assertEquals(openDataset(`${dir}/out`).template, meta.template);
    verifyDataset(`${dir}/out`);
    assertEquals((await runPrepare(...flags)).work, null); // nothing to do
  }));

const MANY = Array.from({ length: 400 }, (_, i) => ({
  messages: [
    ...turn(`Question ${i}? ${"Why? ".repeat(i % 50)}`, `Answer ${i}. ${"So. ".repeat(i)}`),
    ...turn("And?", `${i}`),
  ],
}));
const FLAGS = ["--chat", "--tokenizer=bytes", "--val_fraction=0.2", "--shard_tokens=100000"];

Deno.test("prepare --chat goes on after any block, with any number of workers, to the same files", () =>
  inDirectory(async (dir) => {
    conversations(`${dir}/a.jsonl`, [...MANY, ...MANY, ...MANY]);
    const input = ["--input", `${dir}/a.jsonl`, ...FLAGS, "--block_size=1000"];
    const { meta } = await runPrepare(...input, "--out", `${dir}/whole`);
    assert(meta.cut! > 0 && meta.left_out.too_long! > 0 && meta.shards.length > 4);
    const whole = readAll(`${dir}/whole`);
    assert(Object.keys(whole).includes("val_000000.mask"));
    for (const workers of [1, 3]) {
      await interrupt(1, ...input, "--out", `${dir}/out`, `--workers=${workers}`);
      assertEquals(names(`${dir}/out`), ["unfinished"]);
      const { work } = await runPrepare(...input, "--out", `${dir}/out`);
      assert(work!.documents_before > 0);
      assertEquals(readAll(`${dir}/out`), whole);
      Deno.removeSync(`${dir}/out`, { recursive: true });
    }
  }));

Deno.test("prepare --chat splits by the conversation wherever it stands, and leaves out what came before", () =>
  inDirectory(async (dir) => {
    conversations(`${dir}/a.jsonl`, MANY);
    conversations(`${dir}/b.jsonl`, [...MANY.slice(10), ...MANY.slice(0, 10), ...MANY.slice(0, 5)]);
    const a = await runPrepare("--input", `${dir}/a.jsonl`, ...FLAGS, "--out", `${dir}/a`);
    const b = await runPrepare("--input", `${dir}/b.jsonl`, ...FLAGS, "--dedup=exact", "--out", `${dir}/b`);
    assertEquals(b.meta.left_out.duplicates, 5);
    assertEquals(b.meta.val, a.meta.val);
    assertEquals(b.meta.train, a.meta.train);
  }));

Deno.test("prepare --chat merges parts with their masks", () =>
  inDirectory(async (dir) => {
    for (const [name, rows] of [["a", MANY.slice(0, 200)], ["b", MANY.slice(200)]] as const) {
      conversations(`${dir}/${name}.jsonl`, rows);
    }
    const input = ["--input", `${dir}/*.jsonl`, ...FLAGS, "--block_size=1000"];
    const { meta } = await runPrepare(...input, "--out", `${dir}/whole`);
    for (const i of [1, 2]) await runPrepare(...input, "--out", `${dir}/parts`, `--shard=${i}/2`);
    const merged = runMerge("--out", `${dir}/parts`);
    assertEquals([merged.train, merged.val, merged.left_out, merged.cut], [
      meta.train,
      meta.val,
      meta.left_out,
      meta.cut,
    ]);
    verifyDataset(`${dir}/parts`);
    assertEquals(contents(`${dir}/parts`, "val"), contents(`${dir}/whole`, "val"));
  }));

Deno.test("prepare --chat cuts a conversation behind the last answer that fits, or refuses it", () =>
  inDirectory(async (dir) => {
    const [one, two] = [turn("a", "b"), turn("c", "d")]; // 45 tokens each, the last one behind the answer
    conversations(`${dir}/a.jsonl`, [{ messages: [...one, ...two] }]);
    const input = ["--input", `${dir}/a.jsonl`, "--chat", "--tokenizer=bytes", "--val_fraction=0"];
    const lengths = [[89, 90, 0], [88, 89, 1], [87, 44, 1], [43, 44, 1]] as const;
    for (const [block_size, tokens, cut] of lengths) {
      const out = `${dir}/${block_size}`;
      const { meta } = await runPrepare(...input, "--out", out, `--block_size=${block_size}`);
      assertEquals([meta.train.tokens, meta.cut, meta.left_out.too_long], [tokens, cut, 0], `${block_size}`);
      const text = (await openTokenizer("bytes")).decode(contents(out, "train").ids);
      assertEquals(meta.train.bytes, text.length);
      assertEquals(meta.train.trained, tokens > 50 ? 4 : 2);
    }
    conversations(`${dir}/a.jsonl`, [{ messages: [...one, ...two] }, { messages: turn("a".repeat(9), "b") }]);
    const { meta } = await runPrepare(...input, "--out", `${dir}/b`, "--block_size=43");
    assertEquals([meta.train.documents, meta.cut, meta.left_out.too_long], [1, 1, 1]);
    await fails(
      dir,
      [...input, "--block_size=88", "--no_cut"],
      "Cannot read DIR/a.jsonl:1: it has 90 tokens, 89 fit into a window of --block_size=88; use a larger one, " +
        "or leave --no_cut out, or leave it out with --skip_bad",
    );
    await fails(
      dir,
      [...input, "--block_size=20"],
      'Cannot prepare "DIR/a.jsonl": it has no documents, 2 have a first answer that ends behind --block_size; use a larger one, which is then that of training',
    );
    const kept = await runPrepare(...input, "--out", `${dir}/c`, "--block_size=88", "--no_cut", "--skip_bad");
    assertEquals([kept.meta.train.documents, kept.meta.left_out.bad], [1, 1]);
  }));

Deno.test("prepare --chat says file, line and reason of what cannot be read, with workers and far into the file too", () =>
  inDirectory(async (dir) => {
    const template = `--chat_template=${GOLDEN}/tags_marked.jinja`,
      narrow = `--chat_template=${dir}/narrow.jinja`;
    Deno.writeTextFileSync(
      `${dir}/narrow.jinja`,
      "{% for m in messages if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    );
    const refused = async (row: unknown, message: string, ...flags: string[]) => {
      conversations(`${dir}/a.jsonl`, [...MANY, row, ...MANY]);
      const input = ["--input", `${dir}/a.jsonl`, "--chat", "--tokenizer=bytes", ...flags];
      await fails(dir, input, `Cannot read DIR/a.jsonl:401: ${message}, or leave it out with --skip_bad`);
    };
    await refused(
      { id: 3 },
      "it has no messages, no conversations and no prompt with a completion but id; choose one with --column",
    );
    await refused(
      { messages: [{ role: "critic", content: "x" }] },
      `"${GOLDEN}/tags_marked.jinja" says: no turn of critic here`,
      template,
    );
    await refused(
      { messages: [{ role: "critic", content: "x" }, ...turn("a", "b")] },
      `its template leaves out the role "critic"`,
      narrow,
    );
    await refused(
      { messages: turn("a", "b").slice(0, 1) },
      "its template gives nothing of an assistant to train on",
      "--workers=2",
    );
    await refused(
      { messages: turn("\ud800", "b") },
      "it has half of a character (a surrogate alone); write the whole one",
    );
    const out = await runPrepare("--input", `${dir}/a.jsonl`, ...FLAGS, "--skip_bad", "--out", `${dir}/out`);
    assertEquals(out.meta.left_out.bad, 1);
    assert(out.work!.first_bad!.startsWith(`Cannot read ${dir}/a.jsonl:401: it has half of a character`));
    await assertRejects(
      () => runPrepare("--input", `${dir}/a.jsonl`, "--chat", "--tokenizer=byte", "--out", `${dir}/c`),
      UserError,
      'Cannot open tokenizer "byte": it is neither bytes, ',
    );
    Deno.writeTextFileSync(`${dir}/b.txt`, "text");
    await assertRejects(
      () => runPrepare("--input", `${dir}/b.txt`, "--chat", "--out", `${dir}/c`),
      UserError,
      "it is .txt, should be .jsonl with messages in each line; convert it, or leave --chat out",
    );
  }));

Deno.test("prepare --chat goes on the next day where the template tells the day, if it is told which it was", () =>
  inDirectory(async (dir) => {
    conversations(`${dir}/a.jsonl`, [{ messages: turn("Hi", "Ho") }]);
    Deno.writeTextFileSync(
      `${dir}/day.jinja`,
      "{{ strftime_now('%d.%m.%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    );
    const flags = [
      "--input",
      `${dir}/a.jsonl`,
      "--chat",
      `--chat_template=${dir}/day.jinja`,
      "--tokenizer=bytes",
    ];
    await runPrepare(...flags, "--val_fraction=0", "--out", `${dir}/out`, "--date=2026-01-09");
    assertEquals(
      (await openTokenizer("bytes")).decode(contents(`${dir}/out`, "train").ids),
      "09.01.2026HiHo",
    );
    await assertRejects(
      () => runPrepare(...flags, "--val_fraction=0", "--out", `${dir}/out`, "--date=2026-01-10"),
      UserError,
      "date is 2026-01-09 there and 2026-01-10 here",
    );
    await assertRejects(
      () => runPrepare(...flags, "--chat_template=", "--val_fraction=0", "--out", `${dir}/out`),
      UserError,
      "the chat template is one of SHA-256 ",
    );
  }));

Deno.test("verifyDataset() refuses the masks of another dataset", () =>
  inDirectory(async (dir) => {
    for (const [name, answer] of [["a", "one"], ["b", "two"], ["c", "three"]] as const) {
      conversations(`${dir}/a.jsonl`, [{
        messages: turn(name === "b" ? "??" : "?", name === "b" ? "tw" : answer),
      }]);
      await runPrepare(
        "--input",
        `${dir}/a.jsonl`,
        "--chat",
        "--tokenizer=bytes",
        "--val_fraction=0",
        "--out",
        `${dir}/${name}`,
      );
    }
    const mask = `${dir}/a/train_000000.mask`, own = Deno.readFileSync(mask);
    const refused = (message: string) => {
      assertThrows(() => verifyDataset(`${dir}/a`), UserError, `Cannot use "${mask}": ${message}`);
    };
    Deno.copyFileSync(`${dir}/b/train_000000.mask`, mask); // as long, of other words
    refused("its SHA-256 is ");
    Deno.copyFileSync(`${dir}/c/train_000000.mask`, mask);
    refused(`it has ${own.length + 2} bytes, should have one for each of the ${own.length} tokens`);
    Deno.removeSync(mask);
    refused("the file is missing");
  }));

Deno.test("deno task data counts conversations by their masks, shows them, and finds a mask of another dataset", () =>
  inDirectory(async (dir) => {
    conversations(`${dir}/a.jsonl`, MANY);
    const out = `${dir}/out`, tokenizer = await openTokenizer("bytes");
    const { meta } = await runPrepare("--input", `${dir}/a.jsonl`, ...FLAGS, "--out", out);
    const { documents, tokens, trained } = meta.train, printed: string[] = [];
    inspectDataset(openDataset(out), tokenizer, (text) => printed.push(text));
    const share = (100 * trained! / tokens).toFixed(1), row = printed.join("\n").match(/^ *train .*$/m)![0];
    assert(printed[0]!.startsWith(`${out}: loam's bins of conversations`));
    assertEquals(row.split(/ {2,}/).slice(2, 4), [`${documents}`, formatCount(tokens)]);
    assert(row.includes(` ${share}% `), row);
    const all = tokenizer.decode(contents(out, "train").ids), last = documents - 1;
    const [first, second, end] = [0, 1, last].map((n) =>
      documentText(openDataset(out), tokenizer, "train", n).split("\n\n").slice(1).join("\n\n")
    );
    assert(all.startsWith(first! + second!) && all.endsWith(end!));
    for (const text of [first, second, end]) assert(text!.startsWith("<|im_start|>user\nQuestion "), text);
    assertThrows(
      () => documentText(openDataset(out), tokenizer, "train", documents),
      UserError,
      `it has ${documents} documents, from 0 to ${documents - 1}`,
    );
    const mask = Deno.readFileSync(`${out}/train_000000.mask`);
    mask[5]! ^= TRAINED;
    Deno.writeFileSync(`${out}/train_000000.mask`, mask);
    assertThrows(
      () => inspectDataset(openDataset(out), tokenizer, () => {}),
      UserError,
      "train_000000.mask has another SHA-256 than meta.json says, train has",
    );
  }));
