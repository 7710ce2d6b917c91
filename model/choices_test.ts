// Which algorithms a run multiplies with, on the emulated GPU. Its cuBLASLt has four that run, with different bits; LOAM_EMU_FASTEST
// says which is the fastest (tests/emu/cublasLt.h).
import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { environment } from "../base/testing.ts";
import { Ranks } from "../dist/ranks.ts";
import * as k from "../ffi/kernels.ts";
import {
  allocate,
  chooseGemms,
  copyToDevice,
  copyToHost,
  gemmChoices,
  libraryExists,
  open,
} from "../ffi/library.ts";
import { normal } from "../runtime/testing.ts";
import { writeFloats } from "../runtime/tensor.ts";
import { choicesText, type ChoosingRun, keepChoices, takeChoices } from "./choices.ts";

const emu = { ignore: !libraryExists("emu"), sanitizeResources: false }; // libraries stay loaded
const scratch = Deno.makeTempDirSync();
Deno.test.afterAll(() => Deno.removeSync(scratch, { recursive: true }));
const N = 32, IN = 40;

let sizes = 5001; // beyond those of other tests, whose choices the process keeps
/** A number of outputs that no product has had: each shape is chosen once in a process. */
const freshSize = () => sizes += 4;

/** x (N, IN) weight^T (OUT, IN), in float32, with the algorithm that is chosen for the shape. */
function multiply(
  OUT: number,
  kind: "forward" | "residual" | "wgrad" | "wgrad adds" = "wgrad",
): Float32Array {
  const x = allocate(2 * N * IN),
    dout = allocate(2 * N * OUT),
    weight = allocate(2 * OUT * IN),
    out = allocate(4 * OUT * IN);
  writeFloats(x, normal(N * IN, 1), "act");
  writeFloats(dout, normal(N * OUT, 2), "act");
  if (kind === "forward") k.linear_forward(out, x, weight, 0n, N, IN, OUT);
  else if (kind === "residual") k.linear_forward(out, x, weight, dout, N, IN, OUT);
  else k.linear_wgrad(out, dout, x, N, IN, OUT, kind === "wgrad" ? 0 : 1);
  const result = new Float32Array(OUT * IN);
  copyToHost(result, out);
  return result;
}

/** The candidate that was chosen for the shapes of a size, those that add behind the others. */
function candidates(OUT: number): number[] {
  const lines = gemmChoices().map((line) => line.split(" "));
  return lines.filter((words) => words.slice(2, 5).includes(`${OUT}`)).map((words) =>
    parseInt(words[8]!, 16)
  );
}

/** The line of a size with another candidate. */
const withCandidate = (line: string, candidate: number) =>
  line.replace(/(656d75616c676f) \w+ \w+ \w+/, `$1 ${candidate} 0 0`);

Deno.test(
  "a large product is timed with what it adds to, among 32 candidates, and with 64 MiB of workspace",
  emu,
  () => {
    open("emu");
    using _ = environment({ LOAM_EMU_FASTEST: "1,2,31" });
    const OUT = freshSize();
    for (const kind of ["forward", "residual", "wgrad", "wgrad adds"] as const) multiply(OUT, kind);
    const adds = gemmChoices().map((line) => line.split(" ")).filter((words) =>
      words.slice(2, 5).includes(`${OUT}`)
    );
    const chosen = Object.fromEntries(
      adds.map((words) => [`${words[5]} ${words[6]}`, parseInt(words[8]!, 16)]),
    );
    assertEquals(chosen, { "0 0": 1, "0 1": 2, "1 0": 1, "1 1": 31 }); // float_out adds: in place, as a gradient
  },
);

