// loam's side of `deno task bench:peer`: the steps of train.ts on random tokens, as many as each line "steps N" on stdin asks
// for. Every answer is one line of JSON, the same as torch_llama.py gives.
import process from "node:process";
import { runMain, UserError } from "../ffi/errors.ts";
import { copyToDevice, device, memoryUse, open } from "../ffi/library.ts";
import { init, type LlamaConfig, loss } from "../model/llama.ts";
import { parseOverrides } from "../runtime/config.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { fixed } from "../runtime/tensor.ts";
import { lines } from "./lines.ts";

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
};

/** Builds the model and returns a function that does one optimizer step on a new batch and returns its loss. */
function trainer(o: typeof defaults): { step: () => number; parameters: number } {
  const config: LlamaConfig = {
    vocab_size: o.V,
    n_layer: o.n_layer,
    n_embd: o.n_embd,
    n_head: o.n_head,
    n_kv_head: o.n_kv_head,
    head_dim: o.n_embd / o.n_head,
    n_inner: o.n_inner,
    block_size: o.T,
    rope_theta: 10000,
    norm_eps: 1e-6,
    tie_word_embeddings: true,
  };
  const model = init(config);
  const parameters = new Parameters(model, { seed: 0, train: true });
  const optimizer = new AdamW(parameters, {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    grad_clip: 1,
  });
  const idx = fixed([o.B, o.T], "i32", "inputs"), targets = fixed([o.B, o.T], "i32", "inputs");
  const inputs = new Int32Array(o.B * o.T), outputs = new Int32Array(o.B * o.T);

  function step(): number {
    for (let micro = 0; micro < o.accum; micro++) {
      for (let i = 0; i < inputs.length; i++) inputs[i] = Math.random() * o.V;
      outputs.set(inputs.subarray(1));
      copyToDevice(idx.address, inputs);
      copyToDevice(targets.address, outputs);
      const l = loss(model, idx, targets, config, { grad_scale: 1 / o.accum }); // (1)
      backward(l);
      optimizer.addLoss(l, 1 / o.accum, micro === 0);
      endStep();
    }
    optimizer.step(3e-4);
    return optimizer.result().loss; // waits for a GPU
  }
  return { step, parameters: parameters.count() };
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
  return device.library === "cuda" ? memoryUse().peak : process.resourceUsage().maxRSS * 1024;
}

function say(message: Record<string, unknown>): void {
  console.log(JSON.stringify(message));
}

if (import.meta.main) {
  await runMain(async () => {
    const options = { ...defaults, ...parseOverrides(Deno.args, defaults) };
    if (options.device === "cuda" && options.dtype !== "bfloat16") {
      throw new UserError(
        `Cannot train in ${options.dtype} on cuda: loam uses bfloat16 there; set --dtype=bfloat16`,
      );
    }
    open(options.device === "cuda" ? "cuda" : "cpu", {
      threads: options.threads,
      bf16_gemm: options.dtype === "bfloat16",
    });
    const { step, parameters } = trainer(options);
    for (let i = 0; i < WARMUP; i++) step();
    say({ ready: true, parameters, version: Deno.version.deno, device: device.name, blas: device.blas });
    for await (const line of lines(Deno.stdin.readable)) {
      const count = /^steps (\d+)$/.exec(line)?.[1];
      if (!count) throw new UserError(`Cannot read the line "${line}": it should be "steps N"`);
      say(timed(step, Number(count)));
    }
  });
}
