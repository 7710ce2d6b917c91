// What a run will need before it starts: parameters, memory by kind, FLOPs and speed. The memory plan runs one whole step of
// the real code on a device that only counts bytes, so it cannot drift from what training does.
import { formatBytes, table } from "../base/format.ts";
import { KernelError, UserError } from "../base/errors.ts";
import { Ranks } from "../dist/ranks.ts";
import { device, hostLimits, memoryUse, synchronizeNow, withPlan } from "../ffi/library.ts";
import { Inputs } from "../runtime/inputs.ts";
import { dividedMatrices, isHidden } from "../runtime/muon.ts";
import { AdamW, type AdamWOptions, Parameters } from "../runtime/optim.ts";
import { backward, endStep, flopsOf, noGrad, withOwnTape } from "../runtime/tape.ts";
import { fixed } from "../runtime/tensor.ts";
import { forgetMemory, memoryByKind, withOwnMemory } from "../runtime/memory.ts";
import { keepsApart } from "./documents.ts";
import { declaredBy, fileTensors } from "./hf.ts";
import { trainsOf } from "./trained.ts";
import type { Larger } from "./presets.ts";
import { init, type LlamaConfig, loss, paddedVocab, RECOMPUTE, type Recompute } from "./llama.ts";

/** The variables of train.ts that decide memory and speed. */
export type StepSettings = AdamWOptions & {
  batch_size: number;
  gradient_accumulation_steps: number;
  head_chunk: number;
  recompute: string;
  seed: number;
  train?: string; // names of weights, "" = all
  half?: boolean | undefined; // of LoRA: the base is bfloat16 beside float32 activations
  document_mask?: string; // not set: they are not kept apart
  zero_stage?: number; // 1: of several ranks, each keeps optimizer state of a part of the weights
  world_size?: number; // how many there are; 1 where it is not said
};

/** How large a model is. FLOPs are those of training on one token in a window of block_size. */
export type ModelSize = { parameters: number; embeddings: number; flops_per_token: number };

const measured = new WeakMap<LlamaConfig, ModelSize>();

/**
 * What init() declares, and what the ops of one forward pass compute; backward computes twice as much again. embeddings are
 * the parameters with a row for each token. Of the Llama in model/llama.ts, FLOPs are 6 for each weight of a matrix (the
 * head's included, with its padding) and 6 L H D (T + 1) for causal attention, whatever document_mask leaves out of it: 2.2344
 * GFLOP for gpt-270m.
 */
export function measureModel(c: LlamaConfig): ModelSize {
  const known = measured.get(c);
  if (known) return known;
  const size = aside("f32", () => {
    const own = { ...c }, model = init(own), T = c.block_size;
    const parameters = new Parameters(model, { seed: 0, train: false });
    const embeddings = parameters.slots
      .filter((slot) =>
        slot.tensor.shape.length > 1 && slot.tensor.shape[0] === paddedVocab(c) && !isHidden(slot)
      )
      .reduce((sum, { size }) => sum + size, 0);
    const idx = fixed([1, T], "i32", "inputs"), targets = fixed([1, T], "i32", "inputs");
    const flops = flopsOf(() => noGrad(() => loss(model, idx, targets, own, { head_chunk: T })));
    return { parameters: parameters.count(), embeddings, flops_per_token: 3 * flops / T };
  });
  measured.set(c, size);
  return size;
}

/** "322.1M parameters, 270.6M without embeddings"; in thousands, k, below 0.1M; with digits enough that the two differ */
export function modelSize(c: LlamaConfig): string {
  const { parameters, embeddings } = measureModel(c), rest = parameters - embeddings;
  const short = (n: number, digits: number) =>
    n < 1e5 ? `${(n / 1e3).toFixed(digits)}k` : `${(n / 1e6).toFixed(digits)}M`;
  let digits = 1;
  while (embeddings > 0 && short(parameters, digits) === short(rest, digits)) digits++;
  return `${short(parameters, digits)} parameters, ${short(rest, digits)} without embeddings`;
}

/** Bytes that one step takes by kind, without a device. act is the type of weights and activations of the device meant. */
export function planMemory(c: LlamaConfig, s: StepSettings, act: "f32" | "bf16"): Record<string, number> {
  return aside(act, () => {
    microSteps({ ...c }, s, 1);
    return memoryByKind();
  });
}

/** What one of several ranks does in a step besides computing, and what all of them save, in bytes. */
export type Shared = {
  /**
   * Sent by each rank, and as many received: gradients in float32, the matrices of Muon that lie in the parts of several, then
   * weights; nothing where it is alone.
   */
  exchanged: number;
  /** model.safetensors, or LoRA's adapter_model.safetensors, which rank 0 writes. */
  model: number;
  /** optimizer.safetensors, of which each rank writes its part: moments in float32, and the weights where others are bfloat16. */
  optimizer: number;
};

