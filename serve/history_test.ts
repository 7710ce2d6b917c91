import { assert, assertEquals } from "@std/assert";
import { history } from "./history.ts";
import { Table } from "./table.ts";
import { metricsAt } from "./testing.ts";

function tableOf(losses: (number | null)[]): Table {
  const table = new Table();
  losses.forEach((loss, i) => table.append(JSON.stringify({ ...metricsAt(i + 1), loss })));
  return table;
}

Deno.test("history() of few steps is all of them", () => {
  const table = tableOf([3, 1, 2]);
  const none = { step: [], value: [], mean: [] };
  assertEquals(history(table, "loss", 3), { step: [1, 2, 3], value: [3, 1, 2], mean: [3, 1, 2] });
  assertEquals(history(table, "loss", 3, { since: 1, until: 2 }), { step: [2], value: [1], mean: [1] });
  assertEquals(history(table, "loss", 3, { since: 3, until: Infinity }), none);
  assertEquals(history(table, "loss", 3, { since: 0, until: 0 }), none);
  assertEquals(history(new Table(), "loss", 3), none);
});

Deno.test("history() of many steps keeps the ends and every spike, at their own steps", () => {
  const losses = Array.from({ length: 10_000 }, (_, i) => 2 + Math.sin(i / 500));
  const spikes = [[17, 9], [5000, -3], [5001, 11], [9998, 7]] as const;
  for (const [i, value] of spikes) losses[i] = value;
  for (const points of [10, 11, 1000]) {
    const { step, value } = history(tableOf(losses), "loss", points);
    assert(step.length <= points, `${step.length} for ${points}`);
    assertEquals([step[0], step.at(-1)], [1, 10_000]);
    step.forEach((s, i) => assertEquals(value[i], losses[s - 1]));
    assert(step.every((s, i) => i === 0 || s > step[i - 1]!));
    const known = value.filter((loss) => loss !== null);
    assertEquals([Math.min(...known), Math.max(...known)], [-3, 11]);
  }
  const { value } = history(tableOf(losses), "loss", 1000);
  for (const [, spike] of spikes) assert(value.includes(spike));
});

Deno.test("history() has means that add up to that of the whole run", () => {
  const losses = Array.from({ length: 10_002 }, (_, i) => i % 100 === 0 ? 50 : 1); // spikes that min and max overrate
  const { step, mean, value } = history(tableOf(losses), "loss", 202);
  assertEquals(value.filter((loss) => loss === 50).length, 101);
  assertEquals(new Set(mean.slice(1)), new Set([1.49])); // the last one is no measurement that weighs as much as 100
  assertEquals(step.length, mean.length);
});

Deno.test("history() takes 2 and 3 points for the ends", () => {
  const table = tableOf([1, 5, 3, 4, 2]);
  assertEquals(history(table, "loss", 2), { step: [1, 5], value: [1, 2], mean: [1, 2] });
  assertEquals(history(table, "loss", 3), { step: [1, 5], value: [1, 2], mean: [1, 2] });
  assertEquals(history(table, "loss", 4), { step: [1, 2, 3, 5], value: [1, 5, 3, 2], mean: [1, 4, 4, 4] });
});

Deno.test("history() leaves out what was not measured, and has null for what was not finite", () => {
  const lost = { step: [1, 2, 3], value: [1, null, 3], mean: [1, null, 3] };
  assertEquals(history(tableOf([1, null, 3]), "loss", 10), lost);
  const evaluated = history(tableOf(Array(25).fill(1)), "val_loss", 10);
  assertEquals(evaluated.step, [10, 20]);
});

Deno.test("history() of many steps names the first one of each stretch that was not finite", () => {
  const losses: (number | null)[] = Array.from({ length: 10_002 }, (_, i) => i);
  for (const i of [777, 778, 3210, ...Array.from({ length: 500 }, (_, i) => 4001 + i)]) losses[i] = null;
  const { step, value, mean } = history(tableOf(losses), "loss", 302); // stretches of 100 steps
  assert(step.length <= 302, `${step.length}`);
  assertEquals(step.filter((_, i) => value[i] === null), [778, 3211, 4002, 4102, 4202, 4302, 4402]);
  assertEquals(mean.map((m) => m === null), value.map((v) => v === null));
  assertEquals(step, step.toSorted((a, b) => a - b));
  assertEquals(value.filter((v) => v !== null && v > 4000 && v < 4501), []);
  losses.fill(null, 9000, 10_001); // up to the last but one
  assertEquals(history(tableOf(losses), "loss", 302).mean.slice(-2), [null, 10_001]);
});
