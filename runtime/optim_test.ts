import { assert, assertAlmostEquals, assertEquals, assertNotEquals } from "@std/assert";
import * as k from "../ffi/kernels.ts";
import { copyToHost, device } from "../ffi/library.ts";
import { AdamW, type AdamWOptions, Parameters, type StepResult } from "./optim.ts";
import * as ref from "./testing_reference.ts";
import { readSafetensors, toFloat32 } from "./safetensors.ts";
import { take } from "./memory.ts";
import { empty, param, readFloats, type Tensor, writeFloats } from "./tensor.ts";
import { endStep, grad } from "./tape.ts";
import {
  assertClose,
  close,
  localExchanges,
  normal,
  openTestDevice,
  philox,
  readMasters,
  uniform,
  type Values,
  writeMasters,
} from "./testing.ts";

openTestDevice();

const OPTIONS: AdamWOptions = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 };

/** A loss as linearCrossEntropy() returns it: float32 whatever the act type. */
function lossOf(value: number): Tensor {
  const t = empty([1], "f32");
  writeFloats(t.address, Float32Array.of(value), "f32");
  return t;
}

/** A matrix and a vector with the given values, and their optimizer. */
function setUp(values: { matrix: Values; vector: Values }, options = OPTIONS) {
  const model = { matrix: param([7, 13], { value: 0 }), vector: param([13], { value: 0 }) };
  const parameters = new Parameters(model, { seed: 0, train: true });
  for (const { name, offset } of parameters.slots) {
    writeMasters(parameters, offset, values[name as keyof typeof model]);
  }
  const optimizer = new AdamW(parameters, options), zero = lossOf(0);
  const step = (grads: Values[], learning_rate: number, loss: Tensor = zero) => {
    [model.matrix, model.vector].forEach((t, i) => {
      writeFloats(grad(t), grads[i]!, "f32");
      t.buf.gradIsEmpty = false;
    });
    optimizer.addLoss(loss, 1, true);
    optimizer.step(learning_rate);
    return optimizer.result();
  };
  return { model, parameters, optimizer, step };
}

/** The float32 values that the optimizer keeps for each parameter. */
function master({ parameters }: { parameters: Parameters }): Float32Array[] {
  return parameters.slots.map(({ offset, size }) => readMasters(parameters, offset, size));
}

/** Weights, master weights and moments as one list of numbers. */
function everything({ parameters, optimizer }: { parameters: Parameters; optimizer: AdamW }): Float32Array[] {
  const { total } = parameters;
  return [
    readFloats(parameters.weights.address, total, "act"),
    readMasters(parameters, 0, total),
    ...[optimizer.m, optimizer.v].map(({ address }) => readFloats(address, total, "f32")),
  ];
}

function start() {
  return { matrix: normal(91, 1), vector: normal(13, 2) };
}

// ---- float32 masters beside bfloat16 weights

const word = new Uint32Array(1), single = new Float32Array(word.buffer);

/** The bits of the bfloat16 next to a float, of two as near the even one, by its distances from both; 0x7fff for a NaN. */
function bfloat16(bits: number): number {
  word[0] = bits;
  if (Number.isNaN(single[0])) return 0x7fff;
  const below = bits >>> 16, above = (bits & 0xffff) - 0x8000;
  return above > 0 || above === 0 && below % 2 === 1 ? below + 1 : below;
}

/** The 16 bits of each weight of a model. */
function weightBits({ weights, total }: Parameters): Uint16Array {
  const bits = new Uint8Array(2 * total);
  copyToHost(bits, weights.address);
  return new Uint16Array(bits.buffer);
}

/** Asserts that masters and weights are these bits and what they are rounded, one NaN being as good as another. */
function requireMasters(
  parameters: Parameters,
  element: number,
  bits: Uint32Array<ArrayBuffer>,
  what: string,
): void {
  const floats = new Float32Array(bits.buffer), weights = weightBits(parameters);
  const masters = readMasters(parameters, element, bits.length), found = new Uint32Array(masters.buffer);
  const wrong = bits.findIndex((b, i) =>
    found[i] !== b && !(Number.isNaN(floats[i]) && Number.isNaN(masters[i])) ||
    weights[element + i] !== bfloat16(b)
  );
  assertEquals(
    wrong,
    -1,
    `${what}: ${bits[wrong]} is ${found[wrong]} with the weight ${weights[element + wrong]}`,
  );
}