/** Of the model that is trained so, on devices of that type. */
export function planShared(c: LlamaConfig, s: StepSettings, act: "f32" | "bf16"): Shared {
  const { world_size = 1, zero_stage = 0 } = s, element = act === "bf16" ? 2 : 4;
  return aside(act, () => {
    const model = init({ ...c }), trains = trainsOf(model, s.train ?? "");
    const p = new Parameters(model, { seed: 0, train: true, trains, world_size, zero_stage: 1 });
    const bytes = (4 + (zero_stage === 1 ? element : 4)) * p.total; // reduce-scatter, all-gather
    const hidden = s.optimizer === "muon" ? p.trained.filter(isHidden) : [];
    const divided = hidden.length > 0 && zero_stage === 1 ? dividedMatrices(p) : []; // all ranks get them whole
    return {
      exchanged: (bytes + 4 * divided.reduce((sum, { from, to }) => sum + to - from, 0)) * (world_size - 1) /
        world_size,
      model: element * elements(fileTensors(declaredBy(c.lora ? p.trained : p.slots), c)),
      optimizer: (act === "bf16" ? 12 : 8) * elements(declaredBy(p.trained)) -
        4 * elements(declaredBy(hidden)),
    };
  });
}

function elements(tensors: { shape: readonly number[] }[]): number {
  return tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0);
}

/** Runs f on a device that only counts, also where a step has failed half-way: its tape and memory stay as they are. */
function aside<T>(act: "f32" | "bf16", f: () => T): T {
  return withPlan(act, () => withOwnMemory(() => withOwnTape(f)));
}

function sum(plan: Record<string, number>): number {
  return Object.values(plan).reduce((a, b) => a + b, 0);
}

/** What a plan takes in the end: allocators round up, and in a CPU's memory this program itself grows while it works. */
function needed(plan: Record<string, number>, act: "f32" | "bf16"): number {
  return 1.03 * sum(plan) + (act === "f32" ? 32e6 : 0);
}

/** The plan as a table with its sum. */
export function memoryTable(plan: Record<string, number>): string {
  return table(
    [...Object.entries(plan), ["total", sum(plan)] as const].map((
      [kind, bytes],
    ) => [kind, formatBytes(bytes)]),
  );
}

/**
 * Flags with which a step takes at most so many bytes: the largest batch, the least recomputing, the largest head_chunk,
 * each alone; all three at their smallest where none is enough alone. Empty where that is not enough either.
 */
export function settingsThatFit(
  c: LlamaConfig,
  s: StepSettings,
  act: "f32" | "bf16",
  bytes: number,
): string[] {
  const { batch_size: B, gradient_accumulation_steps } = s;
  type Change = Partial<
    Pick<StepSettings, "batch_size" | "gradient_accumulation_steps" | "recompute" | "head_chunk">
  >;
  const fits = (change: Change) => needed(planMemory(c, { ...s, ...change }, act), act) <= bytes;
  const divisors = Array.from({ length: B - 1 }, (_, i) => B - 1 - i).filter((b) => B % b === 0);
  const batches = divisors.map((batch_size): Change => ({
    batch_size,
    gradient_accumulation_steps: gradient_accumulation_steps * B / batch_size, // as many tokens a step
  }));
  const levels = RECOMPUTE.slice(1 + RECOMPUTE.indexOf(s.recompute as Recompute));
  const chunks = [4096, 2048, 1024, 512, 256, 128].filter((rows) =>
    rows < Math.min(s.head_chunk, B * c.block_size)
  );
  const kinds = [
    batches,
    levels.map((recompute) => ({ recompute })),
    chunks.map((head_chunk) => ({ head_chunk })),
  ];
  const alone = kinds.flatMap((changes) => changes.find(fits) ?? []);
  const together: Change = Object.assign({}, ...kinds.map((changes) => changes.at(-1) ?? {}));
  const found = alone.length > 0 ? alone : fits(together) ? [together] : [];
  return found.map((change) => Object.entries(change).map(([name, value]) => `--${name}=${value}`).join(" "));
}

/** A choice of configuration, and in words by what; where there is no room for a step, why none can be made. */
export type Chosen<T> = { config: T; reason: string; problem?: string };

/**
 * The first of `larger` whose plan the open GPU has room for, and which is meant for so much free memory, else `config`, as on a
 * CPU and without `larger`. Of several ranks, the one with the least decides.
 */
