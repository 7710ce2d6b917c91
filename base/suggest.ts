// "Did you mean": the name that a mistyped one is near to, and for flags what other programs call by another name.

/** The end of an error about an unknown name: the one it is near to, or else all that there are. */
export function meant(name: string, known: readonly string[]): string {
  const near = nearest(name, known);
  return near === undefined ? `there are ${known.join(", ")}` : `did you mean ${near}?`;
}

/** The end of an error about an unknown flag, which is given without its dashes: what to use in its place. */
export function meantFlag(name: string, known: readonly string[]): string {
  const plain = name.toLowerCase().replaceAll("-", "_");
  const usual = USUAL.find(([flag, others]) => known.includes(flag) && others.split(" ").includes(plain));
  if (usual?.[2]) return usual[2];
  const flag = known.includes(plain) ? plain : usual?.[0] ?? nearest(plain, known);
  return flag === undefined ? "see --help" : `did you mean --${flag}?`;
}

/** What other programs call a flag that some command here has, and what to say if that is not the whole truth. */
const USUAL: [flag: string, others: string, advice?: string][] = [
  // train
  ["learning_rate", "lr max_lr"],
  ["max_iters", "steps iters max_steps num_steps train_steps n_steps"],
  [
    "max_iters",
    "epochs num_epochs num_train_epochs n_epochs max_epochs",
    "training is counted in steps: set --max_iters to epochs x tokens / " +
    "(batch_size x gradient_accumulation_steps x block_size)",
  ],
  ["out_dir", "out output output_dir run run_dir save_dir logdir log_dir name run_name"],
  ["data_dir", "data dataset dataset_dir data_path train_data input dir"],
  ["resume", "checkpoint checkpoint_path ckpt restore load"],
  ["init_from", "from_pretrained pretrained pretrained_model model_name_or_path base_model finetune"],
  ["preset", "model model_size size config"],
  ["batch_size", "batch bs micro_batch_size device_batch_size per_device_train_batch_size"],
  ["block_size", "context context_length context_size ctx seq_len seq_length sequence_length max_seq_len"],
  ["gradient_accumulation_steps", "grad_accum grad_acc grad_accum_steps accumulate accumulation_steps"],
  ["n_layer", "layers num_layers n_layers num_hidden_layers depth"],
  ["n_head", "heads num_heads n_heads num_attention_heads"],
  ["n_kv_head", "num_kv_heads n_kv_heads num_key_value_heads"],
  ["n_embd", "hidden_size dim d_model embd emb_dim width"],
  ["n_inner", "intermediate_size ffn_dim d_ff hidden_dim"],
  ["optimizer", "optim opt optimizer_type"],
  ["muon_momentum", "momentum"],
  ["schedule", "lr_schedule lr_scheduler lr_scheduler_type scheduler"],
  ["cooldown_iters", "cooldown cooldown_steps decay_iters decay_steps num_decay_steps"],
  ["warmup_iters", "warmup warmup_steps num_warmup_steps"],
  ["weight_decay", "wd"],
  ["grad_clip", "clip max_grad_norm clip_grad_norm gradient_clip"],
  ["eval_interval", "eval_every eval_steps val_interval"],
  ["eval_batches", "eval_iters val_batches"],
  ["save_interval", "save_every save_steps checkpoint_interval"],
  ["sample_interval", "sample_every generate_interval"],
  ["log_interval", "log_every logging_steps"],
  ["serve_port", "port dashboard"],
  ["min_lr", "lr_min end_lr"],
  [
    "tensorboard",
    "wandb wandb_log wandb_project report_to log_wandb",
    "Weights & Biases is left out; --tensorboard writes event files, for TensorBoard",
  ],
  [
    "data_dir",
    "tokenizer tokenizer_name vocab_size vocab",
    "the tokenizer belongs to the data: deno task prepare --tokenizer NAME",
  ],
  [
    "bf16_gemm",
    "dtype precision bf16 fp16 float16 bfloat16 amp mixed_precision",
    "weights are bfloat16 on a GPU and float32 on a CPU; there, --bf16_gemm=true rounds the inputs of matrix products, as auto does where it is fast",
  ],
  ["device", "gpu gpus cuda use_cuda use_gpu", "one GPU is --device=cuda, several are started by torchrun"],
  ["device", "cpu", "it is --device=cpu"],
  // sample and serve
  ["checkpoint", "model model_path ckpt checkpoint_dir resume from out_dir run run_dir dir load"],
  ["max_new_tokens", "tokens max_tokens num_tokens n_tokens length max_length n"],
  ["prompt", "text start input"],
  ["temperature", "t"],
  ["run", "runs run_dir out_dir dir logdir log_dir"],
  ["host", "address bind hostname ip"],
  ["host", "token auth password", "the token is the variable LOAM_TOKEN of the environment"],
  // prepare, tokenizer and data
  ["input", "data dataset file files source path train text"],
  ["train", "input data dataset file files source path text"],
  ["out", "output output_dir out_dir save_dir dir data_dir dest to"],
  ["tokenizer", "tok encoding vocab"],
  ["val_fraction", "val val_split val_ratio test_size validation_split split_ratio"],
  ["workers", "jobs threads num_workers num_proc processes"],
  ["column", "text_column field key text_key text_field"],
  ["limit", "max_docs max_documents num_docs n head"],
  ["dedup", "dedupe deduplicate unique"],
  ["shuffle_docs", "shuffle"],
  ["overwrite", "force f"],
  ["input", "resume continue", "the same command goes on where it was interrupted"],
  ["vocab_size", "vocab size n_vocab"],
  ["dir", "directory data data_dir path dataset input"],
  ["doc", "document index"],
];

/** The name among known that needs the fewest edits to become name, if these are few for its length; the first of equals. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  const begun = name.length > 2 ? known.filter((other) => other.startsWith(name)) : [];
  if (begun.length === 1) return begun[0];
  const distances = known.map((other) => edits(name, other)), least = Math.min(...distances);
  const near = known[distances.indexOf(least)];
  return near !== undefined && 3 * least <= Math.max(name.length, near.length) ? near : undefined;
}

/** Letters to insert, remove or replace, and neighbours to swap: Levenshtein's distance with swaps. */
function edits(a: string, b: string): number {
  let before: number[] = [], row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, replaced, isSwap ? before[j - 2]! + 1 : Infinity));
    }
    [before, row] = [row, next];
  }
  return row[b.length]!;
}
