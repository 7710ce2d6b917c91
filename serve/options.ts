// The command line of serve.
import { UserError } from "../base/errors.ts";
import { lookedIn } from "../base/files.ts";
import { help, type Ranges, readFlags, whole } from "../base/flags.ts";
import { WEIGHT_TYPES } from "../model/checkpoint.ts";
import { holdsRun } from "../runtime/checkpoint.ts";
import { Run } from "./runs.ts";

/** The flags of serve. */
export const defaults = {
  run: [] as string[], // run directories, or directories of runs, also as plain words; nothing else is read
  checkpoint: "", // a run, one of its checkpoints, its best (RUN/best), or a model directory of Hugging Face
  device: "", // of the model: cuda or cpu; "" = cuda if it answers, else cpu
  dtype: "auto", // of its weights on a CPU: float32, bfloat16 (half the memory), or auto = bfloat16 where the files are
  port: 8000, // 0 takes any that is free
  host: "127.0.0.1", // where to listen; beyond this machine it needs a token in LOAM_TOKEN, which requests then
  // carry as Authorization: Bearer or ?token=
  cors: [] as string[], // whose pages may use the server beside its own, such as http://localhost:3000; again for more
};

const ranges: Ranges<typeof defaults> = { port: whole(0, 65535), dtype: WEIGHT_TYPES };

/** Text of --help. */
export async function helpText(): Promise<string> {
  const { default: source } = await import("./options.ts", { with: { type: "text" } });
  return help(USAGE, defaults, source);
}

const USAGE = `Show runs in a browser and to programs, and let others talk to a model

  deno task serve runs/c4                             http://127.0.0.1:8000/, while it trains or afterwards
  deno task serve runs/a runs/b                       side by side
  deno task serve runs                                all in a directory, and those that come
  deno task serve --checkpoint runs/c4                a page to talk to a model, and OpenAI's API

More in docs/serve.md.`;

/** What to serve, and where: the flags of the same names. Throws UserError for unknown flags and values that are none. */
export function parseOptions(args: string[]): typeof defaults {
  const o = { ...defaults, ...readFlags(args, defaults, { ranges, words: "run" }) };
  if (o.run.length === 0 && o.checkpoint === "") {
    throw new UserError(
      "Cannot serve nothing: name a run or a directory of runs, such as runs, or a model with --checkpoint runs/...; " +
        "deno task runs lists what there is",
    );
  }
  o.cors.forEach(requireOrigin);
  return o;
}

/** Stops unless it is an origin as browsers name it, and no *: any page that somebody opens could use the model. */
function requireOrigin(text: string): void {
  const url = URL.parse(text), isWeb = url?.protocol === "http:" || url?.protocol === "https:";
  if (url && (isWeb ? url.origin === text : /^[a-z][a-z0-9+.-]*:\/\/[\w.-]+$/.test(text))) return;
  throw new UserError(
    `Cannot use --cors=${text}: it should be the scheme, name and port of a page, such as http://localhost:3000`,
  );
}

/** Runs to serve. look() adds those that are new in the directories of runs. */
export type RunsToServe = { runs: Run[]; look: () => void };

/**
 * The runs at some paths, each under its last name, with as many before it as tell it from the others. A path leads
 * to a run, or to a directory of runs. Throws UserError if a path leads to neither.
 */
export function openRuns(paths: string[]): RunsToServe {
  const clean = [...new Set(paths.map((path) => path.replace(/(?<=.)\/+$/, "")))];
  const directories = clean.map((path) => ({ path, directory: directoryOf(path) }));
  const parents = directories.filter(({ directory }) => !holdsRun(directory)), known = [...clean];
  const runs = directories.filter((at) => !parents.includes(at))
    .map(({ path, directory }) => new Run(shortName(path, clean), directory));
  const look = () => {
    for (const { path, directory } of parents) {
      for (const name of runsIn(directory)) {
        const found = `${directory}/${name}`, long = `${path}/${name}`;
        if (runs.some(({ dir }) => dir === found)) continue;
        known.push(long);
        runs.push(new Run(shortName(long, known), found, true));
      }
    }
  };
  look();
  return { runs, look };
}

/** The shortest end of a path that is the end of no other one: a whole path may tell the name of the user. */
function shortName(path: string, paths: string[]): string {
  const names = path.split("/"), ends = names.map((_, i) => names.slice(-1 - i).join("/"));
  return ends.find((end) => paths.filter((other) => `/${other}`.endsWith(`/${end}`)).length === 1) ?? path;
}

function directoryOf(path: string): string {
  try {
    const directory = Deno.realPathSync(path);
    // One without runs and files is a directory of runs before the first.
    if (holdsRun(directory) || runsIn(directory).length > 0) return directory;
    if (Array.from(Deno.readDirSync(directory)).every(({ isDirectory }) => isDirectory)) return directory;
  } catch (error) {
    if (error instanceof Deno.errors.NotADirectory) throw holdsNone(path);
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new UserError(
      `Cannot serve ${path}: there is no such directory${lookedIn(path)}; deno task runs lists the runs`,
    );
  }
  throw holdsNone(path);
}

function holdsNone(path: string): UserError {
  return new UserError(
    `Cannot serve ${path}: it holds no run, which has a metrics.jsonl, and no directory of one; deno task runs lists the runs`,
  );
}

/** Names of the runs directly in a directory, sorted; none where it is gone. Symbolic links are not followed. */
function runsIn(directory: string): string[] {
  try {
    return Array.from(Deno.readDirSync(directory))
      .filter(({ name, isDirectory }) => isDirectory && holdsRun(`${directory}/${name}`))
      .map(({ name }) => name).sort();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}
