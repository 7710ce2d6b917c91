// --debug: what the tape does after each op when asked to.
//   --debug           synchronise after each op and stop at the first value that is not finite
//   --debug=tape      list the ops of one micro-step with shapes, bytes and time
//   --debug=profile   add up time by op and by layer, with GFLOP/s and GB/s, and write it all to profile.json for Perfetto
// Activations stay readable after backward() in every debug mode (nothing is reused within a step), at the price of memory.
import { table } from "../base/format.ts";
import { UserError } from "../base/errors.ts";
import { writeAtomic } from "../base/files.ts";
import { BF16, device, F32, findNonFinite, synchronizeNow, waitForEach } from "../ffi/library.ts";
import { readFloats, type Tensor } from "./tensor.ts";

/** What --debug asks for; "" for nothing. */
export type DebugMode = "" | "check" | "tape" | "profile";

/** An op of the forward pass that ran: what the tape holds, but for the way back. */
export type Op = {
  /** As the op calls itself: "linear". */
  name: string;
  /** What it made. */
  out: Tensor;
  /** What it read. */
  inputs: readonly Tensor[];
  /** Of the forward pass. */
  flops: number;
  /** out is its input's buffer; backward needs no values. */
  inPlace: boolean;
  /** "model/llama.ts:52", in debug mode only. */
  where: string;
};

type Timed = {
  name: string;
  layer: string; // "" where it is none's
  pass: "forward" | "backward" | "update";
  step: number;
  begin: number; // ms since the process began
  shape: string;
  bytes: number;
  flops: number;
  ms: number;
};

/** The current mode; set by setDebug(). */
export const debug = { on: false, mode: "" as DebugMode, step: 0 };

let timed: Timed[] = [];
let lastMark = 0;

/** Sets what happens after each op from now on. */
export function setDebug(mode: DebugMode): void {
  debug.on = mode !== "";
  debug.mode = mode;
  waitForEach(mode === "check");
  startTiming();
}

/** Starts a new listing or profile: time is counted from here to the end of the first op, and so on. */
export function startTiming(): void {
  timed = [];
  lastMark = performance.now();
}

/** First line outside runtime/ and ffi/ on the current stack: "model/llama.ts:52". */
export function callSite(): string {
  const frame = new Error().stack!.split("\n").slice(1).find((line) =>
    !/\/(runtime|ffi)\/\w+(?<!_test)\.ts:/.test(line)
  );
  return /([^/\s(]+\/[^/\s]+\.ts:\d+):\d+\)?$/.exec(frame ?? "")?.[1] ?? "unknown place";
}

/** Called by record() after the forward kernel of an op in a debug mode. Throws UserError at a value that is not finite. */
export function afterForward(op: Op): void {
  if (debug.mode === "check") {
    checkFinite(op, op.out, op.out.address, "output", op.out.dtype === "f32");
  } else time(op, "forward");
}

/** Called by backward() after the backward kernel of an op, likewise for the gradients it wrote. */
export function afterBackward(op: Op): void {
  if (debug.mode !== "check") return time(op, "backward");
  for (const input of op.inputs) {
    if (!input.buf.grad || input.buf.gradIsEmpty) continue;
    const what = `gradient of ${input.buf.name || "input"}`;
    checkFinite(op, input, input.buf.grad.address, what, input.buf.init !== undefined);
  }
}

/** The layer an op belongs to, from the name of the last parameter seen: "layers.3", "embed_tokens". */
function layerOf(op: Op): string {
  const parameter = op.inputs.find((t) => t.buf.name)?.buf.name;
  if (parameter) currentLayer = /^layers\.\d+/.exec(parameter)?.[0] ?? parameter;
  return currentLayer;
}
let currentLayer = "";

function checkFinite(op: Op, t: Tensor, address: bigint, what: string, isFloat: boolean): void {
  synchronizeNow();
  const type = isFloat || device.act === "f32" ? F32 : BF16;
  const layer = layerOf(op), index = findNonFinite(address, type, t.size);
  if (index < 0) return;
  const value =
    readFloats(address + BigInt(index * (type === F32 ? 4 : 2)), 1, type === F32 ? "f32" : "act")[0];
  throw new UserError(
    `Non-finite value in step ${debug.step}: ${op.name}, ${layer}, ${what} (${
      t.shape.join(", ")
    }) is ${value} at ` +
      `[${unravel(index, t.shape).join(", ")}]; the op was called at ${op.where}`,
  );
}

function unravel(index: number, shape: readonly number[]): number[] {
  const places: number[] = [];
  for (const size of shape.toReversed()) {
    places.unshift(index % size);
    index = Math.floor(index / size);
  }
  return places;
}

function time(op: Op, pass: Timed["pass"]): void {
  const tensors = [...op.inputs, ...(op.inPlace ? [] : [op.out])];
  const bytes = tensors.reduce((sum, t) => sum + t.bytes, 0) * (pass === "forward" ? 1 : 2); // backward also moves gradients
  const backwardShare = op.name === "attention" ? 2.5 : op.name === "linearCrossEntropy" ? 0 : 2; // the head's runs forward
  const flops = op.flops * (pass === "forward" ? 1 : backwardShare);
  note({ name: op.name, layer: layerOf(op), pass, shape: `(${op.out.shape.join(", ")})`, bytes, flops });
}

