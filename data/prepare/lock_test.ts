import { assertEquals, assertThrows } from "@std/assert";
import { UserError } from "../../base/errors.ts";
import { DirectoryLock } from "./lock.ts";
import { inDirectory, names } from "../testing.ts";

Deno.test("DirectoryLock keeps a second writer out until it is disposed of", () =>
  inDirectory((parent) => {
    const dir = `${parent}/new`;
    {
      using _lock = DirectoryLock.take(dir);
      assertEquals(
        assertThrows(() => DirectoryLock.take(dir), UserError).message,
        `Cannot write to "${dir}": another deno task prepare is writing there; wait for it to end, or choose another --out`,
      );
      assertEquals(names(dir), ["prepare.lock"]);
    }
    DirectoryLock.take(dir)[Symbol.dispose]();
  }));

Deno.test("DirectoryLock removes the directory that it made if nothing came into it", () =>
  inDirectory((parent) => {
    DirectoryLock.take(`${parent}/new`)[Symbol.dispose]();
    assertEquals(names(parent), []);
    {
      using _lock = DirectoryLock.take(`${parent}/new`);
      Deno.writeTextFileSync(`${parent}/new/file`, "");
    }
    assertEquals(names(`${parent}/new`), ["file"]);
    Deno.mkdirSync(`${parent}/empty`);
    DirectoryLock.take(`${parent}/empty`)[Symbol.dispose](); // was there before
    assertEquals(names(parent), ["empty", "new"]);
  }));

Deno.test("DirectoryLock takes over the file of a program that was killed", () =>
  inDirectory((dir) => {
    Deno.writeTextFileSync(`${dir}/prepare.lock`, "");
    DirectoryLock.take(dir)[Symbol.dispose]();
    assertEquals(names(dir), []);
  }));

Deno.test("DirectoryLock says what keeps it from writing", () =>
  inDirectory((dir) => {
    Deno.writeTextFileSync(`${dir}/file`, "");
    for (const out of [`${dir}/file`, `${dir}/file/out`]) {
      assertThrows(() => DirectoryLock.take(out), UserError, `Cannot write to "${out}": `);
    }
  }));
