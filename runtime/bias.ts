// A bias. Adding a vector to each row is a product with a column of ones, which is what the kernels of linear() do.
import * as k from "../ffi/kernels.ts";
import { BF16, F32 } from "../ffi/library.ts";
import { type Block, release, take } from "./memory.ts";
import { claim, grad, passOn, record } from "./tape.ts";
import { bytesPerElement, empty, type Tensor } from "./tensor.ts";

/** x + b for each row of x. x (..., C), b (C) -> (..., C) */
export function bias(x: Tensor, b: Tensor): Tensor {
  const C = b.size, N = x.size / C;
  if (!b.buf.init) throw new TypeError("bias: b must be a parameter");
  if (x.shape.at(-1) !== C || b.shape.length !== 1) {
    throw new RangeError(
      `bias: b must be (${x.shape.at(-1)}) to be added to x (${x.shape}), but b is (${b.shape})`,
    );
  }
  const out = empty(x.shape), column = ones(N);
  k.linear_forward(out.address, column.address, b.address, x.address, N, 1, C);
  release(column);
  return record("bias", out, [x, b], () => {
    if (b.buf.needsGrad) {
      const column = ones(N), add = claim(b);
      k.linear_wgrad(grad(b), grad(out), column.address, N, 1, C, add);
      release(column);
    }
    passOn(x, out);
  });
}

function ones(n: number): Block {
  const floats = take(4 * n);
  k.init_constant(floats.address, BigInt(n), 1);
  if (bytesPerElement("act") === 4) return floats;
  const column = take(2 * n);
  k.convert(column.address, floats.address, BF16, F32, BigInt(n));
  release(floats);
  return column;
}
