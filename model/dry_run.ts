// --dry_run: check data, check model, check memory, check speed. Trains nothing and writes nothing.
import { formatBytes, formatCount, formatSeconds, formatShort, table } from "../base/format.ts";
import type { Dataset } from "../data/bins.ts";
import { Loader } from "../data/loader.ts";
import { type Mix, partsOf } from "../data/mix.ts";
import { CYCLE } from "../data/order.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { chooseDevice, memoryUse, open, tokenSource } from "../ffi/library.ts";
import { oneLine } from "../base/visible.ts";
import { LEAST_KEPT } from "../runtime/checkpoint.ts";
import { peakFlops } from "../runtime/peak.ts";
import { describeStored, openModel, trainsOnHalf } from "./checkpoint.ts";
import { type DeviceSettings, openAndDescribe } from "./device.ts";
import { init, type LlamaConfig } from "./llama.ts";
import { plotSchedule, type Schedule } from "../runtime/schedule.ts";
import { cutsOf, tasksOf } from "./tasks.ts";
import { describeTrained } from "./trained.ts";
import { dataFacts } from "./report.ts";
import {
  chooseBatch,
  measureModel,
  memoryTable,
  modelSize,
  planMemory,
  planShared,
  roomFor,
  type Shared,
  type StepSettings,
  timeStep,
} from "./plan.ts";
import type { Larger } from "./presets.ts";

/** What --dry_run reads of the variables of train.ts. */
export type DryRunSettings = StepSettings & DeviceSettings & Schedule & {
  device: string;
  block_size: number;
  init_from: string;
  eval_interval: number;
  eval_tasks: string;
  eval_only: boolean;
  save_interval: number;
  keep_checkpoints: number;
};

const LONGEST_S = 30; // a micro-step that would take longer is not timed
const WINDOWS = 8; // of the first batch are shown
const LINKS = [ // bytes a second, of one direction
  ["NVLink, or eight 400G adapters a node", 350e9],
  ["one 400G adapter a node", 45e9],
  ["10G Ethernet", 1.2e9],
] as const;
const DISK = 1e9; // bytes a second that each rank is taken to write

/**
 * Prints the data, the model, tasks, FLOPs, the learning rate by steps, the memory plan by kind, the speed if a device answers, what the
 * whole run takes and gives, and the first batch decoded. larger: as of configure().
 */
