import { assertThrows } from "@std/assert";
import { bias } from "./bias.ts";
import { checkGrad, close, forwardBackward, leaf, normal, normalWeight, openTestDevice } from "./testing.ts";

openTestDevice();

Deno.test("bias() adds b to each row, and its gradients are those of float64 and of finite differences", () => {
  for (const [B, T, C] of [[1, 1, 1], [2, 7, 9], [3, 5, 64]] as const) {
    const x = leaf([B, T, C], 1), b = normalWeight([C], 2), dout = normal(B * T * C, 3);
    const { out, grads } = forwardBackward(() => bias(x.t, b.t), [x.t, b.t], dout);
    close(out, x.values.map((value, i) => value + b.values[i % C]!), 1, "out");
    close(grads[0]!, dout, 1, "dx");
    const db = new Float64Array(C);
    dout.forEach((d, i) => db[i % C]! += d);
    close(grads[1]!, db, B * T, "db");
  }
  checkGrad((x, b) => bias(x, b), [2, 3, 8], { weight: [8] });
});

Deno.test("bias() refuses other shapes and what is no parameter", () => {
  const x = leaf([2, 3, 8], 1).t;
  assertThrows(
    () => bias(x, normalWeight([7], 1).t),
    RangeError,
    "bias: b must be (8) to be added to x (2,3,8), but b is (7)",
  );
  assertThrows(() => bias(x, leaf([8], 1).t), TypeError, "bias: b must be a parameter");
});
