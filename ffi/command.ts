// What the user types to start a subcommand, for help texts and for errors that name the next one.

/** The subcommands of the binary. Each is a task of deno.json, too. */
export type Subcommand =
  | "prepare"
  | "tokenizer"
  | "data"
  | "train"
  | "sample"
  | "serve"
  | "runs"
  | "doctor";

/** "deno task train", or "loam train" in the binary and where mod.ts, the program in it, is run from its source. */
export function command(name: Subcommand): string {
  return `${isBinary() ? "loam" : "deno task"} ${name}`;
}

function isBinary(): boolean {
  return Deno.build.standalone || Deno.mainModule === new URL("../mod.ts", import.meta.url).href;
}
