// Patterns for names of files: * and ? stand for characters of a name, ** for any directories.
import { join } from "node:path";
import { UserError } from "../../base/errors.ts";
import { isDirectory } from "../../base/files.ts";

/** Whether a name is a pattern. */
export function isGlob(name: string): boolean {
  return /[*?]/.test(name);
}

/** The directory that all paths of a pattern are in: its part before the first name with a wildcard; "" if it has none. */
export function globRoot(pattern: string): string {
  const names = pattern.split("/");
  return names.slice(0, names.findIndex(isGlob)).join("/") || (pattern.startsWith("/") ? "/" : "");
}

/** Matches the paths that a pattern means. */
export function globMatcher(pattern: string): RegExp {
  const source = pattern.replace(/\*\*\/|\*\*|\*|\?|[^\w/]/g, (part) => {
    if (part === "**/") return "(?:[^/]+/)*";
    if (part === "**") return ".*";
    if (part === "*") return "[^/]*";
    return part === "?" ? "[^/]" : `\\${part}`;
  });
  return new RegExp(`^${source}$`);
}

/** The files that match a pattern, in no order. Hidden ones and those in hidden directories are left out. */
export function globFiles(pattern: string): string[] {
  const root = globRoot(pattern) || ".", matcher = globMatcher(join(pattern));
  const depth = pattern.includes("**") ? Infinity : pattern.split("/").length;
  return isDirectory(root) ? filesBelow(root, depth).filter((path) => matcher.test(path)) : [];
}

/**
 * The files below a directory, at most so many levels down, in no order. Hidden ones and those in hidden directories
 * are left out. Throws UserError for a directory that may not be read.
 */
export function filesBelow(directory: string, depth = Infinity): string[] {
  if (depth === 0) return [];
  return entriesOf(directory).filter(({ name }) => !name.startsWith(".")).flatMap((entry) => {
    const path = join(directory, entry.name);
    const isBelow = entry.isDirectory || entry.isSymlink && isDirectory(path) && !leadsUp(path, directory);
    return isBelow ? filesBelow(path, depth - 1) : [path];
  });
}

/** Whether a link in a directory leads to that directory or to one that it is in, where files would be found for ever. */
function leadsUp(link: string, directory: string): boolean {
  return `${Deno.realPathSync(directory)}/`.startsWith(`${Deno.realPathSync(link)}/`);
}

function entriesOf(directory: string): Deno.DirEntry[] {
  try {
    return Array.from(Deno.readDirSync(directory));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new UserError(`Cannot read directory "${directory}": ${(error as Error).message}`);
  }
}