export async function chooseBatch<T extends StepSettings>(
  config: T,
  larger: Larger<T>[] | undefined,
  c: LlamaConfig,
  ranks: Pick<Ranks, "world_size" | "least"> = Ranks.alone(),
): Promise<Chosen<T>> {
  if (!larger || device.act === "f32") return { config, reason: "" };
  const { name, act } = device, free = await ranks.least(memoryUse().free), { world_size } = ranks;
  const planOf = (s: T) => planMemory(c, { ...s, world_size }, act);
  const suits = larger.find(({ from_bytes, config }) =>
    free >= from_bytes && free >= needed(planOf(config), act)
  );
  const chosen = suits?.config ?? config, plan = planOf(chosen);
  const { batch_size, gradient_accumulation_steps, recompute, head_chunk } = chosen;
  const room = `${formatBytes(free)} are free on ${name}${
    world_size > 1 ? `, the least of ${world_size} ranks` : ""
  }`;
  if (sum(plan) > free) {
    const fitting = settingsThatFit(c, { ...chosen, world_size }, act, free);
    const problem =
      `Cannot train with batch_size ${batch_size}, recompute ${recompute} and head_chunk ${head_chunk}: a step needs ` +
      `${formatBytes(sum(plan))}, ${room}; end what else uses the GPU, or take less: ${adviceOf(fitting)}`;
    return { config, reason: "", problem };
  }
  return {
    config: chosen,
    reason:
      `batch_size ${batch_size}, gradient_accumulation_steps ${gradient_accumulation_steps}, recompute ${recompute}, ` +
      `head_chunk ${head_chunk}, as ${room}; a step takes ${formatBytes(sum(plan))}`,
  };
}

/** The error; if it is that the open device has too little memory for a run, how much is missing and what would fit. */
export function orDoesNotFit(error: unknown, c: LlamaConfig, s: StepSettings): unknown {
  return error instanceof KernelError && isOfMemory(error) ? doesNotFit(error, c, s) : error;
}

/** Whether the error is that the open device has too little memory. */
export function isOfMemory({ message }: KernelError): boolean {
  return / MB do not fit/.test(message);
}

function doesNotFit(error: KernelError, c: LlamaConfig, s: StepSettings): UserError {
  const { now, free } = memoryUse(), act = device.act; // before the plan takes the place of the device
  const step = formatBytes(sum(planMemory(c, s, act))), fitting = settingsThatFit(c, s, act, now + free);
  const advice = adviceOf(fitting);
  return new UserError(
    `Cannot train with batch_size ${s.batch_size}, recompute ${s.recompute} and head_chunk ${s.head_chunk}: a step ` +
      `needs ${step}; ${error.message}; ${advice}`,
  );
}

function adviceOf(fitting: string[]): string {
  return fitting.length > 0
    ? `this fits: ${fitting.join(", or ")}`
    : "no batch_size, recompute or head_chunk fits; choose a smaller model or block_size";
}

/**
 * Whether a planned step fits on the open device, which the plan takes the place of where it does not, and in words how much
 * is free there: "12.3 GB of 16.4 GB (the machine's memory)".
 */
export function roomFor(
  plan: Record<string, number>,
  c: LlamaConfig,
  s: StepSettings,
): { fits: boolean; room: string } {
  const { free, total } = memoryUse(), { act, library, name } = device;
  const room = `${formatBytes(free)} of ${formatBytes(total)} (${
    library === "cpu" ? hostLimits().source : name
  })`;
  if (needed(plan, act) <= free) return { fits: true, room };
  return {
    fits: false,
    room: `${room}; the step does not fit; ${adviceOf(settingsThatFit(c, s, act, free))}`,
  };
}

/** Milliseconds on the open device, of two steps after one to warm up those of the faster. */
export type StepTimes = {
  /** A micro-step: forward and backward. */
  micro_ms: number;
  /** The update of the weights behind all of them. */
  update_ms: number;
};

/** How long the parts of a step take on the open device. */
export function timeStep(c: LlamaConfig, s: StepSettings): StepTimes {
  const [, ...times] = microSteps({ ...c }, s, 3),
    least = (key: keyof StepTimes) => Math.min(...times.map((t) => t[key]));
  forgetMemory();
  return { micro_ms: least("micro_ms"), update_ms: least("update_ms") };
}

/** n steps of one micro-step each. */
function microSteps(c: LlamaConfig, s: StepSettings, n: number): StepTimes[] {
  const inputs = new Inputs(s.batch_size, c.block_size, s.gradient_accumulation_steps, keepsApart(s));
  const model = init(c);
  const trains = trainsOf(model, s.train ?? "");
  const ranks = { world_size: s.world_size ?? 1, zero_stage: s.zero_stage ?? 0 };
  const parameters = new Parameters(model, { seed: s.seed, train: true, trains, half: s.half, ...ranks });
  const optimizer = new AdamW(parameters, s);
  return Array.from({ length: n }, () => {
    const begun = performance.now();
    const l = loss(model, inputs.idx, inputs.targets, c, {
      head_chunk: s.head_chunk,
      starts: inputs.starts,
      recompute: s.recompute as Recompute,
    });
    optimizer.addLoss(l, 1, true);
    backward(l);
    endStep();
    synchronizeNow();
    const computed = performance.now();
    optimizer.step(0);
    synchronizeNow();
    return { micro_ms: computed - begun, update_ms: performance.now() - computed };
  });
}