export async function dryRun<T extends DryRunSettings>(
  config: T,
  world_size: number,
  larger: Larger<T>[] | undefined,
  c: LlamaConfig,
  dataset: Dataset | Mix,
  tokenizer: Tokenizer | undefined,
): Promise<void> {
  const model = init(c); // refuses what no device computes
  const tasks = tasksOf(config, tokenizer, c); // and what cannot be scored
  const wanted = config.device || chooseDevice().name;
  const opened = tryToOpen(config);
  const isOpen = "description" in opened, none = { config, reason: "" };
  const ranks = { world_size, least: (n: number) => Promise.resolve(n) }; // all are taken to be like this one
  const { config: chosen, reason } = isOpen ? await chooseBatch(config, larger, c, ranks) : none;
  const stored = chosen.init_from ? openModel(chosen.init_from) : undefined;
  const s = { ...chosen, world_size, half: stored && trainsOnHalf(c, stored) };
  const micro = s.batch_size * s.block_size, step = micro * s.gradient_accumulation_steps; // tokens
  const flops = measureModel(c).flops_per_token;
  const row = (what: string, text: string) => console.log(`${what.padEnd(6)} ${oneLine(text)}`);
  row("data", dataFacts(dataset));
  row("model", modelSize(c));
  if (stored) row("from", describeStored(stored));
  if (s.train || c.lora) row("train", describeTrained(model, s.train ?? ""));
  if (tasks.length > 0) {
    const names = tasks.map(({ name }) => name).join(", "),
      n = tasks.reduce((sum, { units }) => sum + units.length, 0);
    row("tasks", `${names}: ${formatCount(n)} questions or stretches of text at each evaluation`);
    for (const text of cutsOf(tasks, c)) row("", text);
  }
  row(
    "FLOPs",
    `${(flops / 1e9).toFixed(4)} GFLOP a token, ${
      (flops * step / 1e12).toFixed(2)
    } TFLOP a step of ${step} tokens`,
  );
  row("rate", `${s.schedule} schedule, by steps`);
  console.log(plotSchedule(s, terminalWidth() - 7).join("\n").replaceAll(/^/gm, "       "));
  if (reason) row("chosen", reason);
  const act = wanted === "cpu" ? "f32" : "bf16", shared = planShared(c, s, act);
  row("memory", `on ${wanted}, by kind${world_size > 1 ? `, of one of ${world_size} ranks` : ""}`);
  const plan = planMemory(c, s, act);
  console.log(memoryTable(plan).replaceAll(/^/gm, "       "));
  if (world_size > 1) row("comm", exchange(shared));
  row("save", saving(shared, s));
  let free: number | undefined, step_s: number | undefined;
  try {
    if ("error" in opened) throw opened.error;
    row("device", opened.description);
    free = memoryUse().free; // before the plan may take the place of the device
    const { fits, room } = roomFor(plan, c, s),
      speed = fits ? measure(s, c, micro, flops, shared) : { text: "not measured" };
    step_s = speed.step_s;
    row("free", room);
    row("speed", speed.text);
  } catch (error) {
    row("speed", `not measured: ${(error as Error).message}`);
    open("plan");
  }
  const loaderOf = (dataset: Dataset) =>
    new Loader(tokenSource, dataset, { ...s, vocab_size: c.vocab_size, split: "train" });
  const data = loaderOf(dataset);
  const epochs = partsOf(dataset).map(({ dataset, slots }) => (
    { dir: dataset.dir, tokens: loaderOf(dataset).n_windows * s.block_size, share: slots / CYCLE }
  ));
  const facts = { tokens: step, step_s, epochs, memory: plan, free };
  row("run", "what all of it takes and gives");
  console.log(
    costs(s, {
      ...facts,
      ...measureModel(c),
      checkpoint: shared.model + shared.optimizer,
      evaluates: dataset.val.length > 0,
    }).replaceAll(/^/gm, "       "),
  );
  const first = { seed: s.seed, sample: 0, micro: 0 };
  for (const window of data.trainWindows(first).slice(0, WINDOWS)) {
    const text = tokenizer ? `: ${JSON.stringify(data.decodeWindow(window, tokenizer).slice(0, 160))}` : "";
    row("batch", data.placeOf(window) + text);
  }
}

/** Columns to draw in; 80 where it is not a terminal, or one that does not say. */
function terminalWidth(): number {
  return Deno.stdout.isTerminal() && Deno.consoleSize().columns || 80;
}

function tryToOpen(s: DryRunSettings): { description: string } | { error: unknown } {
  try {
    return { description: openAndDescribe(s.device, s) };
  } catch (error) {
    return { error };
  }
}

/** What ranks send each other once a step, and how long that takes. */
function exchange({ exchanged }: Shared): string {
  const times = LINKS.map(([link, rate]) =>
    `${formatTime(exchanged / rate)} over ${link} (${rate / 1e9} GB/s)`
  );
  return `each rank sends and receives ${
    formatBytes(exchanged)
  } a step, gradients beside the last backward pass: ${times.join(", ")}`;
}

/** How large checkpoints are, and how long the slowest rank, the first one, writes its part. */
function saving({ model, optimizer }: Shared, s: DryRunSettings): string {
  const { world_size = 1 } = s, part = optimizer / world_size;
  const parts = world_size > 1
    ? ` by rank 0, optimizer ${formatBytes(optimizer)}, ${formatBytes(part)} by each rank`
    : `, optimizer ${formatBytes(optimizer)}`;
  return `a checkpoint has ${formatBytes(model + optimizer)}: model ${
    formatBytes(model)
  }${parts}; written in ` +
    `${formatTime((model + part) / DISK)} at 1 GB/s a rank; ${newestKept(s)} and the best are kept`;
}

function newestKept({ keep_checkpoints }: Pick<DryRunSettings, "keep_checkpoints">): number {
  return Math.max(LEAST_KEPT, keep_checkpoints);
}

