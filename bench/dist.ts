// What it costs to train with two ranks on one machine: deno run -P=bench bench/dist.ts
//
// One process with two threads and two processes with one thread each, under mpirun, train the same preset on the demo data by
// turns; and the two exchange gradients and weights of that size with nothing else to do.
import { Hosts, makeWire } from "./hosts.ts";
import { lines as linesOf } from "../base/lines.ts";
import { median } from "./median.ts";
import { reportHead, saveReport } from "./report.ts";
import { runMain, UserError } from "../base/errors.ts";
import { allocate, open } from "../ffi/library.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { joinRanks } from "../dist/ranks.ts";
import type { StepMetrics } from "../runtime/metrics.ts";
import { findWorld } from "../dist/world.ts";
import settings from "../deno.json" with { type: "json" };

const defaults = {
  steps: 45, // of each run; the first fifteen are left out
  turns: 3, // runs of each kind, by turns
  gradient_accumulation_steps: 8,
  presets: "tiny,small",
  link_mbit: 0, // instead: two ranks over a link of so many Mbit/s, with and without --overlap; as root
  link_ms: 0, // instead, or too: over a link on which everything takes so many ms
  exchange: 0, // instead: under mpirun, time exchanges of so many parameters
  json: "", // where the results go; "" = bench/results/dist-<date>.json
};

const WARM_UP = 15; // the first steps compile JavaScript
const EXCHANGES = 20;

const ranges: Ranges<typeof defaults> = {
  ...each(whole(1), "turns", "gradient_accumulation_steps"),
  steps: whole(WARM_UP + 1),
  ...each(whole(0), "link_mbit", "link_ms"),
  exchange: whole(0),
};

const MPIRUN = ["-n", "2", "--oversubscribe", "--bind-to", "core"];

/** What is in the JSON file for each preset. */
type Row = {
  preset: string;
  parameters: number;
  /** Medians of all steps of each turn. */
  one_process_ms: number[];
  two_ranks_ms: number[];
  /** Throughput of two ranks over that of one process, medians of the turns. */
  ratio: number;
  /** Sum of float32 gradients and all-gather of weights. */
  exchange_ms: number;
  exchange_gb_per_sec: number;
  exchange_share_of_step: number;
};

async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    return console.log(
      help(
        "Time what it costs to train with two ranks on one machine",
        defaults,
        Deno.readTextFileSync(import.meta.filename!),
      ),
    );
  }
  const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
  if (o.exchange > 0) return await timeExchange(o.exchange);
  if (o.link_mbit > 0 || o.link_ms > 0) {
    for (const preset of o.presets.split(",")) await measureLink(preset, o);
    return;
  }
  const head = reportHead("bench/dist.ts"), rows: Row[] = [];
  for (const preset of o.presets.split(",")) rows.push(await measure(preset, o));
  console.log(`written to ${saveReport({ ...head, rows }, `dist-${head.date}`, o.json)}`);
}

async function measure(preset: string, o: typeof defaults): Promise<Row> {
  const one: number[] = [], two: number[] = [];
  let parameters = 0;
  for (let turn = 0; turn < o.turns; turn++) {
    const alone = await train(1, preset, o), together = await train(2, preset, o);
    one.push(alone.step_ms);
    two.push(together.step_ms);
    parameters = alone.parameters;
  }
  const exchange_ms = await exchange(parameters);
  const ratio = median(one) / median(two), bytes = 4 * parameters; // sent and received by each: half of it twice
  const row = {
    preset,
    parameters,
    one_process_ms: one,
    two_ranks_ms: two,
    ratio,
    exchange_ms,
    exchange_gb_per_sec: bytes / exchange_ms / 1e6,
    exchange_share_of_step: exchange_ms / median(two),
  };
  console.log(
    `${preset}: one process ${median(one).toFixed(1)} ms a step, two ranks ${median(two).toFixed(1)} ms ` +
      `(${ratio.toFixed(2)}x), exchange ${exchange_ms.toFixed(2)} ms`,
  );
  return row;
}

/**
 * Prints what a step takes over a slow link, and what of it is no rank's own work: communication that nothing hides. Of each run
 * the fastest quarter of the steps counts, in which other programs of the machine have disturbed least.
 */
