// Whether a run does well, in one sentence: what is wrong first, then how its loss, gradient and speed are.
import { formatCount, formatSeconds } from "../base/format.ts";
import { RECENT_OF_RANKS, type Table } from "./table.ts";
import type { Stats, Trend, Verdict } from "./types.ts";

/** What the sentence is about: what /stats says of a run. */
export type Facts = Pick<
  Stats,
  | "state"
  | "error"
  | "age_s"
  | "step"
  | "max_iters"
  | "loss"
  | "trend"
  | "grad_norm"
  | "val_loss"
  | "best_val_loss"
  | "best_step"
  | "skipped"
  | "eta_s"
  | "bad_lines"
  | "checkpoint"
>;

type Level = Verdict["level"];

const good = (text: string): Verdict => ({ level: "good", text });
const warn = (text: string): Verdict => ({ level: "warn", text });
const bad = (text: string): Verdict => ({ level: "bad", text });

const FEWEST = 5; // steps in a mean of the trend
const RISEN = 0.02, MOVED = 0.001; // relative changes from which a loss has risen, and has changed at all
const JUMPED = 0.1; // relative, of the last steps against those just before
const OVERFITTED = 0.02; // relative, of a validation loss above its best
const SPIKE = 5, WINDOW = 1000; // times the median of so many steps, at most
const RECENT = 20; // steps whose speed counts as the present one
const SLOWER = 0.8, FASTER = 1.25; // of the median
const SLOW_RANK = 1.2; // times what the middle one of the others takes
const SAMPLED = 500; // steps, evenly spread, that stand for all
const TAIL = 0.02; // of the values at either end, that a mean leaves out

/** The sentence, and how urgent it is: bad if the run has failed, stands still or computes nothing; warn: worth a look. */
export function verdictOf(facts: Facts, table: Table): Verdict {
  const { state, step } = facts;
  if (step === 0 && state === "running") return good("It has begun: no step yet");
  const found = [
    stateOf(facts),
    ...lost(facts),
    ...skipped(facts),
    ...trendClause(facts, table),
    ...validation(facts, table),
    ...spikes(table),
    ...state === "running" ? [...speed(table), ...slowRank(table)] : [],
    ...unread(facts),
    ...timeLeft(facts),
  ];
  const of = (level: Level) => found.filter((clause) => clause.level === level);
  const level = of("bad").length > 0 ? "bad" : of("warn").length > 0 ? "warn" : "good";
  const kept = level === "bad" ? [...of("bad"), ...of("warn")] : [...of("warn"), ...of("good")];
  const lead = found[0]!,
    others = kept.filter((clause) => clause !== lead).map(({ text }) => text).join("; ");
  if (state !== "running") return { level, text: [lead.text, others].filter(Boolean).join("; ") };
  return { level, text: `${LEADS[level]}: ${others || `${count(step, "step", "steps")} so far`}` };
}
const LEADS = { good: "Healthy", warn: "Worth a look", bad: "In trouble" };

/** What the run does, or how it ended. */
function stateOf(facts: Facts): Verdict {
  const { state, error, age_s, step, max_iters, checkpoint } = facts;
  const where = `after step ${formatCount(step)}${max_iters === null ? "" : ` of ${formatCount(max_iters)}`}`;
  const onward = checkpoint === null ? "no checkpoint was saved" : `--resume goes on from ${checkpoint}`;
  switch (state) {
    case "failed":
      if (error?.includes("--resume")) return bad(`Failed ${where}: ${error}`); // it says so itself
      return bad(`Failed ${where}: ${error}; ${onward}`);
    case "stalled":
      return bad(`Stalled: no step for ${formatSeconds(age_s)}, but the trainer is still there`);
    case "stopped":
      return warn(`Stopped ${where}; ${onward}`);
    case "finished":
      return good(`Finished after ${formatCount(step)} steps`);
    case "running":
      return good("");
  }
}

