import { assertEquals } from "@std/assert";

/** What a process has heard after it sent itself a signal; where it begins with SIGHUP ignored, as nohup starts it. */
async function heard(signal: string, ignored: string): Promise<string> {
  const program = `
    import { Stop } from "${new URL("stop.ts", import.meta.url)}";
    const stop = new Stop();
    Deno.kill(Deno.pid, "${signal}");
    await new Promise((resolve) => setTimeout(resolve, 300));
    console.log(stop.asked || "nothing");
  `;
  const script = ignored ? `trap "" ${ignored}; exec "$0" "$@"` : 'exec "$0" "$@"';
  const args = ["-c", script, Deno.execPath(), "eval", "-q", "--ext=ts", program];
  const { stdout } = await new Deno.Command("sh", { args, stderr: "null" }).output();
  return new TextDecoder().decode(stdout).trimEnd();
}

Deno.test("Stop hears the first signal, and SIGHUP only where nohup does not keep it from the program", async () => {
  assertEquals(await heard("SIGHUP", ""), "SIGHUP");
  assertEquals(await heard("SIGTERM", ""), "SIGTERM");
  if (Deno.build.os === "linux") assertEquals(await heard("SIGHUP", "HUP"), "nothing");
});
