import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { KernelError, UserError } from "./errors.ts";
import { errorOf, failedBy, workerScope } from "./worker_scope.ts";

Deno.test("workerScope() throws on the main thread, which has no messages", () => {
  assertThrows(workerScope, Error, "internal: this module runs in a Worker only");
});

Deno.test("an error comes out of a Worker as a mistake in its words, or as a bug with its stack", () => {
  const mistake = errorOf(failedBy(new UserError("Cannot read a")));
  assertEquals([mistake instanceof UserError, mistake.message], [true, "Cannot read a"]);
  const library = errorOf(failedBy(new KernelError("add: n=0")));
  assertEquals([library instanceof UserError, library.message], [true, "Cannot go on: add: n=0"]);
  const bug = errorOf(failedBy(new RangeError("add: n=0")));
  assertEquals(bug instanceof UserError, false);
  assertStringIncludes(bug.message, "RangeError: add: n=0\n");
});