function lost({ step, loss, grad_norm }: Facts): Verdict[] {
  if (step === 0 || (loss !== null && grad_norm !== null)) return [];
  const what = loss === null ? "loss" : "the gradient norm";
  return [bad(`${what} is not finite at step ${formatCount(step)}`)];
}

function skipped({ skipped }: Facts): Verdict[] {
  if (skipped === 0) return [];
  const what = count(skipped, "update was", "updates were");
  return [warn(`${what} skipped, because loss or gradient norm was not finite`)];
}

/**
 * How the loss of the last tenth of the steps compares with the tenth before; null before 50 steps, and where one of them is
 * not finite throughout. It is rising only where it is 2% higher, falling where it is 0.1% lower, and either by more than its
 * noise explains.
 */
export function trendOf(table: Table): Trend | null {
  const loss = table.column("loss"), step = table.column("step"), n = Math.floor(loss.length / 10);
  if (n < FEWEST) return null;
  const newest = moments(loss.subarray(-n)), older = moments(loss.subarray(-2 * n, -n));
  const difference = newest.mean - older.mean, change = difference / Math.abs(older.mean);
  if (Number.isNaN(change)) return null;
  const isNoise = Math.abs(difference) < 3 * Math.sqrt(newest.variance / newest.n + older.variance / older.n);
  const is = isNoise ? "flat" : change > RISEN ? "rising" : change < -MOVED ? "falling" : "flat";
  return { is, change, steps: step.at(-1)! - step.at(-1 - n)! };
}

function trendClause({ state, loss, trend }: Facts, table: Table): Verdict[] {
  const jump = loss === null ? 0 : jumpOf(table);
  if (jump > JUMPED) {
    return [warn(`loss has jumped: ${percent(jump)} above what it was ${RECENT} steps ago`)];
  }
  if (!trend || loss === null) return [];
  const { is, change, steps } = trend, how = `${percent(Math.abs(change))} in ${formatCount(steps)} steps`;
  const verb = state === "running" ? "is" : "was";
  if (is === "flat") return [good(`loss ${verb} flat over ${formatCount(steps)} steps`)];
  return [{ level: is === "rising" ? "warn" : "good", text: `loss ${verb} ${is}, ${how}` }];
}

/** How far the mean loss of the last steps lies above that of as many before, where noise does not explain it; else 0. */
function jumpOf(table: Table): number {
  const loss = table.column("loss").subarray(-5 * RECENT);
  if (loss.length < 5 * RECENT) return 0;
  const newest = moments(loss.subarray(-RECENT)), older = moments(loss.subarray(0, -RECENT));
  const difference = newest.mean - older.mean;
  return difference > 3 * Math.sqrt(older.variance) ? difference / Math.abs(older.mean) : 0;
}

/** The validation loss against its best, and else against the training loss around the step where it was measured. */
function validation({ val_loss, best_val_loss, best_step, trend }: Facts, table: Table): Verdict[] {
  if (val_loss === null || best_val_loss === null) return [];
  const above = val_loss / best_val_loss - 1;
  if (above > OVERFITTED) {
    const best = `its best, of step ${formatCount(best_step ?? 0)}`;
    const why = trend?.is === "falling" ? ", while training loss falls: it overfits" : "";
    return [warn(`validation loss is ${percent(above)} above ${best}${why}`)];
  }
  const row = table.column("val_loss").findLastIndex(Number.isFinite), around = Math.ceil(table.length / 100);
  const { mean } = moments(table.column("loss").subarray(Math.max(0, row - around), row + around + 1));
  if (Number.isNaN(mean)) return [];
  const gap = val_loss - mean, side = gap < 0 ? "below" : "above";
  return [good(`validation loss is ${Math.abs(gap).toFixed(2)} ${side} training loss`)];
}

