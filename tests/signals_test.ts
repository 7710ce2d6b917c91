// Signals that arrive in the middle of a step.
import { assertEquals } from "@std/assert";
import { ROOT } from "./helpers.ts";

/** Repeats one matrix product for two seconds, in a process that handles a signal. */
const PRODUCTS = `
  import { open } from "./ffi/library.ts";
  import { linear } from "./runtime/ops.ts";
  import { endStep, noGrad } from "./runtime/tape.ts";
  import { tensor } from "./runtime/tensor.ts";
  Deno.addSignalListener("SIGWINCH", () => {});
  open("cpu");
  const numbers = (n: number) => Float32Array.from({ length: n }, (_, i) => (i % 13) / 8);
  const x = numbers(2048 * 128), weight = numbers(384 * 128);
  const product = () => {
    const y = noGrad(() => linear(tensor([2048, 128], x), tensor([384, 128], weight))).toArray();
    endStep();
    return y;
  };
  const first = product(), end = performance.now() + 2000;
  console.log("ready");
  let wrong = 0;
  while (performance.now() < end) if (product().some((value, i) => value !== first[i])) wrong++;
  console.log(wrong + " wrong");
`;

Deno.test("matrix products stay right while thousands of signals arrive", async () => {
  const args = ["eval", "-q", "--ext=ts", PRODUCTS], pipes = { stdout: "piped", stderr: "piped" } as const;
  const child = new Deno.Command(Deno.execPath(), { args, cwd: ROOT, ...pipes }).spawn();
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
