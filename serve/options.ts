// The command line of serve.
import { parseArgs } from "@std/cli/parse-args";
import { UserError } from "../base/errors.ts";
import { lookedIn } from "../base/files.ts";
import { meantFlag } from "../base/suggest.ts";
import { holdsRun } from "../runtime/checkpoint.ts";
import { Run } from "./runs.ts";

/** Text of --help. */
export const HELP = `Show runs in a browser and to programs, and let others talk to a model

  deno task serve runs/c4                             http://127.0.0.1:8000/, while it trains or afterwards
  deno task serve runs/a runs/b                       side by side
  deno task serve runs                                all in a directory, and those that come
  deno task serve --checkpoint runs/c4                POST /v1/completions, as OpenAI's API

  --run DIR ...        run directories, or directories of runs; nothing else is read; --run may be left out
  --checkpoint PATH    a run, one of its checkpoints, its best (RUN/best), or a Hugging Face Llama directory
  --device NAME        of the model: cuda or cpu                     (cuda if it answers)
  --port NUMBER        0 takes any that is free                      (8000)
  --host ADDRESS       where to listen; beyond this machine it needs a token in LOAM_TOKEN, which requests then
                       carry as Authorization: Bearer or ?token=     (127.0.0.1)
  --cors ORIGIN        whose pages may use the server beside its own, such as http://localhost:3000; again for more

More in docs/serve.md.`;

/** What to serve, and where. */
export type ServeOptions = {
  runs: string[];
  checkpoint: string;
  device: string;
  port: number;
  host: string;
  origins: string[];
};

const STRINGS = ["run", "checkpoint", "device", "port", "host", "cors"] as const;
const FLAGS = [...STRINGS, "help"];

/** What a command line asks for. Throws UserError for unknown flags, missing values and ports that are none. */
export function parseOptions(args: string[]): ServeOptions {
  const flags = parseArgs(args, { string: STRINGS, collect: ["run", "cors"], unknown: refuseFlag });
  const value = (name: "checkpoint" | "device" | "port" | "host", fallback: string): string => {
    if (flags[name] === "") {
      throw new UserError(`Cannot use --${name}: it needs a value, such as --${name}=...`);
    }
    return flags[name] ?? fallback;
  };
  const runs = [...flags.run ?? [], ...flags._.map(String)];
  if (runs.includes("")) throw new UserError("Cannot use --run: it needs a directory, such as --run runs/c4");
  const checkpoint = value("checkpoint", "");
  if (runs.length === 0 && checkpoint === "") {
    throw new UserError(
      "Cannot serve nothing: name a run or a directory of runs, such as runs, or a model with --checkpoint runs/...; " +
        "deno task runs lists what there is",
    );
  }
  return {
    runs,
    checkpoint,
    device: value("device", ""),
    port: portOf(value("port", "8000")),
    host: value("host", "127.0.0.1"),
    origins: (flags.cors ?? []).map(originOf),
  };
}

function refuseFlag(arg: string, name?: string): boolean {
  if (name === undefined) return true; // a run directory
  throw new UserError(`Cannot use ${arg}: there is no such flag; ${meantFlag(name, FLAGS)}`);
}

function portOf(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : NaN;
  if (port < 65536) return port;
  throw new UserError(`Cannot use port ${text}: it must be a whole number from 0 to 65535`);
}

/** An origin as browsers name it. All of them cannot be meant: any page that somebody opens could use the model. */
function originOf(text: string): string {
  const url = URL.parse(text), isWeb = url?.protocol === "http:" || url?.protocol === "https:";
  if (url && (isWeb ? url.origin === text : /^[a-z][a-z0-9+.-]*:\/\/[\w.-]+$/.test(text))) return text;
  throw new UserError(
    `Cannot use --cors ${text}: it must be the scheme, name and port of a page, such as http://localhost:3000`,
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
