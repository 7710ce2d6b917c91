// Muon against float64 on odd shapes; model/llama_test.ts has it against torch.optim.Muon, optim_test.ts on several ranks.
import { assert, assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { device, gemmChoices } from "../ffi/library.ts";
import { AdamW, type AdamWOptions, Parameters } from "./optim.ts";
import { grad } from "./tape.ts";
import { memoryByKind, withOwnMemory } from "./memory.ts";
import { param, readFloats, type Tensor, writeFloats } from "./tensor.ts";
import { assertClose, normal, openTestDevice, readMasters, type Values, writeMasters } from "./testing.ts";

openTestDevice();

const OPTIONS: AdamWOptions = {
  ...{ beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 0 },
  ...{ optimizer: "muon", muon_momentum: 0.9 },
};

/** a (n, m) times b (m, p), in float64. */
function product(a: number[][], b: number[][]): number[][] {
  return a.map((row) => b[0]!.map((_, j) => row.reduce((sum, x, i) => sum + x * b[i]![j]!, 0)));
}

function transposed(a: number[][]): number[][] {
  return a[0]!.map((_, j) => a.map((row) => row[j]!));
}

/** Five steps of Newton and Schulz on x by its norm, each a x + b x x^T x + c x x^T x x^T x, in float64. */
function orthogonalized(x: number[][]): number[][] {
  const norm = Math.hypot(...x.flat());
  x = x.map((row) => row.map((value) => value / norm));
  for (let step = 0; step < 5; step++) {
    const cubed = product(product(x, transposed(x)), x), fifth = product(product(x, transposed(x)), cubed);
    x = x.map((row, i) => row.map((v, j) => 3.4445 * v - 4.775 * cubed[i]![j]! + 2.0315 * fifth[i]![j]!));
  }
  return x;
}

function matrix(values: Values, rows: number): number[][] {
  const columns = values.length / rows;
  return Array.from({ length: rows }, (_, i) => Array.from(values.slice(i * columns, (i + 1) * columns)));
}

/** A model, its optimizer, and a step with these gradients. */
function setUp(model: Record<string, unknown>, tensors: Tensor[], options = OPTIONS) {
  const parameters = new Parameters(model, { seed: 7, train: true }),
    optimizer = new AdamW(parameters, options);
  const step = (grads: Values[], learning_rate: number) => {
    tensors.forEach((t, i) => {
      writeFloats(grad(t), grads[i]!, "f32");
      t.buf.gradIsEmpty = false;
    });
    optimizer.step(learning_rate);
    return optimizer.result();
  };
  return { parameters, optimizer, step };
}

Deno.test("Muon moves matrices in layers as float64 says: wide, tall, square, and each part of one for itself", () => {
  const shapes = { wide: [7, 24], tall: [24, 7], square: [16, 16], row: [1, 9], fused: [11, 8] };
  const layer = Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => [
      name,
      param(shape, { value: 0, ...(name === "fused" ? { parts: [8, 3] } : {}) }),
    ]),
  );
  const { parameters, step } = setUp({ layers: [layer] }, Object.values(layer));
  const starts = Object.values(layer).map(({ size }, i) => normal(size, i));
  parameters.slots.forEach(({ offset }, i) => writeMasters(parameters, offset, starts[i]!));
  const grads = [1, 2].map((n) => Object.values(layer).map(({ size }, i) => normal(size, 10 * n + i)));
  const rate = 0.01;
  step(grads[0]!, rate);
  const between = parameters.slots.map(({ offset, size }) => readMasters(parameters, offset, size));
  step(grads[1]!, rate);
  Object.entries(shapes).forEach(([name, [rows, columns]], i) => {
    const { offset, size } = parameters.slots[i]!, after = readMasters(parameters, offset, size);
    const mean = grads[0]![i]!.map((g, j) => 0.9 * 0.1 * g + 0.1 * grads[1]![i]![j]!); // momentum after two steps
    const ahead = mean.map((m, j) => 0.9 * m + 0.1 * grads[1]![i]![j]!);
    const all = matrix(ahead, rows!), parts = name === "fused" ? [all.slice(0, 8), all.slice(8)] : [all];
    const expected = parts.flatMap((part) => {
      const scale = 0.2 * Math.sqrt(Math.max(part.length, columns!));
      return orthogonalized(part).flat().map((x) => -rate * scale * x);
    }).map((step, j) => step - rate * 0.1 * between[i]![j]!);
    const error = Math.hypot(...expected.map((e, j) => after[j]! - between[i]![j]! - e)) /
      Math.hypot(...expected);
    // In bfloat16 PyTorch's own are up to 5% from float64 at such sizes.
    assert(error < (device.act === "f32" ? 1e-4 : 0.06), `${name}: relative error ${error}`);
  });
});