async function measureLink(preset: string, o: typeof defaults): Promise<void> {
  const wire = o.link_ms > 0 ? await makeWire() : "";
  for (const overlap of [false, true]) {
    const steps: number[] = [], exposed: number[] = [];
    for (let turn = 0; turn < o.turns; turn++) {
      using hosts = new Hosts(wire, o.link_ms);
      if (o.link_mbit > 0) hosts.slow(o.link_mbit, 64);
      const { lines } = await train(2, preset, o, hosts.mpirun, [`--overlap=${overlap}`]);
      lines.forEach(({ step_ms }, i) => { // what ranks say of a step stands in the next line
        const own_ms = lines[i + 1]?.ranks?.step_ms;
        if (own_ms) steps.push(step_ms), exposed.push(step_ms - Math.max(...own_ms));
      });
    }
    const quarter = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 2]!.toFixed(0);
    console.log(
      `${preset} --overlap=${overlap}: ${quarter(steps)} ms a step, ${quarter(exposed)} ms of it exposed`,
    );
  }
  if (wire) Deno.removeSync(wire);
}

async function train(
  ranks: number,
  preset: string,
  o: typeof defaults,
  mpirun: string[] = ["mpirun", ...MPIRUN],
  more: string[] = [],
): Promise<{ step_ms: number; parameters: number; lines: StepMetrics[] }> {
  const out = Deno.makeTempDirSync({ dir: "/tmp" });
  const flags = [
    ...[`--preset=${preset}`, "--device=cpu", `--out_dir=${out}/run`, `--max_iters=${o.steps}`],
    ...[`--gradient_accumulation_steps=${o.gradient_accumulation_steps}`, `--threads=${ranks === 1 ? 2 : 1}`],
    ...["--eval_interval=0", "--sample_interval=0", "--save_interval=0", "--data_dir=data/demo"],
    ...more,
  ];
  const command = [Deno.execPath(), ...settings.tasks["train:dist"].command.split(" ").slice(1), ...flags];
  try {
    await run(ranks === 1 ? command : [...mpirun, ...command]);
    const text = Deno.readTextFileSync(`${out}/run/metrics.jsonl`).trimEnd();
    const lines: StepMetrics[] = text.split("\n").map((line) => JSON.parse(line)).slice(WARM_UP);
    const { parameters } = JSON.parse(Deno.readTextFileSync(`${out}/run/run.json`));
    return { step_ms: median(lines.map(({ step_ms }) => step_ms)), parameters, lines };
  } finally {
    Deno.removeSync(out, { recursive: true });
  }
}

/** Milliseconds of one exchange between two ranks that do nothing else. */
async function exchange(parameters: number): Promise<number> {
  const command = [Deno.execPath(), "run", "-q", "--allow-all", "bench/dist.ts", `--exchange=${parameters}`];
  const printed = await run(["mpirun", ...MPIRUN, ...command]);
  return Number(/exchange (\S+) ms/.exec(printed)![1]);
}

/** As a rank under mpirun: times exchanges and prints the median. */
async function timeExchange(parameters: number): Promise<void> {
  open("cpu", { threads: 1 });
  const ranks = await joinRanks(findWorld((name) => Deno.env.get(name)), 60);
  const n = Math.ceil(parameters / 2 / 64) * 64, address = allocate(8 * n), times: number[] = [];
  for (let i = 0; i < EXCHANGES; i++) {
    await ranks.barrier();
    const t0 = performance.now();
    ranks.beginReduce([0, 1].map((owner) => ({ address: address + BigInt(4 * n * owner), n, owner })));
    await ranks.reduced();
    await ranks.allGather(address, 4 * n);
    times.push(performance.now() - t0);
  }
  if (ranks.rank === 0) console.log(`exchange ${median(times)} ms`);
  await ranks.finalize();
  if (!ranks.isAlone) Deno.exit(); // as train.ts does
}

async function run(command: string[]): Promise<string> {
  const env = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" };
  const child = new Deno.Command(command[0]!, {
    args: command.slice(1),
    env,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const stderr = new Response(child.stderr).text();
  let printed = "";
  for await (const line of linesOf(child.stdout)) printed += line + "\n";
  if (!(await child.status).success) {
    throw new UserError(`Cannot measure: ${command.join(" ")} failed: ${(await stderr).trim()}`);
  }
  return printed;
}

if (import.meta.main) await runMain(main);
