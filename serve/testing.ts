// Run directories for tests, written by the code that trainers write them with.
import { type RunFacts, RunLog, type StepMetrics } from "../runtime/metrics.ts";
import { Run } from "./runs.ts";
import { lastLines } from "./tail.ts";

/** What the configuration of a fake run says, unless a test says otherwise. */
export const CONFIG = { preset: "tiny", max_iters: 1000, learning_rate: 0.003, data_dir: "data/demo" };

/** run.json of a fake run. */
export const FACTS: RunFacts = {
  gpu: null,
  started: "2026-01-02T03:04:05.000Z",
  after: 0,
  device: "cpu (as asked): a processor, 2 threads, avx2, GEMM: onednn",
  model: "0.8M parameters, 0.8M without embeddings",
  parameters: 820_992,
  tokens_per_step: 2048,
  tokens_per_epoch: 204_800,
  flops_per_token: 5e6,
  peak_flops: 1e11,
  memory: { weights: 3_283_968, gradients: 3_283_968, optimizer: 6_567_936, step: 50_000_000 },
  versions: { loam: "0.1.0", deno: "2.9.6" },
};

/** A line of metrics.jsonl: a loss that falls, evaluated every tenth step. */
export function metricsAt(step: number): StepMetrics {
  const val_loss = step % 10 === 0 ? { val_loss: lossAt(step) + 0.1, val_bpb: (lossAt(step) + 0.1) / 3 } : {};
  return {
    step,
    loss: lossAt(step),
    lr: 3e-3 * Math.min(1, step / 50),
    grad_norm: 0.5 + 1 / step,
    tokens: 2048 * step,
    tokens_per_sec: 20_480,
    step_ms: 100,
    mfu: 0.5,
    memory_bytes: 123_000_000,
    skipped: 0,
    ...val_loss,
  };
}

function lossAt(step: number): number {
  return 1 + 4 / Math.sqrt(step);
}

/** A run directory below a temporary one, removed at the end of the block. While log is open, the run counts as alive. */
export class FakeRun implements Disposable {
  /** Its path. */
  readonly dir: string;
  readonly #root: string;
  readonly #metricsAt: typeof metricsAt;
  #log: RunLog | undefined;

  /** A run of so many steps, whose trainer has ended. metrics: what it measures in a step. */
  constructor(
    steps: number,
    { name = "fake", config = {} as Record<string, unknown>, metrics = metricsAt as typeof metricsAt } = {},
  ) {
    this.#metricsAt = metrics;
    this.#root = Deno.realPathSync(Deno.makeTempDirSync({ prefix: "loam_" }));
    this.dir = `${this.#root}/${name}`;
    this.#log = new RunLog(this.dir, JSON.stringify({ ...CONFIG, ...config }), 0);
    this.#log.describe(FACTS);
    if (steps > 0) this.steps(1, steps);
    this.stop();
  }

  /** The run as the server reads it. */
  run(): Run {
    return new Run(this.dir.slice(this.#root.length + 1), this.dir);
  }

  /** A trainer goes on after a step, and holds the lock from now on. */
  start(after: number, facts: Partial<RunFacts> = {}): void {
    const config = Deno.readTextFileSync(`${this.dir}/config.json`);
    this.#log = new RunLog(this.dir, config, after);
    this.#log.describe({ ...FACTS, started: new Date().toISOString(), after, ...facts });
  }

  /** The trainer writes these steps. */
  steps(first: number, last: number): void {
    const lines = Array.from(
      { length: last - first + 1 },
      (_, i) => JSON.stringify(this.#metricsAt(first + i)) + "\n",
    );
    this.append("metrics.jsonl", lines.join(""));
  }

  /** The trainer writes a sample. */
  sample(step: number, text: string): void {
    this.append("samples.jsonl", JSON.stringify({ step, text }) + "\n");
  }

  /** Appends a text to a file of the run. */
  append(file: string, text: string): void {
    Deno.writeTextFileSync(`${this.dir}/${file}`, text, { append: true });
  }

  /** The trainer ends as it should: at max_iters, or before. */
  stop(): void {
    const { max_iters } = JSON.parse(Deno.readTextFileSync(`${this.dir}/config.json`));
    const [last] = lastLines(`${this.dir}/metrics.jsonl`, 1);
    const isDone = last !== undefined && last !== "" && JSON.parse(last).step >= max_iters;
    this.#log?.end(isDone ? "finished" : "stopped");
    this.kill();
  }

  /** The trainer ends over an error. */
  fail(error: Error): void {
    this.#log?.fail(error);
    this.kill();
  }

  /** The trainer ends without a word. */
  kill(): void {
    this.#log?.[Symbol.dispose]();
    this.#log = undefined;
  }

  /** Removes the run. */
  [Symbol.dispose](): void {
    this.kill();
    Deno.removeSync(this.#root, { recursive: true });
  }
}

/** The status that a GET of an address has. */
export async function statusOf(url: string): Promise<number> {
  const { status, body } = await fetch(url);
  await body?.cancel();
  return status;
}

/** A connection on which a test says what no client would, and hears what comes back. */
export class RawClient implements Disposable {
  readonly #tcp: Promise<Deno.Conn>;

  /** Connects to the host and port of url. */
  constructor(url: string) {
    const { hostname, port } = new URL(url);
    this.#tcp = Deno.connect({ hostname, port: Number(port) });
  }

  /** Sends a text. One that the server does not take any more is lost, as on any connection. */
  async send(text: string): Promise<this> {
    const tcp = await this.#tcp;
    await tcp.write(new TextEncoder().encode(text)).catch(() => {});
    return this;
  }

  /** What comes until a text is there, or until the server closes the connection. */
  async receive(until?: string): Promise<string> {
    const tcp = await this.#tcp, decoder = new TextDecoder(), piece = new Uint8Array(1 << 16);
    let text = "";
    while (until === undefined || !text.includes(until)) {
      const n = await tcp.read(piece).catch(() => null); // a reset is an end too
      if (n === null) break;
      text += decoder.decode(piece.subarray(0, n), { stream: true });
    }
    return text;
  }

  /** Closes the connection. */
  [Symbol.dispose](): void {
    this.#tcp.then((tcp) => tcp.close(), () => {});
  }
}
