// For the tests of data/: directories that are removed again, and what transformers makes of conversations.
import type { Message, RenderOptions, TextSpan } from "./chat_template.ts";

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

/** A conversation, and what transformers makes of it (tests/oracle/chat.py): spans in characters, a digit of the mask for each id. */
export type ChatCase = {
  tokenizer: string;
  template: string;
  messages: Message[];
  options: RenderOptions;
  text: string;
  spans: TextSpan[];
  ids: number[];
  mask: string;
};

/** All of them in tests/golden/chat, where their tokenizers and templates are too. */
export function chatCases(): ChatCase[] {
  const path = new URL("../tests/golden/chat/rendered.jsonl", import.meta.url);
  return Deno.readTextFileSync(path).trimEnd().split("\n").map((line) => JSON.parse(line));
}
