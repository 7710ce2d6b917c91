// For the tests of the reader: files to read, and documents as strings to compare with.
import { type Block, documentOf } from "./block.ts";

/** The texts of a block, "" for null. */
export function textsOf(block: Block): string[] {
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  return Array.from(block.ends, (_, d) => utf8.decode(documentOf(block, d)));
}

/** Runs with a directory of files, and removes it. */
export async function withFiles(
  files: Record<string, string | Uint8Array>,
  run: (directory: string) => Promise<void>,
): Promise<void> {
  const directory = Deno.makeTempDirSync();
  try {
    for (const [name, content] of Object.entries(files)) {
      Deno.mkdirSync(`${directory}/${name}`.replace(/\/[^/]*$/, ""), { recursive: true });
      if (typeof content === "string") Deno.writeTextFileSync(`${directory}/${name}`, content);
      else Deno.writeFileSync(`${directory}/${name}`, content);
    }
    await run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}