Deno.test({
  name:
    "float32 masters come back bit by bit from bfloat16 weights and the rest, and the weights are they rounded",
  ignore: device.act === "f32",
  fn() {
    const positive = [0x0000, 0x0001, 0x007f, 0x0080, 0x3f80, 0x3f81, 0x7f7f, 0x7f80, 0x7f81, 0x7fff];
    const halves = positive.flatMap((half) => [half, half | 0x8000]); // zero, denormal, ordinary, the largest, infinity, NaN; of both signs
    const lower = Array.from({ length: 0x10000 }, (_, i) => i); // every one
    for (const upper of halves) {
      const bits = Uint32Array.from(lower, (low) => upper * 0x10000 + low),
        floats = new Float32Array(bits.buffer);
      const parameters = new Parameters({ w: param([bits.length], { value: 0 }) }, { seed: 0, train: true });
      writeMasters(parameters, 0, floats);
      requireMasters(parameters, 0, bits, `upper half ${upper}`);
    }
  },
});

Deno.test({
  name: "AdamW keeps the bits that whole float32 masters have after many steps, halfway ones too",
  ignore: device.act === "f32",
  fn() {
    // Without decay of means and weights, and for gradients of one bit each, every operation of the update is exact but for
    // those that are rounded here: nothing depends on which of them the compiler fuses.
    const n = 5000, rows = 8, options = { beta1: 0, beta2: 0, eps: 0.5, weight_decay: 0, grad_clip: 0 };
    const model = { matrix: param([rows, n], { value: 0 }), vector: param([n + 3], { value: 0 }) };
    const parameters = new Parameters(model, { seed: 0, train: true }),
      optimizer = new AdamW(parameters, options);
    const sizes = parameters.slots.map(({ size }) => size), u = uniform(5);
    const masters = sizes.map((size) => {
      const bits = Uint32Array.from({ length: size }, () => 0x3c000000 + Math.floor(u() * 0x02000000));
      bits.forEach((b, i) => { // a quarter lie within two of halfway, of both signs
        if (i % 4 === 0) bits[i] = (b & 0xffff0000) + 0x8000 + Math.floor(u() * 5) - 2;
        if (i % 3 === 0) bits[i]! |= 0x80000000;
      });
      return new Float32Array(bits.buffer);
    });
    parameters.slots.forEach(({ offset }, i) => writeMasters(parameters, offset, masters[i]!));
    let ties = 0;
    for (let step = 0; step < 12; step++) {
      const learning_rate = 2 ** -(25 + step % 6); // from some of the last bits of a master to less than one
      Object.values(model).forEach((t, i) => {
        const g = Float32Array.from(
          { length: sizes[i]! },
          () => (u() < 0.5 ? -1 : 1) * 2 ** Math.floor(4 * u() - 2),
        );
        writeFloats(grad(t), g, "f32");
        t.buf.gradIsEmpty = false;
        const f = Math.fround, w = masters[i]!;
        g.forEach((d, j) => w[j] = f(w[j]! - learning_rate * f(d / f(Math.sqrt(d * d) + options.eps))));
      });
      optimizer.addLoss(lossOf(0), 1, true);
      optimizer.step(learning_rate);
      parameters.slots.forEach(({ offset }, i) => {
        const bits = new Uint32Array(masters[i]!.buffer);
        ties += bits.reduce((sum, b) => sum + ((b & 0xffff) === 0x8000 ? 1 : 0), 0);
        requireMasters(parameters, offset, bits, `step ${step}`);
      });
    }
    assert(ties > 1000, `${ties} masters were halfway`);
  },
});

// ---- AdamW

