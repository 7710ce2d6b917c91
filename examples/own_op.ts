// An op of your own: squared ReLU, forward and backward, written in TypeScript. It reads and writes the device's memory from the
// host, so it is right on every device and slow on a GPU. reluSquared() is the same with kernels; CONTRIBUTING.md says how an
// op gets them. The model around it predicts each byte of a text from the one before.
//
//   deno run -q -P=sample examples/own_op.ts [STEPS]     200 steps, 5 seconds on two cores
import {
  AdamW,
  backward,
  claim,
  copyToDevice,
  embedding,
  empty,
  endStep,
  fixed,
  grad,
  linear,
  linearCrossEntropy,
  open,
  param,
  Parameters,
  readFloats,
  record,
  type Tensor,
  writeFloats,
} from "../mod.ts";

/** y = max(x, 0)^2, element by element. x (...) -> (...) */
export function squaredRelu(x: Tensor): Tensor {
  const values = x.toArray(), out = empty(x.shape);
  writeFloats(out.address, values.map((v) => Math.max(v, 0) ** 2), "act");
  return record("squaredRelu", out, [x], () => {
    const dout = readFloats(grad(out), out.size, "act");
    const dx = dout.map((d, i) => d * 2 * Math.max(values[i]!, 0));
    if (claim(x)) readFloats(grad(x), x.size, "act").forEach((d, i) => dx[i]! += d); // another reader of x was here before
    writeFloats(grad(x), dx, "act");
  });
}

const V = 256, C = 64, F = 256, N = 512; // bytes, channels, hidden channels, bytes in a batch

/** Bytes (N) -> mean cross entropy of the next ones (1). */
function loss(w: Record<"embed" | "up" | "down", Tensor>, idx: Tensor, targets: Tensor): Tensor {
  const x = embedding(idx, w.embed); // (N, C)
  const hidden = squaredRelu(linear(x, w.up)); // (N, F)
  const y = linear(hidden, w.down, x); // (N, C)
  return linearCrossEntropy(y, w.embed, targets, { vocab_size: V, head_chunk: N, grad_scale: 1 });
}

function train(steps: number): void {
  open("cpu");
  const model = {
    embed: param([V, C], { std: 0.1 }),
    up: param([F, C], { std: 0.1 }),
    down: param([C, F], { std: 0.1 }),
  };
  const parameters = new Parameters(model, { seed: 1, train: true });
  const optimizer = new AdamW(parameters, {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    grad_clip: 1,
  });
  const text = Int32Array.from(Deno.readFileSync(new URL("../CONTRIBUTING.md", import.meta.url)));
  const idx = fixed([N], "i32", "inputs"), targets = fixed([N], "i32", "inputs");
  for (let step = 0; step < steps; step++) {
    const start = step * N % (text.length - N);
    copyToDevice(idx.address, text.slice(start, start + N));
    copyToDevice(targets.address, text.slice(start + 1, start + N + 1));
    const mean = loss(model, idx, targets);
    optimizer.addLoss(mean, 1, true);
    backward(mean);
    endStep();
    optimizer.step(1e-2);
    if ((step + 1) % 50 === 0 || step + 1 === steps) {
      console.log(`step ${step + 1}: loss ${optimizer.result().loss.toFixed(3)}`);
    }
  }
}

if (import.meta.main) train(Number(Deno.args[0] ?? 200));
