// What it costs and gives to keep documents apart: a layer's attention, forward and backward, over windows of a dataset, or whole
// steps of a preset; by turns without, with all of a window one document, and with its documents apart. Prints medians, and
// medians and quartiles of what each turn took beside the one without of its round.
//
//   deno run -P=bench bench/documents.ts --data_dir=data/c4
//   deno run -P=bench bench/documents.ts --data_dir=data/c4 --preset=small --tokens=2048 --block_size=256
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  allocateHost,
  BF16,
  copyToDevice,
  copyToHost,
  device,
  F32,
  open,
  synchronizeNow,
  tokenSource,
} from "../ffi/library.ts";
import { openDataset } from "../data/bins.ts";
import { Loader } from "../data/loader.ts";
import { init, loss } from "../model/llama.ts";
import { Inputs } from "../runtime/inputs.ts";
import { AdamW, Parameters } from "../runtime/optim.ts";
import { backward, endStep } from "../runtime/tape.ts";
import { median } from "./median.ts";
import { reportHead, saveReport, warnOfLoad } from "./report.ts";
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";
import { modelOf, SHAPES } from "./shapes.ts";

const defaults = {
  data_dir: "", // whose documents
  device: "cpu", // or cuda
  bf16_gemm: "auto", // of a CPU: true, false or auto
  preset: "", // tiny, small, 124m or gpt-270m: whole steps of it, with the vocabulary of the dataset; "" = attention alone
  block_size: "256,1024,2048", // tokens of a window
  tokens: 8192, // of a batch
  n_head: 6, // of attention alone, as the next two
  n_kv_head: 2,
  head_dim: 64,
  rounds: 15, // turns of each
  json: "", // where the report goes; "" = bench/results/documents-DATE.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  ...each(whole(1), "tokens", "n_head", "n_kv_head", "head_dim", "rounds"),
  bf16_gemm: ["auto", "true", "false"],
  preset: ["", ...Object.keys(SHAPES)],
};

const KINDS = ["without", "one document", "apart"] as const;
type Kind = typeof KINDS[number];

/** ms of each turn. */
type Times = Record<Kind, number[]>;

if (import.meta.main) {
  await runMain((args) => {
    if (args.includes("--help")) {
      const source = Deno.readTextFileSync(import.meta.filename!);
      return Promise.resolve(console.log(help("Time attention within documents", defaults, source)));
    }
    return Promise.resolve(main({ ...defaults, ...readFlags(args, defaults, { ranges }) }));
  });
}

function main(o: Options): void {
  if (!o.data_dir) {
    throw new UserError("Cannot time attention: --data_dir is missing; name a dataset, such as data/c4");
  }
  const head = reportHead("bench/documents.ts");
  warnOfLoad(head.load_before);
  open(o.device as "cpu" | "cuda", { bf16_gemm: o.bf16_gemm === "auto" ? "auto" : o.bf16_gemm === "true" });
  const rows = o.block_size.split(",").map((T) => measure(o, Number(T)));
  const percent = (x: number) => `${x > 1 ? "+" : ""}${((x - 1) * 100).toFixed(1)}`;
  const beside = ({ without }: Times, turns: number[]) => {
    const ratios = turns.map((ms, i) => ms / without[i]!).toSorted((a, b) => a - b), n = ratios.length;
    return `${percent(median(ratios))}% (${percent(ratios[n >> 2]!)} to ${percent(ratios[3 * n >> 2]!)})`;
  };
  console.log(table([
    ["tokens", "documents a window", "", ...KINDS.map((kind) => `${kind}, ms`), "one document", "apart"],
    ...rows.flatMap(({ T, documents, times }) =>
      Object.entries(times).map(([what, turns]) => [
        `${T}`,
        documents.toFixed(2),
        what,
        ...KINDS.map((kind) => median(turns[kind]).toFixed(2)),
        ...KINDS.slice(1).map((kind) => beside(turns, turns[kind])),
      ])
    ),
  ]));
  const { name, isa = "", bf16_gemm = false } = device, date = head.date;
  console.log(
    `saved ${
      saveReport({ ...head, device: { name, isa, bf16_gemm }, options: o, rows }, `documents-${date}`, o.json)
    }`,
  );
}

