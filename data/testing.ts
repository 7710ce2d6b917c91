// For the tests of data/: directories that are removed again.

/** Runs in an empty directory. */
export async function inDirectory(run: (directory: string) => void | Promise<void>): Promise<void> {
  const directory = Deno.makeTempDirSync({ dir: "/tmp" }); // which the permission set "prepare" may write to
  try {
    await run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

/** The names in a directory, sorted. */
export function names(directory: string): string[] {
  return Array.from(Deno.readDirSync(directory), (entry) => entry.name).sort();
}
