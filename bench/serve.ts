// What the server costs and how fast it answers: /stats while models train with all cores, step times with a server and
// clients that follow it against those without, and the history of a long run. Everything goes to bench/results/.
//
//   deno task prepare && deno run -P=bench --allow-net=127.0.0.1 bench/serve.ts
import { runMain, UserError } from "../base/errors.ts";
import { isFile } from "../base/files.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { FakeRun } from "../serve/testing.ts";
import { lines } from "../base/lines.ts";
import { median } from "./median.ts";
import { reportHead, saveReport, warnOfLoad } from "./report.ts";

const defaults = {
  presets: "tiny,small",
  data_dir: "data/demo",
  requests: 10_000, // to /stats, one after the other
  clients: 20, // that follow a run live
  rounds: 5, // turns with a server and without
  seconds: 20, // of each turn
  steps: 1_000_000, // of the long run
  json: "", // where the results go; "" = bench/results/serve-<date>.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = each(whole(1), "requests", "clients", "rounds", "seconds", "steps");

const ROOT = `${import.meta.dirname}/..`;
const WARMUP_S = 3; // after the first step

/** Milliseconds from a request to the last byte of its answer. */
type Latency = { requests: number; failures: number; p50_ms: number; p99_ms: number; max_ms: number };

/** Mean step times by turns, and how much longer they are with the server. */
type Overhead = { without_ms: number[]; with_ms: number[]; medianRatio: number };

// ---- processes

const ENDED = new UserError("Cannot measure: the process ended early; the cause stands above");

/** A task of deno.json that runs until it is stopped. */
class Running {
  hasEnded = false; // known while it is drained
  readonly #child: Deno.ChildProcess;
  readonly #lines: AsyncGenerator<string, void>;

  constructor(args: string[]) {
    const command = { args: ["run", "-q", ...args], cwd: ROOT };
    this.#child = new Deno.Command(Deno.execPath(), { ...command, stdout: "piped" }).spawn();
    this.#lines = lines(this.#child.stdout);
  }

  /** Waits for a line that begins so, and returns it. */
  async line(start: string): Promise<string> {
    while (true) {
      const { value, done } = await this.#lines.next();
      if (done) throw ENDED;
      if (value.startsWith(start)) return value;
    }
  }

  /** Reads on without looking, so that the process does not wait for a reader. */
  async drain(): Promise<void> {
    for await (const _ of this.#lines);
    this.hasEnded = true;
  }

  async stop(): Promise<void> {
    this.#child.kill("SIGTERM");
    await this.#child.status;
  }
}

/** A trainer that does nothing but train, with all cores. */
class Trainer {
  readonly run = Deno.makeTempDirSync({ dir: "/tmp", prefix: "loam_bench_" });
  readonly #process: Running;

  constructor(preset: string, o: Options, more: string[]) {
    const quiet = ["--eval_interval=0", "--sample_interval=0", "--save_interval=0", "--log_interval=1000000"];
    const flags = [
      `--preset=${preset}`,
      "--device=cpu",
      `--data_dir=${o.data_dir}`,
      `--out_dir=${this.run}/run`,
    ];
    const all = [...flags, ...quiet, "--max_iters=10000000", "--verify_data=false", ...more];
    this.#process = new Running(["-P=train", "train.ts", ...all]);
  }

  /** Waits until it trains at its speed. Returns the address of its server, if it has one. */
  async warmUp(hasServer: boolean): Promise<string> {
    const url = hasServer ? (await this.#process.line("serving at ")).split(" ").at(-1)! : "";
    this.#process.drain();
    while (this.step_ms().length === 0) {
      if (this.#process.hasEnded) throw ENDED;
      await sleep(0.1);
    }
    await sleep(WARMUP_S);
    return url;
  }

  /** The times of all steps so far. */
  step_ms(): number[] {
    if (!isFile(`${this.run}/run/metrics.jsonl`)) return [];
    const whole = Deno.readTextFileSync(`${this.run}/run/metrics.jsonl`).split("\n").slice(0, -1);
    return whole.map((line) => JSON.parse(line).step_ms);
  }

  async stop(): Promise<void> {
    await this.#process.stop();
    Deno.removeSync(this.run, { recursive: true });
  }
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

function sleep(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}

// ---- measurements

/** Asks for an address again and again. */
async function latencyOf(url: string, requests: number): Promise<Latency> {
  const times: number[] = [];
  let failures = 0;
  for (let i = 0; i < requests; i++) {
    const start = performance.now();
    try {
      const response = await fetch(url);
      await response.arrayBuffer();
      if (!response.ok) failures++;
    } catch {
      failures++;
    }
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  const at = (share: number) => times[Math.min(times.length - 1, Math.floor(share * times.length))]!;
  return { requests, failures, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1) };
}

/** /stats of a trainer's own server. */
async function whileTraining(preset: string, o: Options): Promise<Latency> {
  const trainer = new Trainer(preset, o, [`--serve_port=${freePort()}`]);
  const url = await trainer.warmUp(true), latency = await latencyOf(`${url}stats`, o.requests);
  await trainer.stop();
  return latency;
}

/** Mean step time of one turn. */
async function turn(preset: string, o: Options, withServer: boolean): Promise<number> {
  const trainer = new Trainer(preset, o, withServer ? [`--serve_port=${freePort()}`] : []);
  const url = await trainer.warmUp(withServer);
  const clients = await Promise.all(Array.from({ length: withServer ? o.clients : 0 }, () => follow(url)));
  const before = trainer.step_ms().length;
  await sleep(o.seconds);
  const times = trainer.step_ms().slice(before);
  for (const client of clients) client.close();
  await trainer.stop();
  return times.reduce((a, b) => a + b) / times.length;
}

/** A client of /events that reads and forgets. It is as small as can be, since it takes from the same cores. */
async function follow(url: string): Promise<Deno.TcpConn> {
  const { hostname, port, host } = new URL(url);
  const connection = await Deno.connect({ hostname, port: Number(port) }), buffer = new Uint8Array(1 << 16);
  await connection.write(new TextEncoder().encode(`GET /events HTTP/1.1\r\nHost: ${host}\r\n\r\n`));
  const read = async () => {
    while (await connection.read(buffer) !== null);
  };
  read().catch(() => {}); // closed
  return connection;
}

async function overheadOf(preset: string, o: Options): Promise<Overhead> {
  const without_ms: number[] = [], with_ms: number[] = [];
  for (let round = 0; round < o.rounds; round++) {
    const order = round % 2 === 0 ? [false, true] : [true, false]; // a drift meets both
    for (const withServer of order) {
      (withServer ? with_ms : without_ms).push(await turn(preset, o, withServer));
    }
  }
  return { without_ms, with_ms, medianRatio: median(with_ms) / median(without_ms) };
}

/** Answers about a run of many steps, each of another part of it, so that none can be kept. */
async function longRun(o: Options): Promise<Record<string, Latency | number>> {
  using fake = new FakeRun(0, { config: { max_iters: o.steps } });
  for (let step = 1; step <= o.steps; step += 10_000) fake.steps(step, Math.min(o.steps, step + 9999));
  const start = performance.now();
  const server = new Running(["-P=serve", "serve.ts", "--run", fake.dir, "--port=0"]);
  const url = (await server.line("serving at ")).split(" ").at(-1)!;
  const start_s = (performance.now() - start) / 1000;
  const figures = {
    start_s, // of the process, with all lines read
    history: await latencyOf(`${url}stats/history?key=loss&points=1000`, 20),
    history_of_four: await latencyOf(
      `${url}stats/history?key=loss&key=lr&key=grad_norm&key=mfu&points=1000`,
      20,
    ),
    stats: await latencyOf(`${url}stats`, 100),
  };
  await server.stop();
  return figures;
}

// ---- report

function printLatency(what: string, { requests, failures, p50_ms, p99_ms, max_ms }: Latency): void {
  const figures = [["p50", p50_ms], ["p99", p99_ms], ["max", max_ms]] as const;
  const text = figures.map(([name, ms]) => `${name} ${ms.toFixed(2)} ms`).join("  ");
  console.log(`${what.padEnd(32)} ${text}  ${failures} of ${requests} failed`);
}

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) {
      return console.log(
        help(
          "Time the server, and what it costs the training that it shows",
          defaults,
          Deno.readTextFileSync(import.meta.filename!),
        ),
      );
    }
    const o = { ...defaults, ...readFlags(args, defaults, { ranges }) };
    const head = reportHead("deno run -P=bench --allow-net=127.0.0.1 bench/serve.ts");
    if (!isFile(`${ROOT}/${o.data_dir}/meta.json`) && !isFile(`${o.data_dir}/meta.json`)) {
      throw new UserError(
        `Cannot train on ${o.data_dir}: it is no dataset; make one with: deno task prepare`,
      );
    }
    warnOfLoad(head.load_before);
    const long_run = await longRun(o);
    for (const [name, value] of Object.entries(long_run)) {
      if (typeof value !== "number") printLatency(`${o.steps} steps, ${name}`, value);
    }
    const training: Record<string, { stats: Latency; overhead: Overhead }> = {};
    for (const preset of o.presets.split(",")) {
      const stats = await whileTraining(preset, o);
      printLatency(`/stats while ${preset} trains`, stats);
      const overhead = await overheadOf(preset, o), { medianRatio } = overhead;
      const [less, more] = [overhead.without_ms, overhead.with_ms].map((turns) => median(turns).toFixed(2));
      const percent = (100 * (medianRatio - 1)).toFixed(2);
      console.log(
        `a step of ${preset}: ${less} ms, with a server and ${o.clients} clients ${more} ms: ${percent}% more`,
      );
      training[preset] = { stats, overhead };
    }
    const report = { ...head, options: o, long_run, training };
    console.log(`all figures are in ${saveReport(report, `serve-${head.date}`, o.json)}`);
  });
}
