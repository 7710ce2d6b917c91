// What ops do together: gradients that meet in one buffer, memory that is used twice; then steps, whose memory repeats.
import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { add, attention, embedding, linear, linearCrossEntropy, rmsnorm, rope, swiglu } from "./ops.ts";
import { AdamW, Parameters } from "./optim.ts";
import * as ref from "./testing_reference.ts";
import { backward, checkpoint, claim, endStep, give, grad, isRecording, noGrad } from "./tape.ts";
import { memoryByKind, take, takenBy } from "./memory.ts";
import { fixed, param, type Tensor, tensor, writeFloats } from "./tensor.ts";
import {
  close,
  type Data,
  forwardBackward,
  gradient,
  headSize,
  integers,
  leaf,
  normal,
  normalWeight,
  openTestDevice,
  plus,
  rotations,
  tokens,
  weight,
} from "./testing.ts";

openTestDevice();
const EPS = 1e-6; // of rmsnorm

// ---- gradients that meet in one buffer

/** Backpropagates through linearCrossEntropy() where that is what f ends with, else from a fixed gradient of the output. */
function parameterGradient(f: (w: Tensor) => Tensor, w: Tensor): Float32Array {
  const y = f(w);
  if (y.dtype === "act") {
    claim(y);
    writeFloats(grad(y), normal(y.size, 5), "act");
  }
  backward(y);
  endStep();
  return gradient(w);
}

Deno.test("the gradient of a parameter overwrites at first what its memory held, and adds up from then on", () => {
  const N = 5, C = 6, ids = tokens([N], integers(N, 4, 1)), targets = tokens([N], integers(N, 4, 2));
  const head = { vocab_size: 4, head_chunk: 2, grad_scale: 1 }, x = () => tensor([N, C], normal(N * C, 3));
  const ops: [number[], (w: Tensor) => Tensor][] = [
    [[4, C], (w) => embedding(ids, w)],
    [[C], (w) => rmsnorm(x(), w, EPS)],
    [[4, C], (w) => linear(x(), w)],
    [[64, C], (w) => linearCrossEntropy(x(), w, targets, head)], // three chunks: even the first micro-step adds
  ];
  for (const [shape, op] of ops) {
    const w = normalWeight(shape, 4).t;
    writeFloats(grad(w), new Float32Array(w.size).fill(NaN), "f32");
    const first = parameterGradient(op, w);
    assert(first.some((g) => g !== 0) && first.every(Number.isFinite));
    close(parameterGradient(op, w), first.map((g) => 2 * g), 1, "two micro-steps");
    w.buf.gradIsEmpty = true; // as optimizer.step() leaves it
    assertEquals(parameterGradient(op, w), first);
  }
});

Deno.test("a gradient through a view and one around it meet", () => {
  const x = tensor([2, 3], [1, 2, 3, 4, 5, 6], true), w = weight([2, 2], Float32Array.of(1, 2, 3, 4));
  // y = x.view(3, 2) w^T, out = y + x: dx = dout + dout w
  const f = () => add(linear(x.view(3, 2), w).view(2, 3), x);
  const { out, grads } = forwardBackward(f, [x, w], Float32Array.of(1, 1, 1, 1, 1, 1));
  assertEquals([...out], [1 + 5, 2 + 11, 3 + 11, 4 + 25, 5 + 17, 6 + 39]);
  assertEquals([...grads[0]!], [5, 7, 5, 7, 5, 7]);
  assertEquals([...grads[1]!], [9, 12, 9, 12]);
});

Deno.test("a weight used twice gets both gradients", () => {
  const C = 7, N = 5, x = leaf([N, C], 1), w = normalWeight([C, C], 2), dout = normal(N * C, 3);
  const { out, grads } = forwardBackward(() => linear(linear(x.t, w.t), w.t), [x.t, w.t], dout);
  const hidden = ref.linear(x.values, w.values, C), second = ref.linearBackward(dout, hidden, w.values, C);
  const first = ref.linearBackward(second.dx, x.values, w.values, C);
  close(out, ref.linear(hidden, w.values, C), C, "out", 2);
  close(grads[0]!, first.dx, C, "dx", 2);
  close(grads[1]!, plus(first.dw, second.dw), C, "dw", 2);
});

