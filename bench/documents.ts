// What it costs and gives to keep documents apart: a layer's attention, forward and backward, over windows of a dataset; by turns
// without, with all of a window one document, and with its documents apart. Prints medians.
//
//   deno run -P=bench bench/documents.ts --data_dir=data/c4
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
import { median } from "./median.ts";
import { reportHead, saveReport, warnOfLoad } from "./report.ts";
import { runMain, UserError } from "../base/errors.ts";
import { each, help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { table } from "../base/format.ts";

const defaults = {
  data_dir: "", // whose documents
  device: "cpu", // or cuda
  bf16_gemm: "auto", // of a CPU: true, false or auto
  block_size: "256,1024,2048", // tokens of a window
  tokens: 8192, // of a batch
  n_head: 6,
  n_kv_head: 2,
  head_dim: 64,
  rounds: 15, // turns of each
  json: "", // where the report goes; "" = bench/results/documents-DATE.json
};
type Options = typeof defaults;

const ranges: Ranges<Options> = {
  ...each(whole(1), "tokens", "n_head", "n_kv_head", "head_dim", "rounds"),
  bf16_gemm: ["auto", "true", "false"],
};

const KINDS = ["without", "one document", "apart"] as const;

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
  const ms = (x: number) => x.toFixed(2),
    percent = (x: number) => `${x > 1 ? "+" : ""}${((x - 1) * 100).toFixed(1)}%`;
  console.log(table([
    ["tokens", "documents a window", "", ...KINDS.map((kind) => `${kind}, ms`), "one document", "apart"],
    ...rows.flatMap(({ T, documents, times }) =>
      (["forward", "backward"] as const).map((way) => {
        const [without, one, apart] = KINDS.map((kind) => times[way][kind]) as [number, number, number];
        const shown = [without, one, apart].map(ms);
        return [
          `${T}`,
          documents.toFixed(2),
          way,
          ...shown,
          percent(one / without),
          percent(apart / without),
        ];
      })
    ),
  ]));
  const { name, isa = "", bf16_gemm = false } = device, date = head.date;
  console.log(
    `saved ${
      saveReport({ ...head, device: { name, isa, bf16_gemm }, options: o, rows }, `documents-${date}`, o.json)
    }`,
  );
}

type Times = Record<typeof KINDS[number], number>;

/** Medians in ms of a batch of windows of T tokens, and how many documents a window holds some of, on average. */
function measure(
  o: Options,
  T: number,
): { T: number; documents: number; times: Record<"forward" | "backward", Times> } {
  const { n_head: H, n_kv_head: K, head_dim: D } = o, B = Math.max(1, Math.floor(o.tokens / T)), N = B * T;
  const dataset = openDataset(o.data_dir), act = device.act === "bf16" ? 2 : 4;
  const loader = new Loader(tokenSource, dataset, {
    ...{ split: "train", batch_size: B, block_size: T, vocab_size: dataset.vocab_size } as const,
  });
  const [x, y, host] = [1, 2, 3].map(() => allocateHost(4 * N)) as [bigint, bigint, bigint];
  loader.trainBatch(x, y, { seed: 1337, sample: 0, micro: 0 }, host);
  const values = new Int32Array(N), starts = allocate(4 * N);
  copyToHost(values, host);
  copyToDevice(starts, values);
  const begins = values.filter((start, i) => i % T > 0 && start === i % T).length;
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
  const timed = (f: () => void) => {
    synchronizeNow();
    const begun = performance.now();
    f();
    synchronizeNow();
    return performance.now() - begun;
  };
  const all = { forward: {}, backward: {} } as Record<"forward" | "backward", Record<string, number[]>>;
  for (let round = 0; round <= o.rounds; round++) {
    for (const kind of KINDS) {
      const forward = timed(() => k.attention_forward(out, lse, qkv, from[kind], B, T, H, K, D));
      const backward = timed(() =>
        k.attention_backward(dqkv, delta, dout, out, lse, qkv, from[kind], B, T, H, K, D)
      );
      if (round === 0) continue; // to warm up
      (all.forward[kind] ??= []).push(forward);
      (all.backward[kind] ??= []).push(backward);
    }
  }
  const medians = (times: Record<string, number[]>) =>
    Object.fromEntries(KINDS.map((kind) => [kind, median(times[kind]!)])) as Times;
  return {
    T,
    documents: 1 + begins / B,
    times: { forward: medians(all.forward), backward: medians(all.backward) },
  };
}
