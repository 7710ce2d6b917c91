// GET /metrics: the runs in Prometheus' text format, base units throughout.
import { statsOf } from "./stats.ts";
import type { Run } from "./runs.ts";
import { type RanksSeen, STATES, type Stats, type Verdict } from "./types.ts";

type Labels = Record<string, string>;

/** A metric. values: of a run, each with the labels that tell it from others of the run; null where the run does not know it. */
type Metric = {
  name: string;
  type: "gauge" | "counter";
  help: string;
  values: (stats: Stats) => [labels: Labels, value: number | null][];
};

const LEVELS: Verdict["level"][] = ["good", "warn", "bad"];

const METRICS: Metric[] = [
  counter("loam_steps_total", "Optimizer steps done.", (s) => s.step),
  gauge("loam_max_steps", "Steps after which the run ends.", (s) => s.max_iters),
  counter("loam_tokens_total", "Tokens trained on.", (s) => s.tokens),
  gauge("loam_epochs", "Passes over the training data so far, with a fraction.", (s) => s.epoch),
  gauge("loam_loss", "Training cross entropy of the last step, in nats a token.", (s) => s.loss),
  gauge(
    "loam_validation_loss",
    "Cross entropy over the evaluation windows when it was last measured, in nats a token.",
    (s) => s.val_loss,
  ),
  gauge("loam_validation_bits_per_byte", "The same in bits per byte of text.", (s) => s.val_bpb),
  gauge("loam_best_validation_loss", "The least so far.", (s) => s.best_val_loss),
  gauge("loam_learning_rate", "Learning rate of the last step.", (s) => s.lr),
  gauge("loam_gradient_norm", "Norm of the gradient of the last step before clipping.", (s) => s.grad_norm),
  gauge(
    "loam_tokens_per_second",
    "Tokens trained on in the last step over its duration.",
    (s) => s.tokens_per_sec,
  ),
  gauge(
    "loam_step_duration_seconds",
    "Duration of the last step.",
    (s) => s.step_ms === null ? null : s.step_ms / 1000,
  ),
  gauge(
    "loam_model_flops_utilization_ratio",
    "FLOPs of the model in the last step over what the device could have done.",
    (s) => s.mfu,
  ),
  gauge(
    "loam_memory_bytes",
    "Resident memory of the trainer on a CPU, peak of allocated memory on a GPU.",
    (s) => s.memory_bytes,
  ),
  counter(
    "loam_skipped_updates_total",
    "Updates left out because loss or gradient norm was not finite.",
    (s) => s.skipped,
  ),
  counter("loam_steps_duration_seconds_total", "Time spent in steps.", (s) => s.elapsed_s),
  gauge("loam_last_step_age_seconds", "Time since the last step was written.", (s) => s.age_s),
  gauge("loam_remaining_seconds", "Expected time until the run ends.", (s) => s.eta_s),
  ofRanks(
    "loam_rank_step_duration_seconds",
    "Duration of a rank's own work in a step, without waiting for the others.",
    ({ step_ms }) => step_ms.map((ms) => ms / 1000),
  ),
  ofRanks(
    "loam_rank_memory_bytes",
    "Memory of a rank, as loam_memory_bytes.",
    ({ memory_bytes }) => memory_bytes,
  ),
  ofRanks(
    "loam_rank_slowest",
    "Whether a rank's own work took longest: 1 for one of them, else 0.",
    ({ step_ms, slowest }) => step_ms.map((_, rank) => Number(rank === slowest)),
  ),
  oneOf("loam_run_state", "is in this state", "state", STATES, (s) => s.state),
  oneOf(
    "loam_run_health",
    "does so well, as the sentence of /stats says",
    "level",
    LEVELS,
    (s) => s.health.level,
  ),
];

function gauge(name: string, help: string, of: (stats: Stats) => number | null): Metric {
  return { name, type: "gauge", help, values: (stats) => [[{}, of(stats)]] };
}

function counter(name: string, help: string, of: (stats: Stats) => number | null): Metric {
  return { ...gauge(name, help, of), type: "counter" };
}

/** A value for each rank of a run. */
function ofRanks(name: string, help: string, of: (ranks: RanksSeen) => number[]): Metric {
  const values = ({ ranks }: Stats): [Labels, number][] =>
    (ranks ? of(ranks) : []).map((value, rank) => [{ rank: `${rank}` }, value]);
  return { name, type: "gauge", help, values };
}

/** Which of some words is that of a run. */
function oneOf(
  name: string,
  what: string,
  label: string,
  words: readonly string[],
  of: (stats: Stats) => string,
): Metric {
  const values = (stats: Stats): [Labels, number][] =>
    words.map((word) => [{ [label]: word }, Number(word === of(stats))]);
  return { name, type: "gauge", help: `Whether the run ${what}: 1 for one of them, else 0.`, values };
}

/** The text for some runs as they stand at their last refresh. */
export function prometheusText(runs: Run[]): string {
  const stats = runs.map(statsOf);
  return METRICS.map((metric) => block(metric, stats)).join("");
}

/** The lines of a metric; none where no run knows its value. */
function block({ name, type, help, values }: Metric, stats: Stats[]): string {
  const samples = stats.flatMap((s) =>
    values(s).filter(([, value]) => value !== null)
      .map(([labels, value]) => `${name}{${labelled({ run: s.run, ...labels })}} ${value}`)
  );
  if (samples.length === 0) return "";
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...samples, ""].join("\n");
}

function labelled(labels: Labels): string {
  return Object.entries(labels).map(([label, of]) => `${label}="${escapeLabel(of)}"`).join(",");
}

function escapeLabel(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
