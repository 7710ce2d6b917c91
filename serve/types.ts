// The JSON that the server sends. Every quantity is documented once more, for programs, in serve/openapi.ts.

/**
 * running: its trainer is at work; stalled: it is there, but no step came for long; stopped: by a signal, say; finished:
 * max_iters was reached; failed: over an error, or its process was killed.
 */
export type RunState = typeof STATES[number];
/** Every RunState. */
export const STATES = ["running", "stalled", "stopped", "finished", "failed"] as const;

/** What has a history: the columns of metrics.jsonl, and the time spent in steps so far. */
export const KEYS = [
  "step",
  "loss",
  "lr",
  "grad_norm",
  "tokens",
  "tokens_per_sec",
  "step_ms",
  "mfu",
  "memory_bytes",
  "skipped",
  "val_loss",
  "val_bpb",
  "task_acc_norm",
  "elapsed_s",
] as const;
/** The name of such a column. */
export type Key = typeof KEYS[number];

/** A text that the model wrote during training. */
export type Sample = { step: number; text: string };

/** What the graphics card reports; null where it does not. */
export type Gpu = {
  utilization: number | null; // share of the last moments in which a kernel was running, 0 to 1
  power_w: number | null; // watts
  temperature_c: number | null; // degrees Celsius
};

/** Whether a run does well, in one sentence. bad: it has failed, stands still or computes nothing; warn: worth a look. */
export type Verdict = { level: "good" | "warn" | "bad"; text: string };

/** How the loss of the last steps compares with as many before. change: relative, -0.02 is 2% lower. */
export type Trend = { is: "falling" | "flat" | "rising"; change: number; steps: number };

/** The ranks of a run, in order of their numbers. */
export type RanksSeen = {
  slowest: number; // whose own work took longest, which the others wait for
  step_ms: number[]; // of each one's own work in a step, without waiting for the others
  memory_bytes: number[];
};

/** GET /stats: a run as it stands. A value that is not known, or not finite, is null. */
export type Stats = {
  run: string;
  state: RunState;
  error: string | null; // why it failed
  health: Verdict;
  started: string | null; // ISO 8601: when the process began that trains it, or trained it last
  ended_at: string | null; // ISO 8601: when that process ended, where it could still say so
  age_s: number; // since the last step was written
  device: string | null;
  model: string | null; // "0.8M parameters, 0.8M without embeddings"
  parameters: number | null;
  step: number;
  max_iters: number | null;
  epoch: number | null; // passes over the training data so far, with a fraction
  tokens: number | null;
  loss: number | null; // nats a token, as are the next two
  trend: Trend | null; // of the loss
  val_loss: number | null; // the last one measured
  val_bpb: number | null; // the same in bits per byte of text
  best_val_loss: number | null;
  best_step: number | null;
  lr: number | null;
  grad_norm: number | null;
  tokens_per_sec: number | null;
  step_ms: number | null;
  mfu: number | null; // 0 to 1
  memory_bytes: number | null;
  memory: Record<string, number> | null; // bytes by kind
  ranks: RanksSeen | null; // of a run on several, when a line of log.txt was written last
  skipped: number;
  elapsed_s: number; // spent in steps, by all processes that trained the run
  eta_s: number | null; // only while it is running
  bad_lines: number; // of metrics.jsonl, that could not be read
  checkpoint: string | null; // the newest: "step_000200"
  sample: Sample | null;
  gpu: Gpu | null;
  versions: Record<string, string>;
  config: Record<string, unknown>;
};

/** What the list of runs has of each as /stats has it. */
export const LISTED = [
  ...["state", "error", "health", "started", "ended_at", "step", "max_iters"] as const,
  ...["loss", "val_loss", "val_bpb", "tokens_per_sec", "eta_s"] as const,
] as const;

/** A run in the list of GET /runs. */
export type RunSummary = Pick<Stats, typeof LISTED[number]> & { name: string; preset: string | null };

/** GET /runs */
export type Runs = { runs: RunSummary[] };

/**
 * Values at steps, in order; null where they were not finite. mean: of the stretch of steps that a point stands for; the value
 * itself if for no other.
 */
export type Series = { step: number[]; value: (number | null)[]; mean: (number | null)[] };

/** GET /stats/history */
export type History = { run: string; series: Partial<Record<Key, Series>> };

/** GET /samples: the oldest first */
export type Samples = { run: string; samples: Sample[] };

/** GET /log */
export type Log = { run: string; lines: string[] };

/** GET /healthz */
export type Health = {
  healthy: boolean;
  reason: string | null; // why not
  runs: { name: string; state: RunState; age_s: number }[];
};

/** Any answer that is not what was asked for, as OpenAI's API has it. */
export type Failure = { error: { message: string; type: string; param: string | null; code: string | null } };
