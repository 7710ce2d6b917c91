// `deno task runs`: the runs below a directory, one a line.
import { formatCount, formatSeconds, table } from "../base/format.ts";
import { asTyped } from "../base/command.ts";
import { runMain, UserError } from "../base/errors.ts";
import { lookedIn } from "../base/files.ts";
import { help, readFlags } from "../base/flags.ts";
import { oneLine, visible } from "../base/visible.ts";
import { holdsRun } from "../runtime/checkpoint.ts";
import { Run } from "./runs.ts";
import { summaryOf } from "./stats.ts";
import type { Runs, RunSummary } from "./types.ts";

const defaults = {
  dir: ["runs"], // where to look: directories of runs, or runs, also as plain words
  json: false, // as GET /runs has them: {"runs": [...]}
};

const USAGE = `List runs with step, loss, speed and state, the latest last

  deno task runs                 those in runs/
  deno task runs /mnt/runs       those in other directories`;

const HEAD = ["run", "state", "step", "loss", "val loss", "bpb", "tok/s", "left", "preset", "started"];

/** The command line: prints a table, or a JSON object. */
export async function main(args: string[]): Promise<void> {
  if (args.includes("--help")) {
    const { default: source } = await import("./list.ts", { with: { type: "text" } });
    return console.log(help(USAGE, defaults, source));
  }
  const { dir: parents, json } = { ...defaults, ...readFlags(args, defaults, { words: "dir" }) };
  const found = await Promise.all(parents.flatMap(runsIn).map(describe));
  found.sort((a, b) => (a.started ?? "").localeCompare(b.started ?? "") || a.name.localeCompare(b.name));
  if (json) return console.log(visible(JSON.stringify({ runs: found } satisfies Runs)));
  if (found.length === 0) {
    return console.log(asTyped(`no runs in ${oneLine(parents.join(", "))}; start one with: deno task train`));
  }
  console.log(table([HEAD, ...found.map((run) => row(run).map(oneLine))]));
  for (const { name, error } of found) if (error !== null) console.log(oneLine(`${name} failed: ${error}`));
}

/** The run directories directly in a directory; or itself. */
function runsIn(parent: string): string[] {
  if (holdsRun(parent)) return [parent];
  try {
    const names = Array.from(Deno.readDirSync(parent), ({ name }) => name).sort();
    return names.map((name) => `${parent}/${name}`).filter(holdsRun);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound && parent === "runs") return []; // nothing was trained here yet
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(
      `Cannot list the runs in ${parent}: ${
        (error as Error).message.replace(/ \(os error.*/, lookedIn(parent))
      }; name a directory of runs`,
    );
  }
}

async function describe(dir: string): Promise<RunSummary> {
  const run = new Run(dir, Deno.realPathSync(dir));
  await run.refresh();
  return summaryOf(run);
}

function row(run: RunSummary): string[] {
  const number = (value: number | null, digits: number) => value === null ? "-" : value.toFixed(digits);
  return [
    run.name,
    run.state,
    `${run.step}/${run.max_iters ?? "?"}`,
    number(run.loss, 4),
    number(run.val_loss, 4),
    number(run.val_bpb, 4),
    run.tokens_per_sec === null ? "-" : formatCount(run.tokens_per_sec),
    run.eta_s === null ? "-" : formatSeconds(run.eta_s),
    run.preset ?? "-",
    run.started?.slice(0, 16).replace("T", " ") ?? "-",
  ];
}

if (import.meta.main) await runMain(main);
