import { assertThrows } from "@std/assert";
import { workerScope } from "./worker_scope.ts";

Deno.test("workerScope() throws on the main thread, which has no messages", () => {
  assertThrows(workerScope, Error, "internal: this module runs in a Worker only");
});