Deno.test("AdamW agrees with float64 over 10 steps, with clipping and without", () => {
  for (const grad_clip of [1, 0]) {
    const options = { ...OPTIONS, grad_clip }, values = start(), ours = setUp(values, options);
    const states = [values.matrix, values.vector].map((v) => ({
      weight: Float64Array.from(v),
      m: new Float64Array(v.length),
      v: new Float64Array(v.length),
    }));
    for (let t = 1; t <= 10; t++) {
      const scale = [3, 0.01, 0.5, 0.05, 1e-4][t % 5]!, learning_rate = 1e-2 / t; // norms above the clip and below
      const grads = [normal(91, 10 + t), normal(13, 30 + t)].map((g) => g.map((x) => x * scale));
      const norm = Math.hypot(...grads.flatMap((g) => [...g]));
      const clip = grad_clip > 0 ? Math.min(1, grad_clip / norm) : 1;
      states.forEach((state, i) => {
        const weight_decay = i === 0 ? options.weight_decay : 0; // the vector does not decay
        ref.adamw(state, grads[i]!.map((g) => g * clip), { ...options, t, learning_rate, weight_decay });
      });
      const { grad_norm, updates, skipped, ...done } = ours.step(grads, learning_rate);
      assertEquals(done.learning_rate, Math.fround(learning_rate));
      assertAlmostEquals(grad_norm, norm, 2 ** -22 * norm);
      assertEquals([updates, skipped], [t, 0]);
      // Each step rounds the weight once, and the update, which is about one learning rate, a few times.
      const rtol = 6 * t * 2 ** -24, atol = rtol * 1e-2;
      master(ours).forEach((w, i) => assertClose(w, states[i]!.weight, { rtol, atol }, `step ${t}`));
    }
  }
});

Deno.test("AdamW agrees with PyTorch's over the steps of the golden file", () => {
  const file = readSafetensors(`${import.meta.dirname}/../tests/golden/adamw.safetensors`);
  const values = (name: string) => toFloat32(file.read(name), file.tensors.get(name)!.dtype).slice();
  const optimizer = JSON.parse(file.metadata.about!).optimizer as { betas: [number, number] } & AdamWOptions;
  const [beta1, beta2] = optimizer.betas;
  const ours = setUp(
    { matrix: values("start.matrix"), vector: values("start.vector") },
    { ...optimizer, beta1, beta2 },
  );
  const names = ["matrix", "vector"], sizes = [91, 13];
  let moved = 0; // learning rates so far: about what the updates have added up to
  values("learning_rates").forEach((rate, step) => {
    const part = (name: string, i: number) => values(name).slice(step * sizes[i]!, (step + 1) * sizes[i]!);
    ours.step(names.map((name, i) => part(`grad.${name}`, i)), rate);
    moved += rate;
    // PyTorch adds 1e-6 to the norm it divides by, which is as much of every update; the rest is rounding, as above.
    const rtol = 6 * (step + 1) * 2 ** -24, atol = moved * (1e-6 + rtol);
    master(ours).forEach((w, i) => {
      const expected = part(`weight64.${names[i]}`, i);
      assertClose(w, expected, { rtol, atol }, `${names[i]} after step ${step}`);
    });
  });
});

Deno.test("AdamW decays matrices and leaves vectors alone", () => {
  const values = start(), ours = setUp(values), none = [new Float32Array(91), new Float32Array(13)];
  ours.step(none, 0.5);
  close(master(ours)[0]!, values.matrix.map((w) => w * (1 - 0.5 * 0.1)), 1, "matrix");
  assertEquals(master(ours)[1], values.vector);
});

Deno.test("AdamW clips the norm of the whole gradient only where it is above grad_clip", () => {
  const grads = [normal(91, 1), normal(13, 2)], norm = Math.hypot(...grads.flatMap((g) => [...g]));
  const moments = (grad_clip: number, scale: number) => {
    const ours = setUp(start(), { ...OPTIONS, grad_clip });
    ours.step(grads.map((g) => g.map((x) => Math.fround(x * scale))), 1e-3);
    return everything(ours)[2]!;
  };
  const full = moments(0, 1);
  assertEquals(moments(norm * 1.01, 1), full);
  close(moments(norm / 2, 1), full.map((m) => m / 2), 1, "half");
  assertEquals(moments(1e-30, 1).every(Number.isFinite), true);
});

