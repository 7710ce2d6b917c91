// What a run will need before it starts: parameters, memory by kind, FLOPs and speed. The memory plan runs one whole step of
// the real code on a device that only counts bytes, so it cannot drift from what training does.
import { open, synchronizeNow } from "../ffi/library.ts";
import { table } from "../runtime/debug.ts";
import { Inputs } from "../runtime/inputs.ts";
import { formatBytes } from "../runtime/metrics.ts";
import { AdamW, type AdamWOptions, Parameters } from "../runtime/optim.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { forgetMemory, memoryByKind } from "../runtime/tensor.ts";
import { init, type LlamaConfig, loss, paddedVocab, type Recompute } from "./llama.ts";

/** The variables of train.ts that decide memory and speed. */
export type StepSettings = AdamWOptions & {
  batch_size: number;
  gradient_accumulation_steps: number;
  head_chunk: number;
  recompute: string;
  seed: number;
};

/** "322.1M parameters, 270.6M without embeddings"; in thousands, k, below 0.1M */
export function modelSize(c: LlamaConfig): string {
  const { n_embd: C, n_head: H, n_kv_head: K, head_dim: D, n_inner: F } = c;
  const layer = 2 * C + C * (H + 2 * K) * D + H * D * C + 3 * C * F; // two norms, qkv, o, gate, up, down
  const rest = c.n_layer * layer + C;
  const embeddings = paddedVocab(c) * C * (c.tie_word_embeddings ? 1 : 2);
  const short = (n: number) => n < 1e5 ? `${(n / 1e3).toFixed(1)}k` : `${(n / 1e6).toFixed(1)}M`;
  return `${short(rest + embeddings)} parameters, ${short(rest)} without embeddings`;
}

/** Bytes that one step takes by kind, without a device. act is the type of weights and activations of the device meant. */
export function planMemory(c: LlamaConfig, s: StepSettings, act: "f32" | "bf16"): Record<string, number> {
  forgetMemory();
  open("plan", { act });
  microSteps({ ...c }, s, 1);
  const plan = memoryByKind();
  forgetMemory();
  return plan;
}

/** The plan as a table with its sum. */
export function memoryTable(plan: Record<string, number>): string {
  const total = Object.values(plan).reduce((a, b) => a + b, 0);
  return table(
    [...Object.entries(plan), ["total", total] as const].map(([kind, bytes]) => [kind, formatBytes(bytes)]),
  );
}

/** Milliseconds of a micro-step (forward and backward) on the open device: the faster of two after one to warm up. */
export function timeMicroStep(c: LlamaConfig, s: StepSettings): number {
  const times = microSteps({ ...c }, s, 3);
  forgetMemory();
  return Math.min(times[1]!, times[2]!);
}

function microSteps(c: LlamaConfig, s: StepSettings, n: number): number[] {
  const inputs = new Inputs(s.batch_size, c.block_size, s.gradient_accumulation_steps);
  const model = init(c);
  const optimizer = new AdamW(new Parameters(model, { seed: s.seed, train: true }), s);
  const times = Array.from({ length: n }, () => {
    const t0 = performance.now();
    const l = loss(model, inputs.idx, inputs.targets, c, {
      head_chunk: s.head_chunk,
      recompute: s.recompute as Recompute,
    });
    optimizer.addLoss(l, 1, true);
    backward(l);
    endStep();
    synchronizeNow();
    return performance.now() - t0;
  });
  optimizer.step(0);
  return times;
}
