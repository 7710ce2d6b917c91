// @ts-check
/// <reference lib="dom" />
// The head of the page: how the run is, how fast it is, and when it ends.
import { byId, setText } from "./dom.js";
import {
  bytes,
  clock,
  compact,
  duration,
  inShort,
  integer,
  isKnown,
  loss,
  percent,
  significant,
  stepTime,
} from "./format.js";

/** @typedef {import("./api.js").Stats} Stats */

const STATES = {
  running: "Running",
  stalled: "Stalled",
  stopped: "Stopped",
  finished: "Finished",
  failed: "Failed",
};

/** @param {Stats} stats */
export function showNow(stats) {
  const { state, step, max_iters } = stats, share = max_iters ? step / max_iters : 0;
  byId("now", HTMLElement).dataset.state = state;
  setText("state", STATES[state]);
  setText("step", integer(step));
  setText("of", max_iters ? `of ${integer(max_iters)} steps · ${percent(share)}` : "steps");
  byId("progress", HTMLProgressElement).value = share;
  showEnd(stats);
  showTiles(stats);
  showHealth(stats.health);
  setText("device", inShort(stats.device, stats.model));
  byId("device", HTMLElement).title = stats.device ?? "";
  const title = [stats.loss === null ? "" : loss(stats.loss), percent(share), stats.run, "loam"];
  document.title = title.filter(Boolean).join(" · ");
}

/** When the run ends, or when it ended. @param {Stats} stats */
function showEnd({ state, step, eta_s, ended_at, age_s, elapsed_s }) {
  const spent = elapsed_s > 0 ? `${duration(elapsed_s)} of training` : "", now = Date.now();
  if (state === "running") {
    setText("eta", isKnown(eta_s) ? `${duration(eta_s)} left` : "");
    return setText("ends", isKnown(eta_s) ? `ends ${clock(new Date(now + 1000 * eta_s))}` : spent);
  }
  const lastStep = step > 0 ? `last step ${clock(new Date(now - 1000 * age_s))}` : ""; // one that was killed says no more
  setText("eta", ended_at ? `ended ${clock(new Date(ended_at))}` : lastStep);
  setText("ends", spent);
}

/** @param {Stats} stats */
function showTiles(stats) {
  const isLost = stats.step > 0 && stats.loss === null;
  setText("loss", isLost ? "NaN" : loss(stats.loss));
  byId("loss", HTMLElement).classList.toggle("bad", isLost);
  showTrend(isLost ? null : stats.trend); // a loss that is lost does not fall
  setText("val-loss", loss(stats.val_loss));
  const best = `best ${loss(stats.best_val_loss)} at step ${integer(stats.best_step)}`;
  const bits = isKnown(stats.val_bpb) ? `\n${loss(stats.val_bpb)} bits a byte` : "";
  setText("val-loss-note", isKnown(stats.best_val_loss) ? best + bits : "");
  setText("speed", integer(stats.tokens_per_sec));
  setText("speed-note", isKnown(stats.step_ms) ? `${stepTime(stats.step_ms)} a step` : "");
  setText("mfu", percent(stats.mfu));
  setText("mfu-note", gpuNote(stats.gpu));
  setText("memory", bytes(stats.memory_bytes));
  setText("memory-note", memoryNote(stats.memory));
  setText("lr", significant(stats.lr));
  setText("lr-note", isKnown(stats.grad_norm) ? `gradient norm ${significant(stats.grad_norm)}` : "");
}

/** @param {Stats["trend"]} trend */
function showTrend(trend) {
  byId("loss-note", HTMLElement).dataset.trend = trend?.is ?? "";
  if (!trend) return setText("loss-note", "");
  const { is, change, steps } = trend, how = `${percent(Math.abs(change))} in ${integer(steps)} steps`;
  setText(
    "loss-note",
    is === "flat" ? `→ flat over ${integer(steps)} steps` : `${is === "falling" ? "↓" : "↑"} ${how}`,
  );
}

/** @param {Stats["gpu"]} gpu */
function gpuNote(gpu) {
  if (!gpu) return "";
  const { utilization, power_w, temperature_c } = gpu;
  return [
    isKnown(utilization) && `GPU ${percent(utilization)}`,
    isKnown(power_w) && `${integer(power_w)} W`,
    isKnown(temperature_c) && `${integer(temperature_c)} °C`,
  ].filter(Boolean).join(" · ");
}

/** The largest kind of memory; the configuration lists all. @param {Stats["memory"]} memory */
function memoryNote(memory) {
  const [largest] = Object.entries(memory ?? {}).sort(([, a], [, b]) => b - a);
  return largest ? `${largest[0].replaceAll("_", " ")} ${bytes(largest[1])}` : "";
}

/** Screen readers announce only what is bad: the numbers of a run that is well change all the time. @param {Stats["health"]} health */
function showHealth({ level, text }) {
  const target = byId("health", HTMLElement);
  target.dataset.level = level;
  target.setAttribute("aria-live", level === "bad" ? "polite" : "off");
  setText("health", text);
}

/**
 * What the run is and has used, for the list beside its configuration.
 * @param {Stats} stats
 * @returns {[string, string][]}
 */
export function facts(stats) {
  const started = stats.started ? clock(new Date(stats.started)) : "–";
  return [
    ["started", started],
    ...(stats.ended_at ? [/** @type {[string, string]} */ (["ended", clock(new Date(stats.ended_at))])] : []),
    ["training time", duration(stats.elapsed_s)],
    ["device", stats.device ?? "–"],
    ["model", stats.model ?? "–"],
    ["tokens", compact(stats.tokens)],
    ["epochs", significant(stats.epoch)],
    ["skipped steps", integer(stats.skipped)],
  ];
}
