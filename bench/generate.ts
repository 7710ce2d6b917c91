// Reads prompts and writes tokens with the same random weights in loam, transformers and llama.cpp, by turns, so that a change in
// clock speed or load meets all of them. Prints medians; bf16 of loam is bfloat16 weights (--dtype of sample), f16 and q8_0 are
// llama.cpp's files of those types.
//
//   LOAM_PYTHON=python3 LOAM_LLAMA_CPP=DIR deno run -q -P=bench bench/generate.ts --preset=124m
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { openTokenizer } from "../data/tokenizer.ts";
import { device, type DeviceName, open, sample } from "../ffi/library.ts";
import { loadModel } from "../model/checkpoint.ts";
import { exportModel } from "../model/export.ts";
import { generateAll } from "../model/generate.ts";
import { hfShape, type HFTensor, hfTensors } from "../model/hf.ts";
import { configToHF } from "../model/hf_config.ts";
import type { Llama, LlamaConfig } from "../model/llama.ts";
import { writeSafetensors } from "../runtime/safetensors.ts";
import { fixed, writeFloats } from "../runtime/tensor.ts";
import { lines } from "../base/lines.ts";
import { median } from "./median.ts";
import { type Head, reportHead, saveReport, warnOfLoad } from "./report.ts";
import { modelOf, type Shape, SHAPES } from "./shapes.ts";

const defaults = {
  preset: "124m", // or small or tiny
  prompt: 128, // tokens to read
  tokens: 32, // to write behind them
  rounds: 5, // turns of each side
  threads: navigator.hardwareConcurrency, // of all sides
  llama_dtypes: "f32,f16,q8_0", // of llama.cpp's files
  device: "cpu", // loam's
  json: "", // where the results go; "" = bench/results/generate-DATE-PRESET.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  ...each(whole(2, 4096), "prompt", "tokens"),
  rounds: whole(1, 1000),
  threads: whole(1, 1024),
};

const MODELS: Record<string, Omit<Shape, "B">> = {
  tiny: { ...SHAPES.tiny!, T: 1024, V: 257 },
  small: { ...SHAPES.small!, T: 1024, V: 50257 },
  "124m": { ...SHAPES["124m"]!, T: 1024 },
};

const PAUSE_MS = 300; // between turns: OpenMP threads spin for a while after their last work

/** Milliseconds to read a prompt and choose the first token, and of each token after it. */
type Turn = { prompt_ms: number; token_ms: number[] };

/** Who writes. */
type Side = { name: string; turn: () => Promise<Turn>; stop: () => void; texts: number };

// ---- the sides

/** A random model as a directory for all sides. */
async function writeModel(c: LlamaConfig, directory: string): Promise<void> {
  const names = { bos_token_id: c.vocab_size - 1, eos_token_id: c.vocab_size - 1, dtype: "float32" as const };
  const files = (await openTokenizer(c.vocab_size === 257 ? "bytes" : "gpt2")).files();
  Deno.writeTextFileSync(`${directory}/config.json`, JSON.stringify(configToHF(c, names)));
  for (const [name, text] of Object.entries(files)) Deno.writeTextFileSync(`${directory}/${name}`, text);
  const entries = hfTensors(c).map((tensor: HFTensor) => {
    const shape = hfShape(tensor);
    const bytes = () =>
      new Uint8Array(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random).buffer);
    return { name: tensor.hf, dtype: "F32" as const, shape, bytes };
  });
  writeSafetensors(`${directory}/model.safetensors`, entries);
}

let state = 1;
/** Uniform numbers of standard deviation 0.02. */
function random(): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state / 2 ** 32 - 0.5) * 0.02 * Math.sqrt(12);
}

function promptOf(o: Options, c: LlamaConfig, text = 0): number[] {
  return Array.from({ length: o.prompt }, (_, i) => (i * 7919 + text * 104729) % (c.vocab_size - 1));
}

