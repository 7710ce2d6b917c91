// The Worker that serves a run beside its trainer, which it shares nothing with but the run directory.
import { basename } from "node:path";
import { explain, UserError } from "../base/errors.ts";
import { workerScope } from "../base/worker_scope.ts";
import { requireToken } from "./access.ts";
import { createApp } from "./app.ts";
import { LIMITS, listen, type Listening } from "./listen.ts";
import { Run } from "./runs.ts";

/** What the trainer says: which run to serve, and at the end to stop. */
export type Told = { kind: "serve"; dir: string; port: number } | { kind: "stop" };

/** What the Worker says. */
export type Said =
  | { kind: "serving"; url: string }
  | { kind: "failed"; message: string }
  | { kind: "stopped" };

const HOSTNAME = "127.0.0.1";
const FEWER = { ...LIMITS, connections: 128, per_client: 96 }; // the trainer has files to open, too

const worker = workerScope();
let run: Run | undefined, server: Listening | undefined;

worker.onmessage = async ({ data }: MessageEvent<Told>) => {
  try {
    if (data.kind === "stop") await stop();
    else say({ kind: "serving", url: start(data.dir, data.port) });
  } catch (error) {
    say({ kind: "failed", message: error instanceof UserError ? error.message : explain(error) });
  }
};

function start(dir: string, port: number): string {
  run = new Run(basename(dir), Deno.realPathSync(dir));
  const token = requireToken(HOSTNAME, Deno.env.get("LOAM_TOKEN"));
  const app = createApp({ runs: [run], token });
  server = listen(app, { hostname: HOSTNAME, port, flag: "--serve_port" }, FEWER);
  return server.url;
}

async function stop(): Promise<void> {
  await run?.refresh(); // so that who watches learns how it ended
  await server?.close();
  say({ kind: "stopped" });
}

function say(what: Said): void {
  worker.postMessage(what);
}
