import { assertEquals } from "@std/assert";
import { command, resultOf } from "../tests/testing.ts";

/** What a process ends with in which a deadline of 0.5 s for its queue is set, and then this program runs. */
async function ending(program: string): Promise<[code: number, printed: string]> {
  const start = `
    import { queueing, within } from "./dist/deadline.ts";
    import { open } from "./ffi/library.ts";
    open("cpu", { threads: 1, blas: "builtin" });
    const busy = (ms: number) => { for (const end = performance.now() + ms; performance.now() < end;); };
    const waiting = { rank: 1, world_size: 2, timeout_s: 0.4 }, queue = queueing("the result of step 7", waiting, 0.1);
  `;
  const args = ["eval", "-q", "--ext=ts", start + program];
  const { code, stdout, stderr } = resultOf(await command("deno", args, { NO_COLOR: "1" }).output());
  return [code, stdout + stderr];
}

Deno.test("queueing() ends a process that hangs, around calls of within(), and none once it is disposed of", async () => {
  const line = (what: string) =>
    `error: rank 1: ${what} has waited 0.4 s (--dist_timeout_s) for rank 0; look at what they printed, and start again with ` +
    "--resume=auto\n";
  assertEquals(
    await Promise.all([
      ending(`busy(100); within("a call", waiting, () => busy(100)); busy(5000); console.log("went on")`),
      ending(`within("a call", waiting, () => busy(5000)); console.log("went on")`),
      ending(
        `queue[Symbol.dispose](); within("a call", waiting, () => busy(100)); busy(1000); console.log("went on")`,
      ),
    ]),
    [[75, line("the result of step 7")], [75, line("a call")], [0, "went on\n"]],
  );
});
