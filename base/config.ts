// Configuration is variables: a literal object at the top of train.ts. --name=value overrides any of them and takes the type
// of the default; everything else is an error that names the nearest variable.
import { asTyped } from "./command.ts";
import { UserError } from "./errors.ts";
import { meantFlag } from "./suggest.ts";

/** Variables by name. */
export type Values = Record<string, number | string | boolean>;

/**
 * What --help prints: what the command does, and each variable with its default and the comment that stands behind it.
 *
 * @param source Text of the module that begins with the variables: an object literal, a line each, `  name: value, // comment`.
 * Groups of them follow an empty line and a comment, which becomes their heading.
 */
export function help(what: string, defaults: Values, source: string): string {
  const [, literal = ""] = /^(?:export )?const \w+ = \{\n([^]*?)\n\};$/m.exec(source) ?? [];
  const flag = (name: string) => `  --${name}=${defaults[name]}`;
  const width = Math.max(...Object.keys(defaults).map((name) => flag(name).length));
  const lines = literal.split("\n").map((line) => {
    const [, name, comment = ""] = /^ *(\w+): .*?,(?: \/\/ (.*))?$/.exec(line) ?? [];
    return name ? `${flag(name).padEnd(width)}  ${comment}`.trimEnd() : line.replace("  // ", "");
  });
  return asTyped([what, "", ...lines].join("\n"));
}

/** What the command line sets: only variables of defaults, with their types. `--flag` alone is true, or its value in `bare`. */
export function parseOverrides<T extends Values>(
  args: string[],
  defaults: T,
  bare: Record<string, string> = {},
): Partial<T> {
  const overrides: Values = {};
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    const match = /^--([^=]+)(?:=(.*))?$/s.exec(arg);
    if (!match) throw new UserError(`Cannot read the argument ${arg}: variables are set as --name=value`);
    const name = match[1]!;
    if (!Object.hasOwn(defaults, name)) {
      const known = Object.keys(defaults).concat(name === "help" ? [] : "help");
      throw new UserError(`Cannot set ${name}: there is no such variable; ${meantFlag(name, known)}`);
    }
    let text = match[2];
    if (text === undefined && typeof defaults[name] === "boolean") text = "true";
    text ??= bare[name];
    if (text === undefined && i + 1 < args.length && !args[i + 1]!.startsWith("--")) text = args[++i]!;
    if (text === undefined) {
      throw new UserError(`Cannot set ${name}: it needs a value, --${name}=${example(defaults[name]!)}`);
    }
    overrides[name] = parseValue(name, text, defaults[name]!);
  }
  return overrides as Partial<T>;
}

function parseValue(
  name: string,
  text: string,
  fallback: number | string | boolean,
): number | string | boolean {
  if (typeof fallback === "string") return text;
  if (typeof fallback === "boolean") {
    if (text === "true" || text === "false") return text === "true";
    throw new UserError(`Cannot set ${name} to "${text}": it must be true or false`);
  }
  const value = /^[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)
    ? Number(text.replaceAll("_", "")) + 0 // -0 becomes 0, as a C integer needs it
    : NaN;
  if (Number.isFinite(value)) return value;
  throw new UserError(`Cannot set ${name} to "${text}": it must be a number, such as ${example(fallback)}`);
}

function example(value: number | string | boolean): string {
  return value === "" ? "..." : `${value}`;
}

/** Stops unless each named variable is a whole number in [min, max]. */
export function requireWhole<T extends Values>(
  config: T,
  names: (keyof T & string)[],
  min: number,
  max = Number.MAX_SAFE_INTEGER,
): void {
  for (const name of names) {
    const value = config[name] as number;
    if (Number.isSafeInteger(value) && value >= min && value <= max) continue;
    const range = value > max ? `from ${min} to ${max}` : `of at least ${min}`;
    throw new UserError(`Cannot use ${name} ${value}: it must be a whole number ${range}`);
  }
}

/** Stops unless each named variable lies in [min, max]. */
export function requireRange<T extends Values>(
  config: T,
  names: (keyof T & string)[],
  min: number,
  max: number,
): void {
  for (const name of names) {
    const value = config[name] as number;
    if (!(value >= min && value <= max)) {
      const range = max === Infinity ? `at least ${min}` : `between ${min} and ${max}`;
      throw new UserError(`Cannot use ${name} ${value}: it must be ${range}`);
    }
  }
}
