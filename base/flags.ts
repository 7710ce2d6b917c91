// The flags of every command. They are variables: a literal object, whose values are the defaults and whose comments --help
// prints, and below it what they may be. --name=value sets one; what fits none is an error that names the nearest.
import { parseArgs } from "@std/cli/parse-args";
import { asTyped } from "./command.ts";
import { UserError } from "./errors.ts";
import { meantFlag } from "./suggest.ts";

/** A default, whose type is that of the flag. A list has a flag that may be repeated; null is a number that is not set. */
export type Value = number | string | boolean | string[] | null;

/** Variables by name. */
export type Values = Record<string, Value>;

/** From the least to the largest number, without the one that is open. */
export type Range = { whole: boolean; from: number; to: number; open?: number };

type Allowed = Range | readonly string[];

/** The range of every number, and the words that a text may be. */
export type Ranges<T> =
  & { [K in keyof T as T[K] extends number | null ? K : never]: Range }
  & { [K in keyof T as T[K] extends string ? K : never]?: readonly string[] };

/** How a command line is read: what the variables may be, which list plain words go to, what --name alone means. */
export type Reading<T> = { ranges?: Ranges<T>; words?: keyof T & string; bare?: Record<string, string> };

/** Whole numbers. */
export function whole(from: number, to: number = Number.MAX_SAFE_INTEGER): Range {
  return { whole: true, from, to };
}

/** Numbers, with both ends or without one. */
export function between(from: number, to = Infinity, open = NaN): Range {
  return { whole: false, from, to, open };
}

/** One range for several variables. */
export function each<K extends string>(range: Range, ...names: K[]): Record<K, Range> {
  return Object.fromEntries(names.map((name) => [name, range])) as Record<K, Range>;
}

/**
 * What --help prints: what the command does, and each variable with its default and the comment that stands behind it.
 *
 * @param source Text of the module that begins with the variables: an object literal, a line each, `  name: value, // comment`,
 * and more of the comment in lines of its own below. Groups follow an empty line and a comment, which becomes their heading.
 */
export function help(what: string, defaults: Values, source: string): string {
  const literal = literalOf(source);
  const flag = (name: string) => `  --${name}=${defaults[name] ?? ""}`;
  const width = Math.max(...Object.keys(defaults).map((name) => flag(name).length));
  let before: string | undefined; // the variable in the line before
  const lines = literal.split("\n").map((line) => {
    const [, name, comment = ""] = /^ *(\w+): .*?,(?: \/\/ (.*))?$/.exec(line) ?? [];
    const more = line.replace("  // ", "");
    if (line === "" || name !== undefined) before = name;
    if (name !== undefined) return `${flag(name).padEnd(width)}  ${comment}`.trimEnd();
    return before === undefined ? more : " ".repeat(width + 2) + more;
  });
  return asTyped([what, "", ...lines].join("\n"));
}

/** The lines of the variables that a module begins with, as help() takes them. */
export function literalOf(source: string): string {
  return /^(?:export )?const \w+ = \{\n([^]*?)\n\};$/m.exec(source)?.[1] ?? "";
}

/**
 * What a command line sets: variables of defaults, with their types, within their ranges. --name=value and --name value are the
 * same, a boolean alone is true, of several values the last one counts, and a -- means nothing. Throws UserError for all else.
 */
export function readFlags<T extends Values>(
  args: string[],
  defaults: T,
  { ranges, words, bare = {} }: Reading<T> = {},
): Partial<T> {
  const names = Object.keys(defaults), lists = names.filter((name) => Array.isArray(defaults[name]));
  const flags = joined(args, defaults, words, bare);
  const texts: Record<string, unknown> = parseArgs(flags, { string: names, collect: lists });
  const given: Values = {}, allowed: Partial<Record<string, Allowed>> = ranges ?? {};
  for (const [name, like] of Object.entries(defaults)) {
    const text = texts[name] as string | string[] | undefined;
    if (typeof text === "string") given[name] = valueOf(name, text, like, allowed[name]);
    else if (text?.includes("")) throw valueMissing(name, like);
    else if (text?.length) given[name] = text;
  }
  return given as Partial<T>;
}