Deno.test("an embedding tied to the head gets both gradients", () => {
  const V = 11,
    C = 7,
    N = 6,
    w = normalWeight([64, C], 1),
    ids = integers(N, V, 2),
    targets = integers(N, V, 3);
  const head = { vocab_size: V, head_chunk: 4, grad_scale: 1 };
  const dw = parameterGradient(
    (w) => linearCrossEntropy(embedding(tokens([N], ids), w), w, tokens([N], targets), head),
    w.t,
  );
  const x = ref.embedding(ids, w.values, C);
  const expected = ref.linearCrossEntropy(x, w.values, targets, { V, grad_scale: 1 });
  const rows = ref.embeddingBackward(expected.dx, ids, 64, C);
  close(dw, plus(expected.dw, rows), C * C, "dw", 2);
});

Deno.test("a buffer read by three ops, as residual too, gets all gradients", () => {
  const C = 7, N = 5, x = leaf([N, C], 1), dout = normal(N * C, 2), norm = normalWeight([C], 3);
  const [w0, w1, w2] = [4, 5, 6].map((seed) => normalWeight([C, C], seed)) as [Data, Data, Data];
  const { out, grads } = forwardBackward(
    () => {
      const h = linear(x.t, w0.t);
      const a = linear(rmsnorm(h, norm.t, EPS), w1.t, h); // h + ...: read by rmsnorm and as residual
      return linear(h, w2.t, a); // a + ...: read once more
    },
    [x.t, w0.t],
    dout,
  );

  const h = ref.linear(x.values, w0.values, C), n = ref.rmsnorm(h, norm.values, EPS);
  const a = ref.linear(n, w1.values, C, h), dn = ref.linearBackward(dout, n, w1.values, C).dx;
  const through = ref.rmsnormBackward(dn, h, norm.values, EPS).dx;
  const beside = ref.linearBackward(dout, h, w2.values, C).dx;
  const dh = plus(through, beside, dout);
  const expected = ref.linearBackward(dh, x.values, w0.values, C);
  close(out, ref.linear(h, w2.values, C, a), C, "out", 3);
  close(grads[0]!, expected.dx, C, "dx", 4);
  close(grads[1]!, expected.dw, C, "dw", 4);
});

Deno.test("add() of a tensor to itself doubles the gradient", () => {
  const x = leaf([5], 1), dout = normal(5, 2);
  const { grads } = forwardBackward(() => add(x.t, x.t), [x.t], dout);
  assertEquals(grads[0], dout.map((d) => 2 * d));
});

// ---- memory that is used twice: swiglu's gradient takes the place of its input, rope turns its input in place

Deno.test("swiglu() keeps its input for another reader", () => {
  const N = 5, F = 6, x = leaf([N, 4], 1), w = normalWeight([2 * F, 4], 2), w2 = normalWeight([F, 2 * F], 3);
  const dout = normal(N * F, 4);
  const { grads } = forwardBackward(
    () => {
      const gate_up = linear(x.t, w.t);
      const read = linear(gate_up, w2.t); // its backward pass, which needs gate_up, comes after swiglu's
      return add(read, swiglu(gate_up));
    },
    [x.t, w2.t],
    dout,
  );
  const gate_up = ref.linear(x.values, w.values, 4),
    read = ref.linearBackward(dout, gate_up, w2.values, 2 * F);
  const dgate_up = plus(ref.swigluBackward(dout, gate_up, F), read.dx);
  close(grads[0]!, ref.linearBackward(dgate_up, x.values, w.values, 4).dx, F, "dx", 3);
  close(grads[1]!, read.dw, N, "dw2", 2);
});

Deno.test("swiglu() of a sum hands its gradient on to all terms", () => {
  // As in a low-rank update of gate and up: the gradient that took the place of the sum moves on to one of its terms.
  const N = 6, F = 4, C = 8, dout = normal(N * F, 2);
  for (const how of ["add", "residual"]) {
    const x = leaf([N, C], 1);
    const [w0, w1, w2] = [3, 4, 5].map((seed) => normalWeight([2 * F, C], seed)) as [Data, Data, Data];
    const sum = (a: Tensor) =>
      how === "add"
        ? add(add(a, linear(x.t, w1.t)), linear(x.t, w2.t))
        : linear(x.t, w2.t, linear(x.t, w1.t, a));
    const inputs = [x.t, w0.t, w1.t, w2.t];
    const { grads } = forwardBackward(() => swiglu(sum(linear(x.t, w0.t))), inputs, dout);
    const gate_up = plus(...[w0, w1, w2].map((w) => ref.linear(x.values, w.values, C)));
    const dgate_up = ref.swigluBackward(dout, gate_up, F);
    const terms = [w0, w1, w2].map((w) => ref.linearBackward(dgate_up, x.values, w.values, C));
    close(grads[0]!, plus(...terms.map(({ dx }) => dx)), 3 * C, `dx, ${how}`, 2);
    terms.forEach(({ dw }, i) => close(grads[1 + i]!, dw, N, `dw${i}, ${how}`, 3));
  }
});