Deno.test("AdamW leaves every bit as it was when loss or gradient is not finite, counts that, and goes on", () => {
  const good = () => [normal(91, 3), normal(13, 4)], options = { ...OPTIONS, weight_decay: 0.1 };
  const withNaN = (i: number, value: number) => good().map((g, at) => at === i ? g.with(5, value) : g);
  const ours = setUp(start(), options), twin = setUp(start(), options);
  ours.step(good(), 1e-3);
  twin.step(good(), 1e-3);
  const before = everything(ours);
  const bad: [Values[], number][] = [
    [withNaN(0, NaN), 0],
    [withNaN(1, -Infinity), 0],
    [good().map((g) => g.with(0, 3e38)), 0], // the norm is too large for a float
    [good(), NaN],
    [good(), Infinity],
  ];
  bad.forEach(([grads, loss], i) => {
    const result = ours.step(grads, 1e-3, lossOf(loss));
    assertEquals([result.updates, result.skipped, result.skipped_row], [1, i + 1, i + 1]);
    assertEquals(everything(ours), before);
  });
  const after = ours.step(good(), 1e-3);
  twin.step(good(), 1e-3);
  assertEquals([after.updates, after.skipped, after.skipped_row], [2, bad.length, 0]);
  assertEquals(everything(ours), everything(twin)); // as if the bad steps had never been
});

Deno.test("AdamW skips and counts a finite gradient whose square is no float32 after clipping, or that clipping makes 0", () => {
  const rate = 1e-3, largest = Math.sqrt(3.4028234e38); // 1.8447e19
  const cases: [grad_clip: number, value: number, applied: boolean][] = [
    [0, 0.99 * largest, true],
    [0, 1.01 * largest, false], // v would be Infinity, and the weight never move again
    [1, 1e30, true], // clipped to 1
    [1e25, 1e30, false], // clipped, but not enough
    [1e-20, 3e38, false], // 1e-20 / 3e38 is 0 in float32: no update, though a finite one
  ];
  for (const [grad_clip, value, applied] of cases) {
    const ours = setUp(start(), { ...OPTIONS, weight_decay: 0, grad_clip }), before = everything(ours);
    const grads = [new Float32Array(91), new Float32Array(13).fill(value, 4, 5)];
    const { updates, skipped, skipped_row } = ours.step(grads, rate);
    const count = applied ? 1 : 0, what = `grad_clip ${grad_clip}, gradient ${value}`;
    assertEquals([updates, skipped, skipped_row], [count, 1 - count, 1 - count], what);
    const after = everything(ours);
    assert(after.every((values) => values.every(Number.isFinite)), what);
    if (!applied) assertEquals(after, before, what);
    // Adam's first step is one learning rate against the sign of the gradient.
    else assertAlmostEquals(master(ours)[1]![4]!, start().vector[4]! - rate, 1e-6, what);
  }
});

Deno.test("AdamW adds the losses of micro-steps up, and restore() puts its counters back", () => {
  const ours = setUp(start()), grads = [normal(91, 3), normal(13, 4)];
  const losses = [1, 2, 6].map((loss) => lossOf(loss));
  losses.forEach((loss, i) => ours.optimizer.addLoss(loss, 1 / 3, i === 0));
  assertAlmostEquals(ours.optimizer.result().loss, 3, 1e-6);
  ours.optimizer.addLoss(losses[1]!, 1, true);
  assertEquals(ours.optimizer.result().loss, 2);
  ours.optimizer.restore({ updates: 41, skipped: 3, skipped_row: 2 });
  const { updates, skipped, skipped_row } = ours.step(grads, 1e-3);
  assertEquals([updates, skipped, skipped_row], [42, 3, 0]);
  ours.optimizer.restore({ updates: 41, skipped: 3, skipped_row: 2 });
  const bad = ours.step(grads, 1e-3, lossOf(NaN));
  assertEquals([bad.updates, bad.skipped, bad.skipped_row], [41, 4, 3]);
  endStep();
});

// ---- Parameters

Deno.test("Parameters places matrices before vectors, aligned, with names, and counts without padding", () => {
  const model = {
    norm: param([3], { value: 1 }),
    layers: [{ w: param([2, 5], { value: 2 }) }],
    note: "text",
  };
  const p = new Parameters(model, { seed: 0, train: true });
  assertEquals(p.slots.map(({ name, offset, size }) => [name, offset, size]), [["layers.0.w", 0, 10], [
    "norm",
    64,
    3,
  ]]);
  assertEquals([p.total, p.decayed, p.count()], [128, 64, 13]);
  assertEquals([...model.layers[0]!.w.toArray(), ...model.norm.toArray()], [...Array(10).fill(2), 1, 1, 1]);
  assertEquals(model.norm.address - model.layers[0]!.w.address, BigInt(64 * (device.act === "bf16" ? 2 : 4)));
});

