import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { UserError } from "./errors.ts";
import * as files from "./files.ts";

/** Runs an action on a new directory, which is removed afterwards. */
function inDirectory(action: (dir: string) => void): void {
  const dir = Deno.makeTempDirSync();
  try {
    action(dir);
  } finally {
    Deno.removeSync(dir, { recursive: true });
  }
}

/** Has a method of files replaced while an action runs. */
function withMethod<K extends "syncSync" | "writeSync">(
  name: K,
  method: (original: Deno.FsFile[K]) => Deno.FsFile[K],
  action: () => void,
): void {
  const original = Deno.FsFile.prototype[name];
  Deno.FsFile.prototype[name] = method(original);
  try {
    action();
  } finally {
    Deno.FsFile.prototype[name] = original;
  }
}

/** What the system is told to bring to the disk, each as the path that it has then, or its last name. */
function syncedBy(dir: string, action: () => void): string[] {
  const synced: string[] = [];
  const pathOf = (ino: number, at: string): string | undefined => {
    if (Deno.statSync(at).ino === ino) return at.slice(dir.length) || "/";
    if (!Deno.statSync(at).isDirectory) return undefined;
    return Array.from(Deno.readDirSync(at), ({ name }) => pathOf(ino, `${at}/${name}`)).find(Boolean);
  };
  const note = (original: () => void) =>
    function (this: Deno.FsFile) {
      synced.push(pathOf(this.statSync().ino!, dir)!.replace(String(Deno.pid), "PID"));
      original.call(this);
    };
  withMethod("syncSync", note, action);
  return synced;
}

Deno.test("what is to survive a crash is synced before it is named, and its name afterwards", () =>
  inDirectory((dir) => {
    assertEquals(syncedBy(dir, () => files.writeSynced(`${dir}/a`, "1")), ["/a"]);
    assertEquals(syncedBy(dir, () => files.writeAtomic(`${dir}/a`, "2")), ["/a.PID.tmp", "/"]);
    assertEquals(syncedBy(dir, () => files.makeDirectory(`${dir}/b/c/d`)), ["/", "/b", "/b/c"]);
    assertEquals(syncedBy(dir, () => files.makeDirectory(`${dir}/b/c/d`)), []);
    assertEquals(syncedBy(dir, () => files.syncDirectory(`${dir}/b`)), ["/b"]);
    using file = new files.OutFile(`${dir}/a`, "append");
    assertEquals(syncedBy(dir, () => file.write("3")), []);
    assertEquals(syncedBy(dir, () => file.sync()), ["/a"]);
    assertEquals(Deno.readTextFileSync(`${dir}/a`), "23");
  }));

Deno.test("writeAtomic() leaves the file as it was, or as it is to be", () =>
  inDirectory((dir) => {
    files.writeAtomic(`${dir}/a`, "old");
    {
      using _ = files.watchChanges(({ kind, path, to }) => {
        assertEquals(Deno.readTextFileSync(`${dir}/a`), kind === "syncDirectory" ? "new" : "old");
        if (kind !== "syncDirectory") assertMatch(path, /\/a\.\d+\.tmp$/);
        if (kind === "rename") assertEquals(to, `${dir}/a`);
      });
      files.writeAtomic(`${dir}/a`, "new");
    }
    assertEquals(Array.from(Deno.readDirSync(dir), ({ name }) => name), ["a"]);
  }));

Deno.test("removeTemporary() removes what a killed writeAtomic() left, and nothing else", () =>
  inDirectory((dir) => {
    for (const name of ["a", "a.tmp", "a.1.tmp.b", ".tmp"]) Deno.writeTextFileSync(`${dir}/${name}`, "");
    {
      using _ = files.watchChanges(({ kind, path }) => { // another process is killed at this point
        if (kind === "rename") Deno.copyFileSync(path, path.replace(/\d+(?=\.tmp$)/, "7"));
      });
      files.writeAtomic(`${dir}/b`, "new");
    }
    assertEquals([...Deno.readDirSync(dir)].length, 6);
    files.removeTemporary(dir);
    const left = Array.from(Deno.readDirSync(dir), ({ name }) => name).sort();
    assertEquals(left, [".tmp", "a", "a.1.tmp.b", "a.tmp", "b"]);
  }));

