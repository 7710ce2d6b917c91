import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { UserError } from "../base/errors.ts";
import { sha256OfFile } from "../base/files.ts";
import { readSums, SUMS, writeSums } from "./sums.ts";
import { readTrainerState } from "./trainer_state.ts";

const STATE = {
  step: 6,
  updates: 5,
  skipped: 1,
  skipped_row: 1,
  tokens: 768,
  order: "0123abcd",
  samples: 48,
  val_loss: 2.5,
  best_val_loss: 2.25,
  best_step: 4,
  tokenizer: "bytes",
  data: { "train_000000.bin": "ab" },
  config: { learning_rate: 0.01 },
  versions: { loam: "0.1.0" },
};

/** A directory step_000006 with a state as text and checksums that fit, which is removed at the end of the block. */
function checkpointOf(state: unknown): { dir: string } & Disposable {
  const parent = Deno.makeTempDirSync(), dir = `${parent}/step_000006`;
  Deno.mkdirSync(dir);
  const text = typeof state === "string" ? state : JSON.stringify(state);
  Deno.writeTextFileSync(`${dir}/config.json`, "{}\n");
  Deno.writeTextFileSync(`${dir}/trainer_state.json`, text);
  writeSums(
    dir,
    new Map(["trainer_state.json", "config.json"].map((name) => [name, sha256OfFile(`${dir}/${name}`)])),
  );
  return { dir, [Symbol.dispose]: () => Deno.removeSync(parent, { recursive: true }) };
}

/** Why a state is refused. */
function refusal(dir: string): string {
  return assertThrows(() => readTrainerState(dir), UserError).message.replaceAll(dir, "DIR");
}

Deno.test("readTrainerState() returns a state that is whole", () => {
  for (
    const state of [STATE, {
      ...STATE,
      val_loss: null,
      best_val_loss: null,
      best_step: null,
      tokenizer: null,
    }]
  ) {
    using checkpoint = checkpointOf(state);
    assertEquals(readTrainerState(checkpoint.dir), state);
    assertEquals(readTrainerState(`${checkpoint.dir}/`), state);
  }
});

Deno.test("readTrainerState() refuses values of another type or range, though their checksum fits", () => {
  const whole = (least: number) => `should be a whole number of at least ${least}`;
  const cases: [change: Record<string, unknown>, why: string][] = [
    [{ step: -1 }, `step is -1, ${whole(1)}`],
    [{ step: null }, `step is null, ${whole(1)}`],
    [{ step: 1e300 }, `step is 1e+300, ${whole(1)}`],
    [{ step: "6" }, `step is "6", ${whole(1)}`],
    [{ step: 6.5 }, `step is 6.5, ${whole(1)}`],
    [{ step: 4, updates: 3 }, "step is 4, but the directory is called step_000006"],
    [{ updates: 0 }, "updates 0 and skipped 1 do not add up to step 6"],
    [{ updates: 5.5 }, `updates is 5.5, ${whole(0)}`],
    [{ skipped: -1 }, `skipped is -1, ${whole(0)}`],
    [{ skipped_row: 2 }, "skipped_row is 2, above skipped 1"],
    [{ tokens: 0 }, `tokens is 0, ${whole(1)}`],
    [{ order: null }, "order is null, should be a string"],
    [{ samples: 1.5 }, `samples is 1.5, ${whole(0)}`],
    [{ samples: 769 }, "samples is 769, above tokens 768"],
    [{ val_loss: -1 }, "val_loss is -1, should be a number of at least 0, or null"],
    [{ best_val_loss: "2" }, 'best_val_loss is "2", should be a number of at least 0, or null'],
    [{ best_val_loss: null }, "val_loss 2.5 of step 6 contradicts best_val_loss null of step 4"],
    [{ best_val_loss: 2.75 }, "val_loss 2.5 of step 6 contradicts best_val_loss 2.75 of step 4"],
    [{ best_step: null }, "val_loss 2.5 of step 6 contradicts best_val_loss 2.25 of step null"],
    [{ best_step: 7 }, "val_loss 2.5 of step 6 contradicts best_val_loss 2.25 of step 7"],
    [{ best_step: 6 }, "val_loss 2.5 of step 6 contradicts best_val_loss 2.25 of step 6"],
    [{ tokenizer: 1 }, "tokenizer is 1, should be a string, or null"],
    [{ data: { a: 1 } }, 'data is {"a":1}, should be an object of strings'],
    [{ config: [] }, "config is [], should be an object"],
    [{ versions: null }, "versions is null, should be an object of strings"],
  ];
  for (const [change, why] of cases) {
    using checkpoint = checkpointOf({ ...STATE, ...change });
    assertEquals(
      refusal(checkpoint.dir),
      `Cannot read DIR/trainer_state.json: ${why}; use another checkpoint`,
    );
  }
});