Deno.test("Parameters loads values, with master weights of what this rank updates, and frozen ones behind all ranks' parts", () => {
  const values: Record<string, Values> = {
    a: normal(70, 1),
    b: normal(200, 2),
    v: normal(5, 3),
    w: normal(90, 4),
  };
  const exact = (name: string, from: number, to: number) =>
    values[name]!.slice(from, to).map((x) => x * (1 + 2 ** -12));
  const load = (name: string, address: bigint) => writeFloats(address, exact(name, 0, 999), "f32");
  for (const rank of [0, 1]) {
    const model = {
      ...{ a: param([7, 10], { std: 1 }), b: param([200], { value: 1 }) },
      ...{ v: param([5], { value: 1 }), w: param([9, 10], { std: 1 }) },
    };
    const trains = (name: string) => name !== "b", ranks = { rank, world_size: 2, zero_stage: 1 };
    const p = new Parameters(model, { seed: 0, train: true, trains, load, ...ranks });
    assertEquals(p.slots.map(({ name, offset }) => [name, offset]), [["a", 0], ["w", 128], ["v", 256], [
      "b",
      384,
    ]]);
    assertEquals([p.total, p.decayed, p.trained.length, p.count(), p.count(p.trained)], [
      384,
      256,
      3,
      365,
      165,
    ]);
    assertEquals(p.weights.bytes, (384 + 256) * (device.act === "bf16" ? 2 : 4));
    for (const [name, tensor] of Object.entries(model)) { // normal() is of bfloat16, and what is more rounds away
      assertEquals(tensor.toArray(), device.act === "bf16" ? values[name] : exact(name, 0, 999), name);
      assertEquals([tensor.buf.needsGrad, tensor.buf.grad !== undefined], Array(2).fill(name !== "b"), name);
    }
    const mine = (offset: number, n: number) => readMasters(p, offset, n); // ranks have 192 elements each
    if (rank === 0) {
      assertEquals([...mine(0, 70), ...mine(128, 64)], [...exact("a", 0, 70), ...exact("w", 0, 64)]);
    } else assertEquals([...mine(192, 26), ...mine(256, 5)], [...exact("w", 64, 90), ...exact("v", 0, 5)]);
  }
});

Deno.test("Parameters starts from the seed: the same bits for the same, others for another, padded rows zero", () => {
  const values = (seed: number) => {
    const model = { a: param([40, 50], { std: 0.02, rows: 37 }), b: param([40, 50], { std: 0.02 }) };
    new Parameters(model, { seed, train: false });
    return [model.a.toArray(), model.b.toArray()] as const;
  };
  const [a, b] = values(1);
  assertEquals(values(1), [a, b]);
  assertNotEquals(values(2)[0], a);
  assertEquals(a.subarray(37 * 50), new Float32Array(3 * 50));
  assertEquals(a.subarray(0, 37 * 50).filter((x) => x === 0).length, 0);
  const alone = { a: param([40, 50], { std: 0.02, rows: 37 }), b: param([40, 50], { std: 0.02 }) };
  assertEquals(new Parameters(alone, { seed: 1, train: true }).slots.length, 2); // with float32 masters, the same bits
  assertEquals([alone.a.toArray(), alone.b.toArray()], [a, b]);
  const untrained = new Parameters({ a: param([40, 50], { std: 0.02 }) }, { seed: 1, train: false });
  assertEquals(untrained.rest, undefined);
  const equal = a.filter((x, i) => x === b[i]).length;
  assert(equal < 10, `${equal} of 2000 values of two parameters are the same`);
});

Deno.test("Parameters keeps the values of a model that has some, for any rank, and starts only what is new", () => {
  const part = () => ({ a: param([40, 50], { std: 0.02, rows: 37 }), b: param([70], { value: 1 }) });
  const old = part(), values = [normal(2000, 5), normal(70, 6)];
  new Parameters(old, { seed: 1, train: false });
  [old.a, old.b].forEach((t, i) => writeFloats(t.address, values[i]!, "act"));
  const before = [old.a.toArray(), old.b.toArray()];
  for (
    const more of [{}, { rank: 0, world_size: 2, zero_stage: 1 }, { rank: 1, world_size: 2, zero_stage: 1 }]
  ) {
    const model = { ...old, added: param([3, 2], { value: 4 }) };
    const p = new Parameters(model, { seed: 2, train: true, ...more });
    assertEquals([model.a.toArray(), model.b.toArray()], before);
    assertEquals(model.added.toArray(), new Float32Array(6).fill(4));
    const { from, to } = p.updated; // its float32 values are the same
    const wide = new Float32Array(p.total);
    for (const { tensor, offset } of p.slots) wide.set(tensor.toArray(), offset);
    assertEquals(readMasters(p, from, to - from), wide.subarray(from, to));
  }
});

