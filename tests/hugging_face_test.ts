// Live comparisons with transformers. They run where LOAM_PYTHON names a Python that has torch and transformers.
import { assert, assertEquals, assertLess } from "@std/assert";
import { openTokenizer } from "../data/tokenizer.ts";
import { loadModel, modelTensors } from "../model/checkpoint.ts";
import { generate } from "../model/generate.ts";
import { hfTensors } from "../model/hf.ts";
import { configFromHF } from "../model/hf_config.ts";
import { init, loss } from "../model/llama.ts";
import { allLogits } from "../model/testing.ts";
import { loadTensors } from "../runtime/checkpoint.ts";
import { Parameters } from "../runtime/optim.ts";
import { readSafetensors, toFloat32 } from "../runtime/safetensors.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { readFloats } from "../runtime/tensor.ts";
import { openTestDevice, tokens as ids } from "../runtime/testing.ts";
import { dataset, freshPath, list, SMALL, succeed } from "./testing.ts";

const PYTHON = Deno.env.get("LOAM_PYTHON");
const isFloat = openTestDevice().act === "f32";

/** Runs Python; returns what it prints. */
async function python(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(PYTHON!, { args, stdin: "null" }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

const oracle = (name: string) => new URL(`oracle/${name}.py`, import.meta.url).pathname;

function live(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `${name} (LOAM_PYTHON)`, ignore: !PYTHON || !isFloat, fn });
}

/** A checkpoint of a short run. */
async function checkpoint(tokenizer: string): Promise<string> {
  const out = freshPath(), flags = ["--max_iters=40", "--save_interval=40", "--head_dim=16"];
  const data = await dataset({ words: 1500, tokenizer });
  await succeed("train", `--data_dir=${data}`, `--out_dir=${out}`, ...SMALL, ...flags);
  return `${out}/checkpoints/step_000040`;
}

/** |actual - expected| / |expected|, in the L2 norm. */
function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assertEquals(actual.length, expected.length);
  const square = (f: (e: number, i: number) => number) =>
    Array.from(expected).reduce((sum, e, i) => sum + f(e, i) ** 2, 0);
  return Math.sqrt(square((e, i) => actual[i]! - e) / Math.max(1e-12, square((e) => e)));
}

const TEXTS = [
  "Once upon a time",
  "  two  spaces\n\nand\ttabs ",
  "wörld € 🧵 日本語",
  "It's 2024, isn't it?",
];

for (const tokenizer of ["bytes", "gpt2"]) {
  live(
    `a checkpoint with the ${tokenizer} tokenizer is the same model and tokenizer in transformers`,
    async () => {
      const directory = await checkpoint(tokenizer);
      const { model, config } = loadModel(directory), ours = await openTokenizer(directory);
      const prompt = ours.prompt("Once upon").slice(0, config.block_size - 4);
      const args = ["--ids", prompt.join(","), "--greedy", "4", "--text", TEXTS[0]!];
      const report = JSON.parse(await python(oracle("check_checkpoint"), directory, ...args));
      const { architecture, tied, dtype, missing, unexpected } = report;
      assertEquals({ architecture, tied, dtype, missing, unexpected }, {
        architecture: "LlamaForCausalLM",
        tied: true,
        dtype: ["torch.float32"],
        missing: [],
        unexpected: [],
      });
      const theirs = (report.logits as number[][]).flat();
      assertLess(relativeError(allLogits(model, config, ids([1, prompt.length], prompt)), theirs), 1e-4);
      const options = { max_new_tokens: 4, temperature: 0, top_k: 0, top_p: 1, seed: 0, stop: [ours.eot] };
      const written = (report.greedy as number[]).filter((id) => id !== ours.eot);
      assertEquals(Array.from(generate(model, config, prompt, options)), written);

      const encoded = JSON.parse(await python("-c", TOKENIZE, directory, JSON.stringify(TEXTS)));
      for (const [i, text] of TEXTS.entries()) {
        assertEquals(encoded[i], { ids: ours.prompt(text), text: `<|endoftext|>${text}` }, text);
      }
    },
  );
}

