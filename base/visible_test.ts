import { assert, assertEquals } from "@std/assert";
import { oneLine, visible } from "./visible.ts";

Deno.test("visible() writes out what steers a terminal, and nothing else", () => {
  const directions = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"; // LRE, RLE, PDF, LRO, RLO; LRI, RLI, FSI, PDI
  for (let code = 0; code <= 0x10ffff; code++) {
    const c = String.fromCodePoint(code);
    const steers = /[\p{Cc}\p{Zl}\p{Zp}]/u.test(c) && c !== "\t" && c !== "\n" || directions.includes(c);
    const wanted = steers ? `\\u${code.toString(16).padStart(4, "0")}` : c;
    if (visible(c) !== wanted) assertEquals(visible(c), wanted);
  }
  assertEquals(
    visible("a\x1b[31mb\r\n\tc\x9b2J\x7f\u202eé👍"),
    "a\\u001b[31mb\\u000d\n\tc\\u009b2J\\u007f\\u202eé👍",
  );
});

Deno.test("visible() leaves JSON the same JSON", () => {
  const text = Array.from({ length: 0x2100 }, (_, code) => String.fromCharCode(code)).join("");
  assertEquals(JSON.parse(visible(JSON.stringify({ text }))), { text });
});

Deno.test("oneLine() leaves no line break of any kind", () => {
  assertEquals(
    oneLine("a\nb\r\nc\td\x85e\u2028f\u2029g\x0bh\x0ci"),
    "a\\nb\\r\\nc\\td\\u0085e\\u2028f\\u2029g\\u000bh\\u000ci",
  );
  assert(!/\s/.test(oneLine("\n\r\t\v\f\x85\u2028\u2029")));
});
