import { assertEquals } from "@std/assert";
import { type Costs, costs } from "./dry_run.ts";

const SETTINGS = {
  max_iters: 3000,
  eval_interval: 250,
  save_interval: 1000,
  keep_checkpoints: 3,
  init_from: "",
  world_size: 1,
};
const FACTS: Costs = {
  tokens: 2048,
  step_s: 0.2,
  epochs: [{ dir: "data/a", tokens: 1_920_000, share: 1 }],
  checkpoint: 9.9e6,
  evaluates: true,
  memory: { weights: 3.3e6, step: 95e6 },
  free: 20.4e9,
  parameters: 820_992,
};

Deno.test("costs() says what a run takes and gives", () => {
  // 3000 x 2048 = 6,144,000 tokens in 600 s; 20 x 820,992 = 16,419,840 tokens are 8,017.5 steps
  assertEquals(
    costs(SETTINGS, FACTS),
    [
      "steps    3,000  of 2,048 tokens, 6.1M in all",
      "time    10 min  at 10,240 tokens/s; evaluating and saving come to it",
      "epochs     3.2  of 1.9M tokens",
      "disk     30 MB  3 of 3 checkpoints of 9.9 MB are kept",
      "memory   98 MB  of 20.4 GB that are free",
      "ratio      7.5  tokens a parameter; Chinchilla's 20 are 16.4M, 8,018 steps",
    ].join("\n"),
  );
});

Deno.test("costs() counts the epochs of each dataset of a mix, which is gone through by itself", () => {
  const epochs = [
    { dir: "data/a", tokens: 1_024_000, share: 0.75 }, // 4,608,000 of 6,144,000 tokens
    { dir: "data/b", tokens: 20_480_000, share: 0.25 },
  ];
  const [, , first, second] = costs(SETTINGS, { ...FACTS, epochs }).split("\n");
  assertEquals([first, second], [
    "epochs     4.5  of 1.0M tokens in data/a",
    "          0.07  of 20.5M tokens in data/b",
  ]);
});

/** The figure and the text of a row. */
function rowOf(
  name: string,
  settings: Partial<typeof SETTINGS> = {},
  facts: Partial<Costs> = {},
): string | undefined {
  const lines = costs({ ...SETTINGS, ...settings }, { ...FACTS, ...facts }).split("\n");
  return lines.find((line) => line.startsWith(name))?.slice(name.length).trim().replaceAll(/ {2,}/g, " ");
}

Deno.test("costs() counts the checkpoints that stay: the newest, and the best where the model is evaluated", () => {
  const disk = (settings: Partial<typeof SETTINGS>, facts: Partial<Costs> = {}) =>
    rowOf("disk", settings, facts);
  assertEquals(disk({ save_interval: 100 }), "40 MB 4 of 30 checkpoints of 9.9 MB are kept");
  assertEquals(
    disk({ save_interval: 100 }, { evaluates: false }),
    "30 MB 3 of 30 checkpoints of 9.9 MB are kept",
  );
  assertEquals(
    disk({ save_interval: 100, eval_interval: 0 }),
    "30 MB 3 of 30 checkpoints of 9.9 MB are kept",
  );
  assertEquals(
    disk({ save_interval: 100, keep_checkpoints: 1, eval_interval: 0 }),
    "20 MB 2 of 30 checkpoints of 9.9 MB are kept", // the one before the newest stays too
  );
  assertEquals(disk({ save_interval: 2900 }), "20 MB 2 of 2 checkpoints of 9.9 MB are kept"); // the last step is saved too
  assertEquals(disk({ save_interval: 0 }), "0.0 kB 0 of 0 checkpoints of 9.9 MB are kept");
});

Deno.test("costs() leaves open what is not known, and what a model that was trained before has no use for", () => {
  assertEquals(rowOf("time", {}, { step_s: undefined }), "- as no speed was measured");
  assertEquals(rowOf("memory", {}, { free: undefined }), "98 MB as planned; no device is open");
  assertEquals(rowOf("ratio", { init_from: "models/a" }), undefined);
  const epochs = [{ dir: "data/a", tokens: 61_440_000, share: 1 }];
  assertEquals(rowOf("epochs", {}, { epochs }), "0.10 of 61.4M tokens");
  assertEquals(
    rowOf("time", { world_size: 64, max_iters: 1_000_000 }, { step_s: 1.5, tokens: 4e6 }),
    "17.4 d at 2,666,667 tokens/s, 64 ranks with one 400G adapter a node; evaluating and saving come to it",
  );
});
