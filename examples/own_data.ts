// A data source of your own: training on batches that a generator makes up as it goes, instead of token bins on the disk. The
// task is to write a word backwards: after "fedcab>" comes "bacdef". What the model is not asked for, the random word itself,
// gets the target -1, which has no loss.
//
//   deno run -q -P=sample examples/own_data.ts [STEPS]     600 steps, 2 seconds on two cores
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

const steps = Number(Deno.args[0] ?? 600);
const letters = "abcdefgh", ARROW = letters.length; // the token after the last letter
const n_letters = 6; // in a word
const B = 32, T = 2 * n_letters; // a word, the arrow, and the word backwards but for its last letter

/** A random word, as tokens. */
function randomWord(): number[] {
  return Array.from({ length: n_letters }, () => Math.floor(Math.random() * letters.length));
}

/** Batches without end. x (B, T) are tokens; y (B, T) are the tokens that follow them, -1 where anything may follow. */
function* batches(): Generator<{ x: Int32Array<ArrayBuffer>; y: Int32Array<ArrayBuffer> }> {
  while (true) {
    const x = new Int32Array(B * T), y = new Int32Array(B * T);
    for (let b = 0; b < B; b++) {
      const word = randomWord(), backwards = word.toReversed();
      x.set([...word, ARROW, ...backwards.slice(0, -1)], b * T);
      y.set([...word.map(() => -1), ...backwards], b * T);
    }
    yield { x, y };
  }
}

open("cpu");
const config = {
  vocab_size: letters.length + 1,
  n_layer: 2,
  n_embd: 64,
  n_head: 4,
  n_kv_head: 2,
  head_dim: 16,
  n_inner: 192,
  block_size: T,
  rope_theta: 10_000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};
const model = init(config);
const parameters = new Parameters(model, { seed: 1, train: true });
const optimizer = new AdamW(parameters, {
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weight_decay: 0.1,
  grad_clip: 1,
});

const idx = fixed([B, T], "i32", "inputs"), targets = fixed([B, T], "i32", "inputs");
const schedule = { learning_rate: 3e-3, min_lr: 3e-4, warmup_iters: 20, max_iters: steps };
let step = 0;
for (const { x, y } of batches().take(steps)) {
  copyToDevice(idx.address, x);
  copyToDevice(targets.address, y);
  const mean = loss(model, idx, targets, config); // over all B * T places, those without a loss count as 0
  optimizer.addLoss(mean, 1, true);
  backward(mean);
  endStep();
  optimizer.step(cosineSchedule(step++, schedule));
  if (step % 200 === 0 || step === steps) {
    console.log(`step ${step}: loss ${optimizer.result().loss.toFixed(4)}`);
  }
}

// Words that it may never have seen: letters at random make 262,144.
const spell = (tokens: number[]) => tokens.map((token) => letters[token]).join("");
const options = { max_new_tokens: n_letters, temperature: 0, top_k: 0, top_p: 1, seed: 1 };
let right = 0;
for (let i = 0; i < 20; i++) {
  const word = randomWord(), answer = [...generate(model, config, [...word, ARROW], options)];
  const isRight = spell(answer) === spell(word.toReversed());
  if (isRight) right++;
  if (i < 3) console.log(`${spell(word)} -> ${spell(answer)} ${isRight ? "right" : "wrong"}`);
}
console.log(`${right} of 20 words are right`);
