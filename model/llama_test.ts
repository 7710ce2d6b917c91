import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { device } from "../ffi/library.ts";
import { loadTensors } from "../runtime/checkpoint.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { readSafetensors, toFloat32 } from "../runtime/safetensors.ts";
import { backward, endStep, noGrad } from "../runtime/tape.ts";
import { readFloats, type Tensor } from "../runtime/tensor.ts";
import { openTestDevice, readMasters, startsOf, tokens as ids } from "../runtime/testing.ts";
import { modelTensors } from "./checkpoint.ts";
import { hfTensors } from "./hf.ts";
import { configFromHF } from "./hf_config.ts";
import { forward, init, type LlamaConfig, logits, loss, type Recompute } from "./llama.ts";
import { allLogits, emptyCache, followSteps, relativeError } from "./testing.ts";

openTestDevice();
const isFloat = device.act === "f32", PYTHON = Deno.env.get("LOAM_PYTHON");

const tiny: LlamaConfig = {
  vocab_size: 65,
  n_layer: 2,
  n_embd: 32,
  n_head: 4,
  n_kv_head: 2,
  head_dim: 32,
  n_inner: 64,
  block_size: 48,
  rope_theta: 10000,
  norm_eps: 1e-6,
  tie_word_embeddings: true,
};

function randomIds(n: number, V: number, seed: number): number[] {
  let state = seed;
  return Array.from({ length: n }, () => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % V);
}

for (const name of ["llama_tiny", "llama_untied"]) {
  const path = new URL(`../tests/golden/${name}.safetensors`, import.meta.url).pathname;
  const golden = readSafetensors(path);
  const floats = (tensor: string) => toFloat32(golden.read(tensor), "F32");
  const about = JSON.parse(golden.metadata.about!);
  const c = configFromHF(about.config);
  const [B, T] = golden.tensors.get("idx")!.shape as [number, number];
  const int32 = (tensor: string) => new Int32Array(golden.read(tensor).buffer);

  const load = () => {
    const model = init(c), parameters = new Parameters(model, { seed: 1, train: true });
    loadTensors(path, modelTensors(parameters, c).map((t) => ({ ...t, dtype: "act" as const })));
    if (parameters.rest) throw new Error("the golden is loaded into float32 weights only");
    return { model, parameters, idx: ids([B, T], int32("idx")), targets: ids([B, T], int32("targets")) };
  };

  Deno.test({
    name: `${name}: logits, loss and every gradient equal Hugging Face's`,
    ignore: !isFloat,
    fn() {
      const { model, parameters, idx, targets } = load();
      assert(relativeError(allLogits(model, c, idx), floats("logits64")) < 1e-5);

      for (const head_chunk of [1024, 7]) { // whole, and in pieces that do not divide B * T
        parameters.zeroGrad();
        const l = loss(model, idx, targets, c, { head_chunk });
        backward(l);
        assertAlmostEquals(l.toArray()[0]!, floats("loss64")[0]!, 1e-5);
        for (const t of hfTensors(c)) {
          const slot = parameters.slots.find((s) => s.name === t.ours)!;
          const offset = slot.offset + t.row * Math.max(1, t.cols), n = t.rows * Math.max(1, t.cols);
          const actual = readFloats(parameters.grads!.address + BigInt(4 * offset), n, "f32");
          const error = relativeError(actual, floats(`grad.${t.hf}`));
          assert(error < 1e-4, `${t.hf}: relative error ${error}`);
        }
        endStep();
      }
    },
  });

  Deno.test({
    name: `${name}: 10 AdamW steps follow Hugging Face's losses and gradient norms`,
    ignore: !isFloat,
    fn() {
      const { model, parameters, idx, targets } = load();
      const { betas, eps, weight_decay, grad_clip } = about.optimizer;
      const optimizer = new AdamW(parameters, {
        beta1: betas[0],
        beta2: betas[1],
        eps,
        weight_decay,
        grad_clip,
      });
      followSteps(optimizer, () => loss(model, idx, targets, c), floats, "64");
    },
  });
}

