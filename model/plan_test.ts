import { assert, assertAlmostEquals, assertEquals, assertMatch } from "@std/assert";
import { environment } from "../base/testing.ts";
import { device, libraryExists, memoryUse, open } from "../ffi/library.ts";
import { memoryByKind, withOwnMemory } from "../runtime/memory.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { fixed, readFloats } from "../runtime/tensor.ts";
import { init, type LlamaConfig, LORA_TARGETS, loss, type Recompute } from "./llama.ts";
import {
  chooseBatch,
  measureModel,
  memoryTable,
  modelSize,
  planMemory,
  planShared,
  settingsThatFit,
} from "./plan.ts";
import { largerBatches } from "./presets.ts";
import { GPT_270M } from "./testing.ts";

open("cpu");

const settings = {
  batch_size: 4,
  gradient_accumulation_steps: 32,
  head_chunk: 2048,
  recompute: "none",
  seed: 1,
  beta1: 0.9,
  beta2: 0.95,
  eps: 1e-8,
  weight_decay: 0.1,
  grad_clip: 1,
  zero_stage: 0,
};

function plan(recompute: Recompute, batch_size = 4): { total: number; kinds: Record<string, number> } {
  const kinds = planMemory(GPT_270M, { ...settings, batch_size, recompute }, "bf16");
  return { total: Object.values(kinds).reduce((a, b) => a + b, 0), kinds };
}

Deno.test("planMemory() of LoRA has gradients and moments of adapters alone: Llama 3.2 1B takes 4 GB on a GPU", () => {
  const c: LlamaConfig = {
    ...{
      vocab_size: 128256,
      n_layer: 16,
      n_embd: 2048,
      n_head: 32,
      n_kv_head: 8,
      head_dim: 64,
      n_inner: 8192,
    },
    ...{ block_size: 1024, rope_theta: 500000, norm_eps: 1e-5, tie_word_embeddings: true },
    lora: { rank: 16, alpha: 32, targets: LORA_TARGETS },
  };
  const s = { ...settings, batch_size: 1, recompute: "norm_swiglu" }, kinds = planMemory(c, s, "bf16");
  // (3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192): 16 rows of A and as many columns of B
  const adapters = 16 * 16 * (3072 + 2048 + 2048 + 2048 + 16384 + 2048 + 2048 + 8192);
  assertEquals(kinds.weights, 2 * (1_235_814_400 + adapters)); // the parameters of the model as published
  assertEquals(kinds.gradients, 4 * adapters);
  assertAlmostEquals(kinds.optimizer!, 10.125 * adapters, 100); // two moments, and what masters have over bfloat16
  const total = Object.values(kinds).reduce((a, b) => a + b);
  assert(total < 4e9, `${total}`);
  const again = 16 * 16 * (2 * 2048 + 2048); // files have A of q, k and v, and of gate and up, for each of them
  assertEquals(planShared(c, s, "bf16"), {
    exchanged: 0,
    model: 2 * (adapters + again),
    optimizer: 12 * adapters,
  });
});

Deno.test("measureModel() counts the parameters and FLOPs of gpt-270m as published, and of an untied head", () => {
  const { flops_per_token, ...counts } = measureModel(GPT_270M);
  assertAlmostEquals(flops_per_token / 1e9, 2.2344, 5e-5);
  const C = 1024, layer = 2 * C + C * 1536 + C * C + 3 * C * 2816, table = 50_304 * C; // qkv, o, gate, up, down
  assertEquals(counts, { parameters: 24 * layer + C + table, embeddings: table });
  const untied = measureModel({ ...GPT_270M, tie_word_embeddings: false });
  assertEquals(untied, { parameters: 24 * layer + C + 2 * table, embeddings: 2 * table, flops_per_token });
  const odd = measureModel({ ...GPT_270M, vocab_size: 2 * 2816 }); // as many rows as gate_up_proj has
  assertEquals([odd.parameters, odd.embeddings], [24 * layer + C + 5632 * C, 5632 * C]);
  const matrices = 24 * (layer - 2 * C) + table; // six a weight, and causal attention
  assertEquals(flops_per_token, 6 * matrices + 6 * 24 * 16 * 64 * (2048 + 1));
});