Deno.test("Parameters places a tensor once that a model has twice, as a tie", () => {
  const embed = param([4, 8], { std: 1 }),
    p = new Parameters({ embed, head: embed }, { seed: 1, train: true });
  assertEquals(p.slots.map(({ name }) => name), ["embed"]);
});

// ---- random numbers

Deno.test("philox() of the tests gives the published answers of Philox 4x32-10", () => {
  const hex = (words: number[]) => words.map((word) => word.toString(16).padStart(8, "0")).join(" ");
  const ones = 0xffffffff;
  assertEquals(hex(philox([0, 0, 0, 0], [0, 0])), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  assertEquals(hex(philox([ones, ones, ones, ones], [ones, ones])), "408f276d 41c83b0e a20bc7c6 6d5451fd");
  assertEquals(
    hex(philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])), // digits of pi
    "d16cfe09 94fdcceb 5001e420 24126ea1",
  );
});

/** n normal numbers from the device. */
function initNormal(n: number, seed: bigint, offset: bigint): Float32Array {
  const block = take(4 * n);
  k.init_normal(block.address, BigInt(n), 1, seed, offset);
  const values = readFloats(block.address, n, "f32");
  endStep();
  return values;
}

Deno.test("init_normal() is Box-Muller on the words of Philox with the seed as key", () => {
  const words = (value: bigint) => [Number(value & 0xffffffffn), Number(value >> 32n)];
  const uniform = (word: number) => Math.fround(Math.fround(word) * 2 ** -32 + 2 ** -33); // in (0, 1], a float
  const seeds: [bigint, bigint][] = [[0n, 0n], [1n, 6n], [0x123456789abcdef0n, 4n * 0xffffffffn + 3n], [
    2n ** 64n - 1n,
    2n ** 40n,
  ]];
  for (const [seed, offset] of seeds) {
    const n = 37,
      expected = Array.from({ length: n }, (_, i) => {
        const at = offset + BigInt(i), place = Number(at % 4n);
        const block = philox([...words(at / 4n), 0, 0], words(seed)).map(uniform);
        const [u, v] = place < 2 ? [block[0]!, block[1]!] : [block[2]!, block[3]!];
        const angle = Math.fround(Math.fround(2 * Math.PI) * v);
        return Math.sqrt(-2 * Math.log(u)) * (place % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
      });
    assertClose(
      initNormal(n, seed, offset),
      expected,
      { rtol: 4 * 2 ** -24, atol: 4 * 2 ** -24 },
      `seed ${seed}`,
    );
  }
});

Deno.test("init_normal() gives the same numbers whatever piece is asked for, and others for other offsets", () => {
  const whole = initNormal(1000, 7n, 3n);
  assertEquals(initNormal(500, 7n, 203n), whole.slice(200, 700));
  const elsewhere = initNormal(1000, 7n, 3n + 2n ** 32n);
  assert(Math.abs(correlation(whole, elsewhere)) < 5 / Math.sqrt(1000));
  assert(Math.abs(correlation(whole, initNormal(1000, 8n, 3n))) < 5 / Math.sqrt(1000));
});

Deno.test("init_normal() is normal over a million numbers", () => {
  // Five standard deviations of each statistic: 1 / sqrt(n) of the mean, sqrt(2 / n) of the variance, sqrt(96 / n) of the
  // fourth moment (which is 3), sqrt(p (1 - p) / n) of a share p.
  const n = 1_000_000,
    z = initNormal(n, 42n, 0n),
    moment = (power: number) => z.reduce((sum, x) => sum + x ** power, 0) / n;
  const share = (from: number, to: number) =>
    z.reduce((count, x) => count + (x >= from && x < to ? 1 : 0), 0) / n;
  assertAlmostEquals(moment(1), 0, 5 / Math.sqrt(n));
  assertAlmostEquals(moment(2), 1, 5 * Math.sqrt(2 / n));
  assertAlmostEquals(moment(4), 3, 5 * Math.sqrt(96 / n));
  for (
    const [from, to, p] of [[-Infinity, -1, 0.158655], [-1, 0, 0.341345], [0, 1, 0.341345], [
      2,
      Infinity,
      0.022750,
    ]]
  ) {
    assertAlmostEquals(share(from!, to!), p!, 5 * Math.sqrt(p! * (1 - p!) / n));
  }
  assert(Math.abs(correlation(z.subarray(1), z)) < 5 / Math.sqrt(n), "neighbours are correlated");
});

function correlation(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, x, i) => sum + x * b[i]!, 0) / a.length;
}

