import { assertEquals } from "@std/assert";
import type { ReportBad } from "./utf8.ts";
import { readJsonLines } from "./json_lines.ts";
import { assertRefused, input, long, refuse, textsOf } from "./testing.ts";
import type { TextInput } from "./text.ts";

async function parse(text: TextInput, field = "text", reportBad: ReportBad = refuse): Promise<string[]> {
  return (await Array.fromAsync(readJsonLines(text, field, reportBad))).flatMap(textsOf);
}

Deno.test("readJsonLines() reads a field of each line, wherever chunks end", async () => {
  const text =
    '\ufeff{"text":"one"}\r\n\n{"text":null,"x":1}\n  \n{"text":"l \\u00e9é\\ud83d\\udc4d"}\n{"text":""}';
  for (const chunkBytes of [undefined, 1, 2, 1000]) {
    assertEquals(await parse(input(text, chunkBytes)), ["one", "", "l éé👍", ""]);
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
  [
    '{"text":"a\\ude00 \\ud83d"}',
    'field "text" has \\ude00 alone, which is half of a character; write the whole one',
  ],
  ['{\0"\0t\0', "its character 1 is U+0000, as in UTF-16; each line should be one JSON object"],
  ['{"text":["two"]}', 'field "text" is ["two"], should be a text; choose another with --column'],
];

// Each as Python's json.loads() takes it.
Deno.test("readJsonLines() reads lines with NaN and Infinity in other fields", async () => {
  const lines = [
    '{"score":NaN,"text":"one"}',
    '{"text":"two","score":-Infinity}',
    '{"text":"three: NaN, \\"Infinity\\\\","a":[ NaN,Infinity , {"b":-Infinity}],"NaN":"\\\\\\""}',
    '{"text":"","NaN":NaN}',
    '{"text":null,"Infinity":Infinity}',
  ];
  const texts = ["one", "two", 'three: NaN, "Infinity\\', "", ""];
  assertEquals(await parse(input(lines.join("\n"))), texts);
});

Deno.test("readJsonLines() refuses what Python's json does too", async () => {
  const each = "each line should be one JSON object";
  const lines: [string, string][] = [
    ['{"text":"a","b":-NaN}', `No number after minus sign in JSON at position 17; ${each}`],
    ['{"text":"a","b":NaNs}', `Unexpected token 'N', ..."":"a","b":NaNs}" is not valid JSON; ${each}`],
    [
      '{"text":"a","b":+Infinity}',
      `Unexpected token '+', ..."":"a","b":+Infinity}" is not valid JSON; ${each}`,
    ],
    ['{"text":"a",NaN:1}', `Expected double-quoted property name in JSON at position 12; ${each}`],
    ['{"text":"a","b":NaN', `Expected ',' or '}' after property value in JSON at position 21; ${each}`],
    ['{"text":"a NaN', `Unterminated string in JSON at position 14; ${each}`],
    ['{"text":NaN}', 'field "text" is NaN or Infinity, should be a text; choose another with --column'],
  ];
  for (const [line, message] of lines) {
    await assertRefused(() => parse(input(line)), `Cannot read a.txt:1: ${message}`);
  }
});

Deno.test("readJsonLines() names file and line of a mistake, or leaves the line out", async () => {
  for (const [line, message] of mistakes) {
    const text = `\n{"text":"one"}\n${line}\n{"text":"three"}`, reported: [string, number][] = [];
    await assertRefused(() => parse(input(text)), `Cannot read a.txt:3: ${message}`);
    assertEquals(await parse(input(text), "text", (...bad) => reported.push(bad)), ["one", "three"]);
    assertEquals(reported, [[`Cannot read a.txt:3: ${message}`, 1]]);
  }
});

Deno.test("readJsonLines() names line and byte of what is not UTF-8, or leaves the line out", async () => {
  const utf8 = new TextEncoder(), line = (text: string) => utf8.encode(`{"text":"${text}"}\n`);
  const long = line("é👍 \ufffd ".repeat(40_000)); // more than a run of lines
  const text = Uint8Array.from([
    0xef,
    0xbb,
    0xbf,
    ...line("one"),
    ...line("caf?"),
    ...long,
    ...line("日?"),
    ...line("two"),
  ]);
  const first = 3 + 15 + 12, second = 3 + 15 + 16 + long.length + 12;
  text[first] = 0xe9; // in Latin-1: é
  text[second] = 0xff;
  const messages = [[2, first, "0xe9"], [4, second, "0xff"]].map(([number, at, byte]) =>
    `Cannot read a.txt:${number}: its byte ${at} is ${byte}, which is not UTF-8 there; convert it with iconv -f ENCODING -t UTF-8`
  );
  for (const chunkBytes of [7, 1 << 16]) {
    const reported: string[] = [];
    await assertRefused(() => parse(input(text, chunkBytes)), messages[0]!);
    const texts = await parse(input(text, chunkBytes), "text", (message) => reported.push(message));
    assertEquals(texts.map((text) => text.slice(0, 5)), ["one", "é👍 \ufffd", "two"]);
    assertEquals(reported, messages);
  }
});

Deno.test("readJsonLines() names the encoding that a byte-order mark says", async () => {
  const text = Uint8Array.of(0xff, 0xfe, 0x7b, 0, 0x7d, 0, 0x0a, 0);
  await assertRefused(
    () => parse(input(text)),
    'Cannot read "a.txt": it begins with the byte-order mark of UTF-16 (0xff 0xfe), should be UTF-8; ' +
      "convert it with iconv -f UTF-16 -t UTF-8",
  );
});

Deno.test("readJsonLines() counts bytes over a line that is left out for its length", async () => {
  const { name, takeRead, chunks: before } = long('{"text":"one"}\n{"text":', 256 << 20, '"}\n{"text":"x');
  async function* chunks() {
    yield* before;
    yield Uint8Array.of(0xe9, 0x22, 0x7d, 0x0a);
  }
  const reported: string[] = [];
  await parse({ name, takeRead, chunks: chunks() }, "text", (message) => reported.push(message));
  assertEquals(
    reported[1]!.split(",")[0],
    `Cannot read a.txt:3: its byte ${15 + 8 + (256 << 20) + 3 + 10} is 0xe9`,
  );
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
