import { assertEquals } from "@std/assert";
import { StopStrings } from "./stop_strings.ts";

/** What comes through, piece by piece, and whether a stop string was found. */
function pieces(stop: string[], texts: string[]): [string[], boolean] {
  const strings = new StopStrings(stop), passed = texts.map((text) => strings.write(text));
  return [[...passed, strings.end()], strings.stopped];
}

Deno.test("StopStrings ends a text before the first stop string", () => {
  assertEquals(pieces(["\n"], ["one\ntwo", "three"]), [["one", "", ""], true]);
  assertEquals(pieces(["b", "a"], ["xyab"]), [["xy", ""], true]);
});

Deno.test("StopStrings holds back what may begin a stop string, and no more", () => {
  assertEquals(pieces(["END"], ["the E", "N", "D of it"]), [["the ", "", "", ""], true]);
  assertEquals(pieces(["END"], ["the E", "N", "TRY"]), [["the ", "", "ENTRY", ""], false]);
  assertEquals(pieces(["aab"], ["aa", "a", "b", "c"]), [["", "a", "", "", ""], true]);
  assertEquals(pieces(["END"], ["the EN"]), [["the ", "EN"], false]);
});

Deno.test("StopStrings of none passes all", () => {
  assertEquals(pieces([], ["a", "", "b"]), [["a", "", "b", ""], false]);
});
