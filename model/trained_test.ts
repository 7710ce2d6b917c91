import { assert, assertEquals, assertLess, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { copyToDevice, device } from "../ffi/library.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { readFloats, type Tensor } from "../runtime/tensor.ts";
import { openTestDevice, tokens } from "../runtime/testing.ts";
import { optimizerTensors } from "./checkpoint.ts";
import { init, type Llama, type LlamaConfig, loss, RECOMPUTE } from "./llama.ts";
import { planMemory } from "./plan.ts";
import { describeTrained, trainsOf } from "./trained.ts";

openTestDevice();

const c: LlamaConfig = {
  ...{ vocab_size: 65, n_layer: 3, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 32, n_inner: 64 },
  ...{ block_size: 16, rope_theta: 10000, norm_eps: 1e-6, tie_word_embeddings: false },
};
const adamw = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 0 };
const ids = (step: number) => tokens([2, 16], Array.from({ length: 32 }, (_, i) => i * step % 65));
const idx = ids(7), targets = ids(11);

Deno.test("trainsOf() takes dot paths with stars, and names what there is", () => {
  const model = init(c),
    all = Array.from(new Parameters(model, { seed: 1, train: true }).slots, ({ name }) => name);
  const chosen = (list: string) => all.filter(trainsOf(model, list)!).sort();
  assertEquals(trainsOf(model, ""), undefined);
  assertEquals(chosen("norm, layers.*.qkv_proj"), [
    ...["layers.0.qkv_proj", "layers.1.qkv_proj", "layers.2.qkv_proj", "norm"],
  ]);
  assertEquals(chosen("layers.2.*").length, 6);
  assertEquals(chosen("*"), ["embed_tokens", "lm_head", "norm"]);
  for (const list of ["norm,layers.*.q_proj", "layers", "layers.3.qkv_proj", "norm,"]) {
    assertThrows(() => trainsOf(model, list), UserError, ": no weight has that name; ");
  }
  assertThrows(
    () => trainsOf(model, "layers.*.qv_proj"),
    UserError,
    'Cannot train "layers.*.qv_proj": no weight has that name; did you mean layers.*.qkv_proj?',
  );
  assertEquals(
    describeTrained(model, "norm,layers.*.o_proj"),
    `4 of 21 tensors, ${(3 * 32 * 64 + 32).toLocaleString("en-US")} of 45,280 values; the others are frozen`,
  );
});

/** The gradient of every trained weight after one backward pass, as numbers by name. */
function gradients(list: string, recompute: typeof RECOMPUTE[number]) {
  const model = init(c), trains = trainsOf(model, list);
  const parameters = new Parameters(model, { seed: 3, train: true, trains, load: fill });
  const l = loss(model, idx, targets, c, { recompute });
  backward(l);
  const grads = new Map(parameters.trained.map(({ name, tensor }) => [
    name,
    tensor.buf.gradIsEmpty ? undefined : readFloats(tensor.buf.grad!.address, tensor.size, "f32"),
  ]));
  endStep();
  return { model, parameters, grads };

  /** Values that depend on the name alone: where a weight lies depends on what is frozen. */
  function fill(name: string, address: bigint): void {
    let state = Array.from(name).reduce((sum, letter) => Math.imul(sum, 31) + letter.charCodeAt(0), 7) >>> 0;
    const size = sizes.get(name)!, isNorm = /norm/.test(name);
    const values = Float32Array.from({ length: size }, () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return (isNorm ? 1 : 0) + 0.3 * (state / 2 ** 32 - 0.5);
    });
    copyToDevice(address, values);
  }
}
const sizes = new Map(
  new Parameters(init(c), { seed: 0, train: false }).slots.map(({ name, size }) => [name, size]),
);

Deno.test("what is trained has the gradient that it has when all is trained, however much is recomputed", () => {
  for (const recompute of RECOMPUTE) {
    const all = gradients("", recompute).grads;
    for (
      const list of ["layers.*.qkv_proj", "layers.1.down_proj,norm", "lm_head", "embed_tokens", "layers.2.*"]
    ) {
      const { grads: some, parameters } = gradients(list, recompute);
      assert(some.size > 0);
      const frozen = parameters.slots.slice(parameters.trained.length);
      assertEquals(frozen.filter(({ tensor }) => tensor.buf.grad !== undefined), [], `${list}, ${recompute}`);
      for (const [name, grad] of some) assertEquals(grad, all.get(name), `${name} of ${list}, ${recompute}`);
    }
  }
});

Deno.test("what is frozen keeps its bits and takes no memory for gradients, moments and master weights", () => {
  const values = (tensor: Tensor) => tensor.toArray(),
    model = (m: Llama) => [m.embed_tokens, m.layers[0]!.o_proj];
  const some = gradients("layers.*.qkv_proj,layers.*.input_layernorm", "norm_swiglu");
  const before = [...model(some.model), some.model.layers[2]!.qkv_proj].map(values);
  const optimizer = new AdamW(some.parameters, adamw);
  optimizer.addLoss(loss(some.model, idx, targets, c), 1, true);
  backward(loss(some.model, idx, targets, c));
  endStep();
  optimizer.step(0.1);
  const after = [...model(some.model), some.model.layers[2]!.qkv_proj].map(values);
  assertEquals(after.slice(0, 2), before.slice(0, 2));
  assert(after[2]!.some((value, i) => value !== before[2]![i]));
  const [trained, everything] = [3 * (128 * 32 + 64), 45_280]; // with vectors rounded up to 64
  assertEquals(some.parameters.total, trained);
  assertEquals(
    [some.parameters.grads!.bytes, optimizer.m.bytes, optimizer.v.bytes],
    Array(3).fill(4 * trained),
  );
  const { rest } = some.parameters;
  assertEquals(rest === undefined, device.act === "f32");
  if (rest) assertEquals([rest.halves.bytes, rest.ties.bytes], [2 * trained, trained / 8]);
  assertEquals(some.parameters.count(), everything);
  const names = optimizerTensors(optimizer).map(({ name }) => name).filter((name) => name.startsWith("m."));
  assertEquals(names.length, 6);

  const settings = { ...adamw, batch_size: 1, gradient_accumulation_steps: 1, head_chunk: 64, seed: 1 };
  const plan = (train: string) => planMemory(c, { ...settings, recompute: "none", train }, device.act);
  const [whole, part] = [plan(""), plan("layers.*.qkv_proj,layers.*.input_layernorm")];
  assertEquals(part.gradients, 4 * trained);
  assertLess(part.optimizer!, whole.optimizer! / 3);
  assertEquals(part.weights, whole.weights);
});
