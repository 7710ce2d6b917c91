// GET /metrics: the runs in Prometheus' text format, base units throughout.
import { statsOf } from "./stats.ts";
import type { Run } from "./runs.ts";
import { type RanksSeen, STATES, type Stats, type Verdict } from "./types.ts";

/** A metric; value gives null where a run does not know it. */
type Metric = {
  name: string;
  type: "gauge" | "counter";
  help: string;
  value: (stats: Stats) => number | null;
};

const METRICS: Metric[] = [
  { name: "loam_steps_total", type: "counter", help: "Optimizer steps done.", value: (s) => s.step },
  {
    name: "loam_max_steps",
    type: "gauge",
    help: "Steps after which the run ends.",
    value: (s) => s.max_iters,
  },
  { name: "loam_tokens_total", type: "counter", help: "Tokens trained on.", value: (s) => s.tokens },
  {
    name: "loam_epochs",
    type: "gauge",
    help: "Passes over the training data so far, with a fraction.",
    value: (s) => s.epoch,
  },
  {
    name: "loam_loss",
    type: "gauge",
    help: "Training cross entropy of the last step, in nats a token.",
    value: (s) => s.loss,
  },
  {
    name: "loam_validation_loss",
    type: "gauge",
    help: "Cross entropy over the evaluation windows when it was last measured, in nats a token.",
    value: (s) => s.val_loss,
  },
  {
    name: "loam_validation_bits_per_byte",
    type: "gauge",
    help: "The same in bits per byte of text.",
    value: (s) => s.val_bpb,
  },
  {
    name: "loam_best_validation_loss",
    type: "gauge",
    help: "The least so far.",
    value: (s) => s.best_val_loss,
  },
  { name: "loam_learning_rate", type: "gauge", help: "Learning rate of the last step.", value: (s) => s.lr },
  {
    name: "loam_gradient_norm",
    type: "gauge",
    help: "Norm of the gradient of the last step before clipping.",
    value: (s) => s.grad_norm,
  },
  {
    name: "loam_tokens_per_second",
    type: "gauge",
    help: "Tokens trained on in the last step over its duration.",
    value: (s) => s.tokens_per_sec,
  },
  {
    name: "loam_step_duration_seconds",
    type: "gauge",
    help: "Duration of the last step.",
    value: (s) => s.step_ms === null ? null : s.step_ms / 1000,
  },
  {
    name: "loam_model_flops_utilization_ratio",
    type: "gauge",
    help: "FLOPs of the model in the last step over what the device could have done.",
    value: (s) => s.mfu,
  },
  {
    name: "loam_memory_bytes",
    type: "gauge",
    help: "Resident memory of the trainer on a CPU, peak of allocated memory on a GPU.",
    value: (s) => s.memory_bytes,
  },
  {
    name: "loam_skipped_updates_total",
    type: "counter",
    help: "Updates left out because loss or gradient norm was not finite.",
    value: (s) => s.skipped,
  },
  {
    name: "loam_steps_duration_seconds_total",
    type: "counter",
    help: "Time spent in steps.",
    value: (s) => s.elapsed_s,
  },
  {
    name: "loam_last_step_age_seconds",
    type: "gauge",
    help: "Time since the last step was written.",
    value: (s) => s.age_s,
  },
  {
    name: "loam_remaining_seconds",
    type: "gauge",
    help: "Expected time until the run ends.",
    value: (s) => s.eta_s,
  },
];

const LEVELS: Verdict["level"][] = ["good", "warn", "bad"];

/** A metric of each rank of a run. */
type RankMetric = Omit<Metric, "value"> & { values: (ranks: RanksSeen) => number[] };

const RANK_METRICS: RankMetric[] = [
  {
    name: "loam_rank_step_duration_seconds",
    type: "gauge",
    help: "Duration of a rank's own work in a step, without waiting for the others.",
    values: ({ step_ms }) => step_ms.map((ms) => ms / 1000),
  },
  {
    name: "loam_rank_memory_bytes",
    type: "gauge",
    help: "Memory of a rank, as loam_memory_bytes.",
    values: ({ memory_bytes }) => memory_bytes,
  },
  {
    name: "loam_rank_slowest",
    type: "gauge",
    help: "Whether a rank's own work took longest: 1 for one of them, else 0.",
    values: ({ step_ms, slowest }) => step_ms.map((_, rank) => Number(rank === slowest)),
  },
];

/** The text for some runs as they stand at their last refresh. */
export function prometheusText(runs: Run[]): string {
  const stats = runs.map(statsOf);
  const blocks = METRICS.map((metric) => {
    const samples = stats.flatMap((s) => sample(metric.name, { run: s.run }, metric.value(s)));
    return block(metric, samples);
  });
  const ofRanks = RANK_METRICS.map((metric) => {
    const samples = stats.flatMap(({ run, ranks }) =>
      ranks
        ? metric.values(ranks).flatMap((value, rank) =>
          sample(metric.name, { run, rank: String(rank) }, value)
        )
        : []
    );
    return block(metric, samples);
  });
  const states = stats.flatMap((s) =>
    STATES.flatMap((state) => sample("loam_run_state", { run: s.run, state }, Number(s.state === state)))
  );
  const levels = stats.flatMap(({ run, health }) =>
    LEVELS.flatMap((level) => sample("loam_run_health", { run, level }, Number(health.level === level)))
  );
  const oneOf = (name: string, what: string, samples: string[]) =>
    block({ name, type: "gauge", help: `Whether the run ${what}: 1 for one of them, else 0.` }, samples);
  const ofRuns = [
    oneOf("loam_run_state", "is in this state", states),
    oneOf("loam_run_health", "does so well, as the sentence of /stats says", levels),
  ];
  return [...blocks, ...ofRanks, ...ofRuns].join("");
}

/** The lines of a metric; none where no run knows its value. */
function block({ name, type, help }: Omit<Metric, "value">, samples: string[]): string {
  if (samples.length === 0) return "";
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...samples, ""].join("\n");
}

function sample(name: string, labels: Record<string, string>, value: number | null): string[] {
  if (value === null) return [];
  const text = Object.entries(labels).map(([label, of]) => `${label}="${escapeLabel(of)}"`).join(",");
  return [`${name}{${text}} ${value}`];
}

function escapeLabel(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
