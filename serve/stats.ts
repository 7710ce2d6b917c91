// GET /stats and GET /runs: a run as one object.
import { isObject } from "../base/json.ts";
import { trendOf, verdictOf } from "./health.ts";
import { gpuState } from "./nvml.ts";
import { listCheckpoints } from "../runtime/checkpoint.ts";
import type { Run } from "./runs.ts";
import type { Table } from "./table.ts";
import type { RunSummary, Stats } from "./types.ts";

const RECENT = 100; // steps whose speed tells when the run ends

/** A run as it stands at its last refresh. */
export function statsOf(run: Run): Stats {
  const stats = withoutVerdict(run);
  return { ...stats, health: verdictOf(stats, run.table) };
}

function withoutVerdict(run: Run): Omit<Stats, "health"> {
  const { table, facts, config } = run,
    last = (key: Parameters<typeof table.last>[0]) => finite(table.last(key));
  const tokens = last("tokens"), tokens_per_epoch = number(facts.tokens_per_epoch);
  return {
    run: run.name,
    state: run.state,
    error: text(run.error),
    started: text(facts.started),
    ended_at: run.state === "running" || run.state === "stalled" ? null : text(facts.ended_at),
    age_s: run.age_s,
    device: text(facts.device),
    model: text(facts.model),
    parameters: number(facts.parameters),
    step: table.last("step"),
    max_iters: number(config.max_iters),
    epoch: tokens === null || !tokens_per_epoch ? null : tokens / tokens_per_epoch,
    tokens,
    loss: last("loss"),
    trend: trendOf(table),
    val_loss: table.lastValLoss,
    val_bpb: table.lastValBpb,
    best_val_loss: table.best?.val_loss ?? null,
    best_step: table.best?.step ?? null,
    lr: last("lr"),
    grad_norm: last("grad_norm"),
    tokens_per_sec: last("tokens_per_sec"),
    step_ms: last("step_ms"),
    mfu: last("mfu"),
    memory_bytes: last("memory_bytes"),
    memory: numbers(facts.memory),
    ranks: table.ranks[0] ?? null,
    skipped: last("skipped") ?? 0,
    elapsed_s: last("elapsed_s") ?? 0,
    eta_s: eta_s(run),
    bad_lines: table.badLines,
    checkpoint: listCheckpoints(run.dir).at(-1) ?? null,
    sample: run.sample,
    gpu: run.state === "running" && typeof facts.gpu === "string" ? gpuState(facts.gpu) : null,
    versions: withoutHome(object(facts.versions)) as Record<string, string>,
    config: withoutHome(config),
  };
}

/** A run in a list of runs. */
export function summaryOf(run: Run): RunSummary {
  const { state, error, health, started, ended_at, ...stats } = statsOf(run);
  const { step, max_iters, loss, val_loss, val_bpb, tokens_per_sec, eta_s } = stats;
  return {
    ...{ name: run.name, state, error, health, started, ended_at, step, max_iters, loss, val_loss },
    ...{ val_bpb, tokens_per_sec, eta_s, preset: text(run.config.preset) },
  };
}

/**
 * Seconds until max_iters: the steps left at the speed of the recent ones, lengthened by the share of the time that went to
 * evaluation, samples and checkpoints since the trainer started. Null unless the run is running.
 */
function eta_s({ state, table, config, facts, age_s }: Run): number | null {
  const left = (number(config.max_iters) ?? NaN) - table.last("step");
  const recent = table.column("step_ms").subarray(-RECENT).filter(Number.isFinite);
  if (state !== "running" || recent.length === 0 || Number.isNaN(left)) return null;
  const step_s = recent.reduce((a, b) => a + b) / recent.length / 1000;
  return left * step_s * overhead(table, facts, age_s);
}

/** Time since the trainer started over time spent in its steps, at least 1. */
function overhead(table: Table, facts: Run["facts"], age_s: number): number {
  const started = Date.parse(text(facts.started) ?? ""), first = table.rowAfter(number(facts.after) ?? 0);
  const inSteps_s = table.last("elapsed_s") - (table.column("elapsed_s")[first - 1] ?? 0);
  const ratio = (Date.now() / 1000 - age_s - started / 1000) / inSteps_s;
  return Number.isFinite(ratio) ? Math.max(1, ratio) : 1;
}

/** A copy of a value in which home directories read "~": they name the user. */
export function withoutHome<T>(value: T): T {
  if (typeof value === "string") return value.replaceAll(HOME, "~") as T;
  if (Array.isArray(value)) return value.map(withoutHome) as T;
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withoutHome(inner)])) as T;
}
const HOME = /(?:\/home\/|\/Users\/|[A-Z]:\\Users\\)[^/\\\s"']+|\/root(?![^/\s"'])/g;

// What a file holds need not be what loam wrote.
function finite(value: number): number | null {
  return Number.isFinite(value) ? value : null;
}

function number(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}

function text(value: unknown): string | null {
  return typeof value === "string" ? withoutHome(value) : null;
}

function object(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {};
}

function numbers(value: unknown): Record<string, number> | null {
  const entries = Object.entries(object(value)).filter((entry): entry is [string, number] =>
    typeof entry[1] === "number"
  );
  return entries.length > 0 ? Object.fromEntries(entries) : null;
}
