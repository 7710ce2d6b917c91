/**
 * The part of `@std/cli` that loam uses, with the same names, signatures and meaning, so that it runs where the JSR registry
 * is out of reach. `links` in deno.json points here; `deno unlink offline/assert offline/cli` switches to the real packages,
 * and nothing else changes. Left out: names with dots do not become nested objects.
 *
 * @module
 */

type Names<K extends string> = K | readonly K[];

/** How {@linkcode parseArgs} reads the command line. */
export interface ParseOptions<
  B extends string = string,
  S extends string = string,
  C extends string = string,
  N extends string = string,
> {
  /** Put what follows "--" into the result's "--" instead of "_". */
  "--"?: boolean;
  /** Other names of an argument; each receives the value too. */
  alias?: Record<string, string | readonly string[]>;
  /** Arguments that are true or false, false when not given. `true`: every --name that has no =value. */
  boolean?: boolean | Names<B>;
  /** Values of arguments that are not given. */
  default?: Record<string, unknown>;
  /** Put everything from the first argument that is no option into "_". */
  stopEarly?: boolean;
  /** Arguments whose value stays text; others become numbers where they look like one. */
  string?: Names<S>;
  /** Arguments that may be repeated; their values form an array. Of others the last one counts. */
  collect?: Names<C>;
  /** Arguments for which --no-name means false. */
  negatable?: Names<N>;
  /** Called with every argument that is not declared here; returning false drops it. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

/** What {@linkcode parseArgs} returns: declared arguments by name, undeclared ones as unknown, and the rest in "_". */
export type Args<B extends string, S extends string, C extends string, N extends string> =
  & Record<string, unknown>
  & { [K in Exclude<B, C>]: boolean }
  & { [K in Exclude<S, C>]?: K extends N ? string | false : string }
  & { [K in B & C]: boolean[] }
  & { [K in S & C]: string[] }
  & { [K in Exclude<C, B | S>]?: unknown[] }
  & { _: (string | number)[]; "--"?: string[] };

type Value = string | number | boolean;

/**
 * Reads a command line: `--name value`, `--name=value`, `--flag`, `--no-flag`, `-n value`, `-abc`, and plain words.
 *
 * @example
 * ```ts
 * import { parseArgs } from "@std/cli/parse-args";
 *
 * const args = parseArgs(["--out=a.txt", "--quiet", "in.txt"], { string: "out", boolean: "quiet" });
 * // { out: "a.txt", quiet: true, _: ["in.txt"] }
 * ```
 */
export function parseArgs<
  B extends string = never,
  S extends string = never,
  C extends string = never,
  N extends string = never,
>(args: readonly string[], options: ParseOptions<B, S, C, N> = {}): Args<B, S, C, N> {
  const aliases = aliasesOf(options.alias ?? {});
  const booleans = withAliases(typeof options.boolean === "boolean" ? undefined : options.boolean, aliases);
  const strings = withAliases(options.string, aliases);
  const collected = withAliases(options.collect, aliases);
  const negatable = withAliases(options.negatable, aliases);
  const allBooleans = options.boolean === true;

  const result: Record<string, unknown> = {};
  const words: (string | number)[] = [];

  function set(key: string, value: Value, arg: string, collect = true): void {
    const declared = booleans.has(key) || strings.has(key) || collected.has(key) || aliases.has(key) ||
      (allBooleans && /^--[^=]+$/.test(arg));
    if (!declared && options.unknown?.(arg, key, value) === false) return;
    if (typeof value === "string" && !strings.has(key)) value = numberOr(value);
    const gather = collect && collected.has(key);
    for (const name of [key, ...aliases.get(key) ?? []]) put(result, name, value, gather);
  }
  const bare = (key: string) => strings.has(key) ? "" : true; // the value of an option without one
  const isBoolean = (key: string) =>
    booleans.has(key) || (aliases.get(key) ?? []).some((name) => booleans.has(name));

  /** --name, --name=value or --no-name. Returns how many of the following arguments it used. */
  function long(arg: string, next: string | undefined): number {
    const [, name = "", value] = /^--(.[^=]*)(?:=(.*))?$/s.exec(arg) ?? [];
    if (value !== undefined) {
      set(name, booleans.has(name) ? value !== "false" : value, arg);
      return 0;
    }
    if (name.startsWith("no-") && negatable.has(name.slice(3))) {
      set(name.slice(3), false, arg, false);
      return 0;
    }
    if (next && !next.startsWith("-") && !isBoolean(name) && !allBooleans) {
      set(name, next, arg);
      return 1;
    }
    return flag(name, arg, next);
  }

  /** An option that takes no value but "true" or "false". */
  function flag(key: string, arg: string, next: string | undefined): number {
    const given = next === "true" || next === "false";
    set(key, given ? next === "true" : bare(key), arg);
    return given ? 1 : 0;
  }

  /** -n, -n value, -n=value, -n5 or several letters at once: -abc. Returns how many following arguments it used. */
  function short(arg: string, next: string | undefined): number {
    for (let i = 1; i < arg.length - 1; i++) {
      const letter = arg[i]!, rest = arg.slice(i + 1);
      if (rest === "-") {
        set(letter, "-", arg);
        continue;
      }
      const value = attached(letter, rest);
      if (value !== undefined) {
        set(letter, value, arg);
        return 0;
      }
      set(letter, bare(letter), arg);
    }
    const last = arg.at(-1)!;
    if (last === "-") return 0;
    if (next && !/^--?[^-]/.test(next) && !isBoolean(last)) {
      set(last, next, arg);
      return 1;
    }
    return flag(last, arg, next);
  }

  const end = args.indexOf("--");
  const before = end < 0 ? args : args.slice(0, end);
  const after = end < 0 ? [] : args.slice(end + 1);
  for (let i = 0; i < before.length; i++) {
    const arg = before[i]!;
    if (/^--./s.test(arg)) i += long(arg, before[i + 1]);
    else if (/^-./s.test(arg)) i += short(arg, before[i + 1]);
    else {
      if (options.unknown?.(arg) !== false) words.push(strings.has("_") ? arg : numberOr(arg));
      if (options.stopEarly) {
        words.push(...before.slice(i + 1));
        break;
      }
    }
  }

  for (const [key, value] of Object.entries(options.default ?? {})) {
    if (key in result) continue;
    for (const name of [key, ...aliases.get(key) ?? []]) result[name] = value;
  }
  for (const key of booleans) result[key] ??= collected.has(key) ? [] : false;
  for (const key of strings) if (collected.has(key)) result[key] ??= [];

  if (options["--"]) return { ...result, _: words, "--": after } as Args<B, S, C, N>;
  return { ...result, _: [...words, ...after] } as Args<B, S, C, N>;
}

/** Stores a value under a name; with gather set, behind the values that are there. */
function put(result: Record<string, unknown>, name: string, value: Value, gather: boolean): void {
  if (name === "__proto__") return;
  const old = result[name];
  if (!gather) result[name] = value;
  else if (Array.isArray(old)) old.push(value);
  else result[name] = old ? [old, value] : [value];
}

/** The value written against a short option's letter: -n=5, -n5, -n-x; undefined for a letter that stands alone. */
function attached(letter: string, rest: string): string | undefined {
  if (rest === "=") return "";
  if (/[A-Za-z]/.test(letter)) {
    const value = /=(.+)/.exec(rest)?.[1];
    if (value !== undefined) return value;
    if (/-?\d+(\.\d*)?(e-?\d+)?$/.test(rest)) return rest;
  }
  return rest.length > 1 && /^\W/.test(rest) ? rest : undefined;
}

/** Each name with all its other names, whichever of them it is. */
function aliasesOf(alias: Record<string, string | readonly string[]>): Map<string, string[]> {
  const aliases = new Map<string, string[]>();
  for (const [key, names] of Object.entries(alias)) {
    const group = [key, ...list(names)];
    for (const name of group) aliases.set(name, group.filter((other) => other !== name));
  }
  return aliases;
}

function withAliases(names: Names<string> | undefined, aliases: Map<string, string[]>): Set<string> {
  return new Set(list(names).flatMap((name) => [name, ...aliases.get(name) ?? []]));
}

function list(names: Names<string> | undefined): readonly string[] {
  return names === undefined ? [] : typeof names === "string" ? [names] : names;
}

function numberOr(text: string): string | number {
  return /\S/.test(text) && Number.isFinite(Number(text)) ? Number(text) : text;
}