Deno.test("swiglu() of attention leaves the output that attention's backward pass reads", () => {
  const D = headSize(8), size = { B: 1, T: 5, H: 2, K: 1, D };
  const HEADS = { n_head: 2, n_kv_head: 1, head_dim: D };
  const x = leaf([1, 5, 4], 1), w = normalWeight([4 * D, 4], 2);
  const dout = normal(5 * D, 3);
  const { grads } = forwardBackward(
    () => swiglu(attention(linear(x.t, w.t), HEADS)),
    [x.t],
    dout,
  );
  const qkv = ref.linear(x.values, w.values, 4), y = ref.attention(qkv, size);
  const dqkv = ref.attentionBackward(ref.swigluBackward(dout, y, D), qkv, size);
  close(grads[0]!, ref.linearBackward(dqkv, x.values, w.values, 4).dx, 32, "dx", 4);
});

Deno.test("rope() refuses a tensor that another op has read", () => {
  const H = { n_head: 1, n_kv_head: 1, head_dim: 8 }, table = rotations(5, 8).t;
  const qkv = tensor([1, 5, 24], normal(5 * 24, 1), true);
  swiglu(qkv);
  assertThrows(
    () => rope(qkv, table, H),
    Error,
    "rope: qkv (1,5,24) is turned in place, but another op has read it",
  );
  noGrad(() => rope(qkv, table, H)); // nobody will ask for the values again
  endStep();
});

Deno.test("rmsnorm() of an input without gradient leaves no gradient behind", () => {
  const x = fixed([2, 3], "act", "inputs"), w = normalWeight([3], 1);
  writeFloats(x.address, normal(6, 2), "act");
  const { dw } = ref.rmsnormBackward(new Float64Array(6).fill(1), x.toArray(), w.values, EPS);
  for (let step = 0; step < 2; step++) {
    w.t.buf.gradIsEmpty = true;
    const { grads } = forwardBackward(() => rmsnorm(x, w.t, EPS), [w.t], new Float32Array(6).fill(1));
    close(grads[0]!, dw, 3, "dw", 2);
    assertEquals(x.buf.grad, undefined);
  }
});

// ---- checkpoint: activations made again

/** A block with a residual, one without, and their parameters. */
function smallBlock(C: number) {
  const norm = normalWeight([C], 1).t, up = normalWeight([2 * C, C], 2).t, down = normalWeight([C, C], 3).t;
  const f = (x: Tensor) => linear(swiglu(linear(rmsnorm(x, norm, EPS), up)), down, x);
  const g = (x: Tensor) => linear(swiglu(linear(rmsnorm(x, norm, EPS), up)), down);
  return { f, g, parameters: [norm, up, down] };
}

Deno.test("checkpoint() changes no bit of output or gradients, nested or not", () => {
  const C = 16, N = 9, dout = normal(N * C, 4), { f, g, parameters } = smallBlock(C);
  const each = (x: Tensor) => checkpoint(g, checkpoint(f, checkpoint(g, x)));
  const [plain, once, nested] = [
    (x: Tensor) => g(f(g(x))),
    each,
    (x: Tensor) => checkpoint(each, x),
  ].map((run) => {
    parameters.forEach((w) => w.buf.gradIsEmpty = true);
    const x = leaf([N, C], 5).t;
    return forwardBackward(() => run(x), [x, ...parameters], dout);
  });
  assertEquals(once, plain);
  assertEquals(nested, plain);
});

Deno.test("backward() tells of each parameter once its gradient is whole, what checkpoint() reads too", () => {
  const C = 16, N = 9, { f, g, parameters } = smallBlock(C), names = ["norm", "up", "down", "first", "last"];
  const first = normalWeight([C, C], 6).t,
    last = normalWeight([C, C], 7).t,
    all = [...parameters, first, last];
  const y = linear(f(checkpoint(g, linear(leaf([N, C], 5).t, first))), last);
  claim(y);
  writeFloats(grad(y), normal(N * C, 4), "act");
  const told: [string, Float32Array][] = [], ops: number[] = [];
  let n = 0;
  backward(y, {
    finished: (buf) => {
      const i = all.findIndex((t) => t.buf === buf);
      told.push([names[i]!, gradient(all[i]!)]);
      ops.push(n);
    },
    afterOp: () => n++,
  });
  assertEquals(told.map(([name]) => name), ["last", "norm", "up", "down", "first"]); // f and g share their parameters
  assertEquals([ops[0], ops.at(-1)], [1, n]);
  for (const [name, values] of told) assertEquals(values, gradient(all[names.indexOf(name)]!), name);
  endStep();
});