/** The arguments as parseArgs() takes them: each value with its flag, also one that begins with a dash; words with their list. */
function joined(
  args: string[],
  defaults: Values,
  words: string | undefined,
  bare: Record<string, string>,
): string[] {
  const rest = args.filter((arg) => arg !== "--"), flags: string[] = [];
  const valueBehind = (name: string): string => {
    const [next = "--"] = rest, isBoolean = typeof defaults[name] === "boolean";
    if (isBoolean ? next === "true" || next === "false" : !next.startsWith("--")) return rest.shift()!;
    const alone = isBoolean ? "true" : bare[name];
    if (alone === undefined) throw valueMissing(name, defaults[name]);
    return alone;
  };
  const put = (name: string, value: string) =>
    flags.push(...value === "" ? [`--${name}`, ""] : [`--${name}=${value}`]); // parseArgs() knows no --name= without a value
  for (let arg = rest.shift(); arg !== undefined; arg = rest.shift()) {
    const [, name = "", value] = /^--([^=]+)(?:=(.*))?$/s.exec(arg) ?? [];
    if (Object.hasOwn(defaults, name)) put(name, value ?? valueBehind(name));
    else if (words !== undefined && (arg === "-" || !arg.startsWith("-"))) put(words, arg);
    else throw unknown(arg, Object.keys(defaults));
  }
  return flags;
}

/** What to say of an argument that is no variable, or a word where none is taken. */
function unknown(arg: string, names: string[]): UserError {
  const [name = ""] = arg.replace(/^-+/, "").split("=");
  if (arg.startsWith("-") || names.length === 0) {
    const advice = meantFlag(name, [...names, "help"]);
    return new UserError(`Cannot use ${arg.split("=")[0]}: there is no such flag; ${advice}`);
  }
  const example = names.includes(name) ? arg : `${names[0]}=${arg}`;
  return new UserError(
    `Cannot read the argument ${arg}: flags are given as --name=value, such as --${example}`,
  );
}

function valueMissing(name: string, like: Value | undefined): UserError {
  const example = `${like ?? ""}` || "...";
  return new UserError(`Cannot use --${name}: it needs a value, such as --${name}=${example}`);
}

function valueOf(name: string, text: string, like: Value, allowed: Allowed | undefined): Value {
  if (text === "" && like !== "") throw valueMissing(name, like);
  const value = typed(text, like);
  if (value !== undefined && isAllowed(value, allowed)) return value;
  const what = typeof like === "boolean" ? "true or false" : `a number, such as ${like}`;
  throw new UserError(
    `Cannot use --${name}=${text}: it should be ${allowed ? described(allowed, value) : what}`,
  );
}

/** A text in the type of a default; undefined where it cannot be read so. */
function typed(text: string, like: Value): Value | undefined {
  if (typeof like === "string") return text;
  if (typeof like === "boolean") return text === "true" ? true : text === "false" ? false : undefined;
  if (!/^[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) return undefined; // as people write numbers
  const value = Number(text.replaceAll("_", "")) + 0; // -0 becomes 0, as a C integer needs it
  return Number.isFinite(value) ? value : undefined;
}

/** Stops at the first variable that is not within its range, wherever its value comes from. Throws UserError. */
export function requireRanges<T extends Values>(values: T, ranges: Ranges<T>): void {
  for (const [name, allowed] of Object.entries<Allowed>(ranges)) {
    const value = values[name] ?? null;
    if (isAllowed(value, allowed)) continue;
    throw new UserError(`Cannot use --${name}=${value}: it should be ${described(allowed, value)}`);
  }
}

function isAllowed(value: Value, allowed: Allowed | undefined): boolean {
  if (allowed === undefined || value === null) return true;
  if (!("from" in allowed)) return allowed.includes(`${value}`);
  const number = Number(value), { whole, from, to, open } = allowed;
  return number >= from && number <= to && number !== open && (!whole || Number.isSafeInteger(number));
}

const OR = new Intl.ListFormat("en-GB", { type: "disjunction" });

/** "a whole number from 1 to 256", "check, tape or profile". */
function described(allowed: Allowed, value: Value | undefined): string {
  if (!("from" in allowed)) return OR.format(allowed.filter((word) => word !== ""));
  const { whole, from, to, open } = allowed, kind = whole ? "a whole number" : "a number";
  const hasEnd = to < Number.MAX_SAFE_INTEGER || whole && Number(value) > to; // which is said where it is in the way
  if (!hasEnd) return `${kind} of at least ${from}`;
  return `${kind} ${open === from ? "above" : "from"} ${from} to ${open === to ? "below " : ""}${to}`;
}

/** Turns \n, \t and \\ into what they stand for, since a shell passes them on as they are. */
export function unescape(text: string): string {
  return text.replace(/\\([nt\\])/g, (_, letter) => letter === "n" ? "\n" : letter === "t" ? "\t" : "\\");
}