const TOKENIZE = `
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
encode = lambda text: tokenizer(text)["input_ids"]
print(json.dumps([dict(ids=encode(text), text=tokenizer.decode(encode(text))) for text in json.loads(sys.argv[2])]))
`;

live(
  "sample writes the same text from a directory that transformers saved, in float32 and bfloat16",
  async () => {
    const directory = await checkpoint("gpt2");
    const sample = (path: string, ...flags: string[]) =>
      succeed(
        "sample",
        "--device=cpu",
        `--checkpoint=${path}`,
        "--prompt=Once",
        "--max_new_tokens=30",
        ...flags,
      );
    const float32 = freshPath(), bfloat16 = freshPath();
    await python("-c", RESAVE, directory, float32, bfloat16);
    assert(!list(float32).includes("trainer_state.json"));
    assertEquals(await sample(float32, "--seed=3"), await sample(directory, "--seed=3"));
    assert((await sample(bfloat16)).startsWith("Once"));
    const weights = (path: string) => readSafetensors(`${path}/model.safetensors`).tensors.get(NORM)!.dtype;
    assertEquals([weights(float32), weights(bfloat16)], ["F32", "BF16"]);
    const tokens = [5, 0, 1, 2],
      [full, rounded] = [directory, bfloat16].map((path) => {
        const { model, config } = loadModel(path);
        return allLogits(model, config, ids([1, 4], tokens));
      });
    assertLess(relativeError(rounded!, full!), 0.02); // bfloat16 keeps 8 bits
  },
);

const NORM = "model.norm.weight";
const RESAVE = `
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source, *targets = sys.argv[1:]
for target, dtype in zip(targets, [torch.float32, torch.bfloat16]):
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
`;

live(
  "logits, loss and every gradient of random shapes are those of Hugging Face and of float64",
  async () => {
    const directory = freshPath();
    await python(oracle("random_parity"), "cases", directory, "--count", "12", "--seed", "5");
    for (const file of list(directory)) {
      const path = `${directory}/${file}`, { read, tensors, metadata } = readSafetensors(path);
      const floats = (name: string) => toFloat32(read(name), "F32");
      const tokens = (name: string) => {
        return ids(tensors.get(name)!.shape, new Int32Array(read(name).buffer));
      };
      const config = configFromHF(JSON.parse(metadata.about!).config), about = JSON.stringify(config);
      const model = init(config), parameters = new Parameters(model, { seed: 0, train: true });
      loadTensors(path, modelTensors(parameters, config));
      const idx = tokens("idx"), targets = tokens("targets");
      const trained = new Int32Array(read("targets").buffer).filter((target) => target >= 0).length; // others are -100
      const scale = targets.size / trained; // of the mean over all, as lossScale() of data/loader.ts has it

      assertLess(relativeError(allLogits(model, config, idx), floats("logits64")), 1e-5, about);
      const l = loss(model, idx, targets, config, { head_chunk: 13, grad_scale: scale });
      backward(l);
      assertLess(relativeError([scale * l.toArray()[0]!], floats("loss64")), 1e-5, about);
      for (const { hf, ours, row, rows, cols } of hfTensors(config)) {
        const { offset } = parameters.slots.find((slot) => slot.name === ours)!;
        const begin = offset + row * Math.max(1, cols), n = rows * Math.max(1, cols);
        const gradient = readFloats(parameters.grads!.address + BigInt(4 * begin), n, "f32");
        const expected = floats(`grad64.${hf}`);
        if (expected.every((g) => Math.abs(g) < 1e-12)) continue; // of queries and keys where T is 1
        assertLess(relativeError(gradient, expected), 1e-4, `${hf} of ${about}`);
      }
      endStep();
    }
  },
);