/** Gradient norms of the last tenth of the steps that are many times their median. */
function spikes(table: Table): Verdict[] {
  const n = Math.min(WINDOW, Math.max(100, Math.ceil(table.length / 10)));
  const norms = table.column("grad_norm").subarray(-n), steps = table.column("step").subarray(-n);
  const middle = median(norms);
  if (table.length < 50 || Number.isNaN(middle)) return [];
  const high = Array.from(norms.keys()).filter((i) =>
    norms[i]! > SPIKE * middle && Number.isFinite(norms[i])
  );
  if (high.length === 0) return [good("the gradient norm is steady")];
  const highest = high.reduce((a, b) => norms[b]! > norms[a]! ? b : a);
  const times = `${formatCount(norms[highest]! / middle)} times its median at step ${
    formatCount(steps[highest]!)
  }`;
  const text = high.length === 1
    ? `the gradient norm was ${times}`
    : `the gradient norm jumped ${high.length} times in the last ${
      formatCount(norms.length)
    } steps, to ${times}`;
  return [warn(text)];
}

/** The speed of the last steps against the median of all. */
function speed(table: Table): Verdict[] {
  const all = table.column("tokens_per_sec"), usual = median(all), now = median(all.subarray(-RECENT));
  if (table.length < 2 * RECENT || Number.isNaN(now / usual)) return [];
  const of = `its median of ${formatCount(usual)} tokens a second`,
    change = percent(Math.abs(now / usual - 1));
  if (now < SLOWER * usual) return [warn(`speed is ${change} below ${of}`)];
  if (now > FASTER * usual) return [good(`speed is ${change} above ${of}`)];
  return [good(`speed is near ${of}`)];
}

/** A rank that takes longer than the others, which wait for it, in each of the last lines that say so. */
function slowRank({ ranks }: Table): Verdict[] {
  const slowest = ranks[0]?.slowest;
  if (slowest === undefined || ranks.length < RECENT_OF_RANKS) return [];
  const factors = ranks.map(({ step_ms }) =>
    step_ms[slowest]! / median(Float64Array.from(step_ms.filter((_, rank) => rank !== slowest)))
  );
  const least = Math.min(...factors);
  if (!(least > SLOW_RANK)) return [];
  return [
    warn(`the other ranks wait for rank ${slowest}, whose own work takes ${percent(least - 1)} longer`),
  ];
}

function unread({ bad_lines }: Facts): Verdict[] {
  if (bad_lines === 0) return [];
  return [warn(`${count(bad_lines, "line", "lines")} of metrics.jsonl could not be read`)];
}

function timeLeft({ eta_s }: Facts): Verdict[] {
  return eta_s === null ? [] : [good(`${formatSeconds(eta_s)} left`)];
}

/** Mean and variance of n finite values, without the outermost, such as a spike; NaN where there is none. */
function moments(values: Float64Array): { mean: number; variance: number; n: number } {
  const all = sorted(values),
    tail = Math.floor(all.length * TAIL),
    inner = all.subarray(tail, all.length - tail);
  const n = inner.length, mean = inner.reduce((sum, value) => sum + value, 0) / n;
  return { mean, variance: inner.reduce((sum, value) => sum + (value - mean) ** 2, 0) / n, n };
}

/** The median of the finite values; NaN where there is none. */
function median(values: Float64Array): number {
  const all = sorted(values);
  return all[all.length >> 1] ?? NaN;
}

/** The finite values, ascending; of long columns some that are evenly spread over them. */
function sorted(values: Float64Array): Float64Array {
  const every = Math.max(1, Math.ceil(values.length / SAMPLED)), some = new Float64Array(SAMPLED);
  let n = 0;
  for (let i = 0; i < values.length; i += every) if (Number.isFinite(values[i])) some[n++] = values[i]!;
  return some.subarray(0, n).sort();
}

/** "5.1%", "120%". */
function percent(share: number): string {
  return `${(100 * share).toFixed(share < 1 ? 1 : 0)}%`;
}

function count(n: number, one: string, many: string): string {
  return `${formatCount(n)} ${n === 1 ? one : many}`;
}