Deno.test("checkpoint() leaves its input for other readers", () => {
  const C = 6, N = 5, x = leaf([N, 4], 1), w = normalWeight([2 * C, 4], 2), w2 = normalWeight([C, 2 * C], 3);
  const dout = normal(N * C, 4);
  const { grads } = forwardBackward(
    () => {
      const gate_up = linear(x.t, w.t), read = linear(gate_up, w2.t);
      return add(read, checkpoint(swiglu, gate_up)); // swiglu may not write its gradient over gate_up
    },
    [x.t, w2.t],
    dout,
  );
  const gate_up = ref.linear(x.values, w.values, 4),
    read = ref.linearBackward(dout, gate_up, w2.values, 2 * C);
  const dgate_up = plus(ref.swigluBackward(dout, gate_up, C), read.dx);
  close(grads[0]!, ref.linearBackward(dgate_up, x.values, w.values, 4).dx, 2 * C, "dx", 3);
  close(grads[1]!, read.dw, N, "dw2", 2);
});

Deno.test("checkpoint() of an input without gradient gives its parameters theirs, and is not recorded without any", () => {
  const { f, g, parameters } = smallBlock(8), dout = normal(16, 4);
  const [plain, once] = [(x: Tensor) => g(f(x)), (x: Tensor) => g(checkpoint(f, x))].map((run) => {
    parameters.forEach((w) => w.buf.gradIsEmpty = true);
    const x = tensor([2, 8], normal(16, 1));
    return forwardBackward(() => run(x), parameters, dout);
  });
  assertEquals(once, plain);
  parameters.forEach((w) => w.buf.needsGrad = false);
  assertEquals(checkpoint(f, tensor([2, 8], normal(16, 1))).buf.needsGrad, false);
  endStep();
});

Deno.test("backward() takes a view of the loss and leaves the loss readable", () => {
  const w = normalWeight([64, 5], 1).t,
    x = tensor([3, 5], normal(15, 2), true),
    targets = tokens([3], [1, 2, 3]);
  const loss = linearCrossEntropy(x, w, targets, { vocab_size: 7, head_chunk: 2, grad_scale: 1 });
  const before = loss.toArray();
  backward(loss.view(1, 1));
  for (let i = 0; i < 9; i++) writeFloats(take(4).address, Float32Array.of(NaN), "f32"); // memory that is free by now
  assertEquals(loss.toArray(), before);
  assert(gradient(w).some((g) => g !== 0));
  endStep();
});

// ---- steps

/** A small model with every op: its weights, and a micro-step that returns the loss. */
function smallModel() {
  const V = 11, C = 16, N = 2 * 17, D = headSize(8), H = { n_head: 2, n_kv_head: 1, head_dim: D };
  const w = {
    table: param([64, C], { std: 1, rows: V }),
    norm: param([C], { value: 1 }),
    qkv: param([4 * D, C], { std: 0.3 }),
    o: param([C, 2 * D], { std: 0.3 }),
    gate_up: param([2 * C, C], { std: 0.3 }),
    unused: param([5, 3], { std: 1 }),
  };
  const parameters = new Parameters(w, { seed: 1, train: true });
  const idx = tokens([2, 17], integers(N, V, 1)),
    targets = tokens([2, 17], integers(N, V, 2)),
    turns = rotations(17, D).t;
  const loss = (grad_scale = 1) => {
    const x = embedding(idx, w.table);
    const y = linear(attention(rope(linear(rmsnorm(x, w.norm, EPS), w.qkv), turns, H), H), w.o, x);
    const z = add(y, swiglu(add(linear(y, w.gate_up), linear(x, w.gate_up))));
    return linearCrossEntropy(z, w.table, targets, { vocab_size: V, head_chunk: 10, grad_scale });
  };
  return { w, parameters, loss };
}

/** Memory taken so far, in bytes. */
function allocated(): number {
  return Object.values(memoryByKind()).reduce((a, b) => a + b, 0);
}