Deno.test(
  "algorithms differ in bits, and a choice that was given is kept, whatever is faster or proposed",
  emu,
  () => {
    open("emu");
    const [first, second, third] = [freshSize(), freshSize(), freshSize()];
    using _ = environment({ LOAM_EMU_FASTEST: "1", LOAM_CACHE: `${scratch}/cache` });
    const bits = multiply(first);
    const [line] = gemmChoices().filter((line) => line.split(" ").includes(`${first}`)) as [string];
    const lineOf = (size: number, candidate: number) =>
      withCandidate(line.replace(`${first}`, `${size}`), candidate);
    const proposed = Array.from(
      Deno.readDirSync(`${scratch}/cache`),
      ({ name }) => `${scratch}/cache/${name}`,
    );
    assertMatch(proposed.join(), /gemm-emulated_GPU-130000\.txt$/);
    assertStringIncludes(Deno.readTextFileSync(proposed[0]!), line); // by the run that has timed it
    Deno.writeTextFileSync(proposed[0]!, [second, third].map((size) => lineOf(size, 3) + "\n").join(""));

    assertEquals(chooseGemms([lineOf(second, 2)], true), 0);
    assertNotEquals(multiply(second).slice(0, 400), multiply(third).slice(0, 400)); // of equal inputs up to there
    assertEquals([candidates(first), candidates(second), candidates(third)], [[1], [2], [3]]);
    assertEquals(chooseGemms([lineOf(first, 2)], true), 0);
    assertEquals([candidates(first), multiply(first)], [[1], bits]); // what is chosen stays
    const adds = lineOf(freshSize(), 2).replace(/1 0 (656d\w+)/, "1 1 $1"); // as a gradient of the second micro-step does
    assertEquals([chooseGemms([adds], true), gemmChoices().includes(adds)], [0, true]);
  },
);

Deno.test("lines that are damaged, or that cuBLASLt refuses, are counted and not taken", emu, () => {
  open("emu");
  using _ = environment({ LOAM_EMU_FASTEST: "1" });
  const [known, OUT] = [freshSize(), freshSize()];
  multiply(known);
  const [line] = gemmChoices().filter((line) => line.split(" ").includes(`${known}`)) as [string];
  const good = line.replace(`${known}`, `${OUT}`);
  const bad = [
    "damaged",
    good.replace(/^\d/, "7"), // no flag
    good.replace(`${OUT}`, "-4"),
    `${good} 1`,
    good.slice(0, -20),
    good.replace("656d", "656e"), // of another library
    withCandidate(good, 4), // which does not run
    good.replace(/(656d75616c676f \w+) \w+/, "$1 7000000000"), // wants more workspace than there is
    good.replace(/(656d75616c676f \w+ \w+) \w+/, "$1 4"), // adds in bfloat16
  ];
  for (const text of bad) assertEquals(chooseGemms([text], true), 1, text);
  assertEquals(chooseGemms([...bad, good], true), bad.length);
  assertEquals(candidates(OUT), [1]);
});

Deno.test("where nothing may be timed, a product takes what is offered first, and no proposal", emu, () => {
  open("emu");
  using _ = environment({ LOAM_EMU_FASTEST: "3", LOAM_CACHE: `${scratch}/cache` });
  const [OUT, after] = [freshSize(), freshSize()];
  chooseGemms([], false);
  multiply(OUT);
  chooseGemms([], true);
  multiply(after);
  assertEquals([candidates(OUT), candidates(after)], [[1], [3]]);
});

Deno.test("a kernel runs behind candidates that did not", emu, () => {
  open("emu");
  const address = allocate(16), read = new Float32Array(4);
  copyToDevice(address, new Float32Array(4));
  multiply(freshSize());
  k.init_constant(address, 4n, 1);
  copyToHost(read, address);
  assertEquals(read, Float32Array.of(1, 1, 1, 1));
});

// ---- kernels.json

const choices = { gpu: "emulated GPU", blas: "cuBLASLt 13.0.0", attention: "portable" };