Deno.test("readTrainerState() refuses unknown and missing keys, and what is no object", () => {
  const { updates, best_step: _, ...rest } = STATE;
  using garbled = checkpointOf({ ...rest, updatez: updates });
  assertEquals(
    refusal(garbled.dir),
    'Cannot read DIR/trainer_state.json: it has no updates, no best_step, an unknown "updatez"; if another version of ' +
      "loam wrote it, go on with that one, else use another checkpoint",
  );
  using more = checkpointOf({ ...STATE, "step\u001b": 6 });
  assertStringIncludes(refusal(more.dir), 'it has an unknown "step\\u001b"; if another version');
  for (const text of ["[]", "null", "3", "{", ""]) {
    using checkpoint = checkpointOf(text);
    assertEquals(
      refusal(checkpoint.dir),
      "Cannot read DIR/trainer_state.json: it is not a JSON object; use another checkpoint",
    );
  }
});

Deno.test("readTrainerState() refuses every change of one byte in any small file, SHA256SUMS too", () => {
  using checkpoint = checkpointOf(STATE);
  for (const file of ["config.json", "trainer_state.json", SUMS]) {
    const path = `${checkpoint.dir}/${file}`, bytes = Deno.readFileSync(path);
    for (let i = 0; i < bytes.length; i++) {
      const changed = bytes.slice();
      changed[i]! ^= 1;
      Deno.writeFileSync(path, changed);
      assertThrows(() => readTrainerState(checkpoint.dir), UserError, `DIR/`.replace("DIR", checkpoint.dir));
    }
    for (let length = 0; length < bytes.length - 1; length++) { // the last one is a line's end
      Deno.writeFileSync(path, bytes.subarray(0, length));
      assertThrows(() => readTrainerState(checkpoint.dir), UserError, checkpoint.dir);
    }
    Deno.writeFileSync(path, bytes);
  }
  assertEquals(readTrainerState(checkpoint.dir), STATE);
});

Deno.test("readTrainerState() names a file that is missing, and says what to do without SHA256SUMS", () => {
  using checkpoint = checkpointOf(STATE);
  const { dir } = checkpoint;
  Deno.removeSync(`${dir}/config.json`);
  assertEquals(refusal(dir), "Cannot read DIR/config.json: there is no such file; use another checkpoint");
  Deno.writeTextFileSync(`${dir}/config.json`, "{}\n");
  Deno.removeSync(`${dir}/${SUMS}`);
  const [message, command] = /if .* use its weights after: (.*); else/.exec(refusal(dir))!;
  assertEquals(
    message,
    "if an earlier version of loam wrote it, use its weights after: (cd DIR && sha256sum * > SHA256SUMS); else",
  );
  new Deno.Command("sh", { args: ["-c", command!.replace("DIR", dir)] }).outputSync();
  assertEquals(readTrainerState(dir), STATE);
});

Deno.test("readTrainerState() refuses a file that SHA256SUMS has no line for", () => {
  for (const name of ["config.json", "trainer_state.json"]) {
    using checkpoint = checkpointOf(STATE);
    const path = `${checkpoint.dir}/${SUMS}`, lines = Deno.readTextFileSync(path).split(/(?<=\n)/);
    Deno.writeTextFileSync(path, lines.filter((line) => !line.includes(`  ${name}`)).join(""));
    assertStringIncludes(refusal(checkpoint.dir), `DIR/${name}: SHA256SUMS has no line for it`);
  }
});

Deno.test("SHA256SUMS is what sha256sum writes", () => {
  using checkpoint = checkpointOf(STATE);
  const { dir } = checkpoint, ours = Deno.readTextFileSync(`${dir}/${SUMS}`);
  const { stdout } = new Deno.Command("sh", { args: ["-c", 'cd "$0" && sha256sum *.json', dir] })
    .outputSync();
  assertEquals(ours, new TextDecoder().decode(stdout));
  for (const text of ["", "abc  config.json\n", ours + ours, ours.replace("config.json", "../config.json")]) {
    Deno.writeTextFileSync(`${dir}/${SUMS}`, text);
    assertThrows(() => readSums(dir), UserError, `Cannot read ${dir}/${SUMS}: line `);
  }
});