Deno.test("addresses repeat and nothing allocates from the second step on", () => {
  const { loss } = smallModel();
  const step = () => {
    const y = loss();
    const taken = take(64); // an address that depends on everything taken before
    backward(y);
    endStep();
    return [y.address, taken.address, allocated()];
  };
  step(); // finds out how much a step needs
  const first = step();
  assertEquals(step(), first);
  noGrad(() => loss()); // evaluation between steps
  endStep();
  const before = allocated();
  assertEquals(step().slice(0, 2), first.slice(0, 2));
  assertEquals(allocated(), before);
});

Deno.test("backward() gives every block of step memory back once", () => {
  const { loss } = smallModel();
  const blocks = () => {
    const y = loss();
    backward(y);
    const sizes = [256, 1024, 2304, 4352, 8704],
      taken = sizes.flatMap((bytes) => Array.from({ length: 20 }, () => take(bytes)));
    const addresses = taken.map(({ address }) => address).concat(y.address);
    endStep();
    return { addresses, distinct: new Set(addresses).size };
  };
  for (let step = 0; step < 2; step++) {
    const { addresses, distinct } = blocks();
    assertEquals(distinct, addresses.length, "two tensors share a block");
  }
});

Deno.test("noGrad() records nothing and restores what was before, errors included", () => {
  const w = normalWeight([3, 3], 1).t, x = tensor([2, 3], normal(6, 2));
  const y = noGrad(() => linear(x, w));
  assertEquals(y.buf.needsGrad, false);
  assertThrows(() => noGrad(() => noGrad(() => linear(tensor([2, 4], normal(8, 1)), w))), RangeError);
  assertEquals(isRecording(), true);
  assertEquals(linear(x, w).buf.needsGrad, true);
  endStep();
});

Deno.test("endStep() forgets a forward pass that had no backward pass", () => {
  const { w, loss } = smallModel();
  linear(tensor([2, 16], normal(32, 1)), w.qkv);
  endStep();
  const y = loss();
  backward(y); // would fail on the forgotten op, whose output has no gradient
  endStep();
  assert(gradient(w.qkv).every(Number.isFinite));
});

Deno.test("micro-steps add up: two halves of a batch give the gradient of the whole", () => {
  const N = 6, C = 7, V = 9, ids = integers(N, V, 1), targets = integers(N, V, 2);
  const w = normalWeight([64, C], 3).t;
  const run = (from: number, n: number, grad_scale: number) => {
    const part = (all: number[]) => tokens([n], all.slice(from, from + n));
    const x = embedding(part(ids), w);
    backward(linearCrossEntropy(x, w, part(targets), { vocab_size: V, head_chunk: 4, grad_scale }));
    endStep();
  };
  run(0, N, 1);
  const whole = gradient(w);
  w.buf.gradIsEmpty = true;
  run(0, 3, 1 / 2);
  run(3, 3, 1 / 2);
  close(gradient(w), whole, C * C, "dw", 2);
});

Deno.test("optimizer.step() takes the gradient of an unused parameter as zero", () => {
  const { w, parameters, loss } = smallModel();
  const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0, grad_clip: 0 };
  const optimizer = new AdamW(parameters, options), before = w.unused.toArray(), used = w.qkv.toArray();
  for (const t of [w.unused, w.qkv]) writeFloats(grad(t), new Float32Array(t.size).fill(NaN), "f32"); // left from another step
  const y = loss();
  optimizer.addLoss(y, 1, true);
  backward(y);
  optimizer.step(0.1);
  endStep();
  assertEquals(gradient(w.unused), new Float32Array(15));
  assertEquals(w.unused.toArray(), before);
  assertNotEquals(w.qkv.toArray(), used);
  assertEquals(optimizer.result().skipped, 0);
});

Deno.test("grad() and backward() name what has no gradient", () => {
  assertThrows(() => grad(tensor([2, 3], normal(6, 1))), Error, "internal: (2,3)  has no gradient");
  endStep();
});

Deno.test("noGrad() inside of noGrad() does not turn recording on", () => {
  noGrad(() => {
    noGrad(() => 0);
    assertEquals(isRecording(), false);
  });
  assertEquals(isRecording(), true);
});

Deno.test("give() takes back the block of a gradient that nobody wants", () => {
  const x = tensor([4], normal(4, 1));
  const { blocks } = takenBy(() => give(x, take(1024)));
  assertEquals(blocks.size, 0);
  endStep();
});

Deno.test("checkpoint() holds nothing of its forward pass but the output", () => {
  const C = 8, w = normalWeight([C, C], 1), x = leaf([3, C], 2);
  const { result, blocks } = takenBy(() => checkpoint((x) => linear(linear(x, w.t), w.t), x.t));
  assertEquals([...blocks], [result.buf.block]);
  endStep();
});
