/**
 * The part of `@std/cli` that loam uses, with the same names, signatures and meaning, so that it runs where the JSR registry
 * is out of reach. `links` in deno.json points here; `deno unlink offline/assert offline/cli` switches to the real packages,
 * and nothing else changes. Left out: booleans, aliases, defaults, unknown, names with dots, values that touch a short option.
 *
 * @module
 */

type Names<K extends string> = K | readonly K[];

/** How {@linkcode parseArgs} reads the command line. */
export interface ParseOptions<S extends string = string, C extends string = string> {
  /** Arguments whose value stays text; others become numbers where they look like one. */
  string?: Names<S>;
  /** Arguments that may be repeated; their values form an array. Of others the last one counts. */
  collect?: Names<C>;
}

/** What {@linkcode parseArgs} returns: declared arguments by name, undeclared ones as unknown, and the rest in "_". */
export type Args<S extends string, C extends string> =
  & Record<string, unknown>
  & { [K in Exclude<S, C>]?: string }
  & { [K in S & C]: string[] }
  & { _: (string | number)[] };

/**
 * Reads a command line: `--name value`, `--name=value`, `--flag`, `-n value`, `-abc`, and plain words.
 *
 * @example
 * ```ts
 * import { parseArgs } from "@std/cli/parse-args";
 *
 * const args = parseArgs(["--out=a.txt", "--quiet", "in.txt"], { string: "out" });
 * // { out: "a.txt", quiet: "in.txt", _: [] }
 * ```
 */
export function parseArgs<S extends string = never, C extends string = never>(
  args: readonly string[],
  options: ParseOptions<S, C> = {},
): Args<S, C> {
  const strings: readonly string[] = [options.string ?? []].flat();
  const collected: readonly string[] = [options.collect ?? []].flat();
  const result: Record<string, unknown> = {}, words: (string | number)[] = [];
  for (const name of strings) if (collected.includes(name)) result[name] = [];

  function set(key: string, value: string | boolean): void {
    const typed = typeof value === "string" && !strings.includes(key) ? numberOr(value) : value;
    if (collected.includes(key)) result[key] = [...result[key] as unknown[] ?? [], typed];
    else result[key] = typed;
  }

  const end = args.indexOf("--"), before = end < 0 ? args : args.slice(0, end);
  for (let i = 0; i < before.length; i++) {
    const arg = before[i]!, next = before[i + 1];
    const [, dashes = "", name = "", value] = /^(--?)(.[^=]*)(?:=(.+))?$/s.exec(arg) ?? [];
    if (dashes === "") {
      words.push(numberOr(arg));
      continue;
    }
    const keys = dashes === "--" ? [name] : [...name], last = keys.pop()!;
    for (const key of keys) set(key, strings.includes(key) ? "" : true);
    if (value !== undefined) set(last, value);
    else if (next && !next.startsWith("-")) set(last, before[++i]!);
    else set(last, strings.includes(last) ? "" : true);
  }
  return { ...result, _: [...words, ...end < 0 ? [] : args.slice(end + 1)] } as Args<S, C>;
}

function numberOr(text: string): string | number {
  return /\S/.test(text) && Number.isFinite(Number(text)) ? Number(text) : text;
}