Deno.test("planShared() counts what docs/distributed.md computes for gpt-270m, and what a checkpoint of it has", () => {
  const P = 322.1e6,
    of = (world_size: number, zero_stage: number, act: "bf16" | "f32") =>
      planShared(GPT_270M, { ...settings, world_size, zero_stage }, act);
  const close = (actual: number, expected: number) => assertAlmostEquals(actual / expected, 1, 1e-3);
  close(of(8, 1, "bf16").exchanged, 6 * P * 7 / 8); // float32 gradients, bfloat16 weights
  close(of(64, 1, "bf16").exchanged, 6 * P * 63 / 64);
  close(of(8, 0, "bf16").exchanged, 8 * P * 7 / 8); // gradients twice
  close(of(8, 1, "f32").exchanged, 8 * P * 7 / 8);
  assertEquals(of(1, 1, "bf16").exchanged, 0);
  close(of(8, 1, "bf16").model, 2 * P);
  close(of(8, 1, "bf16").optimizer, 12 * P); // master, m, v
  close(of(8, 1, "f32").optimizer, 8 * P);
  const hidden = 270.532608e6, muon = { ...settings, optimizer: "muon", world_size: 8, zero_stage: 1 }; // all but norms and embeddings
  close(planShared(GPT_270M, muon, "bf16").optimizer, 12 * P - 4 * hidden);
  const divided = planShared(GPT_270M, muon, "bf16").exchanged - of(8, 1, "bf16").exchanged; // at seven places, 4 bytes
  assert(divided > 0 && divided < 7 * 4 * 2816 * 1024, `${divided} bytes`);
});

Deno.test("measureModel() and planMemory() leave the open device, its memory and its tape as they were", () => {
  const c = { ...GPT_270M, vocab_size: 65, n_layer: 1, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 16 };
  const shape = { ...c, n_inner: 48, block_size: 8 };
  const gradients = (beforeBackward: () => void) => {
    const model = init(shape), parameters = new Parameters(model, { seed: 1, train: true });
    const idx = fixed([2, 8], "i32", "inputs"), mean = loss(model, idx, idx, shape); // token 0, 16 times
    beforeBackward();
    backward(mean);
    const values = readFloats(parameters.grads!.address, parameters.total, "f32");
    endStep();
    return values;
  };
  const expected = gradients(() => {}), kinds = memoryByKind();
  const actual = gradients(() => {
    measureModel({ ...GPT_270M });
    planMemory(GPT_270M, settings, "bf16");
  });
  assertEquals(actual, expected);
  assertEquals(device.library, "cpu");
  assertEquals(memoryByKind().step, kinds.step);
});

Deno.test("modelSize() counts gpt-270m with and without embeddings", () => {
  assertEquals(modelSize(GPT_270M), "322.1M parameters, 270.6M without embeddings");
});

Deno.test("modelSize() has digits enough to tell the two apart", () => {
  const tiny = { ...GPT_270M, n_layer: 4, n_embd: 128, n_head: 4, n_kv_head: 2, head_dim: 32, n_inner: 384 };
  // a layer: q and o 2 x 128 x 128, k and v 2 x 128 x 64, three of 128 x 384, norms 2 x 128; then a norm, and 320 x 128
  const rest = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384 + 2 * 128) + 128;
  assertEquals([rest, rest + 320 * 128], [787_584, 828_544]);
  assertEquals(modelSize({ ...tiny, vocab_size: 257 }), "0.83M parameters, 0.79M without embeddings");
  assertEquals(modelSize({ ...tiny, vocab_size: 2 }), "0.80M parameters, 0.79M without embeddings"); // padded to 64
});

Deno.test("planMemory() finds gpt-270m at batch_size 4 within 9.5 GB in bfloat16", () => {
  const { total, kinds } = plan("norm_swiglu");
  assert(total <= 9.5e9, memoryTable(kinds));
  const flat = 322_094_080;
  assertEquals([kinds.weights, kinds.gradients], [2 * flat, 4 * flat]);
  assert(
    kinds.optimizer! >= 10.125 * flat && kinds.optimizer! < 10.125 * flat + 1000,
    "the rest of the master weights and two moments",
  );
});

Deno.test("planMemory() with Muon leaves out the second moments of matrices in layers", () => {
  const adamw = planMemory(GPT_270M, settings, "bf16");
  const muon = planMemory(GPT_270M, { ...settings, optimizer: "muon" }, "bf16"), hidden = 270_532_608;
  assertAlmostEquals(adamw.optimizer! - muon.optimizer!, 4 * hidden, 1000);
  assertEquals({ ...muon, optimizer: 0 }, { ...adamw, optimizer: 0 }); // its scratch fits in the memory of a step
});

Deno.test("planMemory() with Muon is what is then allocated", () => {
  const c = { ...GPT_270M, vocab_size: 65, n_layer: 2, n_embd: 32, n_head: 2, n_kv_head: 1, head_dim: 16 };
  const shape = { ...c, n_inner: 48, block_size: 8 }, s = { ...settings, optimizer: "muon", batch_size: 1 };
  const planned = planMemory(shape, s, "f32");
  const allocated = withOwnMemory(() => {
    new AdamW(new Parameters(init(shape), { seed: 1, train: true }), s);
    return memoryByKind();
  });
  assertEquals(allocated.optimizer, planned.optimizer);
});

Deno.test("planMemory() shrinks with each level of recompute and grows with the batch", () => {
  const totals = (["none", "norm_swiglu", "gate_up", "block"] as const).map((recompute) =>
    plan(recompute).total
  );
  assertEquals(totals, totals.toSorted((a, b) => b - a));
  assertEquals(new Set(totals).size, 4);
  assert(plan("norm_swiglu", 8).total > plan("norm_swiglu", 4).total);
});