// ---- several ranks

/** With Muon for what is in layers, whose small singular values grow with what rounding left of them. */
const MUON: AdamWOptions = { ...OPTIONS, optimizer: "muon" };
const NEAR = device.act === "f32" ? { rtol: 1e-6, atol: 1e-6 } : { rtol: 2 ** -7, atol: 1e-3 };

/** The model of the tests below on each of several ranks, after some steps; the gradients of the ranks add up to `normal`. */
async function trainTogether(
  world_size: number,
  zero_stage: number,
  { steps = 3, wish = (_rank: number): number => 1, options = OPTIONS } = {},
) {
  const exchanges = localExchanges(world_size);
  const rankOf = async (rank: number) => {
    const tensors = [
      param([40, 50], { std: 0.02, rows: 37 }),
      param([7, 13], { std: 1 }),
      param([30, 100], { std: 1 }), // lies in the parts of several ranks
      param([13], { value: 1 }),
    ];
    const [embedding, a, b, vector] = tensors, model = { embedding, layers: [{ a, b }], vector };
    const parameters = new Parameters(model, { seed: 9, train: true, rank, world_size, zero_stage });
    const onTheirWay = () => [embedding, a, vector].map((t) => t!.buf.arrive !== undefined);
    const first = readFloats(parameters.weights.address, parameters.total, "act");
    const optimizer = new AdamW(parameters, options), results = [];
    for (let step = 0; step < steps; step++) {
      if (step > 0) {
        const isAhead = options.overlap === true;
        assertEquals(onTheirWay(), [isAhead, isAhead, isAhead]);
        void embedding!.address; // the vectors come first, as a pass reads them everywhere
        assertEquals(onTheirWay(), [false, isAhead, false]);
      }
      tensors.forEach((t, i) => {
        const share = normal(t.size, 100 * step + i).map((g) =>
          rank === 0 ? g * 0.75 : g * 0.25 / (world_size - 1)
        );
        writeFloats(grad(t), world_size === 1 ? normal(t.size, 100 * step + i) : share, "f32");
        t.buf.gradIsEmpty = false;
      });
      optimizer.addLoss(lossOf(rank + 1), 1 / world_size, true);
      endStep();
      await optimizer.stepTogether(1e-2, exchanges[rank]!, step === 1 && rank > 0 ? wish(rank) : 0, {
        step_ms: 10 * step + rank,
        memory_bytes: 1e9 * (rank + 1),
        written: step === 2 ? 1 : 0,
      });
      results.push(optimizer.result());
    }
    optimizer.gathered();
    assertEquals(onTheirWay(), [false, false, false]);
    const n = parameters.slots.at(-1)!.offset + 13; // without the padding behind, which depends on the world size
    return {
      first: first.subarray(0, n),
      weights: readFloats(parameters.weights.address, parameters.total, "act").subarray(0, n),
      momentum: readFloats(optimizer.m.address, optimizer.m.bytes / 4, "f32"),
      state_bytes: optimizer.m.bytes + optimizer.v.bytes,
      rest_bytes: parameters.rest ? parameters.rest.halves.bytes + parameters.rest.ties.bytes : 0,
      total: parameters.total,
      results,
    };
  };
  return await Promise.all(Array.from({ length: world_size }, (_, rank) => rankOf(rank)));
}

Deno.test("stepTogether() of one rank is step()", async () => {
  const [alone] = await trainTogether(1, 0), [sharded] = await trainTogether(1, 1);
  assertEquals(sharded, alone);
  const ours = setUp(start()), twin = setUp(start()), grads = [normal(91, 3), normal(13, 4)];
  ours.step(grads, 1e-2);
  [twin.model.matrix, twin.model.vector].forEach((t, i) => {
    writeFloats(grad(t), grads[i]!, "f32");
    t.buf.gradIsEmpty = false;
  });
  twin.optimizer.addLoss(lossOf(0), 1, true);
  await twin.optimizer.stepTogether(1e-2, localExchanges(1)[0]!);
  assertEquals(everything(twin), everything(ours));
});

