import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { Table } from "./table.ts";
import { metricsAt } from "./testing.ts";

function line(step: number, more: Record<string, unknown> = {}): string {
  return JSON.stringify({ ...metricsAt(step), ...more });
}

Deno.test("Table keeps each quantity as a column", () => {
  const table = new Table();
  for (let step = 1; step <= 3000; step++) assert(table.append(line(step)));
  assertEquals(table.length, 3000);
  assertEquals(table.column("step").at(1234), 1235);
  assertEquals(table.column("loss").at(0), 5);
  assertEquals([...table.column("val_loss").slice(8, 11)], [NaN, metricsAt(10).val_loss!, NaN]);
  assertEquals(table.last("tokens"), 2048 * 3000);
  assertAlmostEquals(table.last("elapsed_s"), 300, 1e-6);
  assertEquals([table.lastValLoss, table.best], [metricsAt(3000).val_loss!, {
    step: 3000,
    val_loss: metricsAt(3000).val_loss!,
  }]);
});

Deno.test("Table of nothing stands at step 0", () => {
  const table = new Table();
  assertEquals([table.last("step"), table.last("loss"), table.lastValLoss, table.best], [0, NaN, null, null]);
  assertEquals(table.rowAfter(0), 0);
});

Deno.test("Table counts lines that are no later step and goes on", () => {
  const table = new Table();
  const garbage = [
    "",
    "{",
    "null",
    "[1]",
    "12",
    '"step"',
    '{"loss":1}',
    '{"step":"2"}',
    '{"step":2.5}',
    "\0\xff",
  ];
  table.append(line(1));
  for (const text of [...garbage, line(1), line(2, { loss: "low" }), '{"step":-1}']) {
    assertEquals(table.append(text), undefined, text);
  }
  assertEquals(table.badLines, garbage.length + 3);
  assert(table.append(line(2)));
  assertEquals([...table.column("step")], [1, 2]);
});

Deno.test("Table takes null for what was not finite, and does not take it for the best", () => {
  const table = new Table();
  table.append(line(1, { val_loss: 3 }));
  table.append(line(2, { loss: null, grad_norm: null, val_loss: null }));
  assertEquals([table.last("loss"), table.lastValLoss, table.best?.step], [Infinity, 3, 1]);
});

Deno.test("Table knows the last val_bpb, null where there is none", () => {
  const table = new Table();
  table.append(line(1, { val_loss: 3 }));
  assertEquals(table.lastValBpb, null);
  table.append(line(2, { val_loss: 3, val_bpb: 1.5 }));
  table.append(line(3));
  assertEquals([table.lastValBpb, [...table.column("val_bpb")]], [1.5, [NaN, 1.5, NaN]]);
});

Deno.test("Table knows the best evaluation, the first of equal ones", () => {
  const table = new Table();
  for (const [i, val_loss] of [5, 3, 4, 3].entries()) table.append(line(i + 1, { val_loss }));
  assertEquals([table.best, table.lastValLoss], [{ step: 2, val_loss: 3 }, 3]);
});

Deno.test("Table counts no time for a step that took none that is finite", () => {
  const table = new Table();
  for (const [i, step_ms] of ["1000", "null", "1e999", "2000"].entries()) {
    table.append(`{"step":${i + 1},"step_ms":${step_ms}}`);
  }
  assertEquals([...table.column("elapsed_s")], [1, 1, 1, 3]);
});

Deno.test("Table.rowAfter() finds the first later step", () => {
  const table = new Table();
  for (const step of [5, 6, 10]) table.append(line(step));
  assertEquals([0, 4, 5, 7, 9, 10, 11].map((step) => table.rowAfter(step)), [0, 0, 1, 2, 2, 3, 3]);
});

Deno.test("Table keeps the text of recent lines only", () => {
  const table = new Table();
  for (let step = 1; step <= 5000; step++) table.append(line(step));
  assertEquals(table.linesAfter(4998), [4999, 5000].map((step) => ({ step, text: line(step) })));
  assertEquals(table.linesAfter(5000), []);
  assertEquals(table.linesAfter(4500)?.length, 500);
  assertEquals(table.linesAfter(3000), undefined);
});
