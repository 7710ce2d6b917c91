/**
 * loam trains Llama-style language models on Deno: from raw text to a usable model in TypeScript over one compiled library.
 *
 * This is the public interface for programs of your own: `train.ts` is the worked example of its use, `examples/` has smaller
 * ones; `examples/own_op.ts` adds an op with its derivative, computed on the host. One with kernels becomes a part of loam:
 * CONTRIBUTING.md says how. Wherever a program lies, `deno run --config path/to/loam/deno.json program.ts` gives it
 * `@loam/loam`; docs/code.md says what to write into a `deno.json` of its own instead. Run as a program, this module is the
 * command line of the binary that `deno task compile` makes.
 *
 * @example Build a model, train it on one line of text, read the metrics, sample
 * ```ts
 * import { AdamW, backward, copyToDevice, endStep, fixed, generate, init, loss, open, openTokenizer, Parameters } from "@loam/loam";
 *
 * open("cpu");
 * const tokenizer = await openTokenizer("bytes"), T = 32;
 * const shape = { n_layer: 2, n_embd: 64, n_head: 4, n_kv_head: 2, head_dim: 16, n_inner: 192, block_size: T };
 * const config = { ...shape, vocab_size: tokenizer.vocab_size, rope_theta: 1e4, norm_eps: 1e-6, tie_word_embeddings: true };
 * const model = init(config), parameters = new Parameters(model, { seed: 1, train: true });
 * const optimizer = new AdamW(parameters, { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1 });
 *
 * const idx = fixed([1, T], "i32", "inputs"), targets = fixed([1, T], "i32", "inputs");
 * const tokens = Int32Array.from(tokenizer.prompt("Once upon a time there was a loom"));
 * copyToDevice(idx.address, tokens.slice(0, T));
 * copyToDevice(targets.address, tokens.slice(1, T + 1));
 * for (let step = 0; step < 60; step++) {
 *   const mean = loss(model, idx, targets, config);
 *   optimizer.addLoss(mean, 1, true);
 *   backward(mean);
 *   endStep();
 *   optimizer.step(1e-2);
 * }
 * console.log(optimizer.result()); // { loss: 0.0..., grad_norm: 0.0..., ... }
 * const options = { max_new_tokens: T, temperature: 0, top_k: 0, top_p: 1, seed: 1 };
 * console.log(tokenizer.decode(generate(model, config, tokenizer.prompt(""), options))); // Once upon a time there was a loo
 * ```
 *
 * @module
 */
export type { Address } from "./ffi/symbols.ts";
export { KernelError, UserError } from "./base/errors.ts";
export {
  type Bytes,
  copyToDevice,
  type DeviceInfo,
  type DeviceName,
  open,
  type OpenOptions,
  synchronize,
  type TokenFiles,
  tokenSource,
} from "./ffi/library.ts";
export {
  backward,
  beginMasks,
  checkpoint,
  claim,
  endStep,
  type Follower,
  give,
  grad,
  isRecording,
  type MaskPlace,
  noGrad,
  passOn,
  record,
  type RecordOptions,
} from "./runtime/tape.ts";
export { type Block, type MemoryKind } from "./runtime/memory.ts";
export {
  Buffer,
  type DType,
  empty,
  fixed,
  type Init,
  named,
  param,
  readFloats,
  Tensor,
  tensor,
  writeFloats,
} from "./runtime/tensor.ts";
export {
  type Adapter,
  add,
  attention,
  bias,
  cachedAttention,
  concat,
  crossEntropy,
  dropout,
  embedding,
  feedForward,
  gelu,
  geluTanh,
  type HeadOptions,
  type Heads,
  type LayerCache,
  layernorm,
  linear,
  linearCrossEntropy,
  logsumexp,
  mean,
  mul,
  normLinear,
  qkNorm,
  reluSquared,
  rmsnorm,
  rope,
  scale,
  sigmoid,
  slice,
  softcap,
  softmax,
  swiglu,
  swigluLinear,
} from "./runtime/ops.ts";
export {
  AdamW,
  type AdamWOptions,
  type Exchange,
  type OfRank,
  type OfRanks,
  Parameters,
  type Piece,
  type Range,
  type Share,
  type Slot,
  type StepResult,
  type Sum,
} from "./runtime/optim.ts";
export type { MuonOptions } from "./runtime/muon.ts";
export { type CosineSchedule, cosineSchedule, learningRate, type Schedule } from "./runtime/schedule.ts";
export { Inputs } from "./runtime/inputs.ts";
export {
  type Family,
  forward,
  type ForwardOptions,
  init,
  type KVCache,
  type Layer,
  type Llama,
  type LlamaConfig,
  logits,
  type Lora,
  type LoraTarget,
  loss,
  type LossOptions,
  type Recompute,
} from "./model/llama.ts";
export { type RopeScaling, ropeTable, type Rotary } from "./model/rope.ts";
export {
  type Pair,
  type PreparedTask,
  prepareTask,
  type Score,
  scoreTasks,
  type Sharing,
  type Unit,
} from "./model/tasks.ts";
export { generate, type GenerateOptions, type Sampling } from "./model/generate.ts";
export {
  type LoadedModel,
  loadModel,
  type LoadOptions,
  saveModel,
  type WeightType,
} from "./model/checkpoint.ts";
export { type Conversations, openConversations } from "./model/conversations.ts";
export { type Dataset, openDataset, type Shard, verifyDataset } from "./data/bins.ts";
export { type Mix, openData, type Part } from "./data/mix.ts";
export { Loader, type LoaderOptions, type Position, type TokenSource, type Window } from "./data/loader.ts";
export { TokenBuffer } from "./data/tokenizers/token_buffer.ts";
export { type Passage, type Question, readTasks, type Task, type TokenQuestion } from "./data/tasks.ts";
export { openTokenizer, type TextStream, type Tokenizer } from "./data/tokenizer.ts";
export type { AddedToken } from "./data/tokenizers/added_tokens.ts";
export type { Written } from "./data/tokenizers/types.ts";
export {
  ChatTemplate,
  type Message,
  type Rendered,
  type RenderOptions,
  type TextSpan,
} from "./data/chat_template.ts";
export { type EncodedConversation, RenderedEncoder } from "./data/tokenizers/rendered.ts";

// As a program: the command line. A program that imports this module gets none of it.
if (import.meta.main) {
  const [{ main }, { runMain }] = await Promise.all([import("./cli.ts"), import("./base/errors.ts")]);
  await runMain(main);
}
