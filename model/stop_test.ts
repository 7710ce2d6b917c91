import { assertEquals } from "@std/assert";

/**
 * What a process has heard during its second run, or after its first one, when it sent itself a signal; "ended" if that took its
 * usual effect. ignored: a signal that it begins with ignored, as nohup starts it.
 */
async function heard(signal: string, when: "during" | "after", ignored: string): Promise<string> {
  const program = `
    import { Stop } from "${new URL("stop.ts", import.meta.url)}";
    const stop = new Stop();
    stop.listen();
    stop[Symbol.dispose]();
    if ("${when}" === "during") stop.listen();
    Deno.kill(Deno.pid, "${signal}");
    await new Promise((resolve) => setTimeout(resolve, 300));
    console.log(stop.asked || "nothing");
  `;
  const script = ignored ? `trap "" ${ignored}; exec "$0" "$@"` : 'exec "$0" "$@"';
  const args = ["-c", script, Deno.execPath(), "eval", "-q", "--ext=ts", program];
  const { stdout, signal: ending } = await new Deno.Command("sh", { args, stderr: "null" }).output();
  return ending === signal ? "ended" : new TextDecoder().decode(stdout).trimEnd();
}

Deno.test("Stop hears the first signal, and SIGHUP only where nohup does not keep it from the program", async () => {
  assertEquals(await heard("SIGHUP", "during", ""), "SIGHUP");
  assertEquals(await heard("SIGTERM", "during", ""), "SIGTERM");
  if (Deno.build.os === "linux") assertEquals(await heard("SIGHUP", "during", "HUP"), "nothing");
});

Deno.test("Stop leaves the signals alone once the run has ended, and a program that nohup started running", async () => {
  assertEquals(await heard("SIGTERM", "after", ""), "ended");
  if (Deno.build.os === "linux") assertEquals(await heard("SIGHUP", "after", "HUP"), "nothing");
});