/** Ten steps with Muon have the losses, norms and last weights of a file of tests/oracle/muon.py. */
function checkMuon(path: string): void {
  const file = readSafetensors(path),
    about = JSON.parse(file.metadata.about!),
    c = configFromHF(about.config);
  const floats = (name: string) => toFloat32(file.read(name), "F32");
  const [B, T] = file.tensors.get("idx")!.shape as [number, number];
  const [idx, targets] = ["idx", "targets"].map((name) =>
    ids([B, T], new Int32Array(file.read(name).buffer))
  );
  const model = init(c), parameters = new Parameters(model, { seed: 1, train: true });
  loadTensors(path, modelTensors(parameters, c));
  const { betas: [beta1, beta2], ...settings } = about.optimizer;
  const optimizer = new AdamW(parameters, { ...settings, beta1, beta2, optimizer: "muon" });
  followSteps(optimizer, () => loss(model, idx!, targets!, c), floats, "64");
  for (const { name, address, shape } of modelTensors(parameters, c)) {
    const after = readFloats(address, shape.reduce((a, b) => a * b, 1), "act"), before = floats(name);
    const moved = after.map((w, i) => w - before[i]!);
    const expected = floats(`after64.${name}`).map((w, i) => w - before[i]!);
    const error = relativeError(moved, expected);
    assert(error < 2e-3, `${name}: what ten steps moved has a relative error of ${error}`);
  }
}

Deno.test({
  name:
    "10 steps with Muon are those of torch.optim.Muon and AdamW, each matrix of Hugging Face's for itself",
  ignore: !isFloat,
  fn: () => checkMuon(new URL("../tests/golden/muon.safetensors", import.meta.url).pathname),
});

Deno.test({
  name: "10 steps with Muon of a random model are those of torch.optim.Muon and AdamW (LOAM_PYTHON)",
  ignore: !PYTHON || !isFloat,
  fn() {
    const directory = Deno.makeTempDirSync(), path = `${directory}/muon.safetensors`;
    const script = new URL("../tests/oracle/muon.py", import.meta.url).pathname,
      seed = `${1 + Math.floor(Math.random() * 1e6)}`;
    const { code, stderr } = new Deno.Command(PYTHON!, { args: [script, path, seed] }).outputSync();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    try {
      checkMuon(path);
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }
  },
});

Deno.test("every --recompute gives the same loss and gradients, the less it keeps the less memory", () => {
  const idx = ids([2, 40], randomIds(80, 65, 1)), targets = ids([2, 40], randomIds(80, 65, 2));
  const run = (recompute: Recompute) => {
    const model = init(tiny), parameters = new Parameters(model, { seed: 21, train: true });
    const l = loss(model, idx, targets, tiny, { recompute });
    backward(l);
    const value = l.toArray()[0]!;
    endStep();
    return { value, grads: readFloats(parameters.grads!.address, parameters.total, "f32") };
  };
  const expected = run("none");
  for (const recompute of ["norm_swiglu", "gate_up", "block"] as const) {
    const { value, grads } = run(recompute);
    assertEquals(value, expected.value, recompute);
    assertEquals(relativeError(grads, expected.grads) < (isFloat ? 1e-6 : 1e-2), true, recompute);
  }
});

Deno.test("forward() is causal: a later token changes no earlier logit", () => {
  const model = init(tiny), T = 40;
  new Parameters(model, { seed: 3, train: false });
  const run = (last: number) => {
    const tokens = randomIds(T, 65, 7);
    tokens[25] = last;
    const values = noGrad(() => logits(model, forward(model, ids([1, T], tokens), tiny)).toArray());
    endStep();
    return values;
  };
  const a = run(1), b = run(2), row = a.length / T;
  assertEquals(a.subarray(0, 25 * row), b.subarray(0, 25 * row));
  assert(relativeError(a.subarray(25 * row), b.subarray(25 * row)) > 1e-3);
});