/** loam, with so many texts at a time. */
function loam(name: string, m: Llama, c: LlamaConfig, o: Options, texts: number): Side {
  const options = { max_new_tokens: o.tokens, temperature: 0, top_k: 0, top_p: 1, seed: 1 };
  const orders = Array.from({ length: texts }, (_, i) => ({ prompt: promptOf(o, c, i), options }));
  const turn = () => {
    const times = [performance.now()];
    let written = 0;
    for (const { token } of generateAll(m, c, orders)) {
      if (token !== undefined && ++written % texts === 0) times.push(performance.now());
    }
    return Promise.resolve(turnOf(times));
  };
  return { name, turn, stop: () => {}, texts };
}

/** A turn from the moment of its beginning and those of its tokens. */
function turnOf(times: number[]): Turn {
  const gaps = times.slice(1).map((time, i) => time - times[i]!);
  return { prompt_ms: gaps[0]!, token_ms: gaps.slice(1) };
}

/** A program that answers each line on stdin with the moments of a turn, in seconds. */
function program(name: string, command: string, args: string[], input: unknown, cwd?: string): Side {
  const env = { LOAM_BENCH: JSON.stringify(input) };
  const child = new Deno.Command(command, {
    args,
    env,
    ...cwd && { cwd },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter(), answers = lines(child.stdout);
  return {
    name,
    texts: 1,
    async turn() {
      await writer.write(new TextEncoder().encode("\n")).catch(() => {}); // the answer is missing then
      const { value, done } = await answers.next();
      if (done) throw new UserError(`Cannot time ${name}: its process ended early`);
      return turnOf((JSON.parse(value) as number[]).map((seconds) => 1000 * seconds));
    },
    stop: () => child.kill(),
  };
}

const TRANSFORMERS = `
import json, os, sys, time, torch
from transformers import AutoModelForCausalLM
o = json.loads(os.environ["LOAM_BENCH"])
torch.set_num_threads(o["threads"])
model = AutoModelForCausalLM.from_pretrained(o["directory"], dtype=torch.float32)
for line in sys.stdin:
    with torch.inference_mode():
        times, ids, cache = [time.perf_counter()], torch.tensor([o["prompt"]]), None
        for _ in range(o["tokens"]):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            times.append(time.perf_counter())
    print(json.dumps(times), flush=True)
`;

const LLAMA_CPP = `
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';
const o = JSON.parse(Deno.env.get("LOAM_BENCH"));
const quiet = { build: "never", progressLogs: false, logLevel: LlamaLogLevel.error };
const llama = await getLlama({ gpu: false, maxThreads: o.threads, ...quiet });
const model = await llama.loadModel({ modelPath: o.path });
const room = o.prompt.length + o.tokens + 1;
const context = await model.createContext({ contextSize: room, batchSize: room, threads: o.threads });
const sequence = context.getSequence();
for await (const _ of Deno.stdin.readable) {
  await sequence.clearHistory();
  const times = [performance.now() / 1000];
  for await (const _ of sequence.evaluate(o.prompt, { temperature: 0, yieldEogToken: true })) {
    if (times.push(performance.now() / 1000) > o.tokens) break;
  }
  console.log(JSON.stringify(times));
}
`;

// ---- what is said

/** The median milliseconds that the library takes to choose one of V tokens. */
function samplerTimes(V: number): Record<string, number> {
  const logits = fixed([V], "act", "inputs");
  writeFloats(logits.address, Float32Array.from({ length: V }, () => 100 * random()), "act");
  const cases = {
    "temperature 0": { temperature: 0, top_k: 0, top_p: 1 },
    "temperature 0.8": { temperature: 0.8, top_k: 0, top_p: 1 },
    "top_k 50": { temperature: 0.8, top_k: 50, top_p: 1 },
    "top_p 0.9": { temperature: 0.8, top_k: 0, top_p: 0.9 },
  };
  return Object.fromEntries(
    Object.entries(cases).map(([name, o]) => {
      const times = Array.from({ length: 51 }, (_, i) => {
        const begun = performance.now();
        sample(logits.address, V, o, i * 80_000_000);
        return performance.now() - begun;
      });
      return [name, median(times)];
    }),
  );
}

type Result = { prompt_tokens_per_sec: number; tokens_per_sec: number; turns: Turn[] };

function summarise(o: Options, { texts }: Side, turns: Turn[]): Result {
  return {
    prompt_tokens_per_sec: 1000 * texts * o.prompt / median(turns.map(({ prompt_ms }) => prompt_ms)),
    tokens_per_sec: 1000 * texts / median(turns.flatMap(({ token_ms }) => token_ms)),
    turns,
  };
}

async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const source = Deno.readTextFileSync(import.meta.filename!);
    return console.log(help("Time reading prompts and writing tokens beside others", defaults, source));
  }
  const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
  const shape = MODELS[o.preset];
  if (!shape) {
    throw new UserError(
      `Cannot use preset ${o.preset}: it should be one of ${Object.keys(MODELS).join(", ")}`,
    );
  }
  const config = modelOf(shape);
  const head = reportHead("deno run -q -P=bench bench/generate.ts");
  const directory = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_bench_" });
  const python = Deno.env.get("LOAM_PYTHON"), llama = Deno.env.get("LOAM_LLAMA_CPP"), sides: Side[] = [];
  try {
    await writeModel(config, directory);
    open(o.device as DeviceName, { threads: o.threads });
    const { model, config: loaded } = loadModel(directory), prompt = promptOf(o, config);
    sides.push(loam("loam", model, loaded, o, 1), loam("loam, 8 texts", model, loaded, o, 8));
    const half = loadModel(directory, { dtype: "bfloat16" }).model;
    sides.push(loam("loam bf16", half, loaded, o, 1), loam("loam bf16, 8 texts", half, loaded, o, 8));
    const { threads, tokens } = o, input = { directory, prompt, tokens, threads };
    if (python) sides.push(program("transformers", python, ["-c", TRANSFORMERS], input));
    for (const dtype of llama ? o.llama_dtypes.split(",") : []) {
      const path = `${directory}/${dtype}.gguf`;
      await exportModel({ checkpoint: directory, format: "gguf", dtype, out: path });
      const evaluated = ["eval", "-q", LLAMA_CPP];
      sides.push(program(`llama.cpp ${dtype}`, Deno.execPath(), evaluated, { ...input, path }, llama));
    }
    const turns = new Map(sides.map((side) => [side, [] as Turn[]]));
    for (let round = 0; round <= o.rounds; round++) {
      for (const side of sides) {
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
        const turn = await side.turn();
        if (round > 0) turns.get(side)!.push(turn); // in the first one memory is allocated
      }
    }
    const results = Object.fromEntries(
      sides.map((side) => [side.name, summarise(o, side, turns.get(side)!)]),
    );
    report(o, head, results, samplerTimes(config.vocab_size));
  } finally {
    for (const side of sides) side.stop();
    Deno.removeSync(directory, { recursive: true });
  }
}

function report(
  o: Options,
  head: Head,
  results: Record<string, Result>,
  sampler_ms: Record<string, number>,
): void {
  console.log(
    `${o.preset}: prompts of ${o.prompt} tokens, ${o.tokens} written, ${o.threads} threads, tokens/s`,
  );
  warnOfLoad(head.load_before);
  for (const [name, { prompt_tokens_per_sec, tokens_per_sec }] of Object.entries(results)) {
    const read = prompt_tokens_per_sec.toFixed(0).padStart(8),
      written = tokens_per_sec.toFixed(1).padStart(8);
    console.log(`${name.padEnd(18)} prompt ${read}  writing ${written}`);
  }
  const chosen = Object.entries(sampler_ms).map(([name, ms]) => `${name} ${ms.toFixed(3)}`);
  console.log(
    `ms to choose a token of ${MODELS[o.preset]!.V}: ${chosen.join(", ")}`,
  );
  const written = { ...head, device, options: o, sampler_ms, results };
  console.log(`written to ${saveReport(written, `generate-${head.date}-${o.preset}`, o.json)}`);
}

if (import.meta.main) await runMain(main);
