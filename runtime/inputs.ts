// The fixed buffers that batches are read into. Host memory has one slot for each micro-step of two steps, because a queued
// copy to a GPU may still be reading a slot while the host fills the next, and a step is queued before the result of the one
// before it has been read; the device side is always the same two tensors.
import * as k from "../ffi/kernels.ts";
import { allocateHost, device } from "../ffi/library.ts";
import { skipTime } from "./debug.ts";
import { type Address, fixed, type Tensor } from "./tensor.ts";

/** Two int32 tensors (B, T) that every micro-step reads its batch from. */
export class Inputs {
  /** Token ids (B, T). */
  readonly idx: Tensor;
  /** The id that follows each token (B, T). */
  readonly targets: Tensor;
  readonly #host: { x: Address; y: Address }[];
  #fills = 0;

  /** Allocates both, and host memory for the micro-steps of two steps. */
  constructor(B: number, T: number, micro_steps: number) {
    this.idx = fixed([B, T], "i32", "inputs");
    this.targets = fixed([B, T], "i32", "inputs");
    const direct = { x: this.idx.address, y: this.targets.address }; // on the CPU, host memory is device memory
    const pinned = () => ({ x: allocateHost(this.idx.bytes), y: allocateHost(this.idx.bytes) });
    this.#host = device.library === "cpu" ? [direct] : Array.from({ length: 2 * micro_steps }, pinned);
  }

  /** Has write() put token ids at x and targets at y (int32 (B, T) each), and queues their copy to the device. */
  fill(write: (x: Address, y: Address) => void): void {
    const { x, y } = this.#host[this.#fills++ % this.#host.length]!;
    write(x, y);
    skipTime();
    if (x === this.idx.address) return;
    k.copy_async(this.idx.address, x, BigInt(this.idx.bytes));
    k.copy_async(this.targets.address, y, BigInt(this.targets.bytes));
  }
}