function formatTime(seconds: number): string {
  if (seconds >= 10) return formatSeconds(seconds);
  return seconds >= 1 ? `${seconds.toFixed(1)} s` : `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
}

/** The speed in words, and seconds of a step: of several ranks with the exchange over the link in the middle. */
function measure(
  s: DryRunSettings,
  c: LlamaConfig,
  micro: number,
  flops: number,
  { exchanged }: Shared,
): { text: string; step_s?: number } {
  const expected_s = flops * micro / (0.5 * (peakFlops()?.flops ?? 1e12)); // at half the peak
  if (expected_s > LONGEST_S) {
    return { text: `not measured: a micro-step would take about ${expected_s.toFixed(0)} s here` };
  }
  const { micro_ms, update_ms } = timeStep(c, s), { world_size = 1 } = s;
  const alone = `${formatCount(micro / micro_ms * 1000)} tokens/s, forward and backward`;
  const micro_steps = Math.ceil(s.gradient_accumulation_steps / world_size),
    computing_s = micro_steps * micro_ms / 1000;
  const step_s = computing_s + update_ms / 1000 + exchanged / LINKS[1][1];
  if (world_size === 1) return { text: alone, step_s };
  const shares = LINKS.map(([, rate]) =>
    `${(100 * exchanged / rate / (computing_s + exchanged / rate)).toFixed(1)}%`
  );
  const text =
    `${alone}, by one rank; it computes ${
      formatTime(computing_s)
    } of a step (${micro_steps} micro-steps), and the ` +
    `exchange is ${shares.join(", ")} of the whole step`;
  return { text, step_s };
}

/** What costs() is made of, beside the variables. */
export type Costs = {
  /** Of a step. */
  tokens: number;
  /** How long a step takes, where that was measured. */
  step_s: number | undefined;
  /** Of each dataset of a mix, or of the one that there is: tokens in a pass over it, and its share of a run. */
  epochs: { dir: string; tokens: number; share: number }[];
  /** Bytes of a checkpoint. */
  checkpoint: number;
  /** Whether there is a best one. */
  evaluates: boolean;
  /** Bytes that a step takes by kind. */
  memory: Record<string, number>;
  /** Bytes that are free for it, where a device is open. */
  free: number | undefined;
  /** Of the model. */
  parameters: number;
};

const CHINCHILLA = 20; // tokens a parameter with which a model of a given compute is best (Hoffmann et al. 2022)

/** What a whole run takes and gives, as a table: a name, a figure, and what it is of. */
export function costs(
  s: Pick<
    DryRunSettings,
    "max_iters" | "eval_interval" | "save_interval" | "keep_checkpoints" | "init_from" | "world_size"
  >,
  { tokens, step_s, epochs, checkpoint, evaluates, memory, free, parameters }: Costs,
): string {
  const all = s.max_iters * tokens, enough = CHINCHILLA * parameters, { world_size = 1 } = s;
  const saved = s.save_interval > 0 ? Math.ceil(s.max_iters / s.save_interval) : 0,
    hasBest = evaluates && s.eval_interval > 0;
  const kept = Math.min(saved, newestKept(s) + Number(hasBest));
  const needed = Object.values(memory).reduce((a, b) => a + b, 0);
  const by = world_size > 1 ? `, ${world_size} ranks with ${LINKS[1][0]}` : "";
  const rows = [
    ["steps", formatCount(s.max_iters), `of ${formatCount(tokens)} tokens, ${formatShort(all)} in all`],
    step_s === undefined ? ["time", "-", "as no speed was measured"] : [
      "time",
      formatTime(step_s * s.max_iters),
      `at ${formatCount(tokens / step_s)} tokens/s${by}; evaluating and saving come to it`,
    ],
    ...epochs.map(({ dir, tokens, share }, i) => {
      const n = all * share / tokens, of = epochs.length > 1 ? ` in ${oneLine(dir)}` : "";
      return [i === 0 ? "epochs" : "", n.toFixed(n < 1 ? 2 : 1), `of ${formatShort(tokens)} tokens${of}`];
    }),
    [
      "disk",
      formatBytes(kept * checkpoint),
      `${kept} of ${saved} checkpoints of ${formatBytes(checkpoint)} are kept`,
    ],
    [
      "memory",
      formatBytes(needed),
      free === undefined ? "as planned; no device is open" : `of ${formatBytes(free)} that are free`,
    ],
    ...s.init_from ? [] : [[
      "ratio",
      (all / parameters).toFixed(1),
      `tokens a parameter; Chinchilla's ${CHINCHILLA} are ${formatShort(enough)}, ${
        formatCount(Math.ceil(enough / tokens))
      } steps`,
    ]],
  ];
  const width = Math.max(...rows.map(([, figure]) => figure!.length));
  return table(rows.map(([what, figure, how]) => [what!, figure!.padStart(width), how!]));
}