Deno.test("settingsThatFit() keeps the tokens of a step, changes one thing where that is enough, else all, else none", () => {
  const fit = (bytes: number) => settingsThatFit(GPT_270M, settings, "bf16", bytes);
  const need = (change: Partial<typeof settings>) =>
    Object.values(planMemory(GPT_270M, { ...settings, ...change }, "bf16")).reduce((a, b) => a + b, 0);
  assertEquals(fit(1.04 * need({ batch_size: 2 })), [
    "--batch_size=2 --gradient_accumulation_steps=64",
    "--recompute=gate_up",
  ]);
  assertEquals(fit(1.04 * need({ head_chunk: 1024 })).at(-1), "--head_chunk=1024");
  assertEquals(fit(1.04 * need({ batch_size: 1, recompute: "block", head_chunk: 128 })), [
    "--batch_size=1 --gradient_accumulation_steps=128 --recompute=block --head_chunk=128",
  ]);
  assertEquals(fit(5e9), []);
});

/** What chooseBatch() makes of gpt-270m, or of another model, on a GPU of `ranks` with so many bytes free each. */
async function choose(free: number[], change: Partial<typeof settings> = {}, c = GPT_270M) {
  const own = { ...settings, recompute: "norm_swiglu", ...change }, world_size = free.length;
  const larger = largerBatches.map(({ from_bytes, ...batch }) => ({
    from_bytes,
    config: { ...own, ...batch },
  }));
  open("emu");
  const { total, free: unused } = memoryUse(); // other tests of this process may have taken some, cuBLASLt's workspace does
  open("cpu");
  using _ = environment({ LOAM_EMU_MEMORY: `${free[0]! + total - unused}` });
  open("emu");
  const ranks = { world_size, least: (bytes: number) => Promise.resolve(Math.min(bytes, ...free.slice(1))) };
  const made = await chooseBatch(own, larger, c, ranks);
  open("cpu");
  return made;
}

const emu = { ignore: !libraryExists("emu"), sanitizeResources: false }; // libraries stay loaded

Deno.test(
  "chooseBatch() takes 4 windows up to 16 GB, 8 from 24 GB and 16 on 80 GB, as many tokens a step",
  emu,
  async () => {
    const cards: [number, number][] = [[9.5, 4], [11.6, 4], [15.1, 4], [15.9, 4], [19.9, 4], [23.1, 8], [
      24.9,
      8,
    ], [33, 8]];
    for (
      const [free_gb, batch_size] of [...cards, [47, 8], [79, 16], [84, 16], [140, 16]] as [number, number][]
    ) {
      const { config, reason, problem } = await choose([free_gb * 1e9]);
      assertEquals([config.batch_size, problem], [batch_size, undefined], `${free_gb} GB`);
      assertEquals(config.batch_size * config.gradient_accumulation_steps * GPT_270M.block_size, 262_144);
      const rest = batch_size === 4 ? ["norm_swiglu", 2048] : ["none", 8192];
      assertEquals([config.recompute, config.head_chunk], rest);
      const total = Object.values(planMemory(GPT_270M, config, "bf16")).reduce((a, b) => a + b, 0);
      assert(total <= free_gb * 1e9, `${total} bytes of ${free_gb} GB`);
      assertEquals(
        reason,
        `batch_size ${batch_size}, gradient_accumulation_steps ${128 / batch_size}, recompute ${
          rest[0]
        }, head_chunk ${rest[1]}, ` +
          `as ${free_gb.toFixed(1)} GB are free on emulated GPU; a step takes ${(total / 1e9).toFixed(1)} GB`,
      );
    }
  },
);

Deno.test("chooseBatch() goes by the rank with the least memory, and by what a rank keeps", emu, async () => {
  const { config, reason } = await choose([79e9, 23.5e9]);
  assertEquals(config.batch_size, 8);
  assertMatch(reason, /, as 23\.5 GB are free on emulated GPU, the least of 2 ranks; a step takes 18\.0 GB$/);
  const sharded = await choose([79e9, 9e9], { zero_stage: 1 }); // half of the optimizer's 3.3 GB
  assertMatch(sharded.reason, /^batch_size 4, .* a step takes 7\.9 GB$/);
});

Deno.test("chooseBatch() leaves a model its batch where a larger one has no room", emu, async () => {
  const { config, problem } = await choose([23.5e9], {}, { ...GPT_270M, n_layer: 40 });
  assertEquals([config.batch_size, problem], [4, undefined]);
});

Deno.test(
  "chooseBatch() says what is free and needed where 4 windows do not fit, and what would",
  emu,
  async () => {
    const { problem } = await choose([8e9]);
    assertEquals(
      problem,
      "Cannot train with batch_size 4, recompute norm_swiglu and head_chunk 2048: a step needs 9.5 GB, 8.0 GB are free on " +
        "emulated GPU; end what else uses the GPU, or take less: this fits: --batch_size=2 --gradient_accumulation_steps=64, " +
        "or --recompute=gate_up",
    );
  },
);
