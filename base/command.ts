// Commands are named in errors and help texts as tasks: "deno task train". Who has the binary types "loam train".

/** The subcommands of the binary. Each is a task of deno.json, too. */
export const SUBCOMMANDS = [
  "prepare",
  "tokenizer",
  "data",
  "download",
  "train",
  "sample",
  "chat",
  "eval",
  "export",
  "serve",
  "runs",
  "doctor",
] as const;

/** With :web or :dist it is the task with more permissions; the binary has them all. */
const TASK = new RegExp(`deno task (${SUBCOMMANDS.join("|")})\\b(:\\w+)?`, "g");

/** A text with its commands as they are typed here: "loam train" in the binary, and where its source, mod.ts, is run. */
export function asTyped(text: string): string {
  const isBinary = Deno.build.standalone || Deno.mainModule === new URL("../mod.ts", import.meta.url).href;
  return isBinary ? text.replaceAll(TASK, "loam $1") : text;
}
