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

/** Runs in a directory of these files, which may lie in folders. What is no text and no bytes is written as JSON. */
export async function withFiles(
  files: Record<string, unknown>,
  run: (directory: string) => void | Promise<void>,
): Promise<void> {
  await inDirectory(async (directory) => {
    for (const [name, content] of Object.entries(files)) {
      const path = `${directory}/${name}`;
      Deno.mkdirSync(path.replace(/\/[^/]*$/, ""), { recursive: true });
      if (content instanceof Uint8Array) Deno.writeFileSync(path, content);
      else Deno.writeTextFileSync(path, typeof content === "string" ? content : JSON.stringify(content));
    }
    await run(directory);
  });
}

/** The names in a directory, sorted. */
export function names(directory: string): string[] {
  return Array.from(Deno.readDirSync(directory), (entry) => entry.name).sort();
}
