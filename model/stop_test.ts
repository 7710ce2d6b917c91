import { assertEquals } from "@std/assert";

/**
 * What a process with the permissions of train has heard during its second run, or after its first one, when it was sent a signal;
 * "ended" if that, or the second where there are two, took its usual effect. ignored: a signal that it begins with ignored, as nohup starts it.
 */
async function heard(
  signal: Deno.Signal,
  when: "during" | "twice" | "after",
  ignored: string,
): Promise<string> {
  const program = `
    import { open } from "${new URL("../ffi/library.ts", import.meta.url)}";
    import { Stop } from "${new URL("stop.ts", import.meta.url)}";
    open("cpu", { threads: 1, blas: "builtin" });
    const stop = new Stop();
    stop.listen();
    stop[Symbol.dispose]();
    if ("${when}" !== "after") stop.listen();
    console.log("ready");
    while ("${when}" === "twice" && !stop.asked) await new Promise((resolve) => setTimeout(resolve, 10));
    if ("${when}" === "twice") console.log("asked");
    await new Promise((resolve) => setTimeout(resolve, 300));
    console.log(stop.asked || "nothing");
  `;
  const script = ignored ? `trap "" ${ignored}; exec "$0" "$@"` : 'exec "$0" "$@"';
  const args = ["-c", script, Deno.execPath(), "run", "-q", "-P=train", "--no-check", "--ext=ts", "-"];
  const cwd = new URL("..", import.meta.url); // where deno.json is
  const child = new Deno.Command("sh", { args, cwd, stdin: "piped", stdout: "piped", stderr: "null" })
    .spawn();
  await new Blob([program]).stream().pipeTo(child.stdin);
  let text = "";
  for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) {
    if (text === "" || part.includes("asked")) child.kill(signal);
    text += part;
  }
  return (await child.status).signal === signal ? "ended" : text.replace("ready\n", "").trimEnd();
}

Deno.test("Stop hears the first signal, and SIGHUP only where nohup does not keep it from the program", async () => {
  assertEquals(await heard("SIGHUP", "during", ""), "SIGHUP");
  assertEquals(await heard("SIGTERM", "during", ""), "SIGTERM");
  assertEquals(await heard("SIGTERM", "twice", ""), "ended");
  if (Deno.build.os === "linux") assertEquals(await heard("SIGHUP", "during", "HUP"), "nothing");
});

Deno.test("Stop leaves the signals alone once the run has ended, and a program that nohup started running", async () => {
  assertEquals(await heard("SIGTERM", "after", ""), "ended");
  if (Deno.build.os === "linux") assertEquals(await heard("SIGHUP", "after", "HUP"), "nothing");
});
