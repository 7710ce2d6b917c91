// The fixed buffers that batches are read into. Host memory has one slot for each micro-step of two steps, because a queued
// copy to a GPU may still be reading a slot while the host fills the next, and a step is queued before the result of the one
// before it has been read; the device side is always the same two tensors.
import * as k from "../ffi/kernels.ts";
import { allocateHost, device } from "../ffi/library.ts";
import { skipTime } from "./debug.ts";
import { type Address, fixed, type Tensor } from "./tensor.ts";

/** int32 tensors (B, T) that every micro-step reads its batch from. */
export class Inputs {
  /** Token ids (B, T). */
  readonly idx: Tensor;
  /** The id that follows each token (B, T). */
  readonly targets: Tensor;
  /** Where in its row the document of each token begins (B, T), as attention() takes it; only where documents are kept apart. */
  readonly starts: Tensor | undefined;
  readonly #host: { x: Address; y: Address; starts: Address }[];
  #fills = 0;

  /** Allocates them, the third one where documents are kept apart, and host memory for the micro-steps of two steps. */
  constructor(B: number, T: number, micro_steps: number, apart = false) {
    this.idx = fixed([B, T], "i32", "inputs");
    this.targets = fixed([B, T], "i32", "inputs");
    this.starts = apart ? fixed([B, T], "i32", "inputs") : undefined;
    // On the CPU, host memory is device memory.
    const direct = { x: this.idx.address, y: this.targets.address, starts: this.starts?.address ?? 0n };
    const pin = () => allocateHost(this.idx.bytes);
    const pinned = () => ({ x: pin(), y: pin(), starts: apart ? pin() : 0n });
    this.#host = device.library === "cpu" ? [direct] : Array.from({ length: 2 * micro_steps }, pinned);
  }

  /**
   * Has write() put token ids at x, targets at y and, unless it is 0n, where documents begin at starts (int32 (B, T) each), and
   * queues their copy to the device.
   */
  fill(write: (x: Address, y: Address, starts: Address) => void): void {
    const { x, y, starts } = this.#host[this.#fills++ % this.#host.length]!, bytes = BigInt(this.idx.bytes);
    write(x, y, starts);
    skipTime();
    if (x === this.idx.address) return;
    k.copy_async(this.idx.address, x, bytes);
    k.copy_async(this.targets.address, y, bytes);
    if (this.starts) k.copy_async(this.starts.address, starts, bytes);
  }
}