/** What takeChoices() says of texts of kernels.json in a checkpoint and in its run. */
async function warnings(
  checkpoint: string | undefined,
  run: string | undefined,
  head_dim = 64,
): Promise<string[]> {
  open("emu");
  const out_dir = Deno.makeTempDirSync({ dir: scratch });
  Deno.mkdirSync(`${out_dir}/saved`);
  if (checkpoint !== undefined) Deno.writeTextFileSync(`${out_dir}/saved/kernels.json`, checkpoint);
  if (run !== undefined) Deno.writeTextFileSync(`${out_dir}/kernels.json`, run);
  const parts = {
    config: { out_dir },
    c: { head_dim },
    checkpoint: `${out_dir}/saved`,
    ranks: Ranks.alone(),
  };
  return (await takeChoices(parts as ChoosingRun)).map((text) => text.replaceAll(out_dir, "RUN"));
}

Deno.test(
  "a run goes on with its checkpoint's choices, then with those in its directory, whatever is faster",
  emu,
  async () => {
    open("emu");
    using _ = environment({ LOAM_EMU_FASTEST: "1" });
    const [known, both, late] = [freshSize(), freshSize(), freshSize()];
    multiply(known);
    const [line] = gemmChoices().filter((line) => line.split(" ").includes(`${known}`)) as [string];
    const lineOf = (size: number, candidate: number) =>
      withCandidate(line.replace(`${known}`, `${size}`), candidate);
    const checkpoint = choicesText({ ...choices, gemms: [lineOf(both, 2)] });
    const run = choicesText({ ...choices, gemms: [lineOf(both, 3), lineOf(late, 3)] });
    assertEquals(await warnings(checkpoint, run), []);
    for (const size of [both, late]) multiply(size);
    assertEquals([candidates(both), candidates(late)], [[2], [3]]);
  },
);

Deno.test(
  "a kernels.json that is damaged, or of another GPU or cuBLASLt, is told in one line and not taken",
  emu,
  async () => {
    open("emu");
    const anew = "matrix products are timed anew, and bits may differ from those before";
    const alone = anew.replace("matrix products are", "what it alone knows of matrix products is");
    const text = choicesText({ ...choices, gemms: ["1 0 8 8 8 0 0 0 0 0 0 0 0 0 0"] });
    for (
      const damaged of [
        "",
        "{}",
        "null",
        text.slice(0, -9),
        text.replace("1 0 8", "1 0 9"),
        text.replace("portable", "hopper"),
      ]
    ) {
      assertEquals(
        await warnings(damaged, undefined),
        [`RUN/saved/kernels.json is damaged: ${alone}`],
        damaged,
      );
    }
    const other = choicesText({ ...choices, gpu: "NVIDIA H200", blas: "cuBLASLt 13.1.0", gemms: [] });
    assertEquals(await warnings(other, other), [
      `the run multiplied with cuBLASLt 13.1.0 on NVIDIA H200, now with cuBLASLt 13.0.0 on emulated GPU: ${anew}`,
    ]);
    assertEquals(await warnings(text, undefined), [
      "cuBLASLt 13.0.0 refuses 1 of 1 choices in RUN/saved/kernels.json: these " + anew,
    ]);
    assertEquals(await warnings(undefined, undefined), []);
  },
);

Deno.test(
  "a run that goes on with other kernels of attention says so, unless its heads have one kind",
  emu,
  async () => {
    const kept = choicesText({ ...choices, attention: "hopper", gemms: [] });
    assertEquals(await warnings(kept, kept), [
      "the run computed attention with the hopper kernels, now with the portable ones: bits differ from those before; " +
      "--attention=hopper takes the same where the GPU can",
    ]);
    assertEquals(await warnings(choicesText({ ...choices, gemms: [] }), undefined, 32), []);
  },
);

Deno.test("a CPU chooses nothing and leaves no kernels.json", { sanitizeResources: false }, async () => {
  open("cpu", { threads: 1 });
  assertEquals([gemmChoices(), chooseGemms(["anything"], true)], [[], 0]);
  keepChoices(scratch, 64);
  assert(!Array.from(Deno.readDirSync(scratch), ({ name }) => name).includes("kernels.json"));
  const parts = {
    config: { out_dir: scratch },
    c: { head_dim: 64 },
    checkpoint: undefined,
    ranks: Ranks.alone(),
  };
  assertEquals(await takeChoices(parts as ChoosingRun), []);
});
