// loam's side of `deno task bench:peer`: the steps of train.ts on random tokens, as many as each line "steps N" on stdin asks
// for. Every answer is one line of JSON, the same as torch_llama.py gives.
import process from "node:process";
import { runMain, UserError } from "../base/errors.ts";
import { device, type DeviceName, memoryUse, open, tokenSource } from "../ffi/library.ts";
import { init, type LlamaConfig, LORA_TARGETS, loss, type Recompute } from "../model/llama.ts";
import { planMemory } from "../model/plan.ts";
import { trainsOf } from "../model/trained.ts";
import { readFlags } from "../base/flags.ts";
import { Inputs } from "../runtime/inputs.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { lines } from "../base/lines.ts";
import { modelOf } from "./shapes.ts";

const WARMUP = 3; // steps before anything is timed; memory is allocated in the first

/** The options of this process; peer.ts sets all of them. */
const defaults = {
  n_layer: 6,
  n_embd: 384,
  n_head: 6,
  n_kv_head: 2,
  n_inner: 1024,
  V: 65,
  B: 8,
  T: 256,
  accum: 1,
  threads: 0,
  dtype: "float32",
  device: "cpu",
  head_chunk: 2048,
  recompute: "norm_swiglu",
  lora_rank: 0,
};
type Options = typeof defaults;

const ADAMW = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };

/** Bytes of device memory that model/plan.ts foretells. Leaves the plan device open. */
function plannedBytes(o: Options): number {
  const settings = { ...ADAMW, ...o, batch_size: o.B, gradient_accumulation_steps: o.accum, seed: 0 };
  const plan = planMemory(modelWith(o), settings, o.device === "cpu" ? "f32" : "bf16");
  return Object.values(plan).reduce((a, b) => a + b, 0);
}

/** The model, with adapters where they are asked for. */
function modelWith(o: Options): LlamaConfig {
  const { lora_rank: rank } = o;
  return { ...modelOf(o), ...rank > 0 && { lora: { rank, alpha: 2 * rank, targets: LORA_TARGETS } } };
}

/** Builds the model and returns a function that does one optimizer step on a new batch and returns its loss. */
function trainer(o: Options): { step: () => number; parameters: number } {
  const config = modelWith(o), model = init(config), half = o.dtype === "bfloat16" && o.lora_rank > 0;
  const parameters = new Parameters(model, { seed: 0, train: true, trains: trainsOf(model, ""), half });
  const optimizer = new AdamW(parameters, ADAMW);
  const inputs = new Inputs(o.B, o.T, o.accum), nextBatch = randomBatches(o);

  function step(): number {
    for (let micro = 0; micro < o.accum; micro++) {
      inputs.fill(nextBatch);
      const l = loss(model, inputs.idx, inputs.targets, config, {
        grad_scale: 1 / o.accum,
        head_chunk: o.head_chunk,
        recompute: o.recompute as Recompute,
      }); // (1)
      optimizer.addLoss(l, 1 / o.accum, micro === 0);
      backward(l);
      endStep();
    }
    optimizer.step(3e-4);
    return optimizer.result().loss; // waits for a GPU
  }
  return { step, parameters: parameters.count() };
}

/** Windows at random places in a file of random tokens, gathered as in training. */
function randomBatches({ B, T, V }: Options): (x: bigint, y: bigint) => void {
  const n = Math.max(2 ** 20, 2 * T), path = Deno.makeTempFileSync({ dir: "/tmp", prefix: "loam_" });
  Deno.writeFileSync(path, new Uint8Array(Uint16Array.from({ length: n }, () => Math.random() * V).buffer));
  const { handle } = tokenSource.open(path, 0, 2);
  Deno.removeSync(path); // it stays open
  return (x, y) => {
    for (let b = 0; b < B; b++) {
      const row = BigInt(4 * b * T), start = BigInt(Math.floor(Math.random() * (n - T)));
      tokenSource.gather(x + row, y + row, handle, start, T, V);
    }
  };
}

function timed(step: () => number, count: number): Record<string, unknown> {
  const step_ms = [];
  let loss = 0;
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    loss = step();
    step_ms.push(performance.now() - start);
  }
  return { step_ms, loss, peak_bytes: peakBytes() };
}

/** Of the GPU, or of the whole process on a CPU. */
function peakBytes(): number {
  return device.library !== "cpu" ? memoryUse().peak : process.resourceUsage().maxRSS * 1024;
}

function say(message: Record<string, unknown>): void {
  console.log(JSON.stringify(message));
}

if (import.meta.main) {
  await runMain(async () => {
    const options = { ...defaults, ...readFlags(Deno.args, defaults) };
    if (options.device === "cuda" && options.dtype !== "bfloat16") {
      throw new UserError(
        `Cannot train in ${options.dtype} on cuda: loam uses bfloat16 there; set --dtype=bfloat16`,
      );
    }
    const planned = options.device === "cpu" ? {} : { planned_bytes: plannedBytes(options) };
    open(options.device as DeviceName, {
      threads: options.threads,
      bf16_gemm: options.dtype === "bfloat16",
    });
    const { step, parameters } = trainer(options);
    for (let i = 0; i < WARMUP; i++) step();
    const { name, blas } = device;
    say({ ready: true, parameters, version: Deno.version.deno, device: name, blas, ...planned });
    for await (const line of lines(Deno.stdin.readable)) {
      const count = /^steps (\d+)$/.exec(line)?.[1];
      if (!count) throw new UserError(`Cannot read the line "${line}": it should be "steps N"`);
      say(timed(step, Number(count)));
    }
  });
}
