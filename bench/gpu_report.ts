// The result file of bench/gpu.sh. With a stage: puts its figures into the file. With --todo: names the stages that are not
// done yet. With neither: prints the file as tables, beside what roofline.ts predicted.
//   deno run --allow-read --allow-write bench/gpu_report.ts RESULT.json [WORK_DIR STAGE CODE SECONDS | --todo STAGES]
import { runMain, UserError } from "../base/errors.ts";
import { measureModel } from "../model/plan.ts";
import { peakOfGpu } from "../runtime/peak.ts";
import { table } from "../base/format.ts";
import type { Curve } from "./curve.ts";
import type { Report as KernelReport } from "./kernels.ts";
import { isOfStep, type Prediction } from "./roofline.ts";
import { modelOf, type Shape } from "./shapes.ts";

/** What a stage left behind. code 0: it succeeded; 124 or 137: it ran into its time limit; 129 and more: a signal; -1: it has begun. */
export type Stage = {
  code: number;
  seconds: number;
  finished: string; // time, UTC
  files: Record<string, unknown>; // its JSON files by name
  facts: Record<string, string | number>; // what its log says
};

/** The whole file: a stage that runs again replaces its earlier results. */
export type Results = { date: string; stages: Record<string, Stage> };

type PeerSide = {
  median_ms: number;
  tokens_per_sec: number;
  peak_bytes: number;
  ready: { planned_bytes?: number };
};
type Peer = {
  options: Shape & { accum: number };
  device?: string;
  results: Record<string, PeerSide>;
  failures: Record<string, string>;
};
type TorchKernels = {
  torch: string;
  results: { op: string; variant: string; ms?: number; error?: string }[];
};

// ---- gathering

/** Reads the file and, where there is none yet, begins one. */
function read(path: string): Results {
  try {
    return JSON.parse(Deno.readTextFileSync(path));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return { date: new Date().toISOString().slice(0, 10), stages: {} };
  }
}

/** The figures of a stage: $work/stage.json, $work/stage-*.json and what its log says. */
export function gather(work: string, stage: string, code: number, seconds: number): Stage {
  const names = Array.from(Deno.readDirSync(work), ({ name }) => name).sort();
  const own = names.filter((name) =>
    name.endsWith(".json") && (name.startsWith(`${stage}-`) || name === `${stage}.json`)
  );
  const files = Object.fromEntries(own.map((name) => [name, parse(`${work}/${name}`)]));
  const log = names.includes(`${stage}.log`) ? Deno.readTextFileSync(`${work}/${stage}.log`) : "";
  return { code, seconds, finished: new Date().toISOString(), files, facts: factsOf(stage, log) };
}

/** A file that a killed process left half-written is kept as what it is. */
function parse(path: string): unknown {
  try {
    return JSON.parse(Deno.readTextFileSync(path));
  } catch (error) {
    return { unreadable: (error as Error).message };
  }
}

/** How many tests a log without a summary says of how they ended. */
function outcomes(log: string): Record<string, number> {
  const count = (word: string) => log.match(new RegExp(`\\.\\.\\. ${word} \\(`, "g"))?.length ?? 0;
  return { passed: count("ok"), failed: count("FAILED") };
}

/** "name: value" lines of env, the counts of deno test, the summaries of compute-sanitizer. */
export function factsOf(stage: string, log: string): Record<string, string | number> {
  if (stage === "env") {
    return Object.fromEntries(
      Array.from(log.matchAll(/^(\w+): (.*)$/gm), ([, name, value]) => [name!, value!]),
    );
  }
  if (stage === "check") { // what the device is said to be, or why it is refused
    return Object.fromEntries(
      log.split(/^--- /m).slice(1).map((part) => {
        const line = /^device (.*)|^error: (.*)/m.exec(part);
        return [part.split("\n")[0]!, line?.[1] ?? line?.[2] ?? "did not begin"];
      }),
    );
  }
  if (stage === "tests") {
    const summary = Array.from(log.matchAll(/^(?:ok|FAILED) \| .*$/gm)).at(-1)?.[0] ?? "";
    const count = (word: string) => Number(new RegExp(`(\\d+) ${word}`).exec(summary)?.[1] ?? 0);
    return summary
      ? { passed: count("passed"), failed: count("failed"), ignored: count("ignored") }
      : { ...outcomes(log), summary: "none: the tests did not end" };
  }
  if (stage === "sanitizer") {
    const parts = log.split(/^--- /m).slice(1);
    return Object.fromEntries(
      parts.map((part) => [part.split("\n")[0]!, /SUMMARY: (.*)/.exec(part)?.[1] ?? "no summary"]),
    );
  }
  return {};
}

