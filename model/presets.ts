// Presets: literal overrides of the variables at the top of train.ts. `--preset=small`, then `--name=value` on top.

/** The variables that each preset sets, by its name. */
export const presets = {
  "gpt-270m": {},
  small: {
    n_layer: 6,
    n_embd: 384,
    n_head: 6,
    n_kv_head: 2,
    n_inner: 1024,
    block_size: 256,
    batch_size: 8,
    gradient_accumulation_steps: 1,
    learning_rate: 1e-3,
    min_lr: 1e-4,
    warmup_iters: 100,
    max_iters: 2000,
    eval_interval: 100,
    sample_interval: 500,
    save_interval: 500,
  },
  finetune: {
    block_size: 1024,
    batch_size: 1,
    gradient_accumulation_steps: 16,
    learning_rate: 2e-5,
    min_lr: 2e-6,
    warmup_iters: 20,
    max_iters: 500,
    eval_interval: 50,
    sample_interval: 100,
    save_interval: 100,
  },
  lora: {
    block_size: 1024,
    batch_size: 1,
    gradient_accumulation_steps: 16,
    lora_rank: 16,
    learning_rate: 2e-4,
    min_lr: 2e-5,
    warmup_iters: 20,
    max_iters: 500,
    eval_interval: 50,
    sample_interval: 100,
    save_interval: 100,
  },
  tiny: {
    n_layer: 4,
    n_embd: 128,
    n_head: 4,
    n_kv_head: 2,
    n_inner: 384,
    block_size: 128,
    batch_size: 16,
    gradient_accumulation_steps: 1,
    learning_rate: 3e-3,
    min_lr: 3e-4,
    warmup_iters: 50,
    max_iters: 1000,
    eval_interval: 100,
    eval_batches: 10,
    sample_interval: 250,
    save_interval: 250,
  },
} as const;

/**
 * What takes the place of gpt-270m's own batch, the first that suits, on a GPU with so much memory free: as many tokens a step
 * in fewer micro-steps, and nothing computed twice. The first is for cards of 80 GB, the second for those of 24 to 48.
 */
export const largerBatches = [
  { from_bytes: 64e9, batch_size: 16, gradient_accumulation_steps: 8, recompute: "none", head_chunk: 8192 },
  { from_bytes: 20e9, batch_size: 8, gradient_accumulation_steps: 16, recompute: "none", head_chunk: 8192 },
] as const;

/** A configuration for GPUs with at least so many bytes free. */
export type Larger<T> = { from_bytes: number; config: T };

/** The name of a preset. */
export type PresetName = keyof typeof presets;

/** What each is for. */
export const purposes: Record<PresetName, string> = {
  "gpt-270m":
    "322M parameters (271M without embeddings) in 9.5 GB, or more that is free; the default on a GPU",
  small: "11M parameters without embeddings: an hour on a laptop to readable English",
  finetune: "small steps from good weights, 16,384 tokens each; the default with --init_from",
  lora: "finetune with adapters beside frozen weights; the default with --lora_rank",
  tiny: "0.8M parameters: the demo, three minutes on two cores; the default on a CPU",
};

/** What `deno task train --help` says before the variables, whose values are those of a preset. */
export function usage(preset: string): string {
  const width = Math.max(...Object.keys(purposes).map((name) => name.length));
  return `Train a Llama

  deno task train --preset=small --data_dir=data/c4 --out_dir=runs/c4 --max_iters=200

presets
${Object.entries(purposes).map(([name, what]) => `  ${name.padEnd(width)}  ${what}`).join("\n")}

variables, as ${preset} has them here`;
}
