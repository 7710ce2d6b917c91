import { assertEquals } from "@std/assert";
import { lastLines, openRegular, Tail } from "./tail.ts";

/** A file in a directory of its own. */
class Scratch implements Disposable {
  readonly dir = Deno.realPathSync(Deno.makeTempDirSync({ prefix: "loam_" }));
  readonly path = `${this.dir}/lines`;

  write(text: string): void {
    Deno.writeTextFileSync(this.path, text);
  }

  append(text: string): void {
    Deno.writeTextFileSync(this.path, text, { append: true });
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.dir, { recursive: true });
  }
}

const NOTHING = { restarted: false, lines: [], more: false };

Deno.test("Tail gives each line once, when it is whole", () => {
  using scratch = new Scratch();
  const tail = new Tail(scratch.path);
  assertEquals(tail.next(), NOTHING); // not there yet
  scratch.write("one\ntwo\nthr");
  assertEquals(tail.next().lines, ["one", "two"]);
  assertEquals(tail.next(), NOTHING);
  scratch.append("ee\n\nfünf\n");
  assertEquals(tail.next().lines, ["three", "", "fünf"]);
});

Deno.test("Tail begins again when the file is cut, replaced, removed or made anew", () => {
  using scratch = new Scratch();
  const tail = new Tail(scratch.path);
  scratch.write("one\ntwo\n");
  tail.next();
  scratch.write("one\n"); // cut in place
  assertEquals(tail.next(), { restarted: true, lines: ["one"], more: false });
  scratch.write("eno\nzwo\n"); // cut, and grown further than before
  assertEquals(tail.next(), { restarted: true, lines: ["eno", "zwo"], more: false });
  Deno.writeTextFileSync(`${scratch.dir}/new`, "uno\ndue\n");
  Deno.renameSync(`${scratch.dir}/new`, scratch.path); // as writeAtomic() does
  assertEquals(tail.next(), { restarted: true, lines: ["uno", "due"], more: false });
  Deno.writeTextFileSync(`${scratch.dir}/new`, "uno\ndue\ntre\n");
  Deno.renameSync(`${scratch.dir}/new`, scratch.path); // begins alike
  assertEquals(tail.next(), { restarted: true, lines: ["uno", "due", "tre"], more: false });
  Deno.removeSync(scratch.path);
  assertEquals(tail.next(), { restarted: true, lines: [], more: false });
  assertEquals(tail.next(), NOTHING);
  scratch.write("eins\nzwei\ndrei\n");
  assertEquals(tail.next(), { restarted: false, lines: ["eins", "zwei", "drei"], more: false });
});

Deno.test("Tail reads a large file in slices and gets over a line without end", () => {
  using scratch = new Scratch();
  const line = "x".repeat(999), tail = new Tail(scratch.path);
  scratch.write(`${line}\n`.repeat(3000) + "y".repeat(2_500_000) + "\nlast\n");
  const lines = [];
  for (let slice = tail.next();; slice = tail.next()) {
    lines.push(...slice.lines);
    if (!slice.more) break;
  }
  assertEquals(lines.filter((text) => text === line).length, 3000);
  assertEquals(lines.at(-1), "last");
  assertEquals(lines.length, 3002); // what is left of the long one too
});

Deno.test("lastLines() gives the end of a file", () => {
  using scratch = new Scratch();
  assertEquals(lastLines(scratch.path, 3), []);
  scratch.write("a\nb\nc\nd\n");
  assertEquals(lastLines(scratch.path, 3), ["b", "c", "d"]);
  assertEquals(lastLines(scratch.path, 9), ["a", "b", "c", "d"]);
  scratch.append("half");
  assertEquals(lastLines(scratch.path, 2), ["d", "half"]);
  scratch.write("z".repeat(100_000) + "\nend\n");
  assertEquals(lastLines(scratch.path, 5), ["end"]); // no part of a line
});

Deno.test("openRegular() follows no symbolic link and opens files only", () => {
  using scratch = new Scratch();
  scratch.write("secret\n");
  Deno.symlinkSync(scratch.path, `${scratch.dir}/link`);
  Deno.symlinkSync(scratch.dir, `${scratch.dir}/folder`);
  for (const name of ["link", "folder/lines", "folder", ".", "missing", "../lines"]) {
    assertEquals(openRegular(`${scratch.dir}/${name}`), undefined, name);
  }
  using file = openRegular(scratch.path);
  assertEquals(file?.readSync(new Uint8Array(9)), 7);
});