Deno.test("OutFile writes all, however little the system takes at a time", () =>
  inDirectory((dir) => {
    const text = "zwölf Boxkämpfer";
    const few = (original: (bytes: Uint8Array) => number) =>
      function (this: Deno.FsFile, bytes: Uint8Array) {
        return original.call(this, bytes.subarray(0, 3));
      };
    withMethod("writeSync", few, () => files.writeSynced(`${dir}/a`, text));
    assertEquals(Deno.readTextFileSync(`${dir}/a`), text);
  }));

Deno.test("OutFile empties, keeps or changes what is there", () =>
  inDirectory((dir) => {
    const path = `${dir}/a`;
    const write = (mode: "create" | "append" | "change", text: string) => {
      using file = new files.OutFile(path, mode);
      file.write(text);
    };
    assertThrows(() => write("change", "?"), UserError, `Cannot write ${path}: No such file or directory`);
    write("append", "abc");
    write("append", "def");
    assertEquals(Deno.readTextFileSync(path), "abcdef");
    write("change", "xy");
    assertEquals(Deno.readTextFileSync(path), "xycdef");
    {
      using file = new files.OutFile(path, "change");
      file.truncate(4);
      file.seek(3);
      file.write("z");
    }
    assertEquals(Deno.readTextFileSync(path), "xycz");
    write("create", "q");
    assertEquals(Deno.readTextFileSync(path), "q");
  }));

Deno.test("removeTree() removes links, not what they lead to", () =>
  inDirectory((dir) => {
    files.makeDirectory(`${dir}/kept`);
    files.makeDirectory(`${dir}/tree/inner`);
    Deno.writeTextFileSync(`${dir}/kept/a`, "");
    Deno.writeTextFileSync(`${dir}/tree/inner/b`, "");
    Deno.symlinkSync(`${dir}/kept`, `${dir}/tree/link`);
    Deno.symlinkSync(`${dir}/nowhere`, `${dir}/tree/broken`);
    files.removeTree(`${dir}/tree`);
    files.removeTree(`${dir}/tree`); // it is gone already
    assertEquals(Array.from(Deno.readDirSync(dir), ({ name }) => name), ["kept"]);
    assertEquals(files.isFile(`${dir}/kept/a`), true);
  }));

Deno.test("sha256OfFile() is that of sha256sum, also beyond what it reads at a time", () =>
  inDirectory((dir) => {
    Deno.writeTextFileSync(`${dir}/empty`, "");
    Deno.writeTextFileSync(`${dir}/large`, "a".repeat(2 ** 20 + 5));
    assertEquals(
      [files.sha256OfFile(`${dir}/empty`), files.sha256OfFile(`${dir}/large`)],
      [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "342867377adcf487fd155448cfefa56c15daca68f66199f192c05f8bcccf4ebd",
      ],
    );
    assertThrows(() => files.sha256OfFile(`${dir}/no`), UserError, `Cannot read ${dir}/no: No such file`);
  }));

Deno.test("isFile() is true of files, isDirectory() of directories, and both of links to them", () =>
  inDirectory((dir) => {
    Deno.writeTextFileSync(`${dir}/a`, "");
    Deno.symlinkSync(`${dir}/a`, `${dir}/link`);
    Deno.symlinkSync(dir, `${dir}/up`);
    const all = ["a", "link", "", "up", "no", "a/b"].map((name) => `${dir}/${name}`);
    assertEquals(all.map(files.isFile), [true, true, false, false, false, false]);
    assertEquals(all.map(files.isDirectory), [false, false, true, true, false, false]);
  }));