/** Of so many stages those that are not done: what has not begun, then what has failed or was cut short. */
export function unfinished({ stages }: Results, names: string[]): string[] {
  const failed = names.filter((name) => stages[name] && stages[name].code !== 0);
  return [...names.filter((name) => !stages[name]), ...failed];
}

// ---- what was predicted

/** roofline.ts's newest predictions in a folder. */
export function latestPredictions(folder: string): Prediction[] {
  const names = Array.from(Deno.readDirSync(folder), ({ name }) => name);
  const newest = names.filter((name) => /^predicted-.*\.json$/.test(name)).sort().at(-1);
  return newest ? JSON.parse(Deno.readTextFileSync(`${folder}/${newest}`)).predictions : [];
}

/** Of a card by its driver's name, a batch and the attention that ran; undefined where none was made. */
function predictionOf(
  predictions: Prediction[],
  name: string | undefined,
  B: unknown,
  attention = "",
): Prediction | undefined {
  const card = peakOfGpu(name ?? "")?.[0], of = predictions.filter((p) => p.card === card && p.B === B);
  return of.find((p) => attention.startsWith(p.attention)) ?? of[0];
}

/** ms of a step of so many micro-steps. */
function predictedStep({ ops }: Prediction, accum: number): number {
  return ops.reduce((sum, { op, ms, count }) => sum + (isOfStep(op) ? ms : accum * count * ms), 0);
}

// ---- printing

function percent(x: number | null, digits = 0): string {
  return x === null ? "" : `${(100 * x).toFixed(digits)}%`;
}

/** The file as text, beside what was predicted. Stages that did not run are missing, what failed is named. */
export function printed({ stages }: Results, predictions: Prediction[] = []): string {
  const parts = [
    table([
      ["stage", "code", "seconds", ""],
      ...Object.entries(stages).map(([name, { code, seconds, facts }]) => [
        name,
        `${code}`,
        `${seconds}`,
        name === "env" ? "" : Object.entries(facts).map(([key, value]) => `${key} ${value}`).join(", "),
      ]),
    ]),
  ];
  const env = stages.env?.facts;
  if (env) parts.unshift(Object.entries(env).map(([name, value]) => `${name.padEnd(20)}${value}`).join("\n"));
  const kernels = stages.kernels?.files["kernels.json"] as KernelReport | undefined;
  for (
    const [name, torch] of [["kernels.json", "kernels-torch.json"], ["kernels-portable.json", ""]] as const
  ) {
    const report = stages.kernels?.files[name] as KernelReport | undefined; // half of it where the process was killed
    if (!report?.timings) continue;
    const predicted = predictionOf(
      predictions,
      report.device.name,
      report.options?.B,
      report.device.attention,
    );
    parts.push(kernelTable(report, stages.kernels!.files[torch] as TorchKernels | undefined, predicted));
  }
  const peers = Object.entries(stages).filter(([name]) => name.startsWith("steps"));
  for (const [name, peer] of peers.flatMap(([, { files }]) => Object.entries(files))) {
    const { device, options } = peer as Partial<Peer>;
    const predicted = predictionOf(predictions, device, options?.B, kernels?.device.attention);
    const text = peerTable(peer as Partial<Peer>, kernels?.peak_flops, predicted);
    parts.push(`${name.replace(".json", "")}\n${text}`);
  }
  const curve = stages.curve?.files["curve.json"] as Curve | undefined;
  if (curve?.loam) {
    parts.push(
      `loss curve, ${curve.steps} steps: largest difference from PyTorch ${percent(curve.max_relative, 4)} ` +
        `(step ${curve.max_at_step}), ${percent(curve.last_relative, 4)} at the last step`,
    );
  }
  return parts.join("\n\n");
}