Deno.test("ranks start alike, end alike, and where one process would with the sum of their gradients", async () => {
  const alone = await Promise.all(
    [OPTIONS, MUON].map(async (options) => (await trainTogether(1, 0, { options }))[0]!),
  );
  const cases = [2, 3].flatMap((world_size) =>
    [OPTIONS, MUON].map((options, i) => ({ world_size, options, alone: alone[i]! }))
  );
  for (const { world_size, options, alone } of cases) {
    const ranks = await trainTogether(world_size, 1, { options });
    for (const { first, weights, results } of ranks) {
      assertEquals(first, alone.first);
      assertEquals(weights, ranks[0]!.weights);
      assertEquals(results, ranks[0]!.results);
      assertEquals(results.map(({ stopping }) => stopping), [0, world_size - 1, 0]);
      assertEquals(results.map(({ written }) => written), [0, 0, world_size]);
      assertEquals(
        results.map(({ ranks }) => ranks),
        [0, 1, 2].map((step) => ({
          step_ms: [0, 1, 2].slice(0, world_size).map((rank) => 10 * step + rank),
          memory_bytes: [1e9, 2e9, 3e9].slice(0, world_size),
        })),
      );
      results.forEach(({ loss, grad_norm }, i) => {
        assertAlmostEquals(loss, (world_size + 1) / 2, 1e-6);
        assertAlmostEquals(grad_norm, alone.results[i]!.grad_norm, 1e-4);
      });
      if (options === OPTIONS) close(weights, alone.weights, 1, `weights of ${world_size} ranks`, 4);
      else assertClose(weights, alone.weights, NEAR, `weights of ${world_size} ranks`);
    }
  }
});

Deno.test("a rank that has left out micro-steps has all ranks skip the update, and say so", async () => {
  for (const [zero_stage, options] of [[0, OPTIONS], [1, OPTIONS], [1, MUON]] as const) {
    const before = await trainTogether(3, zero_stage, { steps: 1, options });
    const ranks = await trainTogether(3, zero_stage, {
      steps: 2,
      wish: (rank) => rank === 1 ? Infinity : 1,
      options,
    });
    ranks.forEach(({ weights, momentum, results }, rank) => {
      assertEquals([weights, momentum], [before[rank]!.weights, before[rank]!.momentum]);
      const [{ updates, skipped }, { stopping, ...left }] = results as [StepResult, StepResult];
      assertEquals([stopping, left.updates, left.skipped], [Infinity, updates, skipped + 1]);
    });
  }
});

Deno.test("weights that come while the next pass goes on are those of one all-gather, and are waited for one by one", async () => {
  for (const world_size of [2, 3]) {
    for (const options of [OPTIONS, MUON]) {
      const ahead = await trainTogether(world_size, 1, { options: { ...options, overlap: true } });
      assertEquals(ahead, await trainTogether(world_size, 1, { options }));
    }
  }
});

Deno.test("zero_stage 1 gives the bits of zero_stage 0 with a part of its state", async () => {
  for (const [world_size, options] of [[2, OPTIONS], [3, OPTIONS], [2, MUON], [3, MUON]] as const) {
    const whole = await trainTogether(world_size, 0, { options }),
      sharded = await trainTogether(world_size, 1, { options });
    for (const [rank, { weights, results, state_bytes, rest_bytes, total }] of sharded.entries()) {
      assertEquals(weights, whole[rank]!.weights);
      assertEquals(results, whole[rank]!.results);
      assertEquals(rest_bytes * world_size, whole[rank]!.rest_bytes);
      assertEquals(rest_bytes, device.act === "f32" ? 0 : 2.125 * total / world_size);
      if (options === MUON) continue;
      assertEquals([state_bytes, whole[rank]!.state_bytes], [8 * total / world_size, 8 * total]);
    }
    const bytes = sharded.reduce((sum, { state_bytes }) => sum + state_bytes, 0), { total } = sharded[0]!;
    const second = options === MUON ? total - 128 - 3008 : total; // the moments of two matrices and their padding
    assert(bytes >= 4 * (total + second) - 1024 && bytes <= 4 * (total + second), `${bytes} bytes of state`);
  }
});
