// The helpers of the tests notice what they are there to notice.
import { assert, assertEquals, AssertionError, assertThrows } from "@std/assert";
import { swiglu } from "./ops.ts";
import { grad, record } from "./tape.ts";
import { readFloats, type Tensor, writeFloats } from "./tensor.ts";
import { assertClose, checkGrad, eps, integers, normal, openTestDevice, rounding } from "./testing.ts";

const device = openTestDevice();

Deno.test("assertClose() names the worst element and counts the others", () => {
  const tolerance = { rtol: 1e-3, atol: 1e-6 };
  assertClose([1.0009, 0, -0, NaN, Infinity, 1e-7], [1, 0, 0, NaN, Infinity, 0], tolerance);
  const message = (actual: number[], expected: number[]) =>
    assertThrows(() => assertClose(actual, expected, tolerance, "dx"), AssertionError).message;
  assertEquals(
    message([1.002, 5, 3], [1, 4, 3]),
    "dx: 2 of 3 values differ, most at [1]: it is 5, should be 4; rtol 1.0e-3, atol 1.0e-6",
  );
  assertEquals(message([1], [1, 2]), "dx: there are 1 values, but should be 2");
  for (const [a, e] of [[NaN, 1], [1, NaN], [Infinity, 1], [1, Infinity], [Infinity, -Infinity]] as const) {
    assert(message([1, a], [1, e]).includes(`it is ${a}, should be ${e}`));
  }
});

/** swiglu with a gradient that is wrong by `factor` in one element. */
function wrongSwiglu(x: Tensor, factor: number): Tensor {
  const y = swiglu(x);
  return record("wrong", y, [y], () => {
    const dy = readFloats(grad(y), y.size, "act");
    writeFloats(grad(y), dy.with(3, dy[3]! * factor), "act");
  }, { inPlace: true });
}

Deno.test("checkGrad() notices one element that is 10% off", () => {
  if (device.act !== "f32") return;
  checkGrad((x) => wrongSwiglu(x, 1), [5, 6]);
  assertThrows(
    () => checkGrad((x) => wrongSwiglu(x, 1.1), [5, 6]),
    AssertionError,
    "The gradient of input 0 along",
  );
});

Deno.test("rounding() grows with the root of the length and stays far below the values", () => {
  const values = [3, -3, 3];
  assertEquals(rounding(values, 0), { rtol: 6 * eps(), atol: 18 * eps() });
  const short = rounding(values, 100), long = rounding(values, 10000);
  assert(long.rtol > short.rtol && long.rtol < 11 * short.rtol && long.rtol < 0.05);
});

Deno.test("random data follows from its seed", () => {
  assertEquals(normal(100, 1), normal(100, 1));
  assert(normal(100, 1).every((x, i) => x !== normal(100, 2)[i]));
  const some = integers(10_000, 7, 3),
    counts = Array.from({ length: 7 }, (_, v) => some.filter((x) => x === v).length);
  assert(counts.every((count) => Math.abs(count - 10_000 / 7) < 5 * Math.sqrt(10_000 / 7)), counts.join());
});