Deno.test("a document in a window of several has the logits, loss and gradients of the document alone", () => {
  const c = { ...tiny, block_size: 208 }, begins = [0, 1, 38, 64, 130, 207], T = 208; // 64: where a tile of a CPU begins
  const all = randomIds(T, 65, 13), next = [...all.slice(1), 0], starts = ids([1, T], startsOf(T, begins));
  const ends = [...begins.slice(1), T], V = 128; // padded
  const gradients = (run: (model: ReturnType<typeof init>) => void) => {
    const model = init(c), parameters = new Parameters(model, { seed: 17, train: true });
    run(model);
    return readFloats(parameters.grads!.address, parameters.total, "f32");
  };
  const model = init(c);
  new Parameters(model, { seed: 17, train: false });
  const logitsOf = (tokens: number[], starts?: Tensor) =>
    noGrad(() => {
      const hidden = forward(model, ids([1, tokens.length], tokens), c, { starts });
      return logits(model, hidden).toArray();
    });
  const packed = logitsOf(all, starts), plain = logitsOf(all);
  assert(relativeError(packed.slice(V), plain.slice(V)) > 1e-2, "it matters");
  begins.forEach((from, i) => {
    const own = logitsOf(all.slice(from, ends[i])), amid = packed.slice(from * V, ends[i]! * V);
    const error = relativeError(amid, own);
    assert(error < (isFloat ? 1e-6 : 2e-2), `document from ${from}: relative error ${error}`);
    if (isFloat && from === 64) assertEquals(amid, own, "to the bit");

    const cache = emptyCache(c); // token by token, as a text is written
    const written = noGrad(() =>
      all.slice(from, Math.min(ends[i]!, from + 20)).map((id) =>
        logits(model, forward(model, ids([1, 1], [id]), c, { cache })).toArray()
      )
    ).flatMap((row) => Array.from(row));
    const beside = relativeError(Float32Array.from(written), amid.slice(0, written.length));
    assert(beside < (isFloat ? 1e-5 : 3e-2), `document from ${from}, by the cache: relative error ${beside}`);
  });
  endStep();

  for (const recompute of ["norm_swiglu", "gate_up", "block"] as const) {
    const together = gradients((m) =>
      backward(loss(m, ids([1, T], all), ids([1, T], next), c, { starts, recompute }))
    );
    endStep();
    const apart = gradients((m) =>
      begins.forEach((from, i) => {
        const n = ends[i]! - from, of = (tokens: number[]) => ids([1, n], tokens.slice(from, ends[i]));
        backward(loss(m, of(all), of(next), c, { grad_scale: n / T }));
        endStep();
      })
    );
    const error = relativeError(together, apart);
    assert(error < (isFloat ? 1e-5 : 2e-2), `${recompute}: relative error ${error}`);
  }
});

Deno.test("forward() refuses several documents in a row with a cache", () => {
  const model = init(tiny), starts = ids([1, 2], [0, 1]), cache = emptyCache(tiny);
  new Parameters(model, { seed: 3, train: false });
  const run = () => forward(model, ids([1, 2], [1, 2]), tiny, { cache, starts });
  assertThrows(run, RangeError, "Cannot run several documents with a cache: it holds one a row");
});

Deno.test("loss() at initialisation is ln(vocab_size) within 1%", () => {
  const c = { ...tiny, vocab_size: 1000 }, model = init(c);
  new Parameters(model, { seed: 5, train: false });
  const idx = ids([4, 48], randomIds(192, 1000, 1)), targets = ids([4, 48], randomIds(192, 1000, 2));
  const value = noGrad(() => loss(model, idx, targets, c).toArray()[0]!);
  endStep();
  assertAlmostEquals(value, Math.log(1000), 0.01 * Math.log(1000));
});

function overfit(steps: number): { losses: number[]; weights: Float32Array } {
  const model = init(tiny), parameters = new Parameters(model, { seed: 11, train: true });
  const optimizer = new AdamW(parameters, {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    grad_clip: 1,
  });
  const tokens = randomIds(2 * 33, 65, 9);
  const idx = ids([2, 32], [...tokens.slice(0, 32), ...tokens.slice(33, 65)]);
  const targets = ids([2, 32], [...tokens.slice(1, 33), ...tokens.slice(34, 66)]);
  const losses = Array.from({ length: steps }, () => {
    const l = loss(model, idx, targets, tiny);
    optimizer.addLoss(l, 1, true);
    backward(l);
    optimizer.step(3e-3);
    endStep();
    return optimizer.result().loss;
  });
  return { losses, weights: readMasters(parameters, 0, parameters.total) };
}

Deno.test("a model overfits one batch", () => {
  const [steps, factor] = device.library === "emu" ? [10, 0.85] : [150, 0.03];
  const { losses } = overfit(steps);
  assert(losses.at(-1)! < factor * losses[0]!, `loss went from ${losses[0]} to ${losses.at(-1)}`);
});

Deno.test("training twice with the same seed gives the same bits", () => {
  const a = overfit(3), b = overfit(3);
  assertEquals(a.losses, b.losses);
  assertEquals(a.weights, b.weights);
});

Deno.test("init() refuses shapes that do not fit", () => {
  assertThrows(() => init({ ...tiny, n_kv_head: 3 }), Error, "n_head 4 is not divisible by n_kv_head 3");
  assertThrows(() => init({ ...tiny, head_dim: 7 }), Error, "head_dim 7 must be a multiple of 8");
  assertThrows(() => init({ ...tiny, n_layer: 0 }), Error, "n_layer is 0");
});
