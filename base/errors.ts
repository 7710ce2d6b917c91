// The three kinds of failure a user of loam can meet.
import settings from "../deno.json" with { type: "json" };
import { oneLine, visible } from "./visible.ts";

/** A mistake of the person at the keyboard: printed as one line, exit code 1, no stack trace. */
export class UserError extends Error {
  /** "UserError" */
  override name = "UserError";
}

/** What may go well the next time: another process did not come, or holds a port. Printed as one line, exit code 75. */
export class TransientError extends UserError {
  /** "TransientError" */
  override name = "TransientError";
}

/** A function of the compiled library failed. The message names the function, its sizes and the cause. */
export class KernelError extends Error {
  /** "KernelError" */
  override name = "KernelError";
}

/** Exit code where another start may go well: EX_TEMPFAIL of sysexits.h. */
export const TRY_AGAIN = 75;

/**
 * With what a program ends over an error: 1 where the next start would meet it again, 75 where it may not. Of several processes
 * each failure that is no mistake is of the second kind: of a network, a device, a machine.
 */
export function exitCodeOf(error: unknown, isAlone = true): number {
  if (error instanceof TransientError) return TRY_AGAIN;
  const isMistake = error instanceof UserError || error instanceof Deno.errors.NotCapable;
  return isAlone || isMistake ? 1 : TRY_AGAIN;
}

/**
 * Runs a command-line main function with the arguments of the program, in which -h stands for --help. Whatever it throws, then
 * or later, is explained on stderr and ends the program with exitCodeOf() it.
 */
export async function runMain(main: (args: string[]) => void | Promise<void>): Promise<void> {
  addEventListener("unhandledrejection", (event) => failAfter(event, event.reason));
  addEventListener("error", (event) => failAfter(event, event.error ?? event.message));
  try {
    await main(Deno.args.map((arg) => arg === "-h" ? "--help" : arg));
  } catch (error) {
    fail(error);
  }
}

/** Once the other listeners, such as those of a run, have seen the event. */
function failAfter(event: Event, error: unknown): void {
  event.preventDefault();
  queueMicrotask(() => fail(error));
}

function fail(error: unknown): never {
  try {
    console.error(explain(error));
  } catch {
    // stderr cannot be written to either: the exit code has to do
  }
  Deno.exit(exitCodeOf(error));
}

/** The text to print for an error: "error: " and what mistakeOf() says, or the stack of a bug; nothing that steers a terminal. */
export function explain(error: unknown): string {
  const mistake = mistakeOf(error);
  if (mistake !== undefined) return `error: ${mistake}`;
  if (!(error instanceof Error)) return visible(String(error));
  return visible((error.stack ?? error.message).replace(error.message, () => oneLine(error.message)));
}

/**
 * What a user can cause, in one line: a UserError, a missing permission with the flag that grants it, what the operating system
 * or a function of the library refuses. Undefined for a bug in loam, or in a model under development.
 */
export function mistakeOf(error: unknown): string | undefined {
  const text = error instanceof UserError
    ? error.message
    : ofPermissions(error) ?? ofSystem(error) ?? ofLibrary(error);
  return text === undefined ? undefined : oneLine(text);
}

function ofPermissions(error: unknown): string | undefined {
  if (!(error instanceof Deno.errors.NotCapable)) return undefined;
  const flag = /--allow-[a-z]+/.exec(error.message)?.[0] ?? "--allow-...";
  const what = /access to "([^"]+)"/.exec(error.message)?.[1];
  if (flag === "--allow-all") { // which Deno wants for /dev, /proc and /sys
    return `Cannot use ${what}: it belongs to the system; choose a file or directory of your own`;
  }
  const words = [...permissionSet(), what ? `${flag}="${what}"` : flag, programPath()];
  const task = taskWith(flag), command = task ? `deno task ${task}` : `deno run -q ${words.join(" ")}`;
  const advice = task ? `run: ${command} ...` : `grant it with: ${command} ...`;
  return `${error.message.split(",")[0]}: this program was granted less; ${advice}`;
}

const VERBS: Record<string, string> = {
  mkdir: "make",
  readdir: "read",
  readfile: "read",
  writefile: "write",
  realpath: "find",
  stat: "find",
  lstat: "find",
};

/** "Cannot open runs/a: Not a directory" of "Not a directory (os error 20): open 'runs/a'"; undefined for other errors. */
function ofSystem(error: unknown): string | undefined {
  if (!(error instanceof Error && "code" in error && /^E[A-Z0-9]+$/.test(String(error.code)))) {
    return undefined;
  }
  const [, cause, verb = "", path] =
    /^([^]*?)(?: \(os error \d+\))?(?:: (\w+) '([^]*)')?$/.exec(error.message) ?? [];
  if (path === undefined) {
    return `Cannot ${/ at console\.log /.test(error.stack ?? "") ? "print" : "go on"}: ${cause}`;
  }
  return `Cannot ${VERBS[verb] ?? verb} ${path.replace("' -> '", " to ")}: ${cause}`;
}

/** What a function of the library refuses; undefined for its own bugs and for other errors. */
function ofLibrary(error: unknown): string | undefined {
  if (!(error instanceof KernelError) || error.message.startsWith("internal:")) return undefined;
  return `Cannot go on: ${error.message}`;
}

/** The main module as one types it in the repository's root; elsewhere its whole path. */
function programPath(): string {
  const root = new URL("../", import.meta.url).href, main = Deno.mainModule;
  return main.startsWith(root) ? main.slice(root.length) : decodeURIComponent(new URL(main).pathname);
}

/** The flag for the permissions that the task of the main module has, or the binary; none for a program of others. */
function permissionSet(): string[] {
  if (programPath() === "mod.ts") return ["-P=loam"];
  return ownTasks()[0]?.[1].filter((word) => word.startsWith("-P=")) ?? [];
}

/** The task of the main module that gives it more than its permission set, such as prepare:web for --allow-net. */
function taskWith(flag: string): string | undefined {
  return ownTasks().find(([, words]) => words.some((word) => word.split("=")[0] === flag))?.[0];
}

/** The tasks that run the main module, with the words of their commands. */
function ownTasks(): (readonly [name: string, words: string[]])[] {
  return Object.entries(settings.tasks).map(([name, { command }]) => [name, command.split(" ")] as const)
    .filter(([, words]) => words.includes(programPath()));
}
