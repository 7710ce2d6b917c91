// The three kinds of failure a user of loam can meet.
import settings from "../deno.json" with { type: "json" };
import { oneLine, visible } from "./visible.ts";

/** A mistake of the person at the keyboard: printed as one line, exit code 1, no stack trace. */
export class UserError extends Error {
  /** "UserError" */
  override name = "UserError";
}

/** A function of the compiled library failed. The message names the function, its sizes and the cause. */
export class KernelError extends Error {
  /** "KernelError" */
  override name = "KernelError";
}

/**
 * Runs a command-line main function with the arguments of the program, in which -h stands for --help. A UserError prints as
 * one line and exits with 1; a missing permission prints the flag that grants it; anything else is a bug in loam (or in a
 * model under development) and keeps its stack.
 */
export async function runMain(main: (args: string[]) => void | Promise<void>): Promise<void> {
  try {
    await main(Deno.args.map((arg) => arg === "-h" ? "--help" : arg));
  } catch (error) {
    console.error(explain(error));
    Deno.exit(1);
  }
}

/** The text to print for an error: one line for user errors, with the stack for everything else; nothing that steers a terminal. */
export function explain(error: unknown): string {
  if (error instanceof UserError) return `error: ${oneLine(error.message)}`;
  if (error instanceof Deno.errors.NotCapable) {
    const flag = /--allow-[a-z]+/.exec(error.message)?.[0] ?? "--allow-...";
    const what = /access to "([^"]+)"/.exec(error.message)?.[1];
    const grant = what ? `${flag}="${what}"` : flag;
    const command = ["deno run -q", ...permissionSet(), grant, programPath()].join(" ");
    return oneLine(
      `error: ${error.message.split(",")[0]}: this program was granted less; grant it with: ${command} ...`,
    );
  }
  if (!(error instanceof Error)) return visible(String(error));
  return visible((error.stack ?? error.message).replace(error.message, () => oneLine(error.message)));
}

/** The main module as one types it in the repository's root; elsewhere its whole path. */
function programPath(): string {
  const root = new URL("../", import.meta.url).href, main = Deno.mainModule;
  return main.startsWith(root) ? main.slice(root.length) : decodeURIComponent(new URL(main).pathname);
}

/** The flag for the permissions that the task of the main module has, or the binary; none for a program of others. */
function permissionSet(): string[] {
  if (programPath() === "mod.ts") return ["-P=loam"];
  const commands = Object.values(settings.tasks).map(({ command }) => command.split(" "));
  const own = commands.find((words) => words.includes(programPath()));
  return own?.filter((word) => word.startsWith("-P=")) ?? [];
}

/** The name among known that needs the fewest single-letter edits to become name: for "did you mean". */
export function nearest(name: string, known: readonly string[]): string {
  return known.reduce((best, next) => edits(name, next) < edits(name, best) ? next : best);
}

/** Levenshtein distance. */
function edits(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length]!;
}
