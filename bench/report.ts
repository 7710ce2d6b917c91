// What every result file begins with, and where it is written.
import os from "node:os";

/** How, when and on what a benchmark ran. */
export type Head = {
  command: string;
  /** "2026-01-31" */
  date: string;
  cpu: string;
  cores: number;
  deno: string;
  /** Processes that wanted a core in the minute before. */
  load_before: number;
};

/** The head of a report on a command: what starts the program, and its arguments. To be asked for before the work begins. */
export function reportHead(program: string, args: string[] = Deno.args): Head {
  return {
    command: [program, ...args].join(" "),
    date: new Date().toISOString().slice(0, 10),
    cpu: os.cpus()[0]?.model ?? "unknown",
    cores: navigator.hardwareConcurrency,
    deno: Deno.version.deno,
    load_before: Deno.loadavg()[0]!,
  };
}

/** Says so where other programs were busy before. */
export function warnOfLoad(load: number): void {
  if (load > 0.5) console.log(`the machine is busy (load ${load.toFixed(2)}): expect noise`);
}

/** Writes a report to a path, or where that is "" to bench/results/NAME.json, and returns the path. */
export function saveReport(report: Head & Record<string, unknown>, name: string, path: string): string {
  const file = path || `${import.meta.dirname}/results/${name}.json`;
  if (!path) Deno.mkdirSync(`${import.meta.dirname}/results`, { recursive: true });
  Deno.writeTextFileSync(file, JSON.stringify(report, null, 2) + "\n");
  return file;
}
