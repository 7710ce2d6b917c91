// What the command lines of prepare and of the tokenizer's training have in common: files as plain words, and flags whose names
// and values are checked.
import { parseArgs } from "@std/cli/parse-args";
import { UserError } from "./errors.ts";
import { meantFlag } from "./suggest.ts";

/** The flags that a command has. */
export type KnownFlags<V extends string, S extends string> = {
  /** The one that names files. Plain words are files, too. */
  files: string;
  /** Those with a value. */
  values: readonly V[];
  /** Those without. */
  switches: readonly S[];
};

/** What a command line says. */
export type Flags<V extends string, S extends string> = {
  /** In their order. */
  files: string[];
  /** Those that were given, as they were written. */
  values: Partial<Record<V, string>>;
  /** Whether each was given. */
  switches: Record<S, boolean>;
};

/**
 * Reads a command line. A -- in it, which some tools want before the flags of a task, means nothing. Throws UserError
 * for unknown flags and missing values.
 */
export function parseFlags<V extends string, S extends string>(
  args: string[],
  { files, values, switches }: KnownFlags<V, S>,
): Flags<V, S> {
  const strings = [files, ...values];
  const flags: Record<string, unknown> = parseArgs(
    nameFiles(args.filter((arg) => arg !== "--"), files, strings),
    {
      string: strings,
      collect: [files],
      boolean: switches,
      unknown: (arg, name) => refuse(arg, name, [...strings, ...switches, "help"]),
    },
  );
  for (const name of switches) refuseValue(name, args);
  const named = flags[files] as string[], empty = values.find((name) => flags[name] === "");
  if (empty !== undefined) {
    throw new UserError(`Cannot use --${empty}: it needs a value, such as --${empty}=...`);
  }
  if (named.includes("")) {
    throw new UserError(`Cannot use --${files}: it needs a file, such as --${files} corpus.parquet`);
  }
  const pick = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, flags[name]]));
  return {
    files: named,
    values: pick(values) as Flags<V, S>["values"],
    switches: pick(switches) as Flags<V, S>["switches"],
  };
}

/** Puts the flag for files before every plain word that is no value of a flag, so that all files stay in order. */
function nameFiles(args: string[], files: string, strings: string[]): string[] {
  return args.map((arg, i) => {
    const isValue = strings.some((name) => args[i - 1] === `--${name}`);
    return !isValue && (arg === "-" || !arg.startsWith("-")) ? `--${files}=${arg}` : arg;
  });
}

/** Called with each argument that is no known flag, and with the "" of --out "". */
function refuse(arg: string, name: string | undefined, known: string[]): boolean {
  if (name === undefined) return true;
  throw new UserError(
    `Cannot use ${arg.split("=")[0]}: there is no such flag; ${meantFlag(name, known)}`,
  );
}

/** Refuses --overwrite=no, which would mean yes. */
function refuseValue(name: string, args: string[]): void {
  const wrong = args.find((arg) => arg.startsWith(`--${name}=`) && !/=(true|false)$/.test(arg));
  if (wrong !== undefined) {
    throw new UserError(`Cannot use ${wrong}: it has no value; give --${name} or leave it out`);
  }
}

/** The value of a flag that is a whole number, undefined if it was not given. */
export function wholeNumber(
  name: string,
  text: string | undefined,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
): number | undefined {
  if (text === undefined) return undefined;
  const number = /^\d+$/.test(text) ? Number(text) : NaN;
  if (number >= least && number <= most) return number;
  const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
  throw new UserError(`Cannot use --${name}=${text}: it should be a whole number ${range}`);
}

/** Turns \n, \t and \\ into what they stand for, since a shell passes them on as they are. */
export function unescape(text: string | undefined): string | undefined {
  return text?.replace(/\\([nt\\])/g, (_, letter) => letter === "n" ? "\n" : letter === "t" ? "\t" : "\\");
}