Deno.test("a matrix without a gradient only decays; a gradient that is not finite leaves weight and momentum as they were", () => {
  const runs = [true, false].map((hasBad) => {
    const w = param([6, 10], { value: 2 }), { parameters, optimizer, step } = setUp({ layers: [{ w }] }, [w]);
    step([new Float32Array(60)], 0.5);
    const decayed = Math.fround(2 * (1 - 0.5 * 0.1));
    assertClose(
      readMasters(parameters, 0, 60),
      new Float32Array(60).fill(decayed),
      { rtol: 1e-7, atol: 0 },
      "decayed",
    );
    step([normal(60, 1)], 0.5);
    if (hasBad) assertEquals(step([normal(60, 2).fill(NaN, 7, 8)], 0.5).skipped, 1);
    step([normal(60, 3)], 0.5);
    return [readMasters(parameters, 0, 60), readFloats(optimizer.m.address, 60, "f32")];
  });
  assertEquals(runs[0], runs[1]);
  assert(runs[0]!.flatMap((values) => [...values]).every((x) => Number.isFinite(x) && x !== 0));
});

Deno.test("Muon keeps momentum alone of its matrices: embeddings, what has more axes and vectors are AdamW's", () => {
  const model = {
    embed: param([10, 64], { std: 1 }),
    layers: [{
      w: param([64, 64], { std: 1 }),
      experts: param([2, 8, 8], { std: 1 }),
      norm: param([64], { value: 1 }),
    }],
  };
  withOwnMemory(() => {
    const { optimizer } = setUp(model, []), { total } = optimizer.parameters;
    assertEquals([optimizer.m.bytes, optimizer.v.bytes], [4 * total, 4 * (total - 64 * 64)]);
    assertEquals(optimizer.secondMomentAt(640 + 64 * 64), optimizer.v.address + BigInt(4 * 640)); // experts, behind embed
    assertEquals(optimizer.secondMomentAt(640), undefined);
    assert(memoryByKind().optimizer! > 0);
  });
});

Deno.test({
  name: "meetProducts() has all products of a step chosen on a GPU, and changes neither weights nor momentum",
  ignore: device.act === "f32",
  fn() {
    const w = param([24, 40], { value: 1, parts: [4, 20] }), v = param([56, 24], { value: 1 });
    const { parameters, optimizer, step } = setUp({ layers: [{ w, v }] }, [w, v]),
      before = gemmChoices().length;
    optimizer.meetProducts();
    const met = gemmChoices().length;
    assertEquals(
      readMasters(parameters, 0, parameters.total),
      new Float32Array(parameters.total).fill(1, 0, 960).fill(1, 960, 2304),
    );
    assertEquals(
      readFloats(optimizer.m.address, parameters.total, "f32"),
      new Float32Array(parameters.total),
    );
    step([normal(960, 1), normal(1344, 2)], 0.1);
    assertEquals(gemmChoices().length, met);
    assert(met > before);
  },
});

Deno.test("Muon refuses a model without matrices in layers, and parts that are not all of a matrix", () => {
  const error = assertThrows(
    () => setUp({ embed: param([4, 8], { std: 1 }), norm: param([8], { value: 1 }) }, []),
    UserError,
  );
  assertEquals(
    error.message,
    "Cannot train with Muon: it updates matrices in layers, and the weights to train have none: embed, norm; " +
      "use --optimizer=adamw",
  );
  const split = (rows: number, columns: number, parts: number[]) =>
    setUp({ layers: [{ w: param([rows, columns], { std: 1, parts }) }] }, []);
  const text = "Cannot split layers.0.w (4,8) for Muon: parts of 1,2 rows are not all of it";
  assertThrows(() => split(4, 8, [1, 2]), RangeError, text);
  if (device.act === "f32") split(4, 3, [1, 3]); // floats are their own masters
  else {
    const line =
      "Cannot train layers.0.w (4,3) with Muon: on a GPU each of its matrices, of 1,3 rows, should begin at a " +
      "multiple of 8 elements; choose other sizes, or --optimizer=adamw";
    assertThrows(() => split(4, 3, [1, 3]), UserError, line);
  }
});
