// --dry_run: check data, check model, check memory, check speed. Trains nothing and writes nothing.
import { formatCount } from "../base/format.ts";
import type { Dataset } from "../data/bins.ts";
import { Loader } from "../data/loader.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { chooseDevice, open, type OpenOptions, tokenSource } from "../ffi/library.ts";
import { oneLine } from "../base/visible.ts";
import { peakFlops } from "../runtime/peak.ts";
import { describeStored } from "./checkpoint.ts";
import type { Larger } from "./configure.ts";
import { openAndDescribe } from "./device.ts";
import { init, type LlamaConfig } from "./llama.ts";
import { describeTrained } from "./trained.ts";
import { dataFacts } from "./report.ts";
import {
  chooseBatch,
  measureModel,
  memoryTable,
  modelSize,
  planMemory,
  roomFor,
  type StepSettings,
  timeMicroStep,
} from "./plan.ts";

/** What --dry_run reads of the variables of train.ts. */
export type DryRunSettings = StepSettings & OpenOptions & {
  device: string;
  block_size: number;
  init_from: string;
};

const LONGEST_S = 30; // a micro-step that would take longer is not timed
const WINDOWS = 8; // of the first batch are shown

/**
 * Prints the data, the model, the memory plan by kind, FLOPs, the speed if a device answers, and the first batch decoded. larger:
 * as of configure().
 */
export async function dryRun<T extends DryRunSettings>(
  config: T,
  larger: Larger<T>[] | undefined,
  c: LlamaConfig,
  dataset: Dataset,
  tokenizer: Tokenizer | undefined,
): Promise<void> {
  const model = init(c); // refuses what no device computes
  const wanted = config.device || chooseDevice().name;
  const opened = tryToOpen(config);
  const isOpen = "description" in opened, none = { config, reason: "" };
  const { config: s, reason } = isOpen ? await chooseBatch(config, larger, c) : none;
  const micro = s.batch_size * s.block_size, step = micro * s.gradient_accumulation_steps; // tokens
  const flops = measureModel(c).flops_per_token;
  const row = (what: string, text: string) => console.log(`${what.padEnd(6)} ${oneLine(text)}`);
  row("data", dataFacts(dataset));
  row("model", modelSize(c));
  if (s.init_from) row("from", describeStored(s.init_from));
  if (s.train) row("train", describeTrained(model, s.train));
  row(
    "FLOPs",
    `${(flops / 1e9).toFixed(4)} GFLOP a token, ${
      (flops * step / 1e12).toFixed(2)
    } TFLOP a step of ${step} tokens`,
  );
  if (reason) row("chosen", reason);
  row("memory", `on ${wanted}, by kind`);
  const plan = planMemory(c, s, wanted === "cpu" ? "f32" : "bf16");
  console.log(memoryTable(plan).replaceAll(/^/gm, "       "));
  try {
    if ("error" in opened) throw opened.error;
    row("device", opened.description);
    const { fits, room } = roomFor(plan, c, s);
    row("free", room);
    row("speed", fits ? speed(s, c, micro, flops) : "not measured");
  } catch (error) {
    row("speed", `not measured: ${(error as Error).message}`);
    open("plan");
  }
  const data = new Loader(tokenSource, dataset, { ...s, vocab_size: c.vocab_size, split: "train" });
  const first = { seed: s.seed, sample: 0, micro: 0 };
  for (const window of data.trainWindows(first).slice(0, WINDOWS)) {
    const text = tokenizer ? `: ${JSON.stringify(data.decodeWindow(window, tokenizer).slice(0, 160))}` : "";
    row("batch", data.placeOf(window) + text);
  }
}

function tryToOpen(s: DryRunSettings): { description: string } | { error: unknown } {
  try {
    return { description: openAndDescribe(s.device, s) };
  } catch (error) {
    return { error };
  }
}

function speed(s: DryRunSettings, c: LlamaConfig, micro: number, flops: number): string {
  const expected_s = flops * micro / (0.5 * (peakFlops()?.flops ?? 1e12)); // at half the peak
  if (expected_s > LONGEST_S) {
    return `not measured: a micro-step would take about ${expected_s.toFixed(0)} s here`;
  }
  const tokens_per_sec = Math.round(micro / timeMicroStep(c, s) * 1000);
  return `${formatCount(tokens_per_sec)} tokens/s, forward and backward`;
}
