import { assertEquals } from "@std/assert";
import { messagesIn } from "./chat.ts";

Deno.test("messagesIn() gives a message for a line, and for several where they go on", async () => {
  const cases: [string[], string[]][] = [
    [["a", "", "b\r"], ["a", "", "b"]],
    [["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]],
    [["a\\"], ["a"]],
    [['"""', "a", "", '/b """ c', '"""', "d"], ['a\n\n/b """ c', "d"]],
    [['"""a', 'b"""  ', "c"], ["a\nb", "c"]],
    [['"""a"""', '""', '"""', "/b"], ["a", '""', "/b"]], // the end of input is an end too
    [['a """', 'b"""'], ['a """', 'b"""']],
    [["/system a\\", "b"], ["/system a\nb"]],
  ];
  for (const [lines, expected] of cases) {
    const asked: boolean[] = [], got: string[] = [];
    const each = async function* () {
      yield* lines;
    };
    for await (const { text } of messagesIn(each(), (isOpen) => asked.push(isOpen))) got.push(text);
    assertEquals(got, expected, JSON.stringify(lines));
    assertEquals(asked.length, lines.length + 1);
  }
});

Deno.test("messagesIn() tells what stands between quotes from commands", async () => {
  const lines = async function* () {
    yield* ["/reset", '"""/reset"""'];
  };
  assertEquals(await Array.fromAsync(messagesIn(lines())), [
    { text: "/reset", isQuoted: false },
    { text: "/reset", isQuoted: true },
  ]);
});
