// deno task serve: shows runs in a browser and to programs, and lets others talk to a model. It reads run directories only,
// and never needs the trainer. createApp() makes the Hono app; serve/ holds its parts.
import { runMain, UserError } from "./base/errors.ts";
import { oneLine } from "./base/visible.ts";
import type { WeightType } from "./model/checkpoint.ts";
import { NO_TEMPLATE } from "./model/conversations.ts";
import { requireToken } from "./serve/access.ts";
import { createApp } from "./serve/app.ts";
import { listen } from "./serve/listen.ts";
import { Model } from "./serve/model.ts";
import { helpText, openRuns, parseOptions } from "./serve/options.ts";

export { type App, type AppOptions, createApp } from "./serve/app.ts";

/** The command line: serves until SIGINT or SIGTERM. */
export async function serve(args: string[]): Promise<void> {
  if (args.includes("--help")) return console.log(await helpText());
  const options = parseOptions(args), { host: hostname, port } = options;
  const token = requireToken(hostname, Deno.env.get("LOAM_TOKEN"));
  const { runs, look } = openRuns(options.run);
  const model = options.checkpoint
    ? await Model.load(options.checkpoint, options.device, options.dtype as WeightType)
    : undefined;
  await Promise.all(runs.map((run) => run.refresh())); // a run of a million steps takes seconds, but only once
  const server = listen(createApp({ runs, look, model, token, origins: options.cors }), {
    hostname,
    port,
    flag: "--port",
  });
  console.log(`serving at ${server.url}${token ? "?token=$LOAM_TOKEN" : ""}`);
  if (model) {
    console.log(`model ${oneLine(model.name)} at ${server.url}prompt and ${server.url}v1`);
    const { conversations } = model;
    if (conversations instanceof UserError) {
      console.error(`warning: no conversations: ${oneLine(conversations.message)}`);
    } else if (!conversations.isOwn) console.error(`note: ${NO_TEMPLATE}`);
  }
  await stopSignal();
  await server.close();
  model?.close();
}

/** Resolves at the first SIGINT or SIGTERM; the next one has its usual effect. */
function stopSignal(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const stop = () => {
    Deno.removeSignalListener("SIGINT", stop);
    Deno.removeSignalListener("SIGTERM", stop);
    resolve();
  };
  Deno.addSignalListener("SIGINT", stop);
  Deno.addSignalListener("SIGTERM", stop);
  return promise;
}

if (import.meta.main) await runMain(serve);
