import { assert, assertAlmostEquals, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import {
  callSite,
  debug,
  type DebugMode,
  profileReport,
  setDebug,
  startTiming,
  tapeListing,
  timeOther,
  traceEvents,
  writeTrace,
} from "./debug.ts";
import { add, attention, embedding, linear, linearCrossEntropy, rmsnorm, rope, swiglu } from "./ops.ts";
import { AdamW, Parameters } from "./optim.ts";
import { backward, claim, endStep, grad } from "./tape.ts";
import { param, type Tensor, tensor, writeFloats } from "./tensor.ts";
import { gradient, headSize, integers, normal, openTestDevice, rotations, tokens } from "./testing.ts";

openTestDevice();
const C = headSize(8); // width of the model, one head

/** Runs f in a debug mode and leaves it again. */
function inMode<T>(mode: DebugMode, f: () => T): T {
  setDebug(mode);
  try {
    return f();
  } finally {
    setDebug("");
    endStep();
  }
}

/** Two layers, one of each op in each, and the line that applies gate_up. */
function twoLayers() {
  const V = 11, H = { n_head: 1, n_kv_head: 1, head_dim: C };
  const layer = () => ({
    norm: param([C], { value: 1 }),
    qkv: param([3 * C, C], { std: 0.3 }),
    gate_up: param([2 * C, C], { std: 0.3 }),
  });
  const w = { table: param([64, C], { std: 1, rows: V }), layers: [layer(), layer()] };
  const parameters = new Parameters(w, { seed: 1, train: true });
  const idx = tokens([2, 5], integers(10, V, 1)),
    targets = tokens([2, 5], integers(10, V, 2)),
    turns = rotations(5, C).t;
  let gateLine = "";
  const forward = () =>
    w.layers.reduce((x, w) => {
      const y = attention(rope(linear(rmsnorm(x, w.norm, 1e-6), w.qkv), turns, H), H);
      gateLine = callSite();
      return add(x, swiglu(linear(y, w.gate_up)));
    }, embedding(idx, w.table));
  const loss = () =>
    linearCrossEntropy(forward(), w.table, targets, { vocab_size: V, head_chunk: 4, grad_scale: 1 });
  return { w, parameters, loss, gateLine: () => gateLine.replace(/\d+$/, (line) => `${Number(line) + 1}`) };
}

/** Writes a value at a place of a parameter. */
function plant(t: Tensor, at: number, value: number): void {
  writeFloats(t.address, t.toArray().with(at, value), "act");
}

Deno.test("--debug names step, op, layer, tensor, shape, place and call site of a planted NaN", () => {
  const { w, loss, gateLine } = twoLayers();
  plant(w.layers[1]!.gate_up, 3 * C, NaN); // the fourth gate
  debug.step = 7;
  const error = assertThrows(() => inMode("check", loss), UserError);
  assertEquals(
    error.message,
    `Non-finite value in step 7: linear, layers.1, output (2, 5, ${2 * C}) is NaN at [0, 0, 3]; ` +
      `the op was called at ${gateLine()}`,
  );
  assertMatch(gateLine(), /^runtime\/debug_test\.ts:\d+$/);
});

Deno.test("--debug names the parameter whose gradient is not finite", () => {
  const { w } = twoLayers(), { gate_up } = w.layers[0]!;
  const backwardOf = (dout: number) =>
    inMode("check", () => {
      const y = linear(tensor([2, C], normal(2 * C, 1)), gate_up);
      claim(y);
      writeFloats(grad(y), normal(4 * C, 2).with(1, dout), "act");
      backward(y);
    });
  backwardOf(1); // finite values pass
  const error = assertThrows(() => backwardOf(Infinity), UserError);
  assertMatch(
    error.message,
    /linear, layers\.0, gradient of layers\.0\.gate_up \(\d+, \d+\) is -?Infinity at \[1, 0\];/,
  );
});

Deno.test("--debug keeps activations readable after backward() and changes no gradient", () => {
  const { w, loss } = twoLayers();
  const gradients = () => {
    backward(loss());
    return [w.table, w.layers[0]!.gate_up, w.layers[1]!.qkv].map((t) => {
      t.buf.gradIsEmpty = true;
      return gradient(t);
    });
  };
  const plain = gradients();
  endStep();
  for (const mode of ["check", "tape", "profile"] as const) assertEquals(inMode(mode, gradients), plain);
  inMode("check", () => {
    const x = tensor([2, 16], normal(32, 1), true), y = swiglu(x), before = [x.toArray(), y.toArray()];
    claim(y);
    writeFloats(grad(y), normal(16, 2), "act");
    backward(y);
    assertEquals([x.toArray(), y.toArray()], before);
  });
});

const OPS = ["embedding", "rmsnorm", "linear", "rope", "attention", "swiglu", "add", "linearCrossEntropy"];

Deno.test("--debug=tape lists every op of a micro-step, forward in order and backward in reverse", () => {
  const { loss } = twoLayers();
  const listing = inMode("tape", () => {
    startTiming();
    backward(loss());
    return tapeListing();
  });
  const rows = listing.split("\n").map((line) => line.trim().split(/  +/));
  assertEquals(rows[0], ["pass", "op", "layer", "output", "MB moved", "ms"]);
  const layer = ["rmsnorm", "linear", "rope", "attention", "linear", "swiglu", "add"];
  const forward = ["embedding", ...layer, ...layer, "linearCrossEntropy"];
  assertEquals(rows.slice(1).map((row) => `${row[1]} ${row[2]}`), [
    ...forward.map((op) => `forward ${op}`),
    ...forward.toReversed().map((op) => `backward ${op}`),
  ]);
  assertEquals(rows[2]!.slice(0, 5), ["1", "forward", "rmsnorm", "layers.0", `(2, 5, ${C})`]);
  assertEquals(rows[10]!.slice(0, 5), ["9", "forward", "linear", "layers.1", `(2, 5, ${3 * C})`]);
});

Deno.test("--debug=profile adds up every op, every layer and the optimizer", () => {
  const { parameters, loss } = twoLayers(), steps = 2;
  const optimizer = new AdamW(parameters, {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0,
    grad_clip: 1,
  });
  const report = inMode("profile", () => {
    startTiming();
    for (let step = 0; step < steps; step++) {
      backward(loss());
      optimizer.step(1e-3);
      endStep();
    }
    return profileReport(steps);
  });
  const calls = (name: string) => Number(new RegExp(`^${name} +(\\d+) `, "m").exec(report)?.[1]);
  for (const op of OPS) {
    const expected = op === "linear" ? 4 : op.startsWith("embedding") || op.startsWith("linearC") ? 1 : 2;
    for (const pass of ["forward", "backward"]) {
      assertEquals(calls(`${op} ${pass}`), expected, `${op} ${pass}`);
    }
  }
  assertEquals(calls("adamw"), 1);
  for (const layer of ["table", "layers\\.0", "layers\\.1"]) assert(calls(layer) > 0, layer);
  const total = Number(/^all ops: ([\d.]+) ms a step, synchronised after each$/m.exec(report)![1]);
  const rows = report.split("\n\n")[0]!.split("\n").slice(1).map((row) => Number(row.split(/ {2,}/)[2]));
  const sum = rows.reduce((a, b) => a + b, 0);
  assertAlmostEquals(sum, total, 0.006 * rows.length); // each is rounded to 0.01
  assert(total > 0.1, report);
});

Deno.test("traceEvents() are bars in one another: steps, passes, layers, ops", () => {
  const { loss } = twoLayers(), dir = Deno.makeTempDirSync({ prefix: "loam_" });
  let report = "";
  const events = inMode("profile", () => {
    startTiming();
    for (const step of [7, 8]) {
      debug.step = step;
      backward(loss());
      timeOther("adamw", 28);
      endStep();
    }
    assertEquals(JSON.parse(Deno.readTextFileSync(writeTrace(dir))), {
      displayTimeUnit: "ms",
      traceEvents: traceEvents(),
    });
    report = profileReport(1);
    return traceEvents();
  });
  Deno.removeSync(dir, { recursive: true });
  const names = (cat: string) => events.filter((event) => event.cat === cat).map(({ name }) => name);
  assertEquals(names("step"), ["step 7", "step 8"]);
  assertEquals(names("pass"), ["forward", "backward", "update", "forward", "backward", "update"]);
  assertEquals(names("forward").slice(0, 3), ["embedding", "rmsnorm", "linear"]);
  assertEquals(names("update"), ["adamw", "adamw"]);
  assertEquals(names("layer").filter((name) => name === "layers.1").length, 4); // of each pass of each step
  assertEquals([events[0]!.ts, new Set(events.map(({ ph, pid, tid }) => `${ph} ${pid} ${tid}`))], [
    0,
    new Set(["X 0 0"]),
  ]);

  const open: typeof events = []; // the bars around one: each lies in the one before, whose kind is the next larger
  for (const event of events) {
    const end = event.ts + event.dur, depth = ["step", "pass", "layer"].indexOf(event.cat);
    assert(event.dur >= 0);
    while (open.length > 0 && open.at(-1)!.ts + open.at(-1)!.dur <= event.ts + 1e-6 && event.dur > 0) {
      open.pop();
    }
    const around = open.at(-1);
    if (around) {
      assert(
        around.ts <= event.ts && end <= around.ts + around.dur + 1e-6,
        `${event.name} in ${around.name}`,
      );
    }
    if (depth > 0) assertEquals(around?.cat, ["step", "pass"][depth - 1]);
    if (depth >= 0) open.push(event);
  }
  const sum = (cat: string) =>
    events.filter((event) => event.cat === cat).reduce((total, { dur }) => total + dur, 0);
  const ops_us = sum("forward") + sum("backward") + sum("update");
  assert(ops_us <= sum("step") + 1e-3);
  assertAlmostEquals(ops_us / 1000, Number(/all ops: ([\d.]+) ms/.exec(report)![1]), 0.006);
  const { args } = events.find(({ name }) => name === "linear")!;
  assertEquals(args.shape, `(2, 5, ${3 * C})`);
  assertEquals(args.flops, 2 * 10 * 3 * C * C);
});

Deno.test("callSite() is the line that calls", () => {
  const line = Number(/:(\d+):\d+\)?$/m.exec(new Error().stack!.split("\n")[1]!)![1]);
  assertEquals(callSite(), `runtime/debug_test.ts:${line + 1}`);
});
