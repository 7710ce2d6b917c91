// A run of train.ts that was written a second time with PyTorch (tests/oracle/train_run.py): its flags, and how a run here
// compares with it.
import { assert, assertEquals } from "@std/assert";
import { readSafetensors, type SafetensorsFile } from "../runtime/safetensors.ts";
import { freshPath, metrics } from "./testing.ts";

export const GOLDEN = new URL("golden/train_run", import.meta.url).pathname;
/** The same of conversations. */
const CHAT_GOLDEN = new URL("golden/chat_run", import.meta.url).pathname;

/** What a run has to give. */
type Expected = {
  seed: number;
  losses: number[];
  grad_norms: number[];
  learning_rates: number[];
  val_losses: Record<string, number>;
};

export const expected: Expected = JSON.parse(Deno.readTextFileSync(`${GOLDEN}/run.json`));
export const chatExpected: Expected = JSON.parse(Deno.readTextFileSync(`${CHAT_GOLDEN}/run.json`));
/** What the settings below have in common. */
export const FLAGS = [
  ...["--n_layer=2", "--n_embd=32", "--n_head=2", "--n_kv_head=1", "--head_dim=32", "--n_inner=48"],
  ...["--block_size=16", "--threads=1", `--seed=${expected.seed}`, `--data_dir=${GOLDEN}`],
  ...["--learning_rate=0.01", "--min_lr=0.001", "--warmup_iters=5", "--max_iters=17"],
  ...["--eval_interval=4", "--sample_interval=0", "--save_interval=1000"],
  "--bf16_gemm=false",
];
/** Of one process. */
export const ALONE = ["--batch_size=4", "--gradient_accumulation_steps=3"];
/** Of two ranks: the same twelve windows a step. */
export const SHARED = ["--batch_size=2", "--gradient_accumulation_steps=6"];

/** The dataset with masks, whose shards are those of the other. */
export function chatDataset(): string {
  const dir = freshPath();
  Deno.mkdirSync(dir);
  for (const from of [GOLDEN, CHAT_GOLDEN]) {
    for (const { name } of Deno.readDirSync(from)) {
      if (/\.(bin|mask)$|^meta\.json$/.test(name)) Deno.copyFileSync(`${from}/${name}`, `${dir}/${name}`);
    }
  }
  return dir;
}

/** Compares a run with the golden one. Relative: of a loss and of a whole tensor; norms may differ by ten times as much. */
export function compare(out: string, { loss, weights }: { loss: number; weights: number }): void {
  compareSteps(out, expected, loss);
  const theirs = readSafetensors(`${GOLDEN}/last.safetensors`);
  const ours = readSafetensors(`${out}/checkpoints/step_000017/model.safetensors`);
  assertEquals([...ours.tensors.keys()].sort(), [...theirs.tensors.keys()].sort());
  for (const [name, { shape }] of theirs.tensors) {
    assertEquals(ours.tensors.get(name)!.shape, shape, name);
    const error = relativeError(values(ours, name), values(theirs, name));
    assert(error <= weights, `${name}: relative error ${error}`);
  }
}

/** Compares the losses, norms, rates and val_losses of a run with those that it should have. */
export function compareSteps(out: string, expected: Expected, loss: number): void {
  const steps = metrics(out);
  assertEquals(steps.map(({ step, tokens }) => [step, tokens]), range(17).map((i) => [i + 1, 192 * (i + 1)]));
  steps.forEach((m, i) => {
    const near = (what: string, value: number, wanted: number, tolerance: number) =>
      assert(
        Math.abs(value / wanted - 1) <= tolerance,
        `step ${i + 1}: ${what} ${value}, should be ${wanted}`,
      );
    near("loss", m.loss!, expected.losses[i]!, loss);
    near("norm", m.grad_norm!, expected.grad_norms[i]!, 10 * loss);
    near("lr", m.lr!, expected.learning_rates[i]!, 1e-6);
    const val = expected.val_losses[i + 1];
    assertEquals("val_loss" in m, val !== undefined, `step ${i + 1}`);
    if (val !== undefined) near("val loss", m.val_loss!, val, loss);
  });
}

/** The values of a tensor in a file, float32 or bfloat16. */
export function values(file: SafetensorsFile, name: string): Float32Array {
  const { dtype, shape } = file.tensors.get(name)!, size = shape.reduce((a, b) => a * b, 1);
  const bytes = file.read(name, 0, size * (dtype === "BF16" ? 2 : 4)).slice();
  if (dtype !== "BF16") return new Float32Array(bytes.buffer);
  return new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (half) => half << 16).buffer);
}

/** L2 norm of the difference over that of what is expected. */
function relativeError(actual: Float32Array, wanted: Float32Array): number {
  const square = (f: (i: number) => number) => wanted.reduce((sum, _, i) => sum + f(i) ** 2, 0);
  return Math.sqrt(square((i) => actual[i]! - wanted[i]!) / square((i) => wanted[i]!));
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}