/** What is timed: each runs once a turn. */
type Parts = Record<string, (kind: Kind) => void>;

/** Times of a batch of windows of T tokens, and how many documents a window holds some of, on average. */
function measure(o: Options, T: number): { T: number; documents: number; times: Record<string, Times> } {
  const B = Math.max(1, Math.floor(o.tokens / T)), N = B * T, dataset = openDataset(o.data_dir);
  const loader = new Loader(tokenSource, dataset, {
    ...{ split: "train", batch_size: B, block_size: T, vocab_size: dataset.vocab_size } as const,
  });
  const [x, y, host] = [1, 2, 3].map(() => allocateHost(4 * N)) as [bigint, bigint, bigint];
  loader.trainBatch(x, y, { seed: 1337, sample: 0, micro: 0 }, host);
  const starts = new Int32Array(N);
  copyToHost(starts, host);
  const begins = starts.filter((start, i) => i % T > 0 && start === i % T).length;
  const parts = o.preset
    ? wholeStep(o.preset, B, T, dataset.vocab_size, loader)
    : attentionAlone(o, B, T, starts);
  const times: Record<string, Times> = {};
  for (let round = 0; round <= o.rounds; round++) {
    for (const kind of KINDS.map((_, i) => KINDS[(round + i) % KINDS.length]!)) { // no kind has the same one before it always
      for (const [what, run] of Object.entries(parts)) {
        synchronizeNow();
        const begun = performance.now();
        run(kind);
        synchronizeNow();
        if (round === 0) continue; // to warm up
        times[what] ??= { without: [], "one document": [], apart: [] };
        times[what][kind].push(performance.now() - begun);
      }
    }
  }
  return { T, documents: 1 + begins / B, times };
}

/** A step of a model as train.ts does it, with a batch of its own each time, the same for all of a round. */
function wholeStep(preset: string, B: number, T: number, V: number, loader: Loader): Parts {
  const c = modelOf({ ...SHAPES[preset]!, T, V }), model = init(c);
  const optimizer = new AdamW(new Parameters(model, { seed: 1337, train: true }), {
    ...{ beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 },
  });
  const inputs = { without: new Inputs(B, T, 1), apart: new Inputs(B, T, 1, true) };
  let turns = 0;
  const step = (kind: Kind) => {
    const { idx, targets, starts } = kind === "without" ? inputs.without : inputs.apart;
    const position = { seed: 1337, sample: B * Math.floor(turns++ / KINDS.length), micro: 0 };
    inputs[kind === "without" ? kind : "apart"].fill((x, y, from) => {
      loader.trainBatch(x, y, position, from);
    });
    if (kind === "one document") k.fill_zero(starts!.address, BigInt(starts!.bytes));
    const l = loss(model, idx, targets, c, { head_chunk: 2048, starts });
    optimizer.addLoss(l, 1, true);
    backward(l);
    endStep();
    optimizer.step(3e-4);
  };
  return { step };
}

/** Of one layer, with what begins where as given. */
function attentionAlone(
  { n_head: H, n_kv_head: K, head_dim: D }: Options,
  B: number,
  T: number,
  values: Int32Array<ArrayBuffer>,
): Parts {
  const N = B * T, act = device.act === "bf16" ? 2 : 4, starts = allocate(4 * N);
  copyToDevice(starts, values);
  const numbers = (n: number) => {
    const floats = allocate(4 * n), address = act === 4 ? floats : allocate(act * n);
    k.init_normal(floats, BigInt(n), 1, 7n, 0n);
    if (act === 2) k.convert(address, floats, BF16, F32, BigInt(n));
    return address;
  };
  const zeros = allocate(4 * N), qkv = numbers(N * (H + 2 * K) * D), dout = numbers(N * H * D);
  const [out, dqkv] = [N * H * D, N * (H + 2 * K) * D].map((n) => allocate(act * n)) as [bigint, bigint];
  const lse = allocate(4 * B * H * T), delta = allocate(4 * B * H * T);
  const from = { without: 0n, "one document": zeros, apart: starts };
  return {
    forward: (kind) => k.attention_forward(out, lse, qkv, from[kind], B, T, H, K, D),
    backward: (kind) => k.attention_backward(dqkv, delta, dout, out, lse, qkv, from[kind], B, T, H, K, D),
  };
}
