import { assertEquals } from "@std/assert";
import type { RunSummary } from "./api.js";
import { arranged, counted, differences, LATEST, reordered } from "./overview.js";

const RUNS: RunSummary[] = [
  { name: "run-10", state: "finished", loss: 2, started: "2026-03-01T00:00:00Z", preset: "tiny" },
  {
    name: "run-2",
    state: "failed",
    loss: null,
    started: "2026-03-03T00:00:00Z",
    preset: null,
    error: "Full disk",
  },
  { name: "wide", state: "running", loss: 1.5, started: "2026-03-02T00:00:00Z", preset: "small" },
].map((run) => ({
  ...{
    error: null,
    health: { level: "good", text: "" },
    step: 1,
    max_iters: null,
    val_loss: null,
    val_bpb: null,
  },
  ...{ tokens_per_sec: null, eta_s: null, ended_at: null },
  ...run as Pick<RunSummary, "name" | "state" | "loss" | "started" | "preset">,
}));

Deno.test("arranged() sorts by any column, what is not known last", () => {
  const names = (column: typeof LATEST.column, isDescending = false) =>
    arranged(RUNS, "", { column, isDescending }).map(({ name }) => name);
  assertEquals(arranged(RUNS, "", LATEST).map(({ name }) => name), ["run-2", "wide", "run-10"]);
  assertEquals(names("name"), ["run-2", "run-10", "wide"]); // as people count
  assertEquals(names("loss"), ["wide", "run-10", "run-2"]);
  assertEquals(names("loss", true), ["run-10", "wide", "run-2"]);
  assertEquals(names("state"), ["run-2", "wide", "run-10"]);
  assertEquals(names("preset"), ["wide", "run-10", "run-2"]);
  assertEquals(names("val_loss"), ["run-2", "run-10", "wide"]);
});

Deno.test("arranged() keeps the runs that hold every word", () => {
  const found = (words: string) => arranged(RUNS, words, LATEST).map(({ name }) => name);
  assertEquals(found("RUN"), ["run-2", "wide", "run-10"]); // it is running
  assertEquals(found("run- tiny"), ["run-10"]);
  assertEquals(found("disk"), ["run-2"]);
  assertEquals(found("nothing"), []);
});

Deno.test("reordered() turns a column round, and begins others with what one looks for", () => {
  assertEquals(reordered(LATEST, "started"), { column: "started", isDescending: false });
  assertEquals(reordered(LATEST, "loss"), { column: "loss", isDescending: false });
  assertEquals(reordered(LATEST, "tokens_per_sec"), { column: "tokens_per_sec", isDescending: true });
});

Deno.test("counted() says how many runs there are in which state", () => {
  assertEquals(counted(RUNS), "3 runs: 1 failed, 1 running, 1 finished");
  assertEquals(counted(RUNS.slice(0, 1)), "1 run: 1 finished");
});

Deno.test("differences() are the variables whose values are not all the same", () => {
  const configs = [{ a: 1, b: [1], c: "x" }, { a: 1, b: [2], c: "x", d: false }];
  assertEquals(differences(configs), [
    { name: "b", values: [[1], [2]] },
    { name: "d", values: [undefined, false] },
  ]);
  assertEquals(differences([configs[0]!, configs[0]!]), []);
  assertEquals(differences([]), []);
});
