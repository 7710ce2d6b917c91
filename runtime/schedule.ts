// The learning rate of each step: a linear warm-up, and then one of four schedules.

/** What the rate does after the warm-up; see learningRate(). */
export const SCHEDULES = ["cosine", "wsd", "linear", "constant"] as const;

/** Settings of cosineSchedule(). */
export type CosineSchedule = {
  learning_rate: number; // highest, after the warm-up
  min_lr: number; // where it ends
  warmup_iters: number;
  max_iters: number;
};

/** Settings of learningRate(). */
export type Schedule = CosineSchedule & {
  schedule: string; // one of SCHEDULES
  cooldown_iters: number; // of wsd; 0 = a fifth of max_iters
};

/**
 * Learning rate of a step (from 0): linear warm-up over warmup_iters, then down to min_lr at max_iters: along half a cosine; wsd
 * (warm-up, stable, decay) along a line over the last cooldown_iters; linear along one from the warm-up on; constant never.
 */
export function learningRate(step: number, s: Schedule): number {
  if (s.schedule === "cosine") return cosineSchedule(step, s);
  if (step < s.warmup_iters) return warmup(step, s);
  const left = Math.max(0, s.max_iters - step), cooldown = cooldownOf(s);
  if (left >= cooldown) return s.learning_rate;
  return s.min_lr + (s.learning_rate - s.min_lr) * left / cooldown;
}

/** Linear warm-up over warmup_iters, then half a cosine down to min_lr at max_iters. */
export function cosineSchedule(step: number, s: CosineSchedule): number {
  if (step < s.warmup_iters) return warmup(step, s);
  if (step >= s.max_iters) return s.min_lr;
  const progress = (step - s.warmup_iters) / Math.max(1, s.max_iters - s.warmup_iters);
  return s.min_lr + 0.5 * (1 + Math.cos(Math.PI * progress)) * (s.learning_rate - s.min_lr);
}

function warmup(step: number, s: CosineSchedule): number {
  return s.learning_rate * (step + 1) / s.warmup_iters;
}

/** The last so many steps, in which the rate of a schedule falls along a line. */
export function cooldownOf({ schedule, warmup_iters, cooldown_iters, max_iters }: Schedule): number {
  if (schedule === "linear") return max_iters - warmup_iters;
  if (schedule === "wsd") return cooldown_iters || Math.floor(max_iters / 5);
  return 0;
}

const HEIGHT = 5; // lines of a plot

/** The rates of all steps as a plot of so many columns, to be looked at before a run: two points of height a line. */
export function plotSchedule(s: Schedule, width: number): string[] {
  const peak = `${s.learning_rate}`, columns = Math.max(2, width - peak.length - 2);
  const heights = Array.from({ length: columns }, (_, i) => {
    const step = Math.round(i / (columns - 1) * (s.max_iters - 1));
    return Math.round((2 * HEIGHT - 1) * learningRate(step, s) / (s.learning_rate || 1));
  });
  const lines = Array.from({ length: HEIGHT }, (_, i) => {
    const line = HEIGHT - 1 - i, label = i === 0 ? peak : line === 0 ? "0" : "";
    const points = heights.map((height) => height >> 1 !== line ? " " : height % 2 ? "'" : ".").join("");
    return `${label.padStart(peak.length)} |${points}`.trimEnd();
  });
  const last = `${s.max_iters}`;
  return [...lines, `${" ".repeat(peak.length + 2)}1${last.padStart(columns - 1)}`];
}
