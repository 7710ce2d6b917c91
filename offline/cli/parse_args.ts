/**
 * The part of `@std/cli` that loam uses, with the same names, signatures and meaning, so that it runs where the JSR registry
 * is out of reach. `links` in deno.json points here; `deno unlink offline/assert offline/cli` switches to the real packages,
 * and nothing else changes. Left out: all arguments but texts that are declared, each with two dashes and a value.
 *
 * @module
 */

/** How {@linkcode parseArgs} reads the command line. */
export interface ParseOptions<S extends string = string, C extends string = string> {
  /** Arguments whose value is text. */
  string?: readonly S[];
  /** Those that may be repeated; their values form an array. Of others the last one counts. */
  collect?: readonly C[];
}

/** What {@linkcode parseArgs} returns: the arguments by name, and the words between them in "_". */
export type Args<S extends string, C extends string> =
  & { [K in Exclude<S, C>]?: string }
  & { [K in S & C]: string[] }
  & { _: string[] };

/**
 * Reads a command line of `--name=value` and `--name value`; a name without a value has an empty one.
 *
 * @example
 * ```ts
 * import { parseArgs } from "@std/cli/parse-args";
 *
 * const args = parseArgs(["--out=a.txt", "--in", "b.txt"], { string: ["out", "in"] });
 * // { out: "a.txt", in: "b.txt", _: [] }
 * ```
 */
export function parseArgs<S extends string = never, C extends string = never>(
  args: readonly string[],
  { string = [], collect = [] }: ParseOptions<S, C>,
): Args<S, C> {
  const collected: readonly string[] = collect, words: string[] = [];
  const result: Record<string, string | string[]> = Object.fromEntries(
    string.filter((name) => collected.includes(name)).map((name) => [name, []]),
  );
  for (let i = 0; i < args.length; i++) {
    const [, name, given] = /^--([^=]+)(?:=(.+))?$/s.exec(args[i]!) ?? [], next = args[i + 1];
    if (name === undefined) {
      words.push(args[i]!);
      continue;
    }
    const value = given ?? (next && !next.startsWith("-") ? args[++i]! : ""), earlier = result[name];
    result[name] = Array.isArray(earlier) ? [...earlier, value] : value;
  }
  return { ...result, _: words } as Args<S, C>;
}