function kernelTable(kernels: KernelReport, torch?: TorchKernels, prediction?: Prediction): string {
  const predicted = new Map(prediction?.ops.map(({ op, ms }) => [op, ms]));
  const best = new Map<string, { ms: number; variant: string }>();
  for (const { op, variant, ms } of torch?.results ?? []) {
    if (ms !== undefined && ms < (best.get(op)?.ms ?? Infinity)) best.set(op, { ms, variant });
  }
  const rows = kernels.timings.map((t) => {
    const other = best.get(t.op), expected = predicted.get(t.op);
    return [
      t.op,
      t.ms.toFixed(4),
      expected ? expected.toFixed(4) : "",
      expected ? `${(t.ms / expected).toFixed(2)}x` : "",
      t.tflops?.toPrecision(3) ?? "",
      t.gb_per_sec.toFixed(0),
      percent(t.share),
      other ? other.ms.toFixed(4) : "",
      other ? `${(other.ms / t.ms).toFixed(2)}x` : "",
      other?.variant ?? "",
    ];
  });
  const header = [
    "op",
    "ms",
    "predicted",
    "took",
    "TFLOP/s",
    "GB/s",
    "of roofline",
    "torch ms",
    "faster",
    "",
  ];
  const failed = kernels.failed.map(({ op, message }) => `failed: ${op}: ${message}`);
  const { device, copy_gb_per_sec, peak_how } = kernels;
  const attention = device.attention ? `attention: ${device.attention}; ` : "";
  const about = `${device.name}, ${attention}GEMM: ${device.blas}; copy ${
    copy_gb_per_sec?.toFixed(0)
  } GB/s; ${peak_how}`;
  const expected_ms = kernels.timings.reduce((sum, t) => sum + t.count * (predicted.get(t.op) ?? 0), 0);
  const total = prediction
    ? [
      `${kernels.micro_step_ms.toFixed(2)} ms for these calls of a micro-step, predicted ${
        expected_ms.toFixed(2)
      }`,
    ]
    : [];
  return [about, table([header, ...rows]), ...total, ...failed].join("\n");
}

/** peak_flops: of the card, for MFU. */
function peerTable(
  peer: Partial<Peer>,
  peak_flops: number | null | undefined,
  prediction: Prediction | undefined,
): string {
  const { results = {}, failures = {}, options } = peer; // all missing where the process was killed while it wrote
  const torch = Object.entries(results).filter(([name]) => name !== "loam").map(([, r]) => r.tokens_per_sec);
  const flops = options ? measureModel(modelOf(options)).flops_per_token : 0; // as in train.ts's MFU, for both sides
  const rows = Object.entries(results).map(([name, r]) => [
    name,
    r.median_ms.toFixed(1),
    r.tokens_per_sec.toFixed(0),
    peak_flops ? percent(flops * r.tokens_per_sec / peak_flops, 1) : "",
    `${(r.peak_bytes / 1e9).toFixed(2)} GB`,
    torch.length ? `${(r.tokens_per_sec / Math.max(...torch)).toFixed(2)}x` : "",
    r.ready.planned_bytes ? `planned ${percent(r.ready.planned_bytes / r.peak_bytes, 1)} of it` : "",
    name === "loam" && prediction && options
      ? `predicted ${predictedStep(prediction, options.accum).toFixed(1)} ms`
      : "",
  ]);
  const header = ["", "ms/step", "tokens/s", "MFU", "peak memory", "of best torch", "", ""];
  return [table([header, ...rows]), ...Object.values(failures).map((text) => `failed: ${text}`)].join("\n");
}

if (import.meta.main) {
  await runMain(() => {
    const [path, work, stage, code, seconds] = Deno.args; // with --todo in place of work, and names in place of stage
    if (!path) throw new UserError("Cannot report: name the result file; see bench/gpu.sh --help");
    const results = read(path);
    if (work === "--todo" && stage) return console.log(unfinished(results, stage.split(",")).join(","));
    if (!work || !stage) {
      return console.log(printed(results, latestPredictions(`${import.meta.dirname}/results`)));
    }
    results.stages[stage] = gather(work, stage, Number(code), Number(seconds));
    Deno.writeTextFileSync(`${path}.new`, JSON.stringify(results, null, 2) + "\n");
    Deno.renameSync(`${path}.new`, path); // a kill leaves one or the other whole
  });
}
