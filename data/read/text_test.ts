import { assertEquals } from "@std/assert";
import type { ReportBad } from "./utf8.ts";
import { Random } from "./shuffle.ts";
import { assertRefused, input, long, refuse, textsOf } from "./testing.ts";
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

// ---- other encodings

/** What is left of a text, and what is said of the rest. */
async function leaveOut(text: TextInput, split_on: string): Promise<[string[], string[]]> {
  const reported: string[] = [];
  const documents = await split(text, split_on, (message, documents) => {
    assertEquals(documents, 1);
    reported.push(message);
  });
  return [documents, reported];
}

const wrongByte = (at: number, byte: string) =>
  `Cannot read "a.txt": its byte ${at} is ${byte}, which is not UTF-8 there; convert it with iconv -f ENCODING -t UTF-8`;

Deno.test("readText() refuses what is not UTF-8, with the place of the first wrong byte, or leaves the document out", async () => {
  const cases: [string, number[]][] = [ // the first wrong byte, as Python's decoder has it
    ["0xff", [0xff]],
    ["0xe4", [0xe4, 0xb8]],
    ["0xf0", [0xf0, 0x9f, 0x91]],
    ["0xc0", [0xc0, 0xaf]],
    ["0xed", [0xed, 0xa0, 0x80]],
    ["0xf5", [0xf5, 0x80]],
    ["0x80", [0x80, 0x80]],
  ];
  for (const [byte, bytes] of cases) {
    const text = Uint8Array.of(0x61, ...bytes, 13, 10, 0xc3, 0xa9, 10, 32, 10, 10, ...bytes, 98, 10, 99);
    const second = 1 + bytes.length + 2 + 3 + 3; // where the second place is
    for (const chunkBytes of [1, 2, 3, 1000]) {
      await assertRefused(() => split(input(text, chunkBytes), "line"), wrongByte(1, byte));
      assertEquals(await leaveOut(input(text, chunkBytes), "line"), [["é", " ", "", "c"], [
        wrongByte(1, byte),
        wrongByte(second, byte),
      ]]);
      assertEquals(await leaveOut(input(text, chunkBytes), "blank_line"), [[], [
        wrongByte(1, byte),
        wrongByte(second, byte),
      ]]);
      assertEquals(await leaveOut(input(text, chunkBytes), "\n"), [["é", " ", "", "c"], [
        wrongByte(1, byte),
        wrongByte(second, byte),
      ]]);
      assertEquals(await leaveOut(input(text, chunkBytes), ""), [[], [wrongByte(1, byte)]]);
    }
  }
});

Deno.test("readText() finds a wrong byte behind a byte-order mark, in a later block and beside true U+FFFD", async () => {
  const marked = Uint8Array.of(0xef, 0xbb, 0xbf, 0x63, 0x61, 0x66, 0xe9, 0x20);
  await assertRefused(() => split(input(marked), ""), wrongByte(6, "0xe9"));
  const lines = `${"\ufffd long lines, é 👍\n".repeat(60_000)}end`, text = new TextEncoder().encode(lines);
  text[text.length - 2] = 0xe9; // 1.4 MB behind the start
  assertEquals(await leaveOut(input(text, 1 << 16), "line"), [
    lines.split("\n").slice(0, -1),
    [wrongByte(text.length - 2, "0xe9")],
  ]);
  assertEquals(await leaveOut(input(text, 1 << 16), ""), [[], [wrongByte(text.length - 2, "0xe9")]]);
});

Deno.test("readText() names the encoding that a byte-order mark says, and leaves the file out", async () => {
  const files: [string, string, number[]][] = [ // "é" and a newline, from Python's str.encode()
    ["UTF-16", "0xff 0xfe", [0xff, 0xfe, 0xe9, 0x00, 0x0a, 0x00]],
    ["UTF-16", "0xfe 0xff", [0xfe, 0xff, 0x00, 0xe9, 0x00, 0x0a]],
    ["UTF-32", "0xff 0xfe 0x00 0x00", [0xff, 0xfe, 0, 0, 0xe9, 0, 0, 0, 0x0a, 0, 0, 0]],
    ["UTF-32", "0x00 0x00 0xfe 0xff", [0, 0, 0xfe, 0xff, 0, 0, 0, 0xe9, 0, 0, 0, 0x0a]],
  ];
  for (const [encoding, bytes, text] of files) {
    const message = `Cannot read "a.txt": it begins with the byte-order mark of ${encoding} (${bytes}), ` +
      `should be UTF-8; convert it with iconv -f ${encoding} -t UTF-8`;
    for (const chunkBytes of [1, 1000]) {
      await assertRefused(() => split(input(Uint8Array.from(text), chunkBytes), "line"), message);
      assertEquals(await leaveOut(input(Uint8Array.from(text), chunkBytes), "line"), [[], [message]]);
    }
  }
});

Deno.test("readText() refuses bytes that are 0, as UTF-16 without a mark has them", async () => {
  const text = Uint8Array.of(0x61, 0, 0x62, 0, 0x0a, 0); // "ab\n"
  const line = (at: number) =>
    `Cannot read "a.txt": its byte ${at} is 0x00, as in UTF-16 or in what is no text; ` +
    "convert it with iconv -f ENCODING -t UTF-8";
  await assertRefused(() => split(input(text), ""), line(1));
  assertEquals(await leaveOut(input(text), "line"), [[], [line(1), line(5)]]);
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
