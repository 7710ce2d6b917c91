// A character-level model in one file: a vocabulary of the characters in a text, batches cut from it at random, a training
// loop and a sample, with nothing but the public interface of loam.
//
//   deno run -q -P=sample examples/characters.ts [STEPS] [FILE]     300 steps on CONTRIBUTING.md, 15 seconds on two cores
import {
  AdamW,
  backward,
  copyToDevice,
  cosineSchedule,
  endStep,
  fixed,
  generate,
  init,
  loss,
  open,
  Parameters,
} from "../mod.ts";

const steps = Number(Deno.args[0] ?? 300);
const text = Deno.readTextFileSync(Deno.args[1] ?? new URL("../CONTRIBUTING.md", import.meta.url));

// The vocabulary: each character that occurs is a token.
const characters = [...new Set(text)].sort();
const ids = Int32Array.from(text, (character) => characters.indexOf(character));

// The model, a Llama like those that train.ts makes.
const B = 8, T = 64; // windows in a batch, characters in a window
const config = {
  vocab_size: characters.length,
  n_layer: 4,
  n_embd: 128,
  n_head: 4,
  n_kv_head: 2,
  head_dim: 32,
  n_inner: 384,
  block_size: T,
  rope_theta: 10_000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};
console.log(`${open("cpu").name}: ${ids.length} characters, ${characters.length} different ones`);
const model = init(config);
const parameters = new Parameters(model, { seed: 1337, train: true });
const optimizer = new AdamW(parameters, {
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weight_decay: 0.1,
  grad_clip: 1,
});

// A batch is B windows at random places; the target of each character is the one that follows it.
const idx = fixed([B, T], "i32", "inputs"), targets = fixed([B, T], "i32", "inputs");
function fillBatch(): void {
  const x = new Int32Array(B * T), y = new Int32Array(B * T);
  for (let b = 0; b < B; b++) {
    const start = Math.floor(Math.random() * (ids.length - T));
    x.set(ids.subarray(start, start + T), b * T);
    y.set(ids.subarray(start + 1, start + 1 + T), b * T);
  }
  copyToDevice(idx.address, x);
  copyToDevice(targets.address, y);
}

const schedule = { learning_rate: 3e-3, min_lr: 3e-4, warmup_iters: 20, max_iters: steps };
for (let step = 0; step < steps; step++) {
  fillBatch();
  const mean = loss(model, idx, targets, config); // forward
  optimizer.addLoss(mean, 1, true);
  backward(mean);
  endStep(); // gives the memory of activations back
  optimizer.step(cosineSchedule(step, schedule));
  if ((step + 1) % 50 === 0 || step + 1 === steps) {
    console.log(`step ${step + 1}: loss ${optimizer.result().loss.toFixed(3)}`);
  }
}

const options = { max_new_tokens: 300, temperature: 0.8, top_k: 0, top_p: 1, seed: 1 };
const sample = Array.from(generate(model, config, [ids[0]!], options), (id) => characters[id]);
console.log(characters[ids[0]!] + sample.join(""));
