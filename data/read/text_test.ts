import { assertEquals } from "@std/assert";
import type { ReportBad } from "./block.ts";
import { Random } from "./shuffle.ts";
import { assertRefused, input, long, refuse, textsOf } from "./test_documents.ts";
import { readText, type TextInput } from "./text.ts";

async function split(text: TextInput, split_on: string, reportBad: ReportBad = refuse): Promise<string[]> {
  return (await Array.fromAsync(readText(text, split_on, reportBad))).flatMap(textsOf);
}

const TEXT = "\ufeffone\r\ntwo\n\n  \n\nthree é👍\n \r\nfour\r\n";

const splits: [string, string[]][] = [
  ["", ["one\r\ntwo\n\n  \n\nthree é👍\n \r\nfour\r\n"]],
  ["line", ["one", "two", "", "  ", "", "three é👍", " ", "four"]],
  ["blank_line", ["one\r\ntwo", "three é👍", "four"]],
  ["\n\n", ["one\r\ntwo", "  ", "three é👍\n \r\nfour\r\n"]],
  ["four\r\n", ["one\r\ntwo\n\n  \n\nthree é👍\n \r\n"]],
  ["é", ["one\r\ntwo\n\n  \n\nthree ", "👍\n \r\nfour\r\n"]],
];

for (const [split_on, documents] of splits) {
  Deno.test(`readText() splits on ${JSON.stringify(split_on)}, wherever chunks end`, async () => {
    for (const chunkBytes of [undefined, 1, 2, 3, 7, 1000]) {
      assertEquals(await split(input(TEXT, chunkBytes), split_on), documents);
    }
  });
}

Deno.test("readText() does as splitting a string does, for random text", async () => {
  const random = new Random(1), pieces = ["a", "b", "\n", "\n\n", "\r\n", " ", "ab", "é", "\r"];
  for (let i = 0; i < 300; i++) {
    const text = Array.from({ length: random.below(12) }, () => pieces[random.below(pieces.length)]).join("");
    for (const separator of ["a", "ab", "aab", "\n\n", "\r\n\r\n"]) {
      const parts = text.split(separator);
      if (parts.at(-1) === "") parts.pop();
      assertEquals(await split(input(text), separator), parts, JSON.stringify([text, separator]));
    }
    const lines = text.split(/\r?\n/);
    if (lines.at(-1) === "") lines.pop();
    assertEquals(await split(input(text), "line"), lines, JSON.stringify(text));
    assertEquals(await split(input(text), "blank_line"), paragraphs(text), JSON.stringify(text));
  }
});

/** The runs of lines with text. */
function paragraphs(text: string): string[] {
  const paragraphs: string[][] = [[]];
  for (const line of text.split("\n")) {
    if (line.trim() === "") paragraphs.push([]);
    else paragraphs.at(-1)!.push(line);
  }
  return paragraphs.filter((lines) => lines.length > 0).map((lines) => lines.join("\n").replace(/\r$/, ""));
}

Deno.test("readText() takes a text without bytes for an empty document, or for none if it is to be split", async () => {
  assertEquals(await split(input(""), ""), [""]);
  for (const split_on of ["line", "blank_line", "\n\n"]) assertEquals(await split(input(""), split_on), []);
});

Deno.test("readText() puts U+FFFD for each maximal part that is not UTF-8, as TextDecoder does", async () => {
  const cases = [[0xff], [0xe4, 0xb8], [0xf0, 0x9f, 0x91], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xf5, 0x80], [
    0x80,
    0x80,
  ]];
  for (const bytes of cases) {
    const text = Uint8Array.of(0x61, ...bytes, 10, ...bytes, 0xc3, 0xa9, 10, 0xc3, 10, 0xa9);
    const lines = new TextDecoder().decode(text).split("\n");
    for (const chunkBytes of [1, 2, 1000]) assertEquals(await split(input(text, chunkBytes), "line"), lines);
  }
});

Deno.test("readText() ends a block with the document that fills it", async () => {
  const parts = Array.from({ length: 400 }, (_, i) => "é👍".repeat(i * 7)); // about 3 MB
  const blocks = await Array.fromAsync(readText(input(parts.join("<|>"), 1 << 16), "<|>", refuse));
  const sizes = blocks.map(({ text }) => text.length >> 20); // MB
  assertEquals(sizes, [1, 1, 1, 0]);
  assertEquals(blocks.flatMap(textsOf), parts);
});

Deno.test("readText() refuses a document of more than 256 MB, or leaves it out", async () => {
  const zeros = (256 << 20) + 1, reported: [string, number][] = [];
  const limit = "it has more than 268435456 bytes, the limit for one document";
  const advice = "say where documents end, such as with --split_on=blank_line";
  await assertRefused(
    () => split(long("", zeros, ""), ""),
    `Cannot read "a.txt" as one document: ${limit}; ${advice}`,
  );
  const text = long("one\n\n", zeros - 1, "\n\nthree"); // the newline is too much
  assertEquals(await split(text, "blank_line", (...bad) => reported.push(bad)), ["one", "three"]);
  assertEquals(reported, [[`Cannot read document 2 of "a.txt": ${limit}; ${advice}`, 1]]);
});
