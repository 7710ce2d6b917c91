// Changing the model: Llama with QK-norm, which normalises each query and key head so that attention scores stay bounded. It
// takes two more weights a layer and one line in the forward pass, marked below. Nothing else changes: gradients, optimizer and
// the names of weights follow from the ops that run. The same model without the line is trained first, on the same batches.
//
//   deno run -q -P=sample examples/qk_norm.ts [STEPS]     100 steps of each, about 10 seconds on two cores
import {
  AdamW,
  attention,
  backward,
  copyToDevice,
  embedding,
  endStep,
  fixed,
  init,
  type Layer,
  linear,
  linearCrossEntropy,
  type Llama,
  normLinear,
  open,
  param,
  Parameters,
  qkNorm,
  rmsnorm,
  rope,
  ropeTable,
  swigluLinear,
  type Tensor,
} from "../mod.ts";

const steps = Number(Deno.args[0] ?? 100);
const B = 8, T = 64, D = 32; // D: channels of a head
const c = {
  vocab_size: 256, // bytes
  n_layer: 4,
  n_embd: 128,
  n_head: 4,
  n_kv_head: 2,
  head_dim: D,
  n_inner: 384,
  block_size: T,
  rope_theta: 10_000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};

type NormedLayer = Layer & { q_norm?: Tensor; k_norm?: Tensor }; // (D)
type Model = Llama & { layers: NormedLayer[] };

/** Token ids (B, T) -> mean cross entropy (1): what loss() of model/llama.ts does, and the line. */
function loss(m: Model, idx: Tensor, targets: Tensor): Tensor {
  let x = embedding(idx, m.embed_tokens); // (B, T, C)
  for (const w of m.layers) {
    let qkv = normLinear(x, w.input_layernorm, w.qkv_proj, c.norm_eps); // (B, T, (H + 2K) * D)
    if (w.q_norm && w.k_norm) qkv = qkNorm(qkv, w.q_norm, w.k_norm, c, c.norm_eps); // <- the line
    x = linear(attention(rope(qkv, ropeTable(c), c), c), w.o_proj, x); // (B, T, C)
    const gate_up = normLinear(x, w.post_attention_layernorm, w.gate_up_proj, c.norm_eps); // (B, T, 2F)
    x = swigluLinear(gate_up, w.down_proj, x); // (B, T, C)
  }
  const options = { vocab_size: c.vocab_size, head_chunk: B * T, grad_scale: 1 };
  return linearCrossEntropy(rmsnorm(x, m.norm, c.norm_eps), m.embed_tokens, targets, options);
}

/** The weights of Llama and, in each layer, those of QK-norm: scales that start as 1. */
function initWithQkNorm(): Model {
  const model = init(c), scale = () => param([D], { value: 1 });
  return { ...model, layers: model.layers.map((w) => ({ ...w, q_norm: scale(), k_norm: scale() })) };
}

/** Trains with either model: nothing here knows which. */
function train(name: string, model: Model): void {
  const parameters = new Parameters(model, { seed: 1, train: true });
  const optimizer = new AdamW(parameters, {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    grad_clip: 1,
  });
  console.log(`${name}: ${parameters.slots.length} tensors, ${parameters.count()} weights`);
  for (let step = 0; step < steps; step++) {
    fillBatch(step);
    const mean = loss(model, idx, targets);
    optimizer.addLoss(mean, 1, true);
    backward(mean);
    endStep();
    optimizer.step(2e-3);
    if ((step + 1) % 25 === 0 || step + 1 === steps) {
      console.log(`  step ${step + 1}: loss ${optimizer.result().loss.toFixed(3)}`);
    }
  }
}

/** The same windows of the text for the same step. */
function fillBatch(step: number): void {
  for (let b = 0; b < B; b++) {
    const start = (step * B + b) * 101 % (text.length - T);
    x.set(text.subarray(start, start + T), b * T);
    y.set(text.subarray(start + 1, start + 1 + T), b * T);
  }
  copyToDevice(idx.address, x);
  copyToDevice(targets.address, y);
}

open("cpu");
const text = Deno.readFileSync(new URL("../CONTRIBUTING.md", import.meta.url));
const idx = fixed([B, T], "i32", "inputs"), targets = fixed([B, T], "i32", "inputs");
const x = new Int32Array(B * T), y = new Int32Array(B * T);

train("Llama", init(c));
const normed = initWithQkNorm();
train("Llama with QK-norm", normed);

const scales = normed.layers[0]!.q_norm!.toArray();
console.log(
  `layers.0.q_norm was all 1 and is now ${Math.min(...scales).toFixed(3)} to ${
    Math.max(...scales).toFixed(3)
  }`,
);
