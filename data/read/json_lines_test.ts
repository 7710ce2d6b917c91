import { assertEquals } from "@std/assert";
import type { ReportBad } from "./block.ts";
import { readJsonLines } from "./json_lines.ts";
import { assertRefused, input, long, refuse, textsOf } from "./test_documents.ts";
import type { TextInput } from "./text.ts";

async function parse(text: TextInput, field = "text", reportBad: ReportBad = refuse): Promise<string[]> {
  return (await Array.fromAsync(readJsonLines(text, field, reportBad))).flatMap(textsOf);
}

Deno.test("readJsonLines() reads a field of each line, wherever chunks end", async () => {
  const text =
    '\ufeff{"text":"one"}\r\n\n{"text":null,"x":1}\n  \n{"text":"l\\ud800 \\u00e9é👍"}\n{"text":""}';
  for (const chunkBytes of [undefined, 1, 2, 1000]) {
    assertEquals(await parse(input(text, chunkBytes)), ["one", "", "l\ufffd éé👍", ""]);
  }
  assertEquals(await parse(input('{"__proto__":"a"}\n'), "__proto__"), ["a"]);
});

Deno.test("readJsonLines() reads lines of any length", async () => {
  const texts = Array.from({ length: 40 }, (_, i) => "é\n".repeat(i * i * 200));
  const lines = texts.map((text) => JSON.stringify({ text })).join("\n");
  assertEquals(await parse(input(lines, 1 << 16)), texts);
});

const mistakes: [string, string][] = [
  ['{"text":"tw', "Unterminated string in JSON at position 11; each line should be one JSON object"],
  ['{"body":"two","id":2}', 'it has no field "text" but body, id; choose one with --column'],
  ["{}", 'it has no field "text" but none; choose one with --column'],
  ["17", "it is 17; each line should be one JSON object"],
  ['[{"text":"two"}]', "it is a list; each line should be one JSON object"],
  ['{"text":["two"]}', 'field "text" is ["two"], should be a text; choose another with --column'],
];

Deno.test("readJsonLines() names file and line of a mistake, or leaves the line out", async () => {
  for (const [line, message] of mistakes) {
    const text = `\n{"text":"one"}\n${line}\n{"text":"three"}`, reported: [string, number][] = [];
    await assertRefused(() => parse(input(text)), `Cannot read a.txt:3: ${message}`);
    assertEquals(await parse(input(text), "text", (...bad) => reported.push(bad)), ["one", "three"]);
    assertEquals(reported, [[`Cannot read a.txt:3: ${message}`, 1]]);
  }
});

Deno.test("readJsonLines() refuses a line of more than 256 MB, or leaves it out", async () => {
  const text = () => long('{"text":"one"}\n{"text":', (256 << 20) - 7, '\n{"text":"three"}\n{"text":4}');
  const message = "it has more than 268435456 bytes, the limit for one document; split it";
  await assertRefused(() => parse(text()), `Cannot read a.txt:2: ${message}`);
  const reported: string[] = [];
  assertEquals(await parse(text(), "text", (message) => reported.push(message)), [
    "one",
    "three",
  ]);
  assertEquals(reported, [
    `Cannot read a.txt:2: ${message}`,
    'Cannot read a.txt:4: field "text" is 4, should be a text; choose another with --column',
  ]);
});
