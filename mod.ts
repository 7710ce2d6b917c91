/**
 * loam trains Llama-style language models on Deno: from raw text to a usable model in TypeScript over one compiled library.
 *
 * This is the public interface for programs of your own; `train.ts` is the worked example of its use.
 *
 * @module
 */
export type { Address } from "./ffi/symbols.ts";
export { KernelError, UserError } from "./ffi/errors.ts";
export { type DeviceInfo, type DeviceName, open, type OpenOptions, synchronize } from "./ffi/library.ts";
export {
  backward,
  checkpoint,
  claim,
  endStep,
  give,
  grad,
  isRecording,
  noGrad,
  passOn,
  record,
  type RecordOptions,
} from "./runtime/tape.ts";
export {
  type Block,
  Buffer,
  type DType,
  empty,
  fixed,
  type Init,
  type MemoryKind,
  named,
  param,
  Tensor,
  tensor,
} from "./runtime/tensor.ts";
export {
  add,
  attention,
  cachedAttention,
  embedding,
  feedForward,
  type HeadOptions,
  type Heads,
  type LayerCache,
  linear,
  linearCrossEntropy,
  normLinear,
  rmsnorm,
  rope,
  swiglu,
  swigluLinear,
} from "./runtime/ops.ts";
export {
  AdamW,
  type AdamWOptions,
  cosineSchedule,
  Parameters,
  type Schedule,
  type Slot,
  type StepResult,
} from "./runtime/optim.ts";
export { Inputs } from "./runtime/inputs.ts";
export {
  forward,
  type ForwardOptions,
  init,
  type KVCache,
  type Layer,
  type Llama,
  type LlamaConfig,
  logits,
  loss,
  type LossOptions,
  type Recompute,
} from "./model/llama.ts";
export { generate, type GenerateOptions } from "./model/generate.ts";
export { loadModel } from "./model/checkpoint.ts";
export { type Dataset, openDataset, type Shard } from "./data/bins.ts";
export { Loader, type LoaderOptions, type Position, type TokenSource, type Window } from "./data/loader.ts";
export { openTokenizer, type TextStream, type Tokenizer } from "./data/tokenizer.ts";
