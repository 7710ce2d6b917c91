// The TypeScript files of the project, for tests that read them. Imports none of them, whatever may be wrong there.

/** The folders of the program. */
export const FOLDERS: string[] = ["base", "ffi", "runtime", "dist", "data", "model", "serve", "tools"];

/** Paths of all TypeScript files in the root, and of those in these folders of it and below, sorted. */
export function sourcesIn(folders: string[]): string[] {
  const root = new URL("../", import.meta.url), files: string[] = [];
  const visit = (folder: string) => {
    for (const { name, isFile, isDirectory } of Deno.readDirSync(new URL(folder || ".", root))) {
      if (isFile && name.endsWith(".ts")) files.push(folder + name);
      if (isDirectory && (folder !== "" || folders.includes(name))) visit(`${folder}${name}/`);
    }
  };
  visit("");
  return files.sort();
}

/** Those of the program, without its tests. */
export function programSources(): string[] {
  return sourcesIn(FOLDERS).filter((path) => !path.endsWith("_test.ts"));
}
