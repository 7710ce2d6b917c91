// Attention for Hopper (attention_hopper.cuh) on the emulator: right at every awkward length and group of heads, and chosen
// only where it is right. tests/emu/cuda.h emulates the instructions.
import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { KernelError } from "../base/errors.ts";
import { environment } from "../base/testing.ts";
import { device, libraryExists, open } from "../ffi/library.ts";
import { choicesNow } from "../model/choices.ts";
import { attention } from "../runtime/ops.ts";
import * as ref from "../runtime/testing_reference.ts";
import { endStep, noGrad } from "../runtime/tape.ts";
import { tensor } from "../runtime/tensor.ts";
import { close, compareAttention, normal, startsOf } from "../runtime/testing.ts";

const emu = { ignore: !libraryExists("emu"), sanitizeResources: false }; // libraries stay loaded

/** Opens the emulator as an H100, with variables of the environment that it reads, and gives it back as it was. */
function asHopper(attention: string, more: Record<string, string> = {}): Disposable {
  const variables = environment({ LOAM_EMU_ARCH: "90", ...more });
  const restore = () => {
    variables[Symbol.dispose]();
    open("emu");
  };
  try {
    open("emu", { attention });
  } catch (error) {
    restore();
    throw error;
  }
  return { [Symbol.dispose]: restore };
}

/** B, T, H and K: T at both sides of a warpgroup's rows and of a tile, and beyond two turns of all stages; H / K of 1 to 8. */
const SIZES: [number, number, number, number][] = [
  [1, 1, 7, 1],
  [1, 63, 8, 1],
  [1, 64, 6, 1],
  [2, 65, 4, 1],
  [1, 66, 5, 1],
  [1, 127, 3, 1],
  [1, 129, 2, 1],
  [1, 193, 4, 2],
  [1, 577, 1, 1],
];

/** The same, and where in each row documents begin: in a tile, where one begins or ends, and tiles of others before and behind. */
const DOCUMENTS: [number, number, number, number, ...number[][]][] = [
  [2, 65, 4, 1, [1, 17, 63], [64]],
  [1, 129, 2, 1, [40, 127, 128]],
  [1, 193, 4, 2, [63, 65, 66, 150, 192]],
  [1, 577, 2, 1, [5, 256, 300, 510]],
];

/** Scores of hundreds, of which one takes all the weight. */
function compareLarge(D: number): void {
  const size = { B: 1, T: 70, H: 1, K: 1, D }, heads = { n_head: 1, n_kv_head: 1, head_dim: D };
  const values = normal(70 * 3 * D, 1).map((x) => Math.fround(16 * x));
  const out = noGrad(() => attention(tensor([1, 70, 3 * D], values), heads).toArray());
  endStep();
  close(out, ref.attention(values, size), 256 ** 2, "out of large scores", 2); // exp() turns the rounding of a score into a factor
}

/** A NaN in token 130 of the query, the key or the value reaches all that read it, and no tile before its own. */
function spreadNaN(D: number): void {
  const T = 200, at = 130, heads = { n_head: 2, n_kv_head: 1, head_dim: D };
  for (const [head, readers] of [[0, [0]], [2, [0, 1]], [3, [0, 1]]] as const) {
    const values = normal(T * 4 * D, 1);
    values[at * 4 * D + head * D] = NaN;
    const out = noGrad(() => attention(tensor([1, T, 4 * D], values), heads).toArray());
    endStep();
    for (let t = 0; t < T; t++) {
      const read = head === 0 ? t === at : t >= at;
      for (const h of readers) {
        if (read) assert(Number.isNaN(out[(t * 2 + h) * D]), `t ${t}, head ${h}, NaN in ${head}`);
      }
    }
    assert(out.subarray(0, 128 * 2 * D).every(Number.isFinite), "tokens of earlier tiles are as they were");
  }
}

const asked = Deno.env.get("LOAM_EMU_SEED");

for (const [D, seed] of [[64, "0"], [128, "7"]] as [number, string][]) {
  Deno.test(
    `attention() for Hopper agrees with float64 at every length and group, heads of ${D}`,
    emu,
    () => {
      using _ = asHopper(D === 64 ? "" : "hopper", { LOAM_EMU_SEED: asked ?? seed });
      assertEquals(device.attention, "hopper, which agrees with the portable kernels");
      assertEquals([choicesNow(D)!.attention, choicesNow(32)!.attention], ["hopper", "portable"]);
      for (const [B, T, H, K] of SIZES) compareAttention({ B, T, H, K, D });
      for (const [B, T, H, K, ...begins] of DOCUMENTS) {
        compareAttention({ B, T, H, K, D, starts: startsOf(T, ...begins) });
      }
      compareLarge(D);
      spreadNaN(D);
    },
  );
}

Deno.test("auto leaves Hopper's attention where it is wrong or cannot be, and says why", emu, () => {
  const chosen = (attention: string, LOAM_EMU_FAULT: string, LOAM_ATTENTION = "") => {
    using _ = asHopper(attention, { LOAM_EMU_FAULT, LOAM_ATTENTION });
    return device.attention;
  };
  assertEquals(chosen("portable", "lost_copies"), "portable");
  assertEquals(chosen("", "lost_copies", "portable"), "portable");
  assertEquals(chosen("portable", "lost_copies", "hopper"), "portable"); // the option comes first
  const portable = "portable, because Hopper's kernels cannot be used: ";
  assertEquals(chosen("", "no_tensor_maps"), `${portable}the driver lacks cuTensorMapEncodeTiled`);
  assertStringIncludes(chosen("", "wrong_wgmma")!, `${portable}for head size 64 out, dqkv or lse is `);
  assertEquals(chosen("", "unsteady_wgmma"), `${portable}for head size 64 two runs differ`);
  open("emu", { attention: "auto" });
  assertEquals(device.attention, "portable");
});

Deno.test(
  "a GPU that cannot run Hopper's attention says so where it is asked to, or where it would hang",
  emu,
  () => {
    const refusal = (attention: string, more: Record<string, string>) =>
      assertThrows(() => asHopper(attention, more), KernelError).message;
    const sm80 =
      "device_open: attention=hopper needs sm_90 (H100, H200), and emulated GPU is sm_80: leave it at auto";
    assertStringIncludes(refusal("hopper", { LOAM_EMU_ARCH: "80" }), sm80);
    assertStringIncludes(refusal("fast", {}), "device_open: attention=fast must be auto, portable or hopper");
    const missing =
      "attention=hopper cannot be used on emulated GPU: the driver lacks cuTensorMapEncodeTiled: leave it at auto";
    assertStringIncludes(refusal("hopper", { LOAM_EMU_FAULT: "no_tensor_maps" }), missing);
    const stuck = refusal("auto", { LOAM_EMU_FAULT: "lost_copies" });
    assertStringIncludes(
      stuck,
      "Hopper's attention fails on emulated GPU: cudaErrorLaunchFailure: emulator: deadlock",
    );
    assertStringIncludes(stuck, ": set LOAM_ATTENTION=portable");
  },
);
