// Signals that arrive in the middle of a step.
import { assert, assertEquals } from "@std/assert";
import { open } from "../ffi/library.ts";
import { ROOT } from "./testing.ts";

const { blas = "" } = open("cpu", { threads: 2, blas: "" });

/** Repeats one matrix product for two seconds, in a process that handles a signal. */
const PRODUCTS = `
  import { open } from "./ffi/library.ts";
  import { add, linear } from "./runtime/ops.ts";
  import { endStep, noGrad } from "./runtime/tape.ts";
  import { tensor } from "./runtime/tensor.ts";
  Deno.addSignalListener("SIGWINCH", () => {});
  open("cpu", { threads: 2, blas: "" });
  const numbers = (n: number) => Float32Array.from({ length: n }, (_, i) => (i % 13) / 8);
  const x = numbers(2048 * 128), weight = numbers(384 * 128);
  const product = () => {
    const y = noGrad(() => linear(tensor([2048, 128], x), tensor([384, 128], weight))).toArray();
    endStep();
    return y;
  };
  noGrad(() => add(tensor([2048, 128], x), tensor([2048, 128], x))); // starts threads, which hold no signal back yet
  const first = product(), end = performance.now() + 2000;
  console.log("ready");
  let wrong = 0;
  while (performance.now() < end) if (product().some((value, i) => value !== first[i])) wrong++;
  console.log(wrong + " wrong");
`;

function repeatProducts(more = ""): Deno.ChildProcess {
  const args = ["eval", "-q", "--ext=ts", PRODUCTS + more],
    pipes = { stdout: "piped", stderr: "piped" } as const;
  return new Deno.Command(Deno.execPath(), { args, cwd: ROOT, ...pipes }).spawn();
}

Deno.test("matrix products stay right while thousands of signals arrive", async () => {
  const child = repeatProducts();
  const stderr = new Response(child.stderr).text();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  assertEquals(await reader.read(), { done: false, value: "ready\n" });
  for (const end = performance.now() + 1500; performance.now() < end;) {
    for (let i = 0; i < 20; i++) child.kill("SIGWINCH");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  assertEquals(await reader.read(), { done: false, value: "0 wrong\n" });
  assertEquals([(await child.status).code, await stderr], [0, ""]);
});

/** Of each thread of a process, the first one first: whether it holds SIGTERM back. */
function holdingBack(pid: number): boolean[] {
  // Deno grants nobody but --allow-all to read /proc by itself.
  const script =
    'cd /proc/"$0"/task && for task in "$0" $(ls | grep -vx "$0"); do grep SigBlk $task/status; done';
  const { stdout } = new Deno.Command("sh", { args: ["-c", script, `${pid}`], stderr: "null" }).outputSync();
  const masks = Array.from(
    new TextDecoder().decode(stdout).matchAll(/SigBlk:\s+(\w+)/g),
    ([, mask]) => mask!,
  );
  return masks.map((mask) => (BigInt(`0x${mask}`) >> 14n & 1n) === 1n); // SIGTERM is 15
}

Deno.test({
  name: "signals wait while oneDNN multiplies, in the calling thread and for good in those that help it",
  ignore: !blas.startsWith("onednn"),
  async fn() {
    const child = repeatProducts("await new Promise(() => setInterval(() => {}, 1000));");
    const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    assertEquals((await reader.read()).value, "ready\n");
    let held = 0, samples = 0;
    for (const end = performance.now() + 1500; performance.now() < end && held === 0; samples++) {
      if (holdingBack(child.pid)[0]) held++;
    }
    assert(held > 0, `in none of ${samples} looks at it`);
    assertEquals((await reader.read()).value, "0 wrong\n");
    const [first, ...others] = holdingBack(child.pid);
    assertEquals([first, others.includes(true)], [false, true]);
    child.kill("SIGTERM");
    await Promise.all([child.status, reader.cancel(), child.stderr.cancel()]);
  },
});