/** Notes what has run since the last mark, and sets the next. */
function note(what: Omit<Timed, "step" | "begin" | "ms">): void {
  synchronizeNow();
  timed.push({ ...what, step: debug.step, begin: lastMark, ms: performance.now() - lastMark });
  lastMark = performance.now();
}

/** Forgets the time since the last op, so that work between micro-steps is not counted to the next op. */
export function skipTime(): void {
  lastMark = performance.now();
}

/** Counts the time since the last mark, and what was moved and computed, to something that is not on the tape, such as the optimizer. */
export function timeOther(name: string, bytes: number, flops = 0): void {
  if (debug.mode !== "profile" && debug.mode !== "tape") return;
  note({ name, layer: "", pass: "update", shape: "", bytes, flops });
}

const PROFILE_STEPS = 4;

/** What --debug=profile has to print after so many steps, with which it ends; undefined before, and without it. */
export function profileAfter(steps: number): string | undefined {
  if (debug.mode !== "profile") return undefined;
  if (steps === 1) startTiming(); // the first step warms up
  return steps === 1 + PROFILE_STEPS ? profileReport(PROFILE_STEPS) : undefined;
}

/** The ops timed since startTiming(), one a line. */
export function tapeListing(): string {
  const rows = timed.map((
    t,
    i,
  ) => [`${i}`, t.pass, t.name, t.layer, t.shape, megabytes(t.bytes), t.ms.toFixed(3)]);
  return table([["", "pass", "op", "layer", "output", "MB moved", "ms"], ...rows]);
}

/** What chrome://tracing and ui.perfetto.dev show as a bar. ts, dur: microseconds. */
export type TraceEvent = {
  name: string;
  cat: string;
  ph: "X";
  ts: number;
  dur: number;
  pid: number;
  tid: number;
  args: Record<string, string | number>;
};

/** Writes the ops timed since startTiming() to profile.json in a directory: Chrome's trace format. Returns its path. */
export function writeTrace(dir: string): string {
  const path = `${dir}/profile.json`;
  writeAtomic(path, JSON.stringify({ displayTimeUnit: "ms", traceEvents: traceEvents() }) + "\n");
  return path;
}

/** Bars that lie in one another: steps, their passes, the layers of a pass, the ops of a layer. */
export function traceEvents(): TraceEvent[] {
  const first = timed[0]?.begin ?? 0;
  const bar = (name: string, cat: string, run: Timed[], args: TraceEvent["args"] = {}): TraceEvent => {
    const last = run.at(-1)!,
      [ts, end] = [run[0]!.begin - first, last.begin + last.ms - first].map(toMicroseconds);
    return { name, cat, ph: "X", ts: ts!, dur: end! - ts!, pid: 0, tid: 0, args };
  };
  return runsOf(timed, ({ step }) => `step ${step}`).flatMap(([step, ofStep]) => [
    bar(step, "step", ofStep),
    ...runsOf(ofStep, ({ pass }) => pass).flatMap(([pass, ofPass]) => [
      bar(pass, "pass", ofPass),
      ...runsOf(ofPass, ({ layer }) => layer).flatMap(([layer, ofLayer]) => [
        ...layer ? [bar(layer, "layer", ofLayer)] : [],
        ...ofLayer.map((t) => {
          const { shape, bytes, flops } = t;
          return bar(t.name, pass, [t], { ...shape && { shape }, bytes, ...flops > 0 && { flops } });
        }),
      ]),
    ]),
  ]);
}

/** Neighbours that have a key in common, with it. */
function runsOf(list: Timed[], key: (t: Timed) => string): [string, Timed[]][] {
  const runs: [string, Timed[]][] = [];
  for (const each of list) {
    const last = runs.at(-1);
    if (last && last[0] === key(each)) last[1].push(each);
    else runs.push([key(each), [each]]);
  }
  return runs;
}

/** Whole nanoseconds, so that sums are exact enough for bars to lie in one another. */
function toMicroseconds(ms: number): number {
  return Math.round(1e6 * ms) / 1000;
}

/** Time by op and by layer since startTiming(), longest first, divided by the number of steps. */
export function profileReport(steps: number): string {
  const sum = (list: Timed[], key: "ms" | "flops" | "bytes") => list.reduce((sum, t) => sum + t[key], 0);
  const total = sum(timed, "ms");
  const section = (title: string, key: (t: Timed) => string) => {
    const groups = [...Map.groupBy(timed.filter((t) => key(t)), key)];
    const rows = groups.sort(([, a], [, b]) => sum(b, "ms") - sum(a, "ms")).map(([name, list]) => {
      const ms = sum(list, "ms"), flops = sum(list, "flops");
      return [
        name,
        (list.length / steps).toFixed(0),
        (ms / steps).toFixed(2),
        `${(100 * ms / total).toFixed(1)}%`,
        flops ? (flops / ms / 1e6).toFixed(0) : "",
        (sum(list, "bytes") / ms / 1e6).toFixed(1),
      ];
    });
    return table([[title, "calls", "ms a step", "share", "GFLOP/s", "GB/s"], ...rows]);
  };
  return [
    section("op", (t) => t.pass === "update" ? t.name : `${t.name} ${t.pass}`),
    section("layer", (t) => t.layer),
    `all ops: ${(total / steps).toFixed(2)} ms a step, synchronised after each`,
  ].join("\n\n");
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(2);
}
